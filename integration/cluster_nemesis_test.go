//go:build integration

package integration

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/birdtap/birdtap/integration/history"
)

// Longer, and with the same draws again: SEED=7 make soak SOAK=TestCluster/Nemesis DURATION=8h.
var clusterSoak = flag.Duration("cluster.soak", 25*time.Second, "how long TestCluster/Nemesis goes on, without the check at the end of each round")

// Faults drawn at random, of the nodes, the relays and the ingests; two of a kind never
// come together, others do. Each round ends with healing, quiet and a check of everything.
func (f *fleet) randomFaults(t *testing.T) {
	seed := seedOf(t)
	n := newNemesis(seed, f.nemesisFaults())
	number := 0
	for end := time.Now().Add(*clusterSoak); time.Now().Before(end); {
		number++
		before := f.account().Relay.Term
		f.begin(history.Options{
			Run: fmt.Sprintf("nemesis%d", number), Seed: seed + uint64(number), Rate: 300,
			Refuse: 0.005, Again: 0.005, AtDoor: 0.005, Several: 0.01, Broken: 0.005, GiveUp: 0.1,
		})
		for round := time.Now().Add(min(time.Until(end), roundTime)); time.Now().Before(round); {
			p := n.next()
			p.lasts, p.lead = slower*p.lasts, slower*p.lead
			t.Logf("%v", p)
			n.happen(nil, p, func(d time.Duration) { <-time.After(d) }) // how long faults last
		}
		f.whole()
		moreOK(t, f.client.Log(), 200, time.Minute)
		f.faults = n.list()
		f.finish(seed, (f.account().Relay.Term-before)*outAtOnce)
	}
}

// slower is by how much periods are longer than those of a lone daemon: a lease has to
// run out in one.
const slower = 3

// Seats of the fleet.
const (
	atNodes   seat = "nodes"
	atRelays  seat = "relays"
	atIngests seat = "ingests"
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
	}{
		{"a node", atNodes, one(f.nodes)},
		{"the leading node", atNodes, leader},
		{"a relay", atRelays, one(f.relays)},
		{"the active relay", atRelays, active},
		{"an ingest", atIngests, one(f.ingests)},
	} {
		for _, does := range []struct {
			what       string
			harm, heal func(*machine)
		}{
			{"killed", (*machine).kill, (*machine).start},
			{"stopped", func(m *machine) { m.terminate(stopWithin) }, (*machine).start},
			{"paused", (*machine).pause, (*machine).wake},
			{"cut off", (*machine).cutOff, (*machine).rejoin},
		} {
			list = append(list, fault{name: of.name + " " + does.what, seat: of.seat, set: func(_ *rig, d *rand.Rand) func() {
				m := of.pick(d)
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
