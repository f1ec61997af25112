package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/birdtap/birdtap/store"
	"github.com/birdtap/birdtap/store/idmap"
)

func (p *program) identitiesCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "identities",
		Short: "Show, load or remove the map from Sendbird user ids to CleverTap identities",
		Long: `Show the identity map that is loaded: how many users it has, since when, how large.

Where Sendbird sends its own user ids, and CleverTap knows the users by others, each
receipt would make a profile of nobody. With a map (birdtap identities import) the
door gives every receipt the identity that CleverTap knows. What becomes of a user who
is not in the map says BIRDTAP_IDENTITY_UNMAPPED.`,
	})
	var asJSON bool
	c.RunE = func(c *cobra.Command, _ []string) error { return p.showIdentities(c.Context(), asJSON) }
	c.Flags().BoolVar(&asJSON, "json", false, "one JSON object")
	c.AddCommand(p.identitiesImportCommand(), p.identitiesRemoveCommand())
	return c
}

func (p *program) identitiesImportCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "import FILE.csv",
		Short: "Replace the whole map by that of a file",
		Long: `Replace the whole map by that of a CSV file; - reads standard input. Its first row is
user_id,identity, and each further row one user: the Sendbird user id, and the identity
that CleverTap knows. A file with a bad row changes nothing; the rows are named.

It works while birdtap runs and while it does not. Every process that takes receipts in
uses the new map within seconds. Receipts that are on the queue already keep the
identity that they have; dead ones of reason unmapped are looked up again by birdtap
relay --replay --reason unmapped.

Two Sendbird users with one identity are one user to CleverTap: equal receipts of both
within BIRDTAP_DEDUP_WINDOW are copies of each other, and one is delivered.

Temporary files of about three times the size of the CSV go to BIRDTAP_DATA_DIR, or,
where that does not exist, to TMPDIR.`,
		Args: oneArg("FILE.csv"),
		RunE: func(c *cobra.Command, args []string) error {
			return p.importIdentities(c.Context(), args[0])
		},
	}
}

func (p *program) identitiesRemoveCommand() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "remove",
		Short: "Remove the map: receipts keep the user that they came with",
		Long: `Remove the map: receipts keep the user that they came with, as before the first import.
On a terminal it asks; elsewhere it needs --yes.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if !yes && !isTerminal(p.in) {
				return usageError("identities remove: outside a terminal it needs --yes")
			}
			return p.removeIdentities(c.Context(), yes)
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

// oneArg wants one argument, and names it where it is missing.
func oneArg(name string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) == 0:
			return fmt.Errorf("%s takes one argument, %s", c.CommandPath(), name)
		case len(args) > 1:
			return fmt.Errorf("%s takes one argument, %s: %q is one too many", c.CommandPath(), name, args[1])
		}
		return nil
	}
}

// identitiesJSON is the map as programs read it. Its names are fixed; only new ones
// are added.
type identitiesJSON struct {
	Users    uint64    `json:"users"`
	Imported time.Time `json:"imported,omitzero"`
	Bytes    int64     `json:"bytes"`
	Version  string    `json:"version,omitempty"`
}

func newIdentitiesJSON(i store.IdentityInfo) identitiesJSON {
	return identitiesJSON{Users: i.Users, Imported: i.Imported.UTC().Truncate(time.Second), Bytes: i.Bytes, Version: i.Version}
}

// showIdentities prints what the queue has, whether or not a daemon runs.
func (p *program) showIdentities(ctx context.Context, asJSON bool) error {
	var info store.IdentityInfo
	err := p.withStore(ctx, nil, func(ctx context.Context, s *store.Store) (err error) {
		info, err = s.Identities(ctx)
		return err
	})
	none := errors.Is(err, store.ErrNoIdentities)
	if err != nil && !none {
		return err
	}
	if asJSON {
		line, err := json.Marshal(newIdentitiesJSON(info))
		if err != nil {
			return err
		}
		_, err = p.out.Write(append(line, '\n'))
		return err
	}
	if none {
		_, err = fmt.Fprintln(p.out, "no identity map: receipts keep the user that they came with")
		return err
	}
	_, err = fmt.Fprintf(p.out, "%s, imported %s, %s\n",
		counted(int(info.Users), "user"), info.Imported.UTC().Format(time.RFC3339), bytesText(info.Bytes)) //nolint:gosec // a count
	return err
}

// importIdentities builds the map before it opens the queue, which no daemon can start
// on while a command has it open.
func (p *program) importIdentities(ctx context.Context, file string) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	if err := cfg.queueExists(); err != nil {
		return err
	}
	m, duplicates, err := p.readIdentities(ctx, file, store.IdentityTempDir(cfg.DataDir))
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	err = p.withStore(ctx, nil, func(ctx context.Context, s *store.Store) error {
		bar := p.progress("storing", "bytes", int(m.Size()), false)
		defer bar.end()
		return s.PutIdentities(ctx, m, func(done int64) { bar.set(int(done)) })
	})
	if err != nil {
		return err
	}
	if duplicates > 0 {
		fmt.Fprintf(p.err, "%s said again what another row says\n", counted(duplicates, "row"))
	}
	_, err = fmt.Fprintf(p.out, "imported %d\n", m.Users())
	return err
}

// readIdentities makes a map of the file; bad rows go to stderr, a line for each.
func (p *program) readIdentities(ctx context.Context, file, dir string) (*idmap.Map, int, error) {
	src := p.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, 0, err
		}
		defer func() { _ = f.Close() }() // only read from
		src = f
	}
	bar := p.progress("reading", "rows", -1, false)
	m, duplicates, err := idmap.FromCSV(ctxReader{ctx, src}, dir, bar.set)
	bar.end()
	var bad *idmap.BadRows
	switch {
	case errors.As(err, &bad):
		p.listBadRows(bad)
		return nil, 0, fmt.Errorf("nothing was imported: %s of %s", counted(bad.Total, "bad row"), printable(file))
	case errors.Is(err, idmap.ErrNoRows):
		return nil, 0, fmt.Errorf("nothing was imported: %s: %w; to be without a map: birdtap identities remove", printable(file), err)
	case err != nil:
		return nil, 0, fmt.Errorf("nothing was imported: %s: %w", printable(file), err)
	}
	return m, duplicates, nil
}

func (p *program) listBadRows(bad *idmap.BadRows) {
	for _, row := range bad.First {
		fmt.Fprintf(p.err, "%v\n", row)
	}
	if more := bad.Total - len(bad.First); more > 0 {
		fmt.Fprintf(p.err, "and %s more\n", thousands(uint64(more)))
	}
}

// ctxReader ends a long read when the operator does.
type ctxReader struct {
	ctx context.Context //nolint:containedctx // a reader has no other way to take one
	src io.Reader
}

func (r ctxReader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.src.Read(b)
}

func (p *program) removeIdentities(ctx context.Context, yes bool) error {
	return p.withStore(ctx, nil, func(ctx context.Context, s *store.Store) error {
		info, err := s.Identities(ctx)
		if err == nil && !yes && !p.confirm(fmt.Sprintf("remove the identity map of %s?", counted(int(info.Users), "user"))) { //nolint:gosec // a count
			return errors.New("nothing was removed")
		}
		// With none in the queue, too: a daemon may go on with a copy of a map that the
		// queue has lost, until it is told.
		switch err := s.RemoveIdentities(ctx); {
		case errors.Is(err, store.ErrNoIdentities):
			_, err = fmt.Fprintln(p.out, "there was no identity map")
			return err
		case err != nil:
			return err
		}
		_, err = fmt.Fprintln(p.out, "removed: receipts keep the user that they came with")
		return err
	})
}
