package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
)

// soon bounds every wait of these tests.
const soon = 20 * time.Second

// daemon is serve in this process, ready, and a CleverTap for it.
type daemon struct {
	app     *app
	door    string // its address
	environ []string
	fake    *clevertaptest.Server
	stop    func() error // ends it, and returns what Run did; may be called twice
}

// startFake is a CleverTap that knows the pair, and its address.
func startFake(t *testing.T) (*clevertaptest.Server, string) {
	t.Helper()
	fake, err := clevertaptest.Start("127.0.0.1:0", clevertaptest.Options{AccountID: "ACC", Passcode: marker})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	return fake, fake.URL()
}

func startDaemon(t *testing.T, environ ...string) daemon {
	t.Helper()
	return startDaemonWith(t, append(environ, pair...)...)
}

// startDaemonWith is startDaemon with these variables in place of the pair, and beside
// those that every daemon of these tests has.
func startDaemonWith(t *testing.T, environ ...string) daemon {
	t.Helper()
	fake, address := startFake(t)
	return runDaemon(t, fake, append([]string{
		"BIRDTAP_HTTP_ADDR=127.0.0.1:0",
		"BIRDTAP_OPS_ADDR=127.0.0.1:0",
		"BIRDTAP_DATA_DIR=" + filepath.Join(t.TempDir(), "data"),
		"BIRDTAP_CLEVERTAP_URL=" + address,
		"BIRDTAP_BATCH_MAX_WAIT=0",
	}, environ...))
}

