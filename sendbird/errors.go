package sendbird

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// Outcome says what a failed call has done: a closed set. The zero Outcome is
// Unknown, which claims nothing.
type Outcome int

// What a failed call may have done.
const (
	// Unknown: it may have been carried out (timeout or reset once it had a
	// connection, a 5xx without an error body, an answer that cannot be read).
	// Sendbird has no idempotency key, so it must not be repeated by itself.
	Unknown Outcome = iota
	// Refused: nothing was done, and the same call would be refused again.
	Refused
	// Later: nothing was done, and the same call may go through later (429, 5xx
	// with an error body, no connection).
	Later
	// Partial: part of it was carried out (code 207100). To repeat the whole
	// would do that part twice.
	Partial
)

// String is the outcome in one word, fit for a label or a log.
func (o Outcome) String() string {
	switch o {
	case Unknown:
		return "unknown"
	case Refused:
		return "refused"
	case Later:
		return "later"
	case Partial:
		return "partial"
	default:
		return "invalid"
	}
}

// NothingDone tells whether the call may be made again without doing anything
// twice.
func (o Outcome) NothingDone() bool { return o == Refused || o == Later }

// OutcomeOf tells what the call that ended in err has done. An error that is not
// of this package is Unknown; so is nil, which is no failure.
func OutcomeOf(err error) Outcome {
	if e, ok := errors.AsType[interface {
		error
		outcome() Outcome
	}](err); ok {
		return e.outcome()
	}
	return Unknown
}

// Code is Sendbird's number for an error;
// https://sendbird.com/docs/chat/platform-api/v3/error-codes and
// https://sendbird.com/docs/business-messaging/server-side/v2/overview.
type Code int

// Codes that are treated, or explained, one by one.
const (
	CodePartial         Code = 207100 // part of the request failed, part did not
	CodeInvalidTargets  Code = 400111 // among others: more targets than the mode takes
	CodeNotFound        Code = 400201
	CodeExists          Code = 400202
	CodeTooManyItems    Code = 400203
	CodeUserNotFound    Code = 400301
	CodeNoApplication   Code = 400304
	CodeBadToken        Code = 400401 // with HTTP 400, not 401
	CodeNoPermission    Code = 403100
	CodeServiceOff      Code = 403101
	CodeTooManyRequests Code = 500910 // with HTTP 429
)

// codeWords says what a documented code means.
var codeWords = map[Code]string{
	CodePartial: "part of the request failed, part of it was carried out",
	400100:      "wrong type, string wanted", 400101: "wrong type, number wanted", 400102: "wrong type, list wanted",
	400103: "wrong type, object wanted", 400104: "wrong type, boolean wanted", 400105: "a parameter is missing",
	400106: "a number is negative", 400108: "not authorised", 400110: "a value is too long",
	CodeInvalidTargets: "invalid value, or more targets than this mode takes",
	400112:             "incompatible values", 400113: "a value is out of range", 400114: "bad URL of a resource",
	400151: "a character that is not allowed", CodeNotFound: "no such resource", CodeExists: "exists already",
	CodeTooManyItems: "too many items", 400300: "the user is deactivated", CodeUserNotFound: "no such user",
	400302: "access token not valid", 400303: "session key not valid", CodeNoApplication: "no such application",
	400305: "a user id is too long", 400306: "the plan's quota is used up", 400307: "domain not allowed",
	CodeBadToken: "the API token is not valid for this application", 400402: "parameters are missing",
	400403: "the body is not valid JSON", 400404: "the URL is not valid",
	400700: "blocked", 400701: "blocked", 400702: "blocked", 400750: "banned", 400751: "banned",
	400920: "not acceptable", 400930: "endpoint not valid",
	CodeNoPermission: "the API token has no permission for this call",
	CodeServiceOff:   "Business Messaging is not turned on for this application",
	500601:           "Sendbird's own error, try later", 500602: "Sendbird's own error, try later",
	500901: "Sendbird's own error, try later", CodeTooManyRequests: "too many requests, try later",
}

// String says what the code means, in English; "" for an undocumented one.
func (c Code) String() string { return codeWords[c] }

// family is the HTTP status that a code begins with: 400 of 400201.
func (c Code) family() int { return int(c) / 1000 }

