package store

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// What this process stores, a reader at the end has without asking the server, and it
// is what the server has.
func TestReaderAtTheEndNeedsNoServer(t *testing.T) {
	s := openStore(t)
	frames(t, s, 3, 2)
	r := s.Read(4)
	defer r.Close()
	for seq := uint64(4); seq < 40; seq++ {
		mustCommit(t, s, receipts(int(seq), 1+int(seq)%3)...)
		f := next(t, r, 1)[0]
		stored, err := s.receipts.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		want := storedFrame{seq: seq, time: f.Time, data: stored.Data}.frame()
		if f.Seq != seq || f.Bytes != len(stored.Data) || len(f.Receipts) != len(want.Receipts) {
			t.Fatalf("frame %d of %d bytes with %d receipts, want %d of %d with %d",
				f.Seq, f.Bytes, len(f.Receipts), seq, len(stored.Data), len(want.Receipts))
		}
		for i := range f.Receipts {
			if !bytes.Equal(f.Receipts[i].Record, want.Receipts[i].Record) || f.Receipts[i].Key != want.Receipts[i].Key {
				t.Fatalf("frame %d: receipt %d is not what was stored", seq, i)
			}
		}
		if late := f.Time.Sub(stored.Time); late < 0 {
			t.Errorf("frame %d was stored %v after it was read", seq, -late)
		}
	}
	if n := removeConsumers(t, s, s.receipts); n != 0 {
		t.Errorf("%d consumers", n)
	}
}

// Frames of this process and of others, in any mixture: none is skipped, none comes
// twice, and they come in order.
func TestReaderTakesFramesOfOthersInOrder(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	r := s.Read(1)
	defer r.Close()
	random := rand.New(rand.NewPCG(1, 2))
	const rounds = 60
	others := encodeFrame(receipts(0, 1))
	written := make(chan uint64, rounds)
	go func() {
		defer close(written)
		last := uint64(0)
		for i := range rounds {
			n := 1 + random.IntN(8)
			if random.IntN(2) == 0 {
				publishMany(t, s, others, 1, n)
			} else {
				frames(t, s, n, 1)
			}
			last += uint64(n)
			if i == rounds-1 || random.IntN(4) == 0 {
				written <- last
			}
		}
	}()
	seq := uint64(0)
	for last := range written {
		for seq < last {
			if f := next(t, r, 1)[0]; f.Seq != seq+1 || f.Err != nil {
				t.Fatalf("frame %d, want %d, %v", f.Seq, seq+1, f.Err)
			}
			seq++
		}
	}
}

// A frame of another process is seen although nothing of this one follows.
func TestReaderAtTheEndSeesFramesOfOthers(t *testing.T) {
	s := openStore(t)
	r := s.Read(1)
	defer r.Close()
	frames(t, s, 1, 1)
	next(t, r, 1)
	publishMany(t, s, encodeFrame(receipts(0, 1)), 1, 3)
	if fs := next(t, r, 3); fs[0].Seq != 2 || fs[2].Seq != 4 {
		t.Errorf("frames %d to %d", fs[0].Seq, fs[2].Seq)
	}
}

// Behind a reader that rests, no more than recentBytes are kept; it reads the rest
// from the server and comes to the end all the same.
func TestReaderFallsBehind(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	r := s.Read(1)
	defer r.Close()
	large := receipt(1)
	large.Record = bytes.Repeat([]byte("x"), 100_000)
	const n = 3 * recentBytes / 100_000
	for range n {
		mustCommit(t, s, large)
	}
	if s.recent.bytes > recentBytes || s.recent.bytes < recentBytes/2 {
		t.Errorf("%d bytes are kept", s.recent.bytes)
	}
	for seq := uint64(1); seq <= n; seq++ {
		if f := next(t, r, 1)[0]; f.Seq != seq {
			t.Fatalf("frame %d, want %d", f.Seq, seq)
		}
	}
	mustCommit(t, s, receipt(1))
	if f := next(t, r, 1)[0]; f.Seq != n+1 {
		t.Errorf("frame %d, want %d", f.Seq, n+1)
	}
}

// Without a reader nothing is kept, and a queue that begins anew is another one.
func TestRecentKeepsWhatIsWanted(t *testing.T) {
	var r recent
	r.add(storedFrame{seq: 1}, FrameInfo{Seq: 1})
	if _, _, newer, _ := r.look(1); newer {
		t.Error("kept a frame that nobody reads")
	}
	r.open()
	for _, seq := range []uint64{5, 6, 9, 3} {
		r.add(storedFrame{seq: seq, data: []byte{byte(seq)}}, FrameInfo{Seq: seq})
	}
	for seq, want := range map[uint64]struct{ found, newer bool }{
		2: {false, true}, 3: {true, true}, 4: {false, false}, 5: {false, false}, 9: {false, false},
	} {
		if _, found, newer, next := r.look(seq); found != want.found || newer != want.newer || (next == nil) != newer {
			t.Errorf("frame %d: found %v, newer %v", seq, found, newer)
		}
	}
	_, _, _, next := r.look(4)
	r.add(storedFrame{seq: 4}, FrameInfo{Seq: 4})
	<-next
	r.forget()
	if _, found, _, _ := r.look(4); found {
		t.Error("remembers what it was told to forget")
	}
	r.add(storedFrame{seq: 5, data: []byte{5}}, FrameInfo{Seq: 5})
	r.add(storedFrame{seq: 6, data: []byte{6}}, FrameInfo{Seq: 6})
	r.drop(6)
	for seq := uint64(5); seq <= 6; seq++ {
		_, found, _, _ := r.look(seq)
		if scanned := r.scan(seq, func(FrameInfo) {}) > seq; found != (seq == 6) || scanned != found {
			t.Errorf("frame %d of those from 6 on: kept %v, scanned %v", seq, found, scanned)
		}
	}
	r.close()
	if _, found, _, _ := r.look(5); found {
		t.Error("remembers what nobody reads any more")
	}
}

// A scan learns of this process' frames what the server's headers say of them.
func TestScanOfRecentFramesIsThatOfTheServer(t *testing.T) {
	s := openStore(t)
	r := s.Read(1)
	defer r.Close()
	for n := 1; n <= 5; n++ {
		mustCommit(t, s, receipts(10*n, n)...)
	}
	publishMany(t, s, encodeFrame(receipts(0, 2)), 2, 3)
	mustCommit(t, s, receipts(100, 7)...)
	var recent []FrameInfo
	if next := s.recent.scan(1, func(f FrameInfo) { recent = append(recent, f) }); next != 6 {
		t.Errorf("the frames of this process without a gap end before %d, want 6", next)
	}
	all := scan(t, s, nil)
	s.recent.forget()
	for i, want := range scan(t, s, nil) {
		if i < len(recent) {
			got := recent[i]
			if late := got.Time.Sub(want.Time); late < 0 {
				t.Errorf("frame %d was stored %v late", want.Seq, late)
			}
			if got.Time = want.Time; got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		}
		if all[i].Seq != want.Seq || all[i].Bytes != want.Bytes || all[i].Receipts != want.Receipts {
			t.Errorf("scanned %+v, want %+v", all[i], want)
		}
	}
	if len(all) != 9 {
		t.Errorf("%d frames, want 9", len(all))
	}
}
