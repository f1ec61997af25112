package relay

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/birdtap/birdtap/store"
)

const (
	surveyEvery = time.Second
	// The operator's word is asked for when there is news of it, and now and then, since
	// news may be missed. Not more often: nats-server keeps what is read of the stream
	// that checkpoints go to in memory for ten seconds.
	pauseEvery = 15 * time.Second
	pauseSoon  = 100 * time.Millisecond // while it is not known
	roomEvery  = time.Minute
)

// survey looks after what is not one receipt's business: how many wait beyond those
// the relay holds, what may be trimmed, whether the operator has paused uploading.
type survey struct {
	queue  Queue
	log    *zap.Logger
	floor0 uint64 // of the term's start: frames below it are settled
	paused atomic.Bool
	asked  bool // the operator's word is known; of run alone, as are these two
	deaf   hush // it cannot be read
	blind  hush // the queue cannot be looked at

	mu      sync.Mutex
	readSeq uint64 // the last frame the loop has read
	seenSeq uint64 // the last frame the survey has seen
	ahead   int64  // receipts in the frames seen and not read
	unread  time.Time
	bytes   int64     // of the frames at or above the floor
	floor   uint64    // that is on disk
	oldest  time.Time // when the oldest receipt that waits came; zero: none waits
	room    store.Room
}

func newSurvey(r *Relay, floor uint64) *survey {
	s := &survey{queue: r.opts.Queue, log: r.log, floor0: floor, floor: floor}
	s.paused.Store(true) // until it is known that the operator did not pause
	return s
}

// read is told of every frame the loop has read.
func (s *survey) read(seq uint64, receipts int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readSeq = seq
	s.ahead -= int64(receipts)
	if seq >= s.seenSeq {
		s.ahead = 0 // also when some were deleted, or held other than their headers said
	}
	s.unread = time.Time{}
}

// settledTo is told of every checkpoint that is on disk.
func (s *survey) settledTo(floor uint64, oldest time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.floor, s.oldest = floor, oldest
}

// beyond is how many receipts wait that the loop has not read, since when the first
// of them does, and the bytes of all that wait.
func (s *survey) beyond() (receipts int64, oldest time.Time, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(0, s.ahead), s.unread, s.bytes
}

// run looks until ctx ends: at the queue once a second, for the operator's word when
// there is news of it. It calls changed when uploading was paused or resumed.
func (s *survey) run(ctx context.Context, changed func()) {
	news, err := s.queue.PauseNews(ctx)
	if err != nil && ctx.Err() == nil {
		s.log.Warn("pause and resume may be noticed late", zap.Error(err))
	}
	trimmer := s.queue.NewTrimmer()
	next := uint64(1)
	if s.askPaused(ctx) { // first of all: nothing leaves before it is known
		changed()
	}
	pause := time.NewTimer(pauseSoon)
	defer pause.Stop()
	look := time.NewTimer(0)
	defer look.Stop()
	room := time.NewTimer(0)
	defer room.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-news:
			pause.Reset(0)
		case <-pause.C:
			if s.askPaused(ctx) {
				changed()
			}
			again := pauseEvery
			if !s.asked {
				again = pauseSoon
			}
			pause.Reset(again)
		case <-look.C:
			next = s.look(ctx, trimmer, next)
			look.Reset(surveyEvery)
		case <-room.C:
			s.askRoom(ctx)
			room.Reset(roomEvery)
		}
	}
}

// askPaused tells whether the operator's word has changed.
func (s *survey) askPaused(ctx context.Context) bool {
	paused, err := s.queue.Paused(ctx)
	if err != nil && ctx.Err() == nil && s.deaf.over(time.Now()) {
		s.log.Warn("cannot read whether uploading is paused", zap.Bool("paused", s.paused.Load()), zap.Error(err))
	}
	if err != nil || paused == s.paused.Load() && s.asked {
		return false
	}
	s.paused.Store(paused)
	switch {
	case paused:
		s.log.Info("uploading is paused by the operator")
	case s.asked:
		s.log.Info("uploading goes on")
	}
	s.asked = true
	return true
}

// askRoom is for metrics only: without an answer the last one stays.
func (s *survey) askRoom(ctx context.Context) {
	room, err := s.queue.Room(ctx)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.room = room
}

func (s *survey) lastRoom() store.Room {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.room
}

// look scans the frames that have come since, and trims.
func (s *survey) look(ctx context.Context, trimmer *store.Trimmer, next uint64) uint64 {
	next, err := s.queue.ScanFrames(ctx, next, func(f store.FrameInfo) { s.see(trimmer, f) })
	if err == nil {
		err = s.trim(ctx, trimmer)
	}
	if err != nil && ctx.Err() == nil && s.blind.over(time.Now()) {
		s.log.Warn("cannot survey the queue", zap.Error(err))
	}
	return next
}

func (s *survey) see(trimmer *store.Trimmer, f store.FrameInfo) {
	trimmer.Note(f)
	if f.Seq < s.floor0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seenSeq = f.Seq
	if s.floor == s.floor0 && s.oldest.IsZero() {
		s.oldest = f.Time // until a checkpoint tells
	}
	if f.Seq <= s.readSeq {
		return
	}
	s.ahead += int64(f.Receipts)
	if s.unread.IsZero() {
		s.unread = f.Time
	}
}

func (s *survey) trim(ctx context.Context, trimmer *store.Trimmer) error {
	s.mu.Lock()
	floor, oldest := s.floor, s.oldest
	s.bytes = trimmer.Waiting(floor)
	s.mu.Unlock()
	return trimmer.Trim(ctx, floor, oldest, time.Now())
}
