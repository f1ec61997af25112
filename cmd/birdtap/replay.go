package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/birdtap/birdtap/clevertap"
	"github.com/birdtap/birdtap/store"
)

// replayFlags are those of relay --replay.
type replayFlags struct {
	filter
	replay    bool
	delivered bool
	dryRun    bool
	rate      float64
	asJSON    bool
}

func (f *replayFlags) register(c *cobra.Command) {
	c.Flags().BoolVar(&f.replay, "replay", false, "put dead receipts back on the queue, print how many, and end")
	c.Flags().BoolVar(&f.delivered, "delivered", false, "with --replay: those that were delivered and are still kept, in place of the dead; needs --since")
	c.Flags().BoolVar(&f.dryRun, "dry-run", false, "with --replay: list them and move nothing")
	c.Flags().Float64Var(&f.rate, "rate", 0, "with --replay: at most so many `receipts/s`; 0 = as fast as it goes")
	c.Flags().BoolVar(&f.asJSON, "json", false, "with --replay: JSON on stdout")
	f.filter.register(c)
	c.Flags().Lookup("since").Usage = "died (with --delivered: was accepted) at or after this `time`: RFC 3339, or a duration such as 2h (that long ago)"
	c.Flags().Lookup("until").Usage = "died (with --delivered: was accepted) before this `time`: as --since"
}

// check refuses a filter without --replay: the daemon would start and not filter.
func (f *replayFlags) check(c *cobra.Command) error {
	if !f.replay {
		var err error
		c.Flags().Visit(func(flag *pflag.Flag) {
			err = usageError("--" + flag.Name + " goes with --replay")
		})
		return err
	}
	if !(f.rate >= 0) { // NaN neither
		return usageError(fmt.Sprintf("--rate %v: must not be negative", f.rate))
	}
	if f.delivered {
		return f.checkDelivered(c)
	}
	if f.reason == reason(store.ReasonCorrupt) {
		return usageError("--reason corrupt: these are bytes of a damaged frame and no receipts; see birdtap dead export --reason corrupt")
	}
	return nil
}

func (f *replayFlags) checkDelivered(c *cobra.Command) error {
	for _, name := range []string{"code", "reason"} {
		if flag := c.Flags().Lookup(name); flag.Changed {
			return usageError(fmt.Sprintf("--%s %s does not go with --delivered: what was delivered has none", name, flag.Value))
		}
	}
	if f.since.IsZero() {
		return usageError("--delivered needs --since: it sends again what CleverTap has already taken")
	}
	return nil
}

// choose leaves out what was refused at the door, unless it is asked for: it would
// be refused again. Bytes of a damaged frame are no receipt and never go out.
func (f *replayFlags) choose(l *store.Letter) bool {
	if l.Reason == store.ReasonCorrupt || f.reason == "" && l.Reason == store.ReasonRefused {
		return false
	}
	return f.filter.choose(l)
}

// replayGC is how much garbage a replay may gather, in percent of what it holds: nearly
// all of it is frames that were read, so a small heap costs little, and the machine has
// a daemon to run, too.
const replayGC = 25

func (p *program) replay(ctx context.Context, f *replayFlags) error {
	defer debug.SetGCPercent(debug.SetGCPercent(replayGC))
	return p.withStore(ctx, &f.filter, func(ctx context.Context, s *store.Store) error {
		switch {
		case f.delivered && f.dryRun:
			return p.listDelivered(ctx, s, f)
		case f.delivered:
			return p.replayDelivered(ctx, s, f)
		case f.dryRun:
			return p.listLetters(ctx, s, selection{filter: f.filter, choose: f.choose}, f.asJSON)
		default:
			return p.replayDead(ctx, s, f)
		}
	})
}

