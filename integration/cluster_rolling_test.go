//go:build integration

package integration

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/birdtap/birdtap/integration/history"
)

// rollingReceipts is the least that is sent over a rolling restart.
const rollingReceipts = 20_000

// Every node, relay and ingest is stopped and started, one after the other, as for a new
// version. No caller behind the balancer is answered anything but 2xx, and nobody tries
// anything twice.
func (f *fleet) rollingRestart(t *testing.T) {
	seed := seedOf(t)
	b := newBalancer(t, f.ingests)
	f.begin(history.Options{
		Run: "rolling", Seed: seed, Doors: []string{b.url + "/1/upload"}, Rate: 1000,
		Several: 0.01, GiveUp: 1,
	})
	log := f.client.Log()
	moreOK(t, log, 300, readyWithin)
	before := f.account().Relay.Term
	asItWas := func(m *machine) { m.start() }
	for _, m := range f.nodes {
		f.replace(m, "restarted", asItWas)
	}
	for _, m := range f.relays {
		f.replace(m, "restarted", asItWas)
	}
	for i, m := range f.ingests {
		b.drain(i)
		f.replace(m, "restarted", asItWas)
		b.admit(i)
	}
	if err := log.Wait(t.Context(), func(c history.Counts) bool { return c.Sent >= rollingReceipts }); err != nil {
		t.Fatal(err)
	}
	f.stop()
	if c := log.Counts(); c.OK+c.Refused != c.Sent {
		t.Errorf("of %d receipts %d were not answered 2xx", c.Sent, c.Sent-c.OK-c.Refused)
	}
	f.finish(seed, (f.account().Relay.Term-before)*outAtOnce)
}

// replace stops a machine while all else goes on, has another one take its place, and
// waits until all is well.
func (f *fleet) replace(m *machine, how string, by func(*machine)) {
	f.t.Helper()
	log := f.client.Log()
	bad := log.Counts().Attempts - log.Counts().Taken
	began := time.Now()
	if code := m.terminate(stopWithin); code != 0 && code != natsCode {
		f.t.Errorf("SIGTERM ended %s with code %d, want 0", m.name, code)
	}
	stopped := time.Since(began)
	moreOK(f.t, log, 100, time.Minute)
	by(m)
	f.mayGoOn()
	now := log.Counts()
	f.t.Logf("%s %s: stopped within %.2f s, whole again after %.1f s; %d receipts under way or not answered 2xx (%d before)",
		m.name, how, stopped.Seconds(), time.Since(began).Seconds(), now.Attempts-now.Taken, bad)
	f.faults = append(f.faults, m.name+" "+how)
}

// mayGoOn waits until deploy/README.md lets an operator go on: status says that every server
// has every stream, and every daemon is ready.
func (f *fleet) mayGoOn() {
	f.t.Helper()
	eventually(f.t, wholeWithin, "status says that every server has every stream", func() bool {
		on, err := f.replicas()
		for _, name := range fleetStreams {
			if on[name] != "3 of 3" {
				return false
			}
		}
		return err == nil
	})
	f.whole()
}

// natsCode is what nats-server ends with after SIGTERM.
const natsCode = 1

// balancer stands before the ingests as one does in a data centre: it spreads calls over
// those that are ready, tries none twice, and before one of them is stopped it is told
// so.
type balancer struct {
	url      string
	backends []*backend
	next     atomic.Int64
}

type backend struct {
	proxy    *httputil.ReverseProxy
	ready    atomic.Bool
	mu       sync.RWMutex // read while a call is under way
	draining atomic.Bool
}

// checkEvery is between two health checks.
const checkEvery = 200 * time.Millisecond

func newBalancer(t *testing.T, ingests []*machine) *balancer {
	t.Helper()
	b := &balancer{}
	ctx, cancel := context.WithCancel(t.Context())
	var checks sync.WaitGroup
	for _, m := range ingests {
		to, err := url.Parse("http://" + m.ports[doorPort])
		if err != nil {
			t.Fatal(err)
		}
		back := &backend{proxy: &httputil.ReverseProxy{
			Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(to) },
			Transport: &http.Transport{MaxIdleConnsPerHost: 64},
		}}
		back.ready.Store(m.ready())
		b.backends = append(b.backends, back)
		checks.Go(func() {
			tick := time.NewTicker(checkEvery)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					back.ready.Store(m.ready())
				case <-ctx.Done():
					return
				}
			}
		})
	}
	s := httptest.NewServer(b)
	b.url = s.URL
	t.Cleanup(func() { cancel(); checks.Wait(); s.Close() })
	return b
}

func (b *balancer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	back := b.pick()
	back.mu.RLock()
	defer back.mu.RUnlock()
	back.proxy.ServeHTTP(w, r)
}

// pick takes turns among those that are ready. With none, any that is there is as good.
func (b *balancer) pick() *backend {
	turn, n := int(b.next.Add(1)), len(b.backends)
	var there *backend
	for i := range n {
		back := b.backends[(turn+i)%n]
		switch {
		case back.draining.Load():
		case back.ready.Load():
			return back
		default:
			there = back
		}
	}
	if there == nil {
		return b.backends[turn%n]
	}
	return there
}

// drain gives a backend no more calls, and waits for those it has.
func (b *balancer) drain(i int) {
	back := b.backends[i]
	back.draining.Store(true)
	back.mu.Lock()
	back.proxy.Transport.(*http.Transport).CloseIdleConnections()
	back.mu.Unlock()
}

// admit gives a backend calls again.
func (b *balancer) admit(i int) { b.backends[i].draining.Store(false) }
