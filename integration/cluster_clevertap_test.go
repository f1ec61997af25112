//go:build integration

package integration

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/birdtap/birdtap/integration/history"
	"github.com/birdtap/birdtap/integration/moods"
)

// fleetMoods are those of CleverTap that the fleet goes through one by one: of each kind
// at least one. TestEachFaultAlone has all of them, and the nemesis draws from all.
var fleetMoods = []string{
	"slow answers", "hangs", "a byte a second", "reset after the body", "answer cut off",
	"429", "429 with Retry-After", "500", "401", "403", "404", "400 to everything", "413 to everything",
	"a page in place of JSON", "half the JSON", "wrong counts", "a fail that names nobody", "1 GiB packed", "1 GiB",
}

const (
	moodFor = time.Second
	// quickLatency lets a backlog leave soon.
	quickLatency = 100 * time.Millisecond
	// lostFor is how long CleverTap stays out of reach: longer than a caller waits.
	lostFor = clevertapTimeout + time.Second
	// burstFor is how long ten times as much comes in.
	burstFor = 3 * time.Second
	// scarceFor is how long a daemon has a tenth of a processor.
	scarceFor = 6 * time.Second
)

// One after the other all goes wrong that is CleverTap's, or comes of it: it misbehaves, is
// out of reach, and the queue is full.
func (f *fleet) cleverTapFails(t *testing.T) {
	seed := seedOf(t)
	f.begin(history.Options{
		Run: "clevertap", Seed: seed, Rate: fleetRate,
		Refuse: 0.01, Again: 0.005, AtDoor: 0.005, Several: 0.01, Broken: 0.005,
	})
	f.tell("latency", "for", quickLatency.String())
	moreOK(t, f.client.Log(), 300, readyWithin)
	for _, name := range fleetMoods {
		f.suffer("CleverTap: "+name, func() string { return f.endure(name) })
	}
	f.suffer("CleverTap out of reach", f.loseCleverTap)
	f.suffer("queue full", f.fillQueue)
	f.finish(seed, f.mayRepeat)
	f.tell("latency", "for", usualLatency.String())
}

// All the time some receipts are poison: whole calls are refused for them, and they die.
// Meanwhile too much comes at once, and for too little processor, the dead letters are full,
// and what CleverTap refused is replayed while the queue loses its leader.
func (f *fleet) lettersDie(t *testing.T) {
	seed, began := seedOf(t), time.Now()
	f.begin(history.Options{
		Run: "letters", Seed: seed, Rate: 300,
		Refuse: 0.01, Again: 0.005, AtDoor: 0.005, Poison: 0.01, Several: 0.01, Broken: 0.005,
	})
	f.tell("latency", "for", quickLatency.String())
	moreOK(t, f.client.Log(), 300, readyWithin)
	f.suffer("the same receipt three times by each door", f.repeat)
	f.suffer("ten times the traffic", f.burst)
	f.suffer("a tenth of a processor", f.beScarce)
	f.suffer("dead letters full", f.fillDead)
	f.suffer("dead letters replayed, the stream's leader killed meanwhile", func() string { return f.replayWithoutLeader(began) })
	f.finish(seed, f.mayRepeat)
	f.tell("latency", "for", usualLatency.String())
}

// become puts CleverTap into a mood; none is the usual one.
func (f *fleet) become(mood string) {
	f.t.Helper()
	f.tell("mood", "name", mood)
}

// endure lets a mood of CleverTap pass.
func (f *fleet) endure(name string) string {
	f.t.Helper()
	began := time.Now()
	f.become(name)
	<-time.After(moodFor) // it is the fault that lasts so long, and until it is met
	met := 0
	eventually(f.t, wholeWithin, name+" is met by a call", func() bool {
		met = len(f.calls(began, f.relays...))
		return met > 0
	})
	f.become("")
	if m, _ := moods.Named(name, clevertapTimeout); m.Garbled {
		f.settled()
	}
	return fmt.Sprintf("met by %d calls", met)
}

// settled waits until everything that came before now has left the queue.
func (f *fleet) settled() {
	f.t.Helper()
	began := time.Now()
	eventually(f.t, wholeWithin, "what had waited has left", func() bool {
		a, err := f.at.status()
		return err == nil && a.Oldest < time.Since(began).Seconds()
	})
}

// loseCleverTap takes it out of the network: what is on its way is lost, in either
// direction, and nobody is told. It may arrive all the same, later.
func (f *fleet) loseCleverTap() string {
	f.t.Helper()
	f.mayRepeat += 2 * outAtOnce // what is in flight then, and one probe after the other
	began := time.Now()
	f.destination.cutOff()
	<-time.After(lostFor) // it is the fault that lasts so long
	f.destination.rejoin()
	healed := time.Now()
	f.caughtUp()
	return fmt.Sprintf("for %.0f s, the backlog is gone after %.1f s", healed.Sub(began).Seconds(), time.Since(healed).Seconds())
}

