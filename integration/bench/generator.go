package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// load is what the generator is told to do: as many connections, each with one post
// after the other, as fast as they are answered.
type load struct {
	Address     string  `json:"address"` // host:port
	Connections int     `json:"connections"`
	Records     int     `json:"records"`    // in each post
	Seconds     float64 `json:"seconds"`    // how long; 0: until Total
	Total       int     `json:"total"`      // records; 0: until Seconds
	FirstUser   int     `json:"first_user"` // every record is a user of its own, counted from here
	Webhook     bool    `json:"webhook"`    // CleverTap's webhook call, of one user, in place of receipts
}

// outcome is what came of it.
type outcome struct {
	Records int     `json:"records"` // answered 2xx
	Posts   int     `json:"posts"`   // answered 2xx
	Refused int     `json:"refused"` // posts answered otherwise
	Seconds float64 `json:"seconds"`
	P50     float64 `json:"p50"` // milliseconds, of the answers 2xx
	P99     float64 `json:"p99"`
	Max     float64 `json:"max"`
}

func (o outcome) rate() float64 { return float64(o.Records) / o.Seconds }

// generatorProcess reads a load from stdin and writes the outcome to stdout.
func generatorProcess() error {
	var l load
	if err := json.NewDecoder(os.Stdin).Decode(&l); err != nil {
		return err
	}
	result, err := l.run()
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// run plays the load. The generator shares the machine with what it measures, so it
// does next to nothing: requests are made once, and only the number of the user in
// them changes; of an answer it reads the status and the length.
func (l load) run() (outcome, error) {
	var posts atomic.Int64 // handed out
	limit := int64(1) << 62
	if l.Total > 0 {
		limit = int64((l.Total + l.Records - 1) / l.Records)
	}
	end := time.Now().Add(24 * time.Hour)
	if l.Seconds > 0 {
		end = time.Now().Add(time.Duration(l.Seconds * float64(time.Second)))
	}
	clients := make([]client, l.Connections)
	for i := range clients {
		clients[i] = client{request: l.request(), buffer: make([]byte, 64<<10)}
		if err := clients[i].dial(l.Address); err != nil {
			return outcome{}, err
		}
		defer clients[i].conn.Close()
	}
	began := time.Now()
	var all sync.WaitGroup
	for i := range clients {
		c := &clients[i]
		all.Go(func() {
			for time.Now().Before(end) && c.err == nil {
				n := posts.Add(1)
				if n > limit {
					return
				}
				c.request.number(l.FirstUser + int(n-1)*l.Records)
				c.post()
			}
		})
	}
	all.Wait()
	return sum(clients, l.Records, time.Since(began))
}

func sum(clients []client, records int, took time.Duration) (outcome, error) {
	var o outcome
	var times []time.Duration
	var errs []error
	for i := range clients {
		times = append(times, clients[i].times...)
		o.Refused += clients[i].refused
		errs = append(errs, clients[i].err)
	}
	o.Posts, o.Records, o.Seconds = len(times), len(times)*records, took.Seconds()
	if o.Posts > 0 {
		slices.Sort(times)
		o.P50, o.P99, o.Max = milliseconds(quantile(times, 0.5)), milliseconds(quantile(times, 0.99)), milliseconds(times[len(times)-1])
	}
	return o, errors.Join(errs...)
}

// quantile is that of sorted values.
func quantile[T any](sorted []T, q float64) T { return sorted[int(q*float64(len(sorted)-1))] }

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1000 }

// client is one keep-alive connection.
type client struct {
	conn    net.Conn
	request *request
	buffer  []byte
	times   []time.Duration // of the answers 2xx
	refused int
	err     error // the connection is of no more use
}

// answerTimeout is above the 4 s within which birdtap answers whatever happens.
const answerTimeout = 10 * time.Second

func (c *client) dial(address string) (err error) {
	c.conn, err = net.Dial("tcp", address)
	return err
}

// post sends the request and reads the answer.
func (c *client) post() {
	began := time.Now()
	// A timer of the connection is moved, not made: this is cheap.
	_ = c.conn.SetDeadline(began.Add(answerTimeout))
	if _, c.err = c.conn.Write(c.request.bytes); c.err != nil {
		return
	}
	var status int
	if status, c.err = readAnswer(c.conn, c.buffer); c.err != nil {
		return
	}
	if status/100 == 2 {
		c.times = append(c.times, time.Since(began))
	} else {
		c.refused++
	}
}

var (
	headerEnd     = []byte("\r\n\r\n")
	contentLength = []byte("\r\nContent-Length: ")
)

