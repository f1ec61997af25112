//go:build integration

package integration

import (
	"maps"
	"sync"
	"time"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
)

// calls is what the fake saw, looked at again and again: it forgets.
type calls struct {
	mu     sync.Mutex
	seen   map[int]bool // numbers of those that were looked at
	list   []callAt     // of this round, those that took something
	unsure []between    // when calls that were answered as usual may be made again
}

type callAt struct {
	at       time.Time
	accepted int
	spoiled  bool // the answer was not what it should be
}

type between struct {
	from, to time.Time
	most     int // records
}

// look takes in the calls since the last look.
//
// They stand in the order in which they were decided, so one with a lower number may
// come behind one with a higher.
func (c *calls) look(fake *clevertaptest.Server) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, call := range fake.Calls() {
		if call.Accepted == 0 || c.seen[call.Index] {
			continue
		}
		c.seen[call.Index] = true
		c.list = append(c.list, callAt{call.At, call.Accepted, call.Did != "normal" && call.Did != "delay"})
	}
}

// doubt says that of what was under way between two moments so many records may be sent
// again.
func (c *calls) doubt(from, to time.Time, most int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unsure = append(c.unsure, between{from.Add(-rigTimeout), to.Add(rigTimeout), most})
}

// repeats is how many records may have been sent again in this round: those of calls
// whose answer was spoiled, and of those whose answer may not have come through.
func (c *calls) repeats() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := 0
	for _, call := range c.list {
		if call.spoiled {
			sum += call.accepted
		}
	}
	for _, b := range c.unsure {
		meanwhile := 0
		for _, call := range c.list {
			if !call.spoiled && call.at.After(b.from) && call.at.Before(b.to) {
				meanwhile += call.accepted
			}
		}
		sum += min(meanwhile, b.most)
	}
	return sum
}

// shownAgain is how many calls the fake may show once more, generously.
const shownAgain = 5000

// anew begins a round.
func (c *calls) anew() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list, c.unsure = nil, nil
	latest := 0
	for n := range c.seen {
		latest = max(latest, n)
	}
	maps.DeleteFunc(c.seen, func(n int, _ bool) bool { return n < latest-shownAgain })
}
