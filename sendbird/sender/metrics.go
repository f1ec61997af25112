package sender

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the sender, within this process' lifetime. The gauges tell of the active
// one; one that stands by shows zeros.
type metrics struct {
	sends       *prometheus.CounterVec
	duplicates  prometheus.Counter
	callSeconds prometheus.Histogram
	active      prometheus.Gauge
	inflight    prometheus.Gauge
	held        prometheus.Gauge
	gathering   prometheus.Gauge
	refuses     prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		sends: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "birdtap_sends_total",
			Help: "Users, by how their notification left and what became of it.",
		}, []string{"mode", "outcome"}),
		duplicates: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "birdtap_sends_duplicate_total",
			Help: "Users of webhook calls that were made again, dropped.",
		}),
		callSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "birdtap_send_seconds",
			Help:    "How long one call to Sendbird's notification API took.",
			Buckets: prometheus.ExponentialBuckets(0.01, 2, 14), // 10 ms to 82 s
		}),
		active: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "birdtap_sender_active",
			Help: "1 on the active sender, 0 on one that stands by.",
		}),
		inflight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "birdtap_sends_inflight",
			Help: "Calls to Sendbird that are under way, or made ready.",
		}),
		held: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "birdtap_sends_held",
			Help: "Calls of unknown outcome that wait for an operator.",
		}),
		gathering: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "birdtap_sends_gathering",
			Help: "Users who wait for the others of their campaign, or for their turn.",
		}),
		refuses: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "birdtap_sends_stopped",
			Help: "1 while Sendbird refuses the account, or cannot be reached.",
		}),
	}
	for _, mode := range []Mode{ModeRealtime, ModeBatch, ModeCSV} {
		for _, outcome := range []string{"sent", "refused", "held", "dropped"} {
			m.sends.WithLabelValues(string(mode), outcome)
		}
	}
	r.MustRegister(m.sends, m.duplicates, m.callSeconds, m.active, m.inflight, m.held, m.gathering, m.refuses)
	return m
}

// settled counts users by what became of them.
func (m *metrics) settled(mode Mode, c counts) {
	for outcome, n := range map[string]int64{"sent": c.Sent, "refused": c.Refused, "held": c.Held, "dropped": c.Dropped} {
		if n > 0 {
			m.sends.WithLabelValues(string(mode), outcome).Add(float64(n))
		}
	}
}

// idle is what a sender shows that is not active.
func (m *metrics) idle() {
	for _, g := range []prometheus.Gauge{m.active, m.inflight, m.held, m.gathering, m.refuses} {
		g.Set(0)
	}
}
