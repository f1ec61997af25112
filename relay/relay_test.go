package relay

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"math/bits"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/birdtap/birdtap/clevertap"
	"github.com/birdtap/birdtap/clevertap/clevertaptest"
	"github.com/birdtap/birdtap/store"
)

func TestEveryReceiptArrivesOnceAndInOrder(t *testing.T) {
	for name, options := range map[string][]func(*Options){
		"embedded":     nil,
		"among others": {amongOthers},
		"gathering":    {func(o *Options) { o.BatchMaxWait = 20 * time.Millisecond }},
	} {
		t.Run(name, func(t *testing.T) {
			g := setup(t, func(o *store.Options) { o.KeepMaxBytes = 1 << 20 })
			g.fake.Latency(2 * time.Millisecond)
			r := g.start(options...)
			const n = 20_000
			g.commit(receipts(0, n, 3000)...)
			g.wantSums(sums{accepted: n, delivered: n})
			g.wantOnce(n)
			g.wantLimits(7)
			r.wantMetrics()
			if cp := g.checkpoint(); cp.Floor != n/1000+1 || len(cp.Settled.Whole)+len(cp.Settled.Partial) > 0 {
				t.Errorf("floor %d, settled above it %+v", cp.Floor, cp.Settled)
			}
			eventually(t, "delivered receipts beyond KeepMaxBytes are trimmed", func() bool { return g.kept() <= 1<<20 })
		})
	}
}

// kept is how many bytes the frames take that are still there.
func (g *scene) kept() int64 {
	g.t.Helper()
	var bytes int64
	if _, err := g.queue.ScanFrames(context.Background(), 1, func(f store.FrameInfo) { bytes += f.Bytes }); err != nil {
		g.t.Fatal(err)
	}
	return bytes
}

// A user with very many receipts is served in order, too.
func TestCrowdArrivesInOrder(t *testing.T) {
	g := setup(t)
	g.commit(receipts(0, 5000, 2)...)
	g.start()
	g.wantSums(sums{accepted: 5000, delivered: 5000})
	g.wantOnce(5000)
	if calls := g.fake.Counts().Calls; calls > 100 {
		t.Errorf("%d calls", calls)
	}
}

func TestCopiesWithinTheWindowAreDeliveredOnce(t *testing.T) {
	bubble(t, func(t *testing.T, g *scene) {
		r := g.start(of(seldom(g.queue)))
		g.commit(receipts(0, 10, 10)...)
		g.commit(receipts(5, 10, 10)...)
		g.wantSums(sums{accepted: 20, delivered: 15, deduplicated: 5})
		g.wantOnce(15)
		r.wantMetrics()
		time.Sleep(3 * time.Minute)
		g.commit(receipt(0, 10))
		g.wantSums(sums{accepted: 21, delivered: 16, deduplicated: 5})
	})
}

func TestRefusedRecordsGoToTheDeadLetters(t *testing.T) {
	g := setup(t)
	g.fake.Judge(func(r clevertaptest.Record) int { return map[int]int{3: 512, 7: 513}[number(t, r)] })
	r := g.start()
	g.commit(receipts(0, 10, 10)...)
	g.wantSums(sums{accepted: 10, delivered: 8, died: 2, dead: 2})
	want := map[store.Place]int{{Seq: 1, Index: 3}: 512, {Seq: 1, Index: 7}: 513}
	for _, l := range g.letters() {
		if l.Code != want[l.Origin] || l.Reason != codeReason(clevertap.Code(l.Code)) || l.Tries != 1 || l.Died.IsZero() ||
			string(l.Receipt.Record) != string(receipt(l.Origin.Index, 10).Record) {
			t.Errorf("got letter %+v", l)
		}
	}
	g.commit(receipts(10, 10, 10)...)
	g.wantSums(sums{accepted: 20, delivered: 18, died: 2, dead: 2})
	g.wantOnce(20, 3, 7)
	if g.carried(3) != 1 || g.carried(7) != 1 {
		t.Error("a refused record was sent again")
	}
	r.wantMetrics()
}

func TestReplayWithinTheWindowReallyDelivers(t *testing.T) {
	g := setup(t)
	g.refuse(512, 3, 7)
	r := g.start()
	g.commit(receipts(0, 10, 10)...)
	g.wantSums(sums{accepted: 10, delivered: 8, died: 2, dead: 2})

	g.refuse(512, 7) // it dies a second time
	if n := g.replay(); n != 2 {
		t.Fatalf("%d replayed, want 2", n)
	}
	g.wantSums(sums{accepted: 10, replayed: 2, delivered: 9, died: 3, dead: 1})
	if l := g.letters()[0]; l.Origin.Seq != 2 {
		t.Errorf("origin is %v, want a place of the second life", l.Origin)
	}

	g.refuse(0)
	g.replay()
	g.wantSums(sums{accepted: 10, replayed: 3, delivered: 10, died: 3})
	g.wantOnce(10)
	r.wantMetrics()
}

// A replay that was killed half way leaves a letter in both places.
func TestReplaysOfEqualOriginAreDeliveredOnce(t *testing.T) {
	g := setup(t)
	g.refuse(512, 3)
	g.start()
	g.commit(receipts(0, 10, 10)...)
	g.wantSums(sums{accepted: 10, delivered: 9, died: 1, dead: 1})
	g.fake.Judge(nil)
	if _, err := g.queue.Bury(t.Context(), g.letters()); err != nil {
		t.Fatal(err)
	}
	g.replay()
	g.wantSums(sums{accepted: 10, replayed: 2, delivered: 10, deduplicated: 1, died: 1})
	g.wantOnce(10)
}

func TestReceiptRefusedAtTheDoorIsNeverSent(t *testing.T) {
	g := setup(t)
	r := g.start()
	list := receipts(0, 10, 1)
	list[4].Reason, list[4].Code = store.ReasonRefused, 513
	g.commit(list...)
	g.wantSums(sums{accepted: 10, delivered: 9, died: 1, dead: 1})
	if l := g.letters()[0]; l.Reason != store.ReasonRefused || l.Code != 513 || l.Tries != 0 || l.Origin != (store.Place{Seq: 1, Index: 4}) {
		t.Errorf("got letter %+v", l)
	}
	g.wantOnce(10, 4)
	r.wantMetrics()
}

// A code that no dead letter can hold must not stop everything.
func TestRefusalWithAnAbsurdCode(t *testing.T) {
	g := setup(t)
	g.refuse(1<<40, 3)
	g.start()
	g.commit(receipts(0, 10, 10)...)
	g.wantSums(sums{accepted: 10, delivered: 9, died: 1, dead: 1})
}

func TestRecordAnswered555StepsAside(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, g *scene) {
		var refusals atomic.Int32
		g.fake.Judge(func(r clevertaptest.Record) int {
			if number(g.t, r) == 0 && refusals.Add(1) <= 3 {
				return 555
			}
			return 0
		})
		g.commit(receipts(0, 30, 10)...) // of user 0: the records 0, 10 and 20
		r := g.start()
		g.wantSums(sums{accepted: 30, delivered: 27, queued: 3})
		if got := g.carried(0); got != 1 {
			t.Fatalf("record 0 was sent %d times so far", got)
		}
		began := time.Now()
		g.wantSums(sums{accepted: 30, delivered: 30})
		if took := time.Since(began); took < time.Second || took > 7*time.Second {
			t.Errorf("it was taken after %v", took)
		}
		g.wantOnce(30)
		r.wantMetrics()
	})
}

