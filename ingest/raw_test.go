package ingest

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

const rawHeader = "POST / HTTP/1.1\r\nHost: x\r\nX-CleverTap-Account-Id: " + testAccount +
	"\r\nX-CleverTap-Passcode: " + testPasscode + "\r\n"

// exchange writes raw bytes, says that no more will come, and returns what comes
// back until the server closes.
func exchange(t *testing.T, addr net.Addr, raw string) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	go func() {
		_, _ = io.WriteString(conn, raw)
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	answer, _ := io.ReadAll(conn) // a reset after the answer is no matter
	return string(answer)
}

func chunk(s string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(s), s) }

// TestFraming freezes how calls are read whose framing is doubtful: never is a
// body taken that is another than the one framed.
func TestFraming(t *testing.T) {
	t.Parallel()
	n := len(good)
	length := fmt.Sprintf("Content-Length: %d\r\n", n)
	const chunked = "Transfer-Encoding: chunked\r\n"
	const end = "0\r\n\r\n"
	tests := []struct {
		name   string
		raw    string
		status string // of the first answer; empty: closed without one
		stored int
	}{
		{"length", rawHeader + length + "\r\n" + good, "200", 1},
		{"chunked", rawHeader + chunked + "\r\n" + chunk(good) + end, "200", 1},
		{"in many chunks", rawHeader + chunked + "\r\n" + chunk(good[:5]) + chunk(good[5:6]) + chunk(good[6:]) + end, "200", 1},
		{"trailers", rawHeader + chunked + "\r\n" + chunk(good) + "0\r\nX-A: b\r\n\r\n", "200", 1},
		{"two on one connection", strings.Repeat(rawHeader+length+"\r\n"+good, 2), "200", 2},
		{"HTTP/1.0", strings.Replace(rawHeader, "1.1", "1.0", 1) + length + "\r\n" + good, "200", 1},

		// The transfer coding wins, as RFC 9112 has it; the other is not seen.
		{"length and chunked", rawHeader + "Content-Length: 3\r\n" + chunked + "\r\n" + chunk(good) + end, "200", 1},
		{"equal lengths twice", rawHeader + length + length + "\r\n" + good, "200", 1},
		{"chunk extensions", rawHeader + chunked + "\r\n" + fmt.Sprintf("%x;a=b\r\n%s\r\n", n, good) + end, "200", 1},
		{"bare LF in the header", strings.ReplaceAll(rawHeader+length+"\r\n", "\r\n", "\n") + good, "200", 1},
		{"folded header line", rawHeader + "X-A: b\r\n c\r\n" + length + "\r\n" + good, "200", 1},

		{"different lengths", rawHeader + length + "Content-Length: 3\r\n\r\n" + good, "400", 0},
		{"lengths in a list", rawHeader + fmt.Sprintf("Content-Length: %d, %d\r\n\r\n", n, n) + good, "400", 0},
		{"negative length", rawHeader + "Content-Length: -1\r\n\r\n" + good, "400", 0},
		{"length with a sign", rawHeader + fmt.Sprintf("Content-Length: +%d\r\n\r\n", n) + good, "400", 0},
		{"length beyond 64 bits", rawHeader + "Content-Length: 18446744073709551617\r\n\r\n" + good, "400", 0},
		{"no length", rawHeader + "\r\n" + good, "400", 0},
		{"unknown transfer coding", rawHeader + "Transfer-Encoding: gzip\r\n\r\n" + good, "501", 0},
		{"chunked and another", rawHeader + "Transfer-Encoding: gzip, chunked\r\n\r\n" + chunk(good) + end, "501", 0},
		{"chunked twice", rawHeader + chunked + chunked + "\r\n" + chunk(good) + end, "501", 0},
		{"misspelled chunked", rawHeader + "Transfer-Encoding: xchunked\r\n\r\n" + chunk(good) + end, "501", 0},
		{"blank before the colon", rawHeader + "Content-Length : 5\r\n\r\n" + good, "400", 0},
		{"no host", strings.Replace(rawHeader, "Host: x\r\n", "", 1) + length + "\r\n" + good, "400", 0},
		{"two hosts", rawHeader + "Host: y\r\n" + length + "\r\n" + good, "400", 0},

		{"cut body", rawHeader + fmt.Sprintf("Content-Length: %d\r\n\r\n", n+1) + good, "400", 0},
		{"cut before the last chunk", rawHeader + chunked + "\r\n" + chunk(good), "400", 0},
		{"cut within a chunk", rawHeader + chunked + "\r\n" + fmt.Sprintf("%x\r\n%s", n+5, good), "400", 0},
		{"chunk size no number", rawHeader + chunked + "\r\n" + "xyz\r\n" + good + "\r\n" + end, "400", 0},
		{"chunk size too large", rawHeader + chunked + "\r\n" + "fffffffffffffffff\r\n" + good + "\r\n" + end, "400", 0},
		{"chunk longer than its size", rawHeader + chunked + "\r\n" + fmt.Sprintf("%x\r\n%s\r\n", n-1, good) + end, "400", 0},

		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "404", 0},
		{"HTTP/0.9", "GET /\r\n", "400", 0},
		{"HTTP/2.0 in the line", strings.Replace(rawHeader, "HTTP/1.1", "HTTP/2.0", 1) + length + "\r\n" + good, "505", 0},
		{"upgrade to h2c", "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", "405", 0},
		{"no HTTP", "hello\r\n\r\n", "400", 0},
		{"TLS hello", "\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\r\n\r\n", "400", 0},
		{"nothing", "", "", 0},
		{"general OPTIONS", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", "404", 0},
		{"proxy's CONNECT", "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", "404", 0},
		{"unknown expectation", rawHeader + "Expect: x\r\n" + length + "\r\n" + good, "417", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := open(t)
			got := exchange(t, d.Addr(), tt.raw)
			var status string
			if _, rest, ok := strings.Cut(got, " "); ok {
				status = rest[:3]
			}
			if status != tt.status {
				t.Errorf("got %q, want %s", got, tt.status)
			}
			stored := d.memory.stored()
			if len(stored) != tt.stored {
				t.Errorf("%d stored, want %d", len(stored), tt.stored)
			}
			for _, r := range stored {
				if string(r.Record) != goodSent {
					t.Errorf("stored %s", r.Record)
				}
			}
			if tt.stored == 0 && strings.Contains(got, "identity") {
				t.Errorf("the body comes back: %q", got)
			}
		})
	}
}

