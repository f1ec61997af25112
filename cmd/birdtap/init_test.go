package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// startNATS is a server with an admin, and a user who may not create streams.
func startNATS(t *testing.T) (admin, daemon []string) {
	t.Helper()
	ns, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), SyncAlways: true, NoSigs: true, NoLog: true, NoSystemAccount: true,
		Users: []*server.User{
			{Username: "admin", Password: marker},
			{Username: "daemon", Password: marker, Permissions: &server.Permissions{
				Publish: &server.SubjectPermission{Deny: []string{"$JS.API.STREAM.CREATE.>", "$JS.API.STREAM.UPDATE.>"}},
			}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ns.Start()
	t.Cleanup(func() { ns.Shutdown(); ns.WaitForShutdown() })
	if !ns.ReadyForConnections(10 * time.Second) {
		t.Fatal("nats-server does not start")
	}
	as := func(user string) []string {
		return append([]string{
			"BIRDTAP_NATS_URL=nats://" + user + ":" + marker + "@" + ns.Addr().String(), "BIRDTAP_REPLICAS=1",
			"BIRDTAP_HTTP_ADDR=127.0.0.1:0", "BIRDTAP_OPS_ADDR=127.0.0.1:0",
			"BIRDTAP_QUEUE_MAX_BYTES=64MiB", "BIRDTAP_DEAD_MAX_BYTES=16MiB", "BIRDTAP_KEEP_MAX_BYTES=16MiB",
		}, pair...)
	}
	return as("admin"), as("daemon")
}

// A daemon that may not create streams says so in its last line; after init it runs.
func TestInitForDaemonsThatMayNotCreateStreams(t *testing.T) {
	admin, daemon := startNATS(t)
	got := birdtap(t, daemon, "serve")
	lines := strings.Split(strings.TrimSpace(got.err), "\n")
	want := "birdtap: stream BIRDTAP_RECEIPTS is missing, and this user may not create it: run birdtap init with a user that may"
	if got.code != exitFailed || lines[len(lines)-1] != want {
		t.Errorf("code %d, last line %q", got.code, lines[len(lines)-1])
	}
	// A command says the same in its words.
	if got := birdtap(t, daemon, "status"); got.code != exitFailed || !strings.Contains(got.err, "birdtap init") {
		t.Errorf("status: %+v", got)
	}
	// Nor may this user init.
	if got := birdtap(t, daemon, "init"); got.code != exitFailed || got.out != "" || !strings.Contains(got.err, "may not create it") {
		t.Errorf("init: %+v", got)
	}

	text := func(environ []string, args ...string) string {
		t.Helper()
		got := birdtap(t, environ, append([]string{"init"}, args...)...)
		if got.code != exitDone || got.err != "" || strings.Contains(got.out, marker) {
			t.Fatalf("%+v", got)
		}
		return got.out
	}
	if got := text(admin); got != "BIRDTAP_RECEIPTS        created\nBIRDTAP_DEAD            created\nBIRDTAP_STATE           created\nBIRDTAP_SENDS           created\nBIRDTAP_HELD            created\nBIRDTAP_UNSENT          created\nOBJ_BIRDTAP_IDENTITIES  created\n" {
		t.Errorf("init prints %q", got)
	}
	larger := append(append([]string{}, admin...), "BIRDTAP_DEAD_MAX_BYTES=20MiB")
	if got := text(larger, "--json"); got != `{"stream":"BIRDTAP_RECEIPTS","action":"unchanged"}
{"stream":"BIRDTAP_DEAD","action":"updated","changes":[{"setting":"max_bytes","from":"20971520","to":"25165824"}]}
{"stream":"BIRDTAP_STATE","action":"unchanged"}
{"stream":"BIRDTAP_SENDS","action":"unchanged"}
{"stream":"BIRDTAP_HELD","action":"unchanged"}
{"stream":"BIRDTAP_UNSENT","action":"unchanged"}
{"stream":"OBJ_BIRDTAP_IDENTITIES","action":"unchanged"}
` {
		t.Errorf("init --json prints %s", got)
	}
	if got := text(admin); !strings.Contains(got, "BIRDTAP_DEAD            updated  max_bytes 25165824 → 20971520\n") || !strings.Contains(got, "BIRDTAP_STATE           unchanged\n") {
		t.Errorf("init prints %q", got)
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var words bytes.Buffer
	p := &program{in: strings.NewReader(""), out: &bytes.Buffer{}, err: until(&words, `"queue open"`, cancel), environ: daemon}
	if code := p.run(ctx, []string{"serve"}); code != exitDone {
		t.Errorf("after init: code %d, stderr %s", code, words.String())
	}
}
