//go:build integration

package integration

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
	"github.com/birdtap/birdtap/integration/history"
)

const (
	// usualLetters are replayed where REPLAY_LETTERS does not say how many; a million
	// takes more time than the usual run has.
	usualLetters = 200_000
	// replayMemory bounds what a replay command may ever have resident.
	replayMemory = 100 << 20
	// bulkEvent is the mistyped one that kills a whole campaign.
	bulkEvent = "Bulk"
	// bulkCampaigns it is in: a target id for each receipt would measure the figures of
	// campaigns, and not the replay.
	bulkCampaigns = 50
)

func lettersOf(t *testing.T) int {
	t.Helper()
	text := os.Getenv("REPLAY_LETTERS")
	if text == "" {
		t.Logf("%d letters; REPLAY_LETTERS=1000000 makes a million", usualLetters)
		return usualLetters
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n%maxRecords != 0 {
		t.Fatalf("REPLAY_LETTERS=%q is not a multiple of %d", text, maxRecords)
	}
	return n
}

// bulk is a campaign of receipts that CleverTap refuses until it is told not to.
type bulk struct {
	mu     sync.Mutex
	refuse bool
	times  []uint8 // how often each was taken
	taken  int
}

func (b *bulk) judge(clevertaptest.Record) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.refuse {
		return 512
	}
	return 0
}

func (b *bulk) record(r clevertaptest.Record) {
	i, err := strconv.Atoi(strings.TrimPrefix(r.Identity, "bulk-"))
	b.mu.Lock()
	defer b.mu.Unlock()
	if r.Accepted && err == nil && i < len(b.times) {
		b.times[i]++
		b.taken++
	}
}

func (b *bulk) accept() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refuse = false
}

func (b *bulk) takenByNow() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.taken
}

// wantTimes wants every receipt taken so often. Without a crash that is exact.
func (b *bulk) wantTimes(t *testing.T, times uint8) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	wrong := 0
	for i, n := range b.times {
		if n != times {
			if wrong++; wrong <= 5 {
				t.Errorf("receipt %d was taken %d times, want %d", i, n, times)
			}
		}
	}
	if wrong > 5 {
		t.Errorf("%d receipts in all were not taken %d times", wrong, times)
	}
}

// send posts the campaign, a full call at a time.
func (b *bulk) send(t *testing.T, door string) {
	t.Helper()
	var senders errgroup.Group
	senders.SetLimit(4)
	for from := 0; from < len(b.times); from += maxRecords {
		senders.Go(func() error { return postBulk(door, from) })
	}
	if err := senders.Wait(); err != nil {
		t.Fatal(err)
	}
}

func postBulk(door string, from int) error {
	var body bytes.Buffer
	body.WriteString(`{"d":[`)
	for i := from; i < from+maxRecords; i++ {
		if i > from {
			body.WriteByte(',')
		}
		fmt.Fprintf(&body, `{"identity":"bulk-%d","type":"event","evtName":%q,"evtData":{"status":"SENT","target_id":%d}}`, i, bulkEvent, i%bulkCampaigns)
	}
	body.WriteString(`]}`)
	req, err := http.NewRequest(http.MethodPost, "http://"+door+"/1/upload", &body)
	if err != nil {
		return err
	}
	req.Header.Set("X-CleverTap-Account-Id", accountID)
	req.Header.Set("X-CleverTap-Passcode", passcode)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the door answers %d to receipts from %d on", resp.StatusCode, from)
	}
	return nil
}

// runMeasured runs a command to its end, and returns what it printed and the most
// memory that it had resident.
func (b *birdtap) runMeasured(args ...string) (string, int64) {
	b.t.Helper()
	cmd := b.command(args...)
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	peak := int64(0)
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case err := <-ended:
			if err != nil {
				b.t.Fatalf("birdtap %s: %v, %s", strings.Join(args, " "), err, words.String())
			}
			return out.String(), peak
		case <-look.C:
			peak = max(peak, highWater(cmd.Process.Pid))
		}
	}
}

// highWater is the most memory that a process had resident up to now, in bytes. What
// its resource usage says would include the moment before it became birdtap.
func highWater(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0 // it has just ended
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	line, _, _ := strings.Cut(rest, "\n")
	kib, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(line), "kB")), 10, 64)
	return kib << 10
}

