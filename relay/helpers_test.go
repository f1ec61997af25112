package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server/ats"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/birdtap/birdtap/clevertap"
	"github.com/birdtap/birdtap/clevertap/clevertaptest"
	"github.com/birdtap/birdtap/store"
	"github.com/birdtap/birdtap/store/storetest"
)

// TestMain keeps nats-server's clock for access times outside of every bubble: one
// that began inside would hold the bubble's time still.
func TestMain(m *testing.M) {
	ats.Register()
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server/ats.Register.func1"))
}

const (
	testAccount  = "ACC-OUNT-ID"
	testPasscode = "PASS-CODE-SECRET"
)

// scene is a real queue and a fake CleverTap, for relays to go between.
type scene struct {
	t        *testing.T
	dir      string
	queue    *store.Store
	fake     *clevertaptest.Server
	uploader *clevertap.Client
	log      *zap.Logger
	logs     *observer.ObservedLogs
	arrived  *arrived
}

// arrived are the records that CleverTap took, in that order.
type arrived struct {
	mu      sync.Mutex
	records []clevertaptest.Record
}

func (l *arrived) add(r clevertaptest.Record) {
	if r.Accepted {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.records = append(l.records, r)
	}
}

func (l *arrived) all() []clevertaptest.Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.records)
}

// setup has CleverTap behind a loopback socket.
func setup(t *testing.T, options ...func(*store.Options)) *scene {
	t.Helper()
	g := newScene(t, options...)
	if err := g.fake.Listen("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	g.connect(g.fake.URL(), &http.Transport{MaxIdleConnsPerHost: clevertap.MaxInflight})
	return g
}

// bubble runs a test in simulated time, with CleverTap behind pipes.
func bubble(t *testing.T, test func(*testing.T, *scene), options ...func(*store.Options)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		bubbleAt(t, t.TempDir(), test, options...)
	})
}

// bubbleAt is what happens in a bubble, with the queue in a directory that may have one.
func bubbleAt(t *testing.T, dir string, test func(*testing.T, *scene), options ...func(*store.Options)) {
	t.Helper()
	g := newSceneAt(t, dir, options...)
	pipes := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	if err := g.fake.Serve(pipes); err != nil {
		t.Fatal(err)
	}
	g.connect("http://clevertap.test", &http.Transport{MaxIdleConnsPerHost: clevertap.MaxInflight, DialContext: pipes.dial})
	test(t, g)
}

func newScene(t *testing.T, options ...func(*store.Options)) *scene {
	t.Helper()
	return newSceneAt(t, t.TempDir(), options...)
}

func newSceneAt(t *testing.T, dir string, options ...func(*store.Options)) *scene {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	g := &scene{t: t, dir: dir, log: zap.New(core), logs: logs, arrived: &arrived{}}
	t.Cleanup(g.checkLogs)
	g.queue = storetest.Open(t, g.dir, append([]func(*store.Options){func(o *store.Options) { o.Log = g.log }}, options...)...)
	g.fake = clevertaptest.New(clevertaptest.Options{AccountID: testAccount, Passcode: testPasscode})
	g.fake.OnRecord(g.arrived.add)
	t.Cleanup(g.fake.Close)
	return g
}

func (g *scene) connect(url string, transport *http.Transport) {
	g.t.Helper()
	client, err := clevertap.New(clevertap.Config{
		URL: url, AccountID: testAccount, Passcode: func() string { return testPasscode },
	}, clevertap.WithTransport(transport))
	if err != nil {
		g.t.Fatal(err)
	}
	g.uploader = client
	g.t.Cleanup(client.Close)
}

// checkLogs fails if any log line holds what none may hold.
func (g *scene) checkLogs() {
	encoder := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	entries := g.logs.All()
	if g.t.Failed() {
		for _, e := range entries[max(0, len(entries)-40):] {
			g.t.Logf("%v %s %v", e.Time.Format("15:04:05.000"), e.Message, e.ContextMap())
		}
	}
	for _, e := range entries {
		line, err := encoder.EncodeEntry(e.Entry, e.Context)
		if err != nil {
			g.t.Fatal(err)
		}
		for _, secret := range []string{testAccount, testPasscode, "user-", "Campaign", "target_id", "evtData", "Skipped record"} {
			if strings.Contains(line.String(), secret) {
				g.t.Errorf("a log line shows %q: %s", secret, line)
			}
		}
	}
}

// lines counts the log lines of a message.
func (g *scene) lines(message string) int { return g.logs.FilterMessage(message).Len() }

