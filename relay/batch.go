package relay

import (
	"bytes"
	"container/heap"
	"slices"
	"time"

	"github.com/birdtap/birdtap/store"
)

// crowd is how many receipts of one user must be waiting before that user may
// take more than one place in a batch. So many come of a wrong identity set-up
// or a test, and one record a call would never get through them.
const crowd = 100

// item is one receipt on its way through the relay.
type item struct {
	receipt *store.Receipt // nil once it is settled
	user    uint64
	frame   *frame
	index   int
	tries   int       // calls that carried it
	aside   time.Time // when CleverTap first answered it with 555; zero if it did not
	asides  int       // how often it did
	due     time.Time // when it may be tried again
	next    *item     // behind it, of the same user
	done    bool      // settled
}

func (i *item) place() store.Place { return store.Place{Seq: i.frame.seq, Index: i.index} }

// frame is what the relay holds of one frame of the queue.
type frame struct {
	seq     uint64
	time    time.Time // when it was stored
	arrived time.Time // when the relay read it
	replay  store.Replay
	unread  bool   // replayed letters that did not count when they died
	items   []item // nil once all have been looked at for a batch
	left    int    // items not settled
	settled store.Partial
}

// waiting holds the receipts that have not left, and says who may leave next. It
// is pure: no goroutine, no clock.
//
// A batch takes the oldest receipts whose user has nothing on the way, one per
// user, so that SENT is accepted before READ leaves: in one call a refused SENT
// could be overtaken. Receipts of a busy user park behind it, and everyone else
// flows. A user is busy from the moment a receipt of it joins a batch until that
// batch is done.
type waiting struct {
	max     int           // receipts of a batch
	maxWait time.Duration // a batch leaves when its oldest receipt has waited so long here

	fresh []*frame // not yet looked at, in order
	next  int      // of fresh[0]

	users  map[uint64]user // the busy ones, and those with receipts parked
	freed  []uint64        // users with receipts parked and nothing on the way, in the order in which they became free
	asides asideHeap       // stepped aside, by the time they are due

	batch   []*item // gathers
	ordered bool    // the batch holds several receipts of one user
	oldest  time.Time
}

// user is one busy user.
type user struct {
	out        int // receipts in a batch or aside
	head, tail *item
	parked     int
	aside      bool // one stepped aside: what parks here may wait for long
}

func newWaiting(maxRecords int, maxWait time.Duration) *waiting {
	return &waiting{max: maxRecords, maxWait: maxWait, users: map[uint64]user{}}
}

// add takes a frame. Items that are done are passed over.
func (w *waiting) add(f *frame) { w.fresh = append(w.fresh, f) }

// take returns the next batch, or nil if it is neither full nor old enough. ordered
// tells that it holds several receipts of one user.
func (w *waiting) take(now time.Time) (batch []*item, ordered bool) {
	w.fill(now)
	if len(w.batch) == 0 || len(w.batch) < w.max && now.Before(w.oldest.Add(w.maxWait)) {
		return nil, false
	}
	batch, ordered = w.batch, w.ordered
	w.batch, w.ordered = nil, false
	return batch, ordered
}

// wakeAt is when take may have a batch without anything new having happened; zero
// if it will not.
func (w *waiting) wakeAt() time.Time {
	var at time.Time
	if len(w.batch) > 0 {
		at = w.oldest.Add(w.maxWait)
	}
	if len(w.asides) > 0 && (at.IsZero() || w.asides[0].due.Before(at)) {
		at = w.asides[0].due
	}
	return at
}

// fill moves receipts into the batch: first those that stepped aside and are due,
// then those of users that have become free, then fresh ones.
func (w *waiting) fill(now time.Time) {
	for len(w.batch) < w.max && len(w.asides) > 0 && !w.asides[0].due.After(now) {
		i := heap.Pop(&w.asides).(*item)
		w.ordered = w.ordered || w.users[i.user].out > 1
		w.join(i)
	}
	for len(w.batch) < w.max && len(w.freed) > 0 {
		id := w.freed[0]
		w.freed = w.freed[1:]
		w.unpark(id)
	}
	for len(w.batch) < w.max {
		i := w.nextFresh()
		if i == nil {
			return
		}
		if u, busy := w.users[i.user]; busy {
			if u.aside {
				i = detached(i)
			}
			w.users[i.user] = u.park(i)
			continue
		}
		w.users[i.user] = user{out: 1}
		w.join(i)
	}
}

