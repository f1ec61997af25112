package sender

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/birdtap/birdtap/store"
)

// read brings frames to the loop, as far as memory allows.
func (t *term) read(ctx context.Context) {
	r := t.opts.Sends.Read(1) // the oldest there is: those below the floor tell what was asked before
	defer r.Close()
	for {
		for t.full.Load() && ctx.Err() == nil { // the checkpoint has no room for more
			wait(ctx, storeRetry)
		}
		f, err := r.Next(ctx)
		if err != nil {
			return // stopped
		}
		if errors.Is(f.Err, store.ErrNewer) {
			t.log.Error("a frame was written by a newer birdtap: waiting for one that reads it", zap.Uint64("frame", f.Seq))
			<-ctx.Done()
			return
		}
		if t.budget.take(ctx, frameCost(&f)) != nil {
			return // stopped
		}
		t.send(ctx, func() { t.take(ctx, &f) })
	}
}

func frameCost(f *store.SendFrame) int {
	n := 0
	for i := range f.Asks {
		n += entryCost(f.Asks[i].Data)
	}
	return n
}

// take is the arrival of one frame.
func (t *term) take(ctx context.Context, f *store.SendFrame) {
	now := time.Now()
	t.missing(f.Seq)
	t.caughtUp = !f.More
	t.frames = append(t.frames, frameMark{f.Seq, f.Time})
	kept := 0
	if f.Err != nil {
		t.corrupt(ctx, f)
	} else {
		t.ledger.open(f.Seq, len(f.Asks), f.Time)
		for i := range f.Asks {
			kept += t.admit(placeOf(f.Seq, i), f.Time, &f.Asks[i], now)
		}
	}
	t.budget.give(frameCost(f) - kept)
	if f.Seq >= t.recoverTo {
		t.recoverRest()
	}
}

// missing settles the frames between the last one read and seq: they are gone.
func (t *term) missing(seq uint64) {
	if t.expect == 0 {
		t.expect = min(seq, t.ledger.floor) // what lies before was trimmed
	}
	gone := 0
	for s := t.expect; s < seq; s++ {
		if s >= t.ledger.floor && !t.ledger.settled.has(placeOf(s, 0)) {
			gone++
			t.ledger.settleFrames(s, s)
			t.dirty = true
		}
	}
	if gone > 0 {
		t.log.Error("frames are missing from the sender's log: its files were damaged, or someone deleted them; who was asked for in them is not sent to",
			zap.Uint64("first", t.expect), zap.Int("frames", gone))
	}
	t.expect = seq + 1
}

// corrupt settles a frame that does not decode. What there is of it goes on the list of
// those who were not sent to.
func (t *term) corrupt(ctx context.Context, f *store.SendFrame) {
	if f.Seq < t.ledger.floor || t.ledger.settled.has(placeOf(f.Seq, 0)) {
		return
	}
	t.log.Error("a frame of the sender's log does not decode: who was asked for in it is not sent to", zap.Uint64("frame", f.Seq), zap.Error(f.Err))
	t.ledger.settleFrames(f.Seq, f.Seq)
	t.totals.refuse(ModeBatch, ReasonCorrupt, 1)
	t.metrics.settled(ModeBatch, counts{Refused: 1})
	t.dirty = true
	t.tasks.Go(func() { t.listCorrupt(context.WithoutCancel(ctx), f) })
}

// admit decides what becomes of one ask that was just read, and returns how many of its
// bytes stay in memory.
func (t *term) admit(at place, accepted time.Time, raw *store.Ask, now time.Time) int {
	a, err := decodeAsk(raw.Data)
	settled := t.ledger.isSettled(at)
	if errors.Is(err, store.ErrNewer) {
		t.leave(at, accepted, raw, err, settled)
		return 0
	}
	if err != nil {
		if !settled {
			t.log.Error("an ask does not decode: who was asked for in it is not sent to", zap.Uint64("frame", at.seq()), zap.Error(err))
			t.totals.refuse(ModeBatch, ReasonCorrupt, 1)
			t.done(at)
		}
		return 0
	}
	again := t.madeBefore(at, accepted, raw.Key) || t.partBefore(at, &a)
	if settled {
		return 0
	}
	for _, r := range t.recover {
		if r.Places.has(at) {
			return t.regain(r, at, accepted, &a, raw.Data)
		}
	}
	if again {
		t.totals.Duplicates += int64(len(a.Users))
		t.metrics.duplicates.Add(float64(len(a.Users)))
		t.done(at)
		return 0
	}
	e := newEntry(at, accepted, &a, raw.Data)
	if a.Mode == ModeRealtime || len(a.Users) == 0 {
		t.realtime = append(t.realtime, t.newCall(&gathering{message: a.Message, entries: []entry{e}, users: len(e.users)}, a.Mode))
	} else {
		t.gatherer.add(&a, e, now)
	}
	return entryCost(e.data)
}

