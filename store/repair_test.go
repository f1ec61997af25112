package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// begins are the places in a file of messages where a record begins, by their lengths.
func begins(t *testing.T, data []byte) []int {
	t.Helper()
	var at []int
	for next := 0; next < len(data); {
		at = append(at, next)
		next += int(binary.LittleEndian.Uint32(data[next:]) &^ recordHeaders)
	}
	return at
}

// edit changes the newest file of a stream.
func edit(t *testing.T, dir, stream string, change func(data []byte) []byte) {
	t.Helper()
	messages := messagesDir(dir, stream)
	numbers, err := blockNumbers(messages)
	if err != nil || len(numbers) == 0 {
		t.Fatalf("files of %s: %v, %v", stream, numbers, err)
	}
	path := blockPath(messages, numbers[len(numbers)-1])
	data, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, change(data), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// flipIn flips a bit of the n-th record of a file, counted from the end if negative, so
// many bytes behind its begin, or before its end.
func flipIn(t *testing.T, n, offset int) func([]byte) []byte {
	return func(data []byte) []byte {
		at := append(begins(t, data), len(data))
		if n < 0 {
			n += len(at) - 1
		}
		if offset < 0 {
			data[at[n+1]+offset] ^= 4
		} else {
			data[at[n]+offset] ^= 4
		}
		return data
	}
}

// watched opens a store and returns what it says as errors, but for what a busy machine
// makes it say.
func watched(t *testing.T, dir string, options ...func(*Options)) (*Store, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zap.ErrorLevel)
	return openStore(t, append(options, on(dir), logTo(zap.New(unhurried{core})))...), logs
}

// unhurried does not hear that the server is slow to say that it is there.
type unhurried struct{ zapcore.Core }

func (u unhurried) With(fields []zapcore.Field) zapcore.Core { return unhurried{u.Core.With(fields)} }

func (u unhurried) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if e.Message == "the queue cannot store receipts" {
		return ce
	}
	return u.Core.Check(e, ce)
}

