package ingest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/birdtap/birdtap/clevertap"
	"github.com/birdtap/birdtap/store"
)

const (
	// maxRecordBytes bounds a record as it came and as it is stored. A frame on
	// the queue takes 512 KiB, and what can never be stored must not be accepted.
	maxRecordBytes = 128 << 10
	maxUserBytes   = 1 << 10
	// maxTimestamp is the last second of the year 9999; milliseconds lie beyond.
	maxTimestamp = 253402300799
)

// Convert judges one record and makes the receipt of it. now is the ts of a
// record that has none. A record that is refused comes back as it came, with
// Reason store.ReasonRefused and Code one of clevertap's codes.
//
// It is what the doors do to every record of a body. A refused letter that is
// replayed goes through it again, with the time it was first accepted. It is a
// pure function: what it made of a record, it makes of its own result again,
// and the key is the same, too, if the record had a ts. Of what is refused the
// result points into raw.
//
// Users are left as they are; Mapper.Convert looks them up.
func Convert(raw []byte, now time.Time) store.Receipt {
	r, _ := Mapper{}.Convert(raw, now) // no map, no error
	return r
}

// converter turns records into receipts, reusing its memory: receipts are valid
// until reset.
type converter struct {
	stamp []byte // ts of a record that has none, in digits
	out   []byte // the records made, one behind the other
	key   []byte // what is hashed into the dedup key
	texts unescaper

	sent     sentFunc // nil: nothing is filled in
	mapper   Mapper
	identity []byte // found in the map
	user     []byte // the same as JSON
	unmapped int    // records whose user was not in the map
}

func (c *converter) reset(now time.Time) {
	c.stamp = strconv.AppendInt(c.stamp[:0], now.Unix(), 10)
	c.out = c.out[:0]
	c.unmapped = 0
}

// convert is Mapper.Convert for a parsed record. A user who cannot be looked up is
// unmapped, and the error tells why.
func (c *converter) convert(rec *record) (store.Receipt, error) {
	c.texts.reset()
	if err := c.fill(rec); err != nil {
		return refused(rec.raw, clevertap.CodeStructure), err
	}
	if code := c.judge(rec); code != 0 {
		return refused(rec.raw, code), nil
	}
	reason, err := c.mapUser(rec)
	made := c.write(rec)
	if len(made) > maxRecordBytes {
		return refused(rec.raw, clevertap.CodeProperties), nil
	}
	return store.Receipt{Record: made, User: c.userOf(rec), Key: c.keyOf(rec), Reason: reason}, err
}

// refused marks a record that may not leave. Nobody can say whose it is; so its
// bytes stand for the user and for the key, which keeps different ones apart.
func refused(raw []byte, code clevertap.Code) store.Receipt {
	sum := sha256.Sum256(raw)
	return store.Receipt{
		Record: raw,
		User:   binary.BigEndian.Uint64(sum[16:]),
		Key:    store.Key(sum[:16]),
		Reason: store.ReasonRefused,
		Code:   int(code),
	}
}

// judge returns the code by which CleverTap would refuse the record, 0 if it
// would not. What only the account's settings know (fewer properties, discarded
// events, barred characters) is left to CleverTap.
func (c *converter) judge(rec *record) clevertap.Code {
	switch {
	case len(rec.raw) > maxRecordBytes:
		return clevertap.CodeProperties
	case !rec.isObject:
		return clevertap.CodeStructure
	}
	if code := c.judgeName(rec); code != 0 {
		return code
	}
	if code := c.judgeData(rec); code != 0 {
		return code
	}
	if code := c.judgeUser(rec); code != 0 {
		return code
	}
	switch {
	case rec.kind != nil && !c.isText(rec.kind, "event"):
		return clevertap.CodeNotEvent
	case rec.ts != nil && !isTimestamp(rec.ts):
		return clevertap.CodeTimestamp
	case len(rec.extras) > clevertap.MaxProperties:
		return clevertap.CodeProperties
	}
	return 0
}

