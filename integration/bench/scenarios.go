package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// run is one run of the bench.
type run struct {
	options
	crew   *crew
	dir    string
	binary string
	table  *table

	bare  string // address of the bare handler
	sink  cleverTap
	users int // handed out: no two receipts of a run are alike, or birdtap would drop the copy
}

// The rows, as -only names them.
const (
	rowIngest     = "durable ingest, 1 receipt per POST, 64 connections ÷ bare"
	rowIngestP99  = "the same, p99 of the answer ÷ bare"
	rowIngestBulk = "durable ingest, 1000 receipts per POST, 16 connections"
	rowFlow       = "durable ingest, 1 per POST, relay delivering meanwhile ÷ bare"
	rowFlowOut    = "delivered meanwhile"
	rowMemory     = "memory, most under that load"
	rowDrain      = "drain to a zero-latency sink"
	rowDrainSlow  = "drain at 200 ms per call, 15 in flight ÷ 75,000/s"
	rowLatency    = "callback in → record at CleverTap, idle, p99"
	rowFillMem    = "memory, most, while %s receipts come in, 1000 per POST"
	rowQueuedMem  = "memory with %s queued, at rest"
	rowDrainMem   = "memory, most, while they drain"
	rowKill       = "ready again after kill -9 with %s queued"
	rowKillStored = "the same, first receipt stored"
	rowIdle       = "idle CPU, of a core"
	rowWebhooks   = "webhook calls made durable, 1 user each, 64 connections"
	rowWebhookP99 = "the same, p99 of the answer"
)

// scenario measures some rows with a birdtap of its own.
type scenario struct {
	rows []string
	play func(context.Context) error
}

