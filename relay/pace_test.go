package relay

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var paceEpoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// rig drives a pace as the relay does, against a simulated destination: it starts
// every call that is allowed and sleeps until an answer comes or the pace says so.
type rig struct {
	pace   *pace
	now    time.Time
	out    []callOut // by the time of their answer
	calls  []time.Time
	most   int // in flight
	answer func(now time.Time, inflight int) reply
}

type callOut struct {
	call   call
	ends   time.Time
	signal signal
	after  time.Duration
}

// reply is what comes of a call: after took, this signal.
type reply struct {
	signal     signal
	took       time.Duration
	retryAfter time.Duration
}

func newRig(maxCalls int, answer func(now time.Time, inflight int) reply) *rig {
	return &rig{pace: newPace(maxCalls), now: paceEpoch, answer: answer}
}

func (r *rig) runUntil(end time.Time) {
	for {
		r.start()
		next := end
		if len(r.out) > 0 && r.out[0].ends.Before(next) {
			next = r.out[0].ends
		}
		if at := r.pace.NextAt(r.now); !at.IsZero() && at.Before(next) {
			next = at
		}
		if !next.Before(end) {
			r.now = end
			return
		}
		r.now = next
		for len(r.out) > 0 && !r.out[0].ends.After(r.now) {
			c := r.out[0]
			r.out = r.out[1:]
			r.pace.Answered(r.now, c.call, c.signal, c.after)
		}
	}
}

func (r *rig) start() {
	for r.pace.Allowed(r.now, len(r.out)) {
		a := r.answer(r.now, len(r.out))
		r.out = append(r.out, callOut{call: r.pace.Begin(r.now), ends: r.now.Add(a.took), signal: a.signal, after: a.retryAfter})
		slices.SortStableFunc(r.out, func(a, b callOut) int { return a.ends.Compare(b.ends) })
		r.calls = append(r.calls, r.now)
		r.most = max(r.most, len(r.out))
	}
}

// since is the calls begun at or after t.
func (r *rig) since(t time.Time) []time.Time {
	i, _ := slices.BinarySearchFunc(r.calls, t, time.Time.Compare)
	return r.calls[i:]
}

const callTook = 200 * time.Millisecond

func works(time.Time, int) reply { return reply{signal: sigGood, took: callTook} }

// brokenBetween works but from begin to end.
func brokenBetween(begin, end time.Time, how reply) func(time.Time, int) reply {
	return func(now time.Time, n int) reply {
		if now.Before(begin) || !now.Before(end) {
			return works(now, n)
		}
		return how
	}
}

func TestPaceFillsTheCap(t *testing.T) {
	r := newRig(7, works)
	r.runUntil(paceEpoch.Add(time.Minute))
	if got, want := len(r.calls), 7*5*60; got < want || got > want+7 || r.most != 7 {
		t.Fatalf("%d calls, at most %d in flight, want %d and 7", got, r.most, want)
	}
}

func TestOutageOf24Hours(t *testing.T) {
	t.Parallel()
	for name, how := range map[string]reply{
		"refused connections": {signal: sigFailed, took: time.Millisecond},
		"timeouts":            {signal: sigTimedOut, took: 30 * time.Second},
		"denied":              {signal: sigStopped, took: callTook},
		"throttled":           {signal: sigThrottled, took: callTook},
		"refusing":            {signal: sigRefusing, took: callTook},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			begin := paceEpoch.Add(time.Minute)
			end := begin.Add(24 * time.Hour)
			r := newRig(7, brokenBetween(begin, end, how))
			r.runUntil(end)
			if r.pace.State() == breakerClosed {
				t.Fatal("the breaker is closed in an outage")
			}
			settled := r.since(begin.Add(10 * time.Minute))
			every := (24*time.Hour - 10*time.Minute) / time.Duration(len(settled))
			t.Logf("a probe every %v", every)
			if every < 28*time.Second || every > 62*time.Second {
				t.Errorf("a probe every %v, want 30 to 60 s", every)
			}
			if early := len(r.since(begin)) - len(settled); early > 80 {
				t.Errorf("%d calls in the first ten minutes", early)
			}
			// A probe may have begun just before the end.
			r.runUntil(end.Add(how.took + maxWait + 5*time.Second))
			if r.pace.State() != breakerClosed || r.pace.Limit() != 7 {
				t.Errorf("%s, limit %d after recovery", r.pace.State(), r.pace.Limit())
			}
			if r.most > 7 {
				t.Errorf("%d calls in flight", r.most)
			}
		})
	}
}

