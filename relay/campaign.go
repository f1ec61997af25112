package relay

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/birdtap/birdtap/clevertap"
	"github.com/birdtap/birdtap/store"
)

// Every receipt counts once for its campaign, by what became of it: delivered, or dead;
// a copy that was dropped does not. It counts together with the checkpoint that settles
// it, so a crash neither loses nor doubles one:
//
//	it came              delivered              died
//	from the door        delivered +1           died +1
//	from the dead        delivered +1, died -1  nothing: it was dead before
//	from the delivered   nothing                delivered -1, died +1
//
// (One that said of no campaign when it died counts, if it says so now, as from the door.)
// So at rest delivered + died is the number of receipts of the campaign.

// campaignTally gathers the receipts of one campaign and status between two checkpoints.
type campaignTally struct {
	key             store.CampaignKey
	none            bool // no campaign can be read
	read            bool // READ, else SENT
	touched         bool // since the last checkpoint was made up
	delivered, died int64
}

func (c *campaignTally) counts(delivered, died int64) store.CampaignCounts {
	if c.read {
		return store.CampaignCounts{ReadDelivered: delivered, ReadDied: died}
	}
	return store.CampaignCounts{SentDelivered: delivered, SentDied: died}
}

// campaignTallies finds the tally of a record. The door writes records in one order:
//
//	{"identity":"…","ts":N,"type":"event","evtName":"…","evtData":{"status":"SENT","target_id":N}}
//
// so what follows the time is equal for all receipts of a campaign and status, and
// nearly always a record ends as the one before it. Only an ending that is not known is
// parsed. It can stand nowhere but there: a comma and a quote end any string before it,
// and it closes as many braces as it takes to end the record.
type campaignTallies struct {
	last    knownEnding // of the last record
	endings map[string]knownEnding
	byKey   map[tallyKey]*campaignTally
	touched []*campaignTally
}

type tallyKey struct {
	store.CampaignKey
	read bool
}

// knownEnding is how records of one campaign and status end.
type knownEnding struct {
	text  string
	tally *campaignTally
}

var endingBegins = []byte(`,"type":"event","evtName":`)

// Bounds of what is remembered. Beyond them it begins anew, which costs time only.
const (
	maxEndings     = 1024
	maxEndingBytes = 1024
)

// of finds the tally of a receipt.
func (t *campaignTallies) of(r *store.Receipt) *campaignTally {
	if r.Reason == store.ReasonRefused {
		return t.parse(r.Record) // the record as it came, in any order
	}
	if n := len(r.Record) - len(t.last.text); t.last.tally != nil && n >= 0 && string(r.Record[n:]) == t.last.text {
		return t.last.tally
	}
	at := bytes.Index(r.Record, endingBegins)
	if at < 0 || len(r.Record)-at > maxEndingBytes {
		return t.parse(r.Record)
	}
	e, known := t.endings[string(r.Record[at:])]
	if !known {
		e = knownEnding{string(r.Record[at:]), t.parse(r.Record)}
		if t.endings == nil || len(t.endings) >= maxEndings {
			t.endings = map[string]knownEnding{}
		}
		t.endings[e.text] = e
	}
	t.last = e
	return e.tally
}

func (t *campaignTallies) parse(record []byte) *campaignTally {
	e, ok := clevertap.EventOf(record)
	if !ok {
		return &campaignTally{none: true}
	}
	key := tallyKey{store.NewCampaignKey(e.Name, e.TargetID), e.Status == "READ"}
	c, known := t.byKey[key]
	if !known {
		c = &campaignTally{key: key.CampaignKey, read: key.read}
		if t.byKey == nil || len(t.byKey) >= maxEndings {
			t.byKey = map[tallyKey]*campaignTally{}
		}
		t.byKey[key] = c
	}
	return c
}

// add counts a receipt for a tally. It returns false, and has counted nothing, if there
// is no room for its campaign; see store.Campaigns.Add.
func (t *campaignTallies) add(to *store.Campaigns, c *campaignTally, delivered, died int64) bool {
	switch {
	case c.none:
	case c.touched: // there is room for it until the next checkpoint is made up
		c.delivered += delivered
		c.died += died
	case !to.Add(c.key, c.counts(delivered, died)):
		return false
	default:
		c.touched = true
		t.touched = append(t.touched, c)
	}
	return true
}

// gather hands over what was counted, for a checkpoint that is about to be made up.
func (t *campaignTallies) gather(to *store.Campaigns) {
	for i, c := range t.touched {
		if c.delivered != 0 || c.died != 0 {
			to.Add(c.key, c.counts(c.delivered, c.died))
		}
		c.touched, c.delivered, c.died = false, 0, 0
		t.touched[i] = nil
	}
	t.touched = t.touched[:0]
}

