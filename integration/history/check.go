package history

import (
	"fmt"
	"slices"
	"strconv"
	"time"
)

// Evidence is what [Check] compares.
type Evidence struct {
	Log         *Log
	Received    *Received
	Letters     []Letter
	MaxInFlight int // calls that the fake saw in flight at once
	Seed        uint64
	Commit      string
	Faults      []string
}

// Report is what became of a run.
type Report struct {
	Run    string   `json:"run"`
	Seed   uint64   `json:"seed"`
	Commit string   `json:"commit,omitempty"`
	Faults []string `json:"faults,omitempty"`

	Sent    int `json:"sent"`
	OK      int `json:"ok"`
	Refused int `json:"refused"`
	Fail    int `json:"fail"`
	Unknown int `json:"unknown"`
	Seen    int `json:"seen"`
	Dead    int `json:"dead"` // receipts, not letters

	Lost       int `json:"lost"`
	Invented   int `json:"invented"`
	Forbidden  int `json:"forbidden"`
	Recovered  int `json:"recovered"`
	Inversions int `json:"inversions"`
	Changed    int `json:"changed"`
	Misjudged  int `json:"misjudged"`
	Odd        int `json:"odd"`

	// Duplicates counts acceptances beyond the first; Copies tells how many receipts
	// came how often, from twice on.
	Duplicates int         `json:"duplicates"`
	Copies     map[int]int `json:"copies,omitempty"`

	MaxInFlight int `json:"max_in_flight"`
	MaxRecords  int `json:"max_records"`

	// Loss tells when the lost ones had been acknowledged, if there are any.
	Loss *Loss `json:"loss,omitempty"`
	// Samples are some of each kind of finding, by its name.
	Samples map[string][]string `json:"samples,omitempty"`
}

// maxSamples is how many findings of a kind are shown.
const maxSamples = 5

func (r *Report) sample(kind, format string, v ...any) {
	if len(r.Samples[kind]) < maxSamples {
		r.Samples[kind] = append(r.Samples[kind], fmt.Sprintf(format, v...))
	}
}

// Check compares what was sent, what was seen, and what is dead. Nothing may be
// sent or received meanwhile.
func Check(e Evidence) Report {
	e.Log.mu.Lock()
	defer e.Log.mu.Unlock()
	e.Received.mu.Lock()
	defer e.Received.mu.Unlock()
	c := e.Log.counts
	r := &Report{
		Run: e.Log.run, Seed: e.Seed, Commit: e.Commit, Faults: e.Faults,
		Sent: c.Sent, OK: c.OK, Refused: c.Refused, Fail: c.Fail, Unknown: c.Unknown,
		MaxInFlight: e.MaxInFlight, MaxRecords: e.Received.records,
		Copies: map[int]int{}, Samples: map[string][]string{},
	}
	dead := reasons(e.Letters)
	r.Dead = len(dead)
	var acknowledged []acknowledgement
	for client, entries := range e.Log.clients {
		order := map[string]int{} // the latest first acceptance of each user so far
		for number := range entries {
			entry, s := &entries[number], e.Received.of(client, number)
			why, isDead := dead[entry.ID]
			lost := r.judge(entry, s, isDead)
			if entry.Outcome == OK || entry.Outcome == Refused {
				acknowledged = append(acknowledged, acknowledgement{entry.End, lost})
			}
			r.fields(entry, s)
			r.letters(entry, why)
			if !isDead && !entry.Fate.dies() { // one that died may have come back by a replay, later
				r.order(entry, s, order)
			}
		}
	}
	r.strangers(e)
	r.Odd = len(e.Log.odd)
	for _, odd := range e.Log.odd {
		r.sample("odd", "%s", odd)
	}
	r.Loss = lossOf(acknowledged)
	return *r
}

// reasons are the letters by receipt.
func reasons(letters []Letter) map[string][]string {
	dead := map[string][]string{}
	for _, l := range letters {
		dead[l.ID] = append(dead[l.ID], l.Reason)
	}
	return dead
}

// judge counts one receipt by what was answered and where it is, and tells whether
// it is lost.
func (r *Report) judge(e *Entry, s sighting, dead bool) bool {
	if s.copies > 0 {
		r.Seen++
	}
	if s.copies > 1 {
		r.Duplicates += s.copies - 1
		r.Copies[s.copies]++
		r.sample("duplicates", "%s came %d times", e.ID, s.copies)
	}
	somewhere := s.copies > 0 || dead
	switch e.Outcome {
	case OK, Refused:
		if !somewhere {
			r.Lost++
			r.sample("lost", "%s of %s (%s, %s), answered at %s", e.ID, e.User, e.Outcome, e.Fate, e.End.Format(time.RFC3339Nano))
			return true
		}
		if e.Outcome == Refused && s.copies > 0 {
			r.Forbidden++
			r.sample("forbidden", "%s was refused, and came", e.ID)
		}
	case Fail:
		if somewhere {
			r.Forbidden++
			r.sample("forbidden", "%s was answered %s, and is there", e.ID, e.Why)
		}
	case Unknown:
		if s.copies > 0 {
			r.Recovered++
		}
	}
	return false
}

