package clevertaptest

import (
	"crypto/sha256"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/birdtap/birdtap/clevertap"
)

// Call is one upload call as the fake saw it.
type Call struct {
	Index    int       // from 1, in order of arrival
	At       time.Time // of arrival
	InFlight int       // calls in flight at arrival, this one included
	Did      string    // the behaviour it met: "normal", "status", "hang" …
	Status   int       // the HTTP status answered; 0 if the connection ended without
	Bytes    int       // length of the body
	Count    int       // records in the body; 0 if it could not be read
	Accepted int       // records taken, whether or not the answer says so
	Refused  int       // records refused with a code of their own
	// Records are the records of a call that could be read. They are not there
	// in count-only mode, nor in the log of a server that keeps no records.
	Records []Record
}

// Record is one record of a call, and what became of it.
type Record struct {
	Call     int    // Index of its call
	Index    int    // place in the call, from 0
	Accepted bool   // CleverTap has it now
	Code     int    // why it was refused; 0 if it was not
	Kind     string // which of identity, objectId, FBID, GPID it has; empty if none
	Identity string // the value of that
	Event    string // evtName
	Status   string // evtData.status
	TargetID string // evtData.target_id as written: `9007199254740993`, `"0001"`
	TS       string // ts as written; empty if absent
	Raw      []byte // the record as it came
	data     jsontext.Value
}

// Hash is the SHA-256 of the record as it came.
func (r Record) Hash() [sha256.Size]byte { return sha256.Sum256(r.Raw) }

// Property is a member of evtData as written, nil if there is none.
func (r Record) Property(name string) []byte { return members(r.data)[name] }

// members are the members of a JSON object as written; nil if v is no object.
func members(v jsontext.Value) map[string]jsontext.Value {
	var m map[string]jsontext.Value
	if v.Kind() != jsontext.KindBeginObject || json.Unmarshal(v, &m) != nil {
		return nil
	}
	return m
}

// text is the string that v spells; empty if v is none.
func text(v jsontext.Value) string {
	if v.Kind() != jsontext.KindString {
		return ""
	}
	s, err := jsontext.AppendUnquote(nil, v)
	if err != nil {
		return ""
	}
	return string(s)
}

// identities is where a record may name its user.
var identities = [...]string{clevertap.Identity, clevertap.ObjectID, clevertap.FBID, clevertap.GPID}

// newRecord reads the fields of one record and judges it as documented.
func newRecord(raw []byte) Record {
	top := members(raw)
	data := members(top["evtData"])
	r := Record{
		Event:    text(top["evtName"]),
		Status:   text(data["status"]),
		TargetID: string(data["target_id"]),
		TS:       string(top["ts"]),
		Raw:      raw,
		data:     top["evtData"],
	}
	for _, kind := range identities {
		if v, ok := top[kind]; ok && r.Kind == "" {
			r.Kind, r.Identity = kind, text(v)
			if v.Kind() == jsontext.KindNumber { // a guess: digits are an identity, too
				r.Identity = string(v)
			}
		}
	}
	r.Code = int(validate(top, data, r))
	return r
}
