package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
	"github.com/birdtap/birdtap/store"
)

// body is a call with receipts of n users, each with a SENT and then a READ.
func body(n int) string {
	var b strings.Builder
	b.WriteString(`{"d":[`)
	for _, status := range []string{"SENT", "READ"} {
		for i := range n {
			if b.Len() > len(`{"d":[`) {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, `{"identity":"u%d","ts":1700000000,"type":"event","evtName":"Offer","evtData":{"status":%q,"target_id":%d}}`, i, status, i)
		}
	}
	b.WriteString(`]}`)
	return b.String()
}

func (d daemon) account(t *testing.T) statusJSON {
	t.Helper()
	var st statusJSON
	got := birdtap(t, d.environ, "status", "--json")
	if err := json.Unmarshal([]byte(got.out), &st); err != nil {
		t.Fatalf("status: %v, stderr %q", err, got.err)
	}
	if st.Accepted+st.Replayed != st.Delivered+st.Deduplicated+st.Died+st.Queued {
		t.Errorf("the account does not add up: %+v", st)
	}
	return st
}

// settled waits until all that was accepted and replayed is settled.
func (d daemon) settled(t *testing.T, accepted, replayed uint64) statusJSON {
	t.Helper()
	var st statusJSON
	eventually(t, "all is settled", func() bool {
		st = d.account(t)
		return st.Accepted == accepted && st.Replayed == replayed && st.Queued == 0
	})
	return st
}

// taken is how often CleverTap took each receipt, and an error of the order if a READ
// was taken as often as its SENT or oftener before that.
func taken(fake *clevertaptest.Server) (map[string]int, error) {
	times := map[string]int{}
	var err error
	for r := range fake.Accepted() {
		times[r.Status+r.Identity]++
		if r.Status == "READ" && times["READ"+r.Identity] > times["SENT"+r.Identity] {
			err = fmt.Errorf("user %s: READ came before SENT", r.Identity)
		}
	}
	return times, err
}

func wantTaken(t *testing.T, fake *clevertaptest.Server, users, least, most int) {
	t.Helper()
	times, err := taken(fake)
	if err != nil {
		t.Error(err)
	}
	for i := range users {
		for _, status := range []string{"SENT", "READ"} {
			if n := times[fmt.Sprintf("%su%d", status, i)]; n < least || n > most {
				t.Errorf("%s of user %d was taken %d times, want %d to %d", status, i, n, least, most)
			}
		}
	}
}

// Delivered receipts go once more, in order, with the account still right: beside the
// daemon, again after that, and while no daemon runs.
func TestReplayDelivered(t *testing.T) {
	d := startDaemon(t)
	const users = 50
	if code, answer := d.post(t, body(users)); code != http.StatusOK {
		t.Fatalf("answer %d %s", code, answer)
	}
	d.settled(t, 2*users, 0)
	for run := range 3 {
		if run == 2 {
			if err := d.stop(); err != nil {
				t.Fatal(err)
			}
		}
		got := birdtap(t, d.environ, "relay", "--replay", "--delivered", "--since", "1h", "--json")
		if got.code != exitDone || got.out != `{"replayed":100,"missed_frames":0}`+"\n" || got.err != "" {
			t.Fatalf("run %d: %+v", run, got)
		}
		if run < 2 {
			d.settled(t, 2*users, uint64(run+1)*2*users)
			wantTaken(t, d.fake, users, run+2, run+2)
		}
	}
	if st := d.account(t); st.Queued != 2*users {
		t.Errorf("while no daemon runs: %+v", st)
	}
	d = runDaemon(t, d.fake, d.environ)
	d.settled(t, 2*users, 6*users)
	wantTaken(t, d.fake, users, 4, 4)
}

