package sender

import (
	"context"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"

	"github.com/birdtap/birdtap/store"
	"github.com/birdtap/birdtap/store/failpoint"
)

// note writes the intent of a call to the checkpoint, and returns true once that stands.
// False: it may stand or not, and nothing may be sent.
func (t *term) note(ctx context.Context, c *call, users int, uploading bool) bool {
	stands := make(chan struct{})
	t.send(ctx, func() {
		t.noted[c.number] = &noted{Number: c.number, Places: c.places(), Mode: c.mode, Users: users, Uploading: uploading, Released: c.released}
		t.waiters = append(t.waiters, stands)
		t.dirty = true
	})
	select {
	case <-stands:
		return true
	case <-ctx.Done():
		return false
	}
}

// finished settles a call, or has it tried again.
func (t *term) finished(c *call, out outcome) {
	// So many campaigns changed of late that the checkpoint has no room for one more
	// before the others are on their pages.
	if m := c.group.message; m.Event != "" && out.kind != callLater && !t.campaigns.Add(m.campaign(), store.CampaignCounts{}) {
		t.uncounted = append(t.uncounted, func() { t.finished(c, out) })
		t.dirty = true
		return
	}
	delete(t.carried, c.number)
	if _, ok := t.noted[c.number]; ok {
		delete(t.noted, c.number)
		t.dirty = true
	}
	t.judgeSendbird(&out)
	if out.kind == callLater {
		t.tryAgain(c, &out)
		return
	}
	d := counts{}
	switch users := int64(out.users); out.kind {
	case callSent:
		d.Sent = users
	case callRefused:
		d.Refused = users
	case callUnknown:
		d.Held = users
	case callEmpty, callDropped, callLater: // nobody, of whom more is to be said
	}
	if c.released != "" {
		d = t.decided(c, &out, d)
	} else if out.kind == callUnknown {
		t.held = append(t.held, heldCall{ID: t.heldID(c.number), Mode: c.mode, Users: out.users})
	}
	t.account(c, &out, d)
	for _, e := range c.group.entries {
		t.budget.give(entryCost(e.data))
		t.done(e.at)
	}
	t.rise()
}

// decided takes a held call off the list that was sent, refused or dropped; of one whose
// outcome is unknown once more nothing has changed.
func (t *term) decided(c *call, out *outcome, d counts) counts {
	t.isCarriedOut(c.order)
	if out.kind == callUnknown {
		out.unsendable, out.misfits = nil, nil // they are held with the others
		return counts{}
	}
	i := slices.IndexFunc(t.held, func(h heldCall) bool { return h.ID == c.released })
	users := int64(t.held[i].Users)
	t.held = slices.Delete(t.held, i, i+1)
	t.forget = append(t.forget, c.released)
	d.Held = -users
	if out.kind == callDropped {
		d.Dropped = users
	}
	return d
}

// account adds a call's users to the figures.
func (t *term) account(c *call, out *outcome, d counts) {
	m := c.group.message
	refused := map[Reason]int64{}
	if out.kind == callRefused {
		refused[out.reason] += d.Refused
	}
	for _, u := range slices.Concat(out.unsendable, out.misfits) {
		refused[u.Reason]++
	}
	d.Refused = 0
	for reason, n := range refused {
		t.totals.refuse(c.mode, reason, n)
		d.Refused += n
	}
	whole := d
	d.Refused = 0 // is in the totals already
	t.totals.add(c.mode, d)
	t.metrics.settled(c.mode, whole)
	if m.Job != "" {
		j := t.job(m.Job)
		j.Users.add(whole)
		for reason, n := range refused {
			if j.RefusedBy == nil {
				j.RefusedBy = map[Reason]int64{}
			}
			j.RefusedBy[reason] += n
		}
	}
	if m.Event != "" {
		asked := int64(0)
		if c.released == "" {
			asked = whole.Sent + whole.Refused + whole.Held
		}
		t.campaigns.Add(m.campaign(), store.CampaignCounts{Asked: asked, Sent: whole.Sent, Refused: whole.Refused, Held: whole.Held, Dropped: whole.Dropped})
	}
}

