package sender

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/birdtap/birdtap/store"
	"github.com/birdtap/birdtap/store/storetest"
)

const (
	doorToken    = "s3cret-token"
	realtimePath = "/clevertap/notifications/realtime"
	batchPath    = "/clevertap/notifications/batch"
)

// doorLog is a Committer that keeps what it is given.
type doorLog struct {
	mu   sync.Mutex
	asks []store.Ask
	err  error
}

func (l *doorLog) Commit(_ context.Context, asks []store.Ask) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	l.asks = append(l.asks, asks...)
	return nil
}

func (l *doorLog) stored() []store.Ask {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asks
}

func (l *doorLog) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

// commitFunc is a Committer for faults.
type commitFunc func(context.Context, []store.Ask) error

func (f commitFunc) Commit(ctx context.Context, asks []store.Ask) error { return f(ctx, asks) }

// doorRig is the doors behind a real server, and what stands around them.
type doorRig struct {
	*Door
	t        *testing.T
	server   *httptest.Server
	log      *doorLog
	logs     *observer.ObservedLogs
	registry *prometheus.Registry
}

// openDoors starts a server. Whatever the test does, neither a token nor anything of a
// call may stand in a log line.
func openDoors(t *testing.T, change ...func(*DoorOptions)) *doorRig {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	d := &doorRig{t: t, log: new(doorLog), logs: logs, registry: prometheus.NewRegistry()}
	o := DoorOptions{
		Tokens:     func() []string { return []string{"", "older-s3cret", doorToken} },
		Committer:  d.log,
		Log:        zap.New(core),
		Registerer: d.registry,
	}
	for _, c := range change {
		c(&o)
	}
	var err error
	if d.Door, err = NewDoor(o); err != nil {
		t.Fatal(err)
	}
	d.server = httptest.NewServer(d)
	t.Cleanup(func() {
		d.server.Close()
		for _, entry := range d.logs.All() {
			line := fmt.Sprint(entry.Message, entry.ContextMap())
			for _, secret := range []string{"s3cret", "canary"} {
				if strings.Contains(line, secret) {
					t.Errorf("a log line holds %q: %s", secret, line)
				}
			}
		}
	})
	return d
}

type doorAnswer struct {
	status int
	header http.Header
	body   string
}

func (d *doorRig) do(method, path string, header http.Header, body io.Reader) doorAnswer {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), method, d.server.URL+path, body)
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header = header.Clone()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}}
	resp, err := client.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return doorAnswer{resp.StatusCode, resp.Header, string(text)}
}

func tokenHeader() http.Header { return http.Header{"Api-Token": {doorToken}} }

func (d *doorRig) post(path, body string) doorAnswer {
	d.t.Helper()
	return d.do(http.MethodPost, path, tokenHeader(), strings.NewReader(body))
}

// answers counts the calls that were answered so.
func (d *doorRig) answers(answer string) float64 {
	return testutil.ToFloat64(d.metrics.calls.WithLabelValues(answer))
}

func (d *doorRig) wantStored(n int) {
	d.t.Helper()
	if got := len(d.log.stored()); got != n {
		d.t.Errorf("%d asks are stored, want %d", got, n)
	}
}

func wantUnavailable(t *testing.T, got doorAnswer) {
	t.Helper()
	if got.status != 503 || got.body != `{"status":"fail","error":"Service unavailable","code":503}` {
		t.Errorf("got %d %s", got.status, got.body)
	}
	if after := got.header.Get("Retry-After"); after != "1" && after != "2" && after != "3" {
		t.Errorf("Retry-After %q", after)
	}
}

func TestDoorPathsAndMethods(t *testing.T) {
	t.Parallel()
	d := openDoors(t)
	for _, tt := range []struct {
		method, path string
		status       int
	}{
		{"POST", realtimePath, 401},
		{"POST", "/clevertap/notifications/single", 401},
		{"POST", batchPath, 401},
		{"POST", "/clevertap/notifications/multi?a=1", 401},
		{"GET", realtimePath, 405},
		{"HEAD", batchPath, 405},
		{"PUT", batchPath, 405},
		{"OPTIONS", batchPath, 405},
		{"post", batchPath, 405},
		{"POST", "/", 404},
		{"POST", "/clevertap/notifications", 404},
		{"POST", "/clevertap/notifications/", 404},
		{"POST", batchPath + "/", 404},
		{"POST", "/clevertap/notifications/Batch", 404},
		{"POST", "/clevertap/notifications/auto", 404},
		{"POST", "//clevertap/notifications/batch", 404},
		{"GET", "/metrics", 404},
	} {
		got := d.do(tt.method, tt.path, nil, strings.NewReader(`{"echo":"canary"}`))
		if got.status != tt.status || strings.Contains(got.body, "canary") {
			t.Errorf("%s %s: got %d %s, want %d", tt.method, tt.path, got.status, got.body, tt.status)
		}
		if allow := got.header.Get("Allow"); (tt.status == 405) != (allow == "POST") {
			t.Errorf("%s %s: Allow %q", tt.method, tt.path, allow)
		}
		if got.header.Get("Content-Length") == "" || got.header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: header %v", tt.method, tt.path, got.header)
		}
	}
	d.wantStored(0)
}

