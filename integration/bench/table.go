package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
)

// row is one line of the table.
type row struct {
	Name    string  `json:"name"`
	Value   float64 `json:"value"`
	Unit    string  `json:"unit"`              // "x" for a ratio
	Bar     *bound  `json:"bar,omitempty"`     // nil: a figure without one
	Stretch *bound  `json:"stretch,omitempty"` // nil: none
	Met     *bool   `json:"met,omitempty"`
	Note    string  `json:"note,omitempty"`
}

// bound is what a figure must reach, or must not exceed.
type bound struct {
	Limit  float64 `json:"limit"`
	AtMost bool    `json:"at_most"`
}

func atLeast(limit float64) *bound { return &bound{Limit: limit} }
func atMost(limit float64) *bound  { return &bound{Limit: limit, AtMost: true} }

func (b *bound) met(value float64) bool {
	if math.IsNaN(value) {
		return false
	}
	if b.AtMost {
		return value <= b.Limit
	}
	return value >= b.Limit
}

// verdict is a bound, and beside it whether it is met.
func (b *bound) verdict(value float64, unit string) string {
	if b == nil {
		return ""
	}
	sign := "≥"
	if b.AtMost {
		sign = "≤"
	}
	word := "not met"
	if b.met(value) {
		word = "met"
	}
	return fmt.Sprintf("%s %s %s", sign, limitText(b.Limit, unit), word)
}

// text is a figure as precise as its unit deserves.
func text(value float64, unit string) string {
	switch unit {
	case "x":
		return fmt.Sprintf("%.2f", value)
	case "/s":
		return thousands(value) + "/s"
	case "s", "ms":
		return fmt.Sprintf("%.2f %s", value, unit)
	default:
		return strings.TrimSuffix(fmt.Sprintf("%.1f", value), ".0") + " " + unit
	}
}

// limitText is a limit, which needs no digits behind the point but in a ratio.
func limitText(limit float64, unit string) string {
	if unit == "s" || unit == "ms" {
		return fmt.Sprintf("%g %s", limit, unit)
	}
	return text(limit, unit)
}

func thousands(value float64) string {
	digits := fmt.Sprintf("%.0f", value)
	var b strings.Builder
	for i, d := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(d)
	}
	return b.String()
}

// table prints rows as they come, so that one can watch.
type table struct {
	out  io.Writer
	rows []row
}

const rowFormat = "%-62s %12s   %-19s   %-19s"

func newTable(out io.Writer) *table { return &table{out: out} }

func (t *table) add(r row) {
	if len(t.rows) == 0 {
		t.line(rowFormat, "figure", "measured", "bar", "stretch")
		t.line(rowFormat, strings.Repeat("-", 62), strings.Repeat("-", 12), strings.Repeat("-", 19), strings.Repeat("-", 19))
	}
	if r.Bar != nil {
		met := r.Bar.met(r.Value)
		r.Met = &met
	}
	t.rows = append(t.rows, r)
	t.line(rowFormat, r.Name, text(r.Value, r.Unit), r.Bar.verdict(r.Value, r.Unit), r.Stretch.verdict(r.Value, r.Unit))
	if r.Note != "" {
		t.line("    %s", r.Note)
	}
}

func (t *table) line(format string, cells ...any) {
	fmt.Fprintln(t.out, strings.TrimRight(fmt.Sprintf(format, cells...), " "))
}

// median of values; NaN of none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// writeJSON writes the same for programs.
func writeJSON(file string, m machine, rows []row) error {
	b, err := json.MarshalIndent(struct {
		Machine machine `json:"machine"`
		Rows    []row   `json:"rows"`
	}{m, rows}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}
