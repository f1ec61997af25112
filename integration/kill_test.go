//go:build integration

package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
	"github.com/birdtap/birdtap/integration/history"
)

// kills is how often the daemon is killed.
const kills = 20

// The daemon is killed with -9 at random instants, some of them while one call to
// CleverTap is in flight, or several, and started again at once. Nothing that was answered 2xx is
// lost, nothing comes that was not sent, every user's order holds, and the account
// adds up over all of it.
func TestKilledAtRandomInstants(t *testing.T) {
	t.Parallel()
	seed := seedOf(t)
	random := rand.New(rand.NewPCG(seed, 0))

	received := history.NewReceived("kill")
	fake, err := clevertaptest.Start("127.0.0.1:0", clevertaptest.Options{AccountID: accountID, Passcode: passcode})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	fake.KeepRecords(false)
	fake.OnRecord(received.Record)
	fake.Judge(received.Judge)
	fake.Latency(100 * time.Millisecond)

	door, window := freeAddr(t), freeAddr(t)
	b := newBirdtap(t, map[string]string{
		"HTTP_ADDR": door, "OPS_ADDR": window,
		"DATA_DIR":             filepath.Join(t.TempDir(), "data"),
		"QUEUE_MAX_BYTES":      "256MiB",
		"DEAD_MAX_BYTES":       "64MiB",
		"KEEP_MAX_BYTES":       "64MiB",
		"CLEVERTAP_URL":        fake.URL(),
		"CLEVERTAP_ACCOUNT_ID": accountID, "CLEVERTAP_PASSCODE": passcode,
		"BATCH_MAX_WAIT":    "20ms",
		"CLEVERTAP_TIMEOUT": "1s",
	})
	client := history.NewClient(history.Options{
		Run: "kill", Seed: seed, Doors: []string{"http://" + door + "/1/upload"},
		AccountID: accountID, Passcode: passcode,
		// Many users, each with few receipts waiting: one with over a hundred may be
		// overtaken by itself after a 555.
		Clients: 24, UsersPerClient: 40, Rate: 1000,
		Refuse: 0.01, Again: 0.01, AtDoor: 0.005, Several: 0.03, Broken: 0.01, GiveUp: 0.1,
		Journal: journal(t),
	})

	daemon := b.daemon("serve", "serve")
	daemon.ready(window, 30*time.Second)
	stop := runClient(t, client)
	for n := range kills {
		instant := time.NewTimer(50*time.Millisecond + time.Duration(random.Int64N(int64(1450*time.Millisecond))))
		select {
		case <-instant.C:
		case <-daemon.done:
			daemon.alive()
		}
		switch {
		case n%5 == 4:
			// After a crash the next term has fewer calls, for the dead one's may still
			// be on their way; so wait until it has all of them.
			untilInFlight(t, fake, 3, 20*time.Second)
		case n%2 == 1:
			untilInFlight(t, fake, 1, 2*time.Second)
		}
		daemon.kill()
		daemon = b.daemon("serve", "serve")
	}

	daemon.ready(window, 30*time.Second)
	moreOK(t, client.Log(), 500, 30*time.Second)
	stop()
	running := b.drained(2 * time.Minute)
	if code := daemon.terminate(30 * time.Second); code != 0 {
		t.Errorf("SIGTERM ended the daemon with code %d, want 0", code)
	}
	stopped := b.drained(time.Minute)
	if running.Accepted != stopped.Accepted || running.Delivered != stopped.Delivered {
		t.Errorf("the account changed over a stop at rest: %+v, then %+v", running, stopped)
	}
	letters := b.letters()
	stopped.addsUp(t, client.Log().Counts(), received.Taken(), letters)
	t.Logf("account: %+v", stopped)
	conclude(t, history.Check(history.Evidence{
		Log: client.Log(), Received: received, Letters: letters,
		MaxInFlight: fake.Counts().MaxInFlight,
		Seed:        seed, Commit: commitUnderway(), Faults: []string{fmt.Sprintf("kill -9 × %d", kills)},
	}), history.Limits{Duplicates: kills * maxInFlight * maxRecords, InFlight: maxInFlight, Records: maxRecords})
}

// untilInFlight waits for n calls that CleverTap has and nobody knows the answer of. If
// they do not come in time the daemon is killed all the same: it may be recovering.
func untilInFlight(t *testing.T, fake *clevertaptest.Server, n int, within time.Duration) {
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	_ = fake.Wait(ctx, func(c clevertaptest.Counts) bool { return c.InFlight >= n })
}

// runClient sends until the function that it returns is called, or the test ends.
func runClient(t *testing.T, c *history.Client) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Run(ctx)
	}()
	stop = func() {
		cancel()
		<-done
		if err := c.Log().Err(); err != nil {
			t.Errorf("journal: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// moreOK waits until n more receipts were answered 2xx.
func moreOK(t *testing.T, l *history.Log, n int, within time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	n += l.Counts().OK
	if err := l.Wait(ctx, func(c history.Counts) bool { return c.OK >= n }); err != nil {
		t.Fatalf("no %d receipts were taken in within %v: %v", n, within, err)
	}
}
