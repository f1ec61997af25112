package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
)

// disk takes frames one by one, when it is let.
type disk struct {
	begun chan struct{} // one for every commit that has begun
	let   chan error    // one for every commit that may end

	mu     sync.Mutex
	frames [][]Receipt
}

func newDisk() *disk { return &disk{begun: make(chan struct{}, 1000), let: make(chan error)} }

func (d *disk) publish(m *nats.Msg) error {
	rs, err := decodeFrame(slices.Clone(m.Data))
	if err != nil {
		return err
	}
	if n := m.Header.Get(headerReceipts); n != strconv.Itoa(len(rs)) {
		return fmt.Errorf("header says %s receipts, %d are there", n, len(rs))
	}
	d.begun <- struct{}{}
	if err := <-d.let; err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.frames = append(d.frames, rs)
	return nil
}

func (*disk) ignore(*nats.Msg) error { return nil }

// free lets everything through from now on; the function ends that.
func (d *disk) free() (end func()) {
	done := make(chan struct{})
	go func() {
		for {
			select {
			case d.let <- nil:
			case <-done:
				return
			}
		}
	}()
	return sync.OnceFunc(func() { close(done) })
}

func (d *disk) keys() (keys []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, rs := range d.frames {
		keys = append(keys, keysOf(rs)...)
	}
	return keys
}

func ignored(int, time.Duration) {}

func TestCommitsShareAFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		c := newCommitter(d.publish, ignored)
		var all sync.WaitGroup
		commit := func(i int) {
			all.Go(func() {
				if err := c.commit(t.Context(), receipts(i, 1)); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait() // so that they come in order
		}
		for i := range 101 {
			commit(i)
		}
		defer d.free()()
		all.Wait()
		c.close()
		if len(d.frames) != 2 || len(d.frames[0]) != 1 || len(d.frames[1]) != 100 {
			t.Errorf("%d frames: what waits while one commit is on its way must share the next", len(d.frames))
		}
		if got, want := d.keys(), keysOf(receipts(0, 101)); !slices.Equal(got, want) {
			t.Errorf("order %v", got)
		}
	})
}

func TestCommitReturnsWhenItsOwnFrameIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		c := newCommitter(d.publish, ignored)
		result := make(chan error, 2)
		go func() { result <- c.commit(t.Context(), receipts(0, 1)) }()
		synctest.Wait()
		go func() { result <- c.commit(t.Context(), receipts(1, 1)) }()
		synctest.Wait()
		if len(result) != 0 {
			t.Fatal("a commit returned before anything was stored")
		}
		d.let <- nil
		synctest.Wait()
		if len(result) != 1 {
			t.Fatalf("%d commits returned after the first frame was stored, want 1", len(result))
		}
		d.let <- nil
		c.close()
		if err := errors.Join(<-result, <-result); err != nil {
			t.Error(err)
		}
	})
}

func TestLargeCommitTakesSeveralFrames(t *testing.T) {
	d := newDisk()
	defer d.free()()
	c := newCommitter(d.publish, ignored)
	defer c.close()
	if err := c.commit(t.Context(), receipts(0, 2500)); err != nil {
		t.Fatal(err)
	}
	if got, want := d.keys(), keysOf(receipts(0, 2500)); !slices.Equal(got, want) {
		t.Errorf("%d receipts, or not in order", len(got))
	}
	if len(d.frames) != 3 {
		t.Errorf("%d frames, want 3", len(d.frames))
	}
}

// Of the frames of one commit, a later one may fail: then the commit does.
func TestCommitFailsWithAnyOfItsFrames(t *testing.T) {
	for failing := range 3 {
		synctest.Test(t, func(t *testing.T) {
			d := newDisk()
			c := newCommitter(d.publish, ignored)
			result := make(chan error, 1)
			go func() { result <- c.commit(t.Context(), receipts(0, 2500)) }()
			for i := range 3 {
				var err error
				if i == failing {
					err = ErrFull
				}
				d.let <- err
			}
			wantErr(t, <-result, ErrFull)
			c.close()
		})
	}
}

func TestCallerMayReuseItsBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		c := newCommitter(d.publish, ignored)
		blocker := make(chan error, 1)
		go func() { blocker <- c.commit(t.Context(), receipts(0, 1)) }()
		synctest.Wait()
		rs := receipts(1, 1)
		want := string(rs[0].Record)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		wantErr(t, c.commit(ctx, rs), ErrTimeout)
		for i := range rs[0].Record {
			rs[0].Record[i] = '!'
		}
		defer d.free()()
		c.close()
		if err := <-blocker; err != nil {
			t.Fatal(err)
		}
		if got := string(d.frames[1][0].Record); got != want {
			t.Errorf("stored %q, want %q", got, want)
		}
	})
}