func TestDoorLeavesOtherPathsToOthers(t *testing.T) {
	t.Parallel()
	d := openDoors(t, func(o *DoorOptions) {
		o.NotFound = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	})
	if got := d.do("GET", "/elsewhere", nil, nil); got.status != http.StatusTeapot {
		t.Errorf("got %d", got.status)
	}
	if got := d.do("GET", batchPath, nil, nil); got.status != 405 {
		t.Errorf("got %d", got.status)
	}
}

func TestDoorTokens(t *testing.T) {
	t.Parallel()
	d := openDoors(t)
	for name, values := range map[string][]string{
		"missing": nil, "empty": {""}, "wrong": {"x"}, "part": {doorToken[:5]}, "longer": {doorToken + "x"}, "in a list": {"x," + doorToken},
		"twice": {doorToken, doorToken}, "two of them": {doorToken, "older-s3cret"},
	} {
		got := d.do("POST", batchPath, http.Header{"Api-Token": values}, strings.NewReader(hook("")))
		if got.status != 401 || got.body != `{"status":"fail","error":"Invalid Credentials","code":401}` {
			t.Errorf("%s: got %d %s", name, got.status, got.body)
		}
	}
	d.wantStored(0)
	for i, token := range []string{doorToken, "older-s3cret"} {
		if got := d.do("POST", batchPath, http.Header{"Api-token": {token}}, strings.NewReader(hook(""))); got.status != 200 {
			t.Errorf("token %d: got %d", i, got.status)
		}
	}
	d.wantStored(2)
	none := openDoors(t, func(o *DoorOptions) { o.Tokens = func() []string { return nil } })
	if got := none.do("POST", batchPath, http.Header{"Api-Token": {""}}, strings.NewReader(hook(""))); got.status != 401 {
		t.Errorf("no token configured: got %d", got.status)
	}
	if _, err := NewDoor(DoorOptions{}); err == nil {
		t.Error("doors without tokens are made")
	}
}

func TestDoorContentTypes(t *testing.T) {
	t.Parallel()
	d := openDoors(t)
	for _, tt := range []struct {
		header http.Header
		status int
	}{
		{http.Header{}, 200},
		{http.Header{"Content-Type": {""}}, 200},
		{http.Header{"Content-Type": {"application/json"}}, 200},
		{http.Header{"Content-Type": {"Application/JSON; charset=utf8"}}, 200},
		{http.Header{"Content-Type": {`application/json ;charset="UTF-8"`}}, 200},
		{http.Header{"Content-Type": {"application/json; charset"}}, 200},
		{http.Header{"Content-Type": {"application/json", "application/json"}}, 415},
		{http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, 415},
		{http.Header{"Content-Type": {"text/plain"}}, 415},
		{http.Header{"Content-Type": {"application/jsonx"}}, 415},
		{http.Header{"Content-Type": {"application/json, text/plain"}}, 415},
		{http.Header{"Content-Type": {";"}}, 415},
		{http.Header{"Content-Encoding": {"identity"}}, 200},
		{http.Header{"Content-Encoding": {"gzip"}}, 415},
		{http.Header{"Content-Encoding": {"identity", "br"}}, 415},
	} {
		before := len(d.log.stored())
		header := tt.header.Clone()
		header.Set("Api-Token", doorToken)
		got := d.do("POST", batchPath, header, strings.NewReader(hook("")))
		if stored := len(d.log.stored()) - before; got.status != tt.status || (stored == 1) != (tt.status == 200) {
			t.Errorf("%v: got %d %s, %d stored, want %d", tt.header, got.status, got.body, stored, tt.status)
		}
	}
}

