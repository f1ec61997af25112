package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func all(*Letter) bool { return true }

func originsOf(ls []Letter) []Place {
	var ps []Place
	for _, l := range ls {
		ps = append(ps, l.Origin)
	}
	return ps
}

func TestBuriedLettersComeBack(t *testing.T) {
	s := openStore(t)
	want := lettersOfEach()
	mustBury(t, s, want...)
	if diff := cmp.Diff(want, buried(t, s), sameReceipt); diff != "" {
		t.Error(diff)
	}
}

func TestManyLettersTakeFewMessages(t *testing.T) {
	s := openStore(t)
	want := letters(0, 2500, "512")
	wantEqual(t, "sequence of the last message", mustBury(t, s, want...), 3)
	if got := buried(t, s); !slices.Equal(originsOf(got), originsOf(want)) {
		t.Errorf("%d letters, or not in order", len(got))
	}
	if seq, err := s.Bury(t.Context(), nil); seq != 0 || err != nil {
		t.Errorf("burying nothing: %d, %v", seq, err)
	}
}

func TestWalkOverLettersMayStop(t *testing.T) {
	s := openStore(t)
	mustBury(t, s, letters(0, 10, "512")...)
	n := 0
	err := s.Letters(t.Context(), func(Letter) error {
		if n++; n == 3 {
			return ErrStop
		}
		return nil
	})
	if err != nil || n != 3 {
		t.Errorf("stopped after %d letters, %v", n, err)
	}
	oops := errors.New("oops")
	wantErr(t, s.Letters(t.Context(), func(Letter) error { return oops }), oops)
}

func TestLettersSince(t *testing.T) {
	s := openStore(t)
	for i := range 3 {
		mustCommit(t, s, receipt(i)) // frames 1 to 3
	}
	mustBury(t, s, letters(0, 2000, "512")...)    // messages 1 and 2, of frames 1 and 2
	mustBury(t, s, letters(2000, 1000, "512")...) // message 3, of frame 3
	for _, c := range []struct {
		deadSeq, floor uint64
		places         int
		last           uint64
	}{
		{0, 0, 3000, 3}, {0, 2, 2000, 3}, {1, 1, 2000, 3}, {2, 4, 0, 3}, {3, 1, 0, 3}, {9, 1, 0, 9},
	} {
		places, last, err := s.LettersSince(t.Context(), c.deadSeq, c.floor)
		if err != nil || len(places) != c.places || last != c.last {
			t.Errorf("behind %d from frame %d: %d places, last %d, %v; want %d and %d",
				c.deadSeq, c.floor, len(places), last, err, c.places, c.last)
		}
	}
	places, _, err := s.LettersSince(t.Context(), 2, 3)
	if err != nil || !places[Place{Seq: 3, Index: 999}] {
		t.Errorf("a place is missing, %v", err)
	}
	// Of a frame that a power cut took, with a queue that does not sync: the next
	// receipt will have its place.
	mustBury(t, s, letters(3000, 1, "512")...)
	if places, last, err := s.LettersSince(t.Context(), 3, 1); err != nil || len(places) != 0 || last != 4 {
		t.Errorf("beyond the end of the queue: %d places, last %d, %v", len(places), last, err)
	}
}

func TestReplayPutsChosenLettersOnTheQueue(t *testing.T) {
	s := openStore(t)
	ls := letters(0, 1500, "512")
	for i := range ls {
		ls[i].Receipt.Accepted = time.UnixMilli(1690000000000 + int64(i)).UTC()
		ls[i].Receipt.Origin = Place{Seq: 77, Index: 7} // of an earlier replay
	}
	mustBury(t, s, ls...)
	even := func(l *Letter) bool { return l.Origin.Index%2 == 0 }
	var progress []int
	n, err := s.Replay(t.Context(), ReplayOptions{Choose: even, Progress: func(n int) { progress = append(progress, n) }})
	if n != 750 || err != nil {
		t.Fatalf("replayed %d, %v", n, err)
	}
	if !slices.Equal(progress, []int{500, 750}) {
		t.Errorf("progress %v", progress)
	}
	i := 0
	for _, f := range read(t, s, 1, 2) {
		wantEqual(t, "replay", f.Replay, ReplayDead)
		for _, r := range f.Receipts {
			if want := ls[i]; r.Origin != want.Origin || r.Key != want.Receipt.Key || !r.Accepted.Equal(want.Receipt.Accepted) || r.Reason != "" {
				t.Fatalf("got %+v for letter %+v", r, want)
			}
			i += 2
		}
	}
	left := buried(t, s)
	if len(left) != 750 {
		t.Fatalf("%d letters are left, want 750", len(left))
	}
	for i, l := range left {
		if want := ls[2*i+1]; !cmp.Equal(l, want, sameReceipt) {
			t.Fatalf("left is %+v, want %+v", l, want)
		}
	}
}

