//go:build integration

package integration

import (
	"flag"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/birdtap/birdtap/integration/history"
)

// More of them, for figures: go test -tags integration ./integration -run Cluster/Faults -handovers 10 -crashes 10.
var (
	handOvers = flag.Int("handovers", 1, "how often TestCluster/Faults takes the active relay away, in each of four ways")
	crashes   = flag.Int("crashes", 1, "how often TestCluster/Faults kills the node that the relay reads from, and half as often as the leader of the stream")
)

// pauseFor is how long machines sleep: well into another relay's term, and so long that
// the other nodes have long elected a leader.
const pauseFor = 12 * time.Second

// The whole system in containers, with traffic going on.
func TestCluster(t *testing.T) {
	f := newFleet(t)
	f.phase("Faults", f.faultByFault)
	f.phase("RollingRestart", f.rollingRestart)
	f.phase("Nemesis", f.randomFaults)
}

// One after the other its parts are killed, paused and cut off, and come back. Nothing
// that was answered 2xx is lost, nothing comes that was not sent, every user's order
// holds, CleverTap never has more calls in flight than it allows, and while two of three
// nodes are gone nobody is told that a receipt is stored.
func (f *fleet) faultByFault(t *testing.T) {
	seed := seedOf(t)
	f.begin(history.Options{
		Run: "faults", Seed: seed, Rate: 300,
		Refuse: 0.005, Again: 0.005, AtDoor: 0.005, Several: 0.01, Broken: 0.005,
	})
	moreOK(t, f.client.Log(), 300, readyWithin)

	for range *crashes {
		f.suffer("the node killed that the relay reads from", func() string { return f.crash(f.readFrom()) })
		for range 2 {
			f.suffer("the stream's leader killed", func() string {
				leader, _ := f.leader()
				return f.crash(leader)
			})
		}
	}
	f.suffer("the stream's leader paused and woken", func() string {
		leader, _ := f.leader()
		return f.sleep(leader)
	})
	f.suffer("the stream's leader cut off and connected", f.cutOffLeader)
	f.suffer("two of three nodes gone", f.loseQuorum)
	for range *handOvers {
		f.suffer("active relay killed", f.killActive)
		f.suffer("active relay told to stop", f.stopActive)
		f.suffer("active relay paused and woken", f.pauseActive)
		f.suffer("active relay cut off from the queue", f.cutOffActive)
	}
	f.finish(seed, f.mayRepeat)
}

// suffer lets a fault happen, waits until all is well, and says what it meant.
func (f *fleet) suffer(name string, fault func() string) {
	f.t.Helper()
	log := f.client.Log()
	before, was, counts := f.account(), f.counts(), log.Counts()
	began := time.Now()
	result := fault()
	healed := time.Now()
	moreOK(f.t, log, 200, time.Minute)
	f.whole()
	took := time.Since(healed)
	f.caughtUp()
	after, is := f.account(), f.counts()
	end := time.Now()
	terms, duplicates := after.Relay.Term-before.Relay.Term, is.Duplicates-was.Duplicates
	sent := log.Counts()
	f.t.Logf("%s: %s; the doors gave no 2xx for %.2f s, %d receipts had another answer; no upload for %.2f s; %d changes of hands, %d duplicates; whole %.1f s after",
		name, result,
		longest(began, append(f.pulse.since(began), end)).Seconds(),
		sent.Attempts-counts.Attempts-(sent.Taken-counts.Taken),
		longest(began, append(f.calls(began, f.relays...), end)).Seconds(),
		terms, duplicates, took.Seconds())
	f.faults = append(f.faults, name)
	f.mayRepeat += terms * outAtOnce // what a term leaves behind unrecorded
	if duplicates > terms*outAtOnce {
		f.t.Errorf("%s made %d duplicates, want at most %d", name, duplicates, terms*outAtOnce)
	}
	if is.MaxInFlight > accountCalls {
		f.t.Errorf("%s: %d calls were in flight at once, CleverTap allows %d", name, is.MaxInFlight, accountCalls)
	}
}