// APIError is an answer of Sendbird that is no success, whatever its HTTP status:
// errors come with 200, too.
type APIError struct {
	// Call names the call: "send notification".
	Call string
	// Status is the HTTP status.
	Status int
	// Code is Sendbird's, 0 if the answer held none.
	Code Code
	// DeskCode is the word that Desk has for a code, "" if the answer held none.
	DeskCode string
	// Message is Sendbird's text. It may name users and must not be logged; Error
	// leaves it out.
	Message string
	// RetryAfter is how long Sendbird asked to wait, at most an hour, 0 if it did
	// not.
	RetryAfter time.Duration

	did Outcome
}

func (e *APIError) outcome() Outcome { return e.did }

// Error is fit for a log: it holds numbers and our own words, and nothing of
// what Sendbird wrote but a code.
func (e *APIError) Error() string {
	text := fmt.Sprintf("%s: Sendbird answered %d", e.Call, e.Status)
	if e.Code != 0 {
		text += fmt.Sprintf(", code %d", int(e.Code))
	}
	if words := e.Code.String(); words != "" {
		return text + ": " + words
	}
	if e.Code == 0 && deskCodes.MatchString(e.DeskCode) {
		return text + ", code " + e.DeskCode
	}
	if words := http.StatusText(e.Status); words != "" && e.Code == 0 {
		text += " " + words
	}
	return text
}

func (e *APIError) named(call string) error { e.Call = call; return e }

// CallError is a call that brought no usable answer.
type CallError struct {
	// Call names the call: "send notification".
	Call string
	// Outcome is Later if it never left, else Unknown.
	Outcome Outcome
	// Status is the HTTP status of an answer that could not be read, 0 if there
	// was none.
	Status int
	// Err is why. It is fit for a log.
	Err error
}

func (e *CallError) outcome() Outcome { return e.Outcome }

func (e *CallError) Error() string {
	text := e.Call + ": "
	if e.Status != 0 {
		text += fmt.Sprintf("Sendbird answered %d: ", e.Status)
	}
	if e.Outcome == Later {
		return text + e.Err.Error() + " (nothing was sent)"
	}
	return text + e.Err.Error()
}

// Unwrap is why.
func (e *CallError) Unwrap() error { return e.Err }

func (e *CallError) named(call string) error { e.Call = call; return e }

// LimitError is a call that was not made, since Sendbird would refuse it. Its
// text names field, value, limit and source; what may be personal, or long, is
// named by its place and size instead.
type LimitError struct {
	// Field is the field as Sendbird names it: "targets", `targets[3]`.
	Field string
	// Value is what it is: "10,001 users", "81 characters".
	Value string
	// Limit is what it may be: "at most 10,000 in batch mode".
	Limit string
	// Source is the page that says so.
	Source string
}

func (e *LimitError) outcome() Outcome { return Refused }

func (e *LimitError) Error() string {
	text := e.Field + ": " + e.Value + ", but " + e.Limit
	if e.Source != "" {
		text += " (" + e.Source + ")"
	}
	return text
}

// failure is an error of this package that learns the name of its call last.
type failure interface {
	error
	named(call string) error
}

// cause keeps of a transport's error what is known to be fit for a log. The whole
// text is not: net/http quotes the bytes of an answer that it cannot read.
func cause(err error) error {
	for _, own := range []error{errTooLong, errTooDeep, errPacked, errNoJSON} {
		if errors.Is(err, own) {
			return own
		}
	}
	if blocked, ok := errors.AsType[*blockedError](err); ok {
		return blocked
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("given up: %w", context.Canceled)
	}
	for _, known := range []error{
		find[*tls.CertificateVerificationError](err),
		find[tls.RecordHeaderError](err),
		find[x509.HostnameError](err),
		find[x509.UnknownAuthorityError](err),
		find[*net.OpError](err),
		find[*net.DNSError](err),
	} {
		if known != nil {
			return fmt.Errorf("no answer: %w", known)
		}
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("no answer: connection closed: %w", io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("no usable answer (%T)", err)
}

// find is the first E in err's tree, or nil.
func find[E error](err error) error {
	if e, ok := errors.AsType[E](err); ok {
		return e
	}
	return nil
}
