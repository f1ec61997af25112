package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"time"
)

// A frame is one message on the queue: up to maxFrameReceipts receipts, committed
// together. One fsync then pays for all of them.
//
//	offset 0  'B' 'T' 'F'  version(1)
//	       4  receipt … receipt
//	  len - 8  number of receipts   uint32, little endian
//	  len - 4  CRC-32C of all before uint32, little endian
//
// and a receipt is
//
//	flags(1)  key(16)  user(8, little endian)  uvarint length, record
//	refused:  uvarint code  uvarint length, reason
//	replayed: uvarint origin sequence  uvarint origin index  varint accepted, Unix ms
//
// Frames outlive a deploy. A new version gets a new number and keeps head and trailer,
// and the old ones stay readable: one of each is kept in testdata and decoded by a
// test. One of a newer version than its reader knows is not damaged, and waits for a
// birdtap that knows it.
const (
	maxFrameReceipts = 1000
	maxFrameBytes    = 512 << 10 // of several receipts; a larger receipt has its frame for itself

	// maxReceiptBytes bounds what one receipt takes, so that it fits a message of
	// its own, as a dead letter too: nats-server's max_payload is 1 MiB. The door
	// takes records of at most 128 KiB.
	maxReceiptBytes = 768 << 10
	// maxCorruptBytes of a message that does not decode are kept: more than any
	// frame has, unless somebody else published it.
	maxCorruptBytes = 640 << 10

	frameVersion = 1
	frameHead    = 4
	frameTrailer = 8

	flagRefused  = 1 << 0
	flagReplayed = 1 << 1
	knownFlags   = flagRefused | flagReplayed
)

var (
	frameMagic  = [3]byte{'B', 'T', 'F'}
	letterMagic = [3]byte{'B', 'T', 'D'}
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
)

// ErrCorrupt is wrapped by every error about stored bytes that do not decode, ErrNewer
// by those about bytes that a newer birdtap has written.
var (
	ErrCorrupt = errors.New("corrupt")
	ErrNewer   = errors.New("written by a newer birdtap")
)

// packet gathers receipts, or letters, between a head and a trailer.
type packet struct {
	buf []byte
	n   int
}

func (p *packet) reset(magic [3]byte) {
	p.buf = append(p.buf[:0], magic[0], magic[1], magic[2], frameVersion)
	p.n = 0
}

// full tells whether size more bytes no longer fit. The first entry always fits:
// see maxReceiptBytes.
func (p *packet) full(size int) bool {
	return p.n >= maxFrameReceipts || p.n > 0 && len(p.buf)+size+frameTrailer > maxFrameBytes
}

// seal adds the trailer and returns the bytes to store.
func (p *packet) seal() []byte {
	p.buf = binary.LittleEndian.AppendUint32(p.buf, uint32(p.n)) //nolint:gosec // at most maxFrameReceipts
	return binary.LittleEndian.AppendUint32(p.buf, crc32.Checksum(p.buf, castagnoli))
}

// openPacket checks head and trailer, and returns what is between them and its count.
func openPacket(data []byte, magic [3]byte) (body []byte, n int, err error) {
	if len(data) < frameHead+frameTrailer || [3]byte(data[:3]) != magic {
		return nil, 0, fmt.Errorf("%w: not a frame of birdtap", ErrCorrupt)
	}
	sum := len(data) - 4
	if crc32.Checksum(data[:sum], castagnoli) != binary.LittleEndian.Uint32(data[sum:]) {
		return nil, 0, fmt.Errorf("%w: checksum differs", ErrCorrupt)
	}
	switch version := data[3]; {
	case version > frameVersion:
		return nil, 0, fmt.Errorf("%w: format version %d, this one reads up to %d", ErrNewer, version, frameVersion)
	case version != frameVersion:
		return nil, 0, fmt.Errorf("%w: format version %d", ErrCorrupt, version)
	}
	n = int(binary.LittleEndian.Uint32(data[sum-4:]))
	if n < 1 || n > maxFrameReceipts {
		return nil, 0, fmt.Errorf("%w: %d receipts, not 1 to %d", ErrCorrupt, n, maxFrameReceipts)
	}
	return data[frameHead : sum-4], n, nil
}

// receiptOverhead bounds what a receipt takes beside Record and Reason.
const receiptOverhead = 1 + 16 + 8 + 6*binary.MaxVarintLen64

func receiptSize(r *Receipt) int { return receiptOverhead + len(r.Record) + len(r.Reason) }

