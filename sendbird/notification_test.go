package sendbird_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"github.com/birdtap/birdtap/sendbird"
	"github.com/birdtap/birdtap/sendbird/sendbirdtest"
)

// documented is an example of Sendbird's pages, byte for byte.
func documented(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// sorted is JSON without blanks, keys in order: object members have none.
func sorted(t testing.TB, text string) string {
	t.Helper()
	v := jsontext.Value(text)
	if err := v.Format(jsontext.ReorderRawObjects(true)); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return string(v)
}

// users are n ids.
func users(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("user-%d", i)
	}
	return list
}

// everybody gives each user the same variables.
func everybody(list []string, v sendbird.Variables) map[string]sendbird.Variables {
	m := map[string]sendbird.Variables{}
	for _, user := range list {
		m[user] = v
	}
	return m
}

func pairs(n int) map[string]string {
	m := map[string]string{}
	for i := range n {
		m[fmt.Sprint(i)] = "x"
	}
	return m
}

func TestRequestAndAnswerAsDocumented(t *testing.T) {
	for _, tc := range []struct {
		answer string
		n      sendbird.Notification
		body   string
	}{
		{"answer-realtime.json", sendbird.Notification{
			Template: "appointment-reminder", Mode: sendbird.Realtime, Targets: []string{"sendbird-user_1"},
			Variables: map[string]sendbird.Variables{"sendbird-user_1": {
				"name": sendbird.String("Bob Barker"), "appointment_number": sendbird.String("32893"),
			}},
			Push: map[string]string{"key": "value1", "key2": "value2"},
			Tag:  "appointments", Title: "Appointment Reminder", Priority: sendbird.PriorityHigh, // no effect here
		}, documented(t, "request-realtime.json")},
		{"answer-batch.json", sendbird.Notification{
			Template: "appointment-reminder", Mode: sendbird.Batch, TargetsFile: "notification-targets.csv",
			Tag: "appointments", Title: "Appointment Reminder", Priority: sendbird.PriorityLow,
		}, `{"template":{"key":"appointment-reminder"},"targets_filename":"notification-targets.csv","mode":"batch","priority":"low","tag":"appointments","title":"Appointment Reminder"}`},
	} {
		s, c := fake(t)
		s.Script(sendbirdtest.Messages, sendbirdtest.Status(200, nil, documented(t, tc.answer)))
		sent, err := c.Send(t.Context(), tc.n)
		if err != nil {
			t.Fatal(err)
		}
		want := sendbird.Sent{
			NotificationID: "7190607145580961921", TemplateKey: "appointment-reminder",
			Channels: []sendbird.Channel{{Key: "message-center", Type: "feed"}, {Key: "push", Type: "push"}},
			Mode:     tc.n.Mode, Title: "Appointment Reminder", Tag: "appointments",
			SentFrom:  sendbird.Source{Type: "api", Value: strings.Repeat("*", 36) + "82aa"},
			CreatedAt: sendbird.Time{Time: time.UnixMilli(1714374338539).UTC()},
		}
		if tc.n.Mode == sendbird.Batch {
			want.Priority = sendbird.PriorityNormal
		}
		if diff := cmp.Diff(want, sent); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.answer, diff)
		}
		if got := s.Calls()[0]; sorted(t, string(got.Body)) != sorted(t, tc.body) {
			t.Errorf("body %s, want %s", got.Body, tc.body)
		}
	}
}

// An id beyond 2^53 keeps its digits, and nothing else in the answer is worth
// calling a notification unsent.
func TestIDsKeepTheirDigits(t *testing.T) {
	for body, want := range map[string]sendbird.ID{
		`{"notification_id":"9007199254740993"}`:                        "9007199254740993",
		`{"notification_id":9007199254740993}`:                          "9007199254740993",
		`{"notification_id":"0001","created_at":"yesterday"}`:           "0001",
		`{"notification_id":"1","title":7,"channels":"none"}`:           "1",
		`{"notification_id":"1","error":false,"code":0,"message":null}`: "1",
	} {
		s, c := fake(t)
		s.Script(sendbirdtest.Messages, sendbirdtest.Status(200, nil, body))
		if sent, err := c.Send(t.Context(), one()); err != nil || sent.NotificationID != want {
			t.Errorf("%s: got %q, %v", body, sent.NotificationID, err)
		}
	}
	for _, body := range []string{`{"notification_id":1.5}`, `{"notification_id":1e3}`, `{"notification_id":null}`, `{"notification_id":""}`, `{"notification_id":"a\nb"}`, `{"notification_id":-1}`} {
		s, c := fake(t)
		s.Script(sendbirdtest.Messages, sendbirdtest.Status(200, nil, body))
		if _, err := c.Send(t.Context(), one()); err == nil || sendbird.OutcomeOf(err) != sendbird.Unknown {
			t.Errorf("%s: got %v", body, err)
		}
	}
}

