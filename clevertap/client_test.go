package clevertap_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/birdtap/birdtap/clevertap"
	"github.com/birdtap/birdtap/clevertap/clevertaptest"
)

const (
	account  = "ACC-OUNT-ID"
	passcode = "PASS-CODE-SECRET"
	person   = "jane.doe@example.com"
)

// fake starts a CleverTap and a client of it.
func fake(t *testing.T, opts ...clevertap.Option) (*clevertaptest.Server, *clevertap.Client) {
	t.Helper()
	s, err := clevertaptest.Start("127.0.0.1:0", clevertaptest.Options{AccountID: account, Passcode: passcode})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, client(t, s.URL(), opts...)
}

func client(t *testing.T, url string, opts ...clevertap.Option) *clevertap.Client {
	t.Helper()
	c, err := clevertap.New(clevertap.Config{
		URL: url, AccountID: account, Passcode: func() string { return passcode }, Timeout: 10 * time.Second,
	}, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// batch is n records of n users.
func batch(n int) [][]byte {
	list := make([][]byte, n)
	for i := range list {
		list[i] = fmt.Appendf(nil, `{"identity":"%s-%d","ts":1468308340,"type":"event","evtName":"Sale","evtData":{"status":"SENT","target_id":%d}}`, person, i, i)
	}
	return list
}

// quiet fails if an error shows what no error may show.
func quiet(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	for _, secret := range []string{passcode, account, person, "Skipped", "Sale", "Invalid Credentials", "Malformed", "hunter2"} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("error %q shows %q", err, secret)
		}
	}
}

func TestEveryStatusHasItsKind(t *testing.T) {
	s, c := fake(t)
	want := map[int]clevertap.Kind{
		400: clevertap.BadRequest, 413: clevertap.TooLarge, 429: clevertap.TooMany,
		401: clevertap.Denied, 403: clevertap.Denied, 404: clevertap.Denied,
	}
	for status := 201; status < 600; status++ {
		kind, ok := want[status]
		switch {
		case ok:
		case status >= 500:
			kind = clevertap.ServerError
		default:
			kind = clevertap.Unexpected
		}
		s.Script(clevertaptest.Status(status, http.Header{"Retry-After": {"3"}, "Location": {s.URL() + "/1/upload"}}, ""))
		got := c.Upload(t.Context(), batch(1))
		if got.Kind != kind || got.Status != status || got.RetryAfter != 3*time.Second || got.Err == nil || got.Refused != nil {
			t.Errorf("%d: got %+v, want %v", status, got, kind)
		}
		quiet(t, got.Err)
	}
	if n := s.Counts().Calls; n != 399 {
		t.Errorf("%d calls, want 399: nothing is followed or repeated", n)
	}
}

