package check

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

const (
	alertsFile    = "../helm/birdtap/files/alerts.yaml"
	dashboardFile = "../helm/birdtap/files/dashboard.json"
)

var promQL = parser.NewParser(parser.Options{})

func readRules(t *testing.T) *rulefmt.RuleGroups {
	t.Helper()
	text, err := os.ReadFile(alertsFile)
	if err != nil {
		t.Fatal(err)
	}
	groups, errs := rulefmt.Parse(text, false, model.LegacyValidation, promQL, slog.New(slog.DiscardHandler))
	if len(errs) > 0 {
		t.Fatalf("%s: %v", alertsFile, errs)
	}
	return groups
}

// expressions are all queries of the rules and of the dashboard.
func expressions(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, g := range readRules(t).Groups {
		for _, r := range g.Rules {
			all = append(all, r.Expr)
		}
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	text, err := os.ReadFile(dashboardFile)
	if err == nil {
		err = json.Unmarshal(text, &dashboard)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			// Grafana's own variable, which is a duration by the time Prometheus reads it.
			all = append(all, strings.ReplaceAll(target.Expr, "$__rate_interval", "1m"))
		}
	}
	if len(all) < 40 {
		t.Fatalf("only %d expressions", len(all))
	}
	return all
}

// Every metric that a rule or a panel asks for is one that a running birdtap shows, one
// that is recorded here, or Prometheus' own.
func TestEveryMetricExists(t *testing.T) {
	known, err := metrics()
	if err != nil {
		t.Fatal(err)
	}
	known = append(slices.Clone(known), "up")
	for _, g := range readRules(t).Groups {
		for _, r := range g.Rules {
			if r.Record != "" {
				known = append(known, r.Record)
			}
		}
	}
	asked := map[string]bool{}
	for _, text := range expressions(t) {
		e, err := promQL.ParseExpr(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
			if v, ok := n.(*parser.VectorSelector); ok {
				asked[v.Name] = true
				if !slices.Contains(known, v.Name) {
					t.Errorf("%s: birdtap shows no %s", text, v.Name)
				}
			}
			return nil
		})
	}
	// And the other way round: what birdtap counts is to be seen somewhere.
	for _, name := range known {
		if strings.HasPrefix(name, "birdtap_") && !strings.HasSuffix(name, "_sum") && !strings.HasSuffix(name, "_count") && !asked[name] {
			t.Errorf("no rule and no panel shows %s", name)
		}
	}
}

// Each alert is explained, under its name, to whoever it wakes.
func TestEveryAlertHasALineInTheReadme(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	alerts := map[string]bool{}
	for _, g := range readRules(t).Groups {
		for _, r := range g.Rules {
			if r.Alert == "" {
				continue
			}
			alerts[r.Alert] = true
			if !strings.Contains(string(readme), "| `"+r.Alert+"` |") {
				t.Errorf("README.md says nothing of %s", r.Alert)
			}
			if r.Labels["severity"] == "" || r.Annotations["summary"] == "" {
				t.Errorf("%s has no severity or no summary", r.Alert)
			}
		}
	}
	for _, match := range regexp.MustCompile("`(Birdtap[A-Za-z]+)`").FindAllStringSubmatch(string(readme), -1) {
		if !alerts[match[1]] {
			t.Errorf("README.md explains %s, which is no alert", match[1])
		}
	}
}