func TestReplayLimit(t *testing.T) {
	s := openStore(t)
	mustBury(t, s, letters(0, 1500, "512")...)
	for _, c := range []struct{ limit, want int }{{1, 1}, {999, 999}, {1000, 500}, {10, 0}} {
		n, err := s.Replay(t.Context(), ReplayOptions{Choose: all, Limit: c.limit})
		if n != c.want || err != nil {
			t.Fatalf("limit %d: replayed %d, %v, want %d", c.limit, n, err, c.want)
		}
	}
	// What a replay leaves of a message stands behind the others.
	want := slices.Concat(keysOf(receipts(0, 1)), keysOf(receipts(1000, 500)), keysOf(receipts(1, 999)))
	got := stored(t, s)
	slices.Sort(got[1:])
	slices.Sort(want[1:])
	if !slices.Equal(got, want) {
		t.Errorf("%d receipts on the queue, or not all", len(got))
	}
	if left := buried(t, s); len(left) != 0 {
		t.Errorf("%d letters are left", len(left))
	}
}

func TestReplayRenews(t *testing.T) {
	s := openStore(t)
	l := letter(1, ReasonRefused)
	l.Receipt.Reason, l.Receipt.Code = ReasonRefused, 512
	l.Receipt.Accepted = time.UnixMilli(1690000000000).UTC()
	mustBury(t, s, l)
	renew := func(l Letter) Receipt {
		r := receipt(2)
		r.Origin = Place{Seq: 99} // none of its business
		return r
	}
	if _, err := s.Replay(t.Context(), ReplayOptions{Choose: all, Renew: renew}); err != nil {
		t.Fatal(err)
	}
	got := read(t, s, 1, 1)[0].Receipts[0]
	if got.Key != receipt(2).Key || got.Reason != "" || got.Origin != l.Origin || !got.Accepted.Equal(l.Receipt.Accepted) {
		t.Errorf("got %+v", got)
	}
}

// One refused at the door and not judged anew stays refused.
func TestReplayOfARefusedOneStaysRefused(t *testing.T) {
	s := openStore(t)
	l := letter(1, ReasonRefused)
	l.Receipt.Reason, l.Receipt.Code = ReasonRefused, 513
	mustBury(t, s, l)
	if _, err := s.Replay(t.Context(), ReplayOptions{Choose: all}); err != nil {
		t.Fatal(err)
	}
	if got := read(t, s, 1, 1)[0].Receipts[0]; got.Reason != ReasonRefused || got.Code != 513 {
		t.Errorf("got %+v", got)
	}
}

func TestReplayRate(t *testing.T) {
	for _, c := range []struct {
		rate float64
		want time.Duration // a second's worth goes at once
	}{{100, 14 * time.Second}, {750, 1300 * time.Millisecond}, {0.5, 2998 * time.Second}, {0, 0}, {1e9, 0}} {
		inBubble(t, func(t *testing.T) {
			s := openStore(t)
			mustBury(t, s, letters(0, 1500, "512")...)
			began := time.Now()
			n, err := s.Replay(t.Context(), ReplayOptions{Choose: all, Rate: c.rate})
			took := time.Since(began)
			if n != 1500 || err != nil || took.Round(100*time.Millisecond) != c.want {
				t.Errorf("rate %v: %d receipts in %v, %v, want %v", c.rate, n, took, err, c.want)
			}
		})
	}
}

