//go:build integration

package integration

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/moby/moby/client"

	"github.com/birdtap/birdtap/integration/history"
)

// version is the programs of one time.
type version struct {
	name          string
	birdtap, nats string // binaries
	server        string // what nats says of itself
	counts        bool   // what todaysMetrics name
}

// todaysMetrics are some, by role, that the birdtap of the first layout does not have.
var todaysMetrics = map[string]string{"ingest": "birdtap_receipts_unmapped_total", "relay": "birdtap_queue_max_bytes"}

var previousNats = builderIn("previous", "previous/nats-server", "github.com/nats-io/nats-server/v2")

// versionN is the first layout, see testdata/first-layout.txt, with the nats-server of
// that time.
func versionN(t *testing.T) version {
	t.Helper()
	birdtap, err := build(unpacked(t, firstLayout("source")), "first/birdtap", "./cmd/birdtap")
	if err != nil {
		t.Fatal(err)
	}
	return version{name: "N", birdtap: birdtap, nats: previousNats(t), server: serverVersion(t, previousNats(t))}
}

// versionToday is what is shipped.
func versionToday(t *testing.T) version {
	t.Helper()
	return version{name: "N+1", birdtap: birdtapBinary(t), nats: natsBinary(t), server: serverVersion(t, natsBinary(t)), counts: true}
}

