package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// What was delivered is not written down anywhere: the checkpoint says which receipts
// are settled, and the log keeps them for KeepDelivered. So a receipt counts as
// delivered if its place is settled and nothing tells that it ended otherwise there:
//
//	what else may have happened to it     how that is found
//	it was refused at the door            the frame says so
//	it died and is a dead letter          the letter's Origin is its place
//	it died and was replayed              a replayed frame has its place as Origin; that
//	                                      frame lies behind it, so it is kept as long
//	it was a copy, and dropped            one of equal key came at most DedupWindow before
//	the frame does not decode             the frame says so
//
// Two things cannot be told apart from a delivery. A dead letter that was purged has
// left no trace: its receipt counts as delivered and would go again. And what a copy
// was is judged by the DedupWindow of now.
//
// Equal receipts go once: of several lives of one receipt, and of several receipts of
// equal key among the last keysRemembered at least, the first stands for all. It keeps
// the place in the order that the first had; as Origin it carries the newest settled
// life. So replayed once more after it was delivered it goes once more, while one that
// an earlier, interrupted run left waiting on the queue goes once if both runs lie
// within the DedupWindow, and else twice.
//
// Memory: 8 bytes for every dead letter, 16 for every replayed receipt that is kept,
// about 25 MiB for keys, and the frames that are read ahead.

// DeliveredOptions says which delivered receipts.
type DeliveredOptions struct {
	// Since leaves out what was accepted before. Accepted is when the receipt first
	// came, whichever life of it is kept.
	Since  time.Time
	Choose func(*Receipt) bool // Accepted is set
	Limit  int                 // at most so many; 0 = all

	Rate     float64            // of a replay: receipts/s; 0 = as fast as it goes
	Progress func(replayed int) // of a replay: called after every commit; may be nil
}

// Kept is what a walk over delivered receipts learned about the log.
type Kept struct {
	// Oldest is when the first frame that is kept was stored; zero if nothing was
	// trimmed yet.
	Oldest time.Time
	// Missed is how many frames were trimmed before the walk got to them.
	Missed uint64
}

// ReplayDelivered puts receipts that were delivered, and are still kept, on the queue
// once more, in the order in which they came, and returns how many. What it puts there
// itself it does not take for delivered. Killed in between and given again, it begins
// anew: a receipt may go twice, never not at all.
func (s *Store) ReplayDelivered(ctx context.Context, o DeliveredOptions) (int, Kept, error) {
	out := s.newReplayer(ReplayDelivered, o.Rate, o.Progress)
	kept, err := s.Delivered(ctx, o, func(r *Receipt) error { return out.add(ctx, r, false) })
	if err == nil {
		err = out.flush(ctx)
	}
	return out.done, kept, err
}

// Delivered calls fn for the receipts that were delivered before the call and are
// still kept, in the order in which they came. Their Origin is where they were delivered
// last. What fn is given is good until it returns. It ends early, and returns nil, when
// fn returns ErrStop.
func (s *Store) Delivered(ctx context.Context, o DeliveredOptions, fn func(*Receipt) error) (Kept, error) {
	w, err := s.newDeliveredWalk(ctx, o)
	if err != nil {
		return Kept{}, err
	}
	err = w.run(ctx, fn)
	if errors.Is(err, ErrStop) {
		err = nil
	}
	return w.kept, err
}

// deliveredWalk goes over the log once, from the first frame that matters to the last
// one that is settled.
type deliveredWalk struct {
	store   *Store
	options DeliveredOptions
	cp      Checkpoint // what is settled later is none of this walk's
	last    uint64     // frame
	window  time.Duration
	lives   lives
	keys    keySet

	first uint64 // frame that was read
	next  uint64 // frame to come
	taken int
	kept  Kept
}