// pipeListener is the listening end of connections in memory.
type pipeListener struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "clevertap.test", Net: "pipe"} }

func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case l.conns <- there:
		return here, nil
	case <-l.closed:
	case <-ctx.Done():
	}
	return nil, errors.Join(net.ErrClosed, here.Close(), there.Close())
}

// running is a relay at work.
type running struct {
	*Relay
	g        *scene
	registry *prometheus.Registry
	cancel   context.CancelFunc
	ended    chan struct{}
	err      error
}

// start sets a relay to work, the only one of its queue unless an option says otherwise.
func (g *scene) start(options ...func(*Options)) *running {
	g.t.Helper()
	registry := prometheus.NewRegistry()
	o := Options{Queue: g.queue, Uploader: g.uploader, Embedded: true, DedupWindow: 2 * time.Minute, Log: g.log, Registerer: registry}
	for _, option := range options {
		option(&o)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Relay: New(o), g: g, registry: registry, cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(r.ended)
		r.err = r.Run(ctx)
	}()
	g.t.Cleanup(r.stop)
	return r
}

func of(q Queue) func(*Options)               { return func(o *Options) { o.Queue = q } }
func through(u Uploader) func(*Options)       { return func(o *Options) { o.Uploader = u } }
func amongOthers(o *Options)                  { o.Embedded = false }
func retryFor(d time.Duration) func(*Options) { return func(o *Options) { o.RetryRecordFor = d } }

// stop ends a relay in good order. It may be called twice.
func (r *running) stop() {
	r.g.t.Helper()
	r.cancel()
	<-r.ended
	if r.err != nil {
		r.g.t.Errorf("Run: %v", r.err)
	}
}

// metric is the value of a counter or gauge, all its labels added up.
func (r *running) metric(name string) float64 {
	r.g.t.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		r.g.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		sum := 0.0
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
		return sum
	}
	r.g.t.Fatalf("no metric %s", name)
	return 0
}

// receipt is the i-th of an endless row, dealt out to so many users in turn; the
// records of one user are numbered upwards by their target ids.
func receipt(i, users int) store.Receipt {
	return storetest.Receipt(i, func(r *store.Receipt) {
		user := i % users
		r.User = uint64(user) + 1
		r.Record = fmt.Appendf(nil, `{"identity":"user-%d","ts":1700000000,"type":"event","evtName":"Campaign","evtData":{"status":"SENT","target_id":%d}}`, user, i)
	})
}

// receipts are those from i on, dealt out to so many users.
func receipts(i, n, users int) []store.Receipt {
	list := make([]store.Receipt, n)
	for k := range list {
		list[k] = receipt(i+k, users)
	}
	return list
}

// commit puts receipts on the queue; up to 1000 small ones are one frame.
func (g *scene) commit(list ...store.Receipt) {
	g.t.Helper()
	for c := range slices.Chunk(list, 1000) {
		if err := g.queue.Commit(context.Background(), c); err != nil {
			g.t.Fatal(err)
		}
	}
}

func (g *scene) status() store.Status {
	g.t.Helper()
	s, err := g.queue.Status(context.Background())
	if err != nil {
		g.t.Fatal(err)
	}
	return s
}

func (g *scene) checkpoint() store.Checkpoint {
	g.t.Helper()
	cp, _, err := g.queue.ReadCheckpoint(context.Background())
	if err != nil {
		g.t.Fatal(err)
	}
	return cp
}

// sums are the figures of a status that have to add up.
type sums struct {
	accepted, replayed, delivered, deduplicated, died, queued, dead uint64
}

func (g *scene) sums() sums {
	s := g.status()
	return sums{s.Accepted, s.Replayed, s.Delivered, s.Deduplicated, s.Died, s.Queued, s.Dead}
}

// wantSums waits until the status shows these figures.
func (g *scene) wantSums(want sums) {
	g.t.Helper()
	g.wantSumsIn(30*time.Second, want)
}

// wantSumsIn is wantSums with a time of its own.
func (g *scene) wantSumsIn(within time.Duration, want sums) {
	g.t.Helper()
	var got sums
	if !become(within, func() bool { got = g.sums(); return got == want }) {
		g.t.Fatalf("got sums  %+v\nwant sums %+v", got, want)
	}
}

// letters are the dead letters, oldest first.
func (g *scene) letters() []store.Letter {
	g.t.Helper()
	var list []store.Letter
	if err := g.queue.Letters(context.Background(), func(l store.Letter) error { list = append(list, l); return nil }); err != nil {
		g.t.Fatal(err)
	}
	return list
}

