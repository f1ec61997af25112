package store

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/birdtap/birdtap/store/idmap"
)

// Mapping is what a look into the identity map found.
type Mapping int

// The answers of Identities.Lookup.
const (
	MappingNone    Mapping = iota // there is no map: users are left as they are
	MappingFound                  // this is the identity
	MappingMissing                // there is a map, and the user is not in it
	MappingUnknown                // there is a map, but this process could not get hold of it
)

// Identities is the identity map as one daemon uses it: it follows the queue. A new
// version is fetched and verified in full beside the old one, then takes its place at
// once; what cannot be fetched changes nothing.
//
// At start it decides what the doors do, see Ready:
//
//	the queue says              the doors
//	there is no map             open
//	a map, and the copy is it   open when the copy is verified: a second for 10 million users
//	a map, to be fetched        open when it is there; after a minute without: with an older
//	                            copy if there is one, else every lookup is MappingUnknown
//	nothing, a copy is there    open with the copy
//	nothing, and no copy        open after 10 s, as if the user were not in a map
//	                            (MappingMissing), since nothing tells that there is none
//
// Nobody behind the doors keeps a receipt for longer than that, so a shut door loses
// it for good.
type Identities struct {
	store *Store
	log   *zap.Logger
	every time.Duration // identityLookEvery, and the others; tests hurry
	ask   time.Duration
	fetch time.Duration
	users prometheus.Gauge

	ready chan struct{} // closed when the doors may open
	wake  chan struct{} // capacity 1: look now

	mu      sync.RWMutex // held for reading by lookups
	current *idmap.Map   // nil: none is in use
	without Mapping      // what a lookup without a map finds
	local   *idmap.Map   // the copy found at start, until it is clear whether it is current
	settled bool         // ready is closed
	known   bool         // the queue has said that there is a map

	// Of Run alone.
	failed  tries
	damaged bool // the copy in use was found damaged
	denied  bool // the user of this process may not ask for it
}

// Ready is closed when receipts may be taken in: their users will be looked up in the
// map that holds, as far as one can know.
func (i *Identities) Ready() <-chan struct{} { return i.ready }

// Lookup appends to dst the identity of a user, if there is one. An error says that
// the copy on disk is damaged or cannot be read: nothing is known of the user then, and
// another copy is being fetched.
func (i *Identities) Lookup(dst, user []byte) ([]byte, Mapping, error) {
	i.mu.RLock()
	defer i.mu.RUnlock()
	if i.current == nil {
		return dst, i.without, nil
	}
	dst, found, err := i.current.Lookup(dst, user)
	switch {
	case err != nil:
		select {
		case i.wake <- struct{}{}:
		default:
		}
		return dst, MappingUnknown, err
	case found:
		return dst, MappingFound, nil
	}
	return dst, MappingMissing, nil
}

// have is the map in use or, before one is, the copy of an earlier run.
func (i *Identities) have() *idmap.Map {
	i.mu.RLock()
	defer i.mu.RUnlock()
	if i.current != nil {
		return i.current
	}
	return i.local
}

// useLocal puts the copy of an earlier run in use, if there is one and nothing better.
func (i *Identities) useLocal() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if m := i.local; m != nil {
		i.swap(m)
		i.log.Info("identity map loaded from its copy", zap.Uint64("users", m.Users()), zap.Int64("bytes", m.Size()))
	}
}

// use puts a map in use, nil for none.
func (i *Identities) use(m *idmap.Map) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.swap(m)
}

// swap changes the map between two lookups, and lets the doors open; mu is held.
func (i *Identities) swap(m *idmap.Map) {
	for _, old := range []*idmap.Map{i.current, i.local} {
		if old != nil && old != m {
			_ = old.Close()
		}
	}
	i.current, i.local, i.without = m, nil, MappingNone
	i.users.Set(0)
	if m != nil {
		i.users.Set(float64(m.Users()))
	}
	i.settle()
}

// settle lets the doors open; mu is held.
func (i *Identities) settle() {
	if !i.settled {
		i.settled = true
		close(i.ready)
	}
}

func (i *Identities) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, m := range []*idmap.Map{i.current, i.local} {
		if m != nil {
			_ = m.Close()
		}
	}
	i.current, i.local, i.without = nil, nil, MappingUnknown
}
