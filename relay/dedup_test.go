package relay

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/birdtap/birdtap/store"
)

var dedupEpoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// dedupReceipt is a receipt with its n-th key, as uniform as a hash.
func dedupReceipt(n uint64) *store.Receipt {
	var r store.Receipt
	x := n*0x9e3779b97f4a7c15 + 1
	for i := range 2 {
		x ^= x >> 30
		x *= 0xbf58476d1ce4e5b9
		x ^= x >> 27
		x *= 0x94d049bb133111eb
		binary.LittleEndian.PutUint64(r.Key[8*i:], x^x>>31)
	}
	return &r
}

func place(seq uint64, index int) store.Place { return store.Place{Seq: seq, Index: index} }

func TestDedup(t *testing.T) {
	const window = 2 * time.Minute
	type arrival struct {
		r    *store.Receipt
		at   store.Place
		time time.Duration
		want bool
	}
	a, b := dedupReceipt(1), dedupReceipt(2)
	refused := dedupReceipt(1)
	refused.Reason = store.ReasonRefused
	replay := func(seq uint64, index int) *store.Receipt {
		r := dedupReceipt(1)
		r.Origin = place(seq, index)
		return r
	}
	for name, arrivals := range map[string][]arrival{
		"copy within the window": {
			{a, place(1, 0), 0, false}, {b, place(1, 1), 0, false}, {a, place(2, 0), window, true},
		},
		"copy in the same frame": {
			{a, place(1, 0), 0, false}, {a, place(1, 1), 0, true},
		},
		"beyond the window": {
			{a, place(1, 0), 0, false},
			{a, place(2, 0), window + time.Millisecond, false},
			{a, place(3, 0), 2 * window, true},
		},
		"a copy renews nothing": {
			{a, place(1, 0), 0, false}, {a, place(2, 0), window * 3 / 4, true}, {a, place(3, 0), window * 5 / 4, false},
		},
		"read again, not its own copy": {
			{a, place(1, 0), 0, false}, {a, place(1, 0), 0, false}, {a, place(2, 0), 0, true}, {a, place(2, 0), 0, true},
		},
		"a frame's time goes back a little": {
			{a, place(1, 0), 5 * time.Second, false},
			{a, place(2, 0), 0, true},
			{b, place(3, 0), window + 14*time.Second, false},
			{a, place(4, 0), window + 5*time.Second, true},
		},
		"a clock that was a day ahead holds nothing back": {
			{a, place(1, 0), 24 * time.Hour, false}, {a, place(2, 0), 0, false}, {a, place(3, 0), time.Second, true},
		},
		"refused at the door": {
			{refused, place(1, 0), 0, false}, {a, place(2, 0), 0, false}, {refused, place(3, 0), 0, false},
		},
		"a replay within the window is delivered": {
			{a, place(1, 0), 0, false}, {replay(1, 0), place(2, 0), 1, false}, {a, place(3, 0), 2, true},
		},
		"equal origins once": {
			{replay(1, 0), place(2, 0), 0, false},
			{replay(1, 0), place(3, 0), 0, true},
			{replay(1, 1), place(3, 1), 0, false},
			{replay(2, 0), place(3, 2), 0, false},
		},
		"a life of its own after each death": {
			{replay(1, 0), place(2, 0), 0, false}, {replay(2, 0), place(3, 0), 0, false}, {replay(2, 0), place(4, 0), 0, true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDedup(window)
			for i, x := range arrivals {
				if got := d.Seen(x.r, x.at, dedupEpoch.Add(x.time)); got != x.want {
					t.Fatalf("arrival %d: got %v, want %v", i, got, x.want)
				}
			}
		})
	}
}

func TestDedupOff(t *testing.T) {
	d := newDedup(0)
	for i := range 3 {
		if d.Seen(dedupReceipt(1), place(1, i), dedupEpoch) {
			t.Fatal("a copy although the window is 0")
		}
	}
	if d.Len() != 0 {
		t.Fatalf("%d remembered", d.Len())
	}
}