// fields compares what was sent with what was seen. A ts is as the caller gave it, or
// one that birdtap stamped once; sent twice it may have been stamped twice.
func (r *Report) fields(e *Entry, s sighting) {
	if s.copies == 0 {
		return
	}
	switch {
	case s.mixed || s.fields != e.Fields:
		r.Changed++
		r.sample("changed", "%s has other fields", e.ID)
	case e.TS != "" && (s.twoTS || s.ts != e.TS),
		e.TS == "" && s.twoTS && e.Attempts == 1,
		e.TS == "" && !stampedSince(e.Start, s.ts):
		r.Changed++
		r.sample("changed", "%s has ts %s, was sent at %s with %q", e.ID, s.ts, e.Start.Format(time.RFC3339Nano), e.TS)
	}
}

// stampedSince tells whether ts may have been stamped after start: in whole seconds,
// rounded down.
func stampedSince(start time.Time, ts string) bool {
	seconds, err := strconv.ParseInt(ts, 10, 64)
	return err == nil && seconds >= start.Unix()
}

// letters compares why a receipt is dead with what it was made for.
func (r *Report) letters(e *Entry, why []string) {
	for _, reason := range why {
		if reason != e.Fate.reason() {
			r.Misjudged++
			r.sample("misjudged", "%s, made for %q, is dead for %q", e.ID, e.Fate, reason)
			return
		}
	}
}

// order looks whether a receipt was taken before an earlier one of its user. Only an
// acknowledged one is known to have come before the next was sent; what got no
// answer may have been stored at any later time.
func (r *Report) order(e *Entry, s sighting, latest map[string]int) {
	if s.first == 0 {
		return
	}
	if s.first < latest[e.User] {
		r.Inversions++
		r.sample("inversions", "%s, number %d of %s, was taken before an earlier one", e.ID, e.Seq, e.User)
	}
	if e.Outcome == OK {
		latest[e.User] = max(latest[e.User], s.first)
	}
}

// strangers counts what was seen, or is dead, and was never sent.
func (r *Report) strangers(e Evidence) {
	invent := func(what string) {
		r.Invented++
		r.sample("invented", "%s", what)
	}
	for client, list := range e.Received.seen {
		for number, s := range list {
			if s.copies > 0 && !e.Log.has(client, number) {
				invent(place{client, number}.id(e.Log.run))
			}
		}
	}
	for _, raw := range e.Received.foreign {
		invent(raw)
	}
	for _, l := range e.Letters {
		if p, ok := placeOf(e.Log.run, l.ID); !ok || !e.Log.has(p.client, p.number) {
			invent(fmt.Sprintf("a dead letter of %q, reason %s, place %d/%d", l.ID, l.Reason, l.Frame, l.Index))
		}
	}
}

func (l *Log) has(client, number int) bool {
	return client < len(l.clients) && number < len(l.clients[client])
}

// acknowledgement is when a receipt was acknowledged, and whether it is lost.
type acknowledgement struct {
	at   time.Time
	lost bool
}

// Loss is the time line of what was acknowledged and what of it got lost: a hole, a
// lost tail and a lost stream are different bugs.
type Loss struct {
	Shape string `json:"shape"` // all, head, tail, hole, scattered
	// Steps divide the run into equal times.
	Steps []LossStep `json:"steps"`
}

// LossStep is one of them.
type LossStep struct {
	From         float64 `json:"from"` // seconds since the first acknowledgement
	Acknowledged int     `json:"acknowledged"`
	Lost         int     `json:"lost"`
}

// lossSteps is into how many steps a time line is divided.
const lossSteps = 20

func lossOf(acknowledged []acknowledgement) *Loss {
	slices.SortFunc(acknowledged, func(a, b acknowledgement) int { return a.at.Compare(b.at) })
	isLost := func(f acknowledgement) bool { return f.lost }
	first := slices.IndexFunc(acknowledged, isLost)
	if first < 0 {
		return nil
	}
	l := &Loss{Shape: shapeOf(acknowledged, first), Steps: make([]LossStep, lossSteps)}
	begin := acknowledged[0].at
	step := acknowledged[len(acknowledged)-1].at.Sub(begin)/lossSteps + 1
	for i := range l.Steps {
		l.Steps[i].From = (time.Duration(i) * step).Seconds()
	}
	for _, f := range acknowledged {
		s := &l.Steps[f.at.Sub(begin)/step]
		s.Acknowledged++
		if f.lost {
			s.Lost++
		}
	}
	return l
}

// shapeOf says where in time the lost ones lie; first is the first of them.
func shapeOf(acknowledged []acknowledgement, first int) string {
	end := len(acknowledged)
	for !acknowledged[end-1].lost {
		end--
	}
	inOne := !slices.ContainsFunc(acknowledged[first:end], func(f acknowledgement) bool { return !f.lost })
	switch {
	case !inOne:
		return "scattered"
	case first == 0 && end == len(acknowledged):
		return "all"
	case first == 0:
		return "head"
	case end == len(acknowledged):
		return "tail"
	default:
		return "hole"
	}
}
