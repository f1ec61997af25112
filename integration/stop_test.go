//go:build integration

package integration

import (
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// stopWithin is how long a stop under load may take: uploads in flight get 15 s, calls
// at the doors 14 s, and the queue a few more.
const stopWithin = 30 * time.Second

// Stopped under load, again and again, the daemon loses nothing and sends nothing
// twice: with CleverTap well, every upload in flight is settled before the end.
func TestStopUnderLoadRepeatsNothing(t *testing.T) {
	l := newChecked(t, "stop", filepath.Join(t.TempDir(), "data"), nil)
	l.start()
	stop := runClient(t, l.client)
	const stops = 4
	for range stops {
		moreOK(t, l.client.Log(), 300, readyWithin)
		if code := l.daemon.terminate(stopWithin); code != 0 {
			t.Errorf("SIGTERM under load ended the daemon with code %d, want 0", code)
		}
		l.start()
	}
	moreOK(t, l.client.Log(), 300, readyWithin)
	stop()
	l.finish(0, fmt.Sprintf("SIGTERM × %d under load", stops))
}

// A second signal ends the daemon at once, even when uploads in flight never end.
func TestSecondSignalEndsAtOnce(t *testing.T) {
	l := newChecked(t, "twice", filepath.Join(t.TempDir(), "data"), nil)
	l.at = l.at.with(map[string]string{"CLEVERTAP_TIMEOUT": "1m"})
	l.fake.Latency(time.Minute)
	l.start()
	stop := runClient(t, l.client)
	moreOK(t, l.client.Log(), 300, readyWithin)
	untilInFlight(t, l.fake, 1, readyWithin)

	l.daemon.signal(syscall.SIGTERM)
	eventually(t, readyWithin, "the first signal is heard", func() bool { return l.said(`"stopping"`) > 0 })
	l.daemon.alive()
	// Uploads in flight have 15 s: what ends well before has not waited for them.
	if code := l.daemon.terminate(5 * time.Second); code != 1 {
		t.Errorf("the second SIGTERM ended the daemon with code %d, want 1", code)
	}
	l.fake.Latency(20 * time.Millisecond)
	l.start()
	moreOK(t, l.client.Log(), 100, readyWithin)
	stop()
	l.finish(crashDuplicates(1), "SIGTERM twice")
}

// An impatient supervisor kills the daemon some time after it has told it to stop.
func TestKilledWhileStopping(t *testing.T) {
	l := newChecked(t, "impatient", filepath.Join(t.TempDir(), "data"), nil)
	l.fake.Latency(500 * time.Millisecond) // so that a stop takes its time
	l.start()
	stop := runClient(t, l.client)
	const kills = 10
	for n := range kills {
		moreOK(t, l.client.Log(), 100, readyWithin)
		patience := time.NewTimer(time.Duration(n) * 100 * time.Millisecond)
		l.daemon.signal(syscall.SIGTERM)
		select {
		case <-patience.C:
		case <-l.daemon.done: // it was faster
		}
		l.daemon.kill()
		l.daemon = l.at.daemon("serve", "serve")
		moreOK(t, l.client.Log(), 1, answersAgain)
	}
	moreOK(t, l.client.Log(), 100, readyWithin)
	stop()
	l.finish(crashDuplicates(kills), fmt.Sprintf("SIGTERM, then kill -9 after 0 to 900 ms × %d", kills))
}
