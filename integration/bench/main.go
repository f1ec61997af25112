// Bench prints what birdtap reaches on this machine, in one run:
//
//	go run ./integration/bench            # or make bench
//	go run ./integration/bench -queued 10000000 -only 'queued|kill'
//	go run ./integration/bench -growth     # or make bench-growth
//	go run ./integration/bench -cluster    # or make bench-cluster
//
// Every figure comes from the real binary, built by the bench and run as a process
// of its own, as users run it. Around it stand further processes, all on loopback:
//
//	load generator ──▶ birdtap ──▶ sink, a CleverTap that counts and does not parse
//	      │
//	      └──────────▶ bare, a net/http handler that reads the body and answers 200
//
// A rate alone says more about the machine than about birdtap. So where there is a
// ceiling the figure is a ratio to it: the bare handler under the same load from the
// same generator, round about, with the median of the rounds.
//
// The exit code tells whether the bench could be run, not whether bars were met.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	queued  int            // receipts in the large backlog
	seconds float64        // of each measurement
	rounds  int            // of what is compared
	only    *regexp.Regexp // rows to measure; nil: all
	json    string         // file for the rows
	dir     string         // where the queue is
	timeout time.Duration  // of everything
	growth  bool           // how cost grows, in place of the bars
	cluster bool           // what a cluster carries, in place of the bars
}

func main() {
	if len(os.Args) > 1 {
		if play, ok := roles[os.Args[1]]; ok {
			exit(play())
		}
	}
	o, err := parseFlags(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(0)
	}
	if err != nil {
		os.Exit(2) // the flag package has said why
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err = bench(ctx, o, os.Stdout)
	stop()
	exit(err)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// roles are what this program plays when it starts itself: processes of their own, so
// that none of them shares a heap or a scheduler with another.
var roles = map[string]func() error{
	roleGenerate: generatorProcess,
	roleBare:     bareProcess,
	roleSink:     sinkProcess,
}

const (
	roleGenerate = "play-generator"
	roleBare     = "play-bare"
	roleSink     = "play-sink"
)

func parseFlags(args []string) (options, error) {
	var o options
	var only string
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.IntVar(&o.queued, "queued", 1_000_000, "receipts in the large backlog; the full table has 10000000")
	f.Float64Var(&o.seconds, "seconds", 5, "of each measurement")
	f.IntVar(&o.rounds, "rounds", 3, "of what is compared; the median counts")
	f.StringVar(&only, "only", "", "measure only the rows that match this `regexp`")
	f.StringVar(&o.json, "json", "", "write the rows to this `file`, too")
	f.StringVar(&o.dir, "dir", "", "put the queue into a temporary directory `here`, not under the system's")
	f.BoolVar(&o.growth, "growth", false, "measure how cost grows with connections, receipts a body and backlog, in place of the bars")
	f.BoolVar(&o.cluster, "cluster", false, "measure one ingest and one relay on nats-servers of their own, one and three, in place of the bars")
	f.DurationVar(&o.timeout, "timeout", 20*time.Minute, "of everything")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	var err error
	if only != "" {
		o.only, err = regexp.Compile("(?i)" + only)
	}
	switch {
	case err != nil:
	case f.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", f.Arg(0))
	case o.queued < 1 || o.seconds <= 0 || o.rounds < 1:
		err = errors.New("-queued, -seconds and -rounds must be positive")
	}
	if err != nil {
		fmt.Fprintln(f.Output(), "bench:", err)
	}
	return o, err
}

// bench measures and prints. Whatever happens, every process it started has ended
// and its directory is gone when it returns.
func bench(ctx context.Context, o options, out io.Writer) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("not done within %v", o.timeout))
	defer cancel()
	dir, err := os.MkdirTemp(o.dir, "birdtap-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	defer func() {
		if ctx.Err() != nil {
			err = context.Cause(ctx) // whatever else failed only comes of it
		}
	}()
	c := newCrew(ctx)
	defer c.dismiss()

	binary, err := buildBirdtap(ctx, dir)
	if err != nil {
		return err
	}
	machine, err := lookAround(ctx, dir, binary)
	if err != nil {
		return err
	}
	machine.print(out)
	b := &run{options: o, crew: c, dir: dir, binary: binary, table: newTable(out)}
	switch {
	case o.growth:
		err = b.growth(ctx)
	case o.cluster:
		err = b.cluster(ctx)
	default:
		err = b.scenarios(ctx)
	}
	if o.json != "" {
		err = errors.Join(err, writeJSON(o.json, machine, b.table.rows))
	}
	return err
}
