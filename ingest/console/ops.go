// Package console is the operator's window on a running birdtap: whether it is
// healthy, whether it is ready, and its metrics.
//
// It listens apart from the doors that receipts come in by, on loopback unless told
// otherwise. Health and metrics are open to whoever reaches the listener, so they
// hold nothing personal; everything else asks for the token where there is one.
package console

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
	"golang.org/x/net/netutil"
)

// Options says what the window shows, and where.
type Options struct {
	Addr     string       // to listen on; unused when Listener is set
	Listener net.Listener // for tests and callers that bind themselves

	// Health and Ready return what is wrong, one sentence each, and nothing when all
	// is well. They answer at once: a probe waits a second or so.
	Health func() []string
	Ready  func() []string

	Gatherer prometheus.Gatherer
	Token    func() string // asked for each request; nil or empty: no token is needed
	Log      *zap.Logger   // default: none
}

// Limits of the listener.
const (
	readHeaderTimeout = 3 * time.Second  // a slow header is no operator
	readTimeout       = 10 * time.Second // of a whole request
	writeTimeout      = 15 * time.Second
	idleTimeout       = 75 * time.Second // above the usual balancer's 60 s, so that the balancer closes first
	maxHeaderBytes    = 16 << 10
	maxConnections    = 128
	shutdownTimeout   = time.Second // a probe or scrape under way
)

// Server is the listener of health, readiness and metrics.
type Server struct {
	http     *http.Server
	listener net.Listener
}

// New binds the address, so that an error about it comes at once. Run serves.
func New(o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	listener := o.Listener
	if listener == nil {
		var err error
		if listener, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp", o.Addr); err != nil {
			return nil, fmt.Errorf("listen for health and metrics: %w", err)
		}
	}
	// HTTP/2 would bring its own attack surface and nothing to a probe.
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &Server{
		listener: netutil.LimitListener(listener, maxConnections),
		http: &http.Server{
			Handler:           routes(o),
			Protocols:         protocols,
			ReadHeaderTimeout: readHeaderTimeout,
			ReadTimeout:       readTimeout,
			WriteTimeout:      writeTimeout,
			IdleTimeout:       idleTimeout,
			MaxHeaderBytes:    maxHeaderBytes,
			ErrorLog:          quiet(o.Log),
		},
	}, nil
}

// Addr is where the server listens, the port chosen by the system included.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Run serves until ctx ends, and returns when the requests under way are answered
// or their second is over.
func (s *Server) Run(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- s.http.Serve(s.listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve health and metrics: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := s.http.Shutdown(grace); err != nil {
		_ = s.http.Close()
	}
	<-served //nolint:errcheck // no news: it was closed just now
	return nil
}

// Close frees the address of a server that was never run.
func (s *Server) Close() error {
	if err := s.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func routes(o Options) http.Handler {
	metrics := promhttp.HandlerFor(o.Gatherer, promhttp.HandlerOpts{
		ErrorLog:            quiet(o.Log),
		MaxRequestsInFlight: 4, // a scrape is not cheap, and the listener is open
		Timeout:             readTimeout,
	})
	open := http.NewServeMux()
	open.Handle("/healthz", get(health(o.Health)))
	open.Handle("/readyz", get(health(o.Ready)))
	open.Handle("/metrics", get(metrics))
	open.Handle("/", withToken(o.Token, http.NotFoundHandler()))
	return open
}

// get lets GET and HEAD through.
func get(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// report is the answer of a probe.
type report struct {
	Status  string   `json:"status"`  // ok or unready
	Reasons []string `json:"reasons"` // what is wrong, empty when ok
}

func health(reasons func() []string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		answer, code := report{Status: "ok", Reasons: []string{}}, http.StatusOK
		if wrong := reasons(); len(wrong) > 0 {
			answer, code = report{Status: "unready", Reasons: wrong}, http.StatusServiceUnavailable
		}
		body, err := json.Marshal(answer)
		if err != nil {
			http.Error(w, "internal error", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(code)
		_, _ = w.Write(append(body, '\n'))
	})
}

// quiet takes what net/http has to say about single connections and scrapes: a
// detail, since the other end is told, too.
func quiet(l *zap.Logger) *log.Logger {
	std, err := zap.NewStdLogAt(l, zap.DebugLevel)
	if err != nil {
		return log.New(io.Discard, "", 0) // only for a level that zap does not know
	}
	return std
}

// withToken asks for "Authorization: Bearer <token>" where a token is configured.
// Both sides are hashed first, so that the comparison tells not even the length.
func withToken(token func() string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if token != nil && token() != "" {
			given, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
			want, got := sha256.Sum256([]byte(token())), sha256.Sum256([]byte(given))
			if subtle.ConstantTimeCompare(want[:], got[:]) != 1 {
				w.Header().Set("WWW-Authenticate", "Bearer")
				http.Error(w, "unauthorized", http.StatusUnauthorized)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}
