package sendbird

import (
	"context"
	"net/http"
	"sync"
	"time"
)

// endpoint is one thing to call: Sendbird counts calls per second "per endpoint
// and per application".
type endpoint int

const (
	endpointSend endpoint = iota
	endpointPresign
	endpointFiles
	endpointTemplates
	endpointTemplate
	endpointCreateUser
	endpointGetUser
	endpointUpdateUser
	endpointDeleteUser
	endpointUpdateMetadata
	endpointDeleteMetadata
	endpointCreateCustomer
	endpointGetCustomer
	endpointFindCustomer
	endpointCustomerFields
	endpointCreateTicket
	endpoints // how many there are
)

// endpointTable says of each whose it is, how it is called, and its name in errors.
var endpointTable = [endpoints]struct {
	api    api
	method string
	call   string
}{
	endpointSend:           {apiNotifications, http.MethodPost, "send notification"},
	endpointPresign:        {apiNotifications, http.MethodPost, "ask for a presigned URL"},
	endpointFiles:          {apiNotifications, http.MethodGet, "list target files"},
	endpointTemplates:      {apiNotifications, http.MethodGet, "list templates"},
	endpointTemplate:       {apiNotifications, http.MethodGet, "get template"},
	endpointCreateUser:     {apiChat, http.MethodPost, "create user"},
	endpointGetUser:        {apiChat, http.MethodGet, "get user"},
	endpointUpdateUser:     {apiChat, http.MethodPut, "update user"},
	endpointDeleteUser:     {apiChat, http.MethodDelete, "delete user"},
	endpointUpdateMetadata: {apiChat, http.MethodPut, "update metadata"},
	endpointDeleteMetadata: {apiChat, http.MethodDelete, "delete metadata"},
	endpointCreateCustomer: {apiDesk, http.MethodPost, "create customer"},
	endpointGetCustomer:    {apiDesk, http.MethodGet, "get customer"},
	endpointFindCustomer:   {apiDesk, http.MethodGet, "find customer"},
	endpointCustomerFields: {apiDesk, http.MethodPatch, "update custom fields"},
	endpointCreateTicket:   {apiDesk, http.MethodPost, "create ticket"},
}

// String is the call's name in errors.
func (e endpoint) String() string { return endpointTable[e].call }

func (e endpoint) method() string { return endpointTable[e].method }

func (e endpoint) api() api { return endpointTable[e].api }

// Rates in calls per second, of the free plan and of the largest;
// https://sendbird.com/docs/chat/platform-api/v3/application/understanding-rate-limits/rate-limits.
// None is documented for notifications, so the pace begins at the lowest and
// finds out. Nor is one for Desk, and nothing tells that it says 429 in time: there
// the lowest is the highest, too.
const (
	startGET, maxGET   = 10.0, 600.0
	startPOST, maxPOST = 5.0, 200.0
	// minRate is as slow as it gets by cutting; what Sendbird asks for in
	// RetryAfter counts beside it.
	minRate = 0.2
	// cut is what is left of the rate after a 429.
	cut = 0.7
	// firstWait and maxWait bound the wait after a 429 that does not say how
	// long; it doubles with each in a row.
	firstWait, maxWait = time.Second, time.Minute
)

// pace says when the next call of one endpoint may start. It is pure: times and
// answers are handed in, and it knows no clock.
//
// Calls leave evenly spread at a rate that doubles within a second until the
// first 429. That one cuts it, and from then on it grows by one call per second
// for every second of calls, a slow one by a tenth per call. Where Sendbird says how many calls a window has left,
// no more are made before it ends.
type pace struct {
	rate, max float64       // calls per second
	next      time.Time     // spread: not before
	until     time.Time     // told to wait: not before
	left      int           // calls left in the window; -1: not known
	end       time.Time     // of the window; zero: not known
	limit     int           // calls in a whole window; 0: not known
	window    time.Duration // how long one is
	out       int           // calls taken and not answered yet
	refused   int           // 429s in a row
	known     bool          // there was a 429: no more doubling
}

func newPace(e endpoint) *pace {
	p := &pace{rate: startPOST, max: maxPOST, left: -1}
	if e.method() == http.MethodGet {
		p.rate, p.max = startGET, maxGET
	}
	if e.api() == apiDesk {
		p.max = p.rate
	}
	return p
}

