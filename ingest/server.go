package ingest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/semaphore"

	"github.com/birdtap/birdtap/store/failpoint"
)

const (
	readHeaderTimeout = 3 * time.Second
	readTimeout       = 10 * time.Second
	writeTimeout      = 15 * time.Second // reading, committing and answering fit in
	idleTimeout       = 75 * time.Second // above that of usual load balancers, or they meet closed connections

	// maxHeaderBytes is the longest block of request line and headers.
	maxHeaderBytes = 16 << 10
	// headerSlop is what net/http allows beyond http.Server.MaxHeaderBytes.
	headerSlop = 4 << 10
)

// Options says which doors are open, and to whom. The zero value of a field is
// its default.
type Options struct {
	Addr     string       // listened on, unless there is a Listener
	Listener net.Listener // closed by Shutdown

	// TLSCertFile and TLSKeyFile: both or none. They are read again when they change.
	TLSCertFile, TLSKeyFile string

	// Upload opens the door of CleverTap's upload call: POST /1/upload and POST /.
	// Callers present Account and Passcode, which are asked for at every call;
	// nobody matches an empty one.
	Upload            bool
	Account, Passcode func() string
	// UploadPaths are further paths of that door. Each is the door itself, and
	// what "/1/upload" is appended to.
	UploadPaths []string

	// Verifier opens the door for signed receipts, POST /sendbird/callbacks.
	Verifier Verifier

	// UnmappedDead makes a dead letter of a receipt whose user is not in the identity
	// map, where there is one; see Mapper and SetIdentities.
	UnmappedDead bool

	// Other answers every other path, for rooms that share the address. Default: 404.
	Other http.Handler

	MaxConns   int // connections at once, default 4096 or what descriptors allow; further ones wait to be accepted
	Log        *zap.Logger
	Registerer prometheus.Registerer // default: one of its own
	Now        func() time.Time      // gives the ts of records that have none; default time.Now
}

// Server is the doors. They are open from the start, and answer 503 until
// SetCommitter.
type Server struct {
	account, passcode func() string
	uploadPaths       map[string]bool // empty if that door is closed
	verifier          Verifier        // nil if that door is closed
	other             http.Handler
	now               func() time.Time
	log               *zap.Logger
	metrics           *metrics

	listener  net.Listener
	http      *http.Server
	committer atomic.Pointer[Committer]
	mapper    atomic.Pointer[Mapper]
	// remembered is nil where nothing is filled in; see SetSends.
	remembered atomic.Pointer[remembered]
	failing    atomic.Bool // commits fail; for logging it once
	calls      calls

	verifiedRoom, unverifiedRoom *semaphore.Weighted // for large bodies, in bytes
}

// New opens the listener, so that an address that is taken shows at once, and a
// caller may connect; Serve answers.
func New(o Options) (*Server, error) {
	s := &Server{
		account: o.Account, passcode: o.Passcode,
		uploadPaths: uploadPaths(o),
		verifier:    o.Verifier,
		other:       o.Other,
		now:         o.Now,
		log:         o.Log,

		verifiedRoom:   semaphore.NewWeighted(verifiedBytes),
		unverifiedRoom: semaphore.NewWeighted(unverifiedBytes),
	}
	s.mapper.Store(&Mapper{UnmappedDead: o.UnmappedDead})
	if o.Upload && (o.Account == nil || o.Passcode == nil) {
		return nil, errors.New("the upload door needs an account and a passcode")
	}
	if s.log == nil {
		s.log = zap.NewNop()
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.other == nil {
		s.other = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.refuse(w, r, notFound) })
	}
	if err := s.setUp(o); err != nil {
		return nil, err
	}
	return s, nil
}

// setUp is the part of New that may fail from outside.
func (s *Server) setUp(o Options) error {
	registerer := o.Registerer
	if registerer == nil {
		registerer = prometheus.NewRegistry()
	}
	var err error
	if s.metrics, err = newMetrics(registerer); err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	s.http = newHTTPServer(s, s.log)
	if o.TLSCertFile != "" || o.TLSKeyFile != "" {
		cert, err := newCertificate(o.TLSCertFile, o.TLSKeyFile, s.log)
		if err != nil {
			return err
		}
		s.http.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cert.get}
	}
	listener := o.Listener
	if listener == nil {
		if listener, err = net.Listen("tcp", o.Addr); err != nil { //nolint:noctx // at start, and local
			return err
		}
	}
	maxConns := o.MaxConns
	if maxConns == 0 {
		maxConns = affordableConns(descriptors())
	}
	s.listener = netutil.LimitListener(listener, maxConns)
	return nil
}

