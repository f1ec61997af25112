package store

import (
	"crypto/tls"
	"net/url"
	"regexp"
	"strings"
)

// inboxPrefix is what the subjects begin with that the server's answers come to, the
// receipts that a reader asks for among them: an inbox of the user's own below that of
// the installation, so that the rights of one role need not cover the answers to
// another. The name is that in the address, beside a password, or the common name of the
// client's certificate. Where there is neither, or none that may stand in a subject,
// it is the inbox of the installation.
//
//	_INBOX.BIRDTAP                  by creds file, or by token
//	_INBOX.BIRDTAP.birdtap-ingest   by password, or by certificate
func (o Options) inboxPrefix() string {
	prefix := "_INBOX." + o.Prefix
	if name := o.userName(); inboxName.MatchString(name) {
		return prefix + "." + name
	}
	return prefix
}

// inboxName is one token of a subject.
var inboxName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

func (o Options) userName() string {
	if o.NATSCertFile != "" {
		cert, err := tls.LoadX509KeyPair(o.NATSCertFile, o.NATSKeyFile)
		if err != nil {
			return "" // connecting says what is wrong with it
		}
		return cert.Leaf.Subject.CommonName
	}
	first, _, _ := strings.Cut(o.NATSURL, ",")
	u, err := url.Parse(strings.TrimSpace(first))
	if err != nil {
		return ""
	}
	if _, ok := u.User.Password(); !ok {
		return "" // a token, which is a secret
	}
	return u.User.Username()
}
