//go:build integration

package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/birdtap/birdtap/integration/history"
)

// raiseDescriptors lets this process open so many.
func raiseDescriptors(t *testing.T, n uint64) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur >= n {
		return
	}
	limit.Cur, limit.Max = n, max(limit.Max, n)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		cannotRun(t, fmt.Sprintf("%d descriptors are needed", n), err)
	}
}

// slowClients are connections that somebody keeps open at little cost to himself.
type slowClients struct {
	t     *testing.T
	addr  string
	conns sync.WaitGroup
	mu    sync.Mutex
	alive []string // those that were not closed by the other side
}

// open opens n connections, says something on each, and then a little more every
// second, until the other side has had enough.
func (s *slowClients) open(n int, what, first, drip string) {
	s.t.Helper()
	for range n {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			s.t.Fatal(err)
		}
		s.conns.Go(func() { s.drip(c, what, first, drip) })
	}
}

// patience is how long a slow client goes on at most: longer than any limit of birdtap.
// Those who never read take turns, since only one body of their size is held at a time,
// and each has 15 s to read its answer.
const patience = 75 * time.Second

func (s *slowClients) drip(c net.Conn, what, first, drip string) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	closed := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, c)
		closed <- err
	}()
	_, _ = io.WriteString(c, first) // if it fails the reading has ended, too
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case err := <-closed:
			s.ended(what, err)
			return
		case <-tick.C:
			_, _ = io.WriteString(c, drip)
		}
	}
}

func (s *slowClients) ended(what string, err error) {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alive = append(s.alive, what)
}

// neverRead opens n connections that ask for large answers and read none.
func (s *slowClients) neverRead(n int) {
	s.t.Helper()
	// A record that is too large to be kept is shown to its sender, and nobody else.
	large := strings.Repeat("x", 150<<10)
	record := `{"identity":"u","evtName":"e","evtData":{"status":"SENT","target_id":1,"p":"` + large + `"}}`
	body := `{"d":[` + strings.Repeat(record+",", 29) + record + `]}`
	head := fmt.Sprintf("POST /1/upload HTTP/1.1\r\nHost: birdtap\r\nX-CleverTap-Account-Id: %s\r\nX-CleverTap-Passcode: %s\r\nContent-Length: %d\r\n\r\n", accountID, passcode, len(body))
	dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) })
	}}
	for range n {
		c, err := dialer.Dial("tcp", s.addr)
		if err != nil {
			s.t.Fatal(err)
		}
		s.conns.Go(func() {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(patience))
			for {
				if _, err := io.WriteString(c, head+body); err != nil {
					s.ended("never reads", err)
					return
				}
			}
		})
	}
}

// A thousand connections whose headers never end, a hundred whose bodies never do, and
// some that never read: each is closed at its time, their descriptors come back, and
// honest callers notice nothing.
func TestSlowClientsHarmNobody(t *testing.T) {
	t.Parallel()
	raiseDescriptors(t, 8192)
	fake := startFake(t)
	received := history.NewReceived("slow")
	fake.KeepRecords(false)
	fake.OnRecord(received.Record)
	d := newLone(t, map[string]string{"CLEVERTAP_URL": fake.URL()})
	before := descriptorsOf(d.cmd.Process.Pid)

	honest := history.NewClient(history.Options{
		Run: "slow", Seed: 1, Doors: []string{d.door}, AccountID: accountID, Passcode: passcode,
		Clients: 8, UsersPerClient: 50, Rate: 200,
	})
	stop := runClient(t, honest)
	slow := &slowClients{t: t, addr: d.addr}
	slow.open(1000, "headers", "POST /1/upload HTTP/1.1\r\nHost: birdtap\r\nX-Slow: ", "x")
	slow.open(100, "body", fmt.Sprintf(
		"POST /1/upload HTTP/1.1\r\nHost: birdtap\r\nX-CleverTap-Account-Id: %s\r\nX-CleverTap-Passcode: %s\r\nContent-Length: 100000\r\n\r\n{",
		accountID, passcode), " ")
	slow.neverRead(3)
	most := descriptorsOf(d.cmd.Process.Pid)
	slow.conns.Wait()
	if len(slow.alive) > 0 {
		t.Errorf("%d slow connections were never closed, as %q", len(slow.alive), slow.alive[0])
	}
	moreOK(t, honest.Log(), 100, 30*time.Second)
	stop()
	eventually(t, 30*time.Second, "the descriptors come back", func() bool { return descriptorsOf(d.cmd.Process.Pid) <= before+10 })
	if c := honest.Log().Counts(); c.OK != c.Sent {
		t.Errorf("honest callers: %+v", c)
	}
	t.Logf("descriptors: %d before, %d at the most seen, %d after", before, most, descriptorsOf(d.cmd.Process.Pid))
	d.at.drained(time.Minute)
	conclude(t, history.Check(history.Evidence{
		Log: honest.Log(), Received: received, Letters: d.at.letters(), MaxInFlight: fake.Counts().MaxInFlight,
		Commit: commitUnderway(), Faults: []string{"1000 slow headers, 100 slow bodies, 3 that never read"},
	}), history.Limits{InFlight: maxInFlight, Records: maxRecords})
}

