//go:build integration

package integration

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/birdtap/birdtap/integration/history"
)

// Longer, and with the same draws again: SEED=7 make soak SOAK=TestCluster/Nemesis DURATION=8h.
var clusterSoak = flag.Duration("cluster.soak", 25*time.Second, "how long TestCluster/Nemesis goes on, without the check at the end of each round")

// Faults drawn at random, of the nodes, the relays, the ingests and CleverTap; two of a
// kind never come together, others do. Each round ends with healing, quiet and a check of
// everything.
func (f *fleet) randomFaults(t *testing.T) {
	seed := seedOf(t)
	n := newNemesis(seed, append(f.nemesisFaults(), f.cleverTapFaults()...))
	r := newClusterReport(t, seed)
	for end := time.Now().Add(*clusterSoak); time.Now().Before(end); {
		f.randomRound(n, r, min(time.Until(end), roundTime))
	}
}

func (f *fleet) randomRound(n *nemesis, r *clusterReport, lasts time.Duration) {
	f.t.Helper()
	number, before, began := r.Rounds+1, f.account().Relay.Term, time.Now()
	f.begin(history.Options{
		Run: fmt.Sprintf("nemesis%d", number), Seed: r.Seed + uint64(number), Rate: fleetRate,
		Refuse: 0.005, Again: 0.005, AtDoor: 0.005, Several: 0.01, Broken: 0.005, GiveUp: 0.1,
	})
	for end := time.Now().Add(lasts); time.Now().Before(end); {
		p := n.next()
		r.Faults += len(p.faults)
		p.lasts, p.lead = slower*p.lasts, slower*p.lead
		f.t.Logf("%v", p)
		n.happen(nil, p, func(d time.Duration) { <-time.After(d) }) // how long faults last
		for _, m := range slices.Concat(f.ingests, f.relays) {
			m.supervise()
		}
		for _, ran := range p.faults {
			f.mayRepeat += ran.repeats
			if ran.settles {
				f.settled()
			}
		}
	}
	f.whole()
	moreOK(f.t, f.client.Log(), 100, time.Minute)
	f.caughtUp()
	f.faults = n.list()
	bound := f.mayRepeat + (f.account().Relay.Term-before)*outAtOnce + f.counts().MayRepeat
	report := f.finish(r.Seed, bound)
	if _, err := f.at.output("dead", "purge", "--yes"); err != nil { // or they would be full some day
		f.t.Errorf("purge: %v", err)
	}
	r.add(clusterRound{Round: number, Begun: began.UTC(), Seconds: time.Since(began).Seconds(), MayRepeat: bound, History: report})
}

// clusterReport is what TestCluster/Nemesis leaves: one line of JSON for each round, as
// soon as it is over, and one in the end, of all of them.
type clusterReport struct {
	t    *testing.T
	file *os.File

	Pass       bool      `json:"pass"`
	Seed       uint64    `json:"seed"`
	Commit     string    `json:"commit,omitempty"`
	Begun      time.Time `json:"begun"`
	Asked      float64   `json:"asked_seconds"`
	Lasted     float64   `json:"lasted_seconds"`
	Rounds     int       `json:"rounds"`
	Faults     int       `json:"faults"`
	Sent       int       `json:"sent"`
	OK         int       `json:"ok"`
	Lost       int       `json:"lost"`
	Invented   int       `json:"invented"`
	Inversions int       `json:"inversions"`
	Duplicates int       `json:"duplicates"`
	MayRepeat  int       `json:"may_repeat"`
	InFlight   int       `json:"max_in_flight"`
}

type clusterRound struct {
	Pass      bool           `json:"pass"`
	Seed      uint64         `json:"seed"`
	Round     int            `json:"round"`
	Begun     time.Time      `json:"begun"`
	Seconds   float64        `json:"seconds"`
	MayRepeat int            `json:"may_repeat"`
	History   history.Report `json:"history"`
}

func newClusterReport(t *testing.T, seed uint64) *clusterReport {
	t.Helper()
	path := *soakOut
	if path == "" {
		path = filepath.Join(t.ArtifactDir(), "soak.json")
	}
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	r := &clusterReport{t: t, file: file, Seed: seed, Commit: commitUnderway(), Begun: time.Now().UTC(), Asked: clusterSoak.Seconds()}
	t.Cleanup(r.end) // whatever happens
	return r
}

