//go:build integration

package integration

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
)

// proxy is a wire between a client and a server that can be made deaf: bytes of the
// client go on arriving, those of the server wait until the wire is mended, as on a
// network that loses packets in one direction.
type proxy struct {
	target string
	server net.Listener

	// cutsAt is what the client says to cut the wire by itself, just before the server
	// hears it; empty: nothing. For use before the first connection.
	cutsAt string

	mu     sync.Mutex
	passes chan struct{} // closed while bytes of the server pass
	conns  map[net.Conn]bool
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{target: target, server: l, passes: make(chan struct{}), conns: map[net.Conn]bool{}}
	close(p.passes)
	go p.accept()
	t.Cleanup(p.close)
	return p
}

func (p *proxy) addr() string { return p.server.Addr().String() }

func (p *proxy) accept() {
	for {
		client, err := p.server.Accept()
		if err != nil {
			return // closed
		}
		go p.carry(client)
	}
}

func (p *proxy) carry(client net.Conn) {
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		hangUp(client)
		return
	}
	if !p.hold(client, server) {
		return
	}
	go func() {
		_, _ = io.Copy(listening{p, server}, client) // whatever ends it ends both directions
		hangUp(server)
	}()
	_, _ = io.Copy(deaf{p, client}, server)
	hangUp(client)
	p.release(client, server)
}

// hold remembers connections for close; false if that was before.
func (p *proxy) hold(list ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conns == nil {
		hangUp(list...)
		return false
	}
	for _, c := range list {
		p.conns[c] = true
	}
	return true
}

func (p *proxy) release(list ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range list {
		delete(p.conns, c)
	}
}

// deaf is the way to the client.
type deaf struct {
	p *proxy
	net.Conn
}

func (d deaf) Write(b []byte) (int, error) {
	d.p.mu.Lock()
	passes := d.p.passes
	d.p.mu.Unlock()
	<-passes
	return d.Conn.Write(b)
}

// listening is the way to the server.
type listening struct {
	p *proxy
	net.Conn
}

func (l listening) Write(b []byte) (int, error) {
	if l.p.cutsAt != "" && bytes.Contains(b, []byte(l.p.cutsAt)) {
		l.p.cut()
	}
	return l.Conn.Write(b)
}

// cut holds back what the server says, from now on.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.isCut() {
		p.passes = make(chan struct{})
	}
}

func (p *proxy) isCut() bool {
	select {
	case <-p.passes:
		return false
	default:
		return true
	}
}

// wasCut tells whether the wire is cut now.
func (p *proxy) wasCut() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.isCut()
}

// mend lets it pass again, what was held back first.
func (p *proxy) mend() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.isCut() {
		close(p.passes)
	}
}

// hangUp closes connections; a wire has nobody to tell that one was closed already.
func hangUp(list ...net.Conn) {
	for _, c := range list {
		_ = c.Close()
	}
}

func (p *proxy) close() {
	p.mend()
	_ = p.server.Close() // nobody listens to it any more
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		hangUp(c)
	}
	p.conns = nil
}