func (p *program) replayDead(ctx context.Context, s *store.Store, f *replayFlags) error {
	sel := selection{filter: f.filter, choose: f.choose}
	leftOut := []store.Reason{store.ReasonCorrupt}
	if f.reason == "" {
		leftOut = append(leftOut, store.ReasonRefused)
	}
	door, err := p.newRenewer(ctx, s)
	if err != nil {
		return err
	}
	defer door.close()
	bar := p.progress("replaying", "receipts", sel.expected(ctx, s, leftOut...), f.asJSON)
	n, err := s.Replay(ctx, store.ReplayOptions{
		Choose:   door.choose(f.choose),
		Limit:    f.limit,
		Rate:     f.rate,
		Renew:    door.renew,
		Unread:   func(l store.Letter) bool { _, ok := clevertap.EventOf(l.Receipt.Record); return !ok },
		Progress: bar.set,
	})
	bar.end()
	if err = cmp.Or(err, door.err); err != nil {
		return fmt.Errorf("replay stopped after %s: %w; the same command goes on with the rest", counted(n, "receipt"), err)
	}
	format := "replayed %d\n"
	if f.asJSON {
		format = `{"replayed":%d}` + "\n"
	}
	_, err = fmt.Fprintf(p.out, format, n)
	return err
}

func (f *replayFlags) deliveredOptions() store.DeliveredOptions {
	return store.DeliveredOptions{Since: f.since.Time, Choose: f.chooseDelivered, Limit: f.limit, Rate: f.rate}
}

func (p *program) replayDelivered(ctx context.Context, s *store.Store, f *replayFlags) error {
	bar := p.progress("replaying", "receipts", -1, f.asJSON)
	o := f.deliveredOptions()
	o.Progress = bar.set
	n, kept, err := s.ReplayDelivered(ctx, o)
	bar.end()
	p.tellKept(kept, f)
	if err != nil {
		return fmt.Errorf("replay stopped after %s: %w; the same command begins anew, and what has gone goes again", counted(n, "receipt"), err)
	}
	if f.asJSON {
		_, err = fmt.Fprintf(p.out, `{"replayed":%d,"missed_frames":%d}`+"\n", n, kept.Missed)
		return err
	}
	_, err = fmt.Fprintf(p.out, "replayed %d\n", n)
	return err
}

// tellKept says what the answer leaves out.
func (p *program) tellKept(kept store.Kept, f *replayFlags) {
	if kept.Oldest.After(f.since.Time) {
		fmt.Fprintf(p.err, "birdtap: nothing is kept from before %s: %sKEEP_DELIVERED and %sKEEP_MAX_BYTES say for how long\n",
			kept.Oldest.UTC().Format(time.RFC3339), envPrefix, envPrefix)
	}
	if kept.Missed > 0 {
		fmt.Fprintf(p.err, "birdtap: %s of receipts left the queue before they were read, since their time was over: they are not in the answer\n",
			counted(int(kept.Missed), "frame")) //nolint:gosec // a count
	}
}

// deliveredLine is one delivered receipt as --dry-run --json prints it.
type deliveredLine struct {
	Accepted time.Time `json:"accepted"`
	Frame    uint64    `json:"frame"` // the place on the queue it was delivered from last
	Index    int       `json:"index"`
	fields
}

// listDelivered prints what --delivered would replay, and says on stderr how many.
func (p *program) listDelivered(ctx context.Context, s *store.Store, f *replayFlags) error {
	out := bufio.NewWriter(p.out)
	table := deliveredTable{out: tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)}
	n := 0
	kept, err := s.Delivered(ctx, f.deliveredOptions(), func(r *store.Receipt) error {
		n++
		line := deliveredLine{Accepted: r.Accepted.UTC(), Frame: r.Origin.Seq, Index: r.Origin.Index, fields: fieldsOf(r.Record)}
		if f.asJSON {
			return writeJSONLine(out, line)
		}
		return table.add(line)
	})
	if err = errors.Join(err, table.out.Flush(), out.Flush()); err != nil {
		return err
	}
	p.tellKept(kept, f)
	if !f.asJSON {
		fmt.Fprintf(p.err, "%s\n", counted(n, "delivered receipt"))
	}
	return nil
}

// deliveredTable is a letterTable for what was delivered.
type deliveredTable struct {
	out  *tabwriter.Writer
	rows int
}

func (t *deliveredTable) add(l deliveredLine) error {
	if t.rows == 0 {
		fmt.Fprintln(t.out, "ACCEPTED\tEVENT\tSTATUS\tTARGET\tUSER")
	}
	if t.rows++; t.rows%tableRows == 0 {
		if err := t.out.Flush(); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(t.out, "%s\t%s\t%s\t%s\t%s\n", l.Accepted.Format(time.RFC3339),
		cell(l.Event), cell(l.Status), cell(l.TargetID), cell(l.Identity))
	return err
}
