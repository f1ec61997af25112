package relay

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
)

// One history of a day takes some seconds; by default only the first is that long.
//
//	go test ./relay -run TestCleverTapIsDown -outage.seeds=2000 -outage.hours=24 -timeout 0
var (
	outageFrom  = flag.Int("outage.from", 0, "first seed of TestCleverTapIsDownForADay")
	outageSeeds = flag.Int("outage.seeds", 3, "histories that TestCleverTapIsDownForADay plays")
	outageHours = flag.Int("outage.hours", 3, "simulated hours of every history but the first, which has 24")
)

// storeKeeps is what the store holds of its own: the newest frames, and its buffers.
const storeKeeps = 6 << 20

// CleverTap is down for a day while receipts keep coming; half way the process is
// started anew. Nothing is lost, nothing dies, nobody is bothered more than once a
// minute, and afterwards everything arrives soon, once, in order and unchanged.
func TestCleverTapIsDownForADay(t *testing.T) {
	downs := []struct {
		how    string
		does   clevertaptest.Behaviour
		answer time.Duration // how long a call takes
	}{
		{how: "503", does: clevertaptest.Status(503, nil, "")},
		{how: "hangs", does: clevertaptest.Hang(), answer: 30 * time.Second},
		{how: "401", does: clevertaptest.Status(401, nil, "")},
	}
	for seed := *outageFrom; seed < *outageFrom+*outageSeeds; seed++ {
		down, hours := downs[seed%len(downs)], 24
		if seed > 0 || testing.Short() {
			hours = *outageHours
		}
		if underRace() {
			hours = 1
		}
		t.Run(fmt.Sprintf("%s, seed %d", down.how, seed), func(t *testing.T) {
			bubble(t, func(_ *testing.T, g *scene) {
				o := outage{scene: g, rng: rand.New(rand.NewPCG(uint64(seed), 24))}
				o.play(down.does, down.answer, time.Duration(hours)*time.Hour)
			})
		})
	}
}

func (o *outage) play(down clevertaptest.Behaviour, answer, lasts time.Duration) {
	o.fake.KeepRecords(false) // of every probe
	o.relay = o.start(of(seldom(o.queue)))
	o.traffic(10 * time.Minute)
	o.wantSums(sums{accepted: o.n, delivered: o.n})

	o.fake.Always(down)
	o.traffic(time.Minute)
	before, heap, began := o.look(), heapInUse(), time.Now()
	o.traffic(lasts / 2)
	o.isOpen()
	o.relay.stop()
	o.relay = o.start(of(seldom(o.queue)))
	o.traffic(lasts / 2)
	o.isOpen()
	after := o.look()
	lasted := time.Since(began)

	// Beside what the relay holds, the store keeps the newest frames.
	if grown := heapInUse() - heap; grown > heldBytes+storeKeeps {
		o.t.Errorf("the heap has grown by %d KiB", grown>>10)
	}
	every := lasted / time.Duration(after.calls-before.calls)
	if every < 24*time.Second || every > time.Minute+answer {
		o.t.Errorf("a probe every %v", every)
	}
	if lines := after.lines - before.lines; lines > int(lasted/time.Minute)+20 {
		o.t.Errorf("%d log lines in %v", lines, lasted)
	}
	if after.delivered != before.delivered || after.died+after.deduplicated > 0 || after.queued != o.n-after.delivered {
		o.t.Errorf("before %+v, after %+v", before, after)
	}

	o.fake.Normal()
	o.fake.Latency(200 * time.Millisecond)
	o.fake.JudgeCall(func(c clevertaptest.Call) int { // others use the account, too
		if c.InFlight > 5 {
			return 429
		}
		return 0
	})
	o.recovers(after, time.Minute+answer)
}

// outage is a scene with traffic.
type outage struct {
	*scene
	rng   *rand.Rand
	relay *running
	n     uint64 // receipts so far
}

// traffic commits a few receipts every few seconds, for a minute or so; then it is
// quiet for a while.
func (o *outage) traffic(d time.Duration) {
	o.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); {
		for range 10 + o.rng.IntN(30) {
			k := 1 + o.rng.IntN(5)
			o.commit(receipts(int(o.n), k, 500)...)
			o.n += uint64(k)
			time.Sleep(time.Duration(o.rng.Int64N(int64(5 * time.Second))))
		}
		time.Sleep(time.Duration(o.rng.Int64N(int64(15 * time.Minute))))
	}
}

// sight is what an operator sees.
type sight struct {
	sums
	calls int64
	lines int
}

func (o *outage) look() sight {
	return sight{
		sums:  o.sums(),
		calls: o.fake.Counts().Calls,
		lines: o.logs.Filter(func(e observer.LoggedEntry) bool { return e.Level >= zap.InfoLevel }).Len(),
	}
}

func (o *outage) isOpen() {
	o.t.Helper()
	if s := o.status(); s.Breaker == breakerClosed || o.relay.metric("birdtap_breaker_open") != 1 {
		o.t.Errorf("the breaker is shown %s", s.Breaker)
	}
	if err := o.relay.Health(); err != nil {
		o.t.Errorf("waiting for CleverTap is not healthy: %v", err)
	}
}

// recovers follows what happens once CleverTap works again.
func (o *outage) recovers(before sight, within time.Duration) {
	o.t.Helper()
	began := time.Now()
	if !become(2*within, func() bool { return o.fake.Counts().Accepted > int64(before.delivered) }) {
		o.t.Fatal("nothing is delivered after the recovery")
	}
	if took := time.Since(began); took > within {
		o.t.Errorf("the first success came %v after the recovery", took)
	}
	o.wantSumsIn(5*time.Minute, sums{accepted: o.n, delivered: o.n})
	o.wantOnce(int(o.n))
	throttled := 0
	for _, c := range o.fake.Calls() {
		if c.Status == 429 {
			throttled++
		}
	}
	if throttled > 3 {
		o.t.Errorf("%d calls were answered 429", throttled)
	}
	for _, r := range o.arrived.all() {
		if want := receipt(number(o.t, r), 500).Record; string(r.Raw) != string(want) {
			o.t.Fatalf("%s arrived as %s", want, r.Raw)
		}
	}
	if s := o.status(); s.Breaker != breakerClosed {
		o.t.Errorf("the breaker is shown %s", s.Breaker)
	}
	o.t.Logf("%d receipts, %d calls, drained %v after the recovery", o.n, o.fake.Counts().Calls, time.Since(began))
}
