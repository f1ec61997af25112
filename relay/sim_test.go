package relay

import (
	"container/heap"
	"flag"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/birdtap/birdtap/store"
)

// The simulation plays one account's relays against a checkpoint, a queue and a
// CleverTap, all simulated, with a time of its own. A history is determined by its
// seed. The lease is the real one; the relay around it is the shortest that keeps the
// relay's promises: read by position, one receipt per user in a batch, users busy until
// the batch is done, dead letters stored before the checkpoint.
//
//	go test ./relay -run TestSimulation -sim.seeds=200000
//	go test ./relay -run TestSimulation -sim.seed=4711      one history, with its trace
//	go test ./relay -run TestEachRuleIsNeeded -v            how soon each rule is missed
//
// Not played: a machine suspended together with its clock, dedup, halving and pace.
var (
	simSeeds = flag.Int("sim.seeds", 2000, "histories that TestSimulation plays")
	simSeed  = flag.Uint64("sim.seed", 0, "play only the history of this seed, with a trace")
)

func TestSimulation(t *testing.T) {
	if *simSeed != 0 {
		traceSeed(t, *simSeed, drawScenario, simMutant{})
		return
	}
	n := histories()
	var sum simStats
	failed := playSeeds(n, drawScenario, simMutant{}, func(s *sim) { sum.add(s.stats) })
	if failed != nil {
		t.Fatalf("seed %d: %v\nreplay: go test ./relay -run 'TestSimulation$' -v -sim.seed=%d", failed.seed, failed.violation, failed.seed)
	}
	t.Logf("%d histories: %+v", n, sum)
	if n >= 1000 && (sum.Unclean == 0 || sum.FoundWrites == 0 || sum.Refused == 0 || sum.Woken == 0 || sum.Replays == 0 || sum.MostInFlight < accountCalls) {
		t.Error("the histories are too tame to prove anything")
	}
}

// The same where no kind of trouble with the checkpoint is left out.
func TestSimulationRough(t *testing.T) {
	if failed := playSeeds(histories()/4, drawRough, simMutant{}, func(*sim) {}); failed != nil {
		traceSeed(t, failed.seed, drawRough, simMutant{})
	}
}

// histories is how many to play; -short is for a quick look under the race detector.
func histories() int {
	if testing.Short() {
		return *simSeeds / 10
	}
	return *simSeeds
}

// An outage of CleverTap, however long, is no reason to change hands.
func TestSimulationOutageChangesNoHands(t *testing.T) {
	draw := func(rng *rand.Rand) simScenario {
		sc := drawScenario(rng)
		sc.faults, sc.embedded = simFaults{}, false
		sc.answers = simAnswerFaults{fail: 0.9, cut: 0.05, slow: 0.5}
		return sc
	}
	failed := playSeeds(histories()/20, draw, simMutant{}, func(s *sim) {
		if terms := s.checkpoint().cp.Term; terms != 1 {
			s.failf("change of hands", "%d terms", terms)
		}
	})
	if failed != nil {
		t.Fatalf("seed %d: %v", failed.seed, failed.violation)
	}
}

// A hand-over takes at most 7 s after a crash, and hardly any time after a stop.
func TestSimulationHandsOverSoon(t *testing.T) {
	for _, h := range []struct {
		after  string
		within time.Duration
		leave  func(*sim, *simNode)
	}{
		{"crash", 7 * time.Second, func(s *sim, n *simNode) { s.gone(n) }},
		{"stop", 3 * time.Second, func(_ *sim, n *simNode) { n.stop() }},
	} {
		t.Run(h.after, func(t *testing.T) {
			draw := func(rng *rand.Rand) simScenario {
				sc := drawScenario(rng)
				sc.faults, sc.answers, sc.embedded = simFaults{}, simAnswerFaults{}, false
				sc.script = func(s *sim) { s.after(20*time.Second, nil, func() { h.leave(s, s.holder()) }) }
				return sc
			}
			failed := playSeeds(histories()/20, draw, simMutant{}, func(s *sim) {
				i := slices.IndexFunc(s.checkpoints, func(r simRevision) bool { return r.cp.Term == 2 })
				if took := s.checkpoints[i].at - 20*time.Second; took > h.within {
					s.failf("hand-over", "took %v", took)
				}
			})
			if failed != nil {
				t.Fatalf("seed %d: %v", failed.seed, failed.violation)
			}
		})
	}
}

