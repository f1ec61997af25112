package main

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/birdtap/birdtap/clevertap"
	"github.com/birdtap/birdtap/sendbird"
)

// role is which part of birdtap a process plays.
type role string

// The roles of a daemon.
const (
	roleServe  role = "serve"  // all of them in one process
	roleIngest role = "ingest" // takes receipts in
	roleRelay  role = "relay"  // uploads them
	roleSender role = "sender" // sends notifications
)

// rooms are the parts of birdtap that a process opens.
type rooms struct {
	receipts bool // the doors for receipts
	uploads  bool // the relay
	sends    bool // the sender
	webhooks bool // its doors
}

// hasDoors tells whether the process listens on HTTP_ADDR.
func (r rooms) hasDoors() bool { return r.receipts || r.webhooks }

// rooms of a role. One process of all roles opens what it has credentials for.
func (c *Config) rooms(r role) rooms {
	receipts := r == roleIngest || r == roleServe && c.hasCleverTap()
	return rooms{
		receipts: receipts,
		uploads:  r == roleRelay || r == roleServe && c.hasCleverTap(),
		sends:    r == roleSender || r == roleServe && c.hasSendbird(),
		webhooks: r == roleSender || r == roleServe && c.hasSendbird() && c.sender.Get() != "",
	}
}

// hasCleverTap and hasSendbird tell whether both halves of the credentials are there.
func (c *Config) hasCleverTap() bool { return c.CleverTapAccountID != "" && c.passcode.Get() != "" }

func (c *Config) hasSendbird() bool {
	return c.SendbirdNotificationsURL != "" && c.notifications.Get() != ""
}

// wrong is a configError about a variable that is named without the prefix, and its value.
func (c *Config) wrong(name, format string, args ...any) error {
	name = envPrefix + name
	return &configError{variable: name, value: c.set[name], problem: fmt.Sprintf(format, args...)}
}

// missing is a configError about a variable that is not set.
func missing(name, format string, args ...any) error {
	return &configError{variable: envPrefix + name, problem: "is not set: " + fmt.Sprintf(format, args...)}
}