// A whole campaign dies and is replayed while other receipts come in, and is then
// replayed once more from what was delivered: in bounded memory, nothing lost, nothing
// twice that should not be, and the account adds up.
func TestReplayOfManyUnderTraffic(t *testing.T) {
	seed := seedOf(t)
	campaign := &bulk{refuse: true, times: make([]uint8, lettersOf(t))}
	n := len(campaign.times)

	received := history.NewReceived("replay")
	fake, err := clevertaptest.Start("127.0.0.1:0", clevertaptest.Options{AccountID: accountID, Passcode: passcode})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	fake.KeepRecords(false)
	fake.OnRecord(func(r clevertaptest.Record) {
		if r.Event == bulkEvent {
			campaign.record(r)
			return
		}
		received.Record(r)
	})
	fake.Judge(func(r clevertaptest.Record) int {
		if r.Event == bulkEvent {
			return campaign.judge(r)
		}
		return received.Judge(r)
	})

	door, window := freeAddr(t), freeAddr(t)
	b := newBirdtap(t, map[string]string{
		"HTTP_ADDR": door, "OPS_ADDR": window,
		"DATA_DIR":             filepath.Join(t.TempDir(), "data"),
		"QUEUE_MAX_BYTES":      "1GiB",
		"DEAD_MAX_BYTES":       "1GiB",
		"KEEP_MAX_BYTES":       "1GiB",
		"CLEVERTAP_URL":        fake.URL(),
		"CLEVERTAP_ACCOUNT_ID": accountID, "CLEVERTAP_PASSCODE": passcode,
		"BATCH_MAX_WAIT": "20ms",
	})
	daemon := b.daemon("serve", "serve")
	daemon.ready(window, 30*time.Second)

	began := time.Now()
	campaign.send(t, door)
	a := b.drained(3 * time.Minute)
	if a.Dead != n || a.Died != n {
		t.Fatalf("%d dead, want %d: %+v", a.Dead, n, a)
	}
	t.Logf("%d letters after %.1f s", n, time.Since(began).Seconds())

	campaign.accept()
	client := history.NewClient(history.Options{
		Run: "replay", Seed: seed, Doors: []string{"http://" + door + "/1/upload"},
		AccountID: accountID, Passcode: passcode,
		Clients: 16, UsersPerClient: 40, Rate: 500, Journal: journal(t),
	})
	stop := runClient(t, client)
	moreOK(t, client.Log(), 100, 30*time.Second)
	for round, c := range []struct {
		args []string
		want string
	}{
		{[]string{"relay", "--replay"}, fmt.Sprintf("replayed %d\n", n)},
		{[]string{"relay", "--replay", "--delivered", "--since", "1h", "--event", bulkEvent}, fmt.Sprintf("replayed %d\n", n)},
	} {
		began := time.Now()
		out, peak := b.runMeasured(c.args...)
		took := time.Since(began)
		if out != c.want {
			t.Errorf("birdtap %s prints %q, want %q", strings.Join(c.args, " "), out, c.want)
		}
		if peak == 0 || peak > replayMemory {
			t.Errorf("birdtap %s took %d MiB, want at most %d", strings.Join(c.args, " "), peak>>20, replayMemory>>20)
		}
		moreOK(t, client.Log(), 500, 30*time.Second)
		eventually(t, 3*time.Minute, "the replayed receipts have left", func() bool {
			return campaign.takenByNow() >= (round+1)*n
		})
		t.Logf("%s: %.1f s, %d MiB; all at CleverTap after %.1f s", strings.Join(c.args, " "), took.Seconds(), peak>>20, time.Since(began).Seconds())
		campaign.wantTimes(t, uint8(round+1))
	}

	stop()
	a = b.drained(time.Minute)
	campaign.wantTimes(t, 2) // nothing came behind
	letters := b.letters()
	t.Logf("account: %+v", a)
	if a.Replayed != 2*n || a.Died != n || a.Dead != 0 || len(letters) != 0 {
		t.Errorf("%d replayed, %d died, %d dead, want %d, %d and none", a.Replayed, a.Died, a.Dead, 2*n, n)
	}
	others := a
	others.Accepted, others.Replayed, others.Delivered, others.Died = a.Accepted-n, a.Replayed-2*n, a.Delivered-2*n, a.Died-n
	others.addsUp(t, client.Log().Counts(), received.Taken(), letters)
	conclude(t, history.Check(history.Evidence{
		Log: client.Log(), Received: received, Letters: letters,
		MaxInFlight: fake.Counts().MaxInFlight,
		Seed:        seed, Commit: commitUnderway(), Faults: []string{"replay of dead letters", "replay of delivered receipts"},
	}), history.Limits{InFlight: maxInFlight, Records: maxRecords})
}
