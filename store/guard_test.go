package store

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sys/unix"
)

// known is how long it may take to be known that a receipt cannot be stored, or that
// it can be again.
const known = 10 * time.Second

// wantReady compares what Ready says with what becomes of a receipt.
func wantReady(t testing.TB, s *Store, want bool) {
	t.Helper()
	ready, commit := s.Ready(), s.Commit(t.Context(), receipts(0, 1))
	if (ready == nil) != want || (commit == nil) != want {
		t.Errorf("want ready %v: Ready says %v, a commit %v", want, ready, commit)
	}
}

func TestReadinessOfAFullQueue(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		s := openStore(t, func(o *Options) { o.QueueMaxBytes, o.KeepMaxBytes = 1<<20, 1<<20 })
		wantReady(t, s, true)
		for i := 100 << 10; i > 0; i /= 2 { // to the last byte
			r := receipt(0)
			r.Record = make([]byte, i)
			for s.Commit(t.Context(), []Receipt{r}) == nil {
				continue
			}
		}
		time.Sleep(known)
		wantReady(t, s, false)
		wantErr(t, s.Ready(), ErrFull)
		if err := s.Healthy(); err != nil {
			t.Errorf("a full queue can make progress, but %v", err)
		}
		if err := s.receipts.Purge(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(known)
		wantReady(t, s, true)
	})
}

// A leader whose followers are gone still answers for a while, and stores nothing.
func TestReadinessWithoutQuorum(t *testing.T) {
	t.Parallel()
	here := &jetstream.PeerInfo{Active: time.Second}
	silent := &jetstream.PeerInfo{Active: unseenFor}
	gone := &jetstream.PeerInfo{Offline: true}
	late := &jetstream.PeerInfo{Active: seenAgain}
	for name, test := range map[string]struct {
		cluster *jetstream.ClusterInfo
		want    bool // while all was well
		again   bool // when nothing could be stored just now
	}{
		"no cluster":          {nil, true, true},
		"one replica":         {&jetstream.ClusterInfo{}, true, true},
		"all here":            {&jetstream.ClusterInfo{Replicas: []*jetstream.PeerInfo{here, here}}, true, true},
		"one of three gone":   {&jetstream.ClusterInfo{Replicas: []*jetstream.PeerInfo{here, gone}}, true, true},
		"one of three silent": {&jetstream.ClusterInfo{Replicas: []*jetstream.PeerInfo{silent, here}}, true, true},
		"two of three late":   {&jetstream.ClusterInfo{Replicas: []*jetstream.PeerInfo{late, late}}, true, false},
		"two of three away":   {&jetstream.ClusterInfo{Replicas: []*jetstream.PeerInfo{gone, silent}}, false, false},
		"one of two away":     {&jetstream.ClusterInfo{Replicas: []*jetstream.PeerInfo{silent}}, false, false},
	} {
		wantEqual(t, name, quorate(test.cluster, unseenFor), test.want)
		wantEqual(t, name+", again", quorate(test.cluster, seenAgain), test.again)
	}
}

// A server has all of a stream if it has what the leader has, and the leader heard of it
// just now: of one that was killed while nothing came in nobody says that it lacks anything.
func TestReplicasThatAreCurrent(t *testing.T) {
	t.Parallel()
	current := &jetstream.PeerInfo{Current: true, Active: time.Second}
	behind := &jetstream.PeerInfo{Active: time.Second}
	silent := &jetstream.PeerInfo{Current: true, Active: unseenFor}
	gone := &jetstream.PeerInfo{Current: true, Offline: true}
	for name, test := range map[string]struct {
		cluster *jetstream.ClusterInfo
		want    int
	}{
		"no cluster": {nil, 1},
		"no leader":  {&jetstream.ClusterInfo{Replicas: []*jetstream.PeerInfo{current, current}}, 0},
		"all here":   {&jetstream.ClusterInfo{Leader: "a", Replicas: []*jetstream.PeerInfo{current, current}}, 3},
		"one behind": {&jetstream.ClusterInfo{Leader: "a", Replicas: []*jetstream.PeerInfo{current, behind}}, 2},
		"one silent": {&jetstream.ClusterInfo{Leader: "a", Replicas: []*jetstream.PeerInfo{silent, current}}, 2},
		"both gone":  {&jetstream.ClusterInfo{Leader: "a", Replicas: []*jetstream.PeerInfo{gone, gone}}, 1},
	} {
		info := &jetstream.StreamInfo{Config: jetstream.StreamConfig{Name: "S", Replicas: 3}, Cluster: test.cluster}
		wantEqual(t, name, replicasOf(info), Replicas{Stream: "S", Want: 3, Current: test.want})
	}
}

