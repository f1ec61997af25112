package sendbird

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// DefaultUploadHosts is where the documented presigned URL leads to.
var DefaultUploadHosts = []string{".amazonaws.com"}

// blockedError is an upload that is not made, since its target is not allowed. It
// shows host and address at most, never path or query.
type blockedError struct{ reason string }

func (e *blockedError) Error() string { return e.reason }

func blocked(reason string) error { return &blockedError{reason} }

// hostRule is one entry of the upload hosts.
type hostRule struct {
	suffix     string // ".amazonaws.com"; "" for an exact host
	host, port string // of an exact host; port "" is the scheme's own
}

var (
	hostSuffix = regexp.MustCompile(`^(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?){2,}$`)
	hostName   = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)
)

// CheckUploadHost says what is wrong with an entry of [Config].UploadHosts. An
// entry is either
//
//	.amazonaws.com     a suffix of two labels or more: https on port 443, and only
//	                   where the name leads to a public address
//	s3.internal:9000   one exact host or host:port, allowed as it is: plain http and
//	                   private addresses, too
func CheckUploadHost(entry string) error {
	_, err := parseHostRule(entry)
	return err
}

var errHostEntry = errors.New("an upload host is a suffix such as .amazonaws.com, or one host or host:port, without scheme or path")

func parseHostRule(entry string) (hostRule, error) {
	entry = strings.ToLower(entry)
	if strings.ContainsAny(entry, "/?#@") {
		return hostRule{}, errHostEntry
	}
	if strings.HasPrefix(entry, ".") {
		if !hostSuffix.MatchString(entry) || len(entry) > 253 {
			return hostRule{}, errors.New("a host suffix is a dot and two labels or more, such as .amazonaws.com")
		}
		return hostRule{suffix: entry}, nil
	}
	host, port := strings.Trim(entry, "[]"), ""
	if _, err := netip.ParseAddr(host); err != nil {
		host = entry
		if h, p, err := net.SplitHostPort(entry); err == nil {
			host, port = h, p
			if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 {
				return hostRule{}, errors.New("the port must be a number from 1 to 65535")
			}
		}
	}
	if _, err := netip.ParseAddr(host); err != nil && (!hostName.MatchString(host) || len(host) > 253) {
		return hostRule{}, errHostEntry
	}
	return hostRule{host: host, port: port}, nil
}

// guard decides where a file may be uploaded to. The address comes from outside,
// in Sendbird's answer, so it is treated as a stranger's.
type guard struct {
	rules     []hostRule
	transport http.RoundTripper // for hosts allowed by their suffix
}

func newGuard(hosts []string) (*guard, error) {
	g := &guard{transport: newGuardedTransport(nil, nil)}
	for _, entry := range hosts {
		rule, err := parseHostRule(entry)
		if err != nil {
			return nil, fmt.Errorf("upload host %s: %w", quoted(entry), err)
		}
		g.rules = append(g.rules, rule)
	}
	return g, nil
}

// allow judges a presigned URL by itself; exact tells that the operator named
// this very host. The addresses behind a name are judged when they are dialled.
func (g *guard) allow(raw string) (target *url.URL, exact bool, err error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil, u.Hostname() == "", u.Scheme != "https" && u.Scheme != "http":
		return nil, false, blocked("the upload address that Sendbird gave is no http or https URL")
	case u.User != nil, u.Fragment != "":
		return nil, false, blocked("the upload address that Sendbird gave holds credentials or a fragment")
	}
	host := strings.ToLower(u.Hostname())
	for _, rule := range g.rules {
		if rule.suffix == "" && rule.matches(u, host) {
			return u, true, nil
		}
	}
	if !g.hasSuffix(host) {
		return nil, false, blocked("upload host " + quoted(host) + " is not allowed: if it is Sendbird's, add it to the upload hosts")
	}
	switch {
	case u.Scheme != "https":
		return nil, false, blocked("upload host " + quoted(host) + ": only https is allowed")
	case u.Port() != "" && u.Port() != "443", strings.HasSuffix(u.Host, ":"):
		return nil, false, blocked("upload host " + quoted(host) + ": only port 443 is allowed")
	}
	return u, false, nil
}