func (w *waiting) nextFresh() *item {
	for len(w.fresh) > 0 {
		f := w.fresh[0]
		for w.next < len(f.items) {
			i := &f.items[w.next]
			w.next++
			if !i.done {
				return i
			}
		}
		f.items = nil // those that wait for long keep themselves only
		w.fresh[0] = nil
		w.fresh, w.next = w.fresh[1:], 0
	}
	w.fresh = nil
	return nil
}

// unpark moves the oldest receipt of a free user into the batch, and as many more
// as fit if the user is a crowd.
func (w *waiting) unpark(id uint64) {
	u := w.users[id]
	n := 1
	if u.parked > crowd {
		n = min(u.parked, w.max-len(w.batch))
		w.ordered = w.ordered || n > 1
	}
	for ; n > 0; n-- {
		i := u.head
		u.head, i.next = i.next, nil
		u.parked--
		u.out++
		w.join(i)
	}
	if u.head == nil {
		u.tail = nil
	}
	w.users[id] = u
}

func (w *waiting) join(i *item) {
	if w.batch == nil {
		w.batch = make([]*item, 0, w.max)
	}
	if len(w.batch) == 0 || i.frame.arrived.Before(w.oldest) {
		w.oldest = i.frame.arrived
	}
	w.batch = append(w.batch, i)
}

func (u user) park(i *item) user {
	if u.tail == nil {
		u.head = i
	} else {
		u.tail.next = i
	}
	u.tail = i
	u.parked++
	return u
}

// release ends the journey of a receipt that was in a batch. Its user is free
// when nothing of it is left in one.
func (w *waiting) release(i *item) {
	id := i.user
	u := w.users[id]
	u.out--
	switch {
	case u.out > 0:
		w.users[id] = u
	case u.parked > 0:
		u.aside = false
		w.users[id] = u
		w.freed = append(w.freed, id)
	default:
		delete(w.users, id)
	}
}

// idle tells whether nothing may leave but what stepped aside.
func (w *waiting) idle() bool { return len(w.batch) == 0 && len(w.freed) == 0 && len(w.fresh) == 0 }

// stepAside takes a receipt out of its batch until due; its user stays busy, and
// nobody else waits for it.
func (w *waiting) stepAside(i *item, due time.Time) {
	u := w.users[i.user]
	if i.asides == 0 {
		i = detached(i)
	}
	if !u.aside {
		w.users[i.user] = u.stay()
	}
	i.due = due
	i.asides++
	heap.Push(&w.asides, i)
}

// stay notes that a user's receipts may wait for long.
func (u user) stay() user {
	i := u.head
	u.aside, u.head, u.tail, u.parked = true, nil, nil, 0
	for ; i != nil; i = i.next {
		u = u.park(detached(i))
	}
	return u
}

// detached is a copy of an item that may wait for long, so that the memory of its
// frame, and of the thousand others in it, can go.
func detached(i *item) *item {
	own, receipt := *i, *i.receipt
	receipt.Record = bytes.Clone(receipt.Record)
	own.receipt, own.next = &receipt, nil
	return &own
}

// oldestAside is the receipt that stepped aside first, or nil.
func (w *waiting) oldestAside() *item {
	var oldest *item
	for _, i := range w.asides {
		if oldest == nil || i.aside.Before(oldest.aside) {
			oldest = i
		}
	}
	return oldest
}

// giveUp takes a receipt out of those that stepped aside; its user stays busy.
func (w *waiting) giveUp(i *item) {
	if at := slices.Index(w.asides, i); at >= 0 {
		heap.Remove(&w.asides, at)
	}
}

// asideHeap is a heap of receipts by due; of those due at once the oldest is first.
type asideHeap []*item

func (h asideHeap) Len() int { return len(h) }

func (h asideHeap) Less(a, b int) bool {
	if !h[a].due.Equal(h[b].due) {
		return h[a].due.Before(h[b].due)
	}
	if h[a].frame.seq != h[b].frame.seq {
		return h[a].frame.seq < h[b].frame.seq
	}
	return h[a].index < h[b].index
}

func (h asideHeap) Swap(a, b int) { h[a], h[b] = h[b], h[a] }

func (h *asideHeap) Push(x any) { *h = append(*h, x.(*item)) }

func (h *asideHeap) Pop() any {
	last := len(*h) - 1
	i := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return i
}