func runDaemon(t *testing.T, fake *clevertaptest.Server, environ []string) daemon {
	t.Helper()
	d := daemon{fake: fake, environ: environ}
	cfg := load(t, d.environ)
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	a, err := newApp(cfg, roleServe, zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	d.app, d.door = a, a.doors.Addr().String()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	d.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
		if err := a.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	eventually(t, "ready", d.isReady(t))
	return d
}

// post sends one receipt and returns the status and body of the answer.
func (d daemon) post(t *testing.T, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+d.door+"/1/upload", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-CleverTap-Account-Id", "ACC")
	req.Header.Set("X-CleverTap-Passcode", marker)
	return do(t, req)
}

func (d daemon) probe(t *testing.T, path string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+d.app.window.Addr().String()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return do(t, req)
}

func do(t *testing.T, req *http.Request) (int, string) {
	t.Helper()
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// eventually waits for a fact.
func eventually(t *testing.T, what string, fact func() bool) {
	t.Helper()
	deadline := time.After(soon)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !fact() {
		select {
		case <-deadline:
			t.Fatalf("not within %v: %s", soon, what)
		case <-tick.C:
		}
	}
}

func (d daemon) isReady(t *testing.T) func() bool {
	return func() bool {
		code, _ := d.probe(t, "/readyz")
		return code == http.StatusOK
	}
}

const receipt = `{"d":[{"identity":"u1","ts":1700000000,"type":"event","evtName":"Offer","evtData":{"status":"SENT","target_id":9007199254740993}}]}`

func TestReceiptGoesThroughTheWholeProgram(t *testing.T) {
	d := startDaemon(t)
	if code, body := d.post(t, receipt); code != http.StatusOK || body != `{"status":"success","processed":1,"unprocessed":[]}` {
		t.Fatalf("answer %d %s", code, body)
	}
	eventually(t, "the receipt at CleverTap", func() bool { return d.fake.Counts().Accepted == 1 })
	if code, _ := d.probe(t, "/healthz"); code != http.StatusOK {
		t.Errorf("healthz answers %d", code)
	}
	if _, metrics := d.probe(t, "/metrics"); !strings.Contains(metrics, "birdtap_receipts_accepted_total 1\n") {
		t.Error("metrics do not count the receipt")
	}
	account := func() statusJSON {
		var st statusJSON
		got := birdtap(t, d.environ, "status", "--json")
		if err := json.Unmarshal([]byte(got.out), &st); err != nil {
			t.Fatalf("status: %v, stderr %q", err, got.err)
		}
		return st
	}
	eventually(t, "the account to settle", func() bool { return account().Delivered == 1 })
	if err := d.stop(); err != nil {
		t.Errorf("stopping: %v", err)
	}
	if st := account(); st.Accepted != 1 || st.Delivered != 1 || st.Queued != 0 || st.Relay.Holder != "" {
		t.Errorf("after the stop: %+v", st)
	}
}

func TestDoorsAnswerBeforeTheQueueIsOpen(t *testing.T) {
	fake, address := startFake(t)
	cfg := load(t, append([]string{
		"BIRDTAP_HTTP_ADDR=127.0.0.1:0", "BIRDTAP_OPS_ADDR=127.0.0.1:0",
		"BIRDTAP_DATA_DIR=" + filepath.Join(t.TempDir(), "data"), "BIRDTAP_CLEVERTAP_URL=" + address,
	}, pair...))
	a, err := newApp(cfg, roleServe, zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	// Only the doors and the window, as they are while the queue is being opened.
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 2)
	go func() { ended <- a.window.Run(ctx) }()
	go func() { ended <- a.serveDoors() }()
	d := daemon{app: a, door: a.doors.Addr().String(), fake: fake}
	if code, _ := d.post(t, receipt); code != http.StatusServiceUnavailable {
		t.Errorf("the door answers %d, want 503", code)
	}
	if code, body := d.probe(t, "/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "being opened") {
		t.Errorf("readyz answers %d %s", code, body)
	}
	if _, body := d.probe(t, "/metrics"); !strings.Contains(body, "\nbirdtap_ready 0\n") {
		t.Errorf("the metrics say that it is ready:\n%s", body)
	}
	if code, _ := d.probe(t, "/healthz"); code != http.StatusOK {
		t.Errorf("healthz answers %d: recovering is progress", code)
	}
	cancel()
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestServeEndsWithZeroWhenTold(t *testing.T) {
	_, address := startFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	var words bytes.Buffer
	p := &program{in: strings.NewReader(""), out: io.Discard, err: until(&words, `"queue open"`, cancel), environ: append([]string{
		"BIRDTAP_HTTP_ADDR=127.0.0.1:0", "BIRDTAP_OPS_ADDR=127.0.0.1:0",
		"BIRDTAP_DATA_DIR=" + filepath.Join(t.TempDir(), "data"), "BIRDTAP_CLEVERTAP_URL=" + address,
	}, pair...)}
	if code := p.run(ctx, []string{"serve"}); code != exitDone {
		t.Errorf("code %d, stderr:\n%s", code, words.String())
	}
	if strings.Contains(words.String(), marker) {
		t.Error("the log shows the passcode")
	}
}

// until calls then when a line that holds word is written.
func until(w *bytes.Buffer, word string, then func()) io.Writer {
	return writerFunc(func(line []byte) (int, error) {
		if bytes.Contains(line, []byte(word)) {
			then()
		}
		return w.Write(line)
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestAddressInUseNamesItsVariable(t *testing.T) {
	d := startDaemon(t)
	taken := d.app.window.Addr().String()
	for _, variable := range []string{"BIRDTAP_HTTP_ADDR", "BIRDTAP_OPS_ADDR"} {
		got := birdtap(t, append([]string{"BIRDTAP_HTTP_ADDR=127.0.0.1:0", "BIRDTAP_OPS_ADDR=127.0.0.1:0", variable + "=" + taken}, pair...), "serve")
		if got.code != exitFailed || !strings.Contains(got.err, variable+`="`+taken+`"`) {
			t.Errorf("code %d, stderr %q: want 1 and %s", got.code, got.err, variable)
		}
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	got := birdtap(t, d.environ, "serve")
	if got.code != exitFailed || !strings.Contains(got.err, "another birdtap has this data directory open") {
		t.Errorf("code %d, stderr %q", got.code, got.err)
	}
}
