package sendbird

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/net/dns/dnsmessage"
)

func TestOnlyPublicAddressesAreDialled(t *testing.T) {
	for _, address := range []string{
		"0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.255",
		"169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.168.0.1", "198.18.0.1", "198.19.255.255",
		"198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
		"::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:169.254.169.254", "64:ff9b::1", "64:ff9b::169.254.169.254",
		"64:ff9b:1::1", "100::1", "fc00::1", "fd00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1",
		"2001::1", "2001:db8::1", "2002:7f00:1::1", "2600::1%eth0", "3fff::1", "4000::1",
	} {
		a, err := netip.ParseAddr(address)
		if err != nil {
			t.Fatal(err)
		}
		if isPublic(a) {
			t.Errorf("%s is called public", address)
		}
		if err := checkDial("tcp", netip.AddrPortFrom(a, 443).String(), nil); err == nil {
			t.Errorf("%s would be dialled", address)
		}
	}
	for _, address := range []string{
		"8.8.8.8", "52.218.0.1", "100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.0", "169.253.255.255", "198.20.0.0", "223.255.255.255",
		"2600:1fa0::1", "2001:4860::1", "2a05:d000::1",
	} {
		if err := checkDial("tcp", net.JoinHostPort(address, "443"), nil); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
	for _, to := range [][2]string{{"tcp", "8.8.8.8:80"}, {"tcp", "8.8.8.8:8443"}, {"udp", "8.8.8.8:443"}, {"tcp", "host:443"}, {"unix", "/run/docker.sock"}, {"tcp", ""}} {
		if err := checkDial(to[0], to[1], nil); err == nil {
			t.Errorf("%s %s would be dialled", to[0], to[1])
		}
	}
}

func TestUploadHostRules(t *testing.T) {
	g, err := newGuard([]string{".amazonaws.com", "127.0.0.1:9000", "minio", "[::1]:9000", "fd00::5", "s3.example.com:8443"})
	if err != nil {
		t.Fatal(err)
	}
	for raw, exact := range map[string]bool{
		"https://bucket.s3.amazonaws.com/":      false,
		"https://b.amazonaws.com":               false,
		"https://b.amazonaws.com:443/?X-Amz=1":  false,
		"https://B.S3.AmazonAWS.COM/":           false,
		"http://127.0.0.1:9000/":                true,
		"https://127.0.0.1:9000/":               true,
		"http://minio/":                         true,
		"https://MINIO/x":                       true,
		"https://minio:443/x":                   true,
		"http://[::1]:9000/":                    true,
		"https://[fd00::5]/":                    true,
		"https://s3.example.com:8443/?hunter2=": true,
	} {
		if u, got, err := g.allow(raw); err != nil || got != exact || u == nil {
			t.Errorf("%s: exact %v, %v", raw, got, err)
		}
	}
	for _, raw := range []string{
		"", "https://", "hunter2", "ftp://b.amazonaws.com/", "//b.amazonaws.com/", "https:b.amazonaws.com",
		"http://b.amazonaws.com/?hunter2", "https://b.amazonaws.com:444/", "https://b.amazonaws.com:80/", "https://b.amazonaws.com:/",
		"https://amazonaws.com/", "https://.amazonaws.com/", "https://evilamazonaws.com/", "https://b.amazonaws.com.evil.com/", "https://b.amazonaws.com./",
		"https://b.amazonaws.com@evil.com/", "https://hunter2@b.amazonaws.com/", "https://evil.com/?b.amazonaws.com", "https://evil.com#.amazonaws.com", "https://b.amazonaws.com/#hunter2",
		"https://evil.com\\.amazonaws.com/", "https://evil.com%2f.amazonaws.com/", "https://evil.com%00.amazonaws.com/", "https://b_.amazonaws.com/", "https://b。amazonaws.com/", "https://ä.amazonaws.com/", "https://a..amazonaws.com/",
		"https://127.0.0.1/", "https://127.0.0.1:9001/", "https://2130706433/", "https://0x7f.1/", "https://[::ffff:169.254.169.254]/", "https://[fe80::1%25eth0]/", "http://[::1]/",
		"http://minio:8080/", "https://a.minio/", "http://s3.example.com:8443.evil.com/", "https://s3.example.com/", "http://minio@evil.com/",
	} {
		u, _, err := g.allow(raw)
		if err == nil || u != nil {
			t.Errorf("%s is allowed", raw)
		}
		if _, ok := errors.AsType[*blockedError](err); !ok || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", raw, err)
		}
	}
	for _, entry := range []string{"", ".", "..", ".com", ".a..b", ".amazonaws.com.", "*", "*.amazonaws.com", "https://h", "h/x", "h:0", "h:65536", "h:port", "h:1:2", "a b", "h?", "h\n", "ä.com", ".-.com", "u@h"} {
		if CheckUploadHost(entry) == nil {
			t.Errorf("%q is taken", entry)
		}
	}
	for _, entry := range []string{".amazonaws.com", ".S3.AmazonAWS.com", "h", "H:80", "127.0.0.1", "127.0.0.1:9000", "::1", "[::1]", "[::1]:9000"} {
		if err := CheckUploadHost(entry); err != nil {
			t.Errorf("%q: %v", entry, err)
		}
	}
}

// resolver answers every question for an address by asking lookup.
func resolver(t *testing.T, lookup func() []netip.Addr) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = conn.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			m.Response, m.Authoritative, m.Additionals = true, true, nil
			q := m.Questions[0]
			head := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}
			if q.Type == dnsmessage.TypeA || q.Type == dnsmessage.TypeAAAA {
				for _, a := range lookup() {
					switch {
					case a.Is4() && q.Type == dnsmessage.TypeA:
						m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: a.As4()}})
					case a.Is6() && q.Type == dnsmessage.TypeAAAA:
						m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
					}
				}
			}
			if reply, err := m.Pack(); err == nil {
				_, _ = conn.WriteTo(reply, from)
			}
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

