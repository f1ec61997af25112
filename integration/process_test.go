//go:build integration

package integration

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/birdtap/birdtap/integration/history"
)

// process is a program that runs beside the test. What it logs goes to a file, of
// which the end is shown if the test fails.
type process struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// start runs a program until the test ends, or earlier. log is where its words are
// appended.
func start(t *testing.T, name, log string, cmd *exec.Cmd) *process {
	t.Helper()
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close() // the child has its own
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	p := &process{t: t, name: name, cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended is in ProcessState
		close(p.done)
	}()
	t.Cleanup(p.kill)
	return p
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("signal %s: %v", p.name, err)
	}
}

// kill ends it as a crash would, stopped or not, and waits until it is gone.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.done
}

// terminate asks it to stop, and returns its exit code.
func (p *process) terminate(within time.Duration) int {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(within):
		p.t.Fatalf("%s has not stopped within %v of SIGTERM", p.name, within)
	}
	return p.cmd.ProcessState.ExitCode()
}

// alive fails the test if it has ended by itself.
func (p *process) alive() {
	p.t.Helper()
	select {
	case <-p.done:
		p.t.Fatalf("%s has ended: %v", p.name, p.cmd.ProcessState)
	default:
	}
}

// birdtap is one place where birdtap is installed: an environment that daemons and
// commands share.
type birdtap struct {
	t      *testing.T
	binary string
	env    map[string]string // without the prefix
}

func newBirdtap(t *testing.T, env map[string]string) *birdtap {
	t.Helper()
	return &birdtap{t: t, binary: birdtapBinary(t), env: env}
}

// with is the same place with some variables set otherwise.
func (b *birdtap) with(env map[string]string) *birdtap {
	all := maps.Clone(b.env)
	maps.Copy(all, env)
	return &birdtap{t: b.t, binary: b.binary, env: all}
}

func (b *birdtap) command(args ...string) *exec.Cmd {
	cmd := exec.Command(b.binary, args...)
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "BIRDTAP_") {
			cmd.Env = append(cmd.Env, variable)
		}
	}
	for name, value := range b.env {
		cmd.Env = append(cmd.Env, "BIRDTAP_"+name+"="+value)
	}
	return cmd
}

// daemon starts a role. Its log is kept over restarts under its name, and its end is
// shown if the test fails.
func (b *birdtap) daemon(role, name string) *process {
	b.t.Helper()
	log := filepath.Join(b.t.ArtifactDir(), name+".log")
	if _, err := os.Stat(log); err != nil {
		b.t.Cleanup(func() { showEnd(b.t, name, log) })
	}
	return start(b.t, name, log, b.command(role))
}

// shownBytes is how much of a log a failed test shows.
const shownBytes = 8 << 10

func showEnd(t *testing.T, name, log string) {
	if !t.Failed() {
		return
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Log(err)
		return
	}
	t.Logf("the end of the log of %s:\n%s", name, text[max(0, len(text)-shownBytes):])
}

// output runs a command to its end and returns what it prints.
func (b *birdtap) output(args ...string) ([]byte, error) {
	cmd := b.command(args...)
	var words bytes.Buffer
	cmd.Stderr = &words
	out, err := cmd.Output()
	if err != nil {
		return nil, errors.Join(err, errors.New(strings.TrimSpace(words.String())))
	}
	return out, nil
}

// account is `birdtap status --json`.
type account struct {
	Accepted     int `json:"accepted"`
	Replayed     int `json:"replayed"`
	Delivered    int `json:"delivered"`
	Deduplicated int `json:"deduplicated"`
	Died         int `json:"died"`
	Queued       int `json:"queued"`
	Dead         int `json:"dead"`
	Purged       int `json:"purged"`

	Oldest float64 `json:"oldest_seconds"` // what waits the longest
	Relay  struct {
		Holder string `json:"holder"`
		Term   int    `json:"term"`
	} `json:"relay"`

	// twice is how many letters an interrupted replay has put on the queue twice, as the
	// test knows: each life counts, and there was one death.
	twice int
}

func (b *birdtap) status() (account, error) {
	var a account
	err := b.statusInto(&a)
	return a, err
}

func (b *birdtap) statusInto(part any) error {
	out, err := b.output("status", "--json")
	if err != nil {
		return err
	}
	return json.Unmarshal(out, part)
}

// drained waits until nothing is queued any more, and returns the account.
func (b *birdtap) drained(within time.Duration) account {
	b.t.Helper()
	var a account
	var err error
	defer func() {
		if b.t.Failed() {
			b.t.Logf("the last account: %+v, %v", a, err)
		}
	}()
	eventually(b.t, within, "the queue is empty", func() bool {
		a, err = b.status()
		return err == nil && a.Queued == 0
	})
	return a
}

// letters are the dead letters.
func (b *birdtap) letters() []history.Letter {
	b.t.Helper()
	out, err := b.output("dead", "export")
	if err != nil {
		b.t.Fatalf("dead export: %v", err)
	}
	list, err := history.ReadLetters(bytes.NewReader(out))
	if err != nil {
		b.t.Fatal(err)
	}
	return list
}

// addsUp checks the account at rest against itself, against what the client sent and
// CleverTap took, and against the letters.
func (a account) addsUp(t *testing.T, sent history.Counts, taken int, letters []history.Letter) {
	t.Helper()
	if a.Accepted+a.Replayed != a.Delivered+a.Deduplicated+a.Died+a.Queued {
		t.Errorf("accepted + replayed is not delivered + deduplicated + died + queued: %+v", a)
	}
	if a.Accepted < sent.Taken || a.Accepted > sent.Attempts {
		t.Errorf("%d accepted, but the client sent %d in all and %d of them were answered 2xx", a.Accepted, sent.Attempts, sent.Taken)
	}
	if a.Delivered > taken {
		t.Errorf("%d delivered, but CleverTap took %d", a.Delivered, taken)
	}
	// A crash while letters are stored leaves some twice; the place they died at
	// tells such ones from those that died twice.
	deaths := deathsOf(letters)
	if want := a.Died - (a.Replayed - a.twice) - a.Purged; len(deaths) != want || a.Dead != len(letters) {
		t.Errorf("%d receipts dead in %d letters, want %d: %+v", len(deaths), len(letters), want, a)
	}
}

// deathsOf are the places where those of letters died.
func deathsOf(letters []history.Letter) map[[2]uint64]bool {
	deaths := map[[2]uint64]bool{}
	for _, l := range letters {
		deaths[[2]uint64{l.Frame, uint64(l.Index)}] = true
	}
	return deaths
}

// freeAddr is a loopback address with a port that nobody listens on now. Daemons get
// fixed ones, so that they are where they were after a restart.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// get is the body of a GET that is answered 200; empty for any other, or none.
func get(url string) string {
	c := http.Client{Timeout: 2 * time.Second}
	resp, err := c.Get(url)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return ""
	}
	return string(body)
}

// ready waits until the daemon whose window is at addr would store a receipt.
func (p *process) ready(addr string, within time.Duration) {
	p.t.Helper()
	eventually(p.t, within, p.name+" is ready", func() bool {
		p.alive()
		return get("http://"+addr+"/readyz") != ""
	})
}
