package store

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/minio/highwayhash"
	"go.uber.org/zap"
)

// After a crash nats-server reads all of its files back. At the first message of a file
// that is not whole it cuts the file there, and with it every message behind, and says
// nothing. Behind an unfinished write there is nothing. Behind a flipped byte there may be
// thousands of receipts, all of them whole. So the files are read here before, and what is
// not whole, but has something whole behind it, is made into a message that was removed:
// that one is lost, the ones behind it stay, and under their sequences.
//
// A file is a row of records, numbers in little endian:
//
//	offset 0  length of the record  uint32, the highest bit: it has headers
//	       4  sequence              uint64, the two highest bits: removed, or notes a removal
//	      12  time                  uint64
//	      20  length of the subject uint16
//	      22  subject, with headers their length in 4 bytes and they, payload
//	 len - 8  HighwayHash-64 of sequence, time, subject, headers and payload
//
// with the SHA-256 of stream name and number of the file as its key. Were that to change
// in another nats-server, nothing would be whole to this code, and it would change nothing.
const (
	recordHead = 22
	recordSum  = 8

	recordHeaders = 1 << 31
	recordRemoved = 1 << 63
	recordRemoval = 1 << 62

	maxRecord = 32 << 20 // as nats-server has it
	// maxWritten bounds those that are looked for among damaged bytes, where anything may
	// stand: it is above max_payload.
	maxWritten = 2 << 20
	maxNumber  = 1 << 48

	indexFile   = "index.db"
	blockSuffix = ".blk"
)

// damagedDir keeps bytes that were not whole, up to maxDamagedBytes of them.
const (
	damagedDir      = "damaged"
	maxDamagedBytes = 64 << 20
)

// messagesDir is where the server keeps the messages of a stream.
func messagesDir(dataDir, stream string) string {
	return filepath.Join(dataDir, "jetstream", "$G", "streams", stream, "msgs")
}

