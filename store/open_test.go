package store

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func TestFirstStartMakesTheDirectory(t *testing.T) {
	s := openStore(t)
	dir := s.opts.DataDir
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	for _, f := range []string{lockFile, markerFile, "jetstream"} {
		if !exists(filepath.Join(dir, f)) {
			t.Errorf("no %s", f)
		}
	}
	if exists(filepath.Join(dir, urlFile)) {
		t.Error("an address, though nothing listens")
	}
	for _, stream := range []jetstream.Stream{s.receipts, s.dead} {
		c := stream.CachedInfo().Config
		if c.MaxAge != 0 || c.MaxMsgs > 0 || c.MaxMsgsPerSubject > 0 || c.Discard != jetstream.DiscardNew || c.Storage != jetstream.FileStorage {
			t.Errorf("%s may delete silently: %+v", c.Name, c)
		}
	}
}

func TestSecondStartFindsTheReceipts(t *testing.T) {
	s := openStore(t)
	mustCommit(t, s, receipts(0, 1500)...)
	mustBury(t, s, letters(0, 5, "512")...)
	mustClose(t, s)
	again := openStore(t, on(s.opts.DataDir))
	if got := stored(t, again); !slices.Equal(got, keysOf(receipts(0, 1500))) {
		t.Errorf("%d receipts", len(got))
	}
	wantEqual(t, "letters", len(buried(t, again)), 5)
	mustCommit(t, again, receipt(1500))
}

func TestLooseDirectoryIsTightened(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	openStore(t, on(dir))
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// A volume's own folder is nobody's data.
func TestFreshVolumeIsTaken(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	openStore(t, on(dir))
}

func wantRefused(t *testing.T, dir string, words ...string) {
	t.Helper()
	_, err := tryOpen(t, on(dir))
	if err == nil {
		t.Fatal("opened")
	}
	for _, w := range append(words, dir) {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

func TestForeignDirectoryIsRefusedAndLeftAsItIs(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "holiday.jpg"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, dir, "not birdtap's", "holiday.jpg")
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestMissingParentIsRefused(t *testing.T) {
	wantRefused(t, filepath.Join(t.TempDir(), "no", "such"), "no such file")
}

func TestFileInPlaceOfTheDirectoryIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, path, "not a directory")
}

func TestReadOnlyDirectoryIsRefused(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root writes into read-only directories")
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, dir, "permission denied")
}

func TestLostQueueIsRefused(t *testing.T) {
	s := openStore(t)
	mustCommit(t, s, receipt(1))
	mustClose(t, s)
	dir := s.opts.DataDir
	if err := os.RemoveAll(filepath.Join(dir, "jetstream")); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, dir, "jetstream folder is gone", "backup")
}

// An empty folder in its place is no better.
func TestEmptyQueueFolderIsRefused(t *testing.T) {
	s := openStore(t)
	mustClose(t, s)
	dir := s.opts.DataDir
	path := filepath.Join(dir, "jetstream")
	if err := errors.Join(os.RemoveAll(path), os.Mkdir(path, 0o700)); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, dir, "BIRDTAP_RECEIPTS and BIRDTAP_DEAD and BIRDTAP_STATE", "gone")
}

func TestQueueWithoutItsMarkerIsRefused(t *testing.T) {
	s := openStore(t)
	mustClose(t, s)
	dir := s.opts.DataDir
	if err := os.Remove(filepath.Join(dir, markerFile)); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, dir, markerFile)
}

func TestStrangeMarkerIsRefused(t *testing.T) {
	for _, marker := range []string{"", "{", `{"format":2}`, "[]"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, markerFile), []byte(marker), 0o600); err != nil {
			t.Fatal(err)
		}
		wantRefused(t, dir, markerFile)
	}
}

