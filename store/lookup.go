package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

const (
	lookWait   = time.Second            // for the first try; each further one has twice as long
	lookRetry  = 100 * time.Millisecond // after a node said that it cannot tell
	lookWithin = 5 * time.Second        // for all of them, if the caller gives as much
	makeWithin = 30 * time.Second       // the same for what makes a stream: servers that have just started elect first
	openRetry  = 500 * time.Millisecond // between two tries of a daemon to open something
	openSaid   = time.Minute            // between two lines that say so
)

// lookUp reads something from the server.
func lookUp[T any](ctx context.Context, s *Store, ask func(context.Context) (T, error)) (T, error) {
	return askFor(ctx, s, lookWithin, ask)
}

// askFor asks the server for something that may be asked for twice. In a cluster it asks
// again while there is no answer: a stream without a leader gives none, and the next
// leader does not know what the last one was asked.
func askFor[T any](ctx context.Context, s *Store, within time.Duration, ask func(context.Context) (T, error)) (T, error) {
	if !s.clustered() {
		return ask(ctx)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("the NATS servers gave no answer for %v: are most of them running, do they reach each other, and do they have JetStream?", within))
	defer cancel()
	var why error // what a server said last, if any did
	for wait := lookWait; ; wait *= 2 {
		try, cancel := context.WithTimeout(ctx, wait)
		answer, err := ask(try)
		cancel()
		if !unanswered(err) {
			return answer, err
		}
		if why == nil || !errors.Is(err, context.DeadlineExceeded) {
			why = err
		}
		select {
		case <-time.After(lookRetry):
		case <-ctx.Done():
		}
		switch cause := context.Cause(ctx); {
		case ctx.Err() == nil:
		case cause == context.DeadlineExceeded: //nolint:errorlint // the caller's, which tells no more
			return answer, fmt.Errorf("the NATS servers gave no answer in time: %w", why)
		default:
			return answer, fmt.Errorf("%w (%w)", cause, why)
		}
	}
}

// clustered tells whether the server is one of others' making, perhaps of several.
func (s *Store) clustered() bool { return s.opts.NATSURL != "" }

// untilAnswered opens something. In a cluster that has no leader for it a daemon waits,
// however long: whoever asks it for anything meanwhile is told so. A command gives up,
// and so does a daemon whose server knows nothing of JetStream.
func (s *Store) untilAnswered(ctx context.Context, open func() error) error {
	var said time.Time
	for {
		err := open()
		if !s.clustered() || s.opts.Attach || !unanswered(err) || errors.Is(err, nats.ErrNoResponders) {
			return err
		}
		if time.Since(said) >= openSaid {
			said = time.Now()
			s.log.Warn("the queue does not answer: waiting until it does", zap.Error(err))
		}
		select {
		case <-time.After(openRetry):
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
}

// unanswered tells whether another try may find somebody who answers.
func unanswered(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) || errors.Is(err, nats.ErrNoResponders) ||
		errors.Is(err, nats.ErrReconnectBufExceeded) || apiCode(err) == codeNoLeader
}

// codeNoLeader says that the cluster has no leader just now.
const codeNoLeader jetstream.ErrorCode = 10008

// infoOf is what the leader of a stream says of it.
func (s *Store) infoOf(ctx context.Context, stream jetstream.Stream) (*jetstream.StreamInfo, error) {
	return lookUp(ctx, s, func(ctx context.Context) (*jetstream.StreamInfo, error) { return stream.Info(ctx) })
}

// lastMsg is the newest message of a subject, as the leader of its stream has it.
func (s *Store) lastMsg(ctx context.Context, stream jetstream.Stream, subject string) (*jetstream.RawStreamMsg, error) {
	return lookUp(ctx, s, func(ctx context.Context) (*jetstream.RawStreamMsg, error) {
		return stream.GetLastMsgForSubject(ctx, subject)
	})
}

// lookUpStream returns a stream, nil if there is none.
func (s *Store) lookUpStream(ctx context.Context, name string) (stream jetstream.Stream, err error) {
	err = s.denied.unless(ctx, func(ctx context.Context) (err error) {
		stream, err = lookUp(ctx, s, func(ctx context.Context) (jetstream.Stream, error) { return s.js.Stream(ctx, name) })
		return err
	})
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, nil //nolint:nilnil // none, and no error
	}
	if err != nil {
		return nil, fmt.Errorf("look up stream %s: %w", name, err)
	}
	return stream, nil
}
