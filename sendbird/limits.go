package sendbird

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxRetryAfter caps what Sendbird may ask for: a slip at the other end must not
// stop sending for a day.
const maxRetryAfter = time.Hour

// limits is what an answer says about the pace.
//
//	X-RateLimit-Limit: 100;w=60      100 calls in 60 s
//	X-RateLimit-Remaining: 37        in this window
//	X-RateLimit-Reset: 1714374338    when it ends; the unit is not documented
//	X-RateLimit-RetryAfter: 3        with a 429, in seconds
type limits struct {
	tooMany    bool // a 429
	retryAfter time.Duration
	limit      int // 0: not said
	window     time.Duration
	remaining  int // -1: not said
	reset      int64
}

// limitsOf reads the headers of an answer; verdict is what it came to.
func limitsOf(resp *http.Response, verdict failure) limits {
	l := limits{remaining: -1, tooMany: resp.StatusCode == http.StatusTooManyRequests}
	if e, ok := errors.AsType[*APIError](verdict); ok {
		l.tooMany = l.tooMany || e.Code == CodeTooManyRequests || e.Code.family() == http.StatusTooManyRequests
		l.retryAfter = e.RetryAfter
	}
	count, window, _ := strings.Cut(resp.Header.Get("X-RateLimit-Limit"), ";")
	l.limit = number(count, 0)
	l.window = time.Duration(number(strings.TrimPrefix(strings.TrimSpace(window), "w="), 1)) * time.Second
	l.remaining = number(resp.Header.Get("X-RateLimit-Remaining"), -1)
	l.reset, _ = strconv.ParseInt(strings.TrimSpace(resp.Header.Get("X-RateLimit-Reset")), 10, 64) // 0: not said
	return l
}

// number reads a count that is positive and no larger than makes sense.
func number(text string, otherwise int) int {
	n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 31)
	if err != nil || n > 1_000_000 {
		return otherwise
	}
	return int(n)
}

// retryAfter reads how long to wait, from Sendbird's own header or from the common
// one; seconds, or a date in the latter.
func retryAfter(h http.Header, now time.Time) time.Duration {
	for _, name := range []string{"X-RateLimit-RetryAfter", "Retry-After"} {
		v := strings.TrimSpace(h.Get(name))
		if v == "" {
			continue
		}
		if strings.Trim(v, "0123456789.") == "" {
			if len(v) > 12 {
				return maxRetryAfter // a larger one would overflow
			}
			d, err := time.ParseDuration(v + "s")
			if err == nil {
				return min(d, maxRetryAfter)
			}
		}
		if at, err := http.ParseTime(v); err == nil {
			if sent, err := http.ParseTime(h.Get("Date")); err == nil {
				now = sent // the same clock
			}
			return min(max(at.Sub(now), 0), maxRetryAfter)
		}
	}
	return 0
}
