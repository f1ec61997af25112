package main

import (
	"context"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/birdtap/birdtap/sendbird"
)

func (p *program) ticketCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:     "ticket",
		Short:   "Create a ticket of Sendbird Desk",
		Long:    `Create a ticket of Sendbird Desk.`,
		Example: `  birdtap ticket create --customer-id 1001 --channel-name "Broken lamp"`,
	})
	c.AddCommand(p.ticketCreateCommand())
	return c
}

// ticketInput is the body of Desk's call, where custom fields may be an object and
// related channels a list, too.
type ticketInput struct {
	ChannelName        string                  `json:"channelName"`
	CustomerID         int64                   `json:"customerId"`
	GroupKey           string                  `json:"groupKey"`
	Priority           sendbird.TicketPriority `json:"priority"`
	CustomFields       pairs                   `json:"customFields"`
	RelatedChannelURLs texts                   `json:"relatedChannelUrls"`
}

func (p *program) ticketCreateCommand() *cobra.Command {
	var a action
	var flags ticketInput
	c := &cobra.Command{
		Use:   "create",
		Short: "Create a ticket for a customer",
		Long: `Create a ticket for a customer, by its id in Desk (which birdtap customer get --sendbird-id
tells). A channel name is needed. --json takes the body of Desk's call: channelName,
customerId, groupKey, priority, customFields, relatedChannelUrls; flags count more.

Desk's agents do not see the ticket before the customer writes in its channel. Where the
answer gets lost birdtap does not try again, for there would be two tickets: look in Desk.` + deskNeeds,
		Example: `  birdtap ticket create --customer-id 1001 --channel-name "Broken lamp" --priority HIGH | jq .channelUrl
  echo '{"customerId":1001,"channelName":"Broken lamp","customFields":{"product":"lamp"}}' |
    birdtap ticket create --json -`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var in ticketInput
			if a.reads(c) {
				if err := p.readInput(a.json, &in); err != nil {
					return err
				}
			}
			override(c, "channel-name", &in.ChannelName, flags.ChannelName)
			override(c, "customer-id", &in.CustomerID, flags.CustomerID)
			override(c, "group-key", &in.GroupKey, flags.GroupKey)
			override(c, "priority", &in.Priority, flags.Priority)
			override(c, "related-channel", &in.RelatedChannelURLs, flags.RelatedChannelURLs)
			ticket := sendbird.NewTicket{
				ChannelName: in.ChannelName, CustomerID: in.CustomerID, GroupKey: in.GroupKey, Priority: in.Priority,
				CustomFields: flags.CustomFields.over(in.CustomFields), RelatedChannelURLs: in.RelatedChannelURLs,
			}
			return p.call(c.Context(), deskAPI, &a, func(ctx context.Context, client *sendbird.Client) (jsontext.Value, error) {
				created, err := client.CreateTicket(ctx, ticket)
				return created.Raw, unknownOutcome(err, "look in Desk before you create it again")
			})
		},
	}
	a.register(c, true)
	c.Flags().StringVar(&flags.ChannelName, "channel-name", "", "the ticket's title, 1 to 100 characters")
	c.Flags().Int64Var(&flags.CustomerID, "customer-id", 0, "the customer's number in Desk")
	c.Flags().StringVar(&flags.GroupKey, "group-key", "", "groups tickets: small letters, digits, _ and -")
	c.Flags().StringVar((*string)(&flags.Priority), "priority", "", "LOW, MEDIUM (what none stands for), HIGH or URGENT")
	c.Flags().Var(&flags.CustomFields, "field", "a custom field; may be given up to 20 times")
	c.Flags().Var(&flags.RelatedChannelURLs, "related-channel", "URL of a channel of Chat that belongs to the matter; may be given up to three times")
	_ = c.RegisterFlagCompletionFunc("priority", cobra.FixedCompletions(
		[]string{"LOW", "MEDIUM", "HIGH", "URGENT"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}
