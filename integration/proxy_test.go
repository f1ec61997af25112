//go:build integration

package integration

import (
	"bytes"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// proxy is a wire between clients and a server that can be made bad: slow, deaf,
// dead, cut into slices, torn.
type proxy struct {
	target string
	server net.Listener

	// cutsAt is what the client says to cut the wire by itself, just before the server
	// hears it; empty: nothing. For use before the first connection.
	cutsAt string

	carried atomic.Int64 // bytes that got through, both ways

	mu    sync.Mutex
	w     weather
	calm  chan struct{} // closed when the weather next changes
	conns map[*wireConn]bool
}

// weather is how bad a wire is. The zero value is a good one.
type weather struct {
	// deaf holds back what the server says, as on a network that loses packets in one
	// direction; blackhole holds back what both say.
	deaf, blackhole bool
	latency         time.Duration // of every piece
	slice           int           // bytes in a piece; 0: as they come
	rate            int           // bytes per second and direction; 0: any
	tears           int           // a connection is reset once the client has said so many bytes; 0: never
	halfCloses      bool          // once the client has begun to speak the server's side ends towards it
}

// way is a direction.
type way int

const (
	toServer way = iota
	toClient
)

// wireConn is one connection through the wire.
type wireConn struct {
	client, server *net.TCPConn
	said           int // bytes of the client
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{target: target, server: l, calm: make(chan struct{}), conns: map[*wireConn]bool{}}
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
		go p.carry(client.(*net.TCPConn))
	}
}

func (p *proxy) carry(client *net.TCPConn) {
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		hangUp(client)
		return
	}
	c := &wireConn{client: client, server: server.(*net.TCPConn)}
	if !p.hold(c) {
		return
	}
	go func() {
		p.pump(c, toServer) // whatever ends it ends both directions
		hangUp(c.server)
	}()
	p.pump(c, toClient)
	hangUp(c.client)
	p.release(c)
}

// hold remembers a connection; false if the proxy is closed.
func (p *proxy) hold(c *wireConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conns == nil {
		hangUp(c.client, c.server)
		return false
	}
	p.conns[c] = true
	return true
}

func (p *proxy) release(c *wireConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// pump carries bytes one way until either end is gone.
func (p *proxy) pump(c *wireConn, to way) {
	from, dest := c.client, c.server
	if to == toClient {
		from, dest = c.server, c.client
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		for rest := buf[:n]; len(rest) > 0; {
			piece := p.piece(c, to, rest)
			if piece == nil {
				return
			}
			if _, err := dest.Write(piece); err != nil {
				return
			}
			p.carried.Add(int64(len(piece)))
			rest = rest[len(piece):]
		}
		if err != nil {
			return
		}
	}
}

// piece waits until some bytes may pass, and says how many; nil: the connection is
// torn.
func (p *proxy) piece(c *wireConn, to way, rest []byte) []byte {
	if to == toServer && p.cutsAt != "" && bytes.Contains(rest, []byte(p.cutsAt)) {
		p.cut()
	}
	for {
		p.mu.Lock()
		w, calm, open := p.w, p.calm, p.conns != nil
		p.mu.Unlock()
		if w.blackhole || w.deaf && to == toClient {
			if !open {
				return nil
			}
			<-calm
			continue
		}
		return w.let(c, to, rest)
	}
}

// let takes its time over a piece, as a wire in this weather does.
func (w weather) let(c *wireConn, to way, rest []byte) []byte {
	if w.slice > 0 {
		rest = rest[:min(w.slice, len(rest))]
	}
	took := w.latency
	if w.rate > 0 {
		took += time.Duration(len(rest)) * time.Second / time.Duration(w.rate)
	}
	if took > 0 {
		time.Sleep(took) // the wire is slow
	}
	if to == toClient {
		return rest
	}
	if c.said += len(rest); w.tears > 0 && c.said >= w.tears {
		c.reset()
		return nil
	}
	if w.halfCloses {
		_ = c.client.CloseWrite() // it may be gone already
	}
	return rest
}

// become changes the weather.
func (p *proxy) become(w weather) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.turn(w)
}

func (p *proxy) turn(w weather) {
	p.w = w
	close(p.calm)
	p.calm = make(chan struct{})
}

// cut holds back what the server says, from now on.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w := p.w; !w.deaf {
		w.deaf = true
		p.turn(w)
	}
}

// wasCut tells whether the wire is cut now.
func (p *proxy) wasCut() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.w.deaf
}

// mend makes it a good wire again; what was held back passes first.
func (p *proxy) mend() { p.become(weather{}) }

// reset ends every connection with an RST, both ways.
func (p *proxy) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.reset()
	}
}

// reset throws away what is unsent, so that both ends get an RST.
func (c *wireConn) reset() {
	_, _ = c.client.SetLinger(0), c.server.SetLinger(0) // they may be gone already
	hangUp(c.client, c.server)
}

// hangUp closes connections; a wire has nobody to tell that one was closed already.
func hangUp(list ...net.Conn) {
	for _, c := range list {
		_ = c.Close()
	}
}

func (p *proxy) close() {
	_ = p.server.Close() // nobody listens to it any more
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		hangUp(c.client, c.server)
	}
	p.conns = nil
	p.turn(weather{})
}
