package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/birdtap/birdtap/store"
)

// died is when the first letter of these tests died.
var died = time.Date(2026, 1, 31, 15, 0, 0, 0, time.UTC)

// letters are one of each kind that the filters tell apart, a minute between them.
func letters() []store.Letter {
	row := []struct {
		reason store.Reason
		code   int
		record string
	}{
		{"512", 512, `{"identity":"u1","ts":1,"type":"event","evtName":"Offer","evtData":{"status":"SENT","target_id":9007199254740993}}`},
		{"512", 512, `{"objectId":"u2","ts":1,"type":"event","evtName":"Offer","evtData":{"status":"READ","target_id":"0001"}}`},
		{"555", 555, `{"identity":"u1","ts":1,"type":"event","evtName":"Reminder","evtData":{"status":"SENT","target_id":3}}`},
		{store.ReasonHTTP400, 400, `{"identity":"u\u001b[31m3","ts":1,"type":"event","evtName":"Reminder","evtData":{"status":"SENT","target_id":4}}`},
		{store.ReasonRefused, 513, `{"identity": "u4", "evtName": "Notification Sent", "evtData": {"status": "SENT", "target_id": 5}}`},
		{store.ReasonCorrupt, 0, "BTF\x01\xff no JSON"},
	}
	all := make([]store.Letter, len(row))
	for i, r := range row {
		all[i] = store.Letter{
			Receipt: store.Receipt{Record: []byte(r.record), User: uint64(i + 1), Key: store.Key{byte(i)}, Accepted: died.Add(-time.Hour)},
			Reason:  r.reason, Code: r.code, Tries: i,
			Died:   died.Add(time.Duration(i) * time.Minute),
			Origin: store.Place{Seq: uint64(i + 1), Index: i},
		}
		if r.reason == store.ReasonRefused {
			all[i].Receipt.Reason, all[i].Receipt.Code = r.reason, r.code
		}
	}
	return all
}

// queue is a data directory with a queue in it, and the environment that names it.
type queue struct {
	dir     string
	environ []string
}

func newQueue(t *testing.T, dead ...store.Letter) queue {
	t.Helper()
	q := queue{dir: filepath.Join(t.TempDir(), "data")}
	q.environ = []string{"BIRDTAP_DATA_DIR=" + q.dir}
	q.with(t, func(ctx context.Context, s *store.Store) {
		if _, err := s.Bury(ctx, dead); err != nil {
			t.Fatal(err)
		}
	})
	return q
}

