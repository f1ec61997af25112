package sender

import (
	"context"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/birdtap/birdtap/sendbird"
)

// start begins calls for as long as there is room for them.
func (t *term) start(ctx, stop context.Context, now time.Time) {
	for _, c := range t.lost {
		t.launch(c, func() { t.handOver(ctx, c) })
	}
	t.lost = nil
	t.launchDrops(ctx, stop)
	for c := t.next(now); c != nil; c = t.next(now) {
		t.launch(c, func() { t.carry(ctx, stop, c) })
	}
}

func (t *term) launch(c *call, do func()) {
	t.carried[c.number] = c
	t.tasks.Go(do)
}

// crowded tells whether a group has to leave before its time: memory, or the checkpoint,
// has no room for what the others would need.
func (t *term) crowded() bool {
	return (t.budget.waiting.Load() || t.overfull()) && len(t.batches) == 0 && len(t.carried) == 0
}

// next is the call that may begin now, nil if none may. Those in real time come first.
// While Sendbird takes nothing, one of them and one other find out whether it does again.
func (t *term) next(now time.Time) *call {
	if t.stopping || now.Before(t.pausedTo) {
		return nil
	}
	if t.undecided() {
		return pick(&t.batches, now, func(c *call) bool { return c.released != "" })
	}
	mostRealtime, mostOthers := maxCalls, maxBatches
	if t.failures > 0 {
		mostRealtime, mostOthers = 1, 1
	}
	realtime, others := 0, 0
	for _, c := range t.carried {
		switch c.mode {
		case ModeRealtime:
			realtime++
		case ModeBatch:
			others++
		case ModeCSV:
			others += maxBatches // its users, and their file
		}
	}
	if realtime < mostRealtime {
		if c := pick(&t.realtime, now, func(*call) bool { return true }); c != nil {
			return c
		}
	}
	if others >= mostOthers {
		return nil
	}
	if c := pick(&t.batches, now, func(*call) bool { return true }); c != nil {
		return c
	}
	// No sooner than it can leave: until then others may come to join it.
	g := t.gatherer.next(now, t.crowded())
	if g == nil {
		return nil
	}
	mode := g.message.Mode
	if g.users > sendbird.MaxBatchTargets {
		mode = ModeCSV
	}
	return t.newCall(g, mode)
}

// pick takes the first call out of a list that may begin.
func pick(list *[]*call, now time.Time, may func(*call) bool) *call {
	i := slices.IndexFunc(*list, func(c *call) bool { return !c.notBefore.After(now) && may(c) })
	if i < 0 {
		return nil
	}
	c := (*list)[i]
	*list = slices.Delete(*list, i, i+1)
	return c
}

// maxHeld calls may wait for an operator. Beyond that something is wrong that sending
// more would only make larger.
const maxHeld = 2000

// undecided tells whether so many calls are held that none is made but what the operator
// releases.
func (t *term) undecided() bool {
	if len(t.held) < t.opts.maxHeld {
		t.saidHeld = false
		return false
	}
	if !t.saidHeld {
		t.saidHeld = true
		t.log.Error("too many calls are held: nothing is sent until an operator decides about them (birdtap send --held)", zap.Int("calls", len(t.held)))
	}
	return true
}

// overfull tells whether the checkpoint nears the size that a message may have: the log is
// read no further until the oldest asks are settled.
func (t *term) overfull() bool { return len(t.ledger.settled) > maxSpans }

// maxSpans take 4 bytes each as base64; with those of a file on its way, maxCallSpans, of
// two batches, and maxHeld calls they stay below store.MaxSenderCheckpoint.
const maxSpans = 40_000