// Every limit, and one beyond it. What is refused is never sent.
func TestLimitsAreCheckedBeforeTheCall(t *testing.T) {
	base := func(change func(*sendbird.Notification)) sendbird.Notification {
		n := sendbird.Notification{Template: "sale", Mode: sendbird.Batch, Targets: []string{"user-0", "user-1"}}
		change(&n)
		return n
	}
	two := []string{"user-0", "user-1"}
	type N = *sendbird.Notification
	for _, tc := range []struct {
		name   string
		change func(N)
		want   string // in the error; "" means that it is in order
	}{
		{"batch of 2", func(N) {}, ""},
		{"batch of none", func(n N) { n.Targets = nil }, "targets: 0 users, but 1 to 10,000 in batch mode"},
		{"batch of 1", func(n N) { n.Targets = users(1) }, ""},
		{"batch of 10,000", func(n N) { n.Targets = users(10_000) }, ""},
		{"batch of 10,001", func(n N) { n.Targets = users(10_001) }, "targets: 10,001 users, but 1 to 10,000 in batch mode (https://"},
		{"realtime of none", func(n N) { n.Mode, n.Targets = sendbird.Realtime, nil }, "targets: 0 users, but exactly 1 in realtime mode"},
		{"realtime of 1", func(n N) { n.Mode, n.Targets = sendbird.Realtime, users(1) }, ""},
		{"realtime of 2", func(n N) { n.Mode, n.Targets = sendbird.Realtime, users(2) }, "targets: 2 users, but exactly 1 in realtime mode"},
		{"by file", func(n N) { n.Targets, n.TargetsFile = nil, "key" }, ""},
		{"by file in real time", func(n N) { n.Mode, n.Targets, n.TargetsFile = sendbird.Realtime, nil, "key" }, "targets_filename: "},
		{"by file and name", func(n N) { n.TargetsFile = "key" }, "targets: 2 users, but targets or targets_filename"},
		{"by file with variables", func(n N) {
			n.Targets, n.TargetsFile, n.Variables = nil, "key", everybody(users(1), sendbird.Variables{})
		}, "template.variables: 1 user"},
		{"file of two lines", func(n N) { n.Targets, n.TargetsFile = nil, "a\nb" }, "targets_filename: "},
		{"5 pairs", func(n N) { n.Push = pairs(5) }, ""},
		{"6 pairs", func(n N) { n.Push = pairs(6) }, "template.notification_push_data: 6 pairs, but at most 5 pairs"},
		{"pair without key", func(n N) { n.Push = map[string]string{"": "x"} }, "template.notification_push_data: "},
		{"id of 80", func(n N) { n.Targets = []string{strings.Repeat("ä", 80)} }, ""},
		{"id of 81", func(n N) { n.Targets = []string{"a", strings.Repeat("ä", 81)} }, "targets[1]: 81 characters, but 1 to 80 characters"},
		{"empty id", func(n N) { n.Targets = []string{"a", ""} }, "targets[1]: an empty user id"},
		{"id of two lines", func(n N) { n.Targets = []string{person + "\n"} }, "targets[0]: "},
		{"id with NUL", func(n N) { n.Targets = []string{person + "\x00"} }, "targets[0]: "},
		{"id with bad UTF-8", func(n N) { n.Targets = []string{person + "\xff"} }, "targets[0]: "},
		{"a user twice", func(n N) { n.Targets = []string{"a", person, person} }, "targets[2]: the user of targets[1]"},
		{"no template", func(n N) { n.Template = "" }, "template.key: "},
		{"template of two lines", func(n N) { n.Template = "a\nb" }, "template.key: "},
		{"no mode", func(n N) { n.Mode = "" }, `mode: "", but must be realtime or batch`},
		{"old mode", func(n N) { n.Mode = "multi" }, `mode: "multi"`},
		{"high", func(n N) { n.Priority = sendbird.PriorityHigh }, ""},
		{"normal", func(n N) { n.Priority = sendbird.PriorityNormal }, ""},
		{"low", func(n N) { n.Priority = sendbird.PriorityLow }, ""},
		{"urgent", func(n N) { n.Priority = "urgent" }, `priority: "urgent", but must be high, normal or low`},
		{"long tag", func(n N) { n.Tag = strings.Repeat("x", 10_000) }, ""}, // no length is documented
		{"tag of two lines", func(n N) { n.Tag = "a\nb" }, `tag: "a\nb"`},
		{"title with bad UTF-8", func(n N) { n.Title = "\xff" }, "title: "},
		{"variables", func(n N) { n.Variables = everybody(two, sendbird.Variables{"a": sendbird.String("")}) }, ""},
		{"no variable at all", func(n N) { n.Variables = everybody(two, sendbird.Variables{}) }, ""},
		{"variables of one only", func(n N) { n.Variables = everybody(two[:1], sendbird.Variables{"a": sendbird.String("")}) }, "template.variables of targets[1]: no variables"},
		{"variables of the second only", func(n N) { n.Variables = everybody(two[1:], sendbird.Variables{"a": sendbird.String("")}) }, "template.variables of targets[0]: no \"a\""},
		{"one variable missing", func(n N) {
			n.Variables = everybody(two, sendbird.Variables{"a": sendbird.String(""), "b": sendbird.String("")})
			n.Variables["user-1"] = sendbird.Variables{"a": sendbird.String("")}
		}, `template.variables of targets[1]: no "b"`},
		{"one variable more", func(n N) {
			n.Variables = everybody(two, sendbird.Variables{"a": sendbird.String("")})
			n.Variables["user-1"] = sendbird.Variables{"a": sendbird.String(""), "b": sendbird.String("")}
		}, `template.variables of targets[0]: no "b"`},
		{"variables of a stranger", func(n N) { n.Variables = everybody(users(3), sendbird.Variables{"a": sendbird.String("")}) }, "template.variables: entries for 1 other user"},
		{"a stranger in place of one without", func(n N) {
			n.Variables = map[string]sendbird.Variables{"user-0": {}, "stranger": {"a": sendbird.String("")}}
		}, "template.variables: entries for 1 other user"},
		{"no value", func(n N) { n.Variables = everybody(two, sendbird.Variables{"a": nil}) }, `"a": nothing`},
		{"no name", func(n N) { n.Variables = everybody(two, sendbird.Variables{"": sendbird.String("")}) }, `a name ""`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := base(tc.change)
			err := n.Check()
			if strings.Contains(fmt.Sprint(err), person) {
				t.Errorf("error shows a user: %v", err)
			}
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("got %v", err)
			case tc.want == "":
				return
			case err == nil || !strings.Contains(err.Error(), tc.want):
				t.Fatalf("got %v, want it to hold %q", err, tc.want)
			}
			if limit, ok := errors.AsType[*sendbird.LimitError](err); !ok || limit.Field == "" || limit.Value == "" || limit.Limit == "" {
				t.Errorf("got %#v", err)
			}
			s, c := fake(t)
			if _, err := c.Send(t.Context(), n); sendbird.OutcomeOf(err) != sendbird.Refused || s.Counts().Calls != 0 {
				t.Errorf("sent all the same: %v, %d calls", err, s.Counts().Calls)
			}
		})
	}
}

