package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
)

// playedDisk keeps pages in memory, and may lose a write or its answer.
type playedDisk struct {
	pages    [campaignPages]campaignPage
	revision uint64
	fail     func() (lostWrite, lostAnswer bool)
}

var errLost = errors.New("no answer")

func (d *playedDisk) read(_ context.Context, page int) (campaignPage, error) {
	p := d.pages[page]
	p.counts = maps.Clone(p.counts)
	return p, nil
}

func (d *playedDisk) write(_ context.Context, page int, p campaignPage, data []byte) (uint64, error) {
	lostWrite, lostAnswer := d.fail()
	if lostWrite {
		return 0, errLost
	}
	if d.pages[page].revision != p.revision {
		return 0, ErrConflict
	}
	stored, err := decodePage(data)
	if err != nil {
		return 0, err
	}
	d.revision++
	stored.revision = d.revision
	d.pages[page] = stored
	if lostAnswer {
		return 0, errLost
	}
	return d.revision, nil
}

// playedCheckpoint is what is on disk, and what is exact by it.
type playedCheckpoint struct {
	changes CampaignChanges
	truth   map[CampaignKey]int64
}

// Writers count, write checkpoints and pages, lose answers, are killed at any point, and
// go on a while although another one has taken over. Whoever reads finds exactly what
// the checkpoint on disk has counted.
func TestCampaignsAreExactWhateverHappens(t *testing.T) {
	seeds := 200
	if testing.Short() {
		seeds = 30
	}
	var flushes, takeovers, late int
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(uint64(seed), 1))
		lossy := rng.IntN(3) == 0
		disk := &playedDisk{fail: func() (bool, bool) { return lossy && rng.IntN(10) == 0, lossy && rng.IntN(10) == 0 }}
		stands := playedCheckpoint{truth: map[CampaignKey]int64{}}
		open := func() (*Campaigns, map[CampaignKey]int64) {
			c, err := openCampaigns(t.Context(), disk, zap.NewNop(), stands.changes)
			if err != nil {
				t.Fatal(err)
			}
			return c, maps.Clone(stands.truth)
		}
		check := func(step int) {
			t.Helper()
			rows, err := readCampaigns(t.Context(), disk, func(context.Context) (CampaignChanges, error) { return stands.changes, nil })
			if err != nil {
				t.Fatal(err)
			}
			got := map[CampaignKey]int64{}
			for _, row := range rows {
				got[row.CampaignKey] = row.SentDelivered
			}
			if !maps.Equal(stands.truth, got) {
				t.Fatalf("seed %d, step %d: (-counted +read)\n%s", seed, step, cmp.Diff(stands.truth, got))
			}
		}
		holder, counted := open()
		var dethroned []*Campaigns
		names := 1 + rng.IntN(300)
		for step := range 120 {
			switch rng.IntN(8) {
			case 0, 1, 2:
				for range rng.IntN(100) {
					key := NewCampaignKey("Event "+strconv.Itoa(rng.IntN(names)), "1")
					if holder.Add(key, CampaignCounts{SentDelivered: 1}) {
						counted[key]++
					}
				}
			case 3, 4: // a checkpoint: it stands and is known to, or nobody knows, or it is lost
				changes := holder.Changes()
				fate := rng.IntN(6)
				if fate < 5 {
					stands = playedCheckpoint{changes, maps.Clone(counted)}
				}
				if fate < 4 {
					holder.Confirm(changes)
				}
			case 5:
				if holder.Due() {
					flushes++
				}
				_ = holder.Flush(t.Context())
			case 6: // killed, or replaced without knowing it yet
				if rng.IntN(3) == 0 {
					takeovers++
					dethroned = append(dethroned, holder)
					holder, counted = open()
				}
			case 7:
				for _, c := range dethroned[max(0, len(dethroned)-2):] {
					late++
					_ = c.Flush(t.Context())
				}
			}
			check(step)
		}
	}
	if flushes == 0 || takeovers == 0 || late == 0 {
		t.Errorf("too tame to prove anything: %d flushes, %d take-overs, %d late flushes", flushes, takeovers, late)
	}
}

func perfect() (bool, bool) { return false, false }

