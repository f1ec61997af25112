package history

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Limits are what a run may show at most.
type Limits struct {
	Duplicates int
	InFlight   int
	Records    int // in one call
}

// Err returns every promise that the run has broken, with examples, or nil.
func (r Report) Err(l Limits) error {
	var broken []error
	must := func(name string, got, most int) {
		if got <= most {
			return
		}
		text := fmt.Sprintf("%s: %d, at most %d", name, got, most)
		if samples := r.Samples[name]; len(samples) > 0 {
			text += ", as\n\t" + strings.Join(samples, "\n\t")
		}
		broken = append(broken, errors.New(text))
	}
	must("lost", r.Lost, 0)
	must("invented", r.Invented, 0)
	must("forbidden", r.Forbidden, 0)
	must("inversions", r.Inversions, 0)
	must("changed", r.Changed, 0)
	must("misjudged", r.Misjudged, 0)
	must("odd", r.Odd, 0)
	must("duplicates", r.Duplicates, l.Duplicates)
	must("calls in flight", r.MaxInFlight, l.InFlight)
	must("records in a call", r.MaxRecords, l.Records)
	if r.Loss != nil {
		broken = append(broken, fmt.Errorf("the loss is %s: %v", r.Loss.Shape, r.Loss))
	}
	return errors.Join(broken...)
}

// String is the report on one line.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "history %s, seed %d", r.Run, r.Seed)
	if r.Commit != "" {
		fmt.Fprintf(&b, ", commit %s", r.Commit)
	}
	if len(r.Faults) > 0 {
		fmt.Fprintf(&b, ", %s", strings.Join(r.Faults, ", "))
	}
	fmt.Fprintf(&b, ": %d sent (%d ok, %d refused, %d fail, %d unknown), %d seen, %d dead, %d recovered; ",
		r.Sent, r.OK, r.Refused, r.Fail, r.Unknown, r.Seen, r.Dead, r.Recovered)
	fmt.Fprintf(&b, "lost %d, invented %d, forbidden %d, inversions %d, changed %d, misjudged %d, odd %d; ",
		r.Lost, r.Invented, r.Forbidden, r.Inversions, r.Changed, r.Misjudged, r.Odd)
	fmt.Fprintf(&b, "duplicates %d", r.Duplicates)
	for i, copies := range slices.Sorted(maps.Keys(r.Copies)) {
		sep := ", "
		if i == 0 {
			sep = " ("
		}
		fmt.Fprintf(&b, "%s%d came %d times", sep, r.Copies[copies], copies)
	}
	if len(r.Copies) > 0 {
		b.WriteString(")")
	}
	fmt.Fprintf(&b, ", in flight at most %d, in a call at most %d", r.MaxInFlight, r.MaxRecords)
	return b.String()
}

// String is the time line on one line: from when on, lost of acknowledged.
func (l *Loss) String() string {
	parts := make([]string, len(l.Steps))
	for i, s := range l.Steps {
		parts[i] = fmt.Sprintf("%.1fs %d/%d", s.From, s.Lost, s.Acknowledged)
	}
	return strings.Join(parts, "  ")
}

// JSON is all of the report, for programs that compare runs.
func (r Report) JSON() ([]byte, error) {
	return json.Marshal(r, json.Deterministic(true), jsontext.WithIndent("  "))
}
