//go:build integration

package integration

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
	"github.com/birdtap/birdtap/integration/history"
	"github.com/birdtap/birdtap/store/failpoint"
)

// aimed is how often the daemon is killed at each failpoint.
var aimed = flag.Int("aimed", 3, "kills at each failpoint")

// aimedBinary is birdtap with failpoints in it.
var aimedBinary = builder("birdtap-failpoint", "github.com/birdtap/birdtap/cmd/birdtap", "-tags", "failpoint")

// newAimed is a lone machine whose birdtap has failpoints.
func newAimed(t *testing.T, run string, change func(*history.Options)) *checked {
	t.Helper()
	l := newChecked(t, run, filepath.Join(t.TempDir(), "data"), change)
	l.at.binary = aimedBinary(t)
	return l
}

// startAt starts the daemon with an order for a failpoint.
func (l *checked) startAt(at failpoint.Point, action string) {
	l.t.Helper()
	cmd := l.at.command("serve")
	cmd.Env = append(cmd.Env, "FAILPOINT="+string(at)+"="+action)
	l.daemon = start(l.t, "serve", l.log, cmd)
}

// reached waits until a process has died of a failpoint. That it did is the proof that
// it got there.
func reached(t *testing.T, p *process, at failpoint.Point) {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(mendedWithin):
		t.Fatalf("failpoint %s was not reached", at)
	}
	if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Fatalf("failpoint %s was to kill the process, but it ended with %v", at, p.cmd.ProcessState)
	}
}

// answersAgain is how long after a crash the next receipt is answered 2xx, at the latest.
const answersAgain = 5 * time.Second

// The daemon is killed where it hurts most: between store and answer, between
// CleverTap's 200 and the checkpoint, between dead letters and the checkpoint, behind
// the checkpoint, and on both sides of a trim.
func TestKilledAtEveryFailpoint(t *testing.T) {
	t.Parallel()
	points := []failpoint.Point{
		failpoint.Stored, failpoint.Uploaded, failpoint.LettersStored,
		failpoint.CheckpointWritten, failpoint.BeforeTrim, failpoint.AfterTrim,
	}
	l := newAimed(t, "aimed", func(o *history.Options) { o.Rate = 1000 })
	// Little is kept, so that trimming goes on all the time.
	l.at = l.at.with(map[string]string{"KEEP_DELIVERED": "1s", "DEDUP_WINDOW": "1s", "KEEP_MAX_BYTES": "1MiB"})
	random := rand.New(rand.NewPCG(l.seed, 0))
	l.start()
	stop := runClient(t, l.client)
	moreOK(t, l.client.Log(), 100, readyWithin)
	l.daemon.kill()
	for _, at := range points {
		often := 10 // a trim comes once a second
		if at == failpoint.BeforeTrim || at == failpoint.AfterTrim {
			often = 2
		}
		for range *aimed {
			l.startAt(at, fmt.Sprintf("kill@%d", 1+random.IntN(often)))
			reached(t, l.daemon, at)
		}
		l.daemon = l.at.daemon("serve", "serve")
		moreOK(t, l.client.Log(), 1, answersAgain)
		l.daemon.kill()
	}
	l.start()
	moreOK(t, l.client.Log(), 500, readyWithin)
	stop()
	for _, at := range points {
		if n := l.said("failpoint " + string(at) + " reached"); n != *aimed {
			t.Errorf("failpoint %s was reached %d times, want %d", at, n, *aimed)
		}
	}
	crashes := len(points)*(*aimed+1) + 1
	l.finish(crashDuplicates(crashes), fmt.Sprintf("killed at %d failpoints × %d", len(points), *aimed))
}

