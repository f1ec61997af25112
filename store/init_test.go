package store

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func initOptions(ns *server.Server, change ...func(*Options)) Options {
	o := Options{Replicas: 1, QueueMaxBytes: 64 << 20, DeadMaxBytes: 16 << 20, KeepMaxBytes: 16 << 20}
	if ns != nil {
		o.NATSURL = ns.ClientURL()
	}
	for _, c := range change {
		c(&o)
	}
	return o
}

func mustInit(t testing.TB, o Options) []Made {
	t.Helper()
	made, err := Init(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func TestInitCreatesThenLeavesAlone(t *testing.T) {
	ns := startServer(t, serverOptions(t))
	for _, want := range []Action{Created, Unchanged} {
		made := mustInit(t, initOptions(ns))
		var names []string
		for _, m := range made {
			names = append(names, m.Stream)
			if m.Action != want || len(m.Changes) > 0 {
				t.Errorf("%+v, want %s", m, want)
			}
		}
		wantEqual(t, "streams", strings.Join(names, " "), "BIRDTAP_RECEIPTS BIRDTAP_DEAD BIRDTAP_STATE BIRDTAP_SENDS BIRDTAP_HELD BIRDTAP_UNSENT OBJ_BIRDTAP_IDENTITIES")
	}
	s := openStore(t, external(ns))
	mustCommit(t, s, receipt(0))
	for _, m := range mustInit(t, initOptions(ns)) { // beside a running daemon
		wantEqual(t, "action", m.Action, Unchanged)
	}
}

// What may change is changed and told; what waits stays.
func TestInitUpdates(t *testing.T) {
	ns := startServer(t, serverOptions(t))
	mustInit(t, initOptions(ns))
	s := openStore(t, external(ns))
	mustCommit(t, s, receipts(0, 10)...)
	spoil := func(stream jetstream.Stream, change func(*jetstream.StreamConfig)) {
		t.Helper()
		config := stream.CachedInfo().Config
		change(&config)
		if _, err := s.js.UpdateStream(t.Context(), config); err != nil {
			t.Fatal(err)
		}
	}
	spoil(s.receipts, func(c *jetstream.StreamConfig) {
		c.Discard, c.MaxAge, c.MaxMsgs, c.MaxMsgsPerSubject, c.MaxMsgSize, c.NoAck = jetstream.DiscardOld, time.Hour, 100, 90, 1<<20, true
	})
	spoil(s.state, func(c *jetstream.StreamConfig) { c.AllowDirect, c.MaxMsgsPerSubject = true, 3 })
	if _, err := tryOpen(t, external(ns)); err == nil || !strings.Contains(err.Error(), "birdtap init changes that") {
		t.Errorf("a daemon says %v", err)
	}
	got := mustInit(t, initOptions(ns, func(o *Options) { o.QueueMaxBytes, o.DeadMaxBytes = 32<<20, 20<<20 }))
	want := []Made{
		{"BIRDTAP_RECEIPTS", Updated, []Change{
			{"max_bytes", "83886080", "50331648"},
			{"discard", "DiscardOld", "DiscardNew"},
			{"max_age", "1h0m0s", "0s"},
			{"max_msgs", "100", "none"},
			{"max_msg_size", "1048576", "none"},
			{"max_msgs_per_subject", "90", "none"},
			{"no_ack", "true", "false"},
		}},
		{"BIRDTAP_DEAD", Updated, []Change{{"max_bytes", "20971520", "25165824"}}},
		{"BIRDTAP_STATE", Updated, []Change{{"max_msgs_per_subject", "3", "1"}, {"allow_direct", "true", "false"}}},
		{"BIRDTAP_SENDS", Unchanged, nil},
		{"BIRDTAP_HELD", Unchanged, nil},
		{"BIRDTAP_UNSENT", Unchanged, nil},
		{"OBJ_BIRDTAP_IDENTITIES", Unchanged, nil},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	fresh := openStore(t, external(ns), queueOf(32<<20), func(o *Options) { o.DeadMaxBytes = 20 << 20 })
	wantEqual(t, "receipts", len(stored(t, fresh)), 10)
	wantEqual(t, "duplicates window", fresh.receipts.CachedInfo().Config.Duplicates, 2*time.Minute)
	if got := mustInit(t, fresh.opts); slices.ContainsFunc(got, func(m Made) bool { return m.Action != Unchanged }) {
		t.Errorf("done again: %+v", got)
	}
}

// Of what cannot be changed, or is somebody else's, nothing is touched.
func TestInitRefusesWhatItMayNotChange(t *testing.T) {
	for what, spoil := range map[string]func(*jetstream.StreamConfig){
		"subjects":    func(c *jetstream.StreamConfig) { c.Subjects = []string{"orders.>"} },
		"retention":   func(c *jetstream.StreamConfig) { c.Retention = jetstream.WorkQueuePolicy },
		"deny_delete": func(c *jetstream.StreamConfig) { c.DenyDelete = true },
		"deny_purge":  func(c *jetstream.StreamConfig) { c.DenyPurge = true },
		"storage":     func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage },
	} {
		t.Run(what, func(t *testing.T) {
			ns := startServer(t, serverOptions(t))
			other := openStore(t, external(ns), func(o *Options) { o.Prefix = "OTHER" })
			config := jetstream.StreamConfig{Name: "BIRDTAP_DEAD", Subjects: []string{"BIRDTAP.dead"}, Discard: jetstream.DiscardNew}
			spoil(&config)
			if _, err := other.js.CreateStream(t.Context(), config); err != nil {
				t.Fatal(err)
			}
			made, err := Init(t.Context(), initOptions(ns))
			if err == nil || len(made) > 0 || !strings.Contains(err.Error(), "BIRDTAP_DEAD") || !strings.Contains(err.Error(), what) {
				t.Errorf("made %+v, %v", made, err)
			}
			if _, err := other.js.Stream(t.Context(), "BIRDTAP_RECEIPTS"); !errors.Is(err, jetstream.ErrStreamNotFound) {
				t.Errorf("a stream was made: %v", err)
			}
		})
	}
}

func TestInitMakesNoNewQueueBesideThePartsOfAnOldOne(t *testing.T) {
	ns := startServer(t, serverOptions(t))
	s := openStore(t, external(ns))
	mustCommit(t, s, receipt(0))
	if err := s.js.DeleteStream(t.Context(), "BIRDTAP_STATE"); err != nil {
		t.Fatal(err)
	}
	if made, err := Init(t.Context(), initOptions(ns)); err == nil || len(made) > 0 || !strings.Contains(err.Error(), "BIRDTAP_STATE is gone") {
		t.Errorf("made %+v, %v", made, err)
	}
}

func TestInitIsNotForTheEmbeddedQueue(t *testing.T) {
	if _, err := Init(t.Context(), Options{DataDir: t.TempDir()}); err == nil {
		t.Error("no error")
	}
}

// daemonRights is all that a daemon's user may publish to once birdtap init has run,
// and all that it needs: what birdtap init --help lists.
func daemonRights() []string {
	rights := []string{"BIRDTAP.>"}
	for _, stream := range []string{"BIRDTAP_RECEIPTS", "BIRDTAP_DEAD", "BIRDTAP_STATE", "BIRDTAP_SENDS", "BIRDTAP_HELD", "BIRDTAP_UNSENT"} {
		rights = append(rights,
			"$JS.API.STREAM.INFO."+stream,
			"$JS.API.STREAM.MSG.GET."+stream,
			"$JS.API.CONSUMER.CREATE."+stream+".>",
			"$JS.API.CONSUMER.DELETE."+stream+".*",
			"$JS.API.CONSUMER.MSG.NEXT."+stream+".*")
	}
	rights = append(rights, "$JS.API.STREAM.INFO.OBJ_BIRDTAP_IDENTITIES", "$JS.API.STREAM.MSG.GET.OBJ_BIRDTAP_IDENTITIES")
	rights = append(rights, "$JS.API.STREAM.INFO.KV_BIRDTAP_SENT", "$JS.API.STREAM.MSG.GET.KV_BIRDTAP_SENT", "$KV.BIRDTAP_SENT.>")
	rights = append(rights, "$JS.API.STREAM.PURGE.BIRDTAP_SENDS", "$JS.API.STREAM.PURGE.BIRDTAP_HELD", "_INBOX.BIRDTAP.>")
	return append(rights, "$JS.API.STREAM.PURGE.BIRDTAP_RECEIPTS", "$JS.API.STREAM.MSG.DELETE.BIRDTAP_DEAD")
}

// startRestricted is a server with a user who may do everything, and a daemon's, who lacks
// some rights.
func startRestricted(t *testing.T, without ...string) (admin, daemon func(*Options)) {
	t.Helper()
	rights := slices.DeleteFunc(daemonRights(), func(right string) bool {
		return slices.ContainsFunc(without, func(w string) bool { return strings.Contains(right, w) })
	})
	o := serverOptions(t)
	o.Users = []*server.User{
		{Username: "admin", Password: "a"},
		{Username: "daemon", Password: "d", Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: rights},
			Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.BIRDTAP.>", "BIRDTAP.news.*"}},
		}},
	}
	ns := startServer(t, o)
	as := func(user string) func(*Options) {
		return func(o *Options) { o.NATSURL, o.Replicas = "nats://"+user+"@"+ns.Addr().String(), 1 }
	}
	return as("admin:a"), as("daemon:d")
}

