package ingest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/birdtap/birdtap/store"
)

func TestRecordAsItLeaves(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ record, want string }{
		"ts stamped":    {good, goodSent},
		"ts kept":       {strings.Replace(good, `{`, `{"ts":12,`, 1), strings.Replace(goodSent, "1700000000", "12", 1)},
		"type kept":     {strings.Replace(good, `{`, `{"type":"event",`, 1), goodSent},
		"blanks go":     {strings.NewReplacer(`:`, " :\t", `,`, "\n, ", `{`, "{ ", `}`, " }").Replace(good), goodSent},
		"as it left":    {goodSent, goodSent},
		"objectId":      {strings.Replace(good, "identity", "objectId", 1), strings.Replace(goodSent, "identity", "objectId", 1)},
		"FBID":          {strings.Replace(good, "identity", "FBID", 1), strings.Replace(goodSent, "identity", "FBID", 1)},
		"GPID":          {strings.Replace(good, "identity", "GPID", 1), strings.Replace(goodSent, "identity", "GPID", 1)},
		"number user":   {strings.Replace(good, `"u1"`, "9007199254740993", 1), strings.Replace(goodSent, `"u1"`, "9007199254740993", 1)},
		"escaped names": {strings.NewReplacer("identity", `ident\u0069ty`, "evtName", `\u0065vtName`).Replace(good), goodSent},
		"escapes stay":  {withProperty(`"\u0061\/":"\u00e9\/é"`), strings.Replace(goodSent, `"status"`, `"\u0061\/":"\u00e9\/é","status"`, 1)},
		"escaped status": {
			strings.Replace(good, "SENT", `\u0053ENT`, 1),
			strings.Replace(goodSent, "SENT", `\u0053ENT`, 1),
		},
		"nested values": {
			withProperty(`"n" : { "b" : [ 1 , 1.0 , 1e400, "\/" ] , "a" : null }`),
			strings.Replace(goodSent, `"status"`, `"n":{"b":[1,1.0,1e400,"\/"],"a":null},"status"`, 1),
		},
		"unknown members": {
			strings.Replace(good, `{`, `{"x" : [1, 2],"y":"\u0041",`, 1),
			goodSent[:len(goodSent)-1] + `,"x":[1,2],"y":"\u0041"}`,
		},
	} {
		got := Convert([]byte(tt.record), testNow)
		if string(got.Record) != tt.want || got.Reason != "" || got.Code != 0 {
			t.Errorf("%s: got %d\n%s, want\n%s", name, got.Code, got.Record, tt.want)
		}
		checkReceipt(t, got)
	}
}

func TestTargetIDIsCarriedDigitForDigit(t *testing.T) {
	t.Parallel()
	for _, id := range []string{
		"0", "-1", "1", "123123", "2147483647", "2147483649", "9007199254740991", "9007199254740993",
		"9223372036854775807", "9223372036854775808", "18446744073709551616", "-9223372036854775809",
		strings.Repeat("9", 400), `"123"`, `"0001"`, `""`, `"a b"`, `"1e3"`,
	} {
		got := Convert([]byte(withTarget(id)), testNow)
		if want := strings.Replace(goodSent, `"target_id":1`, `"target_id":`+id, 1); string(got.Record) != want {
			t.Errorf("%s: got %d %s", id, got.Code, got.Record)
		}
	}
}

