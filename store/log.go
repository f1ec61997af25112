package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// Frame is one frame read from the queue.
type Frame struct {
	Seq      uint64
	Time     time.Time // when the server stored it
	Receipts []Receipt // their Records are slices of the message
	Replay   Replay    // how it got on the queue
	Unread   bool      // see ReplayOptions.Unread
	Bytes    int       // what it takes in memory, about
	// Err says that the frame does not decode. Then Receipts holds one receipt
	// with the message as its Record and ReasonCorrupt.
	Err error
}

// Replay says how a frame got on the queue.
type Replay string

// A frame is from the door, or from one of the two replays.
const (
	ReplayNone      Replay = ""
	ReplayDead      Replay = "dead"
	ReplayDelivered Replay = "delivered"
)

// FrameInfo is what a scan learns of a frame without reading its receipts.
type FrameInfo struct {
	Seq      uint64
	Time     time.Time
	Receipts int
	Replay   Replay
	Bytes    int64 // what it takes of the stream's MaxBytes
}

const (
	headerSize = "Nats-Msg-Size" // set by the server where only headers are delivered

	// What the client may buffer between the server and Next: so many messages, asked for in
	// portions of so many bytes. The next portion is asked for when half of the messages
	// were read, so two are in memory at most. (A limit in bytes alone would cost a buffer
	// of a million places for every consumer.)
	readAhead      = 500
	readAheadBytes = 3 * maxFrameBytes
	// stallAfter is how long nothing may come although the queue has more, before
	// the consumer is built anew.
	stallAfter  = 2 * time.Second
	scanTimeout = 10 * time.Second
	// firstWait is how long a consumer in a cluster may take for its first message. What
	// asks for that gets lost when it reaches a node before the news of the consumer does.
	firstWait = 250 * time.Millisecond
	// buildTimeout is how long a reader waits for a consumer in a cluster, half of it the
	// first time: it is placed anew each time, and may have been placed on a node that has
	// just died; and who leads next does not know what the last leader was asked. After
	// patientAfter tries it is not that: the cluster is slow, and given its time.
	buildTimeout = time.Second
	patientAfter = 10
	// heartbeat is how often a consumer in a cluster says that it lives when it has
	// nothing else to say; when two are missing it is built anew. Not less: the library
	// takes no less.
	heartbeat    = 500 * time.Millisecond
	consumeRetry = 250 * time.Millisecond
	consumerIdle = time.Minute // the server forgets a consumer that asks for nothing
	consumerEnd  = time.Second
)

// Reader reads frames in sequence from a position. Those that this process has just
// stored it takes from memory, all others from the server by a consumer, which it
// minds: when nothing comes although the queue has more, it builds it anew from
// where it is.
type Reader struct {
	source
	built time.Time // when the consumer was built
	asked bool      // the server had no more when it was asked last
	ended sync.Once
}

// Read returns a reader that begins at frame from.
func (s *Store) Read(from uint64) *Reader {
	s.recent.open()
	return &Reader{source: source{store: s, stream: s.receipts, name: s.names.receiptStream, next: max(1, from)}}
}

const (
	// endPoll is how soon a reader at the end sees what another process has stored: a
	// command that replays.
	endPoll = time.Second
	// consumerStays is how long a reader keeps a consumer that it has built, since it
	// may need it for the next frames, too.
	consumerStays = time.Second
)

// Next waits for the next frame, through outages of the server too; its only errors
// are that of ctx and ErrClosed. A frame that does not decode is no error here: its Err says so.
func (r *Reader) Next(ctx context.Context) (Frame, error) {
	f, found, err := r.fromMemory(ctx)
	if err != nil || found {
		return f, err
	}
	if r.messages == nil {
		r.built = time.Now()
	}
	msg, meta, err := r.message(ctx)
	if err != nil {
		return Frame{}, fmt.Errorf("read the queue: %w", err)
	}
	if meta.NumPending == 0 && r.canWait() {
		r.stop(ctx) // at the end one waits without it
		r.asked = false
	}
	return toFrame(msg, meta), nil
}

// canWait tells whether the reader may do without a consumer: what comes next comes
// through this process, or may come a moment later.
func (r *Reader) canWait() bool {
	return r.store.embedded != nil && (r.messages == nil || time.Since(r.built) >= consumerStays)
}

