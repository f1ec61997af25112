package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/birdtap/birdtap/store"
	"github.com/birdtap/birdtap/store/idmap"
)

// csvFile is a file of rows "user,identity".
func csvFile(t *testing.T, rows ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "map.csv")
	writeFile(t, file, "user_id,identity\n"+strings.Join(rows, "\n"))
	return file
}

func (d daemon) done(t *testing.T, args ...string) string {
	t.Helper()
	return queue{environ: d.environ}.done(t, args...)
}

func (d daemon) metric(t *testing.T, line string) func() bool {
	return func() bool {
		_, metrics := d.probe(t, "/metrics")
		return strings.Contains(metrics, line+"\n")
	}
}

// postFor sends a receipt of one user.
func (d daemon) postFor(t *testing.T, user string, target int) {
	t.Helper()
	body := fmt.Sprintf(`{"identity":%q,"ts":1700000000,"evtName":"Offer","evtData":{"status":"SENT","target_id":%d}}`, user, target)
	if code, answer := d.post(t, body); code != http.StatusOK || answer != `{"status":"success","processed":1,"unprocessed":[]}` {
		t.Fatalf("answer %d %s", code, answer)
	}
}

// at are "identity target" of the receipts that CleverTap has accepted, sorted.
func (d daemon) at(t *testing.T) []string {
	t.Helper()
	var all []string
	for r := range d.fake.Accepted() {
		f := fieldsOf(r.Raw)
		all = append(all, f.Identity+" "+f.TargetID)
	}
	slices.Sort(all)
	return all
}

func (d daemon) waitAt(t *testing.T, want ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%v at CleverTap", want), func() bool { return slices.Equal(d.at(t), want) })
}

// The whole way: no map, a map, a user who is not in it, a better map, replay.
func TestIdentityMapThroughTheWholeProgram(t *testing.T) {
	t.Parallel()
	d := startDaemon(t, "BIRDTAP_IDENTITY_UNMAPPED=dead")
	d.postFor(t, "u1", 1)
	d.waitAt(t, "u1 1")

	if got := d.done(t, "identities", "import", csvFile(t, "u1,c1")); got != "imported 1\n" {
		t.Errorf("stdout %q", got)
	}
	eventually(t, "the map in use", d.metric(t, "birdtap_identities 1"))
	d.postFor(t, "u1", 2)
	d.postFor(t, "u2", 3)
	d.waitAt(t, "c1 2", "u1 1")
	q := queue{environ: d.environ}
	eventually(t, "a dead letter", func() bool { return q.status(t).DeadByReason[store.ReasonUnmapped] == 1 })
	if !d.metric(t, "birdtap_receipts_unmapped_total 1")() {
		t.Error("the metrics do not count the unmapped one")
	}

	d.done(t, "relay", "--replay", "--reason", "unmapped") // still not in the map
	eventually(t, "dead again", func() bool { st := q.status(t); return st.Died == 2 && st.Dead == 1 })

	d.done(t, "identities", "import", csvFile(t, "u1,c1", "u2,c2"))
	if got := d.done(t, "relay", "--replay", "--reason", "unmapped"); got != "replayed 1\n" {
		t.Errorf("stdout %q", got)
	}
	d.waitAt(t, "c1 2", "c2 3", "u1 1")

	eventually(t, "the new map in use", d.metric(t, "birdtap_identities 2"))
	if got := d.done(t, "identities", "remove", "--yes"); !strings.HasPrefix(got, "removed") {
		t.Errorf("stdout %q", got)
	}
	eventually(t, "no map in use", d.metric(t, "birdtap_identities 0"))
	d.postFor(t, "u2", 4)
	d.waitAt(t, "c1 2", "c2 3", "u1 1", "u2 4")
	eventually(t, "the account to settle", func() bool {
		st := q.status(t)
		return st.Queued == 0 && st.Accepted+st.Replayed == st.Delivered+st.Deduplicated+st.Died && st.Dead == 0
	})
}

func TestUnmappedUserPassesByDefault(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	d.done(t, "identities", "import", csvFile(t, "u1,c1"))
	eventually(t, "the map in use", d.metric(t, "birdtap_identities 1"))
	d.postFor(t, "u2", 1)
	d.postFor(t, "u1", 2)
	d.waitAt(t, "c1 2", "u2 1")
}

