//go:build integration

package integration

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
)

// With deploy/nats-server.conf each role does all of its work, on three servers that know
// everybody by certificate, and nobody is told once that a right is missing. Then each
// user tries all that is not its work, and may do none of it.
func TestShippedRights(t *testing.T) {
	c := startShippedCluster(t)
	t.Run("enough", func(t *testing.T) { rolesWork(t, c) })
	if lacked := c.violations(); len(lacked) > 0 {
		t.Errorf("%d times a right was missing, the first time: %s", len(lacked), lacked[0])
	}
	t.Run("operator is no sender", func(t *testing.T) { operatorIsNoSender(t, rolesOf(t, c, "http://127.0.0.1:1")) })
	for user := range userRights {
		t.Run("no more than "+user, func(t *testing.T) { onlyItsRights(t, c, user) })
	}
	t.Run("strangers", func(t *testing.T) { strangers(t, c) })
}

// rolesWork is the way of receipts through all roles, and every command of an operator.
func rolesWork(t *testing.T, c *shippedCluster) {
	fake := clevertaptest.New(clevertaptest.Options{AccountID: accountID, Passcode: passcode})
	upload := httptest.NewServer(fake.Handler())
	t.Cleanup(upload.Close)
	role := rolesOf(t, c, upload.URL)
	operator := role("operator")
	command := func(args ...string) string {
		t.Helper()
		out, err := operator.output(args...)
		if err != nil {
			t.Fatalf("birdtap %s: %v", strings.Join(args, " "), err)
		}
		return string(out)
	}

	for _, want := range []string{"created", "unchanged"} {
		out, err := role("admin").output("init")
		if n := strings.Count(string(out), want); err != nil || n != 8 {
			t.Fatalf("birdtap init: %v, and %d streams %s:\n%s", err, n, want, out)
		}
	}

	door, window := freeAddr(t), freeAddr(t)
	ingest := role("ingest", map[string]string{"HTTP_ADDR": door, "OPS_ADDR": window, "SENDBIRD_SIGNING_KEYS": signingKey}).daemon("ingest", "ingest")
	relays := map[string]*process{}
	for _, name := range []string{"a", "b"} {
		addr := freeAddr(t)
		relays[addr] = role("relay", map[string]string{"OPS_ADDR": addr}).daemon("relay", "relay-"+name)
	}
	ingest.ready(window, time.Minute)
	active := func() string {
		var who string
		eventually(t, time.Minute, "a relay is active", func() bool {
			for addr, p := range relays {
				if strings.Contains(get("http://"+addr+"/metrics"), "birdtap_relay_active 1\n") {
					p.alive()
					who = addr
					return true
				}
			}
			return false
		})
		return who
	}
	sent := 0
	post := func(n int, event string) {
		t.Helper()
		var records []string
		for range n {
			sent++
			records = append(records, fmt.Sprintf(`{"identity":"user-%d","evtName":%q,"evtData":{"status":"SENT","target_id":%d}}`, sent, event, sent))
		}
		if code := postUpload(t, "http://"+door, "["+strings.Join(records, ",")+"]"); code != http.StatusOK {
			t.Fatalf("a post of %d receipts was answered %d", n, code)
		}
	}

	// Receipts come in and leave; some die; what is settled is trimmed.
	first := active()
	for range 20 {
		post(100, "Offer")
	}
	if code := postUpload(t, "http://"+door, `{"notification_id":"1","user_id":"u","evtData":{"status":"READ"}}`); code != http.StatusOK { // nobody sent that
		t.Errorf("answered %d", code)
	}
	post(3, "Notification Sent") // a reserved name
	a := operator.drained(time.Minute)
	if a.Delivered != 2000 || a.Dead != 4 {
		t.Errorf("%+v, want 2000 delivered and 4 dead", a)
	}
	eventually(t, time.Minute, "the queue is trimmed", func() bool { return firstFrame(t, c) > 1 })

	// What an operator does.
	command("pause")
	post(2, "Offer")
	if s := command("status"); !strings.Contains(s, "PAUSED") {
		t.Errorf("status after pause:\n%s", s)
	}
	command("resume")
	operator.drained(time.Minute)
	if out := command("dead", "list", "--json"); strings.Count(out, "\n") != 4 {
		t.Errorf("dead list:\n%s", out)
	}
	command("relay", "--replay", "--reason", "refused", "--limit", "2") // looked up, and refused once more
	command("relay", "--replay", "--delivered", "--since", "1h", "--limit", "5")
	operator.drained(time.Minute)
	command("dead", "purge", "--reason", "refused", "--limit", "1", "--yes")
	if out := command("dead", "export"); strings.Count(out, "\n") != 3 {
		t.Errorf("dead export:\n%s", out)
	}

	// The identity map: imported, followed by ingest, exchanged, removed.
	file := filepath.Join(t.TempDir(), "users.csv")
	for i, text := range []string{"user_id,identity\na,b\n", "user_id,identity\na,b\nc,d\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		command("identities", "import", file)
		want := fmt.Sprintf("birdtap_identities %d\n", i+1)
		eventually(t, time.Minute, "ingest uses the map", func() bool { return strings.Contains(get("http://"+window+"/metrics"), want) })
	}
	command("identities")
	command("identities", "remove", "--yes")

	t.Run("notifications", func(t *testing.T) { sendersWork(t, c, rolesOf(t, c, upload.URL), door) })

	// The other relay takes over, from a killed one as well as from one that stops.
	relays[first].kill()
	delete(relays, first)
	post(10, "Offer")
	second := active()
	operator.drained(time.Minute)
	if code := relays[second].terminate(30 * time.Second); code != 0 {
		t.Errorf("the relay ended with code %d", code)
	}
	if code := ingest.terminate(30 * time.Second); code != 0 {
		t.Errorf("ingest ended with code %d", code)
	}
}

