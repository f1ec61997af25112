//go:build integration

package integration

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// shippedCluster is three nats-servers in this process that run deploy/nats-server.conf:
// only addresses and paths differ.
type shippedCluster struct {
	t       *testing.T
	ca      *authority
	dir     string
	servers []*server.Server
	routes  []string // addresses
	urls    string   // of all servers, for BIRDTAP_NATS_URL

	mu     sync.Mutex
	denied []string // what servers said of rights that somebody lacked
}

func startShippedCluster(t *testing.T) *shippedCluster {
	t.Helper()
	shipped, err := os.ReadFile("../deploy/nats-server.conf")
	if err != nil {
		t.Fatal(err)
	}
	c := &shippedCluster{t: t, dir: t.TempDir()}
	if out, err := exec.Command("../deploy/certificates", c.dir, "localhost").CombinedOutput(); err != nil {
		t.Fatalf("deploy/certificates: %v\n%s", err, out)
	}
	c.ca = c.authority()

	clients := []string{freeAddr(t), freeAddr(t), freeAddr(t)}
	var urls []string
	for _, addr := range clients {
		_, port, _ := net.SplitHostPort(addr)
		urls = append(urls, "tls://localhost:"+port)
		c.routes = append(c.routes, freeAddr(t))
	}
	c.urls = strings.Join(urls, ",")
	for i := range clients {
		text := string(shipped)
		replace := func(old, by string) {
			if !strings.Contains(text, old) {
				t.Fatalf("deploy/nats-server.conf has no %s any more", old)
			}
			text = strings.ReplaceAll(text, old, by)
		}
		replace("/etc/nats/tls/", c.dir+"/")
		replace(`"/data"`, fmt.Sprintf("%q", t.TempDir()))
		replace(`"0.0.0.0:4222"`, fmt.Sprintf("%q", clients[i]))
		replace(`"0.0.0.0:6222"`, fmt.Sprintf("%q", c.routes[i]))
		for n, route := range c.routes {
			_, port, _ := net.SplitHostPort(route)
			replace(fmt.Sprintf("nats-%d:6222", n+1), "localhost:"+port)
		}
		c.start(fmt.Sprintf("nats-%d", i+1), text)
	}
	eventually(t, time.Minute, "the servers have a leader", func() bool {
		for _, s := range c.servers {
			if s.JetStreamIsLeader() {
				return len(s.JetStreamClusterPeers()) == len(c.servers)
			}
		}
		return false
	})
	return c
}

func (c *shippedCluster) start(name, config string) {
	c.t.Helper()
	file := filepath.Join(c.dir, name+".conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.t.Setenv("NATS_SERVER_NAME", name)
	o, err := server.ProcessConfigFile(file)
	if err != nil {
		c.t.Fatalf("deploy/nats-server.conf: %v", err)
	}
	if !o.SyncAlways {
		c.t.Error("the shipped servers do not sync before they acknowledge")
	}
	o.NoSigs = true
	s, err := server.NewServer(o)
	if err != nil {
		c.t.Fatal(err)
	}
	s.SetLoggerV2(deniedLog{c}, false, false, false)
	s.Start()
	c.t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	c.servers = append(c.servers, s)
}

// deniedLog keeps what a server says of missing rights, and nothing else.
type deniedLog struct{ c *shippedCluster }

func (deniedLog) Noticef(string, ...any) {}
func (deniedLog) Warnf(string, ...any)   {}
func (deniedLog) Fatalf(string, ...any)  {}
func (deniedLog) Debugf(string, ...any)  {}
func (deniedLog) Tracef(string, ...any)  {}
func (l deniedLog) Errorf(format string, v ...any) {
	if line := fmt.Sprintf(format, v...); strings.Contains(line, "Violation") {
		l.c.mu.Lock()
		defer l.c.mu.Unlock()
		l.c.denied = append(l.c.denied, line)
	}
}

// violations are the lines of missing rights so far.
func (c *shippedCluster) violations() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.denied...)
}

// authority is the one that deploy/certificates has made.
func (c *shippedCluster) authority() *authority {
	c.t.Helper()
	pair, err := tls.LoadX509KeyPair(c.path("ca.crt"), c.path("ca.key"))
	if err != nil {
		c.t.Fatal(err)
	}
	return &authority{t: c.t, cert: pair.Leaf, key: pair.PrivateKey.(*ecdsa.PrivateKey)}
}

// certificate writes one that nobody is meant to have.
func (c *shippedCluster) certificate(file, name string) {
	c.t.Helper()
	cert, key := c.ca.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		c.t.Fatal(err)
	}
	c.write(file+".crt", "CERTIFICATE", cert.Raw)
	c.write(file+".key", "PRIVATE KEY", der)
}

func (c *shippedCluster) write(file, kind string, der []byte) {
	c.t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

func (c *shippedCluster) path(file string) string { return filepath.Join(c.dir, file) }

// as is the environment of one of the users.
func (c *shippedCluster) as(user string) map[string]string {
	return map[string]string{
		"NATS_URL": c.urls, "NATS_CA_FILE": c.path("ca.crt"),
		"NATS_CERT_FILE": c.path(user + ".crt"), "NATS_KEY_FILE": c.path(user + ".key"),
	}
}

// connect is a bare connection of one of the users, who tells what it may not do.
func (c *shippedCluster) connect(user string, heard nats.ErrHandler) (*nats.Conn, error) {
	env := c.as(user)
	return nats.Connect(c.urls, nats.RootCAs(env["NATS_CA_FILE"]), nats.ClientCert(env["NATS_CERT_FILE"], env["NATS_KEY_FILE"]),
		nats.CustomInboxPrefix("_INBOX.BIRDTAP."+user), nats.ErrorHandler(heard))
}

// routeTaken tells whether a server takes somebody with that certificate for another server.
func (c *shippedCluster) routeTaken(file string) bool {
	c.t.Helper()
	cert, err := tls.LoadX509KeyPair(c.path(file+".crt"), c.path(file+".key"))
	if err != nil {
		c.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(c.ca.cert)
	conn, err := tls.Dial("tcp", c.routes[0], &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots, ServerName: "localhost"})
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	// Who it is has to be said before the server judges.
	_, _ = io.WriteString(conn, "CONNECT {\"verbose\":false,\"pedantic\":false,\"tls_required\":true,\"name\":\"x\",\"cluster\":\"birdtap\"}\r\nPING\r\n")
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		switch text := lines.Text(); {
		case strings.HasPrefix(text, "-ERR"):
			return false
		case strings.HasPrefix(text, "PONG"):
			return true
		}
	}
	return false
}
