package sendbird_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/birdtap/birdtap/sendbird"
	"github.com/birdtap/birdtap/sendbird/sendbirdtest"
)

// file writes n users with one variable.
func file(t testing.TB, n int) ([]byte, sendbird.Summary) {
	t.Helper()
	var out bytes.Buffer
	w, err := sendbird.NewCSV(&out, []string{"name"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if err := w.Add(fmt.Sprintf("user-%d", i), fmt.Sprintf("Name, %d", i)); err != nil {
			t.Fatal(err)
		}
	}
	sum, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), sum
}

func TestFileReachesExactlyItsUsers(t *testing.T) {
	s, c := fake(t)
	if err := s.AddTemplate(`{"key":"sale","variable_schema":[{"key":"name","type":"string"}]}`); err != nil {
		t.Fatal(err)
	}
	content, sum := file(t, sendbird.MaxFileTargets)
	p, err := c.Presign(t.Context(), sum.Key, false)
	if err != nil {
		t.Fatal(err)
	}
	if p.FileKey != sum.Key || sum.Users != sendbird.MaxFileTargets || sum.Bytes != int64(len(content)) {
		t.Errorf("key %s, %+v, %d bytes", p.FileKey, sum, len(content))
	}
	if err := c.Upload(t.Context(), p, bytes.NewReader(content), sum.Bytes); err != nil {
		t.Fatal(err)
	}
	if got, _ := s.File(sum.Key); !bytes.Equal(got.Content, content) {
		t.Errorf("%d bytes arrived, want %d", len(got.Content), len(content))
	}
	if _, err := c.Send(t.Context(), sendbird.Notification{Template: "sale", Mode: sendbird.Batch, TargetsFile: p.FileKey}); err != nil {
		t.Fatal(err)
	}
	all := s.Deliveries()
	for i := range sendbird.MaxFileTargets {
		if n := all[fmt.Sprintf("user-%d", i)]; n != 1 {
			t.Fatalf("user-%d was reached %d times", i, n)
		}
	}
	if len(all) != sendbird.MaxFileTargets || s.Counts().TokensLeaked != 0 {
		t.Errorf("%d users were reached, %d uploads carried the token", len(all), s.Counts().TokensLeaked)
	}
	// The same key once more needs the word overwrite.
	_, err = c.Presign(t.Context(), sum.Key, false)
	if refused, ok := errors.AsType[*sendbird.APIError](err); !ok || refused.Code != sendbird.CodeExists {
		t.Errorf("an existing key: %v", err)
	}
	if _, err := c.Presign(t.Context(), sum.Key, true); err != nil {
		t.Errorf("overwrite: %v", err)
	}
	var bodies []string
	for _, call := range s.Calls() {
		if call.Endpoint == sendbirdtest.Presign {
			bodies = append(bodies, string(call.Body))
		}
	}
	if want := []string{`{"overwrite_duplicate_key":false}`, `{"overwrite_duplicate_key":false}`, `{"overwrite_duplicate_key":true}`}; !cmp.Equal(bodies, want) {
		t.Errorf("got %q", bodies)
	}
}

func TestFileKeysAreChecked(t *testing.T) {
	s, c := fake(t)
	for _, key := range []string{"", "a/b", "a.csv", "../x", "a b", "ä", strings.Repeat("x", 129)} {
		if _, err := c.Presign(t.Context(), key, false); sendbird.OutcomeOf(err) != sendbird.Refused {
			t.Errorf("%q: %v", key, err)
		}
	}
	if _, err := c.Presign(t.Context(), strings.Repeat("x", 128), false); err != nil || s.Counts().Calls != 1 {
		t.Errorf("%v, %d calls", err, s.Counts().Calls)
	}
}

