package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// storedPage is a page as it lies on the state stream. It outlives a deploy: fields are
// only added.
type storedPage struct {
	Format    int        `json:"format"` // pageFormat
	Epoch     uint64     `json:"epoch"`
	Campaigns []Campaign `json:"campaigns"`
}

const pageFormat = 1

// encodePage leaves out the oldest campaigns of a page that is too large, which takes
// somebody who chooses names so that they fall on one page.
func encodePage(p *campaignPage) ([]byte, error) {
	rows := make([]Campaign, 0, len(p.counts))
	for key, counts := range p.counts {
		rows = append(rows, Campaign{key, counts})
	}
	slices.SortFunc(rows, newestFirst)
	for {
		data, err := json.Marshal(storedPage{Format: pageFormat, Epoch: p.epoch, Campaigns: rows})
		if err != nil || len(data) <= maxPageBytes {
			return data, err
		}
		keep := len(rows) * maxPageBytes / len(data) * 9 / 10
		for _, row := range rows[keep:] {
			delete(p.counts, row.CampaignKey)
		}
		rows = rows[:keep]
	}
}

func decodePage(data []byte) (campaignPage, error) {
	var stored storedPage
	if err := json.Unmarshal(data, &stored); err != nil {
		return campaignPage{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if stored.Format != pageFormat {
		return campaignPage{}, fmt.Errorf("%w: format %d, this birdtap reads %d", ErrCorrupt, stored.Format, pageFormat)
	}
	p := campaignPage{epoch: stored.Epoch, counts: make(map[CampaignKey]CampaignCounts, len(stored.Campaigns))}
	for _, row := range stored.Campaigns {
		p.counts[row.CampaignKey] = row.CampaignCounts
	}
	return p, nil
}

// pagesOf are the pages of an owner on the state stream.
type pagesOf struct {
	store *Store
	owner string
}

func (d pagesOf) subject(page int) string {
	return d.store.names.campaigns + "." + d.owner + "." + strconv.Itoa(page)
}

// read returns an empty page where there is none. One that does not decode is told, and
// counts as empty: receipts must not wait for their statistics.
func (d pagesOf) read(ctx context.Context, page int) (campaignPage, error) {
	msg, err := d.store.lastMsg(ctx, d.store.state, d.subject(page))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return campaignPage{}, nil
	}
	if err != nil {
		return campaignPage{}, fmt.Errorf("read counts per campaign: %w", err)
	}
	p, err := decodePage(msg.Data)
	if err != nil {
		d.store.log.Error("counts per campaign do not decode: those on this page begin anew", zap.String("subject", d.subject(page)), zap.Error(err))
	}
	p.revision = msg.Sequence
	return p, nil
}

func (d pagesOf) write(ctx context.Context, page int, p campaignPage, data []byte) (uint64, error) {
	ack, err := d.store.publish(ctx, &nats.Msg{Subject: d.subject(page), Data: data},
		jetstream.WithExpectLastSequencePerSubject(p.revision), jetstream.WithRetryAttempts(0))
	switch {
	case isConflict(err):
		return 0, ErrConflict
	case err != nil:
		return 0, err
	}
	return ack.Sequence, nil
}

// RelayCampaigns are the receipts per campaign, exact as of one checkpoint of the relay.
func (s *Store) RelayCampaigns(ctx context.Context) ([]Campaign, error) {
	return readCampaigns(ctx, pagesOf{s, CampaignsOfRelay}, func(ctx context.Context) (CampaignChanges, error) {
		cp, _, err := s.ReadCheckpoint(ctx)
		return cp.Campaigns, err
	})
}

// senderFormat is the newest format of the sender's checkpoint whose campaigns are known.
const senderFormat = 1

// SenderCampaigns are the users per campaign, exact as of one checkpoint of the sender:
// that is JSON, and its member "campaigns" a CampaignChanges.
func (s *Store) SenderCampaigns(ctx context.Context) ([]Campaign, error) {
	return readCampaigns(ctx, pagesOf{s, CampaignsOfSender}, func(ctx context.Context) (CampaignChanges, error) {
		var raw jsontext.Value
		if rev, err := s.readState(ctx, s.names.sender, &raw); rev == 0 || err != nil {
			return CampaignChanges{}, err
		}
		if err := NewerFormat(raw, senderFormat); err != nil {
			return CampaignChanges{}, fmt.Errorf("checkpoint of the sender %w", err)
		}
		var cp struct {
			Campaigns CampaignChanges `json:"campaigns"`
		}
		if err := json.Unmarshal(raw, &cp); err != nil {
			return CampaignChanges{}, fmt.Errorf("%w: checkpoint of the sender: %w", ErrCorrupt, err)
		}
		return cp.Campaigns, nil
	})
}

// Campaigns are the counts of both, of the campaigns under a target id, the newest first.
func (s *Store) Campaigns(ctx context.Context, target string) ([]Campaign, error) {
	target = NewCampaignKey("", target).Target
	sum := map[CampaignKey]CampaignCounts{}
	for _, read := range []func(context.Context) ([]Campaign, error){s.SenderCampaigns, s.RelayCampaigns} {
		rows, err := read(ctx)
		if err != nil {
			return nil, err
		}
		for _, row := range rows {
			if row.Target == target {
				addTo(sum, row)
			}
		}
	}
	found := campaignsIn(sum)
	slices.SortFunc(found, newestFirst)
	return found, nil
}

func addTo(sum map[CampaignKey]CampaignCounts, row Campaign) {
	counts := sum[row.CampaignKey]
	counts.add(row.CampaignCounts)
	sum[row.CampaignKey] = counts
}

func campaignsIn(sum map[CampaignKey]CampaignCounts) []Campaign {
	rows := make([]Campaign, 0, len(sum))
	for key, counts := range sum {
		rows = append(rows, Campaign{key, counts})
	}
	return rows
}

// movedTries is how often the pages are read anew because they moved on meanwhile. Where
// they stay ahead of the checkpoint that one is older than they are; see openCampaigns.
const movedTries = 10

// readCampaigns adds up pages and changes. A page is ahead of a checkpoint only if a
// newer one stood before it was written: then both are read once more.
func readCampaigns(ctx context.Context, disk campaignDisk, read func(context.Context) (CampaignChanges, error)) ([]Campaign, error) {
	for try := 1; ; try++ {
		changes, err := read(ctx)
		if err != nil {
			return nil, err
		}
		sum := map[CampaignKey]CampaignCounts{}
		var epochs [campaignPages]uint64
		moved := false
		for i := range campaignPages {
			p, err := disk.read(ctx, i)
			if err != nil {
				return nil, err
			}
			maps.Copy(sum, p.counts)
			epochs[i] = p.epoch
			moved = moved || p.epoch > changes.Epoch
		}
		if moved && try < movedTries {
			continue
		}
		for _, row := range changes.Frozen {
			if epochs[row.page()] < changes.Epoch {
				addTo(sum, row)
			}
		}
		for _, row := range changes.New {
			addTo(sum, row)
		}
		rows := campaignsIn(sum)
		slices.SortFunc(rows, newestFirst)
		rows = rows[:min(len(rows), maxCampaigns)]
		for i := range rows {
			rows[i].notNegative()
		}
		return rows, nil
	}
}
