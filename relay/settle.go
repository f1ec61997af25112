package relay

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/birdtap/birdtap/clevertap"
	"github.com/birdtap/birdtap/store"
	"github.com/birdtap/birdtap/store/failpoint"
)

// ending is how a receipt was settled.
type ending int

const (
	delivered ending = iota
	deduplicated
	died
)

// letter is one dead receipt that is not yet stored as such.
type letter struct {
	item   *item
	reason store.Reason
	code   int
	upload *upload // that it came of; nil if it never left
}

// ended ends a receipt's journey. It counts once the next checkpoint is written.
func (t *term) ended(i *item, how ending) {
	switch how {
	case delivered:
		t.totals.Delivered++
		t.rate.add(1)
	case deduplicated:
		t.totals.Deduplicated++
	case died:
		t.totals.Died++
	}
	switch i.frame.replay {
	case store.ReplayDead:
		t.totals.ReplayedDead++
	case store.ReplayDelivered:
		t.totals.ReplayedDelivered++
	case store.ReplayNone:
	}
	t.metrics.settled(how, i.frame.replay)
	t.drop(i)
	f := i.frame
	f.settled.Set(i.index)
	if f.left == 0 {
		t.floor = t.settled.AddWhole(f.seq, t.floor)
	} else {
		t.settled.SetPartial(f.settled)
	}
	t.dirty = true
}

// drop gives up what is held of a receipt.
func (t *term) drop(i *item) {
	t.budget.returned += receiptCost(i.receipt)
	i.done = true
	i.receipt = nil
	i.frame.left--
	t.held--
	if i.frame.left == 0 {
		t.over++
	}
}

// bury stores the letters that have come together, one write at a time. Only then
// are they settled.
func (t *term) bury(ctx context.Context, now time.Time) {
	if t.burying || len(t.letters) == 0 || now.Before(t.buryAt) || !t.lease.MaySend(now) {
		return
	}
	letters := t.letters
	t.letters, t.burying = nil, true
	stored := make([]store.Letter, len(letters))
	for n, l := range letters {
		stored[n] = store.Letter{
			Receipt: *l.item.receipt, Reason: l.reason, Tries: l.item.tries, Died: now, Origin: l.item.place(),
			// A code may be anything; one that cannot be stored must not hold up the rest.
			Code: min(l.code, math.MaxInt32),
		}
	}
	// Behind the end of the lease another relay may be delivering these very records.
	buryCtx, cancel := context.WithDeadline(ctx, t.lease.SendUntil(now))
	t.tasks.Go(func() {
		defer cancel()
		seq, err := t.opts.Queue.Bury(buryCtx, stored)
		if err == nil {
			failpoint.Here(failpoint.LettersStored)
		}
		t.send(ctx, func() { t.buried(letters, seq, err) })
	})
}

const buryRetry = time.Second

func (t *term) buried(letters []letter, seq uint64, err error) {
	t.burying = false
	if err != nil {
		// Nothing may be dropped, so everything waits until there is room.
		if !t.stuck {
			t.log.Error("dead letters cannot be stored: uploading stops until they can", zap.Int("letters", len(letters)), zap.Error(err))
		}
		t.stuck = true
		t.buryAt = time.Now().Add(buryRetry)
		t.letters = append(letters, t.letters...)
		return
	}
	if t.stuck {
		t.log.Info("dead letters are stored again")
	}
	t.stuck = false
	t.deadSeq = max(t.deadSeq, seq)
	for _, l := range letters {
		t.metrics.dead(l.reason)
		t.settle(l.item, died, l.upload)
		if u := l.upload; u != nil {
			u.letters--
			t.finish(u)
			if !u.slot {
				t.givenUp--
			}
		}
	}
}

// finish notes a batch with nothing left to do. Its slot and its users are free
// once a checkpoint has settled it: so what is sent and not recorded is never more
// than the batches in flight, and a crash can repeat no more than that.
func (t *term) finish(u *upload) {
	if u.ended && u.letters == 0 && u.uncounted == 0 {
		t.finished = append(t.finished, u)
		t.dirty = true
	}
}

