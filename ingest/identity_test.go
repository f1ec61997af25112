package ingest

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/birdtap/birdtap/store"
)

// people is a map of its own; "broken" cannot be looked up.
type people map[string]string

func (p people) Lookup(dst, user []byte) ([]byte, store.Mapping, error) {
	if string(user) == "broken" {
		return dst, store.MappingUnknown, errors.New("disk")
	}
	if id, ok := p[string(user)]; ok {
		return append(dst, id...), store.MappingFound, nil
	}
	return dst, store.MappingMissing, nil
}

// always is a map in one state.
type always store.Mapping

func (a always) Lookup(dst, _ []byte) ([]byte, store.Mapping, error) {
	return dst, store.Mapping(a), nil
}

var mapped = people{"u1": "c1", "42": "forty-two", "quote": "a\"b\\c\u2028", "é": "e"}

func of(user string) string {
	return `{"identity":` + user + `,"evtName":"Sale","evtData":{"status":"SENT","target_id":1}}`
}

func sentOf(user string) string {
	return `{"identity":` + user + `,"ts":1700000000,"type":"event","evtName":"Sale","evtData":{"status":"SENT","target_id":1}}`
}

func TestUsersAreMapped(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ user, want string }{
		{`"u1"`, `"c1"`},
		{`"\u00751"`, `"c1"`},
		{`42`, `"forty-two"`},
		{`"42"`, `"forty-two"`},
		{`"quote"`, "\"a\\\"b\\\\c\u2028\""},
		{`"\u00e9"`, `"e"`},
		{`"nobody"`, `"nobody"`},
		{`"U1"`, `"U1"`},
	} {
		got, err := Mapper{Identities: mapped}.Convert([]byte(of(tt.user)), testNow)
		if err != nil || string(got.Record) != sentOf(tt.want) || got.Reason != "" {
			t.Errorf("%s: %s, %q, %v; want %s", tt.user, got.Record, got.Reason, err, sentOf(tt.want))
			continue
		}
		checkReceipt(t, got)
		// A mapped receipt is that of the identity: it waits for the same user's others,
		// and a copy that names the identity at once is the same receipt.
		plain := Convert([]byte(of(tt.want)), testNow)
		if got.User != plain.User || got.Key != plain.Key {
			t.Errorf("%s: order key or dedup key is not that of %s", tt.user, tt.want)
		}
	}
}

func TestOtherKindsOfUserAreNotMapped(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"objectId", "FBID", "GPID"} {
		for _, ids := range []Identities{mapped, always(store.MappingUnknown)} {
			raw := strings.Replace(of(`"u1"`), "identity", kind, 1)
			got, err := Mapper{Identities: ids, UnmappedDead: true}.Convert([]byte(raw), testNow)
			if err != nil || got.Reason != "" || !strings.Contains(string(got.Record), `"`+kind+`":"u1"`) {
				t.Errorf("%s: %s, %q, %v", kind, got.Record, got.Reason, err)
			}
		}
	}
}

func TestWhatBecomesOfTheUnmapped(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		mapper Mapper
		want   store.Reason
	}{
		{"no map", Mapper{}, ""},
		{"no map, dead", Mapper{UnmappedDead: true}, ""},
		{"none loaded", Mapper{Identities: always(store.MappingNone)}, ""},
		{"none loaded, dead", Mapper{Identities: always(store.MappingNone), UnmappedDead: true}, ""},
		{"not in it", Mapper{Identities: always(store.MappingMissing)}, ""},
		{"not in it, dead", Mapper{Identities: always(store.MappingMissing), UnmappedDead: true}, store.ReasonUnmapped},
		{"not to be had", Mapper{Identities: always(store.MappingUnknown)}, store.ReasonUnmapped},
		{"not to be had, dead", Mapper{Identities: always(store.MappingUnknown), UnmappedDead: true}, store.ReasonUnmapped},
	} {
		got, err := tt.mapper.Convert([]byte(of(`"u1"`)), testNow)
		if err != nil || got.Reason != tt.want || got.Code != 0 || string(got.Record) != sentOf(`"u1"`) {
			t.Errorf("%s: %s, %q, %d, %v", tt.name, got.Record, got.Reason, got.Code, err)
		}
	}
}

