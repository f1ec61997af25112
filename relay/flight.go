package relay

import (
	"math/bits"
	"slices"

	"github.com/birdtap/birdtap/store"
)

// unclearTries is how many answers about one call may be unclear before the call is
// halved, or, of a lone record, before the record is to blame.
const unclearTries = 5

// evidence numbers the calls of all batches, so that a batch can tell whether
// CleverTap works for others: whether a call that began after some moment was
// accepted. Counting acceptances would not do: one that was on its way already when
// CleverTap began to refuse everything speaks of the time before.
type evidence struct {
	begun    uint64 // number of the latest call
	accepted uint64 // of the latest-begun call that was accepted
}

// flight is one batch on its way: which of its records go with the next call, and
// which are left. One call at a time; every record gets exactly one verdict. It is
// pure: no goroutine, no clock.
//
// At first all records go in one call. What happens then is decided by judge, and
// here:
//
//   - An unknown outcome changes nothing: the same call once more.
//   - A refused call is searched for its first culprit: the first half goes; if that
//     is refused, the first half of it; if it is accepted, the first half of what is
//     left of the call, for that is known to hold a culprit without being sent.
//     (Where only a combination was refused this finds nothing, and all is delivered.)
//     After a culprit the next call is as long as the run of records that went well
//     before it, and it doubles with every call that is accepted. So k culprits among
//     n records cost about 2k·log2(n/k) + k calls at most: one among 1000 costs 21, a
//     thousand cost a thousand.
//   - An unclear call is made unclearTries times before it is treated the same way.
//   - 413 may be about nothing but the size of the call, so the rest of it is not
//     taken for bad, and after it the size doubles with every second call only.
//
// A lone record refused is dead only if there is evidence that CleverTap works: some
// other call, begun after the first refusal of this batch, was accepted before the call
// with this record began: one that was refused just before CleverTap works again, and
// whose answer comes late, goes once more. Without it
// the destination is what is broken. Then nothing dies, the pace stops, and the record
// is a suspect. The probes that follow take turns between everything behind it, or
// ever smaller ends of that, and single records, so that whatever may still pass is
// found soon. With evidence the suspect goes once more, and only a refusal then kills
// it. A destination that refuses everything kills nothing, however long it does. (If it
// begins to while a batch is searched, the evidence from before speaks against records of
// that batch until the refusal of another batch stops the pace: a few die where there is
// other traffic, and without any all that are left.)
//
// An ordered batch may hold several records of one user. Its calls go strictly from
// front to back, so it has only its suspect to probe with, and evidence has to come
// from another batch. In any other batch the order of records means nothing.
type flight struct {
	evidence *evidence
	ordered  bool

	left []span // the records without a verdict, in order; work goes on at the front
	out  span   // the call on its way
	call uint64 // its number
	knew bool   // when it began there was evidence that CleverTap works

	bad    int // the records up to here hold a culprit; 0 if none is known
	stride int // records of the next call if none is
	hold   int // calls to be accepted before stride doubles
	run    int // records accepted since the last culprit
	tries  int // unclear answers about the call that is next

	refusal trouble
	unclear trouble
	probing bool // the front is a suspect
	probes  int  // since it is
}

// span is the records from one index up to, but not including, another.
type span struct{ from, to int }

func (s span) len() int { return s.to - s.from }

// trouble is whether a batch ever got a certain kind of answer, and the latest call
// that had begun when it first did.
type trouble struct {
	seen  bool
	begun uint64
}

// step is what one answer has changed.
type step struct {
	from, to   int         // the records that got their verdict; from == to: none did
	exceptions []exception // of these, by rising index in the batch; the others are delivered
	signal     signal      // for the pace
	done       bool        // every record has its verdict
}

// newFlight is a batch of n records, at least one. e is shared by all batches.
func newFlight(n int, ordered bool, e *evidence) *flight {
	return &flight{evidence: e, ordered: ordered, left: []span{{0, n}}, stride: n}
}

// Next begins a call, and says which records it carries. It may be called again if
// that call was not made after all.
func (f *flight) Next() (from, to int) {
	f.evidence.begun++
	f.call = f.evidence.begun
	f.knew = f.proven(f.refusal)
	if f.probing && f.proven(f.refusal) {
		f.probing = false
		f.bad, f.stride = f.left[0].from+1, 1
	}
	f.out = f.piece()
	return f.out.from, f.out.to
}

// Refused tells that CleverTap has refused a call of this batch.
func (f *flight) Refused() bool { return f.refusal.seen }

// Doubtful tells that this batch can only wait for evidence: a call of any other
// batch is worth more than one of this.
func (f *flight) Doubtful() bool {
	return f.probing && !f.proven(f.refusal) || f.tries >= unclearTries && !f.proven(f.unclear)
}