func TestRecordAnswered555TooLongDies(t *testing.T) {
	bubble(t, func(t *testing.T, g *scene) {
		g.refuse(555, 0)
		g.commit(receipts(0, 30, 10)...)
		g.start(of(seldom(g.queue)), retryFor(10*time.Minute))
		time.Sleep(10*time.Minute - time.Second)
		g.wantSums(sums{accepted: 30, delivered: 27, queued: 3})
		time.Sleep(2 * time.Second)
		g.wantSums(sums{accepted: 30, delivered: 29, died: 1, dead: 1})
		l := g.letters()[0]
		if l.Reason != "555" || l.Code != 555 || l.Origin != (store.Place{Seq: 1}) {
			t.Errorf("got letter %+v", l)
		}
		if got := g.carried(0); l.Tries != got || got < 15 {
			t.Errorf("the letter says %d tries, %d calls carried it", l.Tries, got)
		}
		g.wantOnce(30, 0)
	})
}

func TestPoisonDiesAlone(t *testing.T) {
	const n = 1000
	for name, p := range map[string]struct {
		status int
		count  int
		reason store.Reason
	}{
		"one":       {400, 1, store.ReasonHTTP400},
		"ten":       {400, 10, store.ReasonHTTP400},
		"half":      {400, 500, store.ReasonHTTP400},
		"too large": {413, 1, store.ReasonHTTP413},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, g *scene) {
				bad := func(i int) bool { return i%(n/p.count) == n/p.count/2 }
				g.poison(p.status, bad)
				g.commit(receipts(0, n, n)...)
				began := time.Now()
				r := g.start()
				g.wantSums(sums{accepted: n, delivered: uint64(n - p.count), died: uint64(p.count), dead: uint64(p.count)})
				if took := time.Since(began); took > time.Minute {
					t.Errorf("the good ones were %v late", took)
				}
				for _, l := range g.letters() {
					if !bad(l.Origin.Index) || l.Reason != p.reason || l.Code != p.status || l.Tries != g.carried(l.Origin.Index) {
						t.Fatalf("got letter %+v, %d calls carried it", l, g.carried(l.Origin.Index))
					}
				}
				if calls, most := len(g.fake.Calls()), 2*p.count*bits.Len(uint(n/p.count))+p.count+10; calls > most {
					t.Errorf("%d calls, at most %d were expected", calls, most)
				}
				r.wantMetrics()
			})
		})
	}
}

// While one batch is searched for its many culprits the others go on, with a single call
// at a time, too.
func TestOthersGoOnBesidePoison(t *testing.T) {
	bubble(t, func(t *testing.T, g *scene) {
		poison, good := 200, 60
		if underRace() {
			poison, good = 50, 20
		}
		g.fake.Latency(500 * time.Millisecond)
		g.poison(400, func(i int) bool { return i < poison })
		g.commit(receipts(0, poison, poison)...)
		r := g.start(func(o *Options) { o.MaxInflight = 1 })
		for i := range good {
			g.commit(receipts(poison+i, 1, poison+good)...)
			time.Sleep(time.Second)
		}
		if got := g.sums(); got.delivered < uint64(good-5) {
			t.Errorf("in the end %d of %d good ones are delivered", got.delivered, good)
		}
		bad, all := uint64(poison), uint64(poison+good)
		g.wantSumsIn(5*time.Minute, sums{accepted: all, delivered: all - bad, died: bad, dead: bad})
		r.wantMetrics()
	})
}

// Of a batch that is searched some is accepted and some is left. However many there are of
// them: what a crash could repeat is never more than a batch for every call in flight.
func TestPoisonDoesNotAddToWhatACrashRepeats(t *testing.T) {
	bubble(t, func(t *testing.T, g *scene) {
		const inFlight, records, n = 2, 10, 400
		q := &tampered{Store: g.queue}
		var recorded, most int64
		q.write = func(ctx context.Context, do func() (uint64, error)) (uint64, error) {
			wait(ctx, 2*time.Second)
			most = max(most, g.fake.Counts().Accepted-recorded) // one write at a time
			rev, err := do()
			if cp, _, unread := g.queue.ReadCheckpoint(ctx); unread == nil {
				recorded = int64(cp.Totals.Delivered)
			}
			return rev, err
		}
		g.fake.Latency(20 * time.Millisecond)
		g.poison(400, func(i int) bool { return i%records == 7 })
		g.commit(receipts(0, n, n)...)
		g.start(of(q), func(o *Options) { o.MaxInflight, o.BatchMaxRecords = inFlight, records })
		g.wantSumsIn(10*time.Minute, sums{accepted: n, delivered: n - n/records, died: n / records, dead: n / records})
		if most > inFlight*records {
			t.Errorf("%d records were accepted and in no checkpoint, want %d at most", most, inFlight*records)
		}
	})
}

// CleverTap begins to refuse everything while a batch is searched for poison. What it
// accepted before speaks for a few deaths; those who are refused beside it end that.
func TestRefusingDestinationDuringASearch(t *testing.T) {
	bubble(t, func(t *testing.T, g *scene) {
		const n = 1000
		g.fake.Latency(100 * time.Millisecond)
		g.poison(400, func(i int) bool { return i == 300 || i == 302 })
		g.commit(receipts(0, n, n)...)
		r := g.start()
		next := n
		others := func(most int, until func() bool) {
			for i := 0; i < most && !until(); i++ {
				g.commit(receipts(next, 1, 1<<20)...) // each of a user of its own
				next++
				time.Sleep(time.Second / 5)
			}
		}
		others(100, func() bool { return g.sums().died > 0 })
		g.fake.Always(clevertaptest.Status(400, nil, ""))
		lasts := 600
		if underRace() {
			lasts /= 10
		}
		others(lasts, func() bool { return false })
		if died := g.sums().died; died == 0 || died > 20 {
			t.Errorf("%d dead, 2 are poison", died)
		}
		g.fake.Normal()
		if !become(5*time.Minute, func() bool { return g.sums().queued == 0 }) {
			t.Errorf("five minutes after recovery: %+v", g.sums())
		}
		r.wantMetrics()
	})
}

// An hour of answers that are about the destination, not about the records.
func TestBrokenDestinationKillsNothing(t *testing.T) {
	t.Parallel()
	for name, does := range map[string]clevertaptest.Behaviour{
		"400":  clevertaptest.Status(400, nil, ""),
		"401":  clevertaptest.Status(401, nil, ""),
		"403":  clevertaptest.Status(403, nil, ""),
		"404":  clevertaptest.Status(404, nil, ""),
		"413":  clevertaptest.Status(413, nil, ""),
		"302":  clevertaptest.Status(302, nil, ""),
		"500":  clevertaptest.Status(500, nil, ""),
		"html": clevertaptest.HTML(),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T, g *scene) {
				const n = 2000
				g.fake.Always(does)
				g.commit(receipts(0, n, 500)...)
				r := g.start(of(seldom(g.queue)))
				lasts := time.Hour
				if underRace() {
					lasts /= 6
				}
				time.Sleep(lasts)
				g.wantSums(sums{accepted: n, queued: n})
				if calls, minutes := g.fake.Counts().Calls, int64(lasts/time.Minute); calls < minutes || calls > 4*minutes+20 {
					t.Errorf("%d calls in %d minutes", calls, minutes)
				}
				if s := g.status(); s.Breaker == breakerClosed {
					t.Error("the breaker is closed")
				}
				if lines := g.lines("upload"); lines > 2*61 {
					t.Errorf("%d log lines in an hour", lines)
				}
				g.fake.Normal()
				began := time.Now()
				g.wantSumsIn(10*time.Minute, sums{accepted: n, delivered: n})
				if took := time.Since(began); took > 2*time.Minute {
					t.Errorf("delivered %v after the recovery", took)
				}
				g.wantOnce(n)
				r.wantMetrics()
			})
		})
	}
}

