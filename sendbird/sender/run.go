package sender

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"
	"go.uber.org/zap"

	"github.com/birdtap/birdtap/store"
)

const (
	// maxCalls are under way at once. Sendbird limits calls per second, which the client
	// minds; more at once would gain nothing at a usual answer time.
	maxCalls = 16
	// maxBatches are among them, or one file, whose users are in memory.
	maxBatches = 2
	// heldBytes is about how much of what waits is in memory; the rest stays in the log.
	heldBytes = 32 << 20
	// repeatWindow is how long the same webhook call counts as made again: CleverTap tries
	// up to four times, 15 s apart after at most 5 s each;
	// https://docs.clevertap.com/docs/webhooks.
	repeatWindow = 2 * time.Minute

	maxRest     = 500 * time.Millisecond
	beginRetry  = time.Second
	trimEvery   = 10 * time.Second
	releaseWait = 5 * time.Second
)

// term is the work of one active term. Its fields belong to the goroutine of run; the
// others talk to it by events.
type term struct {
	*Sender
	lease     *lease
	templates *templates
	campaigns *store.Campaigns
	was       checkpoint // that was taken over
	holding   sync.Mutex

	// What is done, as the next checkpoint will say it.
	ledger   *ledger
	nextCall uint64
	noted    map[uint64]*noted
	held     []heldCall
	jobs     []*jobState
	totals   totals
	refuses  string

	// Reading.
	expect      uint64                  // the next frame
	seen        map[store.Key]firstSeen // webhook calls of the last repeatWindow
	seenInOrder []firstSeen             // the same, the oldest first
	parts       []partSeen              // of files, at or above the floor, in order
	nextPart    map[string]int          // of each file, as read so far
	recover     map[uint64]*recovering  // calls that the last term had noted
	recoverTo   uint64                  // the last frame that may be part of one
	frames      []frameMark             // kept in the log
	caughtUp    bool                    // nothing more lay behind the last frame

	// Calling.
	gatherer  *gatherer
	realtime  []*call // that wait for their turn, in order
	batches   []*call
	lost      []*call          // that the last term had noted, for the operator
	carried   map[uint64]*call // under way
	backoff   *backoff.ExponentialBackOff
	failures  int                    // calls in a row that Sendbird did not take
	pausedTo  time.Time              // no call before
	orders    map[string]store.Order // decisions about held calls that are under way, by id
	orderedTo map[string]uint64      // sequences of those that were carried out, by id
	saidHeld  bool

	// Settling.
	waiters    []chan struct{} // for the next checkpoint
	forget     []string        // held calls that are settled, once a checkpoint says so
	carriedOut []store.Order   // decisions that are carried out, once a checkpoint says so
	stands     uint64          // the floor that a checkpoint on disk has
	uncounted  []func()        // calls that are to be settled when their campaign can be counted
	writing    bool
	flushing   bool
	dirty      bool
	trimAt     time.Time
	err        error // why the term has to end

	full     atomic.Bool // overfull, for the reader
	stopping bool
	events   chan func()
	budget   *budget
	tasks    sync.WaitGroup
}

type firstSeen struct {
	key  store.Key
	at   place
	time time.Time
}

type partSeen struct {
	at   place
	job  string
	part int
	last bool
}

type frameMark struct {
	seq  uint64
	time time.Time
}

// recovering is a call of the last term that is put together again from the log.
type recovering struct {
	noted
	entries []entry
	left    int
	newer   bool // a part of it was written by a newer birdtap: it is left alone
	message Message
}

func (s *Sender) newTerm(l *lease, cp checkpoint) *term {
	t := &term{
		Sender: s, lease: l,
		templates: &templates{client: s.opts.Client},
		ledger:    newLedger(cp.Floor, cp.Settled),
		nextCall:  cp.NextCall,
		noted:     map[uint64]*noted{},
		held:      cp.Held,
		was:       cp,
		totals:    cp.Totals.clone(),
		seen:      map[store.Key]firstSeen{},
		nextPart:  map[string]int{},
		recover:   map[uint64]*recovering{},
		gatherer:  newGatherer(s.opts.GatherWait),
		carried:   map[uint64]*call{},
		orders:    map[string]store.Order{},
		orderedTo: map[string]uint64{},
		stands:    cp.Floor,
		events:    make(chan func(), 64),
		budget:    newBudget(heldBytes),
		backoff: backoff.NewExponentialBackOff(backoff.WithInitialInterval(500*time.Millisecond), backoff.WithMultiplier(2),
			backoff.WithRandomizationFactor(1), backoff.WithMaxInterval(30*time.Second), backoff.WithMaxElapsedTime(0)),
	}
	for _, n := range cp.Calls {
		t.noted[n.Number] = &n
		if n.Released != "" || len(n.Places) == 0 {
			continue // see cancelOrders
		}
		t.recover[n.Number] = &recovering{noted: n, left: n.Places.size()}
		t.recoverTo = max(t.recoverTo, (n.Places[len(n.Places)-1].end - 1).seq())
	}
	for _, j := range cp.Jobs {
		t.jobs = append(t.jobs, &j)
		t.nextPart[j.ID] = j.Next
	}
	return t
}

