package store

import (
	"context"
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// scan tells a trimmer of all frames, and returns them.
func scan(t testing.TB, s *Store, trimmer *Trimmer) []FrameInfo {
	t.Helper()
	var all []FrameInfo
	if _, err := s.ScanFrames(t.Context(), 1, func(f FrameInfo) {
		all = append(all, f)
		if trimmer != nil {
			trimmer.Note(f)
		}
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestCutIsLikeANaiveModel holds the trimmer, which knows only a mark every so many
// bytes, against rules that look at every frame.
func TestCutIsLikeANaiveModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		trimmer := &Trimmer{
			keepFor: time.Duration(rapid.IntRange(0, 100).Draw(t, "keep for")) * time.Minute,
			keepMax: rapid.Int64Range(0, 20_000).Draw(t, "keep max"),
			window:  time.Duration(rapid.IntRange(0, 10).Draw(t, "window")) * time.Minute,
			step:    rapid.Int64Range(1, 2000).Draw(t, "step"),
		}
		now := time.Unix(1700000000, 0)
		var all []FrameInfo
		floor, kept := uint64(1), uint64(1)
		t.Repeat(map[string]func(*rapid.T){
			"frame": func(t *rapid.T) {
				f := FrameInfo{Seq: uint64(len(all)) + 1, Time: now, Bytes: rapid.Int64Range(100, 2000).Draw(t, "bytes")}
				all = append(all, f)
				trimmer.Note(f)
				trimmer.Note(f) // told twice, counted once
			},
			"later": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(0, 600).Draw(t, "seconds")) * time.Second)
			},
			"settle": func(t *rapid.T) { floor = rapid.Uint64Range(floor, uint64(len(all))+1).Draw(t, "floor") },
			"trim": func(t *rapid.T) {
				var oldest time.Time
				if floor <= uint64(len(all)) {
					oldest = all[floor-1].Time
				}
				cut := max(kept, trimmer.cut(floor, oldest, now))
				if cut > floor {
					t.Fatalf("cut at %d purges waiting frames, floor %d", cut, floor)
				}
				var settled, waiting int64 // bytes
				for _, f := range all[kept-1:] {
					if f.Seq < floor {
						settled += f.Bytes
					} else {
						waiting += f.Bytes
					}
				}
				if got := trimmer.Waiting(floor); got < waiting || got > waiting+trimmer.step+2000 {
					t.Fatalf("%d bytes wait, trimmer says %d", waiting, got)
				}
				slack := trimmer.step + 2000 // what lies between two marks goes as a whole
				for _, f := range all[kept-1 : cut-1] {
					old := f.Time.Before(now.Add(-trimmer.keepFor)) && (oldest.IsZero() || f.Time.Before(oldest.Add(-trimmer.window)))
					if !old && settled+slack <= trimmer.keepMax {
						t.Fatalf("frame %d of %v went though it is neither old nor beyond the %d bytes (%d are left)", f.Seq, f.Time, trimmer.keepMax, settled)
					}
					settled -= f.Bytes
				}
				kept = cut
				if settled > trimmer.keepMax+2*slack {
					t.Fatalf("%d settled bytes are kept, at most %d and a slack of %d", settled, trimmer.keepMax, 2*slack)
				}
			},
		})
	})
}

func TestTrimReallyFreesTheRoom(t *testing.T) {
	s := openStore(t, func(o *Options) { o.KeepMaxBytes, o.KeepDelivered = 64<<10, time.Hour })
	frames(t, s, 300, 10)
	trimmer := s.NewTrimmer()
	all := scan(t, s, trimmer)
	before := s.bytes(t)
	sum := int64(0)
	for _, f := range all {
		sum += f.Bytes
	}
	wantEqual(t, "bytes of the stream, by its frames", sum, before)

	if err := trimmer.Trim(t.Context(), 1, all[0].Time, time.Now()); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "bytes while everything waits", s.bytes(t), before)

	floor := uint64(290)
	if err := trimmer.Trim(t.Context(), floor, all[floor-1].Time, time.Now()); err != nil {
		t.Fatal(err)
	}
	left := s.bytes(t)
	if waiting := trimmer.Waiting(floor); left < waiting || left > waiting+64<<10+2*minTrimStep {
		t.Errorf("%d bytes are left of %d, %d wait and %d may be kept", left, before, waiting, 64<<10)
	}
	if fs := scan(t, s, nil); fs[len(fs)-1].Seq != 300 || fs[0].Seq >= floor {
		t.Errorf("left are frames %d to %d", fs[0].Seq, fs[len(fs)-1].Seq)
	}
}

func (s *Store) bytes(t testing.TB) int64 {
	t.Helper()
	info, err := s.receipts.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return int64(info.State.Bytes)
}

func TestTrimByTimeKeepsTheDedupWindow(t *testing.T) {
	s := openStore(t, func(o *Options) { o.DedupWindow, o.KeepDelivered = 10*time.Minute, time.Hour })
	trimmer := s.NewTrimmer()
	t0 := time.Unix(1700000000, 0)
	for i := range uint64(120) { // one a minute
		trimmer.Note(FrameInfo{Seq: i + 1, Time: t0.Add(time.Duration(i) * time.Minute), Bytes: 100})
	}
	at := func(minute int) time.Time { return t0.Add(time.Duration(minute) * time.Minute) }
	// Kept for an hour: at minute 119 frames of minute 59 and later stay. One settled
	// frame in between two marks stays with its neighbour.
	if cut := trimmer.cut(121, time.Time{}, at(119)); cut < 58 || cut > 60 {
		t.Errorf("cut at frame %d", cut)
	}
	// A frame of minute 100 waits since long: what came ten minutes before it stays.
	if cut := trimmer.cut(101, at(100), at(1000)); cut < 89 || cut > 91 {
		t.Errorf("cut at frame %d, the window begins with frame 91", cut)
	}
}

// A purge that failed is made up for by the next.
func TestTrimGoesOnAfterAFailure(t *testing.T) {
	s := openStore(t, func(o *Options) { o.KeepMaxBytes, o.KeepDelivered = 1, time.Nanosecond })
	frames(t, s, 100, 10)
	trimmer := s.NewTrimmer()
	scan(t, s, trimmer)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := trimmer.Trim(ctx, 101, time.Time{}, time.Now()); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	before := s.bytes(t)
	if err := trimmer.Trim(t.Context(), 101, time.Time{}, time.Now()); err != nil {
		t.Fatal(err)
	}
	if left := s.bytes(t); left >= before/2 {
		t.Errorf("%d bytes are left of %d", left, before)
	}
}
