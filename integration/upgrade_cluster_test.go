//go:build integration

package integration

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Birdtap of today goes on with the streams of the first layout on a cluster of three,
// after its init: what the lone machine has to do, the cluster has to.
func TestUpgradeInTheCluster(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"stopped", "killed"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUpgrade(t, name)
			urls := threeNodes(t)
			layOut(t, unpacked(t, firstLayout(name)), urls)

			door, window, relayWindow := freeAddr(t), freeAddr(t), freeAddr(t)
			u.door, u.log = "http://"+door+"/1/upload", filepath.Join(t.ArtifactDir(), "daemons.log")
			u.at = newBirdtap(t, clusterEnv(map[string]string{
				"NATS_URL": urls, "REPLICAS": "3", "QUEUE_MAX_BYTES": "64MiB", "DEAD_MAX_BYTES": "16MiB", "KEEP_MAX_BYTES": "16MiB",
				"CLEVERTAP_URL": u.fake.URL(), "DATA_DIR": t.TempDir(), "KEEP_DELIVERED": "876000h",
			}))
			u.do("init")
			u.account("after init", u.left.Account)
			run := func() (stop func()) {
				ingest := u.at.with(map[string]string{"HTTP_ADDR": door, "OPS_ADDR": window}).daemon("ingest", "daemons")
				relay := u.at.with(map[string]string{"HTTP_ADDR": freeAddr(t), "OPS_ADDR": relayWindow}).daemon("relay", "daemons")
				ingest.ready(window, time.Minute)
				relay.ready(relayWindow, time.Minute)
				return func() {
					for _, p := range []*process{ingest, relay} {
						if code := p.terminate(30 * time.Second); code != 0 {
							t.Errorf("exit code %d", code)
						}
					}
				}
			}
			stop := run()
			u.goesOn(func() {
				stop()
				stop = run()
			})
			stop()
			u.noErrors()
		})
	}
}

// threeNodes starts a cluster in this process, and returns the URLs of its nodes.
func threeNodes(t *testing.T) string {
	t.Helper()
	var nodes []*server.Server
	var routes []*url.URL
	var urls []string
	for range 3 {
		routes = append(routes, &url.URL{Scheme: "nats", Host: freeAddr(t)})
	}
	for i, route := range routes {
		o := &server.Options{
			ServerName: fmt.Sprintf("nats-%d", i+1), Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true,
			JetStream: true, StoreDir: t.TempDir(), SyncAlways: true, Routes: routes,
		}
		o.Cluster.Name, o.Cluster.Host = "birdtap", "127.0.0.1"
		if _, err := fmt.Sscanf(route.Port(), "%d", &o.Cluster.Port); err != nil {
			t.Fatal(err)
		}
		s, err := server.NewServer(o)
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		t.Cleanup(func() {
			s.Shutdown()
			s.WaitForShutdown()
		})
		nodes = append(nodes, s)
	}
	eventually(t, time.Minute, "the nodes have a leader", func() bool {
		for _, s := range nodes {
			if s.JetStreamIsLeader() {
				return len(s.JetStreamClusterPeers()) == len(nodes)
			}
		}
		return false
	})
	for _, s := range nodes {
		urls = append(urls, s.ClientURL())
	}
	return strings.Join(urls, ",")
}

// layOut puts what is in a data directory into streams of a cluster: the same subjects,
// headers and sequences, in streams that differ in the number of their replicas only.
func layOut(t *testing.T, dir, urls string) {
	t.Helper()
	from, err := server.NewServer(&server.Options{DontListen: true, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	from.Start()
	defer func() {
		from.Shutdown()
		from.WaitForShutdown()
	}()
	source := jetStream(t, "", nats.InProcessServer(from))
	target := jetStream(t, urls)
	for _, name := range fleetStreams {
		stream, err := source.Stream(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		info := stream.CachedInfo()
		config := info.Config
		config.Replicas, config.FirstSeq = 3, info.State.FirstSeq
		var made jetstream.Stream
		eventually(t, time.Minute, name+" is made", func() bool {
			made, err = target.CreateStream(t.Context(), config)
			return err == nil
		})
		if err := copyMessages(t, stream, target, made); err != nil {
			t.Fatal(err)
		}
	}
}

func jetStream(t *testing.T, url string, options ...nats.Option) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(url, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func copyMessages(t *testing.T, from jetstream.Stream, to jetstream.JetStream, into jetstream.Stream) error {
	state := from.CachedInfo().State
	for seq := state.FirstSeq; seq <= state.LastSeq; seq++ {
		msg, err := from.GetMsg(t.Context(), seq)
		gone := errors.Is(err, jetstream.ErrMsgNotFound)
		m := &nats.Msg{Subject: from.CachedInfo().Config.Subjects[0]}
		switch {
		case gone: // its place is
			m.Subject = strings.ReplaceAll(m.Subject, ">", "gone")
		case err != nil:
			return err
		default:
			m.Subject, m.Header, m.Data = msg.Subject, msg.Header, msg.Data
			for _, condition := range []string{jetstream.ExpectedLastSubjSeqHeader, jetstream.ExpectedLastSeqHeader} {
				m.Header.Del(condition) // they held
			}
		}
		ack, err := to.PublishMsg(t.Context(), m)
		if err == nil && ack.Sequence != seq {
			err = fmt.Errorf("message %d of %s became %d", seq, ack.Stream, ack.Sequence)
		}
		if err == nil && gone {
			err = into.DeleteMsg(t.Context(), seq)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