// fromMemory returns the next frame if this process has stored it lately, and waits
// for it where the queue ends. Not found: it has to be read from the server.
func (r *Reader) fromMemory(ctx context.Context) (Frame, bool, error) {
	for r.canWait() {
		f, found, newer, next := r.store.recent.look(r.next)
		switch {
		case found:
			r.stop(ctx)
			r.next++
			return f.frame(), true, nil
		case newer || r.messages != nil || !r.asked && r.more(ctx):
			return Frame{}, false, nil
		}
		r.asked = true
		select {
		case <-next:
		case <-time.After(endPoll):
			r.asked = false
		case <-ctx.Done():
			return Frame{}, false, fmt.Errorf("read the queue: %w", ctx.Err())
		case <-r.store.life.Done():
			return Frame{}, false, fmt.Errorf("read the queue: %w", ErrClosed)
		}
	}
	return Frame{}, false, nil
}

// more tells whether the server has the next frame, or does not say: then building a
// consumer tells why.
func (r *Reader) more(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, stallAfter)
	defer cancel()
	last, err := r.store.lastSequence(ctx, r.stream)
	return err != nil || last >= r.next
}

// Close ends the reader. It may be called twice.
func (r *Reader) Close() {
	r.stop(r.store.life)
	r.ended.Do(r.store.recent.close)
}

func toFrame(msg jetstream.Msg, meta *jetstream.MsgMetadata) Frame {
	return storedFrame{
		seq: meta.Sequence.Stream, time: meta.Timestamp,
		data: msg.Data(), replay: Replay(msg.Headers().Get(headerReplayed)), unread: msg.Headers().Get(headerUnread) != "",
	}.frame()
}

// corrupt is what is kept of a message that does not decode.
func corrupt(data []byte) []byte { return data[:min(len(data), maxCorruptBytes)] }

// errEnd says that a scan has seen everything: what is left was deleted meanwhile.
var errEnd = errors.New("end of stream")

// source reads one stream in order by a consumer that keeps no acknowledgements and
// lives in the server's memory, and builds it anew whenever it fails, skips a
// message, or falls silent although the stream has more. (The library's own ordered
// consumer recovers inside a call that heeds no context, with waits of up to 10 s.)
// Only one goroutine may use it.
type source struct {
	store       *Store
	stream      jetstream.Stream
	name        string
	next        uint64
	headersOnly bool
	scan        bool // errEnd instead of waiting where there is nothing, and no second try

	consumer string // name; empty while there is none
	order    uint64 // of the consumer's last message
	messages jetstream.MessagesContext
	pumped   chan delivery // closed when the pump has ended
	halt     chan struct{} // tells the pump to end
	silence  *time.Timer
	patience time.Duration // how long nothing may come
	silent   bool          // the last consumer has delivered nothing
	tries    int           // to build one, since one was built in good time and delivered
	slow     bool          // the last one took longer to build than the first tries give it
	warned   bool
}

// delivery is a message, or why there are no more of them.
type delivery struct {
	msg jetstream.Msg
	err error
}

// message returns the next message, building or rebuilding the consumer as needed.
func (s *source) message(ctx context.Context) (jetstream.Msg, *jetstream.MsgMetadata, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		if s.messages == nil {
			if err := s.consume(ctx); err != nil {
				if err := s.later(ctx, err); err != nil {
					return nil, nil, err
				}
				continue
			}
		}
		msg, err := s.wait(ctx)
		if err == nil {
			meta, err := msg.Metadata()
			if err != nil {
				return nil, nil, err
			}
			if meta.Sequence.Consumer != s.order+1 {
				s.stop(ctx)
				continue
			}
			s.order, s.next, s.warned = meta.Sequence.Consumer, meta.Sequence.Stream+1, false
			s.patience, s.silent = stallAfter, false
			s.works()
			return msg, meta, nil
		}
		if err := s.mind(ctx, err); err != nil {
			return nil, nil, err
		}
	}
}

