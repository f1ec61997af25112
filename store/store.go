package store

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// States that callers tell apart with errors.Is.
var (
	ErrFull     = errors.New("the queue is full")
	ErrBusy     = errors.New("more receipts wait for the disk than memory allows")
	ErrInvalid  = errors.New("cannot be stored")
	ErrTimeout  = errors.New("the queue did not answer in time; the receipts may still have been stored")
	ErrClosed   = errors.New("the store is closed")
	ErrConflict = errors.New("another relay has written the checkpoint")
	ErrGone     = errors.New("gone")
)

// Sync says when a commit of the embedded queue is acknowledged.
type Sync string

// The two settings of BIRDTAP_SYNC.
const (
	SyncAlways   Sync = "always"   // after fsync
	SyncInterval Sync = "interval" // before it; synced once a second, so a power cut loses up to about that
)

// Options says where the receipts rest. The zero value of a field is its default.
type Options struct {
	NATSURL       string // empty: a nats-server in this process, on DataDir
	NATSCredsFile string
	NATSCAFile    string
	NATSCertFile  string
	NATSKeyFile   string

	DataDir  string // of the embedded queue; created with mode 0700, its parent must exist
	Sync     Sync   // embedded only; default SyncAlways
	Prefix   string // of streams and subjects; default BIRDTAP
	Replicas int    // default 1 embedded, 3 in a cluster

	// Sizes in bytes. 0 means the default, which the embedded queue scales down
	// where it would take more than 60 % of the free space.
	QueueMaxBytes int64 // what may wait; default 8 GiB
	DeadMaxBytes  int64 // dead letters; default 1 GiB
	KeepMaxBytes  int64 // delivered receipts kept, beside the queue; default 1 GiB

	KeepDelivered time.Duration // how long delivered receipts stay; default 24 h, negative: not at all
	DedupWindow   time.Duration // stays readable before the oldest waiting frame

	// RememberSent is how long the sender's notes of notifications stay, see Remember;
	// default 0: there are none.
	RememberSent time.Duration

	// Attach is for commands: use the server of the daemon that runs on DataDir,
	// and open the directory oneself only if none does.
	Attach bool
	// Create makes the embedded queue where Attach finds none, as a daemon would. In a
	// cluster that stays the business of daemons and of Init.
	Create bool
	// InProcess opens no loopback port, so that no command can attach (tests).
	InProcess bool

	Log        *zap.Logger           // default: none
	Registerer prometheus.Registerer // default: none

	volume     func(dir string) (volume, error) // default volumeOf; tests shrink it
	guardEvery time.Duration                    // default guardEvery; tests hurry
	lockWait   time.Duration                    // default lockWait
}

const (
	defaultPrefix        = "BIRDTAP"
	defaultKeepDelivered = 24 * time.Hour
)

