package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// nats-server says nothing, or little, of messages that it can no longer read, and goes
// on without them. So what it has found is compared, at the start, with what the
// checkpoint knows. That is told, and not refused: what is left still has to flow.

// restoreCheckpoint is for an embedded queue that has no checkpoint that reads, although
// it may have held frames. The server keeps older ones for a while, behind an index that
// shows the newest only: it finds them when it has to build that index anew.
func (s *Store) restoreCheckpoint(ctx context.Context) (Checkpoint, uint64, error) {
	last, err := s.lastSequence(ctx, s.receipts)
	if err != nil || last == 0 {
		return Checkpoint{Floor: 1}, 0, err
	}
	if err := s.rereadState(ctx); err != nil {
		return Checkpoint{}, 0, err
	}
	cp, rev, err := s.ReadCheckpoint(ctx)
	switch {
	case err != nil:
	case rev == 0:
		s.log.Error("the checkpoint is gone: what is kept of delivered receipts goes to CleverTap again; to avoid that, stop and restore a backup")
	default:
		s.log.Error("the newest checkpoint does not read, its file is damaged: going on from an older one, some receipts go to CleverTap again",
			zap.Uint64("term", cp.Term), zap.Uint64("floor", cp.Floor))
	}
	return cp, rev, err
}

// rereadState starts the embedded server anew without the index of the state stream.
func (s *Store) rereadState(ctx context.Context) error {
	if err := s.embedded.stop(); err != nil {
		return err
	}
	index := filepath.Join(messagesDir(s.opts.DataDir, s.names.stateStream), indexFile)
	if err := os.Remove(index); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("data directory %s: %w", s.opts.DataDir, err)
	}
	if err := s.embedded.start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, attachWait)
	defer cancel()
	for !s.nc.IsConnected() || s.nc.FlushWithContext(ctx) != nil {
		select {
		case <-ctx.Done():
			return fmt.Errorf("connect to the queue: %w", ctx.Err())
		case <-time.After(attachRetry):
		}
	}
	return nil
}

// tellMissing tells what is gone of frames and dead letters. On an external server others
// may be writing, and what is missing is for its operators to find.
func (s *Store) tellMissing(ctx context.Context, cp Checkpoint, last uint64) error {
	if s.embedded == nil {
		return nil
	}
	return errors.Join(s.tellMissingFrames(ctx, cp, last), s.tellMissingLetters(ctx, cp))
}

// tellMissingFrames tells when the newest frames of the log are gone: the server knows
// their sequences, or the relay has read them, and the last one that is there comes
// before them. Those in the middle show when they are read.
func (s *Store) tellMissingFrames(ctx context.Context, cp Checkpoint, last uint64) error {
	end := uint64(0)
	msg, err := s.receipts.GetLastMsgForSubject(ctx, s.names.receipts)
	switch {
	case err == nil:
		end = msg.Sequence
	case !errors.Is(err, jetstream.ErrMsgNotFound):
		return fmt.Errorf("look up the last frame: %w", err)
	}
	gone := 0
	for seq := max(end+1, cp.Floor); seq <= max(last, cp.Last) && gone < maxCounted; seq++ {
		if !cp.Settled.HasWhole(seq) {
			gone++
		}
	}
	if gone > 0 {
		s.log.Error("frames are missing from the queue: its newest file was damaged or cut short; a backup may have them",
			zap.Uint64("first", max(end+1, cp.Floor)), zap.Int("frames", gone))
	}
	return nil
}

// maxCounted bounds the frames, and the messages of the dead stream, that are counted at
// the start, so that it stays quick. A message may be a thousand letters.
const maxCounted = 100_000

// tellMissingLetters tells when there are fewer dead letters than the checkpoint knows of.
// There may be more: by a replay or a purge that was interrupted.
func (s *Store) tellMissingLetters(ctx context.Context, cp Checkpoint) error {
	info, err := s.dead.Info(ctx)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", s.names.deadStream, err)
	}
	if cp.Totals.Died == 0 || info.State.Msgs > maxCounted {
		return nil
	}
	st := Status{DeadByReason: map[Reason]uint64{}}
	if err := s.countDead(ctx, &st); err != nil {
		return err
	}
	purged, err := s.purged(ctx)
	if err != nil {
		return err
	}
	left := st.Dead + cp.Totals.ReplayedDead + purged
	if left >= cp.Totals.Died {
		return nil
	}
	w, err := s.waiting(ctx, cp) // those of a replay that is not settled yet
	if err != nil {
		return err
	}
	if left += w.Replayed; left < cp.Totals.Died {
		s.log.Error("dead letters are missing, or frames that some were replayed in: their file was damaged or cut short; a backup may have them",
			zap.Uint64("letters", cp.Totals.Died-left))
	}
	return nil
}
