package store

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"go.uber.org/zap"
)

// Counts per campaign have two writers: the active relay counts receipts, the active
// sender counts users. Each has a checkpoint of its own that says what is done, and its
// counts stand in that very checkpoint: what is settled is counted, and what a crash
// takes back is not. So that the checkpoint stays small it carries only what changed of
// late, and the rest lies in pages on the state stream:
//
//	BIRDTAP.state.campaigns.<owner>.<page>   owner relay or sender, page 0 to 7 by a hash of the campaign
//
// A checkpoint carries an epoch E and two lists of changes, and a page says which epoch
// it includes:
//
//	count of a campaign = its page + (Frozen, if the page's epoch is below E) + New
//
//	New grows ──▶ more than freezeAbove campaigns: Frozen = New, New is empty, E+1
//	                      │  the checkpoint that says so stands (Confirm)
//	                      ▼
//	              the pages that Frozen touches are written anew, E included (Flush)
//	                      │  all of them are on disk
//	                      ▼
//	              Frozen is dropped
//
// A crash at any point leaves a checkpoint and pages for which the sum above is exact,
// and so is whoever reads them at any instant. Pages are written by compare-and-set: of
// a writer that lost its term, but does not know it yet, a late write is refused, or is
// of the epoch that its successor is about to write, with the same contents.
//
// Bounds: maxCampaigns are kept, those with the latest activity; the rest is left out
// when pages are read, and soon when they are written. New takes maxFreshBytes, more than
// a thousand campaigns: while it is full, Add refuses those that are not in it. (Those
// that are may still grow by some digits.)

const (
	// maxCampaigns is how many are kept per writer: a few MB in memory.
	maxCampaigns = 10_000
	// maxBeyond is how many more may be on pages, so that not every Flush has to look
	// for the oldest.
	maxBeyond     = 1000
	campaignPages = 8
	// maxPageBytes bounds a page below nats-server's max_payload of 1 MiB.
	maxPageBytes = 768 << 10
	// freezeAbove is how many campaigns a checkpoint carries: some 80 bytes each.
	freezeAbove = 64
	// maxFreshBytes bounds New in a checkpoint, and so Frozen.
	maxFreshBytes = 96 << 10
	// maxEventBytes and maxTargetBytes bound the parts of a CampaignKey, as JSON.
	maxEventBytes  = 256
	maxTargetBytes = 96
)

// Owners of campaign counts.
const (
	CampaignsOfRelay  = "relay"
	CampaignsOfSender = "sender"
)

// CampaignKey names a campaign. Make it with NewCampaignKey.
type CampaignKey struct {
	Event  string `json:"e,omitzero"`
	Target string `json:"t,omitzero"` // the digits of a number: 123 and "123" are one campaign
}

// NewCampaignKey is the key of an event name and a target id. Of a long one, which can be
// a hundred times as long as any that makes sense, the first 120 characters or less are
// kept, and a hash of the whole, so that two of them stay apart.
func NewCampaignKey(event, target string) CampaignKey {
	return CampaignKey{Event: bounded(event, maxEventBytes), Target: bounded(target, maxTargetBytes)}
}

