package main

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/birdtap/birdtap/sendbird"
	"github.com/birdtap/birdtap/sendbird/sendbirdtest"
)

// sendbirdFake starts a Sendbird, and returns the environment of its users.
func sendbirdFake(t *testing.T) (*sendbirdtest.Server, []string) {
	t.Helper()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s, err := sendbirdtest.Start("127.0.0.1:0", sendbirdtest.Options{Token: marker, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, []string{
		"BIRDTAP_SENDBIRD_NOTIFICATIONS_URL=" + s.URL(),
		"BIRDTAP_SENDBIRD_NOTIFICATIONS_TOKEN=" + marker,
		"BIRDTAP_SENDBIRD_UPLOAD_HOSTS=" + s.Addr(),
	}
}

func TestFilesAreListed(t *testing.T) {
	s, environ := sendbirdFake(t)
	if got := birdtap(t, environ, "files"); got.code != exitDone || got.out != "" || got.err != "0 files\n" {
		t.Errorf("none: %+v", got)
	}
	cfg := load(t, environ)
	c, err := sendbird.New(cfg.sendbirdConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i, key := range []string{"first", "second"} {
		p, err := c.Presign(t.Context(), key, false)
		if err == nil {
			content := bytes.Repeat([]byte("user_id\n"), 500*i+1)
			err = c.Upload(t.Context(), p, bytes.NewReader(content), int64(len(content)))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	got := birdtap(t, environ, "files")
	want := `FILE    BYTES  UPLOADED              EXPIRES
first   8      2026-01-02T03:04:05Z  2026-02-01T03:04:05Z
second  4,008  2026-01-02T03:04:05Z  2026-02-01T03:04:05Z
`
	if got.code != exitDone || got.out != want || got.err != "2 files\n" {
		t.Errorf("code %d, stderr %q\n%s", got.code, got.err, got.out)
	}
	got = birdtap(t, environ, "files", "--json")
	want = `{"file_key":"first","file_size":8,"uploaded_at":"2026-01-02T03:04:05Z","expires_at":"2026-02-01T03:04:05Z"}
{"file_key":"second","file_size":4008,"uploaded_at":"2026-01-02T03:04:05Z","expires_at":"2026-02-01T03:04:05Z"}
`
	if got.code != exitDone || got.out != want || got.err != "" {
		t.Errorf("code %d, stderr %q\n%s", got.code, got.err, got.out)
	}
	// What Sendbird writes does not reach the terminal as it is.
	s.Script(sendbirdtest.Files, sendbirdtest.Status(200, nil, `{"files":[{"file_key":"a\u001b[31m\nb","file_size":-1,"expires_at":"odd"}]}`))
	if got := birdtap(t, environ, "files"); got.code != exitDone || !strings.Contains(got.out, "a?[31m?b  0      -         -\n") {
		t.Errorf("%+v", got)
	}
}

func TestSendbirdCommandsNameWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	token := "BIRDTAP_SENDBIRD_NOTIFICATIONS_TOKEN=" + marker
	id := "BIRDTAP_SENDBIRD_APP_ID=AAAA-1"
	for _, args := range [][]string{{"files"}, {"files", "--json"}, {"templates"}, {"templates", "sale"}} {
		for _, tc := range []struct {
			environ []string
			want    string
		}{
			{nil, "BIRDTAP_SENDBIRD_APP_ID: is not set"},
			{[]string{token}, "BIRDTAP_SENDBIRD_APP_ID: is not set"},
			{[]string{id}, "BIRDTAP_SENDBIRD_NOTIFICATIONS_TOKEN: is not set"},
			{[]string{id, "BIRDTAP_SENDBIRD_NOTIFICATIONS_TOKEN="}, "BIRDTAP_SENDBIRD_NOTIFICATIONS_TOKEN: is not set"},
			{[]string{id, token, "BIRDTAP_SENDBIRD_NOTIFICATIONS_TOKEN_FILE=f"}, "BIRDTAP_SENDBIRD_NOTIFICATIONS_TOKEN_FILE="},
			{[]string{id, "BIRDTAP_SENDBIRD_NOTIFICATIONS_TOKEN_FILE=" + dir + "/missing"}, "BIRDTAP_SENDBIRD_NOTIFICATIONS_TOKEN_FILE="},
			{[]string{id, token + "\nx"}, "BIRDTAP_SENDBIRD_NOTIFICATIONS_TOKEN: must be text of one line"},
			{[]string{"BIRDTAP_SENDBIRD_APP_ID=a.evil.com/", token}, `BIRDTAP_SENDBIRD_APP_ID="a.evil.com/": must be`},
			{[]string{token, "BIRDTAP_SENDBIRD_NOTIFICATIONS_URL=https://u:" + marker + "@h"}, "BIRDTAP_SENDBIRD_NOTIFICATIONS_URL="},
		} {
			wantUsage(t, birdtap(t, tc.environ, args...), tc.want)
		}
	}
	wantUsage(t, birdtap(t, []string{id, token}, "files", "x"), "takes no argument")
	wantUsage(t, birdtap(t, []string{id, token}, "templates", "x", "y"), "takes one key at most")
	wantUsage(t, birdtap(t, []string{id, token}, "templates", ".."), "template key")
}

func TestSendbirdTokenMayStandInAFile(t *testing.T) {
	_, environ := sendbirdFake(t)
	file := filepath.Join(t.TempDir(), "token")
	writeFile(t, file, marker+"\n")
	environ[1] = "BIRDTAP_SENDBIRD_NOTIFICATIONS_TOKEN_FILE=" + file
	if got := birdtap(t, environ, "files"); got.code != exitDone {
		t.Errorf("%+v", got)
	}
}

// A refusal of Sendbird's is code 1, and names the variable to look at.
func TestSendbirdRefusalNamesTheVariable(t *testing.T) {
	s, environ := sendbirdFake(t)
	for _, tc := range []struct {
		does sendbirdtest.Behaviour
		want string
	}{
		{sendbirdtest.Error(400, 400401, marker), "code 400401: the API token is not valid for this application; look at BIRDTAP_SENDBIRD_NOTIFICATIONS_TOKEN (Chat's token is another one) and BIRDTAP_SENDBIRD_APP_ID"},
		{sendbirdtest.Error(400, 403100, marker), "look at BIRDTAP_SENDBIRD_NOTIFICATIONS_TOKEN\n"},
		{sendbirdtest.Error(400, 403101, marker), "Business Messaging is not turned on for this application; look at BIRDTAP_SENDBIRD_APP_ID\n"},
		{sendbirdtest.Status(404, nil, "<html>"), "answered 404 Not Found; look at BIRDTAP_SENDBIRD_NOTIFICATIONS_URL\n"},
		{sendbirdtest.Redirect("https://h/?" + marker), "answered 307"},
		{sendbirdtest.Error(500, 500901, marker), "code 500901"},
		{sendbirdtest.HTML(), "the answer is no JSON"},
		{sendbirdtest.ResetAfterBody(), "no answer"},
	} {
		for _, args := range [][]string{{"files"}, {"templates", "sale"}} {
			s.Script(sendbirdtest.Files, tc.does)
			s.Script(sendbirdtest.Templates, tc.does)
			got := birdtap(t, environ, args...)
			if got.code != exitFailed || got.out != "" || !strings.Contains(got.err, tc.want) || strings.Contains(got.err, marker) || strings.Count(got.err, "\n") != 1 {
				t.Errorf("%s: %+v", tc.want, got)
			}
			s.Normal()
		}
	}
}

// A daemon takes an environment that holds what other commands need.
func TestServeStartsWithSendbirdsVariables(t *testing.T) {
	_, environ := sendbirdFake(t)
	environ = append(environ, pair...)
	environ = append(environ, "BIRDTAP_SENDBIRD_APP_ID=AAAA-1", "BIRDTAP_HTTP_ADDR=127.0.0.1:0", "BIRDTAP_OPS_ADDR=127.0.0.1:0",
		"BIRDTAP_DATA_DIR="+filepath.Join(t.TempDir(), "data"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var words bytes.Buffer
	p := &program{in: strings.NewReader(""), out: &bytes.Buffer{}, err: until(&words, `"queue open"`, cancel), environ: environ}
	if code := p.run(ctx, []string{"serve"}); code != exitDone {
		t.Errorf("code %d, stderr %s", code, words.String())
	}
}

func TestSendbirdAddressComesFromTheApplication(t *testing.T) {
	for want, environ := range map[string][]string{
		"https://api-AAAA-1.notifications.sendbird.com": {"BIRDTAP_SENDBIRD_APP_ID=AAAA-1"},
		"https://proxy.example.com":                     {"BIRDTAP_SENDBIRD_APP_ID=AAAA-1", "BIRDTAP_SENDBIRD_NOTIFICATIONS_URL=https://proxy.example.com"},
		"":                                              nil,
	} {
		if got := string(load(t, environ).SendbirdNotificationsURL); got != want {
			t.Errorf("%v: %q, want %q", environ, got, want)
		}
	}
	plain := load(t, []string{"BIRDTAP_SENDBIRD_NOTIFICATIONS_URL=http://proxy.example.com"})
	if !strings.Contains(plainWarning("SENDBIRD_NOTIFICATIONS_URL", plain.SendbirdNotificationsURL), "plain http") {
		t.Error("plain http passes without a word")
	}
	if hosts := fmt.Sprint(load(t, nil).SendbirdUploadHosts); hosts != "[.amazonaws.com]" {
		t.Errorf("upload hosts %s", hosts)
	}
}
