package store

import (
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func remembering(d time.Duration) func(*Options) {
	return func(o *Options) { o.RememberSent = d }
}

func openRemembering(t *testing.T, d time.Duration, options ...func(*Options)) *Store {
	t.Helper()
	s := openStore(t, append(options, remembering(d))...)
	if err := s.OpenRemembered(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestWhatWasSentIsRemembered(t *testing.T) {
	dir := t.TempDir() + "/data"
	s := openRemembering(t, time.Hour, on(dir))
	ids := []string{"7190607145580961921", "", "a.b", "a b", "a*", ">", "a=2Eb", "ü", "\x00\xff", strings.Repeat("x", maxRememberedID), strings.Repeat("x", maxRememberedID+1)}
	for i, id := range ids {
		want := RememberedSend{Event: "Event " + string(rune('a'+i)), Target: "9007199254740993"}
		err := s.Remember(t.Context(), id, want)
		if bad := id == "" || len(id) > maxRememberedID; bad != (err != nil) {
			t.Fatalf("%q: %v", id, err)
		} else if bad {
			if _, found, err := s.Remembered(t.Context(), id); found || err != nil {
				t.Errorf("%q: %v, %v", id, found, err)
			}
			continue
		}
		if got, found, err := s.Remembered(t.Context(), id); err != nil || !found || got != want {
			t.Errorf("%q: got %+v, %v, %v", id, got, found, err)
		}
	}
	if _, found, err := s.Remembered(t.Context(), "1"); found || err != nil {
		t.Errorf("an unknown one: %v, %v", found, err)
	}
	// The bucket is one for other programs, too.
	kv, err := s.js.KeyValue(t.Context(), "BIRDTAP_SENT")
	if err != nil {
		t.Fatal(err)
	}
	if entry, err := kv.Get(t.Context(), ids[0]); err != nil || !strings.Contains(string(entry.Value()), "Event a") {
		t.Errorf("got %v, %v", entry, err)
	}
	if err := kv.Delete(t.Context(), ids[0]); err != nil {
		t.Fatal(err)
	}
	if _, found, err := s.Remembered(t.Context(), ids[0]); found || err != nil {
		t.Errorf("a deleted one: %v, %v", found, err)
	}
	crashed := openRemembering(t, time.Hour, on(crash(t, dir)))
	if got, found, err := crashed.Remembered(t.Context(), "a.b"); err != nil || !found || got.Event != "Event c" {
		t.Errorf("after a crash: got %+v, %v, %v", got, found, err)
	}
}

func TestWhatWasSentIsForgotten(t *testing.T) {
	s := openRemembering(t, 200*time.Millisecond)
	if err := s.Remember(t.Context(), "1", RememberedSend{Event: "Offer", Target: "1"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is forgotten", func() bool {
		_, found, err := s.Remembered(t.Context(), "1")
		return !found && err == nil
	})
}

func TestTimeToLiveFollowsTheConfiguration(t *testing.T) {
	dir := t.TempDir() + "/data"
	age := func(s *Store) time.Duration {
		stream, err := s.js.Stream(t.Context(), s.names.rememberedStream())
		if err != nil {
			t.Fatal(err)
		}
		return stream.CachedInfo().Config.MaxAge
	}
	s := openRemembering(t, time.Hour, on(dir))
	wantEqual(t, "time to live", age(s), time.Hour)
	mustClose(t, s)
	s = openRemembering(t, time.Minute, on(dir))
	wantEqual(t, "time to live", age(s), time.Minute)
}

func TestNothingIsRememberedUnlessAskedFor(t *testing.T) {
	s := openRemembering(t, 0)
	if err := s.Remember(t.Context(), "1", RememberedSend{Event: "Offer", Target: "1"}); err != nil {
		t.Fatal(err)
	}
	if _, found, err := s.Remembered(t.Context(), "1"); found || err != nil {
		t.Errorf("got %v, %v", found, err)
	}
	if _, err := s.js.Stream(t.Context(), s.names.rememberedStream()); err == nil {
		t.Error("there is a bucket")
	}
}

// The bucket may be gone, or never have been to be had.
func TestMissingBucketIsMadeByTheFirstNote(t *testing.T) {
	s := openStore(t, remembering(time.Hour))
	if _, found, err := s.Remembered(t.Context(), "1"); found || err != nil {
		t.Errorf("without a bucket: %v, %v", found, err)
	}
	if err := s.Remember(t.Context(), "1", RememberedSend{Event: "Offer", Target: "1"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is found", func() bool {
		_, found, err := s.Remembered(t.Context(), "1")
		return found && err == nil
	})
}

func TestInitMakesTheBucketOfNotes(t *testing.T) {
	ns := startServer(t, serverOptions(t))
	made := func(d time.Duration) Made {
		all := mustInit(t, initOptions(ns, remembering(d)))
		return all[len(all)-1]
	}
	for _, want := range []struct {
		after  time.Duration
		action Action
	}{{time.Hour, Created}, {time.Hour, Unchanged}, {time.Minute, Updated}} {
		if got := made(want.after); got.Stream != "KV_BIRDTAP_SENT" || got.Action != want.action {
			t.Errorf("%v: got %+v, want %s", want.after, got, want.action)
		}
	}
	if got := made(0); got.Stream == "KV_BIRDTAP_SENT" {
		t.Errorf("without being asked for: %+v", got)
	}
}

// With the rights of a daemon notes are written and read; without those to the bucket
// there are none, which is said once, and nobody waits for them.
func TestNotesWithTheRightsOfADaemon(t *testing.T) {
	admin, daemon := startRestricted(t)
	mustInit(t, initOptions(nil, admin, remembering(time.Hour)))
	s := openRemembering(t, time.Hour, daemon)
	if err := s.Remember(t.Context(), "1", RememberedSend{Event: "Offer", Target: "1"}); err != nil {
		t.Fatal(err)
	}
	if got, found, err := s.Remembered(t.Context(), "1"); err != nil || !found || got.Event != "Offer" {
		t.Errorf("got %+v, %v, %v", got, found, err)
	}
	for _, without := range []string{"INFO.KV_", "GET.KV_"} {
		admin, daemon := startRestricted(t, without)
		mustInit(t, initOptions(nil, admin, remembering(time.Hour)))
		core, logs := observer.New(zap.WarnLevel)
		s := openRemembering(t, time.Hour, daemon, logTo(zap.New(core)))
		for range 3 {
			if _, found, err := s.Remembered(t.Context(), "1"); found || err != nil {
				t.Errorf("without %s: got %v, %v", without, found, err)
			}
		}
		if n := logs.FilterMessageSnippet("may not look up what was sent").Len(); n != 1 {
			t.Errorf("without %s: said %d times: %+v", without, n, logs.All())
		}
	}
}
