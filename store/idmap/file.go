package idmap

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"sync"
)

const (
	magic      = "BTIDMAP1"
	blockBytes = 4 << 10 // a block is closed before it grows beyond; one long entry may
	refBytes   = 16
	sumBytes   = 4
	tailBytes  = 3*8 + sha256.Size

	// MaxBytes bounds a user id and an identity: CleverTap's limit of an identity,
	// and what the door takes as a user.
	MaxBytes = 1 << 10
)

// ErrCorrupt is a file, or a part of it, that is not what was written.
var ErrCorrupt = errors.New("the identity map is damaged")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Map is an open file. It is safe for concurrent use, until Close.
type Map struct {
	file    *os.File
	index   []ref
	end     uint64 // of the last block
	users   uint64
	size    int64
	version string
	blocks  sync.Pool // of *[]byte
}

// ref is a block: the hash of its first entry, and where it begins.
type ref struct{ first, offset uint64 }

// Open reads the whole file once and returns it as a map, or ErrCorrupt.
func Open(path string) (*Map, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return OpenFile(f)
}

// OpenFile is Open for a file that is open already; it belongs to the map from now on,
// and is closed after an error, too.
func OpenFile(f *os.File) (*Map, error) {
	m := &Map{file: f}
	m.blocks.New = func() any { b := make([]byte, 0, 2*blockBytes); return &b }
	if err := m.load(); err != nil {
		_ = f.Close()
		return nil, err
	}
	return m, nil
}

func (m *Map) load() error {
	info, err := m.file.Stat()
	if err != nil {
		return err
	}
	if m.size = info.Size(); m.size < int64(len(magic))+tailBytes {
		return fmt.Errorf("%w: %d bytes are too few", ErrCorrupt, m.size)
	}
	if err := m.verify(); err != nil {
		return err
	}
	tail := make([]byte, tailBytes)
	if _, err := m.file.ReadAt(tail, m.size-tailBytes); err != nil {
		return err
	}
	m.end = binary.BigEndian.Uint64(tail)
	blocks := binary.BigEndian.Uint64(tail[8:])
	m.users = binary.BigEndian.Uint64(tail[16:])
	return m.readIndex(blocks)
}

// verify compares the sum over the whole file with the one at its end.
func (m *Map) verify() error {
	sum := sha256.New()
	src := io.NewSectionReader(m.file, 0, m.size-sha256.Size)
	if _, err := io.CopyBuffer(sum, src, make([]byte, 256<<10)); err != nil {
		return fmt.Errorf("read the identity map: %w", err)
	}
	want := make([]byte, sha256.Size)
	if _, err := m.file.ReadAt(want, m.size-sha256.Size); err != nil {
		return fmt.Errorf("read the identity map: %w", err)
	}
	if !bytes.Equal(sum.Sum(nil), want) {
		return fmt.Errorf("%w: its checksum is wrong", ErrCorrupt)
	}
	head := make([]byte, len(magic))
	if _, err := m.file.ReadAt(head, 0); err != nil {
		return fmt.Errorf("read the identity map: %w", err)
	}
	if string(head) != magic {
		return fmt.Errorf("%w: it is none, or of another version of birdtap", ErrCorrupt)
	}
	m.version = hex.EncodeToString(want)
	return nil
}

func (m *Map) readIndex(blocks uint64) error {
	room := uint64(m.size) - tailBytes //nolint:gosec // not negative: load has looked
	if m.end < uint64(len(magic)) || m.end > room || blocks != (room-m.end)/refBytes || (room-m.end)%refBytes != 0 {
		return fmt.Errorf("%w: its index does not fit", ErrCorrupt)
	}
	src := bufio.NewReaderSize(io.NewSectionReader(m.file, int64(m.end), int64(room-m.end)), 64<<10) //nolint:gosec // within the file
	m.index = make([]ref, blocks)
	next := ref{offset: uint64(len(magic))} // the least that may follow
	var b [refBytes]byte
	for i := range m.index {
		if _, err := io.ReadFull(src, b[:]); err != nil {
			return fmt.Errorf("read the identity map: %w", err)
		}
		r := ref{binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint64(b[8:])}
		if r.first < next.first || r.offset < next.offset || r.offset >= m.end {
			return fmt.Errorf("%w: its index is out of order", ErrCorrupt)
		}
		m.index[i], next = r, ref{r.first, r.offset + sumBytes + 1}
	}
	return nil
}

// Users is how many user ids the map has.
func (m *Map) Users() uint64 { return m.users }

// Size is that of the file, in bytes.
func (m *Map) Size() int64 { return m.size }

// Version tells whether two maps are the same: it is a hash of all they hold.
func (m *Map) Version() string { return m.version }

// File is the open file, to be read from only.
func (m *Map) File() *os.File { return m.file }

// Close closes the file. No lookup may be under way.
func (m *Map) Close() error { return m.file.Close() }

// Lookup appends the identity of a user to dst and tells whether there is one. An
// error says that the disk fails or has damaged the file: then nothing is known.
func (m *Map) Lookup(dst, user []byte) (identity []byte, found bool, err error) {
	hash := hashOf(user)
	at, exact := slices.BinarySearchFunc(m.index, hash, func(r ref, h uint64) int {
		switch {
		case r.first < h:
			return -1
		case r.first > h:
			return 1
		}
		return 0
	})
	if !exact {
		at-- // the block that begins before
	}
	if at < 0 {
		return dst, false, nil
	}
	buf := m.blocks.Get().(*[]byte) // only *[]byte goes in
	defer m.blocks.Put(buf)
	entries, err := m.block(at, buf)
	if err != nil {
		return dst, false, err
	}
	return find(dst, entries, user)
}

// block reads the entries of a block into buf.
func (m *Map) block(at int, buf *[]byte) ([]byte, error) {
	start, end := m.index[at].offset, m.end
	if at+1 < len(m.index) {
		end = m.index[at+1].offset
	}
	b := slices.Grow((*buf)[:0], int(end-start))[:end-start] //nolint:gosec // a block is small
	*buf = b
	if _, err := m.file.ReadAt(b, int64(start)); err != nil { //nolint:gosec // within the file
		return nil, fmt.Errorf("read the identity map: %w", err)
	}
	entries := b[:len(b)-sumBytes]
	if crc32.Checksum(entries, castagnoli) != binary.BigEndian.Uint32(b[len(entries):]) {
		return nil, fmt.Errorf("%w: block %d", ErrCorrupt, at)
	}
	return entries, nil
}

// find looks through the entries of a block.
func find(dst, entries, user []byte) ([]byte, bool, error) {
	for len(entries) > 0 {
		id, rest, ok := cut(entries)
		identity, rest, also := cut(rest)
		if !ok || !also {
			return dst, false, fmt.Errorf("%w: an entry does not fit its block", ErrCorrupt)
		}
		if bytes.Equal(id, user) {
			return append(dst, identity...), true, nil
		}
		entries = rest
	}
	return dst, false, nil
}

// cut takes a text with its length before it off the front of b.
func cut(b []byte) (text, rest []byte, ok bool) {
	n, size := binary.Uvarint(b)
	if size <= 0 || n > uint64(len(b)-size) { //nolint:gosec // not negative
		return nil, nil, false
	}
	end := size + int(n) //nolint:gosec // at most len(b)
	return b[size:end], b[end:], true
}

func hashOf(user []byte) uint64 {
	sum := sha256.Sum256(user)
	return binary.BigEndian.Uint64(sum[:])
}