// checkpointRetry is the wait after a checkpoint without answer. A few of them fit
// into the time that a lease lasts.
const checkpointRetry = 250 * time.Millisecond

// writing is a checkpoint on its way.
type writing struct {
	number    uint64
	nth       int // of the term
	floor     uint64
	finished  []*upload
	campaigns store.CampaignChanges
}

// checkpoint writes what is settled, one write at a time: while one is on its way
// the next one gathers.
func (t *term) checkpoint(ctx context.Context, now time.Time) {
	if t.writing != nil || now.Before(t.writeAt) {
		return
	}
	if t.lease.InDoubt() {
		t.lookBack(ctx)
		return
	}
	if !t.dirty && !t.lease.NeedsWrite(now) {
		return
	}
	if w, ok := t.lease.Write(now, t.snapshot()); ok {
		t.begin(ctx, w)
	}
}

// writeRelease writes the last checkpoint of the term.
func (t *term) writeRelease(ctx context.Context) {
	if w, ok := t.lease.Release(time.Now(), t.calls, t.snapshot()); ok {
		t.begin(ctx, w)
	}
}

// begin sends a checkpoint on its way.
func (t *term) begin(ctx context.Context, w leaseWrite) {
	t.begun++
	t.writing = &writing{number: w.Number, nth: t.begun, floor: t.floor, finished: t.finished, campaigns: w.Checkpoint.Campaigns}
	t.finished, t.dirty = nil, false
	t.tasks.Go(func() {
		done := t.write(ctx, w)
		t.send(ctx, func() { t.wrote(done) })
	})
	if epoch := w.Checkpoint.Campaigns.Epoch; epoch != t.epoch {
		t.epoch = epoch // with it came room for further campaigns
		t.recount()
	}
}

// wrote is the answer to a checkpoint. If it is lost, what it was to settle waits
// for the next one.
func (t *term) wrote(done written) {
	w := t.writing
	t.writing = nil
	done.tell(t.lease)
	if t.lease.Confirmed() != w.number {
		if t.lease.Holding() && !t.unanswered {
			t.log.Warn("no answer to a checkpoint: reading it back", zap.Error(done.err))
		}
		t.unanswered = true
		t.writeAt = time.Now().Add(checkpointRetry)
		t.finished = append(w.finished, t.finished...)
		t.dirty = true
		return
	}
	t.unanswered = false
	t.confirmed = w.nth
	if t.campaigns != nil {
		t.campaigns.Confirm(w.campaigns)
	}
	t.survey.settledTo(w.floor, t.oldest())
	for _, u := range w.finished {
		if u.slot {
			t.batches--
		}
		for _, i := range u.items {
			if i != nil { // it did not step aside
				t.ready.release(i)
			}
		}
	}
}

// lookBack reads the checkpoint after the answer to a write was lost.
func (t *term) lookBack(ctx context.Context) {
	t.writing = &writing{} // nothing is written meanwhile
	t.tasks.Go(func() {
		readCtx, cancel := context.WithTimeout(ctx, t.checkpointDeadline())
		defer cancel()
		cp, rev, err := t.opts.Queue.ReadCheckpoint(readCtx)
		at := time.Now()
		known := err == nil || errors.Is(err, store.ErrNewer) // then it is none of ours
		if !known {
			wait(ctx, readRetry)
		}
		t.send(ctx, func() {
			t.writing = nil
			if known {
				t.lease.Observe(rev, cp, at)
			}
		})
	})
}

// snapshot is the checkpoint of this moment; the lease stamps its own part onto it.
func (t *term) snapshot() store.Checkpoint {
	deadSeq := t.deadSeq
	if t.recalling || len(t.died) > 0 || len(t.uncounted) > 0 {
		deadSeq = t.startDead // there are letters behind it that the totals do not include
	}
	return store.Checkpoint{
		Floor: t.floor, Settled: t.settled.Clone(), Last: t.expect - 1, DeadSeq: deadSeq, Totals: t.totals,
		Breaker: t.pace.State(), Rate: t.rate.perSecond, LastDelivered: t.rate.last,
		Campaigns: t.campaignChanges(),
	}
}