func TestWhoGivesUpGetsErrTimeoutAndMayBeStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		c := newCommitter(d.publish, ignored)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		wantErr(t, c.commit(ctx, receipts(0, 1)), ErrTimeout)
		wantEqual(t, "waited", time.Since(began), time.Second)
		defer d.free()()
		c.close()
		wantEqual(t, "stored", len(d.keys()), 1)
	})
}

func TestCloseCommitsWhatGatheredAndRefusesAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		c := newCommitter(d.publish, ignored)
		results := make(chan error, 10)
		for i := range 10 {
			go func() { results <- c.commit(t.Context(), receipts(i, 1)) }()
			synctest.Wait()
		}
		closed := make(chan struct{})
		go func() { c.close(); close(closed) }()
		synctest.Wait()
		wantErr(t, c.commit(t.Context(), receipts(10, 1)), ErrClosed)
		select {
		case <-closed:
			t.Fatal("closed before what gathered was stored")
		default:
		}
		end := d.free()
		<-closed
		end()
		for range 10 {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
		wantEqual(t, "stored", len(d.keys()), 10)
		c.close() // again
	})
}

// While the disk answers nothing, memory stays bounded: further commits are refused
// at once, and taken again when there is room.
func TestWhatGathersIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		c := newCommitter(d.publish, ignored)
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		big := receipt(0)
		big.Record = make([]byte, 128<<10)
		var err error
		taken := 0
		for ; taken < 1000; taken++ {
			if err = c.commit(gone, []Receipt{big}); !errors.Is(err, ErrTimeout) {
				break
			}
		}
		wantErr(t, err, ErrBusy)
		if bytes := taken * len(big.Record); bytes < maxGathered || bytes > maxGathered+1<<20 {
			t.Errorf("%d bytes gathered, want about %d", bytes, maxGathered)
		}
		defer d.free()()
		synctest.Wait()
		if err := c.commit(t.Context(), receipts(1, 1)); err != nil {
			t.Errorf("after the disk came back: %v", err)
		}
		c.close()
		wantEqual(t, "stored", len(d.keys()), taken+1)
		wantEqual(t, "bytes that still count as gathered", c.gathered, 0)
	})
}

func TestNothingToCommitIsDone(t *testing.T) {
	s := openStore(t)
	if err := s.Commit(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// Many callers, each with receipts in an order of its own, of all sizes.
func TestOrderPerCallerIsKept(t *testing.T) {
	s := openStore(t)
	const callers, calls = 8, 30
	var all sync.WaitGroup
	for caller := range callers {
		all.Go(func() {
			n := 0
			for call := range calls {
				size := 1 + (caller*7+call*13)%200
				if call%10 == 0 {
					size += maxFrameReceipts
				}
				rs := receipts(n, size)
				for i := range rs {
					rs[i].User = uint64(caller)
				}
				n += size
				if err := s.Commit(t.Context(), rs); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	info, err := s.receipts.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var seen [callers]int
	for _, f := range read(t, s, 1, int(info.State.Msgs)) {
		for _, r := range f.Receipts {
			if want := receipt(seen[r.User]); r.Key != want.Key || string(r.Record) != string(want.Record) {
				t.Fatalf("caller %d: got %q, want %q", r.User, r.Record, want.Record)
			}
			seen[r.User]++
		}
	}
	for caller, n := range seen {
		if n == 0 {
			t.Errorf("nothing of caller %d", caller)
		}
	}
}

func TestFullQueueRefusesAndTakesAgain(t *testing.T) {
	s := openStore(t, queueOf(1<<20), func(o *Options) { o.KeepMaxBytes = 1 << 20 })
	big := receipt(0)
	big.Record = make([]byte, 100<<10)
	var err error
	taken := 0
	for ; err == nil && taken < 100; taken++ {
		err = s.Commit(t.Context(), []Receipt{big})
	}
	wantErr(t, err, ErrFull)
	if taken < 20 {
		t.Errorf("full after %d of 100 KiB", taken)
	}
	if err := s.Ready(); err == nil {
		t.Error("ready with a full queue")
	}
	trimmer := s.NewTrimmer()
	trimmer.keepMax = 0
	scan(t, s, trimmer)
	if err := trimmer.Trim(t.Context(), 21, time.Time{}, time.Now()); err != nil {
		t.Fatal(err)
	}
	mustCommit(t, s, big)
	s.guard.look()
	if err := s.Ready(); err != nil {
		t.Errorf("not ready with room: %v", err)
	}
}
