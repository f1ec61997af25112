package sender

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"

	"github.com/birdtap/birdtap/sendbird"
	"github.com/birdtap/birdtap/store"
)

// CleverTap's samples, in its two spellings.
const (
	broadcastCall = `{"targetId":1234567890123456789,"key_values":{"template_key":"welcome","event_name":"Sale","var.name":"you","push.deep":"app://x"},"profiles":[
		{"identity":"u1","email":"u1@example.com","objectId":"__o1","phone":"+1","name":"U One","all_identities":["u1"],"profileData":{"SendbirdID":"sb-1"},"systemProfileData":{"OS Version":"1"},"push_token":"t"},
		{"identity":"u2","email":"u2@example.com","profileData":{"SendbirdID":"sb-2"},"key_values":{"var.name":"Kim"}}]}`
	singleCall = `{"TargetId":1234,"Key_values":{"template_key":"welcome","receiver":"sendbirdid","var.on":"$D_1700000000"},"Profiles":
		{"Identity":"u1","Email":"u1@example.com","ObjectId":"__o1","ProfileData":{"SendbirdID":"sb-1"},"Event_properties":{"price":1.50,"at":"$D_1700000000"},"Push_token":"t"}}`
	testCall      = `{"is_test":true,"targetId":1234,"key_values":{"key":"value"},"profiles":[{"Identity":"UserId","Email":"a@example.com","push_token":"Token"},{"Identity":"UserId2"},{"Identity":"UserId3"},{"Identity":"UserId4"},{"Identity":"UserId5"}]}`
	afterPushCall = `{"targetId":1,"profiles":[{"identity":"u1","all_identities":["u1"],"objectId":"o","payload":{"title":"t","body":"b","kvs":{}}}]}`
)

// ownSample is Sendbird's documented request, byte for byte.
func ownSample(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile("../testdata/request-realtime.json")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// call is a webhook call with this beside template_key, for one user.
func hook(keyValues string) string {
	return `{"key_values":{"template_key":"k"` + keyValues + `},"profiles":{"identity":"u"}}`
}

func mustParse(t testing.TB, mode Mode, body string) Request {
	t.Helper()
	r, err := Parse(mode, []byte(body))
	if err != nil {
		t.Fatalf("%v for %.1000s", err, body)
	}
	return r
}

// lone returns the ask, the only one there is.
func lone(t testing.TB, body string) Ask {
	t.Helper()
	r := mustParse(t, ModeBatch, body)
	if len(r.Asks) != 1 {
		t.Fatalf("got %d asks, want 1: %+v", len(r.Asks), r.Asks)
	}
	return r.Asks[0]
}

func wantAsks(t testing.TB, got, want []Ask) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("asks (-want +got):\n%s", diff)
	}
}