// The doors do not open before the map that was imported while nothing ran is there.
func TestMapIsInUseFromTheFirstReceiptOn(t *testing.T) {
	q := newQueue(t)
	q.done(t, "identities", "import", csvFile(t, "u1,c1"))
	d := startDaemon(t, q.environ...)
	d.postFor(t, "u1", 1)
	d.waitAt(t, "c1 1")
}

func TestIdentitiesAreShown(t *testing.T) {
	q := newQueue(t)
	if got := q.done(t, "identities"); !strings.HasPrefix(got, "no identity map") {
		t.Errorf("without a map: %q", got)
	}
	if got := q.done(t, "identities", "--json"); got != `{"users":0,"bytes":0}`+"\n" {
		t.Errorf("without a map: %q", got)
	}
	if got := q.done(t, "status", "--json"); strings.Contains(got, "identities") {
		t.Errorf("without a map: %q", got)
	}
	q.done(t, "identities", "import", csvFile(t, "u1,c1", "u2,c2", "u1,c1"))
	if got := q.done(t, "identities"); !strings.HasPrefix(got, "2 users, imported 20") {
		t.Errorf("with a map: %q", got)
	}
	if got := q.done(t, "status"); !strings.Contains(got, "identity map of 2 users, imported 20") {
		t.Errorf("status: %q", got)
	}
	var got struct {
		Identities identitiesJSON `json:"identities"`
	}
	if err := json.Unmarshal([]byte(q.done(t, "status", "--json")), &got); err != nil || got.Identities.Users != 2 {
		t.Errorf("status: %+v, %v", got, err)
	}
}

func TestImportReadsStandardInput(t *testing.T) {
	q := newQueue(t)
	var out, words bytes.Buffer
	p := &program{in: strings.NewReader("user_id,identity\nu1,c1\nu1,c1\n"), out: &out, err: &words, environ: q.environ}
	if code := p.run(t.Context(), []string{"identities", "import", "-"}); code != exitDone || out.String() != "imported 1\n" {
		t.Errorf("code %d, stdout %q, stderr %q", code, out.String(), words.String())
	}
	if words.String() != "1 row said again what another row says\n" {
		t.Errorf("stderr %q", words.String())
	}
}

func TestBadFileChangesNothing(t *testing.T) {
	q := newQueue(t)
	q.done(t, "identities", "import", csvFile(t, "u1,c1"))
	many := make([]string, 2000)
	for i := range many {
		many[i] = "geheim"
	}
	for name, c := range map[string]struct {
		file string
		want []string
	}{
		"bad rows": {csvFile(t, "geheim,c1", "geheim,c2", ",c3"), []string{
			"line 3, column user_id: the same user as in line 2, with another identity",
			"line 4, column user_id: it is empty", "nothing was imported: 2 bad rows",
		}},
		"many bad rows": {csvFile(t, many...), []string{"line 11: 2 columns are wanted, it has 1\n", "and 1,990 more\n", "2,000 bad rows"}},
		"no row":        {csvFile(t), []string{"birdtap identities remove"}},
		"no header":     {writtenFile(t, "geheim,c1\n"), []string{"user_id,identity"}},
		"no file":       {filepath.Join(t.TempDir(), "none.csv"), []string{"none.csv"}},
	} {
		got := birdtap(t, q.environ, "identities", "import", c.file)
		if got.code != exitFailed || got.out != "" {
			t.Errorf("%s: code %d, stdout %q", name, got.code, got.out)
		}
		for _, want := range c.want {
			if !strings.Contains(got.err, want) {
				t.Errorf("%s: stderr %q, want it to hold %q", name, got.err, want)
			}
		}
		if strings.Contains(got.err, "geheim") || strings.Contains(got.err, "line 12:") {
			t.Errorf("%s: stderr tells too much: %q", name, got.err)
		}
		if now := q.done(t, "identities"); !strings.HasPrefix(now, "1 user,") {
			t.Errorf("%s: the map is now %q", name, now)
		}
	}
}

func writtenFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "map.csv")
	writeFile(t, file, text)
	return file
}

func TestIdentitiesUsage(t *testing.T) {
	q := newQueue(t)
	wantUsage(t, birdtap(t, q.environ, "identities", "import"), "FILE.csv")
	wantUsage(t, birdtap(t, q.environ, "identities", "imprt", "x"), `did you mean "import"?`)
	wantUsage(t, birdtap(t, q.environ, "identities", "remove"), "--yes")
	q.done(t, "identities", "remove", "--yes") // of a copy, if there is one
	if got := q.done(t, "identities", "remove", "--yes"); got != "there was no identity map\n" {
		t.Errorf("stdout %q", got)
	}
	gone := []string{"BIRDTAP_DATA_DIR=" + filepath.Join(t.TempDir(), "nothing")}
	if got := birdtap(t, gone, "identities", "import", csvFile(t, "u1,c1")); got.code != exitFailed || !strings.Contains(got.err, "no queue") {
		t.Errorf("code %d, stderr %q", got.code, got.err)
	}
}

// unmappedLetter is a dead letter of a user who was not in the map.
func unmappedLetter() store.Letter {
	l := letters()[0]
	l.Reason, l.Code, l.Receipt.Reason = store.ReasonUnmapped, 0, store.ReasonUnmapped
	return l
}

func TestReplayLooksTheUnmappedUpAnew(t *testing.T) {
	loaded := mapOfOne(t, "u1")
	refused := unmappedLetter()
	refused.Reason, refused.Code, refused.Receipt.Reason = store.ReasonRefused, 513, store.ReasonRefused
	for _, c := range []struct {
		name         string
		ids          *idmap.Map
		unmappedDead bool
		letter       store.Letter
		reason       store.Reason
		identity     string
	}{
		{"in the map now", loaded, true, unmappedLetter(), "", "c1"},
		{"refused, and in the map", loaded, true, refused, "", "c1"},
		{"the map is gone", nil, true, unmappedLetter(), "", "u1"},
	} {
		r := &renewer{ids: c.ids, opened: true}
		r.mapper.Identities, r.mapper.UnmappedDead = r, c.unmappedDead
		got := r.renew(c.letter)
		if got.Reason != c.reason || fieldsOf(got.Record).Identity != c.identity {
			t.Errorf("%s: reason %q, %s", c.name, got.Reason, got.Record)
		}
	}
	other := unmappedLetter()
	other.Receipt.Record = bytes.ReplaceAll(other.Receipt.Record, []byte("u1"), []byte("u9"))
	for _, dead := range []bool{true, false} {
		r := &renewer{ids: loaded, opened: true}
		r.mapper.Identities, r.mapper.UnmappedDead = r, dead
		want := store.Reason("")
		if dead {
			want = store.ReasonUnmapped
		}
		if got := r.renew(other); got.Reason != want || fieldsOf(got.Record).Identity != "u9" {
			t.Errorf("still not in the map, dead %v: reason %q, %s", dead, got.Reason, got.Record)
		}
	}
}

// mapOfOne has one user, who is c1.
func mapOfOne(t *testing.T, user string) *idmap.Map {
	t.Helper()
	b := idmap.NewBuilder(t.TempDir())
	defer func() { _ = b.Close() }()
	if err := b.Add([]byte(user), []byte("c1"), 2); err != nil {
		t.Fatal(err)
	}
	m, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// A map that cannot be opened holds back only the letters that need it.
func TestReplayLeavesLettersWhoseMapCannotBeRead(t *testing.T) {
	broken := errors.New("disk")
	all := func(*store.Letter) bool { return true }
	r := &renewer{open: func() (*idmap.Map, error) { return nil, broken }}
	r.mapper.Identities = r
	choose := r.choose(all)
	l, other := unmappedLetter(), letters()[0]
	if choose(&l) || !choose(&other) || !errors.Is(r.err, broken) {
		t.Errorf("chosen wrongly; error %v", r.err)
	}
	if got := r.renew(l); got.Reason != store.ReasonUnmapped || !bytes.Equal(got.Record, l.Receipt.Record) {
		t.Errorf("reason %q, %s", got.Reason, got.Record)
	}
}
