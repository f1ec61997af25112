package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Status is the account of an installation, as its streams tell it. It is exact
// whether or not a daemon runs:
//
//	Accepted + Replayed = Delivered + Deduplicated + Died + Queued
//	Dead = Died − replayed from dead − Purged, or more by letters whose write was interrupted
type Status struct {
	Accepted     uint64
	Replayed     uint64
	Delivered    uint64
	Deduplicated uint64
	Died         uint64
	Queued       uint64
	Dead         uint64
	DeadByReason map[Reason]uint64
	Purged       uint64

	Oldest     time.Duration // age of the oldest frame with a waiting receipt; 0 if none waits
	QueueBytes int64         // of frames with a waiting receipt, about
	Rate       float64       // receipts delivered per second of late
	Breaker    string        // of the last checkpoint; "closed" while no relay runs
	Paused     bool
	Holder     string // the relay that holds the term; empty if none does
	Term       uint64

	Identities *IdentityInfo // the identity map; nil if there is none, or nothing is known of it
	Replicas   []Replicas    // of every stream that is to be on several servers
}

// Status reads checkpoint, queue and dead letters. The queue is read by its frames'
// headers from the floor on: 10 million waiting receipts take seconds. With ErrNewer it
// holds what does not hang on the checkpoint: the dead, Purged, Paused, Identities and
// Replicas.
func (s *Store) Status(ctx context.Context) (Status, error) {
	cp, _, err := s.ReadCheckpoint(ctx)
	if errors.Is(err, ErrNewer) {
		st := Status{DeadByReason: map[Reason]uint64{}}
		if beside := s.besideCheckpoint(ctx, &st); beside != nil {
			return Status{}, beside
		}
		return st, err
	}
	if err != nil {
		return Status{}, err
	}
	st := Status{
		Delivered: cp.Totals.Delivered, Deduplicated: cp.Totals.Deduplicated, Died: cp.Totals.Died,
		Replayed: cp.Totals.ReplayedDead + cp.Totals.ReplayedDelivered,
		Holder:   cp.Holder, Term: cp.Term, Breaker: cp.Breaker,
		DeadByReason: map[Reason]uint64{},
	}
	if s.embedded != nil && s.opts.Attach {
		st.Holder = "" // this command has the directory open, so the holder is dead
	}
	if st.Breaker == "" || st.Holder == "" {
		st.Breaker = "closed"
	}
	if time.Since(cp.LastDelivered) < rateFresh {
		st.Rate = cp.Rate
	}
	w, err := s.waiting(ctx, cp)
	if err != nil {
		return Status{}, err
	}
	st.Queued, st.QueueBytes = w.Receipts, w.Bytes
	if !w.Oldest.IsZero() {
		st.Oldest = max(0, time.Since(w.Oldest))
	}
	st.Replayed += w.Replayed
	st.Accepted = st.Delivered + st.Deduplicated + st.Died + st.Queued - st.Replayed
	err = s.besideCheckpoint(ctx, &st)
	return st, err
}

// besideCheckpoint reads what does not hang on the checkpoint.
func (s *Store) besideCheckpoint(ctx context.Context, st *Status) (err error) {
	if err := s.countDead(ctx, st); err != nil {
		return err
	}
	if st.Purged, err = s.purged(ctx); err != nil {
		return err
	}
	if info, err := s.Identities(ctx); err == nil {
		st.Identities = &info
	}
	if st.Paused, err = s.Paused(ctx); err != nil {
		return err
	}
	st.Replicas, err = s.replicas(ctx)
	return err
}

const rateFresh = 15 * time.Second

// waitingFrames is what waits at or above a checkpoint's floor.
type waitingFrames struct {
	Receipts, Replayed uint64
	Bytes              int64
	Oldest             time.Time
}

func (s *Store) waiting(ctx context.Context, cp Checkpoint) (waitingFrames, error) {
	var w waitingFrames
	_, err := s.ScanFrames(ctx, cp.Floor, func(f FrameInfo) {
		if cp.Settled.HasWhole(f.Seq) {
			return
		}
		left := f.Receipts
		if p, ok := cp.Settled.Of(f.Seq); ok {
			left -= p.Count()
		}
		w.Receipts += uint64(max(0, left))
		if f.Replay != ReplayNone {
			w.Replayed += uint64(max(0, left))
		}
		w.Bytes += f.Bytes
		if w.Oldest.IsZero() {
			w.Oldest = f.Time
		}
	})
	return w, err
}

