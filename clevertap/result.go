package clevertap

import "time"

// Kind says what came of one call: a closed set. The zero Kind is Unreachable,
// which claims nothing.
type Kind int

// What may come of a call. "Taken" means that CleverTap has the records.
const (
	// Unreachable: no usable answer came (DNS, TLS, refused, reset, timeout, an
	// answer that broke off). Whether the records were taken is unknown.
	Unreachable Kind = iota
	// Accepted: 200, understood, and every record is accounted for: all are
	// taken but those in Result.Refused. These may be all of them.
	Accepted
	// Unclear: 200, but no account can be drawn from it: no JSON, counts that do
	// not add up, a refusal that cannot be tied to its record. What was taken is
	// unknown.
	Unclear
	// BadRequest: 400. Nothing was taken; something in the body is at fault.
	BadRequest
	// TooLarge: 413, or more than MaxRecords records, which are not even sent.
	// Nothing was taken.
	TooLarge
	// Denied: 401, 403 or 404. Nothing was taken; credentials, region or address
	// are wrong. Right credentials at the wrong region give 401, too.
	Denied
	// TooMany: 429. Nothing was taken; too many calls of this account were in
	// flight (never: too many per time).
	TooMany
	// ServerError: 5xx. Whether the records were taken is unknown.
	ServerError
	// Unexpected: any other status, such as another 2xx, a redirect (none is
	// followed), 405 or 409. Whether the records were taken is unknown. Like
	// Denied it speaks of the destination, not of the records: something else
	// than CleverTap's upload answers there.
	Unexpected
)

// String is the kind in snake case, fit for a label or a log.
func (k Kind) String() string {
	switch k {
	case Unreachable:
		return "unreachable"
	case Accepted:
		return "accepted"
	case Unclear:
		return "unclear"
	case BadRequest:
		return "bad_request"
	case TooLarge:
		return "too_large"
	case Denied:
		return "denied"
	case TooMany:
		return "too_many"
	case ServerError:
		return "server_error"
	case Unexpected:
		return "unexpected"
	default:
		return "unknown"
	}
}

// Result is the typed answer to one call.
type Result struct {
	Kind Kind
	// Status is the HTTP status, 0 if none came.
	Status int
	// Refused names the records that were not taken, by rising Index. Only an
	// Accepted result has any.
	Refused []Refused
	// RetryAfter is how long CleverTap asked to wait, at most an hour, 0 if it
	// did not. None is documented; a proxy or balancer may send one.
	RetryAfter time.Duration
	// Err says in words what went wrong, nil if Kind is Accepted. It is fit for a
	// log: it never holds the passcode, the records, or what CleverTap wrote.
	Err error
}

// Refused is one record that CleverTap did not take.
type Refused struct {
	// Index is the place of the record in the call, from 0.
	Index int
	Code  Code
	// Message is CleverTap's text. It is personal data (it may quote the record)
	// and must not be logged.
	Message string
}
