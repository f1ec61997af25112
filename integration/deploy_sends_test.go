//go:build integration

package integration

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/birdtap/birdtap/sendbird/sendbirdtest"
)

const signingKey = "signing-key"

// notifying is a cluster that sends notifications, and what its users need to know.
type notifying struct {
	sending // at is the operator's place, doors and window are of no use
	as      func(user string, more ...map[string]string) *birdtap
	files   int
}

func newNotifying(t *testing.T, as func(user string, more ...map[string]string) *birdtap) *notifying {
	fake, err := sendbirdtest.Start("127.0.0.1:0", sendbirdtest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	if err := fake.AddTemplate(`{"key":"sale","name":"Sale","variable_schema":[{"key":"name","type":"string","name":"Name"}]}`); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(fake.URL())
	if err != nil {
		t.Fatal(err)
	}
	account := map[string]string{
		"SENDBIRD_NOTIFICATIONS_URL": fake.URL(), "SENDBIRD_NOTIFICATIONS_TOKEN": "token", "SENDBIRD_UPLOAD_HOSTS": u.Host,
		"SENDER_TOKENS": webhookToken, "GATHER_WAIT": "100ms",
	}
	n := &notifying{as: func(user string, more ...map[string]string) *birdtap { return as(user, append(more, account)...) }}
	n.sending = sending{t: t, fake: fake, at: n.as("operator"), asked: map[string]bool{}}
	return n
}

// sender starts one, and has webhooks call it.
func (n *notifying) sender(name string) *process {
	n.t.Helper()
	n.doors = freeAddr(n.t)
	window := freeAddr(n.t)
	p := n.as("sender", map[string]string{"HTTP_ADDR": n.doors, "OPS_ADDR": window}).daemon("sender", name)
	p.ready(window, time.Minute)
	return p
}

func (n *notifying) command(who *birdtap, args ...string) string {
	n.t.Helper()
	out, err := who.output(args...)
	if err != nil {
		n.t.Fatalf("birdtap %s: %v", strings.Join(args, " "), err)
	}
	return string(out)
}

// file is one of users who were not asked for yet.
func (n *notifying) file(users int) string {
	n.t.Helper()
	n.files++
	text := "user_id,name\n"
	for i := range users {
		id := fmt.Sprintf("of-file-%d-%d", n.files, i)
		n.asked[id] = true
		text += id + ",N\n"
	}
	file := filepath.Join(n.t.TempDir(), "users.csv")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
	return file
}

// hold makes a call of which nobody knows whether it went out, and returns its id.
func (n *notifying) hold() string {
	n.t.Helper()
	n.fake.Script(sendbirdtest.Messages, sendbirdtest.ResetAfterBody().NotTaking())
	if n.webhook("batch", 20) == nil {
		n.t.Fatal("a webhook call was turned away")
	}
	if a := n.settled(); a.Sends.HeldCalls != 1 {
		n.t.Fatalf("%d calls are held, want 1", a.Sends.HeldCalls)
	}
	var held struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal([]byte(n.command(n.at, "send", "--held", "--json")), &held); err != nil || held.ID == "" {
		n.t.Fatalf("send --held: %+v, %v", held, err)
	}
	return held.ID
}

// noneHeld waits until a decision is carried out.
func (n *notifying) noneHeld() {
	n.t.Helper()
	eventually(n.t, time.Minute, "the decision is carried out", func() bool { return n.settled().Sends.HeldCalls == 0 })
}

// sendersWork is the way of notifications through senders and all that an operator does
// about them. ingest is where signed callbacks come in.
func sendersWork(t *testing.T, c *shippedCluster, as func(user string, more ...map[string]string) *birdtap, ingest string) {
	n := newNotifying(t, as)
	n.fake.Judge(func(sent sendbirdtest.Notification) int {
		if len(sent.Users) == 13 {
			return 400201
		}
		return 0
	})
	first := n.sender("sender-a")
	post := func(door string, users int) {
		t.Helper()
		if n.webhook(door, users) == nil {
			t.Fatalf("a webhook call of %d users was turned away", users)
		}
	}
	post("realtime", 1)
	post("batch", 20)
	n.settled() // or the next one is gathered with it
	post("batch", 13)
	n.settled()
	doors := n.doors
	second := n.sender("sender-b")
	standby := n.doors
	n.doors = doors

	// More campaigns than a checkpoint carries, and a receipt of the first notification
	// that names nothing else.
	for range 80 {
		n.target++
		post("realtime", 1)
	}
	n.target = 0
	n.settled()
	callback(t, ingest, fmt.Sprintf(`{"notification_id":%q,"user_id":"user-0","evtData":{"status":"READ"}}`, n.fake.Notifications()[0].ID))

	// What an operator does. The first call reached nobody, and is sent again.
	n.command(n.at, "send", "--held", "--release", n.hold(), "--yes")
	n.noneHeld()
	id := n.hold()
	n.command(n.at, "send", "--held", "--drop", id)
	n.noneHeld()
	if out := n.command(n.at, "send", "--unsent", "--json"); strings.Count(out, "\n") != 13 {
		t.Errorf("send --unsent:\n%s", out)
	}
	n.command(n.at, "send", "--template", "sale", "--csv", n.file(30), "--event", "Sale", "--target-id", "7")
	if out := n.command(n.at, "status", "--campaign", "7"); !strings.Contains(out, "Sale") {
		t.Errorf("status --campaign:\n%s", out)
	}

	// The other sender takes over, from a killed one, and stops in good order. Then the
	// sender's user sends by itself.
	first.kill()
	n.doors = standby
	post("batch", 20)
	n.settled()
	if code := second.terminate(30 * time.Second); code != 0 {
		t.Errorf("the sender ended with code %d", code)
	}
	n.command(n.as("sender"), "send", "--template", "sale", "--csv", n.file(30))
	n.command(n.as("sender"), "send", "--template", "sale", "--csv", n.file(2), "--mode", "realtime")

	a := n.settled()
	n.check(a)
	if sum := a.sum(); sum.Refused != 13 || sum.Dropped != 20 || sum.Held != 0 || sum.Sent != len(n.fake.Deliveries()) {
		t.Errorf("%+v, and %d were reached", sum, len(n.fake.Deliveries()))
	}
	// It trims its log minutes later only.
	nc, err := c.connect("birdtap-sender", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), sendStream)
	if err == nil {
		err = s.Purge(t.Context(), jetstream.WithPurgeSequence(2))
	}
	if err != nil {
		t.Errorf("trim: %v", err)
	}
}

