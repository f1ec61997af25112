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
	// It may be empty where the URL of every API that is called is given.
	AppID string
	// NotificationsURL is scheme and host of the notification API, and a path if
	// it stands behind a proxy; empty means [NotificationsURL] of AppID. It may
	// not hold credentials or a query.
	NotificationsURL string
	// NotificationsToken is asked for before every call, so that the secret may
	// change. It is not the token of Chat. Each of the three APIs has a token of its
	// own; calls of one without are refused, and at least one must be there.
	NotificationsToken func() string
	// ChatURL and ChatToken are the same for users and their metadata; empty means
	// [ChatURL] of AppID.
	ChatURL   string
	ChatToken func() string
	// DeskURL and DeskToken are the same for customers and tickets; empty means
	// [DeskURL] of AppID.
	DeskURL   string
	DeskToken func() string
	// UploadHosts are the hosts that a file may be uploaded to, each as
	// [CheckUploadHost] describes; empty means [DefaultUploadHosts].
	UploadHosts []string
	// Timeout bounds one call, from its first byte to the last of the answer; 0
	// means 30 s. Waiting for its turn comes before and is not part of it.
	Timeout time.Duration
	// UploadTimeout bounds the upload of a file; 0 means 5 min.
	UploadTimeout time.Duration
	// Attempts is how often an action of Chat or Desk is tried at most; 0 means 5,
	// 1 never again. Notifications and uploads are always tried once.
	Attempts int
	// OnRetry is told before an action is tried again: why, and after which wait.
	OnRetry func(why error, wait time.Duration)
}

// Client calls one Sendbird application. It is safe for concurrent use. It makes
// calls at the pace that Sendbird allows: those beyond that wait for their turn.
// Notifications and uploads it makes once; actions of Chat and Desk it makes again
// where that does no harm, see [RetriedError].
type Client struct {
	apis          [3]access // by api
	attempts      int
	onRetry       func(error, time.Duration)
	timeout       time.Duration
	uploadTimeout time.Duration
	transport     http.RoundTripper
	guard         *guard
	pacer         *pacer
}

// api is one of the three that an application has, each with a host and a token of
// its own.
type api int

const (
	apiNotifications api = iota
	apiChat
	apiDesk
)

// access is how an API is reached. Without a token it is not.
type access struct {
	base   *url.URL
	header string // that the token goes in, spelled as documented
	token  func() string
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
	return hostOf(id, "https://api-%s.notifications.sendbird.com")
}

// ChatURL is where the Chat API of an application answers;
// https://sendbird.com/docs/chat/platform-api/v3/prepare-to-use-api.
func ChatURL(id string) (string, error) { return hostOf(id, "https://api-%s.sendbird.com") }

// DeskURL is where the Desk API of an application answers;
// https://sendbird.com/docs/desk/platform-api/v1/prepare-to-use-api.
func DeskURL(id string) (string, error) { return hostOf(id, "https://desk-api-%s.sendbird.com") }

func hostOf(id, pattern string) (string, error) {
	if !appID.MatchString(id) {
		return "", errors.New("a Sendbird application id is 1 to 50 letters, digits or hyphens")
	}
	return fmt.Sprintf(pattern, id), nil
}

