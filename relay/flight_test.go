package relay

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/birdtap/birdtap/store"
)

// destination answers one call of a batch; it sees the records by their index.
type destination func(records []int) verdict

var (
	taken      = verdict{meaning: judged, signal: sigGood}
	notKnown   = verdict{meaning: again, signal: sigFailed}
	notClear   = verdict{meaning: unclear, reason: store.ReasonUnclear, code: 200, signal: sigFailed}
	badRequest = verdict{meaning: refused, reason: store.ReasonHTTP400, code: 400, signal: sigRefused}
	tooLarge   = verdict{meaning: refused, reason: store.ReasonHTTP413, code: 413, signal: sigRefused}
)

// voyage flies one batch and keeps what came of it.
type voyage struct {
	flight   *flight
	calls    int
	stops    int            // calls after which the pace stops
	fate     map[int]string // delivered, aside or the reason of death
	took     map[int]int    // records the destination took, by the call it first did
	order    []int          // the records in the order in which they were first taken
	evidence evidence
	busy     bool // there is other traffic, and the destination takes it
}

func newVoyage(n int, ordered bool) *voyage {
	y := &voyage{fate: map[int]string{}, took: map[int]int{}}
	y.flight = newFlight(n, ordered, &y.evidence)
	return y
}

type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// fly calls at most most times, and tells whether the batch is done.
func (y *voyage) fly(t failer, to destination, most int) bool {
	t.Helper()
	for range most {
		if y.busy {
			y.otherCall()
		}
		if y.callOnce(t, to) {
			return true
		}
	}
	return false
}

func (y *voyage) otherCall() {
	y.evidence.begun++
	y.evidence.accepted = y.evidence.begun
}

func (y *voyage) callOnce(t failer, to destination) (done bool) {
	t.Helper()
	from, end := y.flight.Next()
	if from >= end {
		t.Fatalf("an empty call, from %d to %d", from, end)
	}
	records := make([]int, 0, end-from)
	for i := from; i < end; i++ {
		if y.fate[i] != "" {
			t.Fatalf("record %d goes again although it is %s", i, y.fate[i])
		}
		records = append(records, i)
	}
	y.calls++
	v := to(records)
	v.exceptions = slices.Clone(v.exceptions)
	if v.meaning == judged {
		y.take(records, v)
	}
	s := y.flight.Answer(v)
	if s.signal == sigRefusing || s.signal == sigStopped {
		y.stops++
	}
	y.settle(t, s)
	return s.done
}

func (y *voyage) take(records []int, v verdict) {
	refused := map[int]bool{}
	for _, e := range v.exceptions {
		refused[e.index] = true
	}
	for k, i := range records {
		if _, again := y.took[i]; !again && !refused[k] {
			y.took[i] = y.calls
			y.order = append(y.order, i)
		}
	}
}

func (y *voyage) settle(t failer, s step) {
	t.Helper()
	exceptions := s.exceptions
	for i := s.from; i < s.to; i++ {
		if y.fate[i] != "" {
			t.Fatalf("record %d is settled twice", i)
		}
		y.fate[i] = "delivered"
		if len(exceptions) > 0 && exceptions[0].index == i {
			y.fate[i] = string(exceptions[0].reason)
			if exceptions[0].aside {
				y.fate[i] = "aside"
			}
			exceptions = exceptions[1:]
		}
	}
	if len(exceptions) > 0 {
		t.Fatalf("exceptions beyond the records settled: %v", exceptions)
	}
}

func (y *voyage) count(fate string) int {
	n := 0
	for _, f := range y.fate {
		if f == fate {
			n++
		}
	}
	return n
}

// poison refuses every call that holds one of its records.
func poison(bad func(int) bool) destination {
	return func(records []int) verdict {
		if slices.ContainsFunc(records, bad) {
			return badRequest
		}
		return taken
	}
}

func TestGoodBatchIsOneCall(t *testing.T) {
	y := newVoyage(1000, false)
	if !y.fly(t, poison(func(int) bool { return false }), 1) || y.count("delivered") != 1000 {
		t.Fatalf("not all delivered in one call")
	}
}

