package store

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func (s *Store) createStream(ctx context.Context, want jetstream.StreamConfig) (stream jetstream.Stream, err error) {
	err = s.denied.unless(ctx, func(ctx context.Context) (err error) {
		stream, err = askFor(ctx, s, makeWithin, func(ctx context.Context) (jetstream.Stream, error) { return s.js.CreateStream(ctx, want) })
		return err
	})
	if errors.Is(err, errDenied) {
		return nil, fmt.Errorf("stream %s is missing, and this user may not create it: run birdtap init with a user that may", want.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("create stream %s: %w", want.Name, err)
	}
	return stream, nil
}

func (s *Store) updateStream(ctx context.Context, config jetstream.StreamConfig) (stream jetstream.Stream, err error) {
	err = s.denied.unless(ctx, func(ctx context.Context) (err error) {
		stream, err = askFor(ctx, s, makeWithin, func(ctx context.Context) (jetstream.Stream, error) { return s.js.UpdateStream(ctx, config) })
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("change stream %s: %w", config.Name, err)
	}
	return stream, nil
}

// errDenied says that the user whom the server knows may not do what was asked.
var errDenied = errors.New("this user lacks a right")

// denials brings what the server says about missing rights to the request that lacks
// them: the request itself would wait for an answer that never comes.
type denials struct {
	one  sync.Mutex // request at a time
	said chan error
}

func newDenials() *denials { return &denials{said: make(chan error, 1)} }

// hear takes in an error of the connection.
func (d *denials) hear(err error) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return
	}
	select {
	case d.said <- err:
	default: // one is enough
	}
}

// unless makes a request, and ends it with errDenied as soon as the server says that
// the user may not make it.
func (d *denials) unless(ctx context.Context, request func(context.Context) error) error {
	d.one.Lock()
	defer d.one.Unlock()
	select {
	case <-d.said: //nolint:errcheck // of an earlier one
	default:
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done, heard := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(heard)
		select {
		case said := <-d.said:
			cancel(fmt.Errorf("%w: %w", errDenied, said))
		case <-done:
		}
	}()
	err := request(ctx)
	close(done)
	<-heard
	if denied := context.Cause(ctx); err != nil && errors.Is(denied, errDenied) {
		return denied
	}
	return err
}
