package sender

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/birdtap/birdtap/sendbird"
	"github.com/birdtap/birdtap/store"
)

// Client is what the sender needs of Sendbird. *sendbird.Client is one. Every call is
// one attempt.
type Client interface {
	Turn(ctx context.Context) (sendbird.Turn, error)
	Presign(ctx context.Context, key string, overwrite bool) (sendbird.Presigned, error)
	Upload(ctx context.Context, p sendbird.Presigned, file io.ReaderAt, size int64) error
	Template(ctx context.Context, key string) (sendbird.Template, error)
}

// Options says how the sender works. The zero value of a field is its default.
type Options struct {
	Sends  *store.Sends
	Client Client

	GatherWait time.Duration // how long users of one campaign are gathered; default 30 s, negative: not at all
	StopWait   time.Duration // how long a graceful stop waits for calls on their way; default 15 s

	// Remember keeps what each notification was about, for receipts that carry its id
	// alone; see store.Store.Remember.
	Remember bool

	Log        *zap.Logger
	Registerer prometheus.Registerer

	maxHeld int // default maxHeld; tests shrink it
}

func (o Options) withDefaults() Options {
	if o.GatherWait == 0 {
		o.GatherWait = 30 * time.Second
	}
	if o.StopWait == 0 {
		o.StopWait = 15 * time.Second
	}
	if o.maxHeld == 0 {
		o.maxHeld = maxHeld
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.Registerer == nil {
		o.Registerer = prometheus.NewRegistry()
	}
	return o
}

// Sender takes asks from the log to Sendbird. Of all senders of one installation one is
// active; the others stand by.
type Sender struct {
	opts    Options
	log     *zap.Logger
	metrics *metrics
	self    string // random id of this process start

	progress atomic.Int64 // Unix ns of the loop's last turn; 0 while it stands by
}

// New returns a sender that Run sets to work.
func New(o Options) *Sender {
	o = o.withDefaults()
	return &Sender{opts: o, log: o.Log.Named("sender"), metrics: newMetrics(o.Registerer), self: rand.Text()}
}

// Run sends until ctx ends, then waits for the calls on their way, writes the last
// checkpoint and returns. It returns an error only if the checkpoint or the log cannot be
// understood.
func (s *Sender) Run(ctx context.Context) error {
	for first := true; ctx.Err() == nil; first = false {
		l, cp, err := s.standBy(ctx, first)
		if err != nil || l == nil {
			return err
		}
		if err := s.newTerm(l, cp).run(ctx); err != nil {
			return err
		}
	}
	return nil
}

// stalledAfter is how long the loop may be silent before the sender counts as wedged: it
// takes a turn at least every maxRest.
const stalledAfter = 30 * time.Second

// Active tells whether this sender is the one that sends.
func (s *Sender) Active() bool { return s.progress.Load() != 0 }

// Health returns an error if the active sender makes no progress at all. Waiting for
// Sendbird and standing by are progress.
func (s *Sender) Health() error {
	last := s.progress.Load()
	if last == 0 {
		return nil
	}
	if silent := time.Since(time.Unix(0, last)); silent > stalledAfter {
		return fmt.Errorf("the sender's loop has not turned for %v", silent.Round(time.Second))
	}
	return nil
}
