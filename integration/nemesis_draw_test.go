//go:build integration

package integration

import (
	"fmt"
	"testing"
	"time"
)

func TestNemesisDrawsTheSameOfTheSameSeed(t *testing.T) {
	t.Parallel()
	draw := func(seed uint64) string {
		n, text := newNemesis(seed, nemesisFaults), ""
		for range 200 {
			text += fmt.Sprintf("%v\n", n.next())
		}
		return text
	}
	first := draw(7)
	if again := draw(7); again != first {
		t.Error("one seed, two draws")
	}
	if draw(8) == first {
		t.Error("two seeds, one draw")
	}
}

func TestNemesisDealsEveryFaultAndNoTwoOfASeat(t *testing.T) {
	t.Parallel()
	n, dealt, peace := newNemesis(1, nemesisFaults), map[string]int{}, 0
	const periods = 2000
	for range periods {
		p := n.next()
		if len(p.faults) == 0 {
			peace++
		}
		if len(p.faults) == 2 && p.faults[0].seat == p.faults[1].seat {
			t.Errorf("%v have one seat", p)
		}
		for _, f := range p.faults {
			dealt[f.name]++
		}
	}
	if peace < periods/5 || peace > periods/3 {
		t.Errorf("%d of %d periods are peaceful, want about a quarter", peace, periods)
	}
	if len(dealt) != len(nemesisFaults) {
		t.Errorf("%d kinds of faults were dealt, there are %d names", len(dealt), len(nemesisFaults))
	}
	for name, times := range dealt {
		if mean := periods / len(nemesisFaults); times < mean-3 || times > mean+3 {
			t.Errorf("%s was dealt %d times, about %d is fair", name, times, mean)
		}
	}
}

// The bound on duplicates counts what had no good answer, and what was under way when
// something was broken that the fake cannot see. All else may not come twice.
func TestWhatMayRepeatIsBounded(t *testing.T) {
	t.Parallel()
	now := time.Now()
	c := calls{list: []callAt{
		{at: now, accepted: 1},
		{at: now.Add(time.Minute), accepted: 10, spoiled: true},
		{at: now.Add(2*time.Minute - rigTimeout/2), accepted: 100},
		{at: now.Add(2*time.Minute + time.Second), accepted: 1000},
		{at: now.Add(3 * time.Minute), accepted: 10_000},
	}}
	for most, want := range map[int]int{everything: 1110, 500: 510, 0: 10} {
		c.unsure = nil
		c.doubt(now.Add(2*time.Minute), now.Add(2*time.Minute+2*time.Second), most)
		if got := c.repeats(); got != want {
			t.Errorf("at most %d in doubt: %d, want %d", most, got, want)
		}
	}
}
