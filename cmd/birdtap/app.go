package main

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/birdtap/birdtap/clevertap"
	"github.com/birdtap/birdtap/ingest"
	"github.com/birdtap/birdtap/ingest/console"
	"github.com/birdtap/birdtap/relay"
	"github.com/birdtap/birdtap/sendbird"
	"github.com/birdtap/birdtap/sendbird/sender"
	"github.com/birdtap/birdtap/store"
)

// app is one daemon: the rooms of its role, in the order of a receipt's journey.
//
//	newApp   binds the operator's window and the doors: an address taken shows at once
//	Run      both answer, the doors with 503 → the queue is opened, which may take
//	         seconds → the relay uploads receipts, the sender sends notifications, the
//	         doors take both in, receipts once the identity map is there
//	         → told to stop: unready, doors shut, calls in flight finish, queue
//	         closed, window last
//	Close    gives back what newApp took, if Run was never called
type app struct {
	cfg      *Config
	rooms    rooms
	log      *zap.Logger
	registry *prometheus.Registry

	window   *console.Server
	doors    *ingest.Server // nil for a relay alone
	webhooks *sender.Door   // among them; nil where no notification is sent

	queue    atomic.Pointer[store.Store]   // nil until it is open
	relay    atomic.Pointer[relay.Relay]   // nil until then, and where nothing is uploaded
	sender   atomic.Pointer[sender.Sender] // nil until then, and where nothing is sent
	taking   atomic.Bool                   // the doors take receipts in
	sending  atomic.Bool                   // and webhook calls, or receipts do not wait for that any more
	stopping atomic.Bool

	cleanups []func() error // run last first
}

// doorsShutWait is how long calls under way may take to their answer: each has one
// 4 s after its body, and sends that within its read timeout.
const doorsShutWait = 14 * time.Second

func newApp(cfg *Config, r role, log *zap.Logger) (*app, error) {
	a := &app{cfg: cfg, rooms: cfg.rooms(r), log: log, registry: prometheus.NewRegistry()}
	a.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "birdtap_ready", Help: "1 while /readyz answers 200, else 0.",
		}, func() float64 {
			if len(a.ready()) > 0 {
				return 0
			}
			return 1
		}))
	for _, open := range []func() error{a.openWindow, a.openDoors} {
		if err := open(); err != nil {
			return nil, errors.Join(err, a.Close())
		}
	}
	if r == roleServe { // the others have few rooms by their nature
		a.tellClosed()
	}
	return a, nil
}

// onClose adds to the stack of what Close undoes.
func (a *app) onClose(undo func() error) { a.cleanups = append(a.cleanups, undo) }

// Close undoes what was done, last first. It may be called twice.
func (a *app) Close() error {
	var errs []error
	for len(a.cleanups) > 0 {
		last := len(a.cleanups) - 1
		errs = append(errs, a.cleanups[last]())
		a.cleanups = a.cleanups[:last]
	}
	return errors.Join(errs...)
}

func (a *app) openWindow() error {
	window, err := console.New(console.Options{
		Addr:     a.cfg.OpsAddr,
		Health:   a.health,
		Ready:    a.ready,
		Gatherer: a.registry,
		Token:    a.cfg.ops.Get,
		Log:      a.log.Named("console"),
	})
	if err != nil {
		return fmt.Errorf("%sOPS_ADDR=%q: %w", envPrefix, a.cfg.OpsAddr, err)
	}
	a.window = window
	a.onClose(window.Close)
	a.log.Info("health and metrics", zap.Stringer("addr", window.Addr()))
	return nil
}

func (a *app) openDoors() error {
	if !a.rooms.hasDoors() {
		return nil
	}
	o := ingest.Options{
		Addr:        a.cfg.HTTPAddr,
		TLSCertFile: a.cfg.HTTPTLSCertFile,
		TLSKeyFile:  a.cfg.HTTPTLSKeyFile,
		Upload:      a.rooms.receipts,
		Account:     func() string { return a.cfg.CleverTapAccountID },
		Passcode:    a.cfg.passcode.Get,
		UploadPaths: a.cfg.UploadPaths,

		UnmappedDead: a.cfg.unmappedDead(),

		Log:        a.log.Named("ingest"),
		Registerer: a.registry,
	}
	if a.rooms.receipts && a.cfg.signing.Get() != "" {
		o.Verifier = sendbird.NewSignatures(a.cfg.SigningKeys)
	}
	if a.rooms.webhooks {
		var err error
		a.webhooks, err = sender.NewDoor(sender.DoorOptions{
			Tokens: a.cfg.senderTokens, Log: a.log.Named("webhooks"), Registerer: a.registry,
		})
		if err != nil {
			return err
		}
		o.Other = a.webhooks
	}
	doors, err := ingest.New(o)
	if err != nil {
		return fmt.Errorf("%sHTTP_ADDR=%q: %w", envPrefix, a.cfg.HTTPAddr, err)
	}
	a.doors = doors
	a.onClose(func() error { return a.shutDoors(context.Background()) })
	a.log.Info("doors", zap.Stringer("addr", doors.Addr()), zap.Bool("tls", a.cfg.HTTPTLSCertFile != ""))
	return nil
}

