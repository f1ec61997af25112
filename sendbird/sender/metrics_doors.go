package sender

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// How a call to a door was answered; label answer of birdtap_sender_calls_total.
const (
	answerAccepted    = "accepted"
	answerTest        = "test"
	answerNotFound    = "not_found"
	answerMethod      = "method"
	answerCredentials = "unauthorized"
	answerMediaType   = "media_type"
	answerEncoding    = "encoding"
	answerTooLarge    = "too_large"
	answerRead        = "read_error"
	answerMalformed   = "malformed"
	answerMistake     = "mistake" // understood, and not to be sent as it is
	answerUnavailable = "unavailable"
)

var allAnswers = []string{
	answerAccepted, answerTest, answerNotFound, answerMethod, answerCredentials, answerMediaType,
	answerEncoding, answerTooLarge, answerRead, answerMalformed, answerMistake, answerUnavailable,
}

type doorMetrics struct {
	calls   *prometheus.CounterVec // by answer
	seconds prometheus.Histogram
}

// newDoorMetrics registers every series at zero, so that a rate has a beginning.
func newDoorMetrics(registerer prometheus.Registerer) (*doorMetrics, error) {
	m := &doorMetrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "birdtap_sender_calls_total",
			Help: "Calls to the sender's doors, by how they were answered.",
		}, []string{"answer"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "birdtap_sender_seconds",
			Help:    "From the header of a call to its 200, reading and storing what it asks for included.",
			Buckets: []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 4, 15},
		}),
	}
	for _, answer := range allAnswers {
		m.calls.WithLabelValues(answer)
	}
	return m, errors.Join(registerer.Register(m.calls), registerer.Register(m.seconds))
}
