package store

import (
	"fmt"
	"math/bits"
	"slices"
)

// maxSequence is far beyond any sequence, and leaves room to count on from there.
const maxSequence = 1 << 62

// Settled says which receipts at or above the floor are settled: ranges of whole
// frames, and a bitmap for each frame that is settled in part. It stays small,
// since receipts settle roughly in order.
type Settled struct {
	Whole   []Range   `json:"whole,omitempty"`   // in order, neither touching nor overlapping
	Partial []Partial `json:"partial,omitempty"` // in order of Seq
}

// Range is the frames First to Last, both included.
type Range struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}

// Partial is one frame of Size receipts of which those with a bit set are settled:
// receipt i is bit i%8 of Bits[i/8].
type Partial struct {
	Seq  uint64 `json:"seq"`
	Size int    `json:"size"`
	Bits []byte `json:"bits"`
}

// Has tells whether receipt index of the frame is settled.
func (p Partial) Has(index int) bool {
	return index/8 < len(p.Bits) && p.Bits[index/8]&(1<<(index%8)) != 0
}

// Set marks receipt index, which must be below Size.
func (p Partial) Set(index int) { p.Bits[index/8] |= 1 << (index % 8) }

// Count is the number of settled receipts of the frame.
func (p Partial) Count() int {
	n := 0
	for _, b := range p.Bits {
		n += bits.OnesCount8(b)
	}
	return n
}

// NewPartial is a frame of size receipts, none settled.
func NewPartial(seq uint64, size int) Partial {
	return Partial{Seq: seq, Size: size, Bits: make([]byte, (size+7)/8)}
}

// AddWhole marks a frame wholly settled and returns the floor, which rises past it,
// and past what follows, when the frame stood at the floor.
func (s *Settled) AddWhole(seq, floor uint64) uint64 {
	if seq < floor {
		return floor
	}
	if i, ok := s.partial(seq); ok {
		s.Partial = slices.Delete(s.Partial, i, i+1)
	}
	s.addRange(seq)
	if s.Whole[0].First <= floor {
		floor = s.Whole[0].Last + 1
		s.Whole = slices.Delete(s.Whole, 0, 1)
	}
	return floor
}

func (s *Settled) addRange(seq uint64) {
	// i is the first range that ends at seq-1 or later.
	i, _ := slices.BinarySearchFunc(s.Whole, seq, func(r Range, seq uint64) int {
		if r.Last+1 < seq {
			return -1
		}
		return 1
	})
	switch {
	case i == len(s.Whole) || s.Whole[i].First > seq+1:
		s.Whole = slices.Insert(s.Whole, i, Range{First: seq, Last: seq})
	case s.Whole[i].First == seq+1:
		s.Whole[i].First = seq
	case s.Whole[i].Last+1 == seq:
		s.Whole[i].Last = seq
		if i+1 < len(s.Whole) && s.Whole[i+1].First == seq+1 {
			s.Whole[i].Last = s.Whole[i+1].Last
			s.Whole = slices.Delete(s.Whole, i+1, i+2)
		}
	}
}

// SetPartial notes p, replacing what was noted for that frame; nothing is to be noted
// of one that is wholly settled. The bitmap is shared, not copied: later bits set in
// it count at once.
func (s *Settled) SetPartial(p Partial) {
	if s.HasWhole(p.Seq) {
		return
	}
	i, ok := s.partial(p.Seq)
	if ok {
		s.Partial[i] = p
		return
	}
	s.Partial = slices.Insert(s.Partial, i, p)
}

func (s *Settled) partial(seq uint64) (int, bool) {
	return slices.BinarySearchFunc(s.Partial, seq, func(p Partial, seq uint64) int {
		switch {
		case p.Seq < seq:
			return -1
		case p.Seq > seq:
			return 1
		}
		return 0
	})
}

// HasWhole tells whether the frame is wholly settled.
func (s *Settled) HasWhole(seq uint64) bool {
	i, _ := slices.BinarySearchFunc(s.Whole, seq, func(r Range, seq uint64) int {
		if r.Last < seq {
			return -1
		}
		return 1
	})
	return i < len(s.Whole) && s.Whole[i].First <= seq
}

// Of returns what is settled of a frame in part.
func (s *Settled) Of(seq uint64) (Partial, bool) {
	i, ok := s.partial(seq)
	if !ok {
		return Partial{}, false
	}
	return s.Partial[i], true
}

// last is the last frame of which something is settled; 0 if there is none.
func (s *Settled) last() uint64 {
	var last uint64
	if n := len(s.Whole); n > 0 {
		last = s.Whole[n-1].Last
	}
	if n := len(s.Partial); n > 0 {
		last = max(last, s.Partial[n-1].Seq)
	}
	return last
}

// cutBehind forgets what is settled behind frame seq.
func (s *Settled) cutBehind(seq uint64) {
	s.Whole = slices.DeleteFunc(s.Whole, func(r Range) bool { return r.First > seq })
	if n := len(s.Whole); n > 0 {
		s.Whole[n-1].Last = min(s.Whole[n-1].Last, seq)
	}
	s.Partial = slices.DeleteFunc(s.Partial, func(p Partial) bool { return p.Seq > seq })
}

// check tells what about a stored Settled cannot be.
func (s *Settled) check(floor uint64) error {
	next := floor
	for _, r := range s.Whole {
		if r.First < next || r.Last < r.First || r.Last > maxSequence {
			return fmt.Errorf("%w: settled range %d–%d", ErrCorrupt, r.First, r.Last)
		}
		next = r.Last + 2
	}
	next = floor
	for _, p := range s.Partial {
		if p.Seq < next || p.Size < 1 || p.Size > maxFrameReceipts || len(p.Bits) != (p.Size+7)/8 || p.Count() > p.Size || s.HasWhole(p.Seq) {
			return fmt.Errorf("%w: settled part of frame %d", ErrCorrupt, p.Seq)
		}
		next = p.Seq + 1
	}
	return nil
}

// Clone returns a copy that shares nothing with s.
func (s Settled) Clone() Settled {
	c := Settled{Whole: slices.Clone(s.Whole), Partial: slices.Clone(s.Partial)}
	for i := range c.Partial {
		c.Partial[i].Bits = slices.Clone(c.Partial[i].Bits)
	}
	return c
}