// healthy is an installation that nothing is wrong with, as values a minute apart.
var healthy = []string{
	`up{job="birdtap",instance="ingest-1"} 1x300`,
	`up{job="birdtap",instance="relay-1"} 1x300`,
	`birdtap_ready{job="birdtap",instance="ingest-1"} 1x300`,
	`birdtap_ready{job="birdtap",instance="relay-1"} 1x300`,
	`birdtap_receipts_accepted_total{job="birdtap",instance="ingest-1"} 0+600x300`,
	`birdtap_receipts_rejected_total{job="birdtap",instance="ingest-1",reason="unavailable"} 0x300`,
	`birdtap_receipts_rejected_total{job="birdtap",instance="ingest-1",reason="signature"} 0x300`,
	`birdtap_receipts_rejected_total{job="birdtap",instance="ingest-1",reason="unauthorized"} 0x300`,
	`birdtap_receipts_rejected_total{job="birdtap",instance="ingest-1",reason="signed_malformed"} 0x300`,
	`birdtap_receipts_rejected_total{job="birdtap",instance="ingest-1",reason="not_found"} 0+5x300`,
	`birdtap_ingest_panics_total{job="birdtap",instance="ingest-1"} 0x300`,
	`birdtap_commit_seconds_bucket{job="birdtap",instance="ingest-1",le="0.1"} 0+600x300`,
	`birdtap_commit_seconds_bucket{job="birdtap",instance="ingest-1",le="3.2"} 0+600x300`,
	`birdtap_commit_seconds_bucket{job="birdtap",instance="ingest-1",le="+Inf"} 0+600x300`,
	`birdtap_relay_active{job="birdtap",instance="relay-1"} 1x300`,
	`birdtap_relay_active{job="birdtap",instance="relay-2"} 0x300`,
	`birdtap_breaker_open{job="birdtap",instance="relay-1"} 0x300`,
	`birdtap_breaker_open{job="birdtap",instance="relay-2"} 0x300`,
	`birdtap_queue_bytes{job="birdtap",instance="relay-1"} 1000x300`,
	`birdtap_queue_bytes{job="birdtap",instance="relay-2"} 0x300`,
	`birdtap_queue_max_bytes{job="birdtap",instance="relay-1"} 8589934592x300`,
	`birdtap_queue_max_bytes{job="birdtap",instance="relay-2"} 0x300`,
	`birdtap_dead_bytes{job="birdtap",instance="relay-1"} 1000x300`,
	`birdtap_dead_max_bytes{job="birdtap",instance="relay-1"} 1000000x300`,
	`birdtap_dead_max_bytes{job="birdtap",instance="relay-2"} 0x300`,
	`birdtap_checkpoint_failures_total{job="birdtap",instance="relay-1"} 2x300`,
	`birdtap_queue_oldest_seconds{job="birdtap",instance="relay-1"} 1x300`,
	`birdtap_queue_oldest_seconds{job="birdtap",instance="relay-2"} 0x300`,
	`birdtap_frames_missing_total{job="birdtap",instance="relay-1"} 0x300`,
	`birdtap_receipts_dead_total{job="birdtap",instance="relay-1",reason="512"} 7x300`,
	`birdtap_checkpoint_seconds_bucket{job="birdtap",instance="relay-1",le="0.1"} 0+40x300`,
	`birdtap_checkpoint_seconds_bucket{job="birdtap",instance="relay-1",le="3.2"} 0+40x300`,
	`birdtap_checkpoint_seconds_bucket{job="birdtap",instance="relay-1",le="+Inf"} 0+40x300`,
	`birdtap_sender_calls_total{job="birdtap",instance="sender-1",answer="accepted"} 0+60x300`,
	`birdtap_sender_calls_total{job="birdtap",instance="sender-1",answer="test"} 0+1x300`,
	`birdtap_sender_calls_total{job="birdtap",instance="sender-1",answer="not_found"} 0+1x300`,
	`birdtap_sender_calls_total{job="birdtap",instance="sender-1",answer="unavailable"} 0x300`,
	`birdtap_sender_calls_total{job="birdtap",instance="sender-1",answer="mistake"} 0x300`,
	`birdtap_sender_active{job="birdtap",instance="sender-1"} 1x300`,
	`birdtap_sender_active{job="birdtap",instance="sender-2"} 0x300`,
	`birdtap_sends_held{job="birdtap",instance="sender-1"} 0x300`,
	`birdtap_sends_held{job="birdtap",instance="sender-2"} 0x300`,
	`birdtap_sends_stopped{job="birdtap",instance="sender-1"} 0x300`,
	`birdtap_sends_total{job="birdtap",instance="sender-1",mode="batch",outcome="sent"} 0+60x300`,
	`birdtap_sends_total{job="birdtap",instance="sender-1",mode="batch",outcome="refused"} 5x300`,
}

