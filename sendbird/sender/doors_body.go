package sender

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

const (
	maxBodyBytes = 5 << 20
	// smallBodyBytes is how much of a body is held without asking. What goes beyond
	// shares roomBytes with all the others.
	smallBodyBytes = 16 << 10
	roomBytes      = 8 << 20
	// maxDrainBytes is how much of a refused body is read and thrown away.
	maxDrainBytes = 2 * maxBodyBytes

	// A call is answered within 4 s of the last byte of its body. A large body waits for
	// memory at most roomWithin, and that is taken off commitWithin, since its last byte
	// may be waiting in the socket already.
	roomWithin   = 2 * time.Second
	commitWithin = 3500 * time.Millisecond
)

// body is what was read of a call.
type body struct {
	bytes   []byte
	waited  time.Duration // for room
	release func()        // gives the room back
}

// read reads the whole body, or says why not.
func (d *Door) read(r *http.Request) (body, *refusal) {
	b := body{release: func() {}}
	if isEncoded(r.Header) {
		return b, encoded
	}
	if r.ContentLength > maxBodyBytes {
		return b, tooLarge
	}
	whole, err := b.fill(r.Body, smallBodyBytes)
	if err == nil && !whole {
		if err := b.makeRoom(r, d); err != nil {
			return b, unavailable
		}
		whole, err = b.fill(r.Body, maxBodyBytes)
	}
	switch {
	case err != nil:
		return b, unreadable // the bytes so far may parse, and be less than what was sent
	case !whole:
		return b, tooLarge
	}
	return b, nil
}

// makeRoom waits until the rest of a large body may be held.
func (b *body) makeRoom(r *http.Request, d *Door) error {
	size := r.ContentLength
	if size < 0 {
		size = maxBodyBytes // chunked: how long it is shows at its end only
	}
	asked := time.Now()
	ctx, cancel := context.WithTimeout(r.Context(), roomWithin)
	defer cancel()
	if err := d.room.Acquire(ctx, size); err != nil {
		return err
	}
	b.waited, b.release = time.Since(asked), func() { d.room.Release(size) }
	if r.ContentLength > 0 {
		b.bytes = slices.Grow(b.bytes, int(size)+1-len(b.bytes)) // one more, to see the end
	}
	return nil
}

// fill reads until the body ends, or is longer than limit. Memory grows with what has
// come, not with what was announced.
func (b *body) fill(src io.Reader, limit int) (whole bool, err error) {
	for len(b.bytes) <= limit {
		if len(b.bytes) == cap(b.bytes) {
			b.bytes = slices.Grow(b.bytes, 4<<10)
		}
		n, err := src.Read(b.bytes[len(b.bytes):min(cap(b.bytes), limit+1)])
		b.bytes = b.bytes[:len(b.bytes)+n]
		if errors.Is(err, io.EOF) {
			return len(b.bytes) <= limit, nil
		}
		if err != nil {
			return false, err
		}
	}
	return false, nil
}

// isEncoded tells whether the body is anything but itself. It is never unpacked: a
// small body could become any size.
func isEncoded(h http.Header) bool {
	for _, encoding := range h["Content-Encoding"] {
		if encoding != "" && !strings.EqualFold(encoding, "identity") {
			return true
		}
	}
	return false
}

// drain reads what a refused caller is still writing: it would see a reset in place of
// the answer. It costs no memory, and no more time than the server allows for reading.
func drain(r *http.Request) {
	if r.Header["Expect"] == nil {
		_, _ = io.CopyN(io.Discard, r.Body, maxDrainBytes)
	}
}
