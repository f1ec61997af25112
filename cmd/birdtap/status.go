package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/birdtap/birdtap/sendbird/sender"
	"github.com/birdtap/birdtap/store"
)

// watchEvery is how often status --watch looks.
const watchEvery = 2 * time.Second

func (p *program) statusCommand() *cobra.Command {
	var asJSON, watch bool
	var campaign string
	c := &cobra.Command{
		Use:   "status",
		Short: "Show what waits, what was delivered and what is dead",
		Long: `Show what waits, what was delivered and what is dead, whether or not birdtap runs.

At rest the account adds up: accepted + replayed = delivered + deduplicated + died + queued.

With --campaign it shows one campaign in place of all: for every event name under that
target id, what became of the users that were asked for, and of the receipts. A replayed
dead receipt counts by its new ending, so at rest delivered + died is the number of
receipts. The newest 10,000 campaigns are kept.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			show := func(ctx context.Context) error { return p.printStatus(ctx, asJSON) }
			if c.Flags().Changed("campaign") {
				if campaign == "" {
					return usageError("--campaign needs a target id")
				}
				show = func(ctx context.Context) error { return p.printCampaigns(ctx, campaign, asJSON) }
			}
			if watch {
				return p.watchStatus(c.Context(), asJSON, show)
			}
			return show(c.Context())
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "one JSON object")
	c.Flags().StringVar(&campaign, "campaign", "", "one campaign: that of this target `id`")
	c.Flags().BoolVar(&watch, "watch", false, "print anew every 2 s until Ctrl-C")
	return c
}

// statusJSON is the account as programs read it. Its names are fixed; only new ones
// are added.
type statusJSON struct {
	Accepted     uint64                  `json:"accepted"`
	Replayed     uint64                  `json:"replayed"`
	Delivered    uint64                  `json:"delivered"`
	Deduplicated uint64                  `json:"deduplicated"`
	Died         uint64                  `json:"died"`
	Queued       uint64                  `json:"queued"`
	Dead         uint64                  `json:"dead"`
	DeadByReason map[store.Reason]uint64 `json:"dead_by_reason"`
	Purged       uint64                  `json:"purged"`

	OldestSeconds float64   `json:"oldest_seconds"`
	QueueBytes    int64     `json:"queue_bytes"`
	Rate          float64   `json:"rate"` // delivered per second of late
	Breaker       string    `json:"breaker"`
	Paused        bool      `json:"paused"`
	Relay         relayJSON `json:"relay"`

	Identities *identitiesJSON `json:"identities,omitzero"` // absent: no identity map
	Replicas   []replicasJSON  `json:"replicas,omitzero"`   // absent: nothing is to be on several servers
	Sends      *sendsJSON      `json:"sends,omitzero"`      // absent: nothing was ever to be sent
}

type relayJSON struct {
	Holder string `json:"holder"` // empty: none holds the term
	Term   uint64 `json:"term"`
}

// replicasJSON is on how many servers a stream is to be, and how many have all of it.
type replicasJSON struct {
	Stream  string `json:"stream"`
	Want    int    `json:"want"`
	Current int    `json:"current"`
}

func newStatusJSON(st store.Status, sends *sender.Status) statusJSON {
	j := statusJSON{
		Accepted: st.Accepted, Replayed: st.Replayed,
		Delivered: st.Delivered, Deduplicated: st.Deduplicated, Died: st.Died, Queued: st.Queued,
		Dead: st.Dead, DeadByReason: st.DeadByReason, Purged: st.Purged,
		OldestSeconds: st.Oldest.Seconds(), QueueBytes: st.QueueBytes, Rate: st.Rate,
		Breaker: st.Breaker, Paused: st.Paused,
		Relay: relayJSON{Holder: st.Holder, Term: st.Term},
	}
	if st.Identities != nil {
		ids := newIdentitiesJSON(*st.Identities)
		j.Identities = &ids
	}
	for _, r := range st.Replicas {
		j.Replicas = append(j.Replicas, replicasJSON(r))
	}
	if sends != nil {
		j.Sends = newSendsJSON(sends)
	}
	return j
}

func (p *program) printStatus(ctx context.Context, asJSON bool) error {
	var st store.Status
	var sends *sender.Status
	var unread, unreadSends error
	err := p.withStore(ctx, nil, func(ctx context.Context, s *store.Store) (err error) {
		if st, err = s.Status(ctx); errors.Is(err, store.ErrNewer) {
			unread, err = err, nil
		}
		if err != nil {
			return err
		}
		if sends, err = sendsStatus(ctx, s); errors.Is(err, store.ErrNewer) {
			unreadSends, sends, err = err, nil, nil
		}
		return err
	})
	if err != nil {
		return err
	}
	switch {
	case unread != nil && asJSON:
		err = writeJSONLine(p.out, newPartJSON(st))
	case unread != nil:
		err = writePart(p.out, st)
	case asJSON:
		err = writeJSONLine(p.out, newStatusJSON(st, sends))
	default:
		err = writeStatus(p.out, st, sends)
	}
	return errors.Join(err, newerRunsIt(unread), newerRunsIt(unreadSends))
}

// newerRunsIt names the way out of what a newer birdtap has written.
func newerRunsIt(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w; run that version again", err)
}

// partJSON is what there is to tell where a newer birdtap has written the checkpoint. It
// has none of the members that nothing is known of: zeros would read as all delivered.
type partJSON struct {
	Dead         uint64                  `json:"dead"`
	DeadByReason map[store.Reason]uint64 `json:"dead_by_reason"`
	Purged       uint64                  `json:"purged"`
	Paused       bool                    `json:"paused"`
	Identities   *identitiesJSON         `json:"identities,omitzero"`
	Replicas     []replicasJSON          `json:"replicas,omitzero"`
}

func newPartJSON(st store.Status) partJSON {
	all := newStatusJSON(st, nil)
	return partJSON{all.Dead, all.DeadByReason, all.Purged, all.Paused, all.Identities, all.Replicas}
}

// writePart is the same for a person.
func writePart(w io.Writer, st store.Status) error {
	fmt.Fprint(w, "UNKNOWN: a newer birdtap has written the checkpoint, so this one cannot tell what waits.\nNothing is delivered until that version runs again; what waits is safe.\n\n")
	if st.Paused {
		fmt.Fprintln(w, "paused: birdtap resume ends that")
	}
	fmt.Fprint(w, replicasNote(st))
	return writeDead(w, st)
}

// clearScreen moves a terminal's cursor home and wipes what stood there.
const clearScreen = "\x1b[H\x1b[2J"

// watchStatus ends without an error when the operator has seen enough. It opens the
// queue for each look, so that a daemon may be started or stopped meanwhile.
func (p *program) watchStatus(ctx context.Context, asJSON bool, show func(context.Context) error) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		if isTerminal(p.out) && !asJSON {
			fmt.Fprint(p.out, clearScreen)
		}
		err := show(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// writeStatus is the account for a person: first what matters now, then the
// figures, then what to do about the dead.
func writeStatus(w io.Writer, st store.Status, sends *sender.Status) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", headline(st))
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := func(n uint64, what, note string) {
		// What stands behind the last tab of a line is no cell, so it is not aligned.
		fmt.Fprintf(t, "  %s\t  %s\n", thousands(n), strings.TrimRight(fmt.Sprintf("%-13s %s", what, note), " "))
	}
	row(st.Queued, "queued", queueNote(st))
	row(st.Delivered, "delivered", rateNote(st))
	row(st.Deduplicated, "deduplicated", "copies of a receipt, dropped")
	row(st.Died, "died", "")
	row(st.Accepted, "accepted", "")
	row(st.Replayed, "replayed", "put back on the queue by an operator")
	row(st.Purged, "purged", "dead ones given up by an operator")
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(&b, "\nbreaker %s, %s\n", st.Breaker, relayNote(st))
	b.WriteString(replicasNote(st))
	if i := st.Identities; i != nil {
		fmt.Fprintf(&b, "identity map of %s, imported %s\n", counted(int(i.Users), "user"), i.Imported.UTC().Format(time.RFC3339)) //nolint:gosec // a count
	}
	if err := writeDead(&b, st); err != nil {
		return err
	}
	if sends != nil {
		if err := writeSends(&b, sends); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// headline says in one sentence whether something is wrong.
func headline(st store.Status) string {
	switch {
	case st.Paused:
		return "PAUSED: nothing is uploaded until birdtap resume; receipts are still taken in."
	case st.Holder == "" && st.Queued > 0:
		return "WAITING: no relay is running; what waits is safe and leaves when one starts."
	case st.Breaker == "open":
		return "WAITING: CleverTap does not take uploads; what waits is safe, and birdtap tries again by itself."
	case st.Breaker == "half-open":
		return "RECOVERING: trying whether CleverTap takes uploads again."
	case st.Queued > 0:
		return "DELIVERING"
	default:
		return "ALL DELIVERED: nothing waits."
	}
}

func queueNote(st store.Status) string {
	if st.Queued == 0 {
		return ""
	}
	return fmt.Sprintf("the oldest for %s, about %s", ageText(st.Oldest), bytesText(st.QueueBytes))
}

func rateNote(st store.Status) string {
	if st.Rate <= 0 {
		return ""
	}
	return fmt.Sprintf("%s/s of late", thousands(uint64(st.Rate+0.5)))
}

func relayNote(st store.Status) string {
	if st.Holder == "" {
		return "no relay holds the term"
	}
	return fmt.Sprintf("relay %s holds term %d", printable(st.Holder), st.Term)
}

// replicasNote is a line that says whether every stream has the replicas it is to have;
// nothing where one server is all there is.
func replicasNote(st store.Status) string {
	if len(st.Replicas) == 0 {
		return ""
	}
	var lacking []string
	most := 0
	for _, r := range st.Replicas {
		most = max(most, r.Want)
		if r.Current < r.Want {
			lacking = append(lacking, fmt.Sprintf("%s is whole on %d of %d", printable(r.Stream), r.Current, r.Want))
		}
	}
	if len(lacking) == 0 {
		return fmt.Sprintf("every stream is whole on its %d servers\n", most)
	}
	return fmt.Sprintf("a server lacks something, so stop no other one: %s\n", strings.Join(lacking, ", "))
}

// writeDead lists the dead by reason, most frequent first.
func writeDead(w io.Writer, st store.Status) error {
	if st.Dead == 0 {
		_, err := fmt.Fprintln(w, "no dead letters")
		return err
	}
	fmt.Fprintf(w, "%s dead (birdtap dead list; birdtap relay --replay sends them again):\n", thousands(st.Dead))
	reasons := slices.SortedFunc(maps.Keys(st.DeadByReason), func(a, b store.Reason) int {
		if n, m := st.DeadByReason[a], st.DeadByReason[b]; n != m {
			if n > m {
				return -1
			}
			return 1
		}
		return strings.Compare(string(a), string(b))
	})
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, r := range reasons {
		fmt.Fprintf(t, "  %s\t  %s\n", thousands(st.DeadByReason[r]), printable(string(r)))
	}
	return t.Flush()
}

// thousands writes 1234567 as 1,234,567.
func thousands(n uint64) string {
	digits := strconv.FormatUint(n, 10)
	var b strings.Builder
	for i, d := range []byte(digits) {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteByte(d)
	}
	return b.String()
}

// ageText is a duration as precise as a person needs it: 12s, 4m10s, 3h5m.
func ageText(d time.Duration) string {
	switch {
	case d >= time.Hour:
		return durationText(d.Truncate(time.Minute))
	case d >= 10*time.Second:
		return durationText(d.Truncate(time.Second))
	default:
		return d.Truncate(100 * time.Millisecond).String()
	}
}

func bytesText(n int64) string {
	switch size := Size(n); {
	case size >= 10*gibibyte:
		return fmt.Sprintf("%d GiB", size/gibibyte)
	case size >= 10*mebibyte:
		return fmt.Sprintf("%d MiB", size/mebibyte)
	default:
		return fmt.Sprintf("%d KiB", (size+kibibyte-1)/kibibyte)
	}
}
