package ingest

import (
	"bytes"
	"context"
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

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"github.com/birdtap/birdtap/store"
)

const (
	oneStored    = `{"status":"success","processed":1,"unprocessed":[]}`
	noneStored   = `{"status":"success","processed":0,"unprocessed":[]}`
	malformedOut = `{"status":"fail","error":"Malformed request","code":400}`
	unauthorized = `{"status":"fail","error":"Invalid Credentials","code":401}`
)

func TestAnswersByteForByte(t *testing.T) {
	t.Parallel()
	const bad = `{"identity":"u2",  "evtData":{"status":"SENT","target_id":1}}`
	const badEntry = `{"status":"fail","code":509,"error":"no event name. Skipped record number : %d","record":` + bad + `}`
	tests := []struct {
		name   string
		body   string
		want   string
		stored []string
	}{
		{"envelope", `{"d":[` + good + `]}`, oneStored, []string{goodSent}},
		{"bare", good, oneStored, []string{goodSent}},
		{"array", `[` + good + `]`, oneStored, []string{goodSent}},
		{"blanks around", " \r\n\t" + good + "\n ", oneStored, []string{goodSent}},
		{"envelope with more", `{"a":[1],"d":[` + good + `],"b":{}}`, oneStored, []string{goodSent}},
		{"escaped d", `{"\u0064":[` + good + `]}`, oneStored, []string{goodSent}},
		{"two", `[` + good + `,` + good + `]`, `{"status":"success","processed":2,"unprocessed":[]}`, []string{goodSent, goodSent}},
		{"empty envelope", `{"d":[]}`, noneStored, nil},
		{"empty array", ` [ ] `, noneStored, nil},
		{
			"partial", `[` + good + `,` + bad + `,` + good + `]`,
			`{"status":"partial","processed":2,"unprocessed":[` + fmt.Sprintf(badEntry, 2) + `]}`,
			[]string{goodSent, bad, goodSent},
		},
		{
			"fail", `{"d":[` + bad + `,` + bad + `]}`,
			`{"status":"fail","processed":0,"unprocessed":[` + fmt.Sprintf(badEntry, 1) + `,` + fmt.Sprintf(badEntry, 2) + `]}`,
			[]string{bad, bad},
		},
		{
			"no objects", `[null, "a\u0041",[1 ]]`,
			`{"status":"fail","processed":0,"unprocessed":[` +
				`{"status":"fail","code":512,"error":"wrong event structure. Skipped record number : 1","record":null},` +
				`{"status":"fail","code":512,"error":"wrong event structure. Skipped record number : 2","record":"a\u0041"},` +
				`{"status":"fail","code":512,"error":"wrong event structure. Skipped record number : 3","record":[1 ]}]}`,
			[]string{"null", `"a\u0041"`, "[1 ]"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := open(t)
			for _, got := range []answer{d.upload(tt.body), d.callback(tt.body)} {
				if got.status != 200 || got.body != tt.want {
					t.Errorf("got %d %s\nwant %s", got.status, got.body, tt.want)
				}
				if got.header.Get("Content-Type") != "application/json" || got.header.Get("Content-Length") == "" {
					t.Errorf("header %v", got.header)
				}
			}
			want := append(append([]string{}, tt.stored...), tt.stored...) // once per door
			if diff := cmp.Diff(want, records(d.memory.stored()), cmpEmpty); diff != "" {
				t.Error(diff)
			}
			if n := d.metric("birdtap_receipts_accepted_total"); n != float64(len(want)) {
				t.Errorf("accepted %v, want %d", n, len(want))
			}
		})
	}
}

var cmpEmpty = cmp.Transformer("nil", func(s []string) string { return fmt.Sprintf("%q", s) })

func records(receipts []store.Receipt) []string {
	var list []string
	for _, r := range receipts {
		list = append(list, string(r.Record))
	}
	return list
}