// Whatever holds this record is answered in a way that nobody understands.
func TestUnclearRecordDies(t *testing.T) {
	bubble(t, func(t *testing.T, g *scene) {
		obscure := receipt(17, 100).Record
		r := g.start(of(seldom(g.queue)), through(uploaderFunc(func(ctx context.Context, records [][]byte) clevertap.Result {
			if slices.ContainsFunc(records, func(r []byte) bool { return string(r) == string(obscure) }) {
				return clevertap.Result{Kind: clevertap.Unclear, Status: 200, Err: errors.New("no JSON")}
			}
			return g.uploader.Upload(ctx, records)
		})))
		g.commit(receipts(0, 100, 100)...)
		g.wantSumsIn(time.Hour, sums{accepted: 100, delivered: 99, died: 1, dead: 1})
		if l := g.letters()[0]; l.Reason != store.ReasonUnclear || l.Origin.Index != 17 {
			t.Errorf("got letter %+v", l)
		}
		g.wantOnce(100, 17)
		r.wantMetrics()
	})
}

func TestCallOfUnknownOutcomeGoesAgain(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		does  clevertaptest.Behaviour
		taken bool
	}{
		"hang":               {clevertaptest.Hang(), false},
		"hang after taking":  {clevertaptest.Hang().Taking(), true},
		"reset before body":  {clevertaptest.ResetBeforeBody(), false},
		"reset after body":   {clevertaptest.ResetAfterBody(), true},
		"closed after body":  {clevertaptest.CloseAfterBody(), true},
		"answer cut off":     {clevertaptest.CutOff(), true},
		"cut JSON":           {clevertaptest.CutJSON(), true},
		"wrong counts":       {clevertaptest.WrongCounts(1), true},
		"500 after taking":   {clevertaptest.Status(500, nil, "").Taking(), true},
		"fail naming nobody": {clevertaptest.FailNamingNothing(), false},
		"a byte a second":    {clevertaptest.SlowBytes(time.Second), true},
		"reset mid answer":   {clevertaptest.ResetMidAnswer(), true},
		"a gigabyte":         {clevertaptest.Huge(1 << 30), false},
		"a gigabyte, packed": {clevertaptest.HugeGzip(1 << 30), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T, g *scene) {
				g.fake.Script(c.does)
				g.commit(receipts(0, 100, 10)...) // the first call carries 0 to 9
				r := g.start()
				g.wantSumsIn(5*time.Minute, sums{accepted: 100, delivered: 100})
				want := 0
				if c.taken {
					want = 10
				}
				if got := g.duplicates(); got != want {
					t.Errorf("%d duplicates, want %d", got, want)
				}
				calls := g.fake.Calls()
				if c.does.String() != "reset_before_body" && !sameRecords(calls[0].Records, calls[1].Records) {
					t.Error("the second call was another than the first")
				}
				r.wantMetrics()
			})
		})
	}
}

func sameRecords(a, b []clevertaptest.Record) bool {
	return slices.EqualFunc(a, b, func(a, b clevertaptest.Record) bool { return string(a.Raw) == string(b.Raw) })
}

// Others use the account, too: CleverTap takes 15 calls, then one, then 15 again.
func TestThrottledCallsFallAndComeBack(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, g *scene) {
		var limit, most atomic.Int32
		var refusals atomic.Int32
		limit.Store(15)
		g.fake.Latency(200 * time.Millisecond)
		g.fake.JudgeCall(func(c clevertaptest.Call) int {
			most.Store(max(most.Load(), int32(c.InFlight)))
			if int32(c.InFlight) > limit.Load() {
				refusals.Add(1)
				return 429
			}
			return 0
		})
		const n = 12_000
		g.commit(receipts(0, n, n)...)
		g.start(of(seldom(g.queue)), func(o *Options) { o.BatchMaxRecords = 3 })
		phase := func(d time.Duration) (int32, int32) {
			most.Store(0)
			refusals.Store(0)
			time.Sleep(d)
			return most.Load(), refusals.Load()
		}
		if most, refusals := phase(5 * time.Second); most != 7 || refusals > 0 {
			t.Errorf("unhindered: %d calls in flight, %d refused", most, refusals)
		}
		limit.Store(1)
		phase(10 * time.Second)
		if most, refusals := phase(time.Minute); most > 2 || refusals > 60 {
			t.Errorf("throttled: %d calls in flight, %d refused in a minute", most, refusals)
		}
		limit.Store(15)
		phase(50 * time.Second)
		if most, refusals := phase(5 * time.Second); most != 7 || refusals > 0 {
			t.Errorf("a minute later: %d calls in flight, %d refused", most, refusals)
		}
		g.wantSumsIn(time.Hour, sums{accepted: n, delivered: n})
		g.wantOnce(n)
	})
}

func TestGracefulRestartRepeatsNothing(t *testing.T) {
	g := setup(t)
	g.fake.Latency(5 * time.Millisecond)
	const n = 20_000
	g.commit(receipts(0, n, n)...)
	for round := int64(1); round <= 4; round++ {
		r := g.start(func(o *Options) { o.BatchMaxRecords = 100 })
		eventually(t, "some more arrive", func() bool { return g.fake.Counts().Accepted >= 3000*round })
		r.stop()
		if cp := g.checkpoint(); cp.Holder != "" || cp.Out != 0 || cp.Totals.Delivered != uint64(g.fake.Counts().Accepted) {
			t.Fatalf("after the stop: %d arrived, checkpoint %+v", g.fake.Counts().Accepted, cp)
		}
	}
	g.start()
	g.wantSums(sums{accepted: n, delivered: n})
	g.wantOnce(n)
	g.wantLimits(7)
}

// The data directory as it is while CleverTap has taken seven batches and answers
// none of them: what a kill leaves.
func TestCrashRepeatsAtMostWhatWasInFlight(t *testing.T) {
	g := setup(t)
	const n, batch = 10_000, 100
	g.fake.Script(clevertaptest.Repeat(10, clevertaptest.Behaviour{})...)
	g.fake.Always(clevertaptest.Hang().Taking())
	g.commit(receipts(0, n, 2000)...)
	r := g.start(func(o *Options) { o.BatchMaxRecords, o.StopWait = batch, time.Millisecond })
	eventually(t, "17 calls", func() bool { return g.fake.Counts().Accepted == 17*batch && g.sums().delivered == 10*batch })
	next := g.crash()
	r.stop()

	g.fake.Normal()
	next.start()
	next.wantSums(sums{accepted: n, delivered: n})
	if got := len(g.arrivals()); got != n {
		t.Errorf("%d of %d arrived", got, n)
	}
	if got := g.duplicates(); got != 7*batch {
		t.Errorf("%d duplicates, want the %d that were in flight", got, 7*batch)
	}
}

