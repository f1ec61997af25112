package relay

import (
	"time"

	"github.com/cenkalti/backoff/v4"
)

const (
	maxWait       = 60 * time.Second // between two calls, of our own accord
	maxRetryAfter = time.Hour        // of CleverTap's

	// minWindow is how many good calls in a row a good window has at least. Without
	// it a destination that takes one call at a time would refuse every third.
	minWindow = 5

	breakAfter   = 5  // failures in a row open the breaker
	breakSeconds = 30 // or, within so many seconds,
	breakCalls   = 10 // half of at least so many calls
)

// The states of the breaker.
const (
	breakerClosed   = "closed"
	breakerOpen     = "open"
	breakerHalfOpen = "half-open"
)

// pace says when a call to CleverTap may start. There is one for the destination,
// whatever the batches: what one of them learns goes for all.
//
//	           5 failures in a row, half of at least 10 calls
//	           in 30 s, or stopped: at once
//	┌────────┐ ─────────────────────────────────────────────► ┌──────┐
//	│ closed │                   good                         │ open │ ◄─┐
//	└────────┘ ◄────────── ┌───────────┐ ◄──── wait over ──── └──────┘   │
//	                       │ half-open │ ────── anything else ───────────┘
//	                       └───────────┘        (refused: without a wait)
//
// Calls in flight. CleverTap limits nothing else. A 429 or a timeout takes the limit
// to 0.7 of what it is, once for all calls begun before; as many good calls in a row
// as the limit is, at least minWindow, are a good window, which adds one. Half-open is
// one call; after it the limit doubles each time that so many calls as it is went well
// (1, 2, 4 …), until it reaches the cap or a cut.
//
// Waits. A failure or a 429 sets a wait for everybody, drawn from 0 to
// min(60 s, 1 s·2^n) at random, n being the waits since the last good call: after an
// outage of many they do not all come back at once. While a wait runs no second one
// is drawn, for calls that were in flight together fail together. A good call ends
// it: the trouble was a single one. What CleverTap asks for by Retry-After nothing
// shortens. A 429 counts as a failure only at a limit of one, where nothing else is
// left.
//
// What was begun before the breaker opened says nothing about the time after it: it
// neither closes the breaker nor counts against it once more.
//
// Time is a parameter. Each wait is bounded from the moment it is set: if the clock
// goes back the wait goes with it, and if it jumps ahead a call comes early.
type pace struct {
	cap     int
	limit   int
	growing bool // slow start: the limit doubles
	good    int  // calls in this window
	cuts    int  // of the limit, so far

	open     bool
	openings int  // so far
	probing  bool // the one call of half-open is on its way
	refusing bool // it was stopped by refusals: a further one proves nothing

	inRow   int // failures
	recent  [breakSeconds]second
	backoff *backoff.ExponentialBackOff
	wait    time.Time // of our own accord; zero if there is none
	asked   time.Time // by CleverTap

	last time.Time // the latest that was told
}

// call is one call on its way, and what the pace was when it began.
type call struct {
	openings, cuts, limit int
}

// second counts the answers of one second of the clock.
type second struct {
	unix          int64
	calls, failed int
}

// newPace allows maxCalls calls in flight from the start.
func newPace(maxCalls int) *pace {
	maxCalls = max(1, maxCalls)
	return &pace{cap: maxCalls, limit: maxCalls, backoff: newBackoff()}
}

// newBackoff draws from 0 to 1 s, 2 s, 4 s … 60 s: a factor of 1 about half of that.
// It never gives up.
func newBackoff() *backoff.ExponentialBackOff {
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(500*time.Millisecond),
		backoff.WithMultiplier(2),
		backoff.WithRandomizationFactor(1),
		backoff.WithMaxInterval(maxWait/2),
		backoff.WithMaxElapsedTime(0),
		backoff.WithClockProvider(noClock{}),
	)
}

// noClock is for a backoff that never gives up, and so need not know the time.
type noClock struct{}

func (noClock) Now() time.Time { return time.Time{} }

// SetLimit changes the cap on calls in flight. A higher one is reached by slow start.
func (p *pace) SetLimit(n int) {
	n = max(1, n)
	p.growing = p.growing || n > p.cap && p.limit == p.cap
	p.cap = n
	p.limit = min(p.limit, n)
}

// Limit is how many calls may be in flight as things are.
func (p *pace) Limit() int {
	if p.open {
		return 1
	}
	return p.limit
}

// Allowed tells whether a call may start while inflight others are on their way.
func (p *pace) Allowed(now time.Time, inflight int) bool {
	p.tick(now)
	if now.Before(p.until()) {
		return false
	}
	if p.open {
		// Calls from before it opened may still be out; the cap holds for all.
		return !p.probing && inflight < p.cap
	}
	return inflight < p.limit
}

// NextAt is when to ask again if nothing happens before; zero if only an answer
// can change anything.
func (p *pace) NextAt(now time.Time) time.Time {
	p.tick(now)
	if until := p.until(); now.Before(until) && !p.probing {
		return until
	}
	return time.Time{}
}

