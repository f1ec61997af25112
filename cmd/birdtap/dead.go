package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/birdtap/birdtap/store"
)

func (p *program) deadCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "dead",
		Short: "Look at receipts that CleverTap refused, export or give them up",
		Long: `A receipt that CleverTap refuses for good is kept as a dead letter, with the reason.
So is one that was refused at the door. Dead letters never leave by themselves.

When the reason is gone (an event restored, a name corrected), send them again with
birdtap relay --replay, which takes the same filters.`,
	})
	c.AddCommand(p.deadListCommand(), p.deadExportCommand(), p.deadPurgeCommand())
	return c
}

func (p *program) deadListCommand() *cobra.Command {
	var f filter
	var asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List dead letters",
		Long:  "List dead letters, oldest first.",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return p.withStore(c.Context(), &f, func(ctx context.Context, s *store.Store) error {
				return p.listLetters(ctx, s, selection{filter: f, choose: f.choose}, asJSON)
			})
		},
	}
	f.register(c)
	c.Flags().BoolVar(&asJSON, "json", false, "one JSON object per line")
	return c
}

func (p *program) deadExportCommand() *cobra.Command {
	var f filter
	c := &cobra.Command{
		Use:   "export",
		Short: "Export dead letters with their whole records, as JSON lines",
		Long: `Export dead letters with their whole records, one JSON object per line, oldest first.
A record that is not JSON stands as record_base64. The output holds personal data.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return p.withStore(c.Context(), &f, func(ctx context.Context, s *store.Store) error {
				return p.exportLetters(ctx, s, selection{filter: f, choose: f.choose})
			})
		},
	}
	f.register(c)
	return c
}

func (p *program) deadPurgeCommand() *cobra.Command {
	var f filter
	var yes bool
	c := &cobra.Command{
		Use:   "purge",
		Short: "Give dead letters up for good",
		Long: `Give dead letters up for good. Without a filter that is all of them. On a terminal it
tells how many and asks; elsewhere it needs --yes.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if !yes && !isTerminal(p.in) {
				return usageError("dead purge deletes for good: outside a terminal it needs --yes")
			}
			return p.withStore(c.Context(), &f, func(ctx context.Context, s *store.Store) error {
				return p.purgeLetters(ctx, s, selection{filter: f, choose: f.choose}, yes)
			})
		},
	}
	f.register(c)
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

// selection is which dead letters a command works on.
type selection struct {
	filter
	choose func(*store.Letter) bool
}

// expected is how many letters that will be, where the headers of their messages
// tell: without a filter, or with --reason alone. -1: they do not.
func (s selection) expected(ctx context.Context, from *store.Store, leftOut ...store.Reason) int {
	rest := s.filter
	rest.reason, rest.limit = "", 0
	if rest != (filter{}) {
		return -1
	}
	count, err := from.CountLetters(ctx)
	if err != nil {
		return -1 // the command itself will say so
	}
	n := 0
	for r, of := range count {
		if (s.reason == "" || s.reason == reason(r)) && !slices.Contains(leftOut, r) {
			n += int(of) //nolint:gosec // a count
		}
	}
	if s.limit > 0 {
		n = min(n, s.limit)
	}
	return n
}

// each calls fn for every selected letter, oldest first, up to the limit, and
// returns how many there were.
func (s selection) each(ctx context.Context, from *store.Store, fn func(store.Letter) error) (int, error) {
	n := 0
	err := from.Letters(ctx, func(l store.Letter) error {
		if !s.choose(&l) {
			return nil
		}
		if err := fn(l); err != nil {
			return err
		}
		if n++; n == s.limit {
			return store.ErrStop
		}
		return nil
	})
	return n, err
}

// listLetters prints the selection as a table or as JSON lines, and says on stderr
// how many they are.
func (p *program) listLetters(ctx context.Context, s *store.Store, sel selection, asJSON bool) error {
	out := bufio.NewWriter(p.out)
	table := letterTable{out: tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)}
	n, err := sel.each(ctx, s, func(l store.Letter) error {
		line := newLetterLine(l)
		if asJSON {
			return line.write(out)
		}
		return table.add(line)
	})
	if err = errors.Join(err, table.flush(), out.Flush()); err != nil {
		return err
	}
	if !asJSON {
		fmt.Fprintf(p.err, "%s\n", counted(n, "dead letter"))
	}
	return nil
}

func (p *program) exportLetters(ctx context.Context, s *store.Store, sel selection) error {
	out := bufio.NewWriter(p.out)
	_, err := sel.each(ctx, s, func(l store.Letter) error {
		return newLetterLine(l).withRecord(l.Receipt.Record).write(out)
	})
	return errors.Join(err, out.Flush())
}

// purgeLetters deletes no more letters than it was told yes to: those that die
// while it asks stay.
func (p *program) purgeLetters(ctx context.Context, s *store.Store, sel selection, yes bool) error {
	if !yes {
		n, err := sel.each(ctx, s, func(store.Letter) error { return nil })
		if err != nil {
			return err
		}
		if n > 0 && !p.confirm(fmt.Sprintf("give up %s for good?", counted(n, "dead letter"))) {
			return errors.New("nothing was purged")
		}
		if sel.limit = n; n == 0 {
			sel.choose = func(*store.Letter) bool { return false } // a limit of 0 would be none
		}
	}
	bar := p.progress("purging", "letters", sel.expected(ctx, s), false)
	n, err := s.Purge(ctx, bar.counting(sel.choose), sel.limit)
	bar.end()
	if err != nil {
		return fmt.Errorf("after %s: %w", counted(n, "purged letter"), err)
	}
	_, err = fmt.Fprintf(p.out, "purged %d\n", n)
	return err
}

// confirm asks the person at the terminal.
func (p *program) confirm(question string) bool {
	fmt.Fprintf(p.err, "%s [y/N] ", question)
	answer, _ := bufio.NewReader(io.LimitReader(p.in, 64)).ReadString('\n') // end of input is no
	answer = strings.ToLower(strings.TrimSpace(answer))
	return answer == "y" || answer == "yes"
}

// letterTable writes letters as a table, in bounded memory: columns are aligned
// within every tableRows rows.
type letterTable struct {
	out  *tabwriter.Writer
	rows int
}

const (
	tableRows     = 200
	maxCellLength = 40 // characters
)

func (t *letterTable) add(l letterLine) error {
	if t.rows == 0 {
		fmt.Fprintln(t.out, "DIED\tREASON\tCODE\tTRIES\tEVENT\tSTATUS\tTARGET\tUSER")
	}
	if t.rows++; t.rows%tableRows == 0 {
		if err := t.out.Flush(); err != nil {
			return err
		}
	}
	code := ""
	if l.Code != 0 {
		code = fmt.Sprint(l.Code)
	}
	_, err := fmt.Fprintf(t.out, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", l.Died.Format(time.RFC3339), l.Reason, code, l.Tries,
		cell(l.Event), cell(l.Status), cell(l.TargetID), cell(l.Identity))
	return err
}

func (t *letterTable) flush() error { return t.out.Flush() }

// cell is a stranger's text made fit for a table: on one line, of bounded length,
// without what a terminal would obey.
func cell(text string) string {
	runes := []rune(printable(text))
	if len(runes) > maxCellLength {
		runes = append(runes[:maxCellLength-1], '…')
	}
	return string(runes)
}

// counted is "1 dead letter" or "1,234 dead letters".
func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return thousands(uint64(max(0, n))) + " " + what + "s"
}