// playSeeds plays the histories 1 to n, on all cores, calls then after each, and
// returns the first that failed.
func playSeeds(n int, draw func(*rand.Rand) simScenario, m simMutant, then func(*sim)) *sim {
	var (
		next   atomic.Uint64
		mu     sync.Mutex
		failed *sim
		wg     sync.WaitGroup
	)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for seed := next.Add(1); seed <= uint64(n); seed = next.Add(1) {
				s := newSim(seed, draw, m)
				s.play()
				mu.Lock()
				then(s)
				if s.violation != nil && (failed == nil || seed < failed.seed) {
					failed = s
				}
				stop := failed != nil
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	wg.Wait()
	return failed
}

func traceSeed(t *testing.T, seed uint64, draw func(*rand.Rand) simScenario, m simMutant) {
	t.Helper()
	s := newSim(seed, draw, m)
	s.trace = func(line string) { t.Log(line) }
	s.tracef("%+v", s.simScenario)
	s.play()
	if s.violation != nil {
		t.Errorf("seed %d: %v", seed, s.violation)
	}
	t.Logf("%+v", s.stats)
}

// simScenario is what a history is drawn from.
type simScenario struct {
	relays      int
	embedded    bool
	cap         int
	callTimeout time.Duration
	batchMax    int
	users       int
	receipts    int
	trouble     time.Duration // faults until then, from then on none
	faults      simFaults
	answers     simAnswerFaults
	script      func(*sim) // what is to happen beside
}

// simFaults are probabilities; those of nodes are per second and node.
type simFaults struct {
	pause, crash, stop float64
	gap                float64 // stopped between the check and the send, per call
	slowDial           float64 // a connection takes seconds, per call
	lostWrite          float64 // never arrives
	lostAnswer         float64 // applied, the answer is lost
	lateWrite          float64 // arrives seconds after the writer gave up
	slowAnswer         float64 // comes seconds after the writer gave up
	staleRead          float64
	lostRead           float64
	lostLetter         float64
	replay             float64 // per second
}

// simAnswerFaults are probabilities, per call, of what CleverTap does.
type simAnswerFaults struct {
	fail float64 // 5xx, 429, reset: nothing is accepted
	cut  float64 // accepted in whole or not at all, the answer is lost
	slow float64 // takes up to the timeout of a call
}

func drawScenario(rng *rand.Rand) simScenario {
	odds := func(ps ...float64) float64 { return ps[rng.IntN(len(ps))] }
	pick := func(ns ...int) int { return ns[rng.IntN(len(ns))] }
	sc := simScenario{
		relays:      pick(2, 3),
		embedded:    rng.IntN(8) == 0,
		cap:         pick(7, 7, 7, 15, 1, 1+rng.IntN(15)),
		callTimeout: time.Duration(pick(10, 30)) * time.Second,
		batchMax:    pick(1, 1, 2, 5),
		users:       pick(3, 10, 60),
		receipts:    50 + rng.IntN(200),
		trouble:     time.Duration(20+rng.IntN(60)) * time.Second,
		faults: simFaults{
			pause:      odds(0, 0.02, 0.1),
			crash:      odds(0, 0.02, 0.08),
			stop:       odds(0, 0.02, 0.05),
			gap:        odds(0, 0, 0.02),
			slowDial:   odds(0, 0.05),
			lostWrite:  odds(0, 0.05, 0.2),
			lostAnswer: odds(0, 0.05, 0.2),
			lateWrite:  odds(0, 0.05, 0.2),
			slowAnswer: odds(0, 0.05),
			staleRead:  odds(0, 0.05, 0.3),
			lostRead:   odds(0, 0.05, 0.3),
			lostLetter: odds(0, 0.1),
			replay:     odds(0, 0.05),
		},
		answers: simAnswerFaults{
			fail: odds(0, 0.05, 0.3),
			cut:  odds(0, 0.05, 0.3),
			slow: odds(0, 0.1, 0.9),
		},
	}
	if rng.IntN(4) == 0 {
		sc.handOvers()
	}
	return sc
}

// handOvers makes many changes of hands with as many calls in flight as may be.
func (sc *simScenario) handOvers() {
	sc.callTimeout, sc.batchMax, sc.users, sc.receipts = 30*time.Second, 1, 60, 250
	sc.faults.crash, sc.faults.pause = 0.08, 0
	sc.answers = simAnswerFaults{slow: 0.95}
}

// simStats say what the histories contained, so that a silent generator is noticed.
type simStats struct {
	Terms, Unclean, Crashes, Stops, Pauses  int
	LostWrites, FoundWrites, Refused, Woken int
	Deaths, Replays, Repeats, Receipts      int
	MostInFlight                            int
}

func (a *simStats) add(b simStats) {
	a.Terms += b.Terms
	a.Unclean += b.Unclean
	a.Crashes += b.Crashes
	a.Stops += b.Stops
	a.Pauses += b.Pauses
	a.LostWrites += b.LostWrites
	a.FoundWrites += b.FoundWrites
	a.Refused += b.Refused
	a.Woken += b.Woken
	a.Deaths += b.Deaths
	a.Replays += b.Replays
	a.Repeats += b.Repeats
	a.Receipts += b.Receipts
	a.MostInFlight = max(a.MostInFlight, b.MostInFlight)
}

// simViolation is a promise that a history broke.
type simViolation struct {
	promise string
	detail  string
	at      time.Duration
}

func (v *simViolation) String() string { return fmt.Sprintf("%v: %s: %s", v.at, v.promise, v.detail) }

// sim is the world: the only one that knows the true time.
type sim struct {
	simScenario
	seed   uint64
	rng    *rand.Rand
	mutant simMutant
	trace  func(string)

	now    time.Duration
	events simEvents
	seq    uint64

	nodes       []*simNode               // who runs in each slot, nil between a crash and the restart
	checkpoints []simRevision            // all there ever were, the last one stands
	begun       map[uint64]time.Duration // each term's take-over write was applied
	places      []simPlace               // the queue
	letters     []simLetter              // by place
	dest        simDest
	arriving    int // receipts yet to be accepted
	stats       simStats
	violation   *simViolation
}

// simRevision is a checkpoint as it stood from at on.
type simRevision struct {
	rev     uint64
	cp      store.Checkpoint
	settled simPlaceSet
	at      time.Duration
	unclean bool // a take-over from a holder that left calls behind
}

// simPlace is one receipt on the queue. One that is replayed gets a new place.
type simPlace struct {
	receipt int // who it is, over all its lives
	life    int
	user    int
	fate    simFate
	shown   int // calls that CleverTap has judged it in
}

// simFate is how CleverTap judges a receipt, the same whoever asks, so that the sums
// can be checked to the last one.
type simFate struct {
	refused bool // with a code that kills
	stuck   bool // 555 until the relay gives up
	busy    int  // 555 that often, then accepted
	firm    bool // refused or stuck in every life, not just the first
}

type simLetter struct {
	stood    bool          // it was stored once
	standing bool          // and was not replayed since
	at       time.Duration // when it was first stored
}

func newSim(seed uint64, draw func(*rand.Rand) simScenario, m simMutant) *sim {
	rng := rand.New(rand.NewPCG(seed, 0x62697264746170))
	s := &sim{seed: seed, rng: rng, mutant: m, simScenario: draw(rng)}
	s.dest = simDest{byTerm: map[uint64]*simPlaceSet{}, last: map[int]int{}}
	if s.embedded {
		s.relays = 1
	}
	s.checkpoints, s.begun = []simRevision{{}}, map[uint64]time.Duration{}
	s.nodes = make([]*simNode, s.relays)
	for slot := range s.nodes {
		s.start(slot)
	}
	s.arriving = s.receipts
	for range s.receipts {
		s.after(s.upTo(s.trouble+5*time.Second), nil, s.accept)
	}
	s.after(time.Second, nil, s.misfortune)
	if s.script != nil {
		s.script(s)
	}
	return s
}

// play runs the history until everything is settled, or a promise is broken.
func (s *sim) play() {
	const drain = 15 * time.Minute // far more than any history takes
	for s.violation == nil && !s.atRest() {
		if s.now > s.trouble+drain {
			s.failf("comes to rest", "%d of %d settled", s.checkpoint().settled.count(), len(s.places))
			break
		}
		e := heap.Pop(&s.events).(*simEvent)
		s.now = e.at
		switch {
		case e.node == nil:
			e.do()
		case e.node.dead:
			continue
		case e.node.frozenUntil > s.now:
			e.at = e.node.frozenUntil // in the old order, when it wakes
			heap.Push(&s.events, e)
			continue
		default:
			e.do()
		}
		s.checkOneSender()
	}
	if s.violation == nil {
		s.checkAtRest()
	}
}

func (s *sim) atRest() bool {
	return s.now > s.trouble && s.arriving == 0 && s.checkpoint().settled.count() == len(s.places)
}

// holder is the process that holds the term, if it lives.
func (s *sim) holder() *simNode {
	i := slices.IndexFunc(s.nodes, func(n *simNode) bool { return n != nil && n.term != nil })
	if i < 0 {
		return nil
	}
	return s.nodes[i]
}

func (s *sim) troubled() bool { return s.now < s.trouble }

func (s *sim) checkpoint() *simRevision { return &s.checkpoints[len(s.checkpoints)-1] }

// after lets do happen once d has passed: to the world if node is nil, else to that
// node, unless it is dead by then, and not before it wakes.
func (s *sim) after(d time.Duration, node *simNode, do func()) {
	s.seq++
	heap.Push(&s.events, &simEvent{at: s.now + d, seq: s.seq, node: node, do: do})
}

func (s *sim) upTo(d time.Duration) time.Duration { return time.Duration(s.rng.Int64N(int64(d))) }

func (s *sim) between(a, b time.Duration) time.Duration { return a + s.upTo(b-a) }

// hit draws a fault; after the time of trouble there are none.
func (s *sim) hit(p float64) bool { return p > 0 && s.troubled() && s.rng.Float64() < p }

func (s *sim) failf(promise, format string, args ...any) {
	if s.violation == nil {
		s.violation = &simViolation{promise: promise, detail: fmt.Sprintf(format, args...), at: s.now}
	}
}

func (s *sim) tracef(format string, args ...any) {
	if s.trace != nil {
		s.trace(fmt.Sprintf("%12v  %s", s.now, fmt.Sprintf(format, args...)))
	}
}

// accept puts a new receipt onto the queue.
func (s *sim) accept() {
	s.arriving--
	p := simPlace{receipt: s.stats.Receipts, user: s.rng.IntN(s.users)}
	s.stats.Receipts++
	switch s.rng.IntN(12) {
	case 0:
		p.fate = simFate{refused: true, firm: s.rng.IntN(2) == 0}
	case 1:
		p.fate = simFate{stuck: true, firm: s.rng.IntN(2) == 0}
	case 2:
		p.fate = simFate{busy: 1 + s.rng.IntN(simMaxTries-2)}
	}
	s.enqueue(p)
}

func (s *sim) enqueue(p simPlace) {
	if len(s.places) == simMaxPlaces {
		panic("more receipts than a simPlaceSet holds")
	}
	s.places = append(s.places, p)
	s.letters = append(s.letters, simLetter{})
}

// misfortune visits every node once a second.
func (s *sim) misfortune() {
	if !s.troubled() {
		s.after(s.between(0, 10*time.Second), nil, func() { s.replay(false) })
		return
	}
	s.after(time.Second, nil, s.misfortune)
	if s.hit(s.faults.replay) {
		s.replay(s.rng.IntN(2) == 0)
	}
	for _, n := range s.nodes {
		if n == nil || n.frozenUntil > s.now {
			continue
		}
		switch {
		case s.hit(s.faults.crash):
			s.stats.Crashes++
			s.tracef("%s crashes", n)
			s.gone(n)
		case s.hit(s.faults.stop):
			s.stats.Stops++
			n.stop()
		case s.hit(s.faults.pause):
			n.freeze(s.between(time.Second/2, 20*time.Second))
		}
	}
}

// gone ends a process; another one starts in its place. Its calls live on at
// CleverTap: the machine may be gone, so nobody closes the connection.
func (s *sim) gone(n *simNode) {
	n.dead = true
	s.nodes[n.slot] = nil
	s.after(s.between(100*time.Millisecond, 8*time.Second), nil, func() { s.start(n.slot) })
}

// replay puts dead letters back onto the queue; killed in the middle, they are both
// there and dead.
func (s *sim) replay(killed bool) {
	var moved []int
	for p := range s.letters {
		if s.letters[p].standing && len(moved) < 20 && s.places[p].life < 3 && len(s.places) < simMaxPlaces {
			again := s.places[p]
			again.life++
			again.shown = 0
			s.enqueue(again)
			moved = append(moved, p)
		}
	}
	s.stats.Replays += len(moved)
	s.tracef("replay of %v, killed %t", moved, killed)
	if killed {
		return
	}
	for _, p := range moved {
		s.letters[p].standing = false
	}
}

// replace is the compare-and-set of the checkpoint.
func (s *sim) replace(w leaseWrite, settled simPlaceSet) (uint64, bool) {
	last := s.checkpoint()
	if w.Replaces != last.rev && w.Replaces != simAnyRevision {
		return 0, false
	}
	unclean := false
	if w.Checkpoint.Term > last.cp.Term {
		s.begun[w.Checkpoint.Term] = s.now
		s.stats.Terms++
		unclean = last.cp.Holder != "" || last.cp.Out > 0
	}
	if unclean {
		s.stats.Unclean++
	}
	s.checkpoints = append(s.checkpoints, simRevision{
		rev:     last.rev + 1 + s.rng.Uint64N(3), // other subjects of the stream take sequences, too
		cp:      w.Checkpoint,
		settled: settled,
		at:      s.now,
		unclean: unclean,
	})
	s.tracef("store: rev %d replaces %d: term %d %s write %d limit %d out %d, %d settled", s.checkpoint().rev, last.rev,
		w.Checkpoint.Term, w.Checkpoint.Holder, w.Number, w.Checkpoint.Limit, w.Checkpoint.Out, settled.count())
	return s.checkpoint().rev, true
}

// staleRevision is what a read may return that did not come from the leader.
func (s *sim) staleRevision() simRevision {
	back := s.upTo(8 * time.Second)
	for i := len(s.checkpoints) - 1; i > 0; i-- {
		if s.checkpoints[i].at <= s.now-back {
			return s.checkpoints[i]
		}
	}
	return s.checkpoints[0]
}

// checkOneSender: by the check that goes before every call, at most one may start one.
func (s *sim) checkOneSender() {
	var may *simNode
	for _, n := range s.nodes {
		if n == nil || !n.lease.MaySend(n.clock()) {
			continue
		}
		if may != nil {
			s.failf("one sender", "both %s (term %d) and %s (term %d) may send", may, may.lease.Term(), n, n.lease.Term())
		}
		may = n
	}
}

// checkAtRest: nothing is lost, and the sums hold.
func (s *sim) checkAtRest() {
	safe := make([]bool, s.stats.Receipts)
	var delivered, died uint64
	for i := range s.places {
		accepted := s.dest.accepted.has(i)
		if accepted {
			delivered++
		}
		if s.letters[i].stood {
			died++
		}
		if accepted || s.letters[i].standing {
			safe[s.places[i].receipt] = true
		}
	}
	if lost := slices.Index(safe, false); lost >= 0 {
		s.failf("nothing lost", "receipt %d is neither delivered nor dead", lost)
	}
	t := s.checkpoint().cp.Totals
	if t.Delivered+t.Died != uint64(len(s.places)) || t.Delivered != delivered || t.Died != died {
		s.failf("sums", "%d places; %d counted delivered, %d are; %d counted dead, %d are",
			len(s.places), t.Delivered, delivered, t.Died, died)
	}
}

// simEvent is something that will happen.
type simEvent struct {
	at   time.Duration
	seq  uint64
	node *simNode
	do   func()
}

type simEvents []*simEvent

func (h simEvents) Len() int { return len(h) }
func (h simEvents) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}
func (h simEvents) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *simEvents) Push(e any)   { *h = append(*h, e.(*simEvent)) }
func (h *simEvents) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return e
}