// What is refused is refused before anybody is looked up.
func TestRefusedRecordIsNotLookedUp(t *testing.T) {
	t.Parallel()
	raw := strings.Replace(of(`"broken"`), "SENT", "SEEN", 1)
	got, err := Mapper{Identities: mapped}.Convert([]byte(raw), testNow)
	if err != nil || got.Code != 512 || string(got.Record) != raw {
		t.Errorf("%s, %d, %v", got.Record, got.Code, err)
	}
}

// An unmapped letter that is replayed when the map knows its user is what it would
// have been.
func TestUnmappedRecordIsMappedLater(t *testing.T) {
	t.Parallel()
	dead, err := Mapper{Identities: people{}, UnmappedDead: true}.Convert([]byte(of(`"u1"`)), testNow)
	if err != nil || dead.Reason != store.ReasonUnmapped {
		t.Fatalf("%q, %v", dead.Reason, err)
	}
	got, err := Mapper{Identities: mapped, UnmappedDead: true}.Convert(dead.Record, testNow)
	if err != nil || got.Reason != "" || string(got.Record) != sentOf(`"c1"`) {
		t.Errorf("%s, %q, %v", got.Record, got.Reason, err)
	}
}

func TestDoorsMapUsers(t *testing.T) {
	t.Parallel()
	d := open(t, func(o *Options) { o.UnmappedDead = true })
	body := `[` + of(`"u1"`) + `,` + of(`"nobody"`) + `,{},` + of(`"u1"`) + `]`
	d.upload(of(`"u1"`))
	d.SetIdentities(mapped)
	for _, got := range []answer{d.upload(body), d.callback(body)} {
		if got.status != 200 || !strings.HasPrefix(got.body, `{"status":"partial","processed":3,`) {
			t.Errorf("got %d %s: the unmapped one counts as processed", got.status, got.body)
		}
	}
	d.SetIdentities(nil)
	d.upload(of(`"u1"`))
	of4 := []string{sentOf(`"c1"`), sentOf(`"nobody"`), `{}`, sentOf(`"c1"`)}
	want := append(append(append([]string{sentOf(`"u1"`)}, of4...), of4...), sentOf(`"u1"`))
	if diff := cmp.Diff(want, records(d.memory.stored())); diff != "" {
		t.Error(diff)
	}
	if got := d.memory.stored()[2]; got.Reason != store.ReasonUnmapped || got.Code != 0 {
		t.Errorf("the unmapped one is stored as %q, %d", got.Reason, got.Code)
	}
	if n := d.metric("birdtap_receipts_unmapped_total"); n != 2 {
		t.Errorf("%v unmapped", n)
	}
}

// Nobody behind the door waits until a damaged map is fetched anew: a user who cannot be
// looked up is unmapped until then, and the others of the call are not held up.
func TestUserWhoCannotBeLookedUpIsUnmapped(t *testing.T) {
	t.Parallel()
	d := open(t)
	d.SetIdentities(mapped)
	body := `[` + of(`"u1"`) + `,` + of(`"broken"`) + `]`
	for _, got := range []answer{d.upload(body), d.callback(body)} {
		if got.status != 200 {
			t.Errorf("got %d %s", got.status, got.body)
		}
	}
	for i, r := range d.memory.stored() {
		if want := []store.Reason{"", store.ReasonUnmapped}[i%2]; r.Reason != want {
			t.Errorf("receipt %d has reason %q, want %q", i, r.Reason, want)
		}
	}
	if n := len(d.memory.stored()); n != 4 {
		t.Errorf("%d receipts stored, want 4", n)
	}
}

// The map may change between two calls, and under them.
func TestMapChangesUnderCalls(t *testing.T) {
	t.Parallel()
	d := open(t)
	var all sync.WaitGroup
	for n := range 4 {
		all.Go(func() {
			for i := range 20 {
				if n == 0 {
					d.SetIdentities(people{"u1": fmt.Sprint("c", i)})
				} else if got := d.upload(of(`"u1"`)); got.status != 200 {
					t.Errorf("got %d", got.status)
				}
			}
		})
	}
	all.Wait()
	for _, r := range d.memory.stored() {
		checkReceipt(t, r)
	}
}

func BenchmarkConvertMapped(b *testing.B) {
	body := benchBody(1000)
	var p parser
	c := converter{mapper: Mapper{Identities: people{"user-0123456789": "customer-1"}}}
	take := func(r *record) error { _, err := c.convert(r); return err }
	b.ReportAllocs()
	for b.Loop() {
		c.reset(benchTime)
		if err := p.parse(body, take); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*1000), "ns/record")
}
