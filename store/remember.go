package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// The sender's notes lie in a key-value bucket, so that nats's own tool can read them.
// With the prefix BIRDTAP:
//
//	stream           subject                        a message is
//	KV_BIRDTAP_SENT  $KV.BIRDTAP_SENT.<id>          event name and target id of a notification
//
// Each is deleted RememberSent after it was written: it is a note, not a receipt. The
// server keeps their index in memory, about 450 bytes each, which is why there are none
// unless they are asked for.

// RememberedSend is what the sender knows of a notification. It outlives a deploy: fields
// are only added.
type RememberedSend struct {
	Event  string `json:"event"`
	Target string `json:"target"` // the digits of a number, or a text
}

// rememberedMaxBytes bounds the bucket: some five million notes. A full one forgets the
// oldest.
const rememberedMaxBytes = 1 << 30

// rememberWait bounds one note, or one look for some.
const rememberWait = time.Second

func (n names) rememberedStream() string { return "KV_" + n.remembered }

func (s *Store) rememberedSubject(id string) string {
	return "$KV." + s.names.remembered + "." + rememberedKey(id)
}

// rememberedKey is an id as a key. Sendbird's are numbers and stay as they are; of any
// other each byte that a key cannot have is written as its two hexadecimal digits.
func rememberedKey(id string) string {
	const hexDigits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(id) {
		switch c := id[i]; {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '-', c == '_':
			b.WriteByte(c)
		default:
			b.WriteByte('=')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
		}
	}
	return b.String()
}

// maxRememberedID bounds an id; Sendbird's have 19 digits.
const maxRememberedID = 256

// rememberedConfig describes the bucket as the key-value store has it, except that it is
// read from its leader: a receipt may come right behind its note.
func (s *Store) rememberedConfig() jetstream.StreamConfig {
	bytes := int64(rememberedMaxBytes)
	if s.embedded != nil {
		bytes = s.sendsSize(bytes)
	}
	return jetstream.StreamConfig{
		Name:              s.names.rememberedStream(),
		Description:       "birdtap's notes of what was sent",
		Subjects:          []string{"$KV." + s.names.remembered + ".>"},
		Retention:         jetstream.LimitsPolicy,
		Discard:           jetstream.DiscardOld,
		Storage:           jetstream.FileStorage,
		Replicas:          s.queueReplicas(),
		MaxMsgsPerSubject: 1,
		MaxBytes:          bytes,
		MaxAge:            s.opts.RememberSent,
		Duplicates:        min(s.opts.RememberSent, 2*time.Minute),
		AllowRollup:       true,
		DenyDelete:        true,
	}
}

// prepareRemembered makes the bucket, or gives it the time to live and the replicas that
// are configured.
func (s *Store) prepareRemembered(ctx context.Context) (Made, error) {
	made := Made{Stream: s.names.rememberedStream(), Action: Unchanged}
	want := s.rememberedConfig()
	stream, err := s.lookUpStream(ctx, want.Name)
	if err != nil {
		return Made{}, err
	}
	if stream == nil {
		made.Action = Created
		_, err := s.createStream(ctx, want)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			made.Action, err = Unchanged, nil // another process was faster
		}
		return made, err
	}
	config := stream.CachedInfo().Config
	if config.MaxAge != want.MaxAge {
		made.Changes = append(made.Changes, Change{"max_age", config.MaxAge.String(), want.MaxAge.String()})
	}
	if config.Replicas != want.Replicas {
		made.Changes = append(made.Changes, Change{"replicas", fmt.Sprint(config.Replicas), fmt.Sprint(want.Replicas)})
	}
	if len(made.Changes) == 0 {
		return made, nil
	}
	made.Action = Updated
	config.MaxAge, config.Duplicates, config.Replicas = want.MaxAge, want.Duplicates, want.Replicas
	_, err = s.updateStream(ctx, config)
	return made, err
}

