package store

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func everyReceipt(*Receipt) bool { return true }

// settle writes that everything on the queue below floor is settled; 0: everything.
func settle(t testing.TB, s *Store, floor uint64, change ...func(*Checkpoint)) {
	t.Helper()
	cp, rev, err := s.ReadCheckpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if floor == 0 {
		last, err := s.lastSequence(t.Context(), s.receipts)
		if err != nil {
			t.Fatal(err)
		}
		floor = last + 1
	}
	cp.Floor = floor
	for _, c := range change {
		c(&cp)
	}
	if _, err := s.WriteCheckpoint(t.Context(), cp, rev); err != nil {
		t.Fatal(err)
	}
}

// deliveredUsers are the users of what counts as delivered, in order; those of
// receipt(i) are i+1.
func deliveredUsers(t testing.TB, s *Store, o DeliveredOptions) []uint64 {
	t.Helper()
	if o.Choose == nil {
		o.Choose = everyReceipt
	}
	var users []uint64
	if _, err := s.Delivered(t.Context(), o, func(r *Receipt) error { users = append(users, r.User); return nil }); err != nil {
		t.Fatal(err)
	}
	return users
}

func wantUsers(t testing.TB, what string, got []uint64, want ...uint64) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: users %v, want %v", what, got, want)
	}
}

func windowOf(d time.Duration) func(*Options) { return func(o *Options) { o.DedupWindow = d } }

func mustReplayDelivered(t testing.TB, s *Store, o DeliveredOptions) int {
	t.Helper()
	if o.Choose == nil {
		o.Choose = everyReceipt
	}
	n, kept, err := s.ReplayDelivered(t.Context(), o)
	if err != nil || kept.Missed != 0 {
		t.Fatalf("replayed %d, %+v, %v", n, kept, err)
	}
	return n
}

func TestReplayDeliveredGoesInOrderAndKnowsItsOwn(t *testing.T) {
	s := openStore(t)
	frames(t, s, 3, 700)
	settle(t, s, 0)
	before := read(t, s, 1, 3)
	var progress []int
	if n := mustReplayDelivered(t, s, DeliveredOptions{Progress: func(n int) { progress = append(progress, n) }}); n != 2100 {
		t.Errorf("replayed %d, want 2100 and not its own frames again", n)
	}
	if !slices.Equal(progress, []int{1000, 2000, 2100}) {
		t.Errorf("progress %v", progress)
	}
	i := 0
	for _, f := range read(t, s, 4, 3) {
		wantEqual(t, "replay", f.Replay, ReplayDelivered)
		for _, r := range f.Receipts {
			first := before[i/700]
			if want := (Place{Seq: first.Seq, Index: i % 700}); r.Origin != want || keyOf(r) != keyOf(receipt(i)) {
				t.Fatalf("receipt %d has origin %v, want %v, or another key", i, r.Origin, want)
			}
			if !r.Accepted.Equal(first.Time.Truncate(time.Millisecond)) {
				t.Fatalf("receipt %d was accepted at %v, want %v", i, r.Accepted, first.Time)
			}
			i++
		}
	}
}