// Crash after crash, at any moment: nothing is lost, and each repeats no more than
// what was in flight.
func TestCrashesAtAnyMomentLoseNothing(t *testing.T) {
	g := setup(t)
	const n, batch, crashes = 30_000, 200, 4
	g.fake.Latency(2 * time.Millisecond)
	g.refuse(512, 100, 5000, 25_000)
	g.commit(receipts(0, n, 1000)...)
	few := func(o *Options) { o.BatchMaxRecords = batch }
	for round := range crashes {
		// Frozen between a send and its answer, then copied: nothing of it gets on any more.
		frozen := make(chan struct{})
		var dead atomic.Bool
		q := &tampered{Store: g.queue}
		r := g.start(few, of(q), through(uploaderFunc(func(ctx context.Context, records [][]byte) clevertap.Result {
			if dead.Load() {
				return clevertap.Result{Kind: clevertap.Unreachable, Err: context.Canceled}
			}
			result := g.uploader.Upload(ctx, records)
			if g.fake.Counts().Accepted > int64(5000*(round+1)) {
				<-frozen
			}
			return result
		})))
		eventually(t, "all is frozen", func() bool {
			c := g.fake.Counts()
			return c.Accepted > int64(5000*(round+1)) && c.InFlight == 0 && r.metric("birdtap_uploads_inflight") > 0
		})
		q.set(func() {
			q.write = func(context.Context, func() (uint64, error)) (uint64, error) { <-frozen; return 0, store.ErrConflict }
			q.bury = func([]store.Letter, func() (uint64, error)) (uint64, error) { <-frozen; return 0, store.ErrClosed }
		})
		next := g.crash()
		dead.Store(true)
		r.cancel()
		close(frozen)
		<-r.ended
		g = next
	}
	g.start(few)
	eventually(t, "the queue is empty", func() bool { return g.sums().queued == 0 })
	if got := g.sums(); got.delivered+got.died != n || got.died != 3 || got.dead != 3 {
		t.Errorf("got sums %+v", got)
	}
	if got := len(g.arrivals()); got != n-3 {
		t.Errorf("%d arrived, want %d", got, n-3)
	}
	if got := g.duplicates(); got > crashes*7*batch {
		t.Errorf("%d duplicates, at most %d may be", got, crashes*7*batch)
	}
}

// A crash between storing dead letters and the checkpoint that settles them.
func TestLettersThatOutranTheirCheckpointAreSettled(t *testing.T) {
	g := setup(t)
	q := &tampered{Store: g.queue}
	var buried atomic.Bool
	q.bury = func(_ []store.Letter, do func() (uint64, error)) (uint64, error) {
		seq, err := do()
		buried.Store(true)
		return seq, err
	}
	q.write = func(_ context.Context, do func() (uint64, error)) (uint64, error) {
		if buried.Load() {
			return 0, store.ErrTimeout
		}
		return do()
	}
	g.refuse(512, 3, 7)
	g.commit(receipts(0, 10, 10)...)
	r := g.start(of(q), func(o *Options) { o.StopWait = time.Millisecond })
	eventually(t, "letters are stored", func() bool { return len(g.letters()) == 2 })
	next := g.crash()
	if got := next.sums(); got.died != 0 || got.dead != 2 {
		t.Fatalf("the crash left %+v", got)
	}
	q.set(func() { q.write = nil })
	r.stop()

	next.start()
	next.wantSums(sums{accepted: 10, delivered: 8, died: 2, dead: 2})
	if g.carried(3) != 1 || g.carried(7) != 1 {
		t.Error("a dead record was sent again")
	}
	if cp := next.checkpoint(); cp.DeadSeq != 1 {
		t.Errorf("dead_seq %d, want 1", cp.DeadSeq)
	}
}

func TestDedupWindowSurvivesARestart(t *testing.T) {
	bubble(t, func(t *testing.T, g *scene) {
		r := g.start()
		g.commit(receipts(0, 10, 10)...)
		g.wantSums(sums{accepted: 10, delivered: 10})
		r.stop()
		time.Sleep(time.Minute)
		r = g.start()
		g.commit(receipts(5, 10, 10)...)
		g.wantSums(sums{accepted: 20, delivered: 15, deduplicated: 5})
		r.stop()
		next := g.crash()
		next.start()
		next.commit(receipt(14, 10))
		next.wantSums(sums{accepted: 21, delivered: 15, deduplicated: 6})
		time.Sleep(2*time.Minute + time.Second)
		next.commit(receipt(14, 10))
		next.wantSums(sums{accepted: 22, delivered: 16, deduplicated: 6})
	})
}

// A lost answer to a checkpoint changes nothing, whether or not it was written.
func TestLostAnswersToCheckpoints(t *testing.T) {
	for name, write := range map[string]func(do func() (uint64, error)) (uint64, error){
		"written": func(do func() (uint64, error)) (uint64, error) {
			_, err := do()
			return 0, errors.Join(err, store.ErrTimeout)
		},
		"not written": func(func() (uint64, error)) (uint64, error) { return 0, store.ErrTimeout },
	} {
		for relays, option := range map[string]func(*Options){"embedded": func(*Options) {}, "among others": amongOthers} {
			t.Run(name+", "+relays, func(t *testing.T) {
				bubble(t, func(t *testing.T, g *scene) {
					q := &tampered{Store: g.queue}
					writes := 0
					q.write = func(_ context.Context, do func() (uint64, error)) (uint64, error) {
						if writes++; writes%3 == 0 {
							return write(do)
						}
						return do()
					}
					g.refuse(512, 10, 900)
					r := g.start(of(q), option, func(o *Options) { o.BatchMaxRecords = 50 })
					for i := range 20 {
						g.commit(receipts(50*i, 50, 100)...)
						time.Sleep(300 * time.Millisecond)
					}
					g.wantSumsIn(5*time.Minute, sums{accepted: 1000, delivered: 998, died: 2, dead: 2})
					g.wantOnce(1000, 10, 900)
					r.wantMetrics()
					r.stop()
					if cp := g.checkpoint(); cp.Term != 1 || cp.Holder != "" {
						t.Errorf("term %d, held by %q after the stop", cp.Term, cp.Holder)
					}
				})
			})
		}
	}
}

// While the checkpoint cannot be written nothing new is sent beyond the batches in
// flight, and the log does not fill.
func TestCheckpointThatCannotBeWritten(t *testing.T) {
	bubble(t, func(t *testing.T, g *scene) {
		q := seldom(g.queue)
		broken := atomic.Bool{}
		q.write = func(_ context.Context, do func() (uint64, error)) (uint64, error) {
			if broken.Load() {
				return 0, store.ErrFull
			}
			return do()
		}
		r := g.start(of(q), func(o *Options) { o.BatchMaxRecords = 10 })
		g.commit(receipt(0, 1000))
		g.wantSums(sums{accepted: 1, delivered: 1})
		broken.Store(true)
		g.commit(receipts(1, 999, 1000)...)
		time.Sleep(10 * time.Minute)
		if got := g.fake.Counts().Accepted; got != 1+7*10 {
			t.Errorf("%d records went out, want those of 7 batches", got)
		}
		if got := g.logs.Len(); got > 100 {
			t.Errorf("%d log lines", got)
		}
		if err := r.Health(); err != nil {
			t.Error(err)
		}
		broken.Store(false)
		g.wantSums(sums{accepted: 1000, delivered: 1000})
		g.wantOnce(1000)
	})
}