func bounded(s string, most int) string {
	const perByte, quotes = len(`\u0000`), len(`""`)
	if len(s)*perByte+quotes <= most && utf8.ValidString(s) {
		return s
	}
	s = strings.ToValidUTF8(s, "\ufffd")
	if len(s) <= most && quotedLen(s) <= most {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	tail := "…#" + hex.EncodeToString(sum[:8])
	const maxCharacters = 120
	end, size, characters := 0, quotes+len(tail), 0
	for _, r := range s {
		size += quotedLen(string(r)) - quotes
		if characters++; size > most || characters > maxCharacters {
			break
		}
		end += utf8.RuneLen(r)
	}
	return s[:end] + tail
}

func quotedLen(s string) int {
	quoted, _ := jsontext.AppendQuote(nil, s) // it is valid UTF-8
	return len(quoted)
}

// jsonLen is what the key takes in a checkpoint.
func (k CampaignKey) jsonLen() int {
	return len(`{"e":,"t":,},`) + quotedLen(k.Event) + quotedLen(k.Target)
}

// page is the page that holds the campaign. It is FNV-1a, and must never change.
func (k CampaignKey) page() int {
	h := uint32(2166136261)
	for _, part := range []string{k.Event, "\x00", k.Target} {
		for i := range len(part) {
			h = (h ^ uint32(part[i])) * 16777619
		}
	}
	return int((h ^ h>>16) % campaignPages)
}

// CampaignCounts is what is known of one campaign, or a change of it. A change may be
// negative: a dead letter that is replayed is dead no longer.
type CampaignCounts struct {
	// Users, of the sender.
	Asked   int64 `json:"a,omitzero"`
	Sent    int64 `json:"s,omitzero"`
	Refused int64 `json:"r,omitzero"`
	Held    int64 `json:"h,omitzero"`
	Dropped int64 `json:"d,omitzero"`
	// Receipts, of the relay.
	SentDelivered int64 `json:"sd,omitzero"`
	SentDied      int64 `json:"sx,omitzero"`
	ReadDelivered int64 `json:"rd,omitzero"`
	ReadDied      int64 `json:"rx,omitzero"`
	// Last is when something last changed, in Unix ms.
	Last int64 `json:"l,omitzero"`
}

func (c *CampaignCounts) add(d CampaignCounts) {
	for i, n := range c.numbers() {
		*n += *d.numbers()[i]
	}
	c.Last = max(c.Last, d.Last)
}

// notNegative is for what cannot be: a campaign that was left out came back by a replay,
// or its letter is of before there were counts.
func (c *CampaignCounts) notNegative() {
	for _, n := range c.numbers() {
		*n = max(0, *n)
	}
}

// jsonLen is what the counts take in a checkpoint.
func (c *CampaignCounts) jsonLen() int {
	n := len(`"l":1700000000000,`)
	for _, count := range c.numbers() {
		if *count == 0 {
			continue
		}
		n += len(`"sd":-,`)
		for m := *count; m != 0; m /= 10 {
			n++
		}
	}
	return n
}

func (c *CampaignCounts) numbers() [9]*int64 {
	return [...]*int64{
		&c.Asked, &c.Sent, &c.Refused, &c.Held, &c.Dropped,
		&c.SentDelivered, &c.SentDied, &c.ReadDelivered, &c.ReadDied,
	}
}

// Campaign is one campaign with its counts.
type Campaign struct {
	CampaignKey
	CampaignCounts
}

// CampaignChanges is what a checkpoint says about campaigns, as its member "campaigns".
// It outlives a deploy: fields are only added.
type CampaignChanges struct {
	Epoch  uint64     `json:"epoch,omitzero"`
	Frozen []Campaign `json:"frozen,omitempty"`
	New    []Campaign `json:"new,omitempty"`
}

// Campaigns counts for one writer, the active relay or the active sender:
//
//	c, err := s.OpenCampaigns(ctx, store.CampaignsOfSender, checkpoint.Campaigns) // of the checkpoint that was taken over
//	…
//	c.Add(key, store.CampaignCounts{Sent: 1})  // together with what the next checkpoint says
//	checkpoint.Campaigns = c.Changes()         // when one is made up
//	c.Confirm(checkpoint.Campaigns)            // when it is known to stand
//	if c.Due() { err = c.Flush(ctx) }          // now and then; it may run beside all the others
//
// Every checkpoint carries Changes, from the first one of a term on; before
// OpenCampaigns has returned, the changes of the checkpoint that was taken over, as they
// were. A Flush that failed is tried again; until it succeeds nothing is lost, but New
// fills up. It is safe for concurrent use; two Flushes take turns.
type Campaigns struct {
	disk campaignDisk
	log  *zap.Logger

	flush sync.Mutex // held by Flush

	mu     sync.Mutex
	pages  [campaignPages]campaignPage // as they are on disk, as far as is known
	epoch  uint64
	frozen []Campaign // never changed once made
	stands bool       // a checkpoint with frozen is on disk
	fresh  []Campaign
	at     map[CampaignKey]int // in fresh
	bytes  int                 // of fresh
}

// campaignPage is one page as it was read or written.
type campaignPage struct {
	revision uint64
	epoch    uint64
	counts   map[CampaignKey]CampaignCounts
}

// campaignDisk is where pages lie.
type campaignDisk interface {
	read(ctx context.Context, page int) (campaignPage, error)
	// write replaces the revision that p has; ErrConflict: another one stands there.
	write(ctx context.Context, page int, p campaignPage, data []byte) (revision uint64, err error)
}

// OpenCampaigns reads the pages of an owner, to go on from a checkpoint.
func (s *Store) OpenCampaigns(ctx context.Context, owner string, changes CampaignChanges) (*Campaigns, error) {
	return openCampaigns(ctx, pagesOf{s, owner}, s.log, changes)
}

func openCampaigns(ctx context.Context, disk campaignDisk, log *zap.Logger, changes CampaignChanges) (*Campaigns, error) {
	c := &Campaigns{disk: disk, log: log, epoch: changes.Epoch}
	newest := uint64(0)
	for i := range c.pages {
		p, err := disk.read(ctx, i)
		if err != nil {
			return nil, err
		}
		c.pages[i] = p
		newest = max(newest, p.epoch)
	}
	for _, row := range changes.New {
		c.put(row)
	}
	if newest <= c.epoch {
		c.frozen, c.stands = changes.Frozen, len(changes.Frozen) > 0
		return c, nil
	}
	// Not our own work: a birdtap that does not count has written the checkpoint, or the
	// newest one was damaged. Some counts are off by what it did; no epoch is used twice.
	log.Warn("the counts per campaign are newer than the checkpoint: some may be a little off", zap.Uint64("epoch", c.epoch), zap.Uint64("of_pages", newest))
	for _, row := range changes.Frozen {
		if c.pages[row.page()].epoch < c.epoch {
			c.put(row)
		}
	}
	c.epoch = newest
	return c, nil
}

// put adds to New.
func (c *Campaigns) put(row Campaign) {
	i, found := c.at[row.CampaignKey]
	if !found {
		i = len(c.fresh)
		if c.at == nil {
			c.at = map[CampaignKey]int{}
		}
		c.at[row.CampaignKey] = i
		c.fresh = append(c.fresh, Campaign{CampaignKey: row.CampaignKey})
		c.bytes += row.CampaignKey.jsonLen()
	} else {
		c.bytes -= c.fresh[i].CampaignCounts.jsonLen()
	}
	c.fresh[i].add(row.CampaignCounts)
	c.bytes += c.fresh[i].CampaignCounts.jsonLen()
}

// Add counts a change of a campaign. It returns false, and has counted nothing, if too
// many campaigns have changed since the last Flush: then a checkpoint has to be written,
// and a Flush done, before this one can be counted. One that was taken is not refused
// before the next Changes.
func (c *Campaigns) Add(key CampaignKey, change CampaignCounts) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, found := c.at[key]; !found && (c.bytes > maxFreshBytes || c.bytes+key.jsonLen()+change.jsonLen() > maxFreshBytes) {
		return false
	}
	change.Last = time.Now().UnixMilli()
	c.put(Campaign{key, change})
	return true
}