// checkReceipt refuses what would be stored and never be read again, or what no
// message can hold: either would take down the other receipts of its frame.
func checkReceipt(r *Receipt) error {
	switch {
	case receiptSize(r) > maxReceiptBytes:
		return fmt.Errorf("%w: a receipt of %d bytes, at most %d", ErrInvalid, receiptSize(r), maxReceiptBytes)
	case !isCount(r.Code):
		return fmt.Errorf("%w: a receipt with code %d", ErrInvalid, r.Code)
	case !r.Origin.IsZero() && !r.Origin.valid():
		return fmt.Errorf("%w: a receipt with origin %d, %d", ErrInvalid, r.Origin.Seq, r.Origin.Index)
	}
	return nil
}

// isCount tells whether decoder.int reads n back.
func isCount(n int) bool { return n >= 0 && n <= math.MaxInt32 }

func appendReceipt(b []byte, r *Receipt) []byte {
	var flags byte
	if r.Reason != "" {
		flags |= flagRefused
	}
	if !r.Origin.IsZero() {
		flags |= flagReplayed
	}
	b = append(b, flags)
	b = append(b, r.Key[:]...)
	b = binary.LittleEndian.AppendUint64(b, r.User)
	b = appendBytes(b, r.Record)
	if flags&flagRefused != 0 {
		b = binary.AppendUvarint(b, uint64(r.Code)) //nolint:gosec // codes are positive
		b = appendBytes(b, r.Reason)
	}
	if flags&flagReplayed != 0 {
		b = appendPlace(b, r.Origin)
		b = binary.AppendVarint(b, r.Accepted.UnixMilli())
	}
	return b
}

func appendBytes[T []byte | string | Reason](b []byte, v T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

func appendPlace(b []byte, p Place) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, p.Seq), uint64(p.Index)) //nolint:gosec // an index is not negative
}

// decodeFrame returns the receipts of a frame. Their Records are slices of data.
// Receipts that are not replayed have no Accepted of their own: the caller sets it
// from the frame's time.
func decodeFrame(data []byte) ([]Receipt, error) {
	body, n, err := openPacket(data, frameMagic)
	if err != nil {
		return nil, err
	}
	receipts := make([]Receipt, n)
	d := decoder{rest: body}
	for i := range receipts {
		d.receipt(&receipts[i])
	}
	return receipts, d.end()
}

// decoder reads fields one after another; after the first that is not there every
// further one is zero, and end tells.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) receipt(r *Receipt) {
	head := d.take(1 + len(r.Key) + 8)
	if d.bad {
		return
	}
	flags := head[0]
	if flags&^knownFlags != 0 {
		d.bad = true
		return
	}
	copy(r.Key[:], head[1:])
	r.User = binary.LittleEndian.Uint64(head[17:])
	r.Record = d.bytes()
	if flags&flagRefused != 0 {
		r.Code = d.int()
		r.Reason = d.reason()
	}
	if flags&flagReplayed != 0 {
		r.Origin = d.place()
		r.Accepted = d.time()
	}
}

func (d *decoder) take(n int) []byte {
	if d.bad || n < 0 || n > len(d.rest) {
		d.bad = true
		return nil
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.rest)
	if d.bad || n <= 0 {
		d.bad = true
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

// int reads a count, a code or an index: all fit 31 bits.
func (d *decoder) int() int {
	v := d.uvarint()
	if v > math.MaxInt32 {
		d.bad = true
		return 0
	}
	return int(v)
}

func (d *decoder) bytes() []byte { return d.take(d.int()) }

// reason must not be empty: an empty one would turn a refused receipt into one to be delivered.
func (d *decoder) reason() Reason {
	r := Reason(d.bytes())
	d.bad = d.bad || r == ""
	return r
}

func (d *decoder) place() Place {
	p := Place{Seq: d.uvarint(), Index: d.int()}
	d.bad = d.bad || p.Seq == 0
	return p
}

func (d *decoder) time() time.Time {
	v, n := binary.Varint(d.rest)
	if d.bad || n <= 0 {
		d.bad = true
		return time.Time{}
	}
	d.rest = d.rest[n:]
	return time.UnixMilli(v).UTC()
}

func (d *decoder) end() error {
	if d.bad || len(d.rest) != 0 {
		return fmt.Errorf("%w: the receipts do not fill the frame", ErrCorrupt)
	}
	return nil
}