func (s *Store) newDeliveredWalk(ctx context.Context, o DeliveredOptions) (*deliveredWalk, error) {
	// The checkpoint comes first: whatever it says has died is a letter by then.
	cp, _, err := s.ReadCheckpoint(ctx)
	if err != nil {
		return nil, err
	}
	info, err := s.infoOf(ctx, s.receipts)
	if err != nil {
		return nil, fmt.Errorf("look up stream %s: %w", s.names.receiptStream, err)
	}
	w := &deliveredWalk{
		store: s, options: o, cp: cp, window: s.opts.DedupWindow,
		last: min(info.State.LastSeq, max(cp.Floor-1, cp.Settled.last())),
	}
	if info.State.FirstSeq > 1 {
		w.kept.Oldest = info.State.FirstTime
	}
	w.lives, err = s.readLives(ctx, cp, info.State.FirstSeq, w.last)
	return w, err
}

// run reads from a DedupWindow before Since, for a copy must find its first.
func (w *deliveredWalk) run(ctx context.Context, fn func(*Receipt) error) error {
	from := uint64(1)
	if since := w.options.Since; !since.IsZero() {
		var err error
		if from, err = w.store.FirstSince(ctx, w.last+1, since.Add(-w.window)); err != nil {
			return err
		}
	}
	src := source{store: w.store, stream: w.store.receipts, name: w.store.names.receiptStream, next: from, scan: true}
	defer src.stop(ctx)
	for w.next <= w.last {
		msg, meta, err := src.message(ctx)
		if errors.Is(err, errEnd) {
			break
		}
		if err != nil {
			return fmt.Errorf("scan stream %s: %w", src.name, err)
		}
		seq := meta.Sequence.Stream
		w.reached(seq)
		if seq > w.last {
			return nil
		}
		if err := w.frame(toFrame(msg, meta), fn); err != nil {
			return err
		}
	}
	if w.next > 0 {
		w.reached(w.last + 1)
	}
	return nil
}

// reached counts the frames between the last one and seq: they are gone.
func (w *deliveredWalk) reached(seq uint64) {
	if w.first == 0 {
		w.first, w.next = seq, seq
	}
	if end := min(seq, w.last+1); end > w.next {
		w.kept.Missed += end - w.next
	}
	w.next = seq + 1
}

func (w *deliveredWalk) frame(f Frame, fn func(*Receipt) error) error {
	part, _ := w.cp.Settled.Of(f.Seq)
	whole := f.Seq < w.cp.Floor || w.cp.Settled.HasWhole(f.Seq)
	for i := range f.Receipts {
		at, r := Place{Seq: f.Seq, Index: i}, &f.Receipts[i]
		if !whole && !part.Has(i) || !w.goes(f, at, r) {
			continue
		}
		r.Origin = w.lives.newest(at)
		if err := fn(r); err != nil {
			return err
		}
		if w.taken++; w.taken == w.options.Limit {
			return ErrStop
		}
	}
	return nil
}

// goes tells whether a settled receipt was delivered, is asked for, and is the first
// of its kind.
func (w *deliveredWalk) goes(f Frame, at Place, r *Receipt) bool {
	if r.Reason != "" || f.Replay == ReplayDelivered && r.Origin.Seq >= w.first {
		return false // not to leave, or damaged; or a later life of one that was here already
	}
	now := f.Time.UnixMilli()
	switch first, seen := w.keys.get(r.Key); {
	case seen && first == keyGoes:
		return false
	case seen && r.Origin.IsZero() && now-first <= w.window.Milliseconds():
		return false // dropped as a copy of one that does not go
	}
	if w.lives.died(at) || r.Accepted.Before(w.options.Since) || !w.options.Choose(r) {
		if r.Origin.IsZero() {
			w.keys.put(r.Key, now)
		}
		return false
	}
	w.keys.put(r.Key, keyGoes)
	return true
}

// lives is what dead letters and replayed frames tell of the receipts at other places.
type lives struct {
	ended []uint64 // codes of places that a receipt died at, in order
	later []life   // of delivered receipts that were replayed, by origin, then place
}

// life is a settled place, and the one that it was replayed from, as codes.
type life struct{ origin, place uint64 }

// placeCode orders places as the log does. Frames hold at most maxFrameReceipts.
func placeCode(p Place) uint64 { return p.Seq<<10 | uint64(p.Index)&(1<<10-1) } //nolint:gosec // an index is not negative

