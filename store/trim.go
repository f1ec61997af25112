package store

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/birdtap/birdtap/store/failpoint"
)

// Trimmer gives the space of delivered receipts back. A frame goes when all of it is
// settled and it is older than KeepDelivered, or lies beyond KeepMaxBytes; but what
// the dedup window may still ask for stays, as far as KeepMaxBytes allows: kept
// receipts never take the room of waiting ones.
//
// It keeps a mark every so many bytes rather than one for every frame, so it trims
// in steps. Only one goroutine may use it.
type Trimmer struct {
	store   *Store
	keepFor time.Duration
	keepMax int64
	window  time.Duration
	step    int64

	marks   []mark
	bytes   int64 // stored up to last, counted from the first mark
	last    uint64
	wanted  uint64 // everything below may go
	trimmed uint64 // everything below is gone
}

// mark is a frame that may be trimmed up to.
type mark struct {
	seq   uint64
	time  time.Time
	below int64 // bytes of the frames before it
}

const (
	maxTrimStep = 1 << 20
	minTrimStep = 4 << 10
	maxMarkGap  = time.Minute
)

// NewTrimmer returns a trimmer that knows of no frame yet: Note tells it.
func (s *Store) NewTrimmer() *Trimmer {
	return &Trimmer{
		store:   s,
		keepFor: s.opts.KeepDelivered,
		keepMax: s.opts.KeepMaxBytes,
		window:  s.opts.DedupWindow,
		step:    min(maxTrimStep, max(minTrimStep, s.opts.KeepMaxBytes/64)),
	}
}

// Note tells the trimmer of a frame. Frames come in order; one that it knows is ignored.
func (t *Trimmer) Note(f FrameInfo) {
	if f.Seq <= t.last {
		return
	}
	t.last = f.Seq
	if n := len(t.marks); n == 0 || t.bytes-t.marks[n-1].below >= t.step || f.Time.Sub(t.marks[n-1].time) >= maxMarkGap {
		t.marks = append(t.marks, mark{seq: f.Seq, time: f.Time, below: t.bytes})
	}
	t.bytes += f.Bytes
}

// Trim purges what may go of the frames below floor, of which the oldest waiting
// receipt came at oldest (zero: none waits).
func (t *Trimmer) Trim(ctx context.Context, floor uint64, oldest, now time.Time) error {
	t.wanted = max(t.wanted, t.cut(floor, oldest, now))
	if t.wanted <= t.trimmed {
		return nil
	}
	failpoint.Here(failpoint.BeforeTrim)
	if err := t.store.receipts.Purge(ctx, jetstream.WithPurgeSequence(t.wanted)); err != nil {
		return fmt.Errorf("trim the queue: %w", err)
	}
	failpoint.Here(failpoint.AfterTrim)
	t.trimmed = t.wanted
	t.store.recent.drop(t.trimmed)
	return nil
}

// cut returns the first frame that has to stay, and forgets the marks before it.
func (t *Trimmer) cut(floor uint64, oldest, now time.Time) uint64 {
	if oldest.IsZero() {
		oldest = now
	}
	settled := t.below(floor)
	cut := uint64(0)
	for len(t.marks) > 1 {
		first, next := t.marks[0], t.marks[1] // what lies between goes as a whole
		tooOld := next.time.Before(now.Add(-t.keepFor)) && next.time.Before(oldest.Add(-t.window))
		tooMuch := settled-first.below > t.keepMax
		if next.seq > floor || !tooOld && !tooMuch {
			break
		}
		cut = next.seq
		t.marks = t.marks[1:]
	}
	return cut
}

// below is about how many bytes the frames before floor take.
func (t *Trimmer) below(floor uint64) int64 {
	if floor > t.last {
		return t.bytes
	}
	bytes := int64(0)
	for _, m := range t.marks {
		if m.seq > floor {
			break
		}
		bytes = m.below
	}
	return bytes
}

// Waiting is about how many bytes the frames from floor on take.
func (t *Trimmer) Waiting(floor uint64) int64 { return t.bytes - t.below(floor) }
