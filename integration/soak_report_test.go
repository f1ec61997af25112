//go:build integration

package integration

import (
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/birdtap/birdtap/integration/history"
)

// soakReport is what a soak writes as JSON.
type soakReport struct {
	Pass    bool      `json:"pass"`
	Seed    uint64    `json:"seed"`
	Commit  string    `json:"commit,omitempty"`
	Go      string    `json:"go"`
	Begun   time.Time `json:"begun"`
	Asked   float64   `json:"asked_seconds"`
	Lasted  float64   `json:"lasted_seconds"`
	Crashes int       `json:"crashes"`

	// Faults tells how often each ran, never ones included, and how many calls came
	// to CleverTap meanwhile.
	Faults map[string]faultReport `json:"faults"`
	Rounds []roundReport          `json:"rounds"`

	MostMemory   int64   `json:"most_memory_bytes"`
	FirstQuarter quarter `json:"first_quarter"`
	LastQuarter  quarter `json:"last_quarter"`
}

type faultReport struct {
	Ran   int   `json:"ran"`
	Calls int64 `json:"calls"`
}

type roundReport struct {
	Seconds   float64        `json:"seconds"`
	Healed    float64        `json:"healed_seconds"` // from the last fault to the end of the check
	MayRepeat int            `json:"may_repeat"`     // the bound on duplicates
	History   history.Report `json:"history"`
}

// quarter is the median of what daemons took in a quarter of the run.
type quarter struct {
	RSS        int64 `json:"rss_bytes"`
	FDs        int   `json:"descriptors"`
	Goroutines int   `json:"goroutines"`
}

// quarters are the first and the last one.
func (w *watch) quarters() (first, last quarter) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.samples) / 4
	return medianOf(w.samples[:n]), medianOf(w.samples[len(w.samples)-n:])
}

func medianOf(list []sample) quarter {
	if len(list) == 0 {
		return quarter{}
	}
	return quarter{
		RSS:        medianBy(list, func(s sample) int64 { return s.rss }),
		FDs:        int(medianBy(list, func(s sample) int64 { return int64(s.fds) })),
		Goroutines: int(medianBy(list, func(s sample) int64 { return int64(s.goroutines) })),
	}
}

func medianBy(list []sample, of func(sample) int64) int64 {
	values := make([]int64, len(list))
	for i, s := range list {
		values[i] = of(s)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// write ends a soak with one line and a file.
func (s *soak) write(path string) {
	r := &s.report
	r.Pass = !s.t.Failed()
	r.Lasted = time.Since(r.Begun).Seconds()
	r.Crashes = s.rig.crashes
	r.MostMemory = s.rig.watch.most()
	ran := 0
	for _, f := range nemesisFaults {
		r.Faults[f.name] = faultReport{Ran: s.nemesis.ran[f.name], Calls: s.nemesis.met[f.name]}
		ran += s.nemesis.ran[f.name]
	}
	text, err := json.Marshal(r, json.Deterministic(true), jsontext.WithIndent("  "))
	if err == nil {
		err = os.WriteFile(path, text, 0o600)
	}
	if err != nil {
		s.t.Errorf("write %s: %v", path, err)
	}
	s.t.Log(r.line(ran, path))
}

// line is the report on one line.
func (r *soakReport) line(ran int, path string) string {
	verdict := "PASS"
	if !r.Pass {
		verdict = "FAIL"
	}
	var sent, ok, lost, invented, duplicates, mayRepeat int
	for _, round := range r.Rounds {
		h := round.History
		sent, ok, lost, invented = sent+h.Sent, ok+h.OK, lost+h.Lost, invented+h.Invented
		duplicates, mayRepeat = duplicates+h.Duplicates, mayRepeat+round.MayRepeat
	}
	never := 0
	for _, f := range r.Faults {
		if f.Ran == 0 {
			never++
		}
	}
	return fmt.Sprintf("soak %s, seed %d, commit %s: %.0f s, %d rounds, %d faults (%d crashes; %d kinds never), %d sent, %d ok, lost %d, invented %d, duplicates %d of at most %d; memory %d → %d MiB (most %d), descriptors %d → %d, goroutines %d → %d; %s",
		verdict, r.Seed, r.Commit, r.Lasted, len(r.Rounds), ran, r.Crashes, never, sent, ok, lost, invented, duplicates, mayRepeat,
		r.FirstQuarter.RSS>>20, r.LastQuarter.RSS>>20, r.MostMemory>>20,
		r.FirstQuarter.FDs, r.LastQuarter.FDs, r.FirstQuarter.Goroutines, r.LastQuarter.Goroutines, path)
}

// most is the most memory that a daemon ever had.
func (w *watch) most() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.hwm
}