func TestMissingStreamIsRefused(t *testing.T) {
	for _, stream := range []string{"BIRDTAP_RECEIPTS", "BIRDTAP_DEAD", "BIRDTAP_STATE"} {
		s := openStore(t)
		mustCommit(t, s, receipt(1))
		if err := s.js.DeleteStream(t.Context(), stream); err != nil {
			t.Fatal(err)
		}
		mustClose(t, s)
		wantRefused(t, s.opts.DataDir, stream+" is gone")
	}
}

// A first start that was killed anywhere has acknowledged nothing: the next goes on.
func TestInterruptedFirstStartGoesOn(t *testing.T) {
	for n := range 3 { // streams that had been made
		s := openStore(t)
		for _, stream := range []string{"BIRDTAP_STATE", "BIRDTAP_DEAD", "BIRDTAP_RECEIPTS"}[n:] {
			if err := s.js.DeleteStream(t.Context(), stream); err != nil {
				t.Fatal(err)
			}
		}
		mustClose(t, s)
		dir := s.opts.DataDir
		if err := writeMarker(dir, false); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, markerFile+newSuffix), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		mustCommit(t, openStore(t, on(dir)), receipt(1))
	}
	// Not even the marker was whole.
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, markerFile+newSuffix), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	openStore(t, on(dir))
}

