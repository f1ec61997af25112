package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// What a cluster carries: so many nats-servers as the streams have replicas, all of which
// sync before they answer, one ingest and one relay, each a process of its own. All of
// them share this machine and its disk, and the rows have no bars.
var clusterSizes = []int{1, 3}

const (
	rowClusterSingles = "%s: 1 receipt per POST, 64 connections"
	rowClusterBulk    = "%s: 1000 receipts per POST, 16 connections"
	rowClusterDrain   = "%s: drain to a zero-latency sink, %s queued"
	rowClusterLatency = "%s: callback in → record at CleverTap, idle, p99"
)

func (b *run) cluster(ctx context.Context) error {
	if err := b.open(); err != nil {
		return err
	}
	nats, err := buildNATS(ctx, b.dir)
	if err != nil {
		return err
	}
	for _, size := range clusterSizes {
		if err := b.onCluster(ctx, nats, size); err != nil {
			return err
		}
	}
	return nil
}

func (b *run) onCluster(ctx context.Context, nats string, size int) error {
	name := fmt.Sprintf("%d nats-servers", size)
	if size == 1 {
		name = "1 nats-server"
	}
	dir, err := os.MkdirTemp(b.dir, "nats-")
	if err != nil {
		return err
	}
	urls, stop, err := b.startNATS(nats, dir, size)
	if err != nil {
		return err
	}
	defer func() {
		stop()
		_ = os.RemoveAll(dir) // goes with the bench's own directory at the latest
	}()
	settings := []string{"BIRDTAP_NATS_URL=" + urls, fmt.Sprintf("BIRDTAP_REPLICAS=%d", size), "BIRDTAP_BATCH_MAX_WAIT=0"}
	ingest, err := b.install(b.sink.address, settings...)
	if err != nil {
		return err
	}
	relay, err := b.install(b.sink.address, settings...)
	if err != nil {
		return err
	}
	ingest.role, relay.role = "ingest", "relay"
	defer func() { _, _ = ingest.remove(), relay.remove() }()
	if err := untilInit(ctx, ingest); err != nil {
		return err
	}
	if err := errors.Join(ingest.start(ctx), relay.start(ctx)); err != nil {
		return err
	}
	return b.playCluster(ctx, name, ingest, relay)
}

func (b *run) playCluster(ctx context.Context, name string, ingest, relay *installation) error {
	if err := b.sink.reset(0); err != nil {
		return err
	}
	samples := max(100, int(50*b.seconds))
	p, err := b.sink.probe(ingest.doors, samples, b.users)
	b.users += samples
	if err != nil {
		return err
	}
	b.add(row{Name: fmt.Sprintf(rowClusterLatency, name), Value: p.P99, Unit: "ms", Note: fmt.Sprintf("p50 %.2f ms, of %d", p.P50, p.Samples)})
	if err := b.hold(ctx, relay); err != nil {
		return err
	}
	queued := 0
	for _, at := range []struct {
		row  string
		load load
	}{
		{rowClusterSingles, load{Connections: 64, Records: 1}},
		{rowClusterBulk, load{Connections: 16, Records: 1000}},
	} {
		at.load.Address, at.load.Seconds = ingest.doors, b.seconds
		o, err := b.generate(at.load)
		if err != nil {
			return err
		}
		queued += o.Records
		b.add(row{
			Name: fmt.Sprintf(at.row, name), Value: o.rate(), Unit: "/s",
			Note: fmt.Sprintf("p50 %.2f ms, p99 %.2f ms", o.P50, o.P99) + refusedNote(o.Refused),
		})
	}
	stats, err := b.drain(ctx, relay, queued, 0)
	if err != nil {
		return err
	}
	b.add(row{Name: fmt.Sprintf(rowClusterDrain, name, thousands(float64(queued))), Value: stats.rate(), Unit: "/s"})
	return nil
}

// untilInit makes the streams, as soon as the nodes have found each other.
func untilInit(ctx context.Context, i *installation) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for {
		err := i.command(ctx, "init")
		if err == nil || !pause(ctx, 500*time.Millisecond) {
			return err
		}
	}
}

// buildNATS builds the server that go.mod names.
func buildNATS(ctx context.Context, dir string) (string, error) {
	binary := filepath.Join(dir, "nats-server")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", binary, "github.com/nats-io/nats-server/v2")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build nats-server: %w\n%s", err, out)
	}
	return binary, nil
}

// startNATS starts the nodes of a cluster, or one that stands alone.
func (b *run) startNATS(binary, dir string, size int) (urls string, stop func(), err error) {
	var clients, routes, quoted []string
	for range 2 * size {
		address, err := freeAddress()
		if err != nil {
			return "", nil, err
		}
		if len(clients) < size {
			clients = append(clients, address)
			continue
		}
		routes, quoted = append(routes, address), append(quoted, fmt.Sprintf("%q", "nats://"+address))
	}
	var nodes []*process
	stop = func() {
		for _, n := range nodes {
			n.kill()
		}
	}
	for n := range size {
		config := fmt.Sprintf("server_name: node-%d\nlisten: %q\njetstream { store_dir: %q, sync_interval: always }\n", n, clients[n], filepath.Join(dir, fmt.Sprint(n)))
		if size > 1 {
			config += fmt.Sprintf("cluster { name: bench, listen: %q, routes: [%s] }\n", routes[n], strings.Join(quoted, ", "))
		}
		file := filepath.Join(dir, fmt.Sprintf("%d.conf", n))
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			stop()
			return "", nil, err
		}
		p, err := b.crew.launch(exec.CommandContext(b.crew.ctx, binary, "-c", file))
		if err != nil {
			stop()
			return "", nil, err
		}
		nodes = append(nodes, p)
	}
	return "nats://" + strings.Join(clients, ",nats://"), stop, nil
}