// Validate says which variable cannot be as it is, the first one it finds.
func (c *Config) Validate() error {
	for _, check := range []func() error{
		c.checkListeners, c.checkUploadPaths, c.checkNATS, c.checkStreams,
		c.checkSizes, c.checkCleverTap, c.checkSendbird, c.checkTimes, c.checkIdentities, c.checkSecrets, c.checkLog,
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (c *Config) checkListeners() error {
	return cmp.Or(
		c.checkAddr("HTTP_ADDR", c.HTTPAddr),
		c.checkAddr("OPS_ADDR", c.OpsAddr),
		c.checkPair("HTTP_TLS_CERT_FILE", c.HTTPTLSCertFile, "HTTP_TLS_KEY_FILE", c.HTTPTLSKeyFile),
		c.checkCertificate(),
	)
}

func (c *Config) checkAddr(name, addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return c.wrong(name, "must be host:port, such as 127.0.0.1:8080, or :8080 for every address of the machine")
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return c.wrong(name, "the port must be a number from 0 to 65535")
	}
	return nil
}

// checkPair wants a certificate and its key, or neither, and both readable.
func (c *Config) checkPair(certName, cert, keyName, key string) error {
	switch {
	case cert != "" && key == "":
		return missing(keyName, "TLS needs the key that belongs to %s%s", envPrefix, certName)
	case cert == "" && key != "":
		return missing(certName, "TLS needs the certificate that belongs to %s%s", envPrefix, keyName)
	}
	return cmp.Or(c.checkFile(certName, cert), c.checkFile(keyName, key))
}

func (c *Config) checkCertificate() error {
	if c.HTTPTLSCertFile == "" {
		return nil
	}
	if _, err := tls.LoadX509KeyPair(c.HTTPTLSCertFile, c.HTTPTLSKeyFile); err != nil {
		return c.wrong("HTTP_TLS_CERT_FILE", "is no certificate that goes with %sHTTP_TLS_KEY_FILE: %v", envPrefix, err)
	}
	return nil
}

func (c *Config) checkFile(name, file string) error {
	if file == "" {
		return nil
	}
	if _, err := os.Stat(file); err != nil {
		return c.wrong(name, "cannot read the file: %v", bare(err))
	}
	return nil
}

// fixedDoors are the paths that UPLOAD_PATHS cannot take.
var fixedDoors = []string{"/", "/1/upload", "/sendbird/callbacks"}

// notificationDoors is where CleverTap's webhooks call.
const notificationDoors = "/clevertap/notifications"

func (c *Config) checkUploadPaths() error {
	for i, p := range c.UploadPaths {
		under := strings.HasPrefix(p+"/", notificationDoors+"/")
		switch {
		case !strings.HasPrefix(p, "/"):
			return c.wrong("UPLOAD_PATHS", "%q must begin with a slash", shorten(p))
		case strings.ContainsAny(p, "*{}?#%\\ "):
			return c.wrong("UPLOAD_PATHS", "%q must be a plain path: no wildcard, blank, query or escape", shorten(p))
		case slices.Contains(fixedDoors, strings.TrimSuffix(p, "/")) || p == "/" || under:
			return c.wrong("UPLOAD_PATHS", "%q is a door of birdtap already", shorten(p))
		case path.Clean(p) != strings.TrimSuffix(p, "/"):
			return c.wrong("UPLOAD_PATHS", "%q must be written as %q", shorten(p), shorten(path.Clean(p)))
		case slices.Contains(c.UploadPaths[:i], p):
			return c.wrong("UPLOAD_PATHS", "%q is named twice", shorten(p))
		}
	}
	return nil
}

func (c *Config) checkNATS() error {
	for _, server := range c.NATSURL.list() {
		u, err := url.Parse(server)
		if err != nil || u.Host == "" || !slices.Contains([]string{"nats", "tls"}, u.Scheme) {
			return c.wrong("NATS_URL", "must be nats://host:port or tls://host:port, several of them with commas between")
		}
	}
	for _, name := range []string{"NATS_CREDS_FILE", "NATS_CA_FILE", "NATS_CERT_FILE", "NATS_KEY_FILE"} {
		if c.given(name) && c.embedded() {
			return c.wrong(name, "is for a NATS cluster, but %sNATS_URL is not set", envPrefix)
		}
	}
	return cmp.Or(
		c.checkFile("NATS_CREDS_FILE", c.NATSCredsFile),
		c.checkFile("NATS_CA_FILE", c.NATSCAFile),
		c.checkPair("NATS_CERT_FILE", c.NATSCertFile, "NATS_KEY_FILE", c.NATSKeyFile),
	)
}

var streamPrefix = regexp.MustCompile(`^[A-Za-z0-9_-]{1,32}$`)

func (c *Config) checkStreams() error {
	switch {
	case !slices.Contains([]int{1, 3, 5}, c.Replicas):
		return c.wrong("REPLICAS", "must be 1, 3 or 5")
	case c.embedded() && c.Replicas != 1:
		return c.wrong("REPLICAS", "the embedded queue is one node; more need a cluster, %sNATS_URL", envPrefix)
	case !streamPrefix.MatchString(c.StreamPrefix):
		return c.wrong("STREAM_PREFIX", "must be 1 to 32 letters, digits, _ or -")
	case !slices.Contains([]string{"always", "interval"}, c.Sync):
		return c.wrong("SYNC", "must be always (on disk before the answer) or interval (faster; a power cut loses seconds)")
	}
	return nil
}

// minQueueBytes is below what the queue could take a single frame in.
const minQueueBytes = 1 * mebibyte

func (c *Config) checkSizes() error {
	for _, s := range []struct {
		name string
		size Size
	}{{"QUEUE_MAX_BYTES", c.QueueMaxBytes}, {"DEAD_MAX_BYTES", c.DeadMaxBytes}} {
		if s.size < minQueueBytes {
			return c.wrong(s.name, "must be at least %v", minQueueBytes)
		}
	}
	return nil
}

func (c *Config) checkCleverTap() error {
	if c.CleverTapRegion != "" {
		if c.given("CLEVERTAP_URL") {
			return c.wrong("CLEVERTAP_REGION", "set it or %sCLEVERTAP_URL, not both", envPrefix)
		}
		if _, err := clevertap.URLForRegion(c.CleverTapRegion); err != nil {
			return c.wrong("CLEVERTAP_REGION", "must be eu1, in1, sg1, us1, aps3 or mec1; for another host set %sCLEVERTAP_URL", envPrefix)
		}
	}
	if err := c.checkCleverTapURL(); err != nil {
		return err
	}
	if c.CleverTapMaxInflight < 1 || c.CleverTapMaxInflight > clevertap.MaxInflight {
		return c.wrong("CLEVERTAP_MAX_INFLIGHT", "must be 1 to %d, the calls that CleverTap takes at once from one account", clevertap.MaxInflight)
	}
	if c.BatchMaxRecords < 1 || c.BatchMaxRecords > clevertap.MaxRecords {
		return c.wrong("BATCH_MAX_RECORDS", "must be 1 to %d, the records that CleverTap takes in one call", clevertap.MaxRecords)
	}
	return nil
}

func (c *Config) checkCleverTapURL() error {
	u, err := url.Parse(string(c.CleverTapURL))
	switch {
	case err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https":
		return c.wrong("CLEVERTAP_URL", "must be an http or https URL with a host, such as %s", clevertap.DefaultURL)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return c.wrong("CLEVERTAP_URL", "must hold no user, query or fragment: the credentials go in headers")
	case strings.HasSuffix(u.Path, "/1/upload"):
		return c.wrong("CLEVERTAP_URL", "give it without /1/upload, birdtap adds that")
	}
	return nil
}

func (c *Config) checkSendbird() error {
	if _, err := sendbird.NotificationsURL(c.SendbirdAppID); c.SendbirdAppID != "" && err != nil {
		return c.wrong("SENDBIRD_APP_ID", "must be 1 to 50 letters, digits or hyphens, as Sendbird's dashboard shows it")
	}
	for _, entry := range c.SendbirdUploadHosts {
		if err := sendbird.CheckUploadHost(entry); err != nil {
			return c.wrong("SENDBIRD_UPLOAD_HOSTS", "%q: %v", shorten(entry), err)
		}
	}
	if len(c.SendbirdUploadHosts) == 0 {
		return c.wrong("SENDBIRD_UPLOAD_HOSTS", "holds no host between its commas")
	}
	for _, of := range c.sendbirdURLs() {
		if err := c.checkSendbirdURL(of); err != nil {
			return err
		}
	}
	return nil
}

func (c *Config) checkSendbirdURL(of sendbirdURL) error {
	if !c.given(of.name) {
		return nil
	}
	u, err := url.Parse(string(*of.url))
	switch {
	case err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https":
		return c.wrong(of.name, "must be an http or https URL with a host, such as %s", of.shape)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return c.wrong(of.name, "must hold no user, query or fragment: the token goes in a header")
	case strings.Trim(u.Path, "/") != "":
		return c.wrong(of.name, "give scheme and host only, birdtap adds the path")
	}
	return nil
}

func (c *Config) checkTimes() error {
	for _, t := range []struct {
		name string
		d    time.Duration
	}{
		{"KEEP_DELIVERED", c.KeepDelivered},
		{"BATCH_MAX_WAIT", c.BatchMaxWait},
		{"RETRY_RECORD_FOR", c.RetryRecordFor},
		{"DEDUP_WINDOW", c.DedupWindow},
		{"GATHER_WAIT", c.GatherWait},
	} {
		if t.d < 0 {
			return c.wrong(t.name, "must not be negative")
		}
	}
	if c.RememberSent != 0 && c.RememberSent < time.Second {
		return c.wrong("REMEMBER_SENT", "must be 0 (off) or at least 1s")
	}
	if c.CleverTapTimeout <= 0 {
		return c.wrong("CLEVERTAP_TIMEOUT", "must be more than 0")
	}
	return nil
}

func (c *Config) checkIdentities() error {
	if !slices.Contains([]string{"pass", "dead"}, c.IdentityUnmapped) {
		return c.wrong("IDENTITY_UNMAPPED", "must be pass (a user who is not in the identity map is left as it is) or dead (its receipt becomes a dead letter)")
	}
	return nil
}

// unmappedDead tells whether a receipt of a user who is not in the map goes dead.
func (c *Config) unmappedDead() bool { return c.IdentityUnmapped == "dead" }

// checkSecrets looks at what goes into a header: anything else than text on one
// line would fail at every call, long after the start.
func (c *Config) checkSecrets() error {
	for _, source := range []*secretSource{c.ops, c.passcode, c.notifications, c.chat, c.desk} {
		if !isText(source.Get()) {
			return &configError{variable: source.name, problem: "must be text of one line, without control characters (value not shown)"}
		}
	}
	for _, token := range c.senderTokens() {
		if !isText(token) {
			return &configError{variable: c.sender.name, problem: "must be text of one line, without control characters (value not shown)"}
		}
	}
	if c.sender.Get() != "" && len(c.senderTokens()) == 0 {
		return &configError{variable: envPrefix + "SENDER_TOKENS", problem: "holds no token between its commas"}
	}
	if c.signing.Get() != "" && len(c.SigningKeys()) == 0 {
		return &configError{variable: envPrefix + "SENDBIRD_SIGNING_KEYS", problem: "holds no key between its commas"}
	}
	return nil
}

func (c *Config) checkLog() error {
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.LogLevel) {
		return c.wrong("LOG_LEVEL", "must be debug, info, warn or error")
	}
	if !slices.Contains([]string{"json", "console"}, c.LogFormat) {
		return c.wrong("LOG_FORMAT", "must be json or console")
	}
	return nil
}

