package store

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server/ats"
	"github.com/nats-io/nats.go/jetstream"
)

func TestReadFromAPosition(t *testing.T) {
	s := openStore(t)
	frames(t, s, 10, 3)
	for from, first := range map[uint64]uint64{0: 1, 1: 1, 2: 2, 10: 10} {
		fs := read(t, s, from, int(11-first))
		for i, f := range fs {
			if f.Seq != first+uint64(i) || f.Err != nil || len(f.Receipts) != 3 || f.Replay != ReplayNone {
				t.Errorf("from %d: frame %d: %+v", from, i, f)
			}
			for _, r := range f.Receipts {
				if !r.Accepted.Equal(f.Time) {
					t.Errorf("accepted at %v in a frame of %v", r.Accepted, f.Time)
				}
			}
		}
	}
}

// A reader at the end waits, and has what comes then.
func TestReadBehindTheEndWaits(t *testing.T) {
	s := openStore(t)
	frames(t, s, 2, 1)
	for _, r := range []*Reader{s.Read(3), s.Read(30)} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		_, err := r.Next(ctx)
		cancel()
		wantErr(t, err, context.DeadlineExceeded)
		r.Close()
		r.Close() // again
	}
	r := s.Read(3)
	defer r.Close()
	commitSoon(t, s, receipt(7))
	if f := next(t, r, 1)[0]; f.Seq != 3 || f.Receipts[0].Key != receipt(7).Key {
		t.Errorf("got %+v", f)
	}
}

// commitSoon commits while the test goes on.
func commitSoon(t testing.TB, s *Store, rs ...Receipt) {
	go func() {
		if err := s.Commit(context.Background(), rs); err != nil {
			t.Error(err)
		}
	}()
}

// Frames whose times rise are found wherever the time lies; of one that is gone
// nobody knows when it was stored, so what lies behind it counts.
func TestFirstSince(t *testing.T) {
	s := openStore(t)
	if seq, err := s.FirstSince(t.Context(), 1, time.Now()); seq != 1 || err != nil {
		t.Errorf("of an empty queue: %d, %v", seq, err)
	}
	const n = 20
	frames(t, s, n, 1)
	all := read(t, s, 1, n)
	first := func(end uint64, since time.Time) uint64 {
		t.Helper()
		seq, err := s.FirstSince(t.Context(), end, since)
		if err != nil {
			t.Fatal(err)
		}
		return seq
	}
	for end := uint64(1); end <= n+1; end++ {
		for i, f := range all {
			if got, want := first(end, f.Time), min(end, uint64(i)+1); got != want {
				t.Errorf("before %d, since the time of frame %d: %d", end, i+1, got)
			}
		}
		if got := first(end, all[0].Time.Add(-time.Hour)); got != 1 {
			t.Errorf("before %d, since long ago: %d", end, got)
		}
		if got := first(end, time.Now().Add(time.Hour)); got != end {
			t.Errorf("before %d, since a time to come: %d", end, got)
		}
	}
	if err := s.receipts.Purge(t.Context(), jetstream.WithPurgeSequence(5)); err != nil {
		t.Fatal(err)
	}
	if err := s.receipts.DeleteMsg(t.Context(), 10); err != nil {
		t.Fatal(err)
	}
	if got := first(n+1, all[0].Time); got != 5 {
		t.Errorf("since a time that is gone: %d, want 5", got)
	}
	for i := 4; i < n; i++ {
		if got, want := first(n+1, all[i].Time), uint64(i)+1; got != want && got != 10 {
			t.Errorf("since the time of frame %d: %d", want, got)
		}
	}
}

