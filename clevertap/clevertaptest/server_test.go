package clevertaptest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
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

	"go.uber.org/goleak"

	fake "github.com/birdtap/birdtap/clevertap/clevertaptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// setup starts a fake, and makes a client that opens a connection per call, so
// that the server does not see its calls one after the other anyway.
func setup(t *testing.T, opts fake.Options) (*fake.Server, *http.Client) {
	t.Helper()
	s, err := fake.Start("127.0.0.1:0", opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	rt := &http.Transport{DisableCompression: true, DisableKeepAlives: true}
	t.Cleanup(rt.CloseIdleConnections)
	return s, &http.Client{Transport: rt}
}

// post uploads a body with the credentials a and p.
func post(ctx context.Context, c *http.Client, s *fake.Server, body string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL()+"/1/upload", strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("X-CleverTap-Account-Id", "a")
	req.Header.Set("X-CleverTap-Passcode", "p")
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func rec(user string) string {
	return fmt.Sprintf(`{"type":"event","identity":"%s","evtName":"Sale","evtData":{"status":"SENT","target_id":9007199254740993}}`, user)
}

func call(records ...string) string { return `{"d":[` + strings.Join(records, ",") + `]}` }

func TestAnswersByteForByte(t *testing.T) {
	zero := `{"type":"event","identity":"z","ts":0,"evtName":"Sale","evtData":{}}`
	zeroSpaced := `{ "type" : "event" , "identity" : "z" , "ts" : 0 , "evtName" : "Sale" , "evtData" : { }}`
	const when = "Timestamp should be present in the Unix Epoch format."
	for name, c := range map[string]struct {
		opts  fake.Options
		blank fake.Blank
		does  fake.Behaviour
		body  string
		code  int
		want  string
	}{
		"success": {body: call(rec("u")), code: 200, want: `{ "status" : "success" , "processed" : 1 , "unprocessed" : [ ]}`},
		"nothing": {body: call(), code: 200, want: `{ "status" : "success" , "processed" : 0 , "unprocessed" : [ ]}`},
		"partial": {
			body: call(rec("u"), zero), code: 200,
			want: `{ "status" : "partial" , "processed" : 1 , "unprocessed" : [ { "status" : "fail" , "code" : 525 , "error" : "` + when + `Skipped record number : 2" , "record" : ` + zeroSpaced + `}]}`,
		},
		"partial with a blank": {
			blank: fake.WithBlank, body: call(zero, rec("u")), code: 200,
			want: `{ "status" : "partial" , "processed" : 1 , "unprocessed" : [ { "status" : "fail" , "code" : 525 , "error" : "` + when + ` Skipped record number : 1" , "record" : ` + zeroSpaced + `}]}`,
		},
		"fail": {
			body: call(zero, zero), code: 200,
			want: `{ "status" : "fail" , "processed" : 0 , "unprocessed" : [ {"status":"fail","code":525,"error":"` + when + ` Skipped record number : 1","record":` + zero + `} , {"status":"fail","code":525,"error":"` + when + ` Skipped record number : 2","record":` + zero + `}]}`,
		},
		"fail without a blank": {
			blank: fake.WithoutBlank, body: call(zero), code: 200,
			want: `{ "status" : "fail" , "processed" : 0 , "unprocessed" : [ {"status":"fail","code":525,"error":"` + when + `Skipped record number : 1","record":` + zero + `}]}`,
		},
		"fail naming nothing": {does: fake.FailNamingNothing(), body: call(rec("u")), code: 200, want: `{"status":"fail","processed":0,"unprocessed":[]}`},
		"malformed":           {body: `{"d":[}`, code: 400, want: `{"status":"fail","error":"Malformed request","code":400}`},
		"bad account":         {opts: fake.Options{AccountID: "x"}, body: call(rec("u")), code: 401, want: `{ "status" : "fail" , "error" : "Account ID is not valid" , "code" : 401}`},
		"bad passcode":        {opts: fake.Options{AccountID: "a", Passcode: "x"}, body: call(rec("u")), code: 401, want: `{"status":"fail","error":"Invalid Credentials","code":401}`},
		"429":                 {does: fake.Status(429, nil, ""), body: call(rec("u")), code: 429, want: `{"status":"fail","error":"Too many concurrent requests","code":429}`},
	} {
		t.Run(name, func(t *testing.T) {
			s, client := setup(t, c.opts)
			s.Skipped(c.blank)
			s.Script(c.does)
			code, got, err := post(t.Context(), client, s, c.body)
			if err != nil || code != c.code || got != c.want {
				t.Errorf("got %d %v\n%s\nwant %d\n%s", code, err, got, c.code, c.want)
			}
		})
	}
}

func TestEveryRecordMeetsItsCode(t *testing.T) {
	s, client := setup(t, fake.Options{})
	long := func(n int) string { return strings.Repeat("x", n) }
	many := make([]string, 257)
	for i := range many {
		many[i] = fmt.Sprintf(`"p%d":1`, i)
	}
	event := func(more string) string {
		return `{"type":"event","identity":"u","evtName":"Sale","evtData":{` + more + `}}`
	}
	for body, want := range map[string]int{
		rec("u"): 0,
		`1`:      512,
		`{"type":"event","identity":"u","evtData":{}}`:                                    509,
		`{"type":"event","identity":"u","evtName":"","evtData":{}}`:                       509,
		`{"type":"event","identity":"u","evtName":"notificationSENT","evtData":{}}`:       513,
		`{"type":"event","identity":"u","evtName":"Sale"}`:                                512,
		`{"type":"event","identity":"u","evtName":"Sale","evtData":[]}`:                   512,
		`{"type":"event","identity":"u","FBID":"u","evtName":"Sale","evtData":{}}`:        512,
		`{"type":"event","evtName":"Sale","evtData":{}}`:                                  523,
		`{"type":"event","identity":"","evtName":"Sale","evtData":{}}`:                    523,
		`{"type":"event","objectId":"o","evtName":"Sale","evtData":{}}`:                   0,
		`{"identity":"u","evtName":"Sale","evtData":{}}`:                                  524,
		`{"type":"other","identity":"u","evtName":"Sale","evtData":{}}`:                   524,
		`{"type":"event","identity":"u","evtName":"Sale","ts":0,"evtData":{}}`:            525,
		`{"type":"event","identity":"u","evtName":"Sale","ts":1.5,"evtData":{}}`:          525,
		`{"type":"event","identity":"u","evtName":"Sale","ts":"1468308340","evtData":{}}`: 525,
		`{"type":"event","identity":"u","evtName":"Sale","ts":1468308340,"evtData":{}}`:   0,
		event(strings.Join(many, ",")):                                                    522,
		event(strings.Join(many[:256], ",")):                                              0,
		event(`"` + long(120) + `":1`):                                                    0,
		event(`"` + long(121) + `":1`):                                                    522,
		event(`"k":"` + long(512) + `"`):                                                  0,
		event(`"k":"` + long(513) + `"`):                                                  522,
	} {
		if code, answer, err := post(t.Context(), client, s, call(body)); code != 200 || err != nil {
			t.Fatalf("%d %s %v", code, answer, err)
		}
		calls := s.Calls()
		if got := calls[len(calls)-1].Records[0]; got.Code != want || got.Accepted != (want == 0) {
			t.Errorf("%.100s: got %d, want %d", body, got.Code, want)
		}
	}
}

func TestMalformedCalls(t *testing.T) {
	s, client := setup(t, fake.Options{MaxRecords: 2})
	for _, body := range []string{
		``, `{}`, `[]`, `null`, `{"d":{}}`, `{"d":[]`, `{"d":[]}x`, `{"d":[] /* a comment */}`, `{"d":[{"a":1,"a":2}]}`,
		`{"d":[],"d":[]}`, call(rec("a"), rec("b"), rec("c")), "{\"d\":[\"\xff\"]}",
	} {
		if code, _, err := post(t.Context(), client, s, body); code != 400 || err != nil {
			t.Errorf("%s: got %d, %v", body, code, err)
		}
	}
	if code, _, _ := post(t.Context(), client, s, `{"x":[1],"d":[],"y":{}}`); code != 200 {
		t.Errorf("further members: got %d", code)
	}
}

func TestOtherDoors(t *testing.T) {
	s, client := setup(t, fake.Options{})
	for method, paths := range map[string]map[string]int{
		"GET":  {"/": 200, "/1/upload": 200, "/anything": 200},
		"POST": {"/": 404, "/1/uploads": 404},
		"PUT":  {"/1/upload": 405},
	} {
		for path, want := range paths {
			req, _ := http.NewRequestWithContext(t.Context(), method, s.URL()+path, nil)
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != want || len(b) > 0 {
				t.Errorf("%s %s: got %d %q, want %d", method, path, resp.StatusCode, b, want)
			}
		}
	}
	if n := s.Counts().Calls; n != 0 {
		t.Errorf("%d calls counted", n)
	}
}

func TestTheSixteenthCallInFlightIsTooMany(t *testing.T) {
	s, client := setup(t, fake.Options{})
	s.Always(fake.Hang())
	var hanging sync.WaitGroup
	for range 15 {
		hanging.Go(func() { _, _, _ = post(t.Context(), client, s, call(rec("u"))) })
	}
	if err := s.Wait(t.Context(), func(c fake.Counts) bool { return c.InFlight == 15 }); err != nil {
		t.Fatal(err)
	}
	if code, _, err := post(t.Context(), client, s, call(rec("u"))); code != 429 || err != nil {
		t.Errorf("the sixteenth: got %d, %v", code, err)
	}
	s.Normal()
	s.Release()
	hanging.Wait()
	if err := s.Wait(t.Context(), func(c fake.Counts) bool { return c.InFlight == 0 }); err != nil {
		t.Fatal(err)
	}
	if code, _, err := post(t.Context(), client, s, call(rec("u"))); code != 200 || err != nil {
		t.Errorf("afterwards: got %d, %v", code, err)
	}
	want := fake.Counts{Calls: 17, OverLimit: 1, Accepted: 1, MaxInFlight: 16}
	if got := s.Counts(); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// lastByte notes how many calls are in flight at each write of an answer's body.
type lastByte struct {
	*httptest.ResponseRecorder
	s        *fake.Server
	inFlight []int
}

func (l *lastByte) Write(p []byte) (int, error) {
	l.inFlight = append(l.inFlight, l.s.Counts().InFlight)
	return l.ResponseRecorder.Write(p)
}

// A client that begins the next call on the last byte of an answer never has two
// in flight.
func TestACallLeavesBeforeTheLastByteOfItsAnswer(t *testing.T) {
	for name, does := range map[string]fake.Behaviour{
		"normal": {}, "status": fake.Status(503, nil, "later"), "cut JSON": fake.CutJSON(), "slow": fake.SlowBytes(0),
	} {
		s := fake.New(fake.Options{})
		s.Script(does)
		w := &lastByte{ResponseRecorder: httptest.NewRecorder(), s: s}
		s.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/1/upload", strings.NewReader(call(rec("u")))))
		for i, n := range w.inFlight {
			if last := i == len(w.inFlight)-1; last != (n == 0) {
				t.Errorf("%s: %d in flight at write %d of %d", name, n, i+1, len(w.inFlight))
			}
		}
	}
}

func TestCallsOneAfterTheOtherAreOneInFlight(t *testing.T) {
	s, client := setup(t, fake.Options{})
	s.Script(append(fake.Repeat(20, fake.SlowBytes(0)), fake.Repeat(20, fake.Status(503, nil, ""))...)...)
	for range 200 {
		if _, _, err := post(t.Context(), client, s, call(rec("u"))); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.Counts(); got.MaxInFlight != 1 || got.Calls != 200 || got.Accepted != 180 {
		t.Errorf("got %+v", got)
	}
}

func TestWhatIsLoggedOfACall(t *testing.T) {
	s, client := setup(t, fake.Options{})
	s.Judge(func(r fake.Record) int {
		if r.Identity == "bad" {
			return 555
		}
		return 0
	})
	var seen []string
	s.OnRecord(func(r fake.Record) { seen = append(seen, fmt.Sprint(r.Identity, r.Code)) })
	full := `{ "evtData" : { "status":"READ", "target_id":"0001", "x":[1, 2] }, "type":"event", "evtName":"Sal\u0065", "ts":1468308340, "FBID":"bird" }`
	if _, _, err := post(t.Context(), client, s, call(rec("a"), rec("bad"), full)); err != nil {
		t.Fatal(err)
	}
	s.Script(fake.ResetAfterBody(), fake.Status(503, nil, ""))
	if _, _, err := post(t.Context(), client, s, call(rec("lost"))); err == nil {
		t.Error("the reset call was answered")
	}
	if code, _, _ := post(t.Context(), client, s, call(rec("no"))); code != 503 {
		t.Errorf("got %d", code)
	}

	calls := s.Calls()
	if len(calls) != 3 {
		t.Fatalf("%d calls", len(calls))
	}
	for i, want := range []fake.Call{
		{Index: 1, InFlight: 1, Did: "normal", Status: 200, Count: 3, Accepted: 2, Refused: 1},
		{Index: 2, InFlight: 1, Did: "reset_after_body", Count: 1, Accepted: 1},
		{Index: 3, InFlight: 1, Did: "status", Status: 503, Count: 1},
	} {
		got := calls[i]
		if got.At.IsZero() || got.Bytes == 0 || len(got.Records) != want.Count {
			t.Errorf("got %+v", got)
		}
		got.At, got.Bytes, got.Records = time.Time{}, 0, nil
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	r := calls[0].Records[2]
	if r.Call != 1 || r.Index != 2 || r.Kind != "FBID" || r.Identity != "bird" || r.Event != "Sale" || r.Status != "READ" ||
		r.TargetID != `"0001"` || r.TS != "1468308340" || string(r.Raw) != full || r.Hash() != sha256.Sum256([]byte(full)) ||
		string(r.Property("x")) != "[1, 2]" || r.Property("y") != nil {
		t.Errorf("got %+v", r)
	}
	if got := calls[0].Records[0].TargetID; got != "9007199254740993" {
		t.Errorf("target id %s", got)
	}
	var accepted []string
	for r := range s.Accepted() {
		accepted = append(accepted, r.Identity)
	}
	if got, want := fmt.Sprint(accepted), "[a bird lost]"; got != want {
		t.Errorf("accepted %s, want %s", got, want)
	}
	if got, want := fmt.Sprint(seen), "[a0 bad555 bird0 lost0]"; got != want {
		t.Errorf("seen %s, want %s", got, want)
	}
}

func TestPoisonRefusesItsWholeCall(t *testing.T) {
	s, client := setup(t, fake.Options{})
	s.JudgeCall(func(c fake.Call) int {
		for _, r := range c.Records {
			if r.Identity == "poison" {
				return 400
			}
		}
		return 0
	})
	for body, want := range map[string]int{call(rec("a"), rec("poison")): 400, call(rec("a"), rec("b")): 200} {
		if code, _, err := post(t.Context(), client, s, body); code != want || err != nil {
			t.Errorf("got %d, %v, want %d", code, err, want)
		}
	}
	if got := s.Counts(); got.Accepted != 2 || got.Refused != 0 {
		t.Errorf("got %+v", got)
	}
}

func TestScriptThenAlwaysThenNormal(t *testing.T) {
	s, client := setup(t, fake.Options{})
	s.Always(fake.Status(500, nil, ""))
	s.Script(fake.Status(503, nil, ""), fake.Status(404, nil, "").Taking())
	if s.Pending() != 2 {
		t.Errorf("%d pending", s.Pending())
	}
	for i, want := range []int{503, 404, 500, 500, 200} {
		if i == 4 {
			s.Normal()
		}
		if code, _, err := post(t.Context(), client, s, call(rec("u"))); code != want || err != nil {
			t.Errorf("call %d: got %d, %v, want %d", i, code, err, want)
		}
	}
	if n := s.Counts().Accepted; n != 2 {
		t.Errorf("%d accepted, want that of Taking and the normal one", n)
	}
}

func TestEachIsAskedForEveryCallThatIsNotScripted(t *testing.T) {
	s, client := setup(t, fake.Options{})
	s.Each(func(c fake.Call) fake.Behaviour {
		if c.Index%2 == 0 {
			return fake.Status(503, nil, "")
		}
		return fake.Behaviour{}
	})
	s.Script(fake.Status(404, nil, ""))
	for i, want := range []int{404, 503, 200, 503, 200, 200} {
		if i == 5 {
			s.Normal()
		}
		if code, _, err := post(t.Context(), client, s, call(rec("u"))); code != want || err != nil {
			t.Errorf("call %d: got %d, %v, want %d", i+1, code, err, want)
		}
	}
}

func TestResetInTheMiddleOfAnAnswerComesAfterTaking(t *testing.T) {
	s, client := setup(t, fake.Options{})
	s.Script(fake.ResetMidAnswer())
	if _, body, err := post(t.Context(), client, s, call(rec("u"))); err == nil {
		t.Errorf("the answer came whole: %s", body)
	}
	if got := s.Calls()[0]; got.Accepted != 1 || got.Did != "reset_mid_answer" {
		t.Errorf("got %+v", got)
	}
}

func TestCountOnlyAndKeepingNothing(t *testing.T) {
	s, client := setup(t, fake.Options{})
	s.CountOnly(true)
	code, got, err := post(t.Context(), client, s, call(rec("a"), rec("b")))
	if want := `{ "status" : "success" , "processed" : 2 , "unprocessed" : [ ]}`; code != 200 || got != want || err != nil {
		t.Errorf("got %d %s %v", code, got, err)
	}
	s.CountOnly(false)
	s.KeepRecords(false)
	if _, _, err := post(t.Context(), client, s, call(rec("a"))); err != nil {
		t.Fatal(err)
	}
	for r := range s.Accepted() {
		t.Errorf("kept %+v", r)
	}
	if got := s.Counts(); got.Accepted != 3 || len(s.Calls()) != 2 {
		t.Errorf("got %+v, %d calls", got, len(s.Calls()))
	}
}

func TestStopAndListenAgainAtTheSamePlace(t *testing.T) {
	s, client := setup(t, fake.Options{})
	url := s.URL()
	s.Script(fake.Hang())
	done := make(chan error)
	go func() {
		_, _, err := post(t.Context(), client, s, call(rec("u")))
		done <- err
	}()
	if err := s.Wait(t.Context(), func(c fake.Counts) bool { return c.InFlight == 1 }); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	s.Stop()
	if err := <-done; err == nil {
		t.Error("a stopped server answered")
	}
	if _, _, err := post(t.Context(), client, s, call(rec("u"))); err == nil {
		t.Error("a stopped server answers")
	}
	if err := s.Listen(s.Addr()); err != nil || s.URL() != url {
		t.Fatalf("%v at %s, want %s", err, s.URL(), url)
	}
	if err := s.Listen("127.0.0.1:0"); err == nil {
		t.Error("it listens twice")
	}
	if code, _, err := post(t.Context(), client, s, call(rec("u"))); code != 200 || err != nil {
		t.Errorf("got %d, %v", code, err)
	}
	if n := s.Counts().Calls; n != 2 {
		t.Errorf("%d calls, want 2 over both lives", n)
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := fake.New(fake.Options{}).Wait(ctx, func(fake.Counts) bool { return false }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestConcurrentUse(t *testing.T) {
	s, client := setup(t, fake.Options{})
	var order []int // of calls, as OnRecord sees them; unguarded on purpose: the fake calls it once at a time
	s.OnRecord(func(r fake.Record) { order = append(order, r.Call) })
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 50 {
				_, _, _ = post(t.Context(), client, s, call(rec("u"), rec("v")))
				s.Script(fake.Delay(time.Microsecond))
				_ = s.Counts()
			}
		})
	}
	all.Wait()
	if got := s.Counts(); got.Accepted != 800 || len(order) != 800 || got.OverLimit != 0 || got.MaxInFlight > 8 {
		t.Errorf("got %+v, %d seen", got, len(order))
	}
}

// pipes is a listener whose connections are net.Pipes.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "fake", Net: "pipe"} }
func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case p.conns <- far:
		return near, nil
	case <-p.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func TestInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fake.New(fake.Options{})
		l := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		if err := s.Serve(l); err != nil {
			t.Fatal(err)
		}
		rt := &http.Transport{DialContext: l.dial}
		client := &http.Client{Transport: rt, Timeout: 30 * time.Second}
		begin := time.Now()
		s.Latency(200 * time.Millisecond)
		s.Script(fake.Delay(10*time.Second), fake.Hang(), fake.Delay(time.Hour), fake.SlowBytes(100*time.Millisecond), fake.ResetAfterBody())
		for i, want := range []int{200, 0, 0, 200, 0, 200} {
			code, body, _ := post(t.Context(), client, s, call(rec("u")))
			if code != want || want == 200 && !bytes.Contains([]byte(body), []byte("success")) {
				t.Errorf("call %d: got %d %s, want %d", i, code, body, want)
			}
		}
		slow := time.Duration(len(`{ "status" : "success" , "processed" : 1 , "unprocessed" : [ ]}`)) * 100 * time.Millisecond
		if got, want := time.Since(begin), 70*time.Second+5*200*time.Millisecond-200*time.Millisecond+slow; got != want {
			t.Errorf("took %v of the bubble's time, want %v", got, want)
		}
		rt.CloseIdleConnections()
		s.Close()
	})
}