func (g *scene) replay() int {
	g.t.Helper()
	n, err := g.queue.Replay(context.Background(), store.ReplayOptions{Choose: func(*store.Letter) bool { return true }})
	if err != nil {
		g.t.Fatal(err)
	}
	return n
}

// arrivals counts how often CleverTap took each record, by its number, and fails
// when a user's records were first taken in another order than they came.
func (g *scene) arrivals() map[int]int {
	g.t.Helper()
	times := map[int]int{}
	newest := map[string]int{}
	for _, r := range g.arrived.all() {
		n := number(g.t, r)
		if times[n]++; times[n] > 1 {
			continue
		}
		if last, met := newest[r.Identity]; met && last > n {
			g.t.Errorf("record %d was taken after %d of the same user", n, last)
		}
		newest[r.Identity] = n
	}
	return times
}

func number(t testing.TB, r clevertaptest.Record) int {
	t.Helper()
	n, err := strconv.Atoi(r.TargetID)
	if err != nil {
		t.Fatalf("not a record of ours: %s", r.Raw)
	}
	return n
}

// wantOnce fails unless the records 0 to n-1 arrived, each once, but for the missing.
func (g *scene) wantOnce(n int, missing ...int) {
	g.t.Helper()
	times := g.arrivals()
	for i := range n {
		want := 1
		if slices.Contains(missing, i) {
			want = 0
		}
		if times[i] != want {
			g.t.Fatalf("record %d arrived %d times, want %d", i, times[i], want)
		}
	}
	if len(times) != n-len(missing) {
		g.t.Fatalf("%d different records arrived, want %d", len(times), n-len(missing))
	}
}

// duplicates is how many records arrived more often than once, and how often.
func (g *scene) duplicates() int {
	n := 0
	for _, times := range g.arrivals() {
		n += times - 1
	}
	return n
}

// carried counts the calls that carried a record.
func (g *scene) carried(n int) int {
	g.t.Helper()
	calls := 0
	for _, c := range g.fake.Calls() {
		if slices.ContainsFunc(c.Records, func(r clevertaptest.Record) bool { return number(g.t, r) == n }) {
			calls++
		}
	}
	return calls
}

// wantMetrics fails unless the metrics of the only relay there was agree with the status.
func (r *running) wantMetrics() {
	r.g.t.Helper()
	s := r.g.sums()
	for name, want := range map[string]uint64{
		"birdtap_receipts_delivered_total":    s.delivered,
		"birdtap_receipts_deduplicated_total": s.deduplicated,
		"birdtap_receipts_dead_total":         s.died,
		"birdtap_receipts_replayed_total":     s.replayed,
	} {
		if got := r.metric(name); got != float64(want) {
			r.g.t.Errorf("%s is %v, the status says %d", name, got, want)
		}
	}
	if !become(5*time.Second, func() bool { return r.metric("birdtap_queue_depth") == float64(s.queued) }) {
		r.g.t.Errorf("birdtap_queue_depth is %v, the status says %d", r.metric("birdtap_queue_depth"), s.queued)
	}
}

// wantLimits fails when CleverTap ever saw more calls in flight, or more records in
// one, than it may.
func (g *scene) wantLimits(inflight int) {
	g.t.Helper()
	if c := g.fake.Counts(); c.MaxInFlight > inflight || c.OverLimit > 0 {
		g.t.Errorf("%d calls in flight, at most %d may be; %d over the limit", c.MaxInFlight, inflight, c.OverLimit)
	}
	for _, c := range g.fake.Calls() {
		if c.Count > clevertap.MaxRecords {
			g.t.Errorf("a call of %d records", c.Count)
		}
	}
}

// refuse has CleverTap refuse these records with a code, until told otherwise.
func (g *scene) refuse(code int, numbers ...int) {
	g.fake.Judge(func(r clevertaptest.Record) int {
		if slices.Contains(numbers, number(g.t, r)) {
			return code
		}
		return 0
	})
}

// poison has CleverTap refuse every call that holds one of these records.
func (g *scene) poison(status int, bad func(number int) bool) {
	g.fake.JudgeCall(func(c clevertaptest.Call) int {
		if slices.ContainsFunc(c.Records, func(r clevertaptest.Record) bool { return bad(number(g.t, r)) }) {
			return status
		}
		return 0
	})
}

