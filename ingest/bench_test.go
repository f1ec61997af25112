package ingest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/birdtap/birdtap/store"
)

var (
	benchTime = time.Unix(1700000000, 0)
	benchOne  = []byte(`{"d":[{"type":"event","identity":"user-0123456789","evtName":"My First Campaign","evtData":{"status":"READ","target_id":1712345678}}]}`)
)

// benchBody has n records of about 125 bytes.
func benchBody(n int) []byte {
	one := benchOne[len(`{"d":[`) : len(benchOne)-len(`]}`)]
	return append(append([]byte(`{"d":[`), bytes.Join(slices.Repeat([][]byte{one}, n), []byte(","))...), "]}"...)
}

func BenchmarkParse(b *testing.B) {
	var p parser
	b.ReportAllocs()
	b.SetBytes(int64(len(benchOne)))
	for b.Loop() {
		if err := p.parse(benchOne, func(*record) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseConvert(b *testing.B) {
	for _, bb := range []struct {
		name string
		n    int
	}{{"1", 1}, {"1000", 1000}} {
		b.Run(bb.name, func(b *testing.B) {
			body := benchBody(bb.n)
			var p parser
			var c converter
			var last store.Receipt
			take := func(r *record) (err error) { last, err = c.convert(r); return err }
			b.ReportAllocs()
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				c.reset(benchTime)
				if err := p.parse(body, take); err != nil || last.Code != 0 {
					b.Fatal(err, last.Code)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*bb.n), "ns/record")
		})
	}
}

// nowhere is a Committer that costs nothing.
func nowhere(context.Context, []store.Receipt) error { return nil }

func benchServer(b *testing.B) *Server {
	b.Helper()
	s, err := New(Options{
		Addr: "127.0.0.1:0", Upload: true,
		Account: func() string { return testAccount }, Passcode: func() string { return testPasscode },
	})
	if err != nil {
		b.Fatal(err)
	}
	s.SetCommitter(committerFunc(nowhere))
	b.Cleanup(func() { _ = s.Shutdown(context.Background()) })
	return s
}

// discard is a ResponseWriter that costs nothing.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}

// BenchmarkHandler is a whole call without net/http around it.
func BenchmarkHandler(b *testing.B) {
	for _, n := range []int{1, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := benchServer(b)
			body := bytes.NewReader(benchBody(n))
			r := httptest.NewRequest(http.MethodPost, "/1/upload", body)
			r.Header = credentials()
			w := discard{http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				body.Reset(benchBodies[n])
				s.ServeHTTP(w, r)
			}
			b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "receipts/s")
		})
	}
}

var benchBodies = map[int][]byte{1: benchBody(1), 1000: benchBody(1000)}

// BenchmarkDoor holds the door, without a queue behind it, against a bare handler
// that only reads the same body: 64 keep-alive connections, one receipt per call.
// The load of both is made by the same process.
func BenchmarkDoor(b *testing.B) {
	bare := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = w.Write(oneTaken)
	})
	for _, bb := range []struct {
		name    string
		handler func(*Server) http.Handler
	}{
		{"bare", func(*Server) http.Handler { return bare }},
		{"birdtap", func(s *Server) http.Handler { return s }},
	} {
		b.Run(bb.name, func(b *testing.B) {
			s := benchServer(b)
			s.http.Handler = bb.handler(s)
			go func() { _ = s.Serve() }()
			request := fmt.Appendf(nil, "%sContent-Length: %d\r\n\r\n%s", rawHeader, len(benchOne), benchOne)
			b.SetParallelism(32) // times two cores
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				conn, err := net.Dial("tcp", s.Addr().String())
				if err != nil {
					b.Error(err)
					return
				}
				defer conn.Close()
				answer := make([]byte, 4<<10)
				for pb.Next() {
					_, _ = conn.Write(request)
					if n, _ := conn.Read(answer); !bytes.HasSuffix(answer[:n], oneTaken) {
						b.Errorf("got %q", answer[:n])
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "posts/s")
		})
	}
}
