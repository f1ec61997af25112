package main

import (
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
)

// campaign is what the receipts of the demo are about.
type campaign struct {
	event  string
	target string // digit for digit, as it goes out and must arrive
}

// The campaigns of the demo. The first is that of Sendbird's documentation; the
// second has a target that a float would round, so that its digits are a proof.
var (
	firstCampaign = campaign{"My First Campaign", "123123"}
	bigCampaign   = campaign{"Spring Sale", "9007199254740993"}
	doomed        = campaign{"Weekend Offer", "778899"} // CleverTap comes to refuse it
)

// campaignOf gives one user in ten to the doomed one, and those far up to the one that
// birdtap itself sends.
func campaignOf(user int) campaign {
	if user >= launchFirst {
		return launchCampaign
	}
	switch user % 10 {
	case 9:
		return doomed
	case 1, 3, 5, 7:
		return bigCampaign
	default:
		return firstCampaign
	}
}

// fact is one receipt of the demo by number: user number/2 was SENT (even) the
// notification, or has READ it (odd). Everything else follows from the number, so
// the ledger needs a byte for each.
type fact int

func sentTo(user int) fact { return fact(2 * user) }
func readBy(user int) fact { return fact(2*user + 1) }

func (f fact) user() int { return int(f) / 2 }

func (f fact) status() string {
	if f%2 == 0 {
		return "SENT"
	}
	return "READ"
}

// userPrefix tells the demo's users from those of somebody who plays with --keep.
const userPrefix = "u-"

// record is the receipt as Sendbird posts it.
func (f fact) record() string {
	c := campaignOf(f.user())
	return fmt.Sprintf(`{"identity":"%s%d","evtName":"%s","evtData":{"status":"%s","target_id":%s}}`,
		userPrefix, f.user(), c.event, f.status(), c.target)
}

// factOf reads the number back from a record at CleverTap. It is false if the
// record is not exactly one that the demo could have sent.
func factOf(r clevertaptest.Record) (fact, bool) {
	user, err := strconv.Atoi(strings.TrimPrefix(r.Identity, userPrefix))
	if err != nil || user < 0 {
		return 0, false
	}
	f := sentTo(user)
	if r.Status == "READ" {
		f = readBy(user)
	}
	c := campaignOf(user)
	return f, r.Status == f.status() && r.Event == c.event && r.TargetID == c.target && r.TS != ""
}

// mark is what is known of one fact, seen from outside of birdtap.
type mark uint8

const (
	markSent     mark = 1 << iota // posted at least once
	markAnswered                  // answered 2xx: birdtap has promised to deliver it
	markSeen                      // taken by CleverTap
	markRefused                   // refused by CleverTap, and not taken since
	markWasDead                   // refused at some time: its replay comes when it comes
)

// ledger keeps what Sendbird sent and what CleverTap saw, and so proves or refutes
// what birdtap says of itself. It is safe for concurrent use.
type ledger struct {
	mu    sync.Mutex
	marks []mark
	sums  figures
}

// figures are the sums of a ledger.
type figures struct {
	sent     int // receipts, each counted once however often it was posted
	answered int // of these, answered 2xx
	seen     int // distinct receipts at CleverTap
	dead     int // refused by CleverTap and not taken since
	waiting  int // answered, neither seen nor dead
	copies   int // taken by CleverTap although it had them
	cut      int // posts that got no answer, or not 2xx
	inverted int // READ taken before SENT
	strange  int // at CleverTap, but never sent like that
	guests   int // at CleverTap, posted by somebody else
}

func (l *ledger) figures() figures {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sums
}

// note adds marks to a fact and takes others away, and keeps the sums right.
func (l *ledger) note(f fact, add, remove mark) (before mark) {
	for int(f) >= len(l.marks) {
		l.marks = append(l.marks, 0)
	}
	before = l.marks[f]
	after := before&^remove | add
	l.marks[f] = after
	for _, sum := range []struct {
		of   *int
		when func(mark) bool
	}{
		{&l.sums.sent, func(m mark) bool { return m&markSent != 0 }},
		{&l.sums.answered, func(m mark) bool { return m&markAnswered != 0 }},
		{&l.sums.seen, func(m mark) bool { return m&markSeen != 0 }},
		{&l.sums.dead, func(m mark) bool { return m&markRefused != 0 }},
		{&l.sums.waiting, func(m mark) bool { return m&(markAnswered|markSeen|markRefused) == markAnswered }},
	} {
		if sum.when(before) {
			*sum.of--
		}
		if sum.when(after) {
			*sum.of++
		}
	}
	return before
}

func (l *ledger) posted(f fact) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.note(f, markSent, 0)
}

func (l *ledger) answered(f fact) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.note(f, markAnswered, 0)
}

func (l *ledger) cutOff() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sums.cut++
}

// arrived takes in a record that CleverTap has taken or refused.
func (l *ledger) arrived(r clevertaptest.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f, ok := factOf(r)
	switch {
	case !strings.HasPrefix(r.Identity, userPrefix):
		l.sums.guests++
	case !ok || int(f) >= len(l.marks) || l.marks[f]&markSent == 0:
		l.sums.strange++
	case r.Accepted:
		l.taken(f)
	case l.marks[f]&markSeen == 0:
		l.note(f, markRefused|markWasDead, 0)
	}
}

// taken notes a receipt at CleverTap. A user's READ may not come before the SENT,
// unless that one was refused and so had to wait for its replay.
func (l *ledger) taken(f fact) {
	before := l.note(f, markSeen, markRefused)
	if before&markSeen != 0 {
		l.sums.copies++
		return
	}
	if sent := sentTo(f.user()); f != sent && l.marks[sent]&(markSeen|markWasDead) == 0 {
		l.sums.inverted++
	}
}