// crash is what a killed process leaves: the directory as it is at this moment. The
// scene goes on with a store on it, and with the same CleverTap.
func (g *scene) crash() *scene {
	g.t.Helper()
	dir := filepath.Join(g.t.TempDir(), "crashed")
	if err := os.CopyFS(dir, os.DirFS(g.dir)); err != nil {
		g.t.Fatal(err)
	}
	next := *g
	next.dir = dir
	next.queue = storetest.Open(g.t, dir, func(o *store.Options) { o.Log = g.log })
	return &next
}

// tampered is a queue whose calls go through what a test says; each gets the real
// call as do.
type tampered struct {
	*store.Store
	mu     sync.Mutex
	write  func(ctx context.Context, do func() (uint64, error)) (uint64, error)
	bury   func(letters []store.Letter, do func() (uint64, error)) (uint64, error)
	read   func(do func() (store.Checkpoint, uint64, error)) (store.Checkpoint, uint64, error)
	paused func(ctx context.Context, do func() (bool, error)) (bool, error)
	recall func()       // before letters are looked for
	scan   func() error // instead of a scan, if it returns one
}

// seldom is a queue that answers a survey once a minute, so that days of a test pass
// in seconds.
func seldom(s *store.Store) *tampered {
	q := &tampered{Store: s}
	var asked bool
	q.paused = func(ctx context.Context, do func() (bool, error)) (bool, error) {
		if asked {
			wait(ctx, time.Minute)
		}
		asked = true
		return do()
	}
	return q
}

// set changes how calls are tampered with from now on.
func (q *tampered) set(change func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	change()
}

func (q *tampered) WriteCheckpoint(ctx context.Context, cp store.Checkpoint, rev uint64) (uint64, error) {
	do := func() (uint64, error) { return q.Store.WriteCheckpoint(ctx, cp, rev) }
	q.mu.Lock()
	write := q.write
	q.mu.Unlock()
	if write == nil {
		return do()
	}
	return write(ctx, do)
}

func (q *tampered) Bury(ctx context.Context, letters []store.Letter) (uint64, error) {
	do := func() (uint64, error) { return q.Store.Bury(ctx, letters) }
	q.mu.Lock()
	bury := q.bury
	q.mu.Unlock()
	if bury == nil {
		return do()
	}
	return bury(letters, do)
}

func (q *tampered) ReadCheckpoint(ctx context.Context) (store.Checkpoint, uint64, error) {
	do := func() (store.Checkpoint, uint64, error) { return q.Store.ReadCheckpoint(ctx) }
	q.mu.Lock()
	read := q.read
	q.mu.Unlock()
	if read == nil {
		return do()
	}
	return read(do)
}

func (q *tampered) Paused(ctx context.Context) (bool, error) {
	do := func() (bool, error) { return q.Store.Paused(ctx) }
	q.mu.Lock()
	paused := q.paused
	q.mu.Unlock()
	if paused == nil {
		return do()
	}
	return paused(ctx, do)
}

func (q *tampered) ScanFrames(ctx context.Context, from uint64, fn func(store.FrameInfo)) (uint64, error) {
	q.mu.Lock()
	scan := q.scan
	q.mu.Unlock()
	if scan != nil {
		if err := scan(); err != nil {
			return from, err
		}
	}
	return q.Store.ScanFrames(ctx, from, fn)
}

func (q *tampered) LettersSince(ctx context.Context, deadSeq, floor uint64) (map[store.Place]bool, uint64, error) {
	q.mu.Lock()
	recall := q.recall
	q.mu.Unlock()
	if recall != nil {
		recall()
	}
	return q.Store.LettersSince(ctx, deadSeq, floor)
}

// uploaderFunc is an uploader.
type uploaderFunc func(ctx context.Context, records [][]byte) clevertap.Result

func (f uploaderFunc) Upload(ctx context.Context, records [][]byte) clevertap.Result {
	return f(ctx, records)
}

// underRace tells whether the race detector watches, which makes everything take ten
// times as long.
func underRace() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// become waits until a fact is true, and tells whether it ever was.
func become(within time.Duration, fact func() bool) bool {
	tick := time.NewTicker(within / 5000)
	defer tick.Stop()
	deadline := time.After(within)
	for !fact() {
		select {
		case <-tick.C:
		case <-deadline:
			return fact()
		}
	}
	return true
}

// eventually waits for a fact.
func eventually(t testing.TB, what string, fact func() bool) {
	t.Helper()
	if !become(30*time.Second, fact) {
		t.Fatalf("never: %s", what)
	}
}
