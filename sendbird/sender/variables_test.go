package sender

import (
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/birdtap/birdtap/sendbird"
)

func TestWebhookValues(t *testing.T) {
	t.Parallel()
	image := sendbird.Image{URL: "https://x.test/i", Width: 10, Height: 20}
	action := sendbird.Action{Type: sendbird.ActionWeb, Data: "https://x.test"}
	for _, tt := range []struct {
		json string
		want sendbird.Value // nil: none
	}{
		{`"text"`, sendbird.String("text")},
		{`""`, sendbird.String("")},
		{`"$D_1700000000"`, sendbird.String("$D_1700000000")},
		{`"a\nb"`, sendbird.String("a\nb")},
		{`1.50`, sendbird.String("1.50")},
		{`-0`, sendbird.String("-0")},
		{`1e3`, sendbird.String("1e3")},
		{`9007199254740993`, sendbird.String("9007199254740993")},
		{`true`, sendbird.String("true")},
		{`false`, sendbird.String("false")},
		{`null`, nil},
		{`[]`, nil},
		{`{}`, nil},
		{`{"url":"https://x.test/i","width":10,"height":20}`, image},
		{`{"URL":"https://x.test/i","Width":10,"Height":20}`, image},
		{`{"url":"https://x.test/i","width":10}`, nil},
		{`{"url":"https://x.test/i","width":10,"height":20,"alt":""}`, nil},
		{`{"url":"https://x.test/i","width":"10","height":20}`, nil},
		{`{"type":"web","data":"https://x.test"}`, action},
		{`{"type":"web"}`, nil},

		{`"{\"url\":\"https://x.test/i\",\"width\":10,\"height\":20}"`, image},
		{`" \n{ \"Type\":\"web\", \"Data\":\"https://x.test\" } "`, action},
		{`"{\"url\":\"https://x.test/i\",\"width\":\"10\",\"height\":20}"`, nil},
		{`"{\"type\":\"web\",\"data\":7}"`, nil},
		{`"{\"url\":\"u\",\"width\":10}"`, sendbird.String(`{"url":"u","width":10}`)},
		{`"{\"type\":\"web\",\"data\":\"d\",\"x\":1}"`, sendbird.String(`{"type":"web","data":"d","x":1}`)},
		{`"{\"type\":\"web\",\"TYPE\":\"d\"}"`, sendbird.String(`{"type":"web","TYPE":"d"}`)},
		{`"{\"type\":\"web\",\"type\":\"web\",\"data\":\"d\"}"`, sendbird.String(`{"type":"web","type":"web","data":"d"}`)},
		{`"{\"type\":\"web\",\"data\":\"d\"} x"`, sendbird.String(`{"type":"web","data":"d"} x`)},
		{`"{}"`, sendbird.String("{}")},
		{`"{name}"`, sendbird.String("{name}")},
		{`"[1]"`, sendbird.String("[1]")},
	} {
		got, problem := webhookValue(jsontext.Value(tt.json))
		if got != tt.want || (problem == "") != (tt.want != nil) {
			t.Errorf("%s: got %#v and %q, want %#v", tt.json, got, problem, tt.want)
		}
	}
}

// TestVariablesSizeIsNoLess than what they take in an ask.
func TestVariablesSizeIsNoLess(t *testing.T) {
	t.Parallel()
	for _, v := range []sendbird.Value{
		sendbird.String(""), sendbird.String("\x00\"\\\n<é\u2028"), sendbird.Image{URL: "\x01", Width: 1 << 62, Height: -1 << 62}, sendbird.Action{Type: "\x01", Data: "\x01"},
	} {
		vars := sendbird.Variables{"": v, "\x00name": v}
		a := Ask{Message: Message{Mode: ModeRealtime}, Users: []User{{ID: "\"", Variables: vars}}}
		stored, err := Encode(nil, []Ask{a})
		if err != nil {
			t.Fatal(err)
		}
		if size := messageSize(&a.Message) + variablesSize(vars) + textSize("\"") + 64; len(stored[0].Data) > size {
			t.Errorf("%#v: %d bytes, taken for %d", v, len(stored[0].Data), size)
		}
	}
}

// TestCallsAreChargedNoLess than what their asks take.
func TestCallsAreChargedNoLess(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 10_000)
	for _, body := range []string{
		broadcastCall, hook(`,"var.v":"` + long + `"`),
		`{"key_values":{"template_key":"k","var.v":"1"},"profiles":{"identity":"u","key_values":{"var.v":"` + long + `"}}}`,
		`{"key_values":{"template_key":"k"},"profiles":{"identity":"u","key_values":{"tag":"` + long + `"}}}`,
		`{"key_values":{"template_key":"k","receiver":"` + long + `"},"profiles":[{},{"identity":"u"}]}`,
	} {
		g := newGrouping(ModeBatch)
		if err := parseWebhook(g, jsontext.Value(body)); err != nil {
			t.Fatal(err)
		}
		stored, err := Encode(nil, g.request().Asks)
		if err != nil {
			t.Fatal(err)
		}
		size := 0
		for _, s := range stored {
			size += len(s.Data)
		}
		if size > g.bytes {
			t.Errorf("%.60s: %d bytes, charged %d", body, size, g.bytes)
		}
	}
}
