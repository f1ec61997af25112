package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/birdtap/birdtap/sendbird"
)

func (p *program) filesCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "files",
		Short: "List the files of target users at Sendbird",
		Long: `List the files of target users that were uploaded to Sendbird, as Sendbird lists them.
It keeps a file for 30 days.

It needs BIRDTAP_SENDBIRD_APP_ID and BIRDTAP_SENDBIRD_NOTIFICATIONS_TOKEN.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return p.withSendbird(func(client *sendbird.Client) error {
				return p.listFiles(c.Context(), client, asJSON)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "one JSON object per line")
	return c
}

// fileLine is one file as programs read it.
type fileLine struct {
	FileKey    string    `json:"file_key"`
	FileSize   int64     `json:"file_size"` // bytes
	UploadedAt time.Time `json:"uploaded_at,omitzero"`
	ExpiresAt  time.Time `json:"expires_at,omitzero"`
}

func (p *program) listFiles(ctx context.Context, client *sendbird.Client, asJSON bool) error {
	table := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	n, err := 0, error(nil)
	for f, listing := range client.Files(ctx) {
		if err = listing; err != nil {
			break
		}
		line := fileLine{FileKey: f.Key, FileSize: f.Size, UploadedAt: f.UploadedAt.Time, ExpiresAt: f.ExpiresAt.Time}
		if asJSON {
			err = writeJSONLine(p.out, line)
		} else {
			if n == 0 {
				fmt.Fprintln(table, "FILE\tBYTES\tUPLOADED\tEXPIRES")
			}
			_, err = fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", printable(f.Key), thousands(uint64(max(0, f.Size))), timeText(line.UploadedAt), timeText(line.ExpiresAt))
		}
		if err != nil {
			break
		}
		n++
	}
	if err = errors.Join(err, table.Flush()); err != nil {
		return sendbirdError(err)
	}
	if !asJSON {
		fmt.Fprintf(p.err, "%s\n", counted(n, "file"))
	}
	return nil
}

// timeText is a time for a table, "-" if there is none.
func timeText(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

// withSendbird lets a command call Sendbird's notification API.
func (p *program) withSendbird(do func(*sendbird.Client) error) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	if err := cfg.needSendbird(); err != nil {
		return err
	}
	if warning := plainWarning("SENDBIRD_NOTIFICATIONS_URL", cfg.SendbirdNotificationsURL); warning != "" {
		fmt.Fprintf(p.err, "birdtap: %s\n", warning)
	}
	client, err := sendbird.New(cfg.sendbirdConfig())
	if err != nil {
		return err
	}
	defer client.Close()
	return do(client)
}

// needSendbird says what a command that calls Sendbird's notification API cannot do
// without and has not got.
func (c *Config) needSendbird() error {
	return notificationsAPI.need(c.SendbirdNotificationsURL, c.notifications)
}

func (c *Config) sendbirdConfig() sendbird.Config {
	return sendbird.Config{
		AppID:              c.SendbirdAppID,
		NotificationsURL:   string(c.SendbirdNotificationsURL),
		NotificationsToken: c.notifications.Get,
		UploadHosts:        c.SendbirdUploadHosts,
	}
}

// plainWarning is what to say about an address that a token is sent to as plain text.
func plainWarning(name string, at Address) string {
	u, err := url.Parse(string(at))
	if err == nil && u.Scheme == "http" && !isLoopback(net.JoinHostPort(u.Hostname(), "80")) {
		return envPrefix + name + " is plain http: the token crosses the network unprotected"
	}
	return ""
}

// sendbirdError adds to Sendbird's refusal which variable may be at fault.
func sendbirdError(err error) error { return notificationsAPI.explain(err) }
