package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Sizes where none is given, in bytes.
const (
	defaultQueueMaxBytes = 8 << 30
	defaultDeadMaxBytes  = 1 << 30
	defaultKeepMaxBytes  = 1 << 30
	// More than it ever holds. From 32 MiB on nats-server would write it in blocks of
	// 8 MiB, and hold on to some of them, in place of 4 MiB.
	stateMaxBytes = 24 << 20

	// freeShare is how much of the free space the defaults may take.
	freeShare = 0.6
)

// openStreams makes or adopts the three streams.
func (s *Store) openStreams(ctx context.Context) error {
	found, err := s.adoptable(ctx)
	if err != nil {
		return err
	}
	if len(found) == 0 && s.opts.Attach {
		return fmt.Errorf("there is no queue of prefix %s on the server: start a daemon or run birdtap init, which make one", s.opts.Prefix)
	}
	if err := s.fitSizes(s.sized(found)); err != nil {
		return err
	}
	for _, want := range s.streams() {
		stream, err := s.openStream(ctx, want.config, found[want.config.Name])
		if err != nil {
			return err
		}
		*want.into = stream
	}
	if err := s.checkLog(ctx); err != nil {
		return err
	}
	if s.embedded != nil {
		return s.embedded.mark()
	}
	return nil
}

type wantedStream struct {
	config jetstream.StreamConfig
	into   *jetstream.Stream
}

// streams describes the three streams. None has a MaxAge or a limit by number:
// both would delete silently. A full stream refuses. See checkConfig for what is checked
// of a stream that is there already.
func (s *Store) streams() []wantedStream {
	base := jetstream.StreamConfig{
		Retention: jetstream.LimitsPolicy,
		Discard:   jetstream.DiscardNew,
		Storage:   jetstream.FileStorage,
		Replicas:  s.opts.Replicas,
	}
	receipts, dead, state := base, base, base
	receipts.Name, receipts.Subjects = s.names.receiptStream, []string{s.names.receipts}
	receipts.MaxBytes = s.opts.QueueMaxBytes + s.opts.KeepMaxBytes
	if s.opts.NATSURL != "" {
		receipts.Duplicates = copyWindow // see publishSurely
	}
	dead.Name, dead.Subjects = s.names.deadStream, []string{s.names.dead}
	dead.MaxBytes = s.opts.DeadMaxBytes + deadSpareBytes
	state.Name, state.Subjects = s.names.stateStream, []string{s.opts.Prefix + ".state.>"}
	state.MaxBytes = stateMaxBytes
	state.MaxMsgsPerSubject = 1
	state.Discard = jetstream.DiscardOld // one message per subject: the new one takes the old one's place
	state.AllowDirect = false            // reads of the checkpoint come from the leader
	return []wantedStream{{receipts, &s.receipts}, {dead, &s.dead}, {state, &s.state}}
}

// adoptable returns the streams that are there: all of them, or none. They are looked
// up one after the other, so when another process is just making and using them, the
// first look may miss one that is there by now.
func (s *Store) adoptable(ctx context.Context) (map[string]jetstream.Stream, error) {
	found, err := s.findStreams(ctx)
	if err != nil {
		return nil, err
	}
	if s.allOrNone(found) == nil {
		return found, nil
	}
	if found, err = s.findStreams(ctx); err != nil {
		return nil, err
	}
	return found, s.allOrNone(found)
}

func (s *Store) findStreams(ctx context.Context) (map[string]jetstream.Stream, error) {
	found := map[string]jetstream.Stream{}
	for _, want := range s.streams() {
		stream, err := s.lookUpStream(ctx, want.config.Name)
		if err != nil {
			return nil, err
		}
		if stream != nil {
			found[want.config.Name] = stream
		}
	}
	return found, nil
}

// allOrNone refuses to start on a part of what had been. A part that never held a
// message is the work of a first start that was interrupted, or still goes on
// elsewhere.
func (s *Store) allOrNone(found map[string]jetstream.Stream) error {
	var missing []string
	used := false
	for _, want := range s.streams() {
		stream := found[want.config.Name]
		if stream == nil {
			missing = append(missing, want.config.Name)
			continue
		}
		used = used || stream.CachedInfo().State.LastSeq > 0
	}
	if s.embedded != nil {
		m, _, err := readMarker(s.opts.DataDir)
		if err != nil {
			return err
		}
		used = used || m.Queue
	}
	if len(missing) == 0 || !used {
		return nil
	}
	return fmt.Errorf("the queue was here before, but %s is gone: restore it from a backup, or, to start with an empty queue, %s",
		strings.Join(missing, " and "), s.startAnewBy())
}

func (s *Store) startAnewBy() string {
	if s.embedded != nil {
		return "move the data directory " + s.opts.DataDir + " away"
	}
	return "delete the other streams of prefix " + s.opts.Prefix
}