func (t *term) job(id string) *jobState {
	if i := slices.IndexFunc(t.jobs, func(j *jobState) bool { return j.ID == id }); i >= 0 {
		return t.jobs[i]
	}
	if len(t.jobs) >= maxJobs {
		if i := slices.IndexFunc(t.jobs, func(j *jobState) bool { return j.Ended }); i >= 0 {
			delete(t.nextPart, t.jobs[i].ID)
			t.jobs = slices.Delete(t.jobs, i, i+1)
		}
	}
	j := &jobState{ID: id}
	t.jobs = append(t.jobs, j)
	return j
}

// rise moves the floor, and notes which parts of files lie below it.
func (t *term) rise() {
	t.ledger.rise()
	for len(t.parts) > 0 && t.parts[0].at.seq() < t.ledger.floor {
		p := t.parts[0]
		t.parts = t.parts[1:]
		j := t.job(p.job)
		j.Next, j.Ended = p.part+1, j.Ended || p.last
	}
}

// judgeSendbird notes whether Sendbird takes calls at all.
func (t *term) judgeSendbird(out *outcome) {
	switch out.kind {
	case callSent, callRefused:
		if t.refuses != "" {
			t.log.Info("Sendbird takes calls again")
			t.refuses, t.dirty = "", true
		}
		t.failures = 0
		t.backoff.Reset()
	case callLater, callUnknown:
		if out.why == "" || out.inherited || out.status == http.StatusTooManyRequests {
			return // not Sendbird's doing, or paced by its own word
		}
		t.failures++
		t.pausedTo = time.Now().Add(max(t.backoff.NextBackOff(), out.retryAfter))
		if t.refuses == "" && out.kind == callLater && (out.account || t.failures >= manyFailures) {
			t.refuses, t.dirty = out.why, true
			t.log.Error("Sendbird takes no calls: nothing is lost, they are tried again until it does", zap.String("reason", out.why))
		}
	case callEmpty, callDropped:
	}
}

// manyFailures in a row are not the fault of single calls.
const manyFailures = 3

// tryAgain puts a call back that nobody has heard of. Behind the others: it may be the
// call that is at fault.
func (t *term) tryAgain(c *call, out *outcome) {
	c.tries++
	wait := min(maxAgain, minAgain<<min(c.tries-1, 10))
	c.notBefore = time.Now().Add(max(out.retryAfter, wait/2+rand.N(wait/2))) //nolint:gosec // no secret
	if c.mode == ModeRealtime && c.released == "" {
		t.realtime = append(t.realtime, c)
	} else {
		t.batches = append(t.batches, c)
	}
}

const (
	minAgain = time.Second
	maxAgain = time.Minute
)

// settle writes what is done, one write at a time: while one is on its way the next one
// gathers.
func (t *term) settle(ctx context.Context, now time.Time) {
	t.rise()
	t.trim(ctx, now)
	if t.writing || !t.dirty {
		return
	}
	cp := t.snapshot()
	waiters, forget, carriedOut := t.waiters, t.forget, t.carriedOut
	t.waiters, t.forget, t.carriedOut, t.dirty, t.writing = nil, nil, nil, false, true
	t.tasks.Go(func() {
		err := t.lease.store(ctx, &cp)
		failpoint.Here(failpoint.SenderWritten)
		if err == nil {
			for _, w := range waiters {
				close(w)
			}
		}
		t.send(ctx, func() { t.wrote(ctx, &cp, err) })
		if err != nil {
			return
		}
		for _, id := range forget {
			t.insist(ctx, "a held call is decided", func() error { return t.opts.Sends.Forget(ctx, id) })
			failpoint.Here(failpoint.HeldForgotten)
		}
		for _, o := range carriedOut {
			t.insist(ctx, "a decision is carried out", func() error { return t.opts.Sends.Ordered(ctx, o) })
		}
	})
}