func TestPoison(t *testing.T) {
	const n = 1000
	for name, c := range map[string]struct {
		bad  func(int) bool
		k    int
		lone bool // nothing can be told without other traffic
	}{
		"first":           {func(i int) bool { return i == 0 }, 1, false},
		"last":            {func(i int) bool { return i == n-1 }, 1, false},
		"middle":          {func(i int) bool { return i == 500 }, 1, false},
		"10 spread":       {func(i int) bool { return i%100 == 37 }, 10, false},
		"10 in a row":     {func(i int) bool { return i >= 490 && i < 500 }, 10, false},
		"500 alternating": {func(i int) bool { return i%2 == 0 }, 500, false},
		"500 in front":    {func(i int) bool { return i < 500 }, 500, false},
		"500 behind":      {func(i int) bool { return i >= 500 }, 500, false},
		"999":             {func(i int) bool { return i != 700 }, 999, false},
		"all":             {func(int) bool { return true }, n, true},
	} {
		for _, ordered := range []bool{false, true} {
			for _, busy := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/ordered=%v/busy=%v", name, ordered, busy), func(t *testing.T) {
					y := newVoyage(n, ordered)
					y.busy = busy
					done := y.fly(t, poison(c.bad), 20_000)
					if !busy && (c.lone || ordered && c.bad(0)) {
						if done || y.count(string(store.ReasonHTTP400)) > 0 {
							t.Fatalf("%d dead without evidence", y.count(string(store.ReasonHTTP400)))
						}
						return
					}
					if !done || y.count("delivered") != n-c.k || y.count(string(store.ReasonHTTP400)) != c.k {
						t.Fatalf("%d delivered, %d dead", y.count("delivered"), y.count(string(store.ReasonHTTP400)))
					}
					most := maxCalls(n, c.k)
					t.Logf("%d calls, %d stops, allowed %d", y.calls, y.stops, most)
					if y.calls > most && name != "999" {
						t.Errorf("%d calls, want at most %d", y.calls, most)
					}
				})
			}
		}
	}
}

// maxCalls is what k culprits among n may cost: 2k·log2(n/k) + k, and one search
// more, for what is learnt before the first is found.
func maxCalls(n, k int) int {
	return int(2*float64(k)*math.Log2(float64(n)/float64(k))) + k + 2 + int(math.Log2(float64(n)))
}

func TestCallsForRandomPoison(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 1000).Draw(t, "n")
		k := rapid.IntRange(1, n).Draw(t, "k")
		seed := rapid.Uint64().Draw(t, "seed")
		bad := map[int]bool{}
		for i := 0; len(bad) < k; i++ {
			bad[int((seed+uint64(i)*uint64(i+1)*0x9e3779b97f4a7c15)>>20%uint64(n))] = true
		}
		y := newVoyage(n, rapid.Bool().Draw(t, "ordered"))
		y.busy = true
		if !y.fly(t, poison(func(i int) bool { return bad[i] }), 5000) {
			t.Fatalf("not done")
		}
		if limit := 2*k + maxCalls(n, k); y.calls > limit {
			t.Fatalf("%d culprits of %d: %d calls, want at most %d", k, n, y.calls, limit)
		}
	})
}

func TestCombinationIsDelivered(t *testing.T) {
	for _, ordered := range []bool{false, true} {
		y := newVoyage(1000, ordered)
		done := y.fly(t, func(records []int) verdict {
			if slices.Contains(records, 20) && slices.Contains(records, 800) {
				return badRequest
			}
			return taken
		}, 100)
		t.Logf("%d calls", y.calls)
		if !done || y.count("delivered") != 1000 || y.calls > 25 {
			t.Fatalf("%d delivered in %d calls", y.count("delivered"), y.calls)
		}
	}
}

func TestTooLargeIsCutToSize(t *testing.T) {
	for limit, most := range map[int]int{999: 4, 500: 4, 200: 20, 100: 35, 10: 400} {
		y := newVoyage(1000, true)
		done := y.fly(t, func(records []int) verdict {
			if len(records) > limit {
				return tooLarge
			}
			return taken
		}, 2000)
		t.Logf("at most %d a call: %d calls", limit, y.calls)
		if !done || y.count("delivered") != 1000 || y.calls > most {
			t.Errorf("at most %d a call: %d delivered in %d calls", limit, y.count("delivered"), y.calls)
		}
	}
}

func TestLoneTooLargeRecordDies(t *testing.T) {
	y := newVoyage(1000, false)
	done := y.fly(t, func(records []int) verdict {
		if slices.Contains(records, 300) {
			return tooLarge
		}
		return taken
	}, 100)
	t.Logf("%d calls", y.calls)
	if !done || y.fate[300] != string(store.ReasonHTTP413) || y.count("delivered") != 999 {
		t.Fatalf("%s, %d delivered, in %d calls", y.fate[300], y.count("delivered"), y.calls)
	}
}

