// Birdtap carries Sendbird's SENT and READ receipts into CleverTap without losing
// one. This package is the program: it reads the environment, wires the rooms
// together and runs one command. No other package reads the environment.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// version is set by the build: -ldflags "-X main.version=1.2.3".
var version = "dev"

// Exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2 // wrong usage or configuration
)

func main() {
	ctx := untilSignal(context.Background())
	p := &program{in: os.Stdin, out: os.Stdout, err: os.Stderr, environ: os.Environ()}
	os.Exit(p.run(ctx, os.Args[1:]))
}

// untilSignal ends the context at the first SIGTERM or SIGINT, which lets a daemon
// stop in good order. A second one ends the process at once: nothing acknowledged
// is lost by that, some receipts may go twice.
func untilSignal(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	go func() {
		<-signals
		cancel()
		<-signals
		os.Exit(exitFailed)
	}()
	return ctx
}

// program is birdtap as seen by its commands. Results go to out, words to err.
type program struct {
	in       io.Reader
	out, err io.Writer
	environ  []string // NAME=value, as os.Environ gives it
}

// run runs one command line and returns the exit code. An error is said here, once
// and on one line.
func (p *program) run(ctx context.Context, args []string) int {
	root := p.rootCommand() //nolint:contextcheck // cobra hands the context to the commands, from ExecuteContext
	started := markStart(root)
	root.SetArgs(append([]string{}, args...)) // of a nil slice cobra would make os.Args
	root.SetIn(p.in)
	root.SetErr(p.err)

	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	fmt.Fprintf(p.err, "birdtap: %v\n", err)
	if !*started || isUsage(err) {
		return exitUsage
	}
	return exitFailed
}

// markStart wraps every command so that the result tells whether one has begun. An
// error before that comes from cobra itself: an unknown command or flag, a value
// that does not parse, an argument too many. All of them are wrong usage.
func markStart(root *cobra.Command) *bool {
	started := new(bool)
	var wrap func(*cobra.Command)
	wrap = func(c *cobra.Command) {
		if do := c.RunE; do != nil {
			c.RunE = func(c *cobra.Command, args []string) error {
				*started = true
				return do(c, args)
			}
		}
		for _, sub := range c.Commands() {
			wrap(sub)
		}
	}
	wrap(root)
	return started
}

// usageError is wrong usage that a command finds out itself.
type usageError string

func (e usageError) Error() string { return string(e) }

func isUsage(err error) bool {
	var usage usageError
	var config *configError
	return errors.As(err, &usage) || errors.As(err, &config)
}

func (p *program) rootCommand() *cobra.Command {
	root := group(&cobra.Command{
		Use:   "birdtap",
		Short: "Carry Sendbird's SENT and READ receipts into CleverTap without losing one",
		Long: `birdtap carries Sendbird's SENT and READ receipts into CleverTap without losing one.

It takes the receipts in as Sendbird sends them, puts them on disk before it says
yes, and uploads them to CleverTap for as long as it takes. What CleverTap refuses
is kept with the reason, to be looked at (birdtap dead) and sent again (birdtap
relay --replay). The other way it sends the notifications that they belong to:
CleverTap's webhooks, or a file (birdtap send), to Sendbird.

It is configured by environment variables that begin with BIRDTAP_. The two that
it cannot do without are BIRDTAP_CLEVERTAP_ACCOUNT_ID and
BIRDTAP_CLEVERTAP_PASSCODE; birdtap serve --print-config shows them all.`,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
	})
	root.SetVersionTemplate("birdtap {{.Version}}\n")
	root.AddCommand(
		p.serveCommand(), p.ingestCommand(), p.relayCommand(), p.senderCommand(),
		p.statusCommand(), p.pauseCommand(), p.resumeCommand(), p.deadCommand(), p.identitiesCommand(), p.initCommand(),
		p.sendCommand(), p.filesCommand(), p.templatesCommand(),
		p.userCommand(), p.metadataCommand(), p.customerCommand(), p.ticketCommand(),
		p.demoCommand(), p.versionCommand(),
	)
	root.SetOut(p.out) // before cobra's own commands are made: they keep it
	tidyUsage(root)
	return root
}

// group makes c a command that only holds others: alone it shows its help, and an
// unknown name is an error that offers the nearest known one.
func group(c *cobra.Command) *cobra.Command {
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		hint := "see " + c.CommandPath() + " --help"
		c.SuggestionsMinimumDistance = 2
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			begun := slices.IndexFunc(near, func(name string) bool { return strings.HasPrefix(name, args[0]) })
			hint = fmt.Sprintf("did you mean %q?", near[max(0, begun)])
		}
		return fmt.Errorf("unknown command %q for %q: %s", args[0], c.CommandPath(), hint)
	}
	c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	return c
}

// noArgs refuses arguments beside flags.
func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%s takes no argument, got %q", c.CommandPath(), args[0])
	}
	return nil
}

func (p *program) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(p.out, "birdtap %s\n", version)
			return err
		},
	}
}

// isTerminal tells whether a person sits at the other end of f.
func isTerminal(f any) bool {
	file, ok := f.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}