// simPlaceSet is a set of places, a value.
type simPlaceSet [simMaxPlaces / 64]uint64

const simMaxPlaces = 512

func (p *simPlaceSet) add(i int)      { p[i/64] |= 1 << (i % 64) }
func (p *simPlaceSet) has(i int) bool { return p[i/64]&(1<<(i%64)) != 0 }

func (p *simPlaceSet) count() int {
	n := 0
	for _, w := range p {
		n += bits.OnesCount64(w)
	}
	return n
}

// countWithout is how many of p are not in q.
func (p *simPlaceSet) countWithout(q *simPlaceSet) int {
	n := 0
	for i, w := range p {
		n += bits.OnesCount64(w &^ q[i])
	}
	return n
}

// floor is the first place not in p.
func (p *simPlaceSet) floor() int {
	for i, w := range p {
		if w != ^uint64(0) {
			return 64*i + bits.TrailingZeros64(^w)
		}
	}
	return simMaxPlaces
}

// --- CleverTap ---

// simDest is CleverTap: it counts what is in flight, as it sees it, and judges.
type simDest struct {
	accepted simPlaceSet
	byTerm   map[uint64]*simPlaceSet // accepted, by the term of the call
	last     map[int]int             // last place accepted of each user
	inFlight int                     // calls of woken processes are not counted
}

