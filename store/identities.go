package store

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go/jetstream"
)

// The identity map lies in the queue's server as the one object of a bucket of
// JetStream's object store, so that nats's own tool can list and fetch it. With the
// prefix BIRDTAP:
//
//	stream                      subject                          a message is
//	OBJ_BIRDTAP_IDENTITIES      $O.BIRDTAP_IDENTITIES.C.<id>     256 KiB of the file of upload <id>
//	                            $O.BIRDTAP_IDENTITIES.M.<name>   which upload holds, how long it is, its hash
//
// The second message is written last, by compare-and-set: until then nobody sees the
// upload, and of two imports at once the second one to end is refused. It is read and
// written here and not by the client library, which sends thousands of pieces without
// waiting for the disk: half a gigabyte in the server's memory.

// States of the identity map that callers tell apart.
var (
	ErrNoIdentities      = errors.New("there is no identity map")
	ErrIdentitiesChanged = errors.New("another import or removal of the identity map has ended meanwhile; this one changed nothing")
)

// errIdentitiesDenied says that the user whom the server knows may not ask for the map.
// Who uses one gives the daemons that right; so here there is none.
var errIdentitiesDenied = fmt.Errorf("%w: this user may not look it up (birdtap init --help lists the rights)", ErrNoIdentities)

const (
	identityObject = "map"
	// identityChunkBytes is a piece of the file; as base64 in an answer it stays well
	// below the 1 MiB that a NATS server takes by default.
	identityChunkBytes = 256 << 10
	// identityAskWait bounds one question about the map, identityChunkWait the answer
	// with a piece of it.
	identityAskWait   = 2 * time.Second
	identityChunkWait = 5 * time.Second
	// identityLeftover is after how long without a further piece an upload that was
	// never named was given up: the next import deletes it.
	identityLeftover = time.Hour
	identityTidyWait = 10 * time.Second
)

// IdentityInfo describes the map that is in the queue.
type IdentityInfo struct {
	Users    uint64
	Imported time.Time
	Bytes    int64
	Version  string // of the content, see idmap.Map

	upload string // which one holds
	chunks uint32
}

// Keys of the object's metadata.
const (
	identityUsers   = "birdtap-users"
	identityVersion = "birdtap-version"
)

func (n names) identityStream() string { return "OBJ_" + n.identities }
func (n names) identityChunks(upload string) string {
	return "$O." + n.identities + ".C." + upload
}

func (n names) identityMeta() string {
	return "$O." + n.identities + ".M." + base64.URLEncoding.EncodeToString([]byte(identityObject))
}

// identityConfig describes the bucket, as the object store has it, except that it is
// always read from its leader: one that lags would bring back a map that was replaced.
func (s *Store) identityConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        s.names.identityStream(),
		Description: "birdtap's identity map",
		Subjects:    []string{s.names.identityChunks(">"), "$O." + s.names.identities + ".M.>"},
		Retention:   jetstream.LimitsPolicy,
		Discard:     jetstream.DiscardNew,
		Storage:     jetstream.FileStorage,
		Replicas:    s.queueReplicas(),
		AllowRollup: true,
	}
}

// queueReplicas is how many the queue has. A command may be configured otherwise than
// the daemons.
func (s *Store) queueReplicas() int {
	if s.receipts == nil { // Init makes it with as many as are configured
		return s.opts.Replicas
	}
	return s.receipts.CachedInfo().Config.Replicas
}

// prepareIdentities makes the bucket of the identity map, or gives it as many replicas
// as the queue has.
func (s *Store) prepareIdentities(ctx context.Context) (Made, error) {
	made := Made{Stream: s.names.identityStream(), Action: Unchanged}
	want := s.identityConfig()
	stream, err := s.identityStream(ctx)
	switch {
	case errors.Is(err, ErrNoIdentities):
		made.Action = Created
		_, err = s.createStream(ctx, want)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			made.Action, err = Unchanged, nil // another process was faster
		}
	case err == nil && stream.CachedInfo().Config.Replicas != want.Replicas:
		config := stream.CachedInfo().Config
		made.Action, made.Changes = Updated, []Change{{"replicas", fmt.Sprint(config.Replicas), fmt.Sprint(want.Replicas)}}
		config.Replicas = want.Replicas
		_, err = s.updateStream(ctx, config)
	}
	if err != nil {
		return Made{}, fmt.Errorf("bucket of the identity map: %w", err)
	}
	return made, nil
}