func (r *clusterReport) add(c clusterRound) {
	h := c.History
	r.Rounds++
	r.Sent, r.OK, r.Lost, r.Invented = r.Sent+h.Sent, r.OK+h.OK, r.Lost+h.Lost, r.Invented+h.Invented
	r.Inversions, r.Duplicates, r.MayRepeat = r.Inversions+h.Inversions, r.Duplicates+h.Duplicates, r.MayRepeat+c.MayRepeat
	r.InFlight = max(r.InFlight, h.MaxInFlight)
	c.Pass, c.Seed = !r.t.Failed(), r.Seed
	r.write(c)
}

func (r *clusterReport) write(line any) {
	text, err := json.Marshal(line, json.Deterministic(true))
	if err == nil {
		_, err = r.file.Write(append(text, '\n'))
	}
	if err != nil {
		r.t.Errorf("write %s: %v", r.file.Name(), err)
	}
}

func (r *clusterReport) end() {
	r.Pass, r.Lasted = !r.t.Failed(), time.Since(r.Begun).Seconds()
	r.write(r)
	if err := r.file.Close(); err != nil {
		r.t.Errorf("write %s: %v", r.file.Name(), err)
	}
	verdict := "PASS"
	if !r.Pass {
		verdict = "FAIL"
	}
	r.t.Logf("soak of the cluster %s, seed %d, commit %s: %.0f s, %d rounds, %d faults, %d sent, %d ok, lost %d, invented %d, inversions %d, duplicates %d of at most %d, in flight at most %d; %s",
		verdict, r.Seed, r.Commit, r.Lasted, r.Rounds, r.Faults, r.Sent, r.OK, r.Lost, r.Invented, r.Inversions, r.Duplicates, r.MayRepeat, r.InFlight, r.file.Name())
}

// slower is by how much periods are longer than those of a lone daemon: a lease has to
// run out in one.
const slower = 3

// Seats of the fleet.
const (
	atNodes   seat = "nodes"
	atRelays  seat = "relays"
	atIngests seat = "ingests"
	// And atCleverTap.
)

// nemesisFaults are those of the fleet. Each is healed when its period ends.
func (f *fleet) nemesisFaults() []fault {
	one := func(of []*machine) func(*rand.Rand) *machine {
		return func(d *rand.Rand) *machine { return of[d.IntN(len(of))] }
	}
	leader := func(*rand.Rand) *machine { m, _ := f.leader(); return m }
	active := func(*rand.Rand) *machine {
		calls, last := f.relays[0], time.Time{}
		for _, m := range f.relays {
			if list := f.calls(time.Now().Add(-time.Minute), m); len(list) > 0 && list[len(list)-1].After(last) {
				calls, last = m, list[len(list)-1]
			}
		}
		return calls
	}
	var list []fault
	for _, of := range []struct {
		name string
		seat seat
		pick func(*rand.Rand) *machine
		// repeats are beside those of a term that ends: calls that a relay which is held up
		// gives up in its own.
		repeats int
	}{
		{"a node", atNodes, one(f.nodes), 0},
		{"the leading node", atNodes, leader, 0},
		{"a relay", atRelays, one(f.relays), outAtOnce},
		{"the active relay", atRelays, active, outAtOnce},
		{"an ingest", atIngests, one(f.ingests), 0},
	} {
		for _, does := range []struct {
			what       string
			harm, heal func(*machine)
		}{
			{"killed", (*machine).kill, (*machine).start},
			{"stopped", func(m *machine) { m.terminate(stopWithin) }, (*machine).start},
			{"paused", (*machine).pause, (*machine).wake},
			{"cut off", (*machine).cutOff, (*machine).rejoin},
			{"starving", (*machine).starve, (*machine).feed},
		} {
			list = append(list, fault{name: of.name + " " + does.what, seat: of.seat, repeats: of.repeats, set: func(_ *rig, d *rand.Rand) func() {
				m := of.pick(d)
				m.supervise()
				does.harm(m)
				return func() { does.heal(m) }
			}})
		}
	}
	return append(list, fault{name: "two nodes killed", seat: atNodes, set: func(_ *rig, d *rand.Rand) func() {
		spared := d.IntN(len(f.nodes))
		for i, m := range f.nodes {
			if i != spared {
				m.kill()
			}
		}
		return func() {
			for i, m := range f.nodes {
				if i != spared {
					m.start()
				}
			}
		}
	}})
}