// Each alert fires for what it is made for, not before its time, and nothing else does.
func TestAlerts(t *testing.T) {
	const at = `{job="birdtap",instance="relay-1"} `
	for name, tt := range map[string]struct {
		series []string         // in place of a healthy one, or beside them
		gone   []string         // names of metrics that are not there
		fires  map[int][]string // what fires, by minute
	}{
		"healthy": {fires: map[int][]string{5: nil, 90: nil, 299: nil}},
		"process down": {
			series: []string{`up{job="birdtap",instance="ingest-1"} 1x10 0x100`},
			fires:  map[int][]string{12: nil, 13: {"BirdtapDown"}},
		},
		"not ready": {
			series: []string{`birdtap_ready{job="birdtap",instance="ingest-1"} 1x10 0x100`},
			fires:  map[int][]string{12: nil, 13: {"BirdtapNotReady"}},
		},
		"a server lacks a part": {
			series: []string{"birdtap_queue_replicas" + at + "3x100", "birdtap_queue_replicas_current" + at + "3x10 2x20 3x70"},
			fires:  map[int][]string{25: nil, 27: {"BirdtapQueueLacksReplica"}, 33: nil},
		},
		"checkpoint fails": {
			series: []string{"birdtap_checkpoint_failures_total" + at + "2x10 3+2x100"},
			fires:  map[int][]string{11: nil, 20: {"BirdtapCheckpointFails"}},
		},
		"checkpoint failed once": {
			series: []string{"birdtap_checkpoint_failures_total" + at + "2x10 3x100"},
			fires:  map[int][]string{12: nil, 20: nil},
		},
		"dead letters half full": {
			series: []string{"birdtap_dead_bytes" + at + "1000x10 600000x100"},
			fires:  map[int][]string{15: nil, 17: {"BirdtapDeadLettersHalfFull"}},
		},
		"size not known": {
			series: []string{"birdtap_queue_max_bytes" + at + "0x300", "birdtap_dead_max_bytes" + at + "0x300"},
			fires:  map[int][]string{60: nil},
		},
		"webhooks turned away": {
			series: []string{`birdtap_sender_calls_total{job="birdtap",instance="sender-1",answer="unavailable"} 0x10 0+6x100`},
			fires:  map[int][]string{10: nil, 14: {"BirdtapTurnsWebhooksAway"}},
		},
		"webhooks refused": {
			series: []string{`birdtap_sender_calls_total{job="birdtap",instance="sender-1",answer="mistake"} 0x10 1x100`},
			fires:  map[int][]string{10: nil, 12: {"BirdtapWebhooksNotUnderstood"}, 40: nil},
		},
		"held": {
			series: []string{`birdtap_sends_held{job="birdtap",instance="sender-2"} 0x10 1x100`},
			fires:  map[int][]string{15: nil, 16: {"BirdtapSendsHeld"}, 90: {"BirdtapSendsHeld"}},
		},
		"stopped": {
			series: []string{`birdtap_sends_stopped{job="birdtap",instance="sender-1"} 0x10 1x100`},
			fires:  map[int][]string{15: nil, 16: {"BirdtapSendsStopped"}},
		},
		"refused": {
			series: []string{`birdtap_sends_total{job="birdtap",instance="sender-1",mode="batch",outcome="refused"} 5x10 9x100`},
			fires:  map[int][]string{11: nil, 20: {"BirdtapSendsRefused"}, 90: nil},
		},
		"503": {
			series: []string{`birdtap_receipts_rejected_total{job="birdtap",instance="ingest-1",reason="unavailable"} 0x10 0+6x100`},
			fires:  map[int][]string{10: nil, 14: {"BirdtapTurnsReceiptsAway"}},
		},
		"nobody takes receipts": {
			gone:  []string{"birdtap_receipts_accepted_total"},
			fires: map[int][]string{1: nil, 3: {"BirdtapNoDoor"}},
		},
		"frames gone": {
			series: []string{"birdtap_frames_missing_total" + at + "0x10 3x100"},
			fires:  map[int][]string{10: nil, 12: {"BirdtapFramesMissing"}, 40: nil},
		},
		"panic": {
			series: []string{`birdtap_ingest_panics_total{job="birdtap",instance="ingest-1"} 0x10 1x100`},
			fires:  map[int][]string{10: nil, 12: {"BirdtapPanics"}},
		},
		"breaker": {
			series: []string{"birdtap_breaker_open" + at + "0x10 1x100"},
			fires:  map[int][]string{15: nil, 16: {"BirdtapBreakerOpen"}},
		},
		"breaker for a moment": {
			series: []string{"birdtap_breaker_open" + at + "0x10 1x3 0x100"},
			fires:  map[int][]string{15: nil, 30: nil},
		},
		"a receipt waits": {
			series: []string{"birdtap_queue_oldest_seconds" + at + "0+60x100"},
			fires:  map[int][]string{15: nil, 16: {"BirdtapOldestReceiptWaits"}},
		},
		"nobody uploads": {
			series: []string{"birdtap_relay_active" + at + "1x10 0x100"},
			fires:  map[int][]string{11: nil, 12: {"BirdtapNoActiveRelay"}},
		},
		"a hand-over": {
			series: []string{"birdtap_relay_active" + at + "1x10 0x100", `birdtap_relay_active{job="birdtap",instance="relay-2"} 0x11 1x100`},
			fires:  map[int][]string{11: nil, 12: nil, 20: nil},
		},
		"nobody sends": {
			series: []string{`birdtap_sender_active{job="birdtap",instance="sender-1"} 1x10 0x100`},
			fires:  map[int][]string{11: nil, 12: {"BirdtapNoActiveSender"}, 90: {"BirdtapNoActiveSender"}},
		},
		"a sender's hand-over": {
			series: []string{
				`birdtap_sender_active{job="birdtap",instance="sender-1"} 1x10 0x100`,
				`birdtap_sender_active{job="birdtap",instance="sender-2"} 0x11 1x100`,
			},
			fires: map[int][]string{11: nil, 12: nil, 20: nil},
		},
		"no sender at all": {
			gone:  []string{"birdtap_sender_active"},
			fires: map[int][]string{5: nil, 90: nil},
		},
		"one of two pods with a queue each does not upload": {
			series: []string{
				`birdtap_relay_active{job="birdtap",namespace="a",pod="birdtap-0",instance="a:1",app_kubernetes_io_component="serve"} 1x100`,
				`birdtap_relay_active{job="birdtap",namespace="a",pod="birdtap-1",instance="a:2",app_kubernetes_io_component="serve"} 1x10 0x100`,
			},
			fires: map[int][]string{11: nil, 12: {"BirdtapNoActiveRelay"}},
		},
		"no relay at all": {
			gone:  []string{"birdtap_relay_active"},
			fires: map[int][]string{0: nil, 1: {"BirdtapNoActiveRelay"}},
		},
		"checkpoint slow": {
			series: []string{
				`birdtap_checkpoint_seconds_bucket{job="birdtap",instance="relay-1",le="0.1"} 0+40x10 400x100`,
				`birdtap_checkpoint_seconds_bucket{job="birdtap",instance="relay-1",le="3.2"} 0+40x100`,
			},
			fires: map[int][]string{10: nil, 25: {"BirdtapCheckpointSlow"}},
		},
		"disk slow": {
			series: []string{
				`birdtap_commit_seconds_bucket{job="birdtap",instance="ingest-1",le="0.1"} 0+600x10 6000+540x100`,
				`birdtap_commit_seconds_bucket{job="birdtap",instance="ingest-1",le="3.2"} 0+600x100`,
			},
			fires: map[int][]string{10: nil, 25: {"BirdtapCommitSlow"}},
		},
		"a quarter full": {
			series: []string{"birdtap_queue_bytes" + at + "2200000000x300"},
			fires:  map[int][]string{4: nil, 5: {"BirdtapQueueQuarterFull"}, 200: {"BirdtapQueueQuarterFull"}},
		},
		"half full": {
			series: []string{"birdtap_queue_bytes" + at + "4400000000x300"},
			fires:  map[int][]string{4: nil, 6: {"BirdtapQueueHalfFull", "BirdtapQueueQuarterFull"}},
		},
		"full within a day": { // 10 MB a minute
			series: []string{"birdtap_queue_bytes" + at + "0+10000000x300"},
			fires:  map[int][]string{20: nil, 60: {"BirdtapQueueFullWithinADay"}, 200: {"BirdtapQueueFullWithinADay"}},
		},
		"full in three days": { // 2 MB a minute
			series: []string{"birdtap_queue_bytes" + at + "0+2000000x300"},
			fires:  map[int][]string{60: nil, 200: nil},
		},
		"dead letters": {
			series: []string{`birdtap_receipts_dead_total{job="birdtap",instance="relay-1",reason="512"} 0x10 9x100`},
			fires:  map[int][]string{11: nil, 20: {"BirdtapDeadLettersGrow"}, 90: nil},
		},
		"dead letters of a code that nobody knew": {
			series: []string{`birdtap_receipts_dead_total{job="birdtap",instance="relay-1",reason="599"} _x90 9x200`},
			fires:  map[int][]string{89: nil, 97: {"BirdtapDeadLettersGrow"}, 145: {"BirdtapDeadLettersGrow"}, 160: nil},
		},
		"signatures": {
			series: []string{`birdtap_receipts_rejected_total{job="birdtap",instance="ingest-1",reason="signature"} 0x10 0+6x100`},
			fires:  map[int][]string{12: nil, 20: {"BirdtapSignaturesFail"}},
		},
		"credentials": {
			series: []string{`birdtap_receipts_rejected_total{job="birdtap",instance="ingest-1",reason="unauthorized"} 0x10 0+6x100`},
			fires:  map[int][]string{12: nil, 20: {"BirdtapCredentialsFail"}},
		},
		"not understood": {
			series: []string{`birdtap_receipts_rejected_total{job="birdtap",instance="ingest-1",reason="signed_malformed"} 0x10 1x100`},
			fires:  map[int][]string{10: nil, 12: {"BirdtapNotUnderstood"}},
		},
		"bodies of anybody": { // judged before the signature is
			series: []string{`birdtap_receipts_rejected_total{job="birdtap",instance="ingest-1",reason="encoding"} 0x10 1x100`},
			fires:  map[int][]string{10: nil, 12: {"BirdtapBodiesRefused"}, 40: nil},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := newMemory(t, tt.series, tt.gone)
			last := slices.Max(slices.Collect(maps.Keys(tt.fires)))
			since := map[string]int{}
			for minute := 0; minute <= last; minute++ {
				firing := db.evaluate(t, minute, since)
				if want, judged := tt.fires[minute]; judged && !slices.Equal(firing, slices.Sorted(slices.Values(want))) {
					t.Errorf("minute %d: %v fire, want %v", minute, firing, want)
				}
			}
		})
	}
}

