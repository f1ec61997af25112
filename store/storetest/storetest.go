// Package storetest opens stores for tests: the real embedded queue, every commit
// synced, without a socket.
package storetest

import (
	"context"
	"strconv"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/birdtap/birdtap/store"
)

// New opens a store on a directory of the test's own and closes it with the test.
func New(t testing.TB, options ...func(*store.Options)) *store.Store {
	t.Helper()
	return Open(t, t.TempDir(), options...)
}

// Open opens a store on dir and closes it with the test.
func Open(t testing.TB, dir string, options ...func(*store.Options)) *store.Store {
	t.Helper()
	o := store.Options{
		DataDir:       dir,
		InProcess:     true,
		QueueMaxBytes: 1 << 30,
		DeadMaxBytes:  256 << 20,
		KeepMaxBytes:  256 << 20,
		KeepDelivered: time.Hour,
		DedupWindow:   2 * time.Minute,
		Log:           zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel)),
	}
	for _, option := range options {
		option(&o)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := store.Open(ctx, o)
	if err != nil {
		t.Fatalf("open store: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	return s
}

// Receipt is the i-th of an endless row of receipts, all different, each of a user
// of its own.
func Receipt(i int, changes ...func(*store.Receipt)) store.Receipt {
	id := strconv.Itoa(i)
	r := store.Receipt{
		Record: []byte(`{"identity":"user-` + id + `","ts":1700000000,"type":"event","evtName":"Campaign","evtData":{"status":"SENT","target_id":` + id + `}}`),
		User:   uint64(i) + 1,
	}
	copy(r.Key[:], "receipt "+id)
	for _, change := range changes {
		change(&r)
	}
	return r
}
