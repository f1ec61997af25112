package clevertap

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	uploadPath = "/1/upload"

	// defaultTimeout bounds a call. CleverTap documents no timeout of its own; a
	// call "may take a second or more" (https://developer.clevertap.com/docs/faqs).
	defaultTimeout = 30 * time.Second
	// idleTimeout is how long an unused connection is kept. Short, because a
	// connection that CleverTap closes while a call begins to leave on it turns
	// that call into one of unknown outcome.
	idleTimeout = 30 * time.Second
	dialTimeout = 10 * time.Second
	// maxHeaderBytes bounds the head of an answer. Recorded ones stay below 1 KiB.
	maxHeaderBytes = 64 << 10
	// writeBuffer is the chunk in which a body leaves, in bytes: a full call of
	// 250-byte records goes out in four writes.
	writeBuffer = 64 << 10
)

// Config says where to upload, and as whom.
type Config struct {
	// URL is scheme and host, and a path if CleverTap stands behind a proxy;
	// empty means [DefaultURL]. It may not hold credentials or a query.
	URL string
	// AccountID is the project id of CleverTap's dashboard.
	AccountID string
	// Passcode is asked for before every call, so that the secret may change.
	Passcode func() string
	// Timeout bounds one call, from the first byte to the last of the answer;
	// 0 means 30 s.
	Timeout time.Duration
}

// Client uploads events to one CleverTap account. It is safe for concurrent use.
// It does not count calls in flight: staying within [MaxInflight] is the
// caller's, since other uploaders share it.
type Client struct {
	url       *url.URL
	accountID string
	passcode  func() string
	timeout   time.Duration
	transport http.RoundTripper
}

// Option changes a [Client] that [New] makes.
type Option func(*Client) error

// WithTransport replaces the transport: the one hook, for metrics and tests. Like
// any http.RoundTripper it must not follow redirects.
func WithTransport(rt http.RoundTripper) Option {
	return func(c *Client) error {
		if rt == nil {
			return errors.New("no transport")
		}
		c.transport = rt
		return nil
	}
}

// New makes a client. It connects to nobody yet. Its errors name what is wrong
// with the configuration and never show a value of it.
func New(cfg Config, opts ...Option) (*Client, error) {
	target, err := uploadURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	if cfg.AccountID == "" || cfg.Passcode == nil {
		return nil, errors.New("CleverTap account id or passcode missing")
	}
	c := &Client{
		url:       target,
		accountID: cfg.AccountID,
		passcode:  cfg.Passcode,
		timeout:   cfg.Timeout,
	}
	if c.timeout <= 0 {
		c.timeout = defaultTimeout
	}
	for _, opt := range opts {
		if err := opt(c); err != nil {
			return nil, fmt.Errorf("CleverTap client: %w", err)
		}
	}
	if c.transport == nil {
		c.transport = newTransport()
	}
	return c, nil
}

// Close closes connections that no call is using.
func (c *Client) Close() {
	if t, ok := c.transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// uploadURL is the full address of the upload call. What does not parse is not
// repeated in the error: it may hold a password in the wrong place.
func uploadURL(base string) (*url.URL, error) {
	if base == "" {
		base = DefaultURL
	}
	u, err := url.Parse(base)
	switch {
	case err != nil:
		return nil, errors.New("CleverTap URL is no URL")
	case u.Scheme != "https" && u.Scheme != "http", u.Hostname() == "":
		return nil, errors.New("CleverTap URL needs http:// or https:// and a host")
	case u.User != nil, u.RawQuery != "", u.Fragment != "":
		return nil, errors.New("CleverTap URL may hold no credentials, query or fragment")
	}
	return url.Parse(strings.TrimRight(u.String(), "/") + uploadPath)
}

// newTransport keeps one connection per call that may be in flight, speaks
// HTTP/1.1 over TLS 1.2 or later, and asks nobody for a proxy. A RoundTripper
// follows no redirect, keeps no cookie and wraps no address into its errors,
// which is why there is no http.Client around it.
//
// It asks for no compression: an honest answer of success has 60 bytes, and what
// is not unpacked cannot grow.
func newTransport() *http.Transport {
	return &http.Transport{
		DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    dialTimeout,
		MaxIdleConns:           MaxInflight,
		MaxIdleConnsPerHost:    MaxInflight,
		IdleConnTimeout:        idleTimeout,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeaderBytes,
		WriteBufferSize:        writeBuffer,
	}
}