func TestCallAsDocumented(t *testing.T) {
	var got *http.Request
	var sent []byte
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r
		sent, _ = io.ReadAll(r.Body)
		_, _ = io.WriteString(w, `{ "status" : "success" , "processed" : 2 , "unprocessed" : [ ]}`)
	}))
	defer srv.Close()
	secret := "first"
	c, err := clevertap.New(clevertap.Config{URL: srv.URL + "/proxy/", AccountID: account, Passcode: func() string { return secret }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, secret = range []string{"first", "second"} {
		if r := c.Upload(t.Context(), batch(2)); r.Kind != clevertap.Accepted || r.Err != nil {
			t.Fatalf("got %+v", r)
		}
		want := `{"d":[` + string(bytes.Join(batch(2), []byte(","))) + `]}`
		if string(sent) != want || got.ContentLength != int64(len(want)) || len(got.TransferEncoding) > 0 {
			t.Errorf("body %s (length %d), want %s", sent, got.ContentLength, want)
		}
		for name, value := range map[string]string{
			"X-CleverTap-Account-Id": account, "X-CleverTap-Passcode": secret, "Content-Type": "application/json", "Accept-Encoding": "",
		} {
			if v := got.Header.Get(name); v != value {
				t.Errorf("%s: %q, want %q", name, v, value)
			}
		}
		if got.Method != http.MethodPost || got.URL.String() != "/proxy/1/upload" {
			t.Errorf("%s %s", got.Method, got.URL)
		}
	}
}

func TestRefusedRecordsAreTiedByIndex(t *testing.T) {
	for _, blank := range []clevertaptest.Blank{clevertaptest.AsRecorded, clevertaptest.WithBlank, clevertaptest.WithoutBlank} {
		s, c := fake(t)
		s.Skipped(blank)
		s.Judge(func(r clevertaptest.Record) int {
			return map[string]int{person + "-3": 555, person + "-7": 528}[r.Identity]
		})
		got := c.Upload(t.Context(), batch(10))
		if got.Kind != clevertap.Accepted || len(got.Refused) != 2 ||
			got.Refused[0].Index != 3 || got.Refused[0].Code != clevertap.CodeServerError ||
			got.Refused[1].Index != 7 || got.Refused[1].Code != clevertap.CodeDiscarded {
			t.Errorf("got %+v", got)
		}
		s.Judge(func(clevertaptest.Record) int { return 513 })
		if got = c.Upload(t.Context(), batch(1000)); got.Kind != clevertap.Accepted || len(got.Refused) != 1000 {
			t.Errorf("all refused: got %v, %d, %v", got.Kind, len(got.Refused), got.Err)
		}
	}
}

func TestBrokenAnswers(t *testing.T) {
	s, c := fake(t)
	for name, tc := range map[string]struct {
		does clevertaptest.Behaviour
		want clevertap.Kind
		took int
	}{
		"html":                {clevertaptest.HTML(), clevertap.Unclear, 0},
		"cut JSON":            {clevertaptest.CutJSON(), clevertap.Unclear, 3},
		"cut off":             {clevertaptest.CutOff(), clevertap.Unreachable, 3},
		"wrong counts":        {clevertaptest.WrongCounts(1), clevertap.Unclear, 3},
		"fail naming nothing": {clevertaptest.FailNamingNothing(), clevertap.Unclear, 0},
		"wrong number":        {clevertaptest.WrongNumber(), clevertap.Unclear, 2},
		"mismatched echo":     {clevertaptest.MismatchedEcho(), clevertap.Unclear, 2},
		"reset before body":   {clevertaptest.ResetBeforeBody(), clevertap.Unreachable, 0},
		"reset after body":    {clevertaptest.ResetAfterBody(), clevertap.Unreachable, 3},
		"close after body":    {clevertaptest.CloseAfterBody(), clevertap.Unreachable, 3},
		"huge":                {clevertaptest.Huge(1 << 30), clevertap.Unclear, 0},
		"huge gzip":           {clevertaptest.HugeGzip(1 << 30), clevertap.Unclear, 0},
		"slow bytes":          {clevertaptest.SlowBytes(time.Microsecond), clevertap.Accepted, 3},
		"delay":               {clevertaptest.Delay(time.Microsecond), clevertap.Accepted, 3},
	} {
		before := s.Counts()
		s.Script(tc.does)
		got := c.Upload(t.Context(), batch(3))
		quiet(t, got.Err)
		if got.Kind != tc.want || (got.Err == nil) != (tc.want == clevertap.Accepted) {
			t.Errorf("%s: got %+v, want %v", name, got, tc.want)
		}
		after := s.Counts()
		if n := after.Calls - before.Calls; n != 1 {
			t.Errorf("%s: %d calls for one upload", name, n)
		}
		if n := after.Accepted - before.Accepted; n != int64(tc.took) {
			t.Errorf("%s: took %d, want %d", name, n, tc.took)
		}
	}
	if got := c.Upload(t.Context(), batch(3)); got.Kind != clevertap.Accepted {
		t.Errorf("afterwards: got %+v", got)
	}
}

func TestUnpackingIsLimited(t *testing.T) {
	rt := &http.Transport{} // asks for gzip, and unpacks it
	s, c := fake(t, clevertap.WithTransport(rt))
	s.Script(clevertaptest.HugeGzip(1 << 30))
	if got := c.Upload(t.Context(), batch(1)); got.Kind != clevertap.Unclear {
		t.Errorf("got %+v", got)
	}
}

func TestWrongCredentialsAreDenied(t *testing.T) {
	s, err := clevertaptest.Start("127.0.0.1:0", clevertaptest.Options{AccountID: account, Passcode: "another"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got := client(t, s.URL()).Upload(t.Context(), batch(1))
	if got.Kind != clevertap.Denied || got.Status != 401 || !strings.Contains(got.Err.Error(), "region") {
		t.Errorf("got %+v", got)
	}
	quiet(t, got.Err)
}

func TestTimeoutAndCancelAreUnreachable(t *testing.T) {
	s, _ := fake(t)
	c, err := clevertap.New(clevertap.Config{
		URL: s.URL(), AccountID: account, Passcode: func() string { return passcode }, Timeout: 50 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s.Script(clevertaptest.Hang())
	if got := c.Upload(t.Context(), batch(1)); got.Kind != clevertap.Unreachable || !errors.Is(got.Err, context.DeadlineExceeded) {
		t.Errorf("hang: got %+v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := c.Upload(ctx, batch(1)); got.Kind != clevertap.Unreachable || !errors.Is(got.Err, context.Canceled) {
		t.Errorf("cancelled: got %+v", got)
	}
}

func TestNobodyThereIsUnreachable(t *testing.T) {
	s, c := fake(t)
	s.Stop()
	got := c.Upload(t.Context(), batch(1))
	var dial *net.OpError
	if got.Kind != clevertap.Unreachable || got.Status != 0 || !errors.As(got.Err, &dial) {
		t.Errorf("got %+v", got)
	}
	if err := s.Listen(s.Addr()); err != nil {
		t.Fatal(err)
	}
	if got = c.Upload(t.Context(), batch(1)); got.Kind != clevertap.Accepted {
		t.Errorf("after restart: got %+v", got)
	}
}

func TestUntrustedCertificateIsUnreachable(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	got := client(t, srv.URL).Upload(t.Context(), batch(1))
	var cert *tls.CertificateVerificationError
	if got.Kind != clevertap.Unreachable || !errors.As(got.Err, &cert) {
		t.Errorf("got %+v", got)
	}
}

func TestUnreadableAnswerIsNotQuoted(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = conn.Read(make([]byte, 1<<16))
		_, _ = io.WriteString(conn, person+" "+passcode+" is what you sent\r\n\r\n")
	}()
	got := client(t, "http://"+l.Addr().String()).Upload(t.Context(), batch(1))
	if got.Kind != clevertap.Unreachable || got.Err == nil {
		t.Errorf("got %+v", got)
	}
	quiet(t, got.Err)
}

func TestNoRecordsNoCall(t *testing.T) {
	s, c := fake(t)
	if got := c.Upload(t.Context(), nil); got.Kind != clevertap.Accepted {
		t.Errorf("none: got %+v", got)
	}
	if got := c.Upload(t.Context(), batch(1001)); got.Kind != clevertap.TooLarge || got.Err == nil {
		t.Errorf("1001: got %+v", got)
	}
	if got := c.Upload(t.Context(), batch(1000)); got.Kind != clevertap.Accepted {
		t.Errorf("1000: got %+v", got)
	}
	if n := s.Counts().Calls; n != 1 {
		t.Errorf("%d calls, want 1", n)
	}
}

func TestConnectionsAreKept(t *testing.T) {
	var dials atomic.Int32
	dialer := &net.Dialer{}
	rt := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials.Add(1)
		return dialer.DialContext(ctx, network, addr)
	}}
	s, c := fake(t, clevertap.WithTransport(rt))
	s.Script(clevertaptest.Behaviour{}, clevertaptest.Status(503, nil, ""), clevertaptest.HTML(), clevertaptest.Status(400, nil, ""))
	for range 10 {
		c.Upload(t.Context(), batch(1))
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("%d connections for ten calls one after the other", n)
	}
	s.CloseConnections(true)
	for range 3 {
		if got := c.Upload(t.Context(), batch(1)); got.Kind != clevertap.Accepted {
			t.Errorf("Connection: Close: got %+v", got)
		}
	}
	if n := dials.Load(); n != 3 {
		t.Errorf("%d connections, want 3: the kept one and two more", n)
	}
}

// brokenConn dies at the first write once it is armed, before or after the bytes
// have left.
type brokenConn struct {
	net.Conn
	armed   *atomic.Bool
	writing bool
}

func (c brokenConn) Write(p []byte) (int, error) {
	if !c.armed.CompareAndSwap(true, false) {
		return c.Conn.Write(p)
	}
	n := 0
	if c.writing {
		n, _ = c.Conn.Write(p)
	}
	_ = c.Close()
	return n, io.ErrClosedPipe
}

func TestACallIsRepeatedOnlyIfNoByteOfItWasWritten(t *testing.T) {
	for name, tc := range map[string]struct {
		writing bool
		want    clevertap.Kind
	}{
		"nothing written": {false, clevertap.Accepted},
		"written":         {true, clevertap.Unreachable},
	} {
		t.Run(name, func(t *testing.T) {
			var armed atomic.Bool
			dialer := &net.Dialer{}
			rt := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := dialer.DialContext(ctx, network, addr)
				return brokenConn{conn, &armed, tc.writing}, err
			}}
			s, c := fake(t, clevertap.WithTransport(rt))
			if got := c.Upload(t.Context(), batch(1)); got.Kind != clevertap.Accepted {
				t.Fatalf("first: got %+v", got)
			}
			armed.Store(true)
			if got := c.Upload(t.Context(), batch(1)); got.Kind != tc.want {
				t.Errorf("second: got %+v, want %v", got, tc.want)
			}
			if n := s.Counts().Calls; tc.want == clevertap.Accepted && n != 2 || n > 2 {
				t.Errorf("CleverTap saw %d calls of two", n)
			}
		})
	}
}

// lateReader answers at once, and reads the body for as long as it gets any.
type lateReader struct{ done chan int }

func (l lateReader) RoundTrip(req *http.Request) (*http.Response, error) {
	started := make(chan struct{})
	go func() {
		n, buf := 0, make([]byte, 7)
		for {
			c, err := req.Body.Read(buf)
			if n += c; n == c {
				close(started)
			}
			if err != nil {
				break
			}
		}
		_ = req.Body.Close()
		l.done <- n
	}()
	<-started
	return &http.Response{StatusCode: 503, Body: http.NoBody, Header: http.Header{}}, nil
}

// The race detector watches this one.
func TestRecordsAreTheCallersAgainAfterUpload(t *testing.T) {
	l := lateReader{make(chan int, 1)}
	c := client(t, "http://localhost", clevertap.WithTransport(l))
	list := batch(1000)
	if got := c.Upload(t.Context(), list); got.Kind != clevertap.ServerError {
		t.Fatalf("got %+v", got)
	}
	for _, r := range list {
		for i := range r { // clear(r) is not seen by the detector
			r[i] = 'x'
		}
	}
	<-l.done
}

func TestEarlyAnswerToALargeBody(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
	}))
	defer srv.Close()
	list := batch(100)
	for i := range list {
		list[i] = bytes.Replace(list[i], []byte("Sale"), bytes.Repeat([]byte("x"), 128<<10), 1)
	}
	// The server may close before its answer is read; then the outcome is unknown.
	if got := client(t, srv.URL).Upload(t.Context(), list); got.Kind != clevertap.TooLarge && got.Kind != clevertap.Unreachable {
		t.Errorf("got %+v", got)
	}
}