type simCall struct {
	from     *simNode
	batch    *simBatch
	records  []int
	woken    bool // sent by a process that was stopped between the check and the send
	open     bool // in flight at CleverTap
	answered bool // or given up by the relay
	verdicts []simVerdict
}

type simVerdict int

const (
	simUnknown simVerdict = iota
	simAccepted
	simRefused
	simBusy // 555
)

// arrive begins a call, as CleverTap sees it.
func (s *sim) arrive(c *simCall) {
	c.open = true
	if !c.woken {
		s.dest.inFlight++
		s.checkInFlight()
	}
	took := s.between(30*time.Millisecond, 300*time.Millisecond)
	if s.hit(s.answers.slow) {
		took = s.between(time.Second, s.callTimeout)
	}
	judged := s.upTo(took)
	answer := true
	switch {
	case s.hit(s.answers.fail):
		s.after(took, nil, func() { s.finish(c, false) })
		return
	case s.hit(s.answers.cut):
		answer = false
	}
	s.after(judged, nil, func() { s.judge(c) })
	s.after(took, nil, func() { s.finish(c, answer) })
}

// finish ends a call at CleverTap. Without an answer the relay sees a reset.
func (s *sim) finish(c *simCall, answer bool) {
	s.close(c)
	if answer {
		answer = len(c.verdicts) > 0
	}
	s.after(s.upTo(20*time.Millisecond), c.from, func() { c.from.answered(c, answer) })
}

func (s *sim) close(c *simCall) {
	if c.open && !c.woken {
		s.dest.inFlight--
	}
	c.open = false
}

func (s *sim) judge(c *simCall) {
	c.verdicts = make([]simVerdict, len(c.records))
	for i, p := range c.records {
		c.verdicts[i] = s.judgeOne(c, p)
	}
	s.checkUnrecorded(c)
}

func (s *sim) judgeOne(c *simCall, p int) simVerdict {
	place := &s.places[p]
	place.shown++
	kills := place.life == 0 || place.fate.firm
	switch {
	case place.fate.refused && kills:
		return simRefused
	case place.fate.stuck && kills, place.shown <= place.fate.busy:
		return simBusy
	}
	if s.dest.accepted.has(p) {
		s.stats.Repeats++
	} else {
		s.checkOrder(c, p)
		s.dest.accepted.add(p)
	}
	if s.dest.byTerm[c.batch.term] == nil {
		s.dest.byTerm[c.batch.term] = new(simPlaceSet)
	}
	s.dest.byTerm[c.batch.term].add(p)
	return simAccepted
}

// checkOrder: receipts of a user are first accepted in the order in which they came.
func (s *sim) checkOrder(c *simCall, p int) {
	user := s.places[p].user
	if last, ok := s.dest.last[user]; ok && last > p && !c.woken {
		s.failf("order", "user %d: place %d accepted after place %d", user, p, last)
	}
	s.dest.last[user] = max(p, s.dest.last[user])
}

// checkUnrecorded: what a term got accepted and no checkpoint says is all that a crash
// can repeat, and bounded.
func (s *sim) checkUnrecorded(c *simCall) {
	if got := s.dest.byTerm[c.batch.term]; got != nil {
		if n := got.countWithout(&s.checkpoint().settled); n > s.cap*s.batchMax {
			s.failf("bounded repeats", "%d accepted in term %d and not recorded", n, c.batch.term)
		}
	}
}

// checkInFlight: never more than the cap; beside what earlier terms left behind never
// more than the account's limit, and one for every further unclean take-over.
func (s *sim) checkInFlight() {
	limit := s.cap
	k := s.recentTakeOvers()
	if k > 0 {
		limit = accountCalls + k - 1
		if s.cap == accountCalls {
			limit++
		}
	}
	s.stats.MostInFlight = max(s.stats.MostInFlight, s.dest.inFlight)
	if s.dest.inFlight > limit {
		s.failf("in flight", "%d calls at a cap of %d, %d unclean take-overs of late", s.dest.inFlight, s.cap, k)
	}
}

// recentTakeOvers counts those whose predecessors' calls may still be alive.
func (s *sim) recentTakeOvers() int {
	n := 0
	for i := len(s.checkpoints) - 1; i > 0; i-- {
		r := &s.checkpoints[i]
		if r.at < s.now-s.callTimeout-500*time.Millisecond {
			break
		}
		if r.unclean {
			n++
		}
	}
	return n
}

// --- the relay ---

// simKeeper is what the simulated relay uses of a lease, so that a mutant can stand in.
type simKeeper interface {
	Observe(rev uint64, cp store.Checkpoint, at time.Time)
	MayTakeOver(now time.Time) bool
	TakeOver(now time.Time) (leaseWrite, bool)
	Write(now time.Time, settled store.Checkpoint) (leaseWrite, bool)
	Release(now time.Time, stillOut int, settled store.Checkpoint) (leaseWrite, bool)
	Stored(number, rev uint64)
	Refused(number uint64)
	Lost(number uint64)
	InDoubt() bool
	Term() uint64
	Confirmed() uint64
	MaySend(now time.Time) bool
	NeedsWrite(now time.Time) bool
	Limit() int
}