// Answer takes in the verdict about the call that Next began.
func (f *flight) Answer(v verdict) step {
	s := step{signal: v.signal}
	switch v.meaning {
	case again:
	case judged:
		f.accept(v.signal)
		s.from, s.to, s.exceptions = f.out.from, f.out.to, v.exceptions
		for i := range s.exceptions { // counted within the call so far
			s.exceptions[i].index += f.out.from
		}
	case unclear:
		f.note(&f.unclear)
		if f.tries++; f.tries >= unclearTries {
			f.blame(v, &s)
		}
	case refused:
		f.note(&f.refusal)
		f.blame(v, &s)
	}
	s.done = len(f.left) == 0
	return s
}

// piece is what the next call carries.
func (f *flight) piece() span {
	if f.probing {
		return f.probe()
	}
	front := f.left[0]
	size := f.stride
	if f.bad > 0 {
		size = max(1, (f.bad-front.from)/2)
	}
	return span{front.from, min(front.from+size, front.to)}
}

// accept takes in that every record of the call has its verdict.
func (f *flight) accept(s signal) {
	if s == sigGood {
		f.evidence.accepted = max(f.evidence.accepted, f.call)
	}
	f.remove(f.out)
	f.tries = 0
	if f.probing {
		f.probing, f.bad, f.stride = false, 0, 1
		return
	}
	f.run += f.out.len()
	switch {
	case f.bad > f.out.to: // the search goes on
	case f.bad > 0:
		f.bad = 0
	case f.hold > 0:
		f.hold--
	default:
		f.stride *= 2
	}
}

// blame takes in that something in the call is at fault, and finds out what.
func (f *flight) blame(v verdict, s *step) {
	switch {
	case f.probing:
		f.probes++
		f.tries = 0
		s.signal = stopping(v.signal)
	case f.out.len() > 1 && v.reason == store.ReasonHTTP413:
		f.bad, f.stride, f.hold, f.tries = 0, f.out.len()/2, 1, 0
	case f.out.len() > 1:
		f.bad, f.tries = f.out.to, 0
	case v.meaning == unclear && f.proven(f.unclear), v.meaning == refused && f.knew:
		f.kill(v, s)
	case v.meaning == refused && f.proven(f.refusal): // the same call once more
	case v.meaning == refused:
		f.probing, f.probes = true, 0
		s.signal = stopping(v.signal)
	}
}

// stopping is the signal of a refusal without evidence.
func stopping(s signal) signal {
	if s == sigRefused {
		return sigRefusing
	}
	return s
}

// kill gives the lone record of the call its verdict.
func (f *flight) kill(v verdict, s *step) {
	s.from, s.to = f.out.from, f.out.to
	s.exceptions = []exception{{index: f.out.from, reason: v.reason, code: v.code}}
	f.remove(f.out)
	f.bad, f.stride, f.hold, f.run, f.tries = 0, max(1, f.run), 0, 0, 0
}

// probe is what the next call carries while the front is a suspect: in turn an end of
// what is left, at first all behind the suspect, then ever less, and a single record,
// each one some time, the suspect included.
func (f *flight) probe() span {
	front, tail := f.left[0], f.left[len(f.left)-1]
	if tail == front {
		tail.from++
	}
	turn := f.probes / 2
	switch {
	case f.ordered || tail.len() == 0:
		return span{front.from, front.from + 1}
	case f.probes%2 == 0:
		size := tail.len() >> (turn % bits.Len(uint(tail.len())))
		return span{tail.to - size, tail.to}
	default:
		at := f.nth(1 + turn)
		return span{at, at + 1}
	}
}

// nth is the n-th record left, from 0, counted round and round.
func (f *flight) nth(n int) int {
	for i := 0; ; i = (i + 1) % len(f.left) {
		if s := f.left[i]; n < s.len() {
			return s.from + n
		}
		n -= f.left[i].len()
	}
}

// remove takes records that got their verdict out of what is left.
func (f *flight) remove(out span) {
	i := slices.IndexFunc(f.left, func(s span) bool { return s.from <= out.from && out.to <= s.to })
	rest := make([]span, 0, 2)
	for _, s := range []span{{f.left[i].from, out.from}, {out.to, f.left[i].to}} {
		if s.len() > 0 {
			rest = append(rest, s)
		}
	}
	f.left = slices.Replace(f.left, i, i+1, rest...)
}

func (f *flight) note(t *trouble) {
	if !t.seen {
		*t = trouble{seen: true, begun: f.evidence.begun}
	}
}

// proven tells whether a call that began after the trouble was accepted.
func (f *flight) proven(t trouble) bool { return t.seen && f.evidence.accepted > t.begun }