// truncated is a directory whose log was put back to an older state, but not its
// checkpoint. change makes that checkpoint.
func truncated(t *testing.T, framesLeft int, change func(*Checkpoint)) string {
	t.Helper()
	s := openStore(t)
	dir := s.opts.DataDir
	frames(t, s, framesLeft, 1)
	mustBury(t, s, letters(0, 1, "512")...)
	mustClose(t, s)
	old := crash(t, dir)
	s = openStore(t, on(dir))
	frames(t, s, 10, 1)
	mustBury(t, s, letters(0, 1, "512")...)
	settleAll(t, s, 1, change)
	mustClose(t, s)
	for _, stream := range []string{"BIRDTAP_RECEIPTS", "BIRDTAP_DEAD"} {
		path := filepath.Join("jetstream", "$G", "streams", stream)
		if err := os.RemoveAll(filepath.Join(dir, path)); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(filepath.Join(dir, path), os.DirFS(filepath.Join(old, path))); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestTruncatedLogIsRefused(t *testing.T) {
	for name, change := range map[string]func(*Checkpoint){
		"behind the floor":         func(cp *Checkpoint) { cp.Floor = 8 },
		"behind a settled frame":   func(cp *Checkpoint) { cp.Settled.AddWhole(7, 1) },
		"behind a part of a frame": func(cp *Checkpoint) { cp.Settled.SetPartial(NewPartial(7, 3)) },
		"dead letters":             func(cp *Checkpoint) { cp.DeadSeq = 2 },
	} {
		t.Run(name, func(t *testing.T) {
			wantRefused(t, truncated(t, 3, change), "truncated or replaced", "backup")
		})
	}
	t.Run("not behind anything settled", func(t *testing.T) {
		dir := truncated(t, 3, func(cp *Checkpoint) { cp.Floor = 4; cp.DeadSeq = 1 })
		openStore(t, on(dir))
	})
}

// With SyncInterval a power cut takes the last second of the log: what comes then
// must not get sequences that count as settled.
func TestLostSecondOfSyncIntervalIsGoneBehind(t *testing.T) {
	interval := func(o *Options) { o.Sync = SyncInterval }
	t.Run("behind the floor", func(t *testing.T) {
		dir := truncated(t, 3, func(cp *Checkpoint) { cp.Floor = 8; cp.DeadSeq = 2; cp.Settled.AddWhole(12, 8) })
		s := openStore(t, on(dir), interval)
		mustCommit(t, s, receipt(99))
		if f := read(t, s, 1, 1)[0]; f.Seq != 8 || f.Receipts[0].Key != receipt(99).Key {
			t.Errorf("frame %d", f.Seq)
		}
		wantEqual(t, "queued", status(t, s).Queued, 1)
		cp, _, err := s.ReadCheckpoint(t.Context())
		if err != nil || cp.Floor != 8 || len(cp.Settled.Whole) != 0 || cp.DeadSeq != 1 {
			t.Errorf("got %+v, %v", cp, err)
		}
	})
	t.Run("behind a settled frame", func(t *testing.T) {
		dir := truncated(t, 3, func(cp *Checkpoint) { cp.Settled.AddWhole(2, 1); cp.Settled.AddWhole(6, 1) })
		s := openStore(t, on(dir), interval)
		frames(t, s, 4, 1) // 4 to 7
		wantEqual(t, "queued", status(t, s).Queued, 6)
		mustClose(t, s)
		openStore(t, on(dir)) // and with SyncAlways again
	})
	t.Run("the whole log", func(t *testing.T) {
		dir := truncated(t, 0, func(cp *Checkpoint) { cp.Floor = 8 })
		if _, err := tryOpen(t, on(dir), interval); err == nil {
			t.Error("opened: that is no lost second")
		}
	})
}

// Trimmed to the last frame, or with all letters gone, and then killed: the sequences
// go on where they were.
func TestEmptyStreamsKeepTheirPlaceOverACrash(t *testing.T) {
	s := openStore(t)
	frames(t, s, 10, 1)
	mustBury(t, s, letters(0, 5, "512")...)
	mustBury(t, s, letters(5, 5, "512")...)
	if n, err := s.Purge(t.Context(), all, 0); n != 10 || err != nil {
		t.Fatal(n, err)
	}
	settleAll(t, s, 11, func(cp *Checkpoint) { cp.DeadSeq = 2 })
	if err := s.receipts.Purge(t.Context(), jetstream.WithPurgeSequence(11)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s = openStore(t, on(crash(t, s.opts.DataDir)))
		for _, stream := range []struct {
			jetstream.Stream
			last uint64
		}{{s.receipts, 10}, {s.dead, 2}} {
			info, err := stream.Info(t.Context())
			if err != nil || info.State.LastSeq != stream.last || info.State.Msgs != 0 {
				t.Errorf("%s: %+v, %v", info.Config.Name, info.State, err)
			}
		}
	}
	mustCommit(t, s, receipt(1))
	wantEqual(t, "frame", read(t, s, 1, 1)[0].Seq, 11)
}

// What was acknowledged when the process was killed is there, whatever else.
func TestCrashLosesNothingAcknowledged(t *testing.T) {
	s := openStore(t)
	const callers = 4
	var acked [callers][]string
	stop := make(chan struct{})
	done := make(chan struct{}, callers)
	go func() { // traffic goes on while the directory is copied
		for caller := range callers {
			go func() {
				defer func() { done <- struct{}{} }()
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					r := receipt(caller*1_000_000 + i)
					if s.Commit(t.Context(), []Receipt{r}) == nil {
						acked[caller] = append(acked[caller], keyOf(r))
					}
				}
			}()
		}
	}()
	mustCommit(t, s, receipts(9_000_000, 1500)...)
	mustBury(t, s, letters(0, 5, "512")...)
	settleAll(t, s, 1, func(cp *Checkpoint) { cp.Term = 7 })
	close(stop)
	for range callers {
		<-done
	}
	killed := openStore(t, on(crash(t, s.opts.DataDir)))
	got := map[string]bool{}
	for _, k := range stored(t, killed) {
		got[k] = true
	}
	n := 0
	for _, want := range append(acked[:], keysOf(receipts(9_000_000, 1500))) {
		for _, k := range want {
			n++
			if !got[k] {
				t.Fatalf("%s was acknowledged and is lost", k)
			}
		}
	}
	if cp, _, err := killed.ReadCheckpoint(t.Context()); err != nil || cp.Term != 7 {
		t.Errorf("checkpoint %+v, %v", cp, err)
	}
	wantEqual(t, "letters", len(buried(t, killed)), 5)
	t.Logf("%d receipts acknowledged", n)
}

func TestTwoDaemonsOnOneDirectory(t *testing.T) {
	s := openStore(t)
	_, err := tryOpen(t, on(s.opts.DataDir), func(o *Options) { o.lockWait = time.Millisecond })
	wantErr(t, err, errLocked)
	mustCommit(t, s, receipt(1)) // undisturbed
	mustClose(t, s)
	openStore(t, on(s.opts.DataDir))
}

// A daemon that is started while a command has the directory open waits for it.
func TestDaemonWaitsForACommand(t *testing.T) {
	s := openStore(t)
	dir := s.opts.DataDir
	mustClose(t, s)
	command := openStore(t, on(dir), attached)
	opened := make(chan error, 1)
	go func() {
		daemon, err := tryOpen(t, on(dir), func(o *Options) { o.lockWait = time.Minute })
		if err == nil {
			err = daemon.Close()
		}
		opened <- err
	}()
	mustClose(t, command)
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

// A command makes no queue: one on a volume that is not mounted would report that
// nothing waits.
func TestCommandOnAnEmptyDirectoryIsRefused(t *testing.T) {
	dir := t.TempDir()
	if _, err := tryOpen(t, on(dir), attached); err == nil || !strings.Contains(err.Error(), "there is no queue") {
		t.Errorf("got %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left behind %v, %v", entries, err)
	}
}

// A command that may make the queue makes it as a daemon would, sizes that fit the volume
// included, and finds it the next time.
func TestCommandMayMakeTheQueue(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	may := func(o *Options) { o.Attach, o.Create = true, true }
	small := func(o *Options) {
		unset(o)
		o.volume = func(string) (volume, error) { return volume{free: 1 << 30, total: 1 << 30}, nil }
	}
	s := openStore(t, on(dir), may, small)
	mustCommit(t, s, receipts(0, 10)...)
	if size := s.receipts.CachedInfo().Config.MaxBytes; size > 1<<30 {
		t.Errorf("a queue of %d bytes on a volume of 1 GiB", size)
	}
	mustClose(t, s)
	s = openStore(t, on(dir), may)
	wantEqual(t, "queued", status(t, s).Queued, 10)
	mustClose(t, s)
	wantEqual(t, "queued", status(t, openStore(t, on(dir), attached)).Queued, 10)
}

// What a killed daemon has left in the checkpoint is not taken for a running relay.
func TestStatusOfADirectoryThatNobodyRunsOnNamesNoRelay(t *testing.T) {
	s := openStore(t)
	dir := s.opts.DataDir
	if _, err := s.WriteCheckpoint(t.Context(), Checkpoint{Floor: 1, Term: 1, Holder: "killed", Breaker: "open"}, 0); err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
	st := status(t, openStore(t, on(dir), attached))
	if st.Holder != "" || st.Breaker != "closed" || st.Term != 1 {
		t.Errorf("got holder %q, breaker %q, term %d", st.Holder, st.Breaker, st.Term)
	}
}

func attached(o *Options) { o.Attach = true }

func TestAttachToARunningDaemon(t *testing.T) {
	s := openStore(t, listening)
	dir := s.opts.DataDir
	path := filepath.Join(dir, urlFile)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	mustCommit(t, s, receipts(0, 10)...)
	command := openStore(t, on(dir), listening, attached)
	if command.embedded != nil {
		t.Error("a second server on the directory")
	}
	wantEqual(t, "queued", status(t, command).Queued, 10)
	mustCommit(t, command, receipt(10))
	if err := command.SetPaused(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if err := command.Ready(); err != nil {
		t.Error(err)
	}
	mustClose(t, command)
	if st := status(t, s); st.Queued != 11 || !st.Paused {
		t.Errorf("got %+v", st)
	}

	url, err := runningURL(dir)
	if err != nil || !strings.HasPrefix(url, "nats://") || !strings.Contains(url, "@127.0.0.1:") {
		t.Fatalf("address %q, %v", url, err)
	}
	host := url[strings.Index(url, "@")+1:]
	for _, wrong := range []string{"nats://" + host, "nats://wrong@" + host, "nats://" + s.embedded.token[:25] + "@" + host} {
		if nc, err := nats.Connect(wrong); !errors.Is(err, nats.ErrAuthorization) {
			nc.Close()
			t.Errorf("without the token: %v", err)
		}
	}
	mustClose(t, s)
	if exists(path) {
		t.Error("the address stays after the end")
	}
}

// A daemon that has the directory open and cannot be reached is named.
func TestAttachToADaemonThatDoesNotAnswer(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		s := openStore(t) // listens nowhere
		_, err := tryOpen(t, on(s.opts.DataDir), attached)
		if err == nil || !strings.Contains(err.Error(), s.opts.DataDir) || !strings.Contains(err.Error(), "does not answer") {
			t.Errorf("got %v", err)
		}
	})
}

// A command resizes nothing, whatever its own settings are.
func TestAttachedCommandLeavesTheSizes(t *testing.T) {
	s := openStore(t, listening)
	before := s.receipts.CachedInfo().Config.MaxBytes
	openStore(t, on(s.opts.DataDir), listening, attached, queueOf(2<<20))
	info, err := s.receipts.Info(t.Context())
	if err != nil || info.Config.MaxBytes != before {
		t.Errorf("%d bytes, were %d, %v", info.Config.MaxBytes, before, err)
	}
}

func TestAttachWhenNobodyRuns(t *testing.T) {
	s := openStore(t, listening)
	mustCommit(t, s, receipts(0, 10)...)
	mustClose(t, s)
	dir := s.opts.DataDir
	// One that was killed leaves its address.
	if err := os.WriteFile(filepath.Join(dir, urlFile), []byte("nats://token@127.0.0.1:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	command := openStore(t, on(dir), listening, attached, queueOf(2<<20))
	if command.embedded == nil {
		t.Fatal("whom did it reach?")
	}
	wantEqual(t, "queued", status(t, command).Queued, 10)
	wantEqual(t, "size", command.receipts.CachedInfo().Config.MaxBytes, 64<<20+16<<20)
}

// logged opens a store and returns what it logged.
func logged(t *testing.T, options ...func(*Options)) (*Store, []observer.LoggedEntry, error) {
	t.Helper()
	core, logs := observer.New(zap.InfoLevel)
	s, err := tryOpen(t, append(options, logTo(zap.New(core)))...)
	return s, logs.All(), err
}

// freeBytes makes the volume look as if it had so much free, of ten times as much.
func freeBytes(free int64) func(*Options) {
	return func(o *Options) {
		o.volume = func(string) (volume, error) { return volume{free: free, total: 10 * free}, nil }
	}
}

func unset(o *Options) { o.QueueMaxBytes, o.DeadMaxBytes, o.KeepMaxBytes = 0, 0, 0 }

func sizesOf(s *Store) [3]int64 {
	return [3]int64{s.opts.QueueMaxBytes, s.opts.DeadMaxBytes, s.opts.KeepMaxBytes}
}

func TestDefaultSizes(t *testing.T) {
	s, logs, err := logged(t, unset, freeBytes(1<<40))
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "sizes", sizesOf(s), [3]int64{8 << 30, 1 << 30, 1 << 30})
	for _, l := range logs {
		if strings.Contains(l.Message, "small") {
			t.Errorf("logged %q", l.Message)
		}
	}
	wantEqual(t, "size of the queue", s.receipts.CachedInfo().Config.MaxBytes, 9<<30)
}

func TestDefaultSizesFitASmallVolume(t *testing.T) {
	const free = 5 << 30
	s, logs, err := logged(t, unset, freeBytes(free))
	if err != nil {
		t.Fatal(err)
	}
	sizes := sizesOf(s)
	sum := sizes[0] + sizes[1] + sizes[2]
	if share := float64(sum) / free; share < 0.59 || share > 0.61 {
		t.Errorf("takes %.0f %% of the free space: %v", 100*share, sizes)
	}
	said := map[string]int64{}
	for _, l := range logs {
		if m := l.ContextMap(); strings.Contains(l.Message, "small") {
			said[m["variable"].(string)] = m["bytes"].(int64)
		}
	}
	for i, v := range []string{"BIRDTAP_QUEUE_MAX_BYTES", "BIRDTAP_DEAD_MAX_BYTES", "BIRDTAP_KEEP_MAX_BYTES"} {
		wantEqual(t, "said of "+v, said[v], sizes[i])
	}
}

// One size is set: the others share what it leaves.
func TestUnsetSizesTakeOfWhatTheSetOnesLeave(t *testing.T) {
	s, _, err := logged(t, unset, queueOf(8<<30), freeBytes(10<<30))
	if err != nil {
		t.Fatal(err)
	}
	sizes := sizesOf(s)
	if sizes[0] != 8<<30 || sizes[1] < 500<<20 || sizes[2] < 500<<20 || sizes[1]+sizes[2] > 2<<30 {
		t.Errorf("got %v", sizes)
	}
}

func TestSizeThatDoesNotFitIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change   func(*Options)
		variable string
		need     int64
		free     int64
	}{
		"queue":          {queueOf(2 << 30), "BIRDTAP_QUEUE_MAX_BYTES", 2 << 30, 1 << 30},
		"dead":           {func(o *Options) { o.DeadMaxBytes = 2 << 30 }, "BIRDTAP_DEAD_MAX_BYTES", 2 << 30, 1 << 30},
		"keep and queue": {func(o *Options) { o.QueueMaxBytes, o.KeepMaxBytes = 900<<20, 200<<20 }, "BIRDTAP_KEEP_MAX_BYTES", 200 << 20, 124 << 20},
	} {
		dir := filepath.Join(t.TempDir(), "data")
		_, _, err := logged(t, unset, on(dir), c.change, freeBytes(1<<30))
		var size *SizeError
		if !errors.As(err, &size) || size.Variable != c.variable || size.Need != c.need || size.Free/(1<<20) != c.free/(1<<20) {
			t.Errorf("%s: got %v", name, err)
			continue
		}
		if text := err.Error(); !strings.Contains(text, c.variable) || !strings.Contains(text, formatBytes(c.need)) {
			t.Errorf("%s: error %q", name, text)
		}
		// Made smaller, it starts: nothing of the refused start stands in the way.
		openStore(t, on(dir))
	}
}