func (s *Store) countDead(ctx context.Context, st *Status) error {
	_, err := s.scan(ctx, s.dead, s.names.deadStream, 1, true, func(msg jetstream.Msg, _ *jetstream.MsgMetadata) error {
		st.Dead += uint64(headerInt(msg.Headers(), headerReceipts)) //nolint:gosec // not negative
		for part := range strings.SplitSeq(msg.Headers().Get(headerReasons), ",") {
			reason, count, _ := strings.Cut(part, "=")
			if n, err := strconv.ParseUint(count, 10, 32); err == nil {
				st.DeadByReason[Reason(reason)] += n
			}
		}
		return nil
	})
	return err
}

// pauseState is the message behind Paused.
type pauseState struct {
	Paused bool      `json:"paused"`
	Since  time.Time `json:"since"`
}

// SetPaused stops or restarts uploading, of whichever relay is active, for as long
// as it is not changed again: over restarts too.
func (s *Store) SetPaused(ctx context.Context, paused bool) error {
	data, err := json.Marshal(pauseState{Paused: paused, Since: time.Now().UTC()})
	if err != nil {
		return err
	}
	if _, err := s.publish(ctx, &nats.Msg{Subject: s.names.pause, Data: data}); err != nil {
		return fmt.Errorf("set paused: %w", err)
	}
	// The relay hears of it and looks; should the word get lost it looks a little later.
	if err := s.nc.Publish(s.names.pauseNews, nil); err == nil {
		_ = s.nc.FlushWithContext(ctx)
	}
	return nil
}

// Paused tells whether uploading is stopped.
func (s *Store) Paused(ctx context.Context) (bool, error) {
	var p pauseState
	_, err := s.readState(ctx, s.names.pause, &p)
	return p.Paused, err
}

// Room is what the queue and the dead letters may take, in bytes.
type Room struct{ QueueMax, DeadBytes, DeadMax int64 }

// Room asks the server.
func (s *Store) Room(ctx context.Context) (Room, error) {
	queue, err := s.infoOf(ctx, s.receipts)
	if err != nil {
		return Room{}, fmt.Errorf("look up stream %s: %w", s.names.receiptStream, err)
	}
	dead, err := s.infoOf(ctx, s.dead)
	if err != nil {
		return Room{}, fmt.Errorf("look up stream %s: %w", s.names.deadStream, err)
	}
	return Room{
		QueueMax:  queue.Config.MaxBytes - s.opts.KeepMaxBytes,
		DeadBytes: int64(dead.State.Bytes), //nolint:gosec // bytes on a disk
		DeadMax:   dead.Config.MaxBytes - deadSpareBytes,
	}, nil
}

// PauseNews tells, until ctx ends, that somebody has called SetPaused. It is a hint and
// no more: what is said while the connection is down is missed.
func (s *Store) PauseNews(ctx context.Context) (<-chan struct{}, error) {
	news := make(chan struct{}, 1)
	sub, err := s.nc.Subscribe(s.names.pauseNews, func(*nats.Msg) {
		select {
		case news <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return nil, fmt.Errorf("listen for pause and resume: %w", err)
	}
	context.AfterFunc(ctx, func() { _ = sub.Unsubscribe() }) // a closed connection has no subscriptions
	return news, nil
}

// purgeState is the message behind Status.Purged.
type purgeState struct {
	Purged uint64 `json:"purged"`
}

func (s *Store) purged(ctx context.Context) (uint64, error) {
	var p purgeState
	_, err := s.readState(ctx, s.names.purged, &p)
	return p.Purged, err
}

// addPurged counts n purged letters; two commands that purge at once take turns.
func (s *Store) addPurged(ctx context.Context, n uint64) error {
	for {
		var p purgeState
		rev, err := s.readState(ctx, s.names.purged, &p)
		if err != nil {
			return err
		}
		p.Purged += n
		data, err := json.Marshal(p)
		if err != nil {
			return err
		}
		_, err = s.publish(ctx, &nats.Msg{Subject: s.names.purged, Data: data}, jetstream.WithExpectLastSequencePerSubject(rev))
		if isConflict(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("count purged letters: %w", err)
		}
		return nil
	}
}

// readState reads one message of the state stream into v, which stays as it is if
// there is none, and returns its revision.
func (s *Store) readState(ctx context.Context, subject string, v any) (uint64, error) {
	msg, err := s.lastMsg(ctx, s.state, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", subject, err)
	}
	if err := json.Unmarshal(msg.Data, v); err != nil {
		return 0, fmt.Errorf("read %s: %w: %w", subject, ErrCorrupt, err)
	}
	return msg.Sequence, nil
}
