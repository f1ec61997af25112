package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Checkpoint is what the active relay knows to be settled. It is also the
// lease: every write is a compare-and-set on the revision read before, so
// whoever writes holds the term.
//
// It is kept as JSON, one message. It outlives a deploy: fields are only added.
type Checkpoint struct {
	Format int `json:"format"` // checkpointFormat

	Term   uint64 `json:"term"`   // grows by one with every take-over
	Holder string `json:"holder"` // random id of the holding process; empty after a graceful stop
	Write  uint64 `json:"write"`  // number of the write attempt; no two attempts of a holder are equal
	Limit  int    `json:"limit"`  // calls the holder may have in flight
	Out    int    `json:"out"`    // calls that earlier terms may still have in flight

	Floor   uint64  `json:"floor"`             // every receipt of every frame below it is settled
	Settled Settled `json:"settled"`           // what is settled at or above the floor
	Last    uint64  `json:"last,omitzero"`     // newest frame that was read: the queue cannot end before it
	DeadSeq uint64  `json:"dead_seq"`          // last sequence of the dead stream that the totals include
	Totals  Totals  `json:"totals"`            // over all terms
	Breaker string  `json:"breaker,omitempty"` // closed, open or half-open, for status only

	// For status only: receipts delivered per second of late, and when the last one was.
	Rate          float64   `json:"rate,omitempty"`
	LastDelivered time.Time `json:"last_delivered,omitzero"`

	// Campaigns is what changed of late in the counts per campaign; see Campaigns.
	Campaigns CampaignChanges `json:"campaigns,omitzero"`
}

// Totals counts settled receipts over the life of the queue. Together with what
// is queued they give: accepted + replayed = delivered + deduplicated + died + queued.
type Totals struct {
	Delivered    uint64 `json:"delivered"`
	Deduplicated uint64 `json:"deduplicated"`
	Died         uint64 `json:"died"`
	// ReplayedDead and ReplayedDelivered are those among the settled that were
	// put on the queue by a replay of dead letters, or of delivered receipts.
	ReplayedDead      uint64 `json:"replayed_dead"`
	ReplayedDelivered uint64 `json:"replayed_delivered"`
}

const checkpointFormat = 1

// maxCheckpointBytes bounds a checkpoint below nats-server's max_payload of 1 MiB:
// what is settled, and the changes of campaigns.
const maxCheckpointBytes = 768<<10 + 2*maxFreshBytes

func encodeCheckpoint(cp Checkpoint) ([]byte, error) {
	cp.Format, cp.Floor = checkpointFormat, max(1, cp.Floor)
	if err := cp.check(); err != nil {
		return nil, err // written, it could never be read again
	}
	data, err := json.Marshal(cp)
	if err != nil {
		return nil, fmt.Errorf("encode checkpoint: %w", err)
	}
	if len(data) > maxCheckpointBytes {
		return nil, fmt.Errorf("checkpoint of %d bytes, at most %d", len(data), maxCheckpointBytes)
	}
	return data, nil
}

func decodeCheckpoint(data []byte) (Checkpoint, error) {
	if err := NewerFormat(data, checkpointFormat); err != nil {
		return Checkpoint{}, fmt.Errorf("checkpoint %w", err)
	}
	var cp Checkpoint
	if err := json.Unmarshal(data, &cp); err != nil {
		return Checkpoint{}, fmt.Errorf("%w: checkpoint: %w", ErrCorrupt, err)
	}
	if cp.Format != checkpointFormat {
		return Checkpoint{}, fmt.Errorf("%w: checkpoint format %d, this birdtap reads %d", ErrCorrupt, cp.Format, checkpointFormat)
	}
	if err := cp.check(); err != nil {
		return Checkpoint{}, err
	}
	return cp, nil
}

// NewerFormat returns ErrNewer if data is JSON whose member "format" is above the one
// that its reader knows. Nothing else is asked of it: what a later version writes may be
// of any other shape.
func NewerFormat(data []byte, known int) error {
	var is struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(data, &is); err == nil && is.Format > known {
		return fmt.Errorf("%w: format %d, this one reads up to %d", ErrNewer, is.Format, known)
	}
	return nil
}

// check tells what about a checkpoint cannot be.
func (cp *Checkpoint) check() error {
	if cp.Floor < 1 || cp.Floor > maxSequence || cp.Last > maxSequence || cp.Limit < 0 || cp.Out < 0 {
		return fmt.Errorf("%w: checkpoint with floor %d, limit %d, out %d", ErrCorrupt, cp.Floor, cp.Limit, cp.Out)
	}
	if math.IsNaN(cp.Rate) || math.IsInf(cp.Rate, 0) {
		cp.Rate = 0 // for status only, and JSON cannot say it
	}
	if err := cp.Settled.check(cp.Floor); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}

// ReadCheckpoint returns the checkpoint and its revision, as the stream's leader
// has them; revision 0 means that none was ever written.
func (s *Store) ReadCheckpoint(ctx context.Context) (Checkpoint, uint64, error) {
	msg, err := s.lastMsg(ctx, s.state, s.names.relay)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Checkpoint{Floor: 1}, 0, nil
	}
	if err != nil {
		return Checkpoint{}, 0, fmt.Errorf("read checkpoint: %w", err)
	}
	cp, err := decodeCheckpoint(msg.Data)
	return cp, msg.Sequence, err
}

// WriteCheckpoint replaces the revision rev, and only that one, and returns the
// new revision once it is on disk. ErrConflict: another one stands there.
// Any other error: it may have been written or not; read it back.
func (s *Store) WriteCheckpoint(ctx context.Context, cp Checkpoint, rev uint64) (uint64, error) {
	data, err := encodeCheckpoint(cp)
	if err != nil {
		return 0, err
	}
	ack, err := s.publish(ctx, &nats.Msg{Subject: s.names.relay, Data: data},
		jetstream.WithExpectLastSequencePerSubject(rev), jetstream.WithRetryAttempts(0))
	switch {
	case isConflict(err):
		return 0, ErrConflict
	case err != nil:
		return 0, fmt.Errorf("write checkpoint: %w", err)
	}
	return ack.Sequence, nil
}

// isConflict tells whether a compare-and-set was refused. A replicated stream has a
// code of its own for it.
func isConflict(err error) bool {
	code := apiCode(err)
	return code == jetstream.JSErrCodeStreamWrongLastSequence || code == jetstream.JSErrCodeStreamWrongLastSequenceConstant
}