// leave lets an ask of a newer birdtap stay in the log, for one that reads it: it is not
// settled. If it is part of a call that was on its way, that call stays noted, too.
func (t *term) leave(at place, accepted time.Time, raw *store.Ask, err error, settled bool) {
	again := t.madeBefore(at, accepted, raw.Key)
	switch {
	case settled:
		return
	case again:
		t.done(at) // it is counted with the first one
		return
	}
	t.log.Error("an ask was written by a newer birdtap: it waits for one that reads it", zap.Uint64("frame", at.seq()), zap.Error(err))
	for _, r := range t.recover {
		r.newer = r.newer || r.Places.has(at)
	}
}

func newEntry(at place, accepted time.Time, a *Ask, data []byte) entry {
	e := entry{at: at, accepted: accepted, data: slices.Clone(data)}
	for _, u := range a.Users {
		e.users = append(e.users, u.ID)
	}
	return e
}

// done settles an ask.
func (t *term) done(at place) {
	t.ledger.settle(at)
	t.dirty = true
}

// madeBefore tells whether the same webhook call came before, within the window. The log
// keeps what this asks for; see trim.
func (t *term) madeBefore(at place, accepted time.Time, key store.Key) bool {
	for len(t.seenInOrder) > 0 && accepted.Sub(t.seenInOrder[0].time) > repeatWindow {
		if t.seen[t.seenInOrder[0].key] == t.seenInOrder[0] {
			delete(t.seen, t.seenInOrder[0].key)
		}
		t.seenInOrder = t.seenInOrder[1:]
	}
	if key == (store.Key{}) {
		return false
	}
	if first, ok := t.seen[key]; ok && accepted.Sub(first.time) <= repeatWindow {
		return first.at != at
	}
	first := firstSeen{key, at, accepted}
	t.seen[key] = first
	t.seenInOrder = append(t.seenInOrder, first)
	return false
}

// partBefore tells whether a part of a file came before: who sends it anew after a break
// begins with the last ones.
func (t *term) partBefore(at place, a *Ask) bool {
	if a.Job == "" {
		return false
	}
	if a.Part < t.nextPart[a.Job] && at.seq() >= t.ledger.floor {
		return true
	}
	if at.seq() >= t.ledger.floor {
		t.nextPart[a.Job] = a.Part + 1
		t.parts = append(t.parts, partSeen{at, a.Job, a.Part, a.Last})
	}
	return false
}

// regain takes in an ask of a call that the last term had noted.
func (t *term) regain(r *recovering, at place, accepted time.Time, a *Ask, data []byte) int {
	r.message = a.Message
	r.entries = append(r.entries, newEntry(at, accepted, a, data))
	if r.left--; r.left == 0 {
		t.regained(r)
	}
	return entryCost(data)
}

// recoverRest ends the recovery of calls of which a part is missing in the log.
func (t *term) recoverRest() {
	for _, r := range t.recover {
		if r.newer {
			continue
		}
		t.log.Error("a call that was on its way is not whole in the log: what is left of it is held", zap.Uint64("call", r.Number), zap.Int("asks_missing", r.left))
		t.regained(r)
	}
}

// regained goes on with a call of the last term: one whose file was being uploaded goes
// on, for nobody was notified; of any other nobody knows.
func (t *term) regained(r *recovering) {
	delete(t.recover, r.Number)
	g := &gathering{message: r.message, entries: r.entries}
	for _, e := range r.entries {
		g.users += len(e.users)
	}
	c := &call{number: r.Number, mode: r.Mode, group: g, again: true}
	if r.Uploading {
		t.batches = append(t.batches, c)
		return
	}
	t.lost = append(t.lost, c)
}

func (t *term) newCall(g *gathering, mode Mode) *call {
	c := &call{number: t.nextCall, mode: mode, group: g}
	t.nextCall++
	return c
}
