package storetest_test

import (
	"testing"

	"github.com/birdtap/birdtap/store"
	"github.com/birdtap/birdtap/store/storetest"
)

func TestStoreOverARestart(t *testing.T) {
	dir := t.TempDir()
	s := storetest.Open(t, dir)
	want := []store.Receipt{storetest.Receipt(1), storetest.Receipt(2, func(r *store.Receipt) { r.Reason = store.ReasonRefused })}
	if want[0].Key == want[1].Key || want[0].User == want[1].User {
		t.Error("receipts are not all different")
	}
	if err := s.Commit(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	r := storetest.Open(t, dir).Read(1)
	defer r.Close()
	f, err := r.Next(t.Context())
	if err != nil || len(f.Receipts) != 2 || f.Receipts[1].Reason != store.ReasonRefused || string(f.Receipts[0].Record) != string(want[0].Record) {
		t.Errorf("got %+v, %v", f, err)
	}
}
