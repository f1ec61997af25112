package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/birdtap/birdtap/store/idmap"
)

// identityDir is where a daemon keeps its copy of the map, below the data directory.
// On a cluster that is all there is in it, and may be an empty scratch volume: with no
// copy the map is fetched.
const identityDir = "identities"

// identityPath is the copy of this installation: the prefix keeps several apart that
// share a directory.
func (s *Store) identityPath() string {
	return filepath.Join(s.opts.DataDir, identityDir, s.opts.Prefix+".map")
}

// identityBytes is what the map takes of the data directory. It is no room of the
// queue's.
func (s *Store) identityBytes() int64 {
	copies, _ := bytesBelow(filepath.Join(s.opts.DataDir, identityDir)) // none: 0
	bucket, _ := filepath.Glob(filepath.Join(s.opts.DataDir, "jetstream", "*", "streams", s.names.identityStream()))
	for _, dir := range bucket {
		n, _ := bytesBelow(dir)
		copies += n
	}
	return copies
}

// fetchIdentities brings a map into the data directory: written beside the copy that
// is there, read back and verified in full, and only then put in its place.
func (s *Store) fetchIdentities(ctx context.Context, stream jetstream.Stream, info IdentityInfo) (*idmap.Map, error) {
	path := s.identityPath()
	if err := s.makeIdentityDir(); err != nil {
		return nil, err
	}
	removeLeftovers(path)
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*"+newSuffix)
	if err != nil {
		return nil, fmt.Errorf("copy of the identity map: %w", err)
	}
	m, err := s.fillIdentities(ctx, stream, info, f)
	if err == nil {
		if err = errors.Join(os.Rename(f.Name(), path), syncDir(filepath.Dir(path))); err == nil {
			return m, nil
		}
		_ = m.Close()
	}
	_ = os.Remove(f.Name())
	return nil, err
}

// makeIdentityDir makes the data directory, too, where the queue is elsewhere; its
// parent must exist.
func (s *Store) makeIdentityDir() error {
	for _, dir := range []string{s.opts.DataDir, filepath.Join(s.opts.DataDir, identityDir)} {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("directory for the copy of the identity map (BIRDTAP_DATA_DIR): %w", err)
		}
	}
	return nil
}

// removeLeftovers deletes what a process that was killed while it fetched has left.
// Another one on the same directory may just be fetching.
func removeLeftovers(path string) {
	left, _ := filepath.Glob(path + ".*" + newSuffix)
	for _, name := range left {
		if info, err := os.Stat(name); err == nil && time.Since(info.ModTime()) > identityLeftover {
			_ = os.Remove(name)
		}
	}
}

// fillIdentities downloads a map into f, which belongs to the map from then on, or is
// closed.
func (s *Store) fillIdentities(ctx context.Context, stream jetstream.Stream, info IdentityInfo, f *os.File) (*idmap.Map, error) {
	err := s.roomFor(filepath.Dir(f.Name()), info.Bytes)
	if err == nil {
		err = s.downloadIdentities(ctx, stream, info, f)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	m, err := idmap.OpenFile(f)
	if err != nil {
		return nil, fmt.Errorf("fetch the identity map: %w", err)
	}
	if m.Version() != info.Version {
		_ = m.Close()
		return nil, fmt.Errorf("fetch the identity map: %w: it is another one than was uploaded", ErrCorrupt)
	}
	return m, nil
}

// OpenIdentities opens the map that holds now, for a command: the daemon's copy if
// that is current, else a copy in a temporary file without a name. None is
// ErrNoIdentities. The caller closes it.
func (s *Store) OpenIdentities(ctx context.Context) (*idmap.Map, error) {
	stream, err := s.identityStream(ctx)
	if err != nil {
		return nil, err
	}
	info, _, err := s.identityInfo(ctx, stream)
	if err != nil {
		return nil, err
	}
	if m, err := idmap.Open(s.identityPath()); err == nil {
		if m.Version() == info.Version {
			return m, nil
		}
		_ = m.Close()
	}
	f, err := os.CreateTemp(IdentityTempDir(s.opts.DataDir), "identities-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return s.fillIdentities(ctx, stream, info, f)
}

// IdentityTempDir is where a command puts the large temporary files of a map: beside
// the queue where there is a data directory, since the system's own temporary
// directory is often in memory or read-only.
func IdentityTempDir(dataDir string) string {
	if info, err := os.Stat(dataDir); err == nil && info.IsDir() {
		return dataDir
	}
	return os.TempDir()
}
