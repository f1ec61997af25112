package ingest

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"
)

// certificate is a key pair in two files, read again when they change.
type certificate struct {
	certFile, keyFile string
	log               *zap.Logger

	mu   sync.Mutex
	pair *tls.Certificate
	seen [2]version // of the files tried last, whether they were good or not
}

// version tells a file from what was there before.
type version struct {
	modified time.Time
	size     int64
}

func newCertificate(certFile, keyFile string, log *zap.Logger) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, log: log}
	c.seen, _ = c.versions() // a file that is not there is the next line's error
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("load TLS certificate: %w", err)
	}
	c.pair = &pair
	return c, nil
}

// get is tls.Config.GetCertificate. While the files are being replaced they may
// not fit each other: then the old pair stays, which is logged once per change.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, err := c.versions()
	if err != nil || now == c.seen {
		return c.pair, nil // a file that is gone for a moment is about to be replaced
	}
	c.seen = now
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		c.log.Error("the new TLS certificate is broken, the old one stays", zap.Error(err))
		return c.pair, nil
	}
	c.log.Info("TLS certificate read again")
	c.pair = &pair
	return c.pair, nil
}

func (c *certificate) versions() (v [2]version, err error) {
	for i, name := range [...]string{c.certFile, c.keyFile} {
		info, err := os.Stat(name)
		if err != nil {
			return v, err
		}
		v[i] = version{info.ModTime(), info.Size()}
	}
	return v, nil
}
