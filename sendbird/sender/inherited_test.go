package sender

import (
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
	"go.uber.org/zap"
)

// That a sender died in the middle of many calls is no sign that Sendbird takes none: the
// next one goes on at once.
func TestCallsOfADeadSenderAreNotSendbirdsFault(t *testing.T) {
	tm := &term{Sender: &Sender{log: zap.NewNop()}, backoff: backoff.NewExponentialBackOff()}
	for range 2 * manyFailures {
		tm.judgeSendbird(&outcome{kind: callUnknown, inherited: true, why: "birdtap ended before it knew the answer"})
	}
	if tm.failures > 0 || tm.pausedTo.After(time.Now()) {
		t.Errorf("%d failures, paused to %v", tm.failures, tm.pausedTo)
	}
	tm.judgeSendbird(&outcome{kind: callUnknown, why: "no answer"})
	if tm.failures != 1 || tm.pausedTo.IsZero() {
		t.Errorf("a call of its own: %d failures, paused to %v", tm.failures, tm.pausedTo)
	}
}
