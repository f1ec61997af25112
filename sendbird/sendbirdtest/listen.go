package sendbirdtest

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
)

// Start makes a fake that listens on addr, "127.0.0.1:0" for a port of the
// system's choice.
func Start(addr string, opts Options) (*Server, error) {
	s := New(opts)
	if err := s.Listen(addr); err != nil {
		return nil, err
	}
	return s, nil
}

// serving is the part of a Server that has to do with being reached. It may be
// started and ended again and again.
type serving struct {
	mu    sync.Mutex
	addr  string
	http  *http.Server
	tasks sync.WaitGroup // the serving goroutine, and one for each connection
}

// Listen opens the fake on addr. After [Server.Stop], s.Listen(s.Addr()) opens it
// at the same place again, with log, script and settings as they are.
func (s *Server) Listen(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("fake Sendbird: %w", err)
	}
	return s.Serve(l)
}

// Serve is Listen on a listener of the caller's, which it closes in the end. It
// returns at once.
func (s *Server) Serve(l net.Listener) error {
	v := &s.serving
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.http != nil {
		_ = l.Close()
		return errors.New("fake Sendbird: listens already")
	}
	v.addr = l.Addr().String()
	v.http = &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0),
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				v.tasks.Add(1)
			case http.StateClosed, http.StateHijacked:
				v.tasks.Done()
			}
		},
	}
	srv := v.http
	v.tasks.Go(func() { _ = srv.Serve(l) }) // always ends in ErrServerClosed or the listener's own end
	return nil
}

// Addr is host:port of the last Listen; empty before the first.
func (s *Server) Addr() string {
	s.serving.mu.Lock()
	defer s.serving.mu.Unlock()
	return s.serving.addr
}

// Stop ends listening and every connection, as if the machine went away, and
// waits until nothing runs any more. It may be called twice.
func (s *Server) Stop() {
	v := &s.serving
	v.mu.Lock()
	srv := v.http
	v.http = nil
	v.mu.Unlock()
	if srv != nil {
		_ = srv.Close() // only the listener's own error, and it is closed all the same
		v.tasks.Wait()
	}
}

// Close is Stop, and lets go what hangs in a handler mounted elsewhere.
func (s *Server) Close() {
	s.Release()
	s.Stop()
}