func serverVersion(t *testing.T, binary string) string {
	t.Helper()
	out, err := exec.Command(binary, "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(strings.TrimSpace(string(out)), "nats-server: v")
}

// upgradeReceipts is the least that is sent over all changes.
const upgradeReceipts = 10_000

// Every relay, ingest and node goes from N to N+1 and back, and birdtap forward again, one
// after the other and each by SIGTERM, with traffic going on. No caller behind the
// balancer is answered anything but 2xx, and nobody tries anything twice. What one version
// has stored the other one reads: nothing is lost, and every user's order holds.
//
// Birdtap goes first and the nodes after it, and back the other way round: the first
// layout's ingests answer 503 to what a node was about to store when it ends.
func TestRollingUpgrade(t *testing.T) {
	d := newDocker(t)
	n, today := versionN(t), versionToday(t)
	if n.server == today.server {
		t.Fatalf("both nats-servers are %s", n.server)
	}
	f := newPlainFleet(t, d, n)
	seed := seedOf(t)
	b := newBalancer(t, f.ingests)
	f.begin(history.Options{
		Run: "upgrade", Seed: seed, Doors: []string{b.url + "/1/upload"}, Rate: 500,
		Refuse: 0.005, Again: 0.005, AtDoor: 0.005, Several: 0.01, GiveUp: 1,
	})
	log := f.client.Log()
	moreOK(t, log, 300, readyWithin)
	before := f.account().Relay.Term

	nodes := func(v version) {
		for _, m := range f.nodes {
			f.change(m, v, v.nats)
		}
	}
	relays := func(v version) {
		for _, m := range f.relays {
			f.change(m, v, v.birdtap)
		}
	}
	ingests := func(v version) {
		for i, m := range f.ingests {
			b.drain(i)
			f.change(m, v, v.birdtap)
			b.admit(i)
		}
	}
	// As the chart does: the daemons of today find all that they may need.
	if _, err := f.at.output("init"); err != nil {
		t.Fatal(err)
	}
	early := len(f.at.letters())
	relays(today)
	ingests(today)
	nodes(today)

	nodes(n)
	ingests(n)
	relays(n)
	then := &birdtap{t: t, binary: n.birdtap, env: f.at.env}
	if a, err := then.status(); err != nil || a.Died == 0 {
		t.Errorf("the status of N: %+v, %v", a, err)
	}
	then.reads(f.at.letters(), early)

	relays(today)
	ingests(today)
	if err := log.Wait(t.Context(), func(c history.Counts) bool { return c.Sent >= upgradeReceipts }); err != nil {
		t.Fatal(err)
	}
	f.stop()
	if c := log.Counts(); c.OK+c.Refused != c.Sent {
		t.Errorf("of %d receipts %d were not answered 2xx", c.Sent, c.Sent-c.OK-c.Refused)
	}
	f.finish(seed, (f.account().Relay.Term-before)*outAtOnce)
	f.sound()
}

// reads wants that a version reads all these letters, of which some are younger than the
// first ones.
func (b *birdtap) reads(letters []history.Letter, first int) {
	b.t.Helper()
	if len(letters) <= first {
		b.t.Errorf("%d letters, and %d before the other version came: nothing is proved", len(letters), first)
	}
	own := b.letters()
	for _, l := range letters {
		if !slices.Contains(own, l) {
			b.t.Errorf("N does not read the letter of %s", l.ID)
		}
	}
}

// plainImage is a node of which everybody may ask everything: the first layout's birdtap
// has not the inboxes by which the shipped configuration tells roles apart.
const plainImage = `FROM scratch
COPY nats-server /
COPY nats-server.conf /etc/nats/
VOLUME /data
ENTRYPOINT ["/nats-server"]
`

const plainConfig = `server_name: $NATS_SERVER_NAME
listen: "0.0.0.0:4222"
jetstream { store_dir: "/data", sync_interval: always }
cluster {
  name: "birdtap"
  listen: "0.0.0.0:6222"
  routes: ["nats://nats-1:6222", "nats://nats-2:6222", "nats://nats-3:6222"]
}
`

// newPlainFleet starts all of one version, on nodes where nobody needs a certificate.
func newPlainFleet(t *testing.T, d *docker, v version) *fleet {
	t.Helper()
	began := time.Now()
	f := &fleet{t: t, docker: d}
	urls := f.startNodes(d.image(v.nats, map[string]string{"Dockerfile": plainImage, "nats-server.conf": plainConfig}), "nats")
	f.at = newBirdtap(t, fleetEnv(map[string]string{"NATS_URL": urls, "DATA_DIR": t.TempDir()}))
	f.connect(urls)
	f.startDaemons(v.birdtap, map[string]string{"NATS_URL": "nats://nats-1:4222,nats://nats-2:4222,nats://nats-3:4222"})
	t.Cleanup(f.end)
	eventually(t, startWithin, "the daemons have made the streams", func() bool { // there was no init then
		for _, m := range slices.Concat(f.ingests, f.relays) {
			m.supervise()
		}
		return !slices.ContainsFunc(fleetStreams, func(name string) bool {
			_, err := f.stream(name)
			return err != nil
		})
	})
	f.whole()
	for _, m := range f.machines() {
		f.runs(m, v)
	}
	t.Logf("the cluster works after %.1f s", time.Since(began).Seconds())
	return f
}

// change gives a machine the binary of a version. Everything else there stays as it is.
func (f *fleet) change(m *machine, to version, binary string) {
	f.t.Helper()
	f.replace(m, "becomes "+to.name, func(m *machine) {
		m.install(binary)
		m.start()
	})
	f.runs(m, to)
}

// install puts a binary in the place of the one of the same name, on a machine that is
// stopped.
func (m *machine) install(binary string) {
	m.f.t.Helper()
	program, err := os.ReadFile(binary)
	m.must("read a binary for", err)
	var packed bytes.Buffer
	w := tar.NewWriter(&packed)
	err = w.WriteHeader(&tar.Header{Name: filepath.Base(binary), Mode: 0o755, Size: int64(len(program))})
	if err == nil {
		_, err = w.Write(program)
	}
	m.must("pack a binary for", errors.Join(err, w.Close()))
	ctx, c := m.engine()
	_, err = c.CopyToContainer(ctx, m.id, client.CopyToContainerOptions{DestinationPath: "/", Content: &packed})
	m.must("install a binary on", err)
}

// runs checks that a machine runs a version.
func (f *fleet) runs(m *machine, v version) {
	f.t.Helper()
	role, _, _ := strings.Cut(m.name, "-")
	if metric, isDaemon := todaysMetrics[role]; isDaemon {
		text := get("http://" + m.ports[opsPort] + "/metrics")
		if text == "" || strings.Contains(text, metric) != v.counts {
			f.t.Errorf("%s does not run %s", m.name, v.name)
		}
		return
	}
	var says struct {
		Version string `json:"version"`
	}
	if err := json.Unmarshal([]byte(get("http://"+m.ports[monitorPort]+"/varz")), &says); err != nil || says.Version != v.server {
		f.t.Errorf("%s runs %q, want %q (%v)", m.name, says.Version, v.server, err)
	}
}