func TestUnknownOutcomeGoesAgainAsItIs(t *testing.T) {
	y := newVoyage(10, false)
	f := y.flight
	for range 1000 {
		if from, to := f.Next(); from != 0 || to != 10 {
			t.Fatalf("%d to %d, want all", from, to)
		}
		if s := f.Answer(notKnown); s.from != s.to || s.done || s.signal != sigFailed {
			t.Fatalf("got %+v", s)
		}
	}
	if !y.fly(t, poison(func(i int) bool { return false }), 1) {
		t.Fatal("not done")
	}
}

func TestUnclear(t *testing.T) {
	obscure := func(records []int) verdict {
		if slices.Contains(records, 3) {
			return notClear
		}
		return taken
	}
	t.Run("five tries before it is halved", func(t *testing.T) {
		y := newVoyage(10, false)
		f := y.flight
		for i := range unclearTries {
			if from, to := f.Next(); from != 0 || to != 10 {
				t.Fatalf("try %d: %d to %d, want all", i, from, to)
			}
			f.Answer(notClear)
		}
		if from, to := f.Next(); from != 0 || to != 5 {
			t.Fatalf("%d to %d, want the first half", from, to)
		}
	})
	t.Run("a lone record dies while other calls succeed", func(t *testing.T) {
		y := newVoyage(10, false)
		if !y.fly(t, obscure, 100) || y.fate[3] != string(store.ReasonUnclear) || y.count("delivered") != 9 {
			t.Fatalf("record 3 is %q, %d delivered", y.fate[3], y.count("delivered"))
		}
	})
	t.Run("without evidence it goes on", func(t *testing.T) {
		y := newVoyage(1, false)
		if y.fly(t, func([]int) verdict { return notClear }, 100) || !y.flight.Doubtful() {
			t.Fatal("it is settled, or sure of itself")
		}
		y.otherCall()
		if !y.fly(t, func([]int) verdict { return notClear }, 1) || y.fate[0] != string(store.ReasonUnclear) {
			t.Fatalf("with evidence it is %q", y.fate[0])
		}
	})
}

func TestLoneRecordRefusedIsASuspectUntilAnotherCallIsAccepted(t *testing.T) {
	y := newVoyage(1, false)
	refuse := func([]int) verdict { return badRequest }
	if y.fly(t, refuse, 100) || y.stops != 100 || !y.flight.Doubtful() {
		t.Fatalf("fate %v, %d stops in 100 calls", y.fate, y.stops)
	}
	y.otherCall()
	if y.flight.Doubtful() {
		t.Fatal("doubtful in spite of evidence")
	}
	if !y.fly(t, refuse, 1) || y.fate[0] != string(store.ReasonHTTP400) {
		t.Fatalf("fate %v", y.fate)
	}
}

func TestAcceptedCallThatBeganEarlierIsNoEvidence(t *testing.T) {
	y := newVoyage(4, false)
	y.evidence.begun++ // on its way
	early := y.evidence.begun
	refuse := func([]int) verdict { return badRequest }
	y.fly(t, refuse, 1)
	y.evidence.accepted = early
	if y.fly(t, refuse, 100); y.count(string(store.ReasonHTTP400)) > 0 {
		t.Fatalf("dead on the word of a call from before: %v", y.fate)
	}
}

func TestRefusingDestinationKillsNothing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 1000).Draw(t, "n")
		y := newVoyage(n, rapid.Bool().Draw(t, "ordered"))
		refusal := rapid.SampledFrom([]verdict{badRequest, tooLarge}).Draw(t, "refusal")
		calls := 0
		y.fly(t, func([]int) verdict {
			if calls++; calls%7 == 3 {
				return notKnown
			}
			return refusal
		}, rapid.IntRange(0, 3000).Draw(t, "calls"))
		if len(y.fate) > 0 {
			t.Fatalf("settled: %v", y.fate)
		}
		free := y.calls - y.stops - y.calls/7
		if free > 14 {
			t.Fatalf("%d calls without the pace being stopped", free)
		}
		// It recovers: all is delivered, in few calls.
		if !y.fly(t, poison(func(int) bool { return false }), 40) || y.count("delivered") != n {
			t.Fatalf("%d of %d delivered after recovery", y.count("delivered"), n)
		}
	})
}