// TestDoorAnswers: what callers read, word for word.
func TestDoorAnswers(t *testing.T) {
	t.Parallel()
	const malformedBody = `{"status":"fail","error":"Malformed request","code":400}`
	for _, tt := range []struct {
		name, path, body string
		status           int
		want             string
		stored           int
		answer           string
	}{
		{"Broadcast", batchPath, broadcastCall, 200, `{"accepted":2}`, 1, answerAccepted},
		{"Single", "/clevertap/notifications/single", singleCall, 200, `{"accepted":1}`, 1, answerAccepted},
		{"Multi", "/clevertap/notifications/multi", broadcastCall, 200, `{"accepted":2}`, 1, answerAccepted},
		{"Own", realtimePath, ownSample(t), 200, `{"accepted":1}`, 1, answerAccepted},
		{"OwnAtTheOtherDoor", batchPath, ownSample(t), 400, `{"status":"fail","error":"mode must be batch at this door, or left out","code":400}`, 0, answerMistake},
		{"Test", batchPath, testCall, 200, `{"accepted":0}`, 0, answerTest},
		{"Nobody", batchPath, `{"key_values":{"template_key":"k"},"profiles":[]}`, 200, `{"accepted":0}`, 0, answerAccepted},
		{"NobodySendable", batchPath, `{"key_values":{"template_key":"k"},"profiles":[{}]}`, 200, `{"accepted":0}`, 1, answerAccepted},
		{"SomeSendable", batchPath, `{"key_values":{"template_key":"k"},"profiles":[{},{"identity":"u"},{"identity":"u"}]}`, 200, `{"accepted":1}`, 1, answerAccepted},
		{"Typo", batchPath, hook(`,"var_n\"me":"canary"`), 400, `{"status":"fail","error":"key_values: unknown name \"var_n\\\"me\"; there are template_key, event_name, receiver, tag, title, priority, push.<key> and var.<name>","code":400}`, 0, answerMistake},
		{"AfterPush", batchPath, afterPushCall, 400, `{"status":"fail","error":"this is the call of a webhook after a push, which has no key_values: template_key is missing","code":400}`, 0, answerMistake},
		{"TooMany", batchPath, `{"key_values":{"template_key":"k"},"profiles":[{}` + strings.Repeat(",{}", maxCallUsers) + `]}`, 413, `{"status":"fail","error":"more than 100000 users: make several calls of it","code":413}`, 0, answerMistake},
		{"Empty", batchPath, ``, 400, malformedBody, 0, answerMalformed},
		{"Array", batchPath, `[]`, 400, malformedBody, 0, answerMalformed},
		{"Cut", batchPath, broadcastCall[:200], 400, malformedBody, 0, answerMalformed},
		{"Form", batchPath, `key=canary`, 400, malformedBody, 0, answerMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := openDoors(t)
			got := d.post(tt.path, tt.body)
			if got.status != tt.status || got.body != tt.want {
				t.Errorf("got %d %s, want %d %s", got.status, got.body, tt.status, tt.want)
			}
			if got.header.Get("Content-Type") != "application/json" || got.header.Get("Content-Length") == "" {
				t.Errorf("header %v", got.header)
			}
			d.wantStored(tt.stored)
			if d.answers(tt.answer) != 1 {
				t.Errorf("not counted as %s", tt.answer)
			}
		})
	}
}

// TestDoorRepeatedCall: up to four equal calls have equal keys; what differs has others. In
// real time each of the two users is an ask.
func TestDoorRepeatedCall(t *testing.T) {
	t.Parallel()
	d := openDoors(t)
	for range 4 {
		d.post(batchPath, broadcastCall)
	}
	d.post("/clevertap/notifications/multi", broadcastCall)
	d.post(realtimePath, broadcastCall)
	d.post(batchPath, broadcastCall+" ")
	asks := d.log.stored()
	if len(asks) != 8 {
		t.Fatalf("%d asks are stored", len(asks))
	}
	keys := map[store.Key]int{}
	for _, a := range asks {
		keys[a.Key]++
	}
	if keys[asks[0].Key] != 5 || len(keys) != 4 {
		t.Errorf("got keys %v", keys)
	}
	for _, a := range asks[:5] {
		if !bytes.Equal(a.Data, asks[0].Data) {
			t.Errorf("the same call is stored as\n%s\nand\n%s", asks[0].Data, a.Data)
		}
	}
}

func TestDoorBodySizes(t *testing.T) {
	t.Parallel()
	d := openDoors(t)
	sized := func(n int) string {
		return hook("") + strings.Repeat(" ", n-len(hook("")))
	}
	chunked := func(s string) io.Reader { return struct{ io.Reader }{strings.NewReader(s)} }
	stored := 0
	for _, n := range []int{smallBodyBytes, smallBodyBytes + 1, maxBodyBytes, maxBodyBytes + 1} {
		for name, body := range map[string]io.Reader{"plain": strings.NewReader(sized(n)), "chunked": chunked(sized(n))} {
			got := d.do("POST", batchPath, tokenHeader(), body)
			if n <= maxBodyBytes {
				if stored++; got.status != 200 {
					t.Errorf("%s, %d bytes: got %d %s", name, n, got.status, got.body)
				}
			} else if got.status != 413 || got.body != `{"status":"fail","error":"Request too large","code":413}` {
				t.Errorf("%s, %d bytes: got %d %s", name, n, got.status, got.body)
			}
		}
	}
	d.wantStored(stored)
	if !d.room.TryAcquire(roomBytes) {
		t.Error("room was not given back")
	}
}

