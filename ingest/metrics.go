package ingest

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/birdtap/birdtap/clevertap"
)

// Why a whole call was refused; label reason of
// birdtap_receipts_rejected_total, which then counts calls. The other values of
// the label are the codes by which single records are refused.
const (
	reasonNotFound    = "not_found"
	reasonMethod      = "method"
	reasonCredentials = "unauthorized"
	reasonSignature   = "signature"
	reasonEncoding    = "encoding"
	reasonTooLarge    = "too_large"
	reasonRead        = "read_error"
	reasonMalformed   = "malformed"
	reasonSigned      = "signed_malformed" // verified and yet not understood: Sendbird has changed something
	reasonUnavailable = "unavailable"
	reasonPanic       = "panic"
)

var callReasons = []string{
	reasonNotFound, reasonMethod, reasonCredentials, reasonSignature, reasonEncoding,
	reasonTooLarge, reasonRead, reasonMalformed, reasonSigned, reasonUnavailable, reasonPanic,
}

var recordCodes = []clevertap.Code{
	clevertap.CodeNoEventName, clevertap.CodeStructure, clevertap.CodeReservedEvent, clevertap.CodeProperties,
	clevertap.CodeNoIdentity, clevertap.CodeNotEvent, clevertap.CodeTimestamp,
}

// maxKeySlots is how many signing keys are counted apart; a rotation needs two.
const maxKeySlots = 4

type metrics struct {
	accepted prometheus.Counter
	unmapped prometheus.Counter
	rejected *prometheus.CounterVec // by reason
	seconds  prometheus.Histogram
	slots    [maxKeySlots + 1]prometheus.Counter // by signing key; the last one is all others
	ignored  prometheus.Counter
	panics   prometheus.Counter
}

// newMetrics registers every series at zero, so that a rate has a beginning.
func newMetrics(registerer prometheus.Registerer) (*metrics, error) {
	signatures := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "birdtap_signatures_verified_total",
		Help: "Signed calls that verified, by place of the key in BIRDTAP_SENDBIRD_SIGNING_KEYS, from 1.",
	}, []string{"key"})
	m := &metrics{
		accepted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "birdtap_receipts_accepted_total",
			Help: "Receipts stored, those refused at the door but kept as dead letters included.",
		}),
		unmapped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "birdtap_receipts_unmapped_total",
			Help: "Receipts stored whose user is not in the identity map, whatever became of them.",
		}),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "birdtap_receipts_rejected_total",
			Help: "Calls refused as a whole by reason, and records refused by code.",
		}, []string{"reason"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "birdtap_ingest_seconds",
			Help:    "From the header of a call to its 200, reading and storing the body included.",
			Buckets: []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 4, 15},
		}),
		ignored: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "birdtap_webhooks_ignored_total",
			Help: "Signed webhooks that are no receipts.",
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "birdtap_ingest_panics_total",
			Help: "Calls answered with 500 because the handler panicked.",
		}),
	}
	for _, reason := range callReasons {
		m.rejected.WithLabelValues(reason)
	}
	for _, code := range recordCodes {
		m.rejected.WithLabelValues(strconv.Itoa(int(code)))
	}
	for i := range maxKeySlots {
		m.slots[i] = signatures.WithLabelValues(strconv.Itoa(i + 1))
	}
	m.slots[maxKeySlots] = signatures.WithLabelValues("other")
	for _, c := range []prometheus.Collector{m.accepted, m.unmapped, m.rejected, m.seconds, signatures, m.ignored, m.panics} {
		if err := registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) verified(slot int) { m.slots[min(slot, maxKeySlots)].Inc() }
