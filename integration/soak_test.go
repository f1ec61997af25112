//go:build integration

package integration

import (
	"flag"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// One history of faults for as long as is asked for:
//
//	SEED=7 go test -tags integration ./integration -run '^TestSoak$' -timeout 0 -v -soak=8h -soak.out=soak.json
var (
	soakFor  = flag.Duration("soak", time.Minute, "how long TestSoak goes on, without the check at the end of each round")
	soakRate = flag.Float64("soak.rate", 300, "receipts per second of TestSoak")
	soakOut  = flag.String("soak.out", "", "the JSON file of TestSoak's report; beside the test's logs if empty")
)

// roundTime bounds a round, for a history is kept in memory until it is checked.
const roundTime = 10 * time.Minute

// slopeAfter is the shortest run in which a slope means something: at first memory grows
// towards the limit that the collector keeps.
const slopeAfter = time.Hour

// Bounds of what a daemon may take, whatever happens to it.
const (
	memoryBound     = 200 << 20
	descriptorBound = 200
	goroutineBound  = 400
)

// The daemon works under faults drawn at random: those of CleverTap, the network, the
// process, its operators and callers. Each round ends with healing, quiet and a check
// of everything; over all rounds the account adds up, and what the daemon takes of the
// machine does not grow.
func TestSoak(t *testing.T) {
	t.Parallel()
	seed := seedOf(t)
	s := &soak{t: t, nemesis: newNemesis(seed, nemesisFaults), report: soakReport{
		Seed: seed, Commit: commitUnderway(), Begun: time.Now().UTC(), Asked: soakFor.Seconds(),
		Go: runtime.Version(), Faults: map[string]faultReport{},
	}}
	out := *soakOut
	if out == "" {
		out = filepath.Join(t.ArtifactDir(), "soak.json")
	}
	s.rig = newRig(t)
	t.Cleanup(func() { s.write(out) }) // before the rig is torn down, whatever happens
	for end := time.Now().Add(*soakFor); time.Now().Before(end); {
		s.round(min(time.Until(end), roundTime))
	}
	s.rig.terminate()
	s.slopes(*soakFor)
}

// soak is a long run of a rig.
type soak struct {
	t       *testing.T
	rig     *rig
	nemesis *nemesis
	report  soakReport
}

func (s *soak) round(lasts time.Duration) {
	s.t.Helper()
	number := uint64(len(s.report.Rounds))
	s.rig.traffic(fmt.Sprintf("soak%d", number+1), s.report.Seed+number, *soakRate)
	for end := time.Now().Add(lasts); time.Now().Before(end); {
		p := s.nemesis.next()
		s.t.Logf("%v", p)
		s.nemesis.play(s.rig, p)
	}
	began := time.Now()
	s.rig.recovered(2 * time.Minute)
	bound := s.rig.limits().Duplicates
	report := s.rig.finish(s.report.Seed, s.nemesis.list())
	s.report.Rounds = append(s.report.Rounds, roundReport{
		Seconds: lasts.Seconds(), Healed: time.Since(began).Seconds(), MayRepeat: bound, History: report,
	})
}

// slopes compares what daemons took in the first quarter of the run with the last.
func (s *soak) slopes(lasted time.Duration) {
	s.t.Helper()
	first, last := s.rig.watch.quarters()
	s.report.FirstQuarter, s.report.LastQuarter = first, last
	if hwm := s.rig.watch.hwm; hwm > memoryBound {
		s.t.Errorf("a daemon had %d MiB of memory, at most %d are allowed", hwm>>20, memoryBound>>20)
	}
	if last.FDs > descriptorBound || last.Goroutines > goroutineBound {
		s.t.Errorf("a daemon has %d descriptors and %d goroutines, at most %d and %d are allowed",
			last.FDs, last.Goroutines, descriptorBound, goroutineBound)
	}
	if lasted < slopeAfter {
		return
	}
	for _, of := range []struct {
		what        string
		first, last int64
		slack       int64
	}{
		{"bytes of memory", first.RSS, last.RSS, 16 << 20},
		{"descriptors", int64(first.FDs), int64(last.FDs), 16},
		{"goroutines", int64(first.Goroutines), int64(last.Goroutines), 32},
	} {
		if of.last > of.first+of.first/10+of.slack {
			s.t.Errorf("%s grow: %d in the first quarter, %d in the last", of.what, of.first, of.last)
		}
	}
}

// Each fault alone, so that one that is not borne has a name: it begins, is met, ends,
// and everything that waited leaves soon after.
func TestEachFaultAlone(t *testing.T) {
	t.Parallel()
	for name, faults := range map[string][]fault{
		"CleverTap slow and refusing": cleverTapFaults[:len(cleverTapFaults)/2],
		"CleverTap garbled and torn":  cleverTapFaults[len(cleverTapFaults)/2:],
		"network":                     slices.Concat(wireFaults, streetFaults),
		"process and operator":        slices.Concat(processFaults, operatorFaults),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seed := seedOf(t)
			r, n := newRig(t), newNemesis(seed, nemesisFaults)
			r.traffic("alone", seed, 300)
			var names []string
			for i := range faults {
				f := &faults[i]
				moreOK(t, r.client.Log(), 50, time.Minute)
				n.play(r, period{lasts: 1500 * time.Millisecond, lead: 500 * time.Millisecond, faults: []*fault{f}})
				took := r.recovered(90 * time.Second)
				t.Logf("%s: met by %d calls, recovered after %v", f.name, n.met[f.name], took.Round(100*time.Millisecond))
				if f.seat == atCleverTap && f.name != "gone" && n.met[f.name] == 0 {
					t.Errorf("%s: no call met it, so nothing is proved", f.name)
				}
				names = append(names, f.name)
			}
			r.finish(seed, []string{strings.Join(names, ", ")})
			r.terminate()
		})
	}
}