func guarded(t *testing.T, r *net.Resolver) *Client {
	t.Helper()
	c, err := New(Config{AppID: "APP", NotificationsToken: func() string { return "hunter2" }, UploadTimeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	c.guard.transport = newGuardedTransport(r, nil)
	return c
}

var presigned = Presigned{url: "https://bucket.s3.amazonaws.com/hunter2?X-Amz-Signature=hunter2", fields: []formField{{"policy", "hunter2"}}}

func TestNameThatLeadsInsideIsNotDialled(t *testing.T) {
	for _, addresses := range [][]string{
		{"127.0.0.1"}, {"169.254.169.254"}, {"10.1.2.3", "192.168.1.1"}, {"::1"}, {"fd00::1", "fe80::1"}, {"64:ff9b::a9fe:a9fe"}, {"::ffff:127.0.0.1"},
	} {
		var list []netip.Addr
		for _, a := range addresses {
			list = append(list, netip.MustParseAddr(a))
		}
		c := guarded(t, resolver(t, func() []netip.Addr { return list }))
		err := c.Upload(t.Context(), presigned, strings.NewReader("x"), 1)
		if OutcomeOf(err) != Refused || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "not public") {
			t.Errorf("%v: got %v", addresses, err)
		}
	}
}

// A name that answers with a public address first and a private one when it is
// dialled: what counts is the address that is dialled.
func TestNameThatChangesItsAddressGainsNothing(t *testing.T) {
	var changed atomic.Bool
	r := resolver(t, func() []netip.Addr {
		if changed.Load() {
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}
		}
		return []netip.Addr{netip.MustParseAddr("52.218.0.1")}
	})
	checked, err := r.LookupNetIP(t.Context(), "ip", "bucket.s3.amazonaws.com")
	if err != nil || len(checked) != 1 || !isPublic(checked[0].Unmap()) {
		t.Fatalf("the check beforehand saw %v, %v", checked, err)
	}
	changed.Store(true)
	c := guarded(t, r)
	err = c.Upload(t.Context(), presigned, strings.NewReader("x"), 1)
	if OutcomeOf(err) != Refused || !strings.Contains(err.Error(), "127.0.0.1, which is not public") {
		t.Errorf("got %v", err)
	}
}

func TestTransportsAskNoProxyAndOldTLSIsOff(t *testing.T) {
	for name, tr := range map[string]*http.Transport{"API": newTransport(), "upload": newGuardedTransport(nil, nil)} {
		if tr.Proxy != nil || tr.TLSClientConfig.MinVersion < tls.VersionTLS12 || tr.TLSClientConfig.InsecureSkipVerify || !tr.DisableCompression {
			t.Errorf("%s: %+v", name, tr)
		}
	}
	var calls atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls.Add(1) }))
	defer proxy.Close()
	for _, name := range []string{"HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"} {
		t.Setenv(name, proxy.URL)
	}
	c := guarded(t, resolver(t, func() []netip.Addr { return nil }))
	if err := c.Upload(t.Context(), presigned, strings.NewReader("x"), 1); err == nil || calls.Load() != 0 {
		t.Errorf("%v, %d calls at the proxy", err, calls.Load())
	}
}

// The documented upload, byte for byte but for the boundary.
func TestUploadAsDocumented(t *testing.T) {
	read := func(name string) []byte {
		b, err := os.ReadFile("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var a presignAnswer
	if err := json.Unmarshal(read("answer-presigned.json"), &a); err != nil || !a.complete() {
		t.Fatal(err)
	}
	if a.URL != "https://mesg-notifications-usw2-prod.s3.amazonaws.com/" || len(a.Fields) != 8 || a.FileKey != "notification-targets.csv" {
		t.Errorf("got %d fields, key %s", len(a.Fields), a.FileKey)
	}
	example := string(read("upload.txt"))
	// The two examples are of different days.
	a.Fields[5].value, a.Fields[7].value = "20230517T011949Z", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
	_, content, _ := strings.Cut(example, "Content-Type: text/csv\n\n")
	content, _, _ = strings.Cut(content, "\n--{boundary}--")
	g, err := newGuard(DefaultUploadHosts)
	if err != nil {
		t.Fatal(err)
	}
	target, _, err := g.allow(a.URL)
	if err != nil {
		t.Fatal(err)
	}
	req, err := newUpload(target, a.Fields, strings.NewReader(content), int64(len(content)), "boundary")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(req.Body)
	if err != nil || int64(len(body)) != req.ContentLength {
		t.Errorf("%d bytes, said %d: %v", len(body), req.ContentLength, err)
	}
	again, _ := req.GetBody()
	if second, _ := io.ReadAll(again); !bytes.Equal(body, second) {
		t.Error("a second reading differs")
	}
	kind, params, err := mime.ParseMediaType(req.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/form-data" || params["boundary"] != "boundary" || len(req.Header["Api-Token"]) > 0 {
		t.Errorf("header %v", req.Header)
	}
	// Lines of a form end in CRLF, which the page does not show; the file keeps its own.
	want := strings.ReplaceAll(strings.ReplaceAll(example, "{boundary}", "boundary"), content, "\x00")
	want = strings.ReplaceAll(strings.ReplaceAll(want, "\n", "\r\n"), "\x00", content) + "\r\n"
	if string(body) != want {
		t.Errorf("got\n%q, want\n%q", body, want)
	}
}
