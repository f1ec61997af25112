package clevertap

import (
	"bytes"
	"slices"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
)

// Event is what a record says about the campaign it belongs to.
type Event struct {
	Name     string // evtName
	Status   string // evtData.status: SENT or READ
	TargetID string // evtData.target_id: a text, or the digits of a number
}

// EventOf reads which event a record is. It is not ok unless it says all three. The
// record need not be one that CleverTap would take: what was refused has an event, too.
func EventOf(record []byte) (e Event, ok bool) {
	r := eventReaders.Get().(*eventReader)
	defer eventReaders.Put(r)
	r.src = *bytes.NewBuffer(record)
	r.dec.Reset(&r.src, lenient...)
	ok = r.record(&e) && e.Name != "" && (e.Status == "SENT" || e.Status == "READ")
	r.src = bytes.Buffer{} // keep no record
	return e, ok
}

var eventReaders = sync.Pool{New: func() any { return new(eventReader) }}

// lenient reads faster: whether a record is valid was decided when it came.
var lenient = []jsontext.Options{jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)}

// eventReader reads one record after another, reusing its memory.
type eventReader struct {
	src bytes.Buffer
	dec jsontext.Decoder // over src
}

// record reads until it knows enough.
func (r *eventReader) record(e *Event) bool {
	named, told := false, false
	ok := r.opens()
	for ok && r.more() {
		switch string(r.name()) {
		case "evtName":
			e.Name, ok = r.text('"')
			named = ok
		case "evtData":
			ok = r.data(e)
			told = ok
		default:
			ok = r.dec.SkipValue() == nil
		}
		if ok && named && told {
			return true
		}
	}
	return false
}

// data reads evtData to its end.
func (r *eventReader) data(e *Event) bool {
	status, target := false, false
	ok := r.opens()
	for ok && r.more() {
		switch string(r.name()) {
		case "status":
			e.Status, ok = r.text('"')
			status = ok
		case "target_id":
			e.TargetID, ok = r.text('"', '0')
			target = ok
		default:
			ok = r.dec.SkipValue() == nil
		}
	}
	if !ok {
		return false
	}
	_, err := r.dec.ReadToken()
	return err == nil && status && target
}

// opens reads the brace of an object.
func (r *eventReader) opens() bool {
	token, err := r.dec.ReadToken()
	return err == nil && token.Kind() == '{'
}

// more tells whether the object goes on. What else may follow shows when it is read.
func (r *eventReader) more() bool { return r.dec.PeekKind() == '"' }

// name reads the name of the next member. It is good until something else is read.
func (r *eventReader) name() []byte {
	quoted, err := r.dec.ReadValue()
	if err != nil {
		return nil // so is what follows
	}
	return unquoted(quoted)
}

// text reads a value of one of these kinds.
func (r *eventReader) text(kinds ...jsontext.Kind) (string, bool) {
	value, err := r.dec.ReadValue()
	if err != nil || !slices.Contains(kinds, value.Kind()) {
		return "", false
	}
	if value.Kind() != '"' {
		return string(value), true
	}
	return string(unquoted(value)), true
}

// unquoted decodes a string, which is valid.
func unquoted(quoted []byte) []byte {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return quoted[1 : len(quoted)-1]
	}
	text, _ := jsontext.AppendUnquote(nil, quoted)
	return text
}
