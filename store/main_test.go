package store

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
)

var update = flag.Bool("update", false, "write the golden files anew; those of an old format are never to change")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// openStore opens a small store in process, on a directory of the test's own unless
// an option says otherwise, and closes it with the test.
func openStore(t testing.TB, options ...func(*Options)) *Store {
	t.Helper()
	s, err := tryOpen(t, options...)
	if err != nil {
		t.Fatalf("open store: %v", err)
	}
	return s
}

func tryOpen(t testing.TB, options ...func(*Options)) (*Store, error) {
	t.Helper()
	o := Options{
		DataDir:       filepath.Join(t.TempDir(), "data"),
		InProcess:     true,
		QueueMaxBytes: 64 << 20,
		DeadMaxBytes:  16 << 20,
		KeepMaxBytes:  16 << 20,
		KeepDelivered: time.Hour,
		Log:           zaptest.NewLogger(t, zaptest.Level(zap.FatalLevel)),
	}
	for _, option := range options {
		option(&o)
	}
	s, err := Open(t.Context(), o)
	if err == nil {
		t.Cleanup(func() { mustClose(t, s) })
	}
	return s, err
}

func on(dir string) func(*Options)         { return func(o *Options) { o.DataDir = dir } }
func listening(o *Options)                 { o.InProcess = false }
func queueOf(bytes int64) func(*Options)   { return func(o *Options) { o.QueueMaxBytes = bytes } }
func logTo(log *zap.Logger) func(*Options) { return func(o *Options) { o.Log = log } }

func mustClose(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Errorf("close store: %v", err)
	}
}

// receipt is the i-th of an endless row of different receipts.
func receipt(i int) Receipt {
	id := strconv.Itoa(i)
	r := Receipt{Record: []byte(`{"identity":"user-` + id + `","evtName":"Campaign"}`), User: uint64(i) + 1}
	copy(r.Key[:], "receipt "+id)
	return r
}

func receipts(from, n int) []Receipt {
	rs := make([]Receipt, n)
	for i := range rs {
		rs[i] = receipt(from + i)
	}
	return rs
}

func mustCommit(t testing.TB, s *Store, rs ...Receipt) {
	t.Helper()
	if err := s.Commit(t.Context(), rs); err != nil {
		t.Fatalf("commit: %v", err)
	}
}

// frames commits n frames of size receipts each: a commit alone is a frame.
func frames(t testing.TB, s *Store, n, size int) {
	t.Helper()
	for i := range n {
		mustCommit(t, s, receipts(i*size, size)...)
	}
}

// read returns n frames from position from.
func read(t testing.TB, s *Store, from uint64, n int) []Frame {
	t.Helper()
	r := s.Read(from)
	defer r.Close()
	return next(t, r, n)
}

func next(t testing.TB, r *Reader, n int) []Frame {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var fs []Frame
	for len(fs) < n {
		f, err := r.Next(ctx)
		if err != nil {
			t.Fatalf("frame %d of %d: %v", len(fs)+1, n, err)
		}
		fs = append(fs, f)
	}
	return fs
}

// stored are the keys of all receipts on the queue, in order.
func stored(t testing.TB, s *Store) []string {
	t.Helper()
	info, err := s.receipts.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, f := range read(t, s, 1, int(info.State.Msgs)) {
		for _, r := range f.Receipts {
			keys = append(keys, keyOf(r))
		}
	}
	return keys
}

func keyOf(r Receipt) string { return string(r.Key[:]) }

func keysOf(rs []Receipt) []string {
	var keys []string
	for _, r := range rs {
		keys = append(keys, keyOf(r))
	}
	return keys
}

func letter(i int, reason Reason) Letter {
	return Letter{
		Receipt: receipt(i),
		Reason:  reason,
		Code:    512,
		Tries:   1,
		Died:    time.UnixMilli(1700000000000).UTC(),
		Origin:  Place{Seq: uint64(i)/1000 + 1, Index: i % 1000},
	}
}

func letters(from, n int, reason Reason) []Letter {
	ls := make([]Letter, n)
	for i := range ls {
		ls[i] = letter(from+i, reason)
	}
	return ls
}

func mustBury(t testing.TB, s *Store, ls ...Letter) uint64 {
	t.Helper()
	seq, err := s.Bury(t.Context(), ls)
	if err != nil {
		t.Fatalf("bury: %v", err)
	}
	return seq
}

// buried are the dead letters, oldest first.
func buried(t testing.TB, s *Store) []Letter {
	t.Helper()
	var all []Letter
	if err := s.Letters(t.Context(), func(l Letter) error { all = append(all, l); return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

// eventually waits for a fact.
func eventually(t testing.TB, what string, fact func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !fact() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never: %s", what)
		}
	}
}

// crash copies the directory of an open store: what a killed process leaves. With
// SyncAlways everything acknowledged is in the files.
func crash(t testing.TB, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "crashed")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

func golden(t *testing.T, name string, data []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return want
}

func wantErr(t testing.TB, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Fatalf("got error %v, want %v", got, want)
	}
}

func wantEqual[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: got %v, want %v", what, fmt.Sprint(got), fmt.Sprint(want))
	}
}
