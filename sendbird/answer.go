package sendbird

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	// maxAnswer bounds the body of an answer, in bytes. The longest honest one
	// lists 100 templates with the content of their channels.
	maxAnswer = 8 << 20
	// maxDepth bounds how deep an answer may nest. A template's content is the
	// deepest there is.
	maxDepth = 64
)

var (
	errTooLong = errors.New("the answer is longer than any honest one")
	errTooDeep = errors.New("the answer nests deeper than any honest one")
	errPacked  = errors.New("the answer is packed, which nobody asked for")
	errNoJSON  = errors.New("the answer is no JSON of the documented shape")
)

// readAnswer reads a body to its end, so that the connection can be used again,
// or not at all if it cannot be an answer.
func readAnswer(resp *http.Response, limit int64) ([]byte, error) {
	if resp.Header.Get("Content-Encoding") != "" {
		return nil, errPacked
	}
	if resp.ContentLength > limit {
		return nil, errTooLong
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err == nil && int64(len(b)) > limit {
		return nil, errTooLong
	}
	return b, err
}

// answer is a decoded success: one that can tell whether it is whole.
type answer interface{ complete() bool }

// decode reads an answer into out. Its errors are fixed texts: a parser's own
// quote what they stumbled over, and that may be personal.
func decode(body []byte, out answer) error {
	if _, ok := out.(interface{ mayBeEmpty() }); ok && len(bytes.TrimSpace(body)) == 0 {
		return nil
	}
	if err := checkDepth(body); err != nil {
		return err
	}
	if json.Unmarshal(body, out) != nil || !out.complete() {
		return errNoJSON
	}
	return nil
}

// checkDepth reads body token by token, and refuses what nests too deep, holds
// duplicate names or invalid UTF-8, or is not exactly one value.
func checkDepth(body []byte) error {
	d := jsontext.NewDecoder(bytes.NewReader(body))
	for first := true; first || d.StackDepth() > 0; first = false {
		if _, err := d.ReadToken(); err != nil {
			return errNoJSON
		}
		if d.StackDepth() > maxDepth {
			return errTooDeep
		}
	}
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
		return errNoJSON
	}
	return nil
}

// errorBody is how Sendbird says no. A member that is missing must not pass for a
// zero, hence the pointers.
type errorBody struct {
	Error   *bool  `json:"error"`
	Code    *Code  `json:"code"`
	Message string `json:"message"`
}

// judge decides what an answer means: nil is success, decoded into out. It is a
// function of the answer alone; reading is the error with which its body ended.
func judge(resp *http.Response, body []byte, reading error, out answer) failure {
	if reading != nil {
		return &CallError{Outcome: unread(resp.StatusCode), Status: resp.StatusCode, Err: cause(reading)}
	}
	said, whole := parseError(body)
	if isSuccess(resp.StatusCode, said) && !whole {
		if err := decode(body, out); err != nil {
			return &CallError{Outcome: Unknown, Status: resp.StatusCode, Err: err}
		}
		return nil
	}
	e := &APIError{
		Status:     resp.StatusCode,
		Message:    said.Message,
		RetryAfter: retryAfter(resp.Header, time.Now()),
	}
	if said.Code != nil {
		e.Code = *said.Code
	}
	e.did = outcome(e.Status, e.Code, whole)
	return e
}

// judgeAs judges an answer as those of its API are.
func judgeAs(a api, resp *http.Response, body []byte, reading error, out answer) failure {
	if a == apiDesk {
		return judgeDesk(resp, body, reading, out)
	}
	return judge(resp, body, reading, out)
}

// isSuccess tells whether status and code can be those of a success. 207 is none:
// part of the call failed.
func isSuccess(status int, said errorBody) bool {
	partial := status == http.StatusMultiStatus || said.Code != nil && said.Code.family() == http.StatusMultiStatus
	return status >= 200 && status <= 299 && !partial
}

// parseError reads an error body; whole if it is one as documented.
func parseError(body []byte) (said errorBody, whole bool) {
	if checkDepth(body) != nil || json.Unmarshal(body, &said) != nil {
		return errorBody{}, false
	}
	return said, said.Error != nil && *said.Error && said.Code != nil
}

// outcome says what a call has done that was answered with this status and code;
// whole means that the body was an error as documented. The code counts more than
// the status: errors come with HTTP 200, and a 400 may carry a 403100.
//
//	code 207…                      partial
//	code 4…, but 429…              refused
//	code 429…, 500910, 5…          later
//	no such code: status 207       partial
//	              429              later
//	              other 4xx        refused, but for 408 and 499
//	              5xx, whole       later
//	              anything else    unknown
func outcome(status int, code Code, whole bool) Outcome {
	if o, known := outcomeOfCode(code, whole); known {
		return o
	}
	switch {
	case status == http.StatusMultiStatus:
		return Partial
	case status == http.StatusTooManyRequests:
		return Later
	case status == http.StatusRequestTimeout, status == 499: // a proxy gave up on one of us, who knows when
		return Unknown
	case status >= 400 && status <= 499:
		return Refused
	case status >= 500 && status <= 599 && whole:
		return Later
	default:
		return Unknown
	}
}

// outcomeOfCode knows nothing where the body is not whole: a number alone in
// something else's page proves nothing.
func outcomeOfCode(code Code, whole bool) (Outcome, bool) {
	family := code.family()
	switch {
	case family == http.StatusMultiStatus:
		return Partial, true
	case !whole:
		return Unknown, false
	case code == CodeTooManyRequests, family == http.StatusTooManyRequests:
		return Later, true
	case family >= 400 && family <= 499:
		return Refused, true
	case family >= 500 && family <= 599:
		return Later, true
	default:
		return Unknown, false
	}
}

// unread is the outcome of an answer of which only the status is known.
func unread(status int) Outcome { return outcome(status, 0, false) }

// reply is an answer that need not say more than yes: any JSON, or nothing at all.
type reply struct{ raw jsontext.Value }

func (*reply) complete() bool { return true }

func (*reply) mayBeEmpty() {}

func (r *reply) UnmarshalJSON(b []byte) error {
	r.raw = bytes.Clone(b)
	return nil
}
