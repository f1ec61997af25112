//go:build integration

package integration

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
	"github.com/birdtap/birdtap/integration/history"
)

// backup is a data directory with receipts that wait, dead letters and a checkpoint in
// it, and the history of what came in. Every test works on a copy.
type backup struct {
	*checked
	dir string

	mu    sync.Mutex
	taken [][]byte // by CleverTap, before the daemon ended
}

// perFrame is the most receipts in a frame of a backup: one of each client.
const perFrame = 16

// newBackup makes one: some receipts are delivered, then CleverTap goes down, then the
// daemon ends.
func newBackup(t *testing.T, run string, end func(*process)) *backup {
	t.Helper()
	b := &backup{dir: filepath.Join(t.TempDir(), "data")}
	b.checked = newChecked(t, run, b.dir, func(o *history.Options) {
		o.Clients, o.Several, o.Broken, o.Again, o.Rate = perFrame, 0, 0, 0, 1000
		// What the door refuses is settled although CleverTap is down: then hardly a frame
		// could be cut off that does not count as settled.
		o.AtDoor, o.Refuse = 0, 0.03
	})
	b.fake.OnRecord(func(r clevertaptest.Record) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if r.Accepted {
			b.taken = append(b.taken, slices.Clone(r.Raw))
		}
	})
	b.start()
	stop := runClient(t, b.client)
	moreOK(t, b.client.Log(), 500, readyWithin)
	b.fake.Always(clevertaptest.Status(503, nil, ""))
	moreOK(t, b.client.Log(), 1000, readyWithin)
	stop()
	end(b.daemon)
	return b
}

func stopped(p *process) { p.terminate(stopWithin) }

// restored is a lone machine on a copy of the backup, with CleverTap up, as it was.
func (b *backup) restored(t *testing.T) *checked {
	t.Helper()
	l := *b.checked
	l.t = t
	dir := filepath.Join(t.TempDir(), "data")
	if err := os.CopyFS(dir, os.DirFS(b.dir)); err != nil {
		t.Fatal(err)
	}
	l.at = l.at.with(map[string]string{"DATA_DIR": dir})
	l.at.t = t
	l.log = filepath.Join(t.ArtifactDir(), "serve.log")
	l.received = history.NewReceived(l.run)
	for _, raw := range b.taken {
		l.received.Accept(raw)
	}
	l.fake.OnRecord(l.received.Record)
	l.fake.Judge(l.received.Judge)
	l.fake.Normal()
	return &l
}

// flip changes one bit in a message of the newest block of a stream, in what birdtap
// wrote, about at a share of the block's length.
func flip(stream string, share float64) func(*checked) {
	return func(l *checked) {
		l.edit(stream, func(data []byte) []byte {
			begin, length := record(data, share)
			data[begin+length-20] ^= 0x10 // before the checksum of 8 bytes
			return data
		})
	}
}

// flipLength changes one bit in the length of a message, by which the server finds
// the next one.
func flipLength(stream string, share float64) func(*checked) {
	return func(l *checked) {
		l.edit(stream, func(data []byte) []byte {
			begin, _ := record(data, share)
			data[begin+1] ^= 0x10
			return data
		})
	}
}

// record finds the message at a share of a block: each begins with its length, of which
// the highest bit says that it has headers.
func record(data []byte, share float64) (begin, length int) {
	for {
		length = int(binary.LittleEndian.Uint32(data[begin:]) &^ (1 << 31))
		if begin+length > int(share*float64(len(data))) {
			return begin, length
		}
		begin += length
	}
}

// cutShort keeps a share of the newest block of a stream.
func cutShort(stream string, share float64) func(*checked) {
	return func(l *checked) {
		l.edit(stream, func(data []byte) []byte { return data[:int(share*float64(len(data)))] })
	}
}

func (l *checked) edit(stream string, change func([]byte) []byte) {
	l.t.Helper()
	blocks := l.blocks(stream)
	path := blocks[len(blocks)-1]
	data, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, change(data), 0o600)
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// without removes files of a stream.
func without(name string, streams ...string) func(*checked) {
	return func(l *checked) {
		for _, stream := range streams {
			path := filepath.Join(l.streamDir(stream), name)
			if _, err := os.Stat(path); err != nil {
				l.t.Fatalf("nothing to remove: %v", err)
			}
			if err := os.RemoveAll(path); err != nil {
				l.t.Fatal(err)
			}
		}
	}
}

