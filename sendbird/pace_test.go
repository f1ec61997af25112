package sendbird

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// counter is Sendbird's side: so many calls in each window, 429 beyond.
type counter struct {
	limit     int
	window    time.Duration
	silent    bool // says nothing in headers
	mu        sync.Mutex
	end       time.Time
	used      int
	took      int
	tooMany   int
	mostInOne int
}

func (s *counter) call() limits {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if !now.Before(s.end) {
		s.end, s.used = now.Add(s.window), 0
	}
	s.used++
	s.mostInOne = max(s.mostInOne, s.used)
	l := limits{remaining: -1}
	if !s.silent {
		l = limits{limit: s.limit, window: s.window, remaining: max(0, s.limit-s.used), reset: s.end.UnixMilli()}
	}
	if s.used > s.limit {
		s.tooMany++
		l.tooMany = true
		return l
	}
	s.took++
	return l
}

// load makes calls by so many workers for d, each answered after 50 ms.
func load(t *testing.T, s *counter, workers int, d time.Duration) {
	p := newPacer()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for {
				turn, err := p.wait(ctx, endpointSend)
				if err != nil {
					return
				}
				time.Sleep(50 * time.Millisecond)
				turn.answered(s.call())
			}
		})
	}
	all.Wait()
}

func TestPaceReachesWhatIsAllowed(t *testing.T) {
	for _, tc := range []struct {
		name    string
		s       *counter
		want    float64 // calls taken per second, at least
		refused float64 // share of calls that were one too many, at most
	}{
		{"free plan, told", &counter{limit: 5, window: time.Second}, 4, 0.02},
		{"free plan, not told", &counter{limit: 5, window: time.Second, silent: true}, 3, 0.25},
		{"a minute's window, told", &counter{limit: 100, window: time.Minute}, 1.5, 0.02},
		{"large plan, told", &counter{limit: 200, window: time.Second}, 150, 0.02},
		{"large plan, not told", &counter{limit: 200, window: time.Second, silent: true}, 100, 0.05},
		{"less than one in two seconds, not told", &counter{limit: 1, window: 5 * time.Second, silent: true}, 0.05, 0.7},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const d = 10 * time.Minute
				load(t, tc.s, 32, d)
				rate, refused := float64(tc.s.took)/d.Seconds(), float64(tc.s.tooMany)/float64(tc.s.took+tc.s.tooMany)
				t.Logf("%.2f calls/s taken, %.1f %% refused", rate, 100*refused)
				if rate < tc.want || refused > tc.refused {
					t.Errorf("%.2f calls/s taken, want %.2f; %.1f %% refused, at most %.1f %%", rate, tc.want, 100*refused, 100*tc.refused)
				}
			})
		})
	}
}

func TestPaceIsExact(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(p *pace) time.Duration { return p.due().Sub(now) }
	fresh := func() *pace { p := newPace(endpointSend); p.take(now); return p }

	p := newPace(endpointSend)
	if p.due().After(now) {
		t.Error("the first call waits")
	}
	p.take(now)
	if got := at(p); got != 200*time.Millisecond {
		t.Errorf("the second waits %v, the free plan allows one in 200ms", got)
	}
	if p := newPace(endpointFiles); p.rate != 10 {
		t.Errorf("reading begins at %v/s", p.rate)
	}

	p = fresh()
	p.answered(now, limits{tooMany: true, retryAfter: 7 * time.Second, remaining: -1})
	if got := at(p); got != 7*time.Second || p.rate != 3.5 {
		t.Errorf("after a 429 that asks for 7 s: waits %v, then %v/s", got, p.rate)
	}
	p.out = 5
	for range 5 { // those on their way with it
		p.answered(now.Add(time.Second), limits{tooMany: true, retryAfter: 7 * time.Second, remaining: -1})
	}
	if got := at(p); got != 8*time.Second || p.rate != 3.5 {
		t.Errorf("five more of the same burst: waits %v, then %v/s", got, p.rate)
	}

	p = fresh()
	for i, seconds := range []int{1, 2, 4, 8, 16, 32, 60, 60, 60, 60} {
		when := p.until.Add(time.Nanosecond)
		p.out++
		p.answered(when, limits{tooMany: true, remaining: -1})
		want := time.Duration(seconds) * time.Second
		if got := p.until.Sub(when); got != want {
			t.Errorf("429 number %d that says nothing: waits %v, want %v", i+1, got, want)
		}
	}
	if p.rate != minRate {
		t.Errorf("ten 429s: %v/s, want %v", p.rate, minRate)
	}

	p = fresh()
	p.answered(now, limits{limit: 100, window: time.Minute, remaining: 0, reset: now.Add(20 * time.Second).Unix()})
	if got := at(p); got != 20*time.Second {
		t.Errorf("nothing remains: waits %v, want to the reset in 20s", got)
	}
	later := now.Add(20 * time.Second)
	p.take(later)
	if p.left != 99 || !p.end.Equal(later.Add(time.Minute)) {
		t.Errorf("the new window has %d left until %v", p.left, p.end)
	}

	p = fresh()
	p.out = 3 // two more are on their way
	p.answered(now, limits{limit: 100, window: time.Minute, remaining: 2, reset: 30})
	if got := at(p); p.left != 0 || got != 30*time.Second {
		t.Errorf("2 remain and 2 are on their way: %d left, waits %v", p.left, got)
	}
}