// flushed brings everything onto pages.
func flushed(t testing.TB, c *Campaigns) CampaignChanges {
	t.Helper()
	for {
		changes := c.Changes()
		c.Confirm(changes)
		if !c.Due() {
			return changes
		}
		if err := c.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTheNewestCampaignsAreKept(t *testing.T) {
	for _, n := range []int{maxCampaigns - 1, maxCampaigns, maxCampaigns + 1, maxCampaigns + 2*maxBeyond} {
		disk := &playedDisk{fail: perfect}
		c, err := openCampaigns(t.Context(), disk, zap.NewNop(), CampaignChanges{})
		if err != nil {
			t.Fatal(err)
		}
		key := func(i int) CampaignKey { return NewCampaignKey("Event", strconv.Itoa(i)) }
		for i := range n {
			for !c.Add(key(i), CampaignCounts{Sent: 1}) {
				flushed(t, c)
			}
		}
		changes := flushed(t, c)
		rows, err := readCampaigns(t.Context(), disk, func(context.Context) (CampaignChanges, error) { return changes, nil })
		if err != nil {
			t.Fatal(err)
		}
		wantEqual(t, "campaigns", len(rows), min(n, maxCampaigns))
		onPages := len(changes.New)
		for _, p := range disk.pages {
			onPages += len(p.counts)
		}
		if onPages > maxCampaigns+maxBeyond+freezeAbove {
			t.Errorf("of %d campaigns %d are on pages and in the checkpoint", n, onPages)
		}
		for _, row := range rows {
			if row.CampaignKey == key(n-1) {
				return
			}
		}
		t.Errorf("of %d campaigns the last one is not kept", n)
	}
}

// What New cannot take is refused, and is taken once pages were written.
func TestChangesFitACheckpoint(t *testing.T) {
	disk := &playedDisk{fail: perfect}
	c, err := openCampaigns(t.Context(), disk, zap.NewNop(), CampaignChanges{})
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("\x01", 1000)
	many := CampaignCounts{Asked: 1e9, Sent: 1e9, Refused: 1e9, Held: 1e9, Dropped: 1e9}
	fill := func(from int) int {
		i := from
		for c.Add(NewCampaignKey(long+strconv.Itoa(i), long), many) {
			i++
		}
		return i
	}
	first := fill(0)
	c.Changes()
	second := fill(first)
	if first < 100 || second < first+100 {
		t.Errorf("there is room for %d and %d campaigns", first, second-first)
	}
	changes := c.Changes()
	if data, err := encodeCheckpoint(Checkpoint{Floor: 1, Campaigns: changes}); err != nil || len(data) > 2*maxFreshBytes+1000 || len(data) < maxFreshBytes {
		t.Errorf("a checkpoint of %d bytes, %v", len(data), err)
	}
	c.Confirm(changes)
	if err := c.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c.Add(NewCampaignKey(long+"one more", long), many) {
		t.Error("one more is taken before there is room")
	}
	if c.Changes(); !c.Add(NewCampaignKey(long+"one more", long), many) {
		t.Error("one more is refused although there is room")
	}
}

func TestLongNamesStayApart(t *testing.T) {
	if k := NewCampaignKey("Offer", "123123"); k != (CampaignKey{"Offer", "123123"}) {
		t.Errorf("got %q", k)
	}
	seen := map[CampaignKey]string{}
	for _, s := range []string{
		strings.Repeat("x", 300), strings.Repeat("x", 301), strings.Repeat("é", 130), strings.Repeat("é", 131),
		strings.Repeat("\x00", 100), strings.Repeat("\x00", 101), strings.Repeat("😀", 128<<8), strings.Repeat(`"`, 200), "bad \xff",
	} {
		k := NewCampaignKey(s, s)
		if other, found := seen[k]; found {
			t.Errorf("%.20q and %.20q are one", s, other)
		}
		seen[k] = s
		if !utf8.ValidString(k.Event) || quotedLen(k.Event) > maxEventBytes || quotedLen(k.Target) > maxTargetBytes {
			t.Errorf("%.20q: got %q", s, k)
		}
		if again := NewCampaignKey(k.Event, k.Target); again != k {
			t.Errorf("a key made of a key differs: %q, %q", k, again)
		}
	}
}

// Pages that are all chosen for one place stay within a message.
func TestPageIsBounded(t *testing.T) {
	p := campaignPage{counts: map[CampaignKey]CampaignCounts{}}
	for i := range maxCampaigns {
		p.counts[NewCampaignKey(strings.Repeat("\x01", 100)+strconv.Itoa(i), "1")] = CampaignCounts{Sent: 1e12, Last: int64(i)}
	}
	data, err := encodePage(&p)
	if err != nil || len(data) > maxPageBytes || len(p.counts) < 2000 {
		t.Fatalf("%d campaigns in %d bytes, %v", len(p.counts), len(data), err)
	}
	for _, counts := range p.counts {
		if counts.Last < maxCampaigns/10 {
			t.Fatal("an old one is kept")
		}
	}
}

// A birdtap that does not count writes a checkpoint without the field: what was on
// pages stays, and no epoch is used twice.
func TestCampaignsGoOnAfterACheckpointWithoutThem(t *testing.T) {
	disk := &playedDisk{fail: perfect}
	c, err := openCampaigns(t.Context(), disk, zap.NewNop(), CampaignChanges{})
	if err != nil {
		t.Fatal(err)
	}
	fill := func(c *Campaigns) {
		for i := range freezeAbove + 1 {
			c.Add(NewCampaignKey("Event "+strconv.Itoa(i), "1"), CampaignCounts{Sent: 1})
		}
	}
	fill(c)
	flushed(t, c)
	if c, err = openCampaigns(t.Context(), disk, zap.NewNop(), CampaignChanges{}); err != nil {
		t.Fatal(err)
	}
	fill(c)
	changes := flushed(t, c)
	rows, err := readCampaigns(t.Context(), disk, func(context.Context) (CampaignChanges, error) { return changes, nil })
	if err != nil || len(rows) != freezeAbove+1 {
		t.Fatalf("%d campaigns, %v", len(rows), err)
	}
	for _, row := range rows {
		wantEqual(t, row.Event, row.Sent, 2)
	}
}

func TestCountsAreNeverShownNegative(t *testing.T) {
	key := NewCampaignKey("Event", "1")
	changes := CampaignChanges{New: []Campaign{{key, CampaignCounts{SentDied: -1, SentDelivered: 1}}}}
	rows, err := readCampaigns(t.Context(), &playedDisk{fail: perfect}, func(context.Context) (CampaignChanges, error) { return changes, nil })
	if err != nil || len(rows) != 1 || rows[0].SentDied != 0 || rows[0].SentDelivered != 1 {
		t.Errorf("got %+v, %v", rows, err)
	}
}

// The real queue: checkpoints and pages over a crash, and both writers beside each other.
func TestCampaignsOverACrash(t *testing.T) {
	dir := t.TempDir() + "/data"
	s := openStore(t, on(dir))
	c, err := s.OpenCampaigns(t.Context(), CampaignsOfRelay, CampaignChanges{})
	if err != nil {
		t.Fatal(err)
	}
	rev := uint64(0)
	checkpoint := func() {
		changes := c.Changes()
		if rev, err = s.WriteCheckpoint(t.Context(), Checkpoint{Floor: 1, Campaigns: changes}, rev); err != nil {
			t.Fatal(err)
		}
		c.Confirm(changes)
	}
	count := func(n int) {
		for i := range n {
			if !c.Add(NewCampaignKey("Event "+strconv.Itoa(i), "123"), CampaignCounts{SentDelivered: 1, ReadDied: 1}) {
				t.Fatal("no room")
			}
		}
	}
	want := func(s *Store, n int, each int64) {
		t.Helper()
		rows, err := s.Campaigns(t.Context(), "123")
		if err != nil || len(rows) != n {
			t.Fatalf("%d campaigns, %v; want %d", len(rows), err, n)
		}
		for _, row := range rows {
			if row.SentDelivered != each || row.ReadDied != each {
				t.Fatalf("got %+v, want %d each", row, each)
			}
		}
	}
	count(200)
	want(s, 0, 0)
	checkpoint() // frozen
	count(200)
	want(s, 200, 1)
	checkpoint()
	want(s, 200, 2)
	want(openStore(t, on(crash(t, dir))), 200, 2)
	if err := c.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(s, 200, 2)
	crashed := openStore(t, on(crash(t, dir)))
	want(crashed, 200, 2)
	cp, _, err := crashed.ReadCheckpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if c, err = crashed.OpenCampaigns(t.Context(), CampaignsOfRelay, cp.Campaigns); err != nil {
		t.Fatal(err)
	}
	s, rev = crashed, 0
	if _, rev, err = s.ReadCheckpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	count(200)
	checkpoint()
	want(s, 200, 3)

	sends, err := s.OpenSends(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer sends.Close()
	const sender = `{"other":[1],"campaigns":{"epoch":7,"new":[{"e":"Event 1","t":"123","a":5,"s":4,"h":1,"l":1700000000000}]}}`
	if _, err := sends.WriteCheckpoint(t.Context(), []byte(sender), 0); err != nil {
		t.Fatal(err)
	}
	rows, err := s.Campaigns(t.Context(), "123")
	if err != nil || len(rows) != 200 {
		t.Fatalf("%d campaigns, %v", len(rows), err)
	}
	for _, row := range rows {
		if row.Event == "Event 1" && (row.Asked != 5 || row.Sent != 4 || row.Held != 1 || row.SentDelivered != 3) {
			t.Errorf("got %+v", row)
		}
	}
}

// A writer that lost its term without knowing writes late, after its successor.
func TestOfTwoWritersOfPagesNoneDestroysTheOther(t *testing.T) {
	s := openStore(t)
	old, err := s.OpenCampaigns(t.Context(), CampaignsOfRelay, CampaignChanges{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range freezeAbove + 10 {
		old.Add(NewCampaignKey("Event "+strconv.Itoa(i), "1"), CampaignCounts{SentDelivered: 1})
	}
	changes := old.Changes()
	old.Confirm(changes)
	successor, err := s.OpenCampaigns(t.Context(), CampaignsOfRelay, changes)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(successor.Flush(t.Context()), old.Flush(t.Context())); err != nil {
		t.Fatal(err)
	}
	for i := range freezeAbove + 10 {
		successor.Add(NewCampaignKey("Event "+strconv.Itoa(i), "1"), CampaignCounts{SentDelivered: 1})
	}
	latest := flushed(t, successor)
	_ = old.Flush(t.Context())
	rows, err := readCampaigns(t.Context(), pagesOf{s, CampaignsOfRelay}, func(context.Context) (CampaignChanges, error) { return latest, nil })
	if err != nil || len(rows) != freezeAbove+10 {
		t.Fatalf("%d campaigns, %v", len(rows), err)
	}
	for _, row := range rows {
		wantEqual(t, row.Event, row.SentDelivered, 2)
	}
}

func TestDamagedPageBeginsAnew(t *testing.T) {
	s := openStore(t)
	for i := range campaignPages {
		if _, err := s.js.Publish(t.Context(), fmt.Sprintf("%s.relay.%d", s.names.campaigns, i), []byte("damaged")); err != nil {
			t.Fatal(err)
		}
	}
	c, err := s.OpenCampaigns(t.Context(), CampaignsOfRelay, CampaignChanges{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range freezeAbove + 1 {
		c.Add(NewCampaignKey("Event "+strconv.Itoa(i), "1"), CampaignCounts{SentDelivered: 1})
	}
	changes := flushed(t, c)
	rows, err := readCampaigns(t.Context(), pagesOf{s, CampaignsOfRelay}, func(context.Context) (CampaignChanges, error) { return changes, nil })
	if err != nil || len(rows) != freezeAbove+1 {
		t.Errorf("%d campaigns, %v", len(rows), err)
	}
}

// One goroutine counts and makes checkpoints while another writes pages.
func TestCampaignsAreSafeForConcurrentUse(t *testing.T) {
	disk := &playedDisk{fail: perfect}
	c, err := openCampaigns(t.Context(), disk, zap.NewNop(), CampaignChanges{})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				if err := c.Flush(t.Context()); err != nil {
					t.Error(err)
				}
			}
		}
	})
	counted := 0
	for i := range 20_000 {
		if c.Add(NewCampaignKey("Event "+strconv.Itoa(i%500), "1"), CampaignCounts{Sent: 1}) {
			counted++
		}
		if i%50 == 0 {
			c.Confirm(c.Changes())
		}
	}
	close(done)
	all.Wait()
	changes := flushed(t, c)
	rows, err := readCampaigns(t.Context(), disk, func(context.Context) (CampaignChanges, error) { return changes, nil })
	if err != nil {
		t.Fatal(err)
	}
	sum := int64(0)
	for _, row := range rows {
		sum += row.Sent
	}
	wantEqual(t, "counted", sum, int64(counted))
}
