package store

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// settledModel is the naive truth: a set of whole frames, a map of bitmaps, a floor.
type settledModel struct {
	floor   uint64
	whole   map[uint64]bool
	partial map[uint64]Partial
}

func (m *settledModel) addWhole(seq uint64) {
	if seq >= m.floor {
		m.whole[seq] = true
		delete(m.partial, seq)
	}
	for m.whole[m.floor] {
		delete(m.whole, m.floor)
		m.floor++
	}
}

// check compares everything that can be asked.
func (m *settledModel) check(t *rapid.T, s *Settled, floor uint64) {
	if floor != m.floor {
		t.Fatalf("floor %d, want %d", floor, m.floor)
	}
	if err := s.check(floor); err != nil {
		t.Fatalf("%v: %+v", err, s)
	}
	last := uint64(0)
	for seq := m.floor; seq <= settledSeqs+2; seq++ {
		if s.HasWhole(seq) != m.whole[seq] {
			t.Fatalf("HasWhole(%d) = %v in %+v", seq, s.HasWhole(seq), s)
		}
		got, ok := s.Of(seq)
		want, wantOK := m.partial[seq]
		if ok != wantOK || !cmp.Equal(got, want, cmpopts.EquateEmpty()) {
			t.Fatalf("Of(%d) = %v %v, want %v %v", seq, got, ok, want, wantOK)
		}
		if m.whole[seq] || wantOK {
			last = seq
		}
	}
	if s.last() != last {
		t.Fatalf("last %d, want %d", s.last(), last)
	}
}

const settledSeqs = 30

func TestSettledIsLikeANaiveModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s Settled
		floor := rapid.Uint64Range(1, 5).Draw(t, "floor")
		m := settledModel{floor: floor, whole: map[uint64]bool{}, partial: map[uint64]Partial{}}
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) { m.check(t, &s, floor) },
			"whole": func(t *rapid.T) {
				seq := rapid.Uint64Range(1, settledSeqs).Draw(t, "seq")
				floor = s.AddWhole(seq, floor)
				m.addWhole(seq)
			},
			"partial": func(t *rapid.T) {
				seq := rapid.Uint64Range(floor, settledSeqs+1).Draw(t, "seq")
				p := NewPartial(seq, rapid.IntRange(1, 20).Draw(t, "size"))
				set := rapid.SliceOfDistinct(rapid.IntRange(0, p.Size-1), func(i int) int { return i }).Draw(t, "set")
				for _, i := range set {
					p.Set(i)
				}
				for i := range p.Size {
					if p.Has(i) != slices.Contains(set, i) {
						t.Fatalf("Has(%d) = %v", i, p.Has(i))
					}
				}
				if p.Count() != len(set) {
					t.Fatalf("Count() = %d, want %d", p.Count(), len(set))
				}
				s.SetPartial(p)
				if !m.whole[seq] {
					m.partial[seq] = p
				}
			},
			"cut": func(t *rapid.T) {
				if rapid.IntRange(0, 9).Draw(t, "seldom") > 0 {
					t.Skip()
				}
				seq := rapid.Uint64Range(0, settledSeqs).Draw(t, "behind")
				s.cutBehind(seq)
				for i := seq + 1; i <= settledSeqs+1; i++ {
					delete(m.whole, i)
					delete(m.partial, i)
				}
			},
			"clone": func(t *rapid.T) {
				c := s.Clone()
				if !cmp.Equal(s, c, cmpopts.EquateEmpty()) {
					t.Fatalf("clone %+v of %+v", c, s)
				}
				for i := range c.Partial { // what is done to the clone must not show
					c.Partial[i].Bits[0] ^= 0xff
				}
				c.AddWhole(settledSeqs, 1)
			},
			"store": func(t *rapid.T) {
				data, err := encodeCheckpoint(Checkpoint{Floor: floor, Settled: s})
				if err != nil {
					t.Fatal(err)
				}
				cp, err := decodeCheckpoint(data)
				if err != nil {
					t.Fatal(err)
				}
				s = cp.Settled
				for seq, p := range m.partial { // bitmaps are shared, so are they with the model
					m.partial[seq] = Partial{Seq: p.Seq, Size: p.Size, Bits: slices.Clone(p.Bits)}
				}
			},
		})
	})
}

func TestBitsSetLaterCountAtOnce(t *testing.T) {
	var s Settled
	p := NewPartial(3, 9)
	s.SetPartial(p)
	p.Set(8)
	if got, ok := s.Of(3); !ok || !got.Has(8) || got.Count() != 1 {
		t.Errorf("got %+v", got)
	}
}

func TestImpossibleSettledIsRefused(t *testing.T) {
	for name, s := range map[string]Settled{
		"below the floor":        {Whole: []Range{{4, 6}}},
		"backwards":              {Whole: []Range{{8, 7}}},
		"touching":               {Whole: []Range{{6, 7}, {8, 9}}},
		"overlapping":            {Whole: []Range{{6, 8}, {8, 9}}},
		"out of order":           {Whole: []Range{{9, 9}, {6, 6}}},
		"without end":            {Whole: []Range{{6, 1<<64 - 1}}},
		"part below the floor":   {Partial: []Partial{NewPartial(4, 1)}},
		"part of a whole":        {Whole: []Range{{6, 8}}, Partial: []Partial{NewPartial(7, 1)}},
		"parts out of order":     {Partial: []Partial{NewPartial(8, 1), NewPartial(7, 1)}},
		"the same part twice":    {Partial: []Partial{NewPartial(7, 1), NewPartial(7, 1)}},
		"part of nothing":        {Partial: []Partial{NewPartial(7, 0)}},
		"part of too much":       {Partial: []Partial{NewPartial(7, maxFrameReceipts+1)}},
		"more set than there is": {Partial: []Partial{{Seq: 7, Size: 3, Bits: []byte{0x0f}}}},
		"short bitmap":           {Partial: []Partial{{Seq: 7, Size: 9, Bits: []byte{0}}}},
	} {
		if err := s.check(5); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: got %v", name, err)
		}
		if _, err := encodeCheckpoint(Checkpoint{Floor: 5, Settled: s}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: written, though it could not be read: %v", name, err)
		}
	}
}
