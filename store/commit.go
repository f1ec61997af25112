package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// publishDeadline bounds one commit. A disk that is full or fails its fsync makes
// nats-server answer nothing at all, so the deadline has to be ours. It leaves the
// door time to answer within 4 s.
const publishDeadline = 3 * time.Second

// In a cluster a node that ends, or is cut off, takes along what it was about to pass on:
// a frame, or the word that it is stored. Then the frame goes again, as long as its
// deadline lasts, under an id by which the stream knows a copy.
const (
	answerWait   = time.Second // for one try
	publishRetry = 100 * time.Millisecond
	// connectWait is how long a commit waits for a connection. The next node takes it
	// within some milliseconds; if none does, callers should know at once.
	connectWait = 500 * time.Millisecond
	// copyWindow is how long the stream remembers ids. It is longer than a node may hang
	// with a frame that has long gone again by another one, and not longer, for a node
	// reads them all back when it starts. (Later copies the relay still knows.)
	copyWindow = time.Minute
)

// maxGathered bounds the bytes that wait for the disk. Within the deadline of 3 s it
// is what a disk of 10 MB/s still takes; beyond it a commit is refused at once
// rather than held in memory for a caller who has long given up.
const maxGathered = 32 << 20

// Headers of stored messages: what scans need to know without reading the payload.
const (
	headerReceipts = "Birdtap-Receipts" // number of receipts, or letters, in the message
	headerReplayed = "Birdtap-Replayed" // on frames put back by a replay: ReplayDead or ReplayDelivered
	headerUnread   = "Birdtap-Unread"   // on replayed frames: ReplayOptions.Unread
	headerReasons  = "Birdtap-Reasons"  // on letters: how many of each reason, "512=3,555=1"
	headerOrigin   = "Birdtap-Origin"   // on letters: the highest frame sequence they died at
)

// committer is the group commit. Receipts that arrive while one commit is on its
// way to the disk gather in the next frame; there is no timer. One commit is in
// flight at a time: more were measured to be slower.
type committer struct {
	publish func(*nats.Msg) error
	observe func(receipts int, took time.Duration)

	mu       sync.Mutex
	queue    []*openFrame // in order; the last one may take more receipts
	gathered int          // bytes in queue
	closed   bool

	wake chan struct{} // capacity 1
	done chan struct{} // closed when run has ended
}

// openFrame is a frame that gathers, and those who wait for it.
type openFrame struct {
	packet
	stored chan struct{} // closed when the frame is on disk, or failed
	err    error         // valid once stored is closed
}

var framePool = sync.Pool{New: func() any { return new([]byte) }}

func newOpenFrame() *openFrame {
	f := &openFrame{packet: packet{buf: *framePool.Get().(*[]byte)}, stored: make(chan struct{})}
	f.reset(frameMagic)
	return f
}

func newCommitter(publish func(*nats.Msg) error, observe func(int, time.Duration)) *committer {
	c := &committer{publish: publish, observe: observe, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go c.run()
	return c
}

// commit returns nil once every receipt is on disk. The receipts are copied before
// it waits, so the caller may reuse their bytes whenever it returns. When ctx ends
// first it returns ErrTimeout: the receipts stay in their frame and may be stored.
func (c *committer) commit(ctx context.Context, receipts []Receipt) error {
	for i := range receipts {
		if err := checkReceipt(&receipts[i]); err != nil {
			return err
		}
	}
	var few [2]*openFrame // most calls share one frame
	frames := few[:0]
	for len(receipts) > 0 {
		f, n, err := c.gather(receipts)
		if err != nil {
			return err
		}
		frames = append(frames, f)
		receipts = receipts[n:]
	}
	for _, f := range frames {
		select {
		case <-f.stored:
			if f.err != nil {
				return f.err
			}
		case <-ctx.Done():
			return ErrTimeout
		}
	}
	return nil
}

// gather copies as many receipts as the last frame of the queue takes, or a new one.
func (c *committer) gather(receipts []Receipt) (*openFrame, int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, 0, ErrClosed
	}
	if c.gathered > maxGathered {
		return nil, 0, ErrBusy
	}
	if len(c.queue) == 0 || c.queue[len(c.queue)-1].full(receiptSize(&receipts[0])) {
		c.queue = append(c.queue, newOpenFrame())
	}
	f := c.queue[len(c.queue)-1]
	n, before := 0, len(f.buf)
	for n < len(receipts) && !f.full(receiptSize(&receipts[n])) {
		f.buf = appendReceipt(f.buf, &receipts[n])
		f.n++
		n++
	}
	c.gathered += len(f.buf) - before
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return f, n, nil
}

func (c *committer) run() {
	defer close(c.done)
	for range c.wake {
		for f := c.take(); f != nil; f = c.take() {
			c.store(f)
		}
	}
}

func (c *committer) take() *openFrame {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 {
		return nil
	}
	f := c.queue[0]
	c.queue[0] = nil
	c.queue = c.queue[1:]
	if len(c.queue) == 0 {
		c.queue = nil
	}
	c.gathered -= len(f.buf) - frameHead
	return f
}

func (c *committer) store(f *openFrame) {
	began := time.Now()
	f.err = c.publish(frameMsg(f.seal(), f.n, ""))
	c.observe(f.n, time.Since(began))
	close(f.stored)
	buf := f.buf
	f.buf = nil
	framePool.Put(&buf)
}