func TestUploadFaults(t *testing.T) {
	content, sum := file(t, 3)
	for name, tc := range map[string]struct {
		does sendbirdtest.Behaviour
		want sendbird.Outcome
		text string
	}{
		"expired":       {sendbirdtest.Status(403, nil, "<Error><Code>AccessDenied</Code><Message>hunter2</Message></Error>"), sendbird.Refused, "403 AccessDenied: the presigned URL has expired"},
		"too large":     {sendbirdtest.Status(400, nil, "<Error><Code>EntityTooLarge</Code></Error>"), sendbird.Refused, "400 EntityTooLarge"},
		"redirect":      {sendbirdtest.Redirect("http://127.0.0.1:1/?" + signedQuery), sendbird.Refused, "307: a redirect, which is not followed"},
		"500":           {sendbirdtest.Status(500, nil, ""), sendbird.Later, "500"},
		"500, stored":   {sendbirdtest.Status(500, nil, "").Taking(), sendbird.Later, "500"},
		"lost answer":   {sendbirdtest.ResetAfterBody(), sendbird.Unknown, ""},
		"endless":       {sendbirdtest.Status(403, nil, strings.Repeat("x", 65<<10)), sendbird.Refused, "403"},
		"bad word":      {sendbirdtest.Status(403, nil, "<Code>hunter2 "+signedQuery+"</Code>"), sendbird.Refused, "403: "},
		"before a byte": {sendbirdtest.ResetBeforeBody(), sendbird.Unknown, ""},
	} {
		s, c := fake(t)
		p, err := c.Presign(t.Context(), sum.Key, false)
		if err != nil {
			t.Fatal(err)
		}
		s.Script(sendbirdtest.Upload, tc.does)
		err = c.Upload(t.Context(), p, bytes.NewReader(content), sum.Bytes)
		quietButPolicy(t, err)
		if err == nil || sendbird.OutcomeOf(err) != tc.want || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: got %v (%v)", name, err, sendbird.OutcomeOf(err))
		}
		if n := s.Counts().Calls; n != 2 {
			t.Errorf("%s: %d calls", name, n)
		}
		// A presigned URL of its own makes it good.
		if p, err = c.Presign(t.Context(), sum.Key, true); err == nil {
			err = c.Upload(t.Context(), p, bytes.NewReader(content), sum.Bytes)
		}
		if err != nil {
			t.Errorf("%s: again: %v", name, err)
		}
	}
	for _, status := range []int{200, 201, 204} {
		s, c := fake(t)
		p, err := c.Presign(t.Context(), sum.Key, false)
		s.Script(sendbirdtest.Upload, sendbirdtest.Status(status, nil, ""))
		if err = errors.Join(err, c.Upload(t.Context(), p, bytes.NewReader(content), sum.Bytes)); err != nil {
			t.Errorf("%d: %v", status, err)
		}
	}
}

func quietButPolicy(t *testing.T, err error) {
	t.Helper()
	if err != nil && (strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "X-Amz")) {
		t.Errorf("error %q shows a secret", err)
	}
}

// A file that is shorter than was said does not arrive cut.
func TestFileOfAnotherSizeIsNotStored(t *testing.T) {
	s, c := fake(t)
	content, sum := file(t, 3)
	p, err := c.Presign(t.Context(), sum.Key, false)
	if err != nil {
		t.Fatal(err)
	}
	err = c.Upload(t.Context(), p, bytes.NewReader(content[:10]), sum.Bytes)
	if err == nil || s.Counts().Uploads != 0 {
		t.Errorf("%v, %d stored", err, s.Counts().Uploads)
	}
}

func TestPresignedURLHoldsOnlyForItsTime(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s, c := fakeWith(t, sendbirdtest.Options{Token: token, Now: func() time.Time { return now }})
	content, sum := file(t, 1)
	p, err := c.Presign(t.Context(), sum.Key, false)
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Hour + time.Second)
	err = c.Upload(t.Context(), p, bytes.NewReader(content), sum.Bytes)
	if refused, ok := errors.AsType[*sendbird.UploadError](err); !ok || refused.Status != 403 || refused.Code != "AccessDenied" || s.Counts().Uploads != 0 {
		t.Errorf("got %v", err)
	}
}

func TestUploadGoesOnlyWhereItMay(t *testing.T) {
	content, sum := file(t, 1)
	for _, to := range []string{
		"http://169.254.169.254/latest?" + signedQuery, "https://169.254.169.254/?" + signedQuery,
		"http://other.amazonaws.com/?" + signedQuery, "https://u:hunter2@127.0.0.1/?" + signedQuery,
		"file:///etc/passwd", "https://evil.com/?" + signedQuery, "://" + signedQuery,
	} {
		s, c := fakeWith(t, sendbirdtest.Options{Token: token, UploadURL: to})
		p, err := c.Presign(t.Context(), sum.Key, false)
		if err != nil {
			t.Fatal(err)
		}
		err = c.Upload(t.Context(), p, bytes.NewReader(content), sum.Bytes)
		quiet(t, err)
		if sendbird.OutcomeOf(err) != sendbird.Refused || s.Counts().Uploads != 0 {
			t.Errorf("%s: got %v", to, err)
		}
	}
	// A permission is a secret, whatever prints it.
	s, c := fakeWith(t, sendbirdtest.Options{Token: token, UploadURL: "https://h.amazonaws.com/?" + signedQuery})
	p, err := c.Presign(t.Context(), sum.Key, false)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := p.MarshalText()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		text = fmt.Appendf(text, verb, p)
		text = fmt.Appendf(text, verb, &p)
	}
	if strings.Contains(string(text), "hunter2") || strings.Contains(string(text), "policy") || s.Counts().Calls != 1 {
		t.Errorf("it prints as %s", text)
	}
}