// memory is a Prometheus without a disk.
type memory struct {
	series map[string]*series // by their labels
	groups *rulefmt.RuleGroups
	engine *promql.Engine
}

type series struct {
	labels  labels.Labels
	samples []chunks.Sample
}

func newMemory(t *testing.T, replaced, gone []string) *memory {
	t.Helper()
	m := &memory{
		series: map[string]*series{}, groups: readRules(t),
		engine: promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute, Parser: promQL}),
	}
	for _, text := range slices.Concat(healthy, replaced) {
		l, values, err := promQL.ParseSeriesDesc(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if slices.Contains(gone, l.Get(model.MetricNameLabel)) {
			continue
		}
		s := &series{labels: l}
		for minute, v := range values {
			if !v.Omitted {
				s.samples = append(s.samples, sample{minuteMillis(minute), v.Value})
			}
		}
		m.series[l.String()] = s
	}
	return m
}

func minuteMillis(minute int) int64 { return int64(minute) * time.Minute.Milliseconds() }

// evaluate runs all rules for one minute and returns the alerts that fire. since notes
// from when on each has been true.
func (m *memory) evaluate(t *testing.T, minute int, since map[string]int) []string {
	t.Helper()
	var firing []string
	for _, g := range m.groups.Groups {
		for _, r := range g.Rules {
			found := m.query(t, r.Expr, minute)
			if r.Record != "" {
				for _, s := range found {
					m.record(r.Record, minute, s)
				}
				continue
			}
			if len(found) == 0 {
				delete(since, r.Alert)
				continue
			}
			if _, pending := since[r.Alert]; !pending {
				since[r.Alert] = minute
			}
			if time.Duration(minute-since[r.Alert])*time.Minute >= time.Duration(r.For) {
				firing = append(firing, r.Alert)
			}
		}
	}
	slices.Sort(firing)
	return slices.Compact(firing)
}

