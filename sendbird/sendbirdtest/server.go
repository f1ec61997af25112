package sendbirdtest

import (
	"context"
	"crypto/subtle"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Endpoint is a part of the fake that is scripted, limited and counted alone.
type Endpoint string

// What can be called.
const (
	Messages  Endpoint = "messages"  // POST /v1/notifications/messages
	Presign   Endpoint = "presign"   // POST /v1/storage/targets_files/{file_key}/presigned_urls
	Upload    Endpoint = "upload"    // POST /, the other host of the real thing
	Files     Endpoint = "files"     // GET /v1/storage/targets_files
	Templates Endpoint = "templates" // GET /v1/templates[/{key}], a guess

	CreateUser     Endpoint = "create_user"     // POST /v3/users
	GetUser        Endpoint = "get_user"        // GET /v3/users/{user_id}
	UpdateUser     Endpoint = "update_user"     // PUT /v3/users/{user_id}
	DeleteUser     Endpoint = "delete_user"     // DELETE /v3/users/{user_id}
	UpdateMetadata Endpoint = "update_metadata" // PUT /v3/users/{user_id}/metadata
	DeleteMetadata Endpoint = "delete_metadata" // DELETE /v3/users/{user_id}/metadata[/{key}]

	CreateCustomer Endpoint = "create_customer" // POST /platform/v1/customers
	FindCustomers  Endpoint = "find_customers"  // GET /platform/v1/customers
	GetCustomer    Endpoint = "get_customer"    // GET /platform/v1/customers/{id}
	CustomerFields Endpoint = "customer_fields" // PATCH /platform/v1/customers/{id}/custom_fields
	CreateTicket   Endpoint = "create_ticket"   // POST /platform/v1/tickets
)

// Options of a [Server]. The zero value of each is what Sendbird does, as far as
// that is known.
type Options struct {
	// Token is the notifications token, ChatToken and DeskToken are the others;
	// empty: any.
	Token, ChatToken, DeskToken string
	// CustomerFields and TicketFields are the custom fields registered in Desk's
	// dashboard; nil: every field is. Others are ignored without a word.
	CustomerFields, TicketFields []string
	// Limit calls per Window are taken at each endpoint but Upload, the next are
	// answered 429; 0: no limit, and no headers about one. Window 0: 1 s.
	Limit  int
	Window time.Duration
	// UploadURL is what presigned answers lead to; empty: the fake itself.
	UploadURL string
	// UploadTTL is how long a presigned URL holds; 0: an hour, a guess.
	UploadTTL time.Duration
	// MillisInFiles lists files with times in milliseconds, as the text of the
	// page has it, and not in seconds, as its sample has it.
	MillisInFiles bool
	// KeepLast bounds how many calls and notifications are remembered; 0: all. The
	// counts, and how often each user was reached, go on.
	KeepLast int
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Counts are the sums over a server's life.
type Counts struct {
	Calls         int // at any endpoint
	TooMany       int // answered 429 for the rate limit
	Notifications int // carried out
	Deliveries    int // users reached, the same user again counts again
	Uploads       int // files stored
	TokensLeaked  int // uploads that carried an Api-Token
	Actions       int // calls of Chat and Desk carried out
}

// Call is one call as the fake saw it.
type Call struct {
	Index    int // from 1, in order of arrival
	At       time.Time
	Endpoint Endpoint
	Did      string // the behaviour it met: "normal", "status", "hang" …
	Status   int    // the HTTP status answered; 0 if the connection ended without
	Header   http.Header
	Path     string // escaped, with the query
	Body     []byte
	Done     bool // carried out
}

// Server is the fake. Everything may be called from any goroutine and at any
// time, while calls are in flight, too.
type Server struct {
	opts    Options
	serving serving

	// order is held while a call is decided and logged, so that log, OnNotification
	// and Judge see one call after the other. mu comes after it.
	order sync.Mutex

	mu            sync.Mutex // guards what follows
	counts        Counts
	calls         []Call
	changed       chan struct{} // closed at the next change of counts; nil: nobody waits
	script        map[Endpoint][]Behaviour
	always        map[Endpoint]Behaviour
	windows       map[Endpoint]*window
	judge         func(Notification) int
	onNotice      func(Notification)
	notifications []Notification
	delivered     map[string]int
	pending       map[string]permission // presigned and not used, by signature
	files         []File
	templates     []template
	serial        int
	users         []User
	customers     []Customer
	tickets       []Ticket
	released      chan struct{}
}

// New makes a fake that listens nowhere; mount [Server.Handler], or see [Start].
func New(opts Options) *Server {
	if opts.Window <= 0 {
		opts.Window = time.Second
	}
	if opts.UploadTTL == 0 {
		opts.UploadTTL = time.Hour
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	return &Server{
		opts:      opts,
		script:    map[Endpoint][]Behaviour{},
		always:    map[Endpoint]Behaviour{},
		windows:   map[Endpoint]*window{},
		delivered: map[string]int{},
		pending:   map[string]permission{},
		released:  make(chan struct{}),
	}
}

// set changes a setting for the calls that arrive from now on.
func (s *Server) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// Script appends behaviours for the next calls of an endpoint, one each. They come
// before what [Server.Always] says.
func (s *Server) Script(at Endpoint, steps ...Behaviour) {
	s.set(func() { s.script[at] = append(s.script[at], steps...) })
}

// Pending is how many behaviours scripted for an endpoint no call has met yet.
func (s *Server) Pending(at Endpoint) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.script[at])
}

// Always is the behaviour of all calls of an endpoint that are not scripted,
// until Normal.
func (s *Server) Always(at Endpoint, b Behaviour) { s.set(func() { s.always[at] = b }) }

// Normal ends Always and forgets what is scripted, at all endpoints.
func (s *Server) Normal() {
	s.set(func() { clear(s.script); clear(s.always) })
}

// Judge asks f about every notification that is in order, before it is carried
// out: 0 lets it pass, a code such as 400301 refuses it with HTTP 400. nil ends
// that.
func (s *Server) Judge(f func(Notification) int) { s.set(func() { s.judge = f }) }

// OnNotification calls f for every notification that is carried out, before it is
// answered. f should be quick: the next call waits for it. nil ends that.
func (s *Server) OnNotification(f func(Notification)) { s.set(func() { s.onNotice = f }) }

// Release lets go the calls that [Hang] or a delay holds now.
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
	return slices.Clone(s.calls)
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

// wake tells who waits that the counts have changed; s.mu is held.
func (s *Server) wake() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// passage is a call with what it met at its arrival.
type passage struct {
	call     Call
	does     Behaviour
	limits   http.Header // about the rate limit
	tooMany  bool
	released <-chan struct{}
}

// window counts the calls of one endpoint.
type window struct {
	end  time.Time
	used int
}

// arrive counts a call in, and picks what it meets.
func (s *Server) arrive(at Endpoint, r *http.Request) passage {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Calls++
	p := passage{
		call: Call{
			Index: s.counts.Calls, At: s.opts.Now(), Endpoint: at,
			Header: r.Header.Clone(), Path: r.URL.RequestURI(),
		},
		does:     s.always[at],
		released: s.released,
	}
	if at == Upload && r.Header.Get("Api-Token") != "" {
		s.counts.TokensLeaked++
	}
	p.limits, p.tooMany = s.limit(at)
	switch script := s.script[at]; {
	case p.tooMany:
		s.counts.TooMany++
		p.does = Behaviour{name: "over_limit", notTaking: true}
	case len(script) > 0:
		p.does, s.script[at] = script[0], script[1:]
	}
	p.call.Did = p.does.String()
	s.wake()
	return p
}

// limit counts a call against its window, and gives the headers that tell of it.
// Reset is epoch seconds, a guess.
func (s *Server) limit(at Endpoint) (http.Header, bool) {
	if s.opts.Limit <= 0 || at == Upload {
		return nil, false
	}
	now, w := s.opts.Now(), s.windows[at]
	if w == nil || !now.Before(w.end) {
		w = &window{end: now.Add(s.opts.Window)}
		s.windows[at] = w
	}
	w.used++
	seconds := max(1, int(s.opts.Window/time.Second))
	h := http.Header{
		"X-Ratelimit-Limit":     {fmt.Sprintf("%d;w=%d", s.opts.Limit, seconds)},
		"X-Ratelimit-Remaining": {strconv.Itoa(max(0, s.opts.Limit-w.used))},
		"X-Ratelimit-Reset":     {strconv.FormatInt(w.end.Unix(), 10)},
	}
	if w.used <= s.opts.Limit {
		return h, false
	}
	left := (w.end.Sub(now) + time.Second - 1) / time.Second
	h.Set("X-RateLimit-RetryAfter", strconv.Itoa(int(left)))
	return h, true
}

// authorize is the answer to a call without the right token, if it is one.
func (s *Server) authorize(at Endpoint, h http.Header) (response, bool) {
	want, got := s.opts.Token, h.Get("Api-Token")
	switch {
	case at.isDesk():
		want, got = s.opts.DeskToken, h.Get(deskHeader)
	case at.isChat():
		want = s.opts.ChatToken
	}
	switch {
	case want == "" || subtle.ConstantTimeCompare([]byte(want), []byte(got)) == 1:
		return response{}, true
	case at.isDesk():
		return deskRefusal(http.StatusForbidden, "not_authorized", "Invalid token."), false // a guess
	}
	return refusal(400401, "Invalid API token."), false
}

// log adds a decided call to the log.
func (s *Server) log(c Call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = last(append(s.calls, c), s.opts.KeepLast)
	s.wake()
}

// last is the end of a list that may have grown to twice what is to be kept.
func last[E any](list []E, keep int) []E {
	if keep <= 0 || len(list) < 2*keep {
		return list
	}
	return slices.Clone(list[len(list)-keep:])
}

// URL is the address of the fake, as http://host:port; empty if it never listened.
func (s *Server) URL() string {
	addr := s.Addr()
	if addr == "" {
		return ""
	}
	return "http://" + addr
}