// due is when the next call may start; not after now means at once.
func (p *pace) due() time.Time {
	at := p.next
	if p.until.After(at) {
		at = p.until
	}
	if p.left == 0 && p.end.After(at) {
		at = p.end
	}
	return at
}

// take counts a call that starts now.
func (p *pace) take(now time.Time) {
	if !p.end.IsZero() && !now.Before(p.end) { // a new window
		p.left, p.end = -1, time.Time{}
		if p.limit > 0 {
			p.left, p.end = p.limit, now.Add(p.window)
		}
	}
	if p.left > 0 {
		p.left--
	}
	p.out++
	p.next = now.Add(time.Duration(float64(time.Second) / p.rate))
}

// failed counts a call that brought no answer, which says nothing about the pace.
func (p *pace) failed() { p.out-- }

// answered learns from an answer.
func (p *pace) answered(now time.Time, l limits) {
	p.out--
	if l.tooMany {
		p.slowDown(now, l.retryAfter)
	} else {
		p.speedUp()
	}
	if l.limit > 0 {
		p.limit, p.window = l.limit, l.window
	}
	if l.remaining >= 0 {
		p.end = p.windowEnd(now, l.reset)
		p.left = max(0, l.remaining-p.out) // those on their way will use some of it
	}
}

// slowDown cuts the rate once for all 429s of one wait: calls that were on their
// way together are refused together.
func (p *pace) slowDown(now time.Time, asked time.Duration) {
	if !now.Before(p.until) {
		p.rate = max(minRate, p.rate*cut)
		p.refused++
	}
	p.known = true
	if asked <= 0 {
		asked = min(maxWait, firstWait<<min(p.refused-1, 6))
	}
	if until := now.Add(asked); until.After(p.until) {
		p.until = until
	}
}

func (p *pace) speedUp() {
	p.refused = 0
	if p.known {
		p.rate += min(1/p.rate, p.rate/10)
	} else {
		p.rate++
	}
	p.rate = min(p.rate, p.max)
}

// windowEnd is when the window of an answer ends. Reset may be seconds from now,
// or epoch seconds or milliseconds by Sendbird's clock; a window never ends later
// than its own length from now.
func (p *pace) windowEnd(now time.Time, reset int64) time.Time {
	longest := now.Add(p.window)
	var end time.Time
	switch {
	case reset <= 0:
		return longest
	case reset < 1e8:
		end = now.Add(time.Duration(min(reset, int64(maxRetryAfter/time.Second))) * time.Second)
	default:
		end = epoch(reset)
	}
	if end.After(longest) {
		return longest
	}
	return end
}

// pacer lets calls wait for their turn, in the order in which they came.
type pacer struct{ of [endpoints]lane }

// lane is the calls of one endpoint.
type lane struct {
	first chan struct{} // holds one token: whose turn is next
	mu    sync.Mutex
	pace  *pace
}

func newPacer() *pacer {
	p := new(pacer)
	for e := range p.of {
		p.of[e].first = make(chan struct{}, 1)
		p.of[e].pace = newPace(endpoint(e))
	}
	return p
}

// wait returns when the call may start, or with ctx's error. The turn must be
// given back with answered or failed.
func (p *pacer) wait(ctx context.Context, e endpoint) (*turn, error) {
	l := &p.of[e]
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case l.first <- struct{}{}:
		defer func() { <-l.first }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	for {
		wait, ok := l.take(time.Now())
		if ok {
			return &turn{l}, nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		}
	}
}

// take takes a turn that is due, or tells how long to wait before asking again:
// an answer that comes meanwhile may have moved it.
func (l *lane) take(now time.Time) (time.Duration, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if due := l.pace.due(); due.After(now) {
		return due.Sub(now), false
	}
	l.pace.take(now)
	return 0, true
}

// turn is a call that was let through.
type turn struct{ lane *lane }

func (t *turn) answered(l limits) {
	t.lane.mu.Lock()
	defer t.lane.mu.Unlock()
	t.lane.pace.answered(time.Now(), l)
}

// failed is for a call that brought no answer, or was never made; nil is no turn at all.
func (t *turn) failed() {
	if t == nil {
		return
	}
	t.lane.mu.Lock()
	defer t.lane.mu.Unlock()
	t.lane.pace.failed()
}
