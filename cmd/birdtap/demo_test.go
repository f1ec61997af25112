package main

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
)

// buildProgram is the program as users run it: the demo starts itself as a daemon.
func buildProgram(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("a program of its own, which the race detector does not look into: make test and make demo run it")
	}
	binary := filepath.Join(t.TempDir(), "birdtap")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return binary
}

// demoProcess is `birdtap demo` with a temporary directory of its own, and with a
// variable in its environment that its daemon would choke on.
func demoProcess(ctx context.Context, t *testing.T, binary string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(ctx, binary, append([]string{"demo"}, args...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir(), "BIRDTAP_DATA_DIR=/nowhere", "BIRDTAP_CLEVERTAP_MAX_INFLIGHT=99")
	return cmd
}

// leavesNothing checks that the demo's temporary directory is empty again.
func leavesNothing(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	dir := ""
	for _, variable := range cmd.Env { // the last one counts
		if path, ok := strings.CutPrefix(variable, "TMPDIR="); ok {
			dir = path
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left in the temporary directory: %v, %v", left, err)
	}
}

func TestDemoAddsUp(t *testing.T) {
	t.Parallel()
	binary := buildProgram(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := demoProcess(ctx, t, binary)
	var words bytes.Buffer
	cmd.Stderr = &words
	out, err := cmd.Output()
	t.Logf("it printed:\n%s%s", out, words.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	leavesNothing(t, cmd)
	if bytes.ContainsAny(out, "\r\x1b") {
		t.Error("control characters, although nobody sits at a terminal")
	}
	for line := range strings.Lines(string(out)) {
		if len(line) > 100 {
			t.Errorf("a line of %d characters: %s", len(line), line)
		}
	}
	sent, answered := accountRow(t, out, "sent"), accountRow(t, out, "answered 2xx")
	if sent == 0 || answered == 0 || answered > sent {
		t.Errorf("sent %d, answered %d", sent, answered)
	}
	if seen := accountRow(t, out, "seen at CleverTap"); seen < answered {
		t.Errorf("%d seen at CleverTap of %d answered", seen, answered)
	}
	if n := accountRow(t, out, "lost"); n != 0 {
		t.Errorf("%d lost", n)
	}
	if n := accountRow(t, out, "dead"); n != 0 {
		t.Errorf("%d dead after the replay", n)
	}
}

// accountRow finds a figure of the account.
func accountRow(t *testing.T, out []byte, what string) int {
	t.Helper()
	m := regexp.MustCompile(`(?m)^ +([0-9,]+)  ` + what + `( |$)`).FindSubmatch(out)
	if m == nil {
		t.Fatalf("no line %q in the account", what)
	}
	n, err := strconv.Atoi(strings.ReplaceAll(string(m[1]), ",", ""))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestDemoCleansUpOnCtrlC(t *testing.T) {
	t.Parallel()
	binary := buildProgram(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := demoProcess(ctx, t, binary)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	doors := ""
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if m := regexp.MustCompile(`on (127\.0\.0\.1:\d+)\.`).FindStringSubmatch(lines.Text()); m != nil {
			doors = m[1]
		}
		if strings.HasPrefix(lines.Text(), "1.") {
			if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
				t.Error(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != exitFailed {
		t.Errorf("ended with %v, want exit code 1", err)
	}
	leavesNothing(t, cmd)
	fake, err := clevertaptest.Start(doors, clevertaptest.Options{})
	if err != nil {
		t.Fatalf("the daemon's address is still taken: %v", err)
	}
	fake.Close()
}

// seen is a record as the fake CleverTap shows it to the ledger.
func seen(f fact, accepted bool) clevertaptest.Record {
	c := campaignOf(f.user())
	return clevertaptest.Record{
		Accepted: accepted, Identity: userPrefix + strconv.Itoa(f.user()), Event: c.event,
		Status: f.status(), TargetID: c.target, TS: "1700000000",
	}
}

func TestLedgerTellsWhatIsLost(t *testing.T) {
	t.Parallel()
	answer := func(l *ledger, facts ...fact) {
		for _, f := range facts {
			l.posted(f)
			l.answered(f)
		}
	}
	for name, c := range map[string]struct {
		happens func(*ledger)
		want    figures
	}{
		"delivered": {func(l *ledger) {
			answer(l, sentTo(0))
			l.arrived(seen(sentTo(0), true))
		}, figures{sent: 1, answered: 1, seen: 1}},
		"waiting": {func(l *ledger) { answer(l, sentTo(3)) }, figures{sent: 1, answered: 1, waiting: 1}},
		"dead, then replayed": {func(l *ledger) {
			answer(l, sentTo(9), readBy(9))
			l.arrived(seen(sentTo(9), false))
			l.arrived(seen(readBy(9), true))
			l.arrived(seen(sentTo(9), true))
		}, figures{sent: 2, answered: 2, seen: 2}},
		"dead": {func(l *ledger) {
			answer(l, sentTo(9))
			l.arrived(seen(sentTo(9), false))
		}, figures{sent: 1, answered: 1, dead: 1}},
		"twice": {func(l *ledger) {
			answer(l, sentTo(0))
			l.arrived(seen(sentTo(0), true))
			l.arrived(seen(sentTo(0), true))
		}, figures{sent: 1, answered: 1, seen: 1, copies: 1}},
		"stored, never answered": {func(l *ledger) {
			l.posted(sentTo(0))
			l.cutOff()
			l.arrived(seen(sentTo(0), true))
		}, figures{sent: 1, seen: 1, cut: 1}},
		"READ before SENT": {func(l *ledger) {
			answer(l, sentTo(0), readBy(0))
			l.arrived(seen(readBy(0), true))
			l.arrived(seen(sentTo(0), true))
		}, figures{sent: 2, answered: 2, seen: 2, inverted: 1}},
		"never sent": {func(l *ledger) { l.arrived(seen(sentTo(0), true)) }, figures{strange: 1}},
		"changed on the way": {func(l *ledger) {
			answer(l, sentTo(1))
			r := seen(sentTo(1), true)
			r.TargetID = "9007199254740992"
			l.arrived(r)
		}, figures{sent: 1, answered: 1, waiting: 1, strange: 1}},
		"a guest's": {func(l *ledger) { l.arrived(clevertaptest.Record{Identity: "me", Accepted: true}) }, figures{guests: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := new(ledger)
			c.happens(l)
			if got := l.figures(); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestAuditFindsWhatDoesNotAddUp(t *testing.T) {
	t.Parallel()
	f := figures{sent: 100, answered: 100, seen: 100, cut: 2}
	st := statusJSON{Accepted: 101, Replayed: 7, Delivered: 100, Deduplicated: 1, Died: 7}
	if wrong := audit(f, st); len(wrong) > 0 {
		t.Fatalf("a good account: %v", wrong)
	}
	for what, spoil := range map[string]func(*figures, *statusJSON){
		"are lost":                  func(f *figures, _ *statusJSON) { f.seen, f.waiting = 99, 1 },
		"never sent like that":      func(f *figures, _ *statusJSON) { f.strange = 1 },
		"before their SENT":         func(f *figures, _ *statusJSON) { f.inverted = 1 },
		"is not delivered":          func(_ *figures, st *statusJSON) { st.Deduplicated = 0 },
		"posts cut off":             func(_ *figures, st *statusJSON) { st.Accepted, st.Deduplicated = 103, 3 },
		"but CleverTap has":         func(f *figures, _ *statusJSON) { f.seen = 99 },
		"but CleverTap refused":     func(_ *figures, st *statusJSON) { st.Dead = 1 },
		"nothing was answered":      func(f *figures, _ *statusJSON) { f.answered = 0 },
		"of 8 that died, 0 dead +":  func(_ *figures, st *statusJSON) { st.Accepted, st.Died, st.Deduplicated = 102, 8, 1 },
		"birdtap says 99 delivered": func(_ *figures, st *statusJSON) { st.Delivered, st.Accepted = 99, 100 },
	} {
		f, st := f, st
		spoil(&f, &st)
		if wrong := strings.Join(audit(f, st), "; "); !strings.Contains(wrong, what) {
			t.Errorf("want %q, got %q", what, wrong)
		}
	}
}
