package sendbird

import (
	"errors"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

var errNoBody = errors.New("the call cannot be written as JSON")

// ID is an id of Sendbird's, digit for digit: beyond 2^53 a number read as a
// float would become another one. It is sent as a string; a number is taken too.
type ID string

// UnmarshalJSONFrom reads a string or a whole number.
func (id *ID) UnmarshalJSONFrom(d *jsontext.Decoder) error {
	t, err := d.ReadToken()
	if err != nil {
		return err
	}
	text := t.String()
	switch t.Kind() {
	case jsontext.KindString:
	case jsontext.KindNumber:
		if _, err := strconv.ParseUint(text, 10, 64); err != nil {
			return errNoJSON
		}
	default:
		return errNoJSON
	}
	if len(text) > 256 || !isLine(text) {
		return errNoJSON // it goes into logs and keys
	}
	*id = ID(text)
	return nil
}

// Time is a point in time as Sendbird writes it: an integer of milliseconds since
// 1970. Some pages say milliseconds and show seconds; below 10^11 it is seconds
// (as milliseconds that would be before March 1973). Anything else is the zero Time.
type Time struct{ time.Time }

// UnmarshalJSONFrom never fails for a value it cannot read: no answer is worth
// less for a time that is odd.
func (t *Time) UnmarshalJSONFrom(d *jsontext.Decoder) error {
	*t = Time{}
	v, err := d.ReadValue()
	if err != nil {
		return err
	}
	if n, err := strconv.ParseInt(string(v), 10, 64); err == nil && n > 0 {
		t.Time = epoch(n)
	}
	return nil
}

// MarshalJSONTo writes milliseconds, or null.
func (t Time) MarshalJSONTo(e *jsontext.Encoder) error {
	if t.IsZero() {
		return e.WriteToken(jsontext.Null)
	}
	return e.WriteToken(jsontext.Int(t.UnixMilli()))
}

// epoch reads seconds or milliseconds since 1970, in UTC. What is beyond the year
// 9999 is none.
func epoch(n int64) time.Time {
	const lastSecond = 253402300799
	switch {
	case n < 1e11:
		return time.Unix(n, 0).UTC()
	case n/1000 <= lastSecond:
		return time.UnixMilli(n).UTC()
	default:
		return time.Time{}
	}
}