// What was stored before the trouble, or by a commit that is not the last, says nothing of
// whether a leader still has followers.
func TestHowLateFollowersMayBe(t *testing.T) {
	t.Parallel()
	g := &guard{}
	step := func(what string, want time.Duration, outcomes ...error) {
		t.Helper()
		for _, err := range outcomes {
			g.committed(err)
		}
		wantEqual(t, what, g.within(), want)
	}
	step("all is well", unseenFor, nil, nil)
	step("a commit fails", seenAgain, ErrTimeout)
	step("it goes on", seenAgain)
	step("one succeeds and the next fails", seenAgain, nil, ErrTimeout)
	g.found.ready = errNoQuorum
	step("a look finds trouble", seenAgain)
	step("commits succeed all the same", unseenFor, ErrTimeout, nil)
	step("none since then", seenAgain)
}

func TestReadinessOfALowDisk(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var free atomic.Int64
		free.Store(1 << 40)
		s := openStore(t, func(o *Options) {
			o.volume = func(string) (volume, error) { return volume{free: free.Load(), total: 1 << 40}, nil }
		})
		wantReady(t, s, true)
		free.Store(7 * 1 << 40 / 100)
		time.Sleep(known)
		wantReady(t, s, false)
		wantErr(t, s.Ready(), errLowDisk)
		wantErr(t, s.Commit(t.Context(), receipts(0, 1)), ErrFull)
		_, err := s.Replay(t.Context(), ReplayOptions{Choose: all})
		if err != nil {
			t.Error(err)
		}
		// The relay drains meanwhile: its writes go through.
		mustBury(t, s, letters(0, 1, "512")...)
		settleAll(t, s, 2, func(*Checkpoint) {})
		free.Store(9 * 1 << 40 / 100)
		time.Sleep(known)
		wantReady(t, s, true)
	})
}

func TestLowDiskAtTheStartIsKnownAtOnce(t *testing.T) {
	s := openStore(t, func(o *Options) {
		o.volume = func(string) (volume, error) { return volume{free: 1 << 30, total: 1 << 40}, nil }
	})
	wantReady(t, s, false)
}

// A server that has stopped is started anew, once; a second time is for the process
// to end with.
func TestStoppedServerIsStartedAnewOnce(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		s := openStore(t)
		mustCommit(t, s, receipts(0, 10)...)
		reader := s.Read(1)
		defer reader.Close()
		next(t, reader, 1)

		stopServer(s.embedded.current())
		time.Sleep(guardEvery + time.Second) // found out, not yet mended
		wantReady(t, s, false)
		if s.Healthy() == nil {
			t.Error("healthy without a server")
		}
		time.Sleep(2 * known)
		wantReady(t, s, true)
		if err := s.Healthy(); err != nil {
			t.Error(err)
		}
		wantEqual(t, "receipts", len(stored(t, s)), 11)
		wantEqual(t, "frame read on", next(t, reader, 1)[0].Seq, 2)

		time.Sleep(time.Hour)
		stopServer(s.embedded.current())
		select {
		case err := <-s.Failed():
			if err == nil {
				t.Error("failed without saying why")
			}
		case <-time.After(2 * known):
			t.Error("the second time is not reported")
		}
		wantReady(t, s, false)
		time.Sleep(time.Hour)
		select {
		case err := <-s.Failed():
			t.Errorf("reported again: %v", err)
		default:
		}
	})
}

// A server that cannot start anew is reported, too.
func TestServerThatDoesNotStartAnewIsReported(t *testing.T) {
	s := openStore(t, func(o *Options) { o.guardEvery = 20 * time.Millisecond })
	stopServer(s.embedded.current())
	path := filepath.Join(s.opts.DataDir, "jetstream")
	if err := errors.Join(os.RemoveAll(path), os.WriteFile(path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-s.Failed():
		t.Log(err)
	case <-time.After(20 * time.Second):
		t.Error("not reported")
	}
}

// While the disk hangs nothing is known but that: not ready, not healthy after a
// while, and no second server beside the one that hangs.
func TestReadinessOfAHangingDisk(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var hang atomic.Pointer[chan struct{}]
		s := openStore(t, func(o *Options) {
			o.volume = func(string) (volume, error) {
				if c := hang.Load(); c != nil {
					<-*c
				}
				return volume{free: 1 << 40, total: 1 << 40}, nil
			}
		})
		before := s.embedded.current()
		c := make(chan struct{})
		hang.Store(&c)
		time.Sleep(known)
		wantErr(t, s.Ready(), errNoAnswer)
		if err := s.Healthy(); err != nil {
			t.Errorf("a slow disk is no reason to end, but %v", err)
		}
		time.Sleep(2 * wedgedAfter)
		wantErr(t, s.Healthy(), errNoAnswer)
		hang.Store(nil)
		close(c)
		time.Sleep(known)
		wantReady(t, s, true)
		if s.embedded.current() != before {
			t.Error("started anew")
		}
	})
}

