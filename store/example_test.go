package store_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/birdtap/birdtap/store"
)

// The journey of a receipt through the store: committed by a door, read and settled by
// the relay, seen in the status.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	tmp, err := os.MkdirTemp("", "birdtap")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(tmp)
	s, err := store.Open(ctx, store.Options{
		DataDir:       filepath.Join(tmp, "data"),
		QueueMaxBytes: 64 << 20, DeadMaxBytes: 16 << 20, KeepMaxBytes: 16 << 20,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer s.Close()

	// The door: nil means on disk.
	err = s.Commit(ctx, []store.Receipt{
		{Record: []byte(`{"identity":"ann"}`), User: 1, Key: store.Key{1}},
		{Record: []byte(`{"identity":"bob"}`), User: 2, Key: store.Key{2}},
	})
	fmt.Println("committed:", err)

	// The relay: read, upload, bury what CleverTap refused, then settle.
	reader := s.Read(1)
	defer reader.Close()
	frame, err := reader.Next(ctx)
	fmt.Println("frame", frame.Seq, "with", len(frame.Receipts), "receipts:", err)
	dead, err := s.Bury(ctx, []store.Letter{{
		Receipt: frame.Receipts[1], Reason: "512", Code: 512, Tries: 1, Died: time.Now(),
		Origin: store.Place{Seq: frame.Seq, Index: 1},
	}})
	fmt.Println("buried:", err)
	cp, revision, err := s.ReadCheckpoint(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	cp.Floor = cp.Settled.AddWhole(frame.Seq, cp.Floor)
	cp.Totals.Delivered, cp.Totals.Died, cp.DeadSeq = 1, 1, dead
	_, err = s.WriteCheckpoint(ctx, cp, revision)
	fmt.Println("settled:", err)

	status, err := s.Status(ctx)
	fmt.Println(status.Accepted, "accepted,", status.Delivered, "delivered,", status.Dead, "dead,", status.Queued, "queued:", err)
	// Output:
	// committed: <nil>
	// frame 1 with 2 receipts: <nil>
	// buried: <nil>
	// settled: <nil>
	// 2 accepted, 1 delivered, 1 dead, 0 queued: <nil>
}
