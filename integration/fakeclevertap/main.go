// Command fakeclevertap is the fake CleverTap as a program, for tests whose birdtap
// runs in containers: only in their network are they sure to reach it. It judges
// receipts by the fates that they bear, and shows what came.
//
//	POST /1/upload   what CleverTap does
//	GET  /-/counts   [Counts], as JSON
//	GET  /-/accepted the records taken, in order, one a line, in base64
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
	"maps"
	"net/http"
	"os"
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
		calls:  map[string]int{},
	}
	f.server.Judge(history.NewReceived(*run).Judge)
	f.server.Latency(*latency)
	s := &http.Server{Addr: *addr, Handler: f.handler(), ReadHeaderTimeout: 10 * time.Second}
	fmt.Fprintln(os.Stderr, s.ListenAndServe())
	os.Exit(1)
}

type fake struct {
	server *clevertaptest.Server

	mu    sync.Mutex
	calls map[string]int
}

func (f *fake) handler() http.Handler {
	upload := f.server.Handler()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /-/counts", f.counts)
	mux.HandleFunc("GET /-/accepted", f.accepted)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.calls[r.Host]++
		f.mu.Unlock()
		upload.ServeHTTP(w, r)
	})
	return mux
}

func (f *fake) counts(w http.ResponseWriter, _ *http.Request) {
	c := Counts{MaxInFlight: f.server.Counts().MaxInFlight, Calls: map[string]int{}}
	for _, call := range f.server.Calls() {
		c.MaxRecords = max(c.MaxRecords, call.Count)
	}
	f.mu.Lock()
	maps.Copy(c.Calls, f.calls)
	f.mu.Unlock()
	_ = json.MarshalWrite(w, c) // nobody is left to tell
}

func (f *fake) accepted(w http.ResponseWriter, _ *http.Request) {
	out := bufio.NewWriter(w)
	for r := range f.server.Accepted() {
		_, _ = io.WriteString(out, base64.StdEncoding.EncodeToString(r.Raw)+"\n")
	}
	_ = out.Flush()
}