// sequences are those of the messages that a stream has.
func sequences(t *testing.T, s *Store, stream jetstream.Stream) []uint64 {
	t.Helper()
	last, err := s.lastSequence(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	var all []uint64
	for seq := uint64(1); seq <= last; seq++ {
		if _, err := stream.GetMsg(t.Context(), seq); err == nil {
			all = append(all, seq)
		}
	}
	return all
}

// Whatever bit of a frame flips between a crash and the next start, that frame is lost and
// no other one, and it is said.
func TestFlipAfterACrashLosesOneFrame(t *testing.T) {
	s := openStore(t)
	frames(t, s, 10, 3)
	settleAll(t, s, 1, func(*Checkpoint) {})
	for name, offset := range map[string]int{
		"length, low": 0, "length, high": 2, "length, beyond all": 3, "sequence": 4, "sequence, high": 11, "time": 13,
		"length of the subject": 20, "subject": 24, "payload": -40, "checksum": -3,
	} {
		for _, n := range []int{0, 4, 8} {
			t.Run(fmt.Sprintf("%s of frame %d", name, n+1), func(t *testing.T) {
				dir := crash(t, s.opts.DataDir)
				edit(t, dir, s.names.receiptStream, flipIn(t, n, offset))
				damaged, logs := watched(t, dir)
				want := []uint64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
				want = slices.Delete(want, n, n+1)
				if got := sequences(t, damaged, damaged.receipts); !slices.Equal(got, want) {
					t.Fatalf("frames %v, want %v", got, want)
				}
				for i, f := range read(t, damaged, 1, 9) {
					if f.Seq != want[i] || f.Err != nil || len(f.Receipts) != 3 || f.Receipts[0].Key != receipt(3*int(f.Seq-1)).Key {
						t.Errorf("frame %d: %+v", want[i], f)
					}
				}
				lines := logs.FilterMessageSnippet("damaged in the middle").All()
				if len(lines) != 1 || logs.Len() != 1 {
					t.Fatalf("said: %v", logs.All())
				}
				said := lines[0].ContextMap()
				if said["first"] != uint64(n+1) || said["last"] != uint64(n+1) || said["stream"] != "BIRDTAP_RECEIPTS" {
					t.Errorf("said: %v", said)
				}
				mustCommit(t, damaged, receipt(99))
				mustClose(t, damaged)

				// Mended, it is so after any further end.
				again, logs := watched(t, crash(t, dir))
				if got := sequences(t, again, again.receipts); !slices.Equal(got, append(want, 11)) || logs.Len() > 0 {
					t.Errorf("later: frames %v, said: %v", got, logs.All())
				}
			})
		}
	}
}

// Frames that lie side by side may go together, in several files too.
func TestDamageOfManyFramesAfterACrash(t *testing.T) {
	s := openStore(t)
	for i := range 60 { // of some 500 KiB: the server begins a new file every 4 or 8 MiB
		r := receipt(i)
		r.Record = bytes.Repeat([]byte{'x'}, 500<<10)
		mustCommit(t, s, r)
	}
	dir := crash(t, s.opts.DataDir)
	messages := messagesDir(dir, s.names.receiptStream)
	numbers, err := blockNumbers(messages)
	if err != nil || len(numbers) < 3 {
		t.Fatalf("%d files, %v", len(numbers), err)
	}
	count := 0
	var gone []uint64
	for _, number := range numbers {
		path := blockPath(messages, number)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		at := begins(t, data)
		clear(data[at[1]+5 : at[3]+5]) // the second to the fourth
		gone = append(gone, uint64(count+2), uint64(count+3), uint64(count+4))
		count += len(at)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	damaged, logs := watched(t, dir)
	got := sequences(t, damaged, damaged.receipts)
	for _, seq := range gone {
		if slices.Contains(got, seq) {
			t.Errorf("frame %d is there", seq)
		}
	}
	wantEqual(t, "frames", len(got), 60-len(gone))
	wantEqual(t, "lines", logs.FilterMessageSnippet("damaged in the middle").Len(), len(numbers))
}

// The end of the newest file cannot tell a write that a crash interrupted from damage. It
// is dropped, as the server does, but kept aside and said.
func TestEndThatIsNotWholeAfterACrash(t *testing.T) {
	s := openStore(t)
	frames(t, s, 10, 3)
	settleAll(t, s, 1, func(*Checkpoint) {})
	for name, c := range map[string]struct {
		change func([]byte) []byte
		frames int
	}{
		"newest frame flipped": {flipIn(t, -1, -40), 9},
		"cut":                  {func(data []byte) []byte { return data[:len(data)-7] }, 9},
		"begin of a frame":     {func(data []byte) []byte { return append(data, data[:50]...) }, 10},
		"length of a frame":    {func(data []byte) []byte { return append(data, data[:4]...) }, 10},
		"zeros":                {func(data []byte) []byte { return append(data, make([]byte, 4096)...) }, 10},
	} {
		t.Run(name, func(t *testing.T) {
			dir := crash(t, s.opts.DataDir)
			edit(t, dir, s.names.receiptStream, c.change)
			damaged, logs := watched(t, dir)
			wantEqual(t, "frames", len(sequences(t, damaged, damaged.receipts)), c.frames)
			lines := logs.FilterMessageSnippet("does not end with a whole message").All()
			if len(lines) != 1 || logs.Len() != 1 {
				t.Fatalf("said: %v", logs.All())
			}
			said := lines[0].ContextMap()
			kept, err := os.ReadFile(fmt.Sprint(said["copy"]))
			if err != nil || int64(len(kept)) != said["bytes"] || said["behind"] != uint64(c.frames) {
				t.Errorf("%d bytes are kept, %v; said: %v", len(kept), err, said)
			}
			mustCommit(t, damaged, receipt(99))
			wantEqual(t, "next frame", sequences(t, damaged, damaged.receipts)[c.frames], uint64(c.frames)+1)
		})
	}
}

// What a crash leaves of removals, purges and checkpoints is whole.
func TestNothingIsSaidOfAWholeQueueAfterACrash(t *testing.T) {
	s := openStore(t)
	var cp Checkpoint
	rev := uint64(0)
	for i := range 50 {
		frames(t, s, 2, 3)
		mustBury(t, s, letters(10*i, 10, "512")...)
		var err error
		cp.Floor = uint64(i) + 1
		if rev, err = s.WriteCheckpoint(t.Context(), cp, rev); err != nil {
			t.Fatal(err)
		}
		if i%10 == 9 {
			if err := s.receipts.Purge(t.Context(), jetstream.WithPurgeSequence(cp.Floor)); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Purge(t.Context(), all, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	dir := s.opts.DataDir
	for i := range 3 {
		dir = crash(t, dir)
		again, logs := watched(t, dir)
		wantEqual(t, "frames", len(sequences(t, again, again.receipts)), 51-2*i)
		wantEqual(t, "errors said", logs.Len(), 0)
		if _, err := os.Stat(filepath.Join(dir, damagedDir)); err == nil {
			t.Error("something was kept")
		}
		frames(t, again, 1, 1)
		if err := again.receipts.Purge(t.Context(), jetstream.WithPurgeSequence(uint64(53+3*i))); err != nil {
			t.Fatal(err)
		}
	}
}

// A flipped note of a removal is no message: none is lost with it.
func TestFlippedNoteOfARemoval(t *testing.T) {
	s := openStore(t)
	for i := range 6 {
		mustBury(t, s, letters(10*i, 10, "512")...)
	}
	if err := s.dead.DeleteMsg(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	mustBury(t, s, letters(60, 10, "512")...)
	dir := crash(t, s.opts.DataDir)
	edit(t, dir, s.names.deadStream, func(data []byte) []byte {
		for _, at := range begins(t, data) {
			if binary.LittleEndian.Uint64(data[at+4:])&recordRemoval != 0 {
				data[at+4] ^= 64
				return data
			}
		}
		t.Fatal("there is no such note: the server notes this removal otherwise")
		return nil
	})
	damaged, logs := watched(t, dir)
	got := sequences(t, damaged, damaged.dead)
	for _, seq := range []uint64{1, 3, 4, 5, 6, 7} {
		if !slices.Contains(got, seq) {
			t.Errorf("message %d is gone: %v", seq, got)
		}
	}
	wantEqual(t, "lines", logs.FilterMessageSnippet("where it notes what was removed").Len(), 1)
}

// The newest message is flipped, and only the note of a removal stands behind it: its
// sequence is not given to another one.
func TestFlippedMessageBeforeANote(t *testing.T) {
	s := openStore(t)
	for i := range 6 {
		mustBury(t, s, letters(10*i, 10, "512")...)
	}
	if err := s.dead.DeleteMsg(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	settleAll(t, s, 1, func(cp *Checkpoint) { cp.DeadSeq = 6 })
	dir := crash(t, s.opts.DataDir)
	edit(t, dir, s.names.deadStream, flipIn(t, -2, -40))
	damaged, logs := watched(t, dir)
	wantEqual(t, "messages", fmt.Sprint(sequences(t, damaged, damaged.dead)), "[1 3 4 5]")
	wantEqual(t, "next one", mustBury(t, damaged, letters(60, 10, "512")...), 7)
	lines := logs.FilterMessageSnippet("damaged in the middle").All()
	if len(lines) != 1 || lines[0].ContextMap()["last"] != uint64(6) {
		t.Errorf("said: %v", logs.All())
	}
}

// Damage goes on for ever on a bad disk, copies of it do not.
func TestCopiesOfDamageAreBounded(t *testing.T) {
	s := openStore(t)
	frames(t, s, 5, 3)
	dir := crash(t, s.opts.DataDir)
	if err := os.Mkdir(filepath.Join(dir, damagedDir), 0o700); err != nil {
		t.Fatal(err)
	}
	full := filepath.Join(dir, damagedDir, "full")
	if err := os.WriteFile(full, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(full, maxDamagedBytes); err != nil {
		t.Fatal(err)
	}
	edit(t, dir, s.names.receiptStream, flipIn(t, 2, -40))
	damaged, logs := watched(t, dir)
	wantEqual(t, "frames", len(sequences(t, damaged, damaged.receipts)), 4)
	wantEqual(t, "lines", logs.FilterMessageSnippet("damaged in the middle").Len(), 1)
	if lines := logs.FilterMessageSnippet("cannot keep a copy").All(); len(lines) != 1 || !strings.Contains(fmt.Sprint(lines[0].ContextMap()), "64.0 MiB") {
		t.Errorf("said: %v", logs.All())
	}
}

// A file that was cut between two frames is whole. That there were more is known from the
// guard's last look.
func TestFileCutBetweenFramesIsSaid(t *testing.T) {
	s := openStore(t)
	frames(t, s, 10, 3)
	if err := s.roomForFrame(t.Context(), unseenFor); err != nil {
		t.Fatal(err)
	}
	for cut, want := range map[int]int{10: 0, 9: 1, 4: 1} {
		t.Run(fmt.Sprintf("behind frame %d", cut), func(t *testing.T) {
			dir := crash(t, s.opts.DataDir)
			edit(t, dir, s.names.receiptStream, func(data []byte) []byte {
				return data[:append(begins(t, data), len(data))[cut]]
			})
			cutOff, logs := watched(t, dir)
			if got := len(sequences(t, cutOff, cutOff.receipts)); got != cut {
				t.Fatalf("%d frames, want %d", got, cut)
			}
			if got := logs.FilterMessageSnippet("ends before where it ended").Len(); got != want {
				t.Errorf("said %d times, want %d: %v", got, want, logs.All())
			}
		})
	}
}
