//go:build integration

package integration

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
	"github.com/birdtap/birdtap/integration/history"
)

// clusterCuts is how often the power of all three nodes fails.
var clusterCuts = flag.Int("cluster.cuts", 2, "power cuts of TestPowerCutOfAllNodesLosesNothing")

// The power of all three nodes fails at the same instant, again and again, half of the
// times while CleverTap is down and all that was acknowledged still waits. The nodes
// sync before they answer, so it is on the disks that they find.
func TestPowerCutOfAllNodesLosesNothing(t *testing.T) {
	p := newPowered(t, "allcut", "sync_interval: always")
	for cut := range *clusterCuts {
		if cut%2 == 0 {
			p.to.fake.Always(clevertaptest.Status(http.StatusServiceUnavailable, nil, ""))
		}
		moreOK(t, p.client.Log(), 300, time.Minute)
		p.cut()
		p.to.fake.Normal()
		p.start()
		began := time.Now()
		moreOK(t, p.client.Log(), 1, wholeWithin)
		t.Logf("cut %d: receipts are taken in again %.1f s after the nodes' start", cut+1, time.Since(began).Seconds())
	}
	moreOK(t, p.client.Log(), 300, time.Minute)
	p.stop()
	a := p.at.drained(2 * time.Minute)
	letters := p.at.letters()
	a.addsUp(t, p.client.Log().Counts(), p.to.received.Taken(), letters)
	conclude(t, history.Check(history.Evidence{
		Log: p.client.Log(), Received: p.to.received, Letters: letters, MaxInFlight: p.to.fake.Counts().MaxInFlight,
		Seed: p.seed, Commit: commitUnderway(), Faults: []string{fmt.Sprintf("power cut of all three nodes × %d", *clusterCuts)},
	}), history.Limits{Duplicates: a.Relay.Term * outAtOnce, InFlight: accountCalls, Records: batchRecords})
}

// The same cut loses receipts when the nodes sync every now and then only, as they do by
// default: so the test above can see a loss.
func TestPowerCutOfAllNodesThatDoNotSyncLosesReceipts(t *testing.T) {
	p := newPowered(t, "allcutnosync", "")
	p.to.fake.Always(clevertaptest.Status(http.StatusServiceUnavailable, nil, "")) // what CleverTap has cannot be lost any more
	moreOK(t, p.client.Log(), 600, time.Minute)
	p.stop()
	before, err := p.last()
	if err != nil {
		t.Fatal(err)
	}
	p.cut()
	p.start()
	var after uint64
	eventually(t, wholeWithin, "it is seen what the stream has after the cut", func() bool {
		after, err = p.last()
		return err == nil || errors.Is(err, jetstream.ErrStreamNotFound)
	})
	t.Logf("%d frames before the cut, %d after it (%v)", before, after, err)
	if after >= before {
		t.Error("nothing is lost without sync: this cut would not show a loss")
	}
}

// powered is three nodes, each with a disk of its own whose power can fail, and an ingest
// and a relay on a machine whose power does not.
type powered struct {
	t      *testing.T
	seed   uint64
	extra  string // of the nodes' configuration
	addrs  []string
	routes []string
	disks  []*image
	nodes  []*process
	nc     *nats.Conn
	js     jetstream.JetStream
	at     *birdtap
	to     *destination
	client *history.Client
	stop   func()
}

func newPowered(t *testing.T, run, extra string) *powered {
	t.Helper()
	p := &powered{t: t, seed: seedOf(t), extra: extra, to: newDestination(run, 100*time.Millisecond)}
	var urls []string
	for range 3 {
		addr := freeAddr(t)
		p.addrs, p.routes = append(p.addrs, addr), append(p.routes, freeAddr(t))
		p.disks = append(p.disks, newImage(t, 256<<20))
		urls = append(urls, "nats://"+addr)
	}
	p.start()
	var err error
	p.nc, err = nats.Connect(strings.Join(urls, ","), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.nc.Close)
	if p.js, err = jetstream.New(p.nc); err != nil {
		t.Fatal(err)
	}

	door, ingestWindow, relayWindow := freeAddr(t), freeAddr(t), freeAddr(t)
	p.at = newBirdtap(t, map[string]string{
		"NATS_URL": strings.Join(urls, ","), "DATA_DIR": t.TempDir(),
		"QUEUE_MAX_BYTES": "32MiB", "DEAD_MAX_BYTES": "8MiB", "KEEP_MAX_BYTES": "8MiB",
		"CLEVERTAP_ACCOUNT_ID": accountID, "CLEVERTAP_PASSCODE": passcode, "CLEVERTAP_URL": p.to.door(t, "a"),
		"CLEVERTAP_TIMEOUT": "8s", "BATCH_MAX_WAIT": "20ms", "BATCH_MAX_RECORDS": fmt.Sprint(batchRecords),
	})
	eventually(t, wholeWithin, "the nodes have found each other", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := p.js.AccountInfo(ctx)
		return err == nil
	})
	ingest := p.at.with(map[string]string{"HTTP_ADDR": door, "OPS_ADDR": ingestWindow}).daemon("ingest", "ingest")
	ingest.ready(ingestWindow, time.Minute)
	relay := p.at.with(map[string]string{"OPS_ADDR": relayWindow}).daemon("relay", "relay")
	relay.ready(relayWindow, time.Minute)
	p.client = history.NewClient(history.Options{
		Run: run, Seed: p.seed, Doors: []string{"http://" + door + "/1/upload"}, AccountID: accountID, Passcode: passcode,
		Clients: 16, UsersPerClient: 40, Rate: 300,
		Refuse: 0.005, Again: 0.005, AtDoor: 0.005, Several: 0.01, Broken: 0.005, GiveUp: 0.1,
		Journal: journal(t),
	})
	p.stop = runClient(t, p.client)
	return p
}

// start starts the nodes on the disks as they are.
func (p *powered) start() {
	p.t.Helper()
	p.nodes = nil
	for i, disk := range p.disks {
		name := fmt.Sprintf("nats-%d", i+1)
		config := filepath.Join(p.t.TempDir(), "nats.conf")
		text := fmt.Sprintf("server_name: %s\nlisten: %q\njetstream { store_dir: %q\n%s }\ncluster { name: birdtap, listen: %q, no_advertise: true, routes: [nats://%s] }\n",
			name, p.addrs[i], filepath.Join(disk.dir, "store"), p.extra, p.routes[i], strings.Join(p.routes, ", nats://"))
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			p.t.Fatal(err)
		}
		p.nodes = append(p.nodes, start(p.t, name, filepath.Join(p.t.ArtifactDir(), name+".log"), exec.Command(natsBinary(p.t), "-c", config)))
	}
}

// cut fails the power of all nodes: none of them runs on while another has stopped.
func (p *powered) cut() {
	p.t.Helper()
	for _, node := range p.nodes {
		node.alive()
		node.signal(syscall.SIGSTOP)
	}
	for i, node := range p.nodes {
		p.disks[i] = p.disks[i].cut(node)
	}
}

// last is the last frame of the stream, as the nodes know it.
func (p *powered) last() (uint64, error) {
	ctx, cancel := context.WithTimeout(p.t.Context(), 2*time.Second)
	defer cancel()
	s, err := p.js.Stream(ctx, fleetStreams[0])
	if err != nil {
		return 0, err
	}
	return s.CachedInfo().State.LastSeq, nil
}
