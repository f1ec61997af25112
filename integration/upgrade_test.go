//go:build integration

package integration

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
)

// left is what a birdtap of the first layout left behind; see testdata/first-layout.txt.
// Receipts are numbered from 1 on.
type left struct {
	Queued  receipts `json:"queued"`
	Dead    receipts `json:"dead"`    // CleverTap refused them, with 512
	AtDoor  receipts `json:"at_door"` // birdtap refused them: they have no status
	Account account  `json:"account"`
}

// receipts are some, by their numbers: "260 304-700".
type receipts []int

func (r receipts) MarshalText() (text []byte, _ error) {
	for i := 0; i < len(r); i++ {
		first := i
		for i+1 < len(r) && r[i+1] == r[i]+1 {
			i++
		}
		text = fmt.Appendf(text, "%d", r[first])
		if i > first {
			text = fmt.Appendf(text, "-%d", r[i])
		}
		text = append(text, ' ')
	}
	return bytes.TrimSpace(text), nil
}

func (r *receipts) UnmarshalText(text []byte) error {
	for part := range strings.FieldsSeq(string(text)) {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, err := strconv.Atoi(from)
		last, failed := strconv.Atoi(to)
		if err = errors.Join(err, failed); err != nil {
			return err
		}
		*r = append(*r, numbers(first, last)...)
	}
	return nil
}

func firstLayout(name string) string {
	return filepath.Join("testdata", "first-layout-"+name+".tar.gz")
}

// readLeft reads what is said of a variant.
func readLeft(t *testing.T, name string) (l left) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "first-layout.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, found := strings.CutPrefix(line, name+" "); found {
			if err := json.Unmarshal([]byte(rest), &l); err != nil {
				t.Fatal(err)
			}
			return l
		}
	}
	t.Fatalf("testdata/first-layout.txt says nothing of %s", name)
	return l
}

