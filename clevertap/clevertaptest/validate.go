package clevertaptest

import (
	"bytes"
	"errors"
	"io"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/birdtap/birdtap/clevertap"
)

var errMalformed = errors.New("malformed request")

// parse takes a body apart into its records. Comments are malformed, as
// CleverTap documents; so are, by our guess, duplicate names, invalid UTF-8,
// data after the end, a body that is no {"d":[…]}, and more than limit records.
func parse(body []byte, limit int) ([]Record, error) {
	d := jsontext.NewDecoder(bytes.NewReader(body))
	if t, err := d.ReadToken(); err != nil || t.Kind() != jsontext.KindBeginObject {
		return nil, errMalformed
	}
	var list []Record
	found := false
	for d.PeekKind() == jsontext.KindString {
		name, err := d.ReadToken()
		if err != nil {
			return nil, errMalformed
		}
		if name.String() != "d" {
			if d.SkipValue() != nil {
				return nil, errMalformed
			}
			continue
		}
		found = true
		if list, err = parseArray(d); err != nil {
			return nil, err
		}
	}
	if _, err := d.ReadToken(); err != nil { // the closing brace
		return nil, errMalformed
	}
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) || !found || len(list) > limit {
		return nil, errMalformed
	}
	return list, nil
}

func parseArray(d *jsontext.Decoder) ([]Record, error) {
	if t, err := d.ReadToken(); err != nil || t.Kind() != jsontext.KindBeginArray {
		return nil, errMalformed
	}
	var list []Record
	for d.PeekKind() != jsontext.KindEndArray {
		v, err := d.ReadValue()
		if err != nil {
			return nil, errMalformed
		}
		list = append(list, newRecord(v.Clone()))
	}
	_, err := d.ReadToken()
	return list, err
}

// validate is the code that CleverTap documents for what is wrong with a record,
// 0 if nothing is. Which one comes first when several fit is a guess. Profiles
// and tokens, which share the path, are not part of this fake: they get 524.
func validate(top, data map[string]jsontext.Value, r Record) clevertap.Code {
	switch {
	case top == nil:
		return clevertap.CodeStructure
	case text(top["type"]) != "event":
		return clevertap.CodeNotEvent
	case r.Event == "":
		return clevertap.CodeNoEventName
	case clevertap.ReservedEvent(r.Event):
		return clevertap.CodeReservedEvent
	case data == nil:
		return clevertap.CodeStructure
	case r.Identity == "":
		return clevertap.CodeNoIdentity
	case countIdentities(top) > 1: // "exactly one" is documented, the code is a guess
		return clevertap.CodeStructure
	case !goodTime(top["ts"]):
		return clevertap.CodeTimestamp
	case !goodProperties(data):
		return clevertap.CodeProperties
	default:
		return 0
	}
}

func countIdentities(top map[string]jsontext.Value) int {
	n := 0
	for _, kind := range identities {
		if _, ok := top[kind]; ok {
			n++
		}
	}
	return n
}

// goodTime: absent, or a positive integer. 0 was recorded as 525; that digits in
// a string and fractions are refused is a guess.
func goodTime(ts jsontext.Value) bool {
	if ts == nil {
		return true
	}
	for _, c := range ts {
		if c < '0' || c > '9' {
			return false
		}
	}
	return ts[0] != '0'
}

func goodProperties(data map[string]jsontext.Value) bool {
	if len(data) > clevertap.MaxProperties {
		return false
	}
	for name, value := range data {
		size := len(value)
		if value.Kind() == jsontext.KindString {
			size = len(text(value))
		}
		if utf8.RuneCountInString(name) > clevertap.MaxPropertyName || size > clevertap.MaxPropertyValue {
			return false
		}
	}
	return true
}
