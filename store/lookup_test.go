package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// In a cluster a question that nobody has answered is asked again, of whoever leads by
// then, and not for ever. Embedded there is nobody else to ask.
func TestLookUpAsksAgain(t *testing.T) {
	refused := errors.New("refused")
	for name, test := range map[string]struct {
		embedded   bool
		within     time.Duration
		silent     int // tries without an answer
		err        error
		want       error
		tries      int
		atMostTook time.Duration
	}{
		"answered at once":   {tries: 1},
		"refused at once":    {err: refused, want: refused, tries: 1},
		"an election":        {silent: 2, tries: 3, atMostTook: 3*lookWait + 2*lookRetry + time.Millisecond},
		"nobody ever":        {silent: 1000, want: context.DeadlineExceeded, tries: 3, atMostTook: lookWithin + time.Millisecond},
		"servers that start": {within: makeWithin, silent: 3, tries: 4, atMostTook: 7*lookWait + 3*lookRetry + time.Millisecond},
		"embedded, one try":  {embedded: true, silent: 1, want: context.DeadlineExceeded, tries: 1, atMostTook: time.Minute + time.Millisecond},
		"embedded, answered": {embedded: true, tries: 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &Store{opts: Options{NATSURL: "nats://nats:4222"}}
				if test.embedded {
					s.opts.NATSURL = ""
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				began, tries := time.Now(), 0
				_, err := askFor(ctx, s, cmp.Or(test.within, lookWithin), func(ctx context.Context) (int, error) {
					if tries++; tries <= test.silent {
						<-ctx.Done()
						return 0, ctx.Err()
					}
					return 1, test.err
				})
				wantErr(t, err, test.want)
				if gaveUp := errors.Is(err, context.DeadlineExceeded) && !test.embedded; gaveUp && !strings.Contains(err.Error(), "the NATS servers gave no answer for 5s") {
					t.Errorf("%v does not say who was silent", err)
				}
				wantEqual(t, "tries", tries, test.tries)
				if took := time.Since(began); took > test.atMostTook {
					t.Errorf("took %v, want at most %v", took, test.atMostTook)
				}
			})
		})
	}
}

// What a server said is told in the end, though the last try was cut short: by it a daemon
// knows that there is no JetStream.
func TestAskedInVainTellsWhatWasSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Store{opts: Options{NATSURL: "nats://nats:4222"}}
		tries := 0
		_, err := askFor(t.Context(), s, lookWithin, func(ctx context.Context) (int, error) {
			if tries++; tries == 1 {
				return 0, nats.ErrNoResponders
			}
			<-ctx.Done()
			return 0, ctx.Err()
		})
		wantErr(t, err, nats.ErrNoResponders)
	})
}

// A daemon waits for a cluster that elects a leader; a command gives up.
func TestUntilAnswered(t *testing.T) {
	const url = "nats://nats:4222"
	for name, test := range map[string]struct {
		s     *Store
		err   error // of the first three tries
		tries int
		want  error
	}{
		"a daemon":           {&Store{opts: Options{NATSURL: url}}, fmt.Errorf("look up: %w", context.DeadlineExceeded), 4, nil},
		"no leader":          {&Store{opts: Options{NATSURL: url}}, &jetstream.APIError{ErrorCode: codeNoLeader}, 4, nil},
		"something else":     {&Store{opts: Options{NATSURL: url}}, ErrGone, 1, ErrGone},
		"no JetStream":       {&Store{opts: Options{NATSURL: url}}, nats.ErrNoResponders, 1, nats.ErrNoResponders},
		"a lacking right":    {&Store{opts: Options{NATSURL: url}}, errDenied, 1, errDenied},
		"a command":          {&Store{opts: Options{NATSURL: url, Attach: true}}, context.DeadlineExceeded, 1, context.DeadlineExceeded},
		"nobody but oneself": {&Store{}, context.DeadlineExceeded, 1, context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				test.s.log = zap.NewNop()
				tries := 0
				err := test.s.untilAnswered(t.Context(), func() error {
					if tries++; tries <= 3 {
						return test.err
					}
					return nil
				})
				wantErr(t, err, test.want)
				wantEqual(t, "tries", tries, test.tries)
			})
		})
	}
}

// A reader builds its consumer in haste, since an election may have swallowed the question.
// When that goes on it is patient: for as long as building takes long, and no longer.
func TestPatienceOfAReader(t *testing.T) {
	s := &source{store: &Store{opts: Options{NATSURL: "nats://nats:4222"}}}
	want := func(when string, within time.Duration) {
		t.Helper()
		wantEqual(t, when, s.buildWithin(), within)
	}
	want("the first try", buildTimeout/2)
	for range patientAfter - 1 {
		want("an election", buildTimeout)
	}
	want("it lasts", scanTimeout)
	s.slow = true
	s.works()
	want("a slow cluster", scanTimeout)
	s.slow = false
	s.works()
	want("a quick one again", buildTimeout/2)
}
