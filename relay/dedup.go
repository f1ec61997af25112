package relay

import (
	"encoding/binary"
	"math/bits"
	"time"

	"github.com/birdtap/birdtap/store"
)

const (
	// maxDedupEntries bounds the memory of dedup: 1,000,000 receipts take 40 MiB
	// (32 bytes an entry, 8 MiB of table). Beyond it the oldest leave early.
	maxDedupEntries = 1_000_000
	// dedupGrace is how far the times of frames may go back from one to the next,
	// as they do when another server becomes the leader of the stream, without an
	// entry being forgotten that a later frame could still ask for.
	dedupGrace = 10 * time.Second
	// maxForgotten bounds the work of one look-up after a long silence: the entries
	// of a burst leave over the next receipts, not all at once.
	maxForgotten = 512
)

// dedup tells whether a receipt is a copy of one that came before it, no longer
// ago than the window.
//
// It goes by the log alone: the places of receipts and the times at which their
// frames were stored. So reading the kept log again after a restart remembers
// what was remembered before. (Where it begins amid a series of copies, one of them
// may pass for the first; an equal one before it is settled, so nothing is lost.)
// Its promises:
//
//   - A receipt is a copy if one of equal key is remembered from another place, and
//     their frames' times are at most the window apart. One that is read again, at
//     its own place, is not its own copy.
//   - A copy is not remembered and renews nothing: a receipt that comes once a
//     minute for ever is delivered once per window, not once.
//   - A replayed receipt is compared with replays of the same origin only. So a
//     replay within the window really delivers, and a replay that was cut short and
//     done again does not deliver twice.
//   - A receipt refused at the door is neither a copy nor a first: it will not be
//     delivered, so it must not stand in for one that will.
//   - Beyond maxDedupEntries the oldest are forgotten before their window ends.
//     What is forgotten early, or lost when a clock jumps, is delivered twice,
//     never not at all.
//
// It is pure: no goroutine, no clock. Its memory grows with what it holds and
// shrinks when that leaves.
type dedup struct {
	window int64 // ms
	max    uint32
	log    entryLog
	index  entryTable
	early  uint64
}

func newDedup(window time.Duration) *dedup {
	return &dedup{window: window.Milliseconds(), max: maxDedupEntries}
}

// Seen tells whether r is a copy, and remembers it if it is not. at is its place
// on the queue, frameTime when its frame was stored; frames come in the order of
// the log. With a window of 0 nothing is ever a copy.
func (d *dedup) Seen(r *store.Receipt, at store.Place, frameTime time.Time) bool {
	if d.window == 0 || r.Reason != "" {
		return false
	}
	now := frameTime.UnixMilli()
	d.forget(now)
	e := newEntry(dedupKey(r), at, now)
	slot, found := d.index.find(&d.log, e.key)
	if !found {
		d.index.put(slot, e.key, d.log.push(e))
		return false
	}
	first := d.log.at(d.index.slots[slot].position())
	switch {
	case first.is(at):
		return false
	case apart(first.time(), now) <= d.window:
		return true
	}
	// The one remembered is too old to count. It stays in the log, where nothing
	// points at it any more, until its turn comes.
	d.index.put(slot, e.key, d.log.push(e))
	return false
}

// Len is the number of receipts remembered.
func (d *dedup) Len() int { return d.index.used }

// Early is how many receipts were forgotten before their window had ended, since
// there were more than fit.
func (d *dedup) Early() uint64 { return d.early }

// forget drops the entries that no receipt of about this time can be a copy of,
// and makes room for one more, in the log and in the table: slots found afterwards
// stay where they are. Either direction counts: after a clock has jumped there are
// entries from a future that may never come.
func (d *dedup) forget(now int64) {
	for range maxForgotten {
		if d.log.len == 0 || apart(d.log.oldest().time(), now) <= d.window+dedupGrace.Milliseconds() {
			break
		}
		d.drop()
	}
	if d.log.len >= d.max {
		if apart(d.log.oldest().time(), now) <= d.window {
			d.early++
		}
		d.drop()
	}
	d.index.fit(&d.log)
}