func TestLargestBatchArrivesWhole(t *testing.T) {
	s, c := fake(t)
	list := users(sendbird.MaxBatchTargets)
	n := sendbird.Notification{
		Template: "sale", Mode: sendbird.Batch, Targets: list, Priority: sendbird.PriorityHigh,
		Variables: everybody(list, sendbird.Variables{
			"name":  sendbird.String("Jane \"J\" Doe\n☃"),
			"photo": sendbird.Image{URL: "https://example.com/a.png", Width: 1, Height: 1},
			"link":  sendbird.Action{Type: sendbird.ActionCustom, Data: "app://x"},
		}),
	}
	if _, err := c.Send(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	got := s.Notifications()[0]
	if diff := cmp.Diff(list, got.Users); diff != "" || got.Priority != "high" || s.Counts().Deliveries != len(list) {
		t.Errorf("%d users arrived, priority %s\n%s", len(got.Users), got.Priority, diff)
	}
	for name, want := range map[string]string{
		"name":  `"Jane \"J\" Doe\n☃"`,
		"photo": `{"url":"https://example.com/a.png","width":1,"height":1}`,
		"link":  `{"type":"custom","data":"app://x"}`,
	} {
		if v := got.Variables["user-9999"][name]; string(v) != want {
			t.Errorf("%s: %s, want %s", name, v, want)
		}
	}
}

func TestVariableValues(t *testing.T) {
	for text, want := range map[string]sendbird.Value{
		`"text"`: sendbird.String("text"),
		`""`:     sendbird.String(""),
		`{"url":"https://h/a.png","width":2,"height":3}`: sendbird.Image{URL: "https://h/a.png", Width: 2, Height: 3},
		`{"URL":"https://h/a.png","Width":2,"HEIGHT":3}`: sendbird.Image{URL: "https://h/a.png", Width: 2, Height: 3},
		`{"type":"web","data":"https://h"}`:              sendbird.Action{Type: sendbird.ActionWeb, Data: "https://h"},
		`{"data":"x","type":"custom"}`:                   sendbird.Action{Type: sendbird.ActionCustom, Data: "x"},
	} {
		if got, err := sendbird.ParseValue(jsontext.Value(text)); err != nil || got != want {
			t.Errorf("%s: got %#v, %v", text, got, err)
		}
	}
	for _, text := range []string{
		`1`, `true`, `null`, `[]`, `{}`, ``, `{"url":"hunter2"}`, `{"url":"x","width":1,"height":1,"more":1}`,
		`{"url":"x","width":1.5,"height":1}`, `{"url":"x","width":"1","height":1}`, `{"type":"web"}`, `{"type":"web","data":1}`, `{"type":"web","data":"x","url":"y"}`,
	} {
		if got, err := sendbird.ParseValue(jsontext.Value(text)); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: got %#v, %v", text, got, err)
		}
	}
	for _, tc := range []struct {
		v    sendbird.Value
		want string
	}{
		{sendbird.Image{URL: "https://h/a.png", Width: 1, Height: 1}, ""},
		{sendbird.Image{URL: "https://h/a.png", Width: 0, Height: 1}, "width and height"},
		{sendbird.Image{URL: "https://h/a.png", Width: 1, Height: -1}, "width and height"},
		{sendbird.Image{URL: "hunter2", Width: 1, Height: 1}, "url is no"},
		{sendbird.Action{Type: "web", Data: "https://h"}, ""},
		{sendbird.Action{Type: "web", Data: "hunter2"}, "data of a web action"},
		{sendbird.Action{Type: "custom", Data: ""}, "data must be text"},
		{sendbird.Action{Type: "deep", Data: "x"}, "web or custom"},
		{sendbird.String("hunter2\xff"), "UTF-8"},
	} {
		n := one()
		n.Variables[person]["name"] = tc.v
		err := n.Check()
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: got %v, want %q", tc.v, err, tc.want)
		}
		quiet(t, err)
	}
}

