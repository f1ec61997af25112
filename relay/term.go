package relay

import (
	"slices"
	"time"

	"github.com/birdtap/birdtap/store"
)

const (
	// accountCalls is how many upload calls CleverTap lets one account have in
	// flight; developer.clevertap.com/docs/api-request-limit.
	accountCalls = 15

	// sendWindow is how long after the begin of a successful write its holder may
	// start calls. It must be shorter than standbyWait by more than clocks drift:
	// 4 s and 5 s bear clocks whose rates differ by a fifth.
	sendWindow = 4 * time.Second

	// standbyWait is how long a standby sees one revision before it takes over.
	standbyWait = 5 * time.Second

	// heartbeat is the longest a holder in a cluster goes without a write: one may
	// get lost, and be read back, within the send window.
	heartbeat = 1500 * time.Millisecond
)

// A lease tells whether this process is the one active relay of its account, and
// how many calls it may have in flight. It is a state machine without clock,
// goroutine or connection: times and answers are fed in, writes come out.
//
//	             MayTakeOver → TakeOver          Stored, or Observe finds it            Write
//	standby ─────────────────────────────▶ taking ──────────────────────────▶ holding ──┐
//	   ▲ ▲                                    │                                  │  ▲─────┘
//	   │ └──── Refused, Observe finds another ┘                                  │
//	   └────── Refused, Observe finds another, or the Release stored ────────────┘
//
// The checkpoint is the lease: every write replaces the revision its writer knows,
// and only that one, or is refused. What follows is the rule book, and the hole
// that each rule closes.
//
// # Who holds the term
//
//   - Each process start draws its own random id, and no two writes of a process
//     bear the same number. So a write can be recognised when its answer was lost;
//     an id that survived a restart would let a process take its dead self's writes
//     for its own.
//   - A standby takes over once it has seen the same revision for 5 s of its own
//     clock, counted from when the first read of it returned. Any other revision
//     begins the 5 s anew: its holder was alive. With the holder empty (graceful
//     stop, or none ever) it need not wait.
//   - It takes over by a write with the next term on that very revision. If the
//     holder wrote meanwhile the write is refused, so a standby that slept, or read
//     something old, cannot take away a term that lives.
//   - A holder starts no call when its last successful write began more than 4 s ago.
//     Counted from the begin, for a standby may have seen the write as soon as that:
//     an answer that lay in the buffer of a paused process says nothing about now.
//     The caller asks MaySend when it makes up a batch and again just before the
//     first byte, for a connection takes time to set up. (A process stopped between
//     that second look and the byte sends when it wakes, at most Limit calls; so does
//     a machine that was suspended together with its clock.)
//   - No two clocks are ever compared; only their rates must agree, to a tenth each.
//   - Embedded, the lock on the data directory proves that nobody else is alive: no
//     wait, no heartbeat, and calls may start for as long as the term is held.
//
// # Whose write stands
//
//   - One write at a time. A refused one ends the term at once, and so does the sight of
//     a higher term: another holder stands there, and what still comes back may neither
//     be settled nor become a dead letter, for the other one sends it again and decides
//     about it.
//   - A write without answer may have been applied, or may be later. The checkpoint is
//     read before anything else is written (a blind write would be refused where the
//     lost one stands). If one of our own stands there (holder, term and number are
//     its), the term goes on with that revision, and counts from when that very write
//     began, not from the read, nor from a later write: it is the revision that a
//     standby has been looking at. If the revision it was to replace still stands, a
//     new write may replace it. If anything else does, the term is over.
//   - A late one may still land before its successor. Then the successor is refused
//     although nobody took the term: after a refusal, too, a write that is unaccounted
//     for is looked for before the term is given up.
//   - Confirmed names the write that is known to stand. What was settled when that
//     one began is settled for good, and nothing more: a batch is done, its slot and its
//     users free, no sooner, so that a crash repeats no more than the batches in flight.
//
// # How many calls
//
// A dead or cut-off process may have left calls behind which CleverTap still counts.
//
//   - The checkpoint announces the holder's limit, and the calls that earlier terms may
//     still have out. Taking over adds the predecessor's limit to the latter. After a
//     graceful stop that limit reads 0, and the calls it could not wait for are among
//     those out.
//   - The limit is what those leave of the 15, at most the cap, at least 1: with none
//     the relay would stand still. So one hand-over stays within 15 (16 at a cap of 15),
//     and each further one that leaves calls behind, within the timeout of a call, adds
//     at most one: a 429 at worst. Without this, as many hand-overs as fit into a
//     timeout would each add a whole cap.
//   - None is out any more once the term, counted from the begin of its take-over write,
//     has lasted the timeout of a call + 4 s: no earlier holder started a call later than
//     that begin, and the 4 s cover what clocks differ by over a call. This assumes
//     that no earlier holder's timeout was longer than ours.
//   - A higher limit is used when the write that announces it stands, so that nobody ever
//     reads less than what is so.
//   - Embedded follows the same arithmetic: a restart does not end a call at CleverTap.
type lease struct {
	leaseOptions

	number uint64 // of the last write begun, over all terms of this process

	// known tells whether rev is: the revision that the next write replaces.
	known bool
	rev   uint64

	// In standby: the checkpoint that stands at rev, and since when it was seen.
	seen  store.Checkpoint
	since time.Time

	// pending are the writes on rev that may stand there by now, or land later.
	pending  []claim
	underway bool // the last of them awaits its answer
	doubt    bool // an answer was lost: read before anything is written

	held      claim     // of the last write known to stand
	holding   bool      // held is a claim of ours, and nothing says that it was replaced
	termBegan time.Time // when the take-over write began
	releasing bool      // no call may start any more in this term
}