// damage is one kind of it, and what may come of it.
type damage struct {
	name   string
	damage func(*checked)
	frames int    // damaged, at most
	says   string // in the log; empty: nothing is lost, and there is nothing to say
	copies int    // acceptances beyond the first, at most
}

// What was damaged while the daemon was stopped is said, what is lost lies in the
// damaged frames, and the rest flows.
func TestDamageLosesNoMoreThanWhatIsDamaged(t *testing.T) {
	b := newBackup(t, "damaged", stopped)
	for _, d := range []damage{
		{"no index", without("msgs/index.db", "RECEIPTS", "DEAD", "STATE"), 0, "", 0},
		{"flipped byte of a settled frame", flip("RECEIPTS", 0.1), 0, "", 0},
		{"flipped byte of a waiting frame", flip("RECEIPTS", 0.7), 1, "frames are missing from the queue", 0},
		{"flipped byte in the length of a waiting frame", flipLength("RECEIPTS", 0.8), 200, "frames are missing from the queue", 0},
		{"frames cut short", cutShort("RECEIPTS", 0.9), 200, "frames are missing from the queue", 0},
		{"flipped byte of dead letters", flip("DEAD", 0.5), 1, "dead letters are missing", 0},
		{"dead letters cut short", cutShort("DEAD", 0.8), 10, "dead letters are missing", 0},
		{"flipped byte of an old checkpoint", flip("STATE", 0.5), 0, "", 0},
		{"flipped byte of the newest checkpoint", flip("STATE", 0.99), 0, "the newest checkpoint does not read", maxInFlight * maxRecords},
		{"no checkpoint", without("msgs", "STATE"), 0, "the checkpoint is gone", 1 << 20},
	} {
		t.Run(d.name, func(t *testing.T) { b.survives(t, d) })
	}
}

// A daemon that was killed has its files read back at the next start, frame by frame.
// What was damaged until then is said at that start, and what lies behind it is not lost.
func TestFlippedByteOfAWaitingFrameAfterACrashIsSaid(t *testing.T) {
	b := newBackup(t, "crashed", (*process).kill)
	const said, end = "damaged in the middle", "does not end with a whole message"
	for _, d := range []damage{
		{"nothing", func(*checked) {}, 0, "", crashDuplicates(1)},
		{"flipped byte of a settled frame", flip("RECEIPTS", 0.1), 0, said, crashDuplicates(1)},
		{"flipped byte of a waiting frame", flip("RECEIPTS", 0.7), 1, said, crashDuplicates(1)},
		{"flipped byte of one of the newest frames", flip("RECEIPTS", 0.97), 1, said, crashDuplicates(1)},
		{"flipped byte in the length of one of the newest frames", flipLength("RECEIPTS", 0.97), 1, said, crashDuplicates(1)},
		{"flipped byte of the newest frame", flip("RECEIPTS", 0.99999), 1, end, crashDuplicates(1)},
		{"frames cut short", cutShort("RECEIPTS", 0.97), 200, end, crashDuplicates(1)},
		{"flipped byte of dead letters", flip("DEAD", 0.5), 1, said, crashDuplicates(1)},
		{"flipped byte of an old checkpoint", flip("STATE", 0.5), 0, said, crashDuplicates(1)},
		{"flipped byte of the newest checkpoint", flip("STATE", 0.99999), 0, end, maxInFlight * maxRecords},
	} {
		t.Run(d.name, func(t *testing.T) {
			l := b.survives(t, d)
			if d.says == "" && l.said(said)+l.said(end) > 0 {
				t.Error("it tells of damage where there is none")
			}
		})
	}
}

