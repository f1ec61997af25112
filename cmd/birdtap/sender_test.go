package main

import (
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap/zaptest"

	"github.com/birdtap/birdtap/sendbird/sendbirdtest"
	"github.com/birdtap/birdtap/store"
)

const hookToken = "hunter2-webhook-token"

// startSending starts a daemon that carries receipts and notifications.
func startSending(t *testing.T, environ ...string) (daemon, *sendbirdtest.Server) {
	t.Helper()
	fake, err := sendbirdtest.Start("127.0.0.1:0", sendbirdtest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	u, err := url.Parse(fake.URL())
	if err != nil {
		t.Fatal(err)
	}
	return startDaemon(t, append([]string{
		"BIRDTAP_SENDBIRD_NOTIFICATIONS_URL=" + fake.URL(), "BIRDTAP_SENDBIRD_NOTIFICATIONS_TOKEN=" + marker,
		"BIRDTAP_SENDBIRD_UPLOAD_HOSTS=" + u.Host, "BIRDTAP_SENDER_TOKENS=" + hookToken, "BIRDTAP_GATHER_WAIT=100ms",
	}, environ...)...), fake
}

// webhook makes a call of CleverTap's for one user.
func (d daemon) webhook(t *testing.T, token string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+d.door+"/clevertap/notifications/realtime", strings.NewReader(
		`{"targetId":7,"key_values":{"template_key":"order","event_name":"Order"},"profiles":{"identity":"jay"}}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Api-Token", token)
	return do(t, req)
}

func TestDaemonSendsNotifications(t *testing.T) {
	d, fake := startSending(t)
	if code, body := d.webhook(t, "wrong"); code != http.StatusUnauthorized || strings.Contains(body, "wrong") {
		t.Errorf("a wrong token is answered %d %s", code, body)
	}
	if code, body := d.webhook(t, hookToken); code != http.StatusOK || body != `{"accepted":1}` {
		t.Errorf("answered %d %s", code, body)
	}
	eventually(t, "the notification is there", func() bool { return fake.Delivered("jay") == 1 })
}

// What is wrong with the sender's part of the queue stops no receipt.
func TestReceiptsGoOnWithoutTheSender(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s, err := store.Open(t.Context(), store.Options{DataDir: dir, QueueMaxBytes: 64 << 20, DeadMaxBytes: 16 << 20, KeepMaxBytes: 16 << 20, Log: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	sends, err := s.OpenSends(t.Context())
	if err == nil {
		_, err = sends.WriteCheckpoint(t.Context(), []byte("no checkpoint"), 0)
		sends.Close()
	}
	if closing := s.Close(); err != nil || closing != nil {
		t.Fatal(err, closing)
	}
	d, _ := startSending(t, "BIRDTAP_DATA_DIR="+dir)
	d.takesReceiptsAlone(t)
}

// The same where the streams of the sender are yet to be made, and this user may not.
func TestReceiptsGoOnWithoutTheSendersStreams(t *testing.T) {
	admin, user := startNATS(t)
	if got := birdtap(t, admin, "init"); got.code != exitDone {
		t.Fatalf("init: %+v", got)
	}
	nc, err := nats.Connect(strings.TrimPrefix(admin[0], "BIRDTAP_NATS_URL="))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	for _, stream := range []string{"BIRDTAP_SENDS", "BIRDTAP_HELD", "BIRDTAP_UNSENT"} {
		if err == nil {
			err = js.DeleteStream(t.Context(), stream)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	d, _ := startSending(t, user...)
	d.takesReceiptsAlone(t)
}

// takesReceiptsAlone checks that receipts are taken in, and webhook calls are not.
func (d daemon) takesReceiptsAlone(t *testing.T) {
	t.Helper()
	if code, body := d.post(t, `{"identity":"jay","evtName":"Order","evtData":{"status":"SENT","target_id":7}}`); code != http.StatusOK {
		t.Errorf("a receipt is answered %d %s", code, body)
	}
	eventually(t, "webhook calls are refused", func() bool {
		code, _ := d.webhook(t, hookToken)
		return code == http.StatusServiceUnavailable
	})
}