const (
	simAnswerTimeout = time.Second // of a read or a write of the checkpoint
	simPollEvery     = 700 * time.Millisecond
	simStopGrace     = 15 * time.Second
	simMaxTries      = 4 // with 555
	simAnyRevision   = ^uint64(0)
)

// simNode is one process from start to end.
type simNode struct {
	s           *sim
	slot        int
	id          string
	rate        float64 // of its clock
	skew        time.Duration
	dead        bool
	frozenUntil time.Duration

	lease    simKeeper
	busy     bool // reading or writing the checkpoint
	lastRead time.Time
	seen     simRevision // what it read last

	term   *simTerm // nil in standby
	stopBy time.Time
	lost   int    // writes without answer since the last one that stands
	told   uint64 // it was told that this term of its own is over
}

// simTerm is what a relay knows while it holds a term.
type simTerm struct {
	s       *sim
	number  uint64
	loaded  bool // the letters were read
	dirty   bool
	settled simPlaceSet
	totals  store.Totals
	read    int   // place to read next
	waiting []int // places, in order
	busy    uint64
	aside   []simAside
	tries   map[int]int // 555 so far
	batches []*simBatch
}

type simAside struct {
	place int
	due   time.Time
}

type simBatch struct {
	term      uint64
	of        *simTerm
	records   []int
	out       bool   // a call has no answer yet
	dialing   bool   // a call is about to start
	dials     int    // so that only the last one counts
	settled   bool   // every record's verdict is known, and letters are stored
	settledIn uint64 // the first write that says so
}

func (s *sim) start(slot int) {
	n := &simNode{
		s:    s,
		slot: slot,
		id:   fmt.Sprintf("%c%d", 'A'+slot, s.seq),
		rate: 0.98 + 0.04*s.rng.Float64(),
		skew: s.upTo(24 * time.Hour),
	}
	l := newLease(leaseOptions{Self: n.id, Cap: s.cap, CallTimeout: s.callTimeout, Embedded: s.embedded})
	n.lease = l
	if s.mutant.lease != nil {
		n.lease = s.mutant.lease(n, l)
	}
	n.lastRead = n.clock().Add(-simPollEvery)
	s.nodes[slot] = n
	s.tracef("%s starts", n)
	n.tick()
}

func (n *simNode) String() string { return n.id }

// clock is the process's own time.
func (n *simNode) clock() time.Time {
	return time.Unix(0, 0).Add(n.skew + time.Duration(float64(n.s.now)*n.rate))
}

// local is how long d of the process's clock really takes.
func (n *simNode) local(d time.Duration) time.Duration { return time.Duration(float64(d) / n.rate) }

func (n *simNode) freeze(d time.Duration) {
	n.s.stats.Pauses++
	n.s.tracef("%s is stopped for %v", n, d)
	n.frozenUntil = n.s.now + d
}

func (n *simNode) stop() {
	n.s.tracef("%s is asked to stop", n)
	if n.stopBy.IsZero() {
		n.stopBy = n.clock().Add(simStopGrace)
	}
}

func (n *simNode) stopping() bool { return !n.stopBy.IsZero() }

func (n *simNode) tick() {
	n.s.after(n.s.between(200*time.Millisecond, 400*time.Millisecond), n, n.tick)
	n.step()
}

// step does whatever is due.
func (n *simNode) step() {
	n.followTerm()
	if n.stopping() && (n.term == nil && !n.busy && !n.lease.InDoubt() || n.clock().After(n.stopBy.Add(3*time.Second))) {
		n.s.tracef("%s ends", n)
		n.s.gone(n)
		return
	}
	if !n.busy {
		n.keepTerm()
	}
	n.startCalls()
}

// followTerm acts on what the lease has learnt.
func (n *simNode) followTerm() {
	term := n.lease.Term()
	if n.term != nil && n.term.number != term {
		n.s.tracef("%s: term %d is over", n, n.term.number)
		n.term = nil
	}
	if n.term == nil && term != 0 {
		n.begin(term)
	}
	if n.term == nil {
		return
	}
	for _, b := range slices.Clone(n.term.batches) {
		if b.settledIn != 0 && b.settledIn <= n.lease.Confirmed() {
			b.done()
		}
	}
}

// begin starts a term from the checkpoint that was taken over.
func (n *simNode) begin(term uint64) {
	n.s.tracef("%s holds term %d", n, term)
	n.term = &simTerm{
		s:       n.s,
		number:  term,
		settled: n.seen.settled,
		totals:  n.seen.cp.Totals,
		read:    n.seen.settled.floor(),
		tries:   map[int]int{},
	}
	n.loadLetters(n.term)
}

// loadLetters counts as settled what is dead and not below the floor.
func (n *simNode) loadLetters(t *simTerm) {
	s := n.s
	if s.mutant.forgetLetters {
		t.loaded = true
		return
	}
	if s.hit(s.faults.lostRead) {
		s.after(time.Second, n, func() { n.loadLetters(t) })
		return
	}
	s.after(s.between(5*time.Millisecond, 300*time.Millisecond), nil, func() {
		letters := slices.Clone(s.letters)
		s.after(s.between(5*time.Millisecond, 300*time.Millisecond), n, func() {
			for p := t.settled.floor(); p < len(letters); p++ {
				if letters[p].standing && !t.settled.has(p) {
					t.settled.add(p)
					t.totals.Died++
					t.dirty = true
				}
			}
			t.loaded = true
			n.step()
		})
	})
}

// keepTerm reads or writes the checkpoint if that is due.
func (n *simNode) keepTerm() {
	now := n.clock()
	if n.lease.InDoubt() {
		n.read()
		return
	}
	if n.term == nil {
		n.watch(now)
		return
	}
	if n.stopping() && (n.callsOut() == 0 || now.After(n.stopBy)) {
		if w, ok := n.lease.Release(now, n.callsOut(), n.term.checkpoint()); ok {
			n.write(w, n.term.settled)
		}
		return
	}
	if n.term.dirty || n.lease.NeedsWrite(now) {
		if w, ok := n.lease.Write(now, n.term.checkpoint()); ok {
			n.term.markWritten(w.Number)
			n.write(w, n.term.settled)
		}
	}
}

func (n *simNode) watch(now time.Time) {
	if n.stopping() {
		return
	}
	if w, ok := n.lease.TakeOver(now); ok {
		n.write(w, n.seen.settled)
		return
	}
	if now.Sub(n.lastRead) >= simPollEvery {
		n.read()
	}
}

func (t *simTerm) checkpoint() store.Checkpoint {
	return store.Checkpoint{Floor: uint64(t.settled.floor()), Totals: t.totals}
}