// A replay is killed when its letters are on the queue, and when what is left of their
// message is stored anew. Letters may go twice, never not at all.
func TestReplayKilledAtEveryFailpoint(t *testing.T) {
	const letters = 100
	points := []failpoint.Point{failpoint.Replayed, failpoint.LettersKept}
	l := newAimed(t, "aimed-replay", func(o *history.Options) { o.Refuse, o.AtDoor = 0.1, 0.1 })
	l.start()
	stop := runClient(t, l.client)
	eventually(t, readyWithin, "dead letters", func() bool {
		a, err := l.at.status()
		return err == nil && a.Dead >= letters
	})
	l.fake.Judge(func(clevertaptest.Record) int { return 0 }) // from now on all are taken
	moreOK(t, l.client.Log(), 200, readyWithin)
	died := l.at.letters()
	for _, at := range points {
		for range *aimed {
			// A few at a time, so that something of a message is left.
			cmd := l.at.command("relay", "--replay", "--reason", "512", "--limit", "3")
			cmd.Env = append(cmd.Env, "FAILPOINT="+string(at)+"=kill")
			reached(t, start(t, "replay", filepath.Join(t.ArtifactDir(), "replay.log"), cmd), at)
		}
	}
	stop()
	l.at.drained(time.Minute) // the last letters, too
	if _, err := l.at.output("relay", "--replay", "--reason", "512"); err != nil {
		t.Fatal(err)
	}
	a := l.at.drained(time.Minute)
	l.daemon.terminate(30 * time.Second)
	left := l.at.letters()
	for _, letter := range left {
		if letter.Reason != "refused" {
			t.Errorf("%s is still dead with reason %s after the replay", letter.ID, letter.Reason)
		}
	}
	if a.Accepted+a.Replayed != a.Delivered+a.Deduplicated+a.Died || a.Dead < len(left) {
		t.Errorf("the account does not add up: %+v, %d letters", a, len(left))
	}
	e := history.Evidence{
		Log: l.client.Log(), Received: l.received, Letters: left, MaxInFlight: l.fake.Counts().MaxInFlight,
		Seed: l.seed, Commit: commitUnderway(), Faults: []string{fmt.Sprintf("replay killed at %d failpoints × %d", len(points), *aimed)},
	}
	report := history.Check(e)
	e.Letters = slices.Concat(died, left) // what came back by a replay comes later than what followed it
	report.Inversions = history.Check(e).Inversions
	// A copy of the same letter is dropped.
	conclude(t, report, history.Limits{Duplicates: 0, InFlight: maxInFlight, Records: maxRecords})
}

// The relay's loop stands still. Receipts are taken in on; the oldest one's age grows
// and /healthz says so, and a restart, which the daemon's supervisor is there for, mends it.
func TestWedgedRelayIsSeen(t *testing.T) {
	t.Parallel()
	l := newAimed(t, "wedged", nil)
	l.start()
	stop := runClient(t, l.client)
	moreOK(t, l.client.Log(), 100, readyWithin)
	l.daemon.kill()
	l.startAt(failpoint.Turn, "block@100")
	eventually(t, readyWithin, "the loop stands still", func() bool { return l.said("failpoint relay-turn reached") > 0 })
	for _, age := range []float64{2, 10} {
		eventually(t, mendedWithin, fmt.Sprintf("the oldest receipt is %v s old", age), func() bool {
			return l.metric("birdtap_queue_oldest_seconds") > age
		})
	}
	moreOK(t, l.client.Log(), 100, readyWithin)
	if !l.isReady() {
		t.Error("not ready, though receipts are stored")
	}
	eventually(t, 2*mendedWithin, "not healthy", func() bool { return get("http://"+l.window+"/healthz") == "" })
	l.daemon.kill() // by the supervisor, as SIGTERM would wait for the relay
	l.start()
	moreOK(t, l.client.Log(), 100, answersAgain)
	stop()
	l.finish(crashDuplicates(2), "relay wedged")
}

// metric is one value of the window; -1 if it is not there.
func (l *checked) metric(name string) float64 {
	for line := range strings.Lines(get("http://" + l.window + "/metrics")) {
		if value, found := strings.CutPrefix(strings.TrimSpace(line), name+" "); found {
			if n, err := strconv.ParseFloat(value, 64); err == nil {
				return n
			}
		}
	}
	return -1
}

// What is shipped has no trace of a failpoint: no name, no variable, no code.
func TestShippedBinaryHasNoFailpoints(t *testing.T) {
	traces := []string{"FAILPOINT", "store/failpoint"}
	for _, at := range failpoint.Points() {
		traces = append(traces, string(at))
	}
	for _, b := range []struct {
		path string
		want bool
	}{{birdtapBinary(t), false}, {aimedBinary(t), true}} {
		binary, err := os.ReadFile(b.path)
		if err != nil {
			t.Fatal(err)
		}
		for _, trace := range traces {
			if got := bytes.Contains(binary, []byte(trace)); got != b.want {
				t.Errorf("%s: %q in it: %v, want %v", filepath.Base(b.path), trace, got, b.want)
			}
		}
	}
	// The variable is not even looked at.
	cmd := exec.Command(birdtapBinary(t), "version")
	cmd.Env = append(os.Environ(), "FAILPOINT=nowhere=stop")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