// callback is a signed one of Sendbird, which has to be taken.
func callback(t *testing.T, door, body string) {
	t.Helper()
	mac := hmac.New(sha256.New, []byte(signingKey))
	mac.Write([]byte(body))
	eventually(t, time.Minute, "a callback is taken in", func() bool {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+door+"/sendbird/callbacks", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Sendbird-Signature", hex.EncodeToString(mac.Sum(nil)))
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		var answer bytes.Buffer
		_, err = answer.ReadFrom(resp.Body)
		return err == nil && resp.StatusCode == http.StatusOK && strings.Contains(answer.String(), `"processed":1`)
	})
}

// An operator is no sender: without one what it asks for waits, it is told so, and can go.
func operatorIsNoSender(t *testing.T, as func(user string, more ...map[string]string) *birdtap) {
	n := newNotifying(t, as)
	cmd := n.at.command("send", "--template", "sale", "--csv", n.file(3))
	log := filepath.Join(t.ArtifactDir(), "operator.log")
	p := start(t, "send", log, cmd)
	eventually(t, time.Minute, "the command says that it may not send", func() bool {
		text, err := os.ReadFile(log)
		return err == nil && bytes.Contains(text, []byte("may not be one"))
	})
	var a sendsAccount
	eventually(t, time.Minute, "the users wait", func() bool {
		return json.Unmarshal([]byte(n.command(n.at, "status", "--json")), &a) == nil && a.Sends.Waiting == 3
	})
	if code := p.terminate(30 * time.Second); code == 0 {
		t.Error("the command ended with code 0")
	}
	if got := len(n.fake.Deliveries()); got != 0 {
		t.Errorf("%d were sent to", got)
	}
	sender := n.sender("sender-late")
	n.settled()
	if got := len(n.fake.Deliveries()); got != 3 {
		t.Errorf("%d were sent to, want 3", got)
	}
	if code := sender.terminate(30 * time.Second); code != 0 {
		t.Errorf("the sender ended with code %d", code)
	}
}