func TestResetIsReadInEveryUnit(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	p := &pace{window: time.Minute}
	for reset, want := range map[int64]time.Duration{
		0: time.Minute, -5: time.Minute, 10: 10 * time.Second, 600: time.Minute,
		now.Unix() + 15: 15 * time.Second, now.UnixMilli() + 1500: 1500 * time.Millisecond,
		now.Unix() + 3600: time.Minute, // a clock that is an hour ahead
		now.Unix() - 3600: -time.Hour,  // and one behind: no wait, a 429 will tell
	} {
		if got := p.windowEnd(now, reset).Sub(now); got != want {
			t.Errorf("%d: %v, want %v", reset, got, want)
		}
	}
	if end := p.windowEnd(now, 1<<63-1); end.After(now.Add(time.Minute)) {
		t.Errorf("the largest number: %v", end)
	}
}

func TestHeadersOfTheRateLimit(t *testing.T) {
	answer := func(status int, h map[string]string) *http.Response {
		r := &http.Response{StatusCode: status, Header: http.Header{}}
		for name, value := range h {
			r.Header.Set(name, value)
		}
		return r
	}
	for _, tc := range []struct {
		resp    *http.Response
		verdict failure
		want    limits
	}{
		{answer(200, nil), nil, limits{window: time.Second, remaining: -1}},
		{
			answer(200, map[string]string{"X-RateLimit-Limit": "100;w=60", "X-RateLimit-Remaining": "37", "X-RateLimit-Reset": "1714374338"}), nil,
			limits{limit: 100, window: time.Minute, remaining: 37, reset: 1714374338},
		},
		{answer(200, map[string]string{"X-RateLimit-Limit": "5"}), nil, limits{limit: 5, window: time.Second, remaining: -1}},
		{answer(200, map[string]string{"X-RateLimit-Limit": " 5 ; w=x", "X-RateLimit-Remaining": "-3", "X-RateLimit-Reset": "soon"}), nil, limits{limit: 5, window: time.Second, remaining: -1}},
		{answer(200, map[string]string{"X-RateLimit-Limit": "99999999999999"}), nil, limits{window: time.Second, remaining: -1}},
		{answer(429, nil), &APIError{Status: 429, RetryAfter: time.Second}, limits{tooMany: true, retryAfter: time.Second, window: time.Second, remaining: -1}},
		{answer(200, nil), &APIError{Status: 200, Code: CodeTooManyRequests}, limits{tooMany: true, window: time.Second, remaining: -1}},
		{answer(400, nil), &APIError{Status: 400, Code: 429100}, limits{tooMany: true, window: time.Second, remaining: -1}},
		{answer(400, nil), &APIError{Status: 400, Code: 400111}, limits{window: time.Second, remaining: -1}},
	} {
		if got := limitsOf(tc.resp, tc.verdict); got != tc.want {
			t.Errorf("%v: got %+v, want %+v", tc.resp.Header, got, tc.want)
		}
	}
}

func TestRetryAfterIsReadAndCapped(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		name, value string
		want        time.Duration
	}{
		{"X-RateLimit-RetryAfter", "3", 3 * time.Second},
		{"X-RateLimit-RetryAfter", "0.25", 250 * time.Millisecond},
		{"X-RateLimit-RetryAfter", "7200", time.Hour},
		{"X-RateLimit-RetryAfter", "99999999999999999999", time.Hour},
		{"X-RateLimit-RetryAfter", "-1", 0},
		{"X-RateLimit-RetryAfter", "1.2.3", 0},
		{"X-RateLimit-RetryAfter", "soon", 0},
		{"Retry-After", "4", 4 * time.Second},
		{"Retry-After", now.Add(9 * time.Second).Format(http.TimeFormat), 9 * time.Second},
		{"Retry-After", now.Add(-time.Hour).Format(http.TimeFormat), 0},
	} {
		if got := retryAfter(http.Header{http.CanonicalHeaderKey(tc.name): {tc.value}}, now); got != tc.want {
			t.Errorf("%s: %s: got %v, want %v", tc.name, tc.value, got, tc.want)
		}
	}
}

func TestTurnsComeInOrderAndCanBeGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, start := newPacer(), time.Now()
		var order []int
		var mu sync.Mutex
		note := func(i int) { mu.Lock(); defer mu.Unlock(); order = append(order, i) }
		var all sync.WaitGroup
		for i := range 5 {
			all.Go(func() {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if i == 2 {
					time.AfterFunc(250*time.Millisecond, cancel)
				}
				turn, err := p.wait(ctx, endpointSend)
				if err != nil {
					note(-i)
					return
				}
				note(i)
				turn.failed()
			})
			synctest.Wait() // one after the other
		}
		all.Wait()
		// 0 at once, 1 after 200 ms, 2 gives up after 250, 3 and 4 take the places after it.
		want := []int{0, 1, -2, 3, 4}
		for i := range want {
			if len(order) != len(want) || order[i] != want[i] {
				t.Fatalf("got %v, want %v", order, want)
			}
		}
		if took := time.Since(start); took != 600*time.Millisecond {
			t.Errorf("took %v, want 600ms", took)
		}
		if n := p.of[endpointSend].pace.out; n != 0 {
			t.Errorf("%d turns are still out", n)
		}
		if _, err := p.wait(t.Context(), endpointFiles); err != nil {
			t.Error(err) // another endpoint has its own count
		}
	})
}
