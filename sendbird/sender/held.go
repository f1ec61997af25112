package sender

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"go.uber.org/zap"

	"github.com/birdtap/birdtap/store"
)

// Held is a call whose outcome nobody knows. It is kept until an operator releases or
// drops it.
type Held struct {
	ID      string    `json:"id"`
	Since   time.Time `json:"since"`
	Mode    Mode      `json:"mode"`
	Users   int       `json:"users"`
	Why     string    `json:"why"`
	Message Message   `json:"message"`
}

// heldHead is the first line of a held call as it is stored; each further one is an ask.
type heldHead struct {
	Format int `json:"format"` // heldFormat
	Held
}

const heldFormat = 1

// hold keeps a call for the operator, without those of its users who were not in it.
func (t *term) hold(ctx context.Context, c *call, out *outcome) error {
	head := heldHead{heldFormat, Held{
		ID: t.heldID(c.number), Since: time.Now().UTC(), Mode: c.mode, Users: out.users, Why: out.why, Message: c.group.message,
	}}
	var b bytes.Buffer
	if err := json.MarshalWrite(&b, head); err != nil {
		return fmt.Errorf("encode held call: %w", err)
	}
	without := out.without()
	for a, err := range c.asks() {
		if err != nil {
			return err
		}
		a.Unsendable = nil
		a.Users = slices.DeleteFunc(a.Users, func(u User) bool { return without[u.ID] })
		b.WriteByte('\n')
		if err := json.MarshalWrite(&b, a, json.Deterministic(true)); err != nil {
			return fmt.Errorf("encode held call: %w", err)
		}
	}
	t.holding.Lock() // the pieces of one call lie together
	defer t.holding.Unlock()
	return t.opts.Sends.Hold(ctx, head.ID, b.Bytes())
}

// without is who was kept apart from the call.
func (o *outcome) without() map[string]bool {
	without := make(map[string]bool, len(o.misfits))
	for _, u := range o.misfits {
		without[u.User] = true
	}
	return without
}

// heldID names a call. The term is part of it, so that a sender that has been replaced
// and does not know it yet cannot write into what its successor keeps.
func (t *term) heldID(number uint64) string { return fmt.Sprintf("%d-%d", number, t.lease.term) }

// readHeld reads the first line of a held call, and returns the others.
func readHeld(data []byte) (Held, []byte, error) {
	line, rest, _ := bytes.Cut(data, []byte("\n"))
	if err := store.NewerFormat(line, heldFormat); err != nil {
		return Held{}, nil, fmt.Errorf("held call %w", err)
	}
	var h heldHead
	if err := json.Unmarshal(line, &h); err != nil || h.Format != heldFormat {
		return Held{}, nil, fmt.Errorf("%w: held call", store.ErrCorrupt)
	}
	return h.Held, rest, nil
}

// load reads a call that was held, to be sent again.
func (c *call) load(ctx context.Context, sends *store.Sends) error {
	if c.released == "" || c.stored != nil {
		return nil
	}
	data, err := findHeld(ctx, sends, c.released)
	if err != nil {
		return err
	}
	held, asks, err := readHeld(data)
	if err != nil {
		return err
	}
	c.group.message, c.stored = held.Message, asks
	return nil
}

// asks are those that a call is made of. One at a time is in memory decoded.
func (c *call) asks() iter.Seq2[Ask, error] {
	if c.released != "" {
		return func(yield func(Ask, error) bool) {
			for line := range bytes.SplitSeq(c.stored, []byte("\n")) {
				if !yield(decodeAsk(line)) {
					return
				}
			}
		}
	}
	return func(yield func(Ask, error) bool) {
		for _, e := range c.group.entries {
			if !yield(decodeAsk(e.data)) {
				return
			}
		}
	}
}

// findHeld returns a held call as it is stored.
func findHeld(ctx context.Context, sends *store.Sends, id string) ([]byte, error) {
	var found []byte
	err := sends.Held(ctx, func(of string, call []byte) error {
		if of == id {
			found = call
		}
		return nil
	})
	if err == nil && found == nil {
		err = fmt.Errorf("there is no held call %q", id)
	}
	return found, err
}

// UnsentEntry is one entry of the list of users who were not sent to.
//
// It is kept as JSON and outlives a deploy: fields are only added.
type UnsentEntry struct {
	Time     time.Time    `json:"time"`
	Mode     Mode         `json:"mode"`
	Template string       `json:"template"`
	Event    string       `json:"event,omitempty"`
	Target   string       `json:"target,omitempty"`
	Reason   Reason       `json:"reason,omitempty"` // of all Users
	Users    []string     `json:"users,omitempty"`
	Each     []Unsendable `json:"each,omitempty"` // those with a reason of their own
	Raw      []byte       `json:"raw,omitempty"`  // of what does not decode
}

// maxListed users are in one entry, so that it fits a message.
const maxListed = 1000

// listUnsent puts those on the list who were not sent to by this call, and tells whether
// there were any.
func (t *term) listUnsent(ctx context.Context, c *call, out *outcome) (bool, error) {
	m := c.group.message
	entry := UnsentEntry{Time: time.Now().UTC(), Mode: c.mode, Template: m.Template, Event: m.Event, Target: m.Target}
	put := func(e UnsentEntry) error {
		data, err := json.Marshal(e)
		if err != nil {
			return fmt.Errorf("encode: %w", err)
		}
		return t.opts.Sends.ListUnsent(ctx, data)
	}
	apart := slices.Concat(out.unsendable, out.misfits)
	for each := range slices.Chunk(apart, maxListed) {
		e := entry
		e.Each = each
		if err := put(e); err != nil {
			return false, err
		}
	}
	if out.kind != callRefused {
		return len(apart) > 0, nil
	}
	without := out.without()
	for a, err := range c.asks() {
		if err != nil {
			return false, err
		}
		e := entry
		e.Reason = out.reason
		for _, u := range a.Users {
			if !without[u.ID] {
				e.Users = append(e.Users, u.ID)
			}
		}
		if err := put(e); err != nil {
			return false, err
		}
	}
	return true, nil
}

// listCorrupt puts what there is of a frame on the list that does not decode.
func (t *term) listCorrupt(ctx context.Context, f *store.SendFrame) {
	data, err := json.Marshal(UnsentEntry{Time: f.Time, Reason: ReasonCorrupt, Raw: f.Raw})
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, readWait)
		defer cancel()
		err = t.opts.Sends.ListUnsent(ctx, data)
	}
	if err != nil {
		t.log.Error("cannot list what there is of a frame that does not decode", zap.Uint64("frame", f.Seq), zap.Error(err))
	}
}