// fillQueue leaves the queue little room while CleverTap takes nothing. When it is full
// callers are told to come again, and once there is room receipts are taken in again.
func (f *fleet) fillQueue() string {
	f.t.Helper()
	info, err := f.stream(fleetStreams[0])
	if err != nil {
		f.t.Fatal(err)
	}
	small := info.Config
	small.MaxBytes = int64(info.State.Bytes) + 1<<20
	began := time.Now()
	f.become("500")
	f.limit(small)
	f.client.Hurry(10)
	for _, m := range f.ingests {
		eventually(f.t, time.Minute, m.name+" says that the queue is full", func() bool {
			return f.probe(m.door(), probeUser).status == http.StatusServiceUnavailable
		})
	}
	full := time.Since(began)
	f.client.Hurry(1)
	slowest := f.refused()
	log := f.client.Log()
	away := func() int { c := log.Counts(); return c.Attempts - c.Taken }
	before := away()
	eventually(f.t, time.Minute, "many are told to come again", func() bool { return away() >= before+300 })
	for _, m := range f.ingests {
		eventually(f.t, unreadyWithin, m.name+" is not ready", func() bool { return !m.ready() })
		if get("http://"+m.ports[opsPort]+"/healthz") == "" {
			f.t.Errorf("%s is not healthy with a full queue: a supervisor would restart it for nothing", m.name)
		}
	}
	f.become("")
	f.limit(info.Config)
	room := time.Now()
	for _, m := range f.ingests {
		eventually(f.t, readyWithin, m.name+" takes receipts in again", func() bool {
			return f.probe(m.door(), probeUser).status == http.StatusOK
		})
	}
	return fmt.Sprintf("full after %.1f s, the slowest 503 took %.2f s, taken in again %.2f s after there was room",
		full.Seconds(), slowest.Seconds(), time.Since(room).Seconds())
}

// fillDead leaves the dead letters no room. Uploading stops before a record would be lost,
// nobody is restarted for it, and the doors take in what the queue has room for.
func (f *fleet) fillDead() string {
	f.t.Helper()
	info, err := f.stream(fleetStreams[1])
	if err != nil {
		f.t.Fatal(err)
	}
	active, _ := f.pair()
	small := info.Config
	small.MaxBytes = int64(info.State.Bytes) + deadSpare
	defer f.limit(info.Config)
	f.limit(small)
	began, dead := time.Now(), f.account().Dead
	eventually(f.t, time.Minute, "the relay says that it stops", func() bool {
		return active.said("dead letters cannot be stored: uploading stops until they can")
	})
	stopped := time.Now()
	moreOK(f.t, f.client.Log(), 300, readyWithin)
	if get("http://"+active.ports[opsPort]+"/healthz") == "" {
		f.t.Errorf("%s is not healthy with full dead letters: a supervisor would restart it for nothing", active.name)
	}
	if a := f.account(); a.Dead > dead {
		f.t.Errorf("%d dead letters where there is room for %d", a.Dead, dead)
	}
	if n := len(f.calls(stopped, f.relays...)); n > 0 {
		f.t.Errorf("%d calls while nobody could keep what they bring", n)
	}
	f.limit(info.Config)
	room := time.Now()
	f.firstCall(active, room)
	return fmt.Sprintf("uploading stops after %.1f s, goes on %.2f s after there was room", stopped.Sub(began).Seconds(), time.Since(room).Seconds())
}

// deadSpare is what birdtap leaves of the stream for replay and purge.
const deadSpare = 4 << 20

// beScarce leaves an ingest and the active relay a tenth of a processor, and sends the ingest
// the largest body that it takes. Both may be slow, but have no reason to be restarted.
func (f *fleet) beScarce() string {
	f.t.Helper()
	active, _ := f.pair()
	starving := []*machine{f.ingests[0], active}
	for _, m := range starving {
		defer m.feed()
		m.starve()
	}
	began := time.Now()
	body, n := largest(probeUser+"-largest", 480)
	f.probes += n
	got := postTo(f.t.Context(), f.ingests[0].door(), passcode, body)
	<-time.After(time.Until(began.Add(scarceFor))) // it is the fault that lasts so long
	for _, m := range starving {
		eventually(f.t, probesWithin, m.name+" is healthy with a tenth of a processor", func() bool {
			return get("http://"+m.ports[opsPort]+"/healthz") != ""
		})
	}
	return fmt.Sprintf("for %.0f s; a body of %d receipts was answered %d", time.Since(began).Seconds(), n, got.status)
}

// probesWithin is how long the chart's probe of life goes on asking before it gives up.
const probesWithin = time.Minute

// limit gives a stream other limits.
func (f *fleet) limit(c jetstream.StreamConfig) {
	f.t.Helper()
	if _, err := f.js.UpdateStream(f.t.Context(), c); err != nil {
		f.t.Fatal(err)
	}
}

