package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/birdtap/birdtap/store"
)

func (p *program) initCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "init",
		Short: "Create or update birdtap's streams on a NATS cluster",
		Long: `Create what birdtap needs on the NATS cluster at BIRDTAP_NATS_URL, or update it, and
print what was done. Run it as a user that may create and update streams, with the
same BIRDTAP_ variables as the daemons (sizes, BIRDTAP_REPLICAS, BIRDTAP_STREAM_PREFIX):
then the daemons' own user need not have that right. It may be run again at any time,
beside running daemons, too.

Sizes, replicas and settings that would lose receipts are changed. A stream that holds
other subjects or keeps its messages in another way is refused, and then nothing is
changed at all.

The least rights of each role, of an operator and of init itself stand in
deploy/nats-server.conf, to be copied. One user for all daemons and commands needs, with
BIRDTAP as prefix, to publish:

  BIRDTAP.>
  for X = BIRDTAP_RECEIPTS, BIRDTAP_DEAD and BIRDTAP_STATE, and for notifications
  BIRDTAP_SENDS, BIRDTAP_HELD and BIRDTAP_UNSENT:
    $JS.API.STREAM.INFO.X            $JS.API.STREAM.MSG.GET.X
    $JS.API.CONSUMER.CREATE.X.>      $JS.API.CONSUMER.DELETE.X.*
    $JS.API.CONSUMER.MSG.NEXT.X.*
  $JS.API.STREAM.PURGE.BIRDTAP_RECEIPTS
  $JS.API.STREAM.MSG.DELETE.BIRDTAP_DEAD
  for notifications:
    $JS.API.STREAM.PURGE.BIRDTAP_SENDS
    $JS.API.STREAM.PURGE.BIRDTAP_HELD
    _INBOX.BIRDTAP.>                 (or allow_responses)
  for an identity map, with X = OBJ_BIRDTAP_IDENTITIES:
    $JS.API.STREAM.INFO.X            $JS.API.STREAM.MSG.GET.X
  with BIRDTAP_REMEMBER_SENT, and X = KV_BIRDTAP_SENT:
    $JS.API.STREAM.INFO.X            $JS.API.STREAM.MSG.GET.X
    $KV.BIRDTAP_SENT.>               (the sender)

and to subscribe to:

  _INBOX.BIRDTAP.>
  BIRDTAP.news.*

Who imports an identity map also publishes $O.BIRDTAP_IDENTITIES.> and
$JS.API.STREAM.PURGE.OBJ_BIRDTAP_IDENTITIES.

The embedded queue needs none of this: a daemon makes it.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return p.init(c.Context(), asJSON) },
	}
	c.Flags().BoolVar(&asJSON, "json", false, "one JSON object per stream")
	return c
}

func (p *program) init(ctx context.Context, asJSON bool) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	if cfg.embedded() {
		return missing("NATS_URL", "init prepares a NATS cluster; the embedded queue needs no init, a daemon makes it by itself")
	}
	o := cfg.storeOptions()
	o.Log = newLogger(p.err, zap.ErrorLevel.String(), "console")
	all, err := store.Init(ctx, o)
	if telling := p.tellMade(all, asJSON); err == nil {
		err = telling
	}
	return err
}

// madeLine is what init did about one stream, as programs read it.
type madeLine struct {
	Stream  string       `json:"stream"`
	Action  store.Action `json:"action"`
	Changes []changeLine `json:"changes,omitempty"`
}

type changeLine struct {
	Setting string `json:"setting"`
	From    string `json:"from"`
	To      string `json:"to"`
}

func (p *program) tellMade(all []store.Made, asJSON bool) error {
	table := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	for _, m := range all {
		line := madeLine{Stream: m.Stream, Action: m.Action}
		var words []string
		for _, c := range m.Changes {
			line.Changes = append(line.Changes, changeLine(c))
			words = append(words, fmt.Sprintf("%s %s → %s", c.Setting, c.From, c.To))
		}
		var err error
		if asJSON {
			err = writeJSONLine(p.out, line)
		} else {
			_, err = fmt.Fprintln(table, strings.TrimRight(fmt.Sprintf("%s\t%s\t%s", m.Stream, m.Action, strings.Join(words, ", ")), "\t"))
		}
		if err != nil {
			return err
		}
	}
	return table.Flush()
}