func (c *converter) judgeName(rec *record) clevertap.Code {
	switch {
	case rec.evtName == nil && rec.notificationID != nil:
		// It names a notification in place of an event, and nobody remembers
		// which event that notification belongs to; see fill.
		return clevertap.CodeStructure
	case rec.evtName == nil:
		return clevertap.CodeNoEventName
	case !isString(rec.evtName):
		return clevertap.CodeStructure
	}
	name := c.texts.text(rec.evtName)
	switch {
	case len(bytes.TrimSpace(name)) == 0:
		return clevertap.CodeNoEventName
	case clevertap.ReservedEvent(string(name)):
		return clevertap.CodeReservedEvent
	}
	return 0
}

func (c *converter) judgeData(rec *record) clevertap.Code {
	if rec.evtData == nil || rec.evtData[0] != '{' {
		return clevertap.CodeStructure
	}
	if len(rec.props) > clevertap.MaxProperties {
		return clevertap.CodeProperties
	}
	var status, target []byte
	for _, p := range rec.props {
		if utf8.RuneCount(p.name) > clevertap.MaxPropertyName ||
			isString(p.value) && len(c.texts.text(p.value)) > clevertap.MaxPropertyValue {
			return clevertap.CodeProperties
		}
		switch string(p.name) {
		case "status":
			status = p.value
		case "target_id":
			target = p.value
		}
	}
	switch {
	case !c.isText(status, "SENT") && !c.isText(status, "READ"):
		return clevertap.CodeStructure
	case !isString(target) && !isInteger(target):
		return clevertap.CodeStructure
	}
	return 0
}

func (c *converter) judgeUser(rec *record) clevertap.Code {
	switch {
	case rec.users > 1:
		return clevertap.CodeStructure
	case rec.users == 0, string(rec.user) == "null":
		return clevertap.CodeNoIdentity
	case !isString(rec.user) && !isInteger(rec.user):
		return clevertap.CodeStructure
	}
	if n := len(c.scalar(rec.user)); n == 0 || n > maxUserBytes {
		return clevertap.CodeNoIdentity
	}
	return 0
}

// write makes the record that goes to CleverTap: the caller's own tokens, escapes
// and digits untouched, without blanks, in a fixed order, ts and type filled in.
//
//	{"identity":"…","ts":N,"type":"event","evtName":"…","evtData":{…},…}
func (c *converter) write(rec *record) []byte {
	start := len(c.out)
	b := c.out
	b = append(b, `{"`...)
	b = append(b, rec.userKind...)
	b = append(b, `":`...)
	b = append(b, rec.user...)
	b = append(b, `,"ts":`...)
	if rec.ts != nil {
		b = append(b, rec.ts...)
	} else {
		b = append(b, c.stamp...)
	}
	b = append(b, `,"type":"event","evtName":`...)
	b = append(b, rec.evtName...)
	b = append(b, `,"evtData":{`...)
	for i, p := range rec.props {
		if i > 0 {
			b = append(b, ',')
		}
		b = p.append(b)
	}
	b = append(b, '}')
	for _, e := range rec.extras {
		b = append(b, ',')
		b = e.append(b)
	}
	b = append(b, '}')
	c.out = b
	return b[start:len(b):len(b)]
}

// asWritten drops the blanks of a value and nothing else.
var asWritten = []jsontext.Options{jsontext.PreserveRawStrings(true)}

func (m member) append(b []byte) []byte {
	b = append(b, m.quoted...)
	b = append(b, ':')
	if isNested(m.value) {
		// The parser has read the value already, so it has no error.
		b, _ = jsontext.AppendFormat(b, m.value, asWritten...)
		return b
	}
	return append(b, m.value...)
}