// oldest is when the oldest receipt came that the relay holds; zero if it holds none.
func (t *term) oldest() time.Time {
	// One that waits for long keeps none of those behind it.
	if 2*t.over > len(t.frames) {
		t.frames = slices.DeleteFunc(t.frames, func(f *frame) bool { return f.left == 0 })
		t.over = 0
	}
	for len(t.frames) > 0 && t.frames[0].left == 0 {
		t.frames[0] = nil
		t.frames = t.frames[1:]
		t.over--
	}
	if len(t.frames) == 0 {
		return time.Time{}
	}
	return t.frames[0].time
}

// reason555 is the reason of a record that CleverTap wanted again for too long.
const reason555 = store.Reason("555")

// asideWait is how long a record waits after its nth 555: 1 s, 2 s, 4 s … 60 s, of
// which a random half, so that a thousand that stepped aside together do not come
// back together.
func asideWait(n int) time.Duration {
	longest := min(maxAsideWait, minAsideWait<<min(n-1, 10))
	return longest/2 + rand.N(longest/2) //nolint:gosec // no secret
}

const (
	minAsideWait = time.Second
	maxAsideWait = time.Minute
)

// crowded bounds the checkpoint, which has to fit one message. A receipt that steps
// aside for long leaves its frame settled in part; with thousands of such frames
// the oldest goes to the dead letters early, and then reading pauses.
//
// It bounds the wait of everybody else, too: when the records aside, and what waits
// behind them, take all the memory there is, so that nothing more is read and nothing
// else is on the way, the oldest goes as well.
func (t *term) crowded() {
	if t.starved() {
		t.giveUpOldest()
	}
	size := wholeBytes*len(t.settled.Whole) + partialBytes*len(t.settled.Partial)
	for n := size - maxSettledBytes - partialBytes*t.givenUp; n > 0; n -= partialBytes {
		if !t.giveUpOldest() {
			break
		}
		t.givenUp++
	}
	t.budget.setShut(size > maxSettledBytes)
}

// starved tells whether the reader waits for memory that only records aside hold, and
// nothing but those records is to blame.
func (t *term) starved() bool {
	if t.survey.paused.Load() || t.stopping || t.stuck || t.pace.State() != breakerClosed {
		return false
	}
	return t.budget.starved() && t.batches == 0 && t.ready.idle() && len(t.letters) == 0 && !t.burying && len(t.uncounted) == 0 && t.writing == nil && !t.dirty
}

// giveUpOldest sends the record that stepped aside first to the dead letters.
func (t *term) giveUpOldest() bool {
	i := t.ready.oldestAside()
	if i == nil {
		return false
	}
	t.log.Warn("too many receipts wait for records that CleverTap answered with 555: the oldest goes to the dead letters before its time")
	t.ready.giveUp(i)
	u := &upload{items: []*item{i}, ended: true, letters: 1}
	t.letters = append(t.letters, letter{item: i, reason: reason555, code: int(clevertap.CodeServerError), upload: u})
	return true
}

// What settled frames take in a checkpoint, in bytes, at most.
const (
	wholeBytes      = 64
	partialBytes    = 256
	maxSettledBytes = 512 << 10
)

// rate is how many receipts were delivered per second of late.
type rate struct {
	perSecond float64
	last      time.Time // of a delivery
	since     time.Time
	count     int
}

func (r *rate) add(n int) { r.count += n }

// tick takes the count of the time since the last tick, of a second at least.
func (r *rate) tick(now time.Time) {
	if r.since.IsZero() {
		r.since = now
	}
	passed := now.Sub(r.since)
	if passed < time.Second {
		return
	}
	const weight = 0.3 // of the newest second
	r.perSecond += weight * (float64(r.count)/passed.Seconds() - r.perSecond)
	if r.count > 0 {
		r.last = now
	}
	r.since, r.count = now, 0
}
