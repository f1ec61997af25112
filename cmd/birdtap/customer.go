package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/birdtap/birdtap/sendbird"
)

// deskNeeds ends the help of every command that calls Desk.
const deskNeeds = `

It needs BIRDTAP_SENDBIRD_APP_ID and BIRDTAP_SENDBIRD_DESK_TOKEN. What Desk answers goes to
standard output as JSON.`

func (p *program) customerCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "customer",
		Short: "Create or show a customer of Sendbird Desk, or set its custom fields",
		Long: `Create or show a customer of Sendbird Desk, or set its custom fields. A customer is a user of
Chat that Desk knows; it has an id of its own, a number.`,
		Example: `  birdtap customer create jay | jq .id
  birdtap customer get --sendbird-id jay`,
	})
	c.AddCommand(p.customerCreateCommand(), p.customerGetCommand(), p.customerFieldsCommand())
	return c
}

func (p *program) customerCreateCommand() *cobra.Command {
	var a action
	c := &cobra.Command{
		Use:     "create SENDBIRD_ID",
		Short:   "Make a customer of Desk out of a user of Chat",
		Long:    `Make a customer of Desk out of a user that exists in Chat (birdtap user create).` + deskNeeds,
		Example: `  birdtap customer create jay | jq .id`,
		Args:    oneArg("SENDBIRD_ID, the id of a user of Chat"),
		RunE: func(c *cobra.Command, args []string) error {
			return p.call(c.Context(), deskAPI, &a, func(ctx context.Context, client *sendbird.Client) (jsontext.Value, error) {
				customer, err := client.CreateCustomer(ctx, args[0])
				return customer.Raw, unknownOutcome(err, "birdtap customer get --sendbird-id tells")
			})
		},
	}
	a.register(c, false)
	return c
}

func (p *program) customerGetCommand() *cobra.Command {
	var a action
	var sendbirdID string
	c := &cobra.Command{
		Use:   "get ID|--sendbird-id ID",
		Short: "Show a customer, by its id in Desk or in Chat",
		Long:  `Show a customer, by its id in Desk, a number, or by the id of its user in Chat.` + deskNeeds,
		Example: `  birdtap customer get 1001
  birdtap customer get --sendbird-id jay | jq .customFields`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("%s takes one ID, %q is one too many", c.CommandPath(), args[1])
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			bySendbirdID := c.Flags().Changed("sendbird-id")
			switch {
			case len(args) == 0 && !bySendbirdID:
				return usageError("customer get needs an ID, or --sendbird-id ID")
			case len(args) == 1 && bySendbirdID:
				return usageError(fmt.Sprintf("customer get takes an ID or --sendbird-id, not both: got %q", args[0]))
			}
			var id int64
			if !bySendbirdID {
				var err error
				if id, err = deskID(args[0]); err != nil {
					return err
				}
			}
			return p.call(c.Context(), deskAPI, &a, func(ctx context.Context, client *sendbird.Client) (jsontext.Value, error) {
				get := func() (sendbird.Customer, error) { return client.Customer(ctx, id) }
				if bySendbirdID {
					get = func() (sendbird.Customer, error) { return client.CustomerBySendbirdID(ctx, sendbirdID) }
				}
				customer, err := get()
				return customer.Raw, err
			})
		},
	}
	a.register(c, false)
	c.Flags().StringVar(&sendbirdID, "sendbird-id", "", "the id of the customer's user in Chat")
	return c
}

// deskID reads an id of Desk's.
func deskID(text string) (int64, error) {
	id, err := strconv.ParseInt(text, 10, 64)
	if err != nil || id < 1 {
		return 0, usageError(fmt.Sprintf("ID %q: must be the customer's number in Desk; by its user in Chat: birdtap customer get --sendbird-id", shorten(text)))
	}
	return id, nil
}

func (p *program) customerFieldsCommand() *cobra.Command {
	var a action
	var set pairs
	c := &cobra.Command{
		Use:   "fields ID",
		Short: "Set custom fields of a customer",
		Long: `Set custom fields of a customer, by its id in Desk; others stay as they are. --json takes the
fields, {"plan":"gold"}, or the body of Desk's call, {"customFields":{"plan":"gold"}}; flags
count more.

Up to 20 fields, keys of at most 20 characters and no comma, values of at most 190. Desk
ignores fields that are not registered in its dashboard, Settings → Customer fields; birdtap
names them on standard error where the answer shows it.` + deskNeeds,
		Example: `  birdtap customer fields 1001 --set plan=gold --set city=Oslo
  echo '{"plan":"gold"}' | birdtap customer fields 1001 --json -`,
		Args: oneArg("ID, the customer's number in Desk"),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := deskID(args[0])
			if err != nil {
				return err
			}
			var given pairs
			if a.reads(c) {
				if given, err = p.readPairs(a.json, "customFields", &struct{}{}); err != nil {
					return err
				}
			}
			fields := set.over(given)
			return p.call(c.Context(), deskAPI, &a, func(ctx context.Context, client *sendbird.Client) (jsontext.Value, error) {
				customer, err := client.UpdateCustomFields(ctx, id, fields)
				if ignored := customer.Ignored(fields); err == nil && len(ignored) > 0 {
					fmt.Fprintf(p.err, "birdtap: Desk has ignored %s: register it in its dashboard, Settings → Customer fields\n",
						printable(strings.Join(ignored, ", ")))
				}
				return customer.Raw, unknownOutcome(err, againIsSafe)
			})
		},
	}
	a.register(c, true)
	c.Flags().Var(&set, "set", "a field to set; may be given up to 20 times")
	return c
}
