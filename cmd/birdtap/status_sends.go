package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/birdtap/birdtap/sendbird/sender"
	"github.com/birdtap/birdtap/store"
)

// sendsJSON is the account of the sender as programs read it, in users. Its names are
// fixed; only new ones are added.
//
//	asked = sent + refused + held + dropped, over all modes, + waiting
type sendsJSON struct {
	Asked      int64 `json:"asked"`
	Waiting    int64 `json:"waiting"`
	Duplicates int64 `json:"duplicates"` // of webhook calls made again; not among those asked for

	Realtime sendsModeJSON `json:"realtime"`
	Batch    sendsModeJSON `json:"batch"`
	CSV      sendsModeJSON `json:"csv"`

	HeldCalls int    `json:"held_calls"`
	Refuses   string `json:"refuses,omitempty"` // why Sendbird takes nothing at all
	Holder    string `json:"holder"`            // empty: no sender runs
}

// sendsModeJSON is what became of users whose notification left in one mode.
type sendsModeJSON struct {
	Sent          int64                   `json:"sent"`
	Refused       int64                   `json:"refused"`
	RefusedByCode map[sender.Reason]int64 `json:"refused_by_code,omitempty"`
	Held          int64                   `json:"held"`
	Dropped       int64                   `json:"dropped"`
}

func newSendsJSON(st *sender.Status) *sendsJSON {
	mode := func(m sender.Mode) sendsModeJSON {
		s := st.Modes[m]
		return sendsModeJSON{s.Sent, s.Refused, s.RefusedBy, s.Held, s.Dropped}
	}
	return &sendsJSON{
		Asked: st.Asked, Waiting: st.Waiting, Duplicates: st.Duplicates,
		Realtime: mode(sender.ModeRealtime), Batch: mode(sender.ModeBatch), CSV: mode(sender.ModeCSV),
		HeldCalls: st.HeldCalls, Refuses: st.Refuses, Holder: st.Holder,
	}
}

// sendsStatus is the account of the sender; nil where nothing was ever to be sent.
func sendsStatus(ctx context.Context, s *store.Store) (*sender.Status, error) {
	sends, err := s.FindSends(ctx)
	if err != nil || sends == nil {
		return nil, err
	}
	defer sends.Close()
	st, err := sender.ReadStatus(ctx, sends)
	return &st, err
}

// writeSends is the sender's account for a person.
func writeSends(w io.Writer, st *sender.Status) error {
	total := sender.ModeStatus{RefusedBy: map[sender.Reason]int64{}}
	for _, m := range st.Modes {
		total.Sent += m.Sent
		total.Refused += m.Refused
		total.Held += m.Held
		total.Dropped += m.Dropped
		for reason, n := range m.RefusedBy {
			total.RefusedBy[reason] += n
		}
	}
	fmt.Fprintf(w, "\nnotifications, in users:%s\n", sendsHeadline(st))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := func(n int64, what, note string) {
		fmt.Fprintf(t, "  %s\t  %s\n", thousands(uint64(max(0, n))), strings.TrimRight(fmt.Sprintf("%-13s %s", what, note), " "))
	}
	row(st.Waiting, "waiting", "")
	row(total.Sent, "sent", "")
	row(total.Refused, "refused", refusedNote(total.RefusedBy))
	row(total.Held, "held", heldNote(st.HeldCalls))
	row(total.Dropped, "dropped", "")
	row(st.Asked, "asked", "")
	row(st.Duplicates, "duplicates", "users of webhook calls made again")
	return t.Flush()
}

func sendsHeadline(st *sender.Status) string {
	if st.Refuses != "" {
		return " Sendbird takes none, birdtap tries on: " + printable(st.Refuses)
	}
	return ""
}

// refusedNote names the reasons, the most frequent first.
func refusedNote(by map[sender.Reason]int64) string {
	reasons := slices.SortedFunc(maps.Keys(by), func(a, b sender.Reason) int {
		if by[a] != by[b] {
			return int(by[b] - by[a])
		}
		return strings.Compare(string(a), string(b))
	})
	var notes []string
	for _, r := range reasons {
		notes = append(notes, fmt.Sprintf("%s %s", thousands(uint64(by[r])), r)) //nolint:gosec // a count
	}
	return strings.Join(notes, ", ")
}

func heldNote(calls int) string {
	if calls == 0 {
		return ""
	}
	return fmt.Sprintf("in %s whose outcome nobody knows: birdtap send --held", counted(calls, "call"))
}