// brokenBody is a body whose end is lost.
type brokenBody struct{ io.Reader }

func (b brokenBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// TestDoorStoresNothingOfABrokenBody, though its bytes are a whole call.
func TestDoorStoresNothingOfABrokenBody(t *testing.T) {
	t.Parallel()
	d := openDoors(t)
	for _, size := range []int{len(hook("")), smallBodyBytes + 1} {
		r := httptest.NewRequest("POST", batchPath, brokenBody{strings.NewReader(hook("") + strings.Repeat(" ", size-len(hook(""))))})
		r.Header = tokenHeader()
		w := httptest.NewRecorder()
		d.ServeHTTP(w, r)
		if w.Code != 400 || w.Body.String() != `{"status":"fail","error":"Malformed request","code":400}` {
			t.Errorf("got %d %s", w.Code, w.Body)
		}
	}
	d.wantStored(0)
	if d.answers(answerRead) != 2 || !d.room.TryAcquire(roomBytes) {
		t.Error("not counted, or room was not given back")
	}
}

// TestDoorCutConnection: a caller who goes away in the middle of a body asks for nothing.
func TestDoorCutConnection(t *testing.T) {
	t.Parallel()
	d := openDoors(t)
	conn, err := net.Dial("tcp", d.server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(conn, "POST "+batchPath+" HTTP/1.1\r\nHost: x\r\nApi-Token: "+doorToken+"\r\nContent-Length: 1000\r\n\r\n"+hook(""))
	_ = conn.(*net.TCPConn).CloseWrite()
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if !strings.HasPrefix(string(answer), "HTTP/1.1 400 ") {
		t.Errorf("got %.100s", answer)
	}
	d.wantStored(0)
}

func TestDoorIsUnavailableUntilThereIsACommitter(t *testing.T) {
	t.Parallel()
	d := openDoors(t, func(o *DoorOptions) { o.Committer = nil })
	wantUnavailable(t, d.post(batchPath, hook("")))
	if got := d.do("POST", batchPath, nil, nil); got.status != 401 {
		t.Errorf("stranger: got %d", got.status)
	}
	d.SetCommitter(d.log)
	if got := d.post(batchPath, hook("")); got.status != 200 {
		t.Errorf("got %d", got.status)
	}
	d.SetCommitter(nil)
	wantUnavailable(t, d.post(batchPath, hook("")))
	d.wantStored(1)
}

func TestDoorCommitErrorsAre503AndLoggedOnce(t *testing.T) {
	t.Parallel()
	d := openDoors(t)
	for _, err := range []error{store.ErrFull, store.ErrTimeout, store.ErrClosed, store.ErrBusy, errors.New("anything")} {
		d.log.fail(err)
		wantUnavailable(t, d.post(batchPath, hook("")))
	}
	d.wantStored(0)
	d.log.fail(nil)
	for range 2 {
		if got := d.post(batchPath, hook("")); got.status != 200 {
			t.Errorf("got %d", got.status)
		}
	}
	if n := d.logs.Len(); n != 2 {
		t.Errorf("%d lines are logged, want one for the beginning and one for the end", n)
	}
	if d.answers(answerUnavailable) != 5 {
		t.Errorf("%v are counted", d.answers(answerUnavailable))
	}
}

// TestDoorAnswersAfterTheCommit: not before it returns.
func TestDoorAnswersAfterTheCommit(t *testing.T) {
	t.Parallel()
	committing, release := make(chan struct{}), make(chan struct{})
	d := openDoors(t, func(o *DoorOptions) {
		o.Committer = commitFunc(func(context.Context, []store.Ask) error {
			close(committing)
			<-release
			return nil
		})
	})
	answered := make(chan doorAnswer, 1)
	w := httptest.NewRecorder()
	go func() {
		r := httptest.NewRequest("POST", batchPath, strings.NewReader(hook("")))
		r.Header = tokenHeader()
		d.ServeHTTP(w, r)
		answered <- doorAnswer{status: w.Code, body: w.Body.String()}
	}()
	<-committing
	if w.Body.Len() > 0 || len(w.Header()) > 0 || len(answered) > 0 { // the handler is within Commit
		t.Error("answered before the commit returned")
	}
	close(release)
	if got := <-answered; got.status != 200 || got.body != `{"accepted":1}` {
		t.Errorf("got %+v", got)
	}
}

// TestDoorAnswersInTime: whatever is slow, within 4 s of the last byte of the body.
func TestDoorAnswersInTime(t *testing.T) {
	t.Parallel()
	large := hook("") + strings.Repeat(" ", smallBodyBytes)
	stuck := commitFunc(func(ctx context.Context, _ []store.Ask) error {
		<-ctx.Done()
		return store.ErrTimeout
	})
	for _, tt := range []struct {
		name    string
		body    string
		prepare func(d *Door)
		want    time.Duration
	}{
		{"Commit", hook(""), func(*Door) {}, commitWithin},
		{"Room", large, func(d *Door) { d.room.TryAcquire(roomBytes) }, roomWithin},
		{"RoomAndCommit", large, func(d *Door) {
			d.room.TryAcquire(roomBytes)
			time.AfterFunc(time.Second, func() { d.room.Release(roomBytes) })
		}, commitWithin},
		{"Parsing", hook(""), func(d *Door) { d.parsing.TryAcquire(maxParsing) }, commitWithin},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				d, err := NewDoor(DoorOptions{Tokens: func() []string { return []string{doorToken} }, Committer: stuck})
				if err != nil {
					t.Fatal(err)
				}
				tt.prepare(d)
				r := httptest.NewRequest("POST", batchPath, strings.NewReader(tt.body))
				r.Header = tokenHeader()
				w := httptest.NewRecorder()
				began := time.Now()
				d.ServeHTTP(w, r)
				if w.Code != 503 || w.Header().Get("Retry-After") == "" {
					t.Errorf("got %d", w.Code)
				}
				if took := time.Since(began); took != tt.want { // in the bubble's time
					t.Errorf("took %v, want %v", took, tt.want)
				}
			})
		})
	}
}

