package ingest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/birdtap/birdtap/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testAccount  = "ACCOUNT-1"
	testPasscode = "s3cret-passcode"
	testKey      = "s3cret-signing-key"

	good     = `{"identity":"u1","evtName":"Sale","evtData":{"status":"SENT","target_id":1}}`
	goodSent = `{"identity":"u1","ts":1700000000,"type":"event","evtName":"Sale","evtData":{"status":"SENT","target_id":1}}`
)

var testNow = time.Unix(1700000000, 0)

// memory is a Committer that keeps copies.
type memory struct {
	mu       sync.Mutex
	receipts []store.Receipt
	err      error
}

func (m *memory) Commit(_ context.Context, receipts []store.Receipt) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	for _, r := range receipts {
		r.Record = bytes.Clone(r.Record)
		m.receipts = append(m.receipts, r)
	}
	return nil
}

func (m *memory) stored() []store.Receipt {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.receipts
}

func (m *memory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

// committerFunc is a Committer for faults.
type committerFunc func(context.Context, []store.Receipt) error

func (f committerFunc) Commit(ctx context.Context, r []store.Receipt) error { return f(ctx, r) }

// oneKey is a Verifier by testKey, in slot 0.
type oneKey struct{}

func (oneKey) Verify(body []byte, signature string) (int, bool) {
	return 0, strings.EqualFold(signature, sign(body))
}

func sign(body []byte) string {
	mac := hmac.New(sha256.New, []byte(testKey))
	mac.Write(body)
	return hex.EncodeToString(mac.Sum(nil))
}

// doors is a server with all doors open and what stands around it.
type doors struct {
	*Server
	t        *testing.T
	memory   *memory
	logs     *observer.ObservedLogs
	registry *prometheus.Registry
}

// open starts a server on a real socket. Whatever the test does, no secret may
// stand in any log line.
func open(t *testing.T, change ...func(*Options)) *doors {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	d := &doors{t: t, memory: new(memory), logs: logs, registry: prometheus.NewRegistry()}
	o := Options{
		Addr:       "127.0.0.1:0",
		Upload:     true,
		Account:    func() string { return testAccount },
		Passcode:   func() string { return testPasscode },
		Verifier:   oneKey{},
		Log:        zap.New(core),
		Registerer: d.registry,
		Now:        func() time.Time { return testNow },
	}
	for _, c := range change {
		c(&o)
	}
	var err error
	if d.Server, err = New(o); err != nil {
		t.Fatal(err)
	}
	d.SetCommitter(d.memory)
	served := make(chan error, 1)
	go func() { served <- d.Serve() }()
	t.Cleanup(func() {
		if err := d.Shutdown(context.Background()); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		d.checkLogs()
	})
	return d
}

func (d *doors) checkLogs() {
	for _, entry := range d.logs.All() {
		line := entry.Message
		for _, f := range entry.ContextMap() {
			if s, ok := f.(string); ok {
				line += " " + s
			}
		}
		for _, secret := range []string{testAccount, testPasscode, testKey, "s3cret", "Sale"} {
			if strings.Contains(line, secret) {
				d.t.Errorf("a log line holds %q: %s", secret, line)
			}
		}
	}
}

type answer struct {
	status int
	header http.Header
	body   string
}

// do sends one request on a connection of its own.
func (d *doors) do(method, path string, header http.Header, body io.Reader) answer {
	d.t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}}
	return doWith(d.t, client, method, "http://"+d.Addr().String()+path, header, body)
}

func doWith(t *testing.T, client *http.Client, method, url string, header http.Header, body io.Reader) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header.Clone()
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(text)}
}

func credentials() http.Header {
	return http.Header{"X-Clevertap-Account-Id": {testAccount}, "X-Clevertap-Passcode": {testPasscode}}
}

func signature(body string) http.Header {
	return http.Header{"X-Sendbird-Signature": {sign([]byte(body))}}
}

func (d *doors) upload(body string) answer {
	d.t.Helper()
	return d.do(http.MethodPost, "/1/upload", credentials(), strings.NewReader(body))
}

func (d *doors) callback(body string) answer {
	d.t.Helper()
	return d.do(http.MethodPost, "/sendbird/callbacks", signature(body), strings.NewReader(body))
}