func TestRefusedRecordIsKeptWithItsCode(t *testing.T) {
	t.Parallel()
	d := open(t)
	d.upload(`[` + good + `,{"evtName":"Sale"}]`)
	got := d.memory.stored()
	if len(got) != 2 || got[0].Reason != "" || got[1].Reason != store.ReasonRefused || got[1].Code != 512 {
		t.Fatalf("got %+v", got)
	}
	if n := d.metric("birdtap_receipts_rejected_total", "512"); n != 1 {
		t.Errorf("rejected %v", n)
	}
}

func TestLargeRecordIsOnlyEchoed(t *testing.T) {
	t.Parallel()
	d := open(t)
	keep := padded(maxRecordBytes, `{"a":"`)
	drop := padded(maxRecordBytes+1, `{"a":"`)
	got := d.upload(`[` + keep + `,` + drop + `,` + good + `]`)
	if !strings.Contains(got.body, keep) || !strings.Contains(got.body, drop) || !strings.HasPrefix(got.body, `{"status":"partial","processed":1,`) {
		t.Fatalf("got %d %.100s", got.status, got.body)
	}
	if diff := cmp.Diff([]string{keep, goodSent}, records(d.memory.stored())); diff != "" {
		t.Fatal(diff)
	}
}

// padded is an object of size bytes that begins with start.
func padded(size int, start string) string {
	return start + strings.Repeat("x", size-len(start)-2) + `"}`
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	const account, passcode = "X-Clevertap-Account-Id", "X-Clevertap-Passcode"
	d := open(t)
	empty := open(t, func(o *Options) { o.Account, o.Passcode = func() string { return "" }, func() string { return "" } })
	tests := []struct {
		name   string
		d      *doors
		header http.Header
		body   string
		status int
	}{
		{"right", d, credentials(), good, 200},
		{"none", d, nil, good, 401},
		{"account missing", d, http.Header{passcode: {testPasscode}}, good, 401},
		{"passcode missing", d, http.Header{account: {testAccount}}, good, 401},
		{"account wrong", d, http.Header{account: {"x"}, passcode: {testPasscode}}, good, 401},
		{"account in other case", d, http.Header{account: {strings.ToLower(testAccount)}, passcode: {testPasscode}}, good, 401},
		{"passcode wrong", d, http.Header{account: {testAccount}, passcode: {testPasscode + "x"}}, good, 401},
		{"passcode empty", d, http.Header{account: {testAccount}, passcode: {""}}, good, 401},
		{"account twice", d, http.Header{account: {testAccount, testAccount}, passcode: {testPasscode}}, good, 401},
		{"passcode twice", d, http.Header{account: {testAccount}, passcode: {testPasscode, "x"}}, good, 401},
		{"joined by comma", d, http.Header{account: {testAccount}, passcode: {testPasscode + ", " + testPasscode}}, good, 401},
		{"before the body is judged", d, nil, `{`, 401},
		{"before the encoding is", d, http.Header{"Content-Encoding": {"gzip"}}, good, 401},
		{"none configured, none sent", empty, nil, good, 401},
		{"none configured, empty sent", empty, http.Header{account: {""}, passcode: {""}}, good, 401},
	}
	for _, tt := range tests {
		got := tt.d.do("POST", "/1/upload", tt.header, strings.NewReader(tt.body))
		if got.status != tt.status || tt.status == 401 && got.body != unauthorized {
			t.Errorf("%s: got %d %s, want %d", tt.name, got.status, got.body, tt.status)
		}
	}
	if n := len(d.memory.stored()) + len(empty.memory.stored()); n != 1 {
		t.Errorf("%d receipts stored, want the one of the right call", n)
	}
}

func TestPasscodeChangesUnderTraffic(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	passcode := testPasscode
	d := open(t, func(o *Options) {
		o.Passcode = func() string { mu.Lock(); defer mu.Unlock(); return passcode }
	})
	for _, step := range []struct {
		passcode string
		status   int
	}{{testPasscode, 200}, {"", 401}, {"new", 401}, {testPasscode, 200}} {
		mu.Lock()
		passcode = step.passcode
		mu.Unlock()
		if got := d.upload(good); got.status != step.status {
			t.Errorf("%q: got %d, want %d", step.passcode, got.status, step.status)
		}
	}
}

