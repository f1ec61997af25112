//go:build integration

package integration

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// nemesis draws faults. All it draws comes of its seed, but for the moment.
type nemesis struct {
	random *rand.Rand
	faults []fault  // all there are
	deck   []*fault // what is left of a shuffle of all
	ran    map[string]int
	met    map[string]int64 // calls that CleverTap saw meanwhile
}

func newNemesis(seed uint64, faults []fault) *nemesis {
	return &nemesis{random: rand.New(rand.NewPCG(seed, 2)), faults: faults, ran: map[string]int{}, met: map[string]int64{}}
}

// period is some time with the same faults, or none.
type period struct {
	lasts  time.Duration
	lead   time.Duration // before the deeds
	faults []*fault
}

func (p period) String() string {
	if len(p.faults) == 0 {
		return fmt.Sprintf("%v of peace", p.lasts.Round(100*time.Millisecond))
	}
	names := make([]string, len(p.faults))
	for i, f := range p.faults {
		names[i] = f.name
	}
	return fmt.Sprintf("%v of %s", p.lasts.Round(100*time.Millisecond), strings.Join(names, " and "))
}

// next draws a period: a quarter of them are peaceful, half have one fault, and a
// quarter two. Faults are dealt like cards, so that each comes as often as any other.
func (n *nemesis) next() period {
	p := period{lasts: time.Second + time.Duration(n.random.Int64N(int64(3*time.Second)))}
	p.lead = time.Duration(n.random.Int64N(int64(p.lasts)))
	cards := []int{0, 1, 1, 2}[n.random.IntN(4)]
	for range cards {
		if f := n.deal(p.faults); f != nil {
			p.faults = append(p.faults, f)
		}
	}
	return p
}

// deal takes the next card whose seat is free; nil if there is none in this deck.
func (n *nemesis) deal(beside []*fault) *fault {
	if len(n.deck) == 0 {
		for i := range n.faults {
			n.deck = append(n.deck, &n.faults[i])
		}
		n.random.Shuffle(len(n.deck), func(i, j int) { n.deck[i], n.deck[j] = n.deck[j], n.deck[i] })
	}
	at := slices.IndexFunc(n.deck, func(f *fault) bool {
		return !slices.ContainsFunc(beside, func(g *fault) bool { return f.seat == g.seat })
	})
	if at < 0 {
		return nil
	}
	f := n.deck[at]
	n.deck = slices.Delete(n.deck, at, at+1)
	return f
}

// play lets a period happen to a rig.
func (n *nemesis) play(r *rig, p period) {
	r.t.Helper()
	before, began := r.fake.Counts().Calls, time.Now()
	met := int64(0)
	n.happen(r, p, func(d time.Duration) {
		r.pass(d)
		met = r.fake.Counts().Calls - before
	})
	repeats, settles := 0, false
	for _, f := range p.faults {
		repeats, settles = repeats+f.repeats, settles || f.settles
		n.met[f.name] += met
	}
	if repeats > 0 {
		r.calls.doubt(began, time.Now(), repeats)
	}
	if settles {
		r.recovered(2 * time.Minute)
	}
}

// happen begins the faults of a period, lets it pass, and ends them.
func (n *nemesis) happen(r *rig, p period, pass func(time.Duration)) {
	var heals []func()
	for _, f := range p.faults {
		if f.set != nil {
			heals = append(heals, f.set(r, n.random))
		}
	}
	pass(p.lead)
	for _, f := range p.faults {
		if f.act != nil {
			f.act(r, n.random)
		}
	}
	pass(p.lasts - p.lead)
	for _, heal := range slices.Backward(heals) {
		heal()
	}
	for _, f := range p.faults {
		n.ran[f.name]++
	}
}

// list says how often each fault ran.
func (n *nemesis) list() []string {
	var list []string
	for _, f := range n.faults {
		if n.ran[f.name] > 0 {
			list = append(list, fmt.Sprintf("%s × %d", f.name, n.ran[f.name]))
		}
	}
	return list
}