// An operator who presses Ctrl-C has every receipt either replayed or in the letters.
func TestInterruptedReplayDoublesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		s := openStore(t)
		mustBury(t, s, letters(0, 1500, "512")...)
		ctx, cancel := context.WithCancel(t.Context())
		n, err := s.Replay(ctx, ReplayOptions{Choose: all, Rate: 100, Progress: func(n int) {
			if n == 300 {
				cancel()
			}
		}})
		wantErr(t, err, context.Canceled)
		wantEqual(t, "replayed", n, 300)
		if got := stored(t, s); !slices.Equal(got, keysOf(receipts(0, 300))) {
			t.Errorf("%d receipts on the queue", len(got))
		}
		left := buried(t, s)
		slices.SortFunc(left, func(a, b Letter) int { return int(a.Receipt.User) - int(b.Receipt.User) })
		if !slices.Equal(originsOf(left), originsOf(letters(300, 1200, "512"))) {
			t.Errorf("%d letters are left, want the other 1200", len(left))
		}
	})
}

func TestReplayToAFullQueueKeepsTheLetters(t *testing.T) {
	s := openStore(t, queueOf(1<<20), func(o *Options) { o.KeepMaxBytes = 1 << 20 })
	ls := letters(0, 30, "512")
	for i := range ls {
		ls[i].Receipt.Record = make([]byte, 120<<10)
		mustBury(t, s, ls[i])
	}
	n, err := s.Replay(t.Context(), ReplayOptions{Choose: all})
	wantErr(t, err, ErrFull)
	if left := buried(t, s); n < 10 || n > 20 || !slices.Equal(originsOf(left), originsOf(ls[n:])) {
		t.Errorf("replayed %d, %d letters are left", n, len(left))
	}
}

// A full dead stream refuses further letters, drops none, and can be emptied in parts.
func TestFullDeadStream(t *testing.T) {
	s := openStore(t, func(o *Options) { o.DeadMaxBytes = 2 << 20 })
	n := 0
	var err error
	for ; err == nil && n < 100000; n += 500 {
		ls := letters(n, 500, "512")
		for i := range ls {
			if i%2 == 0 {
				ls[i].Reason = ReasonRefused
			}
		}
		_, err = s.Bury(t.Context(), ls)
	}
	wantErr(t, err, ErrFull)
	n -= 500
	if got := len(buried(t, s)); got != n || n < 5000 {
		t.Fatalf("%d letters are there, %d were stored", got, n)
	}
	purged, err := s.Purge(t.Context(), func(l *Letter) bool { return l.Reason == ReasonRefused }, 0)
	if err != nil || purged != n/2 {
		t.Fatalf("purged %d of %d, %v", purged, n, err)
	}
	mustBury(t, s, letters(n, 500, "512")...)
	if replayed, err := s.Replay(t.Context(), ReplayOptions{Choose: all}); err != nil || replayed != n/2+500 {
		t.Errorf("replayed %d, %v", replayed, err)
	}
}