// Sendbird tries again when it saw no answer: the same receipt comes at the same moment,
// and seconds later. It is delivered once, and the others are counted.
func TestSameReceiptAgainIsDeliveredOnce(t *testing.T) {
	t.Parallel()
	const receipts, atOnce = 20, 3
	fake := startFake(t)
	d := newLone(t, map[string]string{"CLEVERTAP_URL": fake.URL()})
	send := func() {
		var all sync.WaitGroup
		for n := range receipts * atOnce {
			all.Go(func() {
				if got := postTo(t.Context(), d.door, passcode, bodyOf(n%receipts)); got.status != http.StatusOK {
					t.Errorf("status %d, %v", got.status, got.err)
				}
			})
		}
		all.Wait()
	}
	send()
	d.delivers(t, fake, receipts)
	send() // what is delivered already is a copy all the same
	a := d.at.drained(time.Minute)
	want := account{Accepted: 2 * receipts * atOnce, Delivered: receipts, Deduplicated: (2*atOnce - 1) * receipts}
	if a.Accepted != want.Accepted || a.Delivered != want.Delivered || a.Deduplicated != want.Deduplicated {
		t.Errorf("account %+v, want %+v", a, want)
	}
	users := map[string]int{}
	for r := range fake.Accepted() {
		users[r.Identity]++
	}
	for user, times := range users {
		if times != 1 {
			t.Errorf("%s arrived %d times", user, times)
		}
	}
	if len(users) != receipts {
		t.Errorf("%d receipts arrived, want %d", len(users), receipts)
	}
}

// Ten times the traffic, of a sudden: every call is answered, none with 503, and all of
// it arrives.
func TestBurstOfTenTimesTheTraffic(t *testing.T) {
	t.Parallel()
	fake := startFake(t)
	received := history.NewReceived("burst")
	fake.KeepRecords(false)
	fake.OnRecord(received.Record)
	fake.Latency(100 * time.Millisecond)
	d := newLone(t, map[string]string{"CLEVERTAP_URL": fake.URL()})
	client := history.NewClient(history.Options{
		Run: "burst", Seed: 1, Doors: []string{d.door}, AccountID: accountID, Passcode: passcode,
		Clients: 48, UsersPerClient: 40, Rate: 200, Several: 0.03,
	})
	stop := runClient(t, client)
	moreOK(t, client.Log(), 400, 30*time.Second)
	client.Hurry(10)
	began, before := time.Now(), client.Log().Counts().OK
	moreOK(t, client.Log(), 10_000, 2*time.Minute)
	t.Logf("in the burst %.0f receipts/s were taken", float64(client.Log().Counts().OK-before)/time.Since(began).Seconds())
	client.Hurry(1)
	stop()
	if c := client.Log().Counts(); c.OK != c.Sent {
		t.Errorf("callers: %+v", c)
	}
	a := d.at.drained(time.Minute)
	a.addsUp(t, client.Log().Counts(), received.Taken(), nil)
	conclude(t, history.Check(history.Evidence{
		Log: client.Log(), Received: received, Letters: d.at.letters(), MaxInFlight: fake.Counts().MaxInFlight,
		Commit: commitUnderway(), Faults: []string{"burst × 10"},
	}), history.Limits{InFlight: maxInFlight, Records: maxRecords})
}

// logged counts the lines of a log that hold some words.
func logged(t *testing.T, path, words string) int {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(text, []byte(words))
}