// Need says what the role cannot do without and has not got.
func (c *Config) Need(r role) error {
	if err := c.needCredentials(r); err != nil {
		return err
	}
	switch {
	case r != roleServe && c.embedded():
		return missing("NATS_URL", "%s alone needs the cluster that it shares with the other roles; "+
			"one process with its own queue is birdtap serve", "birdtap "+string(r))
	case !isLoopback(c.OpsAddr) && c.ops.Get() == "":
		return missing("OPS_TOKEN", "it is needed because %sOPS_ADDR=%q can be reached from other machines", envPrefix, shorten(c.OpsAddr))
	}
	return nil
}

// needCredentials wants a pair for each room that is to open, and never half of one.
func (c *Config) needCredentials(r role) error {
	noCleverTap := c.CleverTapAccountID == "" && c.passcode.Get() == ""
	noSendbird := c.notifications.Get() == "" && c.sender.Get() == ""
	sender := r == roleSender || r == roleServe && !noSendbird
	if !sender || r == roleServe && !noCleverTap {
		if err := c.needCleverTap(); err != nil {
			return err
		}
	}
	if !sender {
		return nil
	}
	if err := c.needSendbird(); err != nil {
		return err
	}
	if r == roleSender && c.sender.Get() == "" {
		return missing("SENDER_TOKENS", "CleverTap's webhooks present one of them as Api-Token (a file that holds them: %sSENDER_TOKENS_FILE)", envPrefix)
	}
	return nil
}

