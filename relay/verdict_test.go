package relay

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/birdtap/birdtap/clevertap"
	"github.com/birdtap/birdtap/store"
)

// kindOf is how a client has to type a status.
func kindOf(status int) clevertap.Kind {
	switch {
	case status == 200:
		return clevertap.Accepted
	case status == 400:
		return clevertap.BadRequest
	case status == 413:
		return clevertap.TooLarge
	case status == 401, status == 403, status == 404:
		return clevertap.Denied
	case status == 429:
		return clevertap.TooMany
	case status >= 500:
		return clevertap.ServerError
	default:
		return clevertap.Unexpected
	}
}

func TestVerdictOnEveryStatus(t *testing.T) {
	for status := 100; status <= 599; status++ {
		v := judge(clevertap.Result{Kind: kindOf(status), Status: status, RetryAfter: time.Second}, 3)
		meaning, sig, reason := again, sigFailed, store.Reason("")
		switch status {
		case 200:
			meaning, sig = judged, sigGood
		case 400:
			meaning, sig, reason = refused, sigRefused, store.ReasonHTTP400
		case 413:
			meaning, sig, reason = refused, sigRefused, store.ReasonHTTP413
		case 401, 403, 404:
			sig = sigStopped
		case 429:
			sig = sigThrottled
		}
		if v.meaning != meaning || v.signal != sig || v.reason != reason || v.retryAfter != time.Second {
			t.Errorf("%d: got %+v", status, v)
		}
		if wantCode := status; reason != "" && v.code != wantCode {
			t.Errorf("%d: code %d", status, v.code)
		}
		if len(v.exceptions) > 0 {
			t.Errorf("%d: exceptions %v", status, v.exceptions)
		}
	}
}

func TestVerdictWithoutStatus(t *testing.T) {
	for name, c := range map[string]struct {
		result clevertap.Result
		want   verdict
	}{
		"reset":           {clevertap.Result{Kind: clevertap.Unreachable, Err: errors.New("reset")}, verdict{meaning: again, signal: sigFailed}},
		"no error at all": {clevertap.Result{}, verdict{meaning: again, signal: sigFailed}},
		"timeout": {
			clevertap.Result{Kind: clevertap.Unreachable, Err: fmt.Errorf("no answer: %w", context.DeadlineExceeded)},
			verdict{meaning: again, signal: sigTimedOut},
		},
		"unclear": {
			clevertap.Result{Kind: clevertap.Unclear, Status: 200},
			verdict{meaning: unclear, signal: sigFailed, reason: store.ReasonUnclear, code: 200},
		},
		"too many records, not sent": {
			clevertap.Result{Kind: clevertap.TooLarge},
			verdict{meaning: refused, signal: sigRefused, reason: store.ReasonHTTP413},
		},
		"a kind nobody knows": {clevertap.Result{Kind: 99, Status: 200}, verdict{meaning: again, signal: sigFailed}},
	} {
		got := judge(c.result, 3)
		if got.meaning != c.want.meaning || got.signal != c.want.signal || got.reason != c.want.reason || got.code != c.want.code {
			t.Errorf("%s: got %+v, want %+v", name, got, c.want)
		}
	}
}

func TestVerdictOnEveryRecordCode(t *testing.T) {
	codes := []int{0, -1, 1, 200, 400, 499, 1000}
	for code := 500; code <= 599; code++ {
		codes = append(codes, code)
	}
	for _, code := range codes {
		v := judge(clevertap.Result{Kind: clevertap.Accepted, Status: 200, Refused: []clevertap.Refused{{Index: 2, Code: clevertap.Code(code)}}}, 3)
		want := exception{index: 2, aside: code == 555, reason: store.Reason(strconv.Itoa(code)), code: code}
		if v.meaning != judged || v.signal != sigGood || len(v.exceptions) != 1 || v.exceptions[0] != want {
			t.Errorf("%d: got %+v, want %+v", code, v, want)
		}
	}
}

func TestAccountThatDoesNotFitTheCallIsUnclear(t *testing.T) {
	for name, indexes := range map[string][]int{
		"beyond the call": {3}, "negative": {-1}, "twice": {1, 1}, "out of order": {2, 0}, "more than sent": {0, 1, 2, 3},
	} {
		v := judge(clevertap.Result{Kind: clevertap.Accepted, Status: 200, Refused: refusals(555, indexes...)}, 3)
		if v.meaning != unclear || v.signal != sigFailed || v.reason != store.ReasonUnclear {
			t.Errorf("%s: got %+v", name, v)
		}
	}
}

func TestOutageDressedAs555SlowsThePace(t *testing.T) {
	all := func(n, code int) []clevertap.Refused {
		indexes := make([]int, n)
		for i := range indexes {
			indexes[i] = i
		}
		return refusals(code, indexes...)
	}
	for name, c := range map[string]struct {
		refused []clevertap.Refused
		n       int
		want    signal
	}{
		"all of a large call":       {all(10, 555), 10, sigFailed},
		"all but one":               {all(10, 555), 11, sigGood},
		"all of a small call":       {all(9, 555), 9, sigGood},
		"all dead is an answer too": {all(1000, 512), 1000, sigGood},
	} {
		v := judge(clevertap.Result{Kind: clevertap.Accepted, Status: 200, Refused: c.refused}, c.n)
		if v.meaning != judged || len(v.exceptions) != len(c.refused) || v.signal != c.want {
			t.Errorf("%s: got signal %v, want %v", name, v.signal, c.want)
		}
	}
}

func refusals(code int, indexes ...int) []clevertap.Refused {
	list := make([]clevertap.Refused, len(indexes))
	for i, index := range indexes {
		list[i] = clevertap.Refused{Index: index, Code: clevertap.Code(code)}
	}
	return list
}