// In a cluster another relay may take over 5 s after the last checkpoint: no call
// starts later than 4 s after it, though there be receipts and places for them.
func TestNoCallStartsWithoutAFreshLease(t *testing.T) {
	bubble(t, func(t *testing.T, g *scene) {
		q := &tampered{Store: g.queue}
		r := g.start(of(q), amongOthers)
		g.commit(receipt(0, 1000))
		g.wantSums(sums{accepted: 1, delivered: 1})
		if got := r.metric("birdtap_checkpoint_failures_total"); got != 0 {
			t.Errorf("%v writes of the checkpoint failed", got)
		}
		began := time.Now()
		q.set(func() {
			q.write = func(context.Context, func() (uint64, error)) (uint64, error) { return 0, store.ErrTimeout }
		})
		for i := range 6 {
			time.Sleep(time.Second)
			g.commit(receipt(1+i, 1000))
		}
		time.Sleep(10 * time.Second)
		calls := g.fake.Calls()
		if last := calls[len(calls)-1].At.Sub(began); last > sendWindow || last < 2*time.Second {
			t.Errorf("the last call started %v after the last checkpoint", last)
		}
		if r.metric("birdtap_checkpoint_failures_total") == 0 {
			t.Error("no write of the checkpoint counts as failed")
		}
		q.set(func() { q.write = nil })
		g.wantSums(sums{accepted: 7, delivered: 7})
		g.wantOnce(7)
	})
}

// A process that was stopped between the decision to send and the send looks at its
// lease again.
func TestLeaseIsLookedAtAgainBeforeTheFirstByte(t *testing.T) {
	tm := termAt(store.Checkpoint{Floor: 1})
	tm.opts.Uploader = uploaderFunc(func(context.Context, [][]byte) clevertap.Result {
		t.Error("sent without a lease")
		return clevertap.Result{}
	})
	tm.sendUntil.Store(-1)
	tm.take(frameWith(1, receipt(0, 1)))
	now := time.Now()
	items, ordered := tm.ready.take(now)
	u := &upload{flight: newFlight(len(items), ordered, &tm.evidence), items: items, slot: true}
	tm.call(t.Context(), u, now)
	event := <-tm.events
	event()
	if tm.calls != 0 || len(tm.again) != 1 || items[0].tries != 0 {
		t.Errorf("%d calls, %d batches to go again, %d tries", tm.calls, len(tm.again), items[0].tries)
	}
}

// Another relay has written the checkpoint: what still comes back to this one is
// neither settled nor stored as a letter.
func TestRefusedCheckpointEndsTheTerm(t *testing.T) {
	bubble(t, func(t *testing.T, g *scene) {
		q := &tampered{Store: g.queue}
		var letters atomic.Int32
		q.bury = func(l []store.Letter, do func() (uint64, error)) (uint64, error) {
			letters.Add(int32(len(l)))
			return do()
		}
		g.refuse(512, 3)
		g.fake.Always(clevertaptest.Delay(10 * time.Second))
		r := g.start(of(q), amongOthers)
		g.commit(receipts(0, 10, 10)...)
		eventually(t, "a call is out", func() bool { return g.fake.Counts().InFlight == 1 })

		cp, rev, err := g.queue.ReadCheckpoint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		cp.Term, cp.Holder, cp.Write = cp.Term+1, "another", 1
		if _, err := g.queue.WriteCheckpoint(t.Context(), cp, rev); err != nil {
			t.Fatal(err)
		}
		time.Sleep(4 * time.Second)
		if r.metric("birdtap_relay_active") != 0 {
			t.Error("still active although another relay has written")
		}
		if now := g.checkpoint(); now.Holder != "another" || now.Totals != cp.Totals || letters.Load() != 0 {
			t.Errorf("after the end of the term: %d letters, checkpoint %+v", letters.Load(), now)
		}
		g.fake.Normal()
		g.wantSums(sums{accepted: 10, delivered: 9, died: 1, dead: 1}) // the other one is silent for 5 s
		if cp := g.checkpoint(); cp.Term != 3 {
			t.Errorf("term %d, want 3", cp.Term)
		}
	})
}

// newerCheckpoint is how a checkpoint reads that a later version has written.
func newerCheckpoint(do func() (store.Checkpoint, uint64, error)) (store.Checkpoint, uint64, error) {
	_, rev, err := do()
	return store.Checkpoint{}, rev + 1, errors.Join(store.ErrNewer, err)
}

// After a step back to an older birdtap its relay stands by, says what helps, and leaves
// the checkpoint alone.
func TestRelayStandsByBeforeANewerCheckpoint(t *testing.T) {
	bubble(t, func(t *testing.T, g *scene) {
		q := &tampered{Store: g.queue, read: newerCheckpoint}
		q.write = func(context.Context, func() (uint64, error)) (uint64, error) {
			t.Error("the checkpoint was written")
			return 0, store.ErrConflict
		}
		g.commit(receipts(0, 10, 10)...)
		r := g.start(of(q))
		time.Sleep(3 * sayEvery / 2)
		const line = "a newer birdtap has written the checkpoint: nothing is delivered from here until that version runs here; what waits is safe"
		if n := g.lines(line); n != 2 {
			t.Errorf("%d lines say why nothing is delivered, want one a minute", n)
		}
		if err := r.Health(); err != nil {
			t.Errorf("standing by: %v", err)
		}
		g.wantOnce(0)
		q.set(func() { q.read, q.write = nil, nil })
		g.wantSums(sums{accepted: 10, delivered: 10})
		g.wantOnce(10)
	})
}

// A newer birdtap has taken over, and the refusal of the next write got lost: what then
// stands there ends the term, although it cannot be read.
func TestNewerCheckpointEndsTheTerm(t *testing.T) {
	bubble(t, func(t *testing.T, g *scene) {
		q := &tampered{Store: g.queue}
		r := g.start(of(q), amongOthers)
		eventually(t, "it is active", func() bool { return r.metric("birdtap_relay_active") == 1 })
		q.set(func() {
			q.read = newerCheckpoint
			q.write = func(context.Context, func() (uint64, error)) (uint64, error) { return 0, store.ErrTimeout }
		})
		time.Sleep(heartbeat + 2*maxRest) // a turn may pass until the write, and one until the look back
		if r.metric("birdtap_relay_active") != 0 {
			t.Error("still active although a newer relay has written")
		}
	})
}

// A stop that comes in the middle of taking over leaves nobody's name behind.
func TestStopWhileTakingOver(t *testing.T) {
	bubble(t, func(t *testing.T, g *scene) {
		q := &tampered{Store: g.queue}
		begun := make(chan struct{})
		q.write = func(ctx context.Context, do func() (uint64, error)) (uint64, error) {
			q.set(func() { q.write = nil })
			rev, err := do()
			close(begun)
			wait(ctx, 500*time.Millisecond)
			return rev, errors.Join(err, ctx.Err())
		}
		r := g.start(of(q), amongOthers)
		<-begun
		r.stop()
		if cp := g.checkpoint(); cp.Term != 1 || cp.Holder != "" {
			t.Errorf("term %d is held by %q, which has stopped", cp.Term, cp.Holder)
		}
	})
}

