package relay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/birdtap/birdtap/clevertap"
	"github.com/birdtap/birdtap/store"
	"github.com/birdtap/birdtap/store/storetest"
)

// campaignReceipt is a receipt of a campaign, of a user of its own.
func campaignReceipt(i int, event, status, target string, change ...func(*store.Receipt)) store.Receipt {
	return storetest.Receipt(i, append([]func(*store.Receipt){func(r *store.Receipt) {
		r.Record = fmt.Appendf(nil, `{"identity":"user-%d","ts":1700000000,"type":"event","evtName":%q,"evtData":{"status":%q,"target_id":%s}}`, i, event, status, target)
	}}, change...)...)
}

func refusedAtTheDoor(r *store.Receipt) {
	r.Reason, r.Code = store.ReasonRefused, 513
	r.Record = []byte(strings.Replace(string(r.Record), `"type":"event",`, "", 1))
}

// counts are those of the campaigns under a target id, without the time.
func (g *scene) counts(target string) map[string]store.CampaignCounts {
	g.t.Helper()
	rows, err := g.queue.Campaigns(context.Background(), target)
	if err != nil {
		g.t.Fatal(err)
	}
	counts := map[string]store.CampaignCounts{}
	for _, row := range rows {
		if row.Last == 0 {
			g.t.Errorf("%s has no time", row.Event)
		}
		row.Last = 0
		counts[row.Event] = row.CampaignCounts
	}
	return counts
}

func (g *scene) wantCounts(target string, want map[string]store.CampaignCounts) {
	g.t.Helper()
	if diff := cmp.Diff(want, g.counts(target)); diff != "" {
		g.t.Errorf("campaigns of target %s: (-want +got)\n%s", target, diff)
	}
}

func TestReceiptsAreCountedByEventAndTarget(t *testing.T) {
	g := setup(t)
	r := g.start()
	offer := func(i int, status string, change ...func(*store.Receipt)) store.Receipt {
		return campaignReceipt(i, "Offer", status, strconv.Itoa(i%2), change...)
	}
	const sent, read = 5, 4 // of target 0; those of target 1 beside them
	for i := range 2 * sent {
		g.commit(offer(i, "SENT"))
	}
	for i := range 2 * read {
		g.commit(offer(100+i, "READ"))
	}
	g.commit(offer(0, "SENT")) // a copy
	g.commit(offer(200, "SENT", refusedAtTheDoor), offer(202, "READ", refusedAtTheDoor))
	g.commit(campaignReceipt(300, "News", "READ", `"0"`), storetest.Receipt(301, func(r *store.Receipt) { r.Record = []byte(`{}`); r.Reason, r.Code = store.ReasonRefused, 509 }))
	g.wantSums(sums{accepted: 23, delivered: 19, deduplicated: 1, died: 3, dead: 3})
	g.wantCounts("0", map[string]store.CampaignCounts{
		"Offer": {SentDelivered: sent, SentDied: 1, ReadDelivered: read, ReadDied: 1},
		"News":  {ReadDelivered: 1},
	})
	g.wantCounts("1", map[string]store.CampaignCounts{"Offer": {SentDelivered: sent, ReadDelivered: read}})
	g.wantCounts("2", map[string]store.CampaignCounts{})

	// The dead that are replayed leave the dead, or die once more.
	if n := g.replay(); n != 3 {
		t.Fatalf("replayed %d", n)
	}
	eventually(t, "the replayed are settled", func() bool { return g.status().Queued == 0 })
	g.wantCounts("0", map[string]store.CampaignCounts{
		"Offer": {SentDelivered: sent, SentDied: 1, ReadDelivered: read, ReadDied: 1},
		"News":  {ReadDelivered: 1},
	})
	n, err := g.queue.Replay(t.Context(), store.ReplayOptions{
		Choose: func(l *store.Letter) bool { return l.Reason == store.ReasonRefused && l.Code == 513 },
		Renew: func(l store.Letter) store.Receipt {
			return campaignReceipt(1000, "Offer", clevertapStatus(l.Receipt.Record), "0")
		},
	})
	if err != nil || n != 2 {
		t.Fatalf("replayed %d, %v", n, err)
	}
	eventually(t, "the replayed are settled", func() bool { return g.status().Queued == 0 })
	want := map[string]store.CampaignCounts{"Offer": {SentDelivered: sent + 1, ReadDelivered: read + 1}, "News": {ReadDelivered: 1}}
	g.wantCounts("0", want)

	// What was delivered, and goes once more, was counted.
	if n, _, err := g.queue.ReplayDelivered(t.Context(), store.DeliveredOptions{Choose: func(*store.Receipt) bool { return true }}); err != nil || n == 0 {
		t.Fatalf("replayed %d, %v", n, err)
	}
	eventually(t, "the replayed are settled", func() bool { return g.status().Queued == 0 })
	g.wantCounts("0", want)
	r.stop()
	g.wantCounts("0", want)
}