// openStream adopts a stream as it is, but for its sizes, which follow the configuration.
func (s *Store) openStream(ctx context.Context, want jetstream.StreamConfig, have jetstream.Stream) (jetstream.Stream, error) {
	if have == nil {
		stream, err := s.createStream(ctx, want)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another process was faster
			stream, err = s.js.Stream(ctx, want.Name)
			if err == nil {
				return s.openStream(ctx, want, stream)
			}
		}
		if err != nil {
			return nil, err
		}
		s.log.Info("stream created", zap.String("stream", want.Name), zap.Int64("max_bytes", want.MaxBytes), zap.Int("replicas", want.Replicas))
		return stream, nil
	}
	config := have.CachedInfo().Config
	if err := s.checkConfig(config, want); err != nil {
		return nil, err
	}
	if config.MaxBytes == want.MaxBytes && config.Replicas == want.Replicas || s.opts.Attach {
		return have, nil
	}
	config.MaxBytes, config.Replicas = want.MaxBytes, want.Replicas
	stream, err := s.updateStream(ctx, config)
	if errors.Is(err, errDenied) {
		// Better a queue of another size than none.
		s.log.Warn("the stream has not the configured size or replicas, and this user may not change it: birdtap init does", zap.String("stream", want.Name))
		return have, nil
	}
	return stream, err
}

// checkConfig refuses an existing stream that is unfit; see differing.
func (s *Store) checkConfig(have, want jetstream.StreamConfig) error {
	wrong := differing(have, want, false)
	if len(wrong) == 0 {
		return nil
	}
	wayOut := ""
	if s.embedded == nil && len(differing(have, want, true)) == 0 {
		wayOut = "; birdtap init changes that"
	}
	return fmt.Errorf("stream %s exists, but not as birdtap needs it; differing: %s%s", have.Name, strings.Join(wrong, ", "), wayOut)
}

// checkLog refuses streams that end before what the checkpoint knows of them: new
// receipts would get sequences that count as settled, and never leave.
func (s *Store) checkLog(ctx context.Context) error {
	var cp Checkpoint
	var rev uint64
	err := s.denied.unless(ctx, func(ctx context.Context) (err error) {
		cp, rev, err = s.ReadCheckpoint(ctx)
		return err
	})
	if err == nil && rev == 0 && s.embedded != nil {
		cp, rev, err = s.restoreCheckpoint(ctx)
	}
	newer := errors.Is(err, ErrNewer)
	if err != nil && !newer {
		return err
	}
	last, err := s.lastSequence(ctx, s.receipts)
	if err != nil {
		return err
	}
	if s.embedded != nil {
		s.embedded.tellCut(last)
	}
	if newer { // the doors need not wait for the version that reads it; the relay does
		s.log.Warn("a newer birdtap has written the checkpoint: whether the queue is whole cannot be checked")
		return nil
	}
	lastDead, err := s.lastSequence(ctx, s.dead)
	if err != nil {
		return err
	}
	settled := max(cp.Floor-1, cp.Settled.last())
	if last >= settled && lastDead >= cp.DeadSeq {
		return s.tellMissing(ctx, cp, last)
	}
	if s.opts.Sync == SyncInterval && s.embedded != nil && last > 0 {
		return s.goOnBehind(ctx, cp, rev, last, lastDead)
	}
	what := fmt.Sprintf("the queue ends at frame %d, but frame %d was already settled", last, settled)
	if last >= settled {
		what = fmt.Sprintf("the dead letters end at message %d, but the checkpoint knows message %d", lastDead, cp.DeadSeq)
	}
	goOn := ""
	if s.embedded != nil && last > 0 {
		goOn = "to go on with what is left, start once with BIRDTAP_SYNC=interval, or, "
	}
	return fmt.Errorf("%s: its files were truncated or replaced; restore them from a backup, or, %sto start with an empty queue, %s",
		what, goOn, s.startAnewBy())
}

func (s *Store) lastSequence(ctx context.Context, stream jetstream.Stream) (uint64, error) {
	info, err := s.infoOf(ctx, stream)
	if err != nil {
		return 0, fmt.Errorf("look up stream %s: %w", stream.CachedInfo().Config.Name, err)
	}
	return info.State.LastSeq, nil
}