// What ended otherwise than by a delivery does not go.
func TestOnlyWhatWasDeliveredIsReplayed(t *testing.T) {
	s := openStore(t, windowOf(time.Minute))
	refused := receipt(1)
	refused.Reason, refused.Code = ReasonRefused, 512
	mustCommit(t, s, receipt(0), refused, receipt(2), receipt(3)) // frame 1
	mustCommit(t, s, receipt(0))                                  // 2: a copy
	mustCommit(t, s, receipt(4), receipt(5), receipt(6))          // 3: settled in part
	mustCommit(t, s, receipt(7))                                  // 4: settled above the floor
	mustCommit(t, s, receipt(8))                                  // 5: waits
	if err := s.publishFrame(&nats.Msg{Data: []byte("who wrote this?")}); err != nil {
		t.Fatal(err)
	}
	dead := func(i int, at Place) Letter {
		l := letter(i, "512")
		l.Origin = at
		return l
	}
	mustBury(t, s, dead(2, Place{1, 2}), dead(3, Place{1, 3}), dead(0, Place{1, 5000}))
	if n, err := s.Replay(t.Context(), ReplayOptions{Choose: func(l *Letter) bool { return l.Receipt.User == 4 }}); n != 1 || err != nil {
		t.Fatalf("replayed %d, %v", n, err) // frame 7: receipt 3
	}
	settle(t, s, 3, func(cp *Checkpoint) {
		part := NewPartial(3, 3)
		part.Set(0)
		part.Set(2)
		cp.Settled.SetPartial(part)
		cp.Settled.AddWhole(4, 3)
		cp.Settled.AddWhole(6, 3)
	})
	wantUsers(t, "delivered", deliveredUsers(t, s, DeliveredOptions{}), 1, 5, 7, 8)
	settle(t, s, 0, func(cp *Checkpoint) { cp.Settled = Settled{} })
	wantUsers(t, "once all is settled", deliveredUsers(t, s, DeliveredOptions{}), 1, 5, 6, 7, 8, 9, 4)
}

// A receipt that was dropped as a copy of one that died was not delivered either; one
// that came after the window was.
func TestCopiesOfADeadOne(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		s := openStore(t, windowOf(time.Minute))
		mustCommit(t, s, receipt(0)) // dies
		time.Sleep(50 * time.Second)
		mustCommit(t, s, receipt(0)) // a copy of it
		settle(t, s, 0)
		l := letter(0, "512")
		l.Origin = Place{Seq: 1}
		mustBury(t, s, l)
		wantUsers(t, "within the window", deliveredUsers(t, s, DeliveredOptions{}))
		time.Sleep(50 * time.Second)
		mustCommit(t, s, receipt(0)) // delivered by itself
		settle(t, s, 0)
		wantUsers(t, "after it", deliveredUsers(t, s, DeliveredOptions{}), 1)
	})
}

func TestSinceGoesByWhenAReceiptWasAccepted(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		s := openStore(t, windowOf(time.Minute))
		mustCommit(t, s, receipt(0), receipt(1))
		l := letter(1, "512")
		l.Origin, l.Receipt.Accepted = Place{Seq: 1, Index: 1}, time.Now()
		mustBury(t, s, l)
		time.Sleep(30 * time.Second)
		since := time.Now()
		mustCommit(t, s, receipt(0)) // dropped: its first was delivered before
		mustCommit(t, s, receipt(2))
		if _, err := s.Replay(t.Context(), ReplayOptions{Choose: all}); err != nil {
			t.Fatal(err)
		}
		settle(t, s, 0)
		wantUsers(t, "since", deliveredUsers(t, s, DeliveredOptions{Since: since}), 3)
		wantUsers(t, "from the beginning", deliveredUsers(t, s, DeliveredOptions{}), 1, 3, 2)
		if got := mustReplayDelivered(t, s, DeliveredOptions{Since: since}); got != 1 {
			t.Errorf("replayed %d", got)
		}
	})
}

