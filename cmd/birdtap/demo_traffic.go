package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/birdtap/birdtap/sendbird"
)

// The pace of the demo's traffic: little enough for a slow laptop.
const (
	trafficRate = 300 // receipts/s
	trafficTick = 10 * time.Millisecond
	readAfter   = 700 * time.Millisecond // from the answer to SENT to the user's READ
)

// What Sendbird documents for webhooks: it waits 5 s for an answer and posts at most
// three times. The time between is not documented.
const (
	postTimeout = 5 * time.Second
	postTries   = 3
	postAgain   = time.Second // before the second try; twice that before the third
)

// traffic plays Sendbird: it posts receipts to birdtap's doors, one a post, three in
// four as an upload call with the account's credentials, one in four signed.
type traffic struct {
	address string // of the doors, http://host:port
	account, passcode,
	signingKey string
	ledger *ledger
	client *http.Client

	stopping chan struct{}
	ended    sync.WaitGroup

	mu  sync.Mutex
	due []dueRead // in order of time
	// notifications by the users of the campaign that birdtap sends.
	notifications map[int]string
	next          int // the user to whom the next notification goes
}

// dueRead is a user who will have read the notification.
type dueRead struct {
	at   time.Time
	user int
}

// start posts until stop is called, or until ctx ends, which also ends the posts
// under way.
func (t *traffic) start(ctx context.Context) {
	t.stopping = make(chan struct{})
	t.client = &http.Client{
		Timeout:   postTimeout,
		Transport: &http.Transport{MaxIdleConnsPerHost: 64},
	}
	t.ended.Go(func() { t.issue(ctx) })
}

// stop sends nothing new, and returns when every post under way has been answered or
// given up.
func (t *traffic) stop() {
	close(t.stopping)
	t.ended.Wait()
	t.client.CloseIdleConnections()
}

// issue starts posts at an even rate. What it owes after a stall it makes up for.
func (t *traffic) issue(ctx context.Context) {
	tick := time.NewTicker(trafficTick)
	defer tick.Stop()
	last, owed := time.Now(), 0.0
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.stopping:
			return
		case now := <-tick.C:
			owed = min(owed+now.Sub(last).Seconds()*trafficRate, trafficRate) // a stall of at most a second
			last = now
			for ; owed >= 1; owed-- {
				f := t.pick(now)
				t.ledger.posted(f)
				t.ended.Go(func() { t.deliver(ctx, f) })
			}
		}
	}
}

// pick is a READ that is due, else the SENT of a new user.
func (t *traffic) pick(now time.Time) fact {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.due) > 0 && !now.Before(t.due[0].at) {
		f := readBy(t.due[0].user)
		t.due = t.due[1:]
		return f
	}
	t.next++
	return sentTo(t.next - 1)
}

// deliver posts a receipt as often as Sendbird would.
func (t *traffic) deliver(ctx context.Context, f fact) {
	for try := range postTries {
		if try > 0 && !pause(ctx, time.Duration(try)*postAgain) {
			return
		}
		if !t.post(ctx, f) {
			t.ledger.cutOff()
			continue
		}
		t.ledger.answered(f)
		if f == sentTo(f.user()) {
			t.mu.Lock()
			t.due = append(t.due, dueRead{time.Now().Add(readAfter), f.user()})
			t.mu.Unlock()
		}
		return
	}
}

// post is one try; true if it was answered 2xx.
func (t *traffic) post(ctx context.Context, f fact) bool {
	body := []byte(`{"d":[` + t.body(f) + `]}`)
	path := "/1/upload"
	signed := f.user()%4 == 3
	if signed {
		path = "/sendbird/callbacks"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.address+path, bytes.NewReader(body))
	if err != nil {
		return false
	}
	req.Header.Set("Content-Type", "application/json")
	if signed {
		req.Header.Set(sendbird.SignatureHeader, sendbird.Sign(t.signingKey, body))
	} else {
		req.Header.Set("X-CleverTap-Account-Id", t.account)
		req.Header.Set("X-CleverTap-Passcode", t.passcode)
	}
	resp, err := t.client.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body) // so that the connection can be used again
	return err == nil && resp.StatusCode/100 == 2
}

// pause waits for d; false if ctx ended before.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
