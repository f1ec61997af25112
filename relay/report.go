package relay

import (
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/birdtap/birdtap/clevertap"
	"github.com/birdtap/birdtap/store"
)

// sayEvery bounds the log in an outage: one line a minute for every kind of trouble.
const sayEvery = time.Minute

// hush lets a line through once in sayEvery.
type hush struct{ said time.Time }

func (h *hush) over(now time.Time) bool {
	if now.Sub(h.said) < sayEvery {
		return false
	}
	h.said = now
	return true
}

// sayUnread tells why a relay that could be active stands by.
func (r *Relay) sayUnread(err error) {
	if errors.Is(err, store.ErrNewer) {
		r.log.Error("a newer birdtap has written the checkpoint: nothing is delivered from here until that version runs here; what waits is safe", zap.Error(err))
		return
	}
	r.log.Warn("cannot read the checkpoint", zap.Error(err))
}

// report writes the one wide line of an upload. It has no payload, no user, and none
// of CleverTap's words, which may quote a record.
func (t *term) report(u *upload, records int, s step, result clevertap.Result, took time.Duration) {
	t.metrics.uploadSeconds.WithLabelValues(result.Kind.String()).Observe(took.Seconds())
	t.metrics.batchRecords.Observe(float64(records))
	asides, dead := 0, 0
	for _, e := range s.exceptions {
		if e.aside {
			asides++
		} else {
			dead++
		}
	}
	judged := s.to - s.from
	fields := []zap.Field{
		zap.Int("records", records),
		zap.Int("delivered", judged-asides-dead),
		zap.Int("retried", records-judged+asides),
		zap.Int("dead", dead),
		zap.Int("status", result.Status),
		zap.Int("attempt", u.calls),
		zap.Int64("duration_ms", took.Milliseconds()),
		zap.Stringer("reason", result.Kind),
	}
	if result.Kind == clevertap.Accepted {
		t.log.Info("upload", fields...)
		return
	}
	if now := time.Now(); now.Sub(t.said[result.Kind]) >= sayEvery {
		t.said[result.Kind] = now
		t.log.Warn("upload", append(fields, zap.Error(result.Err))...)
	}
}

// breakerTurned tells the operator, and the next checkpoint, that the breaker changed,
// and that CleverTap refuses the account, which nobody else will mend.
func (t *term) breakerTurned(before string, result clevertap.Result) {
	after := t.pace.State()
	t.dirty = t.dirty || before != after
	newlyDenied := result.Kind == clevertap.Denied && !t.denied
	switch {
	case newlyDenied:
		t.denied = true
		t.log.Error("CleverTap refuses the account: uploading stops and goes on by itself once it is mended; "+
			"check account id, passcode and region (right credentials at the wrong region are refused, too)", zap.Int("status", result.Status))
	case before != after && after == breakerClosed:
		t.denied = false
		t.log.Info("CleverTap takes records again")
	case before != after && before == breakerClosed:
		t.log.Warn("CleverTap fails: uploading stops, receipts wait, probes go on", zap.Int("status", result.Status), zap.Error(result.Err))
	}
}