// rolesOf makes the places where the cluster's users run birdtap.
func rolesOf(t *testing.T, c *shippedCluster, upload string) func(user string, more ...map[string]string) *birdtap {
	at := newBirdtap(t, map[string]string{
		"CLEVERTAP_ACCOUNT_ID": accountID, "CLEVERTAP_PASSCODE": passcode, "CLEVERTAP_URL": upload,
		"QUEUE_MAX_BYTES": "64MiB", "DEAD_MAX_BYTES": "16MiB", "KEEP_MAX_BYTES": "16KiB", "BATCH_MAX_WAIT": "20ms", "REMEMBER_SENT": "1h",
	})
	return func(user string, more ...map[string]string) *birdtap {
		b := at.with(c.as("birdtap-" + user)).with(map[string]string{"DATA_DIR": filepath.Join(t.TempDir(), "scratch")})
		for _, env := range more {
			b = b.with(env)
		}
		return b
	}
}

func postUpload(t *testing.T, door, body string) int {
	t.Helper()
	code := tryUpload(door, body)
	if code == 0 {
		t.Fatalf("%s does not answer", door)
	}
	return code
}

// tryUpload posts to /1/upload and returns the status, 0 without an answer.
func tryUpload(door, body string) int {
	req, err := http.NewRequest(http.MethodPost, door+"/1/upload", strings.NewReader(body))
	if err != nil {
		return 0
	}
	req.Header.Set("X-CleverTap-Account-Id", accountID)
	req.Header.Set("X-CleverTap-Passcode", passcode)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// firstFrame is the oldest frame that is kept.
func firstFrame(t *testing.T, c *shippedCluster) uint64 {
	t.Helper()
	nc, err := c.connect("birdtap-operator", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), "BIRDTAP_RECEIPTS")
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().State.FirstSeq
}

// rights are what a user may publish and subscribe to, of everything that is asked below.
type rights struct{ publish, subscribe []string }

// reads is what it takes to read a stream's messages in order.
func reads(stream string) []string {
	return []string{"$JS.API.CONSUMER.CREATE." + stream + ".c", "$JS.API.CONSUMER.DELETE." + stream + ".c", "$JS.API.CONSUMER.MSG.NEXT." + stream + ".c"}
}

func with(prefix string, streams ...string) []string {
	var subjects []string
	for _, s := range streams {
		subjects = append(subjects, prefix+s)
	}
	return subjects
}

const (
	receiptStream  = "BIRDTAP_RECEIPTS"
	deadStream     = "BIRDTAP_DEAD"
	stateStream    = "BIRDTAP_STATE"
	identityStream = "OBJ_BIRDTAP_IDENTITIES"
	sendStream     = "BIRDTAP_SENDS"
	heldStream     = "BIRDTAP_HELD"
	unsentStream   = "BIRDTAP_UNSENT"
	noteStream     = "KV_BIRDTAP_SENT"
)