func (d *dedup) drop() {
	position := d.log.head
	key := d.log.oldest().key
	if slot, found := d.index.find(&d.log, key); found && d.index.slots[slot].position() == position {
		d.index.remove(&d.log, slot)
	}
	d.log.pop()
}

// dedupKey is what r is compared by. Content keys are uniform over 128 bits, so
// one of them being equal to an origin is as unlikely as two of them colliding;
// the high bit, which no index reaches, keeps origins apart from each other's
// neighbours and from the zero key.
func dedupKey(r *store.Receipt) (key [2]uint64) {
	if r.Origin.IsZero() {
		return [2]uint64{binary.LittleEndian.Uint64(r.Key[:8]), binary.LittleEndian.Uint64(r.Key[8:])}
	}
	return [2]uint64{r.Origin.Seq, uint64(r.Origin.Index) | 1<<63} //nolint:gosec // an index is not negative
}

func apart(a, b int64) int64 { return max(a-b, b-a) }

// entry is one receipt remembered, in 32 bytes without a pointer, so that the
// garbage collector passes them over.
type entry struct {
	key   [2]uint64
	seq   uint64
	stamp int64 // Unix ms << 16 | index; frames hold far fewer than 65,536 receipts
}

func newEntry(key [2]uint64, at store.Place, ms int64) entry {
	return entry{key: key, seq: at.Seq, stamp: ms<<16 | int64(at.Index&0xffff)}
}

func (e *entry) time() int64 { return e.stamp >> 16 }

func (e *entry) is(at store.Place) bool {
	return e.seq == at.Seq && e.stamp&0xffff == int64(at.Index)
}

const (
	positionBits = 20 // 1<<20 positions, more than maxDedupEntries
	positionMask = 1<<positionBits - 1
	chunkBits    = 10
	chunkLen     = 1 << chunkBits
)

// entryLog holds entries in the order in which they came: a ring of positions over
// chunks that come and go. Nothing is ever moved, so positions stay good.
type entryLog struct {
	chunks [1 << (positionBits - chunkBits)]*[chunkLen]entry
	spare  *[chunkLen]entry // kept, so that a steady flow allocates nothing
	head   uint32           // position of the oldest
	len    uint32
}

func (l *entryLog) at(position uint32) *entry {
	return &l.chunks[position>>chunkBits][position%chunkLen]
}

func (l *entryLog) oldest() *entry { return l.at(l.head) }

func (l *entryLog) push(e entry) (position uint32) {
	position = (l.head + l.len) & positionMask
	chunk := &l.chunks[position>>chunkBits]
	if *chunk == nil {
		*chunk, l.spare = l.spare, nil
	}
	if *chunk == nil {
		*chunk = new([chunkLen]entry)
	}
	(*chunk)[position%chunkLen] = e
	l.len++
	return position
}

func (l *entryLog) pop() {
	last := l.head
	l.head = (l.head + 1) & positionMask
	l.len--
	if l.head>>chunkBits != last>>chunkBits {
		l.spare, l.chunks[last>>chunkBits] = l.chunks[last>>chunkBits], nil
	}
}

// minTableSlots is the size of an idle table, 4 KiB.
const minTableSlots = 1 << 10

// entryTable finds entries by key: open addressing with linear probing, at most
// half full. A built-in map of the same would take twice the memory and give none
// of it back.
type entryTable struct {
	slots []tableSlot // a power of two
	shift uint8       // the home of a key is its hash >> shift
	used  int
	reach int // no key stands further behind its home
}

// tableSlot is a position and a mark: 6 bits of the key's home and 5 more of its
// hash, so that neither a search nor a removal has to look at the entries of the
// neighbours, which costs a cache miss each. The lowest bit of the mark is always
// set; the zero tableSlot is empty.
//
//	bit 31   27 26    21  20  19       0
//	   [  hash ][ home ][ 1 ][ position ]
type tableSlot uint32

