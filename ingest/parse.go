package ingest

import (
	"bytes"
	"errors"
	"io"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/birdtap/birdtap/clevertap"
)

// maxDepth is how many objects and arrays may stand inside each other in a body.
const maxDepth = 32

// errMalformed has no detail on purpose: a parser's own errors quote what they
// stumbled over, and that may be personal.
var errMalformed = errors.New("the body is no JSON of a known shape")

// record is one record of a body as it came: slices of the body that nobody has
// judged yet. A member that is absent is nil.
type record struct {
	raw      []byte
	isObject bool

	userKind string // name of the member that says whose event it is
	user     []byte
	users    int // how many such members there are; exactly one is right

	ts, kind, evtName, evtData []byte
	props                      []member // of evtData, if that is an object
	extras                     []member // unknown members: carried, never dropped

	// Of a webhook, or of a record that names a notification; these stand in extras, too.
	category, notificationID, userID, status []byte
}

// member is one member of an object.
type member struct {
	quoted []byte // its name as it came
	name   []byte // its name, decoded
	value  []byte // as it came
}

// appendMember keeps one member more than are allowed: that tells too many, and
// an object of a million members costs no more memory than its body.
func appendMember(list []member, m member) []member {
	if len(list) > clevertap.MaxProperties {
		return list
	}
	return append(list, m)
}

func (r *record) reset() {
	*r = record{props: r.props[:0], extras: r.extras[:0]}
}

// set puts a member other than evtData where it belongs.
func (r *record) set(m member) {
	switch string(m.name) {
	case clevertap.Identity:
		r.setUser(clevertap.Identity, m.value)
	case clevertap.ObjectID:
		r.setUser(clevertap.ObjectID, m.value)
	case clevertap.FBID:
		r.setUser(clevertap.FBID, m.value)
	case clevertap.GPID:
		r.setUser(clevertap.GPID, m.value)
	case "evtName":
		r.evtName = m.value
	case "ts":
		r.ts = m.value
	case "type":
		r.kind = m.value
	default:
		r.setExtra(m)
	}
}

func (r *record) setUser(kind string, value []byte) {
	r.userKind, r.user = kind, value
	r.users++
}

func (r *record) setExtra(m member) {
	r.extras = appendMember(r.extras, m)
	switch string(m.name) {
	case "category":
		r.category = m.value
	case "notification_id":
		r.notificationID = m.value
	case "user_id":
		r.userID = m.value
	case "status":
		r.status = m.value
	}
}

// parser reads bodies, one at a time, in one pass and strictly: duplicate names,
// invalid UTF-8 and lone surrogates (jsontext refuses these by default), deep
// nesting and anything behind the value are errors. It reuses its memory; the
// records it hands out are valid until the next one.
type parser struct {
	body  []byte
	src   bytes.Buffer     // over body: jsontext reads from such a buffer without copying
	dec   jsontext.Decoder // over src
	texts unescaper

	outer record // the object at the top, which is a record itself unless it has a "d"
	inner record // the record of a list that is being read
}

// parse hands every record of body to take, in order, until take has an error.
// After an error those already taken count for nothing. The shapes are {"d":[record…]}, [record…] and
// a bare record; an empty list is fine.
func (p *parser) parse(body []byte, take func(*record) error) error {
	p.open(body)
	switch p.dec.PeekKind() {
	case jsontext.KindBeginArray:
		if err := p.list(take); err != nil {
			return err
		}
	case jsontext.KindBeginObject:
		enveloped, err := p.object(&p.outer, take)
		if err != nil {
			return err
		}
		if !enveloped {
			if err := take(&p.outer); err != nil {
				return err
			}
		}
	default:
		return errMalformed
	}
	return p.end()
}

// parseRecord reads the one record that raw is.
func (p *parser) parseRecord(raw []byte) (*record, error) {
	p.open(raw)
	if err := p.record(&p.outer); err != nil {
		return nil, err
	}
	return &p.outer, p.end()
}

func (p *parser) open(body []byte) {
	p.body = body
	p.src = *bytes.NewBuffer(body)
	p.dec.Reset(&p.src)
}

// end makes sure that nothing but blanks follows.
func (p *parser) end() error {
	if _, err := p.dec.ReadToken(); !errors.Is(err, io.EOF) {
		return errMalformed
	}
	return nil
}

