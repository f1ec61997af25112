package sendbird

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// defaultTimeout bounds a call. Sendbird documents no timeout of its own.
	defaultTimeout = 30 * time.Second
	// defaultUploadTimeout bounds the upload of a file: 100,000 users with a few
	// variables are some 20 MiB.
	defaultUploadTimeout = 5 * time.Minute
	dialTimeout          = 10 * time.Second
	// idleTimeout is how long an unused connection is kept. Short, because a
	// connection that closes while a call begins to leave on it turns that call
	// into one of unknown outcome.
	idleTimeout = 30 * time.Second
	// maxIdle connections are kept for calls that come close together.
	maxIdle = 16
	// maxHeaderBytes bounds the head of an answer.
	maxHeaderBytes = 64 << 10
)

// Config says whom to call, and as whom.
type Config struct {
	// AppID is the application id of Sendbird's dashboard, Settings > Application.
	// With NotificationsURL it may be empty.
	AppID string
	// NotificationsURL is scheme and host of the notification API, and a path if
	// it stands behind a proxy; empty means [NotificationsURL] of AppID. It may
	// not hold credentials or a query.
	NotificationsURL string
	// NotificationsToken is asked for before every call, so that the secret may
	// change. It is not the token of Chat.
	NotificationsToken func() string
	// UploadHosts are the hosts that a file may be uploaded to, each as
	// [CheckUploadHost] describes; empty means [DefaultUploadHosts].
	UploadHosts []string
	// Timeout bounds one call, from its first byte to the last of the answer; 0
	// means 30 s. Waiting for its turn comes before and is not part of it.
	Timeout time.Duration
	// UploadTimeout bounds the upload of a file; 0 means 5 min.
	UploadTimeout time.Duration
}

// Client calls one Sendbird application. It is safe for concurrent use. It makes
// every call once, at the pace that Sendbird allows: calls beyond that wait for
// their turn.
type Client struct {
	notifications *url.URL
	token         func() string
	timeout       time.Duration
	uploadTimeout time.Duration
	transport     http.RoundTripper
	guard         *guard
	pacer         *pacer
}

// Option changes a [Client] that [New] makes.
type Option func(*Client) error

// WithTransport replaces the transport: the one hook, for metrics and tests. Like
// any http.RoundTripper it must not follow redirects, and it must not repeat a
// call. Uploads to a host allowed by its exact name take it as well; those to a
// host allowed by its suffix keep their own guarded transport, always.
func WithTransport(rt http.RoundTripper) Option {
	return func(c *Client) error {
		if rt == nil {
			return errors.New("no transport")
		}
		c.transport = rt
		return nil
	}
}

// appID is what an application id may consist of: it becomes part of a host name.
var appID = regexp.MustCompile(`^[A-Za-z0-9-]{1,50}$`)

// NotificationsURL is where the notification API of an application answers;
// https://sendbird.com/docs/business-messaging/server-side/v2/overview. An id
// that cannot be part of a host name is an error.
func NotificationsURL(id string) (string, error) {
	if !appID.MatchString(id) {
		return "", errors.New("a Sendbird application id is 1 to 50 letters, digits or hyphens")
	}
	return "https://api-" + id + ".notifications.sendbird.com", nil
}

// New makes a client. It connects to nobody yet. Its errors name what is wrong
// with the configuration and never show a value of it but an upload host's.
func New(cfg Config, opts ...Option) (*Client, error) {
	base, err := baseURL(cfg)
	if err != nil {
		return nil, err
	}
	if cfg.NotificationsToken == nil {
		return nil, errors.New("sendbird notifications token missing")
	}
	hosts := cfg.UploadHosts
	if len(hosts) == 0 {
		hosts = DefaultUploadHosts
	}
	g, err := newGuard(hosts)
	if err != nil {
		return nil, err
	}
	c := &Client{
		notifications: base,
		token:         cfg.NotificationsToken,
		timeout:       orDefault(cfg.Timeout, defaultTimeout),
		uploadTimeout: orDefault(cfg.UploadTimeout, defaultUploadTimeout),
		guard:         g,
		pacer:         newPacer(),
	}
	for _, opt := range opts {
		if err := opt(c); err != nil {
			return nil, fmt.Errorf("sendbird client: %w", err)
		}
	}
	if c.transport == nil {
		c.transport = newTransport()
	}
	return c, nil
}

func orDefault(d, byDefault time.Duration) time.Duration {
	if d <= 0 {
		return byDefault
	}
	return d
}