// A volume that has become full is no fault of the sizes: the queue starts, and drains.
func TestFullVolumeDoesNotKeepAQueueFromStarting(t *testing.T) {
	s := openStore(t)
	mustCommit(t, s, receipt(1))
	mustClose(t, s)
	full, _, err := logged(t, on(s.opts.DataDir), freeBytes(10))
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "receipts", len(stored(t, full)), 1)
	mustClose(t, full)
	// But it is a fault of larger ones.
	var size *SizeError
	if _, _, err := logged(t, on(s.opts.DataDir), freeBytes(10), queueOf(128<<20)); !errors.As(err, &size) {
		t.Errorf("got %v", err)
	}
}

// What the queue holds already counts as free, else it could not start again.
func TestSizesCountWhatIsThere(t *testing.T) {
	s := openStore(t, queueOf(8<<20))
	big := receipt(0)
	big.Record = make([]byte, 512<<10)
	for range 8 {
		mustCommit(t, s, big)
	}
	mustClose(t, s)
	openStore(t, on(s.opts.DataDir), func(o *Options) { o.QueueMaxBytes, o.DeadMaxBytes, o.KeepMaxBytes = 3<<20, 1<<20, 1<<20 }, freeBytes(2<<20))
}

// A size below what is there deletes nothing: the queue is full until it is drained.
func TestShrinkingDeletesNothing(t *testing.T) {
	s := openStore(t, queueOf(8<<20))
	for i := range 20 {
		big := receipt(i)
		big.Record = make([]byte, 256<<10)
		mustCommit(t, s, big)
	}
	mustClose(t, s)
	small := openStore(t, on(s.opts.DataDir), func(o *Options) { o.QueueMaxBytes, o.KeepMaxBytes = 1<<20, 1<<20 })
	wantEqual(t, "size", small.receipts.CachedInfo().Config.MaxBytes, 2<<20)
	wantEqual(t, "receipts", len(stored(t, small)), 20)
	wantErr(t, small.Commit(t.Context(), receipts(0, 1)), ErrFull)
	if err := small.Ready(); !errors.Is(err, ErrFull) {
		t.Errorf("ready says %v", err)
	}
	mustClose(t, small)
	mustCommit(t, openStore(t, on(s.opts.DataDir), queueOf(8<<20)), receipt(20))
}

