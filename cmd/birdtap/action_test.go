package main

import (
	"bytes"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/birdtap/birdtap/sendbird/sendbirdtest"
)

const deskMarker = marker + "-desk"

// actionFake starts a Chat and a Desk, and returns the environment of their users.
func actionFake(t *testing.T) (*sendbirdtest.Server, []string) {
	t.Helper()
	s, err := sendbirdtest.Start("127.0.0.1:0", sendbirdtest.Options{ChatToken: marker, DeskToken: deskMarker, CustomerFields: []string{"plan"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, []string{
		"BIRDTAP_SENDBIRD_CHAT_URL=" + s.URL(), "BIRDTAP_SENDBIRD_API_TOKEN=" + marker,
		"BIRDTAP_SENDBIRD_DESK_URL=" + s.URL(), "BIRDTAP_SENDBIRD_DESK_TOKEN=" + deskMarker,
	}
}

// birdtapReading is birdtap with something on standard input.
func birdtapReading(t *testing.T, input string, environ []string, args ...string) result {
	t.Helper()
	var out, words bytes.Buffer
	p := &program{in: strings.NewReader(input), out: &out, err: &words, environ: environ}
	code := p.run(t.Context(), args)
	return result{code, out.String(), words.String()}
}

// A day with one user, as a shell would have it.
func TestActionsFromTheCommandLine(t *testing.T) {
	s, environ := actionFake(t)
	for _, step := range []struct {
		line  string // split at blanks; _ stands for one
		input string
		code  int
		out   string // that it holds
		err   string // that it holds; "": nothing
	}{
		{"user create jay", "", 2, "", "nickname: empty, but 1 to 80 characters"},
		{"user create jay --nickname Jay_B. --metadata plan=silver --discovery-key a --discovery-key b", "", 0, `"discovery_keys":["a","b"],"preferred_languages":[],"metadata":{"plan":"silver"}}`, ""},
		{"user create jay --nickname Jay", "", 1, "", `code 400202: exists already; Sendbird says: "user_id" violates unique constraint.`},
		{"user create kay --json - --nickname Kay --metadata a=1", `{"user_id":"else","nickname":"K","profile_url":"https://h/","metadata":{"a":"2","b":"2"}}`, 0, `{"user_id":"kay","nickname":"Kay","profile_url":"https://h/"`, ""},
		{"user get kay", "", 0, `"metadata":{"a":"1","b":"2"}}`, ""},
		{"user get nobody", "", 1, "", "get user: Sendbird answered 400, code 400201: no such resource"},
		{"user update jay --profile-url= --json -", `{"nickname":"J"}`, 0, `"nickname":"J","profile_url":""`, ""},
		{"user update jay", "", 2, "", "update: nothing to change"},
		{"user update jay --preferred-language en", "", 0, `"preferred_languages":["en"]`, ""},
		{"user deactivate jay", "", 0, `"is_active":false`, ""},
		{"user activate jay", "", 0, `"is_active":true`, ""},
		{"metadata update jay --set plan=gold --set city=a=b", "", 0, `{"city":"a=b","plan":"gold"}`, ""},
		{"metadata update jay --set new=1 --upsert=false", "", 0, "{}", ""},
		{"metadata update jay --json -", `{"metadata":{"new":"1"},"upsert":false}`, 0, "{}", ""},
		{"metadata update jay --json - --set c=d", `{"new":"1"}`, 0, `{"c":"d","new":"1"}`, ""},
		{"metadata update jay --set e=5 --set f=6", "", 1, "", "too many items; birdtap user get shows what is stored, birdtap metadata delete makes room"},
		{"metadata delete jay city", "", 0, "{}", ""},
		{"metadata delete jay", "", 2, "", "metadata delete needs a KEY, or --all"},
		{"metadata delete jay plan --all", "", 2, "", `not both: got "plan"`},
		{"metadata delete jay --all", "", 0, "{}", ""},
		{"customer create jay", "", 0, `{"id":1001,"sendbirdId":"jay"`, ""},
		{"customer create nobody", "", 1, "", "create customer: Sendbird answered 400, code user_not_found; Sendbird says: No such user in Chat."},
		{"customer get 1001", "", 0, `{"id":1001,"sendbirdId":"jay"`, ""},
		{"customer get --sendbird-id jay", "", 0, `{"id":1001,"sendbirdId":"jay"`, ""},
		{"customer get --sendbird-id nobody", "", 1, "", "there is no such customer"},
		{"customer get", "", 2, "", "needs an ID, or --sendbird-id"},
		{"customer get 1 --sendbird-id jay", "", 2, "", `not both: got "1"`},
		{"customer get jay", "", 2, "", `ID "jay": must be the customer's number`},
		{"customer fields 1001 --set plan=gold --set shoes=43", "", 0, `"customFields":[{"id":1,"key":"plan","value":"gold"}]}`, "Desk has ignored shoes"},
		{"customer fields 1001 --json -", `{"customFields":"{\"plan\":\"tin\"}"}`, 0, `"value":"tin"`, ""},
		{"customer fields 1001 --json -", `{"customFields":{"plan":"zinc"}}`, 0, `"value":"zinc"`, ""},
		{"customer fields 1001 --json -", `{"plan":"lead"}`, 0, `"value":"lead"`, ""},
		{"customer fields 0 --set a=b", "", 2, "", `ID "0"`},
		{"ticket create --customer-id 1001 --channel-name Lamp --priority HIGH --group-key g --field a=b --related-channel c --related-channel d", "", 0, `{"id":2001,"channelUrl":"sendbird_desk_2001","channelName":"Lamp"`, ""},
		{"ticket create --json - --channel-name Lamp", `{"channelName":"x","customerId":1001,"customFields":{"a":"b"},"relatedChannelUrls":"c,d"}`, 0, `{"id":2002`, ""},
		{"ticket create --json -", `{"channelName":"x","customerId":1001,"customFields":"{\"a\":\"b\"}","relatedChannelUrls":["c"]}`, 0, `{"id":2003`, ""},
		{"ticket create --channel-name Lamp", "", 2, "", "customerId: 0, but a positive number"},
		{"ticket create --channel-name Lamp --customer-id 1001 --priority high", "", 2, "", `priority: "high", but must be LOW, MEDIUM, HIGH or URGENT`},
		{"user delete jay", "", 0, "{}", ""},
		{"user delete jay", "", 1, "", "delete user: Sendbird answered 400, code 400201"},
		{"user get ..", "", 2, "", `user_id: ".."`},
	} {
		var args []string
		for word := range strings.FieldsSeq(step.line) {
			args = append(args, strings.ReplaceAll(word, "_", " "))
		}
		got := birdtapReading(t, step.input, environ, args...)
		if got.code != step.code || !strings.Contains(got.out, step.out) || !strings.Contains(got.err, step.err) || step.err == "" && got.err != "" ||
			strings.Contains(got.out+got.err, marker) {
			t.Errorf("%s: %+v", step.line, got)
		}
		if (got.out == "") != (step.code != 0) || strings.Count(got.out, "\n") > 1 || got.out != "" && json.Unmarshal([]byte(got.out), new(map[string]any)) != nil {
			t.Errorf("%s: stdout is no line of JSON: %q", step.line, got.out)
		}
	}
	if first, second := s.Tickets()[0], s.Tickets()[1]; first.GroupKey != "g" || first.Priority != "HIGH" || len(first.RelatedChannelURLs) != 2 ||
		second.ChannelName != "Lamp" || len(second.RelatedChannelURLs) != 2 || second.CustomFields["a"] != "b" {
		t.Errorf("tickets %+v", s.Tickets())
	}
}

func TestActionInputIsStrict(t *testing.T) {
	_, environ := actionFake(t)
	for _, tc := range []struct{ line, input, want string }{
		{"user create jay", `{"nickname":"x","nick":"hunter2"}`, `--json "-": /nick is no field of this command`},
		{"user create jay", `{"nickname":7}`, `--json "-": /nickname must be a string`},
		{"user create jay", `{"nickname":"x","metadata":{"a":1}}`, `/metadata/a must be a string`},
		{"user create jay", `{"nickname":"x","discovery_keys":"a"}`, `/discovery_keys must be a list of strings`},
		{"user create jay", `{"nickname":"x","nickname":"y"}`, `names /nickname twice`},
		{"user create jay", `{"nickname":"x"`, `is not valid JSON`},
		{"user create jay", `{"nickname":"x"} {}`, `is not valid JSON`},
		{"user create jay", ``, `is not valid JSON`},
		{"user create jay", `[]`, `is no JSON object`},
		{"user create jay", strings.Repeat(" ", 1<<20+1), `longer than 1 MiB`},
		{"user update jay", `{"metadata":{"a":"b"}}`, `/metadata is no field of this command; birdtap metadata update changes it`},
		{"user update jay", `{"is_active":"no"}`, `/is_active must be true or false`},
		{"user update jay", `{"last_seen_at":1.5}`, `/last_seen_at must be a whole number`},
		{"metadata update jay", `{"a":1}`, `/a must be a string`},
		{"metadata update jay", `{"metadata":{"a":"b"},"upsrt":true}`, `/upsrt is no field of this command`},
		{"metadata update jay", `{}`, `metadata: 0 items`},
		{"customer fields 1", `{"customFields":{"a":"b"},"x":1}`, `/x is no field of this command`},
		{"ticket create", `{"customerId":"7"}`, `/customerId must be a whole number`},
		{"metadata update jay", `{"metadata":{"a":1}}`, `/a must be a string`},
		{"metadata update jay", `{"metadata":[1]}`, `/metadata must be a string`},
		{"ticket create", `{"customFields":"{"}`, `/customFields must be an object of strings`},
		{"ticket create", `{"relatedChannelUrls":7}`, `/relatedChannelUrls must be a list of strings`},
	} {
		got := birdtapReading(t, tc.input, environ, append(strings.Fields(tc.line), "--json", "-")...)
		wantUsage(t, got, tc.want)
		if strings.Contains(got.err, "hunter2") {
			t.Errorf("shows a value: %s", got.err)
		}
	}
	for _, file := range []string{"", filepath.Join(t.TempDir(), "missing")} {
		wantUsage(t, birdtap(t, environ, "user", "create", "jay", "--json", file), "cannot read the file")
	}
	file := filepath.Join(t.TempDir(), "user.json")
	writeFile(t, file, `{"nickname":"Jay"}`)
	if got := birdtap(t, environ, "user", "create", "jay", "--json", file); got.code != exitDone {
		t.Errorf("%+v", got)
	}
}

// actionLines are all commands of Chat, and of Desk, each as it can be given.
var (
	chatLines = []string{
		"user create jay --nickname Jay", "user get jay", "user update jay --nickname J", "user delete jay", "user activate jay",
		"user deactivate jay", "metadata update jay --set a=b", "metadata delete jay a", "metadata delete jay --all",
	}
	deskLines = []string{
		"customer create jay", "customer get 1", "customer get --sendbird-id jay", "customer fields 1 --set a=b",
		"ticket create --customer-id 1 --channel-name Lamp",
	}
)

func TestDryRunSendsNothing(t *testing.T) {
	s, environ := actionFake(t)
	for i, line := range append(append([]string{}, chatLines...), deskLines...) {
		for _, with := range [][]string{environ, {environ[0], environ[2]}} { // without tokens, too
			got := birdtap(t, with, append(strings.Fields(line), "--dry-run")...)
			var request struct {
				Method, URL string
				Headers     map[string]string
				Body        map[string]any
			}
			if err := json.Unmarshal([]byte(got.out), &request, json.MatchCaseInsensitiveNames(true)); err != nil || got.code != exitDone || got.err != "" {
				t.Fatalf("%s: %+v, %v", line, got, err)
			}
			prefix := s.URL() + "/v3/users"
			if i >= len(chatLines) {
				prefix = s.URL() + "/platform/v1/"
			}
			hasBody := request.Method != "GET" && request.Method != "DELETE"
			if !strings.HasPrefix(request.URL, prefix) || len(request.Headers) != 2 || hasBody != (request.Body != nil) || strings.Contains(got.out, marker) {
				t.Errorf("%s: %s", line, got.out)
			}
		}
	}
	if n := len(s.Calls()); n > 0 {
		t.Errorf("%d calls were made", n)
	}
	got := birdtap(t, []string{"BIRDTAP_SENDBIRD_APP_ID=AAAA-1"}, "user", "deactivate", "a/b", "--dry-run")
	want := `{"method":"PUT","url":"https://api-AAAA-1.sendbird.com/v3/users/a%2Fb","headers":{"Content-Type":"application/json; charset=utf8","User-Agent":"birdtap"},` +
		`"body":{"is_active":false,"leave_all_when_deactivated":false}}` + "\n"
	if got.out != want {
		t.Errorf("got %s, want %s", got.out, want)
	}
	wantUsage(t, birdtap(t, environ, "user", "get", ".", "--dry-run"), "user_id")
}

func TestActionsNameWhatIsMissing(t *testing.T) {
	id := "BIRDTAP_SENDBIRD_APP_ID=AAAA-1"
	for name, lines := range map[string][]string{"API": chatLines, "DESK": deskLines} {
		for _, line := range lines {
			args := strings.Fields(line)
			wantUsage(t, birdtap(t, nil, args...), "BIRDTAP_SENDBIRD_APP_ID: is not set")
			wantUsage(t, birdtap(t, []string{id, "BIRDTAP_SENDBIRD_NOTIFICATIONS_TOKEN=x"}, args...), "BIRDTAP_SENDBIRD_"+name+"_TOKEN: is not set")
			wantUsage(t, birdtap(t, []string{id, "BIRDTAP_SENDBIRD_" + name + "_TOKEN=" + marker + "\nx"}, args...), "must be text of one line")
		}
	}
}

// A refusal of Sendbird's is code 1, says why in its words and ours, and names the
// variable to look at.
func TestActionRefusalsNameTheVariable(t *testing.T) {
	s, environ := actionFake(t)
	for _, tc := range []struct {
		does sendbirdtest.Behaviour
		want string
	}{
		{sendbirdtest.Error(400, 400401, "token "+marker+" unknown"), "code 400401: the API token is not valid for this application; look at BIRDTAP_SENDBIRD_API_TOKEN (the notifications token is another one) and BIRDTAP_SENDBIRD_APP_ID; Sendbird says: token <redacted> unknown\n"},
		{sendbirdtest.Error(400, 400304, ""), "look at BIRDTAP_SENDBIRD_APP_ID\n"},
		{sendbirdtest.Error(403, 403100, ""), "look at BIRDTAP_SENDBIRD_API_TOKEN\n"},
		{sendbirdtest.Error(400, 400111, "a\x1b[31m\nb"), "Sendbird says: a?[31m?b\n"},
		{sendbirdtest.Status(404, nil, "<html>"), "look at BIRDTAP_SENDBIRD_CHAT_URL\n"},
		{sendbirdtest.Redirect("https://h/"), "answered 307"},
	} {
		s.Script(sendbirdtest.GetUser, tc.does)
		got := birdtap(t, environ, "user", "get", "jay")
		if got.code != exitFailed || got.out != "" || !strings.Contains(got.err, tc.want) || strings.Contains(got.err, marker) || strings.Count(got.err, "\n") != 1 {
			t.Errorf("%s: %+v", tc.want, got)
		}
	}
	environ[3] = "BIRDTAP_SENDBIRD_DESK_TOKEN=wrong"
	if got := birdtap(t, environ, "customer", "get", "1"); got.code != exitFailed || !strings.Contains(got.err, "look at BIRDTAP_SENDBIRD_DESK_TOKEN; Sendbird says: Invalid token.\n") {
		t.Errorf("%+v", got)
	}
	// What Sendbird writes does not reach the terminal as it is.
	s.Script(sendbirdtest.GetUser, sendbirdtest.Status(200, nil, "{ \"user_id\" : \"a\u009b31m\",\n \"big\":9007199254740993 }"))
	if got := birdtap(t, environ, "user", "get", "jay"); got.out != `{"user_id":"a\u009b31m","big":9007199254740993}`+"\n" {
		t.Errorf("%+v", got)
	}
}

// What was not heard of is tried again, and said; a ticket is not.
func TestActionsAreTriedAgain(t *testing.T) {
	s, environ := actionFake(t)
	s.Script(sendbirdtest.CreateUser, sendbirdtest.ResetAfterBody())
	got := birdtap(t, environ, "user", "create", "jay", "--nickname", "Jay")
	if got.code != exitDone || !strings.Contains(got.out, `{"user_id":"jay"`) || !strings.Contains(got.err, "trying again in ") {
		t.Errorf("%+v", got)
	}
	if got := birdtap(t, environ, "customer", "create", "jay"); got.code != exitDone {
		t.Fatalf("%+v", got)
	}
	s.Script(sendbirdtest.CreateTicket, sendbirdtest.ResetAfterBody())
	got = birdtap(t, environ, "ticket", "create", "--customer-id", "1001", "--channel-name", "Lamp")
	if got.code != exitFailed || !strings.HasSuffix(got.err, "it may have been carried out: look in Desk before you create it again\n") || len(s.Tickets()) != 1 {
		t.Errorf("%+v, %d tickets", got, len(s.Tickets()))
	}
}

// Every command of Chat and Desk shows how it is given.
func TestActionsHaveExamples(t *testing.T) {
	everyCommand(func(c *cobra.Command) {
		path := pathOf(c)
		if len(path) == 0 || !slices.Contains([]string{"user", "metadata", "customer", "ticket"}, path[0]) {
			return
		}
		got := birdtap(t, nil, append(path, "--help")...)
		if !strings.Contains(got.out, "Examples:\n  ") || !strings.Contains(got.out, "birdtap "+path[0]) {
			t.Errorf("%v: no example in %s", path, got.out)
		}
	})
}

func TestActionCompletion(t *testing.T) {
	if values, files := offered(t, "ticket", "create", "--priority", "H"); len(values) != 1 || values[0] != "HIGH" || files {
		t.Errorf("offers %q, files %v", values, files)
	}
	for _, line := range []string{"user get ", "metadata update ", "metadata delete jay ", "customer get ", "customer fields ", "ticket create "} {
		if values, files := offered(t, strings.Split(line, " ")...); files {
			t.Errorf("%s: offers files beside %q", line, values)
		}
	}
	if _, files := offered(t, "user", "create", "jay", "--json", ""); !files {
		t.Error("--json offers no files")
	}
}

func TestChatAndDeskAddresses(t *testing.T) {
	c := load(t, []string{"BIRDTAP_SENDBIRD_APP_ID=AAAA-1"})
	if c.SendbirdChatURL != "https://api-AAAA-1.sendbird.com" || c.SendbirdDeskURL != "https://desk-api-AAAA-1.sendbird.com" {
		t.Errorf("%s, %s", c.SendbirdChatURL, c.SendbirdDeskURL)
	}
	c = load(t, []string{"BIRDTAP_SENDBIRD_APP_ID=AAAA-1", "BIRDTAP_SENDBIRD_CHAT_URL=http://proxy.example.com"})
	if !strings.HasPrefix(plainWarning("SENDBIRD_CHAT_URL", c.SendbirdChatURL), "BIRDTAP_SENDBIRD_CHAT_URL is plain http") || c.SendbirdDeskURL != "https://desk-api-AAAA-1.sendbird.com" {
		t.Errorf("%s, %s", c.SendbirdChatURL, c.SendbirdDeskURL)
	}
	_, environ := actionFake(t)
	file := filepath.Join(t.TempDir(), "token")
	writeFile(t, file, deskMarker+"\n")
	environ[3] = "BIRDTAP_SENDBIRD_DESK_TOKEN_FILE=" + file
	if got := birdtap(t, environ, "customer", "get", "--sendbird-id", "jay"); !strings.Contains(got.err, "there is no such customer") {
		t.Errorf("%+v", got)
	}
}