// Whatever a destination answers, and however that changes.
func TestEveryRecordGetsOneTrueVerdict(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 120).Draw(t, "n")
		ordered := rapid.Bool().Draw(t, "ordered")
		y := newVoyage(n, ordered)
		set := func(name string) map[int]bool {
			m := map[int]bool{}
			for _, i := range rapid.SliceOfN(rapid.IntRange(0, n-1), 0, n/3+1).Draw(t, name) {
				m[i] = true
			}
			return m
		}
		bad, obscure, aside, dead := set("bad"), set("obscure"), set("aside"), set("dead")
		limit := rapid.IntRange(1, 2*n).Draw(t, "limit")
		wandering := rapid.Bool().Draw(t, "wandering")
		mode := 0
		blamed := map[int]bool{} // was in a call that was refused or unclear, alone
		to := func(records []int) verdict {
			v := answer(records, bad, obscure, aside, dead, limit)
			switch {
			case mode == 1:
				v = notKnown
			case mode == 2:
				v = badRequest
			case wandering && rapid.IntRange(0, 9).Draw(t, "wander") == 0:
				v = badRequest
			}
			if len(records) == 1 && v.meaning != judged && v.meaning != again {
				blamed[records[0]] = true
			}
			return v
		}
		for range 60 {
			mode = rapid.SampledFrom([]int{0, 0, 0, 1, 2}).Draw(t, "mode")
			y.busy = mode == 0 && rapid.Bool().Draw(t, "busy")
			if y.fly(t, to, rapid.IntRange(1, 40).Draw(t, "calls")) {
				break
			}
		}
		mode, wandering, y.busy = 0, false, true
		if len(y.fate) < n && !y.fly(t, to, 20*n+200) {
			t.Fatalf("not done: %+v", y.flight)
		}
		y.check(t, n, aside, dead, blamed)
	})
}

// answer is what a destination with these quirks says about the records.
func answer(records []int, bad, obscure, aside, dead map[int]bool, limit int) verdict {
	v := taken
	for k, i := range records {
		switch {
		case len(records) > limit:
			return tooLarge
		case bad[i]:
			return badRequest
		case obscure[i]:
			return notClear
		case aside[i]:
			v.exceptions = append(v.exceptions, exception{index: k, aside: true, reason: "555", code: 555})
		case dead[i]:
			v.exceptions = append(v.exceptions, exception{index: k, reason: "512", code: 512})
		}
	}
	return v
}

func (y *voyage) check(t *rapid.T, n int, aside, dead, blamed map[int]bool) {
	for i := range n {
		_, took := y.took[i]
		switch fate := y.fate[i]; fate {
		case "delivered":
			if !took {
				t.Fatalf("record %d is called delivered", i)
			}
		case "aside", "512":
			if fate == "aside" && !aside[i] || fate == "512" && !dead[i] || took {
				t.Fatalf("record %d is %s", i, fate)
			}
		case string(store.ReasonHTTP400), string(store.ReasonHTTP413), string(store.ReasonUnclear):
			if took || !blamed[i] {
				t.Fatalf("record %d is dead of %s: taken %v, ever refused alone %v", i, fate, took, blamed[i])
			}
		default:
			t.Fatalf("record %d has the verdict %q", i, fate)
		}
	}
	if y.flight.ordered && !slices.IsSorted(y.order) {
		t.Fatalf("taken out of order: %v", y.order)
	}
}

// Wandering poison: each call is refused for a record that is another one each time.
func TestWanderingPoisonEnds(t *testing.T) {
	y := newVoyage(1000, false)
	calls := 0
	done := y.fly(t, func(records []int) verdict {
		calls++
		if calls < 500 && slices.Contains(records, calls*7919%1000) {
			return badRequest
		}
		return taken
	}, 2000)
	t.Logf("%d calls, %d dead", y.calls, y.count(string(store.ReasonHTTP400)))
	if !done || y.count("delivered") < 990 {
		t.Fatalf("%d delivered in %d calls", y.count("delivered"), y.calls)
	}
}

// A lone record is refused in the last moment of a destination that refuses everything;
// before the answer is there, another call, begun later, is accepted. That says nothing
// about the record: it goes once more.
func TestLateRefusalKillsNothing(t *testing.T) {
	for name, answer := range map[string]verdict{"400": badRequest, "413": tooLarge} {
		var e evidence
		f, other := newFlight(2, false, &e), newFlight(1, false, &e)
		f.Next()
		f.Answer(answer) // both: the first refusal
		f.Next()
		other.Next()
		other.Answer(taken)
		if s := f.Answer(answer); len(s.exceptions) > 0 { // the first of them, late
			t.Errorf("%s: killed by a late refusal: %+v", name, s)
		}
		f.Next()
		if s := f.Answer(answer); len(s.exceptions) != 1 {
			t.Errorf("%s: refused while others are accepted, and not dead: %+v", name, s)
		}
	}
}