func TestDedupForgetsOldestBeyondItsBound(t *testing.T) {
	d := newDedup(time.Hour)
	d.max = 100
	for i := range 150 {
		if d.Seen(dedupReceipt(uint64(i)), place(1, i), dedupEpoch) {
			t.Fatalf("receipt %d is no copy", i)
		}
	}
	if d.Len() != 100 || d.Early() != 50 {
		t.Fatalf("%d remembered, %d forgotten early, want 100 and 50", d.Len(), d.Early())
	}
	if !d.Seen(dedupReceipt(149), place(2, 0), dedupEpoch) || d.Seen(dedupReceipt(0), place(2, 1), dedupEpoch) {
		t.Fatal("not the oldest were forgotten")
	}
}

// naiveDedup is what dedup promises, by a map and nothing else.
type naiveDedup struct {
	window time.Duration
	first  map[string]naiveFirst
}

type naiveFirst struct {
	at   store.Place
	time time.Time
}

func (d *naiveDedup) Seen(r *store.Receipt, at store.Place, t time.Time) bool {
	if d.window == 0 || r.Reason != "" {
		return false
	}
	key := fmt.Sprint("content ", r.Key)
	if !r.Origin.IsZero() {
		key = fmt.Sprint("origin ", r.Origin)
	}
	first, ok := d.first[key]
	if ok && first.at == at {
		return false
	}
	if ok && t.Sub(first.time).Abs() <= d.window {
		return true
	}
	d.first[key] = naiveFirst{at, t}
	return false
}

func TestDedupAgreesWithNaiveModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		window := time.Duration(rapid.SampledFrom([]int{0, 1, 1000, 20_000}).Draw(t, "window")) * time.Millisecond
		keys := rapid.SampledFrom([]uint64{3, 50, 5000}).Draw(t, "keys")
		frames := rapid.IntRange(1, 60).Draw(t, "frames")
		d, model := newDedup(window), &naiveDedup{window, map[string]naiveFirst{}}
		clock := dedupEpoch
		for seq := uint64(1); seq <= uint64(frames); seq++ {
			clock = clock.Add(time.Duration(rapid.IntRange(0, 3000).Draw(t, "step")) * time.Millisecond)
			at := clock.Add(-time.Duration(rapid.IntRange(0, 5000).Draw(t, "back")) * time.Millisecond)
			size := rapid.IntRange(1, 200).Draw(t, "size")
			draw := rapid.Uint64().Draw(t, "seed")
			again := rapid.IntRange(0, 3).Draw(t, "again") == 0
			for range 1 + b2i(again) {
				for i := range size {
					r := dedupReceipt((draw + uint64(i*i)) % keys)
					switch (draw >> 8) % 7 {
					case 0:
						r.Reason = store.ReasonRefused
					case 1:
						r.Origin = place(1+draw%3, i%50)
					}
					p := place(seq, i)
					if got, want := d.Seen(r, p, at), model.Seen(r, p, at); got != want {
						t.Fatalf("%v at %v: got %v, want %v", p, at, got, want)
					}
				}
			}
			checkTable(t, d)
			if rapid.IntRange(0, 3).Draw(t, "far") == 0 {
				d.index.reach = homeMask + 1 // as if chance had put a key very far from its home
			}
		}
	})
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// checkTable holds the table against the log: each key is found, at its newest
// entry, and used counts them.
func checkTable(t interface{ Fatalf(string, ...any) }, d *dedup) {
	newest := map[[2]uint64]uint32{}
	for i := range d.log.len {
		position := (d.log.head + i) & positionMask
		newest[d.log.at(position).key] = position
	}
	if len(newest) != d.index.used {
		t.Fatalf("%d keys in the log, %d in the table", len(newest), d.index.used)
	}
	for key, position := range newest {
		if slot, found := d.index.find(&d.log, key); !found || d.index.slots[slot].position() != position {
			t.Fatalf("key %x is not found at its newest entry", key)
		}
	}
}