// account is the account of now.
func (f *fleet) account() account {
	f.t.Helper()
	var a account
	var err error
	eventually(f.t, wholeWithin, "birdtap status answers", func() bool {
		a, err = f.at.status()
		return err == nil
	})
	return a
}

// caughtUp waits until the backlog of a fault is gone.
func (f *fleet) caughtUp() {
	f.t.Helper()
	eventually(f.t, wholeWithin, "the backlog is gone", func() bool {
		a, err := f.at.status()
		return err == nil && a.Queued < outAtOnce
	})
}

// readFrom is the node where the consumer of the active relay lives; a follower, if that
// is one of them.
func (f *fleet) readFrom() *machine {
	f.t.Helper()
	leader, others := f.leader()
	for _, m := range others {
		if f.reads(m) {
			return m
		}
	}
	return leader
}

// role says what a node is to the receipts' stream.
func (f *fleet) role(node *machine) string {
	f.t.Helper()
	leader, _ := f.leader()
	role := "a follower"
	if node == leader {
		role = "the leader"
	}
	if f.reads(node) {
		role += ", where the relay reads"
	}
	return node.name + ", " + role
}

// crash kills a node and starts it when the others have gone on without it.
func (f *fleet) crash(node *machine) string {
	f.t.Helper()
	role := f.role(node)
	node.kill()
	f.goOn(node)
	node.start()
	return role
}

// goOn waits until the other two nodes take receipts in, and a relay uploads.
func (f *fleet) goOn(without *machine) {
	f.t.Helper()
	eventually(f.t, time.Minute, "another node leads the stream", func() bool {
		info, err := f.stream(fleetStreams[0])
		return err == nil && info.Cluster != nil && info.Cluster.Leader != "" && info.Cluster.Leader != without.name
	})
	moreOK(f.t, f.client.Log(), 100, time.Minute)
	since := time.Now()
	eventually(f.t, time.Minute, "a relay uploads", func() bool { return len(f.calls(since, f.relays...)) > 0 })
}

func (f *fleet) sleep(node *machine) string {
	f.t.Helper()
	role, began := f.role(node), time.Now()
	node.pause()
	f.goOn(node)
	<-time.After(time.Until(began.Add(pauseFor))) // it is the fault that lasts so long
	node.wake()
	return fmt.Sprintf("%s, for %.0f s", role, time.Since(began).Seconds())
}

func (f *fleet) cutOffLeader() string {
	f.t.Helper()
	leader, _ := f.leader()
	role := f.role(leader)
	leader.cutOff()
	f.goOn(leader)
	leader.rejoin()
	return role
}

// loseQuorum kills two nodes: the one that is left, which had led the stream, may
// confirm nothing.
func (f *fleet) loseQuorum() string {
	f.t.Helper()
	_, others := f.leader()
	var all sync.WaitGroup
	for _, m := range others {
		all.Go(m.kill)
	}
	all.Wait()
	gone := time.Now()
	eventually(f.t, readyWithin, "no ingest is ready", func() bool { return !f.ingests[0].ready() && !f.ingests[1].ready() })
	unready := time.Since(gone)
	slowest := f.refused()
	// What had been sent before is answered by now, or never will be.
	<-time.After(time.Until(gone.Add(6 * time.Second)))
	ready := 0
	taken := f.client.Log().Counts().Taken
	for range 3 {
		slowest = max(slowest, f.refused())
		for _, m := range f.ingests {
			if m.ready() {
				ready++
			}
		}
	}
	if more := f.client.Log().Counts().Taken - taken; more > 0 {
		f.t.Errorf("%d receipts were answered 2xx by one node of three", more)
	}
	for _, m := range others {
		m.start()
	}
	return fmt.Sprintf("not ready after %.1f s, ready all the same at %d of 6 looks; the slowest 503 took %.2f s", unready.Seconds(), ready, slowest.Seconds())
}