const (
	markMask  = ^uint32(positionMask)
	markTaken = 1 << positionBits
	homeShift = positionBits + 1
	homeMask  = 1<<6 - 1
	hashMask  = 0x1f << (homeShift + 6)
)

func (s tableSlot) position() uint32 { return uint32(s) & positionMask }

func (s tableSlot) mark() uint32 { return uint32(s) & markMask }

// home is the slot at which the search for a key begins; mark is what tells the
// key's own slot from most others.
func (t *entryTable) home(key [2]uint64) (slot int, mark uint32) {
	h := hash(key)
	slot = int(h >> t.shift)                                                       //nolint:gosec // below len(t.slots)
	return slot, uint32(h)&hashMask | uint32(slot&homeMask)<<homeShift | markTaken //nolint:gosec // the low half is meant
}

// hash spreads keys, for origins are anything but uniform: two rounds of
// multiplication by the golden ratio.
func hash(key [2]uint64) uint64 {
	const golden = 0x9e3779b97f4a7c15
	h := key[0] * golden
	h = (h ^ h>>32 ^ key[1]) * golden
	return h ^ h>>29
}

// find returns the slot of key, or else the empty one where it belongs.
func (t *entryTable) find(log *entryLog, key [2]uint64) (slot int, found bool) {
	slot, mark := t.home(key)
	for ; t.slots[slot] != 0; slot = t.after(slot) {
		if s := t.slots[slot]; s.mark() == mark && log.at(s.position()).key == key {
			return slot, true
		}
	}
	return slot, false
}

func (t *entryTable) after(slot int) int { return (slot + 1) & (len(t.slots) - 1) }

// distance is how far slot b stands behind slot a.
func (t *entryTable) distance(a, b int) int { return (b - a) & (len(t.slots) - 1) }

// put points slot, which find returned for key, at a position.
func (t *entryTable) put(slot int, key [2]uint64, position uint32) {
	home, mark := t.home(key)
	if t.slots[slot] == 0 {
		t.used++
		t.reach = max(t.reach, t.distance(home, slot))
	}
	t.slots[slot] = tableSlot(mark | position)
}

// remove empties a slot and moves up what stands behind it only because it was
// taken, so that every search still ends at the first empty slot.
func (t *entryTable) remove(log *entryLog, slot int) {
	for i := t.after(slot); t.slots[i] != 0; i = t.after(i) {
		if t.behindHome(log, i) >= t.distance(slot, i) {
			t.slots[slot] = t.slots[i]
			slot = i
		}
	}
	t.slots[slot] = 0
	t.used--
}

// behindHome is how far the key in slot i stands behind its home. Unless chance
// has put one very far away, the mark tells.
func (t *entryTable) behindHome(log *entryLog, i int) int {
	s := t.slots[i]
	if t.reach <= homeMask {
		return (i - int(s>>homeShift)) & homeMask
	}
	home, _ := t.home(log.at(s.position()).key)
	return t.distance(home, i)
}

// fit makes room for one more key, and gives memory back when the table is
// nearly empty.
func (t *entryTable) fit(log *entryLog) {
	switch size := len(t.slots); {
	case size == 0:
		t.resize(log, minTableSlots)
	case 2*(t.used+1) > size:
		t.resize(log, 2*size)
	case size > minTableSlots && 16*t.used < size:
		t.resize(log, size/2)
	}
}

func (t *entryTable) resize(log *entryLog, size int) {
	old := t.slots
	*t = entryTable{slots: make([]tableSlot, size), shift: uint8(64 - bits.TrailingZeros(uint(size)))} //nolint:gosec // a size is positive
	for _, s := range old {
		if s != 0 {
			key := log.at(s.position()).key
			slot, _ := t.find(log, key)
			t.put(slot, key, s.position())
		}
	}
}
