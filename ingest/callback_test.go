package ingest

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const badSigned = `{"status":"fail","error":"Invalid Signature","code":401}`

func TestSignatures(t *testing.T) {
	t.Parallel()
	const name = "X-Sendbird-Signature"
	d := open(t)
	right := sign([]byte(good))
	tests := []struct {
		name   string
		header http.Header
		body   string
		status int
	}{
		{"right", http.Header{name: {right}}, good, 200},
		{"upper case", http.Header{name: {strings.ToUpper(right)}}, good, 200},
		{"missing", nil, good, 401},
		{"empty", http.Header{name: {""}}, good, 401},
		{"short", http.Header{name: {right[:63]}}, good, 401},
		{"long", http.Header{name: {right + "0"}}, good, 401},
		{"twice", http.Header{name: {right, right}}, good, 401},
		{"joined by comma", http.Header{name: {right + "," + right}}, good, 401},
		{"other header", http.Header{"X-Signature": {right}}, good, 401},
		{"CleverTap's credentials instead", credentials(), good, 401},
		{"body changed", http.Header{name: {right}}, good + " ", 401},
		{"body rewritten", http.Header{name: {sign([]byte(withProperty(`"a":"\/"`)))}}, withProperty(`"a":"/"`), 401},
		{"before the body is judged", http.Header{name: {right}}, `{`, 401},
		{"after the encoding", http.Header{name: {right}, "Content-Encoding": {"gzip"}}, good, 415},
		{"after the size", http.Header{name: {right}}, strings.Repeat(" ", maxBodyBytes+1), 413},
	}
	for _, tt := range tests {
		got := d.do("POST", "/sendbird/callbacks", tt.header, strings.NewReader(tt.body))
		if got.status != tt.status || tt.status == 401 && got.body != badSigned {
			t.Errorf("%s: got %d %s, want %d", tt.name, got.status, got.body, tt.status)
		}
	}
	if n := len(d.memory.stored()); n != 2 {
		t.Errorf("%d receipts stored, want 2", n)
	}
	if n := d.metric("birdtap_signatures_verified_total", "1"); n != 2 {
		t.Errorf("verified %v", n)
	}
	checkRoomIsBack(t, d)
}

func TestKeySlotsAreCountedApart(t *testing.T) {
	t.Parallel()
	d := open(t)
	for slot := range maxKeySlots + 3 {
		d.metrics.verified(slot)
	}
	for label, want := range map[string]float64{"1": 1, "4": 1, "other": 3} {
		if n := d.metric("birdtap_signatures_verified_total", label); n != want {
			t.Errorf("key %s: %v, want %v", label, n, want)
		}
	}
}

func TestWebhooksOfOtherCategories(t *testing.T) {
	t.Parallel()
	kept := strings.Replace(good, `{`, `{"category":"notification:x",`, 1)
	tests := []struct {
		name, body string
		ignored    float64
		stored     int
	}{
		{"template edited", `{"category":"notification:template_edit","app_id":"A"}`, 1, 0},
		{"large", `{"category":"notification:send_batch","targets":[` + strings.Repeat("1,", 100_000) + `1]}`, 1, 0},
		{"escaped", `{"cate\u0067ory":"notification\u003aa"}`, 1, 0},
		{"a receipt all the same", kept, 0, 1},
		{"receipts in an envelope", `{"category":"notification:x","d":[` + good + `]}`, 0, 1},
		{"other product", `{"category":"group_channel:message_send"}`, 0, 1},
		{"no string", `{"category":["notification:x"]}`, 0, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := open(t)
			got := d.callback(tt.body)
			if got.status != 200 || tt.ignored > 0 && got.body != noneStored {
				t.Errorf("got %d %s", got.status, got.body)
			}
			if n := d.metric("birdtap_webhooks_ignored_total"); n != tt.ignored {
				t.Errorf("ignored %v, want %v", n, tt.ignored)
			}
			if n := len(d.memory.stored()); n != tt.stored {
				t.Errorf("stored %d, want %d", n, tt.stored)
			}
		})
	}
	d := open(t)
	if got := d.upload(tests[0].body); !strings.Contains(got.body, `"code":509`) {
		t.Errorf("unsigned: got %s", got.body)
	}
}

func TestNotificationNobodyRemembers(t *testing.T) {
	t.Parallel()
	d := open(t)
	const body = `{"notification_id":"n1","user_id":"u1","evtData":{"status":"READ"}}`
	got := d.callback(body)
	if want := `"code":512,"error":"wrong event structure. Skipped record number : 1","record":` + body; !strings.Contains(got.body, want) {
		t.Errorf("got %s", got.body)
	}
	if diff := cmp.Diff([]string{body}, records(d.memory.stored())); diff != "" {
		t.Error(diff)
	}
}
