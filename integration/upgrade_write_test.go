//go:build integration

package integration

import (
	"archive/tar"
	"compress/gzip"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
)

var firstBirdtap = flag.String("first.birdtap", "", "birdtap of the commit that testdata/first-layout.txt names: TestWriteTheFirstLayout has it write testdata/first-layout-….tar.gz anew, and prints what belongs into that file")

// The fixtures of the upgrade are written by the birdtap that they are of.
func TestWriteTheFirstLayout(t *testing.T) {
	if *firstBirdtap == "" {
		t.Skip("no -first.birdtap: what is in testdata stays")
	}
	for _, w := range []struct {
		name string
		tell func(*firstWriter) left
	}{{"stopped", (*firstWriter).stopped}, {"killed", (*firstWriter).killed}} {
		t.Run(w.name, func(t *testing.T) {
			fake := startFake(t)
			fake.KeepRecords(false)
			d := loneAt(t, map[string]string{"CLEVERTAP_URL": fake.URL(), "CLEVERTAP_TIMEOUT": "1m"})
			d.at.binary = *firstBirdtap
			f := &firstWriter{lone: d, t: t, fake: fake, refused: map[string]int{}}
			fake.Judge(func(r clevertaptest.Record) int { return f.refused[string(r.Property("n"))] })
			f.process = d.at.daemon("serve", "serve")
			f.ready(f.window, 30*time.Second)
			l := w.tell(f)
			file := firstLayout(w.name)
			pack(t, d.at.env["DATA_DIR"], file)
			var err error
			if l.Account, err = d.at.with(map[string]string{"DATA_DIR": unpacked(t, file)}).status(); err != nil {
				t.Fatal(err)
			}
			text, err := json.Marshal(l)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Printf("%s %s\n", w.name, text)
		})
	}
}

// firstWriter is birdtap of the first layout, and the CleverTap that it has.
type firstWriter struct {
	*lone
	t       *testing.T
	fake    *clevertaptest.Server
	refused map[string]int // code by number; changed while no call is under way
}

// post has receipts taken in, 25 in a body.
func (f *firstWriter) post(numbers ...int) {
	f.t.Helper()
	for body := range slices.Chunk(numbers, 25) {
		var records []string
		for _, n := range body {
			records = append(records, firstRecord(n))
		}
		if a := postTo(f.t.Context(), f.door, passcode, []byte(`{"d":[`+strings.Join(records, ",")+`]}`)); a.status != 200 {
			f.t.Fatalf("%d, %v", a.status, a.err)
		}
	}
}

func (f *firstWriter) refuse(code int, numbers ...int) {
	for _, n := range numbers {
		f.refused[fmt.Sprint(n)] = code
	}
}

// wait waits until so many receipts are queued.
func (f *firstWriter) queued(n int) {
	f.t.Helper()
	eventually(f.t, time.Minute, fmt.Sprintf("%d are queued", n), func() bool {
		a, err := f.at.status()
		return err == nil && a.Queued == n
	})
}

func (f *firstWriter) do(args ...string) {
	f.t.Helper()
	if _, err := f.at.output(args...); err != nil {
		f.t.Fatal(err)
	}
}

// begun is what both variants begin with: of 250 receipts ten are refused by CleverTap,
// three more at the door.
func (f *firstWriter) begun() left {
	f.t.Helper()
	dead := []int{10, 31, 52, 73, 94, 115, 136, 157, 178, 199} // each of another user
	f.refuse(512, dead...)
	f.post(numbers(1, 253)...)
	f.queued(0)
	return left{Dead: dead, AtDoor: numbers(251, 253)}
}

// stopped is left by a daemon that is told to stop while CleverTap is down: with letters
// replayed and purged, receipts that wait in frames that are settled in part, and paused.
func (f *firstWriter) stopped() left {
	l := f.begun()
	f.post(numbers(1, 5)...) // once more: they are dropped
	f.queued(0)
	f.refused = map[string]int{}
	f.do("relay", "--replay", "--code", "512", "--limit", "4")
	f.queued(0)
	f.do("dead", "purge", "--reason", "512", "--limit", "1", "--yes")
	l.Dead = deadOf(f.t, f.at)["512"]
	f.refuse(555, 260, 270, 280)
	f.post(numbers(254, 303)...)
	f.queued(3)
	f.fake.Always(clevertaptest.Status(503, nil, ""))
	f.post(numbers(304, 650)...)
	f.do("pause")
	f.post(numbers(651, 700)...)
	if code := f.terminate(30 * time.Second); code != 0 {
		f.t.Fatalf("exit code %d", code)
	}
	l.Queued = slices.Concat([]int{260, 270, 280}, numbers(304, 700))
	return l
}

// killed is left by one that is killed while CleverTap has taken 50 receipts and has not
// answered yet.
func (f *firstWriter) killed() left {
	l := f.begun()
	f.refuse(555, 260)
	f.post(numbers(254, 303)...)
	f.queued(1)
	f.fake.Always(clevertaptest.Hang().Taking())
	before := f.fake.Counts().Accepted
	f.post(numbers(304, 353)...)
	if err := f.fake.Wait(f.t.Context(), func(c clevertaptest.Counts) bool { return c.Accepted >= before+49 }); err != nil {
		f.t.Fatal(err)
	}
	f.post(numbers(354, 700)...)
	f.kill()
	f.fake.Release()
	l.Queued = slices.Concat([]int{260}, numbers(304, 700))
	return l
}

// pack writes a directory into a file.
func pack(t *testing.T, dir, file string) {
	t.Helper()
	var b strings.Builder
	z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
	w := tar.NewWriter(z)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		h, err := tar.FileInfoHeader(info, "")
		if err != nil {
			return err
		}
		if h.Name, err = filepath.Rel(dir, path); err != nil {
			return err
		}
		h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", ""
		if err := w.WriteHeader(h); err != nil || e.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
	for _, step := range []func() error{w.Close, z.Close} {
		if err == nil {
			err = step()
		}
	}
	if err == nil {
		err = os.WriteFile(file, []byte(b.String()), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}