// goOnBehind brings queue and checkpoint together again after a power cut took the
// last unsynced second of the log and left the checkpoint: sequences go on behind
// the floor, and what counted as settled beyond the end of the log does no longer.
func (s *Store) goOnBehind(ctx context.Context, cp Checkpoint, rev, last, lastDead uint64) error {
	s.log.Error("the queue lost its newest receipts, as BIRDTAP_SYNC=interval allows; going on behind the checkpoint",
		zap.Uint64("last_sequence", last), zap.Uint64("floor", cp.Floor),
		zap.Uint64("last_dead_sequence", lastDead), zap.Uint64("dead_sequence", cp.DeadSeq))
	if last+1 < cp.Floor {
		if err := s.receipts.Purge(ctx, jetstream.WithPurgeSequence(cp.Floor)); err != nil {
			return fmt.Errorf("go on behind frame %d: %w", cp.Floor, err)
		}
	}
	cp.Settled.cutBehind(last)
	cp.Last = min(cp.Last, last)
	cp.DeadSeq = min(cp.DeadSeq, lastDead)
	cp.Write++
	if _, err := s.WriteCheckpoint(ctx, cp, rev); err != nil {
		return fmt.Errorf("go on behind frame %d: %w", last, err)
	}
	return nil
}

// SizeError is a size that does not fit the volume.
type SizeError struct {
	Variable   string
	Need, Free int64 // bytes
}

func (e *SizeError) Error() string {
	return fmt.Sprintf("%s needs %s, but the volume has only %s free for it: make it smaller or the volume larger",
		e.Variable, formatBytes(e.Need), formatBytes(e.Free))
}

// sized tells whether the streams are there and have the sizes that are set, or more.
// Then these fitted the volume once; that it is full now is no fault of theirs, and a
// queue that does not start would not even drain.
func (s *Store) sized(found map[string]jetstream.Stream) bool {
	for _, want := range s.streams() {
		have := found[want.config.Name]
		if have == nil || have.CachedInfo().Config.MaxBytes < want.config.MaxBytes {
			return false
		}
	}
	return true
}

// fitSizes gives the sizes that are not set their defaults, smaller ones where the
// defaults would take more than freeShare of what the set ones leave of the volume's
// free space, and refuses set ones that do not fit, unless the streams have them
// already. What the queue already holds counts as free.
func (s *Store) fitSizes(already bool) error {
	sizes := []struct {
		variable string
		value    *int64
		standard int64
	}{
		{"BIRDTAP_QUEUE_MAX_BYTES", &s.opts.QueueMaxBytes, defaultQueueMaxBytes},
		{"BIRDTAP_DEAD_MAX_BYTES", &s.opts.DeadMaxBytes, defaultDeadMaxBytes},
		{"BIRDTAP_KEEP_MAX_BYTES", &s.opts.KeepMaxBytes, defaultKeepMaxBytes},
	}
	free := int64(1) << 60
	if s.embedded != nil && !s.opts.Attach { // a command resizes nothing
		var err error
		if free, err = s.room(); err != nil {
			return err
		}
	}
	var set, unset int64
	for _, size := range sizes {
		if *size.value == 0 {
			unset += size.standard
			continue
		}
		if set += *size.value; set > free && !already {
			return &SizeError{Variable: size.variable, Need: *size.value, Free: max(0, free-(set-*size.value))}
		}
	}
	share := min(1, freeShare*float64(free-set)/float64(max(1, unset)))
	for _, size := range sizes {
		if *size.value != 0 {
			continue
		}
		*size.value = max(minStreamBytes, int64(share*float64(size.standard)))
		if *size.value < size.standard {
			s.log.Warn("the volume is small, taking less than the default",
				zap.String("variable", size.variable), zap.Int64("bytes", *size.value), zap.Int64("free_bytes", free))
		}
	}
	return nil
}

const minStreamBytes = 1 << 20

// room is what the volume has free, and what the queue already takes of it.
func (s *Store) room() (int64, error) {
	v, err := s.opts.volume(s.opts.DataDir)
	if err != nil {
		return 0, err
	}
	used, err := bytesBelow(s.opts.DataDir)
	return v.free + used - s.identityBytes(), err
}

// volume is the file system that a directory lies on, in bytes.
type volume struct {
	free  int64 // to a process that is not root
	total int64
}

func volumeOf(dir string) (volume, error) {
	var v unix.Statfs_t
	if err := unix.Statfs(dir, &v); err != nil {
		return volume{}, fmt.Errorf("free space of %s: %w", dir, err)
	}
	size := uint64(v.Bsize)                                                         //nolint:gosec // signed on Linux, unsigned elsewhere; never negative
	return volume{free: int64(v.Bavail * size), total: int64(v.Blocks * size)}, nil //nolint:gosec // volumes are smaller than 8 EiB
}

// bytesBelow adds up the files of a directory; one that vanishes meanwhile counts nothing.
func bytesBelow(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return ignoreGone(err)
		}
		info, err := d.Info()
		if err != nil {
			return ignoreGone(err)
		}
		sum += info.Size()
		return nil
	})
	return sum, err
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func formatBytes(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%d bytes", n)
}
