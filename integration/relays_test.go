//go:build integration

package integration

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/birdtap/birdtap/integration/history"
)

// natsServer starts a nats-server as a cluster of one, which syncs before it answers,
// and returns its address.
func natsServer(t *testing.T) string {
	t.Helper()
	binary, addr, dir := natsBinary(t), freeAddr(t), t.TempDir()
	config := filepath.Join(dir, "nats.conf")
	text := fmt.Sprintf("listen: %q\njetstream { store_dir: %q, sync_interval: always }\n", addr, filepath.Join(dir, "store"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.ArtifactDir(), "nats.log")
	t.Cleanup(func() { showEnd(t, "nats", log) })
	p := start(t, "nats", log, exec.Command(binary, "-c", config))
	eventually(t, 30*time.Second, "nats-server listens", func() bool {
		p.alive()
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		hangUp(conn)
		return true
	})
	return addr
}

// cluster is two ingests and two relays on a nats-server. Each relay has its own wire to
// it, and its own door at CleverTap. The receipts of a user come in by either ingest.
type cluster struct {
	t       *testing.T
	at      *birdtap // for commands: they reach the nats-server directly
	to      *destination
	doors   []string // URLs
	ingests []*process
	relays  map[string]*relayProcess
}

// relayProcess is one of the two relays.
type relayProcess struct {
	*process
	name   string
	at     *birdtap
	wire   *proxy
	window string
}

// usualLatency is how long CleverTap takes for a call, so that there are always some in
// flight.
const usualLatency = 300 * time.Millisecond

// batchRecords makes calls small: a call takes one receipt of every user that waits, so
// large ones would leave none for a second call.
const batchRecords = 40

// outAtOnce is the most that can be sent and not recorded as settled.
const outAtOnce = maxInFlight * batchRecords

// newCluster is a cluster of which nothing runs yet but the nats-server.
func newCluster(t *testing.T, run string) *cluster {
	t.Helper()
	addr := natsServer(t)
	c := &cluster{
		t: t, to: newDestination(run, usualLatency), relays: map[string]*relayProcess{},
		at: newBirdtap(t, map[string]string{
			"NATS_URL": "nats://" + addr, "REPLICAS": "1",
			"DATA_DIR":        filepath.Join(t.TempDir(), "data"),
			"QUEUE_MAX_BYTES": "256MiB", "DEAD_MAX_BYTES": "64MiB", "KEEP_MAX_BYTES": "64MiB",
			"CLEVERTAP_ACCOUNT_ID": accountID, "CLEVERTAP_PASSCODE": passcode,
			"CLEVERTAP_TIMEOUT": "8s", // longer than a busy machine holds up a call
			"BATCH_MAX_WAIT":    "20ms", "BATCH_MAX_RECORDS": strconv.Itoa(batchRecords),
		}),
	}
	for _, name := range []string{"a", "b"} {
		r := &relayProcess{name: name, wire: newProxy(t, addr), window: freeAddr(t)}
		r.at = c.at.with(map[string]string{
			"OPS_ADDR": r.window, "NATS_URL": "nats://" + r.wire.addr(),
			"CLEVERTAP_URL": c.to.door(t, name),
		})
		c.relays[name] = r
	}
	return c
}

// startCluster starts all of a cluster at once, as clusters come up: whoever is first
// makes the streams.
func startCluster(t *testing.T, run string) *cluster {
	t.Helper()
	c := newCluster(t, run)
	var windows []string
	for i := range 2 {
		door, window := freeAddr(t), freeAddr(t)
		c.doors, windows = append(c.doors, "http://"+door+"/1/upload"), append(windows, window)
		c.ingests = append(c.ingests, c.at.with(map[string]string{
			"HTTP_ADDR": door, "OPS_ADDR": window, "DATA_DIR": filepath.Join(t.TempDir(), "scratch"),
		}).daemon("ingest", fmt.Sprintf("ingest-%d", i)))
	}
	for _, r := range c.relays {
		r.start()
	}
	for i, p := range c.ingests {
		p.ready(windows[i], 30*time.Second)
	}
	for _, r := range c.relays {
		r.ready(r.window, 30*time.Second)
	}
	return c
}

func (r *relayProcess) start() { r.process = r.at.daemon("relay", "relay-"+r.name) }

// pair tells the relay that uploads from the one that stands by.
func (c *cluster) pair() (active, standby *relayProcess) {
	c.t.Helper()
	now := time.Now()
	eventually(c.t, 30*time.Second, "a relay uploads", func() bool {
		for name := range c.relays {
			if _, called := c.to.firstCall(name, now); called {
				return true
			}
		}
		return false
	})
	name := c.to.lastCaller()
	if name == "a" {
		return c.relays["a"], c.relays["b"]
	}
	return c.relays["b"], c.relays["a"]
}

// A relay starts while another one makes the streams: it finds none when it looks for
// the first, and then the others, in use. That is no queue which has lost a part.
func TestRelayStartsWhileStreamsAreMade(t *testing.T) {
	c := newCluster(t, "first")
	late, early := c.relays["a"], c.relays["b"]
	late.wire.cutsAt = "STREAM.INFO.BIRDTAP_RECEIPTS"
	late.start()
	eventually(t, 30*time.Second, "the late relay looks for the first stream", late.wire.wasCut)
	early.start()
	early.ready(early.window, 30*time.Second)
	eventually(t, 30*time.Second, "the early relay is active", func() bool {
		return strings.Contains(get("http://"+early.window+"/metrics"), "birdtap_relay_active 1")
	})
	late.wire.cutsAt = ""
	late.wire.mend()
	late.ready(late.window, 30*time.Second)
}

// Two relays, of which one uploads: it is stopped and woken, killed, told to stop, and
// cut off from the answers to its checkpoints, while receipts come in all the time. The
// other one takes over. Nothing is lost, every user's order holds, and CleverTap never
// has more calls in flight than it allows.
func TestRelaysHandOver(t *testing.T) {
	t.Parallel()
	seed := seedOf(t)
	c := startCluster(t, "relays")
	client := history.NewClient(history.Options{
		Run: "relays", Seed: seed, Doors: c.doors,
		AccountID: accountID, Passcode: passcode,
		// So many users that none has a hundred receipts waiting after a hand-over.
		Clients: 16, UsersPerClient: 40, Rate: 400,
		Refuse: 0.005, Again: 0.005, AtDoor: 0.005, Several: 0.02, Broken: 0.005,
		Journal: journal(t),
	})
	stop := runClient(t, client)
	faults := []struct {
		name       string
		do         func() string
		duplicates int // at most
	}{
		// First, while no earlier hand-over lowers how many calls the next relay may have.
		// What hangs is taken, times out, and goes again until it no longer hangs.
		{"active stopped while CleverTap hangs", c.pauseWhileHanging, 10 * outAtOnce},
		{"active stopped for 9 s and woken", c.pauseActive, outAtOnce},
		{"active killed", c.killActive, outAtOnce},
		{"active told to stop", c.stopActive, 0},
		{"answers lost for 2.5 s", func() string { return c.loseAnswers(2500 * time.Millisecond) }, outAtOnce},
		{"answers lost for 9 s", func() string { return c.loseAnswers(9 * time.Second) }, outAtOnce},
	}
	names, duplicates := []string{}, 0
	for _, fault := range faults {
		before := c.to.received.Duplicates()
		result := fault.do()
		moreOK(t, client.Log(), 500, 30*time.Second)
		c.caughtUp()
		made := c.to.received.Duplicates() - before
		t.Logf("%s: %s; %d duplicates", fault.name, result, made)
		if made > fault.duplicates {
			t.Errorf("%s made %d duplicates, want at most %d", fault.name, made, fault.duplicates)
		}
		names = append(names, fault.name)
		duplicates += fault.duplicates
	}
	for _, p := range c.ingests {
		p.alive()
	}
	stop()
	a := c.at.drained(2 * time.Minute)
	letters := c.at.letters()
	a.addsUp(t, client.Log().Counts(), c.to.received.Taken(), letters)
	if counts := client.Log().Counts(); counts.Attempts != counts.Taken {
		t.Errorf("the door did not answer 2xx to all, though nothing happened to it: %+v", counts)
	}
	t.Logf("account: %+v", a)
	conclude(t, history.Check(history.Evidence{
		Log: client.Log(), Received: c.to.received, Letters: letters,
		MaxInFlight: c.to.fake.Counts().MaxInFlight,
		Seed:        seed, Commit: commitUnderway(), Faults: names,
	}), history.Limits{Duplicates: duplicates, InFlight: accountCalls, Records: batchRecords})
}

// caughtUp waits until the backlog of a fault is gone, for traffic at its usual rate
// leaves a few hundred receipts on their way.
func (c *cluster) caughtUp() {
	c.t.Helper()
	eventually(c.t, time.Minute, "the backlog is gone", func() bool {
		a, err := c.at.status()
		return err == nil && a.Queued < outAtOnce
	})
}

// handOver is how long a hand-over may take at most before the test gives up; how long
// it takes is printed.
const handOver = 40 * time.Second

func (c *cluster) pauseActive() string { return c.pause(c.pair()) }

// pause stops the active relay for longer than its term lasts without it.
func (c *cluster) pause(active, standby *relayProcess) string {
	began := time.Now()
	active.signal(syscall.SIGSTOP)
	took := c.to.awaitCall(c.t, standby.name, began, handOver)
	<-time.After(time.Until(began.Add(9 * time.Second))) // it is to sleep well into the other's term
	woken := time.Now()
	active.signal(syscall.SIGCONT)
	active.ready(active.window, 30*time.Second)
	c.to.awaitCall(c.t, standby.name, time.Now(), handOver)
	stray := c.to.callsSince(active.name, woken)
	if stray > maxInFlight {
		c.t.Errorf("woken in another's term, the relay made %d calls, want at most %d", stray, maxInFlight)
	}
	return fmt.Sprintf("the other uploads after %.2f s; %d calls of the woken one", took.Seconds(), stray)
}

// pauseWhileHanging stops the active relay with all its calls out. CleverTap goes on
// counting them, and the next relay's come on top.
func (c *cluster) pauseWhileHanging() string {
	active, standby := c.pair()
	hangs := time.Now()
	c.to.fake.Latency(15 * time.Second)
	defer c.to.fake.Latency(usualLatency)
	eventually(c.t, 30*time.Second, "all calls of the active relay hang", func() bool {
		return c.to.callsSince(active.name, hangs) >= maxInFlight
	})
	result := c.pause(active, standby)
	return fmt.Sprintf("%s; up to %d calls in flight", result, c.to.fake.Counts().MaxInFlight)
}

func (c *cluster) killActive() string {
	active, standby := c.pair()
	began := time.Now()
	active.kill()
	took := c.to.awaitCall(c.t, standby.name, began, handOver)
	active.start()
	active.ready(active.window, 30*time.Second)
	return fmt.Sprintf("the other uploads after %.2f s", took.Seconds())
}

func (c *cluster) stopActive() string {
	active, standby := c.pair()
	began := time.Now()
	if code := active.terminate(30 * time.Second); code != 0 {
		c.t.Errorf("SIGTERM ended the relay with code %d, want 0", code)
	}
	stopped := time.Since(began)
	took := c.to.awaitCall(c.t, standby.name, began, handOver)
	active.start()
	active.ready(active.window, 30*time.Second)
	return fmt.Sprintf("it stops within %.2f s, the other uploads after %.2f s", stopped.Seconds(), took.Seconds())
}

// loseAnswers lets the active relay's writes through, and none of the answers.
func (c *cluster) loseAnswers(d time.Duration) string {
	active, standby := c.pair()
	began := time.Now()
	active.wire.cut()
	<-time.After(d) // it is the fault that lasts so long
	active.wire.mend()
	mended := time.Now()
	active.alive()
	var next time.Duration
	eventually(c.t, handOver, "a relay uploads", func() bool {
		for _, r := range []*relayProcess{active, standby} {
			if at, called := c.to.firstCall(r.name, mended); called {
				next = at.Sub(mended)
				return true
			}
		}
		return false
	})
	active.ready(active.window, 30*time.Second)
	who := "it stays active"
	if at, called := c.to.firstCall(standby.name, began); called {
		who = fmt.Sprintf("the other uploads after %.2f s", at.Sub(began).Seconds())
	}
	return fmt.Sprintf("%s, the next call comes %.2f s after the answers do", who, next.Seconds())
}