// State is closed, open or half-open.
func (p *pace) State() string {
	switch {
	case p.probing:
		return breakerHalfOpen
	case p.open:
		return breakerOpen
	default:
		return breakerClosed
	}
}

// Begin notes a call that was Allowed and starts. Answered or Unsent ends it.
func (p *pace) Begin(now time.Time) call {
	p.tick(now)
	p.probing = p.open
	return call{openings: p.openings, cuts: p.cuts, limit: p.Limit()}
}

// Unsent takes a call back that was not made after all.
func (p *pace) Unsent(c call) {
	if !p.stale(c) {
		p.probing = false
	}
}

// Answered takes in what the answer to a call says about the destination, and how
// long it asks to wait, if it does.
func (p *pace) Answered(now time.Time, c call, s signal, retryAfter time.Duration) {
	p.tick(now)
	if until := now.Add(min(retryAfter, maxRetryAfter)); retryAfter > 0 && until.After(p.asked) {
		p.asked = until
	}
	if p.stale(c) {
		return
	}
	switch s {
	case sigGood:
		p.succeed(now, c)
	case sigRefused:
		p.refuse(now)
	case sigThrottled:
		p.cut(c)
		if p.open || c.limit == 1 {
			p.fail(now)
		} else {
			p.pause(now)
		}
	case sigTimedOut:
		p.cut(c)
		p.fail(now)
	case sigFailed:
		p.fail(now)
	case sigRefusing:
		p.refusing = true
		p.trip(now)
	case sigStopped:
		p.trip(now)
	}
}

// stale tells whether a call began before the breaker opened.
func (p *pace) stale(c call) bool { return c.openings != p.openings }

func (p *pace) succeed(now time.Time, c call) {
	p.count(now, 0)
	p.inRow = 0
	p.wait = time.Time{}
	p.backoff.Reset()
	p.refusing = false
	if p.open {
		p.open, p.probing = false, false
		p.limit, p.growing, p.good = 1, true, 0
		return
	}
	if c.cuts == p.cuts {
		p.grow()
	}
}

// grow raises the limit after a good window.
func (p *pace) grow() {
	p.good++
	switch {
	case p.growing && p.good >= p.limit:
		p.limit, p.good = 2*p.limit, 0
	case !p.growing && p.good >= max(p.limit, minWindow):
		p.limit, p.good = p.limit+1, 0
	}
	p.limit = min(p.limit, p.cap)
	p.growing = p.growing && p.limit < p.cap
}

// cut lowers the limit. Calls begun before the last cut say nothing about the limit
// as it is now.
func (p *pace) cut(c call) {
	if c.cuts != p.cuts {
		return
	}
	p.limit = max(1, p.limit*7/10)
	p.cuts++
	p.good, p.growing = 0, false
}

// refuse takes in that CleverTap answers but refuses a call for its contents. That
// is no trouble of the destination; half-open, the next call may follow at once, so
// that a bad record at the head of the queue does not prolong an outage.
func (p *pace) refuse(now time.Time) {
	if !p.open {
		return
	}
	if p.refusing {
		p.trip(now)
		return
	}
	p.probing = false
	p.wait = time.Time{}
	p.backoff.Reset()
}

func (p *pace) fail(now time.Time) {
	p.count(now, 1)
	p.inRow++
	if p.open || p.inRow >= breakAfter || p.halfFailed(now) {
		p.trip(now)
		return
	}
	p.pause(now)
}

// trip opens the breaker, or leaves it open after a probe.
func (p *pace) trip(now time.Time) {
	if !p.open {
		p.open = true
		p.openings++
		p.inRow = 0
		p.recent = [breakSeconds]second{}
	}
	p.probing = false
	p.pause(now)
}

// pause sets a wait unless one is running.
func (p *pace) pause(now time.Time) {
	if !now.Before(p.wait) {
		p.wait = now.Add(p.backoff.NextBackOff())
	}
}

func (p *pace) until() time.Time {
	if p.asked.After(p.wait) {
		return p.asked
	}
	return p.wait
}

// count notes one answer.
func (p *pace) count(now time.Time, failed int) {
	s := &p.recent[uint64(now.Unix())%breakSeconds] //nolint:gosec // any index will do for a time before 1970
	if s.unix != now.Unix() {
		*s = second{unix: now.Unix()}
	}
	s.calls++
	s.failed += failed
}

// halfFailed looks at the last breakSeconds. Seconds that a clock has left behind
// in the future do not count.
func (p *pace) halfFailed(now time.Time) bool {
	calls, failed := 0, 0
	for _, s := range p.recent {
		if age := now.Unix() - s.unix; 0 <= age && age < breakSeconds {
			calls += s.calls
			failed += s.failed
		}
	}
	return calls >= breakCalls && 2*failed >= calls
}

// tick takes in the time. If the clock went back the waits go back with it, so that
// each still takes as long as it was meant to.
func (p *pace) tick(now time.Time) {
	if back := p.last.Sub(now); back > 0 {
		p.wait = moveBack(p.wait, back)
		p.asked = moveBack(p.asked, back)
	}
	p.last = now
}

func moveBack(t time.Time, d time.Duration) time.Time {
	if t.IsZero() {
		return t
	}
	return t.Add(-d)
}
