package sender

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"sort"

	"github.com/birdtap/birdtap/store"
)

// place is one ask of the log: its frame's sequence and its index in it, as one number
// that grows along the log.
type place uint64

// indexBits hold an index: a frame has at most 1000 asks.
const indexBits = 10

func placeOf(seq uint64, index int) place { return place(seq<<indexBits) | place(index) } //nolint:gosec // an index is not negative

// frameEnd is behind the last place that a frame could have.
func frameEnd(seq uint64) place { return placeOf(seq+1, 0) }

func (p place) seq() uint64 { return uint64(p >> indexBits) }

// span is the places from first up to, but not including, end.
type span struct{ first, end place }

// places is a set of them: spans in order, neither touching nor overlapping.
type places []span

// add puts the places from first up to end into the set.
func (s *places) add(first, end place) {
	// From i on spans end at first or later; from j on they begin behind end.
	i := sort.Search(len(*s), func(i int) bool { return (*s)[i].end >= first })
	j := sort.Search(len(*s), func(j int) bool { return (*s)[j].first > end })
	if i < j {
		first, end = min(first, (*s)[i].first), max(end, (*s)[j-1].end)
	}
	*s = slices.Replace(*s, i, j, span{first, end})
}

func (s places) has(p place) bool {
	i := sort.Search(len(s), func(i int) bool { return s[i].end > p })
	return i < len(s) && s[i].first <= p
}

// count is how many places of a frame's first n are in the set.
func (s places) count(seq uint64, n int) int {
	found := 0
	for i := range n {
		if s.has(placeOf(seq, i)) {
			found++
		}
	}
	return found
}

// cutBelow forgets what lies below p.
func (s *places) cutBelow(p place) {
	i := sort.Search(len(*s), func(i int) bool { return (*s)[i].end > p })
	*s = slices.Delete(*s, 0, i)
	if len(*s) > 0 {
		(*s)[0].first = max((*s)[0].first, p)
	}
}

// size is how many places there are.
func (s places) size() int {
	n := 0
	for _, sp := range s {
		n += int(sp.end - sp.first) //nolint:gosec // far below 2^63
	}
	return n
}

// MarshalText writes gaps and lengths, one after the other, as varints in base64: a
// campaign whose users came one by one between those of others takes 3 bytes for each.
func (s places) MarshalText() ([]byte, error) {
	var b []byte
	at := place(0)
	for _, sp := range s {
		b = binary.AppendUvarint(b, uint64(sp.first-at))
		b = binary.AppendUvarint(b, uint64(sp.end-sp.first))
		at = sp.end
	}
	return base64.RawStdEncoding.AppendEncode(nil, b), nil
}

// UnmarshalText reads what MarshalText wrote.
func (s *places) UnmarshalText(text []byte) error {
	b, err := base64.RawStdEncoding.AppendDecode(nil, text)
	if err != nil {
		return fmt.Errorf("%w: places", store.ErrCorrupt)
	}
	*s = nil
	at := uint64(0)
	for len(b) > 0 {
		gap, n := binary.Uvarint(b)
		length, m := binary.Uvarint(b[max(0, n):])
		if n <= 0 || m <= 0 || length == 0 || gap == 0 && len(*s) > 0 || gap > maxPlace-at || length > maxPlace-at-gap {
			return fmt.Errorf("%w: places", store.ErrCorrupt)
		}
		b = b[n+m:]
		*s = append(*s, span{place(at + gap), place(at + gap + length)})
		at += gap + length
	}
	return nil
}

// maxPlace is far beyond any, and leaves room to count on from there.
const maxPlace = 1 << 62
