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

// An operator who thinks better of a release while it waits for its turn is heard.
func TestDropOfAReleaseThatWaits(t *testing.T) {
	t.Parallel()
	r := newRig(t).open()
	term := &term{Sender: &Sender{opts: Options{Sends: r.sends}}}
	decide := func(decision string) store.Order {
		t.Helper()
		if err := r.sends.Decide(t.Context(), "1-1", []byte(decision)); err != nil {
			t.Fatal(err)
		}
		orders, err := r.sends.Orders(t.Context())
		if err != nil || len(orders) != 1 {
			t.Fatalf("decisions: %+v, %v", orders, err)
		}
		return orders[0]
	}
	c := &call{released: "1-1", order: decide(orderRelease)}
	if term.overtaken(t.Context(), c) {
		t.Error("a release is overtaken by nothing")
	}
	decide(orderDrop)
	if !term.overtaken(t.Context(), c) {
		t.Error("a drop does not overtake a release")
	}
}
