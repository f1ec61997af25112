package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/birdtap/birdtap/store"
)

// campaignsJSON is what status --campaign --json prints. Its names are fixed; only new
// ones are added.
type campaignsJSON struct {
	TargetID  string         `json:"target_id"`
	Campaigns []campaignJSON `json:"campaigns"`
}

type campaignJSON struct {
	EventName    string       `json:"event_name"`
	Asked        int64        `json:"asked"` // users, as are the next four
	Sent         int64        `json:"sent"`
	Refused      int64        `json:"refused"`
	Held         int64        `json:"held"`
	Dropped      int64        `json:"dropped"`
	SentReceipts receiptsJSON `json:"sent_receipts"`
	ReadReceipts receiptsJSON `json:"read_receipts"`
	Last         time.Time    `json:"last"` // when one of them last changed
}

type receiptsJSON struct {
	Delivered int64 `json:"delivered"`
	Died      int64 `json:"died"`
}

func newCampaignsJSON(target string, all []store.Campaign) campaignsJSON {
	j := campaignsJSON{TargetID: target}
	for _, c := range all {
		j.Campaigns = append(j.Campaigns, campaignJSON{
			EventName: c.Event,
			Asked:     c.Asked, Sent: c.Sent, Refused: c.Refused, Held: c.Held, Dropped: c.Dropped,
			SentReceipts: receiptsJSON{c.SentDelivered, c.SentDied},
			ReadReceipts: receiptsJSON{c.ReadDelivered, c.ReadDied},
			Last:         time.UnixMilli(c.Last).UTC(),
		})
	}
	return j
}

// printCampaigns prints what became of the campaigns under a target id.
func (p *program) printCampaigns(ctx context.Context, target string, asJSON bool) error {
	var all []store.Campaign
	err := p.withStore(ctx, nil, func(ctx context.Context, s *store.Store) (err error) {
		if all, err = s.Campaigns(ctx, target); err != nil {
			return err
		}
		all, err = withWaiting(ctx, s, all, target)
		return err
	})
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return fmt.Errorf("nothing is known of a campaign with target id %q: no user was asked for and no receipt has ended, or it is not among the newest 10,000", shorten(target))
	}
	if asJSON {
		line, err := json.Marshal(newCampaignsJSON(target, all))
		if err != nil {
			return err
		}
		_, err = p.out.Write(append(line, '\n'))
		return err
	}
	return writeCampaigns(p.out, newCampaignsJSON(target, all))
}

// withWaiting adds the users who were asked for and whose notification is not settled.
func withWaiting(ctx context.Context, s *store.Store, all []store.Campaign, target string) ([]store.Campaign, error) {
	sends, err := sendsStatus(ctx, s)
	if err != nil || sends == nil {
		return all, err
	}
	for key, n := range sends.Campaigns {
		if key.Target != store.NewCampaignKey("", target).Target {
			continue
		}
		i := slices.IndexFunc(all, func(c store.Campaign) bool { return c.CampaignKey == key })
		if i < 0 {
			i = len(all)
			all = append(all, store.Campaign{CampaignKey: key, CampaignCounts: store.CampaignCounts{Last: time.Now().UnixMilli()}})
		}
		all[i].Asked += n
	}
	return all, nil
}

// writeCampaigns is a small table for each event name.
func writeCampaigns(w io.Writer, j campaignsJSON) error {
	for i, c := range j.Campaigns {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "%s, target id %s, last change %s\n\n", printable(c.EventName), printable(shorten(j.TargetID)), c.Last.Format(time.RFC3339))
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintf(t, "  users\tasked for\tsent\trefused\theld\tdropped\t\n  \t%s\t%s\t%s\t%s\t%s\t\n",
			howMany(c.Asked), howMany(c.Sent), howMany(c.Refused), howMany(c.Held), howMany(c.Dropped))
		if err := t.Flush(); err != nil {
			return err
		}
		t = tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintf(t, "  receipts\tdelivered\tdied\t\n  SENT\t%s\t%s\t\n  READ\t%s\t%s\t\n",
			howMany(c.SentReceipts.Delivered), howMany(c.SentReceipts.Died), howMany(c.ReadReceipts.Delivered), howMany(c.ReadReceipts.Died))
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func howMany(n int64) string { return thousands(uint64(max(0, n))) }