func TestReadOverADeletedPrefix(t *testing.T) {
	s := openStore(t)
	frames(t, s, 10, 1)
	r := s.Read(1)
	defer r.Close()
	next(t, r, 1)
	if err := s.receipts.Purge(t.Context(), jetstream.WithPurgeSequence(8)); err != nil {
		t.Fatal(err)
	}
	if fs := read(t, s, 2, 3); fs[0].Seq != 8 || fs[2].Seq != 10 {
		t.Errorf("frames %d to %d", fs[0].Seq, fs[2].Seq)
	}
	if fs := scan(t, s, nil); len(fs) != 3 || fs[0].Seq != 8 {
		t.Errorf("scan: %+v", fs)
	}
	if err := s.receipts.Purge(t.Context(), jetstream.WithPurgeSequence(11)); err != nil {
		t.Fatal(err)
	}
	end, err := s.ScanFrames(t.Context(), 2, func(f FrameInfo) { t.Errorf("scanned %+v", f) })
	if err != nil || end != 11 {
		t.Errorf("scan of nothing ends at %d, %v", end, err)
	}
	late := s.Read(3)
	defer late.Close()
	commitSoon(t, s, receipt(1))
	if f := next(t, late, 1)[0]; f.Seq != 11 {
		t.Errorf("frame %d after all was purged", f.Seq)
	}
}

// removeConsumers does behind a reader's back what an operator or a restart may do.
func removeConsumers(t testing.TB, s *Store, stream jetstream.Stream) int {
	t.Helper()
	n := 0
	for c := range stream.ConsumerNames(t.Context()).Name() {
		if err := stream.DeleteConsumer(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		n++
	}
	return n
}

func TestReaderRebuildsItself(t *testing.T) {
	s := openStore(t)
	r := s.Read(1)
	defer r.Close()
	seq := uint64(0)
	for range 3 {
		publishMany(t, s, encodeFrame(receipts(0, 1)), 1, 3) // as another process does
		for _, f := range next(t, r, 3) {
			if seq++; f.Seq != seq {
				t.Fatalf("frame %d, want %d", f.Seq, seq)
			}
		}
		if removeConsumers(t, s, s.receipts) == 0 {
			t.Fatal("the reader has no consumer")
		}
	}
}

// While much is buffered, too: nothing is skipped and nothing comes twice.
func TestReaderLosesNothingWhenItsConsumerGoes(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	const n = 2000
	publishMany(t, s, encodeFrame(receipts(0, 1)), 1, n)
	r := s.Read(1)
	defer r.Close()
	for seq := uint64(1); seq <= n; seq++ {
		if f := next(t, r, 1)[0]; f.Seq != seq {
			t.Fatalf("frame %d, want %d", f.Seq, seq)
		}
		if seq == 100 {
			removeConsumers(t, s, s.receipts)
		}
	}
}

// The server may place a consumer on a node that has just died: the request has no
// answer, and the next one is placed anew. That must not take the time of a scan.
func TestReaderAsksAgainWhereAConsumerIsNotBuilt(t *testing.T) {
	t.Parallel()
	ns := startServer(t, serverOptions(t))
	s := openStore(t, external(ns))
	const lost = "lost"
	asked, err := s.nc.SubscribeSync(lost)
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.GlobalAccount().AddMapping("$JS.API.CONSUMER.CREATE."+s.names.receiptStream+".*", lost); err != nil {
		t.Fatal(err)
	}
	r := s.Read(1)
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), scanTimeout)
	defer cancel()
	read := make(chan error, 1)
	go func() {
		_, err := r.Next(ctx)
		read <- err
	}()
	for n := range 3 {
		if _, err := asked.NextMsgWithContext(ctx); err != nil {
			t.Fatalf("asked %d times for a consumer within %v: %v", n, scanTimeout, err)
		}
	}
	ns.GlobalAccount().RemoveMapping("$JS.API.CONSUMER.CREATE." + s.names.receiptStream + ".*")
	mustCommit(t, s, receipts(0, 1)...)
	if err := <-read; err != nil {
		t.Errorf("the reader does not go on: %v", err)
	}
}

// In a cluster the first request for messages may be lost, for it reaches a node that
// does not know of the consumer yet. A hand-over reads several times, and is not to wait
// so long each time.
func TestReaderAsksAgainWhereNothingComes(t *testing.T) {
	t.Parallel()
	ns := startServer(t, serverOptions(t))
	s := openStore(t, external(ns))
	frames(t, s, 3, 1)
	const lost = "lost"
	asked, err := s.nc.SubscribeSync(lost)
	if err != nil {
		t.Fatal(err)
	}
	next := "$JS.API.CONSUMER.MSG.NEXT." + s.names.receiptStream + ".*"
	if err := ns.GlobalAccount().AddMapping(next, lost); err != nil {
		t.Fatal(err)
	}
	r := s.Read(1)
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), stallAfter)
	defer cancel()
	read := make(chan error, 1)
	go func() {
		_, err := r.Next(ctx)
		read <- err
	}()
	if _, err := asked.NextMsgWithContext(ctx); err != nil {
		t.Fatal(err)
	}
	ns.GlobalAccount().RemoveMapping(next)
	if err := <-read; err != nil {
		t.Errorf("the reader waited for a lost request: %v", err)
	}
}