// close refuses further receipts, commits what has gathered, and waits for it.
func (c *committer) close() {
	c.mu.Lock()
	first := !c.closed
	c.closed = true
	c.mu.Unlock()
	if first {
		close(c.wake)
	}
	<-c.done
}

func frameMsg(data []byte, receipts int, replayed string) *nats.Msg {
	header := nats.Header{headerReceipts: []string{strconv.Itoa(receipts)}}
	if replayed != "" {
		header[headerReplayed] = []string{replayed}
	}
	return &nats.Msg{Header: header, Data: data}
}

// Commit puts receipts on the queue and returns nil once they are on disk: after
// fsync on the embedded queue, on the quorum's disks in a cluster. Many calls at
// once share a commit. A call of more than maxFrameReceipts receipts takes several.
//
// ErrInvalid: one of them cannot be stored, and none was. ErrFull and every other
// error: at least one of them is not known to be stored, and others may be.
// ErrTimeout when ctx ends first. The receipts' bytes may be reused as soon as
// Commit returns.
func (s *Store) Commit(ctx context.Context, receipts []Receipt) error {
	return s.committer.commit(ctx, receipts)
}

// publishFrame stores one frame on the queue, for somebody who waits at a door.
func (s *Store) publishFrame(m *nats.Msg) error { return s.storeFrame(m, doorPatience) }

func (s *Store) storeFrame(m *nats.Msg, p patience) error {
	if err := s.guard.refuse(); err != nil {
		return err
	}
	m.Subject = s.names.receipts
	s.committing.Store(true)
	defer s.committing.Store(false)
	ack, err := s.publishSurely(s.life, m, p)
	s.guard.committed(err)
	if err != nil {
		return fmt.Errorf("commit frame: %w", err)
	}
	s.remember(ack.Sequence, m)
	return nil
}

// patience is how long somebody waits for an answer of a cluster, and for a connection;
// one who has had enough is told after the try that goes on.
type patience struct {
	answer, connection time.Duration
	enough             <-chan struct{}
}

var doorPatience = patience{answer: publishDeadline, connection: connectWait}

// commandPatience is that of a command, which has time for an election. It is not as long
// as copyWindow: what goes again after that would be stored twice.
func commandPatience(ctx context.Context) patience {
	return patience{answer: commandWait, connection: commandWait, enough: ctx.Done()}
}

const commandWait = 30 * time.Second

// publishSurely is publish, and in a cluster again while there is no answer.
func (s *Store) publishSurely(ctx context.Context, m *nats.Msg, p patience) (*jetstream.PubAck, error) {
	if s.opts.NATSURL == "" { // embedded, if in another process of this machine
		return s.publish(ctx, m)
	}
	ctx, cancel := context.WithTimeout(ctx, p.answer)
	defer cancel()
	began := time.Now()
	m.Header[jetstream.MsgIDHeader] = []string{rand.Text()}
	for {
		try, cancel := context.WithTimeout(ctx, answerWait)
		ack, err := s.publish(try, m)
		cancel()
		again := errors.Is(err, ErrTimeout) || errors.Is(err, jetstream.ErrNoStreamResponse) || apiCode(err) == codeCopyUnderWay ||
			errors.Is(err, nats.ErrReconnectBufExceeded) && time.Since(began) < p.connection
		if !again {
			return ack, err
		}
		select {
		case <-time.After(publishRetry):
		case <-p.enough:
			return nil, ErrTimeout
		case <-ctx.Done():
			return nil, ErrTimeout
		}
	}
}

// remember keeps a frame that is on disk for this process' readers and scans. In a
// cluster most frames are other processes', so a reader there asks the server.
func (s *Store) remember(seq uint64, m *nats.Msg) {
	now, replay := time.Now(), Replay(m.Header.Get(headerReplayed))
	f := storedFrame{seq: seq, time: now, replay: replay, unread: m.Header.Get(headerUnread) != ""}
	if s.embedded != nil {
		f.data = m.Data
	}
	s.recent.add(f, FrameInfo{
		Seq: seq, Time: now, Replay: replay,
		Receipts: headerInt(m.Header, headerReceipts),
		Bytes:    storedSize(len(m.Subject), m.Header, len(m.Data)),
	})
}

// publish stores one message, with a deadline of its own, and types the error.
func (s *Store) publish(ctx context.Context, m *nats.Msg, opts ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	ctx, cancel := context.WithTimeout(ctx, publishDeadline)
	defer cancel()
	ack, err := s.js.PublishMsg(ctx, m, opts...)
	switch code := apiCode(err); {
	case err == nil:
		return ack, nil
	case code == codeMaxBytes || code == codeStorage || code == codeResources:
		return nil, fmt.Errorf("%w (%s)", ErrFull, m.Subject)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout), err != nil && s.life.Err() != nil:
		return nil, ErrTimeout
	}
	return nil, err
}

// codeCopyUnderWay says that the stream is just storing a message of the same id.
const codeCopyUnderWay jetstream.ErrorCode = 10158

// Error codes of JetStream that mean: no room. nats-server/v2/server/errors.json.
const (
	codeMaxBytes  jetstream.ErrorCode = 10077 // the stream's MaxBytes
	codeStorage   jetstream.ErrorCode = 10047 // the server's or account's storage
	codeResources jetstream.ErrorCode = 10023 // insufficient resources
)

func apiCode(err error) jetstream.ErrorCode {
	if apiErr := jetstream.JetStreamError(nil); errors.As(err, &apiErr) && apiErr.APIError() != nil {
		return apiErr.APIError().ErrorCode
	}
	return 0
}