func TestCallsBecomeAsks(t *testing.T) {
	t.Parallel()
	type vars = sendbird.Variables
	tests := []struct {
		name string
		mode Mode
		body string
		want []Ask
	}{
		{"Broadcast", ModeBatch, strings.Replace(broadcastCall, `"event_name"`, `"receiver":"SendbirdID","event_name"`, 1), []Ask{{
			Message: Message{Mode: ModeBatch, Template: "welcome", Event: "Sale", Target: "1234567890123456789", Push: map[string]string{"deep": "app://x"}},
			Users:   []User{{"sb-1", vars{"name": sendbird.String("you")}}, {"sb-2", vars{"name": sendbird.String("Kim")}}},
		}}},
		{"Single", ModeRealtime, singleCall, []Ask{{
			Message: Message{Mode: ModeRealtime, Template: "welcome", Target: "1234"},
			Users:   []User{{"sb-1", vars{"on": sendbird.String("$D_1700000000")}}},
		}}},
		{"Identity", ModeBatch, broadcastCall, []Ask{{
			Message: Message{Mode: ModeBatch, Template: "welcome", Event: "Sale", Target: "1234567890123456789", Push: map[string]string{"deep": "app://x"}},
			Users:   []User{{"u1", vars{"name": sendbird.String("you")}}, {"u2", vars{"name": sendbird.String("Kim")}}},
		}}},
		{"EverySetting", ModeBatch, `{"targetId":"c-1","key_values":{"template_key":"k","tag":"t","title":"T","priority":"high","receiver":"","push.a":1,"push.b":true},"profiles":[{"identity":7}]}`, []Ask{{
			Message: Message{Mode: ModeBatch, Template: "k", Target: "c-1", Tag: "t", Title: "T", Priority: sendbird.PriorityHigh, Push: map[string]string{"a": "1", "b": "true"}},
			Users:   []User{{ID: "7"}},
		}}},
		{"OwnMessages", ModeBatch, `{"key_values":{"template_key":"k","push.a":"1"},"profiles":[
			{"identity":"1"},{"identity":"2","key_values":{"tag":"x"}},{"identity":"3","key_values":{"push.a":"1"}},
			{"identity":"4","key_values":{"tag":"x"}},{"identity":"5","key_values":{"template_key":"other","push.a":"2"}}]}`, []Ask{
			{Message: Message{Mode: ModeBatch, Template: "k", Push: map[string]string{"a": "1"}}, Users: []User{{ID: "1"}, {ID: "3"}}},
			{Message: Message{Mode: ModeBatch, Template: "k", Tag: "x", Push: map[string]string{"a": "1"}}, Users: []User{{ID: "2"}, {ID: "4"}}},
			{Message: Message{Mode: ModeBatch, Template: "other", Push: map[string]string{"a": "2"}}, Users: []User{{ID: "5"}}},
		}},
		{"TheSameUserAgain", ModeBatch, `{"key_values":{"template_key":"k","var.v":"1"},"profiles":[{"identity":"a"},{"identity":"b"},{"identity":"a"},
			{"identity":"a","key_values":{"var.v":"2"}},{"identity":"b","key_values":{"var.v":"1"}},{"identity":"a","key_values":{"var.v":"3"}},{"identity":"a","key_values":{"var.v":"2"}},{"identity":"b","key_values":{"var.v":"2"}}]}`, []Ask{
			{Message: Message{Mode: ModeBatch, Template: "k"}, Users: []User{{"a", vars{"v": sendbird.String("1")}}, {"b", vars{"v": sendbird.String("1")}}}},
			{Message: Message{Mode: ModeBatch, Template: "k"}, Users: []User{{"a", vars{"v": sendbird.String("2")}}, {"b", vars{"v": sendbird.String("2")}}}},
			{Message: Message{Mode: ModeBatch, Template: "k"}, Users: []User{{"a", vars{"v": sendbird.String("3")}}}},
		}},
		{"Nobody", ModeBatch, `{"key_values":{"template_key":"k"},"profiles":[]}`, nil},
		{"NoTest", ModeBatch, `{"is_test":false,"key_values":{"template_key":"k"},"profiles":{"identity":"u"}}`, []Ask{{
			Message: Message{Mode: ModeBatch, Template: "k"}, Users: []User{{ID: "u"}},
		}}},
		{"Own", ModeRealtime, ownSample(t), []Ask{{
			Message: Message{
				Mode: ModeRealtime, Template: "appointment-reminder", Tag: "appointments", Title: "Appointment Reminder",
				Push: map[string]string{"key": "value1", "key2": "value2"},
			},
			Users: []User{{"sendbird-user_1", vars{"name": sendbird.String("Bob Barker"), "appointment_number": sendbird.String("32893")}}},
		}}},
		{"OwnBatch", ModeBatch, `{"template":{"key":"k","variables":{"b":{"i":{"url":"https://x.test/i","width":1,"height":2},"a":{"type":"custom","data":"app://x"}},"a":{}}},
			"targets":["a","b","a"],"mode":"batch","priority":"low","event_name":"Sale","target_id":9007199254740993}`, []Ask{{
			Message: Message{Mode: ModeBatch, Template: "k", Event: "Sale", Target: "9007199254740993", Priority: sendbird.PriorityLow},
			Users: []User{
				{ID: "a"},
				{"b", vars{"i": sendbird.Image{URL: "https://x.test/i", Width: 1, Height: 2}, "a": sendbird.Action{Type: sendbird.ActionCustom, Data: "app://x"}}},
			},
		}}},
		{"OwnManyInRealTime", ModeRealtime, `{"template":{"key":"k"},"targets":["a","b"]}`, []Ask{{
			Message: Message{Mode: ModeRealtime, Template: "k"}, Users: []User{{ID: "a"}, {ID: "b"}},
		}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := mustParse(t, tt.mode, tt.body)
			if len(tt.want) == 0 {
				tt.want = []Ask{}
			}
			wantAsks(t, got.Asks, tt.want)
			checkRequest(t, got)
		})
	}
}

// checkRequest checks what holds for the asks of any call, and that they are read back
// from what is stored as they were.
func checkRequest(t testing.TB, r Request) {
	t.Helper()
	users := 0
	for _, a := range r.Asks {
		users += len(a.Users)
		seen := map[string]bool{}
		for _, u := range a.Users {
			if seen[u.ID] {
				t.Errorf("user %q is twice in an ask", u.ID)
			}
			seen[u.ID] = true
			n := sendbird.Notification{
				Template: a.Template, Mode: sendbird.Mode(a.Mode), Targets: []string{u.ID}, Push: a.Push,
				Tag: a.Tag, Title: a.Title, Priority: a.Priority, Variables: map[string]sendbird.Variables{u.ID: u.Variables},
			}
			if err := n.Check(); err != nil {
				t.Errorf("accepted, and cannot be sent: %v", err)
			}
		}
		for _, u := range a.Unsendable {
			if u.Reason == "" || u.Detail == "" || !utf8.ValidString(u.Detail) {
				t.Errorf("unsendable without a reason: %+v", u)
			}
		}
	}
	if users != r.Accepted {
		t.Errorf("accepted %d, but there are %d users", r.Accepted, users)
	}
	stored, err := Encode([]byte("key"), r.Asks)
	if err != nil {
		t.Fatalf("Encode: %v", err)
	}
	keys := map[store.Key]bool{}
	var back []Ask
	bytes := 0
	for _, s := range stored {
		a, err := decodeAsk(s.Data)
		if err != nil {
			t.Fatal(err)
		}
		back = append(back, a)
		keys[s.Key] = true
		bytes += len(s.Data)
	}
	if diff := cmp.Diff(lines(t, r.Asks), lines(t, back)); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
	if len(keys) != len(stored) {
		t.Errorf("%d asks have %d keys", len(stored), len(keys))
	}
	if bytes > maxCallBytes+len(stored)*maxMessageBytes {
		t.Errorf("the asks take %d bytes", bytes)
	}
}