// run is a notification's way: read → gather → call → settle → checkpoint. Reading, calls
// and writes are goroutines that come back with an event; everything is decided here.
func (t *term) run(ctx context.Context) error {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop, halt := context.WithCancel(work)
	defer t.end(cancel)
	defer halt()
	if err := t.opts.Sends.AnswerAlive(work); err != nil {
		return err
	}
	for said := false; ; wait(ctx, beginRetry) {
		err := t.begin(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			t.lease.abandon(work, t.was)
			return nil
		}
		if !said {
			t.log.Error("cannot begin, trying on", zap.Error(err))
			said = true
		}
	}
	t.log.Info("active", zap.Uint64("term", t.lease.term))
	t.tasks.Go(func() { t.read(stop) })
	t.tasks.Go(func() { t.watchOrders(stop) })

	tick := time.NewTimer(0)
	defer tick.Stop()
	var giveUp <-chan time.Time
	asked := ctx.Done()
	for t.err == nil {
		now := time.Now()
		t.start(work, stop, now)
		t.settle(work, now)
		t.tell(now)
		if t.stopping && len(t.carried) == 0 && !t.writing && !t.dirty {
			break
		}
		tick.Reset(t.rest(now))
		select {
		case event := <-t.events:
			event()
			t.more()
		case <-tick.C:
		case <-asked:
			asked, t.stopping = nil, true
			halt()
			giveUp = time.After(t.opts.StopWait)
		case <-giveUp:
			t.log.Warn("stopping with calls on their way: they will be held", zap.Int("calls", len(t.carried)))
			t.err = errStop
		}
	}
	return t.conclude(work)
}

var errStop = errors.New("stopped")

// conclude ends a term: by giving it back, if it is still ours.
func (t *term) conclude(ctx context.Context) error {
	if t.err != nil && !errors.Is(t.err, errStop) {
		if errors.Is(t.err, errLost) {
			t.log.Warn("the term is over: another sender has taken over")
			return nil
		}
		return t.err
	}
	ctx, cancel := context.WithTimeout(ctx, releaseWait)
	defer cancel()
	for t.writing { // the last one has to be answered first
		select {
		case event := <-t.events:
			event()
		case <-ctx.Done():
			return nil
		}
	}
	cp := t.snapshot()
	if err := t.lease.release(ctx, &cp); err != nil {
		t.log.Warn("the term could not be given back: the next sender waits until it runs out", zap.Error(err))
		return nil
	}
	t.log.Info("stopped", zap.Uint64("floor", t.ledger.floor), zap.Int("gathering", t.gatherer.users))
	return nil
}

// begin reads what the checkpoint does not say itself.
func (t *term) begin(ctx context.Context) error {
	campaigns, err := t.opts.Sends.OpenCampaigns(ctx, t.was.Campaigns)
	if err != nil {
		return err
	}
	t.campaigns = campaigns
	last, frames, err := t.opts.Sends.Last(ctx)
	if err != nil {
		return err
	}
	if end := t.lastKnown(); last < end {
		// New asks would get places that count as settled, and never leave.
		t.log.Error("the log of the sender was cut: its files were damaged or replaced; what was behind its end is lost",
			zap.Uint64("last_frame", last), zap.Uint64("settled_to", end))
		if err := t.opts.Sends.Trim(ctx, end+1); err != nil {
			return err
		}
	}
	if err := t.cancelOrders(ctx); err != nil {
		return err
	}
	if err := t.tidy(ctx); err != nil {
		return err
	}
	if t.recoverTo = min(t.recoverTo, last); frames == 0 {
		t.recoverRest()
	}
	return nil
}

// tidy forgets calls that no checkpoint knows: they were decided, or are about to be held
// again, when a crash came between.
func (t *term) tidy(ctx context.Context) error {
	var over []string
	err := t.opts.Sends.Held(ctx, func(id string, _ []byte) error {
		if !slices.ContainsFunc(t.held, func(h heldCall) bool { return h.ID == id }) {
			over = append(over, id)
		}
		return nil
	})
	for _, id := range over {
		err = errors.Join(err, t.opts.Sends.Forget(ctx, id))
	}
	return err
}

// lastKnown is the last frame of which the checkpoint knows something.
func (t *term) lastKnown() uint64 {
	end := t.ledger.floor - 1
	if n := len(t.ledger.settled); n > 0 {
		end = max(end, (t.ledger.settled[n-1].end - 1).seq())
	}
	return max(end, t.recoverTo)
}

// end stops the goroutines of the term and waits for them.
func (t *term) end(cancel context.CancelFunc) {
	cancel()
	t.tasks.Wait()
	t.metrics.idle()
	t.progress.Store(0)
}

// more handles what has come meanwhile, before anything new is begun.
func (t *term) more() {
	for {
		select {
		case event := <-t.events:
			event()
		default:
			return
		}
	}
}

// send hands an event to the loop, unless it has ended.
func (t *term) send(ctx context.Context, event func()) {
	select {
	case t.events <- event:
	case <-ctx.Done():
	}
}

// rest is how long nothing has to be done unless an event comes.
func (t *term) rest(now time.Time) time.Duration {
	d := maxRest
	for _, at := range []time.Time{t.gatherer.wakeAt(), t.pausedTo} {
		if at.After(now) {
			d = min(d, at.Sub(now))
		}
	}
	return d
}
