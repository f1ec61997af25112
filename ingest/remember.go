package ingest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"go.uber.org/zap"

	"github.com/birdtap/birdtap/clevertap"
	"github.com/birdtap/birdtap/store"
)

// A signed record may name a notification and its user in place of event name, target id
// and identity:
//
//	{"notification_id":"7190607145580961921","user_id":"u1","evtData":{"status":"READ"}}
//
// Then what is missing of the three is filled in from what birdtap's sender noted when it
// sent the notification, and the record is what it would have been in full:
//
//	{"identity":"u1","ts":N,"type":"event","evtName":"Offer","evtData":{"status":"READ","target_id":123}}
//
// The user is looked up in the identity map as any other is. A status beside evtData is
// taken, too, if evtData has none. A notification that nobody knows is refused with 512,
// and kept: a replay looks once more.

// Sends knows what birdtap's sender noted of the notifications that it sent.
type Sends interface {
	Remembered(ctx context.Context, notificationID string) (store.RememberedSend, bool, error)
}

// sentFunc is a look at what was noted of one notification.
type sentFunc func(notificationID string) (store.RememberedSend, bool, error)

// lacks tells whether the record names a notification in place of something.
func (r *record) lacks() bool {
	return r.isObject && r.notificationID != nil && r.userID != nil &&
		(r.evtName == nil || r.users == 0 || (r.evtData == nil || r.evtData[0] == '{') && r.prop("target_id") == nil)
}

func (r *record) prop(name string) []byte {
	for _, p := range r.props {
		if string(p.name) == name {
			return p.value
		}
	}
	return nil
}

// fill fills in what the record lacks. What cannot be is left as it is, for judge.
func (c *converter) fill(rec *record) error {
	if c.sent == nil || !rec.lacks() {
		return nil
	}
	send, found, err := c.sent(string(c.scalar(rec.notificationID)))
	if err != nil || !found {
		return err
	}
	if rec.evtName == nil {
		rec.evtName, err = jsontext.AppendQuote(nil, send.Event)
	}
	if rec.users == 0 {
		rec.setUser(clevertap.Identity, rec.userID)
	}
	if rec.evtData == nil {
		rec.evtData = []byte("{}")
	}
	rec.drop("notification_id") // they have stood for the others
	rec.drop("user_id")
	if rec.evtData[0] == '{' {
		if rec.need("status", rec.status) {
			rec.drop("status")
		}
		rec.need("target_id", targetValue(send.Target))
	}
	return err
}

// need adds a property, unless there is one of that name, or nothing to add.
func (r *record) need(name string, value []byte) bool {
	if value == nil || r.prop(name) != nil {
		return false
	}
	r.props = appendMember(r.props, member{quoted: []byte(`"` + name + `"`), name: []byte(name), value: value})
	return true
}

// drop takes an unknown member out.
func (r *record) drop(name string) {
	r.extras = slices.DeleteFunc(r.extras, func(m member) bool { return string(m.name) == name })
}

// targetValue is a target id as CleverTap's webhook gave it: a number if it is one in
// plain digits.
func targetValue(target string) []byte {
	digits := strings.TrimPrefix(target, "-")
	if strings.Trim(digits, "0123456789") == "" && jsontext.Value(digits).IsValid() {
		return []byte(target)
	}
	quoted, err := jsontext.AppendQuote(nil, target)
	if err != nil {
		return nil // no text: the record is refused
	}
	return quoted
}

const (
	// sentWithin is how long a call waits for what was noted. A receipt may come before
	// the note about its notification is on disk, so a miss is looked up again.
	sentWithin = time.Second
	sentAgain  = 100 * time.Millisecond
	// sentAtOnce is how many look-ups one call makes at a time.
	sentAtOnce = 16
	// sentKept is how many notes are kept in memory at least, and twice as many at most;
	// each is some 200 bytes.
	sentKept = 20_000
)

// remembered looks notes up, and keeps those that it found.
type remembered struct {
	sends   Sends
	log     *zap.Logger
	failing atomic.Bool

	mu         sync.Mutex
	young, old map[string]store.RememberedSend
}

func (m *remembered) kept(id string) (store.RememberedSend, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	send, found := m.young[id]
	if !found {
		send, found = m.old[id]
	}
	return send, found
}

func (m *remembered) keep(id string, send store.RememberedSend) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.young == nil || len(m.young) >= sentKept {
		m.young, m.old = map[string]store.RememberedSend{}, m.young
	}
	m.young[id] = send
}

// find looks up all of ids, for sentWithin at most. Those that it does not return are
// not known.
func (m *remembered) find(ctx context.Context, ids map[string]bool) map[string]store.RememberedSend {
	ctx, cancel := context.WithTimeout(ctx, sentWithin)
	defer cancel()
	found := map[string]store.RememberedSend{}
	var open []string
	for id := range ids {
		if send, ok := m.kept(id); ok {
			found[id] = send
		} else {
			open = append(open, id)
		}
	}
	for len(open) > 0 {
		open = m.ask(ctx, open, found)
		if len(open) == 0 {
			break
		}
		select {
		case <-time.After(sentAgain):
		case <-ctx.Done():
			return found
		}
	}
	return found
}

// ask looks up ids once, several at a time, and returns those that were not found.
func (m *remembered) ask(ctx context.Context, ids []string, found map[string]store.RememberedSend) (open []string) {
	var mu sync.Mutex
	var all sync.WaitGroup
	next := make(chan string)
	for range min(sentAtOnce, len(ids)) {
		all.Go(func() {
			for id := range next {
				send, ok, err := m.sends.Remembered(ctx, id)
				if ctx.Err() == nil {
					m.note(err)
				}
				mu.Lock()
				if ok && err == nil {
					m.keep(id, send)
					found[id] = send
				} else {
					open = append(open, id)
				}
				mu.Unlock()
			}
		})
	}
	for _, id := range ids {
		if ctx.Err() != nil {
			break
		}
		next <- id
	}
	close(next)
	all.Wait()
	return open
}

// note logs when look-ups begin to fail, and when they succeed again.
func (m *remembered) note(err error) {
	switch failing := err != nil; {
	case m.failing.Swap(failing) == failing:
	case failing:
		m.log.Error("what was sent cannot be looked up: receipts that name a notification only are refused, and kept for a replay", zap.Error(err))
	default:
		m.log.Info("what was sent can be looked up again")
	}
}

// errStop ends a first look at a body that will be refused anyway.
var errStop = errors.New("stop")

// lookUp finds what the records of a signed call lack, all of them together: one after
// the other would take too long.
func (c *call) lookUp(ctx context.Context, m *remembered) {
	began := time.Now()
	ids, records := map[string]bool{}, 0
	err := c.parser.parse(c.body, func(rec *record) error {
		if records++; records > maxRecords {
			return errStop
		}
		if rec.lacks() && !c.converter.isOtherWebhook(rec) {
			ids[string(c.converter.scalar(rec.notificationID))] = true
		}
		return nil
	})
	c.converter.texts.reset()
	if err != nil || len(ids) == 0 {
		return // it will be refused as a whole, or lacks nothing
	}
	found := m.find(ctx, ids)
	c.converter.sent = func(id string) (store.RememberedSend, bool, error) {
		send, ok := found[id]
		return send, ok, nil
	}
	c.waited += time.Since(began)
}

// SetSends says where what the sender noted is looked up from now on, for the signed
// door; nil: nowhere.
func (s *Server) SetSends(sends Sends) {
	if sends == nil {
		s.remembered.Store(nil)
		return
	}
	s.remembered.Store(&remembered{sends: sends, log: s.log})
}
