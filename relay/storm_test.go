package relay

import (
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
)

// percent fails a share of all calls with a status.
func percent(share, status int) func(clevertaptest.Call) clevertaptest.Behaviour {
	random := rand.New(rand.NewPCG(uint64(share), 5))
	return func(clevertaptest.Call) clevertaptest.Behaviour {
		if random.IntN(100) < share {
			return clevertaptest.Status(status, nil, "")
		}
		return clevertaptest.Behaviour{}
	}
}

// However CleverTap fails for some minutes, under steady traffic: nothing dies, nothing is
// sent twice, and soon after it all the calls that may be are in flight again. While it
// takes nothing there is one call at a time, and few of them.
func TestStorms(t *testing.T) {
	t.Parallel()
	everything := func(b clevertaptest.Behaviour) func(clevertaptest.Call) clevertaptest.Behaviour {
		return func(clevertaptest.Call) clevertaptest.Behaviour { return b }
	}
	for name, storm := range map[string]struct {
		does  func(clevertaptest.Call) clevertaptest.Behaviour
		whole bool // it takes nothing at all
	}{
		"429":                  {everything(clevertaptest.Status(http.StatusTooManyRequests, nil, "")), true},
		"429 with Retry-After": {everything(clevertaptest.RetryAfter(http.StatusTooManyRequests, 5*time.Second)), true},
		"429 to half":          {percent(50, http.StatusTooManyRequests), false},
		"1 % of 500":           {percent(1, http.StatusInternalServerError), false},
		"10 % of 500":          {percent(10, http.StatusInternalServerError), false},
		"half of 502":          {percent(50, http.StatusBadGateway), false},
		"90 % of 503":          {percent(90, http.StatusServiceUnavailable), false},
		"503":                  {everything(clevertaptest.Status(http.StatusServiceUnavailable, nil, "")), true},
		"flapping": {func(c clevertaptest.Call) clevertaptest.Behaviour {
			if c.At.Unix()/10%2 == 0 {
				return clevertaptest.Status(http.StatusServiceUnavailable, nil, "")
			}
			return clevertaptest.Behaviour{}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T, g *scene) {
				n := 0
				traffic := func(d time.Duration) { // more than the calls can carry
					for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(10 * time.Second) {
						g.commit(receipts(n, 80, 400)...)
						n += 80
					}
				}
				lasts := time.Minute
				if underRace() {
					lasts /= 2
				}
				g.fake.Latency(time.Second)
				r := g.start(func(o *Options) { o.BatchMaxRecords = 1 })
				traffic(30 * time.Second)
				g.fake.Each(storm.does)
				traffic(20 * time.Second)
				calls, most := g.fake.Counts().Calls, atomic.Int32{}
				g.fake.Each(func(c clevertaptest.Call) clevertaptest.Behaviour {
					most.Store(max(most.Load(), int32(c.InFlight)))
					return storm.does(c)
				})
				traffic(lasts)
				if calls = g.fake.Counts().Calls - calls; storm.whole && (most.Load() > 1 || calls > 40) {
					t.Errorf("%d calls in %v of it, %d in flight at once", calls, lasts, most.Load())
				}
				g.fake.Normal()
				began := time.Now()
				if !become(2*time.Minute, func() bool { return g.fake.Counts().InFlight == 7 }) {
					t.Errorf("two minutes later there are %d calls in flight", g.fake.Counts().InFlight)
				}
				t.Logf("%d calls in %v, all that may be in flight are again after %v", calls, lasts, time.Since(began))
				all := uint64(n)
				g.wantSumsIn(time.Hour, sums{accepted: all, delivered: all})
				g.wantOnce(n)
				g.wantLimits(7)
				r.wantMetrics()
			})
		})
	}
}

// CleverTap answers 555 to every record for longer than one is tried again. None is given
// up sooner, all are later, and a replay afterwards delivers them.
func TestEndless555(t *testing.T) {
	bubble(t, func(t *testing.T, g *scene) {
		const n = 50
		var down atomic.Bool
		down.Store(true)
		g.fake.Judge(func(clevertaptest.Record) int {
			if down.Load() {
				return 555
			}
			return 0
		})
		g.commit(receipts(0, n, n)...)
		r := g.start(of(seldom(g.queue)), retryFor(10*time.Minute))
		time.Sleep(9 * time.Minute)
		g.wantSums(sums{accepted: n, queued: n})
		time.Sleep(20 * time.Minute)
		g.wantSums(sums{accepted: n, died: n, dead: n})
		for _, l := range g.letters() {
			if l.Reason != reason555 || l.Code != 555 {
				t.Fatalf("got letter %+v", l)
			}
		}
		down.Store(false)
		if got := g.replay(); got != n {
			t.Fatalf("%d replayed, want %d", got, n)
		}
		g.wantSumsIn(10*time.Minute, sums{accepted: n, died: n, replayed: n, delivered: n})
		g.wantOnce(n)
		r.wantMetrics()
	})
}

// CleverTap refuses a call for no record in it: for two that meet, or for another one
// each time. None of them dies.
func TestRefusalsThatAreNoRecordsFaultKillNothing(t *testing.T) {
	const n = 300
	for name, refuses := range map[string]func(numbers []int) bool{
		"two that meet": func(numbers []int) bool {
			both := 0
			for _, i := range numbers {
				if i%97 == 5 {
					both++
				}
			}
			return both >= 2
		},
		"wandering": func() func([]int) bool {
			random := rand.New(rand.NewPCG(3, 3))
			return func(numbers []int) bool { return len(numbers) > 1 && random.IntN(4) > 0 }
		}(),
		"more than a few": func(numbers []int) bool { return len(numbers) > 7 },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, g *scene) {
				g.fake.JudgeCall(func(c clevertaptest.Call) int {
					numbers := make([]int, len(c.Records))
					for i, r := range c.Records {
						numbers[i] = number(t, r)
					}
					if refuses(numbers) {
						return http.StatusBadRequest
					}
					return 0
				})
				g.commit(receipts(0, n, n)...)
				g.start(of(seldom(g.queue)))
				g.wantSumsIn(10*time.Minute, sums{accepted: n, delivered: n})
				g.wantOnce(n)
				if got := g.fake.Counts().Calls; got < 5 {
					t.Errorf("%d calls in all: hardly any was refused, so nothing is proved", got)
				}
			})
		})
	}
}