// Close closes connections that no call is using.
func (c *Client) Close() {
	if t, ok := c.transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// baseURL is the address that paths are put behind. What does not parse is not
// repeated in the error: it may hold a password in the wrong place.
func baseURL(cfg Config) (*url.URL, error) {
	base := cfg.NotificationsURL
	if base == "" {
		var err error
		if base, err = NotificationsURL(cfg.AppID); err != nil {
			return nil, err
		}
	}
	u, err := url.Parse(base)
	switch {
	case err != nil:
		return nil, errors.New("sendbird URL is no URL")
	case u.Scheme != "https" && u.Scheme != "http", u.Hostname() == "":
		return nil, errors.New("sendbird URL needs http:// or https:// and a host")
	case u.User != nil, u.RawQuery != "", u.Fragment != "", u.ForceQuery:
		return nil, errors.New("sendbird URL may hold no credentials, query or fragment")
	}
	return u, nil
}

// newTransport speaks HTTP/1.1 over TLS 1.2 or later and asks nobody for a proxy.
// A RoundTripper follows no redirect, keeps no cookie and wraps no address into
// its errors, which is why there is no http.Client around it. It asks for no
// compression: what is not unpacked cannot grow.
func newTransport() *http.Transport {
	return &http.Transport{
		DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    dialTimeout,
		MaxIdleConns:           maxIdle,
		MaxIdleConnsPerHost:    maxIdle,
		IdleConnTimeout:        idleTimeout,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeaderBytes,
	}
}

// call makes a call to the notification API, once, and decodes the answer into
// out. path is escaped already; body is JSON, nil for none.
func (c *Client) call(ctx context.Context, e endpoint, path string, body []byte, out answer) error {
	req, err := c.newRequest(ctx, e, path, body)
	if err != nil {
		return &CallError{Call: e.String(), Outcome: Refused, Err: err}
	}
	return c.do(ctx, e, req, out)
}

// newRequest builds a call. http.NewRequest gives it the GetBody for the one
// repetition that net/http makes of a POST: when a kept connection turns out dead
// before a byte was written.
func (c *Client) newRequest(ctx context.Context, e endpoint, path string, body []byte) (*http.Request, error) {
	var r io.Reader // a nil *bytes.Reader in it would not be nil
	if body != nil {
		r = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, e.method(), strings.TrimRight(c.notifications.String(), "/")+path, r)
	if err != nil {
		return nil, errors.New("the call cannot be built")
	}
	req.Header = http.Header{
		"Content-Type": {"application/json; charset=utf8"}, // spelled as documented
		"User-Agent":   {"birdtap"},
	}
	return req, nil
}

// do waits for the call's turn, makes it once, and decodes the answer into out.
func (c *Client) do(ctx context.Context, e endpoint, req *http.Request, out answer) error {
	turn, err := c.pacer.wait(ctx, e)
	if err != nil {
		return &CallError{Call: e.String(), Outcome: Later, Err: cause(err)}
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	req.Header["Api-Token"] = []string{c.token()}
	resp, sent, err := send(ctx, c.transport, req)
	if err != nil {
		turn.failed()
		return &CallError{Call: e.String(), Outcome: sent.outcome(), Err: cause(err)}
	}
	defer func() { _ = resp.Body.Close() }() // the answer is known by then
	body, err := readAnswer(resp, maxAnswer)
	verdict := judge(resp, body, err, out)
	turn.answered(limitsOf(resp, verdict))
	if verdict == nil {
		return nil
	}
	return verdict.named(e.String())
}

// send makes one attempt and tells how far it got.
func send(ctx context.Context, rt http.RoundTripper, req *http.Request) (*http.Response, *progress, error) {
	p := new(progress)
	resp, err := rt.RoundTrip(req.WithContext(httptrace.WithClientTrace(ctx, p.trace())))
	return resp, p, err
}

// progress knows whether a call has had a connection. A transport that never
// says so leaves it at zero, which proves nothing.
type progress struct{ state atomic.Int32 }

const (
	progressUnknown int32 = iota
	progressDialling
	progressConnected
)

// trace follows net/http. It asks for a connection anew only after it could not
// write a single byte to the last one, so the state may go back.
func (p *progress) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GetConn: func(string) { p.state.Store(progressDialling) },
		GotConn: func(httptrace.GotConnInfo) { p.state.Store(progressConnected) },
	}
}

// outcome is what a call that brought no answer leaves behind: nothing if it
// never had a connection, else nobody knows.
func (p *progress) outcome() Outcome {
	if p.state.Load() == progressDialling {
		return Later
	}
	return Unknown
}