// A stream that somebody made so that it loses receipts silently is not adopted.
func TestLossyStreamIsRefused(t *testing.T) {
	for name, change := range map[string]func(*jetstream.StreamConfig){
		"max_age":              func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour },
		"max_msgs":             func(c *jetstream.StreamConfig) { c.MaxMsgs = 1000 },
		"max_msgs_per_subject": func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 1000 },
		"discard":              func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld },
	} {
		s := openStore(t)
		config := s.receipts.CachedInfo().Config
		change(&config)
		if _, err := s.js.UpdateStream(t.Context(), config); err != nil {
			t.Fatal(err)
		}
		mustClose(t, s)
		if _, err := tryOpen(t, on(s.opts.DataDir)); err == nil || !strings.Contains(err.Error(), "differing: "+name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestCloseTwice(t *testing.T) {
	s := openStore(t)
	mustClose(t, s)
	mustClose(t, s)
	wantErr(t, s.Commit(t.Context(), receipts(0, 1)), ErrClosed)
}

// Streams of two installations live on one server; one of them does not see the other.
func TestPrefixKeepsInstallationsApart(t *testing.T) {
	ns := startServer(t, serverOptions(t))
	open := func(prefix string) *Store {
		return openStore(t, external(ns), func(o *Options) { o.Prefix = prefix })
	}
	a, b := open("A"), open("B")
	mustCommit(t, a, receipts(0, 10)...)
	wantEqual(t, "of a", status(t, a).Queued, 10)
	wantEqual(t, "of b", status(t, b).Queued, 0)
}

func serverOptions(t testing.TB) *server.Options {
	return &server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(),
		SyncAlways: true, NoSigs: true, NoLog: true, NoSystemAccount: true,
	}
}

func startServer(t testing.TB, o *server.Options) *server.Server {
	t.Helper()
	ns, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	ns.Start()
	if !ns.ReadyForConnections(10 * time.Second) {
		t.Fatal("nats-server does not start")
	}
	t.Cleanup(func() { stopServer(ns) })
	return ns
}

func stopServer(ns *server.Server) {
	ns.Shutdown()
	ns.WaitForShutdown()
}

func external(ns *server.Server) func(*Options) {
	return func(o *Options) { o.NATSURL, o.Replicas = ns.ClientURL(), 1 }
}

func TestMarkerIsReadable(t *testing.T) {
	s := openStore(t)
	data, err := os.ReadFile(filepath.Join(s.opts.DataDir, markerFile))
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(data, &m); err != nil || m["birdtap"] != "data directory" || m["queue"] != true {
		t.Errorf("got %s, %v", data, err)
	}
}