// Changes is for the checkpoint that is being made up; it must not be changed.
func (c *Campaigns) Changes() CampaignChanges {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.frozen) == 0 && len(c.fresh) > freezeAbove {
		c.epoch++
		c.frozen, c.stands = c.fresh, false
		c.fresh, c.at, c.bytes = nil, nil, 0
	}
	return CampaignChanges{Epoch: c.epoch, Frozen: c.frozen, New: slices.Clone(c.fresh)}
}

// Confirm says that a checkpoint with these changes is on disk.
func (c *Campaigns) Confirm(changes CampaignChanges) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.frozen) > 0 && changes.Epoch == c.epoch {
		c.stands = true
	}
}

// Due tells whether pages are to be written.
func (c *Campaigns) Due() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stands
}

// Flush writes the pages that are due. Afterwards a further checkpoint is worth while:
// it is smaller, and may freeze what has come meanwhile.
func (c *Campaigns) Flush(ctx context.Context) error {
	c.flush.Lock()
	defer c.flush.Unlock()
	if !c.Due() {
		return nil
	}
	out := c.leftOut()
	for i := range campaignPages {
		if err := c.flushPage(ctx, i, out); err != nil {
			return fmt.Errorf("write counts per campaign, page %d: %w", i, err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frozen, c.stands = nil, false
	return nil
}

// pageTries is how often a page is read back after its write was refused: once for a
// write of our own whose answer was lost, once for that of another writer.
const pageTries = 3

func (c *Campaigns) flushPage(ctx context.Context, i int, out map[CampaignKey]bool) error {
	for try := 1; ; try++ {
		p, changed := c.renewed(i, out)
		if !changed {
			return nil
		}
		data, err := encodePage(&p)
		if err == nil {
			p.revision, err = c.disk.write(ctx, i, p, data)
		}
		refused := errors.Is(err, ErrConflict) && try < pageTries
		if refused {
			if p, err = c.disk.read(ctx, i); err == nil && p.epoch > c.epoch {
				err = fmt.Errorf("%w: another writer is at epoch %d, this one at %d", ErrConflict, p.epoch, c.epoch)
			}
		}
		if err != nil {
			return err
		}
		c.mu.Lock()
		c.pages[i] = p
		c.mu.Unlock()
		if !refused {
			return nil
		}
	}
}

// renewed is a page as it has to be; not changed: it is so already.
func (c *Campaigns) renewed(i int, out map[CampaignKey]bool) (campaignPage, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.pages[i]
	p := campaignPage{revision: old.revision, epoch: c.epoch, counts: make(map[CampaignKey]CampaignCounts, len(old.counts)+8)}
	changed := false
	for key, counts := range old.counts {
		if out[key] {
			changed = true
			continue
		}
		p.counts[key] = counts
	}
	for _, row := range c.frozen {
		if old.epoch >= c.epoch {
			break
		}
		if row.page() != i {
			continue
		}
		changed = true
		counts := p.counts[row.CampaignKey]
		counts.add(row.CampaignCounts)
		counts.notNegative()
		p.counts[row.CampaignKey] = counts
	}
	return p, changed
}

// leftOut are the campaigns beyond maxCampaigns, those that changed least lately. What
// is in the checkpoint is newer than any page, and stays.
func (c *Campaigns) leftOut() map[CampaignKey]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed := make(map[CampaignKey]bool, len(c.frozen)+len(c.fresh))
	for _, list := range [][]Campaign{c.frozen, c.fresh} {
		for _, row := range list {
			changed[row.CampaignKey] = true
		}
	}
	n := len(changed)
	var others []Campaign
	for _, p := range c.pages {
		n += len(p.counts)
	}
	if n <= maxCampaigns+maxBeyond {
		return nil // even with those counted twice that are in both
	}
	for _, p := range c.pages {
		for key, counts := range p.counts {
			if !changed[key] {
				others = append(others, Campaign{key, counts})
			}
		}
	}
	slices.SortFunc(others, newestFirst)
	out := map[CampaignKey]bool{}
	for _, row := range others[min(len(others), max(0, maxCampaigns-len(changed))):] {
		out[row.CampaignKey] = true
	}
	return out
}

func newestFirst(a, b Campaign) int {
	return cmp.Or(cmp.Compare(b.Last, a.Last), cmp.Compare(a.Event, b.Event), cmp.Compare(a.Target, b.Target))
}
