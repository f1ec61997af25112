package main

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/birdtap/birdtap/store"
)

// filter picks dead letters. Its zero value picks all of them.
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

// register adds the flags of the filter.
func (f *filter) register(flags *pflag.FlagSet) {
	flags.Var(&f.since, "since", "died at or after this `time`: RFC 3339, or a duration such as 2h (that long ago)")
	flags.Var(&f.until, "until", "died before this `time`: as --since")
	flags.StringVar(&f.event, "event", "", "with this event `name`")
	flags.Var(&f.status, "status", "with this status: `SENT or READ`")
	flags.StringVar(&f.targetID, "target-id", "", "with this target `id`")
	flags.StringVar(&f.identity, "identity", "", "of the user with this `id` (identity, objectId, FBID or GPID)")
	flags.IntVar(&f.code, "code", 0, "with this `code` of CleverTap, such as 512")
	flags.Var(&f.reason, "reason", "dead for this `reason`: "+reasonsText)
	flags.IntVar(&f.limit, "limit", 0, "at most so many, the oldest first; 0 = all")
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
	switch {
	case !f.since.IsZero() && l.Died.Before(f.since.Time),
		!f.until.IsZero() && !l.Died.Before(f.until.Time),
		f.code != 0 && l.Code != f.code,
		f.reason != "" && l.Reason != store.Reason(f.reason):
		return false
	}
	if f.event == "" && f.status == "" && f.targetID == "" && f.identity == "" {
		return true // a record is parsed only where that tells something
	}
	got := fieldsOf(l.Receipt.Record)
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