func (r hostRule) matches(u *url.URL, host string) bool {
	port := u.Port()
	want := r.port
	byScheme := map[string]string{"http": "80", "https": "443"}[u.Scheme]
	if port == "" {
		port = byScheme
	}
	if want == "" {
		want = byScheme
	}
	return host == r.host && port == want
}

// hasSuffix wants a plain name of at least one label before the suffix: no
// address, no trailing dot, no character that a resolver might see otherwise.
func (g *guard) hasSuffix(host string) bool {
	if !hostName.MatchString(host) || strings.Contains(host, "..") || len(host) > 253 {
		return false
	}
	return slices.ContainsFunc(g.rules, func(r hostRule) bool {
		return r.suffix != "" && strings.HasSuffix(host, r.suffix) && len(host) > len(r.suffix)
	})
}

// newGuardedTransport refuses every address that is not public, at the one moment
// that counts: after the name was resolved, for the very address about to be
// dialled. A name that answers otherwise a second time gains nothing. A nil
// resolver is the system's, nil roots are the system's.
func newGuardedTransport(resolver *net.Resolver, tlsConfig *tls.Config) *http.Transport {
	if tlsConfig == nil {
		tlsConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	dialer := &net.Dialer{Timeout: dialTimeout, Resolver: resolver, Control: checkDial}
	return &http.Transport{
		DialContext:            dialer.DialContext,
		TLSClientConfig:        tlsConfig,
		TLSHandshakeTimeout:    dialTimeout,
		DisableKeepAlives:      true, // one file, one connection
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeaderBytes,
	}
}

// checkDial is net.Dialer.Control: address is what will be dialled.
func checkDial(network, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	switch {
	case err != nil, network != "tcp4" && network != "tcp6" && network != "tcp":
		return blocked("upload: " + quoted(address) + " is no address to upload to")
	case to.Port() != 443:
		return blocked("upload: only port 443 is allowed")
	case !isPublic(to.Addr()):
		return blocked("upload: the host leads to " + to.Addr().String() + ", which is not public; if it is meant, name the host exactly in the upload hosts")
	}
	return nil
}

// Addresses that are not for the public, beside those that netip knows; the
// registries are iana.org/assignments/iana-ipv4-special-registry and -ipv6-.
var (
	global6 = netip.MustParsePrefix("2000::/3") // all that is given out so far
	special = []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"),
		netip.MustParsePrefix("100.64.0.0/10"), // behind a carrier's NAT
		netip.MustParsePrefix("192.0.0.0/24"),
		netip.MustParsePrefix("192.0.2.0/24"),
		netip.MustParsePrefix("192.88.99.0/24"),
		netip.MustParsePrefix("198.18.0.0/15"),
		netip.MustParsePrefix("198.51.100.0/24"),
		netip.MustParsePrefix("203.0.113.0/24"),
		netip.MustParsePrefix("240.0.0.0/4"), // with the broadcast address
		netip.MustParsePrefix("2001::/23"),   // Teredo and others: may carry an IPv4 address
		netip.MustParsePrefix("2001:db8::/32"),
		netip.MustParsePrefix("2002::/16"), // 6to4: carries an IPv4 address
		netip.MustParsePrefix("3fff::/20"),
	}
)

// isPublic tells whether an address is anybody's. What carries an IPv4 address in
// itself (mapped, NAT64's 64:ff9b::/96, 6to4) is not, whatever it carries.
func isPublic(a netip.Addr) bool {
	switch {
	case !a.IsValid(), a.Zone() != "", a.Is4In6():
		return false
	case !a.IsGlobalUnicast(), a.IsPrivate(): // loopback, link-local, multicast, unspecified; 10/8 …, fc00::/7
		return false
	case a.Is6() && !global6.Contains(a):
		return false
	}
	return !slices.ContainsFunc(special, func(p netip.Prefix) bool { return p.Contains(a) })
}