func TestVariablesAreHeldAgainstTheTemplate(t *testing.T) {
	s, c := fake(t)
	if err := s.AddTemplate(`{"key":"sale","variable_schema":[{"key":"name","type":"STRING"},{"key":"photo","type":"Image"},{"key":"new","type":"hologram"}]}`); err != nil {
		t.Fatal(err)
	}
	tmpl, err := c.Template(t.Context(), "sale")
	if err != nil {
		t.Fatal(err)
	}
	good := sendbird.Variables{
		"name": sendbird.String("x"), "photo": sendbird.Image{URL: "https://h", Width: 1, Height: 1}, "new": sendbird.String("any type will do"),
	}
	with := func(name string, v sendbird.Value) sendbird.Variables {
		m := sendbird.Variables{name: v}
		for k, old := range good {
			if k != name {
				m[k] = old
			}
		}
		return m
	}
	without := with("name", nil)
	delete(without, "name")
	for _, tc := range []struct {
		v    sendbird.Variables
		want string
	}{
		{good, ""},
		{without, `no "name", but template "sale" needs it`},
		{nil, `no "name"`},
		{with("photo", sendbird.String("x")), `"photo": of type string, but template "sale" has it as image`},
		{with("extra", sendbird.String("x")), `a "extra", but template "sale" has no such variable`},
	} {
		n := one()
		n.Variables = map[string]sendbird.Variables{person: tc.v}
		err := n.CheckAgainst(tmpl)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("got %v, want %q", err, tc.want)
		}
	}
	n := one()
	if err := n.CheckAgainst(sendbird.Template{Key: "sale"}); err != nil {
		t.Errorf("a template without a list refuses: %v", err)
	}
	if err := sendbird.CheckCSV(tmpl); err == nil || !strings.Contains(err.Error(), `"photo": of type image, but a CSV file carries strings only`) {
		t.Errorf("an image by file: %v", err)
	}
}