// TestMalformedBodies: every class of bad body is 400 at both doors, nothing is
// stored and nothing comes back.
func TestMalformedBodies(t *testing.T) {
	t.Parallel()
	d := open(t)
	for name, body := range map[string]string{
		"empty":                 "",
		"blanks":                " \n ",
		"null":                  "null",
		"string":                `"a"`,
		"number":                "1",
		"true":                  "true",
		"BOM":                   "\xef\xbb\xbf" + good,
		"UTF-16":                "\xfe\xff\x00[\x00]",
		"line comment":          "// a\n" + good,
		"block comment":         "[/* a */]",
		"NaN":                   withTarget("NaN"),
		"trailing data":         good + good,
		"trailing comma":        `[` + good + `,]`,
		"trailing bracket":      good + "]",
		"trailing NUL":          good + "\x00",
		"d null":                `{"d":null}`,
		"d object":              `{"d":` + good + `}`,
		"d string":              `{"d":"[]"}`,
		"d twice":               `{"d":[],"d":[]}`,
		"d twice, escaped":      `{"d":[],"\u0064":[]}`,
		"identity twice":        strings.Replace(good, `{`, `{"identity":"u2",`, 1),
		"status twice":          strings.Replace(good, `"status"`, `"status":"READ","status"`, 1),
		"property twice":        withProperty(`"a":{"x":1,"x":1}`),
		"property twice deeper": withProperty(`"a":[[{"x":1,"\u0078":1}]]`),
		"bad UTF-8":             withProperty("\"a\":\"\xff\""),
		"overlong UTF-8":        withProperty("\"a\":\"\xc0\xaf\""),
		"surrogate in UTF-8":    withProperty("\"a\":\"\xed\xa0\x80\""),
		"lone surrogate escape": withProperty(`"a":"\ud800"`),
		"swapped surrogates":    withProperty(`"a":"\udc00\ud800"`),
		"raw line feed":         withProperty("\"a\":\"\n\""),
		"depth 33":              nested(33),
		"depth 33 in a record":  `{"d":[` + withProperty(`"a":`+strings.Repeat("[", 30)+strings.Repeat("]", 30)) + `]}`,
		"depth of a bomb":       strings.Repeat(`[`, 5<<20),
		"object bomb":           strings.Repeat(`{"a":`, 1<<20),
		"good, then bad":        `[` + good + `,{]`,
	} {
		for _, got := range []answer{d.upload(body), d.callback(body)} {
			if got.status != 400 || got.body != malformedOut {
				t.Errorf("%s: got %d %.200s", name, got.status, got.body)
			}
		}
	}
	if n := len(d.memory.stored()); n != 0 {
		t.Errorf("%d receipts stored", n)
	}
	calls := d.metric("birdtap_receipts_rejected_total", "malformed")
	signed := d.metric("birdtap_receipts_rejected_total", "signed_malformed")
	if calls == 0 || calls != signed {
		t.Errorf("counted %v, signed %v", calls, signed)
	}
}

func withTarget(v string) string { return strings.Replace(good, `"target_id":1`, `"target_id":`+v, 1) }

func withProperty(m string) string {
	return strings.Replace(good, `"evtData":{`, `"evtData":{`+m+`,`, 1)
}
func nested(depth int) string { return strings.Repeat("[", depth) + strings.Repeat("]", depth) }

func TestDepth32IsTaken(t *testing.T) {
	t.Parallel()
	d := open(t)
	body := `{"d":[` + withProperty(`"a":`+nested(28)) + `]}`
	if got := d.upload(body); got.body != oneStored {
		t.Errorf("got %d %s", got.status, got.body)
	}
	if got := d.upload(nested(32)); got.status != 200 {
		t.Errorf("got %d %s", got.status, got.body)
	}
}