// markWritten notes which batches a write settles.
func (t *simTerm) markWritten(number uint64) {
	t.dirty = false
	for _, b := range t.batches {
		if b.settled && b.settledIn == 0 {
			b.settledIn = number
		}
	}
}

// operation runs one read or write of the checkpoint: exactly one of what the answer
// says and what its absence says comes to pass.
func (n *simNode) operation(noAnswer func()) (answer func(func())) {
	n.busy = true
	done := false
	end := func(say func()) {
		if done {
			return
		}
		done, n.busy = true, false
		say()
		n.step()
	}
	n.s.after(n.local(simAnswerTimeout), n, func() { end(noAnswer) })
	return end
}

func (n *simNode) read() {
	s := n.s
	n.lastRead = n.clock()
	answer := n.operation(func() {})
	if s.hit(s.faults.lostRead) {
		return
	}
	s.after(s.between(time.Millisecond, 400*time.Millisecond), nil, func() {
		got := *s.checkpoint()
		if s.hit(s.faults.staleRead) {
			got = s.staleRevision()
		}
		s.after(s.between(time.Millisecond, 400*time.Millisecond), n, func() {
			answer(func() { n.observe(got) })
		})
	})
}

func (n *simNode) observe(got simRevision) {
	if n.lease.InDoubt() {
		n.s.tracef("%s reads back rev %d: term %d %s write %d", n, got.rev, got.cp.Term, got.cp.Holder, got.cp.Write)
	}
	if n.term != nil && got.cp.Term > n.term.number {
		n.told = n.term.number
		n.s.tracef("%s reads that term %d is over", n, n.told)
	}
	n.seen = got
	n.tell(func() { n.lease.Observe(got.rev, got.cp, n.clock()) })
}

// tell feeds the lease, and notes when no write is unaccounted for any more.
func (n *simNode) tell(feed func()) {
	before := n.lease.Confirmed()
	feed()
	if n.lease.Confirmed() == before {
		return
	}
	if n.lost > 0 {
		n.s.stats.FoundWrites++
	}
	n.lost = 0
}

// simAnswer is what the store says to a write.
type simAnswer struct {
	rev       uint64
	ok        bool
	overtaken bool // refused, and the term that stands is not the writer's any more
}

func (n *simNode) write(w leaseWrite, settled simPlaceSet) {
	s := n.s
	s.tracef("%s writes number %d on rev %d: term %d", n, w.Number, w.Replaces, w.Checkpoint.Term)
	held := n.term != nil
	answer := n.operation(func() {
		s.stats.LostWrites++
		n.lost++
		n.lease.Lost(w.Number)
	})
	there := s.between(time.Millisecond, 300*time.Millisecond)
	switch {
	case s.hit(s.faults.lostWrite):
		return
	case s.hit(s.faults.lateWrite):
		there = s.between(time.Second, 15*time.Second)
	}
	s.after(there, nil, func() {
		a := simAnswer{}
		a.rev, a.ok = s.replace(w, settled)
		a.overtaken = held && !a.ok && s.checkpoint().cp.Term != w.Checkpoint.Term
		if s.hit(s.faults.lostAnswer) {
			return
		}
		back := s.between(time.Millisecond, 300*time.Millisecond)
		if s.hit(s.faults.slowAnswer) {
			back = s.between(time.Second, 6*time.Second)
		}
		s.after(back, n, func() { n.writeAnswered(w, a, answer) })
	})
}

// writeAnswered takes in an answer. One that comes after it was given up is either
// dropped or listened to: the lease bears both.
func (n *simNode) writeAnswered(w leaseWrite, a simAnswer, answer func(func())) {
	inTime := false
	answer(func() {
		inTime = true
		if a.overtaken && n.lost == 0 {
			n.told = w.Checkpoint.Term
			n.s.tracef("%s learns that term %d is over", n, n.told)
		}
		n.tellAnswer(w, a)
	})
	if !inTime && n.s.rng.IntN(2) == 0 {
		n.tellAnswer(w, a)
		n.step()
	}
}

func (n *simNode) tellAnswer(w leaseWrite, a simAnswer) {
	if a.ok {
		n.tell(func() { n.lease.Stored(w.Number, a.rev) })
		return
	}
	n.s.stats.Refused++
	n.s.tracef("%s is refused number %d", n, w.Number)
	n.lease.Refused(w.Number)
}

// startCalls fills the free slots.
func (n *simNode) startCalls() {
	t := n.term
	if t == nil || !t.loaded || n.stopping() {
		return
	}
	t.readOn()
	for len(t.batches) < n.lease.Limit() && n.lease.MaySend(n.clock()) {
		b := t.nextBatch(n.clock())
		if b == nil {
			return
		}
		n.dial(b)
	}
}

// readOn reads the queue by position.
func (t *simTerm) readOn() {
	const atOnce = 100
	for ; t.read < len(t.s.places) && len(t.waiting) < atOnce; t.read++ {
		if !t.settled.has(t.read) {
			t.waiting = append(t.waiting, t.read)
		}
	}
}

// nextBatch takes the oldest that may leave, one per user.
func (t *simTerm) nextBatch(now time.Time) *simBatch {
	b := &simBatch{term: t.number, of: t}
	t.aside = slices.DeleteFunc(t.aside, func(a simAside) bool {
		if len(b.records) == t.s.batchMax || a.due.After(now) {
			return false
		}
		b.records = append(b.records, a.place)
		return true
	})
	blocked := t.busy
	t.waiting = slices.DeleteFunc(t.waiting, func(p int) bool {
		user := uint64(1) << t.s.places[p].user
		if len(b.records) == t.s.batchMax || blocked&user != 0 {
			blocked |= user
			return false
		}
		blocked |= user
		t.busy |= user
		b.records = append(b.records, p)
		return true
	})
	if len(b.records) == 0 {
		return nil
	}
	t.batches = append(t.batches, b)
	return b
}

// dial makes the connection that a batch will leave by.
func (n *simNode) dial(b *simBatch) {
	took := n.s.upTo(20 * time.Millisecond)
	if n.s.hit(n.s.faults.slowDial) {
		took = n.s.upTo(8 * time.Second)
	}
	b.dialing = true
	b.dials++
	dial := b.dials
	n.s.after(took, n, func() {
		if b.dials == dial {
			n.firstByte(b)
		}
	})
}

// firstByte looks at the lease once more, and sends.
func (n *simNode) firstByte(b *simBatch) {
	s := n.s
	b.dialing = false
	if n.term != b.of {
		return
	}
	if !s.mutant.noSecondLook && !n.lease.MaySend(n.clock()) {
		n.again(b)
		return
	}
	if s.hit(s.faults.gap) {
		n.sleepBeforeSend(b)
		return
	}
	n.send(b, false)
}

