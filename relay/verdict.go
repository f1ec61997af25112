package relay

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/birdtap/birdtap/clevertap"
	"github.com/birdtap/birdtap/store"
)

// meaning is what an answer says about the records of its call.
type meaning uint8

const (
	// again: nothing is known about any of them. The same call once more, when the
	// pace allows; it uses up no try, for the fault is the destination's.
	again meaning = iota
	// judged: each has its verdict: delivered, but for the exceptions.
	judged
	// unclear: CleverTap took the call, but what it says cannot be understood. Once
	// more, a few times; then in halves.
	unclear
	// refused: nothing was taken, and something in the call is at fault: in halves.
	refused
)

// signal is what an answer tells the pace about the destination.
type signal uint8

const (
	sigGood      signal = iota // it works
	sigRefused                 // it answers, and refused this call for its contents
	sigRefusing                // it refuses, and takes nothing else either: as sigStopped
	sigThrottled               // too many calls in flight
	sigFailed                  // trouble
	sigTimedOut                // trouble, and fewer calls may help
	sigStopped                 // it will take no call at all until somebody does something
)

// verdict is what one answer means: for the call, for the records that stand out,
// and for the pace.
type verdict struct {
	meaning    meaning
	exceptions []exception  // of a judged call, by rising index
	reason     store.Reason // of a refused or unclear call: what a lone record would die of
	code       int          // beside it: the HTTP status
	signal     signal
	retryAfter time.Duration
}

// exception is a record that was not delivered.
type exception struct {
	index  int
	aside  bool // step aside and try again later; else dead, of reason and code
	reason store.Reason
	code   int
}

// minOutage555 is how many records a call must have for a 555 to each of them to be
// taken for trouble of CleverTap's own.
const minOutage555 = 10

// judge is the one place that decides what an answer means:
//
//	CleverTap says              its records                           the pace hears
//	200, all accounted for      555: aside; any other code: dead,     good; failed if
//	                            the code its reason; the rest         all of 10 or more
//	                            delivered                             are 555
//	200, not understood         unclear                               failed
//	400, 413                    refused                               refused
//	401, 403, 404               again                                 stopped
//	429                         again                                 throttled
//	5xx                         again                                 failed
//	no answer (DNS, TLS, reset) again                                 failed; timed out
//	any other status            again                                 failed
//
// Only 555 passes by itself; a record refused with any other code, known or not,
// would be refused again. A status outside the table says that something else than
// CleverTap's upload is answering, so nothing about the records follows from it.
// An account that does not fit the n records that were sent is none.
//
// A 555 for every record of a large call is an outage in other words: the records
// step aside all the same, but the pace slows down, or the whole queue would be
// parked, and go dead together.
func judge(r clevertap.Result, n int) verdict {
	v := verdict{meaning: again, signal: sigFailed, retryAfter: r.RetryAfter}
	switch r.Kind {
	case clevertap.Accepted:
		return judgeRecords(r, n)
	case clevertap.Unclear:
		return unclearVerdict(r)
	case clevertap.BadRequest:
		v.meaning, v.reason, v.code, v.signal = refused, store.ReasonHTTP400, r.Status, sigRefused
	case clevertap.TooLarge:
		v.meaning, v.reason, v.code, v.signal = refused, store.ReasonHTTP413, r.Status, sigRefused
	case clevertap.Denied:
		v.signal = sigStopped
	case clevertap.TooMany:
		v.signal = sigThrottled
	case clevertap.Unreachable:
		if errors.Is(r.Err, context.DeadlineExceeded) {
			v.signal = sigTimedOut
		}
	case clevertap.ServerError, clevertap.Unexpected:
	}
	return v
}

func unclearVerdict(r clevertap.Result) verdict {
	return verdict{meaning: unclear, reason: store.ReasonUnclear, code: r.Status, signal: sigFailed, retryAfter: r.RetryAfter}
}

func judgeRecords(r clevertap.Result, n int) verdict {
	v := verdict{meaning: judged, signal: sigGood, retryAfter: r.RetryAfter}
	if len(r.Refused) == 0 {
		return v
	}
	v.exceptions = make([]exception, 0, len(r.Refused))
	next, asides := 0, 0
	for _, refusal := range r.Refused {
		if refusal.Index < next || refusal.Index >= n {
			return unclearVerdict(r)
		}
		next = refusal.Index + 1
		e := recordVerdict(refusal)
		if e.aside {
			asides++
		}
		v.exceptions = append(v.exceptions, e)
	}
	if asides == n && n >= minOutage555 {
		v.signal = sigFailed
	}
	return v
}

func recordVerdict(r clevertap.Refused) exception {
	return exception{index: r.Index, aside: r.Code.Passing(), reason: codeReason(r.Code), code: int(r.Code)}
}

// codeReason is the reason of a record that died of CleverTap's record code.
func codeReason(c clevertap.Code) store.Reason { return store.Reason(strconv.Itoa(int(c))) }