// OpenRemembered makes the bucket of the notes ready, where RememberSent asks for one,
// and fits its time to live. Without the right to do so the one that is there is used.
func (s *Store) OpenRemembered(ctx context.Context) error {
	if s.opts.RememberSent <= 0 {
		return nil
	}
	_, err := s.prepareRemembered(ctx)
	if errors.Is(err, errDenied) {
		s.log.Warn("the bucket of what was sent has not the configured time to live or replicas, and this user may not look or change it: birdtap init does",
			zap.String("stream", s.names.rememberedStream()), zap.Error(err))
		return nil
	}
	if err != nil {
		return fmt.Errorf("bucket of what was sent: %w", err)
	}
	return nil
}

// Remember notes what a notification was sent for, and returns once that is on disk. It
// does nothing while RememberSent is 0.
func (s *Store) Remember(ctx context.Context, notificationID string, send RememberedSend) error {
	if s.opts.RememberSent <= 0 {
		return nil
	}
	if notificationID == "" || len(notificationID) > maxRememberedID {
		return fmt.Errorf("note what was sent: %w: a notification id of %d bytes", ErrInvalid, len(notificationID))
	}
	data, err := json.Marshal(send)
	if err != nil {
		return fmt.Errorf("note what was sent: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, rememberWait)
	defer cancel()
	_, err = s.js.Publish(ctx, s.rememberedSubject(notificationID), data)
	if errors.Is(err, jetstream.ErrNoStreamResponse) { // somebody deleted it, or it was not to be had at the start
		if _, err = s.prepareRemembered(ctx); err == nil {
			_, err = s.js.Publish(ctx, s.rememberedSubject(notificationID), data)
		}
	}
	if err != nil {
		return fmt.Errorf("note what was sent: %w", err)
	}
	return nil
}

// Remembered returns what was noted of a notification, and false if nothing was, or no
// longer is.
func (s *Store) Remembered(ctx context.Context, notificationID string) (RememberedSend, bool, error) {
	if s.opts.RememberSent <= 0 || notificationID == "" || len(notificationID) > maxRememberedID {
		return RememberedSend{}, false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, rememberWait)
	defer cancel()
	stream, err := s.remembered.get(ctx, s)
	if err != nil || stream == nil {
		return RememberedSend{}, false, err
	}
	msg, err := stream.GetLastMsgForSubject(ctx, s.rememberedSubject(notificationID))
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return RememberedSend{}, false, nil
	case err != nil:
		return RememberedSend{}, false, fmt.Errorf("look up what was sent: %w", err)
	case msg.Header.Get("KV-Operation") != "": // deleted by hand
		return RememberedSend{}, false, nil
	}
	var send RememberedSend
	if err := json.Unmarshal(msg.Data, &send); err != nil {
		return RememberedSend{}, false, fmt.Errorf("look up what was sent: %w: %w", ErrCorrupt, err)
	}
	return send, true, nil
}

// rememberedStream finds the stream once it is there.
type rememberedStream struct {
	found  atomic.Pointer[jetstream.Stream]
	mu     sync.Mutex // held while looking for it
	next   time.Time  // not looked for before
	denied bool       // said so
}

// get returns nil if there is none yet, or somebody else is just looking for it.
func (r *rememberedStream) get(ctx context.Context, s *Store) (jetstream.Stream, error) {
	if stream := r.found.Load(); stream != nil {
		return *stream, nil
	}
	if !r.mu.TryLock() {
		return nil, nil //nolint:nilnil // none now, and no error
	}
	defer r.mu.Unlock()
	if time.Now().Before(r.next) {
		return nil, nil //nolint:nilnil // as above
	}
	r.next = time.Now().Add(time.Second)
	stream, err := s.lookUpStream(ctx, s.names.rememberedStream())
	if err == nil && stream != nil {
		// Without the right to read it, every look would wait for an answer in vain.
		err = s.denied.unless(ctx, func(ctx context.Context) error {
			_, err := stream.GetLastMsgForSubject(ctx, s.rememberedSubject("0"))
			return err
		})
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			err = nil
		}
	}
	if errors.Is(err, errDenied) {
		if !r.denied {
			r.denied = true
			s.log.Warn("this user may not look up what was sent (birdtap init --help lists the rights): receipts that name a notification only are refused", zap.Error(err))
		}
		r.next = time.Now().Add(time.Minute)
		return nil, nil //nolint:nilnil // as above
	}
	if err != nil || stream == nil {
		return nil, err
	}
	r.found.Store(&stream)
	return stream, nil
}