// lines are everybody in the asks with the message they get: what stays the same when
// an ask is taken apart. The unsendable come last.
func lines(t testing.TB, asks []Ask) []string {
	t.Helper()
	var users, unsendable []string
	for _, a := range asks {
		for _, u := range a.Users {
			text, err := json.Marshal(Ask{Message: a.Message, Users: []User{u}}, json.Deterministic(true))
			if err != nil {
				t.Fatal(err)
			}
			users = append(users, string(text))
		}
		for _, u := range a.Unsendable {
			text, err := json.Marshal(Ask{Message: a.Message, Unsendable: []Unsendable{u}}, json.Deterministic(true))
			if err != nil {
				t.Fatal(err)
			}
			unsendable = append(unsendable, string(text))
		}
	}
	return append(users, unsendable...)
}

func TestTestCallsAskForNothing(t *testing.T) {
	t.Parallel()
	for _, body := range []string{testCall, `{"Is_Test":true}`, `{"template":{},"targets":7,"is_test":true}`, `{"profiles":7,"IS_TEST":true}`} {
		if r := mustParse(t, ModeBatch, body); !r.Test || len(r.Asks) != 0 || r.Accepted != 0 {
			t.Errorf("%s: got %+v", body, r)
		}
	}
}

// TestLetterCase: CleverTap's names are taken in any, birdtap's own are not.
func TestLetterCase(t *testing.T) {
	t.Parallel()
	want := mustParse(t, ModeBatch, broadcastCall).Asks
	for _, change := range []func(string) string{strings.ToUpper, strings.ToLower, func(s string) string { return strings.ToUpper(s[:1]) + s[1:] }} {
		body := broadcastCall
		for _, name := range []string{"targetId", "key_values", "profiles", "identity", "profileData"} {
			body = strings.ReplaceAll(body, `"`+name+`"`, `"`+change(name)+`"`)
		}
		wantAsks(t, mustParse(t, ModeBatch, body).Asks, want)
	}
}

const unknownName = `; there are template_key, event_name, receiver, tag, title, priority, push.<key> and var.<name>`

