package relay

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/birdtap/birdtap/store"
)

const (
	// heldBytes bounds the receipts that the relay holds; the rest stays on the queue.
	heldBytes = 8 << 20
	// itemBytes is what a receipt takes beside its record.
	itemBytes = 256
	// readRetry is the wait after the queue could not be read.
	readRetry = time.Second
)

// read brings the frames of the queue to the loop, in order: first what it takes to
// go on where the last term ended, all of that at once, since a hand-over waits for it;
// then everything from the floor on.
func (t *term) read(ctx context.Context) {
	var first sync.WaitGroup
	for _, look := range []func(context.Context) error{t.openCampaigns, t.recall, t.refill} {
		first.Go(func() { t.insist(ctx, look) })
	}
	first.Wait()
	if ctx.Err() != nil {
		return
	}
	var trouble hush
	reader := t.opts.Queue.Read(t.startFloor)
	defer reader.Close()
	for {
		f, err := reader.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if trouble.over(time.Now()) {
				t.log.Warn("cannot read the queue", zap.Error(err))
			}
			wait(ctx, readRetry)
			continue
		}
		for errors.Is(f.Err, store.ErrNewer) && ctx.Err() == nil {
			if trouble.over(time.Now()) {
				t.log.Error("a newer birdtap has written this frame: it and what is behind it waits until that version runs here",
					zap.Uint64("frame", f.Seq), zap.Error(f.Err))
			}
			wait(ctx, readRetry)
		}
		if ctx.Err() != nil {
			return // what waits must not be taken for damaged after all
		}
		if !t.budget.take(ctx, frameCost(f)) {
			return
		}
		t.send(ctx, func() { t.take(f) })
	}
}

// insist looks until it has seen, or ctx ends.
func (t *term) insist(ctx context.Context, look func(context.Context) error) {
	var trouble hush
	for {
		err := look(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		if trouble.over(time.Now()) {
			t.log.Warn("cannot read the queue", zap.Error(err))
		}
		wait(ctx, readRetry)
	}
}

// recall finds the letters that outran the last checkpoint.
func (t *term) recall(ctx context.Context) error {
	died, last, err := t.opts.Queue.LettersSince(ctx, t.startDead, t.startFloor)
	if err == nil {
		t.send(ctx, func() { t.recalled(died, last) })
	}
	return err
}

// recalled takes in the letters that outran the last checkpoint.
func (t *term) recalled(died map[store.Place]bool, last uint64) {
	t.recalling, t.died, t.deadSeq = false, died, max(t.deadSeq, last)
}

// refill enters the receipts below the floor that a copy may still refer to: those
// within the window before the oldest waiting frame.
func (t *term) refill(ctx context.Context) error {
	if t.opts.DedupWindow == 0 || t.startFloor == 1 {
		return nil
	}
	oldest, found, err := t.opts.Queue.FrameTime(ctx, t.startFloor)
	if err != nil {
		return err
	}
	if !found {
		oldest = time.Now()
	}
	since := oldest.Add(-t.opts.DedupWindow)
	newest, found, err := t.opts.Queue.FrameTime(ctx, t.startFloor-1)
	if err != nil || !found || newest.Before(since) {
		return err
	}
	from, err := t.opts.Queue.FirstSince(ctx, t.startFloor, since)
	if err != nil {
		return err
	}
	reader := t.opts.Queue.Read(from)
	defer reader.Close()
	for {
		f, err := reader.Next(ctx)
		if err != nil {
			return err
		}
		if f.Seq < t.startFloor {
			t.send(ctx, func() { t.remember(f) })
		}
		if f.Seq >= t.startFloor-1 {
			return nil
		}
	}
}

// remember enters the keys of a frame that is settled.
func (t *term) remember(f store.Frame) {
	for i := range f.Receipts {
		if r := &f.Receipts[i]; r.Reason == "" {
			t.dedup.Seen(r, store.Place{Seq: f.Seq, Index: i}, f.Time)
		}
	}
}

func frameCost(f store.Frame) int64 {
	var cost int64
	for i := range f.Receipts {
		cost += receiptCost(&f.Receipts[i])
	}
	return cost
}

func receiptCost(r *store.Receipt) int64 { return int64(len(r.Record)) + itemBytes }

// budget bounds the bytes held. The reader takes, the loop gives back.
type budget struct {
	mu    sync.Mutex
	free  int64
	short bool          // the reader waits
	shut  bool          // nothing is given out, whatever is free
	moved chan struct{} // capacity 1: something was given back

	returned int64 // of the loop, not yet given back
}

func newBudget(size int64) *budget { return &budget{free: size, moved: make(chan struct{}, 1)} }

// take waits until n bytes are free, and returns false when ctx ends first.
func (b *budget) take(ctx context.Context, n int64) bool {
	for !b.try(n) {
		select {
		case <-b.moved:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

func (b *budget) try(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.short = b.shut || b.free < n
	if b.short {
		return false
	}
	b.free -= n
	return true
}

// settle gives back what the loop has put into returned since the last time.
func (b *budget) settle() {
	if b.returned == 0 {
		return
	}
	b.mu.Lock()
	b.free += b.returned
	b.mu.Unlock()
	b.returned = 0
	b.wake()
}

// starved tells whether the reader waits.
func (b *budget) starved() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.short
}

// setShut closes or opens the budget.
func (b *budget) setShut(shut bool) {
	b.mu.Lock()
	changed := b.shut != shut
	b.shut = shut
	b.mu.Unlock()
	if changed {
		b.wake()
	}
}

func (b *budget) wake() {
	select {
	case b.moved <- struct{}{}:
	default:
	}
}
