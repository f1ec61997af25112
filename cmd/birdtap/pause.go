package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/birdtap/birdtap/store"
)

func (p *program) pauseCommand() *cobra.Command {
	return p.setPausedCommand(true, &cobra.Command{
		Use:   "pause",
		Short: "Stop uploading; receipts are still taken in",
		Long: `Stop uploading to CleverTap. Receipts are still taken in and wait on the queue, for
which BIRDTAP_QUEUE_MAX_BYTES is the limit. It lasts, over restarts too, until
birdtap resume.`,
	})
}

func (p *program) resumeCommand() *cobra.Command {
	return p.setPausedCommand(false, &cobra.Command{
		Use:   "resume",
		Short: "Go on uploading after a pause",
	})
}

func (p *program) setPausedCommand(paused bool, c *cobra.Command) *cobra.Command {
	word := "uploading goes on\n"
	if paused {
		word = "uploading is paused; birdtap resume lets it go on\n"
	}
	c.Args = noArgs
	c.RunE = func(c *cobra.Command, _ []string) error {
		return p.withStore(c.Context(), nil, func(ctx context.Context, s *store.Store) error {
			if err := s.SetPaused(ctx, paused); err != nil {
				return err
			}
			_, err := p.out.Write([]byte(word))
			return err
		})
	}
	return c
}
