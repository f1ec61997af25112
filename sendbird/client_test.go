package sendbird_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/birdtap/birdtap/sendbird"
	"github.com/birdtap/birdtap/sendbird/sendbirdtest"
)

const (
	token  = "hunter2-notifications-token-82aa"
	person = "jane.doe@example.com"
	// signedQuery is a presigned URL's, which no error may show.
	signedQuery = "X-Amz-Signature=hunter2-signed"
)

// fake starts a Sendbird and a client of it.
func fake(t testing.TB, opts ...sendbird.Option) (*sendbirdtest.Server, *sendbird.Client) {
	t.Helper()
	return fakeWith(t, sendbirdtest.Options{Token: token}, opts...)
}

func fakeWith(t testing.TB, o sendbirdtest.Options, opts ...sendbird.Option) (*sendbirdtest.Server, *sendbird.Client) {
	t.Helper()
	s, err := sendbirdtest.Start("127.0.0.1:0", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, client(t, s.URL(), opts...)
}

// client allows uploads to the host of the URL itself.
func client(t testing.TB, base string, opts ...sendbird.Option) *sendbird.Client {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	c, err := sendbird.New(sendbird.Config{
		NotificationsURL: base, NotificationsToken: func() string { return token },
		UploadHosts: []string{u.Host}, Timeout: 10 * time.Second,
	}, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// one is a notification in order.
func one() sendbird.Notification {
	return sendbird.Notification{
		Template: "sale", Mode: sendbird.Realtime, Targets: []string{person},
		Variables: map[string]sendbird.Variables{person: {"name": sendbird.String("Jane Doe")}},
		Title:     "Sale", Tag: "sales",
	}
}

// quiet fails if an error shows what no error may show.
func quiet(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	for _, text := range []string{err.Error(), fmt.Sprintf("%v %+v %s", err, err, err)} {
		for _, secret := range []string{token, "hunter2", person, "jane", "Jane", "X-Amz", "policy", "?"} {
			if strings.Contains(text, secret) {
				t.Errorf("error %q shows %q", text, secret)
			}
		}
	}
}

func TestCallAsDocumented(t *testing.T) {
	var got *http.Request
	var sent []byte
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r
		sent, _ = io.ReadAll(r.Body)
		_, _ = io.WriteString(w, `{"notification_id":"1"}`)
	}))
	defer srv.Close()
	secret := "first"
	c, err := sendbird.New(sendbird.Config{NotificationsURL: srv.URL + "/proxy/", NotificationsToken: func() string { return secret }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, secret = range []string{"first", "second"} {
		if _, err := c.Send(t.Context(), one()); err != nil {
			t.Fatal(err)
		}
		for name, value := range map[string]string{
			"Api-Token": secret, "Content-Type": "application/json; charset=utf8", "Accept-Encoding": "", "User-Agent": "birdtap",
		} {
			if v := got.Header.Get(name); v != value {
				t.Errorf("%s: %q, want %q", name, v, value)
			}
		}
		if got.Method != http.MethodPost || got.URL.String() != "/proxy/v1/notifications/messages" {
			t.Errorf("%s %s", got.Method, got.URL)
		}
		if got.ContentLength != int64(len(sent)) || len(got.TransferEncoding) > 0 {
			t.Errorf("length %d of %d bytes, %q", got.ContentLength, len(sent), got.TransferEncoding)
		}
		all := fmt.Sprint(got.URL, string(sent))
		for name, values := range got.Header {
			if name != "Api-Token" {
				all += fmt.Sprint(values)
			}
		}
		if strings.Contains(all, secret) {
			t.Error("the token stands elsewhere than in its header")
		}
	}
}

func TestKeysAreEscapedInPaths(t *testing.T) {
	s, c := fake(t)
	if err := s.AddTemplate(`{"key":"a/b ?#%../c"}`); err != nil {
		t.Fatal(err)
	}
	got, err := c.Template(t.Context(), "a/b ?#%../c")
	if err != nil || got.Key != "a/b ?#%../c" {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, key := range []string{"", ".", "..", "a\nb", "\xff"} {
		if _, err := c.Template(t.Context(), key); sendbird.OutcomeOf(err) != sendbird.Refused || err == nil {
			t.Errorf("%q: got %v", key, err)
		}
	}
	if n := len(s.Calls()); n != 1 {
		t.Errorf("%d calls, want 1", n)
	}
}

// What a call leaves behind when something goes wrong, over the wire. No fault
// makes the client send twice.
func TestOutcomeOfEveryFault(t *testing.T) {
	s, _ := fake(t)
	for name, tc := range map[string]struct {
		does sendbirdtest.Behaviour
		want sendbird.Outcome
		done int // notifications carried out
	}{
		"refused":                {sendbirdtest.Error(400, 400111, person+" hunter2"), sendbird.Refused, 0},
		"bad token":              {sendbirdtest.Error(400, 400401, "hunter2"), sendbird.Refused, 0},
		"no permission":          {sendbirdtest.Error(400, 403100, ""), sendbird.Refused, 0},
		"error within a 200":     {sendbirdtest.Error(200, 400301, person), sendbird.Refused, 0},
		"busy within a 200":      {sendbirdtest.Error(200, 500901, ""), sendbird.Later, 0},
		"partial, 200":           {sendbirdtest.PartialSuccess(200), sendbird.Partial, 1},
		"partial, 207":           {sendbirdtest.PartialSuccess(207), sendbird.Partial, 1},
		"partial, 400":           {sendbirdtest.PartialSuccess(400), sendbird.Partial, 1},
		"207 without a word":     {sendbirdtest.Status(207, nil, "{}").Taking(), sendbird.Partial, 1},
		"too many":               {sendbirdtest.TooMany(3 * time.Second), sendbird.Later, 0},
		"429 by a proxy":         {sendbirdtest.Status(429, nil, "slow down"), sendbird.Later, 0},
		"500 with an error body": {sendbirdtest.Error(500, 500601, person), sendbird.Later, 0},
		"500 without":            {sendbirdtest.Status(500, nil, "oops").Taking(), sendbird.Unknown, 1},
		"503 without":            {sendbirdtest.Status(503, nil, ""), sendbird.Unknown, 0},
		"502 page":               {sendbirdtest.Status(502, nil, "<html>hunter2").Taking(), sendbird.Unknown, 1},
		"403 page":               {sendbirdtest.Status(403, nil, "<html>"), sendbird.Refused, 0},
		"408":                    {sendbirdtest.Status(408, nil, ""), sendbird.Unknown, 0},
		"redirect":               {sendbirdtest.Redirect(s.URL() + "/v1/notifications/messages?" + signedQuery), sendbird.Unknown, 0},
		"page":                   {sendbirdtest.HTML(), sendbird.Unknown, 0},
		"empty object":           {sendbirdtest.Status(200, nil, "{}").Taking(), sendbird.Unknown, 1},
		"nothing":                {sendbirdtest.Status(200, nil, "").Taking(), sendbird.Unknown, 1},
		"packed":                 {sendbirdtest.Status(200, http.Header{"Content-Encoding": {"gzip"}}, "x"), sendbird.Unknown, 0},
		"deep":                   {sendbirdtest.Status(200, nil, strings.Repeat(`{"a":`, 65)+"1"+strings.Repeat("}", 65)), sendbird.Unknown, 0},
		"duplicate names":        {sendbirdtest.Status(200, nil, `{"notification_id":"1","notification_id":"2"}`), sendbird.Unknown, 0},
		"huge":                   {sendbirdtest.Huge(1 << 30), sendbird.Unknown, 0},
		"cut JSON":               {sendbirdtest.CutJSON(), sendbird.Unknown, 1},
		"cut off":                {sendbirdtest.CutOff(), sendbird.Unknown, 1},
		"reset before the body":  {sendbirdtest.ResetBeforeBody(), sendbird.Unknown, 0},
		"reset after the body":   {sendbirdtest.ResetAfterBody(), sendbird.Unknown, 1},
		"closed after the body":  {sendbirdtest.CloseAfterBody(), sendbird.Unknown, 1},
	} {
		t.Run(name, func(t *testing.T) {
			before := s.Counts()
			s.Script(sendbirdtest.Messages, tc.does)
			_, err := client(t, s.URL()).Send(t.Context(), one())
			quiet(t, err)
			if err == nil || sendbird.OutcomeOf(err) != tc.want {
				t.Errorf("got %v (%v), want %v", err, sendbird.OutcomeOf(err), tc.want)
			}
			if got := sendbird.OutcomeOf(fmt.Errorf("wrapped: %w", err)); got != tc.want {
				t.Errorf("wrapped: %v", got)
			}
			after := s.Counts()
			if calls, done := after.Calls-before.Calls, after.Notifications-before.Notifications; calls != 1 || done != tc.done {
				t.Errorf("%d calls, %d carried out; want 1 and %d", calls, done, tc.done)
			}
			if tc.done > 0 && tc.want.NothingDone() {
				t.Error("something was done, and the outcome denies it")
			}
		})
	}
	for name, does := range map[string]sendbirdtest.Behaviour{
		"slow bytes": sendbirdtest.SlowBytes(time.Microsecond), "delay": sendbirdtest.Delay(time.Microsecond),
	} {
		s.Script(sendbirdtest.Messages, does)
		if _, err := client(t, s.URL()).Send(t.Context(), one()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTimeoutAfterSendingIsUnknown(t *testing.T) {
	s, c := fake(t)
	ctx, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	s.Script(sendbirdtest.Messages, sendbirdtest.Hang(), sendbirdtest.Hang())
	done := make(chan error, 1)
	go func() {
		_, err := c.Send(ctx, one())
		done <- err
	}()
	if err := s.Wait(t.Context(), func(c sendbirdtest.Counts) bool { return c.Notifications == 1 }); err != nil {
		t.Fatal(err)
	}
	giveUp()
	err := <-done
	quiet(t, err)
	if sendbird.OutcomeOf(err) != sendbird.Unknown || !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v, %v", err, sendbird.OutcomeOf(err))
	}

	// And the client's own deadline. It is long enough to connect on a busy machine.
	hasty, err := sendbird.New(sendbird.Config{
		NotificationsURL: s.URL(), NotificationsToken: func() string { return token }, Timeout: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer hasty.Close()
	_, err = hasty.Send(t.Context(), one())
	quiet(t, err)
	if sendbird.OutcomeOf(err) != sendbird.Unknown || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("timeout: %v, %v", err, sendbird.OutcomeOf(err))
	}
	if n := s.Delivered(person); n != 2 {
		t.Errorf("delivered %d times: the fake is to have taken both", n)
	}
}

func TestNoConnectionMeansNothingSent(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := "http://" + l.Addr().String()
	_ = l.Close()

	var calls atomic.Int32
	secure := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls.Add(1) }))
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	defer secure.Close()
	old := httptest.NewUnstartedServer(secure.Config.Handler)
	old.Config.ErrorLog = log.New(io.Discard, "", 0)
	old.TLS = &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}
	old.StartTLS()
	defer old.Close()
	plain := httptest.NewServer(secure.Config.Handler)
	defer plain.Close()

	for name, base := range map[string]string{
		"nobody listens": gone, "unknown certificate": secure.URL, "TLS 1.1": old.URL,
		"plain where TLS was wanted": strings.Replace(plain.URL, "http:", "https:", 1),
	} {
		_, err := client(t, base).Send(t.Context(), one())
		quiet(t, err)
		if err == nil || sendbird.OutcomeOf(err) != sendbird.Later {
			t.Errorf("%s: %v (%v), want later", name, err, sendbird.OutcomeOf(err))
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := client(t, plain.URL).Send(ctx, one()); sendbird.OutcomeOf(err) != sendbird.Later || !errors.Is(err, context.Canceled) {
		t.Errorf("given up before it began: %v (%v)", err, sendbird.OutcomeOf(err))
	}
	if calls.Load() != 0 {
		t.Errorf("%d calls came through", calls.Load())
	}
}

// A transport that never tells how far it got proves nothing.
func TestStrangeTransportIsUnknown(t *testing.T) {
	_, c := fake(t, sendbird.WithTransport(failing{}))
	_, err := c.Send(t.Context(), one())
	quiet(t, err)
	if sendbird.OutcomeOf(err) != sendbird.Unknown {
		t.Errorf("got %v, %v", err, sendbird.OutcomeOf(err))
	}
}

type failing struct{}

func (failing) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, fmt.Errorf("proxy said %s about %s?%s", token, person, signedQuery)
}

func TestAnErrorTellsWhatItKnows(t *testing.T) {
	s, c := fake(t)
	s.Script(sendbirdtest.Messages, sendbirdtest.Error(400, 400301, person+" is nobody"))
	_, err := c.Send(t.Context(), one())
	quiet(t, err)
	refused, ok := errors.AsType[*sendbird.APIError](err)
	if !ok || refused.Status != 400 || refused.Code != 400301 || refused.Message != person+" is nobody" || refused.RetryAfter != 0 {
		t.Fatalf("got %#v", err)
	}
	if want := "send notification: Sendbird answered 400, code 400301: no such user"; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	s.Script(sendbirdtest.Messages, sendbirdtest.TooMany(7*time.Second))
	_, err = c.Send(t.Context(), one())
	if busy, ok := errors.AsType[*sendbird.APIError](err); !ok || busy.Code != sendbird.CodeTooManyRequests || busy.RetryAfter != 7*time.Second {
		t.Errorf("got %#v", err)
	}
}

func TestBadTokenIsNamed(t *testing.T) {
	s, _ := fake(t)
	c, err := sendbird.New(sendbird.Config{NotificationsURL: s.URL(), NotificationsToken: func() string { return "hunter2-wrong" }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Send(t.Context(), one())
	quiet(t, err)
	if refused, ok := errors.AsType[*sendbird.APIError](err); !ok || refused.Code != sendbird.CodeBadToken {
		t.Errorf("got %v", err)
	}
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	ok := func() string { return token }
	for name, cfg := range map[string]sendbird.Config{
		"nothing":                {},
		"no address":             {NotificationsToken: ok},
		"no token":               {AppID: "APP"},
		"id that is a host":      {AppID: "x.evil.com/hunter2", NotificationsToken: ok},
		"no scheme":              {NotificationsURL: "hunter2.example.com", NotificationsToken: ok},
		"credentials":            {NotificationsURL: "https://u:hunter2@h", NotificationsToken: ok},
		"query":                  {NotificationsURL: "https://h?hunter2", NotificationsToken: ok},
		"not parseable":          {NotificationsURL: "https://hunter2\x00", NotificationsToken: ok},
		"upload to everywhere":   {AppID: "APP", NotificationsToken: ok, UploadHosts: []string{"."}},
		"upload to a whole TLD":  {AppID: "APP", NotificationsToken: ok, UploadHosts: []string{".com"}},
		"upload host as address": {AppID: "APP", NotificationsToken: ok, UploadHosts: []string{"https://h/x"}},
	} {
		c, err := sendbird.New(cfg)
		quiet(t, err)
		if err == nil || c != nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := sendbird.New(sendbird.Config{AppID: "APP", NotificationsToken: ok}, sendbird.WithTransport(nil)); err == nil {
		t.Error("no transport: taken")
	}
	if got, err := sendbird.NotificationsURL("AAAA-1"); err != nil || got != "https://api-AAAA-1.notifications.sendbird.com" {
		t.Errorf("got %s, %v", got, err)
	}
}

// One test for all calls: whatever goes wrong, no error shows a token, a person, a
// presigned address or what the other side wrote.
func TestNoErrorShowsASecret(t *testing.T) {
	s, _ := fakeWith(t, sendbirdtest.Options{Token: token})
	signed := s.URL() + "/?" + signedQuery
	loud := `{"message":"` + token + " " + person + " " + signed + `","code":400111,"error":true}`
	ask := http.Header{"Location": {signed}, "Retry-After": {"1"}}
	for _, does := range []sendbirdtest.Behaviour{
		sendbirdtest.Status(400, ask, loud), sendbirdtest.Status(200, ask, loud), sendbirdtest.Status(500, ask, loud),
		sendbirdtest.Status(302, ask, loud), sendbirdtest.Status(200, ask, `{"url":"`+signed), sendbirdtest.Status(403, ask, "<Code>AccessDenied</Code>"+loud),
		sendbirdtest.Status(403, ask, "<Code>hunter2</Code>"), sendbirdtest.HTML(), sendbirdtest.CutOff(), sendbirdtest.ResetAfterBody(), sendbirdtest.ResetBeforeBody(),
	} {
		for _, at := range []sendbirdtest.Endpoint{sendbirdtest.Messages, sendbirdtest.Presign, sendbirdtest.Upload, sendbirdtest.Files, sendbirdtest.Templates} {
			s.Always(at, does)
		}
		c := client(t, s.URL())
		_, err := c.Send(t.Context(), one())
		quiet(t, err)
		_, err = c.Presign(t.Context(), "key", false)
		quiet(t, err)
		_, err = c.ListFiles(t.Context(), "hunter2?", 0)
		quiet(t, err)
		_, err = c.Template(t.Context(), person)
		quiet(t, err)
		_, err = c.Templates(t.Context(), "hunter2?")
		quiet(t, err)
		s.Normal()
	}
}
