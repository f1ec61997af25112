package check

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// certificates runs deploy/certificates and returns what it says.
func certificates(dir string) (string, error) {
	out, err := exec.Command("../certificates", dir).CombinedOutput()
	return string(out), err
}

// trusted are the certificates of a directory that its authority has signed, each with the
// key beside it: by name, the serial number.
func trusted(t *testing.T, dir string) map[string]string {
	t.Helper()
	authority, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	roots := x509.NewCertPool()
	if err != nil || !roots.AppendCertsFromPEM(authority) {
		t.Fatalf("ca.crt: %v", err)
	}
	serials := map[string]string{}
	for _, name := range []string{"server", "birdtap-ingest", "birdtap-relay", "birdtap-sender", "birdtap-operator", "birdtap-admin"} {
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key"))
		if err == nil {
			_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		serials[name] = pair.Leaf.SerialNumber.String()
	}
	return serials
}

// Certificates are renewed one by one, and a run that cannot be finished leaves what was
// there as it was, and says why.
func TestCertificates(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	if out, err := certificates(dir); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	first := trusted(t, dir)

	// As README.md says: ca.key is elsewhere.
	authority, err := os.ReadFile(in("ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(in("ca.key")); err != nil {
		t.Fatal(err)
	}
	if out, err := certificates(dir); err != nil || out != "" {
		t.Errorf("nothing is missing: %v: %s", err, out)
	}
	old, err := os.ReadFile(in("server.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(in("server.crt")); err != nil {
		t.Fatal(err)
	}
	refused := func(because string) {
		t.Helper()
		if out, err := certificates(dir); err == nil || !strings.Contains(out, because) {
			t.Errorf("%v, %q: nothing of %q", err, out, because)
		}
		if now, err := os.ReadFile(in("server.key")); err != nil || string(now) != string(old) {
			t.Errorf("the old key is gone, %v", err)
		}
		if left, _ := filepath.Glob(in("new.*")); left != nil {
			t.Errorf("%v are left", left)
		}
	}
	refused("server.crt cannot be made without ca.key")
	if err := os.WriteFile(in("ca.key"), old, 0o600); err != nil { // another authority's
		t.Fatal(err)
	}
	refused("do not match")

	if err := os.WriteFile(in("ca.key"), authority, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := certificates(dir); err != nil || out != "made server.crt\n" {
		t.Errorf("%v: %s", err, out)
	}
	for name, serial := range trusted(t, dir) {
		if renewed := serial != first[name]; renewed != (name == "server") {
			t.Errorf("%s: renewed %v", name, renewed)
		}
	}

	if err := os.Remove(in("ca.crt")); err != nil {
		t.Fatal(err)
	}
	if out, err := certificates(dir); err == nil || !strings.Contains(out, "no ca.crt") {
		t.Errorf("an authority's key was overwritten: %v: %s", err, out)
	}
}