// unpacked is a new directory with what is in a file.
func unpacked(t *testing.T, file string) string {
	t.Helper()
	packed, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, filepath.FromSlash(h.Name))
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o700)
		} else {
			var content []byte
			if content, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(path, content, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// firstUsers is how many users the receipts are dealt out to, in turn.
const firstUsers = 50

// firstRecord is receipt n: of each user SENT and READ in turn. From 251 to 253 they have
// no status.
func firstRecord(n int) string {
	status := []string{"SENT", "READ"}[n/firstUsers%2]
	if n > 250 && n < 254 {
		status = "NONE"
	}
	return fmt.Sprintf(`{"identity":"user-%d","evtName":"Sale","evtData":{"status":%q,"target_id":9007199254740993,"n":%d}}`, n%firstUsers, status, n)
}

func numbers(first, last int) (list []int) {
	for n := first; n <= last; n++ {
		list = append(list, n)
	}
	return list
}

// upgrade is a birdtap of today at the place of one of the first layout.
type upgrade struct {
	t    *testing.T
	left left
	at   *birdtap
	door string // URL
	log  string // of the daemons
	fake *clevertaptest.Server

	mu    sync.Mutex
	taken []int // by CleverTap, in order
}

func newUpgrade(t *testing.T, name string) *upgrade {
	t.Helper()
	u := &upgrade{t: t, left: readLeft(t, name), fake: startFake(t)}
	u.fake.KeepRecords(false)
	u.fake.OnRecord(func(r clevertaptest.Record) {
		if n, err := strconv.Atoi(string(r.Property("n"))); err == nil && r.Accepted {
			u.mu.Lock()
			u.taken = append(u.taken, n)
			u.mu.Unlock()
		}
	})
	return u
}

// arrived are the receipts that CleverTap has taken since the last look. None may have
// come twice, nor before an earlier one of its user.
func (u *upgrade) arrived() []int {
	u.t.Helper()
	u.mu.Lock()
	defer u.mu.Unlock()
	last := map[int]int{}
	for _, n := range u.taken {
		if last[n%firstUsers] >= n {
			u.t.Errorf("receipt %d came after %d, of the same user", n, last[n%firstUsers])
		}
		last[n%firstUsers] = n
	}
	list := slices.Sorted(slices.Values(u.taken))
	u.taken = nil
	return list
}

// came checks that exactly these have arrived, each once.
func (u *upgrade) came(when string, want []int) {
	u.t.Helper()
	u.at.drained(time.Minute)
	if got := u.arrived(); !slices.Equal(got, want) {
		u.t.Errorf("%s: %d receipts came, want %d: %v", when, len(got), len(want), got)
	}
}

// deadOf are the numbers of dead letters by reason.
func deadOf(t *testing.T, b *birdtap) map[string]receipts {
	t.Helper()
	out, err := b.output("dead", "export")
	if err != nil {
		t.Fatal(err)
	}
	dead := map[string]receipts{}
	for line := range bytes.Lines(out) {
		var l struct {
			Reason string `json:"reason"`
			Record struct {
				Data struct {
					N int `json:"n"`
				} `json:"evtData"`
			} `json:"record"`
		}
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		dead[l.Reason] = append(dead[l.Reason], l.Record.Data.N)
	}
	for _, list := range dead {
		slices.Sort(list)
	}
	return dead
}

func (u *upgrade) dead(want map[string]receipts) {
	u.t.Helper()
	if got := deadOf(u.t, u.at); !maps.EqualFunc(got, want, slices.Equal) {
		u.t.Errorf("dead: %v, want %v", got, want)
	}
}

func (u *upgrade) do(args ...string) string {
	u.t.Helper()
	out, err := u.at.output(args...)
	if err != nil {
		u.t.Fatalf("birdtap %s: %v", strings.Join(args, " "), err)
	}
	return string(out)
}

// account checks the account, apart from who holds the term.
func (u *upgrade) account(when string, want account) {
	u.t.Helper()
	got, err := u.at.status()
	if err != nil {
		u.t.Fatal(err)
	}
	want.Relay, want.Oldest = got.Relay, got.Oldest // those of now
	if got != want {
		u.t.Errorf("%s the account is\n%+v, want\n%+v", when, got, want)
	}
	if got.Accepted+got.Replayed != got.Delivered+got.Deduplicated+got.Died+got.Queued || got.Dead != got.Died-got.Replayed-got.Purged {
		u.t.Errorf("%s the account does not add up: %+v", when, got)
	}
}

// goesOn checks that a birdtap of today, which has just been started, goes on where that
// of the first layout was. again stops it and starts it anew.
func (u *upgrade) goesOn(again func()) {
	a := u.left.Account
	if a.Queued != len(u.left.Queued) || a.Dead != len(u.left.Dead)+len(u.left.AtDoor) {
		u.t.Fatalf("what is said of the fixture does not fit: %+v", u.left)
	}
	if u.paused() {
		u.account("while paused", a)
		if got := u.arrived(); len(got) > 0 {
			u.t.Errorf("paused, and %d receipts came", len(got))
		}
		u.do("resume")
	}
	u.came("what was queued", u.left.Queued)
	a.Delivered, a.Queued = a.Delivered+len(u.left.Queued), 0
	u.account("then", a)
	u.dead(map[string]receipts{"512": u.left.Dead, "refused": u.left.AtDoor})

	again()
	u.came("after a restart", nil)
	u.account("after a restart", a)

	u.do("relay", "--replay", "--code", "512")
	u.came("by a replay", u.left.Dead)
	u.dead(map[string]receipts{"refused": u.left.AtDoor}) // it has moved none of reason refused, which have that code, too
	u.do("relay", "--replay", "--reason", "refused")
	u.came("by a replay of what the door refused", nil)
	u.dead(map[string]receipts{"refused": u.left.AtDoor})
	a.Replayed += len(u.left.Dead) + len(u.left.AtDoor)
	a.Delivered += len(u.left.Dead)
	a.Died += len(u.left.AtDoor)
	a.Dead = len(u.left.AtDoor)
	u.account("after the replays", a)

	fresh := numbers(701, 760)
	for _, n := range fresh {
		if got := postTo(u.t.Context(), u.door, passcode, []byte(firstRecord(n))); got.status != 200 {
			u.t.Fatalf("receipt %d: %d, %v", n, got.status, got.err)
		}
	}
	u.came("of new ones", fresh)
	a.Accepted, a.Delivered = a.Accepted+len(fresh), a.Delivered+len(fresh)
	u.account("at last", a)
}

func (u *upgrade) paused() bool {
	u.t.Helper()
	return strings.Contains(u.do("status", "--json"), `"paused":true`)
}

// noErrors checks that no daemon has complained.
func (u *upgrade) noErrors() {
	u.t.Helper()
	text, err := os.ReadFile(u.log)
	if err != nil {
		u.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if !strings.Contains(line, `"level":"info"`) {
			u.t.Errorf("the log says: %s", line)
		}
	}
}

// Birdtap of today goes on with the data directory of the first layout, be it stopped or
// killed: what waited is delivered once and in order, what was delivered is not, the dead
// are there and can be replayed, and the account adds up.
func TestUpgradeFromTheFirstLayout(t *testing.T) {
	t.Parallel()
	for name, env := range map[string]map[string]string{
		"stopped": {"KEEP_DELIVERED": "876000h"}, // a hundred years
		"killed":  {},                            // all that was delivered is trimmed at once
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUpgrade(t, name)
			d := loneAt(t, map[string]string{"CLEVERTAP_URL": u.fake.URL(), "DATA_DIR": unpacked(t, firstLayout(name))})
			u.at, u.door, u.log = d.at.with(env), d.door, filepath.Join(t.ArtifactDir(), "serve.log")
			u.account("before the start", u.left.Account)
			daemon := u.at.daemon("serve", "serve")
			daemon.ready(d.window, 30*time.Second)
			stop := func() {
				if code := daemon.terminate(30 * time.Second); code != 0 {
					t.Errorf("exit code %d", code)
				}
			}
			u.goesOn(func() {
				stop()
				daemon = u.at.daemon("serve", "serve")
				daemon.ready(d.window, 30*time.Second)
			})
			if env["KEEP_DELIVERED"] != "" {
				kept := u.do("relay", "--replay", "--delivered", "--since", "2026-01-01T00:00:00Z", "--dry-run", "--json")
				// Of a purged one nothing tells any more that it had died.
				if a, err := u.at.status(); err != nil || strings.Count(kept, "\n") != a.Delivered+a.Purged {
					t.Errorf("%d that were delivered could be replayed: %+v, %v", strings.Count(kept, "\n"), a, err)
				}
			}
			stop()
			u.noErrors()
		})
	}
}

