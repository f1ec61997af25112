package history

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
)

// Received is what the fake CleverTap saw of a run. Hook it in before the first call:
//
//	fake.OnRecord(received.Record)
//	fake.Judge(received.Judge)
//	fake.JudgeCall(received.JudgeCall) // if there is poison
type Received struct {
	run string

	mu      sync.Mutex
	seen    [][]sighting // by client and number
	order   int          // of acceptances
	copies  int          // accepted beyond the first of each
	taken   int          // accepted, copies included
	records int          // the most in one call
	foreign []string     // accepted, and of no client of this run
	mended  bool         // nothing is refused any more
}

// sighting is what was seen of one receipt.
type sighting struct {
	first  int // which acceptance was the first of it, from 1; 0: none
	copies int // acceptances
	tries  int // times it was judged
	fields Fields
	ts     string
	mixed  bool // two copies had different fields
	twoTS  bool // or a different ts
}

// NewReceived makes an empty one for the run of this name.
func NewReceived(run string) *Received { return &Received{run: run} }

// Record takes in a record that the fake has judged. It is for
// [clevertaptest.Server.OnRecord].
func (r *Received) Record(rec clevertaptest.Record) {
	r.mu.Lock()
	r.records = max(r.records, rec.Index+1)
	r.mu.Unlock()
	if rec.Accepted {
		r.Accept(rec.Raw)
	}
}

// Accept takes in a record that CleverTap has taken.
func (r *Received) Accept(raw []byte) {
	what, err := read(raw)
	p, known := placeOf(r.run, what.id)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.taken++
	if err != nil || !known {
		r.foreign = append(r.foreign, fmt.Sprintf("%.200s", raw))
		return
	}
	r.order++
	s := r.at(p)
	if s.copies == 0 {
		s.first, s.fields, s.ts = r.order, what.fields, what.ts
	} else {
		r.copies++
	}
	s.copies++
	s.mixed = s.mixed || s.fields != what.fields
	s.twoTS = s.twoTS || s.ts != what.ts
}

// againTries is how often a receipt of fate [Again] is sent away.
const againTries = 2

// Judge gives every receipt the code that it was made for. It is for
// [clevertaptest.Server.Judge].
func (r *Received) Judge(rec clevertaptest.Record) int {
	what, err := read(rec.Raw)
	p, known := placeOf(r.run, what.id)
	if err != nil || !known {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.at(p)
	s.tries++
	switch {
	case what.fate == Refuse && !r.mended:
		return 512
	case what.fate == Again && s.tries <= againTries:
		return 555
	default:
		return 0
	}
}

// poisonMark is how the record of a poisonous receipt is told from others without
// being read.
var poisonMark = []byte(`"fate":"` + string(Poison) + `"`)

// JudgeCall refuses every call that carries poison. It is for
// [clevertaptest.Server.JudgeCall].
func (r *Received) JudgeCall(c clevertaptest.Call) int {
	r.mu.Lock()
	mended := r.mended
	r.mu.Unlock()
	if !mended && slices.ContainsFunc(c.Records, func(rec clevertaptest.Record) bool { return bytes.Contains(rec.Raw, poisonMark) }) {
		return http.StatusBadRequest
	}
	return 0
}

// Mend ends what makes CleverTap refuse receipts: those of the fates [Refuse] and
// [Poison] are taken from now on, as after an operator has put right what was wrong.
func (r *Received) Mend() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mended = true
}

// at is the sighting of one place, which is there from now on.
func (r *Received) at(p place) *sighting {
	for len(r.seen) <= p.client {
		r.seen = append(r.seen, nil)
	}
	list := r.seen[p.client]
	for len(list) <= p.number {
		list = append(list, sighting{})
	}
	r.seen[p.client] = list
	return &list[p.number]
}

// of is the sighting of one place; an empty one if nothing of it was ever seen.
func (r *Received) of(client, number int) sighting {
	if client < len(r.seen) && number < len(r.seen[client]) {
		return r.seen[client][number]
	}
	return sighting{}
}

// Taken is how many records CleverTap has taken, copies included.
func (r *Received) Taken() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.taken
}

// Duplicates is how many of them it had taken before.
func (r *Received) Duplicates() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.copies
}

// Letter is one dead letter.
type Letter struct {
	ID     string
	Reason string
	Frame  uint64 // with Index: the place it died at; equal places are one death
	Index  int
}

// exported is a line of `birdtap dead export`.
type exported struct {
	Reason string         `json:"reason"`
	Frame  uint64         `json:"frame"`
	Index  int            `json:"index"`
	Record jsontext.Value `json:"record"`
}

// ReadLetters reads what `birdtap dead export` writes. A letter that is no receipt
// of a run has no ID.
func ReadLetters(export io.Reader) ([]Letter, error) {
	var list []Letter
	d := jsontext.NewDecoder(export)
	for {
		var e exported
		if err := json.UnmarshalDecode(d, &e); errors.Is(err, io.EOF) {
			return list, nil
		} else if err != nil {
			return nil, fmt.Errorf("dead letter %d: %w", len(list)+1, err)
		}
		what, _ := read(e.Record) // unreadable: no id
		list = append(list, Letter{ID: what.id, Reason: e.Reason, Frame: e.Frame, Index: e.Index})
	}
}
