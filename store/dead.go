package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/birdtap/birdtap/store/failpoint"
)

// Letters that died together are one message on the dead stream: a mistyped event
// name kills a whole campaign, and a thousand synced writes would be slow. The
// layout is that of a frame with the magic "BTD", and a letter is
//
//	uvarint length, reason  uvarint code  uvarint tries  varint died, Unix ms
//	uvarint origin sequence  uvarint origin index  varint accepted, Unix ms  receipt

// letterOverhead bounds what a letter takes beside its Receipt and a long Reason.
const letterOverhead = 8*binary.MaxVarintLen64 + 1<<10

func letterSize(l *Letter) int {
	return 8*binary.MaxVarintLen64 + len(l.Reason) + receiptSize(&l.Receipt)
}

func appendLetter(b []byte, l *Letter) []byte {
	b = appendBytes(b, l.Reason)
	b = binary.AppendUvarint(b, uint64(l.Code))  //nolint:gosec // codes are positive
	b = binary.AppendUvarint(b, uint64(l.Tries)) //nolint:gosec // a count
	b = binary.AppendVarint(b, l.Died.UnixMilli())
	b = appendPlace(b, l.Origin)
	b = binary.AppendVarint(b, l.Receipt.Accepted.UnixMilli())
	return appendReceipt(b, &l.Receipt)
}

// checkLetter refuses a letter that could not be read back.
func checkLetter(l *Letter) error {
	switch {
	case l.Reason == "" || !isCount(l.Code) || !isCount(l.Tries) || !l.Origin.valid():
		return fmt.Errorf("%w: a dead letter with reason %q, code %d, tries %d, origin %d, %d",
			ErrInvalid, l.Reason, l.Code, l.Tries, l.Origin.Seq, l.Origin.Index)
	case letterSize(l) > maxReceiptBytes+letterOverhead:
		return fmt.Errorf("%w: a dead letter of %d bytes", ErrInvalid, letterSize(l))
	}
	return checkReceipt(&l.Receipt)
}

func decodeLetters(data []byte) ([]Letter, error) {
	body, n, err := openPacket(data, letterMagic)
	if err != nil {
		return nil, err
	}
	letters := make([]Letter, n)
	d := decoder{rest: body}
	for i := range letters {
		l := &letters[i]
		l.Reason, l.Code, l.Tries, l.Died = d.reason(), d.int(), d.int(), d.time()
		l.Origin = d.place()
		accepted := d.time()
		d.receipt(&l.Receipt)
		l.Receipt.Accepted = accepted
	}
	return letters, d.end()
}

// letterMsgs packs letters into as few messages as they fit in.
func (s *Store) letterMsgs(letters []Letter) []*nats.Msg {
	var msgs []*nats.Msg
	for len(letters) > 0 {
		var p packet
		p.reset(letterMagic)
		for p.n < len(letters) && !p.full(letterSize(&letters[p.n])) {
			p.buf = appendLetter(p.buf, &letters[p.n])
			p.n++
		}
		msgs = append(msgs, &nats.Msg{Subject: s.names.dead, Header: letterHeader(letters[:p.n]), Data: p.seal()})
		letters = letters[p.n:]
	}
	return msgs
}

func letterHeader(letters []Letter) nats.Header {
	count := map[Reason]int{}
	var origin uint64
	for i := range letters {
		count[letters[i].Reason]++
		origin = max(origin, letters[i].Origin.Seq)
	}
	reasons := make([]string, 0, len(count))
	for reason, n := range count {
		reasons = append(reasons, string(reason)+"="+strconv.Itoa(n))
	}
	slices.Sort(reasons)
	return nats.Header{
		headerReceipts: []string{strconv.Itoa(len(letters))},
		headerReasons:  []string{strings.Join(reasons, ",")},
		headerOrigin:   []string{strconv.FormatUint(origin, 10)},
	}
}

// deadSpareBytes of the dead stream lie beyond DeadMaxBytes, so that a full one can
// still be replayed and purged: what is left of a message is stored before it goes.
const deadSpareBytes = 4 << 20

