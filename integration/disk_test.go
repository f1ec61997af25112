//go:build integration

package integration

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
	"github.com/birdtap/birdtap/integration/history"
)

// checked is birdtap on a lone machine under the history checker: its client in front,
// its CleverTap behind, and the daemon in between, whatever happens to it.
type checked struct {
	t        *testing.T
	run      string
	seed     uint64
	fake     *clevertaptest.Server
	received *history.Received
	client   *history.Client
	journal  string // of the client
	at       *birdtap
	door     string
	window   string
	daemon   *process
	log      string // of the daemon
}

// newChecked prepares a run on a data directory. change may alter what the client sends.
func newChecked(t *testing.T, run, dataDir string, change func(*history.Options)) *checked {
	t.Helper()
	l := &checked{t: t, run: run, seed: seedOf(t), received: history.NewReceived(run)}
	fake, err := clevertaptest.Start("127.0.0.1:0", clevertaptest.Options{AccountID: accountID, Passcode: passcode})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	fake.KeepRecords(false)
	fake.OnRecord(l.received.Record)
	fake.Judge(l.received.Judge)
	fake.Latency(20 * time.Millisecond)
	l.fake = fake
	l.door, l.window = freeAddr(t), freeAddr(t)
	l.at = newBirdtap(t, map[string]string{
		"HTTP_ADDR": l.door, "OPS_ADDR": l.window, "DATA_DIR": dataDir,
		"QUEUE_MAX_BYTES": "64MiB", "DEAD_MAX_BYTES": "8MiB", "KEEP_MAX_BYTES": "8MiB",
		"CLEVERTAP_URL":        fake.URL(),
		"CLEVERTAP_ACCOUNT_ID": accountID, "CLEVERTAP_PASSCODE": passcode,
		"BATCH_MAX_WAIT":    "20ms",
		"CLEVERTAP_TIMEOUT": "1s",
	})
	lines := journal(t)
	o := history.Options{
		Run: run, Seed: l.seed, Doors: []string{"http://" + l.door + "/1/upload"},
		AccountID: accountID, Passcode: passcode,
		Clients: 16, UsersPerClient: 40, Rate: 500,
		Refuse: 0.01, Again: 0.01, AtDoor: 0.005, Several: 0.03, Broken: 0.005, GiveUp: 0.1,
		Journal: lines,
	}
	if change != nil {
		change(&o)
	}
	l.client, l.journal = history.NewClient(o), lines.Name()
	l.log = filepath.Join(t.ArtifactDir(), "serve.log")
	return l
}

// start starts the daemon and waits until it takes receipts in.
func (l *checked) start() {
	l.t.Helper()
	l.daemon = l.at.daemon("serve", "serve")
	l.daemon.ready(l.window, readyWithin)
}

// readyWithin is how long a start may take on a busy machine.
const readyWithin = 30 * time.Second

// isReady asks the daemon whether it would store a receipt.
func (l *checked) isReady() bool { return get("http://"+l.window+"/readyz") != "" }

// healthy waits until the daemon takes receipts in again. It is the supervisor, too:
// it starts a daemon that has given up with code 1, and returns how often.
func (l *checked) healthy(within time.Duration) (starts int) {
	l.t.Helper()
	eventually(l.t, within, "the daemon is ready again", func() bool {
		select {
		case <-l.daemon.done:
			if code := l.daemon.cmd.ProcessState.ExitCode(); code != 1 {
				l.t.Fatalf("the daemon ended with %v, want code 1", l.daemon.cmd.ProcessState)
			}
			l.daemon = l.at.daemon("serve", "serve")
			starts++
			return false
		default:
		}
		return l.isReady() && get("http://"+l.window+"/healthz") != ""
	})
	return starts
}

// finish drains the queue, stops the daemon, and checks the account and the history.
func (l *checked) finish(duplicates int, faults ...string) {
	l.t.Helper()
	letters := l.rest()
	conclude(l.t, history.Check(history.Evidence{
		Log: l.client.Log(), Received: l.received, Letters: letters, MaxInFlight: l.fake.Counts().MaxInFlight,
		Seed: l.seed, Commit: commitUnderway(), Faults: faults,
	}), history.Limits{Duplicates: duplicates, InFlight: maxInFlight, Records: maxRecords})
}

