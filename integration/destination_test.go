//go:build integration

package integration

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
	"github.com/birdtap/birdtap/integration/history"
)

// destination is one fake CleverTap with a door for each relay, so that it shows who
// uploads, and when, without asking birdtap. Calls in flight are counted over all doors.
type destination struct {
	fake     *clevertaptest.Server
	received *history.Received

	mu    sync.Mutex
	calls map[string][]time.Time // arrivals, by door
}

func newDestination(run string, latency time.Duration) *destination {
	d := &destination{
		fake:     clevertaptest.New(clevertaptest.Options{AccountID: accountID, Passcode: passcode}),
		received: history.NewReceived(run),
		calls:    map[string][]time.Time{},
	}
	d.fake.KeepRecords(false)
	d.fake.OnRecord(d.received.Record)
	d.fake.Judge(d.received.Judge)
	d.fake.Latency(latency)
	return d
}

// door opens a door and returns its URL.
func (d *destination) door(t *testing.T, name string) string {
	t.Helper()
	inner := d.fake.Handler()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.mu.Lock()
		d.calls[name] = append(d.calls[name], time.Now())
		d.mu.Unlock()
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// firstCall is when the first call after an instant came in by a door.
func (d *destination) firstCall(name string, after time.Time) (time.Time, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, at := range d.calls[name] {
		if at.After(after) {
			return at, true
		}
	}
	return time.Time{}, false
}

// awaitCall waits for a call by a door after an instant, and returns how long after.
func (d *destination) awaitCall(t *testing.T, name string, after time.Time, within time.Duration) time.Duration {
	t.Helper()
	var at time.Time
	eventually(t, within, "relay "+name+" uploads", func() (called bool) {
		at, called = d.firstCall(name, after)
		return called
	})
	return at.Sub(after)
}

// lastCaller is the door that the latest call came in by.
func (d *destination) lastCaller() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var caller string
	var latest time.Time
	for name, calls := range d.calls {
		if last := calls[len(calls)-1]; last.After(latest) {
			caller, latest = name, last
		}
	}
	return caller
}

// callsSince is how many calls came in by a door after an instant.
func (d *destination) callsSince(name string, after time.Time) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, at := range d.calls[name] {
		if at.After(after) {
			n++
		}
	}
	return n
}
