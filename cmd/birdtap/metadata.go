package main

import (
	"context"
	"fmt"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/birdtap/birdtap/sendbird"
)

func (p *program) metadataCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "metadata",
		Short: "Change or delete the metadata of a user of Sendbird Chat",
		Long: `Change or delete the metadata of a user of Sendbird Chat: up to five pairs, with keys of at
most 128 characters and no comma, and values of at most 190. birdtap user get shows them.`,
		Example: `  birdtap metadata update jay --set plan=gold
  birdtap metadata delete jay plan`,
	})
	c.AddCommand(p.metadataUpdateCommand(), p.metadataDeleteCommand())
	return c
}

func (p *program) metadataUpdateCommand() *cobra.Command {
	var a action
	var set pairs
	var upsert bool
	c := &cobra.Command{
		Use:   "update ID",
		Short: "Change or add pairs of metadata",
		Long: `Change or add pairs of metadata; others stay as they are. --json takes the pairs,
{"plan":"gold"}, or the body of Sendbird's call, {"metadata":{"plan":"gold"},"upsert":true};
flags count more.

A user has five pairs at most, those included that are not named here.` + chatNeeds,
		Example: `  birdtap metadata update jay --set plan=gold --set city=Oslo
  birdtap metadata update jay --set plan=gold --upsert=false   # only if there is a plan
  echo '{"plan":"gold"}' | birdtap metadata update jay --json -`,
		Args: oneArg("ID, the id of the user"),
		RunE: func(c *cobra.Command, args []string) error {
			var given pairs
			var rest struct {
				Upsert *bool `json:"upsert"`
			}
			if a.reads(c) {
				var err error
				if given, err = p.readPairs(a.json, "metadata", &rest); err != nil {
					return err
				}
			}
			if rest.Upsert != nil && !c.Flags().Changed("upsert") {
				upsert = *rest.Upsert
			}
			return p.call(c.Context(), chatAPI, &a, func(ctx context.Context, client *sendbird.Client) (jsontext.Value, error) {
				metadata, err := client.UpdateMetadata(ctx, args[0], set.over(given), upsert)
				return metadata.Raw, unknownOutcome(err, againIsSafe)
			})
		},
	}
	a.register(c, true)
	c.Flags().Var(&set, "set", "a pair to change or add; may be given up to five times")
	c.Flags().BoolVar(&upsert, "upsert", true, "add pairs whose keys are not there yet")
	return c
}

func (p *program) metadataDeleteCommand() *cobra.Command {
	var a action
	var all bool
	c := &cobra.Command{
		Use:   "delete ID KEY|--all",
		Short: "Delete one pair of metadata, or all",
		Long:  `Delete one pair of metadata, or all of them, without asking.` + chatNeeds,
		Example: `  birdtap metadata delete jay plan
  birdtap metadata delete jay --all`,
		Args: func(c *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return fmt.Errorf("%s needs ID, the id of the user", c.CommandPath())
			case len(args) > 2:
				return fmt.Errorf("%s takes one key, %q is one too many", c.CommandPath(), args[2])
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case len(args) == 1 && !all:
				return usageError("metadata delete needs a KEY, or --all")
			case len(args) == 2 && all:
				return usageError(fmt.Sprintf("metadata delete takes a KEY or --all, not both: got %q", args[1]))
			}
			return p.call(c.Context(), chatAPI, &a, func(ctx context.Context, client *sendbird.Client) (jsontext.Value, error) {
				var err error
				if all {
					err = client.DeleteAllMetadata(ctx, args[0])
				} else {
					err = client.DeleteMetadata(ctx, args[0], args[1])
				}
				return nil, unknownOutcome(err, "birdtap user get tells")
			})
		},
	}
	a.register(c, false)
	c.Flags().BoolVar(&all, "all", false, "delete all pairs")
	return c
}
