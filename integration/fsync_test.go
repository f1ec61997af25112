//go:build integration

package integration

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/birdtap/birdtap/integration/history"
	"github.com/birdtap/birdtap/store/failpoint"
)

// The disk fails an fsync of the queue once. What that commit held was not
// acknowledged, the embedded server starts anew, and the same daemon goes on.
func TestFailedFsyncIsMendedOnce(t *testing.T) {
	t.Parallel()
	needStrace(t)
	l := newChecked(t, "eio-once", filepath.Join(t.TempDir(), "data"), nil)
	l.start()
	stop := runClient(t, l.client)
	moreOK(t, l.client.Log(), 200, readyWithin)

	// Only of the frames' file: its stream freezes with the first failure, so there is one.
	s := l.strace("-P", l.newestBlock(), "-e", "inject=fsync,fdatasync:error=EIO")
	eventually(t, readyWithin, "an fsync has failed", func() bool { return s.injected() > 0 })
	s.end()
	eventually(t, unreadyWithin, "not ready", func() bool { return !l.isReady() })
	if starts := l.healthy(mendedWithin); starts != 0 {
		t.Errorf("the daemon was started %d times, want none", starts)
	}
	moreOK(t, l.client.Log(), 200, readyWithin)
	stop()
	t.Logf("%d fsyncs failed", s.injected())
	l.finish(crashDuplicates(1), "fsync fails once")
	if n := l.said(saysRestart); n != 1 {
		t.Errorf("the embedded server was started anew %d times, want once", n)
	}
}

// The disk fails every fsync. Nothing is acknowledged; the daemon starts its embedded
// server anew once, and when that does not help it ends with code 1. Its supervisor
// finds the disk mended.
func TestFsyncThatGoesOnFailingEndsTheDaemon(t *testing.T) {
	t.Parallel()
	needStrace(t)
	l := newChecked(t, "eio", filepath.Join(t.TempDir(), "data"), nil)
	l.start()
	stop := runClient(t, l.client)
	moreOK(t, l.client.Log(), 200, readyWithin)

	s := l.strace("-e", "inject=fsync,fdatasync:error=EIO")
	eventually(t, readyWithin, "an fsync has failed", func() bool { return s.injected() > 0 })
	eventually(t, unreadyWithin, "not ready", func() bool { return !l.isReady() })
	before := l.client.Log().Counts()
	l.refused()
	select {
	case <-l.daemon.done:
	case <-time.After(2 * mendedWithin):
		t.Fatal("the daemon goes on, though every fsync fails")
	}
	if after := l.client.Log().Counts(); after.Taken != before.Taken {
		t.Errorf("%d receipts were answered 2xx while every fsync failed", after.Taken-before.Taken)
	}
	s.end()
	if starts := l.healthy(mendedWithin); starts != 1 {
		t.Errorf("the daemon was started %d times, want once", starts)
	}
	moreOK(t, l.client.Log(), 200, readyWithin)
	stop()
	t.Logf("%d fsyncs failed", s.injected())
	l.finish(crashDuplicates(2), "fsync fails for ever")
	if l.said(saysRestart) != 1 || l.said(saysGaveUp) != 1 {
		t.Errorf("started anew %d times and gave up %d times, want once each", l.said(saysRestart), l.said(saysGaveUp))
	}
}

// The daemon is killed while it starts its embedded server anew, after a failed fsync.
func TestKilledBetweenTwoServersLosesNothing(t *testing.T) {
	t.Parallel()
	needStrace(t)
	l := newAimed(t, "eio-kill", nil)
	l.start() // makes the streams
	l.daemon.kill()
	l.startAt(failpoint.Restarting, "kill")
	l.daemon.ready(l.window, readyWithin)
	stop := runClient(t, l.client)
	moreOK(t, l.client.Log(), 200, readyWithin)
	l.strace("-P", l.newestBlock(), "-e", "inject=fsync,fdatasync:error=EIO")
	reached(t, l.daemon, failpoint.Restarting)
	l.start()
	moreOK(t, l.client.Log(), 200, readyWithin)
	stop()
	l.finish(crashDuplicates(2), "fsync fails, killed in the restart")
}

