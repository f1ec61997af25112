package relay

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
)

// clockStart is the time at which every bubble begins. So a queue that was written in a
// late one and is opened in a new one lives through a clock that goes back.
var clockStart = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// sleepUntil lets the clock go on to a moment.
func sleepUntil(moment time.Time) { time.Sleep(time.Until(moment)) }

// The clock jumps while CleverTap is down and the daemon is started anew. What waited is
// delivered soon after, in order and unchanged, and nothing is taken for a copy of
// something else, whether or not anything comes after the jump.
func TestClockJumpsOverARestart(t *testing.T) {
	const hour, day = time.Hour, 24 * time.Hour
	const before, waiting, after = 40, 60, 20
	for _, jump := range []struct {
		name   string
		first  time.Time // when the first daemon works
		second time.Time // when the second is started
		later  int       // receipts that come after the jump and before the relay starts
	}{
		{"an hour back", clockStart.Add(hour), clockStart, 0},
		{"an hour back, then traffic", clockStart.Add(hour), clockStart, after},
		{"a day back, then traffic", clockStart.Add(day), clockStart, after},
		{"an hour ahead, then traffic", clockStart, clockStart.Add(hour), after},
		{"a day ahead, then traffic", clockStart, clockStart.Add(day), after},
		{"two days ahead, beyond what is kept", clockStart, clockStart.Add(2 * day), 0},
		{"beyond 2038", clockStart, time.Unix(1<<31-10, 0), after},
		{"back from beyond 2038", time.Unix(1<<31+10, 0), clockStart, after},
	} {
		t.Run(jump.name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				sleepUntil(jump.first)
				bubbleAt(t, dir, func(_ *testing.T, g *scene) {
					r := g.start()
					g.commit(receipts(0, before, 10)...)
					g.wantSums(sums{accepted: before, delivered: before})
					g.fake.Always(clevertaptest.Status(503, nil, ""))
					for n := range waiting { // frames of one receipt each
						g.commit(receipts(before+n, 1, 10)...)
					}
					time.Sleep(10 * time.Second)
					g.wantSums(sums{accepted: before + waiting, delivered: before, queued: waiting})
					r.stop()
				})
			})
			synctest.Test(t, func(t *testing.T) {
				sleepUntil(jump.second)
				bubbleAt(t, dir, func(t *testing.T, g *scene) {
					for n := range jump.later {
						g.commit(receipts(before+waiting+n, 1, 10)...)
					}
					began := time.Now()
					r := g.start()
					all := uint64(before + waiting + jump.later)
					g.wantSumsIn(5*time.Minute, sums{accepted: all, delivered: all})
					if took := time.Since(began); took > time.Minute {
						t.Errorf("delivered %v after the start", took)
					}
					if err := r.Health(); err != nil {
						t.Errorf("not healthy: %v", err)
					}
					for n, record := range g.arrived.all() {
						if want := receipt(number(t, record), 10).Record; string(record.Raw) != string(want) {
							t.Errorf("arrival %d: %s, want %s", n, record.Raw, want)
						}
					}
					if got := len(g.arrived.all()); got != waiting+jump.later {
						t.Errorf("%d records arrived, want %d", got, waiting+jump.later)
					}
				})
			})
		})
	}
}

// A copy that comes within the window is one in 2038, too, when seconds need 32 bits.
func TestDedupOver2038(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sleepUntil(time.Unix(1<<31-5, 0))
		bubbleAt(t, t.TempDir(), func(_ *testing.T, g *scene) {
			g.start()
			g.commit(receipts(0, 10, 10)...)
			g.wantSums(sums{accepted: 10, delivered: 10})
			time.Sleep(10 * time.Second)
			g.commit(receipts(0, 10, 10)...)
			g.wantSums(sums{accepted: 20, delivered: 10, deduplicated: 10})
		})
	})
}