var (
	allStreams = []string{receiptStream, deadStream, stateStream, identityStream, sendStream, heldStream, unsentStream, noteStream}
	streamInfo = with("$JS.API.STREAM.INFO.", receiptStream, deadStream, stateStream)
	userRights = map[string]rights{
		"birdtap-ingest": {
			publish: slices.Concat(streamInfo, []string{
				"BIRDTAP.receipts", "$JS.API.STREAM.MSG.GET." + stateStream,
				"$JS.API.STREAM.INFO." + identityStream, "$JS.API.STREAM.MSG.GET." + identityStream,
				"$JS.API.STREAM.INFO." + noteStream, "$JS.API.STREAM.MSG.GET." + noteStream,
			}),
		},
		"birdtap-relay": {
			publish: slices.Concat(streamInfo, reads(receiptStream), reads(deadStream),
				with("$JS.API.STREAM.MSG.GET.", receiptStream, stateStream),
				[]string{"BIRDTAP.dead", "BIRDTAP.state.relay", "BIRDTAP.state.campaigns.relay.0", "$JS.API.STREAM.PURGE." + receiptStream}),
			subscribe: []string{"BIRDTAP.news.pause"},
		},
		"birdtap-sender": {
			publish: slices.Concat(streamInfo, reads(sendStream), reads(heldStream),
				with("$JS.API.STREAM.INFO.", sendStream, heldStream, unsentStream, noteStream),
				with("$JS.API.STREAM.MSG.GET.", heldStream, stateStream),
				with("$JS.API.STREAM.PURGE.", sendStream, heldStream),
				[]string{
					"BIRDTAP.sends", "BIRDTAP.held.x", "BIRDTAP.unsent", "BIRDTAP.run.x", "BIRDTAP.order.x", "BIRDTAP.state.sender",
					"BIRDTAP.state.campaigns.sender.0", "BIRDTAP.news.sender", "$KV.BIRDTAP_SENT.x",
				}),
			subscribe: []string{"BIRDTAP.news.sender"},
		},
		"birdtap-operator": {
			publish: slices.Concat(streamInfo, reads(receiptStream), reads(deadStream), reads(sendStream), reads(heldStream), reads(unsentStream),
				with("$JS.API.STREAM.INFO.", sendStream, heldStream, unsentStream, noteStream),
				with("$JS.API.STREAM.MSG.GET.", receiptStream, deadStream, stateStream, identityStream, heldStream, noteStream),
				[]string{
					"BIRDTAP.receipts", "BIRDTAP.dead", "BIRDTAP.state.pause", "BIRDTAP.state.purged", "BIRDTAP.news.pause",
					"BIRDTAP.sends", "BIRDTAP.run.x", "BIRDTAP.order.x", "BIRDTAP.news.sender", "$JS.API.STREAM.PURGE." + heldStream,
					"$JS.API.STREAM.MSG.DELETE." + deadStream, "$JS.API.STREAM.INFO." + identityStream, "$JS.API.STREAM.PURGE." + identityStream,
					"$O.BIRDTAP_IDENTITIES.C.x", "$O.BIRDTAP_IDENTITIES.M.x",
				}),
		},
		"birdtap-admin": {
			publish: slices.Concat(streamInfo,
				with("$JS.API.STREAM.CREATE.", allStreams...),
				with("$JS.API.STREAM.UPDATE.", allStreams...),
				with("$JS.API.STREAM.INFO.", allStreams...)),
		},
	}
)

// everyRight is what a user might try: each subject that birdtap stores, and all that
// JetStream can be asked for.
func everyRight() rights {
	var all rights
	all.publish = []string{
		"BIRDTAP.receipts", "BIRDTAP.dead", "BIRDTAP.state.relay", "BIRDTAP.state.pause", "BIRDTAP.state.purged", "BIRDTAP.state.x",
		"BIRDTAP.news.pause", "BIRDTAP.news.sender", "BIRDTAP.state.sender", "BIRDTAP.state.campaigns.relay.0", "BIRDTAP.state.campaigns.sender.0",
		"BIRDTAP.sends", "BIRDTAP.sends.x", "BIRDTAP.held.x", "BIRDTAP.run.x", "BIRDTAP.order.x", "BIRDTAP.unsent", "$KV.BIRDTAP_SENT.x", "$O.BIRDTAP_IDENTITIES.C.x", "$O.BIRDTAP_IDENTITIES.M.x", "OTHER.receipts",
		"$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", "$JS.API.META.LEADER.STEPDOWN", "$JS.API.SERVER.REMOVE",
		"$JS.API.ACCOUNT.PURGE.BIRDTAP", "$SYS.REQ.SERVER.PING", "$SYS.REQ.USER.INFO",
	}
	for _, stream := range append(slices.Clone(allStreams), "OTHER") {
		for _, do := range []string{
			"STREAM.INFO", "STREAM.CREATE", "STREAM.UPDATE", "STREAM.DELETE", "STREAM.PURGE", "STREAM.MSG.GET", "STREAM.MSG.DELETE",
			"STREAM.SNAPSHOT", "STREAM.RESTORE", "STREAM.LEADER.STEPDOWN", "STREAM.PEER.REMOVE",
			"CONSUMER.NAMES", "CONSUMER.LIST", "CONSUMER.CREATE", "DIRECT.GET",
		} {
			all.publish = append(all.publish, "$JS.API."+do+"."+stream)
		}
		for _, do := range []string{"CONSUMER.CREATE", "CONSUMER.DURABLE.CREATE", "CONSUMER.DELETE", "CONSUMER.INFO", "CONSUMER.MSG.NEXT", "CONSUMER.PAUSE", "CONSUMER.LEADER.STEPDOWN"} {
			all.publish = append(all.publish, "$JS.API."+do+"."+stream+".c")
		}
		all.publish = append(all.publish, "$JS.API.CONSUMER.CREATE."+stream+".c.BIRDTAP.receipts", "$JS.ACK."+stream+".c.1.1.1.1.1")
	}
	all.subscribe = []string{
		">", "BIRDTAP.>", "BIRDTAP.receipts", "BIRDTAP.dead", "BIRDTAP.news.pause", "BIRDTAP.news.sender", "BIRDTAP.sends", "BIRDTAP.state.relay", "_INBOX.>", "_INBOX.BIRDTAP.>",
		"$JS.>", "$JS.API.>", "$SYS.>", "$O.>", "$KV.>",
	}
	for user := range userRights {
		all.publish = append(all.publish, "_INBOX.BIRDTAP."+user+".x")
		all.subscribe = append(all.subscribe, "_INBOX.BIRDTAP."+user+".>")
	}
	return all
}