// Letters of a newer birdtap are left alone, and counted; a relay waits for them, since
// they may stand for receipts that are still on the queue.
func TestLettersOfANewerVersionStay(t *testing.T) {
	s := openStore(t)
	mustBury(t, s, letters(0, 5, "512")...)
	msg := s.letterMsgs(letters(5, 5, "512"))[0]
	msg.Data = sealed(letterMagic, frameVersion+1, msg.Data[frameHead:len(msg.Data)-frameTrailer], 5)
	if _, err := s.publish(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
	mustBury(t, s, letters(10, 5, "512")...)
	if n := len(buried(t, s)); n != 10 {
		t.Errorf("%d letters can be read, want 10", n)
	}
	if n, err := s.Purge(t.Context(), func(*Letter) bool { return true }, 0); n != 10 || err != nil {
		t.Errorf("purged %d, %v, want 10", n, err)
	}
	wantEqual(t, "letters", int(status(t, s).Dead), 5)
	if _, _, err := s.LettersSince(t.Context(), 0, 1); !errors.Is(err, ErrNewer) {
		t.Errorf("got %v", err)
	}
}

// One message that does not decode holds up nothing: it is shown, skipped by a
// replay, and can be purged.
func TestLettersThatDoNotDecode(t *testing.T) {
	s := openStore(t)
	mustCommit(t, s, receipt(0))
	mustBury(t, s, letters(0, 2, "512")...)
	if _, err := s.publish(t.Context(), &nats.Msg{Subject: s.names.dead, Data: []byte("who wrote this?")}); err != nil {
		t.Fatal(err)
	}
	mustBury(t, s, letters(2, 2, "512")...)
	got := buried(t, s)
	if len(got) != 5 || got[2].Reason != ReasonCorrupt || string(got[2].Receipt.Record) != "who wrote this?" || got[2].Died.IsZero() {
		t.Fatalf("got %+v", got)
	}
	if places, last, err := s.LettersSince(t.Context(), 0, 0); err != nil || len(places) != 4 || last != 3 {
		t.Errorf("%d places, last %d, %v", len(places), last, err)
	}
	if n, err := s.Replay(t.Context(), ReplayOptions{Choose: all}); n != 4 || err != nil {
		t.Errorf("replayed %d, %v", n, err)
	}
	if n, err := s.Purge(t.Context(), func(l *Letter) bool { return l.Reason == ReasonCorrupt }, 0); n != 1 || err != nil {
		t.Errorf("purged %d, %v", n, err)
	}
	if left := buried(t, s); len(left) != 0 {
		t.Errorf("%d are left", len(left))
	}
}

func TestPurge(t *testing.T) {
	s := openStore(t)
	mustBury(t, s, letters(0, 1000, "512")...)
	mustBury(t, s, letters(1000, 1000, ReasonRefused)...)
	refused := func(l *Letter) bool { return l.Reason == ReasonRefused }
	for _, c := range []struct{ limit, want int }{{300, 300}, {0, 700}, {0, 0}} {
		if n, err := s.Purge(t.Context(), refused, c.limit); n != c.want || err != nil {
			t.Errorf("limit %d: purged %d, %v, want %d", c.limit, n, err, c.want)
		}
	}
	if left := buried(t, s); !slices.Equal(originsOf(left), originsOf(letters(0, 1000, "512"))) {
		t.Errorf("%d letters are left", len(left))
	}
	st := status(t, s)
	if st.Purged != 1000 || st.Dead != 1000 || st.DeadByReason["512"] != 1000 || len(st.DeadByReason) != 1 {
		t.Errorf("got %+v", st)
	}
}

// Two commands at once: together they take each letter at least once, and none is lost.
func TestTwoReplaysAtOnce(t *testing.T) {
	s := openStore(t)
	const n = 3000
	mustBury(t, s, letters(0, n, "512")...)
	errs := make(chan error, 2)
	for rest := range 2 {
		go func() {
			_, err := s.Replay(t.Context(), ReplayOptions{Choose: func(l *Letter) bool { return l.Origin.Index%2 == rest }})
			errs <- err
		}()
	}
	if err := errors.Join(<-errs, <-errs); err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, k := range stored(t, s) {
		got[k] = true
	}
	for _, l := range buried(t, s) {
		got[keyOf(l.Receipt)] = true
	}
	wantEqual(t, "receipts in either", len(got), n)
}

// electing is a stream whose servers elect while the first message is to be deleted.
type electing struct {
	jetstream.Stream

	deletes int
}

func (e *electing) DeleteMsg(context.Context, uint64) error {
	if e.deletes++; e.deletes == 1 {
		return fmt.Errorf("%w: no leader", jetstream.ErrMsgDeleteUnsuccessful)
	}
	return nil
}

func (e *electing) GetMsg(context.Context, uint64, ...jetstream.GetMsgOpt) (*jetstream.RawStreamMsg, error) {
	return &jetstream.RawStreamMsg{}, nil // there is a leader by now
}

// The removal of a letter that an election has foiled is tried again, although the letter
// can be looked up when the command looks.
func TestRemovalDuringAnElection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead := &electing{}
		s := &Store{opts: Options{NATSURL: "nats://nats:4222"}, dead: dead}
		if err := s.removeDead(t.Context(), 1); err != nil || dead.deletes != 2 {
			t.Errorf("after %d tries: %v", dead.deletes, err)
		}
	})
}