func TestBodySizes(t *testing.T) {
	t.Parallel()
	d := open(t)
	blanks := func(size int) string { return good + strings.Repeat(" ", size-len(good)) }
	tests := []struct {
		name   string
		body   io.Reader
		status int
	}{
		{"64 KiB", strings.NewReader(blanks(smallBodyBytes)), 200},
		{"64 KiB and a byte", strings.NewReader(blanks(smallBodyBytes + 1)), 200},
		{"64 KiB and a byte, chunked", io.MultiReader(strings.NewReader(blanks(smallBodyBytes + 1))), 200},
		{"1 MiB of blanks inside", strings.NewReader(`[` + strings.Repeat(" ", 1<<20) + good + `]`), 200},
		{"1 MiB of blanks and nothing", strings.NewReader(strings.Repeat(" ", 1<<20)), 400},
		{"5 MiB", strings.NewReader(blanks(maxBodyBytes)), 200},
		{"5 MiB, chunked", io.MultiReader(strings.NewReader(blanks(maxBodyBytes))), 200},
		{"5 MiB and a byte", strings.NewReader(blanks(maxBodyBytes + 1)), 413},
		{"5 MiB and a byte, chunked", io.MultiReader(strings.NewReader(blanks(maxBodyBytes + 1))), 413},
		{"more records than can be good", strings.NewReader(`[1` + strings.Repeat(",1", maxRecords) + `]`), 413},
	}
	for _, tt := range tests {
		if got := d.do("POST", "/", credentials(), tt.body); got.status != tt.status {
			t.Errorf("%s: got %d %.100s, want %d", tt.name, got.status, got.body, tt.status)
		}
	}
	if n := len(d.memory.stored()); n != 6 {
		t.Errorf("%d receipts stored, want 6", n)
	}
	checkRoomIsBack(t, d)
}

func checkRoomIsBack(t *testing.T, d *doors) {
	t.Helper()
	if !d.verifiedRoom.TryAcquire(verifiedBytes) || !d.unverifiedRoom.TryAcquire(unverifiedBytes) {
		t.Error("room for large bodies was not given back")
	}
}

func TestFiftyThousandRecords(t *testing.T) {
	t.Parallel()
	d := open(t)
	body := `{"d":[` + strings.Repeat(good+",", 49_999) + good + `]}`
	if len(body) > maxBodyBytes {
		t.Fatal("the test's body is too large")
	}
	want := `{"status":"success","processed":50000,"unprocessed":[]}`
	if got := d.upload(body); got.status != 200 || got.body != want {
		t.Fatalf("got %d %.100s", got.status, got.body)
	}
	stored := d.memory.stored()
	if len(stored) != 50_000 || string(stored[49_999].Record) != goodSent || string(stored[0].Record) != goodSent {
		t.Fatalf("%d stored", len(stored))
	}
}

func TestAMillionKeys(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	b.WriteString(`{"identity":"u1","evtName":"Sale","evtData":{"status":"SENT","target_id":1`)
	for i := range 400_000 {
		fmt.Fprintf(&b, `,"%x":1`, i)
	}
	b.WriteString(`}}`)
	d := open(t)
	got := d.upload(b.String())
	if got.status != 200 || !strings.HasPrefix(got.body, `{"status":"fail","processed":0,"unprocessed":[{"status":"fail","code":522,`) {
		t.Fatalf("got %d %.100s", got.status, got.body)
	}
	if n := len(d.memory.stored()); n != 0 {
		t.Errorf("%d stored", n)
	}
}

func TestEncodingsAndTypes(t *testing.T) {
	t.Parallel()
	d := open(t)
	for encoding, status := range map[string]int{
		"": 200, "identity": 200, "Identity": 200,
		"gzip": 415, "deflate": 415, "br": 415, "identity, gzip": 415, "x": 415,
	} {
		header := credentials()
		header["Content-Encoding"] = []string{encoding}
		if got := d.do("POST", "/", header, strings.NewReader(good)); got.status != status {
			t.Errorf("encoding %q: got %d, want %d", encoding, got.status, status)
		}
	}
	for _, contentType := range []string{"", "application/json", "text/plain", "multipart/form-data", "?"} {
		header := credentials()
		header["Content-Type"] = []string{contentType}
		if got := d.do("POST", "/", header, strings.NewReader(good)); got.status != 200 {
			t.Errorf("type %q: got %d", contentType, got.status)
		}
	}
}

