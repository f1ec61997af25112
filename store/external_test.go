package store

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// While an external server is away a commit fails fast, and afterwards everything
// goes on by itself.
func TestExternalServerGoesAwayAndComesBack(t *testing.T) {
	t.Parallel()
	o := serverOptions(t)
	ns := startServer(t, o)
	s := openStore(t, external(ns), func(o *Options) { o.guardEvery = 50 * time.Millisecond })
	mustCommit(t, s, receipts(0, 10)...)
	reader := s.Read(1)
	defer reader.Close()
	next(t, reader, 1)

	o.Port = ns.Addr().(*net.TCPAddr).Port
	stopServer(ns)
	eventually(t, "disconnected", func() bool { return !s.nc.IsConnected() })
	for range 3 {
		began := time.Now()
		if err := s.Commit(t.Context(), receipts(10, 1)); err == nil {
			t.Fatal("committed without a server")
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("failed after %v", took)
		}
	}
	eventually(t, "not ready", func() bool { return s.Ready() != nil })
	if err := s.Healthy(); err != nil {
		t.Errorf("an external server is not ours to judge, but %v", err)
	}

	startServer(t, o)
	eventually(t, "ready", func() bool { return s.Ready() == nil })
	mustCommit(t, s, receipts(11, 1)...)
	f := next(t, reader, 1)[0]
	if f.Seq != 2 || f.Receipts[0].Key != receipt(11).Key {
		t.Errorf("the reader goes on with frame %d", f.Seq)
	}
	wantEqual(t, "receipts", len(stored(t, s)), 11)
}

// gate is a wire to a server that can go dead without being cut: nothing is read,
// nothing is written, nothing is closed.
type gate struct {
	listener net.Listener
	to       string

	mu   sync.Mutex
	open chan struct{} // closed while bytes flow
}

func newGate(t testing.TB, to string) *gate {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{listener: l, to: to, open: make(chan struct{})}
	close(g.open)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { g.carry(t, c) })
		}
	})
	t.Cleanup(func() {
		g.set(true)
		_ = l.Close()
		all.Wait()
	})
	return g
}

func (g *gate) carry(t testing.TB, client net.Conn) {
	defer client.Close()
	upstream, err := net.Dial("tcp", g.to)
	if err != nil {
		t.Error(err)
		return
	}
	defer upstream.Close()
	// What was written while the gate was shut may take the kernel minutes to bring.
	defer context.AfterFunc(t.Context(), func() { _, _ = client.Close(), upstream.Close() })()
	var both sync.WaitGroup
	for _, c := range [][2]net.Conn{{client, upstream}, {upstream, client}} {
		both.Go(func() {
			defer c[1].Close()
			buf := make([]byte, 8<<10)
			for {
				n, err := c[0].Read(buf)
				<-g.opened()
				if n > 0 {
					if _, err := c[1].Write(buf[:n]); err != nil {
						return
					}
				}
				if errors.Is(err, io.EOF) || err != nil {
					return
				}
			}
		})
	}
	both.Wait()
}

func (g *gate) opened() chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open
}

func (g *gate) set(open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.open:
		if !open {
			g.open = make(chan struct{})
		}
	default:
		if open {
			close(g.open)
		}
	}
}

// The deadline of a commit holds against a server that neither answers nor closes,
// with a frame larger than all buffers of the wire, too.
func TestCommitDeadlineHolds(t *testing.T) {
	t.Parallel()
	ns := startServer(t, serverOptions(t))
	g := newGate(t, ns.Addr().String())
	s := openStore(t, func(o *Options) { o.NATSURL, o.Replicas = "nats://"+g.listener.Addr().String(), 1 })
	mustCommit(t, s, receipts(0, 1)...)
	g.set(false)
	large := receipts(1, 1000)
	for i := range large {
		large[i].Record = make([]byte, 400)
	}
	for _, rs := range [][]Receipt{receipts(1, 1), large, large, large} {
		began := time.Now()
		err := s.Commit(t.Context(), rs)
		if took := time.Since(began); err == nil || took > publishDeadline+500*time.Millisecond {
			t.Errorf("%d receipts: %v after %v", len(rs), err, took)
		}
	}
	eventually(t, "not ready", func() bool { return s.Ready() != nil })
	g.set(true)
	eventually(t, "commits again", func() bool { return s.Commit(t.Context(), receipts(2000, 1)) == nil })
}

// A node that ends takes along what it has not yet passed on. The commit goes again, and
// its caller is told nothing of it.
func TestCommitGoesAgainWhereItHadNoAnswer(t *testing.T) {
	t.Parallel()
	ns := startServer(t, serverOptions(t))
	s := openStore(t, external(ns))
	const lost = "lost"
	gone, err := s.nc.SubscribeSync(lost)
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.GlobalAccount().AddMapping(s.names.receipts, lost); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Commit(t.Context(), receipts(0, 3)) }()
	m, err := gone.NextMsgWithContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ns.GlobalAccount().RemoveMapping(s.names.receipts)
	if err := <-done; err != nil {
		t.Errorf("the commit is lost with the node: %v", err)
	}
	wantEqual(t, "receipts", len(stored(t, s)), 3)

	// The first try was only slow: it comes to nothing.
	if err := s.nc.PublishMsg(&nats.Msg{Subject: s.names.receipts, Header: m.Header, Data: m.Data}); err != nil {
		t.Fatal(err)
	}
	mustCommit(t, s, receipts(3, 1)...) // behind it
	wantEqual(t, "receipts", len(stored(t, s)), 4)
}

