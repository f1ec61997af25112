package clevertaptest

import (
	"bytes"
	"context"
	"crypto/subtle"
	"iter"
	"net/http"
	"sync"
	"time"

	"github.com/birdtap/birdtap/clevertap"
)

// keptCalls is how many calls a server that keeps no records remembers.
const keptCalls = 1000

// Options of a [Server]. The zero value of each is what CleverTap does.
type Options struct {
	AccountID   string // empty: any
	Passcode    string // empty: any
	MaxInflight int    // calls in flight; the next is answered 429. 0: 15
	MaxRecords  int    // records per call; more are answered 400, a guess. 0: 1000
}

// Counts are the sums over a server's life, restarts included.
type Counts struct {
	Calls       int64 // upload calls that arrived
	OverLimit   int64 // calls that arrived when the limit was used up
	Accepted    int64 // records taken
	Refused     int64 // records refused with a code
	InFlight    int   // calls in flight now
	MaxInFlight int   // the most there ever were, those over the limit included
}

// Server is the fake. Everything may be called from any goroutine and at any
// time, while calls are in flight, too.
type Server struct {
	opts    Options
	serving serving

	// order is held while a call is judged and logged, so that the log, OnRecord
	// and the judges all see one call after the other. mu comes after it.
	order sync.Mutex

	mu          sync.Mutex // guards what follows
	counts      Counts
	calls       []Call
	changed     chan struct{} // closed at the next change of counts; nil: nobody waits
	script      []Behaviour
	always      Behaviour
	each        func(Call) Behaviour
	latency     time.Duration
	closing     bool
	blank       Blank
	dropRecords bool
	countOnly   bool
	judge       func(Record) int
	judgeCall   func(Call) int
	onRecord    func(Record)
	released    chan struct{}
}

// New makes a fake that listens nowhere; mount [Server.Handler], or see [Start].
func New(opts Options) *Server {
	if opts.MaxInflight == 0 {
		opts.MaxInflight = clevertap.MaxInflight
	}
	if opts.MaxRecords == 0 {
		opts.MaxRecords = clevertap.MaxRecords
	}
	return &Server{opts: opts, released: make(chan struct{})}
}

// set changes a setting for the calls that arrive from now on.
func (s *Server) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// Script appends behaviours for the next calls, one each. They come before what
// [Server.Always] says. Calls over the limit take none.
func (s *Server) Script(steps ...Behaviour) {
	s.set(func() { s.script = append(s.script, steps...) })
}

// Pending is how many scripted behaviours no call has met yet.
func (s *Server) Pending() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.script)
}

// Always is the behaviour of all calls that are not scripted, until Normal.
func (s *Server) Always(b Behaviour) { s.set(func() { s.always = b }) }

// Each asks f for the behaviour of every call that is not scripted, in place of
// Always, until Normal. Of the call its number, its arrival and the calls in flight
// are known. f is asked for one call at a time and should be quick: nothing else
// happens meanwhile.
func (s *Server) Each(f func(Call) Behaviour) { s.set(func() { s.each = f }) }

// Normal ends Always and Each and forgets what is scripted. The judges stay.
func (s *Server) Normal() {
	s.set(func() { s.always, s.each, s.script = Behaviour{}, nil, nil })
}

// Judge asks f about every record that is in order, before it is taken: 0 takes
// it, a record code such as 555 or 528 refuses it. nil ends that.
func (s *Server) Judge(f func(Record) int) { s.set(func() { s.judge = f }) }

// JudgeCall asks f about every call that can be read, before any of its records
// is judged: 0 lets it pass, an HTTP status such as 400 or 413 refuses it whole.
// So a record becomes the poison of its call. nil ends that.
func (s *Server) JudgeCall(f func(Call) int) { s.set(func() { s.judgeCall = f }) }

// OnRecord calls f for every record of a 200, taken or refused, in the order in
// which they are, and before the call is answered. f should be quick: the next
// call waits for it. nil ends that.
func (s *Server) OnRecord(f func(Record)) { s.set(func() { s.onRecord = f }) }

// Latency is added to every answer, after the call was decided.
func (s *Server) Latency(d time.Duration) { s.set(func() { s.latency = d }) }

// CloseConnections ends the connection after every answer, as CleverTap was seen
// to do in 2018: `Connection: Close`.
func (s *Server) CloseConnections(on bool) { s.set(func() { s.closing = on }) }

// Skipped sets whether a blank stands before "Skipped record number".
func (s *Server) Skipped(b Blank) { s.set(func() { s.blank = b }) }