func TestTemplatesAsTheyCome(t *testing.T) {
	resource := `{"key":"sale","name":"Sale","is_archived":true,"created_at":1714374338539,"updated_at":1714374338,"version":3,
		"channels":[{"key":"push","type":"push","name":"Push","content":{"title":"x"}}],"variable_schema":[{"key":"name","type":"String","name":"Name"}],"sequence":{}}`
	for _, tc := range []struct {
		body     string
		keys     string
		readable bool
		next     string
	}{
		{`{"templates":[` + resource + `],"next":"abc"}`, "sale", true, "abc"},
		{`{"results":[` + resource + `]}`, "sale", true, ""},
		{`[` + resource + `,{"key":"id","template_key":"second"}]`, "sale second", true, ""},
		{`{"templates":[]}`, "", true, ""},
		{`{"templates":[{"key":"odd","version":"three"}],"next":null}`, "odd", true, ""},
		{`{"templates":[{"name":"no key"}],"next":"abc"}`, "", false, ""},
		{`{"something":"else"}`, "", false, ""},
		{`"text"`, "", false, ""},
	} {
		s, c := fake(t)
		s.Script(sendbirdtest.Templates, sendbirdtest.Status(200, nil, tc.body))
		page, err := c.Templates(t.Context(), "")
		if err != nil {
			t.Errorf("%s: %v", tc.body, err)
			continue
		}
		var keys []string
		for _, tmpl := range page.Templates {
			keys = append(keys, tmpl.Key)
		}
		if strings.Join(keys, " ") != tc.keys || page.Readable != tc.readable || page.Next != tc.next || string(page.Raw) != tc.body {
			t.Errorf("%s: got %v, readable %v, next %q, raw %s", tc.body, keys, page.Readable, page.Next, page.Raw)
		}
	}
	s, c := fake(t)
	s.Script(sendbirdtest.Templates, sendbirdtest.Status(200, nil, resource))
	got, err := c.Template(t.Context(), "sale")
	want := sendbird.Template{
		Key: "sale", Name: "Sale", IsArchived: true, Version: 3,
		CreatedAt: sendbird.Time{Time: time.UnixMilli(1714374338539).UTC()}, UpdatedAt: sendbird.Time{Time: time.Unix(1714374338, 0).UTC()},
		Channels:  []sendbird.Channel{{Key: "push", Type: "push", Name: "Push"}},
		Variables: []sendbird.Variable{{Key: "name", Type: sendbird.KindString, Name: "Name"}},
		Raw:       jsontext.Value(resource),
	}
	if diff := cmp.Diff(want, got, cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".understood" }, cmp.Ignore())); diff != "" || err != nil || !got.Understood() {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	s.Script(sendbirdtest.Templates, sendbirdtest.Status(200, nil, `["what"]`))
	if got, err = c.Template(t.Context(), "sale"); err != nil || got.Understood() || got.Key != "sale" || string(got.Raw) != `["what"]` {
		t.Errorf("got %+v, %v", got, err)
	}
}