// rest brings the daemon to rest, checks the account and returns the dead letters.
func (l *checked) rest() []history.Letter {
	l.t.Helper()
	running := l.at.drained(time.Minute)
	if code := l.daemon.terminate(30 * time.Second); code != 0 {
		l.t.Errorf("SIGTERM ended the daemon with code %d, want 0", code)
	}
	stopped := l.at.drained(time.Minute)
	if running.Accepted != stopped.Accepted || running.Delivered != stopped.Delivered {
		l.t.Errorf("the account changed over a stop at rest: %+v, then %+v", running, stopped)
	}
	letters := l.at.letters()
	stopped.addsUp(l.t, l.client.Log().Counts(), l.received.Taken(), letters)
	return letters
}

// crashDuplicates is what a number of crashes may repeat.
func crashDuplicates(crashes int) int { return crashes * maxInFlight * maxRecords }

// said is how often the daemon's log has a text.
func (l *checked) said(text string) int {
	l.t.Helper()
	log, err := os.ReadFile(l.log)
	if err != nil {
		l.t.Fatal(err)
	}
	return strings.Count(string(log), text)
}

// refused posts one receipt that is no part of the run's history, and wants a 503 with
// Retry-After within the promised time.
func (l *checked) refused() {
	l.t.Helper()
	req, err := http.NewRequestWithContext(l.t.Context(), http.MethodPost, "http://"+l.door+"/1/upload",
		strings.NewReader(`{"identity":"u","evtName":"E","evtData":{"status":"SENT","target_id":1}}`))
	if err != nil {
		l.t.Fatal(err)
	}
	req.Header.Set("X-CleverTap-Account-Id", accountID)
	req.Header.Set("X-CleverTap-Passcode", passcode)
	began := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		l.t.Fatalf("no answer at the door: %v", err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	if took := time.Since(began); took > answerWithin {
		l.t.Errorf("the door answered after %v", took)
	}
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		l.t.Errorf("the door answered %d, Retry-After %q, want 503 with one", resp.StatusCode, resp.Header.Get("Retry-After"))
	}
}

const (
	answerWithin  = 4 * time.Second  // of the last byte of a body, under any fault
	unreadyWithin = 10 * time.Second // of the instant that a receipt can no longer be stored
	mendedWithin  = 30 * time.Second // of the instant that the disk is well again
)

// unchecked ends a test that this machine cannot run. In CI it must not pass unseen.
func unchecked(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	fmt.Printf("NOT CHECKED: %s: %s\n", t.Name(), why)
	t.Skip(why)
}