func (c *Config) needCleverTap() error {
	switch {
	case c.CleverTapAccountID == "" && c.passcode.Get() == "":
		return missing("CLEVERTAP_ACCOUNT_ID", "set it and %[1]sCLEVERTAP_PASSCODE (or %[1]sCLEVERTAP_PASSCODE_FILE) "+
			"to the account's Project ID and Passcode, CleverTap dashboard → Settings → Project", envPrefix)
	case c.CleverTapAccountID == "":
		return missing("CLEVERTAP_ACCOUNT_ID", "%sCLEVERTAP_PASSCODE is only half of the pair", envPrefix)
	case c.passcode.Get() == "":
		return missing("CLEVERTAP_PASSCODE", "%sCLEVERTAP_ACCOUNT_ID is only half of the pair "+
			"(a file that holds the passcode: %[1]sCLEVERTAP_PASSCODE_FILE)", envPrefix)
	}
	return nil
}

// Warnings says what the role can do with, and should not.
func (c *Config) Warnings(r role) []string {
	var warnings []string
	if c.rooms(r).hasDoors() && c.HTTPTLSCertFile == "" && !isLoopback(c.HTTPAddr) {
		warnings = append(warnings, "the doors are open to other machines without TLS: the passcode crosses the network in a header; "+
			"set BIRDTAP_HTTP_TLS_CERT_FILE and BIRDTAP_HTTP_TLS_KEY_FILE, or put a proxy with TLS in front")
	}
	if u, err := url.Parse(string(c.CleverTapURL)); err == nil && c.rooms(r).uploads && u.Scheme == "http" && !isLoopback(net.JoinHostPort(u.Hostname(), "80")) {
		warnings = append(warnings, "BIRDTAP_CLEVERTAP_URL is plain http: the passcode and the receipts cross the network unprotected")
	}
	if c.rooms(r).hasDoors() && c.embedded() && c.Sync == "interval" {
		warnings = append(warnings, "BIRDTAP_SYNC=interval: receipts are acknowledged before they are on disk, a power cut loses the last seconds")
	}
	if warning := plainWarning("SENDBIRD_NOTIFICATIONS_URL", c.SendbirdNotificationsURL); warning != "" && c.rooms(r).sends {
		warnings = append(warnings, warning)
	}
	return warnings
}

// isLoopback tells whether only this machine reaches addr.
func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