// A letter that did not say which campaign it is of was not counted. Filled in by a
// replay it takes nothing from those that were.
func TestLettersThatWereNotCountedDoNotCountTwice(t *testing.T) {
	g := setup(t)
	g.start()
	g.commit(campaignReceipt(1, "Offer", "READ", "1", refusedAtTheDoor))
	g.commit(storetest.Receipt(2, func(r *store.Receipt) {
		r.Record, r.Reason, r.Code = []byte(`{"notification_id":"1"}`), store.ReasonRefused, 512
	}))
	g.wantSums(sums{accepted: 2, died: 2, dead: 2})
	g.wantCounts("1", map[string]store.CampaignCounts{"Offer": {ReadDied: 1}})
	unread := func(l store.Letter) bool { _, ok := clevertap.EventOf(l.Receipt.Record); return !ok }
	n, err := g.queue.Replay(t.Context(), store.ReplayOptions{
		Choose: func(l *store.Letter) bool { return unread(*l) }, Unread: unread,
		Renew: func(store.Letter) store.Receipt { return campaignReceipt(3, "Offer", "READ", "1") },
	})
	if err != nil || n != 1 {
		t.Fatalf("replayed %d, %v", n, err)
	}
	eventually(t, "the replayed is delivered", func() bool { return g.status().Delivered == 1 })
	g.wantCounts("1", map[string]store.CampaignCounts{"Offer": {ReadDelivered: 1, ReadDied: 1}})
}

func clevertapStatus(record []byte) string {
	e, _ := clevertap.EventOf(record)
	return e.Status
}

// Many more campaigns than a checkpoint has room for, killed again and again: whatever
// a crash leaves adds up, and in the end everything is counted once.
func TestCountsAddUpOverCrashes(t *testing.T) {
	g := setup(t)
	const n = 8000
	list := make([]store.Receipt, n)
	for i := range list {
		list[i] = campaignReceipt(i, "Event "+strconv.Itoa(i%4000), "SENT", "1")
	}
	g.commit(list...)
	for crash := range 3 {
		r := g.start()
		eventually(t, "some are delivered", func() bool { return g.status().Delivered >= uint64(1500*(crash+1)) })
		g = g.crash()
		st, sum := g.status(), int64(0)
		for _, c := range g.counts("1") {
			sum += c.SentDelivered
		}
		if sum != int64(st.Delivered) {
			t.Fatalf("after crash %d: %d counted, %d delivered", crash, sum, st.Delivered)
		}
		_ = r
	}
	g.start()
	g.wantSums(sums{accepted: n, delivered: n})
	counts := g.counts("1")
	for event, c := range maps.All(counts) {
		if c != (store.CampaignCounts{SentDelivered: 2}) {
			t.Fatalf("%s: %+v", event, c)
		}
	}
	if len(counts) != 4000 {
		t.Errorf("%d campaigns", len(counts))
	}
}

// unreadable is a queue whose pages cannot be read at first.
type unreadable struct {
	*store.Store
	failures atomic.Int32
}

func (q *unreadable) OpenCampaigns(ctx context.Context, owner string, changes store.CampaignChanges) (*store.Campaigns, error) {
	if q.failures.Add(-1) >= 0 {
		return nil, errors.New("the disk hiccups")
	}
	return q.Store.OpenCampaigns(ctx, owner, changes)
}

func TestPagesThatCannotBeReadAreReadLater(t *testing.T) {
	bubble(t, func(t *testing.T, g *scene) {
		q := &unreadable{Store: g.queue}
		q.failures.Store(3)
		g.commit(campaignReceipt(1, "Offer", "SENT", "1"))
		r := g.start(of(q))
		g.wantSums(sums{accepted: 1, delivered: 1})
		g.wantCounts("1", map[string]store.CampaignCounts{"Offer": {SentDelivered: 1}})
		r.stop()
	})
}