// later waits before the next try to build a consumer; a scan does not try again.
func (s *source) later(ctx context.Context, err error) error {
	switch {
	case s.scan:
		return err
	case s.store.life.Err() != nil:
		return ErrClosed
	}
	if !s.warned && ctx.Err() == nil {
		s.warned = true
		s.store.log.Warn("cannot read the queue, trying on", zap.String("stream", s.name), zap.Error(err))
	}
	select {
	case <-time.After(consumeRetry):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// errSilent says that nothing came for as long as there is patience.
var errSilent = errors.New("nothing came")

func (s *source) wait(ctx context.Context) (jetstream.Msg, error) {
	select {
	case d := <-s.pumped:
		return d.msg, d.err
	default:
	}
	if s.silence == nil {
		s.silence = time.NewTimer(s.patience)
	} else {
		s.silence.Reset(s.patience)
	}
	defer s.silence.Stop()
	select {
	case d := <-s.pumped:
		return d.msg, d.err
	case <-s.silence.C:
		return nil, errSilent
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// pump carries messages from the client's buffer to wait, which can then end with a
// context at no cost per message.
func pump(messages jetstream.MessagesContext, to chan<- delivery, halt <-chan struct{}) {
	defer close(to)
	for {
		msg, err := messages.Next()
		select {
		case to <- delivery{msg, err}:
		case <-halt:
			return
		}
		if err != nil {
			return
		}
	}
}

// mind ends a consumer that has failed, or is silent although the stream has more.
func (s *source) mind(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if !errors.Is(err, errSilent) {
		s.stop(ctx)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, stallAfter)
	defer cancel()
	info, err := s.store.infoOf(ctx, s.stream)
	switch {
	case err != nil && s.scan:
		return err
	case err == nil && info.State.Msgs > 0 && info.State.LastSeq >= s.next:
		s.stop(ctx)
	}
	return nil
}

func (s *source) consume(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.buildWithin())
	defer cancel()
	config := jetstream.ConsumerConfig{
		AckPolicy:         jetstream.AckNonePolicy,
		DeliverPolicy:     jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:       s.next,
		HeadersOnly:       s.headersOnly,
		MemoryStorage:     true,
		Replicas:          1,
		InactiveThreshold: consumerIdle,
	}
	began := time.Now()
	consumer, err := s.stream.CreateConsumer(ctx, config)
	if err != nil {
		return err
	}
	if s.slow = time.Since(began) > buildTimeout; !s.slow && consumer.CachedInfo().NumPending == 0 {
		s.works() // as well as one can that has nothing to deliver
	}
	info := consumer.CachedInfo()
	s.consumer, s.order = info.Name, 0
	s.next = max(s.next, info.Delivered.Stream+1)
	if s.scan && info.NumPending == 0 {
		s.stop(ctx)
		return errEnd
	}
	pull := []jetstream.PullMessagesOpt{jetstream.PullMaxMessagesWithBytesLimit(readAhead, s.store.portion())}
	if s.store.clustered() {
		pull = append(pull, jetstream.PullHeartbeat(heartbeat))
	}
	s.messages, err = consumer.Messages(pull...)
	if err != nil {
		s.stop(ctx)
		return err
	}
	s.patience = stallAfter
	if s.store.clustered() && info.NumPending > 0 && !s.silent {
		s.patience = firstWait // once: it may be slow
	}
	s.silent = true
	s.pumped, s.halt = make(chan delivery, 1), make(chan struct{})
	go pump(s.messages, s.pumped, s.halt)
	return nil
}

// portion is how many bytes are asked for at once: no message may be larger, or it would
// never come. birdtap writes none of a megabyte, but others may have rights.
func (s *Store) portion() int {
	return max(readAheadBytes, int(s.nc.MaxPayload())+64<<10)
}

// buildWithin is how long the next consumer may take to be built.
func (s *source) buildWithin() time.Duration {
	s.tries++
	switch {
	case s.scan || !s.store.clustered() || s.tries > patientAfter:
		return scanTimeout
	case s.tries == 1:
		return buildTimeout / 2
	default:
		return buildTimeout
	}
}

// works notes that the consumer delivers.
func (s *source) works() {
	if !s.slow {
		s.tries = 0
	}
}

// stop ends the consumer, and removes it from the server, which would keep it for
// consumerIdle, even when ctx has ended. In a cluster nobody waits for that: the node that
// has to answer may be the one that has died. It may be called twice.
func (s *source) stop(ctx context.Context) {
	if s.messages != nil {
		close(s.halt)
		s.messages.Stop()
		for range s.pumped { // until the pump has ended
			continue
		}
		s.messages = nil
	}
	name := s.consumer
	s.consumer = ""
	if name == "" || !s.store.nc.IsConnected() {
		return
	}
	remove := func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), consumerEnd)
		defer cancel()
		_ = s.stream.DeleteConsumer(ctx, name)
	}
	switch {
	case !s.store.clustered():
		remove()
	case s.store.life.Err() == nil: // or the server forgets it by itself
		s.store.removals.Go(remove)
	}
}