// TestMistakes: a mistake for all refuses the call, with a sentence that names the field
// and shows no value.
func TestMistakes(t *testing.T) {
	t.Parallel()
	tests := []struct{ body, want string }{
		{`{}`, `profiles is missing`},
		{`{"key_values":{"template_key":"k"}}`, `profiles is missing`},
		{`{"key_values":{"template_key":"k"},"profiles":"canary"}`, `profiles must be an array or an object`},
		{`{"key_values":{"template_key":"k"},"profiles":[{"identity":"u"},"canary"]}`, `profiles[1] must be an object`},
		{`{"key_values":{"template_key":"k"},"profiles":{"key_values":["canary"]}}`, `key_values of a profile must be an object`},
		{`{"key_values":["canary"],"profiles":{}}`, `key_values must be an object`},
		{`{"key_values":null,"profiles":{}}`, `template_key: a template's key is wanted`},
		{`{"key_values":{"template_key":""},"profiles":{}}`, `template_key: a template's key is wanted`},
		{`{"key_values":{"template_key":"canary\n"},"profiles":{}}`, `template_key: a template's key is wanted`},
		{afterPushCall, `this is the call of a webhook after a push, which has no key_values: template_key is missing`},
		{`{"is_test":"canary"}`, `is_test must be true or false`},
		{`{"is_test":true,"IS_TEST":true}`, `is_test is there twice, in different letter case`},
		{`{"targetId":1,"TargetId":1}`, `targetId is there twice, in different letter case`},
		{`{"key_values":{},"Key_Values":{}}`, `key_values is there twice, in different letter case`},
		{`{"profiles":[],"Profiles":[]}`, `profiles is there twice, in different letter case`},
		{`{"key_values":{"template_key":"k"},"profiles":[{"identity":"canary","Identity":"canary"}]}`, `identity is there twice, in different letter case`},
		{`{"key_values":{"template_key":"k"},"profiles":[{"profileData":{},"ProfileData":{}}]}`, `profileData is there twice, in different letter case`},
		{`{"key_values":{"template_key":"k"},"profiles":[{"key_values":{},"KEY_values":{}}]}`, `key_values is there twice, in different letter case`},
		{`{"targetId":1.0,"key_values":{}}`, `targetId must be an integer, or text of one line`},
		{`{"targetId":1e3,"key_values":{}}`, `targetId must be an integer, or text of one line`},
		{`{"targetId":null,"key_values":{}}`, `targetId must be an integer, or text of one line`},
		{`{"targetId":"canary\u0000","key_values":{}}`, `targetId must be an integer, or text of one line`},
		{hook(`,"var_name":"canary"`), `key_values: unknown name "var_name"` + unknownName},
		{hook(`,"templatekey":"canary"`), `key_values: unknown name "templatekey"` + unknownName},
		{hook(`,"Template_Key":"canary"`), `key_values: unknown name "Template_Key"` + unknownName},
		{hook(`,"Var.x":["canary"]`), `key_values: unknown name "Var.x"` + unknownName},
		{hook(`,"` + strings.Repeat("ä", 70) + `":1`), `key_values: unknown name "` + strings.Repeat("ä", 64) + `…"` + unknownName},
		{hook(`,"\u0000":1`), `key_values: unknown name "\x00"` + unknownName},
		{hook(`,"var.":"canary"`), `key_values: "var.": the name of a variable is text of one line, not empty`},
		{hook(`,"var.a\nb":"canary"`), `key_values: "var.a\nb": the name of a variable is text of one line, not empty`},
		{hook(`,"tag":{"a":"canary"}`), `key_values: "tag" must be text`},
		{hook(`,"push.a":null`), `key_values: "push.a" must be text`},
		{hook(`,"receiver":[]`), `key_values: "receiver" must be text`},
		{hook(`,"priority":"canary"`), `priority: must be high, normal or low`},
		{hook(`,"tag":"canary\n"`), `tag: must be text of one line`},
		{hook(`,"title":"canary\u007f"`), `title: must be text of one line`},
		{hook(`,"event_name":"canary\n"`), `event_name: must be text of one line`},
		{hook(`,"push.":"canary"`), `push.<key>: keys and values are text, keys not empty`},
		{hook(`,"push.1":"","push.2":"","push.3":"","push.4":"","push.5":"","push.6":""`), `push.<key>: at most 5 pairs`},
		{`{"key_values":{"priority":"canary"},"profiles":{"key_values":{"template_key":"k"}}}`, `priority: must be high, normal or low`},

		{`{"template":{"key":"k"},"targets":["u"],"profiles":[]}`, `unknown member "profiles" beside template and targets`},
		{`{"template":{"key":"k"},"targets":["u"],"Mode":"canary"}`, `unknown member "Mode" beside template and targets`},
		{`{"template":{"key":"k","Variables":{}},"targets":["u"]}`, `unknown member "Variables" in template`},
		{`{"template":"canary","targets":["u"]}`, `template must be an object`},
		{`{"template":{"key":7},"targets":["u"]}`, `template.key must be a string`},
		{`{"template":{},"targets":["u"]}`, `template.key: a template's key is wanted`},
		{`{"targets":["u"]}`, `template.key: a template's key is wanted`},
		{`{"template":{"key":"k"}}`, `targets must be an array of user ids`},
		{`{"template":{"key":"k"},"targets":"canary"}`, `targets must be an array of user ids`},
		{`{"template":{"key":"k"},"targets":[]}`, `targets: at least one user id is wanted`},
		{`{"template":{"key":"k"},"targets":["u",7]}`, `targets[1] must be a string`},
		{`{"template":{"key":"k"},"targets":["u"],"mode":"realtime"}`, `mode must be batch at this door, or left out`},
		{`{"template":{"key":"k"},"targets":["u"],"mode":""}`, `mode: must be realtime or batch`},
		{`{"template":{"key":"k"},"targets":["u"],"mode":null}`, `mode must be a string`},
		{`{"template":{"key":"k"},"targets":["u"],"priority":"canary"}`, `priority: must be high, normal or low`},
		{`{"template":{"key":"k"},"targets":["u"],"tag":["canary"]}`, `tag must be a string`},
		{`{"template":{"key":"k"},"targets":["u"],"title":7}`, `title must be a string`},
		{`{"template":{"key":"k"},"targets":["u"],"event_name":"canary\t"}`, `event_name: must be text of one line`},
		{`{"template":{"key":"k"},"targets":["u"],"event_name":1}`, `event_name must be a string`},
		{`{"template":{"key":"k"},"targets":["u"],"target_id":true}`, `target_id must be an integer, or text of one line`},
		{`{"template":{"key":"k"},"targets_filename":"canary"}`, "targets_filename is not supported here: name the users in targets, or send a file with `birdtap send --csv`"},
		{`{"template":{"key":"k","variables":[]},"targets":["u"]}`, `template.variables must be an object`},
		{`{"template":{"key":"k","variables":{"canary":{}}},"targets":["u"]}`, `template.variables has entries for users who are not in targets`},
		{`{"template":{"key":"k","notification_push_data":{"a":{}}},"targets":["u"]}`, `template.notification_push_data."a" must be a string`},
		{`{"template":{"key":"k","notification_push_data":{"1":"","2":"","3":"","4":"","5":"","6":""}},"targets":["u"]}`, `template.notification_push_data: at most 5 pairs`},
	}
	for _, tt := range tests {
		r, err := Parse(ModeBatch, []byte(tt.body))
		var wrong *mistake
		if !errors.As(err, &wrong) || wrong.text != tt.want || wrong.status != http.StatusBadRequest {
			t.Errorf("%s:\n got %v\nwant %s", tt.body, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("the answer shows a value: %v", err)
		}
		if len(r.Asks) != 0 {
			t.Errorf("%s: refused, and has asks", tt.body)
		}
	}
}

// TestUnsendable: what is wrong with one user concerns nobody else.
func TestUnsendable(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ä", 81)
	const own = `{"template":{"key":"k","variables":{"a":%s,"b":{"v":"1"}}},"targets":["a","b"]}`
	with := func(keyValues, profile string) string {
		return `{"key_values":{"template_key":"k"` + keyValues + `},"profiles":[{"identity":"b","SendbirdID":"b","key_values":{"var.v":"1"}},` + profile + `]}`
	}
	const receiver = `,"receiver":"SendbirdID"`
	tests := []struct {
		body string
		want Unsendable
	}{
		{with(receiver, `{"identity":"a"}`), Unsendable{"a", ReasonNoReceiver, `no field "SendbirdID"`}},
		{with(receiver, `{"identity":7,"profileData":null}`), Unsendable{"7", ReasonNoReceiver, `no field "SendbirdID"`}},
		{with(receiver, `{"identity":true,"profileData":{"x":"canary"}}`), Unsendable{"", ReasonNoReceiver, `no field "SendbirdID"`}},
		{with("", `{"email":"canary"}`), Unsendable{"", ReasonNoReceiver, `no field "identity"`}},
		{with("", `{"identity":"`+strings.Repeat("x", 1025)+`"}`), Unsendable{"", ReasonNoReceiver, `field "identity": 1 to 80 characters`}},
		{with(receiver, `{"identity":"a","SendbirdID":""}`), Unsendable{"a", ReasonNoReceiver, `field "SendbirdID": 1 to 80 characters`}},
		{with(receiver, `{"identity":"a","sendbirdid":"`+long+`"}`), Unsendable{"a", ReasonNoReceiver, `field "SendbirdID": 1 to 80 characters`}},
		{with(receiver, `{"identity":"a","SendbirdID":"canary\n"}`), Unsendable{"a", ReasonNoReceiver, `field "SendbirdID": must be text of one line`}},
		{with(receiver, `{"identity":"a","SendbirdID":1.5}`), Unsendable{"a", ReasonNoReceiver, `field "SendbirdID" is neither text nor an integer`}},
		{with(receiver, `{"identity":"a","SendbirdID":null,"profileData":{"SendbirdID":"x"}}`), Unsendable{"a", ReasonNoReceiver, `field "SendbirdID" is neither text nor an integer`}},
		{with(receiver, `{"identity":"a","SendbirdID":"canary","sendbirdid":"canary"}`), Unsendable{"a", ReasonNoReceiver, `field "SendbirdID" is there twice, in different letter case`}},
		{with(receiver, `{"identity":"a","profileData":{"SendbirdID":"canary","SENDBIRDID":"canary"}}`), Unsendable{"a", ReasonNoReceiver, `field "SendbirdID" is there twice, in different letter case`}},
		{with("", `{"identity":"a","key_values":{"var.v":null}}`), Unsendable{"a", ReasonVariables, `variable "v": ` + noValue}},
		{with("", `{"identity":"a","key_values":{"var.z":[],"var.v":["canary"]}}`), Unsendable{"a", ReasonVariables, `variable "v": ` + noValue}},
		{with(receiver, `{"identity":"i","SendbirdID":"a","key_values":{"var.v":{"url":"canary","width":1,"height":1}}}`), Unsendable{"a", ReasonVariables, `variable "v": url is no http or https address`}},
		{with(`,"var.v":[]`, `{"identity":"a"}`), Unsendable{"a", ReasonVariables, `variable "v": ` + noValue}}, // b has its own
		{with("", `{"identity":"a","key_values":{"priority":"canary"}}`), Unsendable{"a", ReasonInvalid, `priority: must be high, normal or low`}},
		{with("", `{"identity":"a","key_values":{"template_key":""}}`), Unsendable{"a", ReasonInvalid, `template_key: a template's key is wanted`}},
		{with("", `{"identity":"a","key_values":{"vra.x":"canary"}}`), Unsendable{"a", ReasonInvalid, `key_values: unknown name "vra.x"` + unknownName}},
		{with(`,"push.1":"","push.2":"","push.3":"","push.4":"","push.5":""`, `{"identity":"a","key_values":{"push.6":""}}`), Unsendable{"a", ReasonInvalid, `push.<key>: at most 5 pairs`}},

		{fmt.Sprintf(own, `{"v":7}`), Unsendable{"a", ReasonVariables, `variable "v": ` + noValue}},
		{fmt.Sprintf(own, `{"v":{"type":"web","data":"canary"}}`), Unsendable{"a", ReasonVariables, `variable "v": data of a web action must be an http or https address`}},
		{fmt.Sprintf(own, `{"":"canary"}`), Unsendable{"a", ReasonVariables, `variable "": names are text of one line, not empty`}},
		{fmt.Sprintf(own, `"canary"`), Unsendable{"a", ReasonVariables, `the entry in template.variables is no object`}},
		{`{"template":{"key":"k","variables":{"b":{"v":"1"}}},"targets":["a","b","a"]}`, Unsendable{"a", ReasonVariables, `no entry in template.variables, where others have one`}},
		{`{"template":{"key":"k","variables":{"b":{"v":"1"}}},"targets":["` + long + `","b"]}`, Unsendable{long, ReasonInvalid, `user id: 1 to 80 characters`}},
		{`{"template":{"key":"k","variables":{"b":{"v":"1"}}},"targets":["","b"]}`, Unsendable{"", ReasonInvalid, `user id: 1 to 80 characters`}},
		{`{"template":{"key":"k","variables":{"b":{"v":"1"}}},"targets":["a\n","b"]}`, Unsendable{"a\n", ReasonInvalid, `user id: must be text of one line`}},
	}
	for _, tt := range tests {
		got := lone(t, tt.body)
		if diff := cmp.Diff([]Unsendable{tt.want}, got.Unsendable); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.body, diff)
		}
		if diff := cmp.Diff([]User{{"b", sendbird.Variables{"v": sendbird.String("1")}}}, got.Users); diff != "" {
			t.Errorf("%s: the other user (-want +got):\n%s", tt.body, diff)
		}
		checkRequest(t, mustParse(t, ModeBatch, tt.body))
	}
}

