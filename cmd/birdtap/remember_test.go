package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"
	"testing"

	"github.com/birdtap/birdtap/store"
)

// A receipt that names a notification only comes before anybody knows of that, is
// refused, and goes out by a replay; one that comes later is filled in at the door.
func TestReceiptOfANotification(t *testing.T) {
	const key = "signing-key"
	d := startDaemon(t, "BIRDTAP_REMEMBER_SENT=1h", "BIRDTAP_SENDBIRD_SIGNING_KEYS="+key)
	callback := func(user string) string {
		body := `{"notification_id":"7190607145580961921","user_id":"` + user + `","evtData":{"status":"READ"}}`
		mac := hmac.New(sha256.New, []byte(key))
		mac.Write([]byte(body))
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+d.door+"/sendbird/callbacks", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Sendbird-Signature", hex.EncodeToString(mac.Sum(nil)))
		_, answer := do(t, req)
		return answer
	}
	if got := callback("u1"); !strings.Contains(got, `"code":512`) {
		t.Fatalf("before it is known: %s", got)
	}
	if err := d.app.queue.Load().Remember(t.Context(), "7190607145580961921", store.RememberedSend{Event: "Offer", Target: "123"}); err != nil {
		t.Fatal(err)
	}
	if got := callback("u2"); !strings.Contains(got, `"processed":1,"unprocessed":[]`) {
		t.Fatalf("when it is known: %s", got)
	}
	eventually(t, "one is delivered, one dead", func() bool {
		st, err := d.app.queue.Load().Status(t.Context())
		return err == nil && st.Delivered == 1 && st.Dead == 1
	})
	if got := birdtap(t, d.environ, "relay", "--replay", "--reason", "refused"); got.code != 0 || got.out != "replayed 1\n" {
		t.Fatalf("replay: %+v", got)
	}
	eventually(t, "both are delivered", func() bool { return d.fake.Counts().Accepted == 2 })
	if err := d.stop(); err != nil {
		t.Error(err)
	}
	got := birdtap(t, d.environ, "status", "--campaign", "123", "--json").out
	if !strings.Contains(got, `"event_name":"Offer"`) || !strings.Contains(got, `"read_receipts":{"delivered":2,"died":0}`) {
		t.Errorf("got %s", got)
	}
}
