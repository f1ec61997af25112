package history

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
)

// door is birdtap with nothing in it: what comes in goes out in the same call.
type door struct {
	t      *testing.T
	fake   http.Handler
	answer func(n int, r *http.Request) int // a status instead of the door's own, by attempt; 0: none

	mu    sync.Mutex
	calls int
	busy  map[string]bool // users with a call in flight
}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	d.calls++
	n := d.calls
	d.mu.Unlock()
	if d.answer != nil {
		if status := d.answer(n, r); status != 0 {
			w.WriteHeader(status)
			return
		}
	}
	body, _ := io.ReadAll(r.Body)
	var upload struct {
		D []jsontext.Value `json:"d"`
	}
	switch {
	case r.URL.Path != "/1/upload":
		w.WriteHeader(http.StatusNotFound)
		return
	case r.Header.Get("X-CleverTap-Passcode") != "secret":
		w.WriteHeader(http.StatusUnauthorized)
		return
	case json.Unmarshal(body, &upload) != nil:
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	d.enter(upload.D, true)
	defer d.enter(upload.D, false)
	fmt.Fprint(w, d.take(upload.D))
}

// enter notes which users have a call in flight: each at most one.
func (d *door) enter(records []jsontext.Value, in bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	users := map[string]bool{}
	for _, raw := range records {
		var rec wireRecord
		if err := json.Unmarshal(raw, &rec); err != nil {
			d.t.Error(err)
		}
		users[string(rec.Identity)] = true
	}
	for user := range users {
		if in && d.busy[user] {
			d.t.Errorf("two calls in flight for %s", user)
		}
		d.busy[user] = in
	}
}

// take passes on what may pass, until CleverTap has judged it for good.
func (d *door) take(records []jsontext.Value) string {
	var good, refusals []string
	for i, raw := range records {
		what, err := read(raw)
		if err != nil {
			d.t.Error(err)
		}
		if what.fate == AtDoor {
			refusals = append(refusals, fmt.Sprintf(`{"error":"no. Skipped record number : %d"}`, i+1))
			continue
		}
		good = append(good, string(stamp(raw, time.Now())))
	}
	for _, raw := range good {
		for range againTries + 1 {
			if !d.upload(raw) {
				break
			}
		}
	}
	status := "success"
	if len(refusals) > 0 {
		status = "partial"
	}
	return fmt.Sprintf(`{"status":"%s","processed":%d,"unprocessed":[%s]}`, status, len(good), strings.Join(refusals, ","))
}

// upload tells whether the record has to go again.
func (d *door) upload(record string) bool {
	w := httptest.NewRecorder()
	d.fake.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/1/upload", strings.NewReader(`{"d":[`+record+`]}`)))
	return strings.Contains(w.Body.String(), `"code":555`)
}

// through sends receipts through an empty birdtap to a fake CleverTap.
func through(t *testing.T, o Options, answer func(int, *http.Request) int) (*Client, *Received, *clevertaptest.Server) {
	t.Helper()
	fake := clevertaptest.New(clevertaptest.Options{})
	received := NewReceived(o.Run)
	fake.OnRecord(received.Record)
	fake.Judge(received.Judge)
	s := httptest.NewServer(&door{t: t, fake: fake.Handler(), answer: answer, busy: map[string]bool{}})
	t.Cleanup(s.Close)
	o.Doors, o.Passcode, o.RetryWait = []string{s.URL + "/1/upload"}, "secret", time.Millisecond
	c := NewClient(o)
	c.Run(t.Context())
	return c, received, fake
}

func TestClientAndCheckAgreeWithAnEmptyBirdtap(t *testing.T) {
	t.Parallel()
	var journal bytes.Buffer
	c, received, _ := through(t, Options{
		Run: "empty", Seed: 7, Total: 3000, Clients: 9,
		Refuse: 0.02, Again: 0.02, AtDoor: 0.02, Several: 0.05, Broken: 0.02, Journal: &journal,
	}, nil)
	var letters []Letter
	for _, entries := range c.log.clients {
		for _, e := range entries {
			if e.Outcome != Fail && e.Fate.reason() != "" {
				letters = append(letters, Letter{ID: e.ID, Reason: e.Fate.reason()})
			}
		}
	}
	r := Check(Evidence{Log: c.Log(), Received: received, Letters: letters, Seed: 7})
	if err := r.Err(Limits{Records: 1}); err != nil {
		t.Errorf("%v\n%s", err, r)
	}
	if r.Sent != 3000 || r.OK == 0 || r.Refused == 0 || r.Fail == 0 || r.Unknown != 0 || r.OK+r.Refused+r.Fail != r.Sent {
		t.Errorf("the sums are wrong: %s", r)
	}
	if n := bytes.Count(journal.Bytes(), []byte("\n")); n != 3000 || c.Log().Err() != nil {
		t.Errorf("the journal has %d lines, want 3000 (%v)", n, c.Log().Err())
	}
}