// TestMemoryIsNotMixedUp sends calls of all kinds at once, to be run with the
// race detector: a buffer used by two calls would show in what is stored.
func TestMemoryIsNotMixedUp(t *testing.T) {
	t.Parallel()
	d := open(t)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
	defer client.CloseIdleConnections()
	var group sync.WaitGroup
	const callers, rounds = 8, 50
	for caller := range callers {
		group.Go(func() {
			for round := range rounds {
				id := fmt.Sprintf("u-%d-%d", caller, round)
				body := strings.ReplaceAll(good, "u1", id)
				if round%5 == 0 {
					body = `[` + body + strings.Repeat(" ", smallBodyBytes) + `]`
				}
				got := doWith(t, client, "POST", "http://"+d.Addr().String()+"/", credentials(), strings.NewReader(body))
				if got.body != oneStored {
					t.Errorf("%s: got %d %s", id, got.status, got.body)
				}
			}
		})
	}
	group.Wait()
	seen := map[string]bool{}
	for _, r := range d.memory.stored() {
		seen[string(r.Record)] = true
	}
	for caller := range callers {
		for round := range rounds {
			if want := strings.ReplaceAll(goodSent, "u1", fmt.Sprintf("u-%d-%d", caller, round)); !seen[want] {
				t.Fatalf("missing %s", want)
			}
		}
	}
}

// pipes is a listener without sockets, for time to stand still.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	p.conns <- server
	return client, nil
}

// inBubble runs f with a server and a client for which time is the bubble's.
func inBubble(t *testing.T, f func(t *testing.T, d *doors, p *pipes, client *http.Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		d := open(t, func(o *Options) { o.Listener = p })
		transport := &http.Transport{DialContext: p.dial}
		defer transport.CloseIdleConnections()
		f(t, d, p, &http.Client{Transport: transport})
	})
}

func TestCommitterThatNeverAnswersIs503Within4s(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, d *doors, _ *pipes, client *http.Client) {
		d.SetCommitter(committerFunc(func(ctx context.Context, _ []store.Receipt) error {
			<-ctx.Done()
			return store.ErrTimeout
		}))
		for _, header := range []http.Header{credentials(), signature(good)} {
			path := "/1/upload"
			if len(header) == 1 {
				path = "/sendbird/callbacks"
			}
			began := time.Now()
			checkUnavailable(t, doWith(t, client, "POST", "http://birdtap"+path, header, strings.NewReader(good)))
			if took := time.Since(began); took != commitWithin {
				t.Errorf("%s: answered after %v", path, took)
			}
		}
	})
}

func TestLargeBodiesWaitForRoomAndStillAnswerWithin4s(t *testing.T) {
	t.Parallel()
	large := good + strings.Repeat(" ", smallBodyBytes)
	inBubble(t, func(t *testing.T, d *doors, _ *pipes, client *http.Client) {
		post := func(body string) (answer, time.Duration) {
			began := time.Now()
			got := doWith(t, client, "POST", "http://birdtap/", credentials(), strings.NewReader(body))
			return got, time.Since(began)
		}
		if err := d.verifiedRoom.Acquire(t.Context(), verifiedBytes); err != nil {
			t.Fatal(err)
		}
		if got, took := post(large); got.status != 503 || took != roomWithin {
			t.Errorf("no room: %d after %v", got.status, took)
		}
		if got, took := post(good); got.status != 200 || took != 0 {
			t.Errorf("small body: %d after %v", got.status, took)
		}
		d.SetCommitter(committerFunc(func(ctx context.Context, _ []store.Receipt) error {
			<-ctx.Done()
			return store.ErrTimeout
		}))
		time.AfterFunc(time.Second, func() { d.verifiedRoom.Release(verifiedBytes) })
		if got, took := post(large); got.status != 503 || took != commitWithin {
			t.Errorf("late room: %d after %v", got.status, took)
		}
	})
}

