package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
	"github.com/birdtap/birdtap/sendbird/sendbirdtest"
)

func (p *program) demoCommand() *cobra.Command {
	var keep bool
	c := &cobra.Command{
		Use:   "demo",
		Short: "Watch the real daemon survive faults, with nothing to set up",
		Long: `Play a story of about 20 seconds with the real daemon, birdtap serve, as a process of
its own. Its queue is in a temporary directory; Sendbird and CleverTap are played by
this program, on loopback. Receipts come in; CleverTap refuses some, then goes down;
the daemon is killed with -9 and started again; CleverTap comes back; what was refused
is replayed; a campaign of CleverTap's goes out through birdtap, and its receipts come
back. At the end stands the account, and the exit code is 0 only if it adds up.

With --keep the traffic goes on afterwards until Ctrl-C, to play with: addresses and
curl lines are printed.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return p.demo(c.Context(), keep) },
	}
	c.Flags().BoolVar(&keep, "keep", false, "go on with traffic until Ctrl-C, and print addresses and curl lines")
	return c
}

// demo is the stage: the daemon, and Sendbird and CleverTap as this program plays them.
type demo struct {
	birdtap   *installation
	daemon    *child // nil while none runs
	cleverTap *clevertaptest.Server
	sendbird  *traffic // what Sendbird posts
	// notifications is what it takes.
	notifications *sendbirdtest.Server
	ledger        *ledger
	voice         *voice
}

// demo plays the story. Whatever happens, the daemon is stopped and its directory
// removed at the end.
func (p *program) demo(ctx context.Context, keep bool) (err error) {
	d := &demo{ledger: new(ledger)}
	d.cleverTap, err = clevertaptest.Start("127.0.0.1:0", clevertaptest.Options{AccountID: demoAccount, Passcode: demoPasscode})
	if err != nil {
		return err
	}
	defer d.cleverTap.Close()
	d.cleverTap.KeepRecords(false) // the ledger keeps a byte of each
	d.cleverTap.OnRecord(d.ledger.arrived)

	d.notifications, err = sendbirdtest.Start("127.0.0.1:0", sendbirdtest.Options{Token: demoNotificationsToken, KeepLast: 100})
	if err != nil {
		return err
	}
	defer d.notifications.Close()

	if d.birdtap, err = install(ctx, d.cleverTap.URL(), d.notifications.URL()); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.birdtap.remove()) }()
	defer func() {
		if d.daemon != nil {
			d.daemon.kill()
		}
	}()
	d.sendbird = &traffic{
		address: "http://" + d.birdtap.doors, account: demoAccount, passcode: demoPasscode,
		signingKey: demoSigningKey, ledger: d.ledger,
	}
	d.voice = newVoice(p.out, d.ledger.figures)
	return d.play(ctx, keep)
}

// play runs the scenes one after the other. Traffic goes on through all of them.
func (d *demo) play(ctx context.Context, keep bool) error {
	if err := d.open(ctx); err != nil {
		return err
	}
	posting, silence := context.WithCancel(ctx)
	defer silence()
	d.notifications.OnNotification(func(n sendbirdtest.Notification) { d.sendbird.notified(posting, n) })
	d.sendbird.start(posting)
	d.voice.start()
	err := d.scenes(ctx)
	silence() // after a scene that failed; else nothing is being posted any more
	d.voice.stop()
	if err != nil {
		return interrupted(ctx, err)
	}
	if err := d.settle(ctx); err != nil {
		return interrupted(ctx, err)
	}
	if keep {
		if err := d.keep(ctx); err != nil {
			return err
		}
	}
	return d.close()
}

func (d *demo) scenes(ctx context.Context) error {
	for _, scene := range []func(context.Context) error{
		d.trafficBegins, d.cleverTapRefuses, d.cleverTapGoesDown, d.daemonIsKilled,
		d.cleverTapIsBack, d.operatorReplays, d.campaignRuns, d.lastReceipts,
	} {
		if err := scene(ctx); err != nil {
			return err
		}
		d.voice.tally()
	}
	return nil
}

// interrupted says in one word what came of Ctrl-C.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("interrupted; the daemon is stopped and its directory removed")
	}
	return err
}

// How long a fact may take until the demo fails. Each is many times what a slow
// laptop needs.
const (
	startWait = 20 * time.Second
	sceneWait = 30 * time.Second
	drainWait = 60 * time.Second // the relay may just have begun a pause of up to some seconds
	factEvery = 20 * time.Millisecond
)

// until waits for a fact. It fails when the time is over, or at once when the daemon
// is gone.
func (d *demo) until(ctx context.Context, within time.Duration, what string, fact func() bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("not within %v: %s", within, what))
	defer cancel()
	for !fact() {
		select {
		case <-d.daemon.ended:
			return d.daemon.failed()
		default:
		}
		if !pause(ctx, factEvery) {
			return d.tooLate(context.Cause(ctx))
		}
	}
	return nil
}

// tooLate adds what the daemon had to say, which may be why.
func (d *demo) tooLate(err error) error {
	if words := d.daemon.words.String(); words != "" {
		return fmt.Errorf("%w; the daemon's last words:\n%s", err, words)
	}
	return err
}

// untilFigures waits for a fact about the figures.
func (d *demo) untilFigures(ctx context.Context, within time.Duration, what string, fact func(figures) bool) error {
	return d.until(ctx, within, what, func() bool { return fact(d.ledger.figures()) })
}

// launch starts the daemon and returns how long it took until it was ready.
func (d *demo) launch(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	var err error
	if d.daemon, err = d.birdtap.start(); err != nil {
		return 0, err
	}
	err = d.until(ctx, startWait, "the daemon is ready", func() bool { return d.birdtap.ready(ctx) })
	return time.Since(began), err
}

func (d *demo) open(ctx context.Context) error {
	d.voice.say(
		"birdtap demo: the real daemon with its queue on disk; Sendbird and CleverTap are played.",
		"Figures: receipts sent, answered 2xx, distinct at CleverTap, waiting in birdtap, dead.")
	took, err := d.launch(ctx)
	if err != nil {
		return interrupted(ctx, err)
	}
	d.voice.tell("", fmt.Sprintf("birdtap serve is ready after %s, on %s.", took.Round(time.Millisecond), d.birdtap.doors))
	return nil
}

func (d *demo) trafficBegins(ctx context.Context) error {
	d.voice.step("1. Traffic",
		fmt.Sprintf("Sendbird posts the receipts of three campaigns, %d a second: SENT, and READ when a user", trafficRate),
		"has opened the notification. Among them the sample of Sendbird's documentation:",
		readBy(0).record(),
		"birdtap answers each when it is on disk, and uploads them to CleverTap in batches.")
	return d.untilFigures(ctx, sceneWait, "receipts reach CleverTap", func(f figures) bool {
		return f.sent >= 4*trafficRate && f.seen >= 3*trafficRate
	})
}

// refusedCode is CleverTap's record code for an event that is discarded in the
// account's settings: until somebody takes that back no retry helps.
const refusedCode = 528

func (d *demo) cleverTapRefuses(ctx context.Context) error {
	d.voice.step("2. CleverTap refuses some",
		fmt.Sprintf("Somebody discards the event %q in CleverTap's settings: CleverTap refuses its", doomed.event),
		fmt.Sprintf("records with code %d and takes the rest. birdtap keeps what is refused as dead letters.", refusedCode))
	d.cleverTap.Judge(func(r clevertaptest.Record) int {
		if r.Event == doomed.event {
			return refusedCode
		}
		return 0
	})
	return d.untilFigures(ctx, sceneWait, "CleverTap refuses records", func(f figures) bool { return f.dead >= trafficRate*2/5 })
}

func (d *demo) cleverTapGoesDown(ctx context.Context) error {
	d.voice.step("3. CleverTap goes down",
		"First it answers 503 to everything, then it takes no connections at all.",
		"Sendbird's receipts are answered 2xx all the same, and wait on disk.")
	d.cleverTap.Always(clevertaptest.Status(http.StatusServiceUnavailable, nil, ""))
	if err := d.untilWaiting(ctx, 2*trafficRate); err != nil {
		return err
	}
	d.cleverTap.Stop()
	return d.untilWaiting(ctx, 4*trafficRate)
}

func (d *demo) untilWaiting(ctx context.Context, n int) error {
	return d.untilFigures(ctx, sceneWait, "receipts wait", func(f figures) bool { return f.waiting >= n })
}

// untilSent lets traffic go on for a while, so that the figures can be watched.
func (d *demo) untilSent(ctx context.Context, more int) error {
	from := d.ledger.figures().sent
	return d.untilFigures(ctx, sceneWait, "traffic goes on", func(f figures) bool { return f.sent >= from+more })
}

func (d *demo) daemonIsKilled(ctx context.Context) error {
	before := d.ledger.figures()
	d.voice.step("4. kill -9",
		fmt.Sprintf("In the midst of it the daemon is killed with -9, while %s receipts wait. It is started again.", count(before.waiting)))
	d.daemon.kill()
	took, err := d.launch(ctx)
	if err != nil {
		return err
	}
	st, err := d.status(ctx)
	if err != nil {
		return err
	}
	if st.Queued < uint64(before.waiting) { //nolint:gosec // a count
		return fmt.Errorf("%d receipts waited before the kill, but only %d stand on the queue after it", before.waiting, st.Queued)
	}
	if err := d.untilFigures(ctx, sceneWait, "receipts are answered again", func(f figures) bool {
		return f.answered >= before.answered+trafficRate
	}); err != nil {
		return err
	}
	d.voice.tell(
		fmt.Sprintf("Ready again after %s; all that waited is still there. Meanwhile %s posts found nobody:",
			took.Round(time.Millisecond), count(d.ledger.figures().cut-before.cut)),
		"Sendbird posts those again, up to three times.")
	return nil
}

func (d *demo) cleverTapIsBack(ctx context.Context) error {
	d.voice.step("5. CleverTap is back",
		fmt.Sprintf("%s receipts wait. birdtap finds out by itself; nobody does anything.", count(d.ledger.figures().waiting)))
	began := time.Now()
	d.cleverTap.Normal()
	if err := d.cleverTap.Listen(d.cleverTap.Addr()); err != nil {
		return err
	}
	// Traffic goes on, so a batch's worth or two always waits.
	if err := d.untilFigures(ctx, drainWait, "the backlog is delivered", func(f figures) bool { return f.waiting < trafficRate/2 }); err != nil {
		return err
	}
	d.voice.tell(fmt.Sprintf("The backlog is delivered, %.1f s after CleverTap came back.", time.Since(began).Seconds()))
	return d.untilSent(ctx, trafficRate)
}

func (d *demo) operatorReplays(ctx context.Context) error {
	d.voice.step("6. Replay",
		fmt.Sprintf("The operator restores %q in CleverTap, and sends the dead letters again:", doomed.event))
	d.cleverTap.Judge(nil)
	// What CleverTap refused a moment ago becomes a letter a moment later.
	if err := d.untilStatus(ctx, "the dead letters are stored", func(st statusJSON) bool {
		return st.Dead >= uint64(d.ledger.figures().dead) //nolint:gosec // a count
	}); err != nil {
		return err
	}
	out, err := d.birdtap.run(ctx, "relay", "--replay", "--event", doomed.event)
	if err != nil {
		return err
	}
	d.voice.tell(fmt.Sprintf("$ birdtap relay --replay --event %q", doomed.event), strings.TrimSpace(out))
	if err := d.untilFigures(ctx, drainWait, "the replayed receipts reach CleverTap", func(f figures) bool { return f.dead == 0 }); err != nil {
		return err
	}
	return d.untilSent(ctx, trafficRate)
}

func (d *demo) lastReceipts(ctx context.Context) error {
	d.voice.step("8. Traffic ends", "The last receipts reach CleverTap.")
	return d.trafficEnds(ctx)
}

func (d *demo) trafficEnds(ctx context.Context) error {
	d.sendbird.stop()
	return d.untilFigures(ctx, drainWait, "everything is delivered", func(f figures) bool { return f.waiting == 0 })
}

// close stops the daemon as an operator would.
func (d *demo) close() error {
	err := d.daemon.stop()
	d.daemon = nil
	return err
}