// wrote is the answer to a checkpoint.
func (t *term) wrote(ctx context.Context, cp *checkpoint, err error) {
	t.writing = false
	if err != nil {
		t.err = err
		return
	}
	t.stands = cp.Floor
	t.campaigns.Confirm(cp.Campaigns)
	if t.flushing || !t.campaigns.Due() {
		return
	}
	t.flushing = true
	t.tasks.Go(func() {
		t.insist(ctx, "the figures of campaigns", func() error { return t.campaigns.Flush(ctx) })
		t.send(ctx, func() {
			t.flushing, t.dirty = false, true
			late := t.uncounted
			t.uncounted = nil
			for _, settle := range late {
				settle()
			}
		})
	})
}

// snapshot is the checkpoint of this moment; the lease stamps its own part onto it.
func (t *term) snapshot() checkpoint {
	cp := checkpoint{
		Floor: t.ledger.floor, Settled: slices.Clone(t.ledger.settled),
		NextCall: t.nextCall, Held: slices.Clone(t.held), Totals: t.totals.clone(), Refuses: t.refuses,
		Campaigns: t.campaigns.Changes(),
	}
	for _, number := range slices.Sorted(maps.Keys(t.noted)) {
		cp.Calls = append(cp.Calls, *t.noted[number])
	}
	for _, j := range t.jobs {
		whole := *j
		whole.RefusedBy = maps.Clone(j.RefusedBy)
		cp.Jobs = append(cp.Jobs, whole)
	}
	return cp
}

// trim deletes what a checkpoint on disk knows to be settled, and is no longer needed to
// tell a webhook call that was made again: two windows before the oldest frame that is not
// settled, since a copy counts from the first one, which has to be there for that.
func (t *term) trim(ctx context.Context, now time.Time) {
	if now.Before(t.trimAt) {
		return
	}
	t.trimAt = now.Add(trimEvery)
	until := now
	if n := len(t.frames); n > 0 && !t.caughtUp {
		until = t.frames[n-1].time
	}
	if f := t.ledger.frames[t.ledger.floor]; f != nil && f.time.Before(until) {
		until = f.time
	}
	until = until.Add(-2*repeatWindow - time.Minute)
	cut := uint64(0)
	for len(t.frames) > 0 && t.frames[0].seq < t.stands && t.frames[0].time.Before(until) {
		cut = t.frames[0].seq + 1
		t.frames = t.frames[1:]
	}
	if cut == 0 {
		return
	}
	t.tasks.Go(func() {
		if err := t.opts.Sends.Trim(ctx, cut); err != nil && ctx.Err() == nil {
			t.log.Warn("cannot trim the log of the sender", zap.Error(err))
		}
	})
}

// tell shows where the term stands.
func (t *term) tell(now time.Time) {
	t.full.Store(t.overfull())
	t.metrics.active.Set(1)
	t.metrics.inflight.Set(float64(len(t.carried)))
	t.metrics.held.Set(float64(len(t.held)))
	t.metrics.gathering.Set(float64(t.gatherer.users + len(t.realtime)))
	t.metrics.refuses.Set(0)
	if t.refuses != "" {
		t.metrics.refuses.Set(1)
	}
	t.progress.Store(now.UnixNano())
}

// entryCost is about what an ask that waits takes in memory, with all that is kept beside
// its bytes.
func entryCost(data []byte) int {
	if data == nil {
		return 0
	}
	return 2*len(data) + 600
}

// budget bounds the bytes of what waits in memory.
type budget struct {
	room    *semaphore.Weighted
	waiting atomic.Bool // the reader stands still for want of room
}

func newBudget(bytes int64) *budget { return &budget{room: semaphore.NewWeighted(bytes)} }

func (b *budget) take(ctx context.Context, n int) error {
	if b.room.TryAcquire(int64(n)) {
		return nil
	}
	b.waiting.Store(true)
	defer b.waiting.Store(false)
	return b.room.Acquire(ctx, int64(n))
}

func (b *budget) give(n int) { b.room.Release(int64(n)) }