// sleepBeforeSend stops the process when this batch, and whatever else is about to
// leave, is past its last look.
func (n *simNode) sleepBeforeSend(b *simBatch) {
	d := n.s.between(time.Second, 20*time.Second)
	n.freeze(d)
	b.dialing = true
	leaving := 0
	for _, b := range n.term.batches {
		if b.dialing {
			leaving++
			b.dials++
			n.s.after(d, n, func() { n.send(b, true) })
		}
	}
	if leaving > n.lease.Limit() {
		n.s.failf("at most its limit when it wakes", "%s will send %d at a limit of %d", n, leaving, n.lease.Limit())
	}
}

// send is the first byte. A process that was stopped just before it may have lost its
// lease; such calls are counted apart, there are at most its limit.
func (n *simNode) send(b *simBatch, slept bool) {
	s := n.s
	b.dialing = false
	c := &simCall{from: n, batch: b, records: b.records}
	if !n.lease.MaySend(n.clock()) {
		c.woken = true
		s.stats.Woken++
		if !slept {
			s.failf("lease before the first byte", "%s sends in term %d", n, b.term)
		}
	}
	s.checkDeadStay(c)
	s.tracef("%s sends %v in term %d, woken %t", n, c.records, b.term, c.woken)
	b.out = true
	s.after(s.between(time.Millisecond, 30*time.Millisecond), nil, func() { s.arrive(c) })
	s.after(n.local(s.callTimeout), n, func() {
		s.close(c)
		n.answered(c, false)
	})
}

// checkDeadStay: what was dead when a term began does not go again in it.
func (s *sim) checkDeadStay(c *simCall) {
	for _, p := range c.records {
		if l := s.letters[p]; l.standing && l.at < s.begun[c.batch.term] {
			s.failf("dead stay dead", "place %d goes again in term %d", p, c.batch.term)
		}
	}
}

// again lets a batch go as it is, later: it keeps its slot and its users.
func (n *simNode) again(b *simBatch) {
	if n.s.mutant.unknownFreesUsers {
		b.freeUsers()
	}
	n.s.after(n.s.between(100*time.Millisecond, time.Second), n, func() {
		if n.term == b.of && !n.stopping() {
			n.dial(b)
		}
	})
}

func (n *simNode) answered(c *simCall, known bool) {
	if c.answered {
		return
	}
	c.answered = true
	b := c.batch
	b.out = false
	if n.lease.Term() != b.term && !n.s.mutant.settleAfterEnd {
		return
	}
	if !known {
		n.again(b)
		return
	}
	if dead := n.sort(b, c.verdicts); len(dead) > 0 && !n.s.mutant.lettersLast {
		n.storeLetters(b, dead, func() { n.record(b, dead) })
	} else {
		n.record(b, dead)
		if len(dead) > 0 {
			n.storeLetters(b, dead, func() {})
		}
	}
}

// sort lets the records that got a 555 step aside, and returns the dead ones.
func (n *simNode) sort(b *simBatch, verdicts []simVerdict) (dead []int) {
	t, stay := b.of, []int(nil)
	for i, p := range b.records {
		if verdicts[i] == simBusy {
			t.tries[p]++
		}
		switch {
		case verdicts[i] == simBusy && t.tries[p] < simMaxTries:
			t.aside = append(t.aside, simAside{p, n.clock().Add(n.s.between(time.Second/2, 3*time.Second))})
			continue
		case verdicts[i] != simAccepted:
			dead = append(dead, p)
		}
		stay = append(stay, p)
	}
	b.records = stay
	return dead
}

// storeLetters stores them, however often it takes, as long as the term lasts.
func (n *simNode) storeLetters(b *simBatch, dead []int, then func()) {
	s := n.s
	if b.term <= n.told {
		s.failf("nothing after the end", "%s stores letters of term %d", n, b.term)
	}
	lost := s.hit(s.faults.lostLetter)
	stored := !lost || s.rng.IntN(2) == 0
	s.after(s.between(time.Millisecond, 300*time.Millisecond), nil, func() {
		if stored {
			s.storeLetter(dead)
		}
		s.after(s.between(time.Millisecond, 300*time.Millisecond), n, func() {
			switch {
			case n.lease.Term() != b.term && !s.mutant.settleAfterEnd:
			case lost:
				n.storeLetters(b, dead, then)
			default:
				then()
			}
		})
	})
}

func (s *sim) storeLetter(dead []int) {
	for _, p := range dead {
		if l := &s.letters[p]; !l.stood {
			s.stats.Deaths++
			*l = simLetter{stood: true, standing: true, at: s.now}
		}
	}
	s.tracef("dead: %v", dead)
}

// record settles a batch, as far as this process knows.
func (n *simNode) record(b *simBatch, dead []int) {
	t := b.of
	for _, p := range b.records {
		t.settled.add(p)
	}
	t.totals.Died += uint64(len(dead))
	t.totals.Delivered += uint64(len(b.records) - len(dead))
	t.dirty, b.settled = true, true
	if n.s.mutant.doneUnwritten {
		b.done()
	}
	n.step()
}

// done frees a batch's slot and users; those whose record stepped aside stay busy.
func (b *simBatch) done() {
	b.of.batches = slices.DeleteFunc(b.of.batches, func(o *simBatch) bool { return o == b })
	b.freeUsers()
}

func (b *simBatch) freeUsers() {
	for _, p := range b.records {
		b.of.busy &^= 1 << b.of.s.places[p].user
	}
}

func (n *simNode) callsOut() int {
	out := 0
	for _, b := range n.term.batches {
		if b.out {
			out++
		}
	}
	return out
}

// --- what happens without each rule ---

// simMutant takes one rule out: of the lease, by standing in for it, or of the relay.
type simMutant struct {
	lease             func(*simNode, *lease) simKeeper
	noSecondLook      bool // before the first byte
	doneUnwritten     bool // slot and users are free before the checkpoint is written
	unknownFreesUsers bool // of a batch that goes again
	lettersLast       bool // stored beside the checkpoint, not before it
	forgetLetters     bool // when a term begins
	settleAfterEnd    bool // what comes back after the term is settled
}

// drawRough leaves no kind of trouble with the checkpoint out.
func drawRough(rng *rand.Rand) simScenario {
	sc := drawScenario(rng)
	f := &sc.faults
	f.pause, f.lostWrite, f.lateWrite, f.lostAnswer = max(f.pause, 0.05), max(f.lostWrite, 0.1), max(f.lateWrite, 0.2), max(f.lostAnswer, 0.1)
	return sc
}