func (o Options) withDefaults() Options {
	if o.Sync == "" {
		o.Sync = SyncAlways
	}
	if o.Prefix == "" {
		o.Prefix = defaultPrefix
	}
	if o.Replicas == 0 {
		o.Replicas = 1
		if o.NATSURL != "" {
			o.Replicas = 3
		}
	}
	if o.KeepDelivered == 0 {
		o.KeepDelivered = defaultKeepDelivered
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.Registerer == nil {
		o.Registerer = prometheus.NewRegistry()
	}
	if o.lockWait == 0 {
		o.lockWait = lockWait
	}
	if o.guardEvery == 0 {
		o.guardEvery = guardEvery
	}
	if o.volume == nil {
		o.volume = volumeOf
	}
	return o
}

// names of the streams and subjects of one installation.
type names struct {
	receiptStream, deadStream, stateStream string
	receipts, dead, relay, pause, purged   string // subjects
	pauseNews                              string // of no stream
	campaigns                              string // prefix of subjects
	identities                             string // bucket of the identity map
	remembered                             string // bucket of the sender's notes

	// Of the sender; see Sends.
	sendsStream, heldStream, unsentStream string
	sends, unsent, sender                 string // subjects
	held, orders, runs                    string // what their subjects begin with
	senderAlive                           string // of no stream
}

func namesOf(prefix string) names {
	return names{
		receiptStream: prefix + "_RECEIPTS",
		deadStream:    prefix + "_DEAD",
		stateStream:   prefix + "_STATE",
		receipts:      prefix + ".receipts",
		dead:          prefix + ".dead",
		relay:         prefix + ".state.relay",
		pause:         prefix + ".state.pause",
		purged:        prefix + ".state.purged",
		pauseNews:     prefix + ".news.pause",
		campaigns:     prefix + ".state.campaigns",
		identities:    prefix + "_IDENTITIES",
		remembered:    prefix + "_SENT",

		sendsStream:  prefix + "_SENDS",
		heldStream:   prefix + "_HELD",
		unsentStream: prefix + "_UNSENT",
		sends:        prefix + ".sends",
		held:         prefix + ".held",
		orders:       prefix + ".order",
		unsent:       prefix + ".unsent",
		sender:       prefix + ".state.sender",
		runs:         prefix + ".run",
		senderAlive:  prefix + ".news.sender",
	}
}

// Store is the queue, the dead letters and the relay's state. It is safe for
// concurrent use.
type Store struct {
	opts     Options
	names    names
	log      *zap.Logger
	embedded *embedded // nil on an external server
	denied   *denials
	nc       *nats.Conn
	js       jetstream.JetStream

	receipts, dead, state jetstream.Stream
	remembered            rememberedStream

	committer  *committer
	committing atomic.Bool // a frame is on its way to the server
	recent     recent
	guard      *guard
	metrics    *metrics

	removals sync.WaitGroup // of consumers; see source.stop

	life context.Context // of commits: ends when Close has given up on them
	end  context.CancelFunc

	closing  sync.Once
	closeErr error
}

// Open connects, starting the embedded server where no NATS_URL is given, and makes
// the streams that are missing. It refuses to go on with an empty queue where
// there had been one.
func Open(ctx context.Context, o Options) (*Store, error) {
	o = o.withDefaults()
	s := &Store{opts: o, names: namesOf(o.Prefix), log: o.Log.Named("store"), denied: newDenials()}
	s.life, s.end = context.WithCancel(context.Background())
	err := s.connect(ctx)
	if err == nil {
		err = s.untilAnswered(ctx, func() error { return s.openStreams(ctx) })
	}
	if err == nil && s.embedded != nil {
		// Not before the streams are there: a command would find a part of them.
		err = s.embedded.publishURL()
	}
	if err != nil {
		return nil, errors.Join(err, s.disconnect())
	}
	s.metrics = newMetrics(o.Registerer)
	s.guard = newGuard(s)
	s.committer = newCommitter(s.publishFrame, s.metrics.committed)
	return s, nil
}

// connect finds the server: an external one, the daemon that runs on the
// directory, or one of our own.
func (s *Store) connect(ctx context.Context) (err error) {
	if s.opts.NATSURL != "" {
		return s.dial(s.opts.NATSURL)
	}
	if s.opts.Attach && !s.opts.Create {
		if m, _, err := readMarker(s.opts.DataDir); err != nil || !m.Queue {
			return errors.Join(err, fmt.Errorf("there is no queue in %s: a daemon makes one", s.opts.DataDir))
		}
	}
	s.embedded, err = s.startEmbedded(ctx)
	if errors.Is(err, errLocked) && s.opts.Attach {
		return s.attach(ctx)
	}
	if err != nil {
		return err
	}
	if m, _, err := readMarker(s.opts.DataDir); err == nil && !m.Queue {
		s.opts.Attach = false // the directory is locked, and there is nothing to attach to
	}
	return s.dial("", nats.InProcessServer(s.embedded), nats.Token(s.embedded.token), nats.PingInterval(inProcessPing))
}

// startEmbedded opens the directory. A daemon waits a moment for one that a command has
// open: starting it must not fail because somebody asked for the status just then.
func (s *Store) startEmbedded(ctx context.Context) (*embedded, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.lockWait)
	defer cancel()
	for {
		e, err := startEmbedded(s.opts)
		if !errors.Is(err, errLocked) || s.opts.Attach {
			return e, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(attachRetry):
		}
	}
}