func TestReplayDeliveredFilters(t *testing.T) {
	d := startDaemon(t)
	d.post(t, body(3))
	d.settled(t, 6, 0)
	for flags, want := range map[string]string{
		"--since 1h":                      "0 1 2 0 1 2",
		"--since 2h --until 1h":           "",
		"--since 1h --status READ":        "0 1 2",
		"--since 1h --target-id 1":        "1 1",
		"--since 1h --identity u2":        "2 2",
		"--since 1h --event Reminder":     "",
		"--since 1h --event Offer":        "0 1 2 0 1 2",
		"--since 1h --limit 4":            "0 1 2 0",
		"--since 2999-01-01T00:00:00Z":    "",
		"--since 1h --rate 5 --limit 1":   "0",
		"--since 1h --until 0s --json":    "0 1 2 0 1 2",
		"--since 1970-01-01T00:00:00Z":    "0 1 2 0 1 2",
		"--since 1h --status SENT --json": "0 1 2",
	} {
		args := append([]string{"relay", "--replay", "--delivered", "--dry-run", "--json"}, strings.Fields(flags)...)
		if got := (queue{environ: d.environ}).targets(t, args...); got != want {
			t.Errorf("%s: targets %q, want %q", flags, got, want)
		}
	}
	got := birdtap(t, d.environ, "relay", "--replay", "--delivered", "--dry-run", "--since", "1h", "--limit", "1")
	if lines := strings.Split(got.out, "\n"); len(lines) != 3 || strings.Join(strings.Fields(lines[0]), " ") != "ACCEPTED EVENT STATUS TARGET USER" ||
		!strings.HasSuffix(strings.Join(strings.Fields(lines[1]), " "), "Offer SENT 0 u0") || got.err != "1 delivered receipt\n" {
		t.Errorf("%+v", got)
	}
	if st := d.account(t); st.Replayed != 0 {
		t.Errorf("the dry runs moved something: %+v", st)
	}
}

// What is no longer kept, or leaves under the reader, is said.
func TestReplayDeliveredTellsWhatIsMissing(t *testing.T) {
	var words bytes.Buffer
	p := &program{err: &words}
	f := &replayFlags{}
	f.since = moment{died}
	p.tellKept(store.Kept{}, f)
	p.tellKept(store.Kept{Oldest: died.Add(-time.Hour)}, f)
	if words.Len() > 0 {
		t.Errorf("said of nothing missing: %q", words.String())
	}
	p.tellKept(store.Kept{Oldest: died.Add(time.Hour), Missed: 1234}, f)
	for _, want := range []string{"2026-01-31T16:00:00Z", "BIRDTAP_KEEP_DELIVERED", "1,234 frames"} {
		if !strings.Contains(words.String(), want) {
			t.Errorf("%q does not say %q", words.String(), want)
		}
	}
}

// A replay that is killed with -9 and given again brings every receipt to CleverTap,
// from the dead letters as well as from what was delivered.
func TestReplayKilledInTheMiddle(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		args []string
		code int // of CleverTap at first
	}{
		{"dead", nil, 528},
		{"delivered", []string{"--delivered", "--since", "1h"}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := startDaemon(t)
			var code atomic.Int64
			code.Store(int64(c.code))
			d.fake.Judge(func(clevertaptest.Record) int { return int(code.Load()) })
			const users = 500
			d.post(t, body(users))
			d.settled(t, 2*users, 0)
			code.Store(0)

			args := append([]string{"relay", "--replay"}, c.args...)
			d.killDuringReplay(t, append(args, "--rate", "100")...)
			if got := birdtap(t, d.environ, args...); got.code != exitDone || !strings.HasPrefix(got.out, "replayed ") {
				t.Fatalf("%+v", got)
			}
			st := d.account(t)
			if st.Replayed <= 2*users {
				t.Errorf("the kill came when nothing was on the queue: %+v", st)
			}
			st = d.settled(t, 2*users, st.Replayed)
			least := 1
			if c.code == 0 {
				least = 2
			}
			wantTaken(t, d.fake, users, least, least+1)
			if c.code != 0 && (st.Dead != 0 || st.Died != 2*users) {
				t.Errorf("letters are left: %+v", st)
			}
		})
	}
}