// Replayed once more it goes once more, and as the life that was delivered last, so
// that the relay does not take it for a copy. What a run left waiting keeps its origin.
func TestReplayDeliveredTwice(t *testing.T) {
	s := openStore(t, windowOf(time.Minute))
	mustCommit(t, s, receipt(0), receipt(1))
	settle(t, s, 0)
	origins := func(frame uint64) []Place {
		var places []Place
		for _, r := range read(t, s, frame, 1)[0].Receipts {
			places = append(places, r.Origin)
		}
		return places
	}
	for run, want := range [][]Place{
		{{1, 0}, {1, 1}}, // frame 2
		{{1, 0}, {1, 1}}, // frame 3: frame 2 still waits
		{{3, 0}, {3, 1}}, // frame 4
		{{4, 0}, {4, 1}}, // frame 5
	} {
		if run >= 2 {
			settle(t, s, 0)
		}
		wantEqual(t, "replayed", mustReplayDelivered(t, s, DeliveredOptions{}), 2)
		if got := origins(uint64(run) + 2); !slices.Equal(got, want) {
			t.Errorf("run %d: origins %v, want %v", run, got, want)
		}
	}
	// The first life is trimmed: the next one that is kept stands for all.
	settle(t, s, 0)
	if err := s.receipts.Purge(t.Context(), jetstream.WithPurgeSequence(4)); err != nil {
		t.Fatal(err)
	}
	n, kept, err := s.ReplayDelivered(t.Context(), DeliveredOptions{Choose: everyReceipt})
	if n != 2 || err != nil || kept.Oldest.IsZero() || kept.Missed != 0 {
		t.Errorf("replayed %d, %+v, %v", n, kept, err)
	}
	if got := origins(6); !slices.Equal(got, []Place{{5, 0}, {5, 1}}) {
		t.Errorf("origins %v", got)
	}
}

// A delivered receipt that died when it was replayed goes by its death place: the relay
// compares it with that life only.
func TestReplayDeliveredAfterItsReplayDied(t *testing.T) {
	s := openStore(t)
	mustCommit(t, s, receipt(0))
	settle(t, s, 0)
	mustReplayDelivered(t, s, DeliveredOptions{})
	l := letter(0, "512")
	l.Origin = Place{Seq: 2}
	mustBury(t, s, l)
	settle(t, s, 0)
	wantEqual(t, "replayed", mustReplayDelivered(t, s, DeliveredOptions{}), 1)
	wantEqual(t, "origin", read(t, s, 3, 1)[0].Receipts[0].Origin, Place{Seq: 2})
}

// Frames that the trimmer takes away under the reader are said, and the rest goes.
func TestTrimmedUnderTheReplay(t *testing.T) {
	s := openStore(t)
	const n = readAhead + 100
	for i := range n {
		mustCommit(t, s, receipt(i))
	}
	settle(t, s, 0)
	var users []uint64
	kept, err := s.Delivered(t.Context(), DeliveredOptions{Choose: everyReceipt}, func(r *Receipt) error {
		if users = append(users, r.User); len(users) == 1 {
			return s.receipts.Purge(t.Context(), jetstream.WithPurgeSequence(n))
		}
		return nil
	})
	if err != nil || kept.Missed == 0 || int(kept.Missed)+len(users) != n || users[len(users)-1] != n {
		t.Errorf("%d read, the last of user %d, %d missed, %v", len(users), users[len(users)-1], kept.Missed, err)
	}
	users = nil
	kept, err = s.Delivered(t.Context(), DeliveredOptions{Choose: everyReceipt}, func(r *Receipt) error {
		users = append(users, r.User)
		return nil
	})
	if err != nil || kept.Missed != 0 || kept.Oldest.IsZero() || len(users) != 1 {
		t.Errorf("what was trimmed before counts as missed: %+v, %d read, %v", kept, len(users), err)
	}
}

func TestDeliveredLimitAndStop(t *testing.T) {
	s := openStore(t)
	frames(t, s, 2, 10)
	settle(t, s, 0)
	wantUsers(t, "limit", deliveredUsers(t, s, DeliveredOptions{Limit: 3}), 1, 2, 3)
	odd := func(r *Receipt) bool { return r.User%2 == 1 }
	wantUsers(t, "limit of the chosen", deliveredUsers(t, s, DeliveredOptions{Limit: 2, Choose: odd}), 1, 3)
	n := 0
	_, err := s.Delivered(t.Context(), DeliveredOptions{Choose: everyReceipt}, func(*Receipt) error { n++; return ErrStop })
	if err != nil || n != 1 {
		t.Errorf("stopped after %d, %v", n, err)
	}
	oops := errors.New("oops")
	_, err = s.Delivered(t.Context(), DeliveredOptions{Choose: everyReceipt}, func(*Receipt) error { return oops })
	wantErr(t, err, oops)
}

