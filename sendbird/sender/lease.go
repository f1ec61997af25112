package sender

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/birdtap/birdtap/store"
)

const (
	// standbyWait is how long a standby hears nothing of the active sender, and sees one
	// revision, before it takes over. Whether it judges right is a matter of calls that
	// are held for an operator in vain, and never of one that is made twice: that hangs
	// on the compare-and-set alone.
	standbyWait  = 5 * time.Second
	standbyEvery = 500 * time.Millisecond
	writeRetry   = 250 * time.Millisecond
	readWait     = 5 * time.Second
	takeOverWait = 10 * time.Second
	// deniedEvery is how often it is looked whether a user without the right to send has it
	// by now.
	deniedEvery = time.Minute
	newerEvery  = time.Minute // between two lines about a checkpoint of a newer birdtap
)

// lease is the right to write the checkpoint: whoever knows its revision.
type lease struct {
	sends *store.Sends
	rev   uint64
	self  string
	term  uint64
	write uint64
}

// standBy watches the checkpoint until a term is ours, and returns it; nil when ctx ends.
// first is the first look of this process: where the queue is its own, nobody else can be
// alive.
func (s *Sender) standBy(ctx context.Context, first bool) (*lease, checkpoint, error) {
	var seen uint64
	var since time.Time
	var saidNewer time.Time
	said := false
	for ; ctx.Err() == nil; wait(ctx, standbyEvery) {
		cp, rev, err := readCheckpoint(ctx, s.opts.Sends)
		if errors.Is(err, store.ErrCorrupt) {
			return nil, checkpoint{}, err
		}
		if errors.Is(err, store.ErrNewer) && time.Since(saidNewer) >= newerEvery {
			s.log.Error("a newer birdtap has written the checkpoint of the sender: nothing is sent from here until that version runs here; what is asked for waits", zap.Error(err))
			saidNewer = time.Now()
		}
		if err != nil {
			continue // of any other error the store tells
		}
		free := cp.Holder == "" || first && s.opts.Sends.OwnsQueue()
		if now := time.Now(); !free && (rev != seen || s.opts.Sends.Alive(ctx, standbyEvery)) {
			seen, since = rev, now
		}
		if !free && time.Since(since) < standbyWait {
			if !said {
				s.log.Info("standing by while another sender is active", zap.Uint64("term", cp.Term))
				said = true
			}
			continue
		}
		if !s.opts.Sends.MayCheckpoint(ctx) {
			s.log.Error("no sender is active, and this user of NATS may not be one: what is asked for waits until one starts")
			wait(ctx, deniedEvery)
			continue
		}
		l := &lease{sends: s.opts.Sends, rev: rev, self: s.self, term: cp.Term + 1, write: cp.Write}
		if err := l.takeOver(ctx, &cp); err == nil {
			return l, cp, nil
		}
		first = false
	}
	return nil, checkpoint{}, nil
}

// takeOver is not broken off by a stop: who has taken over gives the term back. But it
// ends.
func (l *lease) takeOver(ctx context.Context, cp *checkpoint) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeOverWait)
	defer cancel()
	return l.store(ctx, cp)
}

func readCheckpoint(ctx context.Context, sends *store.Sends) (checkpoint, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, readWait)
	defer cancel()
	data, rev, err := sends.ReadCheckpoint(ctx)
	if err != nil || rev == 0 {
		return checkpoint{Floor: 1, NextCall: 1}, 0, err
	}
	cp, err := decodeCheckpoint(data)
	return cp, rev, err
}

// errLost says that another sender has written the checkpoint: the term is over.
var errLost = errors.New("another sender has taken over")

// store writes a checkpoint and returns once it stands, or is known never to stand. An
// attempt without answer may have been applied, or may be later; so the same bytes are
// written again, on the same revision, until what stands there tells.
func (l *lease) store(ctx context.Context, cp *checkpoint) error { return l.put(ctx, cp, l.self) }

// release writes the last checkpoint of a term: the next sender need not wait.
func (l *lease) release(ctx context.Context, cp *checkpoint) error { return l.put(ctx, cp, "") }

// abandon gives a term back in which nothing was done.
func (l *lease) abandon(ctx context.Context, was checkpoint) {
	ctx, cancel := context.WithTimeout(ctx, releaseWait)
	defer cancel()
	_ = l.release(ctx, &was) // the next one waits for it to run out
}

func (l *lease) put(ctx context.Context, cp *checkpoint, holder string) error {
	l.write++
	cp.Term, cp.Write, cp.Holder = l.term, l.write, holder
	data, err := cp.encode()
	if err != nil {
		return err
	}
	for {
		rev, err := l.sends.WriteCheckpoint(ctx, data, l.rev)
		if err == nil {
			l.rev = rev
			return nil
		}
		if errors.Is(err, store.ErrInvalid) {
			return err
		}
		stands, rev, err := readCheckpoint(ctx, l.sends)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, store.ErrNewer):
			return errLost // none of ours
		case err != nil:
		case stands.Term == cp.Term && stands.Holder == cp.Holder && stands.Write == cp.Write:
			l.rev = rev
			return nil
		case rev != l.rev:
			return errLost
		}
		wait(ctx, writeRetry)
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
