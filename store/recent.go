package store

import (
	"bytes"
	"cmp"
	"slices"
	"sync"
	"time"
)

const (
	// recentBytes is how much of the newest frames is kept for a reader: it may fall so
	// far behind, about 20,000 receipts, before it reads them from the server again.
	recentBytes = 4 << 20
	// recentInfos is how many frames a scan may have missed: some 10 s of small ones.
	recentInfos = 16 << 10
)

// recent keeps the frames that this process has stored last, for the reader at the
// end of the queue. Reading them back costs as much as storing them, and nats-server
// holds on for ten seconds to every block of 8 MiB that was read while it was still
// being written: 70 MiB at 30,000 receipts/s.
//
// It knows only what went through this process, and only what is on disk: the server
// has acknowledged each frame and said its sequence. Whatever a reader misses here,
// because somebody else stored it, because an acknowledgement was lost or because it
// is too old, it reads from the server.
type recent struct {
	mu      sync.Mutex
	readers int
	frames  []storedFrame
	bytes   int           // of frames
	infos   []FrameInfo   // of the same frames, and of some before them
	changed chan struct{} // closed by the next add; nil if nobody waits
}

// storedFrame is a frame as it is on the queue.
type storedFrame struct {
	seq    uint64
	time   time.Time
	data   []byte
	replay Replay
	unread bool
}

func (s storedFrame) frame() Frame {
	f := Frame{Seq: s.seq, Time: s.time, Replay: s.replay, Unread: s.unread, Bytes: len(s.data)}
	f.Receipts, f.Err = decodeFrame(s.data)
	if f.Err != nil {
		f.Receipts = []Receipt{{Record: corrupt(s.data), Reason: ReasonCorrupt, Accepted: f.Time}}
	}
	for i := range f.Receipts {
		if f.Receipts[i].Accepted.IsZero() {
			f.Receipts[i].Accepted = f.Time
		}
	}
	return f
}

// open makes it keep what is stored from now on, close ends that.
func (r *recent) open() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.readers++
}

func (r *recent) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.readers--; r.readers == 0 {
		r.clear()
	}
}

// add takes in a frame that is on disk; its data is copied. Without data only scans
// find it.
func (r *recent) add(f storedFrame, info FrameInfo) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.readers == 0 {
		return
	}
	if n := len(r.infos); n > 0 && f.seq <= r.infos[n-1].Seq {
		r.clear() // not the queue that it was
	}
	if f.data != nil {
		f.data = bytes.Clone(f.data)
		r.frames = append(r.frames, f)
		r.bytes += len(f.data)
	}
	old := 0
	for r.bytes > recentBytes {
		r.bytes -= len(r.frames[old].data)
		r.frames[old] = storedFrame{}
		old++
	}
	r.frames = r.frames[old:]
	r.infos = append(r.infos, info)
	r.infos = r.infos[max(0, len(r.infos)-recentInfos):]
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

// forget is for a queue that may not be the same any more.
func (r *recent) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clear()
}

func (r *recent) clear() { r.frames, r.bytes, r.infos = nil, 0, nil }

// drop takes out what was deleted below seq.
func (r *recent) drop(seq uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.frames) > 0 && r.frames[0].seq < seq {
		r.bytes -= len(r.frames[0].data)
		r.frames = r.frames[1:]
	}
	for len(r.infos) > 0 && r.infos[0].Seq < seq {
		r.infos = r.infos[1:]
	}
}

// scan calls fn for the frames from seq on that follow on one another without a gap,
// and returns the sequence behind them: seq if there are none.
func (r *recent) scan(seq uint64, fn func(FrameInfo)) uint64 {
	r.mu.Lock()
	i, _ := slices.BinarySearchFunc(r.infos, seq, func(f FrameInfo, seq uint64) int { return cmp.Compare(f.Seq, seq) })
	infos := slices.Clone(r.infos[i:])
	r.mu.Unlock()
	for _, f := range infos {
		if f.Seq != seq {
			break
		}
		fn(f)
		seq++
	}
	return seq
}

// look returns frame seq if it is kept. If not it says whether a newer one is, and
// else returns a channel that closes when the next one comes.
func (r *recent) look(seq uint64) (f storedFrame, found, newer bool, next <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i, found := slices.BinarySearchFunc(r.frames, seq, func(f storedFrame, seq uint64) int { return cmp.Compare(f.seq, seq) })
	if i < len(r.frames) {
		return r.frames[i], found, true, nil
	}
	if r.changed == nil {
		r.changed = make(chan struct{})
	}
	return storedFrame{}, false, false, r.changed
}