// CountLetters is how many dead letters there are of each reason, as the headers of
// their messages say, without reading a letter.
func (s *Store) CountLetters(ctx context.Context) (map[Reason]uint64, error) {
	st := Status{DeadByReason: map[Reason]uint64{}}
	err := s.countDead(ctx, &st)
	return st.DeadByReason, err
}

// Bury stores dead letters and returns nil once all are on disk, with the sequence
// of the last message. ErrInvalid: one of them cannot be stored, and none was;
// ErrFull: DeadMaxBytes is reached. On any other error some may be stored; burying
// them again makes letters of equal Origin, of which a replay delivers one.
func (s *Store) Bury(ctx context.Context, letters []Letter) (uint64, error) {
	size := int64(0)
	for i := range letters {
		if err := checkLetter(&letters[i]); err != nil {
			return 0, fmt.Errorf("store dead letters: %w", err)
		}
		size += int64(letterSize(&letters[i]))
	}
	info, err := s.infoOf(ctx, s.dead)
	if err != nil {
		return 0, fmt.Errorf("look up stream %s: %w", s.names.deadStream, err)
	}
	if limit := info.Config.MaxBytes; limit > 0 && int64(info.State.Bytes)+size > limit-deadSpareBytes { //nolint:gosec // bytes on a disk
		return 0, fmt.Errorf("store dead letters: %w (%s)", ErrFull, s.names.dead)
	}
	return s.bury(ctx, letters, doorPatience)
}

// bury may use the spare bytes, too.
func (s *Store) bury(ctx context.Context, letters []Letter, p patience) (uint64, error) {
	var last uint64
	for _, msg := range s.letterMsgs(letters) {
		ack, err := s.publishSurely(ctx, msg, p)
		if err != nil {
			return 0, fmt.Errorf("store dead letters: %w", err)
		}
		last = ack.Sequence
	}
	return last, nil
}

// ErrStop ends a walk over the letters early, without being an error.
var ErrStop = errors.New("stop")