// After a step back to a birdtap that does not know the checkpoint's format, its door
// takes receipts in, nothing is delivered a second time from an older checkpoint, and log
// and status say what helps. It helps.
func TestStepBackBehindTheCheckpoint(t *testing.T) {
	t.Parallel()
	u := newUpgrade(t, "stopped")
	d := newLone(t, map[string]string{"CLEVERTAP_URL": u.fake.URL(), "DATA_DIR": unpacked(t, firstLayout("stopped"))})
	u.at, u.log = d.at, filepath.Join(t.ArtifactDir(), "serve.log")
	u.do("resume")
	u.came("what was queued", u.left.Queued)

	swap := func(by []byte) (checkpoint []byte) {
		t.Helper()
		address, err := os.ReadFile(filepath.Join(d.at.env["DATA_DIR"], "nats.url"))
		if err != nil {
			t.Fatal(err)
		}
		js := jetStream(t, strings.TrimSpace(string(address)))
		state, err := js.Stream(t.Context(), "BIRDTAP_STATE")
		if err != nil {
			t.Fatal(err)
		}
		msg, err := state.GetLastMsgForSubject(t.Context(), "BIRDTAP.state.relay")
		if err == nil {
			_, err = js.Publish(t.Context(), msg.Subject, by)
		}
		if err != nil {
			t.Fatal(err)
		}
		return msg.Data
	}
	older := swap([]byte(`{"format":2,"of":"a later version"}`))
	if code := d.terminate(30 * time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
	d.process = d.at.daemon("serve", "serve")
	d.ready(d.window, 30*time.Second)
	if got := postTo(t.Context(), d.door, passcode, []byte(firstRecord(701))); got.status != 200 {
		t.Errorf("answered %d, %v", got.status, got.err)
	}
	eventually(t, time.Minute, "the log says what helps", func() bool {
		text, err := os.ReadFile(u.log)
		return err == nil && strings.Contains(string(text), "until that version runs here")
	})
	out, err := d.at.command("status", "--json").Output()
	if err == nil || !strings.HasPrefix(string(out), `{"dead":8,`) {
		t.Errorf("status: %s, %v", out, err)
	}
	if got := u.arrived(); len(got) > 0 {
		t.Errorf("%v came, from an older checkpoint", got)
	}
	swap(older) // as the newer one would go on
	u.came("of what had waited", []int{701})
}
