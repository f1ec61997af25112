//go:build integration

package integration

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// cannotRun skips a test that needs what this machine does not give. Where the whole
// check runs as root, nothing of it may be left out.
func cannotRun(t *testing.T, why string, err error) {
	t.Helper()
	if os.Getenv("CI") == "true" && os.Geteuid() == 0 {
		t.Fatalf("%s: %v", why, err)
	}
	fmt.Printf("NOT CHECKED: %s: %s: %v\n", t.Name(), why, err)
	t.Skipf("%s: %v", why, err)
}

// resolver is a name server that knows one address, when it works.
type resolver struct {
	conn net.PacketConn

	mu    sync.Mutex
	mode  resolverMode
	asked int
}

// resolverMode is how it answers.
type resolverMode struct {
	name   string
	code   dnsmessage.RCode
	silent bool
	delay  time.Duration
	ip     [4]byte // zero: the right one
}

// resolverAddr is an address of the loopback network that nothing else uses. The port
// cannot be chosen: resolv.conf names none.
const resolverAddr = "127.83.0.1"

func newResolver(t *testing.T) *resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", net.JoinHostPort(resolverAddr, "53"))
	if err != nil {
		cannotRun(t, "a name server of the test's own needs port 53", err)
	}
	r := &resolver{conn: conn}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.serve()
	}()
	t.Cleanup(func() { _ = conn.Close(); <-done })
	return r
}

func (r *resolver) serve() {
	buf := make([]byte, 4096)
	for {
		n, from, err := r.conn.ReadFrom(buf)
		if err != nil {
			return // closed
		}
		var query dnsmessage.Message
		if query.Unpack(buf[:n]) != nil || len(query.Questions) != 1 {
			continue
		}
		r.mu.Lock()
		r.asked++
		mode := r.mode
		r.mu.Unlock()
		if mode.silent {
			continue
		}
		text, err := mode.answer(query)
		if err != nil {
			continue
		}
		time.AfterFunc(mode.delay, func() { _, _ = r.conn.WriteTo(text, from) }) // closed: nobody waits any more
	}
}

func (m resolverMode) answer(query dnsmessage.Message) ([]byte, error) {
	q := query.Questions[0]
	a := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: query.ID, Response: true, RecursionAvailable: true, RecursionDesired: true, RCode: m.code},
		Questions: query.Questions,
	}
	if q.Type == dnsmessage.TypeA && m.code == dnsmessage.RCodeSuccess {
		ip := m.ip
		if ip == [4]byte{} {
			ip = [4]byte{127, 0, 0, 1}
		}
		a.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class},
			Body:   &dnsmessage.AResource{A: ip},
		}}
	}
	return a.Pack()
}

func (r *resolver) become(m resolverMode) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mode = m
}

func (r *resolver) questions() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

// withResolver makes a command use a name server by a resolv.conf of its own, in a mount
// namespace, which ends with the process.
func withResolver(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver "+resolverAddr+"\noptions timeout:1 attempts:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const script = `mount --bind "$0" /etc/resolv.conf && exec "$@"`
	wrap := []string{"--mount", "--", "sh", "-c", script, conf}
	if out, err := exec.Command("unshare", append(wrap, "true")...).CombinedOutput(); err != nil {
		cannotRun(t, "a resolv.conf of the test's own needs a mount namespace", fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out))))
	}
	wrapped := exec.Command("unshare", append(append(wrap, cmd.Path), cmd.Args[1:]...)...)
	wrapped.Env = cmd.Env
	return wrapped
}

// CleverTap's name cannot be resolved, in every way in which names cannot: birdtap
// waits, and goes on when it can.
func TestNameOfCleverTapDoesNotResolve(t *testing.T) {
	t.Parallel()
	names := newResolver(t)
	fake := startFake(t)
	fake.CloseConnections(true) // each call asks for the name
	_, port, err := net.SplitHostPort(fake.Addr())
	if err != nil {
		t.Fatal(err)
	}
	d := loneAt(t, map[string]string{"CLEVERTAP_URL": "http://" + net.JoinHostPort("clevertap.test", port)})
	log := filepath.Join(t.ArtifactDir(), "serve.log")
	t.Cleanup(func() { showEnd(t, "serve", log) })
	d.process = start(t, "serve", log, withResolver(t, d.at.command("serve")))
	d.ready(d.window, 30*time.Second)

	d.take(t, 1)
	d.delivers(t, fake, 1)
	if names.questions() == 0 {
		t.Fatal("the test's own name server was not asked: nothing is proved")
	}
	sent := 1
	for _, bad := range []resolverMode{
		{name: "no such name", code: dnsmessage.RCodeNameError},
		{name: "server failure", code: dnsmessage.RCodeServerFailure},
		{name: "silence", silent: true},
		{name: "a lie", ip: [4]byte{127, 83, 0, 2}},
	} {
		names.become(bad)
		asked := names.questions()
		sent++
		d.take(t, sent)
		eventually(t, time.Minute, bad.name+": birdtap asks again", func() bool { return names.questions() >= asked+4 })
		if a, err := d.at.status(); err != nil || a.Died != 0 || a.Queued != 1 {
			t.Errorf("%s: %+v, %v", bad.name, a, err)
		}
		names.become(resolverMode{})
		d.delivers(t, fake, int64(sent))
	}
	names.become(resolverMode{name: "slow", delay: 700 * time.Millisecond})
	d.take(t, sent+1)
	d.delivers(t, fake, int64(sent+1))
	if c := fake.Counts(); c.Accepted != int64(sent+1) {
		t.Errorf("%d records arrived, want %d", c.Accepted, sent+1)
	}
}