// Letters calls fn for every dead letter, oldest message first, in the memory of
// one message. It ends early, and returns nil, when fn returns ErrStop. A message
// that does not decode is one letter of ReasonCorrupt without an Origin.
func (s *Store) Letters(ctx context.Context, fn func(Letter) error) error {
	err := s.deadMessages(ctx, 1, func(m deadMessage) error {
		s.tellNewer(m)
		for _, l := range m.letters {
			if err := fn(l); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, ErrStop) {
		return nil
	}
	return err
}

// deadMessage is one message of the dead stream.
type deadMessage struct {
	seq     uint64
	letters []Letter
	newer   error // a newer birdtap wrote it: its letters stay, and nobody here sees them
}

// tellNewer says that there are letters that this birdtap cannot read.
func (s *Store) tellNewer(m deadMessage) {
	if m.newer != nil {
		s.log.Warn("a newer birdtap has written these dead letters: they are left alone", zap.Uint64("message", m.seq), zap.Error(m.newer))
	}
}

func (s *Store) deadMessages(ctx context.Context, from uint64, fn func(deadMessage) error) error {
	_, err := s.scan(ctx, s.dead, s.names.deadStream, from, false, func(msg jetstream.Msg, meta *jetstream.MsgMetadata) error {
		letters, err := decodeLetters(msg.Data())
		if errors.Is(err, ErrNewer) {
			return fn(deadMessage{seq: meta.Sequence.Stream, newer: err})
		}
		if err != nil {
			s.log.Error("dead letters do not decode", zap.Uint64("message", meta.Sequence.Stream), zap.Error(err))
			letters = []Letter{{
				Receipt: Receipt{Record: corrupt(msg.Data()), Reason: ReasonCorrupt, Accepted: meta.Timestamp},
				Reason:  ReasonCorrupt,
				Died:    meta.Timestamp,
			}}
		}
		return fn(deadMessage{seq: meta.Sequence.Stream, letters: letters})
	})
	return err
}

// LettersSince returns the places at or above frame floor that letters behind
// message deadSeq died at, and the sequence of the newest message. A crash between
// storing letters and the checkpoint leaves such ones: they are settled.
func (s *Store) LettersSince(ctx context.Context, deadSeq, floor uint64) (map[Place]bool, uint64, error) {
	places := map[Place]bool{}
	last := deadSeq
	end, err := s.lastSequence(ctx, s.receipts)
	if err != nil {
		return nil, last, err
	}
	err = s.deadMessages(ctx, deadSeq+1, func(m deadMessage) error {
		if m.newer != nil {
			return fmt.Errorf("dead letters, message %d: %w", m.seq, m.newer)
		}
		last = m.seq
		for _, l := range m.letters {
			// One beyond the end is of a frame that a power cut took, with a queue that
			// does not sync: its place will be another receipt's.
			if l.Origin.valid() && l.Origin.Seq >= floor && l.Origin.Seq <= end {
				places[l.Origin] = true
			}
		}
		return nil
	})
	return places, last, err
}

// takeLetters walks the letters that are there now and lets take have those that
// choose picks, message by message; take returns how many of them it took, first to
// last. What is left of a message is stored anew before the message is deleted:
// killed in between, letters stand twice, never not at all.
func (s *Store) takeLetters(ctx context.Context, choose func(*Letter) bool, limit int, take func([]Letter) (int, error)) (int, error) {
	taken := 0
	err := s.deadMessages(ctx, 1, func(m deadMessage) error {
		s.tellNewer(m)
		var chosen []int // indices
		var letters []Letter
		for i := range m.letters {
			if (limit == 0 || taken+len(chosen) < limit) && choose(&m.letters[i]) {
				chosen, letters = append(chosen, i), append(letters, m.letters[i])
			}
		}
		if len(chosen) == 0 {
			return nil
		}
		n, err := take(letters)
		if n > 0 {
			err = errors.Join(err, s.removeLetters(ctx, m, chosen[:n]))
		}
		taken += n
		if err == nil && taken == limit {
			return ErrStop
		}
		return err
	})
	if errors.Is(err, ErrStop) {
		err = nil
	}
	return taken, err
}

// removeLetters takes the letters of those indices, which are in order, out of a
// message. A context that ends meanwhile does not keep it from that: the letters are
// taken already and would stand twice.
func (s *Store) removeLetters(ctx context.Context, m deadMessage, indices []int) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandWait)
	defer cancel()
	var rest []Letter
	for i, l := range m.letters {
		if len(indices) > 0 && indices[0] == i {
			indices = indices[1:]
			continue
		}
		rest = append(rest, l)
	}
	if _, err := s.bury(ctx, rest, commandPatience(ctx)); err != nil {
		return err
	}
	failpoint.Here(failpoint.LettersKept)
	if err := s.removeDead(context.WithoutCancel(ctx), m.seq); err != nil {
		return fmt.Errorf("remove dead letters, message %d: %w", m.seq, err)
	}
	return nil
}

// removeDead removes a message. That it is gone already is as good: another command was
// faster, or an earlier try of this one.
func (s *Store) removeDead(ctx context.Context, seq uint64) error {
	ctx, cancel := context.WithTimeout(ctx, commandWait)
	defer cancel()
	_, err := askFor(ctx, s, commandWait, func(ctx context.Context) (struct{}, error) {
		err := s.dead.DeleteMsg(ctx, seq)
		if errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) { // it does not tell why
			_, is := s.dead.GetMsg(ctx, seq)
			switch {
			case errors.Is(is, jetstream.ErrMsgNotFound):
				err = nil
			case is != nil:
				err = is
			case s.clustered(): // it is there: servers may have been electing
				err = fmt.Errorf("%w: %w", nats.ErrTimeout, err)
			}
		}
		return struct{}{}, err
	})
	return err
}

// Purge gives up the dead letters that choose picks, at most limit of them (0 = all),
// and returns how many. They are counted as purged before they go, so that a count
// that was interrupted shows too many letters rather than too few.
func (s *Store) Purge(ctx context.Context, choose func(*Letter) bool, limit int) (int, error) {
	return s.takeLetters(ctx, choose, limit, func(letters []Letter) (int, error) {
		if err := s.addPurged(ctx, uint64(len(letters))); err != nil {
			return 0, err
		}
		return len(letters), nil
	})
}