// New makes a client. It connects to nobody yet. Its errors name what is wrong
// with the configuration and never show a value of it but an upload host's.
func New(cfg Config, opts ...Option) (*Client, error) {
	if cfg.NotificationsToken == nil && cfg.ChatToken == nil && cfg.DeskToken == nil {
		return nil, errors.New("sendbird token missing")
	}
	apis, err := accessTo(cfg)
	if err != nil {
		return nil, err
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
		apis:          apis,
		attempts:      cfg.Attempts,
		onRetry:       cfg.OnRetry,
		timeout:       orDefault(cfg.Timeout, defaultTimeout),
		uploadTimeout: orDefault(cfg.UploadTimeout, defaultUploadTimeout),
		guard:         g,
		pacer:         newPacer(),
	}
	if c.attempts <= 0 {
		c.attempts = defaultAttempts
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

// accessTo is how the APIs that cfg has a token for are reached.
func accessTo(cfg Config) ([3]access, error) {
	var apis [3]access
	for api, of := range [3]struct {
		url    string
		byID   func(string) (string, error)
		header string
		token  func() string
	}{
		apiNotifications: {cfg.NotificationsURL, NotificationsURL, "Api-Token", cfg.NotificationsToken},
		apiChat:          {cfg.ChatURL, ChatURL, "Api-Token", cfg.ChatToken},
		apiDesk:          {cfg.DeskURL, DeskURL, "SENDBIRDDESKAPITOKEN", cfg.DeskToken},
	} {
		if of.token == nil {
			continue
		}
		var err error
		if of.url == "" {
			if of.url, err = of.byID(cfg.AppID); err != nil {
				return apis, err
			}
		}
		base, err := baseURL(of.url)
		if err != nil {
			return apis, err
		}
		apis[api] = access{base: base, header: of.header, token: of.token}
	}
	return apis, nil
}

// baseURL is the address that paths are put behind. What does not parse is not
// repeated in the error: it may hold a password in the wrong place.
func baseURL(base string) (*url.URL, error) {
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

var errNoToken = errors.New("the client has no token for this API")

// call makes a call, once, and decodes the answer into out. path is escaped
// already; body is JSON, nil for none.
func (c *Client) call(ctx context.Context, e endpoint, path string, body []byte, out answer) error {
	return c.callIn(ctx, nil, e, path, body, out)
}

// callIn is call for one whose turn it is; nil: it has none yet, and waits.
func (c *Client) callIn(ctx context.Context, turn *turn, e endpoint, path string, body []byte, out answer) error {
	var req *http.Request
	err := errNoToken
	if c.apis[e.api()].token != nil {
		req, err = c.newRequest(ctx, e, path, body)
	}
	if err != nil {
		turn.failed()
		return &CallError{Call: e.String(), Outcome: Refused, Err: err}
	}
	if turn == nil {
		if turn, err = c.wait(ctx, e); err != nil {
			return err
		}
	}
	return c.do(ctx, turn, e, req, out)
}

// wait returns when it is a call's turn. The error's outcome is [Later].
func (c *Client) wait(ctx context.Context, e endpoint) (*turn, error) {
	turn, err := c.pacer.wait(ctx, e)
	if err != nil {
		return nil, &CallError{Call: e.String(), Outcome: Later, Err: cause(err)}
	}
	return turn, nil
}

// newRequest builds a call. http.NewRequest gives it the GetBody for the one
// repetition that net/http makes of a POST: when a kept connection turns out dead
// before a byte was written.
func (c *Client) newRequest(ctx context.Context, e endpoint, path string, body []byte) (*http.Request, error) {
	var r io.Reader // a nil *bytes.Reader in it would not be nil
	if body != nil {
		r = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, e.method(), strings.TrimRight(c.apis[e.api()].base.String(), "/")+path, r)
	if err != nil {
		return nil, errors.New("the call cannot be built")
	}
	req.Header = http.Header{
		"Content-Type": {"application/json; charset=utf8"}, // spelled as documented
		"User-Agent":   {"birdtap"},
	}
	return req, nil
}

// do makes a call once, in its turn, and decodes the answer into out.
func (c *Client) do(ctx context.Context, turn *turn, e endpoint, req *http.Request, out answer) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	to := c.apis[e.api()]
	req.Header[to.header] = []string{to.token()}
	resp, sent, err := send(ctx, c.transport, req)
	if err != nil {
		turn.failed()
		return &CallError{Call: e.String(), Outcome: sent.outcome(), Err: cause(err)}
	}
	defer func() { _ = resp.Body.Close() }() // the answer is known by then
	body, err := readAnswer(resp, maxAnswer)
	verdict := judgeAs(e.api(), resp, body, err, out)
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