// A destination that takes k calls at a time, as CleverTap does.
func TestThrottleStorm(t *testing.T) {
	t.Parallel()
	for _, k := range []int{1, 3, 7, 14} {
		for _, retryAfter := range []time.Duration{0, time.Second} {
			free, limited := 0, true
			var ends []time.Time // of the calls it has taken
			throttled, total := 0, 0
			r := newRig(15, func(now time.Time, _ int) reply {
				ends = slices.DeleteFunc(ends, func(e time.Time) bool { return !e.After(now) })
				free = k - len(ends)
				total++
				if limited && free <= 0 {
					throttled++
					return reply{signal: sigThrottled, took: 20 * time.Millisecond, retryAfter: retryAfter}
				}
				ends = append(ends, now.Add(callTook))
				return works(now, 0)
			})
			storm := paceEpoch.Add(10 * time.Minute)
			r.runUntil(storm)
			took := total - throttled
			t.Logf("k=%d retry after %v: %d of %d throttled, %.0f %% of what it could take", k, retryAfter, throttled, total, 100*float64(took)/float64(k*5*600))
			if retryAfter == 0 && (took < k*5*600*6/10 || throttled > total/5) {
				t.Errorf("k=%d: %d taken, %d throttled", k, took, throttled)
			}
			if r.pace.State() != breakerClosed {
				t.Errorf("k=%d: a 429 alone has opened the breaker", k)
			}
			limited = false
			r.runUntil(storm.Add(2 * time.Minute))
			if r.pace.Limit() != 15 {
				t.Errorf("k=%d: limit %d two minutes after the storm, want 15", k, r.pace.Limit())
			}
		}
	}
}

func TestRecoveryIsNoBurst(t *testing.T) {
	end := paceEpoch.Add(time.Hour)
	var ends []time.Time
	inRow, longest := 0, 0
	r := newRig(15, func(now time.Time, n int) reply {
		if now.Before(end) {
			return reply{signal: sigFailed, took: callTook}
		}
		ends = slices.DeleteFunc(ends, func(e time.Time) bool { return !e.After(now) })
		if len(ends) >= 6 {
			inRow++
			longest = max(longest, inRow)
			return reply{signal: sigThrottled, took: callTook / 4}
		}
		inRow = 0
		ends = append(ends, now.Add(callTook))
		return works(now, n)
	})
	r.runUntil(end.Add(10 * time.Minute))
	if longest > 3 {
		t.Errorf("%d answers of 429 in a row after recovery, want at most 3", longest)
	}
}

func TestFlapping(t *testing.T) {
	t.Parallel()
	r := newRig(7, func(now time.Time, n int) reply {
		if now.Sub(paceEpoch)/(10*time.Second)%2 == 1 {
			return reply{signal: sigFailed, took: callTook}
		}
		return works(now, n)
	})
	end := paceEpoch.Add(time.Hour)
	r.runUntil(end)
	up := 0
	for _, c := range r.calls {
		if c.Sub(paceEpoch)/(10*time.Second)%2 == 0 {
			up++
		}
	}
	possible := 7 * 5 * 1800
	t.Logf("%.0f %% of what is possible while up, %d calls while down", 100*float64(up)/float64(possible), len(r.calls)-up)
	if up < possible/8 || len(r.calls)-up > 180*30 {
		t.Errorf("%d calls while up, %d while down", up, len(r.calls)-up)
	}
	r.answer = works
	r.runUntil(end.Add(2 * time.Minute))
	if r.pace.Limit() != 7 || r.pace.State() != breakerClosed {
		t.Errorf("%s, limit %d two minutes later", r.pace.State(), r.pace.Limit())
	}
}