// TestSlowCallersAreCutOff: whoever sends slowly, or nothing, holds a connection
// for a known time only.
func TestSlowCallersAreCutOff(t *testing.T) {
	t.Parallel()
	const header = "POST / HTTP/1.1\r\nHost: x\r\nX-CleverTap-Account-Id: " + testAccount +
		"\r\nX-CleverTap-Passcode: " + testPasscode + "\r\nContent-Length: 100\r\n\r\n"
	for name, tt := range map[string]struct {
		send   string
		after  time.Duration
		answer string
	}{
		"says nothing":    {"", readHeaderTimeout, ""},
		"unfinished line": {"POST / HT", readHeaderTimeout, "HTTP/1.1 400 "},
		"unfinished body": {header + "{", readTimeout, "HTTP/1.1 400 "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, func(t *testing.T, d *doors, p *pipes, _ *http.Client) {
				conn, _ := p.dial(t.Context(), "", "")
				defer conn.Close()
				began := time.Now()
				if _, err := io.WriteString(conn, tt.send); err != nil {
					t.Fatal(err)
				}
				got, _ := io.ReadAll(conn)
				took := time.Since(began)
				if !strings.HasPrefix(string(got), tt.answer) || (tt.answer == "") != (len(got) == 0) {
					t.Errorf("got %q", got)
				}
				if took < tt.after || took > tt.after+time.Second {
					t.Errorf("cut off after %v, want %v", took, tt.after)
				}
				if len(d.memory.stored()) != 0 {
					t.Error("something was stored")
				}
			})
		})
	}
}

func TestSilentKeepAliveEnds(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, _ *doors, p *pipes, _ *http.Client) {
		conn, _ := p.dial(t.Context(), "", "")
		defer conn.Close()
		began := time.Now()
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		_, _ = io.ReadAll(conn)
		if took := time.Since(began); took != idleTimeout {
			t.Errorf("closed after %v", took)
		}
	})
}

// FuzzUploadBody: no panic, 200 only for what is JSON, every record that is
// stored as good is JSON and stays what it is when converted again.
func FuzzUploadBody(f *testing.F) {
	for _, seed := range []string{
		good, `[` + good + `]`, `{"d":[` + good + `,{}]}`, `[]`, `{`, `[1,null]`,
		`{"objectId":12,"ts":1,"type":"event","evtName":"\u0041","evtData":{"status":"READ","target_id":"0001","x":{"b":[1, 1.0],"a":"\/"}},"more":{"k": 1}}`,
		withTarget("18446744073709551616"), withProperty(`"a":"\ud800"`),
	} {
		f.Add([]byte(seed))
	}
	s, err := New(Options{
		Addr: "127.0.0.1:0", Upload: true, Now: func() time.Time { return testNow },
		Account: func() string { return testAccount }, Passcode: func() string { return testPasscode },
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = s.Shutdown(context.Background()) })
	f.Fuzz(func(t *testing.T, body []byte) {
		var m memory
		s.SetCommitter(&m)
		r := httptest.NewRequest("POST", "/", bytes.NewReader(body))
		r.Header = credentials()
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		valid := jsontext.Value(body).IsValid()
		if w.Code == 200 && !valid || w.Code != 200 && len(m.stored()) > 0 {
			t.Fatalf("%d, valid %v, %d stored", w.Code, valid, len(m.stored()))
		}
		if !jsontext.Value(w.Body.Bytes()).IsValid() {
			t.Fatalf("the answer is no JSON: %s", w.Body)
		}
		for _, got := range m.stored() {
			checkReceipt(t, got)
		}
	})
}

func checkReceipt(t *testing.T, got store.Receipt) {
	t.Helper()
	if !jsontext.Value(got.Record).IsValid() || got.Reason == "" && len(got.Record) > maxRecordBytes {
		t.Fatalf("stored %.200q", got.Record)
	}
	again := Convert(got.Record, testNow.Add(time.Hour))
	if got.Reason != "" {
		if again.Reason != got.Reason || again.Code != got.Code || again.Key != got.Key {
			t.Fatalf("refused with %d, then %d", got.Code, again.Code)
		}
		return
	}
	if again.Reason != "" || !bytes.Equal(again.Record, got.Record) || again.User != got.User {
		t.Fatalf("%s\nbecame %d %s", got.Record, again.Code, again.Record)
	}
	third := Convert(again.Record, testNow)
	if third.Key != again.Key {
		t.Fatalf("the key of %s changed", again.Record)
	}
}
