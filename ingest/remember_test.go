package ingest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/birdtap/birdtap/clevertap"
	"github.com/birdtap/birdtap/store"
)

// notes are what a sender noted.
type notes struct {
	mu    sync.Mutex
	known map[string]store.RememberedSend
	asked atomic.Int32
	slow  time.Duration
	err   error
}

func (n *notes) Remembered(ctx context.Context, id string) (store.RememberedSend, bool, error) {
	n.asked.Add(1)
	if n.slow > 0 {
		select {
		case <-time.After(n.slow):
		case <-ctx.Done():
			return store.RememberedSend{}, false, ctx.Err()
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	send, found := n.known[id]
	return send, found, n.err
}

func (n *notes) set(id string, send store.RememberedSend) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.known[id] = send
}

func (n *notes) sent(id string) (store.RememberedSend, bool, error) {
	return n.Remembered(context.Background(), id)
}

func offerNotes() *notes {
	return &notes{known: map[string]store.RememberedSend{"71906": {Event: `Of"fer`, Target: "123"}, "x.y": {Event: "News", Target: "abc"}}}
}

var at = time.Unix(1_700_000_000, 0)

func TestFilledRecordIsThatInFull(t *testing.T) {
	m := Mapper{Sent: offerNotes().sent}
	full := func(target string) string {
		return `{"identity":"u1","ts":5,"evtName":"Of\"fer","evtData":{"status":"READ","target_id":` + target + `}}`
	}
	for given, want := range map[string]string{
		`{"notification_id":"71906","user_id":"u1","ts":5,"evtData":{"status":"READ"}}`:                               full("123"),
		`{"notification_id":71906,"user_id":"u1","ts":5,"status":"READ"}`:                                             full("123"),
		`{"notification_id":"71906","user_id":"u1","ts":5,"status":"SENT","evtData":{"status":"READ"}}`:               strings.TrimSuffix(full("123"), "}") + `,"status":"SENT"}`,
		`{"notification_id":"71906","user_id":"u2","ts":5,"identity":"u1","evtData":{"status":"READ"}}`:               full("123"),
		`{"notification_id":"71906","user_id":"u1","ts":5,"evtData":{"target_id":"7","status":"READ"}}`:               `{"identity":"u1","ts":5,"evtName":"Of\"fer","evtData":{"target_id":"7","status":"READ"}}`,
		`{"notification_id":"x.y","user_id":"u1","ts":5,"evtName":"Of\"fer","evtData":{"status":"READ"}}`:             full(`"abc"`),
		`{"notification_id":"71906","user_id":"u1","ts":5,"evtName":"N","evtData":{"status":"SENT","target_id":1}}`:   `{"identity":"u1","ts":5,"evtName":"N","evtData":{"status":"SENT","target_id":1}}`,
		`{"notification_id":"\u0037190\u0036","user_id":"u1","ts":5,"evtData":{"a":[1, 2],"status":"READ"},"more":1}`: `{"identity":"u1","ts":5,"evtName":"Of\"fer","evtData":{"a":[1,2],"status":"READ","target_id":123},"more":1}`,
	} {
		got, err := m.Convert([]byte(given), at)
		if err != nil || got.Reason != "" {
			t.Errorf("%s: %+v, %v", given, got, err)
			continue
		}
		in := Convert([]byte(want), at)
		if string(got.Record) != string(in.Record) || got.Key != in.Key || got.User != in.User {
			t.Errorf("%s:\ngot  %s\nwant %s", given, got.Record, in.Record)
		}
	}
}

func TestRecordThatCannotBeFilledIsRefused(t *testing.T) {
	n := offerNotes()
	n.known["stayed"] = store.RememberedSend{Event: "Stayed", Target: "1"}
	n.known["none"] = store.RememberedSend{}
	for given, code := range map[string]clevertap.Code{
		`{"notification_id":"1","user_id":"u1","evtData":{"status":"READ"}}`:                              clevertap.CodeStructure,
		`{"notification_id":"71906","evtData":{"status":"READ"}}`:                                         clevertap.CodeStructure,
		`{"notification_id":"71906","user_id":"u1","evtData":{}}`:                                         clevertap.CodeStructure,
		`{"notification_id":"71906","user_id":"u1"}`:                                                      clevertap.CodeStructure,
		`{"notification_id":"71906","user_id":"u1","evtData":null,"status":"READ"}`:                       clevertap.CodeStructure,
		`{"notification_id":"71906","user_id":"u1","evtData":{"status":"read"}}`:                          clevertap.CodeStructure,
		`{"notification_id":"71906","user_id":"u1","evtData":{"status":"READ","target_id":null}}`:         clevertap.CodeStructure,
		`{"notification_id":{"a":1},"user_id":"u1","evtData":{"status":"READ"}}`:                          clevertap.CodeStructure,
		`{"notification_id":"71906","user_id":null,"evtData":{"status":"READ"}}`:                          clevertap.CodeNoIdentity,
		`{"notification_id":"71906","user_id":["u"],"evtData":{"status":"READ"}}`:                         clevertap.CodeStructure,
		`{"notification_id":"71906","user_id":"u","identity":"a","FBID":"b","evtData":{"status":"READ"}}`: clevertap.CodeStructure,
		`{"notification_id":"stayed","user_id":"u1","evtData":{"status":"READ"}}`:                         clevertap.CodeReservedEvent,
		`{"notification_id":"none","user_id":"u1","evtData":{"status":"READ"}}`:                           clevertap.CodeNoEventName,
	} {
		got, err := Mapper{Sent: n.sent}.Convert([]byte(given), at)
		if err != nil || got.Reason != store.ReasonRefused || clevertap.Code(got.Code) != code || string(got.Record) != given {
			t.Errorf("%s: got %s, code %d, %v; want %d", given, got.Record, got.Code, err, code)
		}
	}
	n.err = errors.New("no answer")
	if got, err := (Mapper{Sent: n.sent}).Convert([]byte(`{"notification_id":"71906","user_id":"u1","evtData":{"status":"READ"}}`), at); err == nil || got.Reason != store.ReasonRefused {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestTargetIsANumberIfItIsOne(t *testing.T) {
	for target, want := range map[string]string{
		"0": "0", "123": "123", "-5": "-5", "18446744073709551617": "18446744073709551617",
		"007": `"007"`, "": `""`, "-": `"-"`, "--5": `"--5"`, "1e5": `"1e5"`, "1.0": `"1.0"`, "5 b": `"5 b"`, "a\"b": `"a\"b"`,
	} {
		if got := string(targetValue(target)); got != want {
			t.Errorf("%q: got %s, want %s", target, got, want)
		}
	}
}

const byNotification = `{"notification_id":"71906","user_id":"u1","evtData":{"status":"READ"}}`

func TestSignedDoorFillsIn(t *testing.T) {
	d, n := open(t), offerNotes()
	want := `{"status":"fail","processed":0,"unprocessed":[{"status":"fail","code":512,`
	signed := func(body string) string {
		got := d.callback(body)
		if got.status != http.StatusOK {
			t.Fatalf("answer %d %s", got.status, got.body)
		}
		return got.body
	}
	if got := signed(byNotification); !strings.HasPrefix(got, want) {
		t.Errorf("without a sender's notes: %s", got)
	}
	d.SetSends(n)
	d.SetIdentities(mapped)
	for range 2 {
		if got := signed(byNotification); !strings.HasPrefix(got, `{"status":"success","processed":1`) {
			t.Fatalf("got %s", got)
		}
	}
	if asked := n.asked.Load(); asked != 1 {
		t.Errorf("asked %d times: what was found is kept", asked)
	}
	if got := string(last(d.memory.stored()).Record); !strings.Contains(got, `{"identity":"c1",`) || !strings.HasSuffix(got, `"evtName":"Of\"fer","evtData":{"status":"READ","target_id":123}}`) {
		t.Errorf("stored %s", got)
	}
	if got := signed(`{"category":"notification:send_realtime","notification_id":"71906","user_id":"u1"}`); !strings.Contains(got, `"processed":0,"unprocessed":[]`) {
		t.Errorf("another webhook: %s", got)
	}
	if got := d.upload(byNotification); !strings.HasPrefix(got.body, want) {
		t.Errorf("at the other door: %s", got.body)
	}
	d.SetSends(nil)
	if got := signed(byNotification); !strings.HasPrefix(got, want) {
		t.Errorf("switched off: %s", got)
	}
}

func last(list []store.Receipt) store.Receipt { return list[len(list)-1] }

// A receipt may be faster than the sender's note about it. A thousand that nobody knows
// do not take a thousand times as long.
func TestNotesAreWaitedForAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := offerNotes()
		m := &remembered{sends: n, log: zap.NewNop()}
		time.AfterFunc(300*time.Millisecond, func() { n.set("late", store.RememberedSend{Event: "Late", Target: "1"}) })
		began := time.Now()
		found := m.find(t.Context(), map[string]bool{"71906": true, "late": true})
		if len(found) != 2 || time.Since(began) > 500*time.Millisecond {
			t.Errorf("found %v after %v", found, time.Since(began))
		}
		n.slow = 50 * time.Millisecond
		many := map[string]bool{"late": true}
		for i := range 1000 {
			many[fmt.Sprint("unknown ", i)] = true
		}
		began = time.Now()
		if found = m.find(t.Context(), many); len(found) != 1 || time.Since(began) != sentWithin {
			t.Errorf("found %d after %v", len(found), time.Since(began))
		}
	})
}

func TestNotesKeptAreBounded(t *testing.T) {
	var m remembered
	for i := range 5 * sentKept {
		m.keep(fmt.Sprint(i), store.RememberedSend{})
	}
	if n := len(m.young) + len(m.old); n < sentKept || n > 2*sentKept {
		t.Errorf("%d are kept", n)
	}
	if _, found := m.kept(fmt.Sprint(5*sentKept - 1)); !found {
		t.Error("the last one is not kept")
	}
}