// A few failures among many good calls cost little.
func TestSingleFailuresStopNobody(t *testing.T) {
	t.Parallel()
	calls := 0
	r := newRig(7, func(now time.Time, n int) reply {
		if calls++; calls%20 == 0 {
			return reply{signal: sigFailed, took: callTook}
		}
		return works(now, n)
	})
	r.runUntil(paceEpoch.Add(10 * time.Minute))
	t.Logf("%.0f %%", 100*float64(calls)/(7*5*600))
	if calls < 7*5*600*8/10 {
		t.Errorf("%d calls, want at least 80 %% of %d", calls, 7*5*600)
	}
}

func TestClockJumps(t *testing.T) {
	for _, jump := range []time.Duration{-24 * time.Hour, -time.Hour, -time.Second, time.Hour, 24 * time.Hour} {
		for _, retryAfter := range []time.Duration{0, 30 * time.Second, 100 * time.Hour} {
			p := newPace(7)
			now := paceEpoch
			for range 50 {
				if at := p.NextAt(now); at.After(now) {
					now = at
				}
				p.Answered(now, p.Begin(now), sigFailed, 0)
			}
			p.Answered(now, call{}, sigFailed, retryAfter)
			now = now.Add(jump)
			at := p.NextAt(now)
			most := max(maxWait+time.Millisecond, min(retryAfter, maxRetryAfter))
			if wait := at.Sub(now); wait > most {
				t.Errorf("jump %v, Retry-After %v: a wait of %v", jump, retryAfter, wait)
			}
			now = now.Add(most)
			if !p.Allowed(now, 0) {
				t.Errorf("jump %v, Retry-After %v: no call after %v", jump, retryAfter, most)
			}
			p.Answered(now, p.Begin(now), sigGood, 0)
			if p.State() != breakerClosed || !p.Allowed(now.Add(jump), 0) {
				t.Errorf("jump %v: stuck after recovery", jump)
			}
		}
	}
}

// at lets a table speak of one moment only.
type paceTable struct {
	*pace
	t   *testing.T
	now time.Time
}

func newPaceTable(t *testing.T, maxCalls int) *paceTable {
	return &paceTable{newPace(maxCalls), t, paceEpoch}
}

// one makes a call that is answered at once, when the pace allows.
func (p *paceTable) one(s signal) {
	p.t.Helper()
	if at := p.NextAt(p.now); at.After(p.now) {
		p.now = at
	}
	if !p.Allowed(p.now, 0) {
		p.t.Fatalf("%s, and no call is allowed", p.State())
	}
	p.Answered(p.now, p.Begin(p.now), s, 0)
}

func (p *paceTable) want(state string, limit int) {
	p.t.Helper()
	if p.State() != state || p.Limit() != limit {
		p.t.Fatalf("%s, limit %d, want %s, %d", p.State(), p.Limit(), state, limit)
	}
}

func TestBreakerOpensAfterFiveInARow(t *testing.T) {
	p := newPaceTable(t, 7)
	for range 4 {
		p.one(sigFailed)
	}
	p.one(sigGood)
	for range 4 {
		p.one(sigFailed)
	}
	p.want(breakerClosed, 7)
	p.one(sigFailed)
	p.want(breakerOpen, 1)
}

func TestBreakerOpensAtHalfOfTen(t *testing.T) {
	p := newPaceTable(t, 7)
	for _, s := range []signal{sigFailed, sigGood, sigGood, sigFailed, sigFailed, sigGood, sigGood, sigFailed, sigGood} {
		p.Answered(p.now, p.Begin(p.now), s, 0)
	}
	p.want(breakerClosed, 7)
	p.Answered(p.now, p.Begin(p.now), sigFailed, 0)
	p.want(breakerOpen, 1)
}

func TestBreakerForgetsAfterThirtySeconds(t *testing.T) {
	p := newPaceTable(t, 7)
	for range 3 {
		for range 4 {
			p.Answered(p.now, p.Begin(p.now), sigFailed, 0)
		}
		p.Answered(p.now, p.Begin(p.now), sigGood, 0)
		p.now = p.now.Add(breakSeconds * time.Second)
	}
	p.want(breakerClosed, 7)
}

func TestStoppedOpensAtOnce(t *testing.T) {
	for _, s := range []signal{sigStopped, sigRefusing} {
		p := newPaceTable(t, 7)
		p.one(s)
		p.want(breakerOpen, 1)
	}
}

