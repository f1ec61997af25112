package main

import (
	"bytes"
	"encoding/json"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func TestGeneratorPostsEveryReceiptOnce(t *testing.T) {
	t.Parallel()
	users := make(chan string, 10_000)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			D []struct {
				Identity string `json:"identity"`
				EvtData  struct {
					TargetID int `json:"target_id"`
				} `json:"evtData"`
			} `json:"d"`
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || r.Header.Get("X-CleverTap-Passcode") != passcode {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		for _, record := range body.D {
			users <- record.Identity
		}
		_, _ = io.WriteString(w, "{}")
	}))
	defer server.Close()
	o, err := load{Address: server.Listener.Addr().String(), Connections: 7, Records: 10, Total: 500, FirstUser: 1_000_000}.run()
	if err != nil {
		t.Fatal(err)
	}
	if o.Records != 500 || o.Posts != 50 || o.Refused != 0 || o.P50 <= 0 || o.P99 < o.P50 || o.Max < o.P99 {
		t.Errorf("outcome %+v", o)
	}
	seen := map[string]bool{}
	for range 500 {
		user := <-users
		if seen[user] || user < "user-000001000000" || user > "user-000001000499" {
			t.Fatalf("user %q", user)
		}
		seen[user] = true
	}
}

func TestGeneratorCountsRefusals(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer server.Close()
	o, err := load{Address: server.Listener.Addr().String(), Connections: 2, Records: 1, Total: 10}.run()
	if err != nil || o.Refused != 10 || o.Posts != 0 {
		t.Errorf("outcome %+v, %v", o, err)
	}
}

func TestParseHead(t *testing.T) {
	t.Parallel()
	for head, want := range map[string]struct {
		status, total int
		fails         bool
	}{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n":                         {status: 200, total: 43},
		"HTTP/1.1 503 X\r\nDate: now\r\nContent-Length: 0\r\nA: b\r\n\r\nrest": {status: 503, total: 54},
		"HTTP/1.1 200 OK\r\nContent-Le":                                        {},
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n":                {fails: true},
		"SSH-2.0\r\n\r\n": {fails: true},
	} {
		status, total, err := parseHead([]byte(head))
		if status != want.status || total != want.total || (err != nil) != want.fails {
			t.Errorf("%q: %d, %d, %v", head, status, total, err)
		}
	}
}

func TestSinkCountsRecordsHoweverTheyAreCut(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 2, 1000} {
		r := newRequest(n)
		body := r.bytes[bytes.Index(r.bytes, headerEnd)+len(headerEnd):]
		for _, reader := range []io.Reader{bytes.NewReader(body), iotest.OneByteReader(bytes.NewReader(body)), iotest.DataErrReader(bytes.NewReader(body))} {
			if got, err := countRecords(reader); got != n || err != nil {
				t.Errorf("%d records counted as %d, %v", n, got, err)
			}
		}
	}
}

func TestKernelFiles(t *testing.T) {
	t.Parallel()
	if n, err := parseResident("Name:\tx\nVmHWM:\t  9 kB\nVmRSS:\t  2048 kB\n"); n != 2<<20 || err != nil {
		t.Errorf("resident %d, %v", n, err)
	}
	if _, err := parseResident("Name:\tx\n"); err == nil {
		t.Error("no error without VmRSS")
	}
	stat := "42 (a (b) c) S 1 42 42 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 9 0 1 1 1"
	if d, err := parseProcessorTime(stat); d != 2*time.Second || err != nil {
		t.Errorf("processor time %v, %v", d, err)
	}
	mounts := "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /tmp/x xfs rw 0 0\n"
	for dir, want := range map[string]string{
		"/home": "ext4 (/dev/a)", "/tmp": "tmpfs (tmpfs)", "/tmp/xy": "tmpfs (tmpfs)", "/tmp/x/y": "xfs (/dev/b)",
	} {
		if got := fileSystemOf(mounts, dir); got != want {
			t.Errorf("%s is on %s, want %s", dir, got, want)
		}
	}
}

func TestTableSaysWhatIsMet(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	tb := newTable(&out)
	tb.add(row{Name: "ratio", Value: 0.7, Unit: "x", Bar: atLeast(0.60), Stretch: atLeast(0.80)})
	tb.add(row{Name: "slow", Value: 30, Unit: "ms", Bar: atMost(20), Stretch: atMost(10), Note: "why"})
	tb.add(row{Name: "free", Value: 1234567, Unit: "/s"})
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")[2:]
	for i, want := range []string{"ratio 0.70 ≥ 0.60 met ≥ 0.80 not met", "slow 30.00 ms ≤ 20 ms not met ≤ 10 ms not met", "why", "free 1,234,567/s"} {
		if got := strings.Join(strings.Fields(lines[i]), " "); got != want {
			t.Errorf("line %d: %q, want %q", i, got, want)
		}
	}
	if met := tb.rows[0].Met; met == nil || !*met || tb.rows[2].Met != nil {
		t.Error("the rows say something else than the lines")
	}
}

func TestMedian(t *testing.T) {
	t.Parallel()
	if m := median([]float64{3, 1, 2}); m != 2 {
		t.Errorf("of three: %v", m)
	}
	if m := median([]float64{4, 1, 2, 3}); m != 2.5 {
		t.Errorf("of four: %v", m)
	}
	if m := median(nil); !math.IsNaN(m) {
		t.Errorf("of none: %v", m)
	}
}
