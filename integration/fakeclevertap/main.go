// Command fakeclevertap is the fake CleverTap as a program, for tests whose birdtap
// runs in containers: only in their network are they sure to reach it. It judges
// receipts by the fates that they bear, and shows what came.
//
//	POST /1/upload          what CleverTap does
//	GET  /-/counts          [Counts], as JSON
//	GET  /-/calls?since=N   when calls came since then, by host name; in ns since 1970
//	GET  /-/accepted        the records taken, in order, one a line, in base64
//	POST /-/run?name=RUN    begins another run: what was taken before is forgotten
//
// A destination may have several names in the network: calls are counted by the host
// name that the caller used, so that the test sees which relay uploads.
package main

import (
	"bufio"
	"encoding/base64"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
	"github.com/birdtap/birdtap/integration/history"
)

// Counts is the answer of /-/counts.
type Counts struct {
	MaxInFlight int            `json:"max_in_flight"`
	MaxRecords  int            `json:"max_records"` // in one call
	Duplicates  int            `json:"duplicates"`  // of this run
	Calls       map[string]int `json:"calls"`       // by host name
}

func main() {
	addr := flag.String("addr", ":8000", "where to listen")
	run := flag.String("run", "", "the run whose receipts are judged")
	latency := flag.Duration("latency", 0, "of every answer")
	account := flag.String("account", "", "account id to be presented")
	passcode := flag.String("passcode", "", "passcode to be presented")
	flag.Parse()

	f := &fake{
		server: clevertaptest.New(clevertaptest.Options{AccountID: *account, Passcode: *passcode}),
		calls:  map[string][]int64{},
	}
	f.begin(*run)
	f.server.KeepRecords(false) // those of this run are kept here
	f.server.Latency(*latency)
	s := &http.Server{Addr: *addr, Handler: f.handler(), ReadHeaderTimeout: 10 * time.Second}
	fmt.Fprintln(os.Stderr, s.ListenAndServe())
	os.Exit(1)
}

type fake struct {
	server *clevertaptest.Server

	mu       sync.Mutex
	calls    map[string][]int64 // when they came, by host name
	records  int                // the most in one call
	received *history.Received  // of this run
	taken    [][]byte           // of this run, in order
}

// begin begins a run. Nothing may be under way.
func (f *fake) begin(run string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.received, f.taken = history.NewReceived(run), nil
	f.server.Judge(f.received.Judge)
	f.server.OnRecord(f.record)
}

func (f *fake) record(r clevertaptest.Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.records = max(f.records, r.Index+1)
	f.received.Record(r)
	if r.Accepted {
		f.taken = append(f.taken, r.Raw)
	}
}

func (f *fake) handler() http.Handler {
	upload := f.server.Handler()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /-/counts", f.counts)
	mux.HandleFunc("GET /-/calls", f.since)
	mux.HandleFunc("GET /-/accepted", f.accepted)
	mux.HandleFunc("POST /-/run", func(_ http.ResponseWriter, r *http.Request) { f.begin(r.URL.Query().Get("name")) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.calls[r.Host] = append(f.calls[r.Host], time.Now().UnixNano())
		f.mu.Unlock()
		upload.ServeHTTP(w, r)
	})
	return mux
}

func (f *fake) counts(w http.ResponseWriter, _ *http.Request) {
	c := Counts{MaxInFlight: f.server.Counts().MaxInFlight, Calls: map[string]int{}}
	f.mu.Lock()
	c.MaxRecords, c.Duplicates = f.records, f.received.Duplicates()
	for host, calls := range f.calls {
		c.Calls[host] = len(calls)
	}
	f.mu.Unlock()
	_ = json.MarshalWrite(w, c) // nobody is left to tell
}

func (f *fake) since(w http.ResponseWriter, r *http.Request) {
	since, err := strconv.ParseInt(r.URL.Query().Get("since"), 10, 64)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	list := map[string][]int64{}
	f.mu.Lock()
	for host, calls := range f.calls {
		if first, _ := slices.BinarySearch(calls, since); first < len(calls) {
			list[host] = slices.Clone(calls[first:])
		}
	}
	f.mu.Unlock()
	_ = json.MarshalWrite(w, list)
}

func (f *fake) accepted(w http.ResponseWriter, _ *http.Request) {
	f.mu.Lock()
	taken := f.taken
	f.mu.Unlock()
	out := bufio.NewWriter(w)
	for _, raw := range taken {
		_, _ = io.WriteString(out, base64.StdEncoding.EncodeToString(raw)+"\n")
	}
	_ = out.Flush()
}
