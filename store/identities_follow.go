package store

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/birdtap/birdtap/store/idmap"
)

const (
	// identityLookEvery is how often a daemon asks for a new map: one small question.
	// A subscription would tell sooner, but stands still for seconds when the cluster
	// changes leaders, and a poll would be needed beside it.
	identityLookEvery = 2 * time.Second
	// identityRetryMost is the longest pause between two tries to fetch a map.
	identityRetryMost = time.Minute
	// identityAnswerWait is how long the doors stay shut at start while nobody says
	// whether there is a map; identityFetchWait, while there is one to be fetched.
	identityAnswerWait = 10 * time.Second
	identityFetchWait  = time.Minute
)

// tries counts failures to get hold of one version.
type tries struct {
	version string
	n       int
	next    time.Time // not before
}

// FollowIdentities prepares to follow the map; Run does it. It is called once.
func (s *Store) FollowIdentities() *Identities {
	i := &Identities{
		store: s,
		log:   s.log.Named("identities"),
		every: identityLookEvery, ask: identityAnswerWait, fetch: identityFetchWait,
		users: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "birdtap_identities",
			Help: "Users in the identity map in use; 0 without a map.",
		}),
		ready:   make(chan struct{}),
		wake:    make(chan struct{}, 1),
		without: MappingUnknown,
	}
	s.opts.Registerer.MustRegister(i.users)
	return i
}

// Run follows the map until ctx ends, and closes it: the doors are shut before.
func (i *Identities) Run(ctx context.Context) {
	defer i.close()
	i.openLocal()
	asked := time.AfterFunc(i.ask, func() { i.openAnyway(i.ask) })
	defer asked.Stop()
	fetched := time.AfterFunc(i.fetch, func() { i.openAnyway(i.fetch) })
	defer fetched.Stop()
	tick := time.NewTicker(i.every)
	defer tick.Stop()
	for ctx.Err() == nil {
		if i.look(ctx); i.denied {
			<-ctx.Done() // asking again would only fill the log
			return
		}
		wake := i.wake
		if i.damaged {
			wake = nil // known already
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-wake:
			i.damaged = true
			i.log.Error("the copy of the identity map is damaged, fetching it anew; users in the damaged part are unmapped until then")
		}
	}
}

// openLocal verifies the copy of an earlier run.
func (i *Identities) openLocal() {
	m, err := idmap.Open(i.store.identityPath())
	switch {
	case err == nil:
		i.mu.Lock()
		i.local = m
		i.mu.Unlock()
	case errors.Is(err, idmap.ErrCorrupt):
		i.log.Warn("the copy of the identity map is damaged", zap.Error(err))
		_ = os.Remove(i.store.identityPath()) // else the next fetch takes its place
	case !errors.Is(err, fs.ErrNotExist):
		i.log.Warn("the copy of the identity map cannot be read", zap.Error(err))
	}
}

// look asks for the map that holds and gets hold of it.
func (i *Identities) look(ctx context.Context) {
	stream, err := i.store.identityStream(ctx)
	var info IdentityInfo
	if err == nil {
		info, _, err = i.store.identityInfo(ctx, stream)
	}
	switch {
	case ctx.Err() != nil:
	case errors.Is(err, errIdentitiesDenied):
		i.denied = true
		i.log.Warn("going on without an identity map", zap.Error(err))
		i.none(false)
	case errors.Is(err, ErrNoIdentities):
		i.none(info.upload != "")
	case err != nil:
		i.unanswered(err)
	default:
		i.follow(ctx, stream, info)
	}
}

// none: the queue has no map. One that was removed is forgotten. If there is not even
// a word of a removal, but a map is in use or was, its bucket was lost, and users are
// better off with the copy.
func (i *Identities) none(removed bool) {
	have := i.have()
	if have != nil && !removed {
		if i.failed.due("lost", time.Now()) {
			i.failed.note("lost", time.Now())
			i.log.Error("the identity map is gone from the queue, going on with the copy: import it again, or remove it with birdtap identities remove")
		}
		i.useLocal()
		return
	}
	if have != nil {
		i.log.Info("the identity map was removed")
		if err := os.Remove(i.store.identityPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			i.log.Warn("the copy of the identity map cannot be deleted", zap.Error(err))
		}
	}
	i.use(nil)
}

// unanswered: whether there is a map is not to be known now. A copy is used at once.
func (i *Identities) unanswered(err error) {
	if i.failed.due("unanswered", time.Now()) {
		i.failed.note("unanswered", time.Now())
		i.log.Warn("the queue does not tell about the identity map", zap.Error(err))
	}
	i.useLocal()
}

// follow gets hold of the map that holds.
func (i *Identities) follow(ctx context.Context, stream jetstream.Stream, info IdentityInfo) {
	i.mu.Lock()
	i.known = true
	i.mu.Unlock()
	if m := i.have(); m != nil && m.Version() == info.Version && !i.damaged {
		i.useLocal()
		return
	}
	now := time.Now()
	if !i.failed.due(info.Version, now) {
		return
	}
	m, err := i.store.fetchIdentities(ctx, stream, info)
	if ctx.Err() != nil {
		if m != nil {
			_ = m.Close()
		}
		return
	}
	if err != nil {
		i.failed.note(info.Version, time.Now())
		i.log.Error("the identity map cannot be fetched, going on without this version", zap.Error(err), zap.Int("tries", i.failed.n))
		return
	}
	i.use(m)
	i.damaged, i.failed = false, tries{}
	select {
	case <-i.wake: // that was about the map before
	default:
	}
	i.log.Info("identity map loaded", zap.Uint64("users", m.Users()), zap.Int64("bytes", m.Size()), zap.Duration("took", time.Since(now)))
}

// due tells whether version may be tried again: at once if it is another one than
// failed last.
func (t *tries) due(version string, now time.Time) bool {
	return t.version != version || !now.Before(t.next)
}

func (t *tries) note(version string, now time.Time) {
	if t.version != version {
		*t = tries{version: version}
	}
	t.n++
	t.next = now.Add(min(identityRetryMost, time.Second<<min(t.n, 10)))
}

// openAnyway lets the doors open after a wait that was long enough: for an answer, or
// for the map to be fetched.
func (i *Identities) openAnyway(waited time.Duration) {
	i.mu.RLock()
	settled, known, local := i.settled, i.known, i.local
	i.mu.RUnlock()
	if settled || known && waited < i.fetch {
		return
	}
	if local != nil {
		i.log.Error("the doors open with an older identity map")
		i.useLocal()
		return
	}
	i.log.Error("the doors open without the identity map", zap.Bool("there_is_one", known))
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.settled {
		return
	}
	i.without = MappingMissing
	if known {
		i.without = MappingUnknown
	}
	i.settle()
}