// repair goes through the files that the server is about to read back.
func (e *embedded) repair() error {
	streams, err := os.ReadDir(filepath.Join(e.opts.DataDir, "jetstream", "$G", "streams"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("data directory %s: %w", e.opts.DataDir, err)
	}
	for _, stream := range streams {
		if err := e.repairStream(stream.Name()); err != nil {
			return fmt.Errorf("data directory %s: read stream %s back: %w", e.opts.DataDir, stream.Name(), err)
		}
	}
	return nil
}

func (e *embedded) repairStream(stream string) error {
	dir := messagesDir(e.opts.DataDir, stream)
	numbers, err := blockNumbers(dir)
	if err != nil || len(numbers) == 0 || indexed(dir, stream, numbers[len(numbers)-1]) {
		return err
	}
	b := block{stream: stream}
	for i, number := range numbers {
		if err := b.read(dir, number); err != nil {
			return err
		}
		b.newest = i == len(numbers)-1
		if err := e.repairBlock(&b); err != nil {
			return err
		}
	}
	return nil
}

// blockNumbers are those of the files that hold a stream's messages, oldest first.
func blockNumbers(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, ignoreGone(err)
	}
	var numbers []int
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), blockSuffix); ok {
			if n, err := strconv.Atoi(name); err == nil {
				numbers = append(numbers, n)
			}
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

func blockPath(dir string, number int) string {
	return filepath.Join(dir, strconv.Itoa(number)+blockSuffix)
}

// indexed tells whether the server ended in good order: then it has an index, which
// notes how the newest file ends, and reads nothing back.
func indexed(dir, stream string, newest int) bool {
	index, err := os.ReadFile(filepath.Join(dir, indexFile))
	if err != nil || len(index) < 2*recordSum {
		return false
	}
	noted, sum := index[:len(index)-recordSum], index[len(index)-recordSum:]
	h := newHash(stream)
	_, _ = h.Write(noted)
	f, err := os.Open(blockPath(dir, newest))
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	var end [recordSum]byte
	if _, err := f.Seek(-recordSum, io.SeekEnd); err != nil {
		return false
	}
	if _, err := io.ReadFull(f, end[:]); err != nil {
		return false
	}
	return string(h.Sum(nil)) == string(sum) && strings.HasSuffix(string(noted), string(end[:]))
}

func newHash(name string) *highwayhash.Digest64 {
	key := sha256.Sum256([]byte(name))
	h, err := highwayhash.NewDigest64(key[:])
	if err != nil {
		panic(err) // of a key that has not 32 bytes
	}
	return h
}

// block is a file of messages.
type block struct {
	stream string
	path   string
	number int
	newest bool
	data   []byte // of one file after the other
	hash   *highwayhash.Digest64
	last   uint64 // highest sequence of a whole record so far, in earlier files too
}

func (b *block) read(dir string, number int) error {
	b.path, b.number = blockPath(dir, number), number
	b.hash = newHash(b.stream + "-" + strconv.Itoa(number))
	f, err := os.Open(b.path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	b.data = slices.Grow(b.data[:0], int(info.Size()))[:info.Size()]
	_, err = io.ReadFull(f, b.data)
	return err
}

// record returns the length of the record at a place, and the sequence of the message in
// it, 0 if it is the note of a removal; whole: there is one, and nothing about it is wrong.
func (b *block) record(at int) (length int, seq uint64, whole bool) {
	rest := b.data[at:]
	if len(rest) < recordHead+recordSum {
		return 0, 0, false
	}
	size := binary.LittleEndian.Uint32(rest)
	length = int(size &^ recordHeaders)
	subject := recordHead + int(binary.LittleEndian.Uint16(rest[20:]))
	headers := subject
	if size&recordHeaders != 0 {
		headers += 4 // their length is not in the sum
	}
	end := length - recordSum
	if length > min(len(rest), maxRecord) || headers > end {
		return 0, 0, false
	}
	b.hash.Reset()
	_, _ = b.hash.Write(rest[4:20])
	_, _ = b.hash.Write(rest[recordHead:subject])
	_, _ = b.hash.Write(rest[headers:end])
	var sum [recordSum]byte
	if string(b.hash.Sum(sum[:0])) != string(rest[end:length]) {
		return 0, 0, false
	}
	if seq = binary.LittleEndian.Uint64(rest[4:]); seq&recordRemoval != 0 {
		return length, 0, true
	}
	return length, seq &^ recordRemoved, true
}

// next returns where the first whole record behind a damaged one begins: the end of the
// file if there is none.
func (b *block) next(at int) int {
	for at += recordHead + recordSum; at+recordHead+recordSum <= len(b.data); at++ {
		size := binary.LittleEndian.Uint32(b.data[at:]) &^ recordHeaders
		seq := binary.LittleEndian.Uint64(b.data[at+4:]) &^ (recordRemoved | recordRemoval)
		if size > maxWritten || seq > maxNumber {
			continue
		}
		if _, _, whole := b.record(at); whole {
			return at
		}
	}
	return len(b.data)
}

// firstFrom returns the sequence of the first message from a place on: 0 if there is none
// before the end of the file or the next damage.
func (b *block) firstFrom(at int) uint64 {
	for at < len(b.data) {
		length, seq, whole := b.record(at)
		if !whole {
			return 0
		}
		if seq > 0 {
			return seq
		}
		at += length
	}
	return 0
}

// damage is a part of a file that is not whole.
type damage struct {
	begin, end  int
	first, last uint64 // sequences that stood there, at most; 0: none that is known
}

// damage finds out how far what is not whole reaches, and what stood there: the sequences
// that are missing before the next message, or, behind the newest one, what it says itself.
func (b *block) damage(at int) damage {
	d := damage{begin: at, end: b.next(at)}
	switch behind := b.firstFrom(d.end); {
	case behind > b.last+1:
		d.first, d.last = b.last+1, behind-1
		if b.last == 0 { // the oldest that is kept: what came before it was trimmed
			d.first = d.last
		}
	case behind == 0 && d.end < len(b.data):
		if seq := binary.LittleEndian.Uint64(b.data[at+4:]); seq == b.last+1 {
			d.first, d.last = seq, seq
		}
	}
	return d
}

// repairBlock finds what is not whole in a file, mends it and tells.
func (e *embedded) repairBlock(b *block) error {
	for at := 0; at < len(b.data); {
		length, seq, whole := b.record(at)
		if whole {
			b.last = max(b.last, seq)
			at += length
			continue
		}
		d := b.damage(at)
		kept, err := e.keep(b, d)
		if err != nil {
			e.opts.Log.Named("store").Error("cannot keep a copy of damaged bytes", zap.Error(err))
		}
		if d.end < len(b.data) {
			if err := b.remove(d); err != nil {
				return err
			}
		}
		e.tell(b, d, kept)
		at = d.end
	}
	return nil
}

// remove writes a message that was removed in place of a damaged one. Where no sequence is
// known to be missing it was the note of a removal, and becomes one of no message.
func (b *block) remove(d damage) error {
	filler := b.data[d.begin:d.end]
	seq := d.last | recordRemoved
	if d.last == 0 {
		seq = recordRemoval
	}
	clear(filler[:recordHead])
	binary.LittleEndian.PutUint32(filler, uint32(len(filler))) //nolint:gosec // below maxRecord
	binary.LittleEndian.PutUint64(filler[4:], seq)
	end := len(filler) - recordSum
	b.hash.Reset()
	_, _ = b.hash.Write(filler[4:20])
	_, _ = b.hash.Write(filler[recordHead:end])
	b.hash.Sum(filler[:end])
	f, err := os.OpenFile(b.path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(filler, int64(d.begin))
	return errors.Join(err, f.Sync(), f.Close())
}

// keep copies damaged bytes into a file of their own, before anything is written over them.
func (e *embedded) keep(b *block, d damage) (string, error) {
	dir := filepath.Join(e.opts.DataDir, damagedDir)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	used, err := bytesBelow(dir)
	if err != nil {
		return "", err
	}
	if used+int64(d.end-d.begin) > maxDamagedBytes {
		return "", fmt.Errorf("%s already has %s: remove what is not needed", dir, formatBytes(used))
	}
	name := fmt.Sprintf("%s-%d-%d-%s", b.stream, b.number, d.begin, time.Now().UTC().Format("20060102T150405Z"))
	path := filepath.Join(dir, name)
	return path, writeDurably(path, b.data[d.begin:d.end])
}

func (e *embedded) tell(b *block, d damage, kept string) {
	var text string
	switch {
	case d.end == len(b.data) && b.newest:
		text = "a file of the queue does not end with a whole message; its last bytes are dropped. A crash or a power cut in the middle " +
			"of a write leaves such an end, and then nobody was told that it was stored. Where there was none, messages are lost: " +
			"a backup may have them, and Sendbird's figures compared with those of birdtap status tell whether receipts are missing"
	case d.end == len(b.data):
		text = "a file of the queue was damaged at its end: what stood there is lost; a backup may have it"
	case d.last == 0:
		text = "a file of the queue was damaged in the middle, where it notes what was removed: that may be back; what stands behind is not lost"
	default:
		text = "a file of the queue was damaged in the middle: what stood there is lost, what stands behind is not; a backup may have it"
	}
	fields := []zap.Field{zap.String("stream", b.stream), zap.String("file", b.path), zap.Int("offset", d.begin), zap.Int("bytes", d.end-d.begin)}
	if d.last > 0 {
		fields = append(fields, zap.Uint64("first", d.first), zap.Uint64("last", d.last))
	} else {
		fields = append(fields, zap.Uint64("behind", b.last))
	}
	e.opts.Log.Named("store").Error(text, append(fields, zap.String("copy", kept))...)
}
