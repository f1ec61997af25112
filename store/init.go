package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Init prepares a cluster for daemons whose user may neither create nor change
// streams: it creates what is missing and changes what differs from the options, and
// tells what it did. It may be called again at any time, beside running daemons too.
//
// It changes limits, replicas, and settings that would lose receipts. It refuses, and
// changes nothing at all, where a stream holds other subjects or keeps its messages in
// another way: that one is somebody else's, or would have to be made anew. As Open
// does, it refuses to make a new queue where a part of an old one is left.
//
// On an error it tells what it did before.
func Init(ctx context.Context, o Options) (_ []Made, err error) {
	if o.NATSURL == "" {
		return nil, errors.New("the embedded queue makes its streams by itself")
	}
	o = o.withDefaults()
	s := &Store{opts: o, names: namesOf(o.Prefix), log: o.Log.Named("store"), denied: newDenials()}
	s.life, s.end = context.WithCancel(context.Background())
	if err := s.connect(ctx); err != nil {
		return nil, errors.Join(err, s.disconnect())
	}
	defer func() { err = errors.Join(err, s.disconnect()) }()
	parts, err := s.parts(ctx)
	if err != nil {
		return nil, err
	}
	var all []Made
	for _, p := range parts {
		made, err := p(ctx)
		if err != nil {
			return all, err
		}
		all = append(all, made)
	}
	return all, nil
}

// part creates or updates one thing that lies on the server.
type part func(context.Context) (Made, error)

// parts are all of them. What cannot be as it has to be is an error here, before any
// of them is touched.
func (s *Store) parts(ctx context.Context) ([]part, error) {
	if err := s.fitSizes(false); err != nil {
		return nil, err
	}
	found, err := s.adoptable(ctx)
	if err != nil {
		return nil, err
	}
	var parts []part
	for _, want := range s.streams() {
		have := found[want.config.Name]
		if have != nil {
			if fixed := differing(have.CachedInfo().Config, want.config, true); len(fixed) > 0 {
				return nil, fmt.Errorf("stream %s exists, and what differs cannot be changed: %s; use another BIRDTAP_STREAM_PREFIX, or move that stream away", want.config.Name, strings.Join(fixed, ", "))
			}
		}
		parts = append(parts, func(ctx context.Context) (Made, error) { return s.initStream(ctx, want.config, have) })
	}
	for _, want := range s.sendStreams(new(Sends)) {
		parts = append(parts, func(ctx context.Context) (Made, error) {
			have, err := s.lookUpStream(ctx, want.config.Name)
			if err != nil {
				return Made{}, err
			}
			return s.initStream(ctx, want.config, have)
		})
	}
	parts = append(parts, s.prepareIdentities)
	if s.opts.RememberSent > 0 {
		parts = append(parts, s.prepareRemembered)
	}
	return parts, nil
}

// Made is what Init did about one stream.
type Made struct {
	Stream  string
	Action  Action
	Changes []Change // of one that was updated
}

// Action is what became of a stream.
type Action string

// The three outcomes of Init.
const (
	Created   Action = "created"
	Updated   Action = "updated"
	Unchanged Action = "unchanged"
)

// Change is one setting of a stream, by the name that NATS gives it.
type Change struct{ Setting, From, To string }

func (s *Store) initStream(ctx context.Context, want jetstream.StreamConfig, have jetstream.Stream) (Made, error) {
	if have == nil {
		_, err := s.createStream(ctx, want)
		return Made{Stream: want.Name, Action: Created}, err
	}
	config := have.CachedInfo().Config
	changes := fitConfig(&config, want)
	if len(changes) == 0 {
		return Made{Stream: want.Name, Action: Unchanged}, nil
	}
	if _, err := s.updateStream(ctx, config); err != nil {
		return Made{}, err
	}
	return Made{Stream: want.Name, Action: Updated, Changes: changes}, nil
}

// fitConfig makes a stream's settings those that are wanted, as far as a stream that
// exists can take them, and tells what changed.
func fitConfig(have *jetstream.StreamConfig, want jetstream.StreamConfig) []Change {
	var changes []Change
	was := *have
	note := func(changed bool, setting string, from, to any) {
		if changed {
			changes = append(changes, Change{setting, fmt.Sprint(from), fmt.Sprint(to)})
		}
	}
	have.MaxBytes, have.Replicas, have.Discard = want.MaxBytes, want.Replicas, want.Discard
	note(was.MaxBytes != have.MaxBytes, "max_bytes", limitText(was.MaxBytes), limitText(have.MaxBytes))
	note(was.Replicas != have.Replicas, "replicas", was.Replicas, have.Replicas)
	note(was.Discard != have.Discard, "discard", was.Discard, have.Discard)
	if was.MaxAge != 0 {
		have.MaxAge, have.Duplicates = 0, 0
		note(true, "max_age", was.MaxAge, time.Duration(0))
	}
	if was.MaxMsgs > 0 {
		have.MaxMsgs = -1
		note(true, "max_msgs", was.MaxMsgs, limitText(-1))
	}
	if was.MaxMsgSize > 0 {
		have.MaxMsgSize = -1
		note(true, "max_msg_size", was.MaxMsgSize, limitText(-1))
	}
	if perSubject := cmpLimit(want.MaxMsgsPerSubject); cmpLimit(was.MaxMsgsPerSubject) != perSubject {
		have.MaxMsgsPerSubject = perSubject
		note(true, "max_msgs_per_subject", limitText(was.MaxMsgsPerSubject), limitText(perSubject))
	}
	if was.AllowDirect && want.MaxMsgsPerSubject > 0 {
		have.AllowDirect = false
		note(true, "allow_direct", true, false)
	}
	if was.NoAck {
		have.NoAck = false
		note(true, "no_ack", true, false)
	}
	return changes
}

// cmpLimit is a limit with one way only to say that there is none.
func cmpLimit(n int64) int64 {
	if n <= 0 {
		return -1
	}
	return n
}

func limitText(n int64) string {
	if n <= 0 {
		return "none"
	}
	return strconv.FormatInt(n, 10)
}

// differing lists what makes a stream unfit: that somebody has set it up so that it
// loses receipts without a word, acknowledges before they are on disk, or never lets
// one leave. fixed: only what cannot be changed any more.
func differing(have, want jetstream.StreamConfig, fixed bool) []string {
	var wrong []string
	note := func(bad bool, what string) {
		if bad {
			wrong = append(wrong, what)
		}
	}
	note(!slices.Equal(have.Subjects, want.Subjects), "subjects")
	note(have.Retention != want.Retention, "retention")
	note(have.Storage != want.Storage, "storage")
	note(have.PersistMode != want.PersistMode, "persist_mode")
	note(have.DenyDelete, "deny_delete") // dead letters could not leave after a replay
	note(have.DenyPurge, "deny_purge")   // nothing could be trimmed
	if fixed {
		return wrong
	}
	note(have.Discard != want.Discard, "discard")
	note(have.MaxAge != 0, "max_age")
	note(have.MaxMsgs > 0, "max_msgs")
	note(have.MaxMsgsPerSubject > 0 && have.MaxMsgsPerSubject != want.MaxMsgsPerSubject, "max_msgs_per_subject")
	note(have.MaxMsgSize > 0, "max_msg_size")
	note(have.AllowDirect && want.MaxMsgsPerSubject > 0, "allow_direct")
	note(have.NoAck, "no_ack")
	return wrong
}