func codePlace(code uint64) Place {
	return Place{Seq: code >> 10, Index: int(code & (1<<10 - 1))}
}

// readLives reads the letters first: one that is replayed meanwhile is on the queue
// before it leaves them.
func (s *Store) readLives(ctx context.Context, cp Checkpoint, first, last uint64) (lives, error) {
	var l lives
	died := func(p Place) {
		if p.valid() && p.Index < maxFrameReceipts && p.Seq >= first && p.Seq <= last {
			l.ended = append(l.ended, placeCode(p))
		}
	}
	err := s.allLetters(ctx, func(letter *Letter) { died(letter.Origin) })
	if err != nil {
		return l, err
	}
	err = s.replayedFrames(ctx, first, func(f Frame) {
		part, _ := cp.Settled.Of(f.Seq)
		whole := f.Seq < cp.Floor || cp.Settled.HasWhole(f.Seq)
		for i, r := range f.Receipts {
			switch {
			case f.Replay == ReplayDead:
				died(r.Origin)
			case whole || part.Has(i):
				l.later = append(l.later, life{placeCode(r.Origin), placeCode(Place{Seq: f.Seq, Index: i})})
			}
		}
	})
	slices.Sort(l.ended)
	slices.SortFunc(l.later, func(a, b life) int {
		return cmp.Or(cmp.Compare(a.origin, b.origin), cmp.Compare(a.place, b.place))
	})
	return l, err
}

func (l *lives) died(at Place) bool {
	_, found := slices.BinarySearch(l.ended, placeCode(at))
	return found
}

// newest is the last settled life of the receipt that was delivered at a place.
func (l *lives) newest(at Place) Place {
	code := placeCode(at)
	for {
		i, _ := slices.BinarySearchFunc(l.later, code+1, func(a life, origin uint64) int { return cmp.Compare(a.origin, origin) })
		if i == 0 || l.later[i-1].origin != code || l.later[i-1].place <= code {
			return codePlace(code)
		}
		code = l.later[i-1].place
	}
}

// allLetters walks all letters. What a replay or a purge leaves of a message is stored
// behind the others, so it walks on until nothing more has come.
func (s *Store) allLetters(ctx context.Context, fn func(*Letter)) error {
	for next, begin := uint64(1), uint64(0); next != begin; {
		begin = next
		err := s.deadMessages(ctx, begin, func(m deadMessage) error {
			next = m.seq + 1
			for i := range m.letters {
				fn(&m.letters[i])
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// replayedFrames calls fn for the frames that a replay put on the queue.
func (s *Store) replayedFrames(ctx context.Context, from uint64, fn func(Frame)) error {
	first := uint64(0)
	_, err := s.ScanFrames(ctx, from, func(f FrameInfo) {
		if first == 0 && f.Replay != ReplayNone {
			first = f.Seq
		}
	})
	if err != nil || first == 0 {
		return err
	}
	_, err = s.scan(ctx, s.receipts, s.names.receiptStream, first, false, func(msg jetstream.Msg, meta *jetstream.MsgMetadata) error {
		if msg.Headers().Get(headerReplayed) != "" {
			if f := toFrame(msg, meta); f.Err == nil {
				fn(f)
			}
		}
		return nil
	})
	return err
}

// keySet remembers what came of the keys that were put last: keysRemembered of them at
// least, twice as many at most.
type keySet struct{ young, old map[Key]int64 }

const (
	keysRemembered = 250_000
	// keyGoes is the value of a key whose receipt goes. Of one that does not it is when
	// its frame was stored, in Unix ms.
	keyGoes = 0
)

func (k *keySet) get(key Key) (int64, bool) {
	v, ok := k.young[key]
	if !ok {
		v, ok = k.old[key]
	}
	return v, ok
}

func (k *keySet) put(key Key, v int64) {
	if k.young == nil || len(k.young) >= keysRemembered {
		k.young, k.old = map[Key]int64{}, k.young
	}
	k.young[key] = v
}
