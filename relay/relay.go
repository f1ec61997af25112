package relay

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/birdtap/birdtap/clevertap"
	"github.com/birdtap/birdtap/store"
	"github.com/birdtap/birdtap/store/failpoint"
)

// Uploader makes one call with at most clevertap.MaxRecords records, and one attempt.
type Uploader interface {
	Upload(ctx context.Context, records [][]byte) clevertap.Result
}

// Queue is what the relay needs of the store. *store.Store is one.
type Queue interface {
	ReadCheckpoint(ctx context.Context) (store.Checkpoint, uint64, error)
	WriteCheckpoint(ctx context.Context, cp store.Checkpoint, rev uint64) (uint64, error)
	Read(from uint64) *store.Reader
	FrameTime(ctx context.Context, seq uint64) (time.Time, bool, error)
	FirstSince(ctx context.Context, end uint64, since time.Time) (uint64, error)
	ScanFrames(ctx context.Context, from uint64, fn func(store.FrameInfo)) (uint64, error)
	LettersSince(ctx context.Context, deadSeq, floor uint64) (map[store.Place]bool, uint64, error)
	Bury(ctx context.Context, letters []store.Letter) (uint64, error)
	NewTrimmer() *store.Trimmer
	Paused(ctx context.Context) (bool, error)
	PauseNews(ctx context.Context) (<-chan struct{}, error)
	Room(ctx context.Context) (store.Room, error)
	OpenCampaigns(ctx context.Context, owner string, changes store.CampaignChanges) (*store.Campaigns, error)
}

// Options says how the relay works. The zero value of a field is its default.
type Options struct {
	Queue    Queue
	Uploader Uploader
	// Embedded says that the queue's directory is locked by this process: no other
	// relay can exist, so none is waited for.
	Embedded bool

	MaxInflight     int           // calls in flight per account, 1..15; default 7
	CallTimeout     time.Duration // of one call; default 30 s
	BatchMaxRecords int           // default clevertap.MaxRecords
	BatchMaxWait    time.Duration // default 0: what is there leaves at once
	RetryRecordFor  time.Duration // how long a record answered with 555 is tried; default 1 h
	DedupWindow     time.Duration // default 0: off
	StopWait        time.Duration // how long a graceful stop waits for calls in flight; default 15 s

	Log        *zap.Logger
	Registerer prometheus.Registerer
}

func (o Options) withDefaults() Options {
	set := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	if o.MaxInflight == 0 {
		o.MaxInflight = 7
	}
	if o.BatchMaxRecords == 0 {
		o.BatchMaxRecords = clevertap.MaxRecords
	}
	set(&o.CallTimeout, 30*time.Second)
	set(&o.RetryRecordFor, time.Hour)
	set(&o.StopWait, 15*time.Second)
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.Registerer == nil {
		o.Registerer = prometheus.NewRegistry()
	}
	return o
}

// Relay carries receipts from the queue to CleverTap. Of all relays of one
// installation one is active; the others stand by.
type Relay struct {
	opts    Options
	log     *zap.Logger
	metrics *metrics
	lease   *lease // of this process: its terms share the numbers of their writes

	progress atomic.Int64 // Unix ns of the loop's last turn; 0 while it stands by
}

// New returns a relay that Run sets to work.
func New(o Options) *Relay {
	o = o.withDefaults()
	return &Relay{
		opts:    o,
		log:     o.Log.Named("relay"),
		metrics: newMetrics(o.Registerer),
		lease:   newLease(leaseOptions{Self: rand.Text(), Cap: o.MaxInflight, CallTimeout: o.CallTimeout, Embedded: o.Embedded}),
	}
}

const (
	standbyEvery = 200 * time.Millisecond // between two looks at another relay's checkpoint
	releaseWait  = 5 * time.Second        // for giving a term back
)