func (m *memory) query(t *testing.T, expr string, minute int) promql.Vector {
	t.Helper()
	q, err := m.engine.NewInstantQuery(t.Context(), m, nil, expr, time.UnixMilli(minuteMillis(minute)))
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	defer q.Close()
	result := q.Exec(t.Context())
	if result.Err != nil {
		t.Fatalf("%s: %v", expr, result.Err)
	}
	vector, err := result.Vector()
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	return slices.Clone(vector)
}

func (m *memory) record(name string, minute int, s promql.Sample) {
	l := labels.NewBuilder(s.Metric).Set(model.MetricNameLabel, name).Labels()
	if m.series[l.String()] == nil {
		m.series[l.String()] = &series{labels: l}
	}
	at := m.series[l.String()]
	at.samples = append(at.samples, sample{minuteMillis(minute), s.F})
}

// Querier makes it what the engine asks.
func (m *memory) Querier(from, to int64) (storage.Querier, error) {
	return querier{m, from, to}, nil
}

type querier struct {
	*memory
	from, to int64
}

func (q querier) Select(_ context.Context, _ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	set := &seriesSet{}
	for _, key := range slices.Sorted(maps.Keys(q.series)) {
		s := q.series[key]
		if slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(s.labels.Get(m.Name)) }) {
			continue
		}
		var inside []chunks.Sample
		for _, v := range s.samples {
			if v.T() >= q.from && v.T() <= q.to {
				inside = append(inside, v)
			}
		}
		if len(inside) > 0 {
			set.rest = append(set.rest, storage.NewListSeries(s.labels, inside))
		}
	}
	return set
}

func (querier) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

func (querier) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

func (querier) Close() error { return nil }

type seriesSet struct {
	at   storage.Series
	rest []storage.Series
}

func (s *seriesSet) Next() bool {
	if len(s.rest) == 0 {
		return false
	}
	s.at, s.rest = s.rest[0], s.rest[1:]
	return true
}

func (s *seriesSet) At() storage.Series              { return s.at }
func (*seriesSet) Err() error                        { return nil }
func (*seriesSet) Warnings() annotations.Annotations { return nil }

// sample is a value at a time in Unix ms.
type sample struct {
	t int64
	f float64
}

func (s sample) T() int64                    { return s.t }
func (sample) ST() int64                     { return 0 }
func (s sample) F() float64                  { return s.f }
func (sample) H() *histogram.Histogram       { return nil }
func (sample) FH() *histogram.FloatHistogram { return nil }
func (sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample         { return s }
