package main

import (
	"encoding/base64"
	"io"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/birdtap/birdtap/store"
)

// letterLine is one dead letter as the commands print it, and as a program reads
// it: names are fixed, ids are strings since they may be larger than a float holds.
type letterLine struct {
	Died     time.Time    `json:"died"`
	Accepted time.Time    `json:"accepted,omitzero"`
	Reason   store.Reason `json:"reason"`
	Code     int          `json:"code,omitzero"`
	Tries    int          `json:"tries"`
	Frame    uint64       `json:"frame"` // the place on the queue it died at
	Index    int          `json:"index"`

	fields

	// Of export only: the record as JSON if it is that, else its bytes.
	Record       jsontext.Value `json:"record,omitempty"`
	RecordBase64 string         `json:"record_base64,omitempty"`
}

// fields are what commands filter by and show of a record.
type fields struct {
	Event    string `json:"event,omitempty"`
	Status   string `json:"status,omitempty"`
	TargetID string `json:"target_id,omitempty"`
	Identity string `json:"identity,omitempty"`
}

func newLetterLine(l store.Letter) letterLine {
	return letterLine{
		Died:     l.Died.UTC(),
		Accepted: l.Receipt.Accepted.UTC(),
		Reason:   l.Reason,
		Code:     l.Code,
		Tries:    l.Tries,
		Frame:    l.Origin.Seq,
		Index:    l.Origin.Index,
		fields:   fieldsOf(l.Receipt.Record),
	}
}

// withRecord adds the whole record.
func (l letterLine) withRecord(record []byte) letterLine {
	value := jsontext.Value(slices.Clone(record))
	if value.IsValid() && value.Compact() == nil {
		l.Record = value
	} else {
		l.RecordBase64 = base64.StdEncoding.EncodeToString(record)
	}
	return l
}

// write writes the line as JSON.
func (l letterLine) write(w io.Writer) error { return writeJSONLine(w, l) }

// writeJSONLine writes v as one line of JSON, always the same for the same v.
func writeJSONLine(w io.Writer, v any) error {
	line, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		return err
	}
	_, err = w.Write(append(line, '\n'))
	return err
}

// recordFields is a record as far as fields go. Whatever has another type than it
// should is kept as it stands: a record may be dead for just that.
type recordFields struct {
	EvtName  jsontext.Value `json:"evtName"`
	EvtData  jsontext.Value `json:"evtData"`
	Identity jsontext.Value `json:"identity"`
	ObjectID jsontext.Value `json:"objectId"`
	FBID     jsontext.Value `json:"FBID"`
	GPID     jsontext.Value `json:"GPID"`
}

type dataFields struct {
	Status   jsontext.Value `json:"status"`
	TargetID jsontext.Value `json:"target_id"`
}

// fieldsOf reads a record with indulgence: what cannot be read is empty.
func fieldsOf(record []byte) fields {
	lenient := json.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	var r recordFields
	var d dataFields
	if json.Unmarshal(record, &r, lenient) != nil {
		return fields{}
	}
	_ = json.Unmarshal(r.EvtData, &d, lenient) // no object: no status and no target
	f := fields{Event: textOf(r.EvtName), Status: textOf(d.Status), TargetID: textOf(d.TargetID)}
	for _, id := range []jsontext.Value{r.Identity, r.ObjectID, r.FBID, r.GPID} {
		if f.Identity == "" {
			f.Identity = textOf(id)
		}
	}
	return f
}

// textOf is a string's text, and any other value as it is written: a target id of
// any size keeps its digits.
func textOf(v jsontext.Value) string {
	if v.Kind() != '"' {
		return string(v)
	}
	text, err := jsontext.AppendUnquote(nil, v)
	if err != nil {
		return string(v)
	}
	return string(text)
}
