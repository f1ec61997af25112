package main

import (
	"context"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/birdtap/birdtap/sendbird"
)

// chatNeeds ends the help of every command that calls Chat.
const chatNeeds = `

It needs BIRDTAP_SENDBIRD_APP_ID and BIRDTAP_SENDBIRD_API_TOKEN. What Sendbird answers goes to
standard output as JSON.`

// againIsSafe is advice about an action of unknown outcome that may be repeated.
const againIsSafe = "the same command again does no harm"

func (p *program) userCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "user",
		Short: "Create, show, change, delete, activate or deactivate a user of Sendbird Chat",
		Long: `Create, show, change, delete, activate or deactivate a user of Sendbird Chat. What is more
about a user, its metadata, is changed with birdtap metadata.`,
		Example: `  birdtap user create jay --nickname Jay --metadata plan=gold
  birdtap user get jay | jq .is_active`,
	})
	c.AddCommand(
		p.userCreateCommand(), p.userGetCommand(), p.userUpdateCommand(), p.userDeleteCommand(),
		p.userActivateCommand(), p.userDeactivateCommand(),
	)
	return c
}

func (p *program) userCreateCommand() *cobra.Command {
	var a action
	var flags sendbird.NewUser
	var keys texts
	var metadata pairs
	c := &cobra.Command{
		Use:   "create ID",
		Short: "Create a user",
		Long: `Create a user. A nickname is needed. --json takes the body of Sendbird's call: user_id,
nickname, profile_url, issue_access_token, discovery_keys, metadata; ID and flags count more.

A user that exists is an error. Where the answer to birdtap's own call gets lost, it tries
again, and takes the user that it then finds, with the same nickname, for the one it created.` + chatNeeds,
		Example: `  birdtap user create jay --nickname Jay --profile-url https://example.com/jay.png
  birdtap user create jay --nickname Jay --metadata plan=gold --metadata city=Oslo
  echo '{"nickname":"Jay","metadata":{"plan":"gold"}}' | birdtap user create jay --json -`,
		Args: oneArg("ID, the id of the user"),
		RunE: func(c *cobra.Command, args []string) error {
			var u sendbird.NewUser
			if a.reads(c) {
				if err := p.readInput(a.json, &u); err != nil {
					return err
				}
			}
			u.ID = args[0]
			override(c, "nickname", &u.Nickname, flags.Nickname)
			override(c, "profile-url", &u.ProfileURL, flags.ProfileURL)
			override(c, "issue-access-token", &u.IssueAccessToken, flags.IssueAccessToken)
			override(c, "discovery-key", &u.DiscoveryKeys, []string(keys))
			u.Metadata = metadata.over(u.Metadata)
			return p.call(c.Context(), chatAPI, &a, func(ctx context.Context, client *sendbird.Client) (jsontext.Value, error) {
				user, err := client.CreateUser(ctx, u)
				return user.Raw, unknownOutcome(err, "birdtap user get tells")
			})
		},
	}
	a.register(c, true)
	c.Flags().StringVar(&flags.Nickname, "nickname", "", "the name to show, 1 to 80 characters")
	c.Flags().StringVar(&flags.ProfileURL, "profile-url", "", "address of a picture, at most 2048 characters")
	c.Flags().BoolVar(&flags.IssueAccessToken, "issue-access-token", false, "issue a token that the user logs in with; it stands in the answer")
	c.Flags().Var(&keys, "discovery-key", "a key that friends find the user by; may be given again")
	c.Flags().Var(&metadata, "metadata", "a pair of metadata; may be given up to five times")
	return c
}

func (p *program) userGetCommand() *cobra.Command {
	var a action
	c := &cobra.Command{
		Use:     "get ID",
		Short:   "Show a user",
		Long:    `Show a user.` + chatNeeds,
		Example: `  birdtap user get jay | jq -r .nickname`,
		Args:    oneArg("ID, the id of the user"),
		RunE: func(c *cobra.Command, args []string) error {
			return p.call(c.Context(), chatAPI, &a, func(ctx context.Context, client *sendbird.Client) (jsontext.Value, error) {
				user, err := client.User(ctx, args[0])
				return user.Raw, err
			})
		},
	}
	a.register(c, false)
	return c
}