// tellClosed says which rooms stay closed, and what opens them.
func (a *app) tellClosed() {
	for _, room := range []struct {
		open         bool
		name, needed string
	}{
		{a.rooms.receipts, "/1/upload", "CLEVERTAP_ACCOUNT_ID and " + envPrefix + "CLEVERTAP_PASSCODE"},
		{a.rooms.receipts && a.cfg.signing.Get() != "", "/sendbird/callbacks", "SENDBIRD_SIGNING_KEYS"},
		{a.rooms.webhooks, notificationDoors, "SENDBIRD_APP_ID, " + envPrefix + "SENDBIRD_NOTIFICATIONS_TOKEN and " + envPrefix + "SENDER_TOKENS"},
	} {
		if !room.open {
			a.log.Info("door closed", zap.String("path", room.name), zap.String("opened_by", envPrefix+room.needed))
		}
	}
}

// shutDoors takes no new receipts and lets the calls under way have their answers,
// even when ctx has ended.
func (a *app) shutDoors(ctx context.Context) error {
	if a.doors == nil {
		return nil
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), doorsShutWait)
	defer cancel()
	if err := a.doors.Shutdown(grace); err != nil {
		a.log.Warn("calls at the doors were cut off", zap.Error(err))
	}
	return nil
}

// Run works until ctx ends, or something fails that only a new process can mend.
// The window outlives the rest: a stop that takes its time is watched, too.
func (a *app) Run(ctx context.Context) error {
	windowCtx, closeWindow := context.WithCancel(context.WithoutCancel(ctx))
	defer closeWindow()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.window.Run(windowCtx) })
	g.Go(a.serveDoors)
	g.Go(func() error {
		defer closeWindow()
		return a.journey(ctx)
	})
	return g.Wait()
}

func (a *app) serveDoors() error {
	if a.doors == nil {
		return nil
	}
	return a.doors.Serve()
}

// journey opens the queue, lets receipts in and out, and closes all of it again.
func (a *app) journey(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, a.shutDoors(ctx)) }()
	began := time.Now()
	o := a.cfg.storeOptions()
	o.Log, o.Registerer = a.log, a.registry
	queue, err := openStore(ctx, o)
	if err != nil {
		return stopped(ctx, err)
	}
	defer func() { err = errors.Join(err, queue.Close()) }()
	a.queue.Store(queue)
	a.log.Info("queue open", zap.Duration("took", time.Since(began)))
	if a.rooms.receipts || a.rooms.sends {
		if err := queue.OpenRemembered(ctx); err != nil {
			a.log.Warn("going on without what the sender noted", zap.Error(err))
		}
	}
	defer a.followIdentities(ctx, queue)() // ends before the queue is closed
	var sends *store.Sends
	defer func() {
		if sends != nil {
			sends.Close() // no door commits any more
		}
	}()

	// Doors and relay stop together: uploads in flight need the queue, not the doors.
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		<-ctx.Done()
		a.stopping.Store(true)
		a.log.Info("stopping")
		return a.shutDoors(ctx)
	})
	g.Go(func() error { return a.carry(ctx, queue) })
	g.Go(func() error { // beside the others: it may have to wait for its part of the queue
		var err error
		if sends, err = a.openSends(ctx, queue); err != nil {
			return stopped(ctx, err)
		}
		return a.notify(ctx, sends)
	})
	g.Go(func() error {
		select {
		case err := <-queue.Failed(): // for a supervisor: a new process may find the disk mended
			return err
		case <-ctx.Done():
			return nil
		}
	})
	return g.Wait()
}