func TestClientTriesAgainWhatGotNoAnswer(t *testing.T) {
	t.Parallel()
	c, received, _ := through(t, Options{Run: "again", Total: 200, Clients: 3}, func(n int, r *http.Request) int {
		if n%3 == 0 {
			_, _ = io.Copy(io.Discard, r.Body)
			return http.StatusServiceUnavailable
		}
		return 0
	})
	counts := c.Log().Counts()
	if counts.OK != 200 || counts.Attempts <= 200 || counts.Taken != 200 || received.Taken() != 200 {
		t.Errorf("%+v, %d received; want each ok in the end, some after more than one attempt", counts, received.Taken())
	}
}

func TestClientGivesUpWhenTold(t *testing.T) {
	t.Parallel()
	c, _, _ := through(t, Options{Run: "down", Total: 50, GiveUp: 1}, func(int, *http.Request) int {
		return http.StatusServiceUnavailable
	})
	if counts := c.Log().Counts(); counts.Unknown != 50 || counts.Attempts != 50 {
		t.Errorf("%+v, want 50 unknown after one attempt each", counts)
	}
}

func TestClientNotesOddAnswers(t *testing.T) {
	t.Parallel()
	for name, status := range map[string]int{"refuses what is in order": 400, "says created": 201} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, received, _ := through(t, Options{Run: "odd", Total: 10, GiveUp: 1}, func(int, *http.Request) int { return status })
			if r := Check(Evidence{Log: c.Log(), Received: received}); r.Odd != 10 {
				t.Errorf("%d odd answers, want 10: %v", r.Odd, r.Samples)
			}
		})
	}
}

func TestA4xxAfterNoAnswerProvesNothing(t *testing.T) {
	t.Parallel()
	l := NewLog("run", 1, nil)
	l.begin(0, receipt{id: "run-0-0"}, time.Now())
	l.end([]attempt{{outcome: Unknown}})
	l.end([]attempt{{outcome: Fail}})
	if got := l.clients[0][0].Outcome; got != Unknown {
		t.Errorf("the outcome is %s, want unknown: the first attempt may be stored", got)
	}
}

func TestEqualSeedsMakeEqualReceipts(t *testing.T) {
	t.Parallel()
	make100 := func(seed uint64) string {
		o := Options{Run: "r", Seed: seed, Refuse: 0.1}.withDefaults()
		s := newSource(&o, 3)
		var b strings.Builder
		for range 100 {
			b.Write(s.next(worldBegan).record)
		}
		return b.String()
	}
	if first, second := make100(5), make100(5); first != second {
		t.Error("two runs of one seed differ")
	}
	if make100(5) == make100(6) {
		t.Error("two seeds make the same")
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	tests := []struct {
		body string
		sent int
		want string
	}{
		{`{"status":"success","processed":2,"unprocessed":[]}`, 2, "[]"},
		{`{"status":"partial","processed":1,"unprocessed":[{"error":"bad. Skipped record number : 2"}]}`, 2, "[1]"},
		{`{"status":"success","processed":1,"unprocessed":[]}`, 2, "error"},
		{`{"status":"success","processed":1,"unprocessed":[{"error":"Skipped record number : 2"}]}`, 2, "error"},
		{`{"status":"partial","processed":1,"unprocessed":[{"error":"Skipped record number : 3"}]}`, 2, "error"},
		{`{"status":"fail","processed":0,"unprocessed":[{"error":"Skipped record number : 1"},{"error":"Skipped record number : 1"}]}`, 2, "error"},
		{`{"status":"fail","processed":0,"unprocessed":[{"error":"bad"}]}`, 1, "error"},
		{`<html>`, 1, "error"},
	}
	for _, tt := range tests {
		list, err := refusals([]byte(tt.body), tt.sent)
		got := fmt.Sprint(list)
		if err != nil {
			got = "error"
		}
		if got != tt.want {
			t.Errorf("%s: %s (%v), want %s", tt.body, got, err, tt.want)
		}
	}
}

func TestWaitSeesWhatComes(t *testing.T) {
	t.Parallel()
	l := NewLog("run", 1, nil)
	done := make(chan error, 1)
	go func() { done <- l.Wait(t.Context(), func(c Counts) bool { return c.OK == 1 }) }()
	l.begin(0, receipt{}, time.Now())
	l.end([]attempt{{outcome: OK}})
	if err := <-done; err != nil {
		t.Error(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Wait(gone, func(Counts) bool { return false }); err == nil {
		t.Error("waited for what never comes, and got it")
	}
}
