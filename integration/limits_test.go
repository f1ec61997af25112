//go:build integration

package integration

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
	"github.com/birdtap/birdtap/integration/history"
)

// fewDescriptors is hardly more than an idle daemon has open.
const fewDescriptors = 64

// quietCallers open connections, make one call on each, and then say nothing. That holds
// a connection for as long as birdtap keeps an unused one.
func quietCallers(t *testing.T, addr string, n int) (release func()) {
	t.Helper()
	var list []net.Conn
	release = func() {
		for _, c := range list {
			hangUp(c)
		}
		list = nil
	}
	t.Cleanup(release)
	for range n {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, c)
		if _, err := io.WriteString(c, "GET /nothing HTTP/1.1\r\nHost: birdtap\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	return release
}

// Callers who say nothing hold all the connections that a process of few descriptors can
// have. It goes on all the same: those connected before are served, CleverTap is called,
// files are opened, and an operator is answered. It takes new callers again when they are
// gone, and has lost none.
func TestDescriptorsUsedUp(t *testing.T) {
	t.Parallel()
	fake := startFake(t)
	received := history.NewReceived("descriptors")
	fake.KeepRecords(false)
	fake.OnRecord(received.Record)
	fake.CloseConnections(true) // each call to CleverTap needs a descriptor
	// A small queue has small files, so that it soon needs another.
	d := loneAt(t, map[string]string{"CLEVERTAP_URL": fake.URL(), "QUEUE_MAX_BYTES": "2MiB", "KEEP_MAX_BYTES": "1MiB"})
	log := filepath.Join(t.ArtifactDir(), "serve.log")
	t.Cleanup(func() { showEnd(t, "serve", log) })
	serve := d.at.command("serve")
	cmd := exec.Command("sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$0" serve`, fewDescriptors), serve.Path)
	cmd.Env = serve.Env
	d.process = start(t, "serve", log, cmd)
	d.ready(d.window, 30*time.Second)
	client := history.NewClient(history.Options{
		Run: "descriptors", Seed: 1, Doors: []string{d.door}, AccountID: accountID, Passcode: passcode,
		Clients: 4, UsersPerClient: 50, Rate: 1500, Several: 0.3,
	})
	stop := runClient(t, client)
	moreOK(t, client.Log(), 1000, time.Minute)

	before := descriptorsOf(d.cmd.Process.Pid)
	release := quietCallers(t, d.addr, 2*fewDescriptors)
	eventually(t, 30*time.Second, "all connections are taken", func() bool {
		return postTo(t.Context(), d.door, passcode, bodyOf(-1)).status == 0 // nobody answers
	})
	calls := fake.Counts().Calls
	moreOK(t, client.Log(), 4000, time.Minute) // over connections from before
	if fake.Counts().Calls == calls {
		t.Error("CleverTap was not called")
	}
	if get("http://"+d.window+"/readyz") == "" {
		t.Error("it does not say that it is ready")
	}
	if _, err := d.at.status(); err != nil {
		t.Errorf("status: %v", err)
	}
	t.Logf("descriptors: %d before, %d now, of %d", before, descriptorsOf(d.cmd.Process.Pid), fewDescriptors)
	release()
	eventually(t, time.Minute, "new callers are served again", func() bool {
		d.alive()
		return postTo(t.Context(), d.door, passcode, bodyOf(-1)).status == http.StatusOK
	})
	stop()
	d.at.drained(time.Minute)
	if n := logged(t, log, "too many open files"); n > 0 {
		t.Errorf("%d log lines say that descriptors were short", n)
	}
	report := history.Check(history.Evidence{
		Log: client.Log(), Received: received, Letters: d.at.letters(), MaxInFlight: fake.Counts().MaxInFlight,
		Commit: commitUnderway(), Faults: []string{"descriptors used up"},
	})
	conclude(t, withoutOwn(report), history.Limits{InFlight: maxInFlight, Records: maxRecords})
	if code := d.terminate(30 * time.Second); code != 0 {
		t.Errorf("SIGTERM ended the daemon with code %d, want 0", code)
	}
}

// withoutOwn leaves out the test's own receipts, which are not the client's.
func withoutOwn(r history.Report) history.Report {
	r.Invented = 0
	delete(r.Samples, "invented")
	return r
}

// What is delivered never takes the room of what waits: five times the queue's size goes
// through it. When CleverTap takes nothing the queue fills, and callers are told to come
// again; once it takes receipts so does the door. None that was answered 200 is lost.
func TestQueueIsFull(t *testing.T) {
	t.Parallel()
	fake := startFake(t)
	received := history.NewReceived("full")
	fake.KeepRecords(false)
	fake.OnRecord(received.Record)
	d := newLone(t, map[string]string{
		"CLEVERTAP_URL": fake.URL(), "QUEUE_MAX_BYTES": "2MiB", "KEEP_MAX_BYTES": "1MiB",
	})
	client := history.NewClient(history.Options{
		Run: "full", Seed: 1, Doors: []string{d.door}, AccountID: accountID, Passcode: passcode,
		Clients: 16, UsersPerClient: 50, Rate: 6000, Several: 0.5, GiveUp: 0.5,
	})
	stop := runClient(t, client)
	const throughIt = 5 * (2 << 20) / 230 // receipts of some 230 bytes
	moreOK(t, client.Log(), throughIt, 3*time.Minute)
	if c := client.Log().Counts(); c.Unknown > 16*51 { // those under way
		t.Errorf("some were not taken while CleverTap took everything: %+v", c)
	}

	fake.Always(clevertaptest.Status(http.StatusServiceUnavailable, nil, ""))
	n := 0
	var full answer
	eventually(t, 2*time.Minute, "the door says that the queue is full", func() bool {
		n--
		full = postTo(t.Context(), d.door, passcode, bodyOf(n))
		return full.status != http.StatusOK
	})
	if wait, err := strconv.Atoi(full.header.Get("Retry-After")); full.status != http.StatusServiceUnavailable || err != nil || wait < 1 || wait > 3 {
		t.Errorf("a full queue answers %d, Retry-After %q", full.status, full.header.Get("Retry-After"))
	}
	eventually(t, 10*time.Second, "a full queue is not ready", func() bool { return get("http://"+d.window+"/readyz") == "" })
	if get("http://"+d.window+"/healthz") == "" {
		t.Error("a full queue is not healthy: a supervisor would restart for nothing")
	}
	stop()
	taken := fake.Counts().Accepted
	fake.Normal()
	d.delivers(t, fake, taken+1)
	began := time.Now()
	eventually(t, 30*time.Second, "the door takes receipts again", func() bool {
		n--
		return postTo(t.Context(), d.door, passcode, bodyOf(n)).status == http.StatusOK
	})
	t.Logf("%v after CleverTap took receipts again so did the door", time.Since(began).Round(time.Millisecond))
	d.ready(d.window, 30*time.Second)
	a := d.at.drained(time.Minute)
	if a.Died != 0 || a.Accepted != a.Delivered+a.Deduplicated {
		t.Errorf("account %+v", a)
	}
	conclude(t, withoutOwn(history.Check(history.Evidence{
		Log: client.Log(), Received: received, Letters: d.at.letters(), MaxInFlight: fake.Counts().MaxInFlight,
		Commit: commitUnderway(), Faults: []string{"queue full"},
	})), history.Limits{InFlight: maxInFlight, Records: maxRecords})
}

// A CleverTap, or whoever stands in its place, answers with a gigabyte, packed or not.
// That costs next to no memory, and the receipts are delivered afterwards.
func TestHugeAnswersCostNoMemory(t *testing.T) {
	t.Parallel()
	fake := startFake(t)
	d := newLone(t, map[string]string{"CLEVERTAP_URL": fake.URL()})
	pid := d.cmd.Process.Pid
	for n := range 500 {
		d.take(t, n)
	}
	d.delivers(t, fake, 500)
	before := memoryOf(pid, "VmHWM")
	sent := 500
	for _, huge := range []clevertaptest.Behaviour{clevertaptest.HugeGzip(gib), clevertaptest.Huge(gib)} {
		fake.Always(huge)
		calls := fake.Counts().Calls
		for range 200 {
			d.take(t, sent)
			sent++
		}
		eventually(t, time.Minute, "a few calls are answered so", func() bool { return fake.Counts().Calls >= calls+4 })
		if after := memoryOf(pid, "VmHWM"); after > before+32<<20 {
			t.Errorf("%v: memory went from %d to %d MiB", huge, before>>20, after>>20)
		}
		fake.Normal()
		d.delivers(t, fake, int64(sent))
	}
	t.Logf("the most memory: %d MiB before, %d after", before>>20, memoryOf(pid, "VmHWM")>>20)
}