// repeat posts one receipt again and again, at both doors at once. CleverTap gets it once.
func (f *fleet) repeat() string {
	f.t.Helper()
	const user, times = probeUser + "-again", 3
	before := f.account().Deduplicated
	body := f.probeBody(user)
	f.probes += times*len(f.ingests) - 1
	var all sync.WaitGroup
	for _, m := range f.ingests {
		for range times {
			all.Go(func() {
				if got := postTo(f.t.Context(), m.door(), passcode, body); got.status != http.StatusOK {
					f.t.Errorf("%s answers %d (%v)", m.name, got.status, got.err)
				}
			})
		}
	}
	all.Wait()
	f.settled()
	if n := len(f.accepted(`"` + user + `"`)); n != 1 {
		f.t.Errorf("CleverTap got it %d times, want once", n)
	}
	copies := f.account().Deduplicated - before
	if copies < times*len(f.ingests)-1 {
		f.t.Errorf("%d copies are counted, want %d at least", copies, times*len(f.ingests)-1)
	}
	return fmt.Sprintf("delivered once, %d copies counted", copies)
}

// burst is ten times the traffic for a while.
func (f *fleet) burst() string {
	f.t.Helper()
	before := f.client.Log().Counts()
	f.client.Hurry(10)
	<-time.After(burstFor) // it is the fault that lasts so long
	f.client.Hurry(1)
	after := f.client.Log().Counts()
	return fmt.Sprintf("%.0f receipts/s taken in", float64(after.Taken-before.Taken)/burstFor.Seconds())
}

// replayWithoutLeader puts CleverTap right, and has an operator replay what it refused in
// this run. When some are on the queue again the leader of the stream is killed. The
// command may fail of it; given again it goes on with the rest.
func (f *fleet) replayWithoutLeader(since time.Time) string {
	f.t.Helper()
	before, letters := f.account(), len(f.refusedByCleverTap())
	if letters < 20 {
		f.t.Fatalf("there are %d dead letters, too few to be killed in the middle of them", letters)
	}
	f.mayHaveDied()
	f.tell("mend", "", "")
	args := []string{"relay", "--replay", "--since", since.Format(time.RFC3339)}
	slow := start(f.t, "replay", filepath.Join(f.t.ArtifactDir(), "replay.log"), f.at.command(append(args, "--rate", fmt.Sprint(letters/6))...))
	eventually(f.t, time.Minute, "some are replayed", func() bool { return f.account().Replayed > before.Replayed })
	leader, _ := f.leader()
	role := f.role(leader)
	leader.kill()
	f.goOn(leader)
	select {
	case <-slow.done:
	case <-time.After(time.Minute):
		f.t.Fatal("the replay does not end")
	}
	leader.start()
	ended := slow.cmd.ProcessState.ExitCode()
	if ended != 0 {
		// What it gave to the queue last may be stored although it was not told so.
		f.mayRepeat, f.replayTwice = f.mayRepeat+letters, letters
		eventually(f.t, time.Minute, "the rest is replayed", func() bool {
			_, err := f.at.output(args...)
			return err == nil
		})
	}
	f.settled()
	if left := f.refusedByCleverTap(); len(left) > 0 {
		f.t.Errorf("%d letters are still there after the replay, as %+v", len(left), left[0])
	}
	return fmt.Sprintf("%s; %d letters, the command ended with code %d, %d replayed", role, letters, ended, f.account().Replayed-before.Replayed)
}

// mayHaveDied wants that what is dead by now was made for that: once it is replayed nobody
// can tell any more.
func (f *fleet) mayHaveDied() {
	f.t.Helper()
	letters := f.refusedByCleverTap()
	if !slices.ContainsFunc(letters, func(l history.Letter) bool { return l.Reason == "http_400" }) {
		f.t.Error("no poison is dead, so nothing is proved")
	}
	report := history.Check(history.Evidence{Log: f.client.Log(), Received: history.NewReceived(f.run), Letters: letters})
	if report.Misjudged > 0 {
		f.t.Errorf("%d receipts are dead that should not be, as %v", report.Misjudged, report.Samples["misjudged"])
	}
}

// refusedByCleverTap are the dead letters of this run that could be taken by now.
func (f *fleet) refusedByCleverTap() []history.Letter {
	f.t.Helper()
	return slices.DeleteFunc(f.at.letters(), func(l history.Letter) bool {
		return l.Reason == "refused" || !strings.HasPrefix(l.ID, f.run+"-")
	})
}

// cleverTapFaults are those of the fleet's nemesis.
func (f *fleet) cleverTapFaults() []fault {
	list := []fault{{name: "CleverTap out of reach", seat: atCleverTap, repeats: 2 * outAtOnce, set: func(*rig, *rand.Rand) func() {
		f.destination.cutOff()
		return f.destination.rejoin
	}}}
	for _, m := range moods.All(clevertapTimeout) {
		list = append(list, fault{name: "CleverTap: " + m.Name, seat: atCleverTap, settles: m.Garbled, set: func(*rig, *rand.Rand) func() {
			f.become(m.Name)
			return func() { f.become("") }
		}})
	}
	return list
}