func TestHalfOpenIsOneCallThenSlowStart(t *testing.T) {
	p := newPaceTable(t, 7)
	p.one(sigStopped)
	p.now = p.NextAt(p.now)
	c := p.Begin(p.now)
	if p.State() != breakerHalfOpen || p.Allowed(p.now, 1) || !p.NextAt(p.now).IsZero() {
		t.Fatalf("%s, another call allowed %v, next at %v", p.State(), p.Allowed(p.now, 1), p.NextAt(p.now))
	}
	p.Answered(p.now, c, sigGood, 0)
	for _, limit := range []int{1, 2, 4, 7} {
		p.want(breakerClosed, limit)
		for range limit {
			p.one(sigGood)
		}
	}
	p.want(breakerClosed, 7)
}

func TestEveryWaitOfAnOutageIsLongerOnAverage(t *testing.T) {
	const runs = 2000
	var sum [9]time.Duration
	for range runs {
		p := newPaceTable(t, 7)
		for n := range sum {
			p.one(sigStopped)
			if at := p.NextAt(p.now); at.After(p.now) {
				sum[n] += at.Sub(p.now)
			}
		}
	}
	for n, s := range sum {
		got, want := s/runs, min(maxWait, time.Second<<n)/2
		if got < want*9/10 || got > want*11/10 {
			t.Errorf("wait %d: %v on average, want %v", n, got, want)
		}
	}
}

func TestProbeNotSentMakesRoomForAnother(t *testing.T) {
	p := newPaceTable(t, 7)
	p.one(sigStopped)
	p.now = p.NextAt(p.now)
	p.Unsent(p.Begin(p.now))
	if p.State() != breakerOpen || !p.Allowed(p.now, 0) {
		t.Fatalf("%s, allowed %v", p.State(), p.Allowed(p.now, 0))
	}
}

func TestAnswersFromBeforeTheBreakerOpenedCountForNothing(t *testing.T) {
	p := newPaceTable(t, 7)
	var early []call
	for range 7 {
		early = append(early, p.Begin(p.now))
	}
	p.one(sigStopped)
	at := p.NextAt(p.now)
	p.Answered(p.now, early[0], sigGood, 0)
	p.Answered(p.now, early[1], sigFailed, 0)
	p.Unsent(early[2])
	if p.State() != breakerOpen || !p.NextAt(p.now).Equal(at) {
		t.Fatalf("%s, next call at %v, was %v", p.State(), p.NextAt(p.now), at)
	}
	p.one(sigGood)
	for _, c := range early[2:] {
		p.Answered(p.now, c, sigTimedOut, 0)
	}
	p.want(breakerClosed, 1)
	if !p.Allowed(p.now, 0) {
		t.Fatal("an old failure makes everybody wait")
	}
}

func TestThrottledLowersTheLimitOncePerWindow(t *testing.T) {
	p := newPaceTable(t, 10)
	var calls []call
	for range 10 {
		calls = append(calls, p.Begin(p.now))
	}
	for _, c := range calls {
		p.Answered(p.now, c, sigThrottled, 0)
	}
	p.want(breakerClosed, 7)
	p.one(sigThrottled)
	p.want(breakerClosed, 4)
	for range minWindow {
		p.one(sigGood)
	}
	p.want(breakerClosed, 5)
}

func TestThrottledAtOneCallIsAFailure(t *testing.T) {
	p := newPaceTable(t, 1)
	for range 4 {
		p.one(sigThrottled)
	}
	p.want(breakerClosed, 1)
	p.one(sigThrottled)
	p.want(breakerOpen, 1)
}

func TestTimeoutLowersTheLimit(t *testing.T) {
	p := newPaceTable(t, 10)
	p.one(sigTimedOut)
	p.want(breakerClosed, 7)
	p.one(sigFailed)
	p.want(breakerClosed, 7)
}

func TestRetryAfterIsAFloor(t *testing.T) {
	for _, s := range []signal{sigThrottled, sigFailed, sigStopped} {
		p := newPaceTable(t, 7)
		other := p.Begin(p.now)
		p.Answered(p.now, p.Begin(p.now), s, 90*time.Second)
		p.Answered(p.now, other, sigGood, 0)
		if at := p.NextAt(p.now); at.Before(p.now.Add(90 * time.Second)) {
			t.Errorf("signal %d: next call in %v, want 90 s", s, at.Sub(p.now))
		}
		if p.Allowed(p.now.Add(89*time.Second), 0) {
			t.Errorf("signal %d: a call after 89 s", s)
		}
		if !p.Allowed(p.now.Add(90*time.Second), 0) {
			t.Errorf("signal %d: no call after 90 s", s)
		}
	}
}

