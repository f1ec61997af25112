package ingest

import (
	"bytes"
	"context"
	"net/http/httptest"
	"testing"

	"golang.org/x/sync/semaphore"
)

// A hundred callers with large bodies may wait for room: while they do, they hold next to
// nothing, whatever memory earlier calls have left to be used again.
func TestCallsThatWaitForRoomHoldLittle(t *testing.T) {
	t.Parallel()
	body := benchBody(1000)
	var p calls
	room := semaphore.NewWeighted(verifiedBytes)
	c, why := p.read(httptest.NewRequest("POST", "/1/upload", bytes.NewReader(body)), room)
	if why != nil || !bytes.Equal(c.body, body) || c.held != int64(len(body)) {
		t.Fatalf("%v, %d bytes, %d held", why, len(c.body), c.held)
	}
	p.put(c)
	if !room.TryAcquire(verifiedBytes) {
		t.Fatal("the room is not back")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // it would wait
	c, why = p.read(httptest.NewRequest("POST", "/1/upload", bytes.NewReader(body)).WithContext(ctx), room)
	if why != unavailable || cap(c.body) > 4*smallBodyBytes || c.held != 0 {
		t.Errorf("%v, memory for %d bytes, %d held", why, cap(c.body), c.held)
	}
	p.put(c)
}
