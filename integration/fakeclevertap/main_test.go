package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
)

// call makes a call whose caller has gone by the time it has arrived, and returns how
// long it was in flight.
func call(f *fake) time.Duration {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	body := `{"d":[{"identity":"u","type":"event","evtName":"Sale","evtData":{"status":"SENT","target_id":1}}]}`
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/1/upload", strings.NewReader(body))
	began := time.Now()
	func() {
		defer func() { _ = recover() }() // so a handler ends a connection
		f.handler().ServeHTTP(httptest.NewRecorder(), r)
	}()
	return time.Since(began)
}

func TestACallOutlivesItsCaller(t *testing.T) {
	for outlive, want := range map[bool]time.Duration{true: 7 * time.Second, false: 0} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake("run", clevertaptest.Options{})
			f.outlive = outlive
			f.server.Latency(7 * time.Second)
			if took := call(f); took != want {
				t.Errorf("outlive %v: in flight for %v, want %v", outlive, took, want)
			}
			if c := f.server.Counts(); c.Accepted != 1 || c.InFlight != 0 {
				t.Errorf("outlive %v: got %+v, want one record taken and nothing in flight", outlive, c)
			}
		})
	}
}

func TestMoods(t *testing.T) {
	f := newFake("run", clevertaptest.Options{})
	f.outlive = true // but what hangs ends with its caller, or the test would not end
	post := func(path string) int {
		w := httptest.NewRecorder()
		f.handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, nil))
		return w.Code
	}
	for _, mood := range []string{"hangs+after+taking", "503+after+taking", "500", ""} {
		if code := post("/-/mood?name=" + mood); code != http.StatusOK {
			t.Fatalf("mood %q: status %d", mood, code)
		}
		call(f)
	}
	if code := post("/-/mood?name=merry"); code != http.StatusBadRequest {
		t.Errorf("a mood that there is not: status %d", code)
	}
	if c := f.server.Counts(); c.Accepted != 3 || f.mayRepeat != 2 {
		t.Errorf("%d taken, want 3; %d of them may come once more, want 2", c.Accepted, f.mayRepeat)
	}
}
