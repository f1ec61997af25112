package console_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/birdtap/birdtap/ingest/console"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a server on a free port and returns its URL.
func start(t *testing.T, change func(*console.Options)) string {
	t.Helper()
	o := console.Options{
		Addr:     "127.0.0.1:0",
		Health:   func() []string { return nil },
		Ready:    func() []string { return nil },
		Gatherer: prometheus.NewRegistry(),
	}
	if change != nil {
		change(&o)
	}
	s, err := console.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return "http://" + s.Addr().String()
}

func do(t *testing.T, method, url, token string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func TestProbesGiveReasons(t *testing.T) {
	url := start(t, func(o *console.Options) {
		o.Ready = func() []string { return []string{"the queue is recovering", "the disk is 95 % full"} }
	})
	for path, want := range map[string]struct {
		code    int
		status  string
		reasons []string
	}{
		"/healthz": {http.StatusOK, "ok", []string{}},
		"/readyz":  {http.StatusServiceUnavailable, "unready", []string{"the queue is recovering", "the disk is 95 % full"}},
	} {
		resp, body := do(t, http.MethodGet, url+path, "")
		if resp.StatusCode != want.code {
			t.Errorf("%s: status %d, want %d", path, resp.StatusCode, want.code)
		}
		if got := resp.Header.Get("Content-Type"); got != "application/json" {
			t.Errorf("%s: content type %q", path, got)
		}
		var got struct {
			Status  string   `json:"status"`
			Reasons []string `json:"reasons"`
		}
		if err := json.Unmarshal([]byte(body), &got); err != nil {
			t.Fatalf("%s: %v in %q", path, err, body)
		}
		if got.Status != want.status {
			t.Errorf("%s: status %q, want %q", path, got.Status, want.status)
		}
		if diff := cmp.Diff(want.reasons, got.Reasons); diff != "" {
			t.Errorf("%s: reasons (-want +got):\n%s", path, diff)
		}
	}
}

func TestMetricsAreThoseOfTheRegistry(t *testing.T) {
	registry := prometheus.NewRegistry()
	accepted := prometheus.NewCounter(prometheus.CounterOpts{Name: "birdtap_receipts_accepted_total", Help: "Receipts accepted."})
	registry.MustRegister(accepted)
	accepted.Add(3)
	url := start(t, func(o *console.Options) { o.Gatherer = registry })
	_, body := do(t, http.MethodGet, url+"/metrics", "")
	if !strings.Contains(body, "birdtap_receipts_accepted_total 3\n") {
		t.Errorf("metrics are %q", body)
	}
	if strings.Contains(body, "go_goroutines") {
		t.Error("metrics hold the global registry's")
	}
}

func TestEverythingElseIsClosed(t *testing.T) {
	withToken := start(t, func(o *console.Options) { o.Token = func() string { return "operator" } })
	without := start(t, nil)
	for _, c := range []struct {
		name, method, url, token string
		want                     int
	}{
		{"unknown path", http.MethodGet, without + "/", "", http.StatusNotFound},
		{"no profiling", http.MethodGet, without + "/debug/pprof/", "", http.StatusNotFound},
		{"no variables", http.MethodGet, without + "/debug/vars", "", http.StatusNotFound},
		{"probe is read only", http.MethodPost, without + "/healthz", "", http.StatusMethodNotAllowed},
		{"metrics are read only", http.MethodDelete, without + "/metrics", "", http.StatusMethodNotAllowed},
		{"no token", http.MethodGet, withToken + "/", "", http.StatusUnauthorized},
		{"wrong token", http.MethodGet, withToken + "/", "operato", http.StatusUnauthorized},
		{"right token, nothing there", http.MethodGet, withToken + "/", "operator", http.StatusNotFound},
		{"health needs no token", http.MethodGet, withToken + "/healthz", "", http.StatusOK},
		{"readiness needs no token", http.MethodHead, withToken + "/readyz", "", http.StatusOK},
		{"metrics need no token", http.MethodGet, withToken + "/metrics", "", http.StatusOK},
	} {
		t.Run(c.name, func(t *testing.T) {
			if resp, _ := do(t, c.method, c.url, c.token); resp.StatusCode != c.want {
				t.Errorf("status %d, want %d", resp.StatusCode, c.want)
			}
		})
	}
}

func TestHTTP2IsRefused(t *testing.T) {
	url := start(t, nil)
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || strings.Contains(line, " 200 ") || !strings.HasPrefix(line, "HTTP/1.1 ") {
		t.Errorf("answer %q, error %v; want an error of HTTP/1.1", line, err)
	}
}

func TestAddressInUseIsSaidAtOnce(t *testing.T) {
	url := start(t, nil)
	_, err := console.New(console.Options{Addr: strings.TrimPrefix(url, "http://"), Gatherer: prometheus.NewRegistry()})
	if err == nil || !strings.Contains(err.Error(), "listen for health and metrics") {
		t.Errorf("error is %v", err)
	}
}