// An fsync takes 50 ms, then 500 ms, then 5 s. Frames grow, and where even that is
// not enough the door says so in time; nothing is lost and nothing is started anew.
func TestSlowFsyncIsAnsweredInTime(t *testing.T) {
	t.Parallel()
	needStrace(t)
	l := newChecked(t, "slow-fsync", filepath.Join(t.TempDir(), "data"), func(o *history.Options) {
		o.Clients, o.GiveUp = 48, 1 // many wait at once; one attempt, so that the journal tells how long its answer took
	})
	l.start()
	stop := runClient(t, l.client)
	moreOK(t, l.client.Log(), 200, readyWithin)
	for _, delay := range []time.Duration{50 * time.Millisecond, 500 * time.Millisecond, 5 * time.Second} {
		frames, receipts := l.commits()
		s := l.strace("-e", "inject=fsync,fdatasync:delay_enter="+strconv.FormatInt(delay.Microseconds(), 10))
		if delay < time.Second {
			moreOK(t, l.client.Log(), 400, readyWithin)
		} else {
			eventually(t, readyWithin, "three slow fsyncs", func() bool { return s.injected() >= 3 })
		}
		s.end()
		f, r := l.commits()
		t.Logf("fsync of %v: %.0f receipts in %.0f frames", delay, r-receipts, f-frames)
		if delay == 500*time.Millisecond && (r-receipts)/(f-frames) < 10 {
			t.Errorf("frames do not grow on a slow disk: %.0f receipts in %.0f frames", r-receipts, f-frames)
		}
	}
	if starts := l.healthy(mendedWithin); starts != 0 {
		t.Errorf("the daemon was started %d times", starts)
	}
	moreOK(t, l.client.Log(), 200, readyWithin)
	stop()
	l.finish(crashDuplicates(1), "slow fsync")
	if n := l.said(saysRestart); n != 0 {
		t.Errorf("the embedded server was started anew %d times on a disk that is only slow", n)
	}
	l.answeredInTime()
}

func needStrace(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("strace"); err != nil {
		unchecked(t, "strace, of the Debian package strace, makes fsync fail; it is missing")
	}
}

// strace is a tracer attached to the daemon, which makes its calls fail or wait.
type strace struct {
	t   *testing.T
	p   *process
	log string
}

// strace attaches a tracer, and returns when it has.
func (l *checked) strace(args ...string) *strace {
	l.t.Helper()
	dir := l.t.TempDir()
	s := &strace{t: l.t, log: filepath.Join(dir, "trace")}
	words := filepath.Join(dir, "words")
	args = append([]string{"-f", "-p", strconv.Itoa(l.daemon.cmd.Process.Pid), "-o", s.log, "-e", "trace=fsync,fdatasync"}, args...)
	s.p = start(l.t, "strace", words, exec.Command("strace", args...))
	eventually(l.t, readyWithin, "strace is attached", func() bool {
		text, err := os.ReadFile(words)
		select {
		case <-s.p.done:
			unchecked(l.t, "strace does not attach: "+string(text))
		default:
		}
		return err == nil && strings.Contains(string(text), "attached")
	})
	return s
}

// injected is how many calls were tampered with.
func (s *strace) injected() int {
	s.t.Helper()
	text, err := os.ReadFile(s.log)
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.Count(string(text), "(INJECTED)") + strings.Count(string(text), "(DELAYED)")
}

// end lets the daemon go on untouched.
func (s *strace) end() {
	s.t.Helper()
	s.p.signal(syscall.SIGTERM)
	select {
	case <-s.p.done:
	case <-time.After(readyWithin):
		s.t.Fatal("strace does not let go")
	}
}

// newestBlock is the file that frames are written to.
func (l *checked) newestBlock() string {
	l.t.Helper()
	blocks := l.blocks("RECEIPTS")
	return blocks[len(blocks)-1]
}

// commits are the frames and the receipts that the daemon has committed, or tried to.
func (l *checked) commits() (frames, receipts float64) {
	l.t.Helper()
	for line := range strings.Lines(get("http://" + l.window + "/metrics")) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, _ := strconv.ParseFloat(value, 64)
		switch name {
		case "birdtap_commit_receipts_count":
			frames = n
		case "birdtap_commit_receipts_sum":
			receipts = n
		}
	}
	if frames == 0 {
		l.t.Fatal("the metrics show no commits")
	}
	return frames, receipts
}

// answeredInTime checks, in the client's log, how long every answer took. It tells for
// clients that make one attempt for a call.
func (l *checked) answeredInTime() {
	l.t.Helper()
	f, err := os.Open(l.journal)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	var longest time.Duration
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var e history.Entry
		if err := json.Unmarshal(lines.Bytes(), &e, json.WithUnmarshalers(json.UnmarshalFunc(
			func([]byte, *history.Fields) error { return nil }))); err != nil {
			l.t.Fatal(err)
		}
		took := e.End.Sub(e.Start)
		longest = max(longest, took)
		if took > answerWithin || e.Attempts != 1 {
			l.t.Errorf("%s: %d attempts took %v: %s", e.ID, e.Attempts, took, e.Why)
		}
	}
	if err := lines.Err(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Logf("the longest answer took %.2f s", longest.Seconds())
}
