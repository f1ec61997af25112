package sender

import (
	"testing"

	"github.com/birdtap/birdtap/store"
)

// A decision that was looked up before it was carried out, and comes to the loop after
// that, is not carried out once more: a release would be sent again.
func TestDecisionIsCarriedOutOnce(t *testing.T) {
	term := &term{
		held:   []heldCall{{ID: "1-1", Mode: ModeRealtime, Users: 1}},
		orders: map[string]store.Order{}, orderedTo: map[string]uint64{}, carried: map[uint64]*call{},
	}
	calls := func(o store.Order) int {
		term.order(o)
		n := len(term.batches)
		term.batches = nil // it leaves
		return n
	}
	release := store.Order{ID: "1-1", Decision: []byte(orderRelease), Seq: 5}
	if n := calls(release); n != 1 {
		t.Errorf("%d calls by a release, want 1", n)
	}
	if n := calls(release); n != 0 {
		t.Errorf("%d more while it is under way", n)
	}
	term.isCarriedOut(release)
	if n := calls(release); n != 0 {
		t.Errorf("%d more when it was carried out", n)
	}
	release.Seq++
	if n := calls(release); n != 1 {
		t.Errorf("%d calls by the next decision, want 1", n)
	}
}
