package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// buildBirdtap builds the binary as it is shipped.
func buildBirdtap(ctx context.Context, dir string) (string, error) {
	binary := filepath.Join(dir, "birdtap")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", binary, "github.com/birdtap/birdtap/cmd/birdtap")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build birdtap: %w\n%s", err, out)
	}
	return binary, nil
}

// installation is a birdtap with a queue of its own.
type installation struct {
	crew    *crew
	binary  string
	role    string // serve, unless said
	dir     string
	doors   string // host:port
	window  string // host:port
	environ []string
	daemon  *process // the last one started
}

// install prepares one. What is not named here is birdtap's default, as for a user.
func (b *run) install(cleverTap string, settings ...string) (*installation, error) {
	doors, err := freeAddress()
	if err != nil {
		return nil, err
	}
	window, err := freeAddress()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.dir, "queue-")
	if err != nil {
		return nil, err
	}
	return &installation{
		crew: b.crew, binary: b.binary, role: "serve", dir: dir, doors: doors, window: window,
		environ: append([]string{
			"BIRDTAP_HTTP_ADDR=" + doors,
			"BIRDTAP_OPS_ADDR=" + window,
			"BIRDTAP_DATA_DIR=" + filepath.Join(dir, "data"),
			"BIRDTAP_CLEVERTAP_URL=http://" + cleverTap,
			"BIRDTAP_CLEVERTAP_ACCOUNT_ID=" + accountID,
			"BIRDTAP_CLEVERTAP_PASSCODE=" + passcode,
			"BIRDTAP_LOG_LEVEL=warn",
		}, settings...),
	}, nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// readyWithin is far above what any bar allows.
const readyWithin = 2 * time.Minute

// start starts the daemon and waits until it is ready.
func (i *installation) start(ctx context.Context) error {
	if err := i.launch(); err != nil {
		return err
	}
	return i.until(ctx, readyWithin, "birdtap is ready", i.ready)
}

func (i *installation) launch() error {
	cmd := exec.CommandContext(i.crew.ctx, i.binary, i.role)
	cmd.Env = i.environ
	var err error
	i.daemon, err = i.crew.launch(cmd)
	return err
}

// remove kills the daemon and deletes its queue.
func (i *installation) remove() error {
	if i.daemon != nil {
		i.daemon.kill()
	}
	return os.RemoveAll(i.dir)
}

// command runs a birdtap command on the queue.
func (i *installation) command(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, i.binary, args...)
	cmd.Env = i.environ
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("birdtap %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// until looks every 5 ms whether a fact has come true.
func (i *installation) until(ctx context.Context, within time.Duration, what string, fact func() bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("not within %v: %s", within, what))
	defer cancel()
	for !fact() {
		select {
		case <-i.daemon.ended:
			return i.daemon.died()
		default:
		}
		if !pause(ctx, 5*time.Millisecond) {
			return fmt.Errorf("%w; birdtap said: %s", context.Cause(ctx), i.daemon.words)
		}
	}
	return nil
}

func (i *installation) ready() bool {
	resp, err := quick.Get("http://" + i.window + "/readyz")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// quick asks on a new connection each time: an old one may be that of a dead process.
var quick = &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// accepts posts one receipt; true if it was stored.
func (i *installation) accepts(user int) bool {
	c := client{request: newRequest(1), buffer: make([]byte, 4<<10)}
	if c.dial(i.doors) != nil {
		return false
	}
	defer c.conn.Close()
	c.request.number(user)
	c.post()
	return len(c.times) == 1
}

// backAgain is how long a start takes until the first 200 of /readyz and until the
// first receipt is stored, asked for by two who do not wait for each other.
func (i *installation) backAgain(ctx context.Context, user int) (ready, stored time.Duration, err error) {
	began := time.Now()
	if err := i.launch(); err != nil {
		return 0, 0, err
	}
	var both sync.WaitGroup
	var errReady, errStored error
	both.Go(func() {
		errReady = i.until(ctx, readyWithin, "birdtap is ready", i.ready)
		ready = time.Since(began)
	})
	both.Go(func() {
		errStored = i.until(ctx, readyWithin, "birdtap stores a receipt", func() bool { return i.accepts(user) })
		stored = time.Since(began)
	})
	both.Wait()
	return ready, stored, errors.Join(errReady, errStored)
}

// cleverTap is the sink process, seen from the bench.
type cleverTap struct{ address string }

// reset forgets the sums; every answer takes latency from now on.
func (c cleverTap) reset(latency time.Duration) error {
	resp, err := http.PostForm("http://"+c.address+"/reset", url.Values{"latency": {latency.String()}})
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func (c cleverTap) stats() (sinkStats, error) {
	var s sinkStats
	resp, err := http.Get("http://" + c.address + "/stats")
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s)
}

func (c cleverTap) probe(doors string, samples, firstUser int) (probeResult, error) {
	var p probeResult
	resp, err := http.PostForm("http://"+c.address+"/probe", url.Values{
		"address": {doors}, "samples": {strconv.Itoa(samples)}, "first_user": {strconv.Itoa(firstUser)},
	})
	if err != nil {
		return p, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		words := make([]byte, 300)
		n, _ := resp.Body.Read(words)
		return p, errors.New(strings.TrimSpace(string(words[:n])))
	}
	return p, json.NewDecoder(resp.Body).Decode(&p)
}

// memory watches the resident memory of a process.
type memory struct {
	stop    chan struct{}
	ended   sync.WaitGroup
	samples []int64 // bytes
}

const memoryEvery = 50 * time.Millisecond

func watchMemory(pid int) *memory {
	m := &memory{stop: make(chan struct{})}
	m.ended.Go(func() {
		tick := time.NewTicker(memoryEvery)
		defer tick.Stop()
		for {
			if n, err := residentBytes(pid); err == nil {
				m.samples = append(m.samples, n)
			}
			select {
			case <-m.stop:
				return
			case <-tick.C:
			}
		}
	})
	return m
}

// end returns the median and the most, in bytes; zero where nothing can be read.
func (m *memory) end() (median, most int64) {
	close(m.stop)
	m.ended.Wait()
	if len(m.samples) == 0 {
		return 0, 0
	}
	slices.Sort(m.samples)
	return quantile(m.samples, 0.5), m.samples[len(m.samples)-1]
}

// residentBytes reads VmRSS, which Linux counts exactly, mapped files included.
func residentBytes(pid int) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	return parseResident(string(status))
}

func parseResident(status string) (int64, error) {
	_, after, ok := strings.Cut(status, "\nVmRSS:")
	fields := strings.Fields(after)
	if !ok || len(fields) < 2 {
		return 0, errors.New("no VmRSS")
	}
	n, err := strconv.ParseInt(fields[0], 10, 64)
	return n << 10, err
}

// processorTime is what a process has used, user and system.
func processorTime(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseProcessorTime(string(stat))
}

// parseProcessorTime reads utime and stime, fields 14 and 15. The second field is the
// program's name in brackets and may hold anything.
func parseProcessorTime(stat string) (time.Duration, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, errors.New("no processor time")
	}
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	const tick = time.Second / 100 // USER_HZ, the same on all of Linux' architectures that Go knows
	return time.Duration(user+system) * tick, errors.Join(err1, err2)
}
