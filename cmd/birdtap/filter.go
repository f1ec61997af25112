package main

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/birdtap/birdtap/store"
)

// filter picks dead letters, or delivered receipts. Its zero value picks all of them.
type filter struct {
	since, until moment
	event        string
	status       status
	targetID     string
	identity     string
	code         int
	reason       reason
	limit        int
}

// register adds the flags of the filter to a command.
func (f *filter) register(c *cobra.Command) {
	flags := c.Flags()
	flags.Var(&f.since, "since", "died at or after this `time`: RFC 3339, or a duration such as 2h (that long ago)")
	flags.Var(&f.until, "until", "died before this `time`: as --since")
	flags.StringVar(&f.event, "event", "", "with this event `name`")
	flags.Var(&f.status, "status", "with this status: `SENT or READ`")
	flags.StringVar(&f.targetID, "target-id", "", "with this target `id`")
	flags.StringVar(&f.identity, "identity", "", "of the user with this `id` (identity, objectId, FBID or GPID)")
	flags.IntVar(&f.code, "code", 0, "with this `code` of CleverTap, such as 512")
	flags.Var(&f.reason, "reason", "dead for this `reason`: "+reasonsText)
	flags.IntVar(&f.limit, "limit", 0, "at most `n`, the oldest first; 0 = all")
	f.complete(c)
}

// complete offers the values of flags that are closed sets to the shell.
func (*filter) complete(c *cobra.Command) {
	offer := func(flag string, values ...string) {
		// It fails for a flag that does not exist only.
		_ = c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	offer("status", "SENT", "READ")
	reasons := make([]string, 0, len(wordReasons)+len(knownCodes))
	for _, r := range wordReasons {
		reasons = append(reasons, string(r))
	}
	offer("reason", append(reasons, knownCodes...)...)
	for _, flag := range []string{"since", "until", "event", "target-id", "identity", "code", "limit"} {
		offer(flag)
	}
}

// check says what no single flag can know.
func (f *filter) check() error {
	switch {
	case f.limit < 0:
		return usageError(fmt.Sprintf("--limit %d: must not be negative", f.limit))
	case f.code < 0:
		return usageError(fmt.Sprintf("--code %d: must not be negative", f.code))
	case !f.since.IsZero() && !f.until.IsZero() && !f.since.Before(f.until.Time):
		return usageError(fmt.Sprintf("--since %s is not before --until %s", f.since.String(), f.until.String()))
	}
	return nil
}

// choose tells whether the letter is picked. The limit is not its business.
func (f *filter) choose(l *store.Letter) bool {
	return f.inTime(l.Died) &&
		(f.code == 0 || l.Code == f.code) &&
		(f.reason == "" || l.Reason == store.Reason(f.reason)) &&
		f.inRecord(l.Receipt.Record)
}

// chooseDelivered is choose for what was delivered: it has no reason and no code, and
// its time is when it was accepted.
func (f *filter) chooseDelivered(r *store.Receipt) bool {
	return f.inTime(r.Accepted) && f.inRecord(r.Record)
}

func (f *filter) inTime(t time.Time) bool {
	return (f.since.IsZero() || !t.Before(f.since.Time)) && (f.until.IsZero() || t.Before(f.until.Time))
}

func (f *filter) inRecord(record []byte) bool {
	if f.event == "" && f.status == "" && f.targetID == "" && f.identity == "" {
		return true // a record is parsed only where that tells something
	}
	got := fieldsOf(record)
	return (f.event == "" || got.Event == f.event) &&
		(f.status == "" || got.Status == string(f.status)) &&
		(f.targetID == "" || got.TargetID == f.targetID) &&
		(f.identity == "" || got.Identity == f.identity)
}

// moment is a flag: a time, or how long ago it was.
type moment struct{ time.Time }

// Set parses RFC 3339 or a duration.
func (m *moment) Set(text string) error {
	if ago, err := time.ParseDuration(text); err == nil {
		if ago < 0 {
			return errors.New("a duration counts back from now, so it must not be negative")
		}
		m.Time = time.Now().Add(-ago)
		return nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return errors.New("must be a time such as 2026-01-31T15:04:05Z, or a duration such as 2h")
	}
	m.Time = t
	return nil
}

func (m *moment) String() string {
	if m.IsZero() {
		return ""
	}
	return m.Format(time.RFC3339)
}

// Type is the flag's kind in help texts.
func (*moment) Type() string { return "time" }

// status is a flag: SENT or READ.
type status string

// Set takes SENT and READ, in any letter case.
func (s *status) Set(text string) error {
	upper := strings.ToUpper(text)
	if upper != "SENT" && upper != "READ" {
		return errors.New("must be SENT or READ")
	}
	*s = status(upper)
	return nil
}

func (s *status) String() string { return string(*s) }

// Type is the flag's kind in help texts.
func (*status) Type() string { return "status" }

// reason is a flag: one of the store's reasons, or a record code of CleverTap.
type reason store.Reason

var (
	wordReasons = []store.Reason{
		store.ReasonRefused, store.ReasonHTTP400, store.ReasonHTTP413,
		store.ReasonUnclear, store.ReasonUnmapped, store.ReasonCorrupt,
	}
	// knownCodes are the record codes of CleverTap that are common; --reason takes any.
	knownCodes = []string{"509", "512", "513", "522", "523", "528", "555"}
	codeReason = regexp.MustCompile(`^[0-9]{3}$`)
)

const reasonsText = "refused, http_400, http_413, unclear, unmapped, corrupt, or a record code of CleverTap such as 512"

// Set refuses what no letter can have: a slip must not look like an empty answer.
func (r *reason) Set(text string) error {
	if !slices.Contains(wordReasons, store.Reason(text)) && !codeReason.MatchString(text) {
		return errors.New("must be " + reasonsText)
	}
	*r = reason(text)
	return nil
}

func (r *reason) String() string { return string(*r) }

// Type is the flag's kind in help texts.
func (*reason) Type() string { return "reason" }