// refused posts to each door, and wants a 503 with Retry-After in time, whatever an
// ingest knows by then. It returns how long the slower one took.
func (f *fleet) refused() (slowest time.Duration) {
	f.t.Helper()
	for _, m := range f.ingests {
		began := time.Now()
		got := f.probe(m.door())
		took := time.Since(began)
		slowest = max(slowest, took)
		if got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "" {
			f.t.Errorf("%s answered %d (%v), Retry-After %q, want 503 with one", m.name, got.status, got.err, got.header.Get("Retry-After"))
		}
		if took > answerWithin {
			f.t.Errorf("%s answered after %v", m.name, took)
		}
	}
	return slowest
}

func (f *fleet) killActive() string {
	f.t.Helper()
	active, standby := f.pair()
	began := time.Now()
	active.kill()
	took := f.firstCall(standby, began)
	active.start()
	return fmt.Sprintf("the other uploads after %.2f s; up to %d calls in flight so far", took.Seconds(), f.counts().MaxInFlight)
}

func (f *fleet) stopActive() string {
	f.t.Helper()
	active, standby := f.pair()
	began := time.Now()
	if code := active.terminate(stopWithin); code != 0 {
		f.t.Errorf("SIGTERM ended %s with code %d, want 0", active.name, code)
	}
	stopped := time.Since(began)
	took := f.firstCall(standby, began)
	last := f.calls(began, active)
	silent := took
	if len(last) > 0 {
		silent -= last[len(last)-1].Sub(began)
	}
	active.start()
	return fmt.Sprintf("it ends within %.2f s, the other uploads %.2f s after SIGTERM, %.2f s after its last call", stopped.Seconds(), took.Seconds(), silent.Seconds())
}

// pauseActive puts the active relay to sleep in the middle of its calls, and wakes it in
// the other's term.
func (f *fleet) pauseActive() string {
	f.t.Helper()
	active, standby := f.pair()
	began := time.Now()
	active.pause()
	took := f.firstCall(standby, began)
	<-time.After(time.Until(began.Add(pauseFor))) // it is to sleep well into the other's term
	woken := time.Now()
	active.wake()
	stray := f.afterwards(active, standby, woken)
	return fmt.Sprintf("for %.0f s, the other uploads after %.2f s; %d calls of the woken one", woken.Sub(began).Seconds(), took.Seconds(), stray)
}

// cutOffActive leaves the active relay its way to CleverTap, and takes that to the queue.
func (f *fleet) cutOffActive() string {
	f.t.Helper()
	active, standby := f.pair()
	began := time.Now()
	active.cutOff()
	took := f.firstCall(standby, began)
	<-time.After(time.Until(began.Add(pauseFor))) // while it would still reach CleverTap
	calls := f.calls(began, active)
	last := time.Duration(0)
	if len(calls) > 0 {
		last = calls[len(calls)-1].Sub(began)
	}
	rejoined := time.Now()
	active.rejoin()
	stray := f.afterwards(active, standby, rejoined)
	if last > took {
		f.t.Errorf("%s called %v after it was cut off, when the other had uploaded since %v", active.name, last, took)
	}
	return fmt.Sprintf("for %.0f s, its last call came after %.2f s, the other's first after %.2f s; %d calls of it after it was back",
		rejoined.Sub(began).Seconds(), last.Seconds(), took.Seconds(), stray)
}

// afterwards waits until a relay that is back has seen the other's term, and returns how
// many calls it made all the same. What had passed the lease check may still leave.
func (f *fleet) afterwards(back, active *machine, since time.Time) (stray int) {
	f.t.Helper()
	eventually(f.t, time.Minute, back.name+" is ready", back.ready)
	f.firstCall(active, time.Now())
	if stray = len(f.calls(since, back)); stray > maxInFlight {
		f.t.Errorf("%s made %d calls in the other's term, want at most %d", back.name, stray, maxInFlight)
	}
	return stray
}