func TestGoodCallEndsTheWait(t *testing.T) {
	p := newPaceTable(t, 7)
	c, other := p.Begin(p.now), p.Begin(p.now)
	p.Answered(p.now, c, sigFailed, 0)
	p.Answered(p.now, other, sigGood, 0)
	if !p.Allowed(p.now, 0) {
		t.Fatal("a single failure makes everybody wait although others succeed")
	}
}

func TestRefusedProbeIsFollowedAtOnce(t *testing.T) {
	p := newPaceTable(t, 7)
	for range 10 {
		p.one(sigStopped)
	}
	p.one(sigRefused)
	if p.State() != breakerOpen || !p.Allowed(p.now, 0) {
		t.Fatalf("%s, allowed %v", p.State(), p.Allowed(p.now, 0))
	}
	p.one(sigRefusing)
	before := p.now
	p.one(sigRefused)
	p.one(sigRefused)
	if !p.now.After(before) {
		t.Fatal("a destination that refuses everything is called without a wait")
	}
}

func TestRefusalIsNoFailure(t *testing.T) {
	p := newPaceTable(t, 7)
	for range 100 {
		p.one(sigRefused)
	}
	p.want(breakerClosed, 7)
	if !p.now.Equal(paceEpoch) {
		t.Fatal("it made the pace wait")
	}
}

func TestSetLimit(t *testing.T) {
	p := newPaceTable(t, 7)
	p.SetLimit(3)
	p.want(breakerClosed, 3)
	p.SetLimit(15)
	p.want(breakerClosed, 3)
	for range 3 + 6 + 12 {
		p.one(sigGood)
	}
	p.want(breakerClosed, 15)
	p.SetLimit(0)
	p.want(breakerClosed, 1)
}

// Whatever came before, and whatever the clock did: the cap holds, no wait is longer
// than allowed, and once the destination works the pace is back at the cap.
func TestPaceRecoversFromAnything(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 15).Draw(t, "limit")
		p := newPace(limit)
		now := paceEpoch
		var out []call
		for range rapid.IntRange(0, 300).Draw(t, "events") {
			now = now.Add(rapid.SampledFrom([]time.Duration{0, time.Millisecond, time.Second, time.Minute, -time.Second, -24 * time.Hour, 24 * time.Hour}).Draw(t, "time"))
			if rapid.IntRange(0, 30).Draw(t, "lease") == 0 {
				limit = rapid.IntRange(1, 15).Draw(t, "limit")
				p.SetLimit(limit)
			}
			if p.Allowed(now, len(out)) {
				out = append(out, p.Begin(now))
				if len(out) > limit {
					t.Fatalf("%d calls in flight, limit %d", len(out), limit)
				}
			}
			if len(out) > 0 && rapid.Bool().Draw(t, "answer") {
				i := rapid.IntRange(0, len(out)-1).Draw(t, "which")
				s := signal(rapid.IntRange(int(sigGood), int(sigStopped)).Draw(t, "signal"))
				after := rapid.SampledFrom([]time.Duration{0, 0, 0, time.Second, 5 * time.Minute}).Draw(t, "retry after")
				p.Answered(now, out[i], s, after)
				out = slices.Delete(out, i, i+1)
			}
			if at := p.NextAt(now); at.Sub(now) > 5*time.Minute && !at.IsZero() {
				t.Fatalf("a wait of %v", at.Sub(now))
			}
		}
		r := &rig{pace: p, now: now, answer: works}
		for _, c := range out {
			r.out = append(r.out, callOut{call: c, ends: now.Add(time.Second), signal: sigTimedOut})
		}
		r.runUntil(now.Add(8 * time.Minute))
		if p.State() != breakerClosed || p.Limit() != limit || r.most > limit {
			t.Fatalf("%s, limit %d of %d, %d in flight", p.State(), p.Limit(), limit, r.most)
		}
	})
}
