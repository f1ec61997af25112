package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/birdtap/birdtap/ingest"
	"github.com/birdtap/birdtap/store"
)

// replayFlags are those of relay --replay.
type replayFlags struct {
	filter
	replay bool
	dryRun bool
	rate   float64
	asJSON bool
}

func (f *replayFlags) register(c *cobra.Command) {
	c.Flags().BoolVar(&f.replay, "replay", false, "put dead receipts back on the queue, print how many, and end")
	c.Flags().BoolVar(&f.dryRun, "dry-run", false, "with --replay: list them and move nothing")
	c.Flags().Float64Var(&f.rate, "rate", 0, "with --replay: at most so many `receipts/s`; 0 = as fast as it goes")
	c.Flags().BoolVar(&f.asJSON, "json", false, "with --replay: JSON on stdout")
	f.filter.register(c.Flags())
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
	if f.rate < 0 {
		return usageError(fmt.Sprintf("--rate %v: must not be negative", f.rate))
	}
	if f.reason == reason(store.ReasonCorrupt) {
		return usageError("--reason corrupt: these are bytes of a damaged frame and no receipts; see birdtap dead export --reason corrupt")
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

// renew makes the receipt of a letter's next life. One refused at the door is judged
// anew, as if it came now, but with the time at which it first came.
func renew(l store.Letter) store.Receipt {
	if l.Reason == store.ReasonRefused {
		return ingest.Convert(l.Receipt.Record, l.Receipt.Accepted)
	}
	return l.Receipt
}

func (p *program) replay(ctx context.Context, f *replayFlags) error {
	return p.withStore(ctx, &f.filter, func(ctx context.Context, s *store.Store) error {
		if f.dryRun {
			return p.listLetters(ctx, s, selection{filter: f.filter, choose: f.choose}, f.asJSON)
		}
		n, err := s.Replay(ctx, store.ReplayOptions{
			Choose:   f.choose,
			Limit:    f.limit,
			Rate:     f.rate,
			Renew:    renew,
			Progress: p.progress("replayed", f.asJSON),
		})
		if err != nil {
			return fmt.Errorf("replay stopped after %s: %w; the same command goes on with the rest", counted(n, "receipt"), err)
		}
		format := "replayed %d\n"
		if f.asJSON {
			format = `{"replayed":%d}` + "\n"
		}
		_, err = fmt.Fprintf(p.out, format, n)
		return err
	})
}

// progress counts on a terminal, on one line that is written over.
func (p *program) progress(what string, asJSON bool) func(int) {
	if asJSON || !isTerminal(p.err) {
		return nil
	}
	return func(n int) { fmt.Fprintf(p.err, "\r%s %s …\r", what, thousands(uint64(n))) } //nolint:gosec // a count
}
