package main

import (
	"net/http"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
)

func TestStatusOfACampaign(t *testing.T) {
	d := startDaemon(t)
	for _, record := range []string{
		`{"identity":"u1","evtName":"Offer","evtData":{"status":"SENT","target_id":123}}`,
		`{"identity":"u2","evtName":"Offer","evtData":{"status":"SENT","target_id":"123"}}`,
		`{"identity":"u1","evtName":"Offer","evtData":{"status":"READ","target_id":123}}`,
		`{"identity":"u1","evtName":"Stayed","evtData":{"status":"READ","target_id":123}}`, // 513
		`{"identity":"u1","evtName":"Offer","evtData":{"status":"SENT","target_id":124}}`,
	} {
		if code, body := d.post(t, record); code != http.StatusOK {
			t.Fatalf("answer %d %s", code, body)
		}
	}
	account := func() (j campaignsJSON) {
		got := birdtap(t, d.environ, "status", "--campaign", "123", "--json")
		_ = json.Unmarshal([]byte(got.out), &j) // nothing is known of it at first
		for i := range j.Campaigns {
			if j.Campaigns[i].Last.IsZero() {
				t.Error("no time")
			}
		}
		return j
	}
	eventually(t, "all are counted", func() bool {
		sum := int64(0)
		for _, c := range account().Campaigns {
			sum += c.SentReceipts.Delivered + c.ReadReceipts.Delivered + c.ReadReceipts.Died
		}
		return sum == 4
	})
	if err := d.stop(); err != nil {
		t.Error(err)
	}
	got := account()
	if len(got.Campaigns) != 2 || got.TargetID != "123" {
		t.Fatalf("got %+v", got)
	}
	for _, c := range got.Campaigns {
		want := campaignJSON{EventName: "Offer", SentReceipts: receiptsJSON{Delivered: 2}, ReadReceipts: receiptsJSON{Delivered: 1}, Last: c.Last}
		if c.EventName == "Stayed" {
			want = campaignJSON{EventName: "Stayed", ReadReceipts: receiptsJSON{Died: 1}, Last: c.Last}
		}
		if c != want {
			t.Errorf("got %+v, want %+v", c, want)
		}
	}
	if table := birdtap(t, d.environ, "status", "--campaign", "123").out; !strings.Contains(table, "Offer, target id 123") || !strings.Contains(table, "SENT") {
		t.Errorf("got %s", table)
	}
	if unknown := birdtap(t, d.environ, "status", "--campaign", "125"); unknown.code != 1 || !strings.Contains(unknown.err, `nothing is known of a campaign with target id "125"`) {
		t.Errorf("an unknown one: %+v", unknown)
	}
	if empty := birdtap(t, d.environ, "status", "--campaign", ""); empty.code != 2 {
		t.Errorf("none: %+v", empty)
	}
}
