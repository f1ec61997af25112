package history

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
)

// Options say what a [Client] sends.
type Options struct {
	Run       string   // part of every id
	Seed      uint64   // of all that is drawn
	Doors     []string // URLs of upload doors; each call goes to one of them
	AccountID string
	Passcode  string

	Clients        int     // connections, each with users of its own; default 16
	UsersPerClient int     // default 8
	Rate           float64 // receipts/s of all clients together; 0: as fast as answers come
	Total          int     // receipts of all clients together; 0: until told to stop

	// Shares of the receipts, 0 to 1, made for the fates of these names.
	Refuse, Again, AtDoor, Poison float64
	// Several is the share of calls that carry 2 to 50 receipts; the rest carry one.
	Several float64
	// Broken is the share of calls that deserve a 4xx: cut short, without the
	// right passcode, at a wrong address.
	Broken float64
	// GiveUp is the share of calls without an answer that are not tried again.
	GiveUp float64

	Timeout   time.Duration // for one answer; default 5 s, as Sendbird waits
	RetryWait time.Duration // before a call goes again; default 50 ms
	Journal   io.Writer     // one JSON line per receipt and attempt; may be nil
}

func (o Options) withDefaults() Options {
	if o.Clients == 0 {
		o.Clients = 16
	}
	if o.UsersPerClient == 0 {
		o.UsersPerClient = 8
	}
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Second
	}
	if o.RetryWait == 0 {
		o.RetryWait = 50 * time.Millisecond
	}
	return o
}

// Client sends receipts as Sendbird would, over many connections. A user has one
// call in flight at most, so that it is defined in which order its receipts came.
type Client struct {
	opts   Options
	log    *Log
	faster atomic.Uint64 // how many times the rate; 0 is once
}

// NewClient makes a client that [Client.Run] sets to work.
func NewClient(o Options) *Client {
	o = o.withDefaults()
	return &Client{opts: o, log: NewLog(o.Run, o.Clients, o.Journal)}
}

// Log is what the client knows; it may be read while it runs.
func (c *Client) Log() *Log { return c.log }

// Hurry makes the client send so many times its rate from now on; 1 is as at first.
// One that has no rate goes on as it is. It may be called while the client runs.
func (c *Client) Hurry(times uint64) { c.faster.Store(times) }

// Run sends until ctx ends, or Total is reached and every receipt has its answer.
// Calls in flight are waited for, so that as little as can be stays unknown.
func (c *Client) Run(ctx context.Context) {
	var all sync.WaitGroup
	for n := range c.opts.Clients {
		total := c.opts.Total / c.opts.Clients
		if n < c.opts.Total%c.opts.Clients {
			total++
		}
		all.Go(func() { c.connection(n, total).run(ctx) })
	}
	all.Wait()
}

// connection is one of the connections of a client.
type connection struct {
	*Client
	number int
	total  int // 0: no end
	source *source
	random *rand.Rand // what is done with receipts; the source draws what they are
	http   *http.Client
}

func (c *Client) connection(n, total int) *connection {
	return &connection{
		Client: c, number: n, total: total,
		source: newSource(&c.opts, n),
		random: newRandom(^c.opts.Seed, n),
		http:   &http.Client{Transport: &http.Transport{}, Timeout: c.opts.Timeout},
	}
}

func (c *connection) run(ctx context.Context) {
	defer c.http.CloseIdleConnections()
	for ctx.Err() == nil && (c.opts.Total == 0 || c.source.made < c.total) {
		call := c.make()
		c.carry(ctx, call)
		c.rest(ctx, len(call.receipts))
	}
}

// call is one body, and how it is sent.
type call struct {
	receipts []receipt
	number   int // of its first receipt
	door     string
	passcode string
	body     []byte
	broken   string // why it deserves a 4xx; empty if it does not
}

// make makes a call and enters its receipts in the log.
func (c *connection) make() *call {
	n := 1
	if c.random.Float64() < c.opts.Several {
		n = 2 + c.random.IntN(49)
	}
	if c.opts.Total > 0 {
		n = min(n, c.total-c.source.made)
	}
	k := &call{number: c.source.made, door: pick(c.random, c.opts.Doors), passcode: c.opts.Passcode}
	start := time.Now()
	parts := make([][]byte, 0, n)
	for range n {
		r := c.source.next(start)
		c.log.begin(c.number, r, start)
		k.receipts = append(k.receipts, r)
		parts = append(parts, r.record)
	}
	k.body = append(append([]byte(`{"d":[`), bytes.Join(parts, []byte(","))...), "]}"...)
	if c.random.Float64() < c.opts.Broken {
		c.spoil(k)
	}
	return k
}

