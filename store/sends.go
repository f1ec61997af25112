package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Sends is the sender's part of the store. Its streams are made when it is opened for
// the first time. With the prefix BIRDTAP:
//
//	stream           subject                 a message is
//	BIRDTAP_SENDS    BIRDTAP.sends           a frame of asks: what is to be sent, in order, read by position
//	BIRDTAP_HELD     BIRDTAP.held.<id>       a piece of a call whose outcome nobody knows, until an operator decides
//	                 BIRDTAP.order.<id>      what the operator has decided about such a call, until it is done
//	                 BIRDTAP.run.<id>        what became of a file that was sent from the command line
//	BIRDTAP_UNSENT   BIRDTAP.unsent          users who were not sent to, and why: the newest of them
//	BIRDTAP_STATE    BIRDTAP.state.sender    the sender's checkpoint, which is its lease, too
//
// What asks, checkpoint and pieces say is the sender's own business. Sends is safe for
// concurrent use.
type Sends struct {
	store             *Store
	log, held, unsent jetstream.Stream
	committer         *committer
}

// Sizes of the sender's streams in bytes; on a small volume a sendsShare of what is
// free at most. A full log refuses, which the door answers with 503.
const (
	sendsMaxBytes  = 1 << 30
	heldMaxBytes   = 512 << 20
	unsentMaxBytes = 128 << 20
	sendsShare     = 0.05

	// MaxAskBytes bounds one ask: with what a frame adds it fits a message.
	MaxAskBytes = maxReceiptBytes - receiptOverhead
	// maxPieceBytes is a piece of a held call; nats-server's max_payload is 1 MiB.
	maxPieceBytes = 512 << 10
)

// Ask is one thing that the sender is asked to do.
type Ask struct {
	Data []byte // at most MaxAskBytes
	Key  Key    // equal for the same call made again
}

// SendFrame is one frame of asks, read from the log.
type SendFrame struct {
	Seq  uint64
	Time time.Time // when the server stored it
	Asks []Ask     // their Data are slices of the message
	More bool      // there were further frames behind it when it was read
	// Err says that the frame does not decode; Raw is what there is of it.
	Err error
	Raw []byte
}

// OpenSends opens the sender's part, making the streams that are missing. It refuses to
// make a log anew where one had been. Close it before the store.
func (s *Store) OpenSends(ctx context.Context) (*Sends, error) {
	sends := &Sends{store: s}
	if err := s.untilAnswered(ctx, func() error { return sends.open(ctx) }); err != nil {
		return nil, err
	}
	sends.committer = newCommitter(sends.publishFrame, func(int, time.Duration) {})
	return sends, nil
}

func (s *Sends) open(ctx context.Context) error {
	var rev uint64
	err := s.store.denied.unless(ctx, func(ctx context.Context) (err error) {
		_, rev, err = s.ReadCheckpoint(ctx)
		return err
	})
	if err != nil {
		return err
	}
	for _, want := range s.store.sendStreams(s) {
		have, err := s.store.lookUpStream(ctx, want.config.Name)
		if err != nil {
			return err
		}
		if have == nil && rev > 0 && want.config.Name == s.store.names.sendsStream {
			return fmt.Errorf("the sender was here before, but %s is %w: restore it from a backup, or, to start with an empty one, %s",
				want.config.Name, ErrGone, s.store.startAnewBy())
		}
		if have != nil {
			want.config.MaxBytes = have.CachedInfo().Config.MaxBytes // by what was free then
		}
		if *want.into, err = s.store.openStream(ctx, want.config, have); err != nil {
			return err
		}
	}
	return nil
}

// FindSends opens the sender's part if it is there, and returns nil if it never was.
func (s *Store) FindSends(ctx context.Context) (*Sends, error) {
	have, err := s.lookUpStream(ctx, s.names.sendsStream)
	if errors.Is(err, errDenied) || err == nil && have == nil {
		return nil, nil //nolint:nilnil // none that this user could see, and no error
	}
	if err != nil {
		return nil, err
	}
	return s.OpenSends(ctx)
}

