//go:build integration

package integration

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/birdtap/birdtap/integration/history"
)

// More of them, for figures: go test -tags integration ./integration -run Cluster/Faults -handovers 10 -crashes 10.
var (
	handOvers = flag.Int("handovers", 1, "how often TestCluster/Faults takes the active relay away, in each of four ways")
	crashes   = flag.Int("crashes", 1, "how often TestCluster/Faults kills the node that the relay reads from, and the leader of the stream")
)

// pauseFor is how long machines sleep: well into another relay's term, and so long that
// the other nodes have long elected a leader. cutOffFor is how long a relay stays cut off:
// into the other's term, too.
const (
	pauseFor  = 30 * time.Second
	cutOffFor = 12 * time.Second
)

// slowLatency is nearly as long as a caller waits, and longer than a hand-over takes.
const slowLatency = clevertapTimeout - time.Second

// The whole system in containers, with traffic going on.
func TestCluster(t *testing.T) {
	f := newFleet(t)
	f.phase("Faults", f.faultByFault)
	f.phase("CleverTap", f.cleverTapFails)
	f.phase("Letters", f.lettersDie)
	if *flips > 0 {
		f.phase("FlippedByte", f.flippedByte)
	}
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
		Run: "faults", Seed: seed, Rate: fleetRate,
		Refuse: 0.005, Again: 0.005, AtDoor: 0.005, Several: 0.01, Broken: 0.005,
	})
	moreOK(t, f.client.Log(), 300, readyWithin)
	f.learn()

	for range *crashes {
		f.suffer("the node killed that the relay reads from", func() string { return f.crash(f.readFrom(), f.tellsWhatLacks) })
		f.suffer("the stream's leader killed, an identity map imported while it is away", func() string {
			leader, _ := f.leader()
			return f.crash(leader, f.learn)
		})
	}
	f.suffer("one leader after the other killed", f.killLeaders)
	f.suffer("all ingests and relays killed", f.killDaemons)
	f.suffer("the stream's leader paused and woken", func() string {
		leader, _ := f.leader()
		return f.sleep(leader)
	})
	f.suffer("the stream's leader cut off and connected", f.cutOffLeader)
	f.suffer("two of three nodes gone", f.loseQuorum)
	for range *handOvers {
		f.suffer("active relay killed", f.killActive)
		f.suffer("active relay killed while CleverTap hardly answers", f.killActiveWhileSlow)
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
	before, was, counts, may := f.account(), f.counts(), log.Counts(), f.mayRepeat
	began := time.Now()
	result := fault()
	healed := time.Now()
	moreOK(f.t, log, 100, time.Minute)
	f.whole()
	took := time.Since(healed)
	f.caughtUp()
	after, is := f.account(), f.counts()
	end := time.Now()
	terms, duplicates := after.Relay.Term-before.Relay.Term, is.Duplicates-was.Duplicates
	sent := log.Counts()
	// What a term leaves behind unrecorded, what was answered badly, and what the fault says.
	may = f.mayRepeat - may + terms*outAtOnce + is.MayRepeat - was.MayRepeat
	f.t.Logf("%s: %s; the doors gave no 2xx for %.2f s, %d receipts had another answer; no upload for %.2f s, up to %d calls in flight; %d changes of hands, %d duplicates of at most %d; whole %.1f s after",
		name, result,
		longest(began, append(f.pulse.since(began), end)).Seconds(),
		sent.Attempts-counts.Attempts-(sent.Taken-counts.Taken),
		longest(began, append(f.calls(began, f.relays...), end)).Seconds(), f.mostSince(began),
		terms, duplicates, may, took.Seconds())
	f.faults = append(f.faults, name)
	f.mayRepeat += terms*outAtOnce + is.MayRepeat - was.MayRepeat
	if is.Duplicates > f.mayRepeat { // in all: a call that hangs may be repeated in the next fault's time
		f.t.Errorf("by the end of %s there are %d duplicates, want at most %d", name, is.Duplicates, f.mayRepeat)
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

// readFrom is the node where the consumer of the active relay lives.
func (f *fleet) readFrom() (node *machine) {
	f.t.Helper()
	eventually(f.t, wholeWithin, "the relay reads", func() bool {
		for _, m := range f.nodes {
			if f.reads(m) {
				node = m
			}
		}
		return node != nil
	})
	return node
}

// role says what a node is to birdtap. Whatever it leads stands still until another one is
// elected: that of the cluster itself has to be there for a reader to begin anew, that of
// the state for a relay to keep its lease.
func (f *fleet) role(node *machine) string {
	f.t.Helper()
	var leads []string
	for _, name := range fleetStreams {
		if info, err := f.stream(name); err == nil && info.Cluster != nil && info.Cluster.Leader == node.name {
			leads = append(leads, name)
		}
	}
	if f.asks(node).Meta.Leader == node.name {
		leads = append(leads, "the cluster")
	}
	role := node.name + ", which leads nothing"
	if len(leads) > 0 {
		role = node.name + ", which leads " + strings.Join(leads, ", ")
	}
	if f.reads(node) {
		role += ", and where the relay reads"
	}
	return role
}

// learn imports an identity map, and waits until every ingest goes by it. Each map names
// the users anew, and one more.
func (f *fleet) learn() {
	f.t.Helper()
	f.maps++
	file := filepath.Join(f.t.TempDir(), "users.csv")
	text := "user_id,identity\n"
	known := func(user int) string { return fmt.Sprintf("%s-known-%d-by-map-%d", probeUser, user, f.maps) }
	for user := range f.maps {
		text += fmt.Sprintf("%s-%d,%s\n", probeUser, user, known(user))
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	eventually(f.t, wholeWithin, "an operator has imported the map", func() bool { // its stream may just elect a leader
		_, err := f.at.output("identities", "import", file)
		return err == nil
	})
	for _, m := range f.ingests {
		want := fmt.Sprintf("birdtap_identities %d\n", f.maps)
		eventually(f.t, time.Minute, m.name+" goes by the map", func() bool {
			return strings.Contains(get("http://"+m.ports[opsPort]+"/metrics"), want)
		})
		for user := range f.maps {
			if got := f.probe(m.door(), fmt.Sprintf("%s-%d", probeUser, user)); got.status != http.StatusOK {
				f.t.Errorf("%s answers a probe with %d, %v", m.name, got.status, got.err)
			}
		}
	}
	for user := range f.maps {
		eventually(f.t, time.Minute, "CleverTap gets identities of the map", func() bool {
			return len(f.accepted(`"`+known(user)+`"`)) >= len(f.ingests)
		})
		if n := len(f.accepted(fmt.Sprintf(`"%s-%d"`, probeUser, user))); n > 0 {
			f.t.Errorf("CleverTap got %d receipts of a user that it does not know, who is in the map", n)
		}
	}
}

// crash kills a node and starts it when the others have gone on without it, and something
// was done meanwhile.
func (f *fleet) crash(node *machine, meanwhile func()) string {
	f.t.Helper()
	role := f.role(node)
	node.kill()
	f.goOn(node)
	meanwhile()
	node.start()
	return role
}

// tellsWhatLacks waits until an operator is told that a server lacks what others have.
func (f *fleet) tellsWhatLacks() {
	f.t.Helper()
	eventually(f.t, wholeWithin, "status says that a server lacks the receipts", func() bool {
		on, err := f.replicas()
		return err == nil && on[fleetStreams[0]] == "2 of 3"
	})
}

// replicas is what birdtap tells an operator: on how many servers each stream is whole.
func (f *fleet) replicas() (map[string]string, error) {
	var status struct {
		Replicas []struct {
			Stream  string `json:"stream"`
			Want    int    `json:"want"`
			Current int    `json:"current"`
		} `json:"replicas"`
	}
	err := f.at.statusInto(&status)
	on := map[string]string{}
	for _, r := range status.Replicas {
		on[r.Stream] = fmt.Sprintf("%d of %d", r.Current, r.Want)
	}
	return on, err
}

// killLeaders kills whoever leads, as soon as the one before is back.
func (f *fleet) killLeaders() string {
	f.t.Helper()
	var names []string
	for range leaders {
		f.whole()
		leader, _ := f.leader()
		names = append(names, leader.name)
		f.crash(leader, func() {})
	}
	return strings.Join(names, ", ")
}

// leaders is how many are killed one after the other.
const leaders = 3

// killDaemons leaves the queue alone with what it has.
func (f *fleet) killDaemons() string {
	f.t.Helper()
	daemons := slices.Concat(f.ingests, f.relays)
	for _, m := range daemons {
		m.kill()
	}
	began := time.Now()
	for _, m := range daemons {
		m.start()
	}
	moreOK(f.t, f.client.Log(), 100, readyWithin)
	taken := time.Since(began)
	eventually(f.t, handOver, "a relay uploads", func() bool { return len(f.calls(began, f.relays...)) > 0 })
	return fmt.Sprintf("100 receipts taken in %.2f s after the start, uploads after %.2f s", taken.Seconds(), time.Since(began).Seconds())
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
	for range 2 {
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
	return fmt.Sprintf("not ready after %.1f s, ready all the same at %d of 4 looks; the slowest 503 took %.2f s", unready.Seconds(), ready, slowest.Seconds())
}

// refused posts to all doors at once, and wants a 503 with Retry-After in time, whatever
// an ingest knows by then. It returns how long the slower one took.
func (f *fleet) refused() (slowest time.Duration) {
	f.t.Helper()
	answers, times := make([]answer, len(f.ingests)), make([]time.Duration, len(f.ingests))
	var all sync.WaitGroup
	for i, m := range f.ingests {
		body := f.probeBody(probeUser)
		all.Go(func() {
			began := time.Now()
			answers[i] = postTo(f.t.Context(), m.door(), passcode, body)
			times[i] = time.Since(began)
		})
	}
	all.Wait()
	for i, m := range f.ingests {
		got, took := answers[i], times[i]
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
	return fmt.Sprintf("the other uploads after %.2f s", took.Seconds())
}

// killActiveWhileSlow leaves calls behind that go on at CleverTap for longer than the
// other relay needs to take over. It has to reckon with them.
func (f *fleet) killActiveWhileSlow() string {
	f.t.Helper()
	active, standby := f.pair()
	f.tell("latency", "for", slowLatency.String())
	slow := time.Now()
	eventually(f.t, time.Minute, "as many calls hang as there may be", func() bool {
		return len(f.calls(slow, active)) >= maxInFlight && f.counts().InFlight >= maxInFlight
	})
	began := time.Now()
	active.kill()
	left := f.counts().InFlight
	took := f.firstCall(standby, began)
	still := f.counts().InFlight
	eventually(f.t, time.Minute, "the calls left behind are over", func() bool {
		return f.counts().InFlight <= len(f.calls(began, standby))
	})
	f.tell("latency", "for", usualLatency.String())
	active.start()
	return fmt.Sprintf("%d calls left behind; the other uploads after %.2f s, %d in flight then", left, took.Seconds(), still)
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
	<-time.After(time.Until(began.Add(cutOffFor))) // while it would still reach CleverTap
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