// with opens the queue as a daemon does, for as long as do takes.
func (q queue) with(t *testing.T, do func(context.Context, *store.Store)) {
	t.Helper()
	s, err := store.Open(t.Context(), store.Options{DataDir: q.dir, QueueMaxBytes: 64 << 20, DeadMaxBytes: 64 << 20, KeepMaxBytes: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	do(t.Context(), s)
}

// done runs a command that must end well, and returns its stdout.
func (q queue) done(t *testing.T, args ...string) string {
	t.Helper()
	got := birdtap(t, q.environ, args...)
	if got.code != exitDone {
		t.Fatalf("birdtap %s: code %d, stderr %q", strings.Join(args, " "), got.code, got.err)
	}
	return got.out
}

// targets are the target ids that a listing shows, in its order.
func (q queue) targets(t *testing.T, args ...string) string {
	t.Helper()
	var ids []string
	for line := range strings.Lines(q.done(t, args...)) {
		var l struct {
			TargetID string `json:"target_id"`
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		ids = append(ids, l.TargetID)
	}
	return strings.Join(ids, " ")
}

func (q queue) status(t *testing.T) statusJSON {
	t.Helper()
	var st statusJSON
	if err := json.Unmarshal([]byte(q.done(t, "status", "--json")), &st); err != nil {
		t.Fatal(err)
	}
	return st
}

func TestFilters(t *testing.T) {
	q := newQueue(t, letters()...)
	at := func(minute int) string { return died.Add(time.Duration(minute) * time.Minute).Format(time.RFC3339) }
	for _, c := range []struct {
		flags string
		want  string // target ids; the last letter has none
	}{
		{"", "9007199254740993 0001 3 4 5 "},
		{"--since " + at(4), "5 "},
		{"--until " + at(1), "9007199254740993"},
		{"--since " + at(1) + " --until " + at(3), "0001 3"},
		{"--since 1h", ""},
		{"--until 1h", "9007199254740993 0001 3 4 5 "},
		{"--event Reminder", "3 4"},
		{"--status read", "0001"},
		{"--target-id 9007199254740993", "9007199254740993"},
		{"--target-id 0001", "0001"},
		{"--target-id 1", ""},
		{"--identity u1", "9007199254740993 3"},
		{"--identity u2", "0001"},
		{"--code 400", "4"},
		{"--reason 512", "9007199254740993 0001"},
		{"--reason refused", "5"},
		{"--reason corrupt", ""},
		{"--reason 512 --status SENT --identity u1", "9007199254740993"},
		{"--limit 2", "9007199254740993 0001"},
		{"--event Reminder --limit 1", "3"},
	} {
		t.Run(c.flags, func(t *testing.T) {
			args := append([]string{"dead", "list", "--json"}, strings.Fields(c.flags)...)
			if got := q.targets(t, args...); got != c.want {
				t.Errorf("targets %q, want %q", got, c.want)
			}
		})
	}
}

func TestDeadList(t *testing.T) {
	q := newQueue(t, letters()...)
	golden(t, "dead-list.txt", q.done(t, "dead", "list"))
	golden(t, "dead-list.jsonl", q.done(t, "dead", "list", "--json"))
	golden(t, "dead-export.jsonl", q.done(t, "dead", "export"))
	if got := birdtap(t, q.environ, "dead", "list", "--code", "999"); got.out != "" || got.err != "0 dead letters\n" {
		t.Errorf("nothing to list: stdout %q, stderr %q", got.out, got.err)
	}
}

func TestPurgeNeedsAYes(t *testing.T) {
	q := newQueue(t, letters()...)
	wantUsage(t, birdtap(t, q.environ, "dead", "purge", "--code", "512"), "--yes")
	if got := q.done(t, "dead", "purge", "--code", "512", "--limit", "1", "--yes"); got != "purged 1\n" {
		t.Errorf("stdout %q", got)
	}
	if got := q.targets(t, "dead", "list", "--json"); got != "0001 3 4 5 " {
		t.Errorf("left are %q", got)
	}
	if st := q.status(t); st.Purged != 1 || st.Dead != 5 {
		t.Errorf("purged %d, dead %d; want 1 and 5", st.Purged, st.Dead)
	}
}

func TestPurgeAsks(t *testing.T) {
	for answer, want := range map[string]struct {
		left int
		err  string
	}{"y\n": {5, ""}, "YES\n": {5, ""}, "n\n": {6, "nothing was purged"}, "": {6, "nothing was purged"}} {
		q := newQueue(t, letters()...)
		q.with(t, func(ctx context.Context, s *store.Store) {
			var out, words bytes.Buffer
			p := &program{in: strings.NewReader(answer), out: &out, err: &words}
			f := filter{code: 513}
			err := p.purgeLetters(ctx, s, selection{filter: f, choose: f.choose}, false)
			if got := fmt.Sprint(err); want.err == "" && err != nil || want.err != "" && got != want.err {
				t.Errorf("answer %q: error %v, want %q", answer, err, want.err)
			}
			if got := words.String(); got != "give up 1 dead letter for good? [y/N] " {
				t.Errorf("the question is %q", got)
			}
			all := selection{choose: func(*store.Letter) bool { return true }}
			if n, err := all.each(ctx, s, func(store.Letter) error { return nil }); err != nil || n != want.left {
				t.Errorf("answer %q: %d letters left, %v; want %d", answer, n, err, want.left)
			}
		})
	}
}

func TestReplay(t *testing.T) {
	q := newQueue(t, letters()...)
	if got := q.targets(t, "relay", "--replay", "--dry-run", "--json"); got != "9007199254740993 0001 3 4" {
		t.Errorf("dry run lists %q: want all but refused and corrupt", got)
	}
	if got := q.status(t).Dead; got != 6 {
		t.Errorf("the dry run left %d dead letters of 6", got)
	}
	if got := q.done(t, "relay", "--replay", "--event", "Reminder", "--limit", "1"); got != "replayed 1\n" {
		t.Errorf("stdout %q", got)
	}
	if got := q.done(t, "relay", "--replay", "--json", "--rate", "1000000"); got != `{"replayed":3}`+"\n" {
		t.Errorf("stdout %q", got)
	}
	if got := q.done(t, "relay", "--replay", "--reason", "refused"); got != "replayed 1\n" {
		t.Errorf("stdout %q", got)
	}
	st := q.status(t)
	if st.Queued != 5 || st.Replayed != 5 || st.Dead != 1 || st.DeadByReason[store.ReasonCorrupt] != 1 {
		t.Errorf("after the replays %+v: want 5 queued, 5 replayed, the corrupt one dead", st)
	}
}

func TestReplayJudgesTheRefusedAnew(t *testing.T) {
	accepted := time.Unix(1_700_000_000, 0)
	good := []byte(`{"identity":"u","evtName":"Offer","evtData":{"status":"SENT","target_id":1}}`)
	for _, c := range []struct {
		name   string
		letter store.Letter
		reason store.Reason
		record string
	}{
		{"good now", store.Letter{Reason: store.ReasonRefused, Receipt: store.Receipt{Record: good, Accepted: accepted, Reason: store.ReasonRefused, Code: 512}}, "", `"ts":1700000000`},
		{"still bad", store.Letter{Reason: store.ReasonRefused, Receipt: store.Receipt{Record: []byte(`{}`), Accepted: accepted}}, store.ReasonRefused, `{}`},
		{"not refused", store.Letter{Reason: "512", Receipt: store.Receipt{Record: []byte(`as it was`)}}, "", `as it was`},
	} {
		got := new(renewer).renew(c.letter)
		if got.Reason != c.reason || !strings.Contains(string(got.Record), c.record) {
			t.Errorf("%s: reason %q, record %s; want %q and %s", c.name, got.Reason, got.Record, c.reason, c.record)
		}
	}
}

func TestCommandsReachARunningDaemon(t *testing.T) {
	q := newQueue(t, letters()...)
	q.with(t, func(ctx context.Context, s *store.Store) {
		if got := q.done(t, "pause"); !strings.Contains(got, "paused") {
			t.Errorf("stdout %q", got)
		}
		if paused, err := s.Paused(ctx); err != nil || !paused {
			t.Errorf("the daemon sees paused %v, %v", paused, err)
		}
		if got := q.done(t, "relay", "--replay", "--code", "512"); got != "replayed 2\n" {
			t.Errorf("stdout %q", got)
		}
		if got := q.done(t, "dead", "purge", "--reason", "corrupt", "--yes"); got != "purged 1\n" {
			t.Errorf("stdout %q", got)
		}
		if st, err := s.Status(ctx); err != nil || st.Queued != 2 || st.Purged != 1 {
			t.Errorf("the daemon sees %+v, %v", st, err)
		}
	})
	if st := q.status(t); !st.Paused || st.Dead != 3 {
		t.Errorf("after the daemon's end: %+v", st)
	}
	q.done(t, "resume")
	if st := q.status(t); st.Paused {
		t.Error("still paused after resume")
	}
}

func TestStatusJSONHasTheFixedNames(t *testing.T) {
	q := newQueue(t, letters()...)
	var got map[string]json.RawMessage
	if err := json.Unmarshal([]byte(q.done(t, "status", "--json")), &got); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"accepted": "0", "replayed": "0", "delivered": "0", "deduplicated": "0", "died": "0", "queued": "0", "purged": "0",
		"dead": "6", "dead_by_reason": `{"512":2,"555":1,"corrupt":1,"http_400":1,"refused":1}`,
		"oldest_seconds": "0", "breaker": `"closed"`, "paused": "false", "relay": `{"holder":"","term":0}`,
	} {
		if string(got[name]) != want {
			t.Errorf("%s is %s, want %s", name, got[name], want)
		}
	}
}

// Of an account that a later version keeps, status tells what it can, and what to do.
func TestStatusBesideANewerCheckpoint(t *testing.T) {
	q := newQueue(t, letters()...)
	q.newerCheckpoint(t, "BIRDTAP.state.sender")
	got := birdtap(t, q.environ, "status", "--json")
	if got.code != exitFailed || !strings.Contains(got.out, `"queued":0`) || strings.Contains(got.out, "sends") ||
		!strings.Contains(got.err, "of the sender") || !strings.Contains(got.err, "run that version again") {
		t.Errorf("that of the sender: %+v", got)
	}
	q.newerCheckpoint(t, "BIRDTAP.state.relay")
	got = birdtap(t, q.environ, "status", "--json")
	want := `{"dead":6,"dead_by_reason":{"512":2,"555":1,"corrupt":1,"http_400":1,"refused":1},"purged":0,"paused":false}` + "\n"
	if got.code != exitFailed || got.out != want || !strings.Contains(got.err, "run that version again") {
		t.Errorf("status --json: %+v", got)
	}
	got = birdtap(t, q.environ, "status")
	if got.code != exitFailed || !strings.HasPrefix(got.out, "UNKNOWN") || !strings.Contains(got.out, "6 dead") {
		t.Errorf("status: %+v", got)
	}
}

// newerCheckpoint leaves one that a later version has written.
func (q queue) newerCheckpoint(t *testing.T, subject string) {
	t.Helper()
	q.with(t, func(ctx context.Context, s *store.Store) {
		sends, err := s.OpenSends(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer sends.Close()
		address, err := os.ReadFile(filepath.Join(q.dir, "nats.url"))
		if err != nil {
			t.Fatal(err)
		}
		nc, err := nats.Connect(strings.TrimSpace(string(address)))
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		js, err := jetstream.New(nc)
		if err == nil {
			_, err = js.Publish(ctx, subject, []byte(`{"format":2}`))
		}
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestStatusText(t *testing.T) {
	for name, st := range map[string]store.Status{
		"rest": {Accepted: 1234567, Delivered: 1234000, Deduplicated: 567, Breaker: "closed", Holder: "ABC", Term: 3},
		"outage": {
			Accepted: 5_000_000, Delivered: 1_000_000, Died: 12, Queued: 3_999_988, Dead: 12, Breaker: "open", Holder: "ABC", Term: 3,
			Oldest: 3*time.Hour + 5*time.Minute + 7*time.Second, QueueBytes: 1 << 30,
			DeadByReason: map[store.Reason]uint64{"512": 9, "refused": 2, "555": 1},
		},
		"delivering": {Accepted: 100, Delivered: 60, Queued: 40, Rate: 1234.5, Oldest: 1250 * time.Millisecond, QueueBytes: 10_000, Breaker: "closed", Holder: "ABC", Term: 1},
		"cluster": {
			Breaker: "closed", Holder: "ABC", Term: 1,
			Replicas: []store.Replicas{{Stream: "BIRDTAP_RECEIPTS", Want: 3, Current: 3}, {Stream: "BIRDTAP_DEAD", Want: 3, Current: 3}},
		},
		"cluster-lacks": {
			Breaker: "closed", Holder: "ABC", Term: 1,
			Replicas: []store.Replicas{{Stream: "BIRDTAP_RECEIPTS", Want: 3, Current: 2}, {Stream: "BIRDTAP_DEAD", Want: 3, Current: 3}, {Stream: "BIRDTAP_STATE", Want: 3}},
		},
	} {
		var b bytes.Buffer
		if err := writeStatus(&b, st, nil); err != nil {
			t.Fatal(err)
		}
		golden(t, "status-"+name+".txt", b.String())
	}
}

func TestHeadlineSaysWhatMatters(t *testing.T) {
	for want, st := range map[string]store.Status{
		"PAUSED":        {Paused: true, Breaker: "open", Queued: 1},
		"WAITING: no":   {Queued: 1, Breaker: "closed"},
		"WAITING: Clev": {Queued: 1, Breaker: "open", Holder: "A"},
		"RECOVERING":    {Queued: 1, Breaker: "half-open", Holder: "A"},
		"DELIVERING":    {Queued: 1, Breaker: "closed", Holder: "A"},
		"ALL DELIVERED": {Breaker: "closed"},
	} {
		if got := headline(st); !strings.HasPrefix(got, want) {
			t.Errorf("headline %q, want %q", got, want)
		}
	}
}

func TestStatusWatchEndsWithoutError(t *testing.T) {
	q := newQueue(t)
	ctx, cancel := context.WithCancel(t.Context())
	var words bytes.Buffer
	out := &firstWrite{then: cancel}
	p := &program{in: strings.NewReader(""), out: out, err: &words, environ: q.environ}
	if code := p.run(ctx, []string{"status", "--watch", "--json"}); code != exitDone {
		t.Errorf("code %d, stderr %q", code, words.String())
	}
	if !strings.HasPrefix(out.String(), `{"accepted":0`) {
		t.Errorf("stdout %q", out.String())
	}
}

// firstWrite does something once it was written to.
type firstWrite struct {
	bytes.Buffer
	then func()
}

func (w *firstWrite) Write(b []byte) (int, error) {
	w.then()
	return w.Buffer.Write(b)
}

func TestWrongFlagsAreCodeTwo(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"dead", ""},
		{"dead lst", `did you mean "list"?`},
		{"dead list --since yesterday", "--since"},
		{"dead list --since -2h", "--since"},
		{"dead list --since 1h --until 2h", "--since"},
		{"dead list --status DELIVERED", "--status"},
		{"dead list --reason 51", "--reason"},
		{"dead list --code x", "--code"},
		{"dead list --code -1", "--code"},
		{"dead list --limit -1", "--limit"},
		{"relay --event Offer", "--event goes with --replay"},
		{"relay --dry-run", "--dry-run goes with --replay"},
		{"relay --replay --rate -1", "--rate"},
		{"relay --replay --reason corrupt", "--reason corrupt"},
		{"relay --replay --delivered", "--delivered"},
		{"status now", "now"},
	} {
		got := birdtap(t, nil, strings.Fields(c.args)...)
		if c.want == "" {
			if got.code != exitDone || !strings.Contains(got.out, "Usage:") {
				t.Errorf("%s: code %d, want its help", c.args, got.code)
			}
			continue
		}
		wantUsage(t, got, c.want)
	}
}

func TestNoQueueIsNoEmptyQueue(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "nothing")
	for _, command := range []string{"status", "dead list", "relay --replay", "pause"} {
		got := birdtap(t, []string{"BIRDTAP_DATA_DIR=" + dir}, strings.Fields(command)...)
		if got.code != exitFailed || !strings.Contains(got.err, dir) || got.out != "" {
			t.Errorf("%s: code %d, stdout %q, stderr %q", command, got.code, got.out, got.err)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s was made: %v", dir, err)
	}
}

func TestFieldsOfOddRecords(t *testing.T) {
	for record, want := range map[string]fields{
		``:                   {},
		`no JSON`:            {},
		`[1]`:                {},
		`{"evtName":5}`:      {Event: "5"},
		`{"evtData":"SENT"}`: {},
		`{"evtData":null}`:   {},
		`{"GPID":"g"}`:       {Identity: "g"},
		`{"EVTNAME":"x"}`:    {},
		`{"identity":"\ud83d\ude00","evtData":{"target_id":18446744073709551616,"status":{}}}`: {Identity: "😀", TargetID: "18446744073709551616", Status: "{}"},
	} {
		if diff := cmp.Diff(want, fieldsOf([]byte(record))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", record, diff)
		}
	}
}