// sendStreams describes the three streams. As on the queue nothing is deleted
// silently, but for the list of those who were not sent to: its newest entries stay,
// and the counts beside it are exact without it.
func (s *Store) sendStreams(into *Sends) []wantedStream {
	base := jetstream.StreamConfig{
		Retention: jetstream.LimitsPolicy,
		Discard:   jetstream.DiscardNew,
		Storage:   jetstream.FileStorage,
		Replicas:  s.queueReplicas(),
	}
	log, held, unsent := base, base, base
	log.Name, log.Subjects = s.names.sendsStream, []string{s.names.sends}
	log.MaxBytes = s.sendsSize(sendsMaxBytes)
	held.Name, held.Subjects = s.names.heldStream, []string{s.names.held + ".>", s.names.orders + ".>", s.names.runs + ".>"}
	held.MaxBytes = s.sendsSize(heldMaxBytes)
	unsent.Name, unsent.Subjects = s.names.unsentStream, []string{s.names.unsent}
	unsent.MaxBytes = s.sendsSize(unsentMaxBytes)
	unsent.Discard = jetstream.DiscardOld
	return []wantedStream{{log, &into.log}, {held, &into.held}, {unsent, &into.unsent}}
}

// sendsSize is what a stream may take.
func (s *Store) sendsSize(standard int64) int64 {
	if s.opts.NATSURL != "" {
		return standard
	}
	v, err := s.opts.volume(s.opts.DataDir)
	if err != nil {
		return standard
	}
	return max(minStreamBytes, min(standard, int64(sendsShare*float64(v.free))))
}

// Close commits what has gathered. It may be called twice.
func (s *Sends) Close() { s.committer.close() }

// Commit puts asks on the log and returns nil once they are on disk, in order; see
// Store.Commit, whose promises are the same.
func (s *Sends) Commit(ctx context.Context, asks []Ask) error {
	receipts := make([]Receipt, len(asks))
	for i, a := range asks {
		receipts[i] = Receipt{Record: a.Data, Key: a.Key}
	}
	return s.committer.commit(ctx, receipts)
}

func (s *Sends) publishFrame(m *nats.Msg) error {
	if err := s.store.guard.refuse(); err != nil {
		return err
	}
	m.Subject = s.store.names.sends
	if _, err := s.store.publish(s.store.life, m); err != nil {
		return fmt.Errorf("commit asks: %w", err)
	}
	return nil
}

// SendReader reads the log in sequence from a position. Only one goroutine may use it.
type SendReader struct{ source }

// Read returns a reader that begins at frame from, or at the oldest one there is.
func (s *Sends) Read(from uint64) *SendReader {
	return &SendReader{source{store: s.store, stream: s.log, name: s.store.names.sendsStream, next: max(1, from)}}
}

// Next waits for the next frame, through outages of the server, too; its only errors
// are that of ctx and ErrClosed.
func (r *SendReader) Next(ctx context.Context) (SendFrame, error) {
	msg, meta, err := r.message(ctx)
	if err != nil {
		return SendFrame{}, fmt.Errorf("read the log of the sender: %w", err)
	}
	return toSendFrame(msg, meta), nil
}

func toSendFrame(msg jetstream.Msg, meta *jetstream.MsgMetadata) SendFrame {
	f := SendFrame{Seq: meta.Sequence.Stream, Time: meta.Timestamp, More: meta.NumPending > 0}
	receipts, err := decodeFrame(msg.Data())
	if err != nil {
		f.Err, f.Raw = err, corrupt(msg.Data())
		return f
	}
	f.Asks = make([]Ask, len(receipts))
	for i := range receipts {
		f.Asks[i] = Ask{Data: receipts[i].Record, Key: receipts[i].Key}
	}
	return f
}

// Scan calls fn for every frame from sequence from to the newest.
func (s *Sends) Scan(ctx context.Context, from uint64, fn func(SendFrame) error) error {
	_, err := s.store.scan(ctx, s.log, s.store.names.sendsStream, from, false, func(msg jetstream.Msg, meta *jetstream.MsgMetadata) error {
		return fn(toSendFrame(msg, meta))
	})
	return err
}

// Close ends the reader. It may be called twice.
func (r *SendReader) Close() { r.stop(r.store.life) }

// Last is the sequence of the newest frame, 0 if there never was one, and how many frames
// there are.
func (s *Sends) Last(ctx context.Context) (seq, frames uint64, err error) {
	info, err := s.store.infoOf(ctx, s.log)
	if err != nil {
		return 0, 0, fmt.Errorf("look up stream %s: %w", s.store.names.sendsStream, err)
	}
	return info.State.LastSeq, info.State.Msgs, nil
}

// Trim deletes the frames below seq. Where the log ends before that, it goes on at seq.
func (s *Sends) Trim(ctx context.Context, seq uint64) error {
	if err := s.log.Purge(ctx, jetstream.WithPurgeSequence(seq)); err != nil {
		return fmt.Errorf("trim the log of the sender: %w", err)
	}
	return nil
}

