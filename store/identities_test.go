package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/birdtap/birdtap/store/idmap"
)

// identityMap is of n users, user-0 → tag-0 and so on.
func identityMap(t testing.TB, tag string, n int) *idmap.Map {
	t.Helper()
	b := idmap.NewBuilder(t.TempDir())
	defer func() { _ = b.Close() }()
	for i := range n {
		if err := b.Add(fmt.Append(nil, "user-", i), fmt.Append(nil, tag, "-", i), i+2); err != nil {
			t.Fatal(err)
		}
	}
	m, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// severalPieces is how many users make a file of more than one piece.
const severalPieces = 30_000

func mustImport(t testing.TB, s *Store, tag string, n int) {
	t.Helper()
	if err := s.PutIdentities(t.Context(), identityMap(t, tag, n), nil); err != nil {
		t.Fatalf("import: %v", err)
	}
}

// follower follows the map of s in a hurry, until the test ends or stop is called.
func follower(t testing.TB, s *Store, changes ...func(*Identities)) (i *Identities, stop func()) {
	t.Helper()
	s.opts.Registerer = prometheus.NewRegistry() // of this follower alone
	i = s.FollowIdentities()
	i.every = 10 * time.Millisecond
	for _, change := range changes {
		change(i)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan struct{})
	go func() { defer close(ended); i.Run(ctx) }()
	stop = func() { cancel(); <-ended }
	t.Cleanup(stop)
	return i, stop
}

func waitReady(t testing.TB, i *Identities) {
	t.Helper()
	select {
	case <-i.Ready():
	case <-time.After(20 * time.Second):
		t.Fatal("never ready")
	}
}

func lookup(t testing.TB, i *Identities, user string) (string, Mapping) {
	t.Helper()
	id, found, err := i.Lookup(nil, []byte(user))
	if err != nil {
		t.Fatalf("look up %s: %v", user, err)
	}
	return string(id), found
}

func wantMapped(t testing.TB, i *Identities, user, want string) {
	t.Helper()
	if id, found := lookup(t, i, user); id != want || found != MappingFound {
		t.Fatalf("%s is %q, %v; want %q", user, id, found, want)
	}
}

func eventuallyMapped(t testing.TB, i *Identities, user, want string) {
	t.Helper()
	eventually(t, user+" is "+want, func() bool { id, _ := lookup(t, i, user); return id == want })
}

func TestWithoutMapNobodyIsMappedAndNobodyWaits(t *testing.T) {
	t.Parallel()
	i, _ := follower(t, openStore(t))
	waitReady(t, i)
	if id, found := lookup(t, i, "user-1"); id != "" || found != MappingNone {
		t.Errorf("got %q, %v", id, found)
	}
}

func TestImportIsNoticedByItself(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	i, _ := follower(t, s)
	waitReady(t, i)
	mustImport(t, s, "a", severalPieces)
	eventuallyMapped(t, i, "user-29999", "a-29999")
	if _, found := lookup(t, i, "nobody"); found != MappingMissing {
		t.Errorf("nobody is %v", found)
	}
	wantEqual(t, "gauge", testutil.ToFloat64(i.users), severalPieces)
	mustImport(t, s, "b", 10)
	eventuallyMapped(t, i, "user-9", "b-9")
	if _, found := lookup(t, i, "user-29999"); found != MappingMissing {
		t.Error("a user of the map before is still in")
	}
	info, err := s.Identities(t.Context())
	if err != nil || info.Users != 10 || time.Since(info.Imported) > time.Minute {
		t.Errorf("%+v, %v", info, err)
	}
}

// Lookups go on while maps change: each finds the one or the other, whole.
func TestMapChangesUnderTraffic(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	mustImport(t, s, "a", 500)
	i, _ := follower(t, s)
	waitReady(t, i)
	var stop atomic.Bool
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for n := 0; !stop.Load(); n++ {
				id, found, err := i.Lookup(nil, fmt.Append(nil, "user-", n%500))
				if err != nil || found != MappingFound || !strings.HasSuffix(string(id), fmt.Sprint("-", n%500)) {
					t.Errorf("user-%d is %q, %v, %v", n%500, id, found, err)
					return
				}
			}
		})
	}
	for _, tag := range []string{"b", "c", "d", "e"} {
		mustImport(t, s, tag, 500)
		eventuallyMapped(t, i, "user-0", tag+"-0")
	}
	stop.Store(true)
	all.Wait()
}