func (p *program) userUpdateCommand() *cobra.Command {
	var a action
	var nickname, profileURL string
	var issueAccessToken bool
	var keys, languages texts
	c := &cobra.Command{
		Use:   "update ID",
		Short: "Change a user",
		Long: `Change a user; what is not named stays as it is. --json takes the body of Sendbird's call:
nickname, profile_url, issue_access_token, is_active, last_seen_at (milliseconds),
discovery_keys, preferred_languages, leave_all_when_deactivated; flags count more.` + chatNeeds,
		Example: `  birdtap user update jay --nickname "Jay B."
  birdtap user update jay --preferred-language en --preferred-language no
  echo '{"profile_url":""}' | birdtap user update jay --json -`,
		Args: oneArg("ID, the id of the user"),
		RunE: func(c *cobra.Command, args []string) error {
			var u sendbird.UserUpdate
			if a.reads(c) {
				if err := p.readInput(a.json, &u); err != nil {
					return err
				}
			}
			override(c, "nickname", &u.Nickname, &nickname)
			override(c, "profile-url", &u.ProfileURL, &profileURL)
			override(c, "issue-access-token", &u.IssueAccessToken, &issueAccessToken)
			override(c, "discovery-key", &u.DiscoveryKeys, []string(keys))
			override(c, "preferred-language", &u.PreferredLanguages, []string(languages))
			return p.updateUser(c.Context(), &a, args[0], u)
		},
	}
	a.register(c, true)
	c.Flags().StringVar(&nickname, "nickname", "", "the name to show, at most 80 characters")
	c.Flags().StringVar(&profileURL, "profile-url", "", "address of a picture, at most 2048 characters")
	c.Flags().BoolVar(&issueAccessToken, "issue-access-token", false, "issue a new token that the user logs in with; the old one ends")
	c.Flags().Var(&keys, "discovery-key", "a key that friends find the user by; may be given again, replaces those there are")
	c.Flags().Var(&languages, "preferred-language", "a language to translate into; may be given up to four times, replaces those there are")
	return c
}

func (p *program) updateUser(ctx context.Context, a *action, id string, u sendbird.UserUpdate) error {
	return p.call(ctx, chatAPI, a, func(ctx context.Context, client *sendbird.Client) (jsontext.Value, error) {
		user, err := client.UpdateUser(ctx, id, u)
		return user.Raw, unknownOutcome(err, againIsSafe)
	})
}

func (p *program) userDeleteCommand() *cobra.Command {
	var a action
	c := &cobra.Command{
		Use:   "delete ID",
		Short: "Delete a user for good",
		Long: `Delete a user with its metadata for good, without asking; messages stay. To keep a user from
logging in, and be able to take that back, use birdtap user deactivate.` + chatNeeds,
		Example: `  birdtap user delete jay`,
		Args:    oneArg("ID, the id of the user"),
		RunE: func(c *cobra.Command, args []string) error {
			return p.call(c.Context(), chatAPI, &a, func(ctx context.Context, client *sendbird.Client) (jsontext.Value, error) {
				return nil, unknownOutcome(client.DeleteUser(ctx, args[0]), "birdtap user get tells")
			})
		},
	}
	a.register(c, false)
	return c
}

func (p *program) userActivateCommand() *cobra.Command {
	var a action
	c := &cobra.Command{
		Use:     "activate ID",
		Short:   "Let a user log in again",
		Long:    `Let a user log in again that was deactivated. Channels it has left it does not come back to.` + chatNeeds,
		Example: `  birdtap user activate jay`,
		Args:    oneArg("ID, the id of the user"),
		RunE: func(c *cobra.Command, args []string) error {
			return p.updateUser(c.Context(), &a, args[0], sendbird.UserUpdate{IsActive: new(true)})
		},
	}
	a.register(c, false)
	return c
}

func (p *program) userDeactivateCommand() *cobra.Command {
	var a action
	var leaveAll bool
	c := &cobra.Command{
		Use:   "deactivate ID",
		Short: "Keep a user from logging in",
		Long: `Keep a user from logging in, until birdtap user activate. With --leave-all-channels it also
leaves all its group channels, which cannot be taken back; without, it stays in them. (Left to
itself Sendbird would let it leave.)` + chatNeeds,
		Example: `  birdtap user deactivate jay
  birdtap user deactivate jay --leave-all-channels`,
		Args: oneArg("ID, the id of the user"),
		RunE: func(c *cobra.Command, args []string) error {
			return p.updateUser(c.Context(), &a, args[0], sendbird.UserUpdate{IsActive: new(false), LeaveAll: &leaveAll})
		},
	}
	a.register(c, false)
	c.Flags().BoolVar(&leaveAll, "leave-all-channels", false, "the user leaves all its group channels")
	return c
}
