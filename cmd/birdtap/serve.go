package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func (p *program) serveCommand() *cobra.Command {
	var printConfig bool
	c := p.daemonCommand(roleServe, `Take receipts in and upload them, in one process with its own queue on disk. With
Sendbird's credentials it sends notifications, too.

This is birdtap on a lone machine. Point the CleverTap API endpoint of Sendbird's
dashboard at BIRDTAP_HTTP_ADDR and leave Project ID and Passcode as they are.`)
	c.Short = "Take receipts in and upload them, in one process"
	c.Flags().BoolVar(&printConfig, "print-config", false, "print the effective configuration, secrets redacted, and end")
	run := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		if printConfig {
			return p.printConfig()
		}
		return run(c, args)
	}
	return c
}

func (p *program) ingestCommand() *cobra.Command {
	c := p.daemonCommand(roleIngest, `Take receipts in and put them on the queue of the cluster at BIRDTAP_NATS_URL.

As many of them as you like may run behind a load balancer. They upload nothing:
that is birdtap relay.`)
	c.Short = "Only take receipts in (cluster)"
	return c
}

func (p *program) relayCommand() *cobra.Command {
	c := p.daemonCommand(roleRelay, `Upload the receipts on the queue of the cluster at BIRDTAP_NATS_URL to CleverTap.

One relay uploads, because CleverTap limits the calls of an account and not of a
process; further ones stand by and take over within seconds when it dies.

With --replay it is no daemon: it puts the dead receipts that the filters pick back
on the queue, prints how many, and ends. That works beside birdtap serve as well as
while nothing runs. Receipts that were refused at the door are left out unless
--reason refused asks for them. Killed in the middle, a receipt may go twice, never
not at all; the same command goes on with the rest.

With --replay --delivered it sends again what CleverTap has already taken, as far as
it is kept (BIRDTAP_KEEP_DELIVERED, BIRDTAP_KEEP_MAX_BYTES): for data that got lost at
CleverTap. --since and --until go by the time at which a receipt was accepted. Equal
receipts go once. Dead letters that were purged count as delivered. Given once more,
or after it was killed in the middle, it begins anew: what has gone goes again.`)
	c.Example = `  birdtap relay --replay --dry-run
  birdtap relay --replay --event Offer --rate 500
  birdtap relay --replay --reason refused
  birdtap relay --replay --delivered --since 2026-01-31T15:00:00Z --until 2026-01-31T16:00:00Z`
	c.Short = "Only upload receipts (cluster); relay --replay sends dead ones again"
	var f replayFlags
	f.register(c)
	run := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := f.check(c); err != nil {
			return err
		}
		if f.replay {
			return p.replay(c.Context(), &f)
		}
		return run(c, args)
	}
	return c
}

func (p *program) senderCommand() *cobra.Command {
	c := p.daemonCommand(roleSender, `Send the notifications that CleverTap's webhooks ask for, by the queue of the cluster at
BIRDTAP_NATS_URL.

One sender sends; further ones take webhook calls in, too, and stand by to take over
when it dies. Point the webhooks at BIRDTAP_HTTP_ADDR, path
/clevertap/notifications/realtime for journeys and /clevertap/notifications/batch for
campaigns, with one of BIRDTAP_SENDER_TOKENS as header Api-Token.`)
	c.Short = "Only send notifications (cluster)"
	return c
}

// daemonCommand runs a role until the process is told to stop.
func (p *program) daemonCommand(r role, long string) *cobra.Command {
	return &cobra.Command{
		Use:  string(r),
		Long: long,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return p.daemon(c.Context(), r)
		},
	}
}

// config reads and checks the environment.
func (p *program) config() (*Config, error) {
	cfg, err := LoadConfig(p.environ, isTerminal(p.err))
	if err != nil {
		return nil, err
	}
	return cfg, cfg.Validate()
}

// printConfig shows the configuration even where it is not enough to start, and
// then says what is missing.
func (p *program) printConfig() error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	if err := cfg.Need(roleServe); err != nil {
		fmt.Fprintf(p.err, "birdtap: with this configuration serve does not start: %v\n", err)
	}
	return cfg.Print(p.out)
}

func (p *program) daemon(ctx context.Context, r role) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	if err := cfg.Need(r); err != nil {
		return err
	}
	log := newLogger(p.err, cfg.LogLevel, cfg.LogFormat)
	cfg.LogTo(log.Named("config"))
	for _, warning := range cfg.Warnings(r) {
		log.Warn(warning)
	}
	limitMemory(p.environ)
	a, err := newApp(cfg, r, log)
	if err != nil {
		return err
	}
	return errors.Join(a.Run(ctx), a.Close())
}