// mount mounts a file system until the test ends, also after a failure.
func mount(t *testing.T, args ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if out, err := exec.Command("mount", append(args, dir)...).CombinedOutput(); err != nil {
		unchecked(t, fmt.Sprintf("a disk of the test's own needs the right to mount: %v: %s", err, out))
	}
	t.Cleanup(func() {
		err := unix.Unmount(dir, 0)
		if errors.Is(err, unix.EINVAL) {
			return // the test itself has unmounted it
		}
		if err != nil {
			t.Errorf("unmount %s: %v", dir, err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return dir
}

func tmpfs(t *testing.T, size string) string {
	t.Helper()
	return mount(t, "-t", "tmpfs", "-o", "size="+size, "birdtap-test")
}

// image is an ext4 file system in a file, mounted by way of a loop device.
type image struct {
	t    *testing.T
	file string
	dir  string
}

// imageOptions keep the journal from committing by itself: what is on the device was
// synced, or is not there.
const imageOptions = "loop,commit=300"

func newImage(t *testing.T, bytes int64) *image {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(file)
	if err == nil {
		err = errors.Join(f.Truncate(bytes), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	format := exec.Command("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", file)
	if out, err := format.CombinedOutput(); err != nil {
		unchecked(t, fmt.Sprintf("mkfs.ext4 (of e2fsprogs): %v: %s", err, out))
	}
	return mountImage(t, file)
}

func mountImage(t *testing.T, file string) *image {
	t.Helper()
	return &image{t: t, file: file, dir: mount(t, "-o", imageOptions, file)}
}

// The guard's line when it starts the embedded server anew, and that of its end.
const (
	saysRestart = "starting the embedded queue anew"
	saysGaveUp  = "the embedded queue is lost to this process"
)

// The free space falls below the watermark, and not to nothing: the door refuses before
// the disk is full, the queue drains, and nothing has to be started anew.
func TestNearlyFullDiskIsRefusedBeforeItIsFull(t *testing.T) {
	t.Parallel()
	disk := tmpfs(t, "256m")
	l := newChecked(t, "watermark", filepath.Join(disk, "data"), nil)
	l.start()
	stop := runClient(t, l.client)
	moreOK(t, l.client.Log(), 200, readyWithin)

	filler := filepath.Join(disk, "filler")
	fill(t, filler, freeBytes(t, disk)-10<<20) // of 256 MiB 8 % are 20
	eventually(t, unreadyWithin, "not ready", func() bool { return !l.isReady() })
	l.refused()
	if get("http://"+l.window+"/healthz") == "" {
		t.Error("not healthy, though nothing has failed")
	}
	l.at.drained(readyWithin) // what is there goes out meanwhile

	remove(t, filler)
	if starts := l.healthy(mendedWithin); starts != 0 {
		t.Errorf("the daemon was started %d times", starts)
	}
	moreOK(t, l.client.Log(), 200, readyWithin)
	stop()
	l.finish(0, "disk filled to 4 % free")
	if n := l.said(saysRestart); n != 0 {
		t.Errorf("the embedded server was started anew %d times, though the disk was never full", n)
	}
}

// The disk fills in one leap, between two looks of the guard: writes fail half way and
// the stream freezes. Nothing false is acknowledged, and with room again the daemon
// mends itself, or ends so that its supervisor may.
func TestFullDiskLosesNothing(t *testing.T) {
	t.Parallel()
	for name, disk := range map[string]func(*testing.T) string{
		"tmpfs":  func(t *testing.T) string { return tmpfs(t, "96m") },
		"ext4":   func(t *testing.T) string { return newImage(t, 96<<20).dir },
		"killed": func(t *testing.T) string { return newImage(t, 96<<20).dir },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kill := name == "killed" // and started again on the full disk
			dir := disk(t)
			l := newChecked(t, "full-"+name, filepath.Join(dir, "data"), func(o *history.Options) {
				o.GiveUp = 1 // one attempt, so that the journal tells how long its answer took
			})
			l.at = l.at.with(map[string]string{"QUEUE_MAX_BYTES": "16MiB", "DEAD_MAX_BYTES": "4MiB", "KEEP_MAX_BYTES": "1MiB"})
			l.start()
			stop := runClient(t, l.client)
			moreOK(t, l.client.Log(), 200, readyWithin)

			filler := filepath.Join(dir, "filler")
			fill(t, filler, 1<<40)
			eventually(t, unreadyWithin, "not ready", func() bool { return !l.isReady() })
			l.refused()
			// Until a write has really failed: the watermark alone may have been faster.
			eventually(t, mendedWithin, "not healthy", func() bool { return get("http://"+l.window+"/healthz") == "" })
			l.refused()
			if kill {
				l.restartOnFullDisk()
			}

			remove(t, filler)
			starts := l.healthy(mendedWithin)
			moreOK(t, l.client.Log(), 200, readyWithin)
			stop()
			t.Logf("the embedded server was started anew %d times, the daemon %d times", l.said(saysRestart), starts)
			l.finish(crashDuplicates(starts+1), "disk full")
			l.answeredInTime()
		})
	}
}

// restartOnFullDisk kills the daemon and waits until the next one has either opened the
// queue all the same, and refuses, or has ended with code 1.
func (l *checked) restartOnFullDisk() {
	l.t.Helper()
	l.daemon.kill()
	opened := l.said(`"queue open"`)
	l.daemon = l.at.daemon("serve", "serve")
	eventually(l.t, readyWithin, "the daemon has seen the full disk", func() bool {
		select {
		case <-l.daemon.done:
			return true // healthy looks at its code
		default:
			return l.said(`"queue open"`) > opened
		}
	})
	if l.isReady() {
		l.t.Error("ready on a full disk")
	}
}

// freeBytes is what a file system has left.
func freeBytes(t *testing.T, dir string) int64 {
	t.Helper()
	var v unix.Statfs_t
	if err := unix.Statfs(dir, &v); err != nil {
		t.Fatal(err)
	}
	return int64(v.Bavail) * v.Bsize
}

// fill writes a file of so many bytes, or until the disk is full.
func fill(t *testing.T, path string, bytes int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for size := len(block); bytes > 0 && size > 0; bytes -= int64(size) {
		if _, err := f.Write(block[:size]); err != nil {
			size /= 2 // to the last byte
		}
	}
	_ = f.Sync() // a file system may not know before that it is full
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}