// What a restart finds in the kept log, from one window before the oldest receipt
// that waits, decides about those that wait: none may be taken for a copy of
// nothing.
func TestRebuiltDedupLosesNothing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const window = 10 * time.Second
		n := rapid.IntRange(1, 60).Draw(t, "receipts")
		keys := make([]uint64, n)
		times := make([]time.Time, n)
		clock := dedupEpoch
		for i := range n {
			clock = clock.Add(time.Duration(rapid.IntRange(0, 4000).Draw(t, "step")) * time.Millisecond)
			keys[i], times[i] = rapid.Uint64Range(1, 4).Draw(t, "key"), clock
		}
		restart := rapid.IntRange(0, n-1).Draw(t, "oldest waiting")
		covered := map[uint64][]time.Time{} // delivered, by key
		run := func(d *dedup, from, deliver, to int) {
			for i := from; i < to; i++ {
				if !d.Seen(dedupReceipt(keys[i]), place(uint64(i+1), 0), times[i]) && i >= deliver {
					covered[keys[i]] = append(covered[keys[i]], times[i])
				}
			}
		}
		run(newDedup(window), 0, 0, restart)
		begin := 0
		for begin < restart && times[restart].Sub(times[begin]) > window {
			begin++
		}
		run(newDedup(window), begin, restart, n)
		for i := range n {
			if len(covered[keys[i]]) == 0 {
				t.Fatalf("receipt %d was delivered neither itself nor by an equal one", i)
			}
		}
	})
}

func TestDedupMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("a million receipts")
	}
	before := heapInUse()
	d := newDedup(2 * time.Minute)
	if idle := heapInUse() - before; idle > 64<<10 {
		t.Errorf("%d KiB when idle, want at most 64", idle>>10)
	}
	var slowest time.Duration
	for i := range maxDedupEntries + 50_000 {
		began := time.Now()
		d.Seen(dedupReceipt(uint64(i)), place(uint64(i/1000+1), i%1000), dedupEpoch)
		slowest = max(slowest, time.Since(began))
	}
	full := heapInUse() - before
	t.Logf("%d receipts: %.1f MiB, slowest call %v", d.Len(), float64(full)/(1<<20), slowest)
	if d.Len() != maxDedupEntries || full > 48<<20 {
		t.Errorf("%d receipts in %d MiB, want %d in at most 48", d.Len(), full>>20, maxDedupEntries)
	}
	for i := range 10_000 {
		d.Seen(dedupReceipt(uint64(i)), place(5000, i%1000), dedupEpoch.Add(time.Hour))
	}
	shrunk := heapInUse() - before
	t.Logf("%d receipts after an hour: %.1f MiB", d.Len(), float64(shrunk)/(1<<20))
	if d.Len() != 10_000 || shrunk > 2<<20 {
		t.Errorf("%d receipts in %d KiB, want 10,000 in at most 2 MiB", d.Len(), shrunk>>10)
	}
	runtime.KeepAlive(d)
}

func heapInUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A steady flow at a million keys: every receipt is new, and the oldest leaves.
func BenchmarkDedupFull(b *testing.B) {
	benchmarkDedup(b, time.Hour, 0)
}

// As many as fit the window, each leaving when its time has come.
func BenchmarkDedupWindow(b *testing.B) {
	benchmarkDedup(b, time.Minute, time.Minute/900_000)
}

// Every receipt is a copy of one among a million.
func BenchmarkDedupCopies(b *testing.B) {
	d := filledDedup(time.Hour, 0)
	receipts := someReceipts(0)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		d.Seen(&receipts[i%len(receipts)], place(1<<40, i%1000), dedupEpoch)
	}
}

func benchmarkDedup(b *testing.B, window, step time.Duration) {
	d := filledDedup(window, step)
	receipts := someReceipts(maxDedupEntries)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		r := &receipts[i%len(receipts)]
		n := maxDedupEntries + i
		binary.LittleEndian.PutUint32(r.Key[:], uint32(n)*0x9e3779b1) // new every time round
		d.Seen(r, place(uint64(n/1000+1), n%1000), dedupEpoch.Add(time.Duration(n)*step))
	}
	b.ReportMetric(float64(d.Len()), "keys")
}

func filledDedup(window, step time.Duration) *dedup {
	d := newDedup(window)
	for i := range maxDedupEntries {
		d.Seen(dedupReceipt(uint64(i)), place(uint64(i/1000+1), i%1000), dedupEpoch.Add(time.Duration(i)*step))
	}
	return d
}

func someReceipts(from int) []store.Receipt {
	receipts := make([]store.Receipt, 1<<18)
	for i := range receipts {
		receipts[i] = *dedupReceipt(uint64(from + i))
	}
	return receipts
}
