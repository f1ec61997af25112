//go:build integration

package integration

import (
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"syscall"
	"time"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
	"github.com/birdtap/birdtap/integration/moods"
)

// seat is what a fault takes hold of. Faults of one seat never come together.
type seat string

const (
	atCleverTap seat = "clevertap" // how it answers
	atWire      seat = "wire"      // between birdtap and CleverTap
	atStreet    seat = "street"    // between callers and birdtap
	atProcess   seat = "process"   // the daemon itself
	atOperator  seat = "operator"  // what people do to it
	atLoad      seat = "load"      // what callers ask of it
)

// fault is one thing that can go wrong. It has set, act, or both.
type fault struct {
	name string
	seat seat
	// set makes it begin, and returns what ends it.
	set func(r *rig, d *rand.Rand) (heal func())
	// act is a deed: it happens once, at some moment.
	act func(r *rig, d *rand.Rand)
	// repeats is how many records may be sent again although CleverTap took them and
	// answered as usual.
	repeats int
	// settles tells that a good record could be taken for a bad one if the same came
	// twice in a row: everything leaves the queue before the next fault.
	settles bool
}

// outInRig is the most that can be sent and not recorded as settled: what one crash may
// repeat. everything is no bound but what there is.
const (
	outInRig   = maxInFlight * rigRecords
	everything = math.MaxInt32
)

// nemesisFaults is every fault there is. A new one is a new line.
var nemesisFaults = slices.Concat(cleverTapFaults, wireFaults, streetFaults, processFaults, operatorFaults)

// gib is a lot for an answer, in bytes.
const gib = 1 << 30

var cleverTapFaults = append(moody(), []fault{
	{name: "flapping", seat: atCleverTap, set: flap},
	{name: "some 500", seat: atCleverTap, set: failSome},
	{name: "gone", seat: atCleverTap, repeats: outInRig, set: func(r *rig, _ *rand.Rand) func() {
		r.fake.Stop()
		return func() {
			if err := r.fake.Listen(r.fake.Addr()); err != nil {
				r.t.Fatalf("CleverTap does not come back: %v", err)
			}
		}
	}},
}...)

// moody is a CleverTap that meets every call in one way.
func moody() []fault {
	var list []fault
	for _, m := range moods.All(rigTimeout) {
		f := fault{name: m.Name, seat: atCleverTap, settles: m.Garbled, set: func(r *rig, _ *rand.Rand) func() {
			r.fake.Always(m.Behaviour)
			return r.fake.Normal
		}}
		if m.Late {
			f.repeats = everything
		}
		list = append(list, f)
	}
	return list
}

// flap fails for a moment, works for a moment, and so on.
func flap(r *rig, d *rand.Rand) func() {
	every := time.Duration(200+d.IntN(600)) * time.Millisecond
	began := time.Now()
	r.fake.Each(func(c clevertaptest.Call) clevertaptest.Behaviour {
		if c.At.Sub(began)/every%2 == 0 {
			return clevertaptest.Status(http.StatusServiceUnavailable, nil, "")
		}
		return clevertaptest.Behaviour{}
	})
	return r.fake.Normal
}

// failSome fails a share of all calls, from 1 to 99 percent.
func failSome(r *rig, d *rand.Rand) func() {
	percent, draws := 1+d.IntN(99), rand.New(rand.NewPCG(d.Uint64(), 0))
	r.fake.Each(func(clevertaptest.Call) clevertaptest.Behaviour {
		if draws.IntN(100) < percent { // one call at a time asks
			return clevertaptest.Status(http.StatusInternalServerError, nil, "")
		}
		return clevertaptest.Behaviour{}
	})
	return r.fake.Normal
}

// wired is a bad wire to CleverTap. What hangs in it at its end is torn, or what is
// given up on this side would go on living on the other.
func wired(name string, w weather) fault {
	return fault{name: "wire: " + name, seat: atWire, repeats: everything, set: func(r *rig, _ *rand.Rand) func() {
		r.wire.become(w)
		return func() {
			r.wire.reset()
			r.wire.mend()
		}
	}}
}

var wireFaults = []fault{
	wired("latency and slices", weather{latency: 2 * time.Millisecond, slice: 500}),
	wired("throttled", weather{rate: 20_000, slice: 1000}),
	wired("deaf", weather{deaf: true}),
	wired("black hole", weather{blackhole: true}),
	wired("torn in the body", weather{tears: 1500}),
	wired("half closed", weather{halfCloses: true}),
	{name: "wire: reset", seat: atWire, repeats: outInRig, act: func(r *rig, _ *rand.Rand) { r.wire.reset() }},
}

// walked is a bad way to birdtap's door.
func walked(name string, w weather) fault {
	return fault{name: "street: " + name, seat: atStreet, set: func(r *rig, _ *rand.Rand) func() {
		r.street.become(w)
		return r.street.mend
	}}
}

var streetFaults = []fault{
	walked("latency and slices", weather{latency: time.Millisecond, slice: 100}),
	walked("black hole", weather{blackhole: true}),
	walked("deaf", weather{deaf: true}),
	walked("torn in the body", weather{tears: 3000}),
	walked("half closed", weather{halfCloses: true}),
	{name: "street: reset", seat: atStreet, act: func(r *rig, _ *rand.Rand) { r.street.reset() }},
}

var processFaults = []fault{
	{name: "kill -9", seat: atProcess, repeats: outInRig, act: func(r *rig, _ *rand.Rand) { r.kill(); r.start() }},
	{name: "kill -9 twice", seat: atProcess, repeats: 2 * outInRig, act: func(r *rig, d *rand.Rand) {
		r.kill()
		r.start()
		r.pass(time.Duration(d.IntN(800)) * time.Millisecond)
		r.kill()
		r.start()
	}},
	{name: "stopped and started", seat: atProcess, act: func(r *rig, _ *rand.Rand) { r.terminate(); r.start() }},
	{name: "killed while stopping", seat: atProcess, repeats: outInRig, act: func(r *rig, d *rand.Rand) {
		r.daemon.signal(syscall.SIGTERM)
		timer := time.NewTimer(time.Duration(d.IntN(500)) * time.Millisecond)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.daemon.done:
		}
		r.kill()
		r.start()
	}},
	{name: "frozen", seat: atProcess, repeats: outInRig, act: func(r *rig, d *rand.Rand) {
		r.daemon.signal(syscall.SIGSTOP)
		r.pass(500*time.Millisecond + time.Duration(d.Int64N(int64(2500*time.Millisecond))))
		r.daemon.signal(syscall.SIGCONT)
	}},
}

var operatorFaults = []fault{
	{name: "paused", seat: atOperator, set: func(r *rig, _ *rand.Rand) func() {
		r.command("pause")
		return func() { r.command("resume") }
	}},
	{name: "replayed", seat: atOperator, act: func(r *rig, _ *rand.Rand) { r.command("relay", "--replay") }},
	{name: "hurry", seat: atLoad, set: func(r *rig, _ *rand.Rand) func() {
		r.client.Hurry(20)
		return func() { r.client.Hurry(1) }
	}},
	{name: "queue filled", seat: atCleverTap, set: func(r *rig, _ *rand.Rand) func() {
		r.fake.Always(clevertaptest.Status(http.StatusServiceUnavailable, nil, ""))
		r.client.Hurry(50)
		return func() {
			r.client.Hurry(1)
			r.fake.Normal()
		}
	}},
}
