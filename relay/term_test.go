package relay

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/birdtap/birdtap/store"
)

var leaseEpoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func sec(seconds float64) time.Time {
	return leaseEpoch.Add(time.Duration(seconds * float64(time.Second)))
}

func testLease(change func(*leaseOptions)) *lease {
	o := leaseOptions{Self: "me", Cap: 7, CallTimeout: 30 * time.Second}
	if change != nil {
		change(&o)
	}
	return newLease(o)
}

// foreignCheckpoint is a checkpoint of somebody else.
func foreignCheckpoint(change func(*store.Checkpoint)) store.Checkpoint {
	cp := store.Checkpoint{Term: 4, Holder: "other", Write: 9, Limit: 7, Floor: 100, Totals: store.Totals{Delivered: 99}}
	if change != nil {
		change(&cp)
	}
	return cp
}

// mustWrite is a write that there has to be.
func mustWrite(t *testing.T, w leaseWrite, ok bool) leaseWrite {
	t.Helper()
	if !ok {
		t.Fatal("no write")
	}
	return w
}

func takeOverAt(t *testing.T, l *lease, now time.Time) leaseWrite {
	t.Helper()
	w, ok := l.TakeOver(now)
	return mustWrite(t, w, ok)
}

func writeAt(t *testing.T, l *lease, now time.Time) leaseWrite {
	t.Helper()
	w, ok := l.Write(now, store.Checkpoint{})
	return mustWrite(t, w, ok)
}

// holdingLease is a lease that took over revision 10 at 0 s, which is revision 11 now.
func holdingLease(t *testing.T, change func(*leaseOptions), from store.Checkpoint) *lease {
	t.Helper()
	l := testLease(change)
	l.Observe(10, from, sec(-5))
	l.Stored(takeOverAt(t, l, sec(0)).Number, 11)
	if !l.Holding() {
		t.Fatal("not holding")
	}
	return l
}

func releasedCheckpoint() store.Checkpoint {
	return foreignCheckpoint(func(cp *store.Checkpoint) { cp.Holder, cp.Limit = "", 0 })
}

func TestStandbyWaitsForAnUnchangedRevision(t *testing.T) {
	l := testLease(nil)
	if l.MayTakeOver(sec(100)) {
		t.Error("takes over what it never read")
	}
	l.Observe(10, foreignCheckpoint(nil), sec(0))
	l.Observe(10, foreignCheckpoint(nil), sec(4))
	if l.MayTakeOver(sec(4.9)) {
		t.Error("takes over after 4.9 s")
	}
	l.Observe(12, foreignCheckpoint(nil), sec(4.95))
	if l.MayTakeOver(sec(5)) || l.MayTakeOver(sec(9.9)) {
		t.Error("a new revision does not begin the wait anew")
	}
	if !l.MayTakeOver(sec(9.95)) {
		t.Error("does not take over after 5 s")
	}
}

func TestStandbyTakesOverAtOnce(t *testing.T) {
	for name, c := range map[string]struct {
		rev      uint64
		cp       store.Checkpoint
		embedded bool
		want     bool
	}{
		"a holder":            {10, foreignCheckpoint(nil), false, false},
		"a holder, embedded":  {10, foreignCheckpoint(nil), true, true},
		"given back":          {10, releasedCheckpoint(), false, true},
		"no checkpoint ever":  {0, store.Checkpoint{}, false, true},
		"first run, embedded": {0, store.Checkpoint{}, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			l := testLease(func(o *leaseOptions) { o.Embedded = c.embedded })
			l.Observe(c.rev, c.cp, sec(0))
			if got := l.MayTakeOver(sec(0)); got != c.want {
				t.Errorf("got %t, want %t", got, c.want)
			}
		})
	}
}

func TestTakeOverKeepsWhatIsSettled(t *testing.T) {
	l := testLease(nil)
	l.Observe(10, foreignCheckpoint(nil), sec(0))
	w := takeOverAt(t, l, sec(5))
	cp := w.Checkpoint
	if w.Replaces != 10 || cp.Term != 5 || cp.Holder != "me" || cp.Write != w.Number {
		t.Errorf("got %+v", w)
	}
	if cp.Floor != 100 || cp.Totals.Delivered != 99 {
		t.Errorf("receipts forgotten: %+v", cp)
	}
	if l.Holding() || l.Term() != 0 || l.Limit() != 0 || l.MaySend(sec(5)) {
		t.Error("holds before the write is stored")
	}
	l.Stored(w.Number, 11)
	if l.Term() != 5 || l.Confirmed() != w.Number || !l.MaySend(sec(5.5)) {
		t.Error("does not hold what was stored")
	}
}