// identityStream looks the bucket up; none is ErrNoIdentities.
func (s *Store) identityStream(ctx context.Context) (jetstream.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, identityAskWait)
	defer cancel()
	var stream jetstream.Stream
	err := s.denied.unless(ctx, func(ctx context.Context) (err error) {
		stream, err = lookUp(ctx, s, func(ctx context.Context) (jetstream.Stream, error) { return s.js.Stream(ctx, s.names.identityStream()) })
		return err
	})
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return nil, ErrNoIdentities
	case errors.Is(err, errDenied) && strings.Contains(err.Error(), s.names.identityStream()):
		return nil, errIdentitiesDenied
	}
	if err != nil {
		return nil, fmt.Errorf("look up stream %s: %w", s.names.identityStream(), err)
	}
	return stream, nil
}

// Identities describes the map that is in the queue, or ErrNoIdentities.
func (s *Store) Identities(ctx context.Context) (IdentityInfo, error) {
	stream, err := s.identityStream(ctx)
	if err != nil {
		return IdentityInfo{}, err
	}
	info, _, err := s.identityInfo(ctx, stream)
	return info, err
}

// identityInfo reads the message that says which upload holds, and its revision, which
// there is of a map that was removed, too.
func (s *Store) identityInfo(ctx context.Context, stream jetstream.Stream) (IdentityInfo, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, identityAskWait)
	defer cancel()
	msg, err := stream.GetLastMsgForSubject(ctx, s.names.identityMeta())
	if errors.Is(err, jetstream.ErrMsgNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
		return IdentityInfo{}, 0, ErrNoIdentities
	}
	if err != nil {
		return IdentityInfo{}, 0, fmt.Errorf("read about the identity map: %w", err)
	}
	var o jetstream.ObjectInfo
	if err := json.Unmarshal(msg.Data, &o); err != nil {
		return IdentityInfo{}, msg.Sequence, fmt.Errorf("read about the identity map: %w: %w", ErrCorrupt, err)
	}
	info := IdentityInfo{
		Imported: msg.Time,
		Bytes:    int64(o.Size), //nolint:gosec // a file's size
		Version:  o.Metadata[identityVersion],
		upload:   o.NUID, chunks: o.Chunks,
	}
	if o.Deleted {
		return info, msg.Sequence, ErrNoIdentities
	}
	if info.Users, err = strconv.ParseUint(o.Metadata[identityUsers], 10, 64); err != nil || info.Version == "" {
		return info, msg.Sequence, fmt.Errorf("read about the identity map: %w: birdtap did not write it", ErrCorrupt)
	}
	return info, msg.Sequence, nil
}

// downloadIdentities writes the file of a map to w. It asks for one piece after the
// other: nothing waits in memory, and each has a deadline.
func (s *Store) downloadIdentities(ctx context.Context, stream jetstream.Stream, info IdentityInfo, w io.Writer) error {
	next := uint64(1)
	for range info.chunks {
		msg, err := s.identityChunk(ctx, stream, next, info.upload)
		if err != nil {
			return fmt.Errorf("fetch the identity map: %w", err)
		}
		if _, err := w.Write(msg.Data); err != nil {
			return fmt.Errorf("fetch the identity map: %w", err)
		}
		next = msg.Sequence + 1
	}
	return nil
}

func (s *Store) identityChunk(ctx context.Context, stream jetstream.Stream, from uint64, upload string) (*jetstream.RawStreamMsg, error) {
	ctx, cancel := context.WithTimeout(ctx, identityChunkWait)
	defer cancel()
	return stream.GetMsg(ctx, from, jetstream.WithGetMsgSubject(s.names.identityChunks(upload)))
}