// attach reaches the running daemon. One that is just starting has not yet written
// where it listens, so this waits a while for it.
func (s *Store) attach(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, attachWait)
	defer cancel()
	for {
		address, err := runningURL(s.opts.DataDir)
		if err == nil {
			if err = s.dial(address); err == nil {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("a birdtap has %s open, but does not answer: %w", s.opts.DataDir, err)
		case <-time.After(attachRetry):
		}
	}
}

const (
	lockWait      = 3 * time.Second
	attachWait    = 10 * time.Second
	attachRetry   = 100 * time.Millisecond
	reconnectWait = 250 * time.Millisecond

	// A peer that vanished without a word is noticed after two unanswered pings; one
	// in the same process cannot vanish.
	pingInterval  = time.Second
	pingsMissed   = 2
	inProcessPing = 2 * time.Minute
	// writeTimeout bounds a write to a server that no longer reads. It has to be
	// below publishDeadline, which such a write does not heed.
	writeTimeout = 2 * time.Second
)

func (s *Store) dial(address string, opts ...nats.Option) error {
	opts = append([]nats.Option{
		nats.Name("birdtap"),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(reconnectWait),
		// A commit that cannot be sent now must fail now: what waits in a
		// reconnect buffer may go out long after its sender was told 503.
		nats.ReconnectBufSize(-1),
		nats.FlusherTimeout(writeTimeout),
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(pingsMissed),
		// The library gives up for ever when it is refused twice, but credentials
		// may be late on one server of a cluster.
		nats.IgnoreAuthErrorAbort(),
		nats.CustomInboxPrefix(s.opts.inboxPrefix()),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			s.denied.hear(err)
			s.log.Warn("queue connection", zap.Error(err))
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				s.log.Warn("queue connection lost", zap.Error(err))
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { s.log.Info("queue connection restored") }),
	}, opts...)
	for path, option := range map[string]func() nats.Option{
		s.opts.NATSCredsFile: func() nats.Option { return nats.UserCredentials(s.opts.NATSCredsFile) },
		s.opts.NATSCAFile:    func() nats.Option { return nats.RootCAs(s.opts.NATSCAFile) },
		s.opts.NATSCertFile:  func() nats.Option { return nats.ClientCert(s.opts.NATSCertFile, s.opts.NATSKeyFile) },
	} {
		if path != "" {
			opts = append(opts, option())
		}
	}
	nc, err := nats.Connect(address, opts...)
	if parse := (*url.Error)(nil); errors.As(err, &parse) {
		err = errors.New("its address is not a valid URL") // the error would repeat it, password included
	}
	if err != nil && s.clustered() {
		return fmt.Errorf("connect to the queue at BIRDTAP_NATS_URL: %w", err)
	}
	if err != nil {
		return fmt.Errorf("connect to the queue: %w", err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return fmt.Errorf("connect to the queue: %w", err)
	}
	s.nc, s.js = nc, js
	return nil
}

// Close commits what has gathered, for as long as one commit may take, and ends the
// embedded server in good order. It may be called twice.
func (s *Store) Close() error {
	s.closing.Do(func() {
		giveUp := time.AfterFunc(publishDeadline, s.end)
		defer giveUp.Stop()
		s.committer.close()
		s.guard.stop()
		s.closeErr = s.disconnect()
	})
	return s.closeErr
}

func (s *Store) disconnect() error {
	s.end()
	s.removals.Wait()
	if s.nc != nil {
		s.nc.Close()
	}
	if s.embedded != nil {
		return s.embedded.close()
	}
	return nil
}