func TestRefusedTakeOverWaitsAnew(t *testing.T) {
	l := testLease(nil)
	l.Observe(10, foreignCheckpoint(nil), sec(0))
	l.Refused(takeOverAt(t, l, sec(5)).Number)
	if l.MayTakeOver(sec(50)) {
		t.Error("tries again without a read")
	}
	l.Observe(10, foreignCheckpoint(nil), sec(50)) // an old read
	if l.MayTakeOver(sec(54)) {
		t.Error("did not wait anew")
	}
}

func TestCallsStartWithinTheSendWindow(t *testing.T) {
	l := holdingLease(t, nil, foreignCheckpoint(nil))
	if !l.MaySend(sec(4)) || l.MaySend(sec(4.001)) {
		t.Error("the window is not 4 s from the begin of the take-over")
	}
	w := writeAt(t, l, sec(3))
	if l.MaySend(sec(4.1)) {
		t.Error("a write without answer opens the window")
	}
	l.Stored(w.Number, 12)
	if !l.MaySend(sec(7)) || l.MaySend(sec(7.1)) {
		t.Error("the window is not 4 s from the begin of the write")
	}
	if got := l.SendUntil(sec(6)); !got.Equal(sec(7)) {
		t.Errorf("may send until %v", got)
	}
	if got := l.SendUntil(sec(8)); !got.Before(sec(8)) {
		t.Errorf("may send until %v", got)
	}
}

func TestEmbeddedSendsAsLongAsItHolds(t *testing.T) {
	l := holdingLease(t, func(o *leaseOptions) { o.Embedded = true }, releasedCheckpoint())
	if !l.MaySend(sec(3600)) || l.SendUntil(sec(3600)).Before(sec(3601)) {
		t.Error("the send window applies")
	}
	if l.NeedsWrite(sec(3600)) {
		t.Error("a heartbeat nobody watches")
	}
	l.Refused(writeAt(t, l, sec(3600)).Number)
	if l.MaySend(sec(3600)) {
		t.Error("sends without a term")
	}
}

func TestHeartbeat(t *testing.T) {
	l := holdingLease(t, nil, releasedCheckpoint())
	if l.NeedsWrite(sec(1.4)) || !l.NeedsWrite(sec(1.5)) {
		t.Error("a write is not due after 1.5 s")
	}
	w := writeAt(t, l, sec(1.5))
	if l.NeedsWrite(sec(3)) {
		t.Error("due while one is under way")
	}
	if _, ok := l.Write(sec(3), store.Checkpoint{}); ok {
		t.Error("two writes at a time")
	}
	l.Stored(w.Number, 12)
	if l.NeedsWrite(sec(2.9)) || !l.NeedsWrite(sec(3)) {
		t.Error("a write is not due 1.5 s after the last began")
	}
}

func TestRefusedWriteEndsTheTerm(t *testing.T) {
	l := holdingLease(t, nil, foreignCheckpoint(nil))
	l.Refused(writeAt(t, l, sec(1)).Number)
	if l.Holding() || l.Term() != 0 || l.MaySend(sec(1)) || l.InDoubt() || l.MayTakeOver(sec(60)) {
		t.Error("the term goes on")
	}
	if _, ok := l.Write(sec(1), store.Checkpoint{}); ok {
		t.Error("writes on")
	}
	if _, ok := l.Release(sec(1), 0, store.Checkpoint{}); ok {
		t.Error("gives back what it has not")
	}
}

// lostTwice is a lease with two writes on revision 11 unaccounted for, begun at 1 s
// and at 3 s, and InDoubt.
func lostTwice(t *testing.T) (l *lease, first, second leaseWrite) {
	t.Helper()
	l = holdingLease(t, nil, foreignCheckpoint(nil))
	first = writeAt(t, l, sec(1))
	l.Lost(first.Number)
	if _, ok := l.Write(sec(2), store.Checkpoint{}); ok || !l.InDoubt() {
		t.Fatal("writes before it has read")
	}
	l.Observe(11, stamped(l.held), sec(2.5))
	if !l.NeedsWrite(sec(2.5)) {
		t.Fatal("what was lost is not written again")
	}
	second = writeAt(t, l, sec(3))
	if second.Number == first.Number || second.Replaces != 11 {
		t.Fatalf("got %+v after %+v", second, first)
	}
	l.Lost(second.Number)
	return l, first, second
}