// ReadCheckpoint returns the sender's checkpoint and its revision, as the stream's
// leader has them; revision 0 means that none was ever written.
func (s *Sends) ReadCheckpoint(ctx context.Context) ([]byte, uint64, error) {
	msg, err := s.store.lastMsg(ctx, s.store.state, s.store.names.sender)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read the checkpoint of the sender: %w", err)
	}
	return msg.Data, msg.Sequence, nil
}

// MaxSenderCheckpoint bounds the sender's checkpoint, in bytes.
const MaxSenderCheckpoint = maxCheckpointBytes

// WriteCheckpoint replaces the revision rev, and only that one; see
// Store.WriteCheckpoint, whose errors are the same.
func (s *Sends) WriteCheckpoint(ctx context.Context, data []byte, rev uint64) (uint64, error) {
	if len(data) > MaxSenderCheckpoint {
		return 0, fmt.Errorf("%w: a checkpoint of the sender of %d bytes, at most %d", ErrInvalid, len(data), MaxSenderCheckpoint)
	}
	ack, err := s.store.publish(ctx, &nats.Msg{Subject: s.store.names.sender, Data: data},
		jetstream.WithExpectLastSequencePerSubject(rev), jetstream.WithRetryAttempts(0))
	switch {
	case isConflict(err):
		return 0, ErrConflict
	case err != nil:
		return 0, fmt.Errorf("write the checkpoint of the sender: %w", err)
	}
	return ack.Sequence, nil
}

// MayCheckpoint tells whether this user may write the checkpoint at all: false only if
// the server says that it may not. It asks by a write that can never stand.
func (s *Sends) MayCheckpoint(ctx context.Context) bool {
	if s.store.embedded != nil {
		return true
	}
	err := s.store.denied.unless(ctx, func(ctx context.Context) error {
		_, err := s.store.publish(ctx, &nats.Msg{Subject: s.store.names.sender},
			jetstream.WithExpectLastSequencePerSubject(math.MaxInt64), jetstream.WithRetryAttempts(0))
		return err
	})
	return !errors.Is(err, errDenied) || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(s.store.names.sender))
}

// Hold keeps a call under id, in place of what was kept under it before, and returns
// once it is on disk. id is of letters, digits and hyphens.
func (s *Sends) Hold(ctx context.Context, id string, call []byte) error {
	if err := s.Forget(ctx, id); err != nil {
		return err
	}
	for first := true; first || len(call) > 0; first = false {
		piece := call[:min(len(call), maxPieceBytes)]
		call = call[len(piece):]
		if _, err := s.store.publish(ctx, &nats.Msg{Subject: s.heldSubject(id), Data: piece}); err != nil {
			return fmt.Errorf("hold call %s: %w", id, err)
		}
	}
	return nil
}

// Held calls fn for every call that is kept, in the order in which they were held.
func (s *Sends) Held(ctx context.Context, fn func(id string, call []byte) error) error {
	var id string
	var call []byte
	_, err := s.store.scan(ctx, s.held, s.store.names.heldStream, 1, false, func(msg jetstream.Msg, _ *jetstream.MsgMetadata) error {
		of, isCall := strings.CutPrefix(msg.Subject(), s.store.names.held+".")
		if !isCall {
			return nil
		}
		if of != id && id != "" {
			if err := fn(id, call); err != nil {
				return err
			}
			call = nil
		}
		id, call = of, append(call, msg.Data()...)
		return nil
	})
	if err == nil && id != "" {
		err = fn(id, call)
	}
	return err
}

// Forget deletes what is kept under id; that there is nothing is no error.
func (s *Sends) Forget(ctx context.Context, id string) error {
	if err := s.held.Purge(ctx, jetstream.WithPurgeSubject(s.heldSubject(id))); err != nil {
		return fmt.Errorf("forget call %s: %w", id, err)
	}
	return nil
}

func (s *Sends) heldSubject(id string) string { return s.store.names.held + "." + id }

// Order is what an operator has decided about a held call.
type Order struct {
	ID       string // of the call
	Decision []byte
	Seq      uint64 // grows with each decision
}

// Decide keeps a decision about a held call, in place of what was decided before.
func (s *Sends) Decide(ctx context.Context, id string, decision []byte) error {
	if _, err := s.store.publish(ctx, &nats.Msg{Subject: s.store.names.orders + "." + id, Data: decision}); err != nil {
		return fmt.Errorf("decide about call %s: %w", id, err)
	}
	return nil
}