// The queue cannot be reached for an hour: one line a minute of every kind says so.
func TestUnreachableQueueDoesNotFillTheLog(t *testing.T) {
	bubble(t, func(t *testing.T, g *scene) {
		q := &tampered{Store: g.queue}
		var broken atomic.Bool
		q.paused = func(_ context.Context, do func() (bool, error)) (bool, error) {
			if broken.Load() {
				return false, store.ErrTimeout
			}
			return do()
		}
		q.read = func(do func() (store.Checkpoint, uint64, error)) (store.Checkpoint, uint64, error) {
			if broken.Load() {
				return store.Checkpoint{}, 0, store.ErrTimeout
			}
			return do()
		}
		q.scan = func() error {
			if broken.Load() {
				return store.ErrTimeout
			}
			return nil
		}
		active, standby := g.start(of(q), amongOthers), g.start(of(q), amongOthers)
		time.Sleep(10 * time.Second)
		before := g.logs.Len()
		broken.Store(true)
		time.Sleep(time.Hour)
		if got := g.logs.Len() - before; got < 60 || got > 5*61 {
			t.Errorf("%d log lines in an hour", got)
		}
		broken.Store(false)
		g.commit(receipts(0, 10, 10)...)
		g.wantSums(sums{accepted: 10, delivered: 10})
		if active.Health() != nil || standby.Health() != nil {
			t.Error("not healthy")
		}
	})
}

func TestOneRelayIsActiveAndAGracefulStopHandsOver(t *testing.T) {
	bubble(t, func(t *testing.T, g *scene) {
		g.fake.Latency(100 * time.Millisecond)
		g.commit(receipts(0, 3000, 300)...)
		small := func(o *Options) { o.BatchMaxRecords = 20 }
		first := g.start(amongOthers, small)
		eventually(t, "the first is active", func() bool { return first.metric("birdtap_relay_active") == 1 })
		second := g.start(amongOthers, small)
		time.Sleep(3 * time.Second)
		if second.metric("birdtap_relay_active") != 0 || first.metric("birdtap_relay_active") != 1 {
			t.Fatal("it is not the first alone that is active")
		}
		first.stop()
		stopped := time.Now()
		eventually(t, "the second is active", func() bool { return second.metric("birdtap_relay_active") == 1 })
		if took := time.Since(stopped); took > time.Second {
			t.Errorf("the hand-over took %v", took)
		}
		g.wantSumsIn(5*time.Minute, sums{accepted: 3000, delivered: 3000})
		g.wantOnce(3000)
		g.wantLimits(7)
		if second.Health() != nil || first.Health() != nil {
			t.Error("not healthy")
		}
	})
}

// One relay stops in the middle of everything, and wakes when the other has long
// taken over: what it had begun then arrives late.
func TestFrozenRelayIsTakenOver(t *testing.T) {
	bubble(t, func(t *testing.T, g *scene) {
		g.fake.Latency(300 * time.Millisecond)
		const n, batch, inflight = 4000, 50, 10
		g.commit(receipts(0, n, 500)...)
		small := func(o *Options) { o.BatchMaxRecords, o.MaxInflight = batch, inflight }

		var frozen atomic.Bool
		thaw := make(chan struct{})
		stand := func() {
			if frozen.Load() {
				<-thaw
			}
		}
		q := &tampered{Store: g.queue}
		q.write = func(_ context.Context, do func() (uint64, error)) (uint64, error) { stand(); return do() }
		q.bury = func(_ []store.Letter, do func() (uint64, error)) (uint64, error) { stand(); return do() }
		q.read = func(do func() (store.Checkpoint, uint64, error)) (store.Checkpoint, uint64, error) {
			stand()
			return do()
		}
		q.paused = func(_ context.Context, do func() (bool, error)) (bool, error) { stand(); return do() }
		first := g.start(amongOthers, small, of(q), through(uploaderFunc(func(ctx context.Context, records [][]byte) clevertap.Result {
			stand()
			result := g.uploader.Upload(context.WithoutCancel(ctx), records)
			stand()
			return result
		})))
		eventually(t, "the first is at work", func() bool { return g.sums().delivered > 500 })
		second := g.start(amongOthers, small)
		time.Sleep(time.Second)

		frozen.Store(true)
		froze := time.Now()
		eventually(t, "the second is active", func() bool { return second.metric("birdtap_relay_active") == 1 })
		if took := time.Since(froze); took < 3*time.Second || took > 7*time.Second {
			t.Errorf("the take-over took %v", took)
		}
		g.wantSumsIn(5*time.Minute, sums{accepted: n, delivered: n})
		if got := g.duplicates(); got > inflight*batch {
			t.Errorf("%d duplicates, at most %d were in flight", got, inflight*batch)
		}
		for _, c := range g.fake.Calls() {
			if c.At.Sub(froze) > 3*time.Second && c.InFlight > accountCalls-inflight {
				t.Errorf("%d calls in flight while %d of the frozen one may be", c.InFlight, inflight)
			}
		}
		frozen.Store(false)
		close(thaw)
		time.Sleep(10 * time.Second)
		if got := g.sums(); got != (sums{accepted: n, delivered: n}) {
			t.Errorf("when it woke: %+v", got)
		}
		if first.metric("birdtap_relay_active") != 0 || g.checkpoint().Term != 2 {
			t.Error("the one that woke is active")
		}
		if got := g.duplicates(); got > 2*inflight*batch {
			t.Errorf("%d duplicates, at most %d may be", got, 2*inflight*batch)
		}
		g.wantLimits(15)
	})
}

func TestNothingLeavesWhilePaused(t *testing.T) {
	bubble(t, func(t *testing.T, g *scene) {
		pause := func(paused bool) {
			if err := g.queue.SetPaused(t.Context(), paused); err != nil {
				t.Fatal(err)
			}
		}
		pause(true)
		r := g.start()
		g.commit(receipts(0, 10, 10)...)
		time.Sleep(time.Minute)
		r.stop()
		r = g.start()
		time.Sleep(time.Minute)
		if calls := g.fake.Counts().Calls; calls != 0 {
			t.Fatalf("%d calls while paused", calls)
		}
		if got := r.metric("birdtap_queue_depth"); got != 10 {
			t.Errorf("depth %v, want 10", got)
		}
		if got, limit := r.metric("birdtap_dead_bytes"), r.metric("birdtap_dead_max_bytes"); got != 0 || limit <= 0 || r.metric("birdtap_queue_max_bytes") <= 0 {
			t.Errorf("%v of %v bytes of dead letters, %v of the queue", got, limit, r.metric("birdtap_queue_max_bytes"))
		}
		pause(false)
		time.Sleep(time.Second)
		g.wantSums(sums{accepted: 10, delivered: 10})
		pause(true)
		time.Sleep(time.Second)
		g.commit(receipts(10, 10, 10)...)
		time.Sleep(time.Minute)
		if got := g.sums(); got != (sums{accepted: 20, delivered: 10, queued: 10}) {
			t.Errorf("paused again: %+v", got)
		}
		pause(false)
		g.wantSums(sums{accepted: 20, delivered: 20})
		g.wantOnce(20)
	})
}

// The operator's word takes long to be read: nothing leaves until it is known.
func TestNothingLeavesBeforeTheOperatorsWordIsKnown(t *testing.T) {
	bubble(t, func(t *testing.T, g *scene) {
		q := &tampered{Store: g.queue}
		q.paused = func(_ context.Context, do func() (bool, error)) (bool, error) {
			time.Sleep(10 * time.Second)
			return do()
		}
		g.commit(receipts(0, 10, 10)...)
		g.start(of(q))
		time.Sleep(9 * time.Second)
		if calls := g.fake.Counts().Calls; calls != 0 {
			t.Errorf("%d calls", calls)
		}
		g.wantSums(sums{accepted: 10, delivered: 10})
	})
}