// spoil makes a call one that must be refused whole.
func (c *connection) spoil(k *call) {
	switch c.random.IntN(4) {
	case 0:
		k.broken, k.body = "cut short", k.body[:len(k.body)-1]
	case 1:
		k.broken, k.body = "followed by something", append(k.body, "{}"...)
	case 2:
		k.broken, k.passcode = "with a wrong passcode", "wrong"
	case 3:
		k.broken, k.door = "at no door", k.door+"/nowhere"
	}
}

// carry makes a call until it has an answer, or is given up.
func (c *connection) carry(ctx context.Context, k *call) {
	for {
		// A call under way is not broken off when the client is told to stop: what is
		// stored, and answered in time, is to be known.
		answered := c.try(context.WithoutCancel(ctx), k)
		if answered || ctx.Err() != nil || c.random.Float64() < c.opts.GiveUp {
			return
		}
		pause(ctx, c.opts.RetryWait)
	}
}

// try makes one attempt, and tells whether it was answered for good.
func (c *connection) try(ctx context.Context, k *call) bool {
	outcomes, why := c.post(ctx, k)
	attempts := make([]attempt, len(k.receipts))
	end := time.Now()
	answered := true
	for i := range attempts {
		attempts[i] = attempt{place{c.number, k.number + i}, end, outcomes[i], why}
		answered = answered && outcomes[i] != Unknown
	}
	c.log.end(attempts)
	return answered
}

// post makes one call. Its outcome stands for each receipt of it, and, where that is
// not 2xx, why.
func (c *connection) post(ctx context.Context, k *call) ([]Outcome, string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, k.door, bytes.NewReader(k.body))
	if err != nil {
		return all(len(k.receipts), Unknown), err.Error()
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-CleverTap-Account-Id", c.opts.AccountID)
	req.Header.Set("X-CleverTap-Passcode", k.passcode)
	resp, err := c.http.Do(req)
	if err != nil {
		return all(len(k.receipts), Unknown), err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return all(len(k.receipts), Unknown), fmt.Sprintf("status %d, then %v", resp.StatusCode, err)
	}
	return c.understand(k, resp.StatusCode, body)
}

// understand turns an answer into outcomes, and notes it if it cannot be right.
func (c *connection) understand(k *call, status int, body []byte) ([]Outcome, string) {
	why := fmt.Sprintf("status %d: %.200s", status, body)
	switch {
	case status >= 500:
		return all(len(k.receipts), Unknown), why
	case status >= 400:
		if k.broken == "" {
			c.log.say("%s: a call in order was refused: %s", k.receipts[0].id, why)
		}
		return all(len(k.receipts), Fail), why
	case k.broken != "":
		c.log.say("%s: a call %s was taken: %s", k.receipts[0].id, k.broken, why)
	}
	refused, err := refusals(body, len(k.receipts))
	if status != http.StatusOK {
		err = errAccount
	}
	if err != nil {
		c.log.say("%s: %v: %s", k.receipts[0].id, err, why)
		return all(len(k.receipts), Unknown), why
	}
	outcomes := all(len(k.receipts), OK)
	for _, i := range refused {
		outcomes[i] = Refused
	}
	for i, r := range k.receipts {
		if (outcomes[i] == Refused) != (r.fate == AtDoor) {
			c.log.say("%s, made for %q, is %q by %s", r.id, r.fate, outcomes[i], why)
		}
	}
	return outcomes, ""
}

func all(n int, o Outcome) []Outcome {
	list := make([]Outcome, n)
	for i := range list {
		list[i] = o
	}
	return list
}

// uploadAnswer is CleverTap's account of a call.
type uploadAnswer struct {
	Status      string `json:"status"`
	Processed   int    `json:"processed"`
	Unprocessed []struct {
		Error string `json:"error"`
	} `json:"unprocessed"`
}

var errAccount = errors.New("the answer does not account for the call")

// refusals are the indexes of the receipts that an answer names as refused.
func refusals(body []byte, sent int) ([]int, error) {
	var a uploadAnswer
	if err := json.Unmarshal(body, &a); err != nil {
		return nil, err
	}
	if a.Processed+len(a.Unprocessed) != sent || (a.Status == "success") != (len(a.Unprocessed) == 0) {
		return nil, errAccount
	}
	named := map[int]bool{}
	list := make([]int, 0, len(a.Unprocessed))
	for _, u := range a.Unprocessed {
		_, digits, _ := strings.Cut(u.Error, "Skipped record number : ")
		n, err := strconv.Atoi(digits)
		if err != nil || n < 1 || n > sent || named[n] {
			return nil, errAccount
		}
		named[n] = true
		list = append(list, n-1)
	}
	return list, nil
}

// rest keeps the pace, if one was asked for, with some jitter, so that the
// connections do not march in step.
func (c *connection) rest(ctx context.Context, receipts int) {
	if c.opts.Rate <= 0 {
		return
	}
	mean := float64(receipts*c.opts.Clients) / (c.opts.Rate * float64(max(1, c.faster.Load())))
	pause(ctx, time.Duration((0.5+c.random.Float64())*mean*float64(time.Second)))
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