// campaignChange is what a receipt that ends changes for its campaign; see above.
func campaignChange(how ending, f *frame) (toDelivered, toDied int64) {
	replay := f.replay
	if f.unread {
		replay = store.ReplayNone
	}
	switch {
	case how == deduplicated:
		return 0, 0
	case how == delivered && replay == store.ReplayNone:
		return 1, 0
	case how == delivered && replay == store.ReplayDead:
		return 1, -1
	case how == died && replay == store.ReplayNone:
		return 0, 1
	case how == died && replay == store.ReplayDelivered:
		return -1, 1
	}
	return 0, 0
}

// uncounted is a receipt that has ended and is not settled yet: so many campaigns have
// changed that there is no room for its own in a checkpoint. It is settled when pages
// were written. Until then its batch keeps its slot and its users, so that no more of
// them come than are in flight.
type uncounted struct {
	item   *item
	how    ending
	tally  *campaignTally
	upload *upload // that it came of; nil if it never left
}

// count counts a receipt that ends. Where there is no room for its campaign it returns
// the tally, and has counted nothing.
func (t *term) count(i *item, how ending) *campaignTally {
	toDelivered, toDied := campaignChange(how, i.frame)
	if toDelivered == 0 && toDied == 0 || i.receipt.Reason == store.ReasonCorrupt {
		return nil
	}
	c := t.tallies.of(i.receipt)
	if t.tallies.add(t.campaigns, c, toDelivered, toDied) {
		return nil
	}
	return c
}

// settle ends a receipt's journey, or puts that off until it can be counted. u is the
// batch that it came of, nil if it never left.
func (t *term) settle(i *item, how ending, u *upload) {
	if u != nil {
		u.settledBy = t.begun + 1
	}
	c := t.count(i, how)
	if c == nil {
		t.ended(i, how)
		return
	}
	i.done = true // it is not to leave
	t.uncounted = append(t.uncounted, uncounted{i, how, c, u})
	if u != nil {
		u.uncounted++
	}
	t.dirty = t.dirty || !t.flushing // the way to room leads over a checkpoint
}

// recount settles what was put off, as far as there is room now.
func (t *term) recount() {
	rest := t.uncounted[:0]
	for _, w := range t.uncounted {
		toDelivered, toDied := campaignChange(w.how, w.item.frame)
		if !t.tallies.add(t.campaigns, w.tally, toDelivered, toDied) {
			rest = append(rest, w)
			continue
		}
		t.ended(w.item, w.how)
		if u := w.upload; u != nil {
			u.uncounted--
			u.settledBy = t.begun + 1
			t.finish(u)
		}
	}
	clear(t.uncounted[len(rest):])
	t.uncounted = rest
}

// openCampaigns reads the pages of the counts, before anything can be settled. It is done
// once: from then on the checkpoints of this term go on from there.
func (t *term) openCampaigns(ctx context.Context) error {
	campaigns, err := t.opts.Queue.OpenCampaigns(ctx, store.CampaignsOfRelay, t.startCampaigns)
	if err != nil {
		return fmt.Errorf("counts per campaign: %w", err)
	}
	t.send(ctx, func() { t.campaigns = campaigns })
	return nil
}

// campaignChanges is what the checkpoint that is being made up says about campaigns.
func (t *term) campaignChanges() store.CampaignChanges {
	if t.campaigns == nil {
		return t.startCampaigns // nothing was settled yet
	}
	t.tallies.gather(t.campaigns)
	return t.campaigns.Changes()
}

// flushEvery is how soon pages are written again, unless receipts wait for that.
const flushEvery = time.Second

// flushCampaigns writes the pages that are due, beside everything else.
func (t *term) flushCampaigns(ctx context.Context, now time.Time) {
	if t.campaigns == nil || t.flushing || !t.campaigns.Due() {
		return
	}
	if now.Before(t.flushAt) && (t.flushFailed || len(t.uncounted) == 0) {
		return
	}
	t.flushing = true
	t.tasks.Go(func() {
		err := t.campaigns.Flush(ctx)
		t.send(ctx, func() { t.flushed(err) })
	})
}

func (t *term) flushed(err error) {
	t.flushing, t.flushFailed = false, err != nil
	t.flushAt = time.Now().Add(flushEvery)
	if err == nil {
		t.dirty = true // the checkpoint gets smaller, and has room
	} else if t.flushTrouble.over(time.Now()) {
		t.log.Warn("counts per campaign cannot be written, trying on: they stay in the checkpoint, and once that is full, "+
			"receipts of further campaigns wait", zap.Error(err))
	}
}