// The next term goes on from what the last one counted.
func TestCountsGoOnInTheNextTerm(t *testing.T) {
	g := setup(t)
	for i := range 5 {
		r := g.start()
		g.commit(campaignReceipt(i, "Offer", "SENT", "1"))
		g.wantSums(sums{accepted: uint64(i) + 1, delivered: uint64(i) + 1})
		r.stop()
	}
	g.wantCounts("1", map[string]store.CampaignCounts{"Offer": {SentDelivered: 5}})
}

func TestEveryEndingOfARecordIsTold(t *testing.T) {
	var tallies campaignTallies
	for range 2 {
		for record, want := range map[string]string{
			`{"identity":"a","ts":1,"type":"event","evtName":"A","evtData":{"status":"SENT","target_id":1}}`:                                                                                    "A 1 false",
			`{"identity":"b","ts":1,"type":"event","evtName":"A","evtData":{"status":"READ","target_id":1}}`:                                                                                    "A 1 true",
			`{"identity":"c","ts":1,"type":"event","evtName":"B","evtData":{"status":"SENT","target_id":"1"},"x":1}`:                                                                            "B 1 false",
			`{"identity":",\"type\":\"event\",\"evtName\":","ts":1,"type":"event","evtName":"C","evtData":{"status":"SENT","target_id":1}}`:                                                     "C 1 false",
			`{"identity":"d","ts":1,"type":"event","evtName":"D","evtData":{"status":"SENT","target_id":1},"x":{"a":1,"type":"event","evtName":"A","evtData":{"status":"SENT","target_id":1}}}`: "D 1 false",
			`{"identity":"e","ts":1,"type":"event","evtName":"A","evtData":{"status":"SENT","target_id":1,"note":"` + strings.Repeat("x", 2000) + `"}}`:                                         "A 1 false",
			`{"identity":"f","ts":1,"type":"event","evtName":"A","evtData":{"status":"NONE","target_id":1}}`:                                                                                    "none",
			`{}`: "none",
		} {
			c := tallies.of(&store.Receipt{Record: []byte(record)})
			got := fmt.Sprint(c.key.Event, " ", c.key.Target, " ", c.read)
			if c.none {
				got = "none"
			}
			if got != want {
				t.Errorf("%s: got %s, want %s", record, got, want)
			}
		}
	}
}

// BenchmarkCount is what counting adds to a receipt: of the campaign of the last one,
// of two in turn, and of one whose record ends as no other does.
func BenchmarkCount(b *testing.B) {
	record := func(status string, i int, unique bool) []byte {
		note := ""
		if unique {
			note = `,"notification_id":"` + strconv.Itoa(1e9+i) + `"`
		}
		return fmt.Appendf(nil, `{"identity":"user-%012d","ts":1700000000,"type":"event","evtName":"My First Campaign","evtData":{"status":%q,"target_id":123123%s}}`, i, status, note)
	}
	for name, make := range map[string]func(i int) []byte{
		"same":    func(i int) []byte { return record("SENT", i, false) },
		"in turn": func(i int) []byte { return record([]string{"SENT", "READ"}[i%2], i, false) },
		"unique":  func(i int) []byte { return record("SENT", i, true) },
	} {
		b.Run(name, func(b *testing.B) {
			list := [1 << 14]store.Receipt{}
			for i := range list {
				list[i].Record = make(i)
			}
			var campaigns store.Campaigns
			var tallies campaignTallies
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				if !tallies.add(&campaigns, tallies.of(&list[i%len(list)]), 1, 0) {
					b.Fatal("no room")
				}
				if i%1000 == 999 {
					tallies.gather(&campaigns)
				}
			}
		})
	}
}

// The term changes hands while campaigns are counted and pages written.
func TestTwoRelaysCountOnce(t *testing.T) {
	g := setup(t)
	const n, campaigns, rounds = 3000, 300, 4
	r := g.start(amongOthers)
	for round := range rounds {
		next := g.start(amongOthers)
		list := make([]store.Receipt, n)
		for i := range list {
			list[i] = campaignReceipt(round*n+i, "Event "+strconv.Itoa(i%campaigns), "READ", "1")
		}
		g.commit(list...)
		eventually(t, "some are delivered", func() bool { return g.status().Delivered > uint64(round*n+n/2) })
		r.stop()
		r = next
		eventually(t, "all are delivered", func() bool { return g.status().Delivered == uint64((round+1)*n) })
	}
	counts := g.counts("1")
	for event, c := range counts {
		if c != (store.CampaignCounts{ReadDelivered: rounds * n / campaigns}) {
			t.Fatalf("%s: %+v", event, c)
		}
	}
	if len(counts) != campaigns {
		t.Errorf("%d campaigns", len(counts))
	}
}
