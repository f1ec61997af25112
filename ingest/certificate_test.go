package ingest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// writePair puts a new self-signed pair into dir, with a modification time of
// its own.
func writePair(t *testing.T, dir string, serial int64) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyBytes, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	write(t, certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), serial)
	write(t, keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyBytes}), serial)
	return certFile, keyFile
}

func write(t *testing.T, name string, data []byte, at int64) {
	t.Helper()
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(name, time.Unix(at, 0), time.Unix(at, 0)); err != nil {
		t.Fatal(err)
	}
}

func TestTLSFilesAreReadAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certFile, keyFile := writePair(t, dir, 1)
	d := open(t, func(o *Options) { o.TLSCertFile, o.TLSKeyFile = certFile, keyFile })
	serial := func() int64 {
		// NextProtos asks for HTTP/2; the server must not agree.
		conn, err := tls.Dial("tcp", d.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		state := conn.ConnectionState()
		if state.NegotiatedProtocol != "http/1.1" {
			t.Errorf("protocol %q", state.NegotiatedProtocol)
		}
		return state.PeerCertificates[0].SerialNumber.Int64()
	}
	check := func(step string, wantSerial int64, wantLogs int) {
		t.Helper()
		if got := serial(); got != wantSerial {
			t.Errorf("%s: certificate %d, want %d", step, got, wantSerial)
		}
		if got := d.logs.FilterMessageSnippet("certificate").Len(); got != wantLogs {
			t.Errorf("%s: %d log lines, want %d", step, got, wantLogs)
		}
	}
	check("at start", 1, 0)
	writePair(t, dir, 2)
	check("replaced", 2, 1)
	write(t, certFile, []byte("broken"), 3)
	check("broken", 2, 2)
	check("still broken", 2, 2)
	if err := os.Remove(keyFile); err != nil {
		t.Fatal(err)
	}
	check("gone", 2, 2)
	writePair(t, dir, 4)
	check("repaired", 4, 3)

	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
	if got := doWith(t, client, "POST", "https://"+d.Addr().String()+"/", credentials(), strings.NewReader(good)); got.body != oneStored {
		t.Errorf("got %d %s", got.status, got.body)
	}
	if _, err := tls.Dial("tcp", d.Addr().String(), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 is spoken")
	}
}
