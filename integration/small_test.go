//go:build integration

package integration

import (
	"bytes"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
)

// In a container of 128 MiB several callers send the largest bodies there may be, all at
// once: nobody is killed, with little processor neither, and what was answered 200 arrives.
func TestLargestBodiesInASmallContainer(t *testing.T) {
	t.Parallel()
	d := newDocker(t)
	image := d.image(birdtapBinary(t), nil)
	d.run(d.image(fakeBinary(t), nil), []string{"clevertap"},
		testcontainers.WithCmd("-latency", "20ms", "-account", accountID, "-passcode", passcode),
		testcontainers.WithExposedPorts(fakePort+"/tcp"),
		testcontainers.WithWaitStrategyAndDeadline(startWithin, wait.ForHTTP("/-/counts").WithPort(fakePort+"/tcp")))
	for name, processors := range map[string]float64{"one-processor": 1, "a-tenth-of-a-processor": 0.1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := d.of(t).small(image, name, processors)
			door, window := endpoint(t, c, "8080/tcp", "http")+"/1/upload", endpoint(t, c, "9090/tcp", "http")
			const callers, posts = 4, 2
			taken, answers := postLargest(t, name, door, callers, posts)
			t.Logf("%d receipts taken in; answers %v", taken, answers)
			// 0: there was none within the five seconds that Sendbird waits.
			if answers[http.StatusOK]+answers[http.StatusServiceUnavailable]+answers[0] != callers*posts || processors == 1 && taken == 0 {
				t.Errorf("answers %v, want 200 and 503", answers)
			}
			eventually(t, 5*time.Minute, "everything is delivered", func() bool {
				metrics := get(window + "/metrics")
				return get(window+"/healthz") != "" && metricIn(metrics, "birdtap_receipts_delivered_total") >= float64(taken) &&
					metricIn(metrics, "birdtap_queue_depth") == 0
			})
			state, err := c.State(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if state.OOMKilled || !state.Running {
				t.Errorf("the container is killed for its memory: %v, running: %v", state.OOMKilled, state.Running)
			}
		})
	}
}

// small starts birdtap with its own queue in a container of 128 MiB.
func (d *docker) small(image, name string, processors float64) *testcontainers.DockerContainer {
	d.t.Helper()
	return d.run(image, []string{name},
		testcontainers.WithCmd("serve"),
		testcontainers.WithEnv(map[string]string{
			"BIRDTAP_OPS_ADDR": ":9090", "BIRDTAP_OPS_TOKEN": "TEST-TOKEN", "BIRDTAP_DATA_DIR": "/data",
			"BIRDTAP_QUEUE_MAX_BYTES": "256MiB", "BIRDTAP_DEAD_MAX_BYTES": "16MiB", "BIRDTAP_KEEP_MAX_BYTES": "64MiB",
			"BIRDTAP_CLEVERTAP_URL":        "http://clevertap:" + fakePort,
			"BIRDTAP_CLEVERTAP_ACCOUNT_ID": accountID, "BIRDTAP_CLEVERTAP_PASSCODE": passcode,
		}),
		testcontainers.WithHostConfigModifier(func(c *container.HostConfig) {
			c.Memory, c.MemorySwap = 128<<20, 128<<20 // together: no swap
			c.NanoCPUs = int64(processors * 1e9)
		}),
		testcontainers.WithExposedPorts("8080/tcp", "9090/tcp"),
		testcontainers.WithWaitStrategyAndDeadline(startWithin, wait.ForHTTP("/readyz").WithPort("9090/tcp")))
}

// postLargest has callers post bodies of nearly 5 MiB, all at once, and returns how many
// receipts were answered 200, and how often each status came.
func postLargest(t *testing.T, run, door string, callers, posts int) (taken int, answers map[int]int) {
	t.Helper()
	answers = map[int]int{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for caller := range callers {
		all.Go(func() {
			for post := range posts {
				body, n := largest(fmt.Sprintf("%s-%d-%d", run, caller, post), 100)
				got := postTo(t.Context(), door, passcode, body)
				mu.Lock()
				if answers[got.status]++; got.status == http.StatusOK {
					taken += n
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return taken, answers
}

// largest is a call of nearly 5 MiB, and how many receipts it has. Each is of a user of
// its own, and bears a note of so many bytes.
func largest(prefix string, note int) ([]byte, int) {
	var b bytes.Buffer
	b.WriteString(`{"d":[`)
	n := 0
	for b.Len() < 5<<20-1<<10 {
		if n > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"identity":"%s-%d","evtName":"Order Shipped","evtData":{"status":"SENT","target_id":%d,"note":"%s"}}`,
			prefix, n, n, strings.Repeat("n", note))
		n++
	}
	b.WriteString(`]}`)
	return b.Bytes(), n
}

// metricIn is the value of a metric without labels; 0 where there is none.
func metricIn(metrics, name string) float64 {
	for line := range strings.Lines(metrics) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			v, _ := strconv.ParseFloat(value, 64)
			return v
		}
	}
	return 0
}
