package store

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestEveryUserHasAnInboxOfItsOwn(t *testing.T) {
	for _, tt := range []struct{ url, commonName, want string }{
		{url: "", want: "_INBOX.BIRDTAP"},
		{url: "nats://a:4222,nats://b:4222", want: "_INBOX.BIRDTAP"},
		{url: "nats://relay:pw@a:4222,nats://b:4222", want: "_INBOX.BIRDTAP.relay"},
		{url: "nats://token@a:4222", want: "_INBOX.BIRDTAP"},
		{url: "nats://a.b:pw@a:4222", want: "_INBOX.BIRDTAP"}, // two tokens of a subject
		{url: "nats://%3E:pw@a:4222", want: "_INBOX.BIRDTAP"}, // a wildcard
		{url: "nats://:pw@a:4222", want: "_INBOX.BIRDTAP"},
		{url: "::", want: "_INBOX.BIRDTAP"},
		{url: "tls://a:4222", commonName: "birdtap-ingest", want: "_INBOX.BIRDTAP.birdtap-ingest"},
		{url: "tls://a:4222", commonName: "Some Body", want: "_INBOX.BIRDTAP"},
		{url: "tls://a:4222", commonName: "*", want: "_INBOX.BIRDTAP"},
	} {
		o := Options{NATSURL: tt.url, Prefix: defaultPrefix}
		if tt.commonName != "" {
			o.NATSCertFile, o.NATSKeyFile = writeClientCert(t, tt.commonName)
		}
		if got := o.inboxPrefix(); got != tt.want {
			t.Errorf("%q %q: %s, want %s", tt.url, tt.commonName, got, tt.want)
		}
	}
	missing := Options{NATSURL: "tls://a:4222", Prefix: defaultPrefix, NATSCertFile: "nowhere", NATSKeyFile: "nowhere"}
	wantEqual(t, "inbox", missing.inboxPrefix(), "_INBOX.BIRDTAP")
}

func writeClientCert(t *testing.T, commonName string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	what := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: commonName}, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, what, what, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: cert}, keyFile: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}