// stopped leaves no error of what was told to stop while it was being opened.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// followIdentities lets the doors take receipts in as soon as it is known which
// identity map holds, and returns what ends that: not before they are shut, since each
// receipt is looked up. The relay need not wait for it.
func (a *app) followIdentities(ctx context.Context, queue *store.Store) (stop func()) {
	if !a.rooms.receipts {
		return func() {}
	}
	ids := queue.FollowIdentities()
	a.doors.SetIdentities(ids)
	if a.cfg.RememberSent > 0 {
		a.doors.SetSends(queue)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var all sync.WaitGroup
	all.Go(func() { ids.Run(ctx) })
	all.Go(func() {
		select {
		case <-ids.Ready():
			a.doors.SetCommitter(queue)
			a.taking.Store(true)
		case <-ctx.Done():
		}
	})
	return func() {
		cancel()
		all.Wait()
	}
}

// carry takes receipts from the queue to CleverTap until ctx ends, and returns when
// the uploads in flight are settled. A role that does not upload only waits.
func (a *app) carry(ctx context.Context, queue *store.Store) error {
	if !a.rooms.uploads {
		<-ctx.Done()
		return nil
	}
	client, err := clevertap.New(clevertap.Config{
		URL:       string(a.cfg.CleverTapURL),
		AccountID: a.cfg.CleverTapAccountID,
		Passcode:  a.cfg.passcode.Get,
		Timeout:   a.cfg.CleverTapTimeout,
	})
	if err != nil {
		return err
	}
	defer client.Close()
	r := relay.New(relay.Options{
		Queue:           queue,
		Uploader:        client,
		Embedded:        a.cfg.embedded(),
		MaxInflight:     a.cfg.CleverTapMaxInflight,
		CallTimeout:     a.cfg.CleverTapTimeout,
		BatchMaxRecords: a.cfg.BatchMaxRecords,
		BatchMaxWait:    a.cfg.BatchMaxWait,
		RetryRecordFor:  max(a.cfg.RetryRecordFor, time.Nanosecond), // 0 is "never again" here, but a default there
		DedupWindow:     a.cfg.DedupWindow,
		Log:             a.log,
		Registerer:      a.registry,
	})
	a.relay.Store(r)
	return r.Run(ctx)
}

// sendsWait is how long a process that takes in receipts, too, is not ready for want of the
// sender's part of the queue.
const sendsWait = 10 * time.Second

// openSends opens the sender's part of the queue and lets webhook calls in; nil where
// nothing is sent, or can be.
func (a *app) openSends(ctx context.Context, queue *store.Store) (*store.Sends, error) {
	if !a.rooms.sends {
		return nil, nil //nolint:nilnil // closed, and no error
	}
	if a.rooms.receipts {
		defer time.AfterFunc(sendsWait, func() { a.sending.Store(true) }).Stop()
	}
	sends, err := queue.OpenSends(ctx)
	if err != nil {
		return nil, a.notSending(err)
	}
	if a.webhooks != nil {
		a.webhooks.SetCommitter(sends)
		a.sending.Store(true)
	}
	return sends, nil
}

// notSending is what becomes of an error of the sender's. Where receipts are carried, too,
// it must not stop them: it is said, and webhook calls are answered 503.
func (a *app) notSending(err error) error {
	if !a.rooms.receipts || errors.Is(err, context.Canceled) {
		return err
	}
	a.log.Error("notifications are not sent until this is mended and birdtap is started anew; receipts go on", zap.Error(err))
	a.sending.Store(true) // so that receipts are
	if a.webhooks != nil {
		a.webhooks.SetCommitter(nil)
	}
	return nil
}

// notify takes notifications from the log to Sendbird until ctx ends, and returns when
// the calls on their way are settled.
func (a *app) notify(ctx context.Context, sends *store.Sends) error {
	if sends == nil {
		<-ctx.Done()
		return nil
	}
	client, err := sendbird.New(a.cfg.sendbirdConfig())
	if err != nil {
		return err
	}
	defer client.Close()
	s := sender.New(a.cfg.senderOptions(sends, client, a.log, a.registry))
	a.sender.Store(s)
	if err := s.Run(ctx); err != nil && a.notSending(err) != nil {
		return err
	}
	<-ctx.Done() // the others go on
	return nil
}

// health is what keeps the process from making progress. Recovering is progress.
func (a *app) health() []string {
	var errs []error
	if queue := a.queue.Load(); queue != nil {
		errs = append(errs, queue.Healthy())
	}
	if relay := a.relay.Load(); relay != nil {
		errs = append(errs, relay.Health())
	}
	if sender := a.sender.Load(); sender != nil {
		errs = append(errs, sender.Health())
	}
	return reasonsOf(errors.Join(errs...))
}

// ready is why a receipt sent now would not be stored.
func (a *app) ready() []string {
	queue := a.queue.Load()
	switch {
	case a.stopping.Load():
		return []string{"stopping"}
	case queue == nil:
		return []string{"the queue is being opened"}
	case a.rooms.receipts && !a.taking.Load():
		return []string{"the identity map is being looked up"}
	case a.webhooks != nil && !a.sending.Load():
		return []string{"the log of notifications is being opened"}
	default:
		return reasonsOf(queue.Ready())
	}
}

// reasonsOf takes joined errors apart, one sentence each.
func reasonsOf(err error) []string {
	if err == nil {
		return nil
	}
	return strings.Split(err.Error(), "\n")
}

// softMemoryLimit is what the garbage collector aims to stay within. It is no bound:
// beyond it the collector works harder and nothing fails. It keeps the process flat
// below 120 MiB while a burst comes in, where the default would first let the heap
// double.
const softMemoryLimit = 96 << 20

// limitMemory leaves alone what an operator has set by Go's own variable.
func limitMemory(environ []string) {
	for _, variable := range environ {
		if value, ok := strings.CutPrefix(variable, "GOMEMLIMIT="); ok && value != "" {
			return
		}
	}
	debug.SetMemoryLimit(softMemoryLimit)
}