// Orders returns the newest decision about each call, the oldest first.
func (s *Sends) Orders(ctx context.Context) ([]Order, error) {
	info, err := s.held.Info(ctx, jetstream.WithSubjectFilter(s.store.names.orders+".>"))
	if err != nil {
		return nil, fmt.Errorf("look up decisions: %w", err)
	}
	var orders []Order
	for subject := range info.State.Subjects {
		msg, err := s.held.GetLastMsgForSubject(ctx, subject)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue // carried out meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("look up a decision: %w", err)
		}
		orders = append(orders, Order{ID: strings.TrimPrefix(subject, s.store.names.orders+"."), Decision: msg.Data, Seq: msg.Sequence})
	}
	slices.SortFunc(orders, func(a, b Order) int { return cmp.Compare(a.Seq, b.Seq) })
	return orders, nil
}

// Ordered says that a decision is carried out. A newer one about the same call stays.
func (s *Sends) Ordered(ctx context.Context, o Order) error {
	if err := s.held.Purge(ctx, jetstream.WithPurgeSubject(s.store.names.orders+"."+o.ID), jetstream.WithPurgeSequence(o.Seq+1)); err != nil {
		return fmt.Errorf("note that a decision about call %s is carried out: %w", o.ID, err)
	}
	return nil
}

// ListUnsent puts an entry on the list of those who were not sent to. The list keeps
// its newest entries.
func (s *Sends) ListUnsent(ctx context.Context, entry []byte) error {
	if _, err := s.store.publish(ctx, &nats.Msg{Subject: s.store.names.unsent, Data: entry}); err != nil {
		return fmt.Errorf("list who was not sent to: %w", err)
	}
	return nil
}

// Unsent calls fn for every entry of that list, the oldest first.
func (s *Sends) Unsent(ctx context.Context, fn func(entry []byte) error) error {
	_, err := s.store.scan(ctx, s.unsent, s.store.names.unsentStream, 1, false, func(msg jetstream.Msg, _ *jetstream.MsgMetadata) error {
		return fn(msg.Data())
	})
	return err
}

// AnswerAlive answers, until ctx ends, whoever asks whether the active sender lives.
func (s *Sends) AnswerAlive(ctx context.Context) error {
	sub, err := s.store.nc.Subscribe(s.store.names.senderAlive, func(m *nats.Msg) {
		if strings.HasPrefix(m.Reply, "_INBOX.") { // nowhere else: an answer to a stream's subject would be stored
			_ = m.Respond(nil)
		}
	})
	if err != nil {
		return fmt.Errorf("answer for the sender: %w", err)
	}
	context.AfterFunc(ctx, func() { _ = sub.Unsubscribe() }) // a closed connection has no subscriptions
	return nil
}

// Alive tells whether an active sender answers within wait.
func (s *Sends) Alive(ctx context.Context, wait time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	_, err := s.store.nc.RequestWithContext(ctx, s.store.names.senderAlive, nil)
	return err == nil
}

// OwnsQueue tells whether the queue's server is part of this process: nobody who used
// an earlier one can still reach it.
func (s *Sends) OwnsQueue() bool { return s.store.embedded != nil }

// WriteRun notes what became of a file that was sent from the command line, under an
// id of letters, digits and hyphens. It stays until it is noted anew.
func (s *Sends) WriteRun(ctx context.Context, id string, data []byte) error {
	subject := s.store.names.runs + "." + id
	if _, err := s.store.publish(ctx, &nats.Msg{Subject: subject, Data: data}); err != nil {
		return fmt.Errorf("note what was sent: %w", err)
	}
	// The newest one counts, so that one before it that stays does no harm.
	_ = s.held.Purge(ctx, jetstream.WithPurgeSubject(subject), jetstream.WithPurgeKeep(1))
	return nil
}

// ReadRun returns what WriteRun noted, nil if there is nothing.
func (s *Sends) ReadRun(ctx context.Context, id string) ([]byte, error) {
	msg, err := s.held.GetLastMsgForSubject(ctx, s.store.names.runs+"."+id)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up what was sent: %w", err)
	}
	return msg.Data, nil
}

// OpenCampaigns reads the figures of campaigns that the sender keeps, to go on from a
// checkpoint.
func (s *Sends) OpenCampaigns(ctx context.Context, changes CampaignChanges) (*Campaigns, error) {
	return s.store.OpenCampaigns(ctx, CampaignsOfSender, changes)
}

// Remember keeps what a notification was about; see Store.Remember.
func (s *Sends) Remember(ctx context.Context, notificationID string, send RememberedSend) error {
	return s.store.Remember(ctx, notificationID, send)
}