// survives starts a daemon on a damaged copy of the backup, lets all that is left flow,
// and checks what came of it.
func (b *backup) survives(t *testing.T, d damage) *checked {
	t.Helper()
	l := b.restored(t)
	d.damage(l)
	l.daemon = l.at.daemon("serve", "serve")
	l.healthy(2 * mendedWithin) // some damage shows in use only
	// At rest is when all that can be delivered is.
	eventually(t, 2*mendedWithin, "the queue is empty", func() bool {
		l.healthy(mendedWithin)
		a, err := l.at.status()
		return err == nil && a.Queued == 0 && (d.says == "" || l.said(d.says) > 0)
	})
	letters := l.at.letters()
	if code := l.daemon.terminate(stopWithin); code != 0 {
		t.Errorf("SIGTERM ended the daemon with code %d, want 0", code)
	}
	report := history.Check(history.Evidence{
		Log: l.client.Log(), Received: l.received, Letters: letters, MaxInFlight: l.fake.Counts().MaxInFlight,
		Seed: l.seed, Commit: commitUnderway(), Faults: []string{d.name},
	})
	t.Log(report.String())
	if report.Lost > d.frames*perFrame {
		t.Errorf("%d receipts are lost, at most %d frames are damaged", report.Lost, d.frames)
	}
	if d.frames > 0 && report.Lost == 0 {
		t.Error("nothing is lost: the damage hit nothing")
	}
	report.Lost, report.Loss = 0, nil
	if err := report.Err(history.Limits{Duplicates: d.copies, InFlight: maxInFlight, Records: maxRecords}); err != nil {
		t.Error(err)
	}
	return l
}

// Where so much is gone that going on would hide it, the daemon does not start, and
// says what is wrong and what to do.
func TestDamageThatIsTooMuchIsRefused(t *testing.T) {
	b := newBackup(t, "refused", stopped)
	for _, c := range []struct {
		name   string
		damage func(*checked)
		says   []string
	}{
		{"no meta file", without("meta.inf", "RECEIPTS"), []string{"BIRDTAP_RECEIPTS is gone", "backup"}},
		{"no checksum of it", without("meta.sum", "DEAD"), []string{"BIRDTAP_DEAD is gone", "backup"}},
		{"no frames", without("msgs", "RECEIPTS"), []string{"the queue ends at frame 0", "backup"}},
		{"no dead letters", without("msgs", "DEAD"), []string{"the dead letters end at message 0", "backup"}},
		{"no queue", func(l *checked) { l.empty("jetstream") }, []string{"its jetstream folder is gone", "backup"}},
		{"no marker", func(l *checked) { l.empty("birdtap.json") }, []string{"no birdtap.json"}},
		{"foreign", func(l *checked) {
			l.empty("")
			l.put("holiday.jpg", "")
		}, []string{"is not birdtap's", "holiday.jpg"}},
		{"a file", func(l *checked) {
			l.empty("")
			remove(l.t, l.at.env["DATA_DIR"])
			l.put("", "x")
		}, []string{"not a directory"}},
		{"read-only", func(l *checked) {
			l.at = l.at.with(map[string]string{"DATA_DIR": mount(l.t, "--bind", "-o", "ro", l.at.env["DATA_DIR"])})
		}, []string{"read-only file system"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := b.restored(t)
			c.damage(l)
			l.refuses(c.says...)
		})
	}
}

// The daemon was killed and its files were cut short before it started again, far into
// what is settled. The daemon does not start with a queue that ends before what is
// settled; told to, it goes on with what is left.
func TestCutFileAfterACrashIsRefused(t *testing.T) {
	b := newBackup(t, "cut", (*process).kill)
	l := b.restored(t)
	cutShort("RECEIPTS", 0.1)(l)
	l.refuses("the queue ends at frame", "backup", "BIRDTAP_SYNC=interval")

	l.at = l.at.with(map[string]string{"SYNC": "interval"})
	l.start()
	l.at.drained(time.Minute)
	letters := l.at.letters()
	l.daemon.terminate(stopWithin)
	l.at = l.at.with(map[string]string{"SYNC": "always"})
	l.start()
	l.daemon.terminate(stopWithin)
	report := history.Check(history.Evidence{Log: l.client.Log(), Received: l.received, Letters: letters, Seed: l.seed, Commit: commitUnderway()})
	t.Log(report.String())
	waiting := report.Sent - len(b.taken)
	if report.Lost == 0 || report.Lost > waiting {
		t.Errorf("%d receipts are lost, want at most the %d that waited behind the damage", report.Lost, waiting)
	}
	if l.said("the queue lost its newest receipts") == 0 {
		t.Error("it goes on with what is left, and does not say so")
	}
}