// readAnswer reads one answer of HTTP/1.1 that has a Content-Length, and returns its
// status. Nothing may follow the answer: the next request has not been sent yet.
func readAnswer(conn net.Conn, buffer []byte) (status int, err error) {
	n, total := 0, 0
	for total == 0 || n < total {
		if n == len(buffer) {
			return 0, errors.New("the answer is too long")
		}
		m, err := conn.Read(buffer[n:])
		n += m
		if err != nil {
			return 0, fmt.Errorf("after %d bytes of an answer: %w", n, err)
		}
		if total == 0 {
			if status, total, err = parseHead(buffer[:n]); err != nil {
				return 0, err
			}
		}
	}
	return status, nil
}

// parseHead returns the status and the length of the whole answer, 0 as long as its
// head is not complete.
func parseHead(b []byte) (status, total int, err error) {
	end := bytes.Index(b, headerEnd)
	if end < 0 {
		return 0, 0, nil
	}
	head := b[:end+2]
	if len(head) < len("HTTP/1.1 200") || !bytes.HasPrefix(head, []byte("HTTP/1.1 ")) {
		return 0, 0, fmt.Errorf("no answer of HTTP/1.1: %.20q", head)
	}
	if status, err = strconv.Atoi(string(head[9:12])); err != nil {
		return 0, 0, fmt.Errorf("no status: %.20q", head)
	}
	_, digits, ok := bytes.Cut(head, contentLength)
	if !ok {
		return 0, 0, errors.New("an answer without Content-Length")
	}
	digits = digits[:bytes.IndexByte(digits, '\r')]
	length, err := strconv.Atoi(string(digits))
	if err != nil {
		return 0, 0, fmt.Errorf("content length %q: %w", digits, err)
	}
	return status, end + len(headerEnd) + length, nil
}

// request is a whole post, made once. Its records differ in the user's number only.
type request struct {
	bytes   []byte
	numbers []int // where in bytes each record's user number begins
}

const (
	accountID = "BENCH-ACCOUNT"
	passcode  = "bench-passcode"

	senderToken = "bench-sender-token"

	userDigits = 12
	recordHead = `{"identity":"user-`
	recordTail = `","evtName":"My First Campaign","evtData":{"status":"READ","target_id":123123,` +
		`"notification_id":"5f7c1a32-6b0e-4a86-9d35-0c2f8e1b7a64","template_key":"spring-sale"}}`

	// recordBytes is the size of a receipt as it is posted. birdtap adds the time and
	// the type.
	recordBytes = len(recordHead) + userDigits + len(recordTail)
)

// request is what the load posts.
func (l load) request() *request {
	if l.Webhook {
		return webhookRequest()
	}
	return newRequest(l.Records)
}

// webhookRequest asks for a notification to one user of a campaign.
func webhookRequest() *request {
	const before = `{"targetId":123123,"key_values":{"template_key":"spring-sale","event_name":"My First Campaign","receiver":"SendbirdID","var.name":"Jay"},` +
		`"profiles":{"identity":"ct-1","email":"jay@example.com","profileData":{"SendbirdID":"user-`
	r := &request{numbers: []int{len(before)}}
	r.post("/clevertap/notifications/batch", "Api-Token: "+senderToken, []byte(before+"000000000000"+`"}}}`))
	return r
}

// post puts a head before the body.
func (r *request) post(path, credentials string, body []byte) {
	head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: birdtap\r\nContent-Type: application/json\r\n%s\r\nContent-Length: %d\r\n\r\n",
		path, credentials, len(body))
	r.bytes = append([]byte(head), body...)
	for i := range r.numbers {
		r.numbers[i] += len(head)
	}
}

func newRequest(records int) *request {
	r := new(request)
	body := []byte(`{"d":[`)
	for i := range records {
		if i > 0 {
			body = append(body, ',')
		}
		body = append(body, recordHead...)
		r.numbers = append(r.numbers, len(body))
		body = append(body, "000000000000"...)
		body = append(body, recordTail...)
	}
	body = append(body, `]}`...)
	r.post("/1/upload", "X-CleverTap-Account-Id: "+accountID+"\r\nX-CleverTap-Passcode: "+passcode, body)
	return r
}

// number gives the records the users first, first + 1, and so on.
func (r *request) number(first int) {
	for i, at := range r.numbers {
		n := first + i
		for digit := at + userDigits - 1; digit >= at; digit-- {
			r.bytes[digit] = byte('0' + n%10)
			n /= 10
		}
	}
}