// killDuringReplay runs a command as a process of its own and kills it with -9 once
// some of its receipts are on the queue.
func (d daemon) killDuringReplay(t *testing.T, args ...string) {
	t.Helper()
	command := exec.CommandContext(t.Context(), os.Args[0], args...)
	command.Env = append([]string{asBirdtap + "=1"}, d.environ...)
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = command.Process.Kill() // not SIGTERM: that lets it finish
		_ = command.Wait()
	}()
	queue := d.app.queue.Load()
	eventually(t, "a replayed frame on the queue", func() bool {
		replayed := 0
		if _, err := queue.ScanFrames(t.Context(), 1, func(f store.FrameInfo) {
			if f.Replay != store.ReplayNone {
				replayed += f.Receipts
			}
		}); err != nil {
			t.Fatal(err)
		}
		return replayed > 0
	})
}

// What the door refused goes the whole way once it is judged anew and found good.
func TestReplayOfTheRefusedReachesCleverTap(t *testing.T) {
	d := startDaemon(t)
	// Refused at the door for a property of 513 bytes; the letter is then exchanged for
	// one whose record is in order, as a birdtap with other limits would find it.
	long := strings.Replace(receipt, `"status"`, `"note":"`+strings.Repeat("x", 513)+`","status"`, 1)
	if code, answer := d.post(t, long); code != http.StatusOK || !strings.Contains(answer, `"code":522`) {
		t.Fatalf("answer %d %s", code, answer)
	}
	d.settled(t, 1, 0)
	args := []string{"relay", "--replay", "--reason", "refused"}
	if got := birdtap(t, d.environ, args...); got.out != "replayed 1\n" {
		t.Fatalf("%+v", got)
	}
	if st := d.settled(t, 1, 1); st.Died != 2 || st.DeadByReason[store.ReasonRefused] != 1 {
		t.Errorf("still as bad as it was: %+v", st)
	}
	if _, err := d.app.queue.Load().Purge(t.Context(), func(*store.Letter) bool { return true }, 0); err != nil {
		t.Fatal(err)
	}
	record := []byte(strings.TrimSuffix(strings.TrimPrefix(receipt, `{"d":[`), `]}`))
	good := store.Letter{
		Receipt: store.Receipt{Record: record, Reason: store.ReasonRefused, Code: 522, Accepted: died},
		Reason:  store.ReasonRefused, Code: 522, Died: died, Origin: store.Place{Seq: 1},
	}
	if _, err := d.app.queue.Load().Bury(t.Context(), []store.Letter{good}); err != nil {
		t.Fatal(err)
	}
	if got := birdtap(t, d.environ, args...); got.out != "replayed 1\n" {
		t.Fatalf("%+v", got)
	}
	if err := d.fake.Wait(t.Context(), func(c clevertaptest.Counts) bool { return c.Accepted == 1 }); err != nil {
		t.Fatal(err)
	}
	for r := range d.fake.Accepted() {
		if r.Identity != "u1" || r.TargetID != "9007199254740993" || r.TS != "1700000000" {
			t.Errorf("CleverTap has %s", r.Raw)
		}
	}
}

func TestExpectedIsKnownWhereHeadersTell(t *testing.T) {
	q := newQueue(t, letters()...)
	q.with(t, func(ctx context.Context, s *store.Store) {
		for _, c := range []struct {
			filter  filter
			leftOut []store.Reason
			want    int
		}{
			{filter{}, nil, 6},
			{filter{}, []store.Reason{store.ReasonCorrupt, store.ReasonRefused}, 4},
			{filter{reason: "512"}, nil, 2},
			{filter{reason: "528"}, nil, 0},
			{filter{limit: 3}, nil, 3},
			{filter{event: "Offer"}, nil, -1},
			{filter{since: moment{died}}, nil, -1},
		} {
			if got := (selection{filter: c.filter}).expected(ctx, s, c.leftOut...); got != c.want {
				t.Errorf("%+v: %d, want %d", c.filter, got, c.want)
			}
		}
	})
}
