package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/birdtap/birdtap/sendbird"
)

func (p *program) templatesCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "templates [KEY]",
		Short: "List Sendbird's templates and their variables",
		Long: `List the templates of notifications that were made in Sendbird's dashboard, or show
one with its variables: what every user of a notification needs a value for.

It needs BIRDTAP_SENDBIRD_APP_ID and BIRDTAP_SENDBIRD_NOTIFICATIONS_TOKEN. Sendbird
documents what a template looks like, and not where to ask for it: an answer that is
not understood is printed as it is.`,
		Example: `  birdtap templates
  birdtap templates appointment-reminder
  birdtap templates --json`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("%s takes one key at most, got %q", c.CommandPath(), args[1])
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			return p.withSendbird(func(client *sendbird.Client) error {
				if len(args) == 1 {
					return p.showTemplate(c.Context(), client, args[0], asJSON)
				}
				return p.listTemplates(c.Context(), client, asJSON)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "one JSON object per line")
	return c
}

// templateLine is one template as programs read it.
type templateLine struct {
	Key       string              `json:"key"`
	Name      string              `json:"name"`
	Archived  bool                `json:"archived"`
	Version   int                 `json:"version"`
	CreatedAt time.Time           `json:"created_at,omitzero"`
	UpdatedAt time.Time           `json:"updated_at,omitzero"`
	Channels  []sendbird.Channel  `json:"channels"`
	Variables []sendbird.Variable `json:"variables"`
}

func newTemplateLine(t sendbird.Template) templateLine {
	return templateLine{
		Key: t.Key, Name: t.Name, Archived: t.IsArchived, Version: t.Version,
		CreatedAt: t.CreatedAt.Time, UpdatedAt: t.UpdatedAt.Time,
		Channels: t.Channels, Variables: t.Variables,
	}
}

func (l templateLine) state() string {
	if l.Archived {
		return "archived"
	}
	return "active"
}

// maxTemplatePages ends a list that does not end: Sendbird has 100 templates at most.
const maxTemplatePages = 100

func (p *program) listTemplates(ctx context.Context, client *sendbird.Client, asJSON bool) error {
	table := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	n, err := 0, error(nil)
	next := ""
	for range maxTemplatePages {
		var page sendbird.TemplatePage
		if page, err = client.Templates(ctx, next); err != nil {
			break
		}
		if !page.Readable {
			return errors.Join(table.Flush(), p.showAsItIs(page.Raw, asJSON))
		}
		for _, t := range page.Templates {
			if n == 0 && !asJSON {
				fmt.Fprintln(table, "KEY\tNAME\tVERSION\tSTATE\tUPDATED\tCHANNELS\tVARIABLES")
			}
			n++
			if err = addTemplate(p.out, table, newTemplateLine(t), asJSON); err != nil {
				return err
			}
		}
		if page.Next == "" || page.Next == next {
			break
		}
		next = page.Next
	}
	if err = errors.Join(err, table.Flush()); err != nil {
		return sendbirdError(err)
	}
	if !asJSON {
		fmt.Fprintf(p.err, "%s\n", counted(n, "template"))
	}
	return nil
}

func addTemplate(out io.Writer, table *tabwriter.Writer, l templateLine, asJSON bool) error {
	if asJSON {
		return writeJSONLine(out, l)
	}
	_, err := fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%s\t%s\t%s\n", printable(l.Key), cell(l.Name), l.Version, l.state(),
		timeText(l.UpdatedAt), cell(channelsText(l.Channels)), cell(variablesText(l.Variables)))
	return err
}

func channelsText(channels []sendbird.Channel) string {
	var words []string
	for _, c := range channels {
		words = append(words, c.Type)
	}
	return listText(words)
}

// listText is a list for a table, "-" if it is empty.
func listText(words []string) string {
	if len(words) == 0 {
		return "-"
	}
	return strings.Join(words, ", ")
}

// variablesText names the variables, with the type of those that are no strings.
func variablesText(variables []sendbird.Variable) string {
	var words []string
	for _, v := range variables {
		if v.Type != sendbird.KindString {
			words = append(words, fmt.Sprintf("%s (%s)", v.Key, v.Type))
			continue
		}
		words = append(words, v.Key)
	}
	return listText(words)
}

func (p *program) showTemplate(ctx context.Context, client *sendbird.Client, key string, asJSON bool) error {
	t, err := client.Template(ctx, key)
	if limit := (*sendbird.LimitError)(nil); errors.As(err, &limit) {
		return usageError(limit.Error())
	}
	if err != nil {
		return sendbirdError(err)
	}
	line := newTemplateLine(t)
	switch {
	case !t.Understood():
		return p.showAsItIs(t.Raw, asJSON)
	case asJSON:
		return writeJSONLine(p.out, line)
	}
	table := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "key\t%s\nname\t%s\nversion\t%d\nstate\t%s\ncreated\t%s\nupdated\t%s\nchannels\t%s\n",
		printable(line.Key), printable(line.Name), line.Version, line.state(),
		timeText(line.CreatedAt), timeText(line.UpdatedAt), printable(channelsText(line.Channels)))
	if err := table.Flush(); err != nil {
		return err
	}
	if len(line.Variables) > 0 {
		fmt.Fprintln(table, "\nVARIABLE\tTYPE\tNAME")
	}
	for _, v := range line.Variables {
		fmt.Fprintf(table, "%s\t%s\t%s\n", printable(v.Key), printable(string(v.Type)), printable(v.Name))
	}
	return table.Flush()
}

// showAsItIs prints an answer that was not understood, on one line.
func (p *program) showAsItIs(raw jsontext.Value, asJSON bool) error {
	fmt.Fprintln(p.err, "birdtap: Sendbird's answer has a shape that is not documented; this is what it says")
	line := slices.Clone(raw)
	if err := line.Compact(); err != nil {
		return err
	}
	text := string(line)
	if !asJSON {
		text = printable(text) // a terminal would obey what is in it
	}
	_, err := fmt.Fprintln(p.out, text)
	return err
}