// stamped is a checkpoint with that claim.
func stamped(c claim) store.Checkpoint {
	return store.Checkpoint{Term: c.term, Holder: c.holder, Write: c.number, Limit: c.limit, Out: c.out}
}

func TestWriteWithoutAnswer(t *testing.T) {
	t.Run("is found, and counts from its own begin", func(t *testing.T) {
		l, first, _ := lostTwice(t)
		l.Observe(12, first.Checkpoint, sec(4.5))
		if l.Term() != 5 || l.InDoubt() || l.Confirmed() != first.Number {
			t.Fatal("not taken for ours")
		}
		if !l.MaySend(sec(5)) || l.MaySend(sec(5.1)) {
			t.Error("counts from the read, or from the later write")
		}
		if w := writeAt(t, l, sec(5)); w.Replaces != 12 {
			t.Errorf("goes on with revision %d", w.Replaces)
		}
	})
	t.Run("is the later one", func(t *testing.T) {
		l, _, second := lostTwice(t)
		l.Observe(12, second.Checkpoint, sec(4.5))
		if l.Confirmed() != second.Number || !l.MaySend(sec(7)) {
			t.Error("not taken for ours")
		}
	})
	t.Run("is not there: another term is", func(t *testing.T) {
		l, _, _ := lostTwice(t)
		l.Observe(12, foreignCheckpoint(func(cp *store.Checkpoint) { cp.Term = 6 }), sec(4.5))
		if l.Holding() || l.InDoubt() {
			t.Error("the term goes on")
		}
		if l.MayTakeOver(sec(9.4)) || !l.MayTakeOver(sec(9.5)) {
			t.Error("that read does not begin the standby's wait")
		}
	})
	t.Run("lands before its successor", func(t *testing.T) {
		l, first, _ := lostTwice(t)
		l.Observe(11, stamped(l.held), sec(4.5))
		third := writeAt(t, l, sec(5))
		l.Refused(third.Number)
		if !l.Holding() || !l.InDoubt() {
			t.Fatal("gives the term up without looking")
		}
		l.Observe(12, first.Checkpoint, sec(2.4))
		if l.Term() != 5 || l.Confirmed() != first.Number {
			t.Error("not taken for ours")
		}
		if !l.NeedsWrite(sec(2.4)) {
			t.Error("what the later ones were to settle is not written again")
		}
	})
	t.Run("is answered late", func(t *testing.T) {
		l, first, second := lostTwice(t)
		l.Stored(first.Number, 12)
		l.Refused(second.Number)
		if l.Term() != 5 || l.InDoubt() || l.Confirmed() != first.Number {
			t.Error("late answers are not understood")
		}
	})
	t.Run("is refused late, and so is the other", func(t *testing.T) {
		l, first, second := lostTwice(t)
		l.Refused(first.Number)
		if !l.Holding() || !l.InDoubt() {
			t.Fatal("gives the term up for half an answer")
		}
		l.Refused(second.Number)
		if l.Holding() {
			t.Error("the term goes on")
		}
	})
	t.Run("was the take-over", func(t *testing.T) {
		l := testLease(nil)
		l.Observe(10, foreignCheckpoint(nil), sec(0))
		w := takeOverAt(t, l, sec(5))
		l.Lost(w.Number)
		if l.MayTakeOver(sec(6)) || l.Holding() || !l.InDoubt() {
			t.Fatal("goes on before it has read")
		}
		l.Observe(11, w.Checkpoint, sec(20))
		if l.Term() != 5 || l.MaySend(sec(20)) || !l.NeedsWrite(sec(20)) {
			t.Error("the term does not count from the begin of the take-over")
		}
	})
	t.Run("was a take-over of the same number by somebody else", func(t *testing.T) {
		l := testLease(nil)
		l.Observe(10, foreignCheckpoint(nil), sec(0))
		w := takeOverAt(t, l, sec(5))
		l.Lost(w.Number)
		theirs := w.Checkpoint
		theirs.Holder = "third"
		l.Observe(11, theirs, sec(6))
		if l.Holding() {
			t.Error("takes it for its own")
		}
	})
}