// ScanFrames calls fn for every frame from sequence from to the newest, without
// reading its receipts, and returns the sequence behind the newest one. A frame that
// is being committed meanwhile may be left to the next scan.
func (s *Store) ScanFrames(ctx context.Context, from uint64, fn func(FrameInfo)) (uint64, error) {
	end, err := s.lastSequence(ctx, s.receipts)
	if err != nil {
		return from, err
	}
	from = s.recent.scan(from, fn)
	if from > end || from == end && s.committing.Load() {
		return from, nil
	}
	return s.scan(ctx, s.receipts, s.names.receiptStream, from, true, func(msg jetstream.Msg, meta *jetstream.MsgMetadata) error {
		fn(s.frameInfo(msg, meta))
		return nil
	})
}

func (s *Store) frameInfo(msg jetstream.Msg, meta *jetstream.MsgMetadata) FrameInfo {
	h := msg.Headers()
	f := FrameInfo{
		Seq:      meta.Sequence.Stream,
		Time:     meta.Timestamp,
		Receipts: headerInt(h, headerReceipts),
		Replay:   Replay(h.Get(headerReplayed)),
	}
	if f.Receipts == 0 {
		f.Receipts = 1 // not birdtap's: a Reader makes one corrupt receipt of it
	}
	f.Bytes = storedSize(len(s.names.receipts), h, headerInt(h, headerSize))
	return f
}

// storedSize is what the server counts for a message: its file store writes length,
// sequence, time, subject, headers, payload and a checksum.
func storedSize(subject int, h nats.Header, payload int) int64 {
	size := 4 + 8 + 8 + 2 + subject + payload + 8
	header := 0
	for name, values := range h {
		if name != headerSize { // only in this delivery
			header += len(name) + len(": \r\n") + len(values[0])
		}
	}
	if header > 0 {
		size += 4 + len("NATS/1.0\r\n\r\n") + header
	}
	return int64(size)
}

// scan calls fn for every message from sequence from to the newest one of now, and
// returns the sequence behind that.
func (s *Store) scan(ctx context.Context, stream jetstream.Stream, name string, from uint64, headersOnly bool,
	fn func(jetstream.Msg, *jetstream.MsgMetadata) error,
) (uint64, error) {
	info, err := s.infoOf(ctx, stream)
	if err != nil {
		return from, fmt.Errorf("look up stream %s: %w", name, err)
	}
	end := info.State.LastSeq
	if info.State.Msgs == 0 || end < from {
		return max(from, end+1), nil
	}
	src := source{store: s, stream: stream, name: name, next: max(1, from), headersOnly: headersOnly, scan: true}
	defer src.stop(ctx)
	for src.next <= end {
		msg, meta, err := src.message(ctx)
		if errors.Is(err, errEnd) {
			break
		}
		if err != nil {
			return src.next, fmt.Errorf("scan stream %s: %w", name, err)
		}
		if meta.Sequence.Stream > end {
			break
		}
		if err := fn(msg, meta); err != nil {
			return src.next, err
		}
		if meta.NumPending == 0 {
			break
		}
	}
	return max(src.next, end+1), nil
}

func headerInt(h nats.Header, name string) int {
	n, err := strconv.Atoi(h.Get(name))
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// FrameTime returns when a frame was stored, and false if there is no such frame.
func (s *Store) FrameTime(ctx context.Context, seq uint64) (time.Time, bool, error) {
	msg, err := lookUp(ctx, s, func(ctx context.Context) (*jetstream.RawStreamMsg, error) { return s.receipts.GetMsg(ctx, seq) })
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return time.Time{}, false, nil
	}
	if err != nil {
		return time.Time{}, false, fmt.Errorf("look up frame %d: %w", seq, err)
	}
	return msg.Time, true, nil
}

// FirstSince returns the first of the frames right before end that were stored at or
// after since: end if there is none. It goes back from end in steps that double, and
// then halves what is left. The server's own search by time would not do: after a clock
// was set back the times of frames do not rise, and it may end behind all of them.
func (s *Store) FirstSince(ctx context.Context, end uint64, since time.Time) (uint64, error) {
	info, err := s.infoOf(ctx, s.receipts)
	if err != nil {
		return 0, fmt.Errorf("look up stream %s: %w", s.names.receiptStream, err)
	}
	first := max(1, info.State.FirstSeq) // 0 where there never was a frame
	inside, outside := end, min(first, end)-1
	for step := uint64(1); inside-outside > 1; step *= 2 {
		at := outside + (inside-outside)/2
		if outside < first && inside-outside > step {
			at = inside - step
		}
		stored, found, err := s.FrameTime(ctx, at)
		switch {
		case err != nil:
			return 0, err
		case !found || !stored.Before(since): // of a damaged one nobody knows
			inside = at
		default:
			outside = at
		}
	}
	return inside, nil
}
