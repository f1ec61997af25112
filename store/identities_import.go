package store

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/birdtap/birdtap/store/idmap"
)

// PutIdentities makes m the map of the installation: uploads its file, and only then
// names it. Killed or failing before that, the map is the one that was before.
// ErrIdentitiesChanged: another import ended first. ErrFull: no room for it in the
// queue's server. progress, if any, is told how many bytes are uploaded.
func (s *Store) PutIdentities(ctx context.Context, m *idmap.Map, progress func(bytes int64)) error {
	if err := s.roomForIdentities(m.Size()); err != nil {
		return err
	}
	if _, err := s.prepareIdentities(ctx); err != nil {
		return err
	}
	stream, err := s.identityStream(ctx)
	if err != nil {
		return err
	}
	before, rev, err := s.identityInfo(ctx, stream)
	if err != nil && !errors.Is(err, ErrNoIdentities) && !errors.Is(err, ErrCorrupt) {
		return err
	}
	s.tidyIdentities(ctx, stream, before.upload, identityLeftover)
	object, err := s.uploadIdentities(ctx, m, progress)
	if err != nil {
		s.dropUpload(ctx, stream, object.NUID)
		return fmt.Errorf("upload the identity map: %w", err)
	}
	err = s.nameIdentities(ctx, object, rev)
	switch {
	case err == nil, s.isNamed(ctx, stream, object.NUID): // only the answer was lost
		s.dropUpload(ctx, stream, before.upload)
		return nil
	case errors.Is(err, ErrIdentitiesChanged):
		s.dropUpload(ctx, stream, object.NUID)
	}
	// Else it may be named yet, and keeps its pieces.
	return fmt.Errorf("upload the identity map: %w", err)
}

func (s *Store) isNamed(ctx context.Context, stream jetstream.Stream, upload string) bool {
	info, _, err := s.identityInfo(ctx, stream)
	return err == nil && info.upload == upload
}

// uploadIdentities puts the file into the bucket, piece by piece, each on disk before
// the next: the server never holds more than one of them in memory.
func (s *Store) uploadIdentities(ctx context.Context, m *idmap.Map, progress func(int64)) (*jetstream.ObjectInfo, error) {
	object := &jetstream.ObjectInfo{
		ObjectMeta: jetstream.ObjectMeta{
			Name:     identityObject,
			Metadata: map[string]string{identityUsers: strconv.FormatUint(m.Users(), 10), identityVersion: m.Version()},
			Opts:     &jetstream.ObjectMetaOptions{ChunkSize: identityChunkBytes},
		},
		Bucket: s.names.identities,
		NUID:   rand.Text(),
		Size:   uint64(m.Size()), //nolint:gosec // a file's size
	}
	sum := sha256.New()
	src := io.TeeReader(io.NewSectionReader(m.File(), 0, m.Size()), sum)
	chunk := make([]byte, identityChunkBytes)
	for done := int64(0); done < m.Size(); {
		if err := ctx.Err(); err != nil {
			return object, err
		}
		n, err := io.ReadFull(src, chunk[:min(identityChunkBytes, m.Size()-done)])
		if err != nil {
			return object, err
		}
		if _, err := s.publish(ctx, &nats.Msg{Subject: s.names.identityChunks(object.NUID), Data: chunk[:n]}); err != nil {
			return object, err
		}
		object.Chunks++
		if done += int64(n); progress != nil {
			progress(done)
		}
	}
	object.Digest = jetstream.GetObjectDigestValue(sum)
	return object, nil
}

// nameIdentities makes an upload the one that holds, unless another one was named
// since revision rev.
func (s *Store) nameIdentities(ctx context.Context, object *jetstream.ObjectInfo, rev uint64) error {
	data, err := json.Marshal(object)
	if err != nil {
		return err
	}
	msg := &nats.Msg{
		Subject: s.names.identityMeta(),
		Header:  nats.Header{jetstream.MsgRollup: []string{jetstream.MsgRollupSubject}},
		Data:    data,
	}
	_, err = s.publish(ctx, msg, jetstream.WithExpectLastSequencePerSubject(rev))
	if isConflict(err) {
		return ErrIdentitiesChanged
	}
	return err
}

// RemoveIdentities removes the map: from then on users are left as they are. It is
// ErrNoIdentities if the map was removed before. A queue that never had one, or has lost
// it with its bucket, notes the removal all the same, so that no copy stays in use.
func (s *Store) RemoveIdentities(ctx context.Context) error {
	if _, err := s.prepareIdentities(ctx); err != nil {
		return err
	}
	stream, err := s.identityStream(ctx)
	if err != nil {
		return err
	}
	info, rev, err := s.identityInfo(ctx, stream)
	removed := errors.Is(err, ErrNoIdentities) && info.upload != ""
	if removed || err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNoIdentities) {
		return err
	}
	object := &jetstream.ObjectInfo{
		ObjectMeta: jetstream.ObjectMeta{Name: identityObject},
		Bucket:     s.names.identities, NUID: rand.Text(), Deleted: true,
	}
	if err := s.nameIdentities(ctx, object, rev); err != nil {
		return fmt.Errorf("remove the identity map: %w", err)
	}
	s.dropUpload(ctx, stream, info.upload)
	return nil
}

// dropUpload deletes the pieces of an upload that does not hold. Should it fail, they
// only take room until the next import.
func (s *Store) dropUpload(ctx context.Context, stream jetstream.Stream, upload string) {
	if upload == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), identityTidyWait)
	defer cancel()
	_ = stream.Purge(ctx, jetstream.WithPurgeSubject(s.names.identityChunks(upload)))
}

// tidyIdentities deletes what imports that were killed that long ago have left. Should it fail, the
// next import does it.
func (s *Store) tidyIdentities(ctx context.Context, stream jetstream.Stream, holds string, older time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, identityTidyWait)
	defer cancel()
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(s.names.identityChunks("*")))
	if err != nil {
		return
	}
	for subject := range info.State.Subjects {
		if subject == s.names.identityChunks(holds) {
			continue
		}
		msg, err := stream.GetLastMsgForSubject(ctx, subject)
		if err == nil && time.Since(msg.Time) > older {
			_ = stream.Purge(ctx, jetstream.WithPurgeSubject(subject))
		}
	}
}

// roomForIdentities refuses a map that would take the room of receipts: the bucket
// and the copy that the daemon reads lie on the queue's volume.
func (s *Store) roomForIdentities(size int64) error {
	if s.opts.NATSURL != "" {
		return nil // the cluster's own limits hold
	}
	return s.roomFor(s.opts.DataDir, 2*size)
}

// roomFor refuses what does not fit a volume, or would leave it less free than a queue
// on it needs.
func (s *Store) roomFor(dir string, need int64) error {
	v, err := s.opts.volume(dir)
	if err != nil {
		return err
	}
	if s.opts.NATSURL == "" {
		v.free -= int64(minFreeShare * float64(v.total))
	}
	if need > v.free {
		return fmt.Errorf("the identity map needs %s, but the volume of %s has only %s free for it: make it larger",
			formatBytes(need), dir, formatBytes(max(0, v.free)))
	}
	return nil
}