func TestReadsNobodyAskedFor(t *testing.T) {
	l := holdingLease(t, nil, foreignCheckpoint(nil))
	l.Observe(10, foreignCheckpoint(nil), sec(1))
	if !l.Holding() {
		t.Error("an old read ends the term")
	}
	l.Observe(13, foreignCheckpoint(func(cp *store.Checkpoint) { cp.Term = 6 }), sec(1))
	if l.Holding() {
		t.Error("a higher term does not end this one")
	}
}

func TestCallsStillOut(t *testing.T) {
	for _, c := range []struct {
		name             string
		cap              int
		from             store.Checkpoint
		wantOut, wantNow int
	}{
		{"first run", 15, store.Checkpoint{}, 0, 15},
		{"after a crash", 7, foreignCheckpoint(nil), 7, 7},
		{"after a crash at 15", 15, foreignCheckpoint(func(cp *store.Checkpoint) { cp.Limit = 15 }), 15, 1},
		{"after a crash at 10", 10, foreignCheckpoint(func(cp *store.Checkpoint) { cp.Limit = 10 }), 10, 5},
		{"after two crashes", 7, foreignCheckpoint(func(cp *store.Checkpoint) { cp.Out = 7 }), 14, 1},
		{"after many", 7, foreignCheckpoint(func(cp *store.Checkpoint) { cp.Limit, cp.Out = 1, 17 }), 18, 1},
		{"after a stop that waited for all", 7, releasedCheckpoint(), 0, 7},
		{"after a stop that did not", 7, foreignCheckpoint(func(cp *store.Checkpoint) { cp.Holder, cp.Limit, cp.Out = "", 0, 12 }), 12, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := holdingLease(t, func(o *leaseOptions) { o.Cap = c.cap }, c.from)
			if l.held.out != c.wantOut || l.Limit() != c.wantNow {
				t.Errorf("got %d out and a limit of %d, want %d and %d", l.held.out, l.Limit(), c.wantOut, c.wantNow)
			}
		})
	}
}

func TestNoneIsOutAfterTheTimeoutOfACall(t *testing.T) {
	l := holdingLease(t, func(o *leaseOptions) { o.Cap, o.Embedded = 15, true }, foreignCheckpoint(func(cp *store.Checkpoint) { cp.Limit = 15 }))
	if l.NeedsWrite(sec(33.9)) {
		t.Error("due too soon")
	}
	w := writeAt(t, l, sec(33.9))
	if w.Checkpoint.Out != 15 || w.Checkpoint.Limit != 1 {
		t.Errorf("announces %+v", w.Checkpoint)
	}
	l.Stored(w.Number, 12)
	if !l.NeedsWrite(sec(34)) {
		t.Error("not due at 34 s")
	}
	w = writeAt(t, l, sec(34))
	if w.Checkpoint.Out != 0 || w.Checkpoint.Limit != 15 {
		t.Errorf("announces %+v", w.Checkpoint)
	}
	if l.Limit() != 1 {
		t.Error("uses a limit that is not stored")
	}
	l.Stored(w.Number, 13)
	if l.Limit() != 15 || l.NeedsWrite(sec(100)) {
		t.Error("does not use what is stored")
	}
}

func TestRelease(t *testing.T) {
	l := holdingLease(t, nil, foreignCheckpoint(nil))
	w := writeAt(t, l, sec(1))
	if _, ok := l.Release(sec(1), 3, store.Checkpoint{}); ok {
		t.Fatal("two writes at a time")
	}
	if l.MaySend(sec(1)) || l.NeedsWrite(sec(3)) {
		t.Error("goes on once it has begun to give back")
	}
	l.Stored(w.Number, 12)
	w, ok := l.Release(sec(2), 3, store.Checkpoint{Floor: 7})
	cp := mustWrite(t, w, ok).Checkpoint
	if cp.Holder != "" || cp.Term != 5 || cp.Limit != 0 || cp.Out != 7+3 || cp.Floor != 7 {
		t.Errorf("gives back %+v", cp)
	}
	l.Lost(w.Number)
	l.Observe(13, cp, sec(3))
	if l.Holding() || l.InDoubt() || l.Confirmed() != w.Number {
		t.Error("does not see that it was given back")
	}
}