// KeepRecords tells whether records stay in memory (true at first). Without, the
// counts go on, but only the last calls are remembered, and no record of them.
func (s *Server) KeepRecords(on bool) { s.set(func() { s.dropRecords = !on }) }

// CountOnly is for benchmarks: bodies are not parsed, a record counts where
// "evtName" stands in quotes, all are taken, and neither judge nor OnRecord is
// asked. Credentials, the limit and behaviours stay.
func (s *Server) CountOnly(on bool) { s.set(func() { s.countOnly = on }) }

// Release lets go the calls that [Hang] holds now.
func (s *Server) Release() {
	s.set(func() {
		close(s.released)
		s.released = make(chan struct{})
	})
}

// Counts are the sums up to now.
func (s *Server) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts
}

// Calls is the log, in the order in which the calls were decided.
func (s *Server) Calls() []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Call(nil), s.calls...)
}

// Accepted are the records taken and kept, in the order in which they were taken.
func (s *Server) Accepted() iter.Seq[Record] {
	return func(yield func(Record) bool) {
		for _, c := range s.Calls() {
			for _, r := range c.Records {
				if r.Accepted && !yield(r) {
					return
				}
			}
		}
	}
}

// Wait returns when ok is true of the counts, or with ctx's error.
func (s *Server) Wait(ctx context.Context, ok func(Counts) bool) error {
	for {
		s.mu.Lock()
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		counts, changed := s.counts, s.changed
		s.mu.Unlock()
		if ok(counts) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// count changes the counts and wakes who waits for that.
func (s *Server) count(change func(*Counts)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.counts)
	s.wake()
}

func (s *Server) wake() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// Handler serves the fake: POST /1/upload, and what CleverTap says elsewhere.
// A GET answers 200 with nothing on any path, and so proves nothing.
func (s *Server) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodGet, r.Method == http.MethodHead:
			w.WriteHeader(http.StatusOK)
		case r.Method != http.MethodPost: // a guess
			w.WriteHeader(http.StatusMethodNotAllowed)
		case r.URL.Path != "/1/upload":
			w.WriteHeader(http.StatusNotFound)
		default:
			s.upload(w, r)
		}
	})
}

// upload is the way of one call.
func (s *Server) upload(w http.ResponseWriter, r *http.Request) {
	p := s.arrive()
	leave := sync.OnceFunc(func() { s.count(func(c *Counts) { c.InFlight-- }) })
	defer leave()
	e := &exchange{w: w, r: r, leave: leave, released: p.released}
	if p.does.beforeBody {
		s.log(p.call)
		p.does.deliver(e)
		return
	}
	buf := buffers.Get().(*bytes.Buffer)
	buf.Reset()
	_, err := buf.ReadFrom(r.Body)
	if err == nil {
		e.response = s.decide(&p, r.Header, buf.Bytes())
	}
	buffers.Put(buf) // records are copies
	if err != nil {
		s.log(p.call)
		e.abort()
	}
	if p.closing {
		e.response.header.Set("Connection", "Close")
	}
	if !e.sleep(p.latency + p.does.delay) {
		e.abort()
	}
	if p.does.deliver == nil || e.response.status != http.StatusOK && !p.does.silent {
		e.write()
		return
	}
	p.does.deliver(e)
}

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// passage is a call with the settings it met at its arrival.
type passage struct {
	call      Call
	does      Behaviour
	latency   time.Duration
	closing   bool
	blank     Blank
	countOnly bool
	judge     func(Record) int
	judgeCall func(Call) int
	onRecord  func(Record)
	released  <-chan struct{}
}

// arrive counts a call in, and picks what it meets.
func (s *Server) arrive() passage {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Calls++
	s.counts.InFlight++
	s.counts.MaxInFlight = max(s.counts.MaxInFlight, s.counts.InFlight)
	p := passage{
		call:    Call{Index: int(s.counts.Calls), At: time.Now(), InFlight: s.counts.InFlight},
		does:    s.always,
		latency: s.latency, closing: s.closing, blank: s.blank, countOnly: s.countOnly,
		judge: s.judge, judgeCall: s.judgeCall, onRecord: s.onRecord,
		released: s.released,
	}
	switch {
	case s.counts.InFlight > s.opts.MaxInflight:
		s.counts.OverLimit++
		p.does = Status(http.StatusTooManyRequests, nil, "")
		p.does.name = "over_limit"
	case len(s.script) > 0:
		p.does, s.script = s.script[0], s.script[1:]
	case s.each != nil:
		p.does = s.each(p.call)
	}
	p.call.Did = p.does.String()
	s.wake()
	return p
}