// TestDoorStoresForWhoHungUp: the caller may be gone before the commit.
func TestDoorStoresForWhoHungUp(t *testing.T) {
	t.Parallel()
	d := openDoors(t, func(o *DoorOptions) {
		log := o.Committer
		o.Committer = commitFunc(func(ctx context.Context, asks []store.Ask) error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return log.Commit(ctx, asks)
		})
	})
	gone, hangUp := context.WithCancel(t.Context())
	hangUp()
	r := httptest.NewRequestWithContext(gone, "POST", batchPath, strings.NewReader(hook("")))
	r.Header = tokenHeader()
	d.ServeHTTP(httptest.NewRecorder(), r)
	d.wantStored(1)
}

// TestDoorsOverTheRealLog: what a call asks for is read back from the store.
func TestDoorsOverTheRealLog(t *testing.T) {
	t.Parallel()
	sends, err := storetest.New(t).OpenSends(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sends.Close)
	d := openDoors(t, func(o *DoorOptions) { o.Committer = sends })
	if got := d.post(realtimePath, singleCall); got.status != 200 || got.body != `{"accepted":1}` {
		t.Fatalf("got %d %s", got.status, got.body)
	}
	reader := sends.Read(0)
	defer reader.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	frame, err := reader.Next(ctx)
	if err != nil || frame.Err != nil || len(frame.Asks) != 1 {
		t.Fatalf("got %+v, %v", frame, err)
	}
	a, err := decodeAsk(frame.Asks[0].Data)
	if err != nil {
		t.Fatal(err)
	}
	want := mustParse(t, ModeRealtime, singleCall).Asks
	want[0].Format = askFormat
	wantAsks(t, []Ask{a}, want)
}

func TestDoorMetricsArePresentAtZero(t *testing.T) {
	t.Parallel()
	d := openDoors(t)
	if n, err := testutil.GatherAndCount(d.registry, "birdtap_sender_calls_total"); err != nil || n != len(allAnswers) {
		t.Errorf("got %d series, %v", n, err)
	}
	d.post(batchPath, hook(""))
	d.post(batchPath, "")
	if d.answers(answerAccepted) != 1 || d.answers(answerMalformed) != 1 {
		t.Error("calls are not counted")
	}
	if n, err := testutil.GatherAndCount(d.registry, "birdtap_sender_seconds"); err != nil || n != 1 {
		t.Errorf("got %d histograms, %v", n, err)
	}
	if _, err := NewDoor(DoorOptions{Tokens: func() []string { return nil }, Registerer: d.registry}); err == nil {
		t.Error("two doors share their metrics")
	}
}
