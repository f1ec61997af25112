package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// serve answers on a port of the system's choice, says which, and returns when the
// bench is gone.
func serve(handler http.Handler) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }() // ends with Close
	fmt.Println(l.Addr())
	untilOrphaned()
	return server.Close()
}

// bareProcess is the ceiling: what net/http does when nothing is done with the body
// but reading it. Its answer is birdtap's.
func bareProcess() error {
	buffers := sync.Pool{New: func() any { return new(bytes.Buffer) }}
	answer := []byte(`{"status":"success","processed":1,"unprocessed":[]}`)
	length := []string{strconv.Itoa(len(answer))}
	kind := []string{"application/json"}
	return serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		buffer := buffers.Get().(*bytes.Buffer)
		buffer.Reset()
		_, err := buffer.ReadFrom(r.Body)
		buffers.Put(buffer)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		h := w.Header()
		h["Content-Type"], h["Content-Length"] = kind, length
		_, _ = w.Write(answer)
	}))
}

// sink is a CleverTap that takes everything, after a set time, and only counts.
type sink struct {
	latency atomic.Int64 // nanoseconds
	probes  chan time.Time

	mu    sync.Mutex
	stats sinkStats
}

// sinkStats are the sums since the last reset.
type sinkStats struct {
	Records     int       `json:"records"`
	Calls       int       `json:"calls"`
	InFlight    int       `json:"in_flight"`
	MaxInFlight int       `json:"max_in_flight"`
	First       time.Time `json:"first"` // arrival of the first call
	Last        time.Time `json:"last"`  // answer to the last one
}

// rate is receipts/s from the first call's arrival to the last one's answer.
func (s sinkStats) rate() float64 { return float64(s.Records) / s.Last.Sub(s.First).Seconds() }

func sinkProcess() error {
	s := &sink{probes: make(chan time.Time, 1)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /1/upload", s.upload)
	mux.HandleFunc("GET /stats", s.report)
	mux.HandleFunc("POST /reset", s.reset)
	mux.HandleFunc("POST /probe", s.probe)
	return serve(mux)
}

// readSize is large, so that a call of a thousand records is few reads.
const readSize = 128 << 10

var chunks = sync.Pool{New: func() any { return new([readSize]byte) }}

// countRecords reads a body of n records, `{"d":[{…,"evtData":{…}},…]}`, whose texts
// hold no brace: it has 2n + 1 of them. Counting one byte is the cheapest there is.
func countRecords(r io.Reader) (int, error) {
	chunk := chunks.Get().(*[readSize]byte)
	defer chunks.Put(chunk)
	braces := 0
	for {
		n, err := r.Read(chunk[:])
		braces += bytes.Count(chunk[:n], []byte{'{'})
		if err == io.EOF {
			return (braces - 1) / 2, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

func (s *sink) upload(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.stats.Calls++
	s.stats.InFlight++
	s.stats.MaxInFlight = max(s.stats.MaxInFlight, s.stats.InFlight)
	if s.stats.First.IsZero() {
		s.stats.First = time.Now()
	}
	s.mu.Unlock()
	n, err := countRecords(r.Body)
	arrived := time.Now()
	if d := time.Duration(s.latency.Load()); d > 0 {
		time.Sleep(d)
	}
	s.mu.Lock()
	s.stats.InFlight--
	if err == nil {
		s.stats.Records += n
		s.stats.Last = time.Now()
	}
	s.mu.Unlock()
	select {
	case s.probes <- arrived:
	default: // nobody probes
	}
	body := fmt.Appendf(nil, `{"status":"success","processed":%d,"unprocessed":[]}`, n)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body)
}

func (s *sink) report(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = json.NewEncoder(w).Encode(s.stats)
}

// reset forgets the sums and sets the time an answer takes.
func (s *sink) reset(_ http.ResponseWriter, r *http.Request) {
	latency, _ := time.ParseDuration(r.FormValue("latency")) // none: zero
	s.latency.Store(int64(latency))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats = sinkStats{InFlight: s.stats.InFlight}
}

// probeResult is how long a receipt takes from the first byte of its post until the
// sink has it, in milliseconds.
type probeResult struct {
	Samples int     `json:"samples"`
	P50     float64 `json:"p50"`
	P99     float64 `json:"p99"`
	Max     float64 `json:"max"`
}

// probe posts receipts one by one and waits for each here, where its post began: so
// one clock measures both ends.
func (s *sink) probe(w http.ResponseWriter, r *http.Request) {
	samples, _ := strconv.Atoi(r.FormValue("samples"))
	firstUser, _ := strconv.Atoi(r.FormValue("first_user"))
	result, err := s.measure(r.FormValue("address"), samples, firstUser)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_ = json.NewEncoder(w).Encode(result)
}

// betweenProbes lets everything come to rest again.
const betweenProbes = 15 * time.Millisecond

func (s *sink) measure(address string, samples, firstUser int) (probeResult, error) {
	c := client{request: newRequest(1), buffer: make([]byte, 4<<10)}
	if err := c.dial(address); err != nil {
		return probeResult{}, err
	}
	defer c.conn.Close()
	var times []time.Duration
	for i := range samples {
		time.Sleep(betweenProbes)
		select {
		case <-s.probes: // of an earlier receipt
		default:
		}
		c.request.number(firstUser + i)
		began := time.Now()
		c.post()
		if c.err != nil || c.refused > 0 {
			return probeResult{}, fmt.Errorf("probe %d was not taken: %w", i, c.err)
		}
		select {
		case arrived := <-s.probes:
			times = append(times, arrived.Sub(began))
		case <-time.After(answerTimeout):
			return probeResult{}, fmt.Errorf("probe %d did not arrive", i)
		}
	}
	slices.Sort(times)
	return probeResult{
		Samples: len(times),
		P50:     milliseconds(quantile(times, 0.5)), P99: milliseconds(quantile(times, 0.99)), Max: milliseconds(times[len(times)-1]),
	}, nil
}
