package store

import (
	"sync"
	"testing"
	"time"
)

func status(t testing.TB, s *Store) Status {
	t.Helper()
	st, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	checkSums(t, st)
	return st
}

// checkSums holds what the account promises.
func checkSums(t testing.TB, st Status) {
	t.Helper()
	if in, out := st.Accepted+st.Replayed, st.Delivered+st.Deduplicated+st.Died+st.Queued; in != out {
		t.Errorf("%d came in and %d are accounted for: %+v", in, out, st)
	}
	var sum uint64
	for _, n := range st.DeadByReason {
		sum += n
	}
	if sum != st.Dead {
		t.Errorf("%d letters by reason, %d in all", sum, st.Dead)
	}
}

// settleAll writes a checkpoint as a relay would that has settled everything below floor.
func settleAll(t testing.TB, s *Store, floor uint64, change func(*Checkpoint)) {
	t.Helper()
	cp, rev, err := s.ReadCheckpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cp.Floor, cp.Settled = floor, Settled{}
	change(&cp)
	if _, err := s.WriteCheckpoint(t.Context(), cp, rev); err != nil {
		t.Fatal(err)
	}
}

func wantStatus(t testing.TB, s *Store, want Status) {
	t.Helper()
	got := status(t, s)
	got.Oldest, got.QueueBytes, got.DeadByReason = 0, 0, nil
	want.Breaker = "closed"
	if got.Accepted != want.Accepted || got.Replayed != want.Replayed || got.Delivered != want.Delivered ||
		got.Deduplicated != want.Deduplicated || got.Died != want.Died || got.Queued != want.Queued ||
		got.Dead != want.Dead || got.Purged != want.Purged {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestCountsAreExactThroughALife(t *testing.T) {
	s := openStore(t)
	wantStatus(t, s, Status{})
	mustCommit(t, s, receipts(0, 1000)...)   // frame 1
	mustCommit(t, s, receipts(1000, 500)...) // frame 2
	mustCommit(t, s, receipts(1500, 1)...)   // frame 3
	wantStatus(t, s, Status{Accepted: 1501, Queued: 1501})

	// Frame 2 is whole, frame 1 in part: 300 delivered, 10 died, 90 copies.
	p := NewPartial(1, 1000)
	for i := range 400 {
		p.Set(i)
	}
	dead := mustBury(t, s, letters(0, 10, "512")...)
	settleAll(t, s, 1, func(cp *Checkpoint) {
		cp.Settled.AddWhole(2, 1)
		cp.Settled.SetPartial(p)
		cp.Totals = Totals{Delivered: 800, Deduplicated: 90, Died: 10}
		cp.DeadSeq = dead
	})
	wantStatus(t, s, Status{Accepted: 1501, Delivered: 800, Deduplicated: 90, Died: 10, Queued: 601, Dead: 10})

	if n, err := s.Replay(t.Context(), ReplayOptions{Choose: all, Limit: 6}); n != 6 || err != nil { // frame 4
		t.Fatal(n, err)
	}
	if n, err := s.Purge(t.Context(), all, 1); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	wantStatus(t, s, Status{Accepted: 1501, Replayed: 6, Delivered: 800, Deduplicated: 90, Died: 10, Queued: 607, Dead: 3, Purged: 1})

	settleAll(t, s, 5, func(cp *Checkpoint) {
		cp.Totals = Totals{Delivered: 1401, Deduplicated: 90, Died: 10, ReplayedDead: 6}
		cp.Totals.Delivered += 6
	})
	want := Status{Accepted: 1501, Replayed: 6, Delivered: 1407, Deduplicated: 90, Died: 10, Dead: 3, Purged: 1}
	wantStatus(t, s, want)

	// Trimmed, and after a crash: the same.
	trimmer := s.NewTrimmer()
	trimmer.keepMax, trimmer.step = 0, 1
	scan(t, s, trimmer)
	if err := trimmer.Trim(t.Context(), 5, time.Time{}, time.Now()); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, s, want)
	wantStatus(t, openStore(t, on(crash(t, s.opts.DataDir))), want)
}

func TestOldestAndBytesAreOfWhatWaits(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		s := openStore(t)
		for range 3 {
			mustCommit(t, s, receipts(0, 10)...)
			time.Sleep(time.Minute) // fake
		}
		all := scan(t, s, nil)
		st := status(t, s)
		wantEqual(t, "oldest", st.Oldest.Round(time.Second), 3*time.Minute)
		wantEqual(t, "bytes", st.QueueBytes, s.bytes(t))
		settleAll(t, s, 2, func(cp *Checkpoint) { cp.Totals.Delivered = 10 })
		st = status(t, s)
		wantEqual(t, "oldest", st.Oldest.Round(time.Second), 2*time.Minute)
		wantEqual(t, "bytes", st.QueueBytes, all[1].Bytes+all[2].Bytes)
		settleAll(t, s, 4, func(cp *Checkpoint) { cp.Totals.Delivered = 30 })
		if st = status(t, s); st.Oldest != 0 || st.QueueBytes != 0 {
			t.Errorf("nothing waits, but %+v", st)
		}
	})
}

func TestStatusOfTheRelay(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		s := openStore(t)
		settleAll(t, s, 1, func(cp *Checkpoint) {
			cp.Holder, cp.Term, cp.Breaker, cp.Rate, cp.LastDelivered = "me", 4, "open", 12, time.Now()
		})
		st := status(t, s)
		if st.Holder != "me" || st.Term != 4 || st.Breaker != "open" || st.Rate != 12 {
			t.Errorf("got %+v", st)
		}
		time.Sleep(time.Minute) // fake
		if st = status(t, s); st.Rate != 0 {
			t.Errorf("rate %v, though nothing was delivered for a minute", st.Rate)
		}
		settleAll(t, s, 1, func(cp *Checkpoint) { cp.Holder = "" })
		if st = status(t, s); st.Breaker != "closed" || st.Holder != "" {
			t.Errorf("got %+v while no relay runs", st)
		}
	})
}

func TestPausedOverARestart(t *testing.T) {
	s := openStore(t)
	for _, want := range []bool{false, true, true, false, true} {
		if want || status(t, s).Paused {
			if err := s.SetPaused(t.Context(), want); err != nil {
				t.Fatal(err)
			}
		}
		mustClose(t, s)
		s = openStore(t, on(s.opts.DataDir))
		got, err := s.Paused(t.Context())
		if err != nil || got != want || status(t, s).Paused != want {
			t.Errorf("paused %v, %v, want %v", got, err, want)
		}
	}
}

func TestPurgedIsCountedByManyAtOnce(t *testing.T) {
	s := openStore(t)
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			for range 5 {
				if err := s.addPurged(t.Context(), 3); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	wantEqual(t, "purged", status(t, s).Purged, 75)
}