// Run carries receipts until ctx ends, then finishes the uploads in flight, writes
// the last checkpoint and returns. It returns an error only if the checkpoint
// cannot be understood.
func (r *Relay) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		t, err := r.standBy(ctx)
		if err != nil || t == nil {
			return err
		}
		t.run(ctx)
	}
	return nil
}

// standBy watches the checkpoint until a term is ours, and returns it; nil when ctx ends.
func (r *Relay) standBy(ctx context.Context) (*term, error) {
	var trouble hush
	for said := false; ctx.Err() == nil; wait(ctx, standbyEvery) {
		cp, err := r.look(ctx)
		if errors.Is(err, store.ErrCorrupt) {
			return nil, err
		}
		if err != nil {
			if trouble.over(time.Now()) {
				r.sayUnread(err)
			}
			continue
		}
		if w, ok := r.lease.TakeOver(time.Now()); ok {
			// A stop does not break this off: who has taken over gives the term back.
			r.write(context.WithoutCancel(ctx), w).tell(r.lease)
		}
		if r.lease.Holding() {
			r.log.Info("active", zap.Uint64("term", r.lease.Term()), zap.Int("calls_limit", r.lease.Limit()))
			return r.newTerm(cp), nil
		}
		if !said {
			r.log.Info("standing by while another relay is active", zap.Uint64("term", cp.Term))
			said = true
		}
	}
	return nil, nil //nolint:nilnil // no term, and no error: asked to stop
}

// look reads the checkpoint for the lease.
func (r *Relay) look(ctx context.Context) (store.Checkpoint, error) {
	ctx, cancel := context.WithTimeout(ctx, r.checkpointDeadline())
	defer cancel()
	cp, rev, err := r.opts.Queue.ReadCheckpoint(ctx)
	if err == nil {
		r.lease.Observe(rev, cp, time.Now())
	}
	return cp, err
}

// write makes one write of the checkpoint.
func (r *Relay) write(ctx context.Context, w leaseWrite) written {
	ctx, cancel := context.WithTimeout(ctx, r.checkpointDeadline())
	defer cancel()
	began := time.Now()
	rev, err := r.opts.Queue.WriteCheckpoint(ctx, w.Checkpoint, w.Replaces)
	failpoint.Here(failpoint.CheckpointWritten)
	r.metrics.checkpointSeconds.Observe(time.Since(began).Seconds())
	if err != nil && !errors.Is(err, store.ErrConflict) {
		r.metrics.checkpointFailures.Inc()
	}
	return written{number: w.Number, rev: rev, err: err}
}

// checkpointDeadline bounds one read or write of the checkpoint. In a cluster one
// that is lost, and read back, must leave the lease alive; embedded nobody waits for
// it, and the disk may be slow.
func (r *Relay) checkpointDeadline() time.Duration {
	if r.opts.Embedded {
		return 5 * time.Second
	}
	return time.Second
}

// written is the answer to a write of the checkpoint.
type written struct {
	number, rev uint64
	err         error
}