func TestOddPermissionsAreRefused(t *testing.T) {
	for _, body := range []string{
		`{}`, `{"url":"https://h.amazonaws.com/","fields":{}}`, `{"url":"","fields":{"a":"b"}}`, `{"url":"https://h/","fields":{"file":"x"}}`,
		`{"url":"https://h/","fields":{"a":1}}`, `{"url":"https://h/","fields":{"a\r\nb":"x"}}`, `{"url":"https://h/","fields":["a"]}`,
		`{"url":"https://h/","fields":{"a":"` + strings.Repeat("x", 64<<10) + `"}}`,
	} {
		s, c := fake(t)
		s.Script(sendbirdtest.Presign, sendbirdtest.Status(200, nil, body))
		if _, err := c.Presign(t.Context(), "key", false); err == nil {
			t.Errorf("%.80s: taken", body)
		}
	}
}

func TestFilesAsDocumented(t *testing.T) {
	s, c := fake(t)
	s.Script(sendbirdtest.Files, sendbirdtest.Status(200, nil, documented(t, "answer-files.json")))
	page, err := c.ListFiles(t.Context(), "", 0)
	want := sendbird.FilePage{Next: "YXEZR1VVQVErEUBXWFNeF2p3FkFVVA~~", Files: []sendbird.File{{
		Key: "notification-targets.csv", Size: 1024,
		ExpiresAt:  sendbird.Time{Time: time.Date(2023, 6, 16, 1, 26, 30, 0, time.UTC)},
		UploadedAt: sendbird.Time{Time: time.Date(2023, 5, 17, 1, 26, 31, 0, time.UTC)},
	}}}
	if diff := cmp.Diff(want, page); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if f := page.Files[0]; f.Expired(f.ExpiresAt.Time) || !f.Expired(f.ExpiresAt.Add(1)) {
		t.Error("expiry")
	}
	_, _ = c.ListFiles(t.Context(), page.Next, 1)
	_, _ = c.ListFiles(t.Context(), "a b&limit=7", 100)
	var paths []string
	for _, call := range s.Calls() {
		paths = append(paths, call.Path)
	}
	if diff := cmp.Diff([]string{
		"/v1/storage/targets_files", "/v1/storage/targets_files?limit=1&token=YXEZR1VVQVErEUBXWFNeF2p3FkFVVA~~",
		"/v1/storage/targets_files?limit=100&token=a+b%26limit%3D7",
	}, paths); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, limit := range []int{-1, 101} {
		if _, err := c.ListFiles(t.Context(), "", limit); sendbird.OutcomeOf(err) != sendbird.Refused {
			t.Errorf("%d: %v", limit, err)
		}
	}
}

func TestFilesFollowTheCursorAndEnd(t *testing.T) {
	s, c := fakeWith(t, sendbirdtest.Options{Token: token, MillisInFiles: true})
	content, _ := file(t, 1)
	keys := []string{"a", "b", "c"}
	for _, key := range keys {
		p, err := c.Presign(t.Context(), key, false)
		if err == nil {
			err = c.Upload(t.Context(), p, bytes.NewReader(content), int64(len(content)))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	next := ""
	for {
		page, err := c.ListFiles(t.Context(), next, 2)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range page.Files {
			got = append(got, f.Key)
			if f.ExpiresAt.Sub(f.UploadedAt.Time) != 30*24*time.Hour || time.Since(f.UploadedAt.Time) > time.Hour {
				t.Errorf("times %v and %v", f.UploadedAt, f.ExpiresAt)
			}
		}
		if next = page.Next; next == "" {
			break
		}
	}
	if !cmp.Equal(got, keys) {
		t.Errorf("got %v", got)
	}
	// A cursor that leads to where it was is an error, not an endless loop.
	s.Always(sendbirdtest.Files, sendbirdtest.Status(http.StatusOK, nil, `{"files":[{"file_key":"x"}],"next":"same"}`))
	n, last := 0, error(nil)
	for _, last = range c.Files(t.Context()) {
		n++
	}
	if n != 3 || last == nil {
		t.Errorf("%d files, then %v", n, last)
	}
	for _, err := range c.Files(t.Context()) { // may be left at any time
		if err != nil {
			t.Error(err)
		}
		break
	}
}