func (p *parser) list(take func(*record) error) error {
	if p.dec.PeekKind() != jsontext.KindBeginArray {
		return errMalformed
	}
	if err := p.token(); err != nil {
		return err
	}
	for p.dec.PeekKind() != jsontext.KindEndArray {
		if err := p.record(&p.inner); err != nil {
			return err
		}
		if err := take(&p.inner); err != nil {
			return err
		}
	}
	return p.token()
}

// record reads one element of a list, which may be of any type.
func (p *parser) record(rec *record) error {
	if p.dec.PeekKind() == jsontext.KindBeginObject {
		_, err := p.object(rec, nil)
		return err
	}
	rec.reset()
	var err error
	rec.raw, err = p.value()
	return err
}

// object reads an object as a record. With take set, its member "d" is none of a
// record but the list of records; then it is only the envelope, and what else
// stands in it is of no interest.
func (p *parser) object(rec *record, take func(*record) error) (enveloped bool, err error) {
	rec.reset()
	p.texts.reset()
	if err := p.token(); err != nil {
		return false, err
	}
	start := p.offset() - len("{")
	for p.dec.PeekKind() != jsontext.KindEndObject {
		m, err := p.name()
		if err != nil {
			return false, err
		}
		switch {
		case take != nil && string(m.name) == "d":
			enveloped = true
			err = p.list(take)
		case string(m.name) == "evtData" && p.dec.PeekKind() == jsontext.KindBeginObject:
			err = p.eventData(rec)
		case string(m.name) == "evtData":
			rec.evtData, err = p.value()
		default:
			m.value, err = p.value()
			rec.set(m)
		}
		if err != nil {
			return false, err
		}
	}
	if err := p.token(); err != nil {
		return false, err
	}
	rec.raw, rec.isObject = p.body[start:p.offset()], true
	return enveloped, nil
}

func (p *parser) eventData(rec *record) error {
	if err := p.token(); err != nil {
		return err
	}
	start := p.offset() - len("{")
	for p.dec.PeekKind() != jsontext.KindEndObject {
		m, err := p.name()
		if err != nil {
			return err
		}
		if m.value, err = p.value(); err != nil {
			return err
		}
		rec.props = appendMember(rec.props, m)
	}
	if err := p.token(); err != nil {
		return err
	}
	rec.evtData = p.body[start:p.offset()]
	return nil
}

// token reads the bracket that opens or closes an object or an array.
func (p *parser) token() error {
	if _, err := p.dec.ReadToken(); err != nil {
		return errMalformed
	}
	return nil
}

func (p *parser) name() (member, error) {
	quoted, err := p.value()
	if err != nil {
		return member{}, err
	}
	return member{quoted: quoted, name: p.texts.text(quoted)}, nil
}

// value reads a whole value, or a name, and returns it as it stands in the body.
func (p *parser) value() ([]byte, error) {
	v, err := p.dec.ReadValue()
	if err != nil {
		return nil, errMalformed
	}
	if (v[0] == '{' || v[0] == '[') && p.dec.StackDepth()+depth(v) > maxDepth {
		return nil, errMalformed
	}
	end := p.offset()
	return p.body[end-len(v) : end], nil
}

// offset is where in the body the token read last ends.
func (p *parser) offset() int { return int(p.dec.InputOffset()) }

// depth counts how many objects and arrays of a valid value stand inside each
// other.
func depth(value []byte) int {
	deepest, open, quoted := 0, 0, false
	for i := 0; i < len(value); i++ {
		switch c := value[i]; {
		case c == '"':
			quoted = !quoted
		case quoted && c == '\\':
			i++ // whatever is escaped, it closes no string
		case quoted:
		case c == '{' || c == '[':
			open++
			deepest = max(deepest, open)
		case c == '}' || c == ']':
			open--
		}
	}
	return deepest
}

// unescaper decodes JSON strings. What it returns is valid until reset.
type unescaper struct{ buf []byte }

func (u *unescaper) reset() { u.buf = u.buf[:0] }

// text decodes a valid JSON string. Where nothing is escaped, which is almost
// always, that is a part of quoted itself.
func (u *unescaper) text(quoted []byte) []byte {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return quoted[1 : len(quoted)-1]
	}
	start := len(u.buf)
	// The parser has read the string already, so it has no error.
	u.buf, _ = jsontext.AppendUnquote(u.buf, quoted)
	return u.buf[start:]
}
