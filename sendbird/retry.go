package sendbird

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v4"
)

const (
	// defaultAttempts of an action: with the waits below, some 8 s of trouble.
	defaultAttempts = 5
	// maxAsked is the longest wait that Sendbird may ask for and get by itself. What
	// asks for more is an error at once: a person, or a queue, can wait better.
	maxAsked = time.Minute
)

// firstRetry and lastRetry are the shortest and longest mean wait between attempts;
// each is twice the one before, give or take a half.
const (
	firstRetry = 500 * time.Millisecond
	lastRetry  = 8 * time.Second
)

// RetriedError is an action that was tried more than once and did not succeed.
//
// An action is a call of Chat or Desk. What is done about an attempt's failure:
//
//	outcome              next
//	refused, partial     given up
//	later                tried again, after the wait that Sendbird asked for, or a
//	                     longer one than the last; a 429 also slows down the pace
//	unknown              tried again, for to do it twice is to do it once; not so a
//	                     ticket, of which there would be two
//	5th failure, a wait  given up
//	over a minute asked
//	for, caller gave up
//
// A creation that finds what it wants to create is refused ([CodeExists]), and so is
// a deletion of what is not there. Only where an earlier attempt of the same action
// has had an unknown outcome do they count as done: then it was we.
type RetriedError struct {
	// Attempts is how many there were.
	Attempts int
	// Lost tells that one of them has had an unknown outcome, so that the action may
	// have been carried out whatever the last one came to.
	Lost bool
	// Err is what the last one came to.
	Err error
}

func (e *RetriedError) outcome() Outcome {
	if e.Lost {
		return Unknown
	}
	return OutcomeOf(e.Err)
}

func (e *RetriedError) Error() string {
	text := fmt.Sprintf("%v (%s", e.Err, counted(e.Attempts, "attempt"))
	if e.Lost && OutcomeOf(e.Err) != Unknown {
		text += ", an earlier one of unknown outcome"
	}
	return text + ")"
}

// Unwrap is what the last attempt came to.
func (e *RetriedError) Unwrap() error { return e.Err }

// again says whether an action may be carried out twice.
type again bool

const (
	harmless again = true
	onlyOnce again = false
)

// repeat tries an action until it succeeds or there is no use in another attempt.
// try is told whether an earlier attempt may have been carried out.
func (c *Client) repeat(ctx context.Context, twice again, try func(lost bool) error) error {
	waits := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(firstRetry), backoff.WithMultiplier(2), backoff.WithMaxInterval(lastRetry),
		backoff.WithMaxElapsedTime(0), // attempts are counted
	)
	lost := false
	for attempt := 1; ; attempt++ {
		err := try(lost)
		if err == nil {
			return nil
		}
		lost = lost || OutcomeOf(err) == Unknown
		wait := max(waits.NextBackOff(), asked(err))
		if attempt == c.attempts || !worthRepeating(err, twice) || !c.rest(ctx, err, wait) {
			if attempt == 1 {
				return err
			}
			return &RetriedError{Attempts: attempt, Lost: lost, Err: err}
		}
	}
}

// worthRepeating tells whether another attempt may succeed and can do no harm.
func worthRepeating(err error, twice again) bool {
	e, ok := errors.AsType[*APIError](err)
	if ok && (e.Status >= 300 && e.Status <= 399 || e.RetryAfter > maxAsked) {
		return false // led elsewhere it stays
	}
	switch OutcomeOf(err) {
	case Later:
		return true
	case Unknown:
		return bool(twice)
	default:
		return false
	}
}

// asked is how long Sendbird asked to wait.
func asked(err error) time.Duration {
	if e, ok := errors.AsType[*APIError](err); ok {
		return e.RetryAfter
	}
	return 0
}

// rest waits; false if ctx ended before.
func (c *Client) rest(ctx context.Context, why error, wait time.Duration) bool {
	if ctx.Err() != nil {
		return false
	}
	if c.onRetry != nil {
		c.onRetry(why, wait)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// hasCode tells whether Sendbird refused with one of these codes.
func hasCode(err error, codes ...Code) bool {
	e, ok := errors.AsType[*APIError](err)
	for _, code := range codes {
		if ok && e.Code == code {
			return true
		}
	}
	return false
}
