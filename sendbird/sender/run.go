package sender

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"go.uber.org/zap"

	"github.com/birdtap/birdtap/sendbird"
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
	was       store.CampaignChanges // of the campaigns, in the checkpoint that was taken over
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
	gatherer *gatherer
	realtime []*call // that wait for their turn, in order
	batches  []*call
	lost     []*call          // that the last term had noted, for the operator
	carried  map[uint64]*call // under way
	backoff  *backoff.ExponentialBackOff
	failures int             // calls in a row that Sendbird did not take
	pausedTo time.Time       // no call before
	orders   map[string]bool // held calls about which an order is under way
	saidHeld bool

	// Settling.
	waiters   []chan struct{} // for the next checkpoint
	forget    []string        // held calls that are settled, once a checkpoint says so
	uncounted []func()        // calls that are to be settled when their campaign can be counted
	writing   bool
	flushing  bool
	dirty     bool
	trimAt    time.Time
	err       error // why the term has to end

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
		was:       cp.Campaigns,
		totals:    cp.Totals.clone(),
		seen:      map[store.Key]firstSeen{},
		nextPart:  map[string]int{},
		recover:   map[uint64]*recovering{},
		gatherer:  newGatherer(s.opts.GatherWait),
		carried:   map[uint64]*call{},
		orders:    map[string]bool{},
		events:    make(chan func(), 64),
		budget:    newBudget(heldBytes),
		backoff: backoff.NewExponentialBackOff(backoff.WithInitialInterval(500*time.Millisecond), backoff.WithMultiplier(2),
			backoff.WithRandomizationFactor(1), backoff.WithMaxInterval(30*time.Second), backoff.WithMaxElapsedTime(0)),
	}
	for _, n := range cp.Calls {
		t.noted[n.Number] = &n
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
	if err := t.begin(stop); err != nil {
		return err
	}
	t.log.Info("active", zap.Uint64("term", t.lease.term))
	t.tasks.Go(func() { t.read(stop) })

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
	t.log.Info("stopped", zap.Uint64("floor", t.ledger.floor), zap.Int("gathering", t.gatherer.waiting()))
	return nil
}

// begin reads what the checkpoint does not say itself.
func (t *term) begin(ctx context.Context) error {
	if err := t.opts.Sends.AnswerAlive(ctx); err != nil {
		return err
	}
	campaigns, err := t.opts.Sends.OpenCampaigns(ctx, t.was)
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
	if t.recoverTo = min(t.recoverTo, last); frames == 0 {
		t.recoverRest()
	}
	return t.tidy(ctx)
}