// leaseOptions is what a lease has to know.
type leaseOptions struct {
	Self        string        // random id of this process start
	Cap         int           // calls in flight at most, 1 to 15
	CallTimeout time.Duration // of one call
	Embedded    bool          // the lock on the data directory keeps everybody else out
}

// leaseWrite is a checkpoint on its way: it must replace revision Replaces and no
// other. Each is answered by exactly one of Stored, Refused and Lost.
type leaseWrite struct {
	Number     uint64
	Replaces   uint64 // 0: there must be none yet
	Checkpoint store.Checkpoint
}

// claim is what a write says about the lease.
type claim struct {
	term   uint64
	holder string
	number uint64
	limit  int
	out    int
	began  time.Time
}

// newLease is called once per process start: a lease outlives its terms, and counts
// its writes over all of them.
func newLease(o leaseOptions) *lease { return &lease{leaseOptions: o} }

// Observe takes in what a read of the checkpoint returned, and when it returned.
// Revision 0 means that there is none yet. A standby reads every now and then; a
// process InDoubt reads at once. A read that crossed a write is of no use.
func (l *lease) Observe(rev uint64, cp store.Checkpoint, at time.Time) {
	if l.underway {
		return
	}
	if i := slices.IndexFunc(l.pending, func(c claim) bool { return c.standsIn(cp) }); i >= 0 {
		l.confirm(l.pending[i], rev)
		return
	}
	if l.known && rev == l.rev {
		l.doubt = false
		return
	}
	if l.holding && !l.doubt && cp.Term <= l.held.term {
		return // older than our last write
	}
	l.end()
	l.known, l.rev, l.seen, l.since = true, rev, cp, at
}

// MayTakeOver tells whether a standby may try to become the holder.
func (l *lease) MayTakeOver(now time.Time) bool {
	if l.holding || !l.mayWrite() {
		return false
	}
	return l.Embedded || l.seen.Holder == "" || now.Sub(l.since) >= standbyWait
}

// TakeOver begins the write that makes this process the holder, if MayTakeOver.
// It keeps all that the checkpoint says about receipts.
func (l *lease) TakeOver(now time.Time) (leaseWrite, bool) {
	if !l.MayTakeOver(now) {
		return leaseWrite{}, false
	}
	out := l.seen.Out + l.seen.Limit
	return l.begin(l.seen, claim{
		term:   l.seen.Term + 1,
		holder: l.Self,
		limit:  l.limitBeside(out),
		out:    out,
		began:  now,
	}), true
}

// Write begins a write of what the holder knows to be settled. There is none when
// the term is over or being released, while another is under way, or InDoubt.
func (l *lease) Write(now time.Time, settled store.Checkpoint) (leaseWrite, bool) {
	if !l.holding || l.releasing || !l.mayWrite() {
		return leaseWrite{}, false
	}
	out := l.outAt(now)
	return l.begin(settled, claim{
		term:   l.held.term,
		holder: l.Self,
		limit:  l.limitBeside(out),
		out:    out,
		began:  now,
	}), true
}

// Release begins the write that gives the term back, stillOut calls being without
// answer. From the first try on no call may start; like Write it may have to wait.
func (l *lease) Release(now time.Time, stillOut int, settled store.Checkpoint) (leaseWrite, bool) {
	if !l.holding {
		return leaseWrite{}, false
	}
	l.releasing = true
	if !l.mayWrite() {
		return leaseWrite{}, false
	}
	return l.begin(settled, claim{
		term:  l.held.term,
		out:   l.outAt(now) + stillOut,
		began: now,
	}), true
}

// Stored says that a write has become revision rev. It may come after Lost.
func (l *lease) Stored(number, rev uint64) {
	if i := l.indexPending(number); i >= 0 {
		l.confirm(l.pending[i], rev)
	}
}

