package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

const (
	// A look every four seconds of at most two finds out within six; ten are promised.
	guardEvery   = 4 * time.Second
	guardTimeout = 2 * time.Second
	// sickLooks in a row that find the embedded server unhealthy make it start anew.
	sickLooks = 2
	// wedgedAfter is how long the server may not answer before the queue counts as
	// making no progress. A slow disk alone, 5 s for an fsync, does not get there.
	wedgedAfter = 30 * time.Second
	// Below this share of free space the queue refuses before the disk is really
	// full: a server that hits the end of the disk freezes its stream.
	minFreeShare = 0.08
)

var (
	errLowDisk  = errors.New("the disk is nearly full")
	errNoAnswer = errors.New("the queue does not answer")
	errNoQuorum = errors.New("the queue has lost half of its nodes, or more")
)

// guard knows whether a receipt sent now would be stored. It asks the server and
// the volume every few seconds, and takes the committer's word in between.
//
// A stream that a disk error has frozen stays so until its server starts anew. The
// guard does that, once the disk has room again, and only once: a second time says
// that the disk is broken, which is for the process to end with.
type guard struct {
	store  *Store
	failed chan error // capacity 1
	stopC  chan struct{}
	done   chan struct{}
	once   sync.Once

	mu    sync.Mutex
	found finding
	// commit is what the last commit found, until a look finds all well: then the
	// next commit may try.
	commit error
	stored bool // there was a commit since the last look began, and the last one succeeded

	// Of run alone.
	answer    chan finding // of the look under way; nil if there is none
	asked     time.Time    // when that look began
	sick      int          // looks in a row that found the server unhealthy
	restarted bool
	gaveUp    bool
}

// finding is what a look found.
type finding struct {
	ready   error // why a receipt would not be stored
	health  error // what is wrong with the embedded server
	lowDisk bool
}

func newGuard(s *Store) *guard {
	g := &guard{store: s, failed: make(chan error, 1), stopC: make(chan struct{}), done: make(chan struct{})}
	g.look()
	go g.run()
	return g
}

func (g *guard) run() {
	defer close(g.done)
	tick := time.NewTicker(g.store.opts.guardEvery)
	defer tick.Stop()
	for {
		select {
		case <-g.stopC:
			return
		case <-tick.C:
			g.look()
			g.mend()
		}
	}
}

// look asks, and notes the answer. It asks in a goroutine of its own: a disk that
// hangs holds the answer back for as long as it likes.
func (g *guard) look() {
	if g.answer == nil {
		answer, within := make(chan finding, 1), g.within()
		go func() { answer <- g.store.look(g.store.life, within) }()
		g.answer, g.asked = answer, time.Now()
	}
	timer := time.NewTimer(guardTimeout)
	defer timer.Stop()
	select {
	case f := <-g.answer:
		g.answer = nil
		g.note(f)
	case <-timer.C:
		f := finding{ready: errNoAnswer}
		if time.Since(g.asked) >= wedgedAfter {
			f.health = fmt.Errorf("%w since %v", errNoAnswer, wedgedAfter)
		}
		g.note(f)
	case <-g.stopC:
	}
}

func (g *guard) note(f finding) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch before := g.found.ready; {
	case f.ready != nil && (before == nil || before.Error() != f.ready.Error()):
		g.store.log.Error("the queue cannot store receipts", zap.Error(f.ready))
	case f.ready == nil && before != nil:
		g.store.log.Info("the queue stores receipts again")
	}
	g.found = f
	if f.ready == nil {
		g.commit = nil
	}
}

// mend starts the embedded server anew when it has been unhealthy for some looks and
// the disk has room again.
func (g *guard) mend() {
	g.mu.Lock()
	f := g.found
	g.mu.Unlock()
	switch {
	case f.health == nil:
		g.sick = 0
		return
	case errors.Is(f.health, errNoAnswer):
		return // a server whose disk hangs does not stop, and two on one directory lose messages
	}
	g.sick++
	if g.sick < sickLooks || f.lowDisk || g.gaveUp {
		return
	}
	if g.restarted {
		g.giveUp(fmt.Errorf("a restart did not help: %w", f.health))
		return
	}
	g.store.log.Error("starting the embedded queue anew", zap.Error(f.health))
	g.restarted, g.sick = true, 0
	err := g.store.embedded.restart()
	g.store.recent.forget()
	if err != nil {
		g.giveUp(err)
		return
	}
	g.look()
}