// A replay outlasts an election, and gives the queue nothing twice; who has had enough of
// it is told, and finds the letters where they were.
func TestReplayOutlastsSilence(t *testing.T) {
	t.Parallel()
	ns := startServer(t, serverOptions(t))
	s := openStore(t, external(ns))
	mustBury(t, s, letters(0, 3, "512")...)
	const lost = "lost"
	gone, err := s.nc.SubscribeSync(lost)
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.GlobalAccount().AddMapping(s.names.receipts, lost); err != nil {
		t.Fatal(err)
	}
	replay := func(ctx context.Context) chan error {
		done := make(chan error, 1)
		go func() {
			_, err := s.Replay(ctx, ReplayOptions{Choose: func(*Letter) bool { return true }})
			done <- err
		}()
		return done
	}
	tries := func(n int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for range n {
			if _, err := gone.NextMsgWithContext(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	ctx, enough := context.WithCancel(t.Context())
	done := replay(ctx)
	tries(1)
	enough()
	wantErr(t, <-done, ErrTimeout)
	wantEqual(t, "letters", len(buried(t, s)), 3)

	done = replay(t.Context())
	tries(int(publishDeadline/answerWait) + 2) // more than a door would wait
	ns.GlobalAccount().RemoveMapping(s.names.receipts)
	if err := <-done; err != nil {
		t.Errorf("replay: %v", err)
	}
	wantEqual(t, "letters", len(buried(t, s)), 0)
	wantEqual(t, "receipts", len(stored(t, s)), 3)
}

// Close does not wait for ever for a server that does not answer.
func TestCloseGivesUpOnADeadServer(t *testing.T) {
	t.Parallel()
	ns := startServer(t, serverOptions(t))
	g := newGate(t, ns.Addr().String())
	s := openStore(t, func(o *Options) { o.NATSURL, o.Replicas = "nats://"+g.listener.Addr().String(), 1 })
	mustCommit(t, s, receipts(0, 1)...)
	g.set(false)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 { // frames that would take a deadline each
		wantErr(t, s.Commit(gone, receipts(0, 1000)), ErrTimeout)
	}
	began := time.Now()
	mustClose(t, s)
	if took := time.Since(began); took > publishDeadline+writeTimeout+time.Second {
		t.Errorf("closed after %v", took)
	}
}

func TestUnreachableServerIsRefused(t *testing.T) {
	ns := startServer(t, serverOptions(t))
	url := ns.ClientURL()
	stopServer(ns)
	_, err := tryOpen(t, func(o *Options) { o.NATSURL = url })
	if err == nil || !strings.Contains(err.Error(), "connect to the queue at BIRDTAP_NATS_URL") {
		t.Errorf("got %v", err)
	}
}

// What an error says about an address must not include its password.
func TestErrorsDoNotTellThePassword(t *testing.T) {
	ns := startServer(t, serverOptions(t))
	addr := ns.Addr().String()
	stopServer(ns)
	for _, url := range []string{"nats://user:geheim@" + addr, "nats://geheim@" + addr, "nats://user:geheim@:::bad", "nats://us er:geheim@" + addr} {
		if _, err := tryOpen(t, func(o *Options) { o.NATSURL = url }); err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%v", err)
		}
	}
}

// Three replicas need a cluster; a lone server says so.
func TestReplicasOfALoneServer(t *testing.T) {
	ns := startServer(t, serverOptions(t))
	_, err := tryOpen(t, external(ns), func(o *Options) { o.Replicas = 0 })
	if err == nil || !strings.Contains(err.Error(), "replicas") {
		t.Errorf("got %v", err)
	}
}

// Another daemon that makes the streams at the same moment disturbs nothing, not even
// one that is configured otherwise.
func TestManyStartOnAFreshServer(t *testing.T) {
	ns := startServer(t, serverOptions(t))
	var all sync.WaitGroup
	for i := range int64(5) {
		all.Go(func() {
			s, err := Open(t.Context(), Options{NATSURL: ns.ClientURL(), Replicas: 1, QueueMaxBytes: (8 + i) << 20, DeadMaxBytes: 8 << 20, KeepMaxBytes: 8 << 20})
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.Commit(t.Context(), receipts(0, 1)); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// A command looks at what is there; it makes no queue.
func TestAttachMakesNoStreamsOnAServer(t *testing.T) {
	ns := startServer(t, serverOptions(t))
	if _, err := tryOpen(t, external(ns), func(o *Options) { o.Attach = true }); err == nil || !strings.Contains(err.Error(), "there is no queue") {
		t.Errorf("got %v", err)
	}
	s := openStore(t, external(ns)) // would refuse parts of a queue, and resize one that was made with other sizes
	if _, err := s.Status(t.Context()); err != nil {
		t.Error(err)
	}
}
