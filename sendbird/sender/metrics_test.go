package sender

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// shows waits until a sender's gauge that tells whether it is active has a value.
func (r *rig) shows(who string, registry *prometheus.Registry, want float64) {
	r.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for active(r.t, registry) != want {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s does not show %v", who, want)
		}
		wait(r.t.Context(), 5*time.Millisecond)
	}
}

func active(t *testing.T, registry *prometheus.Registry) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "birdtap_sender_active" {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatal("birdtap_sender_active is not shown")
	return 0
}

// Of two senders one shows that it is active: the first while the other stands by, the
// other once the first has stopped, and none that has lost the term or stopped.
func TestMetricTellsWhoIsActive(t *testing.T) {
	t.Parallel()
	r := newRig(t).open(listening)
	first, second := prometheus.NewRegistry(), prometheus.NewRegistry()
	r.opts.Registerer = first
	r.open(attached).start()
	stopFirst, firstDone := r.stop, r.done
	r.shows("the first", first, 1)

	r.opts.Registerer = second
	r.open(attached).start()
	r.ask("one", realtime(users(0, 5)))
	r.settled()
	if active(t, first) != 1 || active(t, second) != 0 {
		t.Fatal("it is not the first alone that is active")
	}

	stopFirst()
	if err := <-firstDone; err != nil {
		t.Fatal(err)
	}
	if active(t, first) != 0 {
		t.Error("active after its end")
	}
	r.shows("the second", second, 1)

	cp, rev, err := readCheckpoint(t.Context(), r.sends)
	if err != nil {
		t.Fatal(err)
	}
	third := &lease{sends: r.sends, rev: rev, self: "third", term: cp.Term + 1, write: cp.Write}
	if err := third.takeOver(t.Context(), &cp); err != nil {
		t.Fatal(err)
	}
	r.ask("two", realtime(users(5, 1))) // so that it has something to write
	r.shows("the second, whose term is over,", second, 0)

	r.shows("the second, after a third that says no more,", second, 1)
	r.settled()
	r.halt()
	if active(t, second) != 0 {
		t.Error("active after its end")
	}
}