func TestRemovedMapIsForgotten(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	mustImport(t, s, "a", 10)
	i, stop := follower(t, s)
	waitReady(t, i)
	wantMapped(t, i, "user-1", "a-1")
	if err := s.RemoveIdentities(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "no map", func() bool { _, found := lookup(t, i, "user-1"); return found == MappingNone })
	wantEqual(t, "gauge", testutil.ToFloat64(i.users), 0)
	stop()
	if _, err := os.Stat(s.identityPath()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the copy is still there: %v", err)
	}
	_, err := s.Identities(t.Context())
	wantErr(t, err, ErrNoIdentities)
	wantErr(t, s.RemoveIdentities(t.Context()), ErrNoIdentities)
	again, _ := follower(t, s)
	waitReady(t, again)
	mustImport(t, s, "b", 10)
	eventuallyMapped(t, again, "user-1", "b-1")
}

// pieces is how many messages of uploads the bucket holds.
func pieces(t testing.TB, s *Store) uint64 {
	t.Helper()
	stream, err := s.identityStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n := stream.CachedInfo().State.Msgs
	if _, _, err := s.identityInfo(t.Context(), stream); err == nil {
		n-- // the one that names
	}
	return n
}

func TestInterruptedUploadChangesNothing(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	mustImport(t, s, "a", 10)
	ctx, cancel := context.WithCancel(t.Context())
	err := s.PutIdentities(ctx, identityMap(t, "b", severalPieces), func(int64) { cancel() })
	wantErr(t, err, context.Canceled)
	wantEqual(t, "pieces", pieces(t, s), 1)
	i, _ := follower(t, s)
	waitReady(t, i)
	wantMapped(t, i, "user-1", "a-1")
}