func TestNewRefusesWithoutShowing(t *testing.T) {
	pass := func() string { return passcode }
	for name, cfg := range map[string]clevertap.Config{
		"credentials":     {URL: "https://jane:hunter2@api.clevertap.com", AccountID: account, Passcode: pass},
		"query":           {URL: "https://api.clevertap.com/?key=hunter2", AccountID: account, Passcode: pass},
		"no URL":          {URL: "https://jane:hunter2 @:x", AccountID: account, Passcode: pass},
		"scheme":          {URL: "ftp://hunter2", AccountID: account, Passcode: pass},
		"no host":         {URL: "https:///hunter2", AccountID: account, Passcode: pass},
		"no account":      {Passcode: pass},
		"no passcode":     {AccountID: account},
		"no scheme":       {URL: "api.clevertap.com:443", AccountID: account, Passcode: pass},
		"not a transport": {URL: "x", AccountID: account, Passcode: pass},
	} {
		_, err := clevertap.New(cfg)
		if err == nil {
			t.Errorf("%s: taken", name)
		}
		quiet(t, err)
	}
	if _, err := clevertap.New(clevertap.Config{AccountID: account, Passcode: pass}, clevertap.WithTransport(nil)); err == nil {
		t.Error("nil transport: taken")
	}
}

func TestUnfitPasscodeIsNotShown(t *testing.T) {
	s, _ := fake(t)
	c, err := clevertap.New(clevertap.Config{URL: s.URL(), AccountID: account, Passcode: func() string { return passcode + "\n" }})
	if err != nil {
		t.Fatal(err)
	}
	got := c.Upload(t.Context(), batch(1))
	if got.Kind != clevertap.Unreachable || got.Err == nil {
		t.Errorf("got %+v", got)
	}
	quiet(t, got.Err)
}

func BenchmarkUpload(b *testing.B) {
	s, err := clevertaptest.Start("127.0.0.1:0", clevertaptest.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	s.CountOnly(true)
	c, err := clevertap.New(clevertap.Config{URL: s.URL(), AccountID: account, Passcode: func() string { return passcode }})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	list := batch(clevertap.MaxRecords)
	b.ReportAllocs()
	for b.Loop() {
		if r := c.Upload(b.Context(), list); r.Kind != clevertap.Accepted {
			b.Fatal(r.Err)
		}
	}
	b.ReportMetric(float64(b.N)*clevertap.MaxRecords/b.Elapsed().Seconds(), "records/s")
}
