//go:build integration

package integration

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// watch looks at a daemon from outside, all the time.
type watch struct {
	window string

	mu      sync.Mutex
	pid     int // 0: none runs
	since   time.Time
	samples []sample
	hwm     int64 // the most memory that any ever had, in bytes
}

// sample is what a daemon takes at one moment.
type sample struct {
	rss        int64 // bytes
	fds        int
	goroutines int
}

// sampleEvery is between two samples; warmUp is the age of a daemon before its first.
const (
	sampleEvery = 500 * time.Millisecond
	warmUp      = 2 * time.Second
)

// newWatch looks until the test ends, and calls also each time.
func newWatch(t *testing.T, window string, also func()) *watch {
	w := &watch{window: window}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(sampleEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				w.look()
				also()
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

// follow says which process to look at from now on; 0 for none.
func (w *watch) follow(pid int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pid, w.since = pid, time.Now()
}

func (w *watch) look() {
	w.mu.Lock()
	pid, since := w.pid, w.since
	w.mu.Unlock()
	if pid == 0 {
		return
	}
	s := sample{rss: memoryOf(pid, "VmRSS"), fds: descriptorsOf(pid)}
	hwm := memoryOf(pid, "VmHWM")
	goroutines, ok := w.metric("go_goroutines")
	s.goroutines = int(goroutines)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pid != pid {
		return
	}
	w.hwm = max(w.hwm, hwm)
	if ok && time.Since(since) > warmUp {
		w.samples = append(w.samples, s)
	}
}

// metric is the value of a metric without labels.
func (w *watch) metric(name string) (float64, bool) {
	for line := range strings.Lines(get("http://" + w.window + "/metrics")) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			v, err := strconv.ParseFloat(text, 64)
			return v, err == nil
		}
	}
	return 0, false
}
