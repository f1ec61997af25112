//go:build integration

package integration

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
	"github.com/birdtap/birdtap/integration/history"
)

// cuts is how often the power fails: go test -tags integration ./integration -run PowerCut -cuts 300.
var cuts = flag.Int("cuts", 5, "power cuts of TestPowerCutLosesNothing")

// The power fails at random instants, half of them while CleverTap is down and all that
// was acknowledged still waits. What was answered 2xx had been synced, so it is on
// the disk that the next start finds.
func TestPowerCutLosesNothing(t *testing.T) {
	l, stop := powerCuts(t, "cut", *cuts, 0, nil)
	moreOK(t, l.client.Log(), 200, readyWithin)
	stop()
	l.finish(crashDuplicates(*cuts), fmt.Sprintf("power cut × %d", *cuts))
}

// The same cuts lose receipts when birdtap acknowledges before the disk has them:
// so the test above can see a loss.
func TestPowerCutWithoutSyncLosesReceipts(t *testing.T) {
	const cuts = 2
	// Some seconds first: a queue that lost all it ever held does not start again.
	const first = 1500
	l, stop := powerCuts(t, "nosync", cuts, first, map[string]string{"SYNC": "interval"})
	stop()
	l.at.drained(time.Minute)
	l.daemon.terminate(30 * time.Second)
	report := history.Check(history.Evidence{
		Log: l.client.Log(), Received: l.received, Letters: l.at.letters(), MaxInFlight: l.fake.Counts().MaxInFlight,
		Seed: l.seed, Commit: commitUnderway(), Faults: []string{fmt.Sprintf("power cut × %d, SYNC=interval", cuts)},
	})
	t.Log(report.String())
	if report.Lost == 0 {
		t.Error("nothing is lost without fsync: these cuts would not show a loss")
	}
	if report.Invented+report.Changed+report.Odd > 0 {
		t.Errorf("more than a loss: %+v", report.Samples)
	}
}

// powerCuts sends traffic to a daemon whose power fails n times, but not before first
// receipts are in, and leaves it running with CleverTap up.
func powerCuts(t *testing.T, run string, n, first int, env map[string]string) (*checked, func()) {
	t.Helper()
	disk := newImage(t, 256<<20)
	l := newChecked(t, run, filepath.Join(disk.dir, "data"), nil)
	random := rand.New(rand.NewPCG(l.seed, 0))
	l.at = l.at.with(env)
	l.start()
	stop := runClient(t, l.client)
	moreOK(t, l.client.Log(), first, readyWithin)
	for cut := range n {
		// At first all waits; and what CleverTap has cannot be lost any more.
		if cut%2 == 0 {
			l.fake.Always(clevertaptest.Status(503, nil, ""))
		}
		moreOK(t, l.client.Log(), 200+random.IntN(400), readyWithin)
		disk = disk.cut(l.daemon)
		l.fake.Normal()
		l.at = l.at.with(map[string]string{"DATA_DIR": filepath.Join(disk.dir, "data")})
		l.start()
	}
	return l, stop
}

// ext4Shutdown is EXT4_IOC_SHUTDOWN, and withoutFlush its EXT4_GOING_FLAGS_NOLOGFLUSH:
// from that instant on nothing reaches the device any more.
const (
	ext4Shutdown = 0x8004587d
	withoutFlush = 2
)

// cut fails the power of a disk that a process writes to, and returns the disk as the
// next start finds it: what the device had, without what stood in the page cache only.
// The image file holds that; the dirty pages of the file system mounted from it do not
// get there any more.
func (d *image) cut(p *process) *image {
	d.t.Helper()
	p.alive()
	p.signal(syscall.SIGSTOP) // nothing is acknowledged from now on
	dir, err := os.Open(d.dir)
	if err == nil {
		err = errors.Join(unix.IoctlSetPointerInt(int(dir.Fd()), ext4Shutdown, withoutFlush), dir.Close())
	}
	if err != nil {
		d.t.Fatalf("shut the file system down: %v", err)
	}
	file := filepath.Join(d.t.TempDir(), "disk")
	if out, err := exec.Command("cp", "--sparse=always", d.file, file).CombinedOutput(); err != nil {
		d.t.Fatalf("copy the disk: %v: %s", err, out)
	}
	p.kill()
	// Thousands of cuts must not fill the machine with disks.
	if err := errors.Join(unix.Unmount(d.dir, 0), os.Remove(d.file)); err != nil {
		d.t.Fatalf("give the disk before the cut back: %v", err)
	}
	return mountImage(d.t, file)
}
