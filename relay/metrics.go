package relay

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/birdtap/birdtap/clevertap"
	"github.com/birdtap/birdtap/store"
)

// metrics of the journey out. Every label value is there from the start, at zero.
// The gauges tell of the active relay; one that stands by shows zeros.
type metrics struct {
	delivered, deduplicated, replayed, missing, checkpointFailures prometheus.Counter
	deadTotal                                                      *prometheus.CounterVec

	depth, queueBytes, queueMax, deadBytes, deadMax, inflight, breaker, active, dedupKeys prometheus.Gauge

	// When the oldest receipt came that the loop knows of, Unix ns, or 0; and who knows
	// of those beyond. The age is reckoned when it is asked for: it grows on when the
	// loop stands still.
	oldest atomic.Int64
	ahead  atomic.Pointer[survey]

	uploadSeconds     *prometheus.HistogramVec
	batchRecords      prometheus.Histogram
	checkpointSeconds prometheus.Histogram
}

// knownReasons are the labels that are there at zero: ours, and every record code that
// CleverTap documents. One that it does not document joins them when it comes.
var knownReasons = []store.Reason{
	store.ReasonRefused, "509", "512", "513", "522", "523", "524", "525", "526", "528", "555",
	"514", "515", "516", "517", "518", "519", "520", "530", "531", "532", "533", "534", "535", // of profiles and tokens
	store.ReasonHTTP400, store.ReasonHTTP413, store.ReasonUnclear, store.ReasonUnmapped, store.ReasonCorrupt,
}

func newMetrics(r prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "birdtap_" + name, Help: help})
		r.MustRegister(c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "birdtap_" + name, Help: help})
		r.MustRegister(g)
		return g
	}
	m := &metrics{
		delivered:    counter("receipts_delivered_total", "Receipts that CleverTap accepted."),
		deduplicated: counter("receipts_deduplicated_total", "Receipts that were copies of one within the dedup window."),
		replayed:     counter("receipts_replayed_total", "Receipts of replays that were settled again."),
		missing:      counter("frames_missing_total", "Frames that were gone from the queue before they were settled."),
		checkpointFailures: counter("checkpoint_failures_total",
			"Writes of the checkpoint that failed, or had no answer in time; another relay's take-over is none."),
		depth:      gauge("queue_depth", "Receipts that wait to be delivered."),
		queueBytes: gauge("queue_bytes", "Bytes of the frames with a receipt that waits, about."),
		queueMax:   gauge("queue_max_bytes", "Bytes that may wait: BIRDTAP_QUEUE_MAX_BYTES."),
		deadBytes:  gauge("dead_bytes", "Bytes of the dead letters."),
		deadMax:    gauge("dead_max_bytes", "Bytes that the dead letters may take: BIRDTAP_DEAD_MAX_BYTES."),
		inflight:   gauge("uploads_inflight", "Calls to CleverTap in flight."),
		breaker:    gauge("breaker_open", "1 while uploading is stopped because CleverTap fails, else 0."),
		active:     gauge("relay_active", "1 on the active relay, 0 on one that stands by."),
		dedupKeys:  gauge("dedup_keys", "Receipts in the dedup window; it ends early at 1,000,000."),
		deadTotal: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "birdtap_receipts_dead_total", Help: "Receipts that went to the dead letters, by reason.",
		}, []string{"reason"}),
		uploadSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "birdtap_upload_seconds", Help: "How long one call to CleverTap took, by what came of it.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 14), // 5 ms to 41 s
		}, []string{"outcome"}),
		batchRecords: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "birdtap_upload_batch_records", Help: "How many records one call carried.",
			Buckets: []float64{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000},
		}),
		checkpointSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "birdtap_checkpoint_seconds", Help: "How long one write of the checkpoint took.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16), // 0.1 ms to 3.3 s
		}),
	}
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "birdtap_queue_oldest_seconds", Help: "Age of the oldest receipt that waits.",
	}, func() float64 { return m.age(time.Now()) }))
	r.MustRegister(m.deadTotal, m.uploadSeconds, m.batchRecords, m.checkpointSeconds)
	for _, reason := range knownReasons {
		m.deadTotal.WithLabelValues(string(reason))
	}
	for kind := clevertap.Unreachable; kind <= clevertap.Unexpected; kind++ {
		m.uploadSeconds.WithLabelValues(kind.String())
	}
	return m
}

func (m *metrics) settled(how ending, replay store.Replay) {
	switch how {
	case delivered:
		m.delivered.Inc()
	case deduplicated:
		m.deduplicated.Inc()
	case died: // counted by reason, by dead
	}
	if replay != store.ReplayNone {
		m.replayed.Inc()
	}
}

func (m *metrics) dead(reason store.Reason) { m.deadTotal.WithLabelValues(string(reason)).Inc() }

// tell sets the gauges to what the term knows.
func (m *metrics) tell(t *term) {
	unread, oldest, bytes := t.survey.beyond()
	if first := t.oldest(); !first.IsZero() {
		oldest = first
	}
	held := int64(0)
	if !oldest.IsZero() {
		held = oldest.UnixNano()
	}
	m.oldest.Store(held)
	m.ahead.Store(t.survey)
	open := 0.0
	if t.pace.State() != "closed" {
		open = 1
	}
	m.active.Set(1)
	m.depth.Set(float64(int64(t.held) + unread))
	m.queueBytes.Set(float64(bytes))
	room := t.survey.lastRoom()
	m.queueMax.Set(float64(room.QueueMax))
	m.deadBytes.Set(float64(room.DeadBytes))
	m.deadMax.Set(float64(room.DeadMax))
	m.inflight.Set(float64(t.calls))
	m.breaker.Set(open)
	m.dedupKeys.Set(float64(t.dedup.Len()))
}

// age is how long the oldest receipt has waited, in seconds.
func (m *metrics) age(now time.Time) float64 {
	var oldest time.Time
	if at := m.oldest.Load(); at != 0 {
		oldest = time.Unix(0, at)
	} else if ahead := m.ahead.Load(); ahead != nil {
		_, oldest, _ = ahead.beyond()
	}
	if oldest.IsZero() {
		return 0
	}
	return max(0, now.Sub(oldest).Seconds())
}

// idle is what a relay shows that is not active.
func (m *metrics) idle() {
	m.oldest.Store(0)
	m.ahead.Store(nil)
	for _, g := range []prometheus.Gauge{m.active, m.depth, m.queueBytes, m.queueMax, m.deadBytes, m.deadMax, m.inflight, m.breaker, m.dedupKeys} {
		g.Set(0)
	}
}
