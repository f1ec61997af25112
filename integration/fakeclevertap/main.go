// Command fakeclevertap is the fake CleverTap as a program, for tests whose birdtap
// runs in containers: only in their network are they sure to reach it. It judges
// receipts by the fates that they bear, and shows what came.
//
//	POST /1/upload              what CleverTap does
//	GET  /-/counts              [Counts], as JSON; with ?since=N in flight at most since then
//	GET  /-/calls?since=N       when calls came since then, by host name; in ns since 1970
//	GET  /-/accepted?with=TEXT  the records taken that have TEXT in them, in order, one a line, in base64
//	POST /-/run?name=RUN        begins another run: what was taken before is forgotten
//	POST /-/latency?for=7s      of the calls that come from now on
//	POST /-/mood?name=NAME      what all calls meet from now on, see moods.All; without a name the usual
//	POST /-/mend                refuses nothing any more that this run made to be refused
//
// A destination may have several names in the network: calls are counted by the host
// name that the caller used, so that the test sees which relay uploads.
//
// With -outlive a call goes on for its latency when its caller has died, and counts as in
// flight for so long, as it does at CleverTap: nobody there looks whether somebody still
// listens. Without, it ends with its connection.
package main

import (
	"bufio"
	"bytes"
	"context"
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
	"github.com/birdtap/birdtap/integration/moods"
)

// Counts is the answer of /-/counts.
type Counts struct {
	InFlight    int            `json:"in_flight"`     // now
	MaxInFlight int            `json:"max_in_flight"` // ever; with ?since, of the last thousand calls at most
	MaxRecords  int            `json:"max_records"`   // in one call
	Duplicates  int            `json:"duplicates"`    // of this run
	MayRepeat   int            `json:"may_repeat"`    // records of this run whose answer was none, or not what it should be
	Calls       map[string]int `json:"calls"`         // by host name
}

func main() {
	addr := flag.String("addr", ":8000", "where to listen")
	run := flag.String("run", "", "the run whose receipts are judged")
	latency := flag.Duration("latency", 0, "of every answer")
	account := flag.String("account", "", "account id to be presented")
	passcode := flag.String("passcode", "", "passcode to be presented")
	outlive := flag.Bool("outlive", false, "calls go on when their caller has died")
	timeout := flag.Duration("timeout", 30*time.Second, "how long callers wait, for moods")
	flag.Parse()

	f := newFake(*run, clevertaptest.Options{AccountID: *account, Passcode: *passcode})
	f.outlive, f.timeout = *outlive, *timeout
	f.server.Latency(*latency)
	s := &http.Server{Addr: *addr, Handler: f.handler(), ReadHeaderTimeout: 10 * time.Second}
	fmt.Fprintln(os.Stderr, s.ListenAndServe())
	os.Exit(1)
}

type fake struct {
	server  *clevertaptest.Server
	outlive bool
	timeout time.Duration

	mu        sync.Mutex
	calls     map[string][]int64 // when they came, by host name
	records   int                // the most in one call
	received  *history.Received  // of this run
	taken     [][]byte           // of this run, in order
	mayRepeat int                // of this run

	moody   sync.Mutex // comes after mu and after the server's own
	mood    moods.Mood
	spoiled map[int]bool // numbers of calls
}

func newFake(run string, o clevertaptest.Options) *fake {
	f := &fake{server: clevertaptest.New(o), calls: map[string][]int64{}, spoiled: map[int]bool{}}
	f.begin(run)
	f.server.KeepRecords(false) // those of this run are kept here
	f.server.Each(f.meet)
	return f
}

// begin begins a run. Nothing may be under way.
func (f *fake) begin(run string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.received, f.taken, f.mayRepeat = history.NewReceived(run), nil, 0
	f.server.Judge(f.received.Judge)
	f.server.JudgeCall(f.received.JudgeCall)
	f.server.OnRecord(f.record)
}

func (f *fake) record(r clevertaptest.Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.records = max(f.records, r.Index+1)
	f.received.Record(r)
	if !r.Accepted {
		return
	}
	f.taken = append(f.taken, r.Raw)
	f.moody.Lock()
	defer f.moody.Unlock()
	if f.spoiled[r.Call] {
		f.mayRepeat++
	}
}

// meet is what a call meets.
func (f *fake) meet(c clevertaptest.Call) clevertaptest.Behaviour {
	f.moody.Lock()
	defer f.moody.Unlock()
	if f.mood.Spoils() {
		f.spoiled[c.Index] = true
	}
	return f.mood.Behaviour
}

// outlives tells whether a call goes on without its caller. One that has no end does not:
// when it would be over nobody could say.
func (f *fake) outlives() bool {
	f.moody.Lock()
	defer f.moody.Unlock()
	return f.outlive && !f.mood.Endless
}

func (f *fake) setMood(w http.ResponseWriter, r *http.Request) {
	m, known := moods.Named(r.URL.Query().Get("name"), f.timeout)
	if !known {
		http.Error(w, "no such mood", http.StatusBadRequest)
		return
	}
	f.moody.Lock()
	f.mood = m
	f.moody.Unlock()
	f.server.Release() // what hangs
}

func (f *fake) setLatency(w http.ResponseWriter, r *http.Request) {
	d, err := time.ParseDuration(r.URL.Query().Get("for"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	f.server.Latency(d)
}

func (f *fake) mend(http.ResponseWriter, *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.received.Mend()
}

func (f *fake) handler() http.Handler {
	upload := f.server.Handler()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /-/counts", f.counts)
	mux.HandleFunc("GET /-/calls", f.since)
	mux.HandleFunc("GET /-/accepted", f.accepted)
	mux.HandleFunc("POST /-/run", func(_ http.ResponseWriter, r *http.Request) { f.begin(r.URL.Query().Get("name")) })
	mux.HandleFunc("POST /-/latency", f.setLatency)
	mux.HandleFunc("POST /-/mood", f.setMood)
	mux.HandleFunc("POST /-/mend", f.mend)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.calls[r.Host] = append(f.calls[r.Host], time.Now().UnixNano())
		f.mu.Unlock()
		if f.outlives() {
			r = r.WithContext(context.WithoutCancel(r.Context()))
		}
		upload.ServeHTTP(w, r)
	})
	return mux
}

func (f *fake) counts(w http.ResponseWriter, r *http.Request) {
	all := f.server.Counts()
	c := Counts{InFlight: all.InFlight, MaxInFlight: all.MaxInFlight, Calls: map[string]int{}}
	if since, err := strconv.ParseInt(r.URL.Query().Get("since"), 10, 64); err == nil {
		c.MaxInFlight = all.InFlight
		for _, call := range f.server.Calls() {
			if call.At.UnixNano() >= since {
				c.MaxInFlight = max(c.MaxInFlight, call.InFlight)
			}
		}
	}
	f.mu.Lock()
	c.MaxRecords, c.Duplicates, c.MayRepeat = f.records, f.received.Duplicates(), f.mayRepeat
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

func (f *fake) accepted(w http.ResponseWriter, r *http.Request) {
	text := []byte(r.URL.Query().Get("with"))
	f.mu.Lock()
	taken := f.taken
	f.mu.Unlock()
	out := bufio.NewWriter(w)
	for _, raw := range taken {
		if !bytes.Contains(raw, text) {
			continue
		}
		_, _ = io.WriteString(out, base64.StdEncoding.EncodeToString(raw)+"\n")
	}
	_ = out.Flush()
}