func newHTTPServer(handler http.Handler, log *zap.Logger) *http.Server {
	// What goes wrong before a handler is called (TLS, accepting) is told here only.
	errorLog, _ := zap.NewStdLogAt(log, zap.WarnLevel) // has an error for an unknown level only
	h := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes - headerSlop,
		ErrorLog:          errorLog,
		Protocols:         new(http.Protocols),
		// A general OPTIONS would be answered 200 without the handler.
		DisableGeneralOptionsHandler: true,
	}
	h.Protocols.SetHTTP1(true)
	return h
}

func uploadPaths(o Options) map[string]bool {
	if !o.Upload {
		return nil
	}
	// The caller may append the path to an address that has it already.
	paths := map[string]bool{"/": true, "/1/upload": true, "/1/upload/1/upload": true}
	for _, p := range o.UploadPaths {
		if strings.HasSuffix(p, "/") {
			paths["/"+strings.Trim(p, "/")+"/"] = true
		}
		p = "/" + strings.Trim(p, "/")
		paths[p] = true
		paths[strings.TrimSuffix(p, "/")+"/1/upload"] = true
	}
	return paths
}

// Addr is what the server listens on.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// SetCommitter says where receipts go from now on; with nil the doors answer 503
// again.
func (s *Server) SetCommitter(c Committer) {
	if c == nil {
		s.committer.Store(nil)
		return
	}
	s.committer.Store(&c)
}

// SetIdentities says where users are looked up from now on; nil is no map.
func (s *Server) SetIdentities(ids Identities) {
	s.mapper.Store(&Mapper{Identities: ids, UnmappedDead: s.mapper.Load().UnmappedDead})
}

// Serve answers calls until Shutdown, after which it returns nil.
func (s *Server) Serve() error {
	var err error
	if s.http.TLSConfig != nil {
		err = s.http.ServeTLS(s.listener, "", "")
	} else {
		err = s.http.Serve(s.listener)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Shutdown takes no new calls, and waits for those under way until ctx ends;
// then it cuts them off. It may be called twice.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		_ = s.http.Close()
	}
	_ = s.listener.Close() // of a server that never served, too
	return err
}

// ServeHTTP finds the door. Path and method come before any credential.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer s.recover(w, r)
	var door http.HandlerFunc
	switch path := r.URL.Path; {
	case s.uploadPaths[path]:
		door = s.upload
	case path == "/sendbird/callbacks" && s.verifier != nil:
		door = s.callback
	default:
		s.other.ServeHTTP(w, r)
		return
	}
	if r.Method != http.MethodPost {
		s.refuse(w, r, wrongMethod)
		return
	}
	door(w, r)
}

// recover turns a panic into a 500. What was panicked with is not logged: it may
// quote the call.
func (s *Server) recover(w http.ResponseWriter, r *http.Request) {
	v := recover()
	if v == nil {
		return
	}
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(v) // a handler's way to cut the connection, not a fault
	}
	s.metrics.panics.Inc()
	s.log.Error("a handler panicked", zap.String("type", fmt.Sprintf("%T", v)), zap.Stack("stack"))
	s.refuse(w, r, broken)
}

// parse turns the body of a call into receipts, their users looked up.
func (s *Server) parse(c *call, misread *refusal) *refusal {
	c.converter.mapper = *s.mapper.Load()
	return c.parse(s.now(), misread)
}

// commit stores the receipts of a call, those refused together with the good ones.
func (s *Server) commit(ctx context.Context, committer Committer, c *call) error {
	if len(c.receipts) == 0 {
		return nil
	}
	// A caller who hangs up has still handed over receipts: they are stored.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitWithin-c.waited)
	defer cancel()
	err := committer.Commit(ctx, c.receipts)
	if err == nil {
		failpoint.Here(failpoint.Stored)
	}
	s.noteCommit(err)
	return err
}

// noteCommit logs when commits begin to fail, and when they succeed again.
func (s *Server) noteCommit(err error) {
	failing := err != nil
	switch {
	case s.failing.Load() == failing || s.failing.Swap(failing) == failing:
		// Nothing new; the first look spares the common case a write that all share.
	case failing:
		s.log.Error("receipts cannot be stored, callers get 503", zap.Error(err))
	default:
		s.log.Info("receipts are stored again")
	}
}