// What a killed import leaves is seen by nobody, and deleted by a later one.
func TestKilledUploadChangesNothing(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	mustImport(t, s, "a", 10)
	if _, err := s.uploadIdentities(t.Context(), identityMap(t, "b", severalPieces), nil); err != nil {
		t.Fatal(err)
	}
	i, _ := follower(t, s)
	waitReady(t, i)
	wantMapped(t, i, "user-1", "a-1")
	stream, err := s.identityStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	info, _, err := s.identityInfo(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	s.tidyIdentities(t.Context(), stream, info.upload, time.Hour)
	if n := pieces(t, s); n < 3 {
		t.Errorf("%d pieces: an upload that may go on was deleted", n)
	}
	s.tidyIdentities(t.Context(), stream, info.upload, 0)
	wantEqual(t, "pieces", pieces(t, s), 1)
}

func TestOfTwoImportsAtOnceTheSlowerIsRefused(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	mustImport(t, s, "a", 10)
	var once sync.Once
	err := s.PutIdentities(t.Context(), identityMap(t, "slow", 10), func(int64) {
		once.Do(func() { mustImport(t, s, "fast", 10) })
	})
	wantErr(t, err, ErrIdentitiesChanged)
	wantEqual(t, "pieces", pieces(t, s), 1)
	i, _ := follower(t, s)
	waitReady(t, i)
	wantMapped(t, i, "user-1", "fast-1")
}

// spoil changes what the bucket says or holds of a map of severalPieces.
var spoils = map[string]func(t testing.TB, s *Store){
	"a piece is missing": func(t testing.TB, s *Store) {
		stream, info := named(t, s)
		msg, err := s.identityChunk(t.Context(), stream, 1, info.upload)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.DeleteMsg(t.Context(), msg.Sequence); err != nil {
			t.Fatal(err)
		}
	},
	"all pieces are missing": func(t testing.TB, s *Store) {
		stream, info := named(t, s)
		s.dropUpload(t.Context(), stream, info.upload)
	},
	"other bytes": func(t testing.TB, s *Store) {
		stream, info := named(t, s)
		s.dropUpload(t.Context(), stream, info.upload)
		for range info.chunks {
			msg := &nats.Msg{Subject: s.names.identityChunks(info.upload), Data: bytes.Repeat([]byte("x"), identityChunkBytes)}
			if _, err := s.publish(t.Context(), msg); err != nil {
				t.Fatal(err)
			}
		}
	},
	"another map": func(t testing.TB, s *Store) {
		stream, info := named(t, s)
		other, err := s.uploadIdentities(t.Context(), identityMap(t, "other", severalPieces), nil)
		if err != nil {
			t.Fatal(err)
		}
		other.Metadata[identityVersion] = info.Version + "0"
		_, rev, err := s.identityInfo(t.Context(), stream)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.nameIdentities(t.Context(), other, rev); err != nil {
			t.Fatal(err)
		}
	},
	"no words that are understood": func(t testing.TB, s *Store) {
		if _, err := s.publish(t.Context(), &nats.Msg{Subject: s.names.identityMeta(), Data: []byte("{}")}); err != nil {
			t.Fatal(err)
		}
	},
}

func named(t testing.TB, s *Store) (jetstream.Stream, IdentityInfo) {
	t.Helper()
	stream, err := s.identityStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	info, _, err := s.identityInfo(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	return stream, info
}

// What arrives broken never takes the place of a good map, and a good one later does.
func TestBrokenMapNeverReplacesAGoodOne(t *testing.T) {
	t.Parallel()
	for name, spoil := range spoils {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openStore(t)
			mustImport(t, s, "a", 10)
			i, stop := follower(t, s)
			waitReady(t, i)
			stop() // so that it does not see the map before it is spoilt
			copied, err := os.ReadFile(s.identityPath())
			if err != nil {
				t.Fatal(err)
			}
			mustImport(t, s, "b", severalPieces)
			spoil(t, s)
			i, _ = follower(t, s, func(i *Identities) { i.fetch = 50 * time.Millisecond })
			waitReady(t, i)
			wantMapped(t, i, "user-1", "a-1")
			if now, err := os.ReadFile(s.identityPath()); err != nil || !bytes.Equal(now, copied) {
				t.Errorf("the copy has changed: %v", err)
			}
			mustImport(t, s, "c", 10)
			eventuallyMapped(t, i, "user-1", "c-1")
			if left, _ := filepath.Glob(s.identityPath() + ".*"); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// With a map that cannot be had, and nothing to fall back on, nobody is taken for
// unmapped: such a receipt could be sent on.
func TestMapThatCannotBeFetchedMakesUsersUnknown(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	mustImport(t, s, "a", severalPieces)
	spoils["other bytes"](t, s)
	i, _ := follower(t, s, func(i *Identities) { i.fetch = 50 * time.Millisecond })
	waitReady(t, i)
	if _, found := lookup(t, i, "user-1"); found != MappingUnknown {
		t.Errorf("user-1 is %v", found)
	}
	mustImport(t, s, "b", 10)
	eventuallyMapped(t, i, "user-1", "b-1")
}

func TestDoorsWaitForAMapThatIsThere(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	mustImport(t, s, "a", severalPieces)
	i, _ := follower(t, s)
	waitReady(t, i)
	wantMapped(t, i, "user-29999", "a-29999") // the very first lookup
}

func TestRestartUsesTheCopy(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	mustImport(t, s, "a", severalPieces)
	i, stop := follower(t, s)
	waitReady(t, i)
	stop()
	if _, found := lookup(t, i, "user-1"); found != MappingUnknown {
		t.Errorf("after the end a user is %v", found)
	}
	spoils["all pieces are missing"](t, s) // so that it cannot be fetched
	i, _ = follower(t, s)
	waitReady(t, i)
	wantMapped(t, i, "user-29999", "a-29999")
}

func TestDamagedCopyIsFetchedAnew(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func([]byte) []byte{
		"truncated": func(b []byte) []byte { return b[:len(b)/2] },
		"flipped":   func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"empty":     func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openStore(t)
			mustImport(t, s, "a", 100)
			i, stop := follower(t, s)
			waitReady(t, i)
			stop()
			rewrite(t, s.identityPath(), damage)
			i, _ = follower(t, s)
			waitReady(t, i)
			wantMapped(t, i, "user-1", "a-1")
		})
	}
}

func rewrite(t testing.TB, path string, change func([]byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A disk that damages the copy in use makes errors, until it is fetched anew.
func TestDamageUnderTrafficIsMended(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	mustImport(t, s, "a", 10)
	i, _ := follower(t, s)
	waitReady(t, i)
	rewrite(t, s.identityPath(), func(b []byte) []byte { b[20] ^= 1; return b })
	if _, _, err := i.Lookup(nil, []byte("user-1")); !errors.Is(err, idmap.ErrCorrupt) {
		t.Fatalf("got %v", err)
	}
	eventually(t, "mended", func() bool {
		id, found, err := i.Lookup(nil, []byte("user-1"))
		return err == nil && found == MappingFound && string(id) == "a-1"
	})
}

// Where the queue has lost the bucket the copy is all there is, and nobody has said
// that it be removed.
func TestLostBucketLeavesTheCopyInUse(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	mustImport(t, s, "a", 10)
	i, stop := follower(t, s)
	waitReady(t, i)
	if err := s.js.DeleteStream(t.Context(), s.names.identityStream()); err != nil {
		t.Fatal(err)
	}
	stop()
	i, _ = follower(t, s)
	waitReady(t, i)
	wantMapped(t, i, "user-1", "a-1")
	if err := s.RemoveIdentities(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "no map", func() bool { _, found := lookup(t, i, "user-1"); return found == MappingNone })
	wantErr(t, s.RemoveIdentities(t.Context()), ErrNoIdentities)
}

func TestMapSurvivesARestartOfTheQueue(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	s := openStore(t, on(dir))
	mustImport(t, s, "a", 10)
	i, stop := follower(t, s)
	waitReady(t, i)
	stop()
	mustClose(t, s)
	s = openStore(t, on(dir))
	i, _ = follower(t, s)
	waitReady(t, i)
	wantMapped(t, i, "user-1", "a-1")
}

// A cluster that does not answer about the map does not keep a copy from being used,
// nor the doors shut for ever without one.
func TestUnreachableObjectStore(t *testing.T) {
	t.Parallel()
	ns := startServer(t, serverOptions(t))
	g := newGate(t, ns.Addr().String())
	o := func(o *Options) { o.NATSURL, o.Replicas = "nats://"+g.listener.Addr().String(), 1 }
	with, without := openStore(t, o), openStore(t, o)
	mustImport(t, with, "a", 10)
	i, stop := follower(t, with)
	waitReady(t, i)
	stop()
	g.set(false)
	i, _ = follower(t, with)
	waitReady(t, i)
	wantMapped(t, i, "user-1", "a-1")
	j, _ := follower(t, without, func(i *Identities) { i.ask = 50 * time.Millisecond })
	waitReady(t, j)
	if _, found := lookup(t, j, "user-1"); found != MappingMissing {
		t.Errorf("user-1 is %v", found)
	}
	g.set(true)
	eventuallyMapped(t, j, "user-1", "a-1")
}

// On a cluster the data directory is a scratch volume that birdtap makes itself.
func TestClusterNeedsNoDataDirectory(t *testing.T) {
	t.Parallel()
	ns := startServer(t, serverOptions(t))
	s := openStore(t, external(ns))
	mustImport(t, s, "a", 10)
	if _, err := os.Stat(s.opts.DataDir); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the directory is there already: %v", err)
	}
	i, _ := follower(t, s)
	waitReady(t, i)
	wantMapped(t, i, "user-1", "a-1")
}

func TestMapLargerThanTheVolumeIsRefused(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	s.opts.volume = func(string) (volume, error) { return volume{free: 1 << 20, total: 10 << 20}, nil }
	err := s.PutIdentities(t.Context(), identityMap(t, "a", severalPieces), nil)
	if err == nil || !strings.Contains(err.Error(), "make it larger") {
		t.Errorf("got %v", err)
	}
	_, err = s.Identities(t.Context())
	wantErr(t, err, ErrNoIdentities)
}

// nats's own object store reads what is written here.
func TestBucketIsAnObjectStore(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	m := identityMap(t, "a", severalPieces)
	if err := s.PutIdentities(t.Context(), m, nil); err != nil {
		t.Fatal(err)
	}
	bucket, err := s.js.ObjectStore(t.Context(), s.names.identities)
	if err != nil {
		t.Fatal(err)
	}
	data, err := bucket.GetBytes(t.Context(), identityObject)
	if err != nil || int64(len(data)) != m.Size() {
		t.Fatalf("%d bytes, %v; want %d", len(data), err, m.Size())
	}
}

// A command reads the daemon's copy if that is current, else one of its own.
func TestCommandOpensTheMapThatHolds(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	_, err := s.OpenIdentities(t.Context())
	wantErr(t, err, ErrNoIdentities)
	mustImport(t, s, "a", 10)
	i, stop := follower(t, s)
	waitReady(t, i)
	stop()
	for _, tag := range []string{"a", "b"} { // the copy stays that of a
		mustImport(t, s, tag, 10)
		m, err := s.OpenIdentities(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		id, found, err := m.Lookup(nil, []byte("user-1"))
		if err != nil || !found || string(id) != tag+"-1" {
			t.Errorf("%q, %v, %v", id, found, err)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(s.opts.DataDir, "identities-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// The bucket is no part of the queue: its room is not the queue's.
func TestMapDoesNotCountAsRoomOfTheQueue(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	s.opts.volume = func(string) (volume, error) { return volume{free: 1 << 30, total: 2 << 30}, nil }
	room := func() int64 {
		n, err := s.room()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := room()
	mustImport(t, s, "a", severalPieces)
	i, _ := follower(t, s)
	waitReady(t, i)
	if more := room() - before; more > identityMap(t, "a", severalPieces).Size()/4 {
		t.Errorf("the queue has %d bytes more room by a map", more)
	}
}

// Who imports may be configured otherwise than the daemons are.
func TestBucketHasAsManyReplicasAsTheQueue(t *testing.T) {
	t.Parallel()
	ns := startServer(t, serverOptions(t))
	openStore(t, external(ns))
	s := openStore(t, external(ns), func(o *Options) { o.Replicas, o.Attach = 3, true })
	mustImport(t, s, "a", 10)
	if _, err := s.prepareIdentities(t.Context()); err != nil {
		t.Error(err)
	}
}