// decide settles what is taken, logs it, and returns the answer. One call is
// decided at a time.
func (s *Server) decide(p *passage, header http.Header, body []byte) response {
	p.call.Bytes = len(body)
	if p.countOnly {
		return s.decideUnread(p, header, body)
	}
	records, err := parse(body, s.opts.MaxRecords)
	for i := range records {
		records[i].Call, records[i].Index = p.call.Index, i
	}
	p.call.Count, p.call.Records = len(records), records

	s.order.Lock()
	defer s.order.Unlock()
	answer, ok := s.refuseCall(p, header, err)
	if ok && p.does.notTaking {
		ok, answer = false, jsonResponse(http.StatusOK, "")
	}
	if ok {
		p.judgeRecords()
		b := p.does.apply(records).append(nil, p.blank)
		answer = jsonResponse(http.StatusOK, string(b))
	} else {
		for i := range records {
			records[i].Code = 0 // nobody has judged them
		}
	}
	answer = p.stand(answer)
	if ok && p.onRecord != nil {
		for _, r := range records {
			p.onRecord(r)
		}
	}
	s.log(p.call)
	return answer
}

// stand puts the behaviour's own answer, if it has one, in the place of the
// other, and notes what will be seen of it. The header is copied, for each call
// may change its own.
func (p *passage) stand(answer response) response {
	if fixed := p.does.fixed; fixed != nil {
		answer = *fixed
		answer.header = fixed.header.Clone()
	}
	if !p.does.silent {
		p.call.Status = answer.status
	}
	return answer
}

// decideUnread is decide in count-only mode.
func (s *Server) decideUnread(p *passage, header http.Header, body []byte) response {
	n := bytes.Count(body, []byte(`"evtName"`))
	p.call.Count = n
	answer, ok := s.authorize(header)
	if ok && !p.does.notTaking {
		p.call.Accepted = n
		r := Reply{Status: clevertap.StatusSuccess, Processed: n}
		if p.does.twist != nil && !p.does.refuseFirst {
			p.does.twist(&r)
		}
		answer = jsonResponse(http.StatusOK, string(r.append(nil, p.blank)))
	} else if ok {
		answer = jsonResponse(http.StatusOK, "")
	}
	answer = p.stand(answer)
	s.log(p.call)
	return answer
}

// refuseCall is the answer to a call that is refused whole; true if it is not.
func (s *Server) refuseCall(p *passage, header http.Header, malformed error) (response, bool) {
	if answer, ok := s.authorize(header); !ok {
		return answer, false
	}
	if malformed != nil {
		return jsonResponse(http.StatusBadRequest, bodyMalformed), false
	}
	if p.judgeCall != nil && !p.does.notTaking {
		if status := p.judgeCall(p.call); status != 0 {
			return jsonResponse(status, statusBodies[status]), false
		}
	}
	return response{}, true
}

func (s *Server) authorize(header http.Header) (response, bool) {
	switch {
	case !matches(s.opts.AccountID, header.Get("X-CleverTap-Account-Id")):
		return jsonResponse(http.StatusUnauthorized, bodyBadAccount), false
	case !matches(s.opts.Passcode, header.Get("X-CleverTap-Passcode")):
		return jsonResponse(http.StatusUnauthorized, bodyBadPasscode), false
	default:
		return response{}, true
	}
}

func matches(want, got string) bool {
	return want == "" || subtle.ConstantTimeCompare([]byte(want), []byte(got)) == 1
}

// judgeRecords settles every record of a call that is judged at all.
func (p *passage) judgeRecords() {
	records := p.call.Records
	for i := range records {
		if records[i].Code == 0 && p.judge != nil {
			records[i].Code = p.judge(records[i])
		}
		if records[i].Code != 0 {
			p.call.Refused++
		}
	}
	if p.does.refuseFirst && p.call.Refused == 0 && len(records) > 0 {
		records[0].Code = forced
		p.call.Refused = 1
	}
	for i := range records {
		records[i].Accepted = records[i].Code == 0
	}
	p.call.Accepted = len(records) - p.call.Refused
}

// log adds a decided call to the log and the sums.
func (s *Server) log(c Call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Accepted += int64(c.Accepted)
	s.counts.Refused += int64(c.Refused)
	if s.dropRecords || s.countOnly {
		c.Records = nil
		if len(s.calls) >= 2*keptCalls {
			s.calls = append([]Call(nil), s.calls[len(s.calls)-keptCalls:]...)
		}
	}
	s.calls = append(s.calls, c)
	s.wake()
}

// URL is the address to upload to, as http://host:port; empty if the server
// never listened.
func (s *Server) URL() string {
	addr := s.Addr()
	if addr == "" {
		return ""
	}
	return "http://" + addr
}
