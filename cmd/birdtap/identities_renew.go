package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/birdtap/birdtap/ingest"
	"github.com/birdtap/birdtap/store"
	"github.com/birdtap/birdtap/store/idmap"
)

// renewer makes receipts of dead letters as the door would: those that it refused are
// judged anew, and their users, as well as those that were not in the identity map,
// are looked up in the map of now. What names a notification only is filled in.
type renewer struct {
	mapper ingest.Mapper
	open   func() (*idmap.Map, error)
	opened bool
	ids    *idmap.Map // nil: there is none
	err    error      // of opening it or of a lookup
}

func (p *program) newRenewer(ctx context.Context, s *store.Store) (*renewer, error) {
	cfg, err := p.config()
	if err != nil {
		return nil, err
	}
	r := &renewer{open: func() (*idmap.Map, error) { return s.OpenIdentities(ctx) }}
	r.mapper = ingest.Mapper{Identities: r, UnmappedDead: cfg.unmappedDead()}
	if cfg.RememberSent > 0 {
		r.mapper.Sent = func(id string) (store.RememberedSend, bool, error) { return s.Remembered(ctx, id) }
	}
	return r, nil
}

// needed tells whether a letter is judged anew and looked up.
func needed(l *store.Letter) bool {
	return l.Reason == store.ReasonRefused || l.Reason == store.ReasonUnmapped
}

// choose leaves the letters that need the map where they are, if it cannot be read.
func (r *renewer) choose(choose func(*store.Letter) bool) func(*store.Letter) bool {
	return func(l *store.Letter) bool {
		if !choose(l) {
			return false
		}
		if needed(l) {
			r.load()
			return r.err == nil
		}
		return true
	}
}

// load opens the map when it is first needed.
func (r *renewer) load() {
	if r.opened || r.open == nil {
		return
	}
	r.opened = true
	r.ids, r.err = r.open()
	if errors.Is(r.err, store.ErrNoIdentities) {
		r.err = nil
	}
}

// renew makes the receipt of a letter's next life, as if it came now, but with the
// time at which it first came. Should the map fail under it, the letter comes back as
// it is and dies anew of the same reason: nothing is lost, and err tells.
func (r *renewer) renew(l store.Letter) store.Receipt {
	if !needed(&l) {
		return l.Receipt
	}
	receipt, err := r.mapper.Convert(l.Receipt.Record, l.Receipt.Accepted)
	if err != nil {
		r.err = err
		receipt = l.Receipt
		receipt.Reason, receipt.Code = l.Reason, l.Code
	}
	return receipt
}

// Lookup is that of a map which nobody changes meanwhile.
func (r *renewer) Lookup(dst, user []byte) ([]byte, store.Mapping, error) {
	if r.load(); r.err != nil {
		return dst, store.MappingUnknown, r.err
	}
	if r.ids == nil {
		return dst, store.MappingNone, nil
	}
	dst, found, err := r.ids.Lookup(dst, user)
	switch {
	case err != nil:
		return dst, store.MappingUnknown, fmt.Errorf("look up a user: %w", err)
	case found:
		return dst, store.MappingFound, nil
	}
	return dst, store.MappingMissing, nil
}

func (r *renewer) close() {
	if r.ids != nil {
		_ = r.ids.Close()
	}
}