// tidy forgets calls that were decided when a crash came between the checkpoint and this.
func (t *term) tidy(ctx context.Context) error {
	var over []string
	err := t.opts.Sends.Held(ctx, func(id string, _ []byte) error {
		known := slices.ContainsFunc(t.held, func(h heldCall) bool { return h.ID == id })
		for number := range t.noted { // it will be held again
			known = known || heldID(number) == id
		}
		if !known {
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
	t.metrics.inflight.Set(0)
	t.metrics.gathering.Set(0)
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

// read brings frames to the loop, as far as memory allows.
func (t *term) read(ctx context.Context) {
	r := t.opts.Sends.Read(1) // the oldest there is: those below the floor tell what was asked before
	defer r.Close()
	for {
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
		n += len(f.Asks[i].Data)
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
	switch {
	case again:
		t.totals.Duplicates += int64(len(a.Users))
		t.metrics.duplicates.Add(float64(len(a.Users)))
		t.done(at)
		return 0
	case a.Release != "" || a.Drop != "":
		t.order(at, &a)
		return 0
	}
	e := newEntry(at, accepted, &a, raw.Data)
	if a.Mode == ModeRealtime || len(a.Users) == 0 {
		t.realtime = append(t.realtime, t.newCall(&gathering{message: a.Message, entries: []entry{e}, users: len(e.users)}, a.Mode))
	} else {
		t.gatherer.add(&a, e, now)
	}
	return len(e.data)
}

func newEntry(at place, accepted time.Time, a *Ask, data []byte) entry {
	e := entry{at: at, accepted: accepted, data: slices.Clone(data), unsend: len(a.Unsendable)}
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
// keeps what this asks for, so that a restart decides the same.
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
	if a.Job == "" || a.Release != "" || a.Drop != "" {
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
	if r.Released != "" { // the call itself is where it was
		delete(t.recover, r.Number)
		delete(t.noted, r.Number)
		t.done(at)
		return 0
	}
	r.message = a.Message
	r.entries = append(r.entries, newEntry(at, accepted, a, data))
	if r.left--; r.left == 0 {
		t.regained(r)
	}
	return len(data)
}

// recoverRest ends the recovery of calls of which a part is missing in the log.
func (t *term) recoverRest() {
	for _, r := range t.recover {
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

// order carries out what an operator has decided about a held call.
func (t *term) order(at place, a *Ask) {
	id := a.Release + a.Drop
	i := slices.IndexFunc(t.held, func(h heldCall) bool { return h.ID == id })
	if i < 0 || t.orders[id] {
		t.log.Warn("there is no held call of this id any more: nothing to release or drop", zap.String("id", id[:min(len(id), 64)]))
		t.done(at)
		return
	}
	h := t.held[i]
	t.orders[id] = true
	c := t.newCall(&gathering{entries: []entry{{at: at}}, users: h.Users}, h.Mode)
	c.released, c.dropped, c.again = id, a.Drop != "", true
	t.batches = slices.Insert(t.batches, 0, c)
}

// start begins calls for as long as there is room for them.
func (t *term) start(ctx, stop context.Context, now time.Time) {
	for _, c := range t.lost {
		t.launch(c, func() { t.handOver(ctx, c) })
	}
	t.lost = nil
	for {
		g := t.gatherer.next(now, t.crowded())
		if g == nil {
			break
		}
		mode := g.message.Mode
		if g.users > sendbird.MaxBatchTargets {
			mode = ModeCSV
		}
		t.batches = append(t.batches, t.newCall(g, mode))
	}
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
// While Sendbird takes nothing, one call at a time finds out whether it does again.
func (t *term) next(now time.Time) *call {
	most := maxCalls
	if t.failures > 0 {
		most = 1
	}
	if t.stopping || now.Before(t.pausedTo) || len(t.carried) >= most || t.undecided() {
		return nil
	}
	if c := pick(&t.realtime, now); c != nil {
		return c
	}
	large := 0
	for _, c := range t.carried {
		switch c.mode {
		case ModeBatch:
			large++
		case ModeCSV:
			large += maxBatches // its users, and their file
		case ModeRealtime:
		}
	}
	if large >= maxBatches {
		return nil
	}
	return pick(&t.batches, now)
}

// pick takes the first call out of a list that may begin.
func pick(list *[]*call, now time.Time) *call {
	i := slices.IndexFunc(*list, func(c *call) bool { return !c.notBefore.After(now) })
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

// undecided tells whether so many calls are held that no further one is made.
func (t *term) undecided() bool {
	if len(t.held) < maxHeld {
		t.saidHeld = false
		return false
	}
	if !t.saidHeld {
		t.saidHeld = true
		t.log.Error("too many calls are held: nothing is sent until an operator decides about them (birdtap send --held)", zap.Int("calls", len(t.held)))
	}
	return len(t.batches) == 0 || t.batches[0].released == ""
}

// overfull tells whether the checkpoint is near the size that a message may have: the log
// is read no further until the oldest asks are settled.
func (t *term) overfull() bool {
	spans := len(t.ledger.settled)
	for _, n := range t.noted {
		spans += len(n.Places)
	}
	return spans > maxSpans
}

// maxSpans take at most 8 bytes each as base64: 400 KB of the 768 KiB.
const maxSpans = 50_000