// One line that names the way out, and at once: not after some timeout.
func TestDaemonThatMayNotCreateStreamsNamesInit(t *testing.T) {
	_, daemon := startRestricted(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second) // the client's own timeout is 5 s
	defer cancel()
	o := initOptions(nil, daemon)
	_, err := Open(ctx, o)
	if err == nil || err.Error() != "stream BIRDTAP_RECEIPTS is missing, and this user may not create it: run birdtap init with a user that may" {
		t.Errorf("got %v", err)
	}
}

// After init the daemon's user does all of its work.
func TestDaemonWorksWithTheRightsOfADaemon(t *testing.T) {
	admin, daemon := startRestricted(t)
	mustInit(t, initOptions(nil, admin))
	core, logs := observer.New(zap.WarnLevel)
	s := openStore(t, daemon, logTo(zap.New(core)))
	frames(t, s, 3, 10)
	settle(t, s, 3)
	mustBury(t, s, letters(10, 10, "512")...)
	if n, err := s.Replay(t.Context(), ReplayOptions{Choose: all, Limit: 5}); n != 5 || err != nil {
		t.Errorf("replayed %d, %v", n, err)
	}
	if n, err := s.Purge(t.Context(), all, 1); n != 1 || err != nil {
		t.Errorf("purged %d, %v", n, err)
	}
	mustReplayDelivered(t, s, DeliveredOptions{})
	news, err := s.PauseNews(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetPaused(t.Context(), true); err != nil {
		t.Error(err)
	}
	<-news
	status(t, s)
	if _, _, err := s.FrameTime(t.Context(), 1); err != nil {
		t.Error(err)
	}
	if err := s.receipts.Purge(t.Context(), jetstream.WithPurgeSequence(2)); err != nil {
		t.Error(err)
	}
	sends, err := s.OpenSends(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer sends.Close()
	nothing := func([]byte) error { return nil }
	for what, err := range map[string]error{
		"commit":      sends.Commit(t.Context(), []Ask{{Data: []byte("{}")}}),
		"scan":        sends.Scan(t.Context(), 1, func(SendFrame) error { return nil }),
		"trim":        sends.Trim(t.Context(), 2),
		"hold":        sends.Hold(t.Context(), "1", []byte("x")),
		"held":        sends.Held(t.Context(), func(string, []byte) error { return nil }),
		"forget":      sends.Forget(t.Context(), "1"),
		"list unsent": sends.ListUnsent(t.Context(), []byte("x")),
		"unsent":      sends.Unsent(t.Context(), nothing),
		"write run":   sends.WriteRun(t.Context(), "a", []byte("x")),
		"alive":       sends.AnswerAlive(t.Context()),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if run, err := sends.ReadRun(t.Context(), "a"); string(run) != "x" || err != nil {
		t.Errorf("read run: %q, %v", run, err)
	}
	if !sends.Alive(t.Context(), 10*time.Second) || !sends.MayCheckpoint(t.Context()) {
		t.Error("nobody answers for the sender, or it may not write its checkpoint")
	}
	if _, rev, err := sends.ReadCheckpoint(t.Context()); rev != 0 || err != nil {
		t.Errorf("revision %d, %v: to be asked leaves no trace", rev, err)
	}
	if _, err := sends.WriteCheckpoint(t.Context(), []byte("{}"), 0); err != nil {
		t.Error(err)
	}
	if logs.Len() > 0 {
		t.Errorf("%+v", logs.All()[0])
	}
}

// Who uses no identity map need not give rights to it: the doors open at once, and it is
// said once.
func TestDaemonWithoutRightsToTheIdentityMapHasNone(t *testing.T) {
	admin, daemon := startRestricted(t, "IDENTITIES")
	mustInit(t, initOptions(nil, admin))
	core, logs := observer.New(zap.WarnLevel)
	s := openStore(t, daemon, logTo(zap.New(core)))
	ids := s.FollowIdentities()
	ids.every = time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		ids.Run(ctx)
	}()
	<-ids.Ready()
	if _, found, err := ids.Lookup(nil, []byte("user")); found != MappingNone || err != nil {
		t.Errorf("found %v, %v", found, err)
	}
	cancel()
	<-done
	if n := logs.FilterMessageSnippet("without an identity map").Len(); n != 1 {
		t.Errorf("said %d times: %+v", n, logs.All())
	}
}

func TestUserWithoutRightsToTheSendersCheckpointIsTold(t *testing.T) {
	admin, daemon := startRestricted(t, "BIRDTAP.>")
	mustInit(t, initOptions(nil, admin))
	sends, err := openStore(t, daemon).OpenSends(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer sends.Close()
	if sends.MayCheckpoint(t.Context()) {
		t.Error("it may")
	}
}

// Better a queue of another size than none.
func TestDaemonThatMayNotResizeGoesOn(t *testing.T) {
	admin, daemon := startRestricted(t)
	mustInit(t, initOptions(nil, admin))
	core, logs := observer.New(zap.WarnLevel)
	s := openStore(t, daemon, queueOf(32<<20), logTo(zap.New(core)))
	mustCommit(t, s, receipt(0))
	if n := logs.FilterMessageSnippet("birdtap init").Len(); n != 1 {
		t.Errorf("%d warnings that name birdtap init: %+v", n, logs.All())
	}
}