// TestATemplateOfTheirOwn: the common one may be missing where every profile has one.
func TestATemplateOfTheirOwn(t *testing.T) {
	t.Parallel()
	got := mustParse(t, ModeBatch, `{"targetId":1,"profiles":[{"identity":"a"},{"identity":"b","key_values":{"template_key":"k"}},{"identity":"c","key_values":{"var.x":"1"}}]}`)
	const missing = "template_key: a template's key is wanted"
	wantAsks(t, got.Asks, []Ask{
		{Message: Message{Mode: ModeBatch, Target: "1"}, Unsendable: []Unsendable{{"a", ReasonInvalid, missing}, {"c", ReasonInvalid, missing}}},
		{Message: Message{Mode: ModeBatch, Template: "k", Target: "1"}, Users: []User{{ID: "b"}}},
	})
	checkRequest(t, got)
}

func TestReceivers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ receiver, profile, want string }{
		{"identity", `{"Identity":"u"}`, "u"},
		{"identity", `{"identity":9007199254740993}`, "9007199254740993"},
		{"identity", `{"identity":-1}`, "-1"},
		{"identity", `{"identity":123456789012345678901234567890}`, "123456789012345678901234567890"},
		{"identity", `{"identity":"0001"}`, "0001"},
		{"SendbirdID", `{"sendbirdid":"u","profileData":{"SendbirdID":"other"}}`, "u"},
		{"SENDBIRDID", `{"identity":"i","profileData":{"SendbirdID":"u"}}`, "u"},
		{"email", `{"Email":"u@x.test"}`, "u@x.test"},
		{"a.b c", `{"profileData":{"A.B C":7}}`, "7"},
		{"identity", `{"identity":"` + strings.Repeat("ä", 80) + `"}`, strings.Repeat("ä", 80)},
	} {
		got := lone(t, `{"key_values":{"template_key":"k","receiver":"`+tt.receiver+`"},"profiles":`+tt.profile+`}`)
		if diff := cmp.Diff([]User{{ID: tt.want}}, got.Users); diff != "" {
			t.Errorf("%s of %s (-want +got):\n%s", tt.receiver, tt.profile, diff)
		}
	}
}