// metric is the value of one series, 0 if there is none.
func (d *doors) metric(name string, label ...string) float64 {
	d.t.Helper()
	families, err := d.registry.Gather()
	if err != nil {
		d.t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (len(label) == 0 || m.GetLabel()[0].GetValue() == label[0]) {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func TestPathsAndMethods(t *testing.T) {
	t.Parallel()
	all := open(t, func(o *Options) { o.UploadPaths = []string{"/hook", "api/in/"} })
	closed := open(t, func(o *Options) { o.Upload, o.Verifier = false, nil })
	unsigned := open(t, func(o *Options) { o.Verifier = nil })
	const secret = `{"echo":"canary"}`
	tests := []struct {
		d      *doors
		method string
		path   string
		status int
	}{
		{all, "POST", "/1/upload", 401},
		{all, "POST", "/", 401},
		{all, "POST", "/?a=1;b", 401},
		{all, "POST", "/hook", 401},
		{all, "POST", "/hook/1/upload", 401},
		{all, "POST", "/api/in", 401},
		{all, "POST", "/api/in/1/upload", 401},
		{all, "POST", "/sendbird/callbacks", 401},
		{all, "GET", "/1/upload", 405},
		{all, "HEAD", "/1/upload", 405},
		{all, "PUT", "/", 405},
		{all, "OPTIONS", "/sendbird/callbacks", 405},
		{all, "post", "/", 405},
		{all, "POST", "/1/upload/", 404},
		{all, "POST", "/2/upload", 404},
		{all, "POST", "//1/upload", 404},
		{all, "POST", "/1/../1/upload", 404},
		{all, "POST", "/hook/", 404},
		{all, "POST", "/api/in/", 401},
		{all, "POST", "/1/upload/1/upload", 401},
		{all, "POST", "/healthz", 404},
		{all, "GET", "/metrics", 404},
		{all, "GET", "/debug/pprof/", 404},
		{closed, "POST", "/1/upload", 404},
		{closed, "GET", "/", 404},
		{closed, "POST", "/sendbird/callbacks", 404},
		{unsigned, "POST", "/1/upload", 401},
		{unsigned, "GET", "/sendbird/callbacks", 404},
	}
	for _, tt := range tests {
		got := tt.d.do(tt.method, tt.path, nil, strings.NewReader(secret))
		if got.status != tt.status {
			t.Errorf("%s %s: got %d, want %d", tt.method, tt.path, got.status, tt.status)
		}
		if strings.Contains(got.body, "canary") {
			t.Errorf("%s %s: the body comes back: %s", tt.method, tt.path, got.body)
		}
		if allow := got.header.Get("Allow"); (tt.status == 405) != (allow == "POST") {
			t.Errorf("%s %s: Allow %q", tt.method, tt.path, allow)
		}
		if got.header.Get("Content-Length") == "" {
			t.Errorf("%s %s: no Content-Length", tt.method, tt.path)
		}
	}
	if n := len(all.memory.stored()); n != 0 {
		t.Errorf("%d receipts stored", n)
	}
}

func TestOtherRoomsShareTheAddress(t *testing.T) {
	t.Parallel()
	d := open(t, func(o *Options) {
		o.Other = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	})
	if got := d.do("POST", "/clevertap/notifications/batch", nil, nil); got.status != http.StatusTeapot {
		t.Fatalf("got %d", got.status)
	}
	if got := d.do("GET", "/1/upload", nil, nil); got.status != 405 {
		t.Fatalf("got %d", got.status)
	}
}

func TestUnavailableUntilThereIsACommitter(t *testing.T) {
	t.Parallel()
	d := open(t)
	d.SetCommitter(nil)
	for _, got := range []answer{d.upload(good), d.callback(good)} {
		checkUnavailable(t, got)
	}
	if got := d.do("GET", "/1/upload", nil, nil); got.status != 405 {
		t.Errorf("method: got %d", got.status)
	}
	if got := d.do("POST", "/1/upload", nil, nil); got.status != 401 {
		t.Errorf("stranger: got %d", got.status)
	}
	d.SetCommitter(d.memory)
	if got := d.upload(good); got.status != 200 {
		t.Errorf("ready: got %d", got.status)
	}
}

func checkUnavailable(t *testing.T, got answer) {
	t.Helper()
	if got.status != 503 || got.body != `{"status":"fail","error":"Service unavailable","code":503}` {
		t.Errorf("got %d %s", got.status, got.body)
	}
	if after := got.header.Get("Retry-After"); after != "1" && after != "2" && after != "3" {
		t.Errorf("Retry-After %q", after)
	}
}

func TestCommitErrorsAre503AndLoggedOnce(t *testing.T) {
	t.Parallel()
	d := open(t)
	for _, err := range []error{store.ErrFull, store.ErrTimeout, store.ErrClosed, errors.New("anything")} {
		d.memory.fail(err)
		checkUnavailable(t, d.upload(good))
		checkUnavailable(t, d.callback(good))
	}
	d.memory.fail(nil)
	if got := d.upload(good); got.status != 200 {
		t.Errorf("got %d", got.status)
	}
	if n := d.logs.Len(); n != 2 {
		t.Errorf("%d log lines, want one at the first failure and one at the end: %v", n, d.logs.All())
	}
	if n := d.metric("birdtap_receipts_accepted_total"); n != 1 {
		t.Errorf("accepted %v", n)
	}
	if n := d.metric("birdtap_receipts_rejected_total", "unavailable"); n != 8 {
		t.Errorf("unavailable %v", n)
	}
}

func TestPanicIs500AndCounted(t *testing.T) {
	t.Parallel()
	d := open(t)
	d.SetCommitter(committerFunc(func(_ context.Context, r []store.Receipt) error { panic(string(r[0].Record)) }))
	if got := d.upload(good); got.status != 500 || got.body != `{"status":"fail","error":"Internal error","code":500}` {
		t.Fatalf("got %d %s", got.status, got.body)
	}
	if n := d.metric("birdtap_ingest_panics_total"); n != 1 {
		t.Errorf("panics %v", n)
	}
	d.SetCommitter(d.memory)
	if got := d.upload(good); got.status != 200 {
		t.Fatalf("the server did not survive: %d", got.status)
	}
}

func TestShutdownWaitsForCallsUnderWay(t *testing.T) {
	t.Parallel()
	d := open(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	d.SetCommitter(committerFunc(func(context.Context, []store.Receipt) error {
		close(entered)
		<-leave
		return nil
	}))
	status := make(chan int)
	go func() { status <- d.upload(good).status }()
	<-entered
	done := make(chan error)
	go func() { done <- d.Shutdown(context.Background()) }()
	select {
	case err := <-done:
		t.Fatalf("Shutdown did not wait: %v", err)
	case status := <-status:
		t.Fatalf("answered %d before it was stored", status)
	default:
	}
	close(leave)
	if got := <-status; got != 200 {
		t.Errorf("got %d", got)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	conn, err := net.Dial("tcp", d.Addr().String())
	if err == nil {
		conn.Close()
		t.Error("the door is still open")
	}
}

func TestShutdownOfAServerThatNeverServed(t *testing.T) {
	t.Parallel()
	s, err := New(Options{Addr: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if conn, err := net.Dial("tcp", s.Addr().String()); err == nil {
		conn.Close()
		t.Fatal("the listener is still open")
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	taken := open(t)
	for name, o := range map[string]Options{
		"address taken":        {Addr: taken.Addr().String()},
		"door without secrets": {Addr: "127.0.0.1:0", Upload: true},
		"half a key pair":      {Addr: "127.0.0.1:0", TLSCertFile: "x"},
		"metrics twice":        {Addr: "127.0.0.1:0", Registerer: taken.registry},
	} {
		if s, err := New(o); err == nil {
			_ = s.Shutdown(t.Context())
			t.Errorf("%s: no error", name)
		}
	}
}

func TestConnectionsBeyondTheLimitWait(t *testing.T) {
	t.Parallel()
	d := open(t, func(o *Options) { o.MaxConns = 1 })
	first, err := net.Dial("tcp", d.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	// Once the first is answered, it is the one connection that is served.
	if _, err := io.WriteString(first, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := http.ReadResponse(bufio.NewReader(first), nil); err != nil {
		t.Fatal(err)
	}
	status := make(chan int, 1)
	go func() { status <- d.upload(good).status }()
	select {
	case got := <-status:
		t.Fatalf("the second connection got %d", got)
	default:
	}
	first.Close()
	if got := <-status; got != 200 {
		t.Fatalf("got %d", got)
	}
}

func TestMetricsAreThereAtZero(t *testing.T) {
	t.Parallel()
	d := open(t)
	for name, want := range map[string]int{
		"birdtap_receipts_accepted_total":   1,
		"birdtap_receipts_rejected_total":   len(callReasons) + len(recordCodes),
		"birdtap_ingest_seconds":            1,
		"birdtap_signatures_verified_total": maxKeySlots + 1,
		"birdtap_webhooks_ignored_total":    1,
		"birdtap_ingest_panics_total":       1,
	} {
		if n, err := testutil.GatherAndCount(d.registry, name); err != nil || n != want {
			t.Errorf("%s: %d series, want %d, %v", name, n, want, err)
		}
	}
}