// A reader leaves nothing behind on the server.
func TestReadersAndScansRemoveTheirConsumers(t *testing.T) {
	s := openStore(t)
	frames(t, s, 3, 1)
	read(t, s, 1, 3)
	scan(t, s, nil)
	if _, err := s.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := removeConsumers(t, s, s.receipts) + removeConsumers(t, s, s.dead); n != 0 {
		t.Errorf("%d consumers are left", n)
	}
}

// A reader may rest for hours, because CleverTap is down, and go on. The bubble's
// clock makes that an instant.
func TestReaderRestsForHours(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		s := openStore(t)
		frames(t, s, 3, 1)
		r := s.Read(1)
		defer r.Close()
		next(t, r, 1)
		time.Sleep(8 * time.Hour) // fake
		frames(t, s, 3, 1)
		for i, f := range next(t, r, 5) {
			if f.Seq != uint64(i)+2 {
				t.Fatalf("frame %d, want %d", f.Seq, i+2)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		_, err := r.Next(ctx) // and wait for long
		wantErr(t, err, context.DeadlineExceeded)
		frames(t, s, 1, 1)
		wantEqual(t, "frame", next(t, r, 1)[0].Seq, 7)
	})
}

// inBubble runs a test with a clock that jumps to the next event. The server's own
// clock of access times must have begun outside.
func inBubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	ats.Register()
	defer ats.Unregister()
	synctest.Test(t, f)
}

func TestScanTellsWhatIsInTheFrames(t *testing.T) {
	s := openStore(t)
	frames(t, s, 2, 5)
	mustBury(t, s, letters(0, 3, "512")...)
	if n, err := s.Replay(t.Context(), ReplayOptions{Choose: all}); n != 3 || err != nil {
		t.Fatalf("replayed %d, %v", n, err)
	}
	if _, err := s.js.Publish(t.Context(), s.names.receipts, []byte("not a frame")); err != nil {
		t.Fatal(err)
	}
	got := scan(t, s, nil)
	fs := read(t, s, 1, 4)
	sum := int64(0)
	for i, want := range []FrameInfo{{Receipts: 5}, {Receipts: 5}, {Receipts: 3, Replay: ReplayDead}, {Receipts: 1}} {
		want.Seq, want.Time, want.Bytes = fs[i].Seq, fs[i].Time, got[i].Bytes
		if got[i] != want || len(fs[i].Receipts) != want.Receipts || fs[i].Replay != want.Replay {
			t.Errorf("frame %d: got %+v and %d receipts, want %+v", i+1, got[i], len(fs[i].Receipts), want)
		}
		sum += got[i].Bytes
	}
	wantEqual(t, "bytes", sum, s.bytes(t))
	end, err := s.ScanFrames(t.Context(), 2, func(FrameInfo) {})
	if err != nil || end != 5 {
		t.Errorf("scan ends at %d, %v", end, err)
	}
	if end, err = s.ScanFrames(t.Context(), 9, func(FrameInfo) { t.Error("called") }); err != nil || end != 9 {
		t.Errorf("scan from behind the end ends at %d, %v", end, err)
	}
}

// A scan ends with what was there when it began, even if ever more comes.
func TestScanEndsUnderTraffic(t *testing.T) {
	s := openStore(t)
	frames(t, s, 50, 1)
	n := 0
	end, err := s.ScanFrames(t.Context(), 1, func(FrameInfo) {
		n++
		mustCommit(t, s, receipt(n))
	})
	if err != nil || n != 50 || end != 51 {
		t.Errorf("scanned %d frames to %d, %v", n, end, err)
	}
}