func TestFullDeadLettersStopUploadingAndDropNothing(t *testing.T) {
	bubble(t, func(t *testing.T, g *scene) {
		const n = 1000
		g.fake.Judge(func(clevertaptest.Record) int { return 512 })
		r := g.start(func(o *Options) { o.BatchMaxRecords, o.MaxInflight = 50, 1 })
		g.commit(receipts(0, n, n)...)
		time.Sleep(time.Minute)
		before := g.sums()
		if before.queued == 0 || before.died != before.dead || before.died == 0 {
			t.Fatalf("full: %+v", before)
		}
		calls := g.fake.Counts().Calls
		time.Sleep(time.Minute)
		if got := g.fake.Counts().Calls; got != calls {
			t.Errorf("%d calls while the dead letters were full", got-calls)
		}
		if got := g.lines("dead letters cannot be stored: uploading stops until they can"); got != 1 {
			t.Errorf("said %d times", got)
		}
		for purged := uint64(0); purged < n; {
			var done int
			eventually(t, "there are letters to purge", func() bool {
				var err error
				if done, err = g.queue.Purge(t.Context(), func(*store.Letter) bool { return true }, 0); err != nil {
					t.Fatal(err)
				}
				return done > 0
			})
			purged += uint64(done)
		}
		g.wantSums(sums{accepted: n, died: n})
		if got := g.fake.Counts().Refused; got != n {
			t.Errorf("%d refusals, want each record once", got)
		}
		r.wantMetrics()
	}, func(o *store.Options) { o.DeadMaxBytes = 32 << 10 })
}

// direct is a connection to the queue's server beside the store, for what no store
// would do.
func (g *scene) direct() jetstream.JetStream {
	g.t.Helper()
	url, err := os.ReadFile(filepath.Join(g.dir, "nats.url"))
	if err != nil {
		g.t.Fatal(err)
	}
	nc, err := nats.Connect(strings.TrimSpace(string(url)), nats.CustomInboxPrefix("_INBOX.BIRDTAP"))
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		g.t.Fatal(err)
	}
	return js
}

func listening(o *store.Options) { o.InProcess = false }

// commitNewer stores a frame as a birdtap to come may write it.
func (g *scene) commitNewer() {
	g.t.Helper()
	js := g.direct()
	stream, err := js.Stream(g.t.Context(), "BIRDTAP_RECEIPTS")
	if err != nil {
		g.t.Fatal(err)
	}
	first, err := stream.GetMsg(g.t.Context(), 1)
	if err != nil {
		g.t.Fatal(err)
	}
	data := bytes.Clone(first.Data)
	data[3]++ // the version
	binary.LittleEndian.PutUint32(data[len(data)-4:], crc32.Checksum(data[:len(data)-4], crc32.MakeTable(crc32.Castagnoli)))
	if _, err := js.PublishMsg(g.t.Context(), &nats.Msg{Subject: first.Subject, Header: first.Header, Data: data}); err != nil {
		g.t.Fatal(err)
	}
}

const saysNewer = "a newer birdtap has written this frame"

// After a way back from an upgrade, what the newer version has stored is not damaged: it
// waits, in its order, and is said.
func TestFrameOfANewerVersionWaits(t *testing.T) {
	g := setup(t, listening)
	g.commit(receipts(0, 10, 10)...)
	g.commitNewer()
	g.commit(receipts(10, 10, 10)...)
	g.start()
	eventually(t, "the newer frame is said", func() bool { return g.logs.FilterMessageSnippet(saysNewer).Len() > 0 })
	g.wantSums(sums{accepted: 30, delivered: 10, queued: 20})
	if letters := g.letters(); len(letters) > 0 {
		t.Errorf("%d dead letters", len(letters))
	}
}

// Told to stop with a call in flight, as by the upgrade that brings the right version,
// the relay must not take the frame for damaged after all.
func TestFrameOfANewerVersionOutlivesAStop(t *testing.T) {
	g := setup(t, listening)
	g.fake.Latency(500 * time.Millisecond)
	g.commit(receipts(0, 10, 10)...)
	g.commitNewer()
	r := g.start()
	eventually(t, "the newer frame is said", func() bool { return g.logs.FilterMessageSnippet(saysNewer).Len() > 0 })
	eventually(t, "a call is in flight", func() bool { return r.metric("birdtap_uploads_inflight") > 0 })
	r.stop()
	if letters, floor := g.letters(), g.checkpoint().Floor; len(letters) > 0 || floor != 2 {
		t.Errorf("%d dead letters, floor %d, want none and 2", len(letters), floor)
	}
}

func TestMissingFrameIsAlarmedAndPassed(t *testing.T) {
	g := setup(t, listening)
	r := g.start()
	for i := range 5 {
		g.commit(receipts(10*i, 10, 10)...)
	}
	g.wantSums(sums{accepted: 50, delivered: 50})
	r.stop()
	for i := 5; i < 10; i++ {
		g.commit(receipts(10*i, 10, 10)...)
	}
	stream, err := g.direct().Stream(t.Context(), "BIRDTAP_RECEIPTS")
	if err != nil {
		t.Fatal(err)
	}
	for _, seq := range []uint64{6, 8, 9} {
		if err := stream.DeleteMsg(t.Context(), seq); err != nil {
			t.Fatal(err)
		}
	}
	r = g.start()
	g.wantSums(sums{accepted: 70, delivered: 70})
	if cp := g.checkpoint(); cp.Floor != 11 {
		t.Errorf("floor %d, want 11", cp.Floor)
	}
	if got := r.metric("birdtap_frames_missing_total"); got != 3 {
		t.Errorf("%v frames missing, want 3", got)
	}
	if got := g.lines("frames are missing from the queue: its files were damaged, or someone deleted them"); got != 2 {
		t.Errorf("said %d times, want 2", got)
	}
	if !become(5*time.Second, func() bool { return r.metric("birdtap_queue_depth") == 0 }) {
		t.Errorf("depth %v", r.metric("birdtap_queue_depth"))
	}
}

// What does not decode is one dead letter, whatever its header says; nothing else is
// held up, and no figure drifts.
func TestFrameThatDoesNotDecodeGoesToTheDeadLettersWhole(t *testing.T) {
	g := setup(t, listening)
	js := g.direct()
	garbage := []byte("BTF\x01 this was a frame once, of user-7")
	publish := func(header nats.Header) {
		if _, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: "BIRDTAP.receipts", Header: header, Data: garbage}); err != nil {
			t.Fatal(err)
		}
	}
	g.commit(receipts(0, 10, 10)...)
	publish(nil)
	publish(nats.Header{"Birdtap-Receipts": []string{"1000"}})
	g.commit(receipts(10, 10, 10)...)
	r := g.start()
	g.wantSums(sums{accepted: 22, delivered: 20, died: 2, dead: 2})
	for _, l := range g.letters() {
		if l.Reason != store.ReasonCorrupt || string(l.Receipt.Record) != string(garbage) || l.Origin.Index != 0 {
			t.Errorf("got letter %+v", l)
		}
	}
	g.wantOnce(20)
	r.wantMetrics()
}