func TestTargetIDsKeepTheirDigits(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"0", "-1", "2147483648", "9007199254740993", "9223372036854775808", "18446744073709551616", `"0001"`, `"c-1"`, `""`} {
		want := strings.Trim(id, `"`)
		if got := lone(t, strings.Replace(hook(""), "{", `{"targetId":`+id+`,`, 1)).Target; got != want {
			t.Errorf("targetId %s: got %q", id, got)
		}
		if got := lone(t, `{"template":{"key":"k"},"targets":["u"],"target_id":`+id+`}`).Target; got != want {
			t.Errorf("target_id %s: got %q", id, got)
		}
	}
}

func TestMalformedBodies(t *testing.T) {
	t.Parallel()
	nested := func(n int) string {
		return strings.Replace(hook(""), "{", `{"x":`+strings.Repeat("[", n-1)+strings.Repeat("]", n-1)+`,`, 1)
	}
	for _, body := range []string{
		"", " ", "null", "true", "7", `"x"`, "[]", `[{}]`, "{", `{"a":1`, `{"a":1}}`, `{} x`, "{}{}", "{} {}", "\ufeff{}", "{}\x00", `{"a":1,}`, `{a:1}`, `{'a':1}`,
		`{/**/}`, `{"a":NaN}`, `{"a":01}`, `{"a":1,"a":2}`, `{"a":1,"\u0061":2}`, `{"x":{"a":1,"a":2}}`, "{\"a\":\"\xff\"}", "{\"\xc0\x80\":1}", `{"a":"\ud800"}`, "{\"a\":\"\n\"}",
		`{“is_test”:true}`, nested(33), nested(40000), `{"is_test":true,"a":1,"a":2}`, `{"is_test":true} x`,
		`{"template":{"key":"k","variables":{"u":{},"u":{}}},"targets":["u"]}`,
	} {
		if _, err := Parse(ModeBatch, []byte(body)); !errors.Is(err, errMalformed) {
			t.Errorf("%.80q: got %v", body, err)
		}
	}
	mustParse(t, ModeBatch, nested(32))
	mustParse(t, ModeBatch, " \t\r\n"+hook("")+" \n")
}