func TestCodes(t *testing.T) {
	t.Parallel()
	const evtName, user, status = `"evtName":"Sale"`, `"identity":"u1"`, `"status":"SENT"`
	with := func(old, replacement string) string { return strings.Replace(good, old, replacement, 1) }
	plus := func(m string) string { return with(`{`, `{`+m+`,`) }
	properties := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"p%d":%d`, i, i)
		}
		return with(`"target_id":1`, `"target_id":1`+b.String())
	}
	extras := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `"p%d":%d,`, i, i)
		}
		return `{` + b.String() + good[1:]
	}
	x := func(n int) string { return strings.Repeat("x", n) }
	tests := []struct {
		name   string
		record string
		code   int
	}{
		{"no event name", with(evtName+",", ""), 509},
		{"empty event name", with(`"Sale"`, `""`), 509},
		{"blank event name", with(`"Sale"`, `" \t\u00a0"`), 509},
		{"nothing at all", `{}`, 509},
		{"event name in other letter case", with("evtName", "EvtName"), 509},
		{"only a notification id", `{"notification_id":"n","user_id":"u"}`, 512},

		{"null", `null`, 512},
		{"string", `"a"`, 512},
		{"number", `1`, 512},
		{"array", `[` + good + `]`, 512},
		{"event name null", with(`"Sale"`, `null`), 512},
		{"event name a number", with(`"Sale"`, `1`), 512},
		{"event name an object", with(`"Sale"`, `{}`), 512},
		{"evtData missing", `{"identity":"u1",` + evtName + `}`, 512},
		{"evtData null", `{"identity":"u1",` + evtName + `,"evtData":null}`, 512},
		{"evtData an array", `{"identity":"u1",` + evtName + `,"evtData":[]}`, 512},
		{"evtData a string", `{"identity":"u1",` + evtName + `,"evtData":"{}"}`, 512},
		{"evtData empty", `{"identity":"u1",` + evtName + `,"evtData":{}}`, 512},
		{"status missing", with(status+",", ""), 512},
		{"status in small letters", with(`SENT`, `read`), 512},
		{"status DELIVERED", with(`SENT`, `DELIVERED`), 512},
		{"status with a blank", with(`SENT`, `SENT `), 512},
		{"status empty", with(`SENT`, ``), 512},
		{"status null", with(`"SENT"`, `null`), 512},
		{"status a number", with(`"SENT"`, `1`), 512},
		{"status as a name in capitals", with(`status`, `STATUS`), 512},
		{"target_id missing", with(`,"target_id":1`, ""), 512},
		{"target_id null", withTarget(`null`), 512},
		{"target_id true", withTarget(`true`), 512},
		{"target_id 1.0", withTarget(`1.0`), 512},
		{"target_id 1e3", withTarget(`1e3`), 512},
		{"target_id 1E3", withTarget(`1E3`), 512},
		{"target_id an object", withTarget(`{}`), 512},
		{"target_id an array", withTarget(`[1]`), 512},
		{"two identities", plus(`"objectId":"o"`), 512},
		{"two identities, one null", plus(`"GPID":null`), 512},
		{"identity true", with(`"u1"`, `true`), 512},
		{"identity a fraction", with(`"u1"`, `1.5`), 512},
		{"identity an object", with(`"u1"`, `{}`), 512},

		{"reserved event", with("Sale", "Notification Sent"), 513},
		{"reserved event, other spelling", with("Sale", "notificationsent"), 513},
		{"reserved event, escaped", with("Sale", `App\u0020LAUNCHED`), 513},
		{"nearly reserved", with("Sale", "Notification Sent!"), 0},

		{"256 properties", properties(254), 0},
		{"257 properties", properties(255), 522},
		{"name of 120 characters", withProperty(`"` + strings.Repeat("é", 120) + `":1`), 0},
		{"name of 121 characters", withProperty(`"` + x(121) + `":1`), 522},
		{"value of 512 bytes", withProperty(`"a":"` + x(512) + `"`), 0},
		{"value of 512 bytes, all escaped", withProperty(`"a":"` + strings.Repeat(`\u0041`, 512) + `"`), 0},
		{"value of 513 bytes", withProperty(`"a":"` + x(513) + `"`), 522},
		{"value of 513 bytes in 257 characters", withProperty(`"a":"` + strings.Repeat("é", 256) + `x"`), 522},
		{"target_id of 513 bytes", withTarget(`"` + x(513) + `"`), 522},
		{"256 unknown members", extras(256), 0},
		{"257 unknown members", extras(257), 522},
		{"128 KiB as it came", plus(`"a":"` + x(maxRecordBytes-len(good)-len(`"a":"",`)-100) + `"`), 0},
		{"128 KiB only as it leaves", plus(`"a":"` + x(maxRecordBytes-len(good)-len(`"a":"",`)) + `"`), 522},
		{"over 128 KiB, mostly blanks", `{` + strings.Repeat(" ", maxRecordBytes) + good[1:], 522},

		{"no identity", with(user+",", ""), 523},
		{"identity empty", with(`"u1"`, `""`), 523},
		{"identity null", with(`"u1"`, `null`), 523},
		{"identity of 1 KiB", with(`"u1"`, `"`+x(1024)+`"`), 0},
		{"identity of 1 KiB, escaped", with(`"u1"`, `"`+strings.Repeat(`\u0041`, 1024)+`"`), 0},
		{"identity over 1 KiB", with(`"u1"`, `"`+x(1025)+`"`), 523},
		{"identity of 1025 digits", with(`"u1"`, strings.Repeat("1", 1025)), 523},

		{"type profile", plus(`"type":"profile"`), 524},
		{"type in capitals", plus(`"type":"Event"`), 524},
		{"type null", plus(`"type":null`), 524},
		{"type empty", plus(`"type":""`), 524},
		{"type escaped", plus(`"type":"\u0065vent"`), 0},

		{"ts 1", plus(`"ts":1`), 0},
		{"ts at the end of 9999", plus(`"ts":253402300799`), 0},
		{"ts in 10000", plus(`"ts":253402300800`), 525},
		{"ts in milliseconds", plus(`"ts":1700000000000`), 525},
		{"ts 0", plus(`"ts":0`), 525},
		{"ts -0", plus(`"ts":-0`), 525},
		{"ts negative", plus(`"ts":-1`), 525},
		{"ts a fraction", plus(`"ts":1.5`), 525},
		{"ts 1.0", plus(`"ts":1.0`), 525},
		{"ts 1e9", plus(`"ts":1e9`), 525},
		{"ts a string", plus(`"ts":"1700000000"`), 525},
		{"ts null", plus(`"ts":null`), 525},
		{"ts true", plus(`"ts":true`), 525},
		{"ts beyond 64 bits", plus(`"ts":18446744073709551617`), 525},
	}
	for _, tt := range tests {
		got := Convert([]byte(tt.record), testNow)
		if got.Code != tt.code {
			t.Errorf("%s: got %d, want %d", tt.name, got.Code, tt.code)
			continue
		}
		if tt.code != 0 && (got.Reason != store.ReasonRefused || string(got.Record) != tt.record) {
			t.Errorf("%s: got %s %.100s", tt.name, got.Reason, got.Record)
		}
		checkReceipt(t, got)
	}
}

func TestWhatIsNoJSONIsRefused(t *testing.T) {
	t.Parallel()
	for _, raw := range []string{"", "{", good + "x", good + good, "\xff", withTarget(nested(32))} {
		if got := Convert([]byte(raw), testNow); got.Code != 512 || got.Reason != store.ReasonRefused || string(got.Record) != raw {
			t.Errorf("%.50q: got %d %s", raw, got.Code, got.Reason)
		}
	}
}

// TestNaughtyStrings: text of any kind leaves byte for byte as it came.
func TestNaughtyStrings(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		`\u0000`, `\u0000\u001f\u007f`, "\x7f", "\u00a0\u2028\u2029", "\ufeff", "\u202eright to left\u202c",
		"Ω≈ç√∫", "ﷺ", "田中さん", "👩‍👩‍👧‍👦", "🇩🇪", `\ud83d\ude00`, "Z̮̞̠͙͔ͅḀ̗̞͈̻̗Ḷ͙", "\U0010ffff", "\ufffd\uffff",
		"<script>alert(1)</script>", `<img src=x onerror=\"a\">`, "'; DROP TABLE users; --", "${jndi:ldap://x}", "%s%n%x", "{{7*7}}",
		`../../etc/passwd`, `C:\\nul`, "=1+1", "null", "NaN", "true", `\"`, `\\`, `\/`, `\b\f\n\r\t`, "\u0130\u0131",
	} {
		quoted := `"` + s + `"`
		record := `{"identity":` + quoted + `,"evtName":"Sale` + s + `","evtData":{"status":"SENT","target_id":` + quoted + `,"n` + s + `":` + quoted + `},"x` + s + `":` + quoted + `}`
		got := Convert([]byte(record), testNow)
		want := strings.Replace(record, `,"evtName"`, `,"ts":1700000000,"type":"event","evtName"`, 1)
		if string(got.Record) != want {
			t.Errorf("%q: got %d\n%s, want\n%s", s, got.Code, got.Record, want)
		}
		checkReceipt(t, got)
	}
}

func TestKeyJoinsAndKeepsApart(t *testing.T) {
	t.Parallel()
	const record = `{"identity":"u1","evtName":"Sale","evtData":{"status":"SENT","target_id":1,"n":{"a":"x","b":[1,2]}}}`
	with := func(old, replacement string) string {
		if !strings.Contains(record, old) {
			t.Fatalf("no %s", old)
		}
		return strings.Replace(record, old, replacement, 1)
	}
	key := func(record string) store.Key {
		got := Convert([]byte(record), testNow)
		if got.Code != 0 {
			t.Fatalf("%d: %s", got.Code, record)
		}
		return got.Key
	}
	same := map[string]string{
		"blanks":            strings.ReplaceAll(record, ":", " : "),
		"order of members":  `{"evtData":{"status":"SENT","target_id":1,"n":{"a":"x","b":[1,2]}},"evtName":"Sale","identity":"u1"}`,
		"order of keys":     with(`"status":"SENT","target_id":1`, `"target_id":1,"status":"SENT"`),
		"order deeper":      with(`"a":"x","b":[1,2]`, `"b":[1,2],"a":"x"`),
		"escaped value":     with(`"SENT"`, `"\u0053ENT"`),
		"escaped name":      with(`"status"`, `"st\u0061tus"`),
		"escaped deeper":    with(`"x"`, `"\u0078"`),
		"escaped user":      with(`"u1"`, `"\u00751"`),
		"escaped event":     with(`"Sale"`, `"\u0053ale"`),
		"type given":        with(`{`, `{"type":"event",`),
		"unknown member":    with(`{`, `{"request_id":"r2",`),
		"solidus in a name": with(`"evtName"`, `"e\u0076tName"`),
	}
	for name, other := range same {
		if key(other) != key(record) {
			t.Errorf("%s: keeps apart", name)
		}
	}
	seen := map[store.Key]string{key(record): "the record itself"}
	for name, other := range map[string]string{
		"READ":              with(`SENT`, `READ`),
		"user":              with(`u1`, `u2`),
		"user in capitals":  with(`u1`, `U1`),
		"kind of user":      with(`identity`, `objectId`),
		"number as user":    with(`"u1"`, `1`),
		"digits as user":    with(`"u1"`, `"1"`),
		"event":             with(`Sale`, `sale`),
		"target":            with(`"target_id":1`, `"target_id":2`),
		"target as string":  with(`"target_id":1`, `"target_id":"1"`),
		"one more property": with(`"status"`, `"a":1,"status"`),
		"1.0":               with(`"status"`, `"a":1.0,"status"`),
		"1e0":               with(`"status"`, `"a":1e0,"status"`),
		"true":              with(`"status"`, `"a":true,"status"`),
		"true in letters":   with(`"status"`, `"a":"true","status"`),
		"null":              with(`"status"`, `"a":null,"status"`),
		"object":            with(`"status"`, `"a":{},"status"`),
		"object in letters": with(`"status"`, `"a":"{}","status"`),
		"array":             with(`"status"`, `"a":[],"status"`),
		"order of an array": with(`[1,2]`, `[2,1]`),
		"number deeper":     with(`[1,2]`, `[1,2.0]`),
		"string deeper":     with(`[1,2]`, `[1,"2"]`),
		"beyond 2^53":       with(`[1,2]`, `[9007199254740992]`),
		"beyond 2^53 + 1":   with(`[1,2]`, `[9007199254740993]`),
		"shifted border":    with(`"status"`, `"ab":"c","status"`),
		"shifted border 2":  with(`"status"`, `"a":"bc","status"`),
		"ts given":          with(`{`, `{"ts":1700000000,`),
		"other ts given":    with(`{`, `{"ts":1700000001,`),
	} {
		k := key(other)
		if twin, ok := seen[k]; ok {
			t.Errorf("%s is joined with %s", name, twin)
		}
		seen[k] = name
	}
	if Convert([]byte(record), testNow).Key != Convert([]byte(record), testNow.Add(time.Hour)).Key {
		t.Error("a ts that was stamped is part of the key")
	}
}

func TestUserIsTheIdentityWhateverTheEvent(t *testing.T) {
	t.Parallel()
	user := func(record string) uint64 { return Convert([]byte(record), testNow).User }
	want := user(good)
	for _, same := range []string{
		strings.Replace(good, "SENT", "READ", 1), withTarget("2"), strings.Replace(good, "Sale", "Other", 1),
		strings.Replace(good, "u1", `\u00751`, 1), goodSent,
	} {
		if user(same) != want {
			t.Errorf("another user: %s", same)
		}
	}
	for _, other := range []string{strings.Replace(good, "u1", "u2", 1), strings.Replace(good, "identity", "GPID", 1)} {
		if user(other) == want {
			t.Errorf("the same user: %s", other)
		}
	}
	number, digits := strings.Replace(good, `"u1"`, `42`, 1), strings.Replace(good, `u1`, `42`, 1)
	if user(number) != user(digits) {
		t.Error("42 and \"42\" could overtake each other")
	}
}

// TestStoredHashesNeverChange: frames on disk hold them.
func TestStoredHashesNeverChange(t *testing.T) {
	t.Parallel()
	got := Convert([]byte(`{"identity":"u1","ts":5,"evtName":"Sale","evtData":{"status":"SENT","target_id":1,"n":{"b":[1.0],"a":"\u00e9"}}}`), testNow)
	if s := fmt.Sprintf("%016x %x", got.User, got.Key); s != "27f06b246a93fb39 94811bde024ed550d6158dd6a62ff884" {
		t.Fatalf("got %s", s)
	}
}

func FuzzConvert(f *testing.F) {
	for _, seed := range []string{good, goodSent, withTarget(`"x"`), withProperty(`"a":[{"b":1, "a":2}]`), `[]`, `{`, strings.Replace(good, `{`, `{"ts":5,"x": 1,`, 1)} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		got := Convert(raw, testNow)
		if !jsontext.Value(raw).IsValid() {
			if got.Reason != store.ReasonRefused {
				t.Fatalf("taken: %q", raw)
			}
			return
		}
		if got.Reason == "" {
			checkReceipt(t, got)
		} else if string(got.Record) != strings.Trim(string(raw), " \t\r\n") || got.Code == 0 {
			t.Fatalf("refused with %d as %q", got.Code, got.Record)
		}
	})
}
