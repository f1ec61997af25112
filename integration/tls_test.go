//go:build integration

package integration

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
)

// authority is a certificate authority that a child process trusts by SSL_CERT_FILE.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	a.cert, a.key = a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotAfter: time.Now().Add(time.Hour),
	})
	return a
}

// sign makes a key and a certificate for it, signed by itself if a has none yet.
func (a *authority) sign(what *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	what.SerialNumber = big.NewInt(time.Now().UnixNano())
	what.NotBefore = time.Now().Add(-24 * time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = what, key
	}
	der, err := x509.CreateCertificate(rand.Reader, what, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

// issue makes a server's certificate for an address.
func (a *authority) issue(ip string, until time.Time) tls.Certificate {
	a.t.Helper()
	cert, key := a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "CleverTap"}, IPAddresses: []net.IP{net.ParseIP(ip)}, NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

// file is where the authority's own certificate stands.
func (a *authority) file() string {
	a.t.Helper()
	path := filepath.Join(a.t.TempDir(), "authority.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
	if err := os.WriteFile(path, text, 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

// tapped is a listener of which it is known what clients say first.
type tapped struct {
	net.Listener

	mu     sync.Mutex
	config *tls.Config // nil: it answers in plain text
	conns  int
	first  []byte // of each connection, its first byte
}

func (l *tapped) become(c *tls.Config) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.config = c
}

// come is how many connections there were.
func (l *tapped) come() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conns
}

// Accept gives out the connections that speak TLS. The others get an answer at once.
func (l *tapped) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		l.conns++
		config := l.config
		l.mu.Unlock()
		c = &tappedConn{Conn: c, l: l}
		if config != nil {
			return tls.Server(c, config), nil
		}
		go answerPlainly(c)
	}
}

func answerPlainly(c net.Conn) {
	_, _ = io.ReadFull(c, make([]byte, 1))
	_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	hangUp(c)
}

type tappedConn struct {
	net.Conn
	l    *tapped
	once sync.Once
}

func (c *tappedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.once.Do(func() {
			c.l.mu.Lock()
			defer c.l.mu.Unlock()
			c.l.first = append(c.l.first, b[0])
		})
	}
	return n, err
}

// handshakeRecord is the first byte of whoever speaks TLS.
const handshakeRecord = 22

// With a certificate that proves nothing, or none at all, CleverTap is not there: birdtap
// waits, says nothing in plain text, and goes on when the certificate is right.
func TestNothingIsSaidWithoutAGoodCertificate(t *testing.T) {
	t.Parallel()
	fake := clevertaptest.New(clevertaptest.Options{AccountID: accountID, Passcode: passcode})
	fake.CloseConnections(true) // each call makes a connection
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	trusted, stranger := newAuthority(t), newAuthority(t)
	config := func(c tls.Certificate) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{c}, MinVersion: tls.VersionTLS12}
	}
	later := time.Now().Add(time.Hour)
	good := config(trusted.issue("127.0.0.1", later))
	old := good.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11

	l := &tapped{Listener: inner, config: good}
	if err := fake.Serve(l); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	d := newLone(t, map[string]string{"CLEVERTAP_URL": "https://" + inner.Addr().String()}, "SSL_CERT_FILE="+trusted.file())

	sent := 0
	deliver := func() {
		t.Helper()
		sent++
		d.take(t, sent)
		d.delivers(t, fake, int64(sent))
	}
	deliver()
	for _, bad := range []struct {
		name   string
		config *tls.Config
	}{
		{"expired", config(trusted.issue("127.0.0.1", time.Now().Add(-time.Hour)))},
		{"of another host", config(trusted.issue("127.0.0.2", later))},
		{"of an unknown authority", config(stranger.issue("127.0.0.1", later))},
		{"TLS 1.1", old},
		{"plain HTTP", nil},
	} {
		calls := fake.Counts().Calls
		l.become(bad.config)
		sent++
		d.take(t, sent)
		came := l.come()
		eventually(t, time.Minute, bad.name+": birdtap tries again", func() bool { return l.come() >= came+2 })
		if got := fake.Counts().Calls; got != calls {
			t.Errorf("%s: %d calls were made all the same", bad.name, got-calls)
		}
		a, err := d.at.status()
		if err != nil || a.Died != 0 || a.Queued != 1 || a.Delivered != sent-1 {
			t.Errorf("%s: %+v, %v", bad.name, a, err)
		}
		l.become(good)
		d.delivers(t, fake, int64(sent))
	}
	if said := bytes.ReplaceAll(l.first, []byte{handshakeRecord}, nil); len(said) > 0 {
		t.Errorf("not only TLS was spoken: first bytes %q", said)
	}
	if fake.Counts().Accepted != int64(sent) {
		t.Errorf("%d records arrived, want %d", fake.Counts().Accepted, sent)
	}
}
