package clevertap

import (
	"errors"
	"io"
	"sync"
)

// The body of a call is the records as they are, between these:
//
//	{"d":[ record , record , … ]}
const (
	bodyOpen  = `{"d":[`
	bodySep   = `,`
	bodyClose = `]}`
)

// bodyLength is the Content-Length of the records' body, in bytes.
func bodyLength(records [][]byte) int64 {
	n := len(bodyOpen) + len(bodyClose) + len(bodySep)*(len(records)-1)
	for _, r := range records {
		n += len(r)
	}
	return int64(n)
}

// records lends the caller's records to the bodies of one call.
//
// A transport may go on reading a body after RoundTrip has returned: after a
// timeout, or when CleverTap answers before it has taken everything. So the loan
// ends with an own call, release, after which no body touches a record again; it
// waits for a Read that is copying right now, and for nothing else. Copying from
// the records straight into the transport's buffer, the body is never assembled,
// and there is no buffer whose return to a pool could come too early.
type records struct {
	mu   sync.Mutex
	list [][]byte // nil once released
}

func (r *records) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = nil
}

// body starts a reading from the first byte.
func (r *records) body(length int64) *body {
	return &body{records: r, piece: bodyOpen, left: length}
}

var errReleased = errors.New("the call is over")

// body reads the records once. Its state is the piece in hand, either a string
// of ours or, if rest is not empty, a record.
type body struct {
	records *records
	next    int    // index of the record that comes after piece
	piece   string // rest of bodyOpen, bodySep or bodyClose
	rest    []byte // rest of a record
	left    int64  // bytes not yet read
}

// Read reports io.EOF with the last byte, and goes on doing so after release: a
// transport that looks once more for the end finds it, and may keep the
// connection.
func (b *body) Read(p []byte) (int, error) {
	b.records.mu.Lock()
	defer b.records.mu.Unlock()
	if b.left > 0 && b.records.list == nil {
		return 0, errReleased
	}
	n := 0
	for n < len(p) && b.left > 0 {
		c := b.copy(p[n:])
		n += c
		b.left -= int64(c)
	}
	if b.left == 0 {
		return n, io.EOF
	}
	return n, nil
}

// copy copies from the piece in hand and takes up the next when it is used up.
func (b *body) copy(p []byte) int {
	if b.piece != "" {
		n := copy(p, b.piece)
		if b.piece = b.piece[n:]; b.piece == "" && b.next < len(b.records.list) {
			b.rest = b.records.list[b.next]
			b.next++
		}
		return n
	}
	n := copy(p, b.rest)
	if b.rest = b.rest[n:]; len(b.rest) == 0 {
		b.piece = bodySep
		if b.next == len(b.records.list) {
			b.piece = bodyClose
		}
	}
	return n
}

// Close does nothing: release ends the loan.
func (b *body) Close() error { return nil }