func TestExpectContinue(t *testing.T) {
	t.Parallel()
	d := open(t)
	const ask = "Expect: 100-continue\r\nContent-Length: %d\r\n\r\n%s"
	if got := exchange(t, d.Addr(), rawHeader+fmt.Sprintf(ask, len(good), good)); !strings.Contains(got, "100 Continue") || !strings.Contains(got, oneStored) {
		t.Errorf("got %q", got)
	}
	stranger := "POST / HTTP/1.1\r\nHost: x\r\n" + fmt.Sprintf(ask, len(good), "")
	if got := exchange(t, d.Addr(), stranger); strings.Contains(got, "100 Continue") || !strings.HasPrefix(got, "HTTP/1.1 401") {
		t.Errorf("a stranger got %q", got)
	}
}

func TestHeaderBlockOf16KiB(t *testing.T) {
	t.Parallel()
	const start, end = "GET / HTTP/1.1\r\nHost: x\r\nX-Pad: ", "\r\n\r\n"
	d := open(t)
	for size, status := range map[int]string{
		maxHeaderBytes:      "HTTP/1.1 405",
		maxHeaderBytes + 1:  "HTTP/1.1 431",
		maxHeaderBytes << 6: "HTTP/1.1 431",
	} {
		pad := strings.Repeat("x", size-len(start)-len(end))
		conn, err := net.Dial("tcp", d.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.WriteString(conn, start+pad+end) }()
		line, _ := bufio.NewReader(conn).ReadString('\n')
		if !strings.HasPrefix(line, status) {
			t.Errorf("%d bytes: got %q, want %s", size, line, status)
		}
		conn.Close()
	}
}

func TestEndlessChunksAre413(t *testing.T) {
	t.Parallel()
	d := open(t)
	conn, err := net.Dial("tcp", d.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		_, err := io.WriteString(conn, rawHeader+"Transfer-Encoding: chunked\r\n\r\n")
		for blanks := chunk(strings.Repeat(" ", 64<<10)); err == nil; {
			_, err = io.WriteString(conn, blanks)
		}
	}()
	if line, _ := bufio.NewReader(conn).ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 413 ") {
		t.Errorf("got %q", line)
	}
}

// FuzzRawHTTP: whatever comes over the wire, the server answers in HTTP or not
// at all, and stores only what it has answered with 200.
func FuzzRawHTTP(f *testing.F) {
	length := fmt.Sprintf("Content-Length: %d\r\n\r\n", len(good))
	for _, seed := range []string{
		rawHeader + length + good,
		rawHeader + "Transfer-Encoding: chunked\r\n\r\n" + chunk(good) + "0\r\n\r\n",
		rawHeader + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(good) + "0\r\n\r\n",
		strings.Repeat(rawHeader+length+good, 2), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET /\r\n", "",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		// In a bubble what the server waits for in vain costs no time.
		inBubble(t, func(t *testing.T, d *doors, p *pipes, _ *http.Client) {
			conn, _ := p.dial(t.Context(), "", "")
			defer conn.Close()
			go func() { _, _ = conn.Write(raw) }()
			got, _ := io.ReadAll(conn)
			if len(got) > 0 && !bytes.HasPrefix(got, []byte("HTTP/1.")) {
				t.Fatalf("got %q", got)
			}
			if n := len(d.memory.stored()); n > 0 && !bytes.Contains(got, []byte(" 200 OK\r\n")) {
				t.Fatalf("%d stored, answer %q", n, got)
			}
			for _, r := range d.memory.stored() {
				checkReceipt(t, r)
			}
		})
	})
}