// Refused says that a write was not applied since it would have replaced another
// revision than its own. It ends the term, unless a write of ours without answer
// may be what stands there.
func (l *lease) Refused(number uint64) {
	i := l.indexPending(number)
	if i < 0 {
		return
	}
	wasLast := i == len(l.pending)-1
	l.pending = slices.Delete(l.pending, i, i+1)
	switch {
	case len(l.pending) == 0:
		l.end()
	case wasLast:
		l.underway, l.doubt = false, true
	}
}

// Lost says that a write has got no answer: it may have been applied, or may be later.
func (l *lease) Lost(number uint64) {
	if l.underway && number == l.number {
		l.underway, l.doubt = false, true
	}
}

// InDoubt tells that nothing can be written before the checkpoint was read.
func (l *lease) InDoubt() bool { return l.doubt }

// Term is the term this process holds, 0 if none. What comes back from a call of
// another term than this settles nothing and stores no letter.
func (l *lease) Term() uint64 {
	if !l.holding {
		return 0
	}
	return l.held.term
}

// Holding tells whether this process is the active relay, as far as it knows.
func (l *lease) Holding() bool { return l.holding }

// Confirmed is the number of the last write known to stand.
func (l *lease) Confirmed() uint64 { return l.held.number }

// MaySend tells whether a call may start at this instant.
func (l *lease) MaySend(now time.Time) bool {
	if !l.holding || l.releasing {
		return false
	}
	return l.Embedded || now.Sub(l.held.began) <= sendWindow
}

// SendUntil is the last instant at which a call may start, unless another write
// succeeds before; an instant in the past if none may. It lets goroutines that start
// calls look without asking the lease, which is one goroutine's. Keep it a time.Time:
// what it becomes as a number follows a wall clock that somebody sets.
func (l *lease) SendUntil(now time.Time) time.Time {
	switch {
	case !l.MaySend(now):
		return now.Add(-time.Nanosecond)
	case l.Embedded:
		return now.Add(24 * time.Hour)
	}
	return l.held.began.Add(sendWindow)
}

// NeedsWrite tells whether a Write is due although nothing may have been settled.
func (l *lease) NeedsWrite(now time.Time) bool {
	if !l.holding || l.releasing || !l.mayWrite() {
		return false
	}
	owed := l.held.number != l.number // a later write does not stand: what it settled is not settled yet
	overdue := !l.Embedded && now.Sub(l.held.began) >= heartbeat
	return owed || overdue || l.outAt(now) != l.held.out
}

// Limit is how many calls may be in flight now, 0 without a term.
func (l *lease) Limit() int {
	if !l.holding {
		return 0
	}
	return l.held.limit
}

// mayWrite tells whether the revision to replace is known and no write is in the way.
func (l *lease) mayWrite() bool { return l.known && !l.underway && !l.doubt }

// begin stamps a claim onto a checkpoint. Holder's id and number tell it from every
// other write there ever was.
func (l *lease) begin(cp store.Checkpoint, c claim) leaseWrite {
	l.number++
	c.number = l.number
	l.pending = append(l.pending, c)
	l.underway = true
	cp.Term, cp.Holder, cp.Write, cp.Limit, cp.Out = c.term, c.holder, c.number, c.limit, c.out
	return leaseWrite{Number: c.number, Replaces: l.rev, Checkpoint: cp}
}

// confirm goes on with one of our writes, which stands as revision rev. The others on
// the revision it replaced can never be applied any more.
func (l *lease) confirm(c claim, rev uint64) {
	l.pending, l.underway, l.doubt = nil, false, false
	if !l.holding {
		l.termBegan = c.began
	}
	l.held, l.rev = c, rev
	l.holding = c.holder == l.Self
	if !l.holding {
		l.end() // released
	}
}

// end goes back to standby. The next take-over waits for a read.
func (l *lease) end() {
	l.holding, l.releasing, l.known = false, false, false
	l.pending, l.underway, l.doubt = nil, false, false
}

// outAt is how many calls of earlier terms may still be in flight.
func (l *lease) outAt(now time.Time) int {
	if now.Sub(l.termBegan) >= l.CallTimeout+sendWindow {
		return 0
	}
	return l.held.out
}

// limitBeside is how many calls the holder may have beside those of earlier terms.
func (l *lease) limitBeside(out int) int {
	return min(l.Cap, max(1, accountCalls-out))
}

func (l *lease) indexPending(number uint64) int {
	return slices.IndexFunc(l.pending, func(c claim) bool { return c.number == number })
}

// standsIn tells whether cp is the write that made this claim.
func (c claim) standsIn(cp store.Checkpoint) bool {
	return cp.Holder == c.holder && cp.Term == c.term && cp.Write == c.number
}