func TestScanEndsWithItsContext(t *testing.T) {
	s := openStore(t)
	frames(t, s, 50, 1)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := s.ScanFrames(ctx, 1, func(FrameInfo) { cancel() })
	wantErr(t, err, context.Canceled)
}

func TestFrameTime(t *testing.T) {
	s := openStore(t)
	frames(t, s, 2, 1)
	f := read(t, s, 2, 1)[0]
	at, found, err := s.FrameTime(t.Context(), 2)
	if err != nil || !found || !at.Equal(f.Time) {
		t.Errorf("got %v %v %v, want %v", at, found, err, f.Time)
	}
	for _, seq := range []uint64{3, 1 << 40} {
		if _, found, err := s.FrameTime(t.Context(), seq); found || err != nil {
			t.Errorf("frame %d: found %v, %v", seq, found, err)
		}
	}
	if err := s.receipts.Purge(t.Context(), jetstream.WithPurgeSequence(2)); err != nil {
		t.Fatal(err)
	}
	if _, found, err := s.FrameTime(t.Context(), 1); found || err != nil {
		t.Errorf("a purged frame: found %v, %v", found, err)
	}
}

// Whole receipts of many frames, as after a restart with a backlog.
func TestReadManyFrames(t *testing.T) {
	s := openStore(t)
	for _, size := range []int{1, 1000, 30, 2999} {
		frames(t, s, 3, size)
	}
	info, err := s.receipts.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range read(t, s, 1, int(info.State.Msgs)) {
		n += len(f.Receipts)
	}
	if want := 3 * (1 + 1000 + 30 + 2999); n != want {
		t.Errorf("%s receipts, want %d", strconv.Itoa(n), want)
	}
}

func TestReaderOfAClosedStoreEnds(t *testing.T) {
	s := openStore(t)
	r := s.Read(1)
	defer r.Close()
	result := make(chan error, 1)
	go func() {
		_, err := r.Next(t.Context())
		result <- err
	}()
	eventually(t, "the reader waits", func() bool {
		s.recent.mu.Lock()
		defer s.recent.mu.Unlock()
		return s.recent.changed != nil
	})
	mustClose(t, s)
	wantErr(t, <-result, ErrClosed)
}

// What is wrong with the stream, a scan says; it does not wait for better times.
func TestScanOfAClosedStoreFails(t *testing.T) {
	s := openStore(t)
	frames(t, s, 1, 1)
	mustClose(t, s)
	if _, err := s.ScanFrames(t.Context(), 1, func(FrameInfo) {}); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// A message larger than what is read ahead, from somebody else who may write, comes out as
// a frame that does not decode, and those behind it are not kept back.
func TestForeignMessageOfTwoMegabytes(t *testing.T) {
	o := serverOptions(t)
	o.MaxPayload = 4 << 20
	ns := startServer(t, o)
	s := openStore(t, func(o *Options) { o.NATSURL, o.Replicas = ns.ClientURL(), 1 })
	mustCommit(t, s, receipts(0, 1)...)
	if _, err := s.js.Publish(t.Context(), s.names.receipts, make([]byte, 2<<20)); err != nil {
		t.Fatal(err)
	}
	mustCommit(t, s, receipts(1, 1)...)
	r := s.Read(1)
	defer r.Close()
	for seq, corrupt := range []bool{false, true, false} {
		f, err := r.Next(t.Context())
		if err != nil || f.Seq != uint64(seq+1) || errors.Is(f.Err, ErrCorrupt) != corrupt {
			t.Errorf("frame %d: %v, %v", f.Seq, f.Err, err)
		}
	}
}

// A reader of a quiet log may have to build its consumer anew any number of times, and still
// knows that the servers are quick: it loses no time on one that does not answer.
func TestQuietReaderStaysQuick(t *testing.T) {
	t.Parallel()
	s := openStore(t, external(startServer(t, serverOptions(t))))
	r := &source{store: s, stream: s.receipts, name: s.names.receiptStream, next: 1}
	for range 2 * patientAfter {
		if err := r.consume(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.stop(t.Context())
	}
	if got := r.buildWithin(); got > buildTimeout {
		t.Errorf("after many quick ones the next consumer is given %v", got)
	}
}