func leaveOut(all, some []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return slices.Contains(some, s) })
}

// onlyItsRights tries what a user may not do. What it may is not tried: some of it
// would destroy, and its work has shown it.
func onlyItsRights(t *testing.T, c *shippedCluster, user string) {
	var mu sync.Mutex
	var said []string
	nc, err := c.connect(user, func(_ *nats.Conn, _ *nats.Subscription, err error) {
		mu.Lock()
		defer mu.Unlock()
		said = append(said, err.Error())
	})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	all, may := everyRight(), userRights[user]
	may.subscribe = append(slices.Clone(may.subscribe), "_INBOX.BIRDTAP."+user+".>")
	for _, s := range slices.Concat(may.publish, may.subscribe) {
		if !slices.Contains(all.publish, s) && !slices.Contains(all.subscribe, s) {
			t.Errorf("nobody tries %s", s)
		}
	}
	for direction, forbidden := range map[string][]string{
		"Publish": leaveOut(all.publish, may.publish), "Subscription": leaveOut(all.subscribe, may.subscribe),
	} {
		for _, subject := range forbidden {
			do := func() error { return nc.Publish(subject, nil) }
			if direction == "Subscription" {
				do = func() error { _, err := nc.SubscribeSync(subject); return err }
			}
			if err := do(); err != nil {
				t.Fatal(err)
			}
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		for _, subject := range forbidden {
			want := fmt.Sprintf(`Permissions Violation for %s to "%s"`, direction, subject)
			eventually(t, 10*time.Second, user+" is told: "+want, func() bool {
				mu.Lock()
				defer mu.Unlock()
				return slices.ContainsFunc(said, func(s string) bool { return strings.Contains(strings.ToLower(s), strings.ToLower(want)) })
			})
		}
	}
}

// strangers are those whose certificate names nobody, is of another authority, or is not
// there; and clients who say they are a server.
func strangers(t *testing.T, c *shippedCluster) {
	refused := func(what string, nc *nats.Conn, err error) {
		t.Helper()
		if err == nil {
			nc.Close()
			t.Errorf("%s is let in", what)
		}
	}
	c.certificate("somebody", "somebody")
	nc, err := c.connect("somebody", nil)
	refused("somebody", nc, err)
	nc, err = c.connect("server", nil)
	refused("a server's own name", nc, err)
	nc, err = nats.Connect(c.urls, nats.RootCAs(c.path("ca.crt")))
	refused("one without certificate", nc, err)
	nc, err = nats.Connect(c.urls, nats.RootCAs(c.path("ca.crt")), nats.UserInfo("birdtap-ingest", ""))
	refused("a name without certificate", nc, err)
	nc, err = nats.Connect(strings.ReplaceAll(c.urls, "tls://", "nats://"), nats.UserInfo("birdtap-ingest", ""))
	refused("one in plain text", nc, err)

	own := c.ca
	c.ca = newAuthority(t)
	c.certificate("forged", "birdtap-ingest")
	c.ca = own
	nc, err = nats.Connect(c.urls, nats.RootCAs(c.path("ca.crt")), nats.ClientCert(c.path("forged.crt"), c.path("forged.key")))
	refused("a certificate of another authority", nc, err)

	for file, want := range map[string]bool{"server": true, "birdtap-ingest": false, "birdtap-admin": false, "forged": false} {
		if got := c.routeTaken(file); got != want {
			t.Errorf("%s as a server: taken %v, want %v", file, got, want)
		}
	}
}