// Each rule is there since something breaks without it: that must be seen.
func TestEachRuleIsNeeded(t *testing.T) {
	const bound = 5000 // seeds; each shows within 200
	for _, m := range []struct {
		without string
		breaks  string
		mutant  simMutant
	}{
		{"the send window of 4 s", "one sender", standIn(func(_ *simNode, l *lease) simKeeper { return &noSendWindow{l} })},
		{"a second look before the first byte", "lease before the first byte", simMutant{noSecondLook: true}},
		{"the standby's wait of 5 s", "one sender", standIn(func(_ *simNode, l *lease) simKeeper { return &noStandbyWait{l} })},
		{"the wait beginning anew", "one sender", standIn(func(_ *simNode, l *lease) simKeeper { return &waitGoesOn{l} })},
		{"that very revision", "one sender", standIn(func(_ *simNode, l *lease) simKeeper { return &anyTakeOver{l} })},
		{"a refused write ending the term", "nothing after the end", standIn(func(_ *simNode, l *lease) simKeeper { return &refusedGoesOn{l} })},
		{"telling others' revisions from ours", "one sender", standIn(func(_ *simNode, l *lease) simKeeper { return &adopts{l} })},
		{"the lease counting from the begin", "one sender", standIn(func(n *simNode, l *lease) simKeeper { return &countsFromAnswer{l, n} })},
		{"a found write counting from its begin", "one sender", standIn(func(_ *simNode, l *lease) simKeeper { return &countsFromRead{l} })},
		{"comparing write numbers", "one sender", standIn(func(_ *simNode, l *lease) simKeeper { return &numberless{l} })},
		{"adding the predecessor's limit", "in flight", standIn(func(_ *simNode, l *lease) simKeeper { return &forgetsLimit{l} })},
		{"carrying what earlier terms left", "in flight", standIn(func(_ *simNode, l *lease) simKeeper { return &forgetsOut{l} })},
		{"the wait before none is out", "in flight", standIn(func(_ *simNode, l *lease) simKeeper { return &zeroAtOnce{l} })},
		{"counting calls at a graceful stop", "in flight", standIn(func(_ *simNode, l *lease) simKeeper { return &forgetsStillOut{l} })},
		{"a batch done only when written", "bounded repeats", simMutant{doneUnwritten: true}},
		{"users busy while the outcome is unknown", "order", simMutant{unknownFreesUsers: true}},
		{"letters before the checkpoint", "nothing lost", simMutant{lettersLast: true}},
		{"letters counting when a term begins", "dead stay dead", simMutant{forgetLetters: true}},
		{"nothing settled after the term", "nothing after the end", simMutant{settleAfterEnd: true}},
	} {
		t.Run(m.without, func(t *testing.T) {
			failed := playSeeds(bound, drawRough, m.mutant, func(s *sim) {
				if s.violation != nil && s.violation.promise != m.breaks {
					s.violation = nil // it breaks more than one, and this one is the point
				}
			})
			if failed == nil {
				t.Fatalf("without it %q held in %d histories", m.breaks, bound)
			}
			t.Logf("seed %d: %v", failed.seed, failed.violation)
		})
	}
}

func standIn(f func(*simNode, *lease) simKeeper) simMutant { return simMutant{lease: f} }

type noSendWindow struct{ *lease }

func (m *noSendWindow) MaySend(time.Time) bool { return m.holding && !m.releasing }

type noStandbyWait struct{ *lease }

func (m *noStandbyWait) TakeOver(now time.Time) (leaseWrite, bool) {
	m.since = now.Add(-standbyWait)
	return m.lease.TakeOver(now)
}

// waitGoesOn counts from the first read, not from the last change.
type waitGoesOn struct{ *lease }

func (m *waitGoesOn) Observe(rev uint64, cp store.Checkpoint, at time.Time) {
	known, since := m.known, m.since
	m.lease.Observe(rev, cp, at)
	if known && !m.holding {
		m.since = since
	}
}

type anyTakeOver struct{ *lease }

func (m *anyTakeOver) TakeOver(now time.Time) (leaseWrite, bool) {
	w, ok := m.lease.TakeOver(now)
	w.Replaces = simAnyRevision
	return w, ok
}

type refusedGoesOn struct{ *lease }

func (m *refusedGoesOn) Refused(uint64) { m.pending, m.underway = nil, false }

// adopts takes whatever stands for its own.
type adopts struct{ *lease }

func (m *adopts) Observe(rev uint64, cp store.Checkpoint, at time.Time) {
	if m.doubt && len(m.pending) > 0 && rev != m.rev {
		m.confirm(m.pending[len(m.pending)-1], rev)
		return
	}
	m.lease.Observe(rev, cp, at)
}

type countsFromAnswer struct {
	*lease
	node *simNode
}

func (m *countsFromAnswer) Stored(number, rev uint64) {
	m.lease.Stored(number, rev)
	m.held.began = m.node.clock()
}

type countsFromRead struct{ *lease }

func (m *countsFromRead) Observe(rev uint64, cp store.Checkpoint, at time.Time) {
	before := m.Confirmed()
	m.lease.Observe(rev, cp, at)
	if m.Confirmed() != before {
		m.held.began = at
	}
}

// numberless takes any write of its own for the last one it began.
type numberless struct{ *lease }

func (m *numberless) Observe(rev uint64, cp store.Checkpoint, at time.Time) {
	if len(m.pending) > 0 && rev != m.rev {
		if last := m.pending[len(m.pending)-1]; cp.Holder == last.holder && cp.Term == last.term {
			cp.Write = last.number
		}
	}
	m.lease.Observe(rev, cp, at)
}

// restamp changes what a write under way announces.
func (l *lease) restamp(w leaseWrite, out int) leaseWrite {
	c := &l.pending[len(l.pending)-1]
	c.out, c.limit = out, l.limitBeside(out)
	w.Checkpoint.Out, w.Checkpoint.Limit = c.out, c.limit
	return w
}

type forgetsLimit struct{ *lease }

func (m *forgetsLimit) TakeOver(now time.Time) (leaseWrite, bool) {
	w, ok := m.lease.TakeOver(now)
	if ok {
		w = m.restamp(w, m.seen.Out)
	}
	return w, ok
}

type forgetsOut struct{ *lease }

func (m *forgetsOut) TakeOver(now time.Time) (leaseWrite, bool) {
	w, ok := m.lease.TakeOver(now)
	if ok {
		w = m.restamp(w, m.seen.Limit)
	}
	return w, ok
}

type zeroAtOnce struct{ *lease }

func (m *zeroAtOnce) Write(now time.Time, settled store.Checkpoint) (leaseWrite, bool) {
	m.termBegan = time.Time{}
	return m.lease.Write(now, settled)
}

type forgetsStillOut struct{ *lease }

func (m *forgetsStillOut) Release(now time.Time, _ int, settled store.Checkpoint) (leaseWrite, bool) {
	return m.lease.Release(now, 0, settled)
}
