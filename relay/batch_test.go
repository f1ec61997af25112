package relay

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/birdtap/birdtap/store"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// frameOf makes a frame of one receipt for each user.
func frameOf(seq uint64, arrived time.Time, users ...uint64) *frame {
	f := &frame{seq: seq, arrived: arrived, left: len(users), items: make([]item, len(users))}
	for i, u := range users {
		f.items[i] = item{receipt: &store.Receipt{User: u}, user: u, frame: f, index: i}
	}
	return f
}

func places(items []*item) string {
	s := ""
	for _, i := range items {
		s += fmt.Sprintf("%d/%d ", i.frame.seq, i.index)
	}
	return s
}

func TestBatchTakesOnePerUserAndLeavesTheRestInOrder(t *testing.T) {
	w := newWaiting(10, 0)
	w.add(frameOf(1, epoch, 1, 2, 1, 3, 1))
	first, ordered := w.take(epoch)
	if got := places(first); got != "1/0 1/1 1/3 " || ordered {
		t.Fatalf("first batch %s ordered %v", got, ordered)
	}
	if batch, _ := w.take(epoch); batch != nil {
		t.Fatalf("a busy user left: %s", places(batch))
	}
	w.add(frameOf(2, epoch, 4))
	other, _ := w.take(epoch)
	if got := places(other); got != "2/0 " {
		t.Fatalf("others do not flow: %s", got)
	}
	for _, want := range []string{"1/2 ", "1/4 "} {
		for _, i := range first {
			if i.user == 1 {
				w.release(i)
			}
		}
		if first, _ = w.take(epoch); places(first) != want {
			t.Fatalf("next of the user %s, want %s", places(first), want)
		}
	}
}

func TestBatchLeavesWhenFullOrOldEnough(t *testing.T) {
	w := newWaiting(2, time.Second)
	w.add(frameOf(1, epoch, 1))
	if batch, _ := w.take(epoch.Add(time.Second - 1)); batch != nil {
		t.Fatal("left neither full nor old")
	}
	if got := w.wakeAt(); !got.Equal(epoch.Add(time.Second)) {
		t.Fatalf("wakes at %v", got)
	}
	w.add(frameOf(2, epoch, 2, 3))
	if batch, _ := w.take(epoch); places(batch) != "1/0 2/0 " {
		t.Fatalf("full batch %s", places(batch))
	}
	if batch, _ := w.take(epoch.Add(time.Second)); places(batch) != "2/1 " {
		t.Fatalf("old batch %s", places(batch))
	}
}

func TestCrowdFillsABatchInOrder(t *testing.T) {
	w := newWaiting(1000, 0)
	users := make([]uint64, crowd+2)
	for i := range users {
		users[i] = 7
	}
	w.add(frameOf(1, epoch, users...))
	first, _ := w.take(epoch)
	if len(first) != 1 {
		t.Fatalf("first batch of %d", len(first))
	}
	w.release(first[0])
	batch, ordered := w.take(epoch)
	if len(batch) != crowd+1 || !ordered {
		t.Fatalf("batch of %d, ordered %v", len(batch), ordered)
	}
	for n, i := range batch {
		if i.index != n+1 {
			t.Fatalf("receipt %d at place %d", i.index, n)
		}
	}
	for _, i := range batch {
		w.release(i)
	}
	if len(w.users) != 0 {
		t.Fatalf("users left behind: %v", w.users)
	}
}

func TestAsideBlocksItsUserOnly(t *testing.T) {
	w := newWaiting(10, 0)
	w.add(frameOf(1, epoch, 1, 2))
	batch, _ := w.take(epoch)
	due := epoch.Add(time.Minute)
	w.stepAside(batch[0], due)
	w.release(batch[1])
	w.add(frameOf(2, epoch, 1, 2))
	if batch, _ = w.take(epoch); places(batch) != "2/1 " {
		t.Fatalf("took %s", places(batch))
	}
	if got := w.wakeAt(); !got.Equal(due) {
		t.Fatalf("wakes at %v, want %v", got, due)
	}
	if batch, _ = w.take(due); places(batch) != "1/0 " {
		t.Fatalf("took %s when due", places(batch))
	}
	w.release(batch[0])
	if batch, _ = w.take(due); places(batch) != "2/0 " {
		t.Fatalf("then took %s", places(batch))
	}
}

// TestBatchesByRandomDraws takes frames, batches, answers and refusals as they come,
// and checks that every receipt leaves once, that the receipts of a user leave in
// order and, but for crowds, one at a time.
func TestBatchesByRandomDraws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWaiting(rapid.IntRange(1, 12).Draw(t, "max"), time.Duration(rapid.IntRange(0, 2).Draw(t, "wait"))*time.Second)
		now := epoch
		var flying [][]*item
		var seq uint64
		last := map[uint64]store.Place{}
		added, left := 0, 0
		finish := func(batch []*item) {
			for _, i := range batch {
				if i.aside.IsZero() && rapid.IntRange(0, 9).Draw(t, "555") == 0 {
					i.aside = now
					w.stepAside(i, now.Add(time.Second))
					continue
				}
				if p := last[i.user]; i.aside.IsZero() && (p.Seq > i.frame.seq || p.Seq == i.frame.seq && p.Index > i.index) {
					t.Fatalf("user %d: %v after %v", i.user, i.place(), p)
				}
				last[i.user] = i.place()
				left++
				w.release(i)
			}
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 2).Draw(t, "what") {
			case 0:
				seq++
				f := frameOf(seq, now, rapid.SliceOfN(rapid.Uint64Range(1, 8), 1, 20).Draw(t, "users")...)
				added += len(f.items)
				w.add(f)
			case 1:
				now = now.Add(time.Second)
				if batch, ordered := w.take(now); batch != nil {
					once(t, batch, ordered, flying)
					flying = append(flying, batch)
				}
			case 2:
				if len(flying) > 0 {
					n := rapid.IntRange(0, len(flying)-1).Draw(t, "done")
					finish(flying[n])
					flying = append(flying[:n], flying[n+1:]...)
				}
			}
		}
		for left < added {
			now = now.Add(time.Minute)
			batch, _ := w.take(now)
			if batch != nil {
				flying = append(flying, batch)
			}
			if len(flying) == 0 {
				t.Fatalf("%d of %d receipts never left", added-left, added)
			}
			finish(flying[0])
			flying = flying[1:]
		}
		if len(w.users) != 0 || len(w.asides) != 0 || len(w.freed) != 0 {
			t.Fatalf("left behind: users %v, %d aside, %d freed", w.users, len(w.asides), len(w.freed))
		}
	})
}

// once fails if a user is on the way twice, but for an ordered batch.
func once(t *rapid.T, batch []*item, ordered bool, flying [][]*item) {
	busy := map[uint64]bool{}
	for _, other := range flying {
		for _, i := range other {
			busy[i.user] = true
		}
	}
	for _, i := range batch {
		if busy[i.user] && !ordered {
			t.Fatalf("user %d is on the way twice", i.user)
		}
		busy[i.user] = true
	}
}

func BenchmarkBatches(b *testing.B) {
	w := newWaiting(1000, 0)
	var seq uint64
	for n := 0; n < b.N; n += 1000 {
		seq++
		f := &frame{seq: seq, items: make([]item, 1000), left: 1000}
		for i := range f.items {
			f.items[i] = item{user: uint64(n + i), frame: f, index: i}
		}
		w.add(f)
		batch, _ := w.take(epoch)
		for _, i := range batch {
			w.release(i)
		}
	}
}