// TestLimitsOfACall: each limit is taken, and one more is not.
func TestLimitsOfACall(t *testing.T) {
	t.Parallel()
	many := func(n int, each string) string { return strings.TrimSuffix(strings.Repeat(each+",", n), ",") }
	text := func(n int) string { return strings.Repeat("x", n) }
	webhook := func(n int) string { return `{"key_values":{"template_key":"k"},"profiles":[` + many(n, "{}") + `]}` }
	own := func(n int) string { return `{"template":{"key":"k"},"targets":["` + text(n) + `"]}` }
	refused := func(name, body, want string) {
		t.Helper()
		if _, err := Parse(ModeBatch, []byte(body)); err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %s", name, err, want)
		}
	}

	if r := mustParse(t, ModeBatch, webhook(maxCallUsers)); len(r.Asks[0].Unsendable) != maxCallUsers {
		t.Errorf("%d are listed", len(r.Asks[0].Unsendable))
	}
	refused("users", webhook(maxCallUsers+1), errTooManyUsers.text)

	var targets strings.Builder
	for i := range maxCallUsers {
		fmt.Fprintf(&targets, `"%d",`, i)
	}
	body := `{"template":{"key":"k"},"targets":[` + targets.String()
	if r := mustParse(t, ModeBatch, body+`"1"]}`); r.Accepted != maxCallUsers {
		t.Errorf("accepted %d", r.Accepted)
	}
	refused("targets", body+`"x"]}`, errTooManyUsers.text)

	if got := lone(t, own(80)); len(got.Users) != 1 {
		t.Error("80 characters are refused")
	}
	if got := lone(t, own(81)); len(got.Users) != 0 {
		t.Error("81 characters are taken")
	}
	checkRequest(t, mustParse(t, ModeBatch, hook(`,"push.1":"","push.2":"","push.3":"","push.4":"","push.5":""`)))

	// What is common to all users, and what each has.
	const messageBeside = 256 + len(`"k"`) + 5*len(`""`)
	checkRequest(t, mustParse(t, ModeBatch, hook(`,"title":"`+text(maxMessageBytes-messageBeside)+`"`)))
	refused("message", hook(`,"title":"`+text(maxMessageBytes-messageBeside+1)+`"`),
		"template, event, target, tag, title and push data: together at most 64 KiB")
	const variableBeside = len(`"v"`) + len(`""`) + 16
	full := text(maxVariablesBytes - variableBeside)
	checkRequest(t, mustParse(t, ModeBatch, hook(`,"title":"`+text(maxMessageBytes-messageBeside)+`","var.v":"`+full+`"`)))
	refused("variables", hook(`,"var.v":"`+full+`x"`), "key_values: the variables may have 512 KiB together")
	for _, body := range []string{
		`{"key_values":{"template_key":"k"},"profiles":[{"identity":"u","key_values":{"var.v":"` + full + `x"}},{"identity":"v","key_values":{"var.v":"` + full + `"}}]}`,
		`{"template":{"key":"k","variables":{"u":{"v":"` + full + `x"},"v":{"v":"` + full + `"}}},"targets":["u","v"]}`,
	} {
		got := lone(t, body)
		if diff := cmp.Diff([]Unsendable{{"u", ReasonVariables, "the variables may have 512 KiB together"}}, got.Unsendable); diff != "" || len(got.Users) != 1 {
			t.Errorf("variables of one user (-want +got):\n%s", diff)
		}
	}

	// What is written once and goes to many may come to more than the body.
	common := func(users int) string {
		return `{"key_values":{"template_key":"k","var.v":"` + full + `"},"profiles":[` + targetsAsProfiles(users) + `]}`
	}
	stored, err := Encode(nil, mustParse(t, ModeBatch, common(31)).Asks)
	if err != nil || len(stored) != 31 {
		t.Errorf("got %d asks, %v", len(stored), err)
	}
	refused("bytes", common(32), errTooManyBytes.text)
}

