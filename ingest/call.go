package ingest

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/birdtap/birdtap/clevertap"
	"github.com/birdtap/birdtap/store"
)

const (
	maxBodyBytes = 5 << 20

	// maxRecords is how many records a body may have. The shortest good one has 66
	// bytes, so 5 MiB never hold more; two million of `1,` would, and each costs
	// memory and an entry in the answer.
	maxRecords = 100_000
	// smallBodyBytes is how much of a body is held without asking. What goes
	// beyond shares a fixed amount of memory with all the others.
	smallBodyBytes = 16 << 10
	// verifiedBytes and unverifiedBytes are those amounts. Whoever may send what
	// nobody has verified yet cannot use up the room of those who have shown
	// their credentials.
	verifiedBytes   = 8 << 20
	unverifiedBytes = 8 << 20

	// A call is answered within 4 s of the last byte of its body. A large body
	// waits for memory at most roomWithin, and that is taken off commitWithin,
	// since its last byte may be waiting in the socket already.
	roomWithin   = 2 * time.Second
	commitWithin = 3500 * time.Millisecond
)

// call is the memory that one call works with. It is used again for the next
// one, so whoever is given parts of it copies them.
type call struct {
	began  time.Time
	body   []byte
	waited time.Duration // for room
	room   *semaphore.Weighted
	held   int64 // bytes of room

	parser    parser
	converter converter
	take      func(*record) error // takeRecord; bound once, since binding allocates
	signed    bool

	receipts []store.Receipt // to be stored: the good ones and the refused ones that are kept
	refused  []refusedRecord
	taken    int // good records
	ignored  int // webhooks that are no receipts
	answer   []byte
}

func newCall() *call {
	c := new(call)
	c.take = c.takeRecord
	return c
}

// calls keeps the memory of calls. That of large bodies is kept apart, and given only
// to a call that has found its room: else every caller who waits for room would hold
// memory for a large body already.
type calls struct{ small, large sync.Pool }

func get(p *sync.Pool) *call {
	if c, ok := p.Get().(*call); ok {
		return c
	}
	return newCall()
}

// read reads the whole body, or says why not. A large one finds its room in room.
// What it returns goes back by put.
func (p *calls) read(r *http.Request, room *semaphore.Weighted) (*call, *refusal) {
	c := get(&p.small)
	c.began = time.Now()
	if isEncoded(r.Header) {
		return c, encoded
	}
	if r.ContentLength > maxBodyBytes {
		return c, tooLarge
	}
	whole, err := c.fill(r.Body, smallBodyBytes)
	if err == nil && !whole {
		asked := time.Now()
		held, err := makeRoom(r, room)
		if err != nil {
			return c, unavailable
		}
		c = p.enlarge(c, r.ContentLength)
		c.room, c.held, c.waited = room, held, time.Since(asked)
		whole, err = c.fill(r.Body, maxBodyBytes)
		return c, unread(whole, err)
	}
	return c, unread(whole, err)
}

func unread(whole bool, err error) *refusal {
	switch {
	case err != nil:
		// The bytes so far may parse, and be less than what was sent.
		return unreadable
	case !whole:
		return tooLarge
	}
	return nil
}

// enlarge moves a call to the memory of large bodies. length is that of its body, or
// negative where nobody knows.
func (p *calls) enlarge(small *call, length int64) *call {
	c := get(&p.large)
	if length > 0 {
		c.body = slices.Grow(c.body, int(length)+1) // one more, to see the end
	}
	c.body, c.began = append(c.body, small.body...), small.began
	p.put(small)
	return c
}

// put takes the memory back, unless keeping it would hold on to too much.
func (p *calls) put(c *call) {
	pool, room, held := &p.small, c.room, c.held
	if held > 0 {
		pool = &p.large
	}
	if cap(c.body) <= 1<<20 && cap(c.receipts) <= 10_000 && cap(c.answer) <= 1<<20 {
		clear(c.receipts) // they may point into buffers outgrown since
		clear(c.refused)
		c.body, c.answer = c.body[:0], c.answer[:0]
		c.receipts, c.refused = c.receipts[:0], c.refused[:0]
		c.room, c.held, c.waited = nil, 0, 0
		c.signed, c.taken, c.ignored, c.converter.sent = false, 0, 0, nil
		pool.Put(c)
	}
	if held > 0 {
		room.Release(held) // the next one finds the memory
	}
}

// isEncoded tells whether the body is anything but itself. It is never unpacked:
// a small body could become any size.
func isEncoded(h http.Header) bool {
	for _, encoding := range h["Content-Encoding"] {
		if encoding != "" && !strings.EqualFold(encoding, "identity") {
			return true
		}
	}
	return false
}

// fill reads until the body ends, or is longer than limit. Memory grows with
// what has come, not with what was announced.
func (c *call) fill(src io.Reader, limit int) (whole bool, err error) {
	for len(c.body) <= limit {
		if len(c.body) == cap(c.body) {
			c.body = slices.Grow(c.body, 4<<10)
		}
		n, err := src.Read(c.body[len(c.body):min(cap(c.body), limit+1)])
		c.body = c.body[:len(c.body)+n]
		if errors.Is(err, io.EOF) {
			return len(c.body) <= limit, nil
		}
		if err != nil {
			return false, err
		}
	}
	return false, nil
}

// makeRoom waits until the rest of a large body may be held, and returns how many
// bytes it took of room.
func makeRoom(r *http.Request, room *semaphore.Weighted) (int64, error) {
	size := r.ContentLength
	if size < 0 {
		size = maxBodyBytes // chunked: how long it is shows at its end only
	}
	ctx, cancel := context.WithTimeout(r.Context(), roomWithin)
	defer cancel()
	return size, room.Acquire(ctx, size)
}

// errTooMany ends the reading of a body with more than maxRecords records.
var errTooMany = errors.New("too many records")

// parse turns the body into receipts and refusals; misread is the answer to a
// body that cannot be.
func (c *call) parse(now time.Time, misread *refusal) *refusal {
	c.converter.reset(now)
	switch err := c.parser.parse(c.body, c.take); {
	case err == nil:
		return nil
	case errors.Is(err, errTooMany):
		return tooLarge
	default:
		return misread
	}
}

func (c *call) takeRecord(rec *record) error {
	number := c.taken + len(c.refused) + c.ignored + 1
	if number > maxRecords {
		return errTooMany
	}
	if c.signed && c.converter.isOtherWebhook(rec) {
		c.ignored++
		return nil
	}
	receipt, _ := c.converter.convert(rec) // a map that cannot be read says so itself
	if receipt.Reason != store.ReasonRefused {
		c.taken++ // one that is unmapped, too: its sender can do nothing about it
	} else {
		c.refused = append(c.refused, refusedRecord{number, clevertap.Code(receipt.Code), rec.raw})
		if len(rec.raw) > maxRecordBytes {
			return nil // too large to be kept; its sender is told
		}
	}
	c.receipts = append(c.receipts, receipt)
	return nil
}