// A record that waits for an hour must not keep what comes behind it in memory.
func TestSettledFramesBehindAWaitingOneAreForgotten(t *testing.T) {
	tm := termAt(store.Checkpoint{Floor: 1})
	for seq := uint64(1); seq <= 3000; seq++ {
		tm.take(store.Frame{Seq: seq, Receipts: oneCampaign(receipts(1000*int(seq), 10, 1<<30))})
		items := tm.frames[len(tm.frames)-1].items
		for i := range items {
			if seq > 1 || i > 0 {
				tm.settle(&items[i], delivered, nil)
			}
		}
	}
	if tm.oldest(); len(tm.frames) > 100 {
		t.Errorf("%d frames held, one of them waits", len(tm.frames))
	}
	if tm.held != 1 || len(tm.settled.Whole) != 1 || tm.floor != 1 {
		t.Errorf("held %d, floor %d, settled %+v", tm.held, tm.floor, tm.settled)
	}
}

// When thousands of frames wait for one record each, the oldest record goes dead; no
// more of them than it takes.
func TestCheckpointIsBounded(t *testing.T) {
	tm := termAt(store.Checkpoint{Floor: 1})
	const frames, most = 2500, maxSettledBytes / partialBytes
	now := time.Now()
	for seq := uint64(1); seq <= frames; seq++ {
		tm.take(store.Frame{Seq: seq, Receipts: oneCampaign(receipts(2*int(seq), 2, 1<<30))})
		items := tm.frames[len(tm.frames)-1].items
		tm.settle(&items[1], delivered, nil)
		items[0].aside = now.Add(time.Duration(seq) * time.Millisecond)
		tm.ready.stepAside(&items[0], now.Add(time.Minute))
	}
	for range 5 {
		tm.crowded()
	}
	if got, want := len(tm.letters), frames-most; got < want || got > want+1 {
		t.Fatalf("%d records gave up their place, %d had to", got, want)
	}
	for i, l := range tm.letters {
		if l.item.frame.seq != uint64(i)+1 || l.reason != reason555 {
			t.Fatalf("letter %d is of frame %d, reason %s", i, l.item.frame.seq, l.reason)
		}
	}
	if tm.budget.try(1) {
		t.Error("the reader may read on")
	}
	tm.buried(tm.letters, 1, nil)
	tm.crowded()
	if !tm.budget.try(1) {
		t.Error("the reader may not read on")
	}
	if data, err := json.Marshal(tm.snapshot()); err != nil || len(data) > 700<<10 {
		t.Errorf("a checkpoint of %d bytes, %v", len(data), err)
	}
}

// What the dedup window before the oldest waiting receipt may ask for stays through
// a restart, although it is older than what is kept.
func TestTrimmingKeepsTheDedupWindowThroughARestart(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, g *scene) {
		r := g.start(of(seldom(g.queue)))
		g.commit(receipts(0, 10, 10)...)
		g.wantSums(sums{accepted: 10, delivered: 10})
		r.stop()
		time.Sleep(90 * time.Second)
		g.commit(receipt(5, 10)) // a copy, within the window
		time.Sleep(2 * time.Hour)
		q := seldom(g.queue)
		q.recall = func() { time.Sleep(10 * time.Second) } // the survey looks before
		g.start(of(q))
		g.wantSums(sums{accepted: 11, delivered: 10, deduplicated: 1})
		g.wantOnce(10)
	}, func(o *store.Options) { o.KeepDelivered = 30 * time.Minute })
}

// A million receipts wait while CleverTap hangs: what the relay holds stays within
// its budget, and the depth is known.
func TestMemoryIsBoundedWhateverWaits(t *testing.T) {
	if underRace() {
		t.Skip("what the race detector keeps is not birdtap's; make test looks")
	}
	n := 1_000_000
	if testing.Short() {
		n = 100_000
	}
	g := setup(t)
	for i := 0; i < n; i += 1000 {
		g.commit(receipts(i, 1000, n)...)
	}
	before := heapInUse()
	r := g.start(through(uploaderFunc(func(ctx context.Context, _ [][]byte) clevertap.Result {
		<-ctx.Done()
		return clevertap.Result{Kind: clevertap.Unreachable, Err: ctx.Err()}
	})), func(o *Options) { o.StopWait = time.Millisecond })
	eventually(t, "the depth is known", func() bool { return r.metric("birdtap_queue_depth") == float64(n) })
	if grown := heapInUse() - before; grown > 3*heldBytes {
		t.Errorf("the heap has grown by %d MiB, the budget is %d", grown>>20, heldBytes>>20)
	}
}

func TestRunLeavesNothingBehind(t *testing.T) {
	g := setup(t)
	before := goleak.IgnoreCurrent()
	g.commit(receipts(0, 1000, 100)...)
	r := g.start(func(o *Options) { o.StopWait = time.Millisecond })
	g.wantSums(sums{accepted: 1000, delivered: 1000})
	g.fake.Always(clevertaptest.Hang())
	g.commit(receipts(1000, 1000, 100)...)
	eventually(t, "calls hang", func() bool { return g.fake.Counts().InFlight > 0 })
	r.stop()
	g.fake.Stop()
	g.uploader.Close()
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
}

func TestMetricsAreThereFromTheStart(t *testing.T) {
	registry := prometheus.NewRegistry()
	New(Options{Registerer: registry})
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, f := range families {
		got[f.GetName()] = len(f.GetMetric())
	}
	for name, labels := range map[string]int{
		"birdtap_receipts_delivered_total":    1,
		"birdtap_receipts_deduplicated_total": 1,
		"birdtap_receipts_replayed_total":     1,
		"birdtap_receipts_dead_total":         len(knownReasons),
		"birdtap_queue_depth":                 1,
		"birdtap_queue_oldest_seconds":        1,
		"birdtap_queue_bytes":                 1,
		"birdtap_queue_max_bytes":             1,
		"birdtap_dead_bytes":                  1,
		"birdtap_dead_max_bytes":              1,
		"birdtap_checkpoint_failures_total":   1,
		"birdtap_upload_seconds":              9,
		"birdtap_upload_batch_records":        1,
		"birdtap_uploads_inflight":            1,
		"birdtap_breaker_open":                1,
	} {
		if got[name] != labels {
			t.Errorf("%s has %d label values at the start, want %d", name, got[name], labels)
		}
	}
}

// A record that waits after a 555, and those of its user behind it, keep the memory
// of themselves and not of the thousand others that came with them.
func TestWaitingRecordsDoNotKeepTheirFrames(t *testing.T) {
	tm := termAt(store.Checkpoint{Floor: 1})
	now := time.Now()
	before := heapInUse()
	const frames = 200
	for seq := uint64(1); seq <= frames; seq++ {
		list := oneCampaign(receipts(1000*int(seq), 1000, 1<<30))
		message := make([]byte, 0, 200_000)
		for i := range list {
			at := len(message)
			message = append(message, list[i].Record...)
			list[i].Record = message[at:]
		}
		list[1].User = seq - seq%2 // it parks, behind one of its own frame or of the last
		list[0].User = seq - seq%2
		tm.take(store.Frame{Seq: seq, Receipts: list})
		for batch, _ := tm.ready.take(now); batch != nil; batch, _ = tm.ready.take(now) {
			for _, i := range batch {
				if i.index == 0 {
					tm.aside(i, now)
					continue
				}
				tm.settle(i, delivered, nil)
				tm.ready.release(i)
			}
		}
	}
	if tm.held < 2*frames-1 {
		t.Fatalf("%d receipts held", tm.held)
	}
	if grown := heapInUse() - before; grown > frames*20<<10 {
		t.Errorf("%d KiB for each frame of which two records wait", grown/frames>>10)
	}
	runtime.KeepAlive(tm)
}
