package sendbird

import (
	"net/http"
	"regexp"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// deskCodes is what a code of Desk may look like in an error, so that no other text
// of an answer gets there. Desk documents no codes.
var deskCodes = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

// deskError is how Desk says no. Its pages do not tell; two public clients saw:
//
//	{"code":"…","detail":"…"}
//	{"code":"…","message":"…"}
type deskError struct {
	Code    jsontext.Value `json:"code"`
	Detail  jsontext.Value `json:"detail"`
	Message jsontext.Value `json:"message"`
}

// parseDeskError reads either shape; false if the body is neither. A code of
// digits alone is one of Chat's.
func parseDeskError(body []byte) (e APIError, ok bool) {
	var said deskError
	if checkDepth(body) != nil || json.Unmarshal(body, &said) != nil {
		return APIError{}, false
	}
	e.DeskCode = textOf(said.Code)
	if n, err := strconv.ParseUint(e.DeskCode, 10, 31); err == nil {
		e.Code = Code(n)
	}
	if e.Message = textOf(said.Detail); e.Message == "" {
		e.Message = textOf(said.Message)
	}
	return e, e.DeskCode != "" && e.Message != ""
}

// textOf is a string, or whatever else stands there as it is written.
func textOf(v jsontext.Value) string {
	var s string
	switch {
	case v == nil || v.Kind() == jsontext.KindNull:
		return ""
	case json.Unmarshal(v, &s) == nil:
		return s
	default:
		return string(v)
	}
}

// judgeDesk is [judge] for Desk. Where Desk speaks as Chat does it is judged as
// Chat is; else by its status alone, for none of its codes is documented:
//
//	429              later
//	other 4xx        refused, but for 408 and 499
//	anything else    unknown; so is an error that comes with a 200
func judgeDesk(resp *http.Response, body []byte, reading error, out answer) failure {
	if _, whole := parseError(body); whole || reading != nil {
		return judge(resp, body, reading, out)
	}
	e, isError := parseDeskError(body)
	if isSuccess(resp.StatusCode, errorBody{}) && !isError {
		return judge(resp, body, nil, out)
	}
	e.Status = resp.StatusCode
	e.RetryAfter = retryAfter(resp.Header, time.Now())
	e.did = outcome(e.Status, 0, false)
	return &e
}
