package sender

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/birdtap/birdtap/store"
)

// checkpoint is what the active sender knows to be done. It is also the lease; see
// lease.
//
// It is kept as JSON, one message. It outlives a deploy: fields are only added.
type checkpoint struct {
	Format int `json:"format"` // checkpointFormat

	Term   uint64 `json:"term"`   // grows by one with every take-over
	Holder string `json:"holder"` // random id of the holding process; empty after a graceful stop
	Write  uint64 `json:"write"`  // number of the write; no two of a holder are equal

	Floor   uint64 `json:"floor"`   // every ask of every frame below it is settled
	Settled places `json:"settled"` // what is settled at or above it

	NextCall uint64     `json:"next_call"`       // number of the next call
	Calls    []noted    `json:"calls,omitempty"` // that may be on their way
	Held     []heldCall `json:"held,omitempty"`  // that wait for an operator
	Jobs     []jobState `json:"jobs,omitempty"`  // files sent from the command line

	Totals    totals                `json:"totals"`
	Campaigns store.CampaignChanges `json:"campaigns,omitzero"` // what the pages of store.Campaigns lack
	Refuses   string                `json:"refuses,omitempty"`  // why Sendbird takes nothing at all, for status
}

// noted is the intent of a call, and what it is made of: enough to put it together
// again from the log after a crash.
type noted struct {
	Number uint64 `json:"n"`
	Places places `json:"places"`
	Mode   Mode   `json:"mode"`
	Users  int    `json:"users"`
	// Uploading: the file is on its way, or there; nobody is notified before another
	// write of the checkpoint.
	Uploading bool   `json:"uploading,omitzero"`
	Released  string `json:"released,omitempty"` // the held call that is sent again
}

// heldCall is a call whose outcome nobody knows. All of it is in the store, by its id.
type heldCall struct {
	ID    string `json:"id"`
	Mode  Mode   `json:"mode"`
	Users int    `json:"users"`
}

// jobState is what has become of a file sent from the command line.
type jobState struct {
	ID string `json:"id"`
	// Next is the number of the part behind those that lie below the floor.
	Next  int    `json:"next"`
	Ended bool   `json:"ended,omitzero"` // the last part is settled, and all before it
	Users counts `json:"users"`
	// RefusedBy are the refused ones of Users, by why.
	RefusedBy map[Reason]int64 `json:"refused_by,omitempty"`
}

// counts are users, by what became of them.
type counts struct {
	Sent    int64 `json:"sent"`
	Refused int64 `json:"refused"`
	Held    int64 `json:"held"` // at this moment
	Dropped int64 `json:"dropped"`
}

func (c *counts) add(d counts) {
	c.Sent += d.Sent
	c.Refused += d.Refused
	c.Held += d.Held
	c.Dropped += d.Dropped
}

// totals counts users over the life of the log.
type totals struct {
	Modes      map[Mode]counts           `json:"modes,omitempty"`
	Refused    map[Mode]map[Reason]int64 `json:"refused,omitempty"`
	Duplicates int64                     `json:"duplicates"` // users of calls made again
}

func (t totals) clone() totals {
	t.Modes, t.Refused = maps.Clone(t.Modes), maps.Clone(t.Refused)
	for m, reasons := range t.Refused {
		t.Refused[m] = maps.Clone(reasons)
	}
	return t
}

func (t *totals) add(m Mode, d counts) {
	if t.Modes == nil {
		t.Modes = map[Mode]counts{}
	}
	c := t.Modes[m]
	c.add(d)
	t.Modes[m] = c
}

func (t *totals) refuse(m Mode, r Reason, users int64) {
	if t.Refused == nil {
		t.Refused = map[Mode]map[Reason]int64{}
	}
	if t.Refused[m] == nil {
		t.Refused[m] = map[Reason]int64{}
	}
	t.Refused[m][r] += users
	t.add(m, counts{Refused: users})
}

const (
	checkpointFormat = 1
	// maxJobs is how many files' figures are remembered.
	maxJobs = 200
)

func (c *checkpoint) encode() ([]byte, error) {
	c.Format = checkpointFormat
	data, err := json.Marshal(c, json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("encode the checkpoint of the sender: %w", err)
	}
	return data, nil
}

// decodeCheckpoint reads a checkpoint. An empty one is damaged: the beginning is that
// there is none.
func decodeCheckpoint(data []byte) (checkpoint, error) {
	if err := store.NewerFormat(data, checkpointFormat); err != nil {
		return checkpoint{}, fmt.Errorf("checkpoint of the sender %w", err)
	}
	var c checkpoint
	if err := json.Unmarshal(data, &c); err != nil {
		return checkpoint{}, fmt.Errorf("%w: checkpoint of the sender: %w", store.ErrCorrupt, err)
	}
	if c.Format != checkpointFormat {
		return checkpoint{}, fmt.Errorf("%w: checkpoint of the sender of format %d, this birdtap reads %d", store.ErrCorrupt, c.Format, checkpointFormat)
	}
	if c.Floor < 1 || c.NextCall < 1 {
		return checkpoint{}, fmt.Errorf("%w: checkpoint of the sender with floor %d, next call %d", store.ErrCorrupt, c.Floor, c.NextCall)
	}
	return c, nil
}

// frameState is a frame of the log of which something is not settled.
type frameState struct {
	left int // asks that are not settled
	time time.Time
}

// ledger keeps account of which asks are settled. It belongs to the loop.
type ledger struct {
	floor   uint64
	settled places
	frames  map[uint64]*frameState
}

func newLedger(floor uint64, settled places) *ledger {
	return &ledger{floor: floor, settled: slices.Clone(settled), frames: map[uint64]*frameState{}}
}

// open takes a frame in, and tells how many of its asks are not settled yet.
func (l *ledger) open(seq uint64, asks int, at time.Time) int {
	if seq < l.floor {
		return 0
	}
	left := asks - l.settled.count(seq, asks)
	if left > 0 {
		l.frames[seq] = &frameState{left: left, time: at}
	}
	return left
}

func (l *ledger) isSettled(p place) bool { return p.seq() < l.floor || l.settled.has(p) }

// settle notes that an ask of an open frame is done.
func (l *ledger) settle(p place) {
	if l.isSettled(p) {
		return
	}
	l.settled.add(p, p+1)
	f := l.frames[p.seq()]
	if f == nil {
		return
	}
	if f.left--; f.left == 0 {
		delete(l.frames, p.seq())
		l.settled.add(placeOf(p.seq(), 0), frameEnd(p.seq()))
	}
}

// settleFrames notes that all of these frames are done.
func (l *ledger) settleFrames(first, last uint64) { l.settled.add(placeOf(first, 0), frameEnd(last)) }

// rise moves the floor to where the first frame lies that is not settled.
func (l *ledger) rise() {
	if len(l.settled) == 0 || l.settled[0].first > placeOf(l.floor, 0) {
		return
	}
	if floor := l.settled[0].end.seq(); floor > l.floor {
		l.floor = floor
		l.settled.cutBelow(placeOf(floor, 0))
	}
}