func (b *run) scenarios(ctx context.Context) error {
	if err := b.open(); err != nil {
		return err
	}
	for _, s := range []scenario{
		{[]string{rowIngest, rowIngestP99, rowIngestBulk}, b.ingest},
		{[]string{rowFlow, rowFlowOut, rowMemory}, b.flow},
		{[]string{rowFillMem, rowQueuedMem, rowKill, rowKillStored, rowDrain, rowDrainMem}, b.backlog},
		{[]string{rowDrainSlow}, b.drainSlow},
		{[]string{rowLatency}, b.latency},
		{[]string{rowIdle}, b.idle},
		{[]string{rowWebhooks, rowWebhookP99}, b.webhooks},
	} {
		if !b.anyWanted(s.rows) {
			continue
		}
		if err := s.play(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (b *run) open() (err error) {
	if b.bare, err = b.crew.server(roleBare); err != nil {
		return err
	}
	b.sink.address, err = b.crew.server(roleSink)
	return err
}

func (b *run) wanted(name string) bool { return b.only == nil || b.only.MatchString(name) }

func (b *run) anyWanted(names []string) bool {
	return slices.ContainsFunc(names, b.wanted)
}

// add prints a row if it is wanted; some are measured on the way to others.
func (b *run) add(r row) {
	if b.wanted(r.Name) {
		b.table.add(r)
	}
}

// with plays with a birdtap of its own, and removes it afterwards.
func (b *run) with(ctx context.Context, play func(*installation) error, settings ...string) error {
	i, err := b.install(b.sink.address, settings...)
	if err != nil {
		return err
	}
	if err = i.start(ctx); err == nil {
		err = play(i)
	}
	return errors.Join(err, i.remove())
}

// singles is the load of the first figures: a receipt a post, 64 connections.
func (b *run) singles(address string) (outcome, error) {
	return b.generate(load{Address: address, Connections: 64, Records: 1, Seconds: b.seconds})
}

// generate gives the load users that nobody had. Posts that were refused, as on a
// machine too busy to store them in time, do not count and are said beside the figure.
func (b *run) generate(l load) (outcome, error) {
	l.FirstUser = b.users
	o, err := b.crew.generate(l)
	b.users += o.Records + o.Refused*l.Records + l.Connections*l.Records // those cut off, too
	if err == nil && o.Posts == 0 {
		err = fmt.Errorf("none of %d posts to %s was taken", o.Refused, l.Address)
	}
	return o, err
}

// comparison is birdtap and the bare handler in turns.
type comparison struct {
	rates, bareRates, ratios  []float64
	p99s, bareP99s, p99Ratios []float64
	refused                   int
}

// compare plays the same load to both, round about: what else the machine does
// meanwhile then meets both alike.
func (b *run) compare(doors string, rounds int) (comparison, error) {
	var c comparison
	for range rounds {
		bare, err := b.singles(b.bare)
		if err != nil {
			return c, err
		}
		ours, err := b.singles(doors)
		if err != nil {
			return c, err
		}
		c.bareRates, c.rates = append(c.bareRates, bare.rate()), append(c.rates, ours.rate())
		c.ratios = append(c.ratios, ours.rate()/bare.rate())
		c.bareP99s, c.p99s = append(c.bareP99s, bare.P99), append(c.p99s, ours.P99)
		c.p99Ratios = append(c.p99Ratios, ours.P99/bare.P99)
		c.refused += ours.Refused
	}
	return c, nil
}

func (c comparison) rateNote() string {
	return fmt.Sprintf("%s/s, bare %s/s", thousands(median(c.rates)), thousands(median(c.bareRates))) + refusedNote(c.refused)
}

func refusedNote(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(", %d posts refused", n)
}

func (c comparison) p99Note() string {
	return fmt.Sprintf("%.2f ms, bare %.2f ms", median(c.p99s), median(c.bareP99s))
}

// ingest measures the door alone: uploading is paused.
func (b *run) ingest(ctx context.Context) error {
	return b.with(ctx, func(i *installation) error {
		if err := b.hold(ctx, i); err != nil {
			return err
		}
		if b.wanted(rowIngest) || b.wanted(rowIngestP99) {
			c, err := b.compare(i.doors, b.rounds)
			if err != nil {
				return err
			}
			b.add(row{Name: rowIngest, Value: median(c.ratios), Unit: "x", Bar: atLeast(0.60), Stretch: atLeast(0.80), Note: c.rateNote()})
			b.add(row{Name: rowIngestP99, Value: median(c.p99Ratios), Unit: "x", Bar: atMost(2), Stretch: atMost(1.2), Note: c.p99Note()})
		}
		if !b.wanted(rowIngestBulk) {
			return nil
		}
		bulk, err := b.generate(load{Address: i.doors, Connections: 16, Records: 1000, Seconds: b.seconds})
		if err != nil {
			return err
		}
		b.add(row{
			Name: rowIngestBulk, Value: bulk.rate(), Unit: "/s", Bar: atLeast(300_000), Stretch: atLeast(600_000),
			Note: fmt.Sprintf("p50 %.1f ms, p99 %.1f ms", bulk.P50, bulk.P99) + refusedNote(bulk.Refused),
		})
		return nil
	})
}

// flow measures the door while the relay delivers what comes in.
func (b *run) flow(ctx context.Context) error {
	return b.with(ctx, func(i *installation) error {
		if err := b.sink.reset(0); err != nil {
			return err
		}
		m := watchMemory(i.daemon.pid())
		c, err := b.compare(i.doors, 1)
		typical, most := m.end()
		if err != nil {
			return err
		}
		stats, err := b.sink.stats()
		if err != nil {
			return err
		}
		b.add(row{Name: rowFlow, Value: median(c.ratios), Unit: "x", Note: c.rateNote() + "; p99 " + c.p99Note()})
		b.add(row{
			Name: rowFlowOut, Value: stats.rate(), Unit: "/s",
			Note: fmt.Sprintf("%.0f records a call", float64(stats.Records)/float64(max(1, stats.Calls))),
		})
		b.add(memoryRow(rowMemory, typical, most))
		return nil
	})
}

func mebibytes(n int64) float64 { return float64(n) / (1 << 20) }

// backlog fills the queue while uploading is paused, kills the daemon, and lets what
// waits drain.
func (b *run) backlog(ctx context.Context) error {
	return b.with(ctx, func(i *installation) error {
		if err := b.hold(ctx, i); err != nil {
			return err
		}
		queued := thousands(float64(b.queued))
		m := watchMemory(i.daemon.pid())
		err := b.fill(i, b.queued)
		typical, most := m.end()
		if err != nil {
			return err
		}
		b.add(memoryRow(fmt.Sprintf(rowFillMem, queued), typical, most))
		m = watchMemory(i.daemon.pid())
		pause(ctx, 2*time.Second)
		typical, most = m.end()
		b.add(memoryRow(fmt.Sprintf(rowQueuedMem, queued), typical, most))
		i.daemon.kill()
		ready, stored, err := i.backAgain(ctx, b.users)
		b.users++
		if err != nil {
			return err
		}
		b.add(row{
			Name: fmt.Sprintf(rowKill, queued), Value: ready.Seconds(), Unit: "s", Bar: atMost(5), Stretch: atMost(2),
			Note: "from the start of the process; the kernel still has the files in memory",
		})
		b.add(row{Name: rowKillStored, Value: stored.Seconds(), Unit: "s"})
		return b.drainBacklog(ctx, i)
	})
}

func (b *run) drainBacklog(ctx context.Context, i *installation) error {
	if !b.wanted(rowDrain) && !b.wanted(rowDrainMem) {
		return nil
	}
	m := watchMemory(i.daemon.pid())
	stats, err := b.drain(ctx, i, b.queued, 0)
	typical, most := m.end()
	if err != nil {
		return err
	}
	b.add(row{
		Name: rowDrain, Value: stats.rate(), Unit: "/s", Bar: atLeast(300_000), Stretch: atLeast(800_000),
		Note: fmt.Sprintf("%s receipts in %.2f s", thousands(float64(stats.Records)), stats.Last.Sub(stats.First).Seconds()),
	})
	b.add(memoryRow(rowDrainMem, typical, most))
	return nil
}

// memoryRow holds the most against the bar: what a limit on a container must allow.
func memoryRow(name string, typical, most int64) row {
	return row{
		Name: name, Value: mebibytes(most), Unit: "MiB", Bar: atMost(120), Stretch: atMost(80),
		Note: fmt.Sprintf("median %.0f MiB", mebibytes(typical)),
	}
}

// hold stops uploading. The relay looks for the operator's word a few times a second,
// and no figure tells when it has.
func (b *run) hold(ctx context.Context, i *installation) error {
	err := i.command(ctx, "pause")
	pause(ctx, time.Second)
	return err
}

// fill puts n receipts on the queue, or some more. What was refused is made up for, as
// long as it comes forward.
func (b *run) fill(i *installation, n int) error {
	for n > 0 {
		o, err := b.generate(load{Address: i.doors, Connections: 4, Records: min(1000, n), Total: n})
		if err != nil {
			return err
		}
		n -= o.Records
	}
	return nil
}

// slowest is the rate below which a drain is given up, in receipts/s.
const slowest = 5000

// drain lets n receipts out to a sink whose answers take latency, and returns its
// account from the first call to the last answer.
func (b *run) drain(ctx context.Context, i *installation, n int, latency time.Duration) (sinkStats, error) {
	if err := b.sink.reset(latency); err != nil {
		return sinkStats{}, err
	}
	if err := i.command(ctx, "resume"); err != nil {
		return sinkStats{}, err
	}
	var stats sinkStats
	var failed error
	within := 30*time.Second + time.Duration(n/slowest)*time.Second
	err := i.until(ctx, within, "the backlog is delivered", func() bool {
		pause(ctx, 50*time.Millisecond) // asking costs the sink something, too
		stats, failed = b.sink.stats()
		return failed != nil || stats.Records >= n
	})
	return stats, errors.Join(failed, err)
}

// drainSlow measures against what CleverTap's limits allow: 15 calls in flight, each
// of 1000 records and 200 ms, are 75,000 receipts/s.
func (b *run) drainSlow(ctx context.Context) error {
	const inFlight, latency, perCall = 15, 200 * time.Millisecond, 1000
	ceiling := inFlight * perCall / latency.Seconds()
	n := max(2*inFlight*perCall, int(ceiling*b.seconds)/(inFlight*perCall)*inFlight*perCall) // whole waves
	return b.with(ctx, func(i *installation) error {
		if err := b.hold(ctx, i); err != nil {
			return err
		}
		if err := b.fill(i, n); err != nil {
			return err
		}
		stats, err := b.drain(ctx, i, n, latency)
		if err != nil {
			return err
		}
		b.add(row{
			Name: rowDrainSlow, Value: stats.rate() / ceiling, Unit: "x", Bar: atLeast(0.95), Stretch: atLeast(0.99),
			Note: fmt.Sprintf("%s/s, %d calls, at most %d in flight", thousands(stats.rate()), stats.Calls, stats.MaxInFlight),
		})
		return nil
	}, fmt.Sprintf("BIRDTAP_CLEVERTAP_MAX_INFLIGHT=%d", inFlight))
}

// latency measures single receipts with long pauses between them.
func (b *run) latency(ctx context.Context) error {
	return b.with(ctx, func(i *installation) error {
		if err := b.sink.reset(0); err != nil {
			return err
		}
		samples := max(100, int(100*b.seconds))
		p, err := b.sink.probe(i.doors, samples, b.users)
		b.users += samples
		if err != nil {
			return err
		}
		b.add(row{
			Name: rowLatency, Value: p.P99, Unit: "ms", Bar: atMost(20), Stretch: atMost(10),
			Note: fmt.Sprintf("p50 %.2f ms, max %.2f ms of %d, BIRDTAP_BATCH_MAX_WAIT=0", p.P50, p.Max, p.Samples),
		})
		return nil
	}, "BIRDTAP_BATCH_MAX_WAIT=0")
}

// idle measures a daemon to which nothing happens.
func (b *run) idle(ctx context.Context) error {
	const settle, watch = 2 * time.Second, 10 * time.Second
	return b.with(ctx, func(i *installation) error {
		pause(ctx, settle)
		before, err := processorTime(i.daemon.pid())
		if err != nil {
			return err
		}
		began := time.Now()
		pause(ctx, watch)
		after, err := processorTime(i.daemon.pid())
		if err != nil {
			return err
		}
		rss, err := residentBytes(i.daemon.pid())
		if err != nil {
			return err
		}
		b.add(row{
			Name: rowIdle, Value: 100 * (after - before).Seconds() / time.Since(began).Seconds(), Unit: "%", Bar: atMost(1),
			Note: fmt.Sprintf("over %v; memory %.0f MiB", watch, mebibytes(rss)),
		})
		return ctx.Err()
	})
}

// webhooks measures the sender's door. Its users are gathered for longer than the run
// lasts, so nothing is sent.
func (b *run) webhooks(ctx context.Context) error {
	return b.with(ctx, func(i *installation) error {
		o, err := b.generate(load{Address: i.doors, Connections: 64, Records: 1, Seconds: b.seconds, Webhook: true})
		if err != nil {
			return err
		}
		b.add(row{Name: rowWebhooks, Value: o.rate(), Unit: "/s", Note: fmt.Sprintf("%d refused", o.Refused)})
		b.add(row{Name: rowWebhookP99, Value: o.P99, Unit: "ms", Bar: atMost(50)})
		return nil
	}, "BIRDTAP_SENDBIRD_NOTIFICATIONS_URL=http://127.0.0.1:9", "BIRDTAP_SENDBIRD_NOTIFICATIONS_TOKEN=bench", "BIRDTAP_SENDER_TOKENS="+senderToken, "BIRDTAP_GATHER_WAIT=1h")
}
