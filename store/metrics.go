package store

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the group commit, and of the servers that what it commits is on. The rest of
// the store's figures are the relay's to tell: it knows what is settled.
type metrics struct {
	commitSeconds  prometheus.Histogram
	commitReceipts prometheus.Histogram

	replicas, replicasCurrent prometheus.Gauge
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
		replicas: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "birdtap_queue_replicas",
			Help: "On how many servers the queue is to be.",
		}),
		replicasCurrent: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "birdtap_queue_replicas_current",
			Help: "How many servers have all of the queue, as its leader said last.",
		}),
	}
	r.MustRegister(m.commitSeconds, m.commitReceipts, m.replicas, m.replicasCurrent)
	return m
}

func (m *metrics) committed(receipts int, took time.Duration) {
	m.commitSeconds.Observe(took.Seconds())
	m.commitReceipts.Observe(float64(receipts))
}

func (m *metrics) replicated(on Replicas) {
	m.replicas.Set(float64(on.Want))
	m.replicasCurrent.Set(float64(on.Current))
}
