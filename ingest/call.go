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
	smallBodyBytes = 64 << 10
	// verifiedBytes and unverifiedBytes are those amounts. Whoever may send what
	// nobody has verified yet cannot use up the room of those who have shown
	// their credentials.
	verifiedBytes   = 16 << 20
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

// calls keeps the memory of calls apart by the size of their bodies, lest a few
// large ones leave every small one with large buffers.
type calls struct{ small, large sync.Pool }

func (p *calls) of(r *http.Request) *sync.Pool {
	if r.ContentLength >= 0 && r.ContentLength <= smallBodyBytes {
		return &p.small
	}
	return &p.large
}

// get returns memory for a call whose large body, if it is one, finds its room
// in room.
func (p *calls) get(r *http.Request, room *semaphore.Weighted) *call {
	c, ok := p.of(r).Get().(*call)
	if !ok {
		c = newCall()
	}
	c.began, c.room = time.Now(), room
	return c
}

// put takes the memory back, unless keeping it would hold on to too much.
func (p *calls) put(r *http.Request, c *call) {
	if c.held > 0 {
		c.room.Release(c.held)
	}
	if cap(c.body) > 1<<20 || cap(c.receipts) > 10_000 || cap(c.answer) > 1<<20 {
		return
	}
	clear(c.receipts) // they may point into buffers outgrown since
	clear(c.refused)
	c.body, c.answer = c.body[:0], c.answer[:0]
	c.receipts, c.refused = c.receipts[:0], c.refused[:0]
	c.room, c.held, c.waited = nil, 0, 0
	c.signed, c.taken, c.ignored = false, 0, 0
	p.of(r).Put(c)
}

// read reads the whole body, or says why not.
func (c *call) read(r *http.Request) *refusal {
	if isEncoded(r.Header) {
		return encoded
	}
	if r.ContentLength > maxBodyBytes {
		return tooLarge
	}
	whole, err := c.fill(r.Body, smallBodyBytes)
	if err == nil && !whole {
		if err := c.makeRoom(r); err != nil {
			return unavailable
		}
		whole, err = c.fill(r.Body, maxBodyBytes)
	}
	switch {
	case err != nil:
		// The bytes so far may parse, and be less than what was sent.
		return unreadable
	case !whole:
		return tooLarge
	}
	return nil
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

// makeRoom waits until the rest of a large body may be held.
func (c *call) makeRoom(r *http.Request) error {
	size := r.ContentLength
	if size < 0 {
		size = maxBodyBytes // chunked: how long it is shows at its end only
	}
	ctx, cancel := context.WithTimeout(r.Context(), roomWithin)
	defer cancel()
	asked := time.Now()
	if err := c.room.Acquire(ctx, size); err != nil {
		return err
	}
	c.held, c.waited = size, time.Since(asked)
	if r.ContentLength > 0 {
		c.body = slices.Grow(c.body, int(size)+1-len(c.body)) // one more, to see the end
	}
	return nil
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