func (g *guard) giveUp(err error) {
	g.gaveUp = true
	g.store.log.Error("the embedded queue is lost to this process", zap.Error(err))
	g.failed <- err
}

// refuse tells at once what a commit would find out after its deadline.
func (g *guard) refuse() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.found.lowDisk {
		return fmt.Errorf("%w: %w", ErrFull, g.found.ready)
	}
	return g.found.health
}

// committed takes the outcome of a commit.
func (g *guard) committed(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.commit = err
	g.stored = err == nil
}

// within is how late the followers of a leader may be for the look that begins. After
// trouble they may not be, unless commits succeed: then they only are slow.
func (g *guard) within() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	stored := g.stored
	g.stored = false
	if stored || g.found.ready == nil && g.commit == nil {
		return unseenFor
	}
	return seenAgain
}

func (g *guard) ready() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.found.ready != nil {
		return g.found.ready
	}
	return g.commit
}

func (g *guard) health() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.found.health
}

func (g *guard) stop() {
	g.once.Do(func() { close(g.stopC) })
	<-g.done
}

// Ready returns nil if a receipt sent now would be stored, as far as was found out
// in the last few seconds, or why not. The queue counts as full when a whole frame
// no longer fits.
func (s *Store) Ready() error { return s.guard.ready() }

// Healthy returns nil while the queue can make progress at all: the embedded server
// runs, answers, and no stream of it is frozen. An external server is not ours to judge.
func (s *Store) Healthy() error { return s.guard.health() }

// Failed delivers one error when the embedded queue is unhealthy and starting it
// anew in place did not help: the process has to end, so that another one may try.
// It is never closed.
func (s *Store) Failed() <-chan error { return s.guard.failed }

// look finds out whether a frame would be stored now, with nodes of a cluster that were
// heard of within that time.
func (s *Store) look(ctx context.Context, within time.Duration) finding {
	ctx, cancel := context.WithTimeout(ctx, guardTimeout)
	defer cancel()
	var f finding
	if s.embedded != nil {
		f.health = s.embedded.healthy()
	}
	err := s.enoughDisk()
	f.lowDisk = errors.Is(err, errLowDisk)
	switch {
	case err != nil:
		f.ready = err
	case f.health != nil:
		f.ready = f.health
	default:
		f.ready = s.roomForFrame(ctx, within)
	}
	return f
}

func (s *Store) roomForFrame(ctx context.Context, within time.Duration) error {
	info, err := s.receipts.Info(ctx)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return errNoAnswer
	case err != nil:
		return fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	if s.embedded != nil {
		s.embedded.noteNewest(info.State.LastSeq)
	}
	s.metrics.replicated(replicasOf(info))
	if !quorate(info.Cluster, within) {
		return errNoQuorum
	}
	if limit := info.Config.MaxBytes; limit > 0 && int64(info.State.Bytes)+maxFrameBytes >= limit { //nolint:gosec // bytes on a disk
		return ErrFull
	}
	return nil
}

// The leader hears of each node of a cluster once a second. One may be late; but when
// nothing could be stored just now, all has to be as it should before that is over: a
// leader that is alone goes on answering for ten seconds and more.
const (
	unseenFor = 5 * time.Second
	seenAgain = 2 * time.Second
)

// quorate tells whether the leader of a stream has heard of so many others, within that
// time, that it can store anything.
func quorate(c *jetstream.ClusterInfo, within time.Duration) bool {
	if c == nil {
		return true
	}
	heard := 1 // itself
	for _, r := range c.Replicas {
		if !r.Offline && r.Active < within {
			heard++
		}
	}
	return 2*heard > 1+len(c.Replicas)
}

// enoughDisk looks at the volume of the data directory, also when it is another
// process of this machine that has it open.
func (s *Store) enoughDisk() error {
	if s.opts.NATSURL != "" {
		return nil
	}
	v, err := s.opts.volume(s.opts.DataDir)
	if err != nil {
		return err
	}
	if share := float64(v.free) / float64(max(1, v.total)); share < minFreeShare {
		return fmt.Errorf("%w: the volume of %s has %.0f %% free, less than %.0f %%", errLowDisk, s.opts.DataDir, 100*share, 100*minFreeShare)
	}
	return nil
}
