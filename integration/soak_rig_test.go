//go:build integration

package integration

import (
	"context"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
	"github.com/birdtap/birdtap/integration/history"
)

// rigTimeout is how long birdtap waits for CleverTap here: longer than a busy machine
// holds up a call, and short enough for a test of many timeouts.
const rigTimeout = 3 * time.Second

// rigRecords makes calls small, so that there are many and what a crash may repeat is
// little.
const rigRecords = 100

// rig is everything that can be broken: the daemon between its callers and CleverTap,
// and the wire on either side of it.
//
//	client ── street ──▶ daemon ── wire ──▶ fake CleverTap
type rig struct {
	t      *testing.T
	at     *birdtap
	window string
	street *proxy
	wire   *proxy
	fake   *clevertaptest.Server
	watch  *watch

	daemon *process
	client *history.Client
	taken  *history.Received
	stop   func() // of the client

	// What all rounds of the rig have shown.
	sent    history.Counts
	arrived int // records that CleverTap took
	crashes int

	calls calls
}

func newRig(t *testing.T) *rig {
	t.Helper()
	fake, err := clevertaptest.Start("127.0.0.1:0", clevertaptest.Options{AccountID: accountID, Passcode: passcode})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	fake.KeepRecords(false)
	fake.Latency(60 * time.Millisecond)
	door := freeAddr(t)
	r := &rig{
		t: t, fake: fake, window: freeAddr(t),
		street: newProxy(t, door), wire: newProxy(t, fake.Addr()),
		calls: calls{seen: map[int]bool{}},
	}
	r.at = newBirdtap(t, map[string]string{
		"HTTP_ADDR": door, "OPS_ADDR": r.window,
		"DATA_DIR": filepath.Join(t.TempDir(), "data"),
		// Little room, so that a hurry while CleverTap is away fills it.
		"QUEUE_MAX_BYTES": "4MiB", "DEAD_MAX_BYTES": "64MiB", "KEEP_MAX_BYTES": "8MiB",
		"CLEVERTAP_URL":        "http://" + r.wire.addr(),
		"CLEVERTAP_ACCOUNT_ID": accountID, "CLEVERTAP_PASSCODE": passcode,
		"CLEVERTAP_TIMEOUT": rigTimeout.String(),
		"BATCH_MAX_WAIT":    "20ms", "BATCH_MAX_RECORDS": strconv.Itoa(rigRecords),
	})
	if *soakFor > time.Hour {
		r.at.env["LOG_LEVEL"] = "warn" // a line for every call would fill a disk
	}
	r.watch = newWatch(t, r.window, func() { r.calls.look(fake) })
	r.start()
	r.daemon.ready(r.window, 30*time.Second)
	return r
}

// start starts the daemon, again or for the first time.
func (r *rig) start() {
	r.t.Helper()
	r.daemon = r.at.daemon("serve", "serve")
	r.watch.follow(r.daemon.cmd.Process.Pid)
}

// kill ends the daemon with -9.
func (r *rig) kill() {
	r.watch.follow(0)
	r.daemon.kill()
	r.crashes++
}

// terminate stops the daemon as an operator would.
func (r *rig) terminate() {
	r.t.Helper()
	r.watch.follow(0)
	if code := r.daemon.terminate(40 * time.Second); code != 0 {
		r.t.Errorf("SIGTERM ended the daemon with code %d, want 0", code)
	}
}

// pass lets time go by. The daemon has to live through it.
func (r *rig) pass(d time.Duration) {
	r.t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.daemon.done:
		r.daemon.alive() // says how it ended
	}
}

// command runs one of birdtap's commands until it succeeds: the daemon may just be
// starting.
func (r *rig) command(args ...string) {
	r.t.Helper()
	var err error
	defer func() {
		if err != nil {
			r.t.Logf("birdtap %s: %v", strings.Join(args, " "), err)
		}
	}()
	eventually(r.t, time.Minute, "birdtap "+strings.Join(args, " "), func() bool {
		ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
		defer cancel()
		full := r.at.command(args...)
		cmd := exec.CommandContext(ctx, full.Path, args...)
		cmd.Env = full.Env
		err = cmd.Run()
		return err == nil
	})
}

// traffic begins a round: a history of its own.
func (r *rig) traffic(run string, seed uint64, rate float64) {
	r.t.Helper()
	r.calls.anew()
	r.taken = history.NewReceived(run)
	r.fake.OnRecord(r.taken.Record)
	r.fake.Judge(r.taken.Judge)
	r.fake.JudgeCall(r.taken.JudgeCall)
	r.client = history.NewClient(history.Options{
		Run: run, Seed: seed, Doors: []string{"http://" + r.street.addr() + "/1/upload"},
		AccountID: accountID, Passcode: passcode,
		Clients: 24, UsersPerClient: 20, Rate: rate,
		Refuse: 0.005, Again: 0.005, AtDoor: 0.005, Poison: 0.001, Several: 0.03, Broken: 0.01, GiveUp: 0.1,
	})
	r.stop = runClient(r.t, r.client)
}

// recovered waits until everything that came before now has left the queue.
func (r *rig) recovered(within time.Duration) time.Duration {
	r.t.Helper()
	began := time.Now()
	eventually(r.t, within, "what had waited has left", func() bool {
		r.daemon.alive()
		age, ok := r.watch.metric("birdtap_queue_oldest_seconds")
		return ok && age < time.Since(began).Seconds()
	})
	return time.Since(began)
}

// finish ends a round: no faults, no traffic, an empty queue; then everything has to
// be where it belongs. CleverTap's refusals are put right and replayed in the end.
func (r *rig) finish(seed uint64, faults []string) history.Report {
	r.t.Helper()
	r.daemon.ready(r.window, time.Minute)
	moreOK(r.t, r.client.Log(), 200, time.Minute)
	r.stop()
	r.at.drained(2 * time.Minute)
	evidence := history.Evidence{
		Log: r.client.Log(), Received: r.taken, Letters: r.at.letters(),
		Seed: seed, Commit: commitUnderway(), Faults: faults,
	}
	if err := history.Check(evidence).Err(r.limits()); err != nil {
		r.t.Errorf("before the replay: %v", err)
	}

	r.taken.Mend()
	r.command("relay", "--replay")
	a := r.at.drained(2 * time.Minute)
	evidence.Letters = r.at.letters()
	evidence.MaxInFlight = r.fake.Counts().MaxInFlight
	report := history.Check(evidence)

	r.add(r.client.Log().Counts())
	a.addsUp(r.t, r.sent, r.arrived, evidence.Letters)
	r.command("dead", "purge", "--yes")
	conclude(r.t, report, r.limits())
	r.t.Logf("account: %+v", a)
	return report
}

// limits are what this round may have shown. A hand-over by a crash may leave
// calls of the dead behind, so the bound on calls in flight is CleverTap's own.
func (r *rig) limits() history.Limits {
	r.calls.look(r.fake)
	return history.Limits{Duplicates: r.calls.repeats(), InFlight: accountCalls, Records: rigRecords}
}

func (r *rig) add(c history.Counts) {
	r.sent.Attempts += c.Attempts
	r.sent.Taken += c.Taken
	r.sent.OK += c.OK
	r.arrived += r.taken.Taken()
}
