package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// installation is the birdtap that the demo plays with: this very program, with a
// directory, ports and an environment of its own.
type installation struct {
	program string // the binary
	dir     string // temporary; holds the queue
	doors   string // host:port
	window  string // host:port
	environ []string
}

// The account of the demo. Nothing listens beyond loopback, so these are no secrets.
const (
	demoAccount    = "DEMO-ACCOUNT"
	demoPasscode   = "demo-passcode"
	demoSigningKey = "demo-signing-key"
)

// install makes the directory and picks ports. The environment is made from nothing:
// whatever birdtap variables the user has set are for another birdtap.
func install(ctx context.Context, cleverTap, sendbird string) (*installation, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(ctx, 2)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "birdtap-demo-")
	if err != nil {
		return nil, err
	}
	b := &installation{program: program, dir: dir, doors: ports[0], window: ports[1]}
	b.environ = []string{
		"BIRDTAP_HTTP_ADDR=" + b.doors,
		"BIRDTAP_OPS_ADDR=" + b.window,
		"BIRDTAP_DATA_DIR=" + filepath.Join(dir, "data"),
		"BIRDTAP_CLEVERTAP_URL=" + cleverTap,
		"BIRDTAP_CLEVERTAP_ACCOUNT_ID=" + demoAccount,
		"BIRDTAP_CLEVERTAP_PASSCODE=" + demoPasscode,
		"BIRDTAP_SENDBIRD_SIGNING_KEYS=" + demoSigningKey,
		"BIRDTAP_SENDBIRD_NOTIFICATIONS_URL=" + sendbird,
		"BIRDTAP_SENDBIRD_NOTIFICATIONS_TOKEN=" + demoNotificationsToken,
		"BIRDTAP_SENDBIRD_UPLOAD_HOSTS=" + strings.TrimPrefix(sendbird, "http://"),
		"BIRDTAP_SENDER_TOKENS=" + demoSenderToken,
		"BIRDTAP_GATHER_WAIT=1s",
		"BIRDTAP_REMEMBER_SENT=1h",
		// Far above what the demo needs, and little enough for any temporary directory.
		"BIRDTAP_QUEUE_MAX_BYTES=64MiB",
		"BIRDTAP_DEAD_MAX_BYTES=16MiB",
		"BIRDTAP_KEEP_MAX_BYTES=16MiB",
		"BIRDTAP_LOG_LEVEL=warn",
		"BIRDTAP_LOG_FORMAT=console",
	}
	return b, nil
}

// remove leaves nothing behind.
func (b *installation) remove() error { return os.RemoveAll(b.dir) }

// freePorts are loopback addresses at which nobody listens. They are fixed over the
// restart of the daemon, as Sendbird's dashboard knows one address only.
func freePorts(ctx context.Context, n int) ([]string, error) {
	var addrs []string
	for range n {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer func() { _ = l.Close() }() // after the loop, or the same port might come twice
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}

// run runs a command of the installation to its end and returns what it printed.
func (b *installation) run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	var words bytes.Buffer
	cmd := exec.CommandContext(ctx, b.program, args...) //nolint:gosec // it is this program
	cmd.Env = b.environ
	cmd.Stderr = &words
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("birdtap %s: %w\n%s", strings.Join(args, " "), err, words.Bytes())
	}
	return string(out), nil
}

// commandTimeout bounds a command that works on the queue.
const commandTimeout = 30 * time.Second

// ready asks the window whether a receipt sent now would be stored.
func (b *installation) ready(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.window+"/readyz", nil)
	if err != nil {
		return false
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// child is a daemon that runs.
type child struct {
	cmd   *exec.Cmd
	words *tail
	ended chan struct{} // closed at its end
	err   error         // of its end; read after ended
}

// start starts `birdtap serve`. It does not wait for anything.
func (b *installation) start() (*child, error) {
	c := &child{cmd: exec.Command(b.program, "serve"), words: new(tail), ended: make(chan struct{})} //nolint:gosec,noctx // this program; stop and kill end it
	c.cmd.Env = b.environ
	c.cmd.Stderr = c.words
	c.cmd.SysProcAttr = childAttributes()
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the daemon: %w", err)
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.ended)
	}()
	return c, nil
}

// kill is kill -9, and returns when the process is gone. It may be called twice.
func (c *child) kill() {
	_ = c.cmd.Process.Kill() // fails only when it has ended
	<-c.ended
}

// stopWait is how long a daemon may take to stop: its uploads in flight get 15 s.
const stopWait = 20 * time.Second

// stop stops the daemon in good order, and says how it ended if not with code 0.
func (c *child) stop() error {
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	timer := time.NewTimer(stopWait)
	defer timer.Stop()
	select {
	case <-c.ended:
	case <-timer.C:
		c.kill()
		return fmt.Errorf("the daemon did not stop within %v; its last words:\n%s", stopWait, c.words)
	}
	if c.err != nil {
		return c.failed()
	}
	return nil
}

// failed says how a daemon ended that should not have, or not like that.
func (c *child) failed() error {
	words := c.words.String()
	if words == "" {
		words = "  (it said nothing)"
	}
	how := "exit code 0"
	if c.err != nil {
		how = c.err.Error()
	}
	return errors.New("the daemon ended (" + how + "); its last words:\n" + words)
}

// tail keeps the last lines written to it.
type tail struct {
	mu    sync.Mutex
	lines []string
	rest  []byte // a line that is not yet whole
}

const (
	tailLines     = 12
	tailLineBytes = 400
)

var _ io.Writer = (*tail)(nil)

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for line := range bytes.Lines(b) {
		t.rest = append(t.rest, line...)
		if bytes.HasSuffix(line, []byte("\n")) {
			t.push()
		}
	}
	return len(b), nil
}

func (t *tail) push() {
	line := bytes.TrimRight(t.rest, "\r\n")
	t.lines = append(t.lines, "  "+printable(string(line[:min(len(line), tailLineBytes)])))
	t.lines = t.lines[max(0, len(t.lines)-tailLines):]
	t.rest = t.rest[:0]
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.rest) > 0 {
		t.push()
	}
	return strings.Join(t.lines, "\n")
}