func targetsAsProfiles(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,{"identity":%d}`, i)
	}
	return b.String()[1:]
}

// TestSmallBodiesStaySmall: bodies made to cost more than they have bytes are refused.
func TestSmallBodiesStaySmall(t *testing.T) {
	t.Parallel()
	var variables, pairs, again strings.Builder
	for i := range 5_000 {
		fmt.Fprintf(&variables, `,"var.%d":""`, i)
		fmt.Fprintf(&pairs, `,"push.%d":""`, i)
		fmt.Fprintf(&again, `,{"identity":"u","key_values":{"var.v":"%d"}}`, i)
	}
	empty := strings.Repeat(`,{"identity":"u","key_values":{}}`, 5_000)[1:]
	for name, body := range map[string]string{
		"variables copied":           `{"key_values":{"template_key":"k"` + variables.String() + `},"profiles":[` + empty + `]}`,
		"variables of no value":      `{"key_values":{"template_key":"k"` + strings.ReplaceAll(variables.String(), `""`, "[]") + `},"profiles":[` + empty + `]}`,
		"pairs without a template":   `{"key_values":{"tag":"t"` + pairs.String() + `},"profiles":[` + empty + `]}`,
		"a long message, over again": `{"key_values":{"template_key":"k","title":"` + strings.Repeat("x", 60_000) + `"},"profiles":[` + strings.ReplaceAll(empty, "{}", `{"tag":"t"}`) + `]}`,
		"one user, with a message":   `{"key_values":{"template_key":"k","title":"` + strings.Repeat("x", 60_000) + `"},"profiles":[` + again.String()[1:] + `]}`,
	} {
		var wrong *mistake
		if _, err := Parse(ModeBatch, []byte(body)); !errors.As(err, &wrong) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	r := mustParse(t, ModeBatch, `{"key_values":{"template_key":"k"},"profiles":[`+again.String()[1:]+`]}`)
	if len(r.Asks) != 5_000 {
		t.Errorf("got %d asks", len(r.Asks))
	}
}

// TestNaughtyTextIsCarriedAsItCame, or refused.
func TestNaughtyTextIsCarriedAsItCame(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"\x00", "\x00\x1f\x7f", "\x7f", "\u00a0\u2028\u2029", "\ufeff", "\u202eright to left\u202c", "Ω≈ç√∫", "ﷺ", "田中さん", "👩‍👩‍👧‍👦", "🇩🇪", "Z̮̞̠͙͔ͅḀ̗̞͈̻̗Ḷ͙", "\U0010ffff", "\ufffd\uffff",
		"<script>alert(1)</script>", `<img src=x onerror="a">`, "'; DROP TABLE users; --", "${jndi:ldap://x}", "%s%n%x", "{{7*7}}", `{"url":1}`, `[1]`, `"`, `\`, `\u0041`, "../../etc/passwd", `C:\nul`, "=1+1", "null",
		"NaN", "true", "\b\f\n\r\t", "\u0130\u0131\u212a\u017f", "@name", "$D_1", " padded ", "var.x", "\u0085",
	} {
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		q := string(text)
		inName := q[1 : len(q)-1]
		for kind, body := range map[string]string{
			"webhook": `{"targetId":` + q + `,"key_values":{"template_key":` + q + `,"event_name":` + q + `,"tag":` + q + `,"title":` + q + `,"push.` + inName + `":` + q + `,"var.` + inName + `":` + q + `},"profiles":[{"identity":` + q + `}]}`,
			"own":     `{"target_id":` + q + `,"event_name":` + q + `,"tag":` + q + `,"title":` + q + `,"template":{"key":` + q + `,"notification_push_data":{` + q + `:` + q + `},"variables":{` + q + `:{` + q + `:` + q + `}}},"targets":[` + q + `]}`,
		} {
			r, err := Parse(ModeBatch, []byte(body))
			if wantErr := !isLine(s); wantErr != (err != nil) {
				t.Errorf("%s %q: got %v", kind, s, err)
			}
			if err != nil {
				continue
			}
			wantAsks(t, r.Asks, []Ask{{
				Message: Message{Mode: ModeBatch, Template: s, Event: s, Target: s, Tag: s, Title: s, Push: map[string]string{s: s}},
				Users:   []User{{s, sendbird.Variables{s: sendbird.String(s)}}},
			}})
			checkRequest(t, r)
		}
	}
}

func TestCallKeyJoinsAndKeepsApart(t *testing.T) {
	t.Parallel()
	a := string(callKey(ModeBatch, []byte("x")))
	if a != string(callKey(ModeBatch, []byte("x"))) {
		t.Error("the same call has another key")
	}
	if a == string(callKey(ModeRealtime, []byte("x"))) || a == string(callKey(ModeBatch, []byte("x "))) {
		t.Error("another call has the same key")
	}
}

// FuzzWebhook: whatever is called with, parsing ends in asks that can be stored and
// sent, or in a refusal that has none.
func FuzzWebhook(f *testing.F) {
	for _, body := range []string{
		broadcastCall, singleCall, testCall, afterPushCall, ownSample(f), hook(`,"var.i":"{\"url\":\"https://x.test\",\"width\":1,\"height\":1}","receiver":"a"`),
		`{"key_values":{"template_key":"k"},"profiles":[{"identity":"a"},{"identity":"a","key_values":{"var.v":{"type":"web","data":"https://x.test"},"push.a":"b","tag":"t"}},{"profileData":{}}]}`,
		`{"template":{"key":"k","variables":{"a":{"v":"1"},"b":{"v":{"url":"https://x.test","width":1,"height":2}}}},"targets":["a","b","c"],"mode":"batch","priority":"high","target_id":1}`,
	} {
		f.Add(true, []byte(body))
		f.Add(false, []byte(body))
	}
	f.Fuzz(func(t *testing.T, batch bool, body []byte) {
		mode := ModeRealtime
		if batch {
			mode = ModeBatch
		}
		r, err := Parse(mode, body)
		if err == nil {
			checkRequest(t, r)
			return
		}
		var wrong *mistake
		if !errors.As(err, &wrong) && !errors.Is(err, errMalformed) {
			t.Errorf("an error of no kind: %v", err)
		}
		if len(r.Asks) != 0 || r.Accepted != 0 || !utf8.ValidString(err.Error()) {
			t.Errorf("refused with %v, but got %+v", err, r)
		}
	})
}