// Commits while the server starts anew fail or succeed, and what they say is true.
func TestCommitsDuringARestartAreHonest(t *testing.T) {
	t.Parallel()
	s := openStore(t, listening, func(o *Options) { o.guardEvery = 50 * time.Millisecond })
	var mu sync.Mutex
	var acked []string
	failed, recovered := 0, 0
	var stop atomic.Bool
	var all sync.WaitGroup
	for caller := range 4 {
		all.Go(func() {
			for i := 0; !stop.Load(); i++ {
				r := receipt(caller*1_000_000 + i)
				began := time.Now()
				err := s.Commit(t.Context(), []Receipt{r})
				if took := time.Since(began); took > 2*publishDeadline+time.Second {
					t.Errorf("a commit took %v", took) // one deadline for the frame before, one for its own
				}
				mu.Lock()
				if err == nil {
					acked = append(acked, keyOf(r))
					if failed > 0 {
						recovered++
					}
				} else {
					failed++
				}
				mu.Unlock()
			}
		})
	}
	got := func(n *int, want int) func() bool {
		return func() bool { mu.Lock(); defer mu.Unlock(); return *n >= want }
	}
	eventually(t, "traffic", func() bool { mu.Lock(); defer mu.Unlock(); return len(acked) > 100 })
	urlBefore, err := runningURL(s.opts.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	stopServer(s.embedded.current())
	eventually(t, "a commit that fails", got(&failed, 1))
	eventually(t, "commits after the restart", got(&recovered, 100))
	stop.Store(true)
	all.Wait()
	t.Logf("%d acknowledged, %d failed", len(acked), failed)
	have := stored(t, s)
	slices.Sort(have)
	for _, k := range acked {
		if _, ok := slices.BinarySearch(have, k); !ok {
			t.Fatalf("%s was acknowledged and is lost", k)
		}
	}
	if n := len(slices.Compact(slices.Clone(have))); n != len(have) {
		t.Errorf("%d receipts are stored twice", len(have)-n)
	}
	// Commands find the new address.
	urlAfter, err := runningURL(s.opts.DataDir)
	if err != nil || urlAfter == urlBefore {
		t.Errorf("address %q, was %q, %v", urlAfter, urlBefore, err)
	}
	command := openStore(t, on(s.opts.DataDir), listening, attached)
	wantEqual(t, "receipts the command sees", int(status(t, command).Queued), len(have))
}

// smallDisk mounts a file system of its own.
func smallDisk(t testing.TB, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("a small disk needs the right to mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// A disk that is really full freezes the stream: no answer, not ready, nothing false
// is acknowledged; with room again it is mended without a new process.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	mount := smallDisk(t, "48m")
	dir := filepath.Join(mount, "data")
	var looks atomic.Int64
	s := openStore(t, on(dir), func(o *Options) {
		o.guardEvery = 50 * time.Millisecond
		o.QueueMaxBytes, o.KeepMaxBytes, o.DeadMaxBytes = 30<<20, 1<<20, 1<<20
		o.volume = func(dir string) (volume, error) {
			looks.Add(1)
			return volumeOf(dir)
		}
	})
	mustCommit(t, s, receipts(0, 10)...)
	filler := filepath.Join(mount, "filler")
	fill(t, filler)
	eventually(t, "not ready", func() bool { return s.Ready() != nil })
	wantReady(t, s, false)
	if err := s.Healthy(); err != nil {
		t.Errorf("nothing has failed yet, but %v", err)
	}

	// What the watermark would have refused: it may come between two looks.
	r := receipt(10)
	r.Record = make([]byte, 128<<10)
	var err error
	var acked []string
	for i := 10; err == nil; i++ {
		r.Key = receipt(i).Key
		m := frameMsg(encodeFrame([]Receipt{r}), 1, "")
		m.Subject = s.names.receipts
		began := time.Now()
		if _, err = s.publish(t.Context(), m); err == nil {
			acked = append(acked, keyOf(r))
		}
		if took := time.Since(began); took > publishDeadline+time.Second {
			t.Errorf("a commit took %v", took)
		}
	}
	t.Logf("after %d commits on a full disk: %v", len(acked), err)
	eventually(t, "not healthy", func() bool { return s.Healthy() != nil })
	wantReady(t, s, false)
	enough := looks.Load() + 5*sickLooks
	eventually(t, "many looks", func() bool { return looks.Load() > enough }) // full, it is not started anew
	select {
	case err := <-s.Failed():
		t.Fatalf("gave up while the disk was full: %v", err)
	default:
	}

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	eventually(t, "ready with room again", func() bool { return s.Ready() == nil && s.Healthy() == nil })
	wantReady(t, s, true)
	have := stored(t, s)
	for _, k := range append(acked, keysOf(receipts(0, 10))...) {
		if !slices.Contains(have, k) {
			t.Errorf("%s was acknowledged and is lost", k)
		}
	}
}

// fill writes a file until the disk is full.
func fill(t testing.TB, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 4<<10)
	for err == nil {
		_, err = f.Write(block)
	}
	wantErr(t, err, unix.ENOSPC)
}
