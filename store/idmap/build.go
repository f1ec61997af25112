package idmap

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"hash/crc32"
	"io"
	"os"
	"slices"
)

// parts is into how many temporary files the entries are sorted by the first bits of
// their hash. Each is then sorted in memory: some 20 MiB of ten million users.
const (
	partBits = 6
	parts    = 1 << partBits
)

// partBuffer is what waits for each of them in memory, in bytes. A small map never
// gets a temporary file of this kind.
const partBuffer = 64 << 10

// Builder makes the file of a map, in bounded memory. Its temporary files have no
// name, so nothing is left of a process that dies.
type Builder struct {
	dir   string
	parts [parts]part
	// Duplicates counts the entries that were there already, as Finish found them.
	Duplicates int
	// Conflict, if any, is called by Finish for a user id that was added with another
	// identity before, with the lines of both; the first one counts.
	Conflict func(line, first int)
}

// part is the entries of some hashes, as they came.
type part struct {
	file *os.File // nil until buf was full once
	buf  []byte
}

// NewBuilder makes a builder whose temporary files lie in dir. They take about twice
// the size of what is added.
func NewBuilder(dir string) *Builder { return &Builder{dir: dir} }

// nameless makes a file that vanishes when it is closed.
func nameless(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "identities-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Close gives the temporary files back. It may be called twice.
func (b *Builder) Close() error {
	var errs []error
	for i := range b.parts {
		if f := b.parts[i].file; f != nil {
			errs = append(errs, f.Close())
		}
		b.parts[i] = part{}
	}
	return errors.Join(errs...)
}

// Add adds one entry; line is where it stands, for Conflict. Neither may be empty or
// longer than MaxBytes.
func (b *Builder) Add(user, identity []byte, line int) error {
	if len(user) == 0 || len(identity) == 0 || len(user) > MaxBytes || len(identity) > MaxBytes {
		return errors.New("a user id or an identity that is empty or too long")
	}
	h := hashOf(user)
	p := &b.parts[h>>(64-partBits)]
	p.buf = binary.BigEndian.AppendUint64(p.buf, h)
	p.buf = binary.AppendUvarint(p.buf, uint64(line)) //nolint:gosec // counted from 1
	for _, text := range [][]byte{user, identity} {
		p.buf = binary.AppendUvarint(p.buf, uint64(len(text)))
		p.buf = append(p.buf, text...)
	}
	if len(p.buf) < partBuffer {
		return nil
	}
	return p.flush(b.dir)
}

func (p *part) flush(dir string) (err error) {
	if p.file == nil {
		if p.file, err = nameless(dir); err != nil {
			return err
		}
	}
	_, err = p.file.Write(p.buf)
	p.buf = p.buf[:0]
	return err
}

// read returns all that was added.
func (p *part) read() ([]byte, error) {
	if p.file == nil {
		return p.buf, nil
	}
	size, err := p.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil, err
	}
	data := make([]byte, size, size+int64(len(p.buf)))
	if _, err := p.file.ReadAt(data, 0); err != nil {
		return nil, err
	}
	return append(data, p.buf...), nil
}

// Finish writes the file and opens it. The map has no name either: closing it deletes
// it. Nothing may be added any more.
func (b *Builder) Finish() (*Map, error) {
	f, err := nameless(b.dir)
	if err != nil {
		return nil, err
	}
	w := newWriter(f)
	for i := range b.parts {
		if err := b.finishPart(i, w); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	if err := w.finish(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return OpenFile(f)
}

// entry is one added to a part.
type entry struct {
	hash           uint64
	line           uint64
	user, identity []byte
	stored         []byte // both, each with its length before it
}

func (b *Builder) finishPart(i int, w *writer) error {
	data, err := b.parts[i].read()
	if err != nil {
		return err
	}
	entries, err := entriesOf(data)
	if err != nil {
		return err
	}
	slices.SortFunc(entries, func(x, y entry) int {
		return cmp.Or(cmp.Compare(x.hash, y.hash), bytes.Compare(x.user, y.user), cmp.Compare(x.line, y.line))
	})
	var first *entry // of the same user
	for i := range entries {
		e := &entries[i]
		switch {
		case first == nil || !bytes.Equal(first.user, e.user):
			first = e
			w.add(e.hash, e.stored)
		case bytes.Equal(first.identity, e.identity):
			b.Duplicates++
		case b.Conflict != nil:
			b.Conflict(int(e.line), int(first.line)) //nolint:gosec // an int once
		}
	}
	return w.err
}

func entriesOf(data []byte) ([]entry, error) {
	var entries []entry
	for len(data) > 0 {
		if len(data) < 8 {
			return nil, errUnreadable
		}
		e := entry{hash: binary.BigEndian.Uint64(data)}
		data = data[8:]
		line, n := binary.Uvarint(data)
		if n <= 0 {
			return nil, errUnreadable
		}
		e.line, data = line, data[n:]
		start := data
		var ok, also bool
		e.user, data, ok = cut(data)
		e.identity, data, also = cut(data)
		if !ok || !also {
			return nil, errUnreadable
		}
		e.stored = start[:len(start)-len(data)]
		entries = append(entries, e)
	}
	return entries, nil
}

var errUnreadable = errors.New("a temporary file is not what was written")

// writer writes the file front to back. Its first error stays.
type writer struct {
	to     *bufio.Writer
	sum    hash.Hash
	offset uint64
	users  uint64
	index  []ref
	block  []byte
	first  uint64 // hash of the block's first entry
	last   uint64 // and of its last one
	err    error
}

func newWriter(f *os.File) *writer {
	w := &writer{sum: sha256.New()}
	w.to = bufio.NewWriterSize(f, 256<<10)
	w.write([]byte(magic))
	return w
}

func (w *writer) write(b []byte) {
	if w.err == nil {
		_, _ = w.sum.Write(b) // has no error
		_, w.err = w.to.Write(b)
		w.offset += uint64(len(b))
	}
}

// add adds an entry; hashes come in order.
func (w *writer) add(hash uint64, stored []byte) {
	if len(w.block) > 0 && len(w.block)+len(stored)+sumBytes > blockBytes && hash != w.last {
		w.closeBlock()
	}
	if len(w.block) == 0 {
		w.first = hash
	}
	w.block, w.last = append(w.block, stored...), hash
	w.users++
}

func (w *writer) closeBlock() {
	w.index = append(w.index, ref{w.first, w.offset})
	w.block = binary.BigEndian.AppendUint32(w.block, crc32.Checksum(w.block, castagnoli))
	w.write(w.block)
	w.block = w.block[:0]
}

func (w *writer) finish() error {
	if len(w.block) > 0 {
		w.closeBlock()
	}
	end := w.offset
	var b []byte
	for _, r := range w.index {
		b = binary.BigEndian.AppendUint64(b[:0], r.first)
		w.write(binary.BigEndian.AppendUint64(b, r.offset))
	}
	b = binary.BigEndian.AppendUint64(b[:0], end)
	b = binary.BigEndian.AppendUint64(b, uint64(len(w.index)))
	w.write(binary.BigEndian.AppendUint64(b, w.users))
	w.write(w.sum.Sum(nil))
	if w.err == nil {
		w.err = w.to.Flush()
	}
	return w.err
}