// empty removes what is at a path of the data directory; of the directory itself only
// what is in it.
func (l *checked) empty(name string) {
	l.t.Helper()
	path := filepath.Join(l.at.env["DATA_DIR"], name)
	err := os.RemoveAll(path)
	if name == "" {
		err = errors.Join(err, os.Mkdir(path, 0o700))
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *checked) put(name, text string) {
	l.t.Helper()
	if err := os.WriteFile(filepath.Join(l.at.env["DATA_DIR"], name), []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// refuses starts the daemon and wants it to end with code 1 and one line that has all
// of these words, and names the directory.
func (l *checked) refuses(words ...string) {
	l.t.Helper()
	p := l.at.daemon("serve", "serve")
	select {
	case <-p.done:
	case <-time.After(readyWithin):
		l.t.Fatal("it started")
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 1 {
		l.t.Errorf("it ended with code %d, want 1", code)
	}
	text, err := os.ReadFile(l.log)
	if err != nil {
		l.t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	last := lines[len(lines)-1]
	for _, word := range append(words, "birdtap: ", l.at.env["DATA_DIR"]) {
		if !strings.Contains(last, word) {
			l.t.Errorf("it says %q, without %q", last, word)
		}
	}
}

// A volume that is not mounted looks like a first start. That cannot be told apart,
// but it is said.
func TestEmptyDirectoryIsSaid(t *testing.T) {
	l := newChecked(t, "empty", t.TempDir(), nil)
	l.start()
	if l.said("starting with an empty queue") != 1 {
		t.Error("it starts with an empty queue and does not say so")
	}
	l.daemon.terminate(stopWithin)
	l.start()
	if n := l.said("starting with an empty queue"); n != 1 {
		t.Errorf("said %d times after a start on the same queue", n)
	}
}

// A second daemon on the directory ends, and the first one is not disturbed.
func TestSecondDaemonOnADirectoryIsRefused(t *testing.T) {
	l := newChecked(t, "two", filepath.Join(t.TempDir(), "data"), nil)
	l.start()
	stop := runClient(t, l.client)
	moreOK(t, l.client.Log(), 100, readyWithin)
	second := *l
	second.at = l.at.with(map[string]string{"HTTP_ADDR": freeAddr(t), "OPS_ADDR": freeAddr(t)})
	second.log = filepath.Join(t.ArtifactDir(), "second.log")
	p := second.at.daemon("serve", "second")
	select {
	case <-p.done:
	case <-time.After(readyWithin):
		t.Fatal("the second one stays")
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 1 || second.said("another birdtap has this data directory open") == 0 {
		t.Errorf("the second one ended with code %d, and does not say why", code)
	}
	l.daemon.alive()
	moreOK(t, l.client.Log(), 100, readyWithin)
	stop()
	l.finish(0, "a second daemon")
}

// Stop, copy, wipe, restore, start: nothing is lost and nothing goes twice.
func TestBackupOfAStoppedDaemonIsWhole(t *testing.T) {
	b := newBackup(t, "backup", stopped)
	l := b.restored(t)
	if err := os.RemoveAll(b.dir); err != nil { // what was there is not needed
		t.Fatal(err)
	}
	l.start()
	l.finish(0, "stopped, copied, restored")
}

// A copy of a running daemon's directory, taken at one instant, has all that was
// answered with 200 by then.
func TestBackupOfARunningDaemonIsWhole(t *testing.T) {
	b := newBackup(t, "snapshot", func(p *process) { p.signal(syscall.SIGSTOP) })
	l := b.restored(t)
	b.daemon.kill()
	l.start()
	l.finish(crashDuplicates(1), "copied at one instant, restored")
}

// streamDir is where the files of a stream are.
func (l *checked) streamDir(stream string) string {
	return filepath.Join(l.at.env["DATA_DIR"], "jetstream", "$G", "streams", "BIRDTAP_"+stream)
}

// blocks are the files that hold the messages of a stream, oldest first.
func (l *checked) blocks(stream string) []string {
	l.t.Helper()
	blocks, err := filepath.Glob(filepath.Join(l.streamDir(stream), "msgs", "*.blk"))
	if err != nil || len(blocks) == 0 {
		l.t.Fatalf("stream %s has no blocks: %v", stream, err)
	}
	number := func(path string) int {
		n, _ := strconv.Atoi(strings.TrimSuffix(filepath.Base(path), ".blk"))
		return n
	}
	slices.SortFunc(blocks, func(a, b string) int { return number(a) - number(b) })
	return blocks
}