func TestNothingWasDelivered(t *testing.T) {
	s := openStore(t)
	wantUsers(t, "empty queue", deliveredUsers(t, s, DeliveredOptions{}))
	mustCommit(t, s, receipt(0))
	wantUsers(t, "all waits", deliveredUsers(t, s, DeliveredOptions{Since: time.Now().Add(-time.Hour)}))
	settle(t, s, 0)
	wantUsers(t, "all is older", deliveredUsers(t, s, DeliveredOptions{Since: time.Now().Add(time.Hour)}))
	wantEqual(t, "replayed", mustReplayDelivered(t, s, DeliveredOptions{Since: time.Now().Add(time.Hour)}), 0)
}

func TestReplayDeliveredRate(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		s := openStore(t)
		frames(t, s, 3, 500)
		settle(t, s, 0)
		began := time.Now()
		wantEqual(t, "replayed", mustReplayDelivered(t, s, DeliveredOptions{Rate: 100}), 1500)
		if took := time.Since(began).Round(100 * time.Millisecond); took != 14*time.Second {
			t.Errorf("took %v, want 14 s: a second's worth goes at once", took)
		}
	})
}

// An operator who presses Ctrl-C knows how many are on the queue.
func TestInterruptedReplayDeliveredTellsWhatIsOnTheQueue(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		s := openStore(t)
		frames(t, s, 1, 1000)
		settle(t, s, 0)
		ctx, cancel := context.WithCancel(t.Context())
		n, _, err := s.ReplayDelivered(ctx, DeliveredOptions{Choose: everyReceipt, Rate: 100, Progress: func(n int) {
			if n == 300 {
				cancel()
			}
		}})
		wantErr(t, err, context.Canceled)
		wantEqual(t, "replayed", n, 300)
		if got := stored(t, s); !slices.Equal(got[1000:], keysOf(receipts(0, 300))) {
			t.Errorf("%d receipts on the queue", len(got))
		}
	})
}

// Letters that another command moves behind the others are not missed.
func TestAllLettersFindsThoseThatMove(t *testing.T) {
	s := openStore(t)
	const messages = readAhead + 100
	for i := range messages {
		mustBury(t, s, letters(2*i, 2, "512")...)
	}
	seen := map[Place]bool{}
	moved := false
	err := s.allLetters(t.Context(), func(l *Letter) {
		seen[l.Origin] = true
		if !moved {
			moved = true
			last := letter(2*messages-1, "512").Origin
			if n, err := s.Purge(t.Context(), func(l *Letter) bool { return l.Origin == last }, 0); n != 1 || err != nil {
				t.Errorf("purged %d, %v", n, err)
			}
		}
	})
	if err != nil || len(seen) != 2*messages-1 {
		t.Errorf("%d letters seen, %v", len(seen), err)
	}
}

func TestKeysAreRememberedInBoundedMemory(t *testing.T) {
	key := func(i int) (k Key) { copy(k[:], strconv.Itoa(i)); return k }
	var set keySet
	for i := range 5*keysRemembered + 1 {
		set.put(key(i), int64(i)+1)
		if len(set.young)+len(set.old) > 2*keysRemembered {
			t.Fatalf("%d keys", len(set.young)+len(set.old))
		}
	}
	for i := 4*keysRemembered + 1; i < 5*keysRemembered+1; i++ {
		if v, ok := set.get(key(i)); !ok || v != int64(i)+1 {
			t.Fatalf("key %d: %d, %v", i, v, ok)
		}
	}
	if _, ok := set.get(key(0)); ok {
		t.Error("the first is still remembered")
	}
}
