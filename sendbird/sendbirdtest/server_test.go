package sendbirdtest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"go.uber.org/goleak"

	"github.com/birdtap/birdtap/sendbird/sendbirdtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const token = "0123456789abcdef82aa"

func start(t *testing.T, o sendbirdtest.Options) *sendbirdtest.Server {
	t.Helper()
	s, err := sendbirdtest.Start("127.0.0.1:0", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return s
}

// call makes one, and returns status, body and header.
func call(t *testing.T, method, url, body string, header ...string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json; charset=utf8")
	req.Header.Set("Api-Token", token)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

// compact is a documented example without its blanks.
func compact(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile("../testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	v := jsontext.Value(b)
	if err := v.Compact(); err != nil {
		t.Fatal(err)
	}
	return string(v)
}

const messages = "/v1/notifications/messages"

func TestAnswersAsDocumented(t *testing.T) {
	s := start(t, sendbirdtest.Options{Token: token, Now: func() time.Time { return time.UnixMilli(1714374338539) }})
	request := compact(t, "request-realtime.json")
	status, body, _ := call(t, "POST", s.URL()+messages, request)
	if status != 200 || body != compact(t, "answer-realtime.json") {
		t.Errorf("%d %s", status, body)
	}
	s = start(t, sendbirdtest.Options{Token: token, Now: func() time.Time { return time.UnixMilli(1714374338539) }})
	status, body, _ = call(t, "POST", s.URL()+messages, strings.Replace(request, "realtime", "batch", 1))
	if status != 200 || body != compact(t, "answer-batch.json") {
		t.Errorf("%d %s", status, body)
	}
	// A presigned answer has the documented members in the documented order.
	_, body, _ = call(t, "POST", s.URL()+"/v1/storage/targets_files/k/presigned_urls", `{}`)
	if got, want := names(t, body), names(t, compact(t, "answer-presigned.json")); !slices.Equal(got, want) {
		t.Errorf("presigned: %v, want %v", got, want)
	}
}

// names are all member names of a JSON text, in order.
func names(t *testing.T, text string) []string {
	t.Helper()
	d := jsontext.NewDecoder(strings.NewReader(text))
	var list []string
	for {
		token, err := d.ReadToken()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		if kind, n := d.StackIndex(d.StackDepth()); kind == jsontext.KindBeginObject && n%2 == 1 && token.Kind() == jsontext.KindString {
			list = append(list, token.String())
		}
	}
}

func TestRefusesWhatSendbirdRefuses(t *testing.T) {
	s := start(t, sendbirdtest.Options{Token: token})
	if err := s.AddTemplate(`{"key":"a","variable_schema":[{"key":"name","type":"string"}]}`); err != nil {
		t.Fatal(err)
	}
	many := func(n int) string { return `["x` + strings.Join(make([]string, n), `","x`) + `"]` }
	for _, tc := range []struct {
		body string
		code int
	}{
		{`{`, 400403},
		{`{"mode":"batch","targets":["u"]}`, 400105},
		{`{"template":{"key":"a"},"targets":["u"]}`, 400105},
		{`{"template":{"key":"a"},"mode":"multi","targets":["u"]}`, 400111},
		{`{"template":{"key":"a"},"mode":"batch"}`, 400105},
		{`{"template":{"key":"a"},"mode":"batch","targets":["u"],"priority":"urgent"}`, 400111},
		{`{"template":{"key":"a"},"mode":"realtime","targets":["u","v"]}`, 400111},
		{`{"template":{"key":"a"},"mode":"batch","targets":` + many(10_001) + `}`, 400111},
		{`{"template":{"key":"a","notification_push_data":{"1":"","2":"","3":"","4":"","5":"","6":""}},"mode":"batch","targets":["u"]}`, 400203},
		{`{"template":{"key":"b"},"mode":"batch","targets":["u"]}`, 400201},
		{`{"template":{"key":"a"},"mode":"batch","targets":["u"]}`, 400105},
		{`{"template":{"key":"a"},"mode":"batch","targets_filename":"none"}`, 400201},
		{`{"template":{"key":"a"},"mode":"realtime","targets_filename":"none"}`, 400111},
	} {
		status, body, _ := call(t, "POST", s.URL()+messages, tc.body)
		var got struct {
			Error bool
			Code  int
		}
		if json.Unmarshal([]byte(body), &got, json.MatchCaseInsensitiveNames(true)) != nil || status != 400 || !got.Error || got.Code != tc.code {
			t.Errorf("%.100s: %d %s, want %d", tc.body, status, body, tc.code)
		}
	}
	if status, body, _ := call(t, "POST", s.URL()+messages, "{}", "Api-Token", "wrong"); status != 400 || !strings.Contains(body, "400401") {
		t.Errorf("a bad token is 400 with 400401, got %d %s", status, body)
	}
	for path, want := range map[string]int{"/v2/x": 404, "/v1/templates/x/y": 400} {
		if status, _, _ := call(t, "GET", s.URL()+path, ""); status != want {
			t.Errorf("%s: %d, want %d", path, status, want)
		}
	}
	if status, _, _ := call(t, "GET", s.URL()+messages, ""); status != 405 {
		t.Errorf("GET: %d", status)
	}
	if n := s.Counts().Notifications; n != 0 {
		t.Errorf("%d carried out", n)
	}
}

func TestRateLimitTellsOfItself(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	s := start(t, sendbirdtest.Options{Limit: 2, Window: time.Minute, Now: func() time.Time { return now }})
	body := `{"template":{"key":"a"},"mode":"realtime","targets":["u"]}`
	for i, want := range []struct {
		status          int
		remaining, wait string
	}{{200, "1", ""}, {200, "0", ""}, {429, "0", "60"}} {
		status, answer, h := call(t, "POST", s.URL()+messages, body)
		if status != want.status || h.Get("X-RateLimit-Limit") != "2;w=60" || h.Get("X-RateLimit-Remaining") != want.remaining ||
			h.Get("X-RateLimit-Reset") != "1700000060" || h.Get("X-RateLimit-RetryAfter") != want.wait {
			t.Errorf("call %d: %d %s %v", i+1, status, answer, h)
		}
	}
	now = now.Add(time.Minute)
	if status, _, _ := call(t, "POST", s.URL()+messages, body); status != 200 {
		t.Errorf("in the next window: %d", status)
	}
	if c := s.Counts(); c.TooMany != 1 || c.Notifications != 3 || s.Delivered("u") != 3 {
		t.Errorf("%+v", c)
	}
}

// permission asks for a presigned upload.
func permission(t *testing.T, s *sendbirdtest.Server, key string) (string, [][2]string) {
	t.Helper()
	_, body, _ := call(t, "POST", s.URL()+"/v1/storage/targets_files/"+key+"/presigned_urls", `{}`)
	var a struct {
		URL    string            `json:"url"`
		Fields map[string]string `json:"fields"`
	}
	if err := json.Unmarshal([]byte(body), &a); err != nil {
		t.Fatal(err)
	}
	var fields [][2]string
	for _, name := range names(t, body)[2:10] {
		fields = append(fields, [2]string{name, a.Fields[name]})
	}
	return a.URL, fields
}

// upload sends parts in the order given; "file" is the file.
func upload(t *testing.T, url string, parts [][2]string, fileType string) (int, string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for _, p := range parts {
		h := textproto.MIMEHeader{"Content-Disposition": {fmt.Sprintf(`form-data; name="%s"`, p[0])}}
		if p[0] == "file" {
			h.Set("Content-Type", fileType)
		}
		part, err := w.CreatePart(h)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(part, p[1])
	}
	_ = w.Close()
	status, body, _ := call(t, "POST", url, b.String(), "Content-Type", w.FormDataContentType())
	return status, body
}

func TestUploadHostIsStrict(t *testing.T) {
	s := start(t, sendbirdtest.Options{})
	content := [2]string{"file", "user_id,name\nu1,a\nu2,b\n"}
	to, fields := permission(t, s, "k")
	swapped := slices.Clone(fields)
	swapped[0], swapped[1] = swapped[1], swapped[0]
	forged := slices.Clone(fields)
	forged[2][1] += "x"
	for name, tc := range map[string]struct {
		parts    [][2]string
		fileType string
		want     string
	}{
		"no file":        {fields, "text/csv", "MalformedPOSTRequest"},
		"file first":     {append([][2]string{content}, fields...), "text/csv", "MalformedPOSTRequest"},
		"another order":  {append(swapped, content), "text/csv", "AccessDenied"},
		"another key":    {append(slices.Clone(forged), content), "text/csv", "AccessDenied"},
		"a field less":   {append(slices.Clone(fields[1:]), content), "text/csv", "AccessDenied"},
		"no signature":   {append(slices.Clone(fields[:7]), content), "text/csv", "SignatureDoesNotMatch"},
		"another type":   {append(slices.Clone(fields), content), "text/plain", "AccessDenied"},
		"two files":      {append(slices.Clone(fields), content, content), "text/csv", "MalformedPOSTRequest"},
		"file, no field": {[][2]string{content}, "text/csv", "SignatureDoesNotMatch"},
	} {
		if status, body := upload(t, to, tc.parts, tc.fileType); status < 400 || !strings.Contains(body, "<Code>"+tc.want+"</Code>") {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	if _, ok := s.File("k"); ok || s.Counts().Uploads != 0 {
		t.Error("something was stored")
	}
	to, fields = permission(t, s, "k")
	whole := append(slices.Clone(fields), content)
	if status, body := upload(t, to, whole, "text/csv"); status != 204 || body != "" {
		t.Errorf("in order: %d %s", status, body)
	}
	if status, _ := upload(t, to, whole, "text/csv"); status != 403 {
		t.Errorf("a second time: %d", status)
	}
	if f, ok := s.File("k"); !ok || string(f.Content) != content[1] {
		t.Errorf("%+v", f)
	}
	if c := s.Counts(); c.TokensLeaked != c.Calls-2 { // call() sets the token everywhere
		t.Errorf("%+v", c)
	}
	status, body, _ := call(t, "POST", s.URL()+messages, `{"template":{"key":"a"},"mode":"batch","targets_filename":"k"}`)
	if status != 200 || s.Delivered("u1") != 1 || s.Delivered("u2") != 1 || len(s.Deliveries()) != 2 {
		t.Errorf("%d %s, %v", status, body, s.Deliveries())
	}
	if n := s.Notifications(); len(n) != 1 || n[0].File != "k" || string(n[0].Variables["u2"]["name"]) != `"b"` {
		t.Errorf("%+v", n)
	}
}

func TestScriptedAnswersComeInOrder(t *testing.T) {
	s := start(t, sendbirdtest.Options{})
	body := `{"template":{"key":"a"},"mode":"realtime","targets":["u"]}`
	s.Script(sendbirdtest.Messages, sendbirdtest.Error(200, 400111, "x"), sendbirdtest.PartialSuccess(207))
	s.Always(sendbirdtest.Messages, sendbirdtest.Status(503, nil, ""))
	var got []int
	for range 4 {
		status, _, _ := call(t, "POST", s.URL()+messages, body)
		got = append(got, status)
	}
	s.Normal()
	s.Judge(func(n sendbirdtest.Notification) int {
		if n.Users[0] == "u" {
			return 400301
		}
		return 0
	})
	status, _, _ := call(t, "POST", s.URL()+messages, body)
	got = append(got, status)
	if want := []int{200, 207, 503, 503, 400}; !slices.Equal(got, want) || s.Delivered("u") != 1 || s.Pending(sendbirdtest.Messages) != 0 {
		t.Errorf("got %v, want %v; delivered %d", got, want, s.Delivered("u"))
	}
	var did []string
	for _, c := range s.Calls() {
		did = append(did, c.Did)
	}
	if want := []string{"status", "partial_success", "status", "status", "normal"}; !slices.Equal(did, want) {
		t.Errorf("log %v", did)
	}
}

func TestMemoryCanBeBounded(t *testing.T) {
	s := start(t, sendbirdtest.Options{KeepLast: 5})
	for range 20 {
		if status, _, _ := call(t, "POST", s.URL()+messages, `{"template":{"key":"a"},"mode":"realtime","targets":["u"]}`); status != 200 {
			t.Fatal(status)
		}
	}
	calls, notices := s.Calls(), s.Notifications()
	if n := len(calls); n < 5 || n >= 10 || calls[n-1].Index != 20 || s.Delivered("u") != 20 {
		t.Errorf("%d calls, %d delivered", n, s.Delivered("u"))
	}
	if n := len(notices); n < 5 || n >= 10 || notices[n-1].ID == notices[n-2].ID {
		t.Errorf("%d notifications", n)
	}
}

func TestWaitAndRelease(t *testing.T) {
	s := start(t, sendbirdtest.Options{})
	s.Script(sendbirdtest.Messages, sendbirdtest.Hang())
	told := make(chan string, 1)
	s.OnNotification(func(n sendbirdtest.Notification) { told <- n.Users[0] })
	done := make(chan error, 1)
	go func() {
		resp, err := http.Post(s.URL()+messages, "application/json", strings.NewReader(`{"template":{"key":"a"},"mode":"realtime","targets":["u"]}`))
		if err == nil {
			_ = resp.Body.Close()
		}
		done <- err
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := s.Wait(ctx, func(c sendbirdtest.Counts) bool { return c.Notifications == 1 }); err != nil {
		t.Fatal(err)
	}
	if <-told != "u" {
		t.Error("another user")
	}
	s.Release()
	if err := <-done; err == nil {
		t.Error("an answer came")
	}
}