func (w written) tell(l *lease) {
	switch {
	case w.err == nil:
		l.Stored(w.number, w.rev)
	case errors.Is(w.err, store.ErrConflict):
		l.Refused(w.number)
	default:
		l.Lost(w.number)
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// term is the work of one active term. Its fields belong to the goroutine of run;
// the others talk to it by events.
type term struct {
	*Relay
	pace  *pace
	dedup *dedup
	ready *waiting // the receipts that may leave

	// What is settled, as the next checkpoint will say it.
	settled store.Settled
	floor   uint64
	totals  store.Totals
	deadSeq uint64
	rate    rate

	// Reading.
	expect    uint64               // the next frame
	recalling bool                 // what the last term left is not known yet
	died      map[store.Place]bool // settled by letters that outran their checkpoint
	frames    []*frame             // held, in order, from the oldest that is not settled
	over      int                  // frames among them that are settled
	held      int                  // receipts in them that are not settled

	// Uploading.
	again     []*upload                    // batches that go again, in order
	batches   int                          // that hold a slot
	calls     int                          // in flight
	denied    bool                         // CleverTap refuses the account
	evidence  evidence                     // of what CleverTap accepts
	searching bool                         // the last call was of a batch that is searched for culprits
	said      map[clevertap.Kind]time.Time // when the log last told of such an answer

	// Settling.
	letters   []letter  // to be stored
	buryAt    time.Time // not before
	burying   bool      // letters are on their way to the disk
	stuck     bool      // they could not be stored: nothing is uploaded until they are
	givenUp   int       // letters among these whose record waited after a 555
	finished  []*upload // batches that are done once a checkpoint has settled them
	writing   *writing  // the checkpoint on its way
	begun     int       // checkpoints so far, and
	confirmed int       // the latest of them that stands
	dirty     bool      // there is something for the next one
	writeAt   time.Time // not before

	unanswered bool // the last one had no answer

	// Counting.
	campaigns      *store.Campaigns // nil until its pages are read
	startCampaigns store.CampaignChanges
	tallies        campaignTallies
	uncounted      []uncounted // ended, and not settled yet
	epoch          uint64      // of the campaigns in the last checkpoint
	flushing       bool        // pages are on their way to the disk
	flushAt        time.Time   // not before
	flushFailed    bool
	flushTrouble   hush

	stopping bool

	events chan func() // what the other goroutines have for the loop
	budget *budget
	survey *survey
	tasks  sync.WaitGroup

	// For the goroutines: where the term began, and until when calls may start,
	// counted from then on the monotonic clock.
	began      time.Time
	startFloor uint64
	startDead  uint64
	sendUntil  atomic.Int64
}

func (r *Relay) newTerm(cp store.Checkpoint) *term {
	return &term{
		Relay:   r,
		pace:    newPace(r.opts.MaxInflight),
		dedup:   newDedup(r.opts.DedupWindow),
		ready:   newWaiting(r.opts.BatchMaxRecords, r.opts.BatchMaxWait),
		settled: cp.Settled.Clone(),
		floor:   cp.Floor,
		totals:  cp.Totals,
		deadSeq: cp.DeadSeq,
		expect:  cp.Floor,
		rate:    rate{last: cp.LastDelivered},
		said:    map[clevertap.Kind]time.Time{},
		events:  make(chan func(), 64),
		budget:  newBudget(heldBytes),

		recalling: true,

		startCampaigns: cp.Campaigns,
		epoch:          cp.Campaigns.Epoch,

		began:      time.Now(),
		startFloor: cp.Floor,
		startDead:  cp.DeadSeq,
	}
}

// run is the journey out: read → dedup → batch → upload → verdict → settle →
// checkpoint. Reading, calls and writes are goroutines that come back with an
// event; everything is decided here.
func (t *term) run(ctx context.Context) {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	reading, stopReading := context.WithCancel(work)
	t.survey = newSurvey(t.Relay, t.floor)
	t.tasks.Go(func() { t.read(reading) })
	t.tasks.Go(func() { t.survey.run(reading, t.nudge) })
	defer t.end(cancel)
	defer stopReading()

	tick := time.NewTimer(0)
	defer tick.Stop()
	var giveUp <-chan time.Time
	asked := ctx.Done()
	for t.lease.Holding() {
		failpoint.Here(failpoint.Turn)
		now := time.Now()
		t.sendUntil.Store(int64(t.lease.SendUntil(now).Sub(t.began)))
		t.upload(work, now)
		t.crowded()
		t.bury(work, now)
		t.checkpoint(work, now)
		t.flushCampaigns(work, now)
		t.tell(now)
		if t.stopping && t.atRest() {
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
			stopReading()
			giveUp = time.After(t.opts.StopWait)
		case <-giveUp:
			t.log.Warn("stopping with calls in flight: their receipts will be sent again", zap.Int("calls", t.calls))
			t.release(work)
			return
		}
	}
	if !t.stopping {
		t.log.Warn("the term is over: another relay has taken over")
	}
	t.release(work)
}

// more handles what has come meanwhile, before anything new is begun.
func (t *term) more() {
	for {
		select {
		case event := <-t.events:
			event()
		default:
			t.budget.settle()
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

// nudge makes the loop take a turn.
func (t *term) nudge() {
	select {
	case t.events <- func() {}:
	default: // it has enough to do
	}
}

// end stops the goroutines of the term and waits for them.
func (t *term) end(cancel context.CancelFunc) {
	cancel()
	t.tasks.Wait()
	t.metrics.idle()
	t.progress.Store(0)
}

// maxRest bounds how long the loop rests, so that heartbeats are in time and health
// sees a sign of life.
const maxRest = 500 * time.Millisecond

// rest is how long nothing has to be done unless an event comes.
func (t *term) rest(now time.Time) time.Duration {
	d := maxRest
	for _, at := range []time.Time{t.ready.wakeAt(), t.pace.NextAt(now)} {
		if at.After(now) {
			d = min(d, at.Sub(now))
		}
	}
	return d
}

// atRest tells whether a graceful stop has nothing more to wait for.
func (t *term) atRest() bool {
	return t.calls == 0 && len(t.uncounted) == 0 && !t.burying && (len(t.letters) == 0 || t.stuck) && t.writing == nil && !t.dirty
}

// release gives the term back, so that the next relay need not wait for it to run out.
func (t *term) release(ctx context.Context) {
	if !t.lease.Holding() {
		return
	}
	giveUp := time.After(releaseWait)
	for t.lease.Holding() {
		if t.writing == nil && t.lease.InDoubt() {
			t.lookBack(ctx)
		} else if t.writing == nil && !time.Now().Before(t.writeAt) {
			t.writeRelease(ctx)
		}
		select {
		case event := <-t.events:
			event()
		case <-time.After(checkpointRetry):
		case <-giveUp:
			t.log.Warn("the term could not be given back: the next relay waits until it runs out")
			return
		}
	}
	t.log.Info("stopped", zap.Uint64("floor", t.floor), zap.Int("receipts_held", t.held))
}

// take is the arrival of one frame. What may leave waits for a batch; what may not
// is settled, or on its way to the dead letters.
func (t *term) take(f store.Frame) {
	t.missing(f.Seq)
	if f.Err != nil {
		t.log.Error("a frame does not decode and goes to the dead letters whole", zap.Uint64("frame", f.Seq), zap.Error(f.Err))
	}
	own := t.hold(f)
	for i := range own.items {
		t.admit(&own.items[i])
	}
	if own.left > 0 {
		t.ready.add(own)
		return
	}
	// Some were settled in an earlier term and the rest just now.
	t.floor = t.settled.AddWhole(own.seq, t.floor)
}

// hold makes the items of a frame.
func (t *term) hold(f store.Frame) *frame {
	n := len(f.Receipts)
	part, known := t.settled.Of(f.Seq)
	if !known || part.Size != n {
		part = store.NewPartial(f.Seq, n)
	}
	own := &frame{seq: f.Seq, time: f.Time, arrived: time.Now(), replay: f.Replay, unread: f.Unread, items: make([]item, n), left: n, settled: part}
	for i := range own.items {
		own.items[i] = item{receipt: &f.Receipts[i], user: f.Receipts[i].User, frame: own, index: i}
	}
	t.frames = append(t.frames, own)
	t.held += n
	t.survey.read(f.Seq, n)
	return own
}

// admit decides what becomes of one receipt that was just read.
func (t *term) admit(i *item) {
	r := i.receipt
	// The key of a settled one is entered, too: a later copy of it is a copy.
	seen := r.Reason == "" && t.dedup.Seen(r, i.place(), i.frame.time)
	switch {
	case i.frame.seq < t.floor || t.settled.HasWhole(i.frame.seq) || i.frame.settled.Has(i.index):
		delete(t.died, i.place())
		t.drop(i)
	case t.died[i.place()]:
		delete(t.died, i.place())
		t.settle(i, died, nil)
	case r.Reason != "":
		i.done = true // it is not to leave
		t.letters = append(t.letters, letter{item: i, reason: r.Reason, code: r.Code})
	case seen:
		t.settle(i, deduplicated, nil)
	}
}

// tell shows where the term stands.
func (t *term) tell(now time.Time) {
	t.rate.tick(now)
	t.metrics.tell(t)
	t.progress.Store(now.UnixNano())
}

// missing settles the frames between the last one read and seq: they are gone.
func (t *term) missing(seq uint64) {
	gone := 0
	for s := t.expect; s < seq; s++ {
		if !t.settled.HasWhole(s) {
			gone++
			t.floor = t.settled.AddWhole(s, t.floor)
			t.dirty = true
		}
	}
	if gone > 0 {
		t.log.Error("frames are missing from the queue: its files were damaged, or someone deleted them",
			zap.Uint64("first", t.expect), zap.Int("frames", gone))
		t.metrics.missing.Add(float64(gone))
	}
	t.expect = seq + 1
}

// upload is one batch on its way. It holds its slot, which it may lend, and keeps its
// users busy, until the checkpoint that settles it is written.
type upload struct {
	*flight
	items   []*item // nil: stepped aside
	slot    bool    // counts among the batches
	ended   bool    // no further call
	letters int     // of it that are not stored yet
	calls   int     // made for it

	uncounted int // of it that could not be settled yet
	settledBy int // the checkpoint that says what was settled of it last, 0: nothing was
}

// upload starts calls for as long as lease, pace and the operator allow.
func (t *term) upload(ctx context.Context, now time.Time) {
	t.pace.SetLimit(max(1, t.lease.Limit()))
	for t.lease.MaySend(now) && t.pace.Allowed(now, t.calls) && !t.stopping && !t.stuck && !t.survey.paused.Load() {
		u := t.next(now)
		if u == nil {
			return
		}
		t.call(ctx, u, now)
	}
}

// next is a batch that goes again, or a new one, if there is a slot for it. One that is
// being searched for its culprits takes turns with the others: they are not to wait for
// the end of that, and the search goes by what CleverTap does with them. One that got
// nothing but refusals so far comes last: another may show whether it is the batch or the
// destination that is at fault.
func (t *term) next(now time.Time) *upload {
	free := t.slotFree()
	may := func(u *upload) bool { return free || !t.lends(u) }
	searched := slices.IndexFunc(t.again, func(u *upload) bool { return !u.Doubtful() && u.Refused() && may(u) })
	if t.searching = searched >= 0 && !t.searching; t.searching {
		return t.goAgain(searched)
	}
	if at := slices.IndexFunc(t.again, func(u *upload) bool { return !u.Doubtful() && !u.Refused() && may(u) }); at >= 0 {
		return t.goAgain(at)
	}
	if !free {
		return nil // the next checkpoint frees one
	}
	if items, ordered := t.ready.take(now); items != nil {
		t.batches++
		return &upload{flight: newFlight(len(items), ordered, &t.evidence), items: items, slot: true}
	}
	if len(t.again) > 0 {
		return t.goAgain(max(0, searched))
	}
	return nil
}

// slotFree tells whether one more batch may go. A crash repeats what CleverTap accepted
// and no checkpoint says: no more than as many batches as may be in flight. Those of which
// there is nothing to repeat do not count, or every slot would be theirs that only wait,
// for evidence or for their turn.
func (t *term) slotFree() bool {
	out := t.batches
	for _, u := range t.again {
		if t.lends(u) {
			out--
		}
	}
	return out < t.lease.Limit()
}

// lends tells whether a batch that is to go again lends its slot to others: a checkpoint
// says all that was settled of it.
func (t *term) lends(u *upload) bool { return u.uncounted == 0 && u.settledBy <= t.confirmed }

func (t *term) goAgain(at int) *upload {
	u := t.again[at]
	t.again = slices.Delete(t.again, at, at+1)
	return u
}

// call makes one call, with the part of the batch that is next.
func (t *term) call(ctx context.Context, u *upload, now time.Time) {
	from, to := u.Next()
	records := make([][]byte, to-from)
	for i, it := range u.items[from:to] {
		records[i] = it.receipt.Record
	}
	u.calls++
	t.calls++
	begun := t.pace.Begin(now)
	t.tasks.Go(func() {
		// The lease is looked at again: the process may have been stopped since.
		if int64(time.Since(t.began)) > t.sendUntil.Load() {
			t.send(ctx, func() { t.unsent(u, begun) })
			return
		}
		callCtx, cancel := context.WithTimeout(ctx, t.opts.CallTimeout)
		defer cancel()
		result := t.opts.Uploader.Upload(callCtx, records)
		if result.Kind == clevertap.Accepted {
			failpoint.Here(failpoint.Uploaded)
		}
		took := time.Since(now)
		t.send(ctx, func() { t.answered(u, begun, len(records), result, took) })
	})
}

// unsent takes a call back that the lease did not allow any more.
func (t *term) unsent(u *upload, begun call) {
	t.calls--
	t.pace.Unsent(begun)
	t.again = append(t.again, u)
}

// answered takes in the answer to a call: what is judged is settled, or on its way
// to the dead letters; what is not goes again.
func (t *term) answered(u *upload, begun call, records int, result clevertap.Result, took time.Duration) {
	now := time.Now()
	t.calls--
	for _, i := range u.items[u.out.from:u.out.to] {
		i.tries++
	}
	v := judge(result, records)
	s := u.Answer(v)
	before := t.pace.State()
	t.pace.Answered(now, begun, s.signal, v.retryAfter)
	t.apply(u, s, now)
	if s.done {
		u.ended = true
		t.finish(u)
	} else {
		t.again = append(t.again, u)
	}
	t.report(u, records, s, result, took)
	t.breakerTurned(before, result)
}

// apply gives the records of a step their verdicts.
func (t *term) apply(u *upload, s step, now time.Time) {
	exceptions := s.exceptions
	for n := s.from; n < s.to; n++ {
		i := u.items[n]
		switch {
		case len(exceptions) == 0 || exceptions[0].index != n:
			t.settle(i, delivered, u)
			continue
		case exceptions[0].aside && t.aside(i, now):
			u.items[n] = nil
		default:
			t.letters = append(t.letters, letter{item: i, reason: exceptions[0].reason, code: exceptions[0].code, upload: u})
			u.letters++
		}
		exceptions = exceptions[1:]
	}
}

// aside has a record tried again later, unless it was tried for long enough.
func (t *term) aside(i *item, now time.Time) bool {
	if i.aside.IsZero() {
		i.aside = now
	}
	end := i.aside.Add(t.opts.RetryRecordFor)
	if !now.Before(end) {
		return false
	}
	due := now.Add(asideWait(i.asides + 1))
	if due.After(end) {
		due = end
	}
	t.ready.stepAside(i, due)
	return true
}

// stalledAfter is how long the loop may be silent before the relay counts as
// wedged: it takes a turn at least every maxRest.
const stalledAfter = 30 * time.Second

// Health returns an error if the active relay makes no progress at all. Waiting for
// CleverTap and standing by are progress.
func (r *Relay) Health() error {
	last := r.progress.Load()
	if last == 0 {
		return nil
	}
	if silent := time.Since(time.Unix(0, last)); silent > stalledAfter {
		return fmt.Errorf("the relay's loop has not turned for %v", silent.Round(time.Second))
	}
	return nil
}