// userOf is the order key of the record: FNV-1a over kind and decoded value of
// the identity, with the finalizer of MurmurHash3 for its weak high bits. A
// number and the string of its digits are one user, since CleverTap may see them
// as one. It is stored in frames: were it ever to change, receipts accepted
// before and after an upgrade could overtake each other.
func (c *converter) userOf(rec *record) uint64 {
	const prime = 1099511628211
	h := uint64(14695981039346656037)
	for i := range len(rec.userKind) {
		h = (h ^ uint64(rec.userKind[i])) * prime
	}
	h *= prime // a NUL between the two
	for _, b := range c.scalar(rec.user) {
		h = (h ^ uint64(b)) * prime
	}
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// keyOf is the dedup key of the record (see store.Key), and leaves its
// properties sorted. What is hashed is unambiguous: each part has a tag and its
// length before it. Strings are decoded, so that escapes do not matter; numbers
// count digit for digit, so 1 and 1.0 differ; a number and a string differ. It is
// stored in frames: were it ever to change, copies on both sides of an upgrade
// would not be recognised.
func (c *converter) keyOf(rec *record) store.Key {
	c.key = appendPart(c.key[:0], 'k', rec.userKind)
	c.appendValue(rec.user)
	c.appendValue(rec.evtName)
	slices.SortFunc(rec.props, func(a, b member) int { return bytes.Compare(a.name, b.name) })
	for _, p := range rec.props {
		c.key = appendPart(c.key, 'p', p.name)
		c.appendValue(p.value)
	}
	if rec.ts != nil {
		c.key = appendPart(c.key, 't', rec.ts)
	}
	sum := sha256.Sum256(c.key)
	return store.Key(sum[:16])
}

// canonical sorts the keys of nested objects and gives each string one spelling.
// Numbers stay as they are: read as float64, ids beyond 2^53 would look the same.
var canonical = []jsontext.Options{jsontext.ReorderRawObjects(true)}

func (c *converter) appendValue(value []byte) {
	switch {
	case isString(value):
		c.key = appendPart(c.key, 's', c.texts.text(value))
	case isNested(value):
		start := len(c.key)
		c.key = appendPart(c.key, 'n', "")
		// The parser has read the value already, so it has no error.
		c.key, _ = jsontext.AppendFormat(c.key, value, canonical...)
		binary.BigEndian.PutUint32(c.key[start+1:], uint32(len(c.key)-start-5)) //nolint:gosec // no longer than the body
	default: // number, true, false, null
		c.key = appendPart(c.key, 'v', value)
	}
}

func appendPart[T []byte | string](b []byte, tag byte, part T) []byte {
	b = append(b, tag)
	b = binary.BigEndian.AppendUint32(b, uint32(len(part))) //nolint:gosec // at most maxBodyBytes
	return append(b, part...)
}

// scalar is the decoded string, or the digits of the number.
func (c *converter) scalar(value []byte) []byte {
	if isString(value) {
		return c.texts.text(value)
	}
	return value
}

func (c *converter) isText(value []byte, want string) bool {
	return isString(value) && string(c.texts.text(value)) == want
}

func isString(value []byte) bool { return len(value) > 0 && value[0] == '"' }

func isNested(value []byte) bool { return value[0] == '{' || value[0] == '[' }

// isInteger tells whether a valid value is a number in plain digits.
func isInteger(value []byte) bool {
	if len(value) == 0 || value[0] != '-' && (value[0] < '0' || value[0] > '9') {
		return false
	}
	return !bytes.ContainsAny(value, ".eE")
}

// isTimestamp tells whether a valid value is a positive number of whole seconds.
func isTimestamp(value []byte) bool {
	if !isInteger(value) || len(value) > len("253402300799") {
		return false
	}
	ts, err := strconv.ParseInt(string(value), 10, 64)
	return err == nil && ts > 0 && ts <= maxTimestamp
}

// isOtherWebhook tells whether a signed record is no receipt but a webhook about
// something else, such as a template that was edited. What carries an event or
// its data is a receipt, whatever its category says.
func (c *converter) isOtherWebhook(rec *record) bool {
	if rec.evtName != nil || rec.evtData != nil || !isString(rec.category) {
		return false
	}
	return strings.HasPrefix(string(c.texts.text(rec.category)), "notification:")
}
