package store

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the group commit. The rest of the store's figures are the relay's to
// tell: it knows what is settled.
type metrics struct {
	commitSeconds  prometheus.Histogram
	commitReceipts prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		commitSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "birdtap_commit_seconds",
			Help:    "How long one durable commit of a frame took.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16), // 0.1 ms to 3.3 s
		}),
		commitReceipts: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "birdtap_commit_receipts",
			Help:    "How many receipts shared one commit.",
			Buckets: []float64{1, 2, 5, 10, 20, 50, 100, 200, 500, maxFrameReceipts},
		}),
	}
	r.MustRegister(m.commitSeconds, m.commitReceipts)
	return m
}

func (m *metrics) committed(receipts int, took time.Duration) {
	m.commitSeconds.Observe(took.Seconds())
	m.commitReceipts.Observe(float64(receipts))
}