func TestReleaseIsTriedAgain(t *testing.T) {
	l := holdingLease(t, nil, releasedCheckpoint())
	w, ok := l.Release(sec(1), 0, store.Checkpoint{})
	l.Lost(mustWrite(t, w, ok).Number)
	l.Observe(11, stamped(l.held), sec(2))
	if l.MaySend(sec(2)) {
		t.Error("sends although it may have been given back")
	}
	w, ok = l.Release(sec(2), 0, store.Checkpoint{})
	l.Stored(mustWrite(t, w, ok).Number, 12)
	if l.Holding() {
		t.Error("still holds it")
	}
}

// However it is fed, the lease keeps to what every caller relies on.
func TestLeaseUnderAnyFeed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := leaseOptions{Self: "me", Cap: rapid.IntRange(1, 15).Draw(t, "cap"), CallTimeout: 10 * time.Second, Embedded: rapid.Bool().Draw(t, "embedded")}
		l := newLease(o)
		now := leaseEpoch
		var writes []leaseWrite
		begun := func(w leaseWrite, ok bool) {
			if !ok {
				return
			}
			if n := len(writes); n > 0 && w.Number <= writes[n-1].Number {
				t.Fatalf("number %d after %d", w.Number, writes[n-1].Number)
			}
			writes = append(writes, w)
		}
		number := func(t *rapid.T) uint64 {
			return rapid.Uint64Range(0, uint64(len(writes))+1).Draw(t, "number")
		}
		rev := func(t *rapid.T) uint64 { return rapid.Uint64Range(0, 20).Draw(t, "rev") }
		t.Repeat(map[string]func(*rapid.T){
			"wait": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(0, 6000).Draw(t, "ms")) * time.Millisecond)
			},
			"observe": func(t *rapid.T) {
				cp := store.Checkpoint{
					Term:   rapid.Uint64Range(0, 5).Draw(t, "term"),
					Holder: rapid.SampledFrom([]string{"", "me", "other"}).Draw(t, "holder"),
					Limit:  rapid.IntRange(0, 15).Draw(t, "limit"),
					Out:    rapid.IntRange(0, 20).Draw(t, "out"),
				}
				if len(writes) > 0 && rapid.Bool().Draw(t, "own") {
					cp = rapid.SampledFrom(writes).Draw(t, "write").Checkpoint
				}
				l.Observe(rev(t), cp, now)
			},
			"take over": func(*rapid.T) { begun(l.TakeOver(now)) },
			"write":     func(*rapid.T) { begun(l.Write(now, store.Checkpoint{})) },
			"release":   func(t *rapid.T) { begun(l.Release(now, rapid.IntRange(0, 15).Draw(t, "out"), store.Checkpoint{})) },
			"stored":    func(t *rapid.T) { l.Stored(number(t), rev(t)) },
			"refused":   func(t *rapid.T) { l.Refused(number(t)) },
			"lost":      func(t *rapid.T) { l.Lost(number(t)) },
			"":          func(t *rapid.T) { checkLease(t, l, now) },
		})
	})
}

func checkLease(t *rapid.T, l *lease, now time.Time) {
	for promise, kept := range map[string]bool{
		"a term while holding, and only then":        l.Holding() == (l.Term() != 0),
		"a limit within the cap while holding":       !l.Holding() && l.Limit() == 0 || l.Holding() && l.Limit() >= 1 && l.Limit() <= l.Cap,
		"calls only while holding":                   l.Holding() || !l.MaySend(now),
		"SendUntil says what MaySend says":           l.MaySend(now) == !l.SendUntil(now).Before(now),
		"no take-over while holding":                 !l.Holding() || !l.MayTakeOver(now),
		"nothing written in doubt or beside a write": !l.InDoubt() && !l.underway || !l.MayTakeOver(now) && !l.NeedsWrite(now),
		"in doubt only over a write":                 !l.InDoubt() || len(l.pending) > 0 && !l.underway,
	} {
		if !kept {
			t.Fatalf("broken: %s, in %s", promise, fmt.Sprintf("%+v", l))
		}
	}
}
