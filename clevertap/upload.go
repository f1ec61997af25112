package clevertap

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

const (
	// maxAnswer bounds what is read of an answer, in bytes; see answerLimit.
	maxAnswer = 16 << 20
	// maxDrain is how much of an answer that nobody reads is taken off the
	// connection so that it can be used again, in bytes. Beyond it a new
	// connection is cheaper.
	maxDrain = 64 << 10
	// maxRetryAfter caps what a Retry-After may ask for: a slip at the other end
	// must not stop deliveries for a day.
	maxRetryAfter = time.Hour
)

// Upload makes one call with the given records, each a complete JSON object, and
// tells what came of it. It does not change the records, and it does not touch
// them after it has returned. No records at all are Accepted without a call.
//
// It is one attempt: nothing is ever sent twice. A POST that may have reached
// CleverTap must not be repeated behind the caller's back, for it would deliver
// duplicates without any fault to show for them, and be a call in flight that
// nobody counts. The transport keeps to this. The one thing it repeats is a call
// of which not a single byte was written, when a kept connection turns out dead
// at that moment: it then takes another connection. CleverTap has seen nothing
// of the first, so this is safe, and better than an outcome called unknown.
//
// https://developer.clevertap.com/docs/upload-events-api
func (c *Client) Upload(ctx context.Context, list [][]byte) Result {
	switch {
	case len(list) == 0:
		return Result{Kind: Accepted}
	case len(list) > MaxRecords:
		return Result{Kind: TooLarge, Err: fmt.Errorf("%d records, one call takes %d", len(list), MaxRecords)}
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	loan := &records{list: list}
	defer loan.release()

	length := bodyLength(list)
	resp, err := c.transport.RoundTrip(c.newRequest(ctx, loan, length))
	if err != nil {
		return Result{Kind: Unreachable, Err: cause(err)}
	}
	defer func() { _ = resp.Body.Close() }() // the answer is known by then
	if resp.StatusCode != http.StatusOK {
		drain(resp.Body)
		return statusResult(resp)
	}
	answer, err := readAnswer(resp, answerLimit(length, len(list)))
	switch {
	case errors.Is(err, errTooLong), errors.Is(err, errPacked):
		return Result{Kind: Unclear, Status: resp.StatusCode, Err: err}
	case err != nil:
		return Result{Kind: Unreachable, Status: resp.StatusCode, Err: cause(err)}
	}
	return judge(answer, list)
}

// newRequest builds the call. GetBody is there for the one repetition that
// Upload describes: without an Idempotency-Key net/http repeats a POST in no
// other case.
func (c *Client) newRequest(ctx context.Context, loan *records, length int64) *http.Request {
	req := &http.Request{
		Method:     http.MethodPost,
		URL:        c.url,
		Host:       c.url.Host,
		Proto:      "HTTP/1.1",
		ProtoMajor: 1,
		ProtoMinor: 1,
		Header: http.Header{
			"X-Clevertap-Account-Id": {c.accountID},
			"X-Clevertap-Passcode":   {c.passcode()},
			"Content-Type":           {"application/json"},
			"User-Agent":             {"birdtap"},
		},
		ContentLength: length,
		Body:          loan.body(length),
		GetBody:       func() (io.ReadCloser, error) { return loan.body(length), nil },
	}
	return req.WithContext(ctx)
}

// statusResult types every answer but 200. Of its body nothing is used: the
// status says it all, and the words may be personal.
func statusResult(resp *http.Response) Result {
	r := Result{
		Kind:       kindOf(resp.StatusCode),
		Status:     resp.StatusCode,
		RetryAfter: retryAfter(resp.Header, time.Now()),
	}
	switch r.Kind {
	case Denied:
		r.Err = fmt.Errorf("CleverTap answered %d: account id or passcode is wrong, or they belong to another region", r.Status)
	case TooMany:
		r.Err = fmt.Errorf("CleverTap answered %d: too many calls of this account in flight", r.Status)
	default:
		r.Err = fmt.Errorf("CleverTap answered %d %s", r.Status, http.StatusText(r.Status))
	}
	return r
}

func kindOf(status int) Kind {
	switch {
	case status == http.StatusBadRequest:
		return BadRequest
	case status == http.StatusRequestEntityTooLarge:
		return TooLarge
	case status == http.StatusUnauthorized, status == http.StatusForbidden, status == http.StatusNotFound:
		return Denied
	case status == http.StatusTooManyRequests:
		return TooMany
	case status >= 500 && status <= 599:
		return ServerError
	default:
		return Unexpected
	}
}

// answerLimit is the longest answer believed, in bytes. An honest one echoes at
// most what was sent, with blanks between (three times the size, generously) and
// some words per record. So small calls need little memory whatever comes back,
// and what 15 calls may hold at once is known.
func answerLimit(sent int64, records int) int64 {
	return min(maxAnswer, 3*sent+1024*int64(records)+64<<10)
}

var (
	errTooLong = errors.New("the answer is longer than any honest one")
	errPacked  = errors.New("the answer is packed, which nobody asked for")
)

// readAnswer reads the body of a 200 to its end, so that the connection can be
// used again, or not at all if it cannot be an answer. The limit counts the bytes
// that come out of the transport, hence after any unpacking by it.
func readAnswer(resp *http.Response, limit int64) ([]byte, error) {
	if resp.Header.Get("Content-Encoding") != "" {
		return nil, errPacked
	}
	if resp.ContentLength > limit {
		return nil, errTooLong
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err == nil && int64(len(b)) > limit {
		return nil, errTooLong
	}
	return b, err
}

// drain takes a body that nobody reads off the connection so that that can be
// used again. The call's deadline bounds it in time.
func drain(body io.Reader) {
	_, _ = io.CopyN(io.Discard, body, maxDrain) // an error ends the connection, not the result
}

// retryAfter reads a Retry-After, seconds or date. A date is measured against
// the answer's own Date, which comes from the same clock, or else against now.
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := h.Get("Retry-After")
	if v == "" {
		return 0
	}
	if seconds, err := strconv.ParseUint(v, 10, 64); err == nil {
		// The cap comes first, lest a large number overflow.
		return time.Duration(min(seconds, uint64(maxRetryAfter/time.Second))) * time.Second
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	if sent, err := http.ParseTime(h.Get("Date")); err == nil {
		now = sent
	}
	return min(max(at.Sub(now), 0), maxRetryAfter)
}

// cause keeps of a transport's error what is known to be fit for a log. The
// whole text is not: net/http quotes the bytes of an answer that it cannot read,
// and these may be anything, our own records included.
func cause(err error) error {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("given up: %w", context.Canceled)
	}
	for _, known := range []error{
		find[*tls.CertificateVerificationError](err),
		find[tls.RecordHeaderError](err),
		find[x509.HostnameError](err),
		find[x509.UnknownAuthorityError](err),
		find[*net.OpError](err),
		find[*net.DNSError](err),
	} {
		if known != nil {
			return fmt.Errorf("no answer: %w", known)
		}
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("no answer: connection closed: %w", io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("no usable answer (%T)", err)
}

// find is the first E in err's tree, or nil.
func find[E error](err error) error {
	if e, ok := errors.AsType[E](err); ok {
		return e
	}
	return nil
}
