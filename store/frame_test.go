package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

func encodeFrame(rs []Receipt) []byte {
	var p packet
	p.reset(frameMagic)
	for i := range rs {
		p.buf = appendReceipt(p.buf, &rs[i])
		p.n++
	}
	return p.seal()
}

func encodeLetters(ls []Letter) []byte {
	var p packet
	p.reset(letterMagic)
	for i := range ls {
		p.buf = appendLetter(p.buf, &ls[i])
		p.n++
	}
	return p.seal()
}

// sealed is a packet of any body and count, with a right checksum.
func sealed(magic [3]byte, version byte, body []byte, n uint32) []byte {
	b := append([]byte{magic[0], magic[1], magic[2], version}, body...)
	b = binary.LittleEndian.AppendUint32(b, n)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// oneOfEach has a receipt of every kind.
func oneOfEach() []Receipt {
	var key Key
	for i := range key {
		key[i] = byte(i * 17)
	}
	accepted := time.UnixMilli(1700000000123).UTC()
	return []Receipt{
		{Record: []byte(`{"identity":"a","ts":1}`), User: 0x0123456789abcdef, Key: key},
		{Record: []byte("refused at the door"), User: 7, Key: key, Reason: ReasonRefused, Code: 512},
		{Record: []byte(`{"identity":"b"}`), User: 8, Key: key, Origin: Place{Seq: 1 << 40, Index: 999}, Accepted: accepted},
		{Record: []byte{}, User: math.MaxUint64, Reason: ReasonUnmapped, Origin: Place{Seq: 1}, Accepted: time.UnixMilli(-1).UTC()},
	}
}

func lettersOfEach() []Letter {
	var ls []Letter
	for i, r := range oneOfEach() {
		r.Accepted = time.UnixMilli(1690000000000 + int64(i)).UTC()
		ls = append(ls, Letter{
			Receipt: r, Reason: "528", Code: 528 + i, Tries: i * 100,
			Died: time.UnixMilli(1700000000456).UTC(), Origin: Place{Seq: 42, Index: i},
		})
	}
	return ls
}

var sameReceipt = cmpopts.EquateEmpty()

func TestFrameKeepsItsFormat(t *testing.T) {
	want := oneOfEach()
	data := golden(t, "frame-v1.bin", encodeFrame(want))
	if got := encodeFrame(want); !bytes.Equal(got, data) {
		t.Errorf("a frame is written otherwise than before: raise the version\ngot  %x\nwant %x", got, data)
	}
	got, err := decodeFrame(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, sameReceipt); diff != "" {
		t.Error(diff)
	}
}

func TestLettersKeepTheirFormat(t *testing.T) {
	want := lettersOfEach()
	data := golden(t, "letters-v1.bin", encodeLetters(want))
	if got := encodeLetters(want); !bytes.Equal(got, data) {
		t.Errorf("letters are written otherwise than before: raise the version\ngot  %x\nwant %x", got, data)
	}
	got, err := decodeLetters(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, sameReceipt); diff != "" {
		t.Error(diff)
	}
}

func TestFlippedByteIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		data   []byte
		decode func([]byte) error
	}{
		"frame":   {encodeFrame(oneOfEach()), func(b []byte) error { _, err := decodeFrame(b); return err }},
		"letters": {encodeLetters(lettersOfEach()), func(b []byte) error { _, err := decodeLetters(b); return err }},
	} {
		for i := range c.data {
			for flip := 1; flip < 256; flip++ {
				b := slices.Clone(c.data)
				b[i] ^= byte(flip)
				if err := c.decode(b); !errors.Is(err, ErrCorrupt) {
					t.Fatalf("%s, byte %d flipped by %#x: got %v", name, i, flip, err)
				}
			}
			if err := c.decode(c.data[:i]); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%s, cut at %d: got %v", name, i, err)
			}
		}
	}
}

func TestNonsenseIsRefused(t *testing.T) {
	good := appendReceipt(nil, &oneOfEach()[0])
	refused := appendReceipt(nil, &oneOfEach()[1])
	refusedWithoutReason := slices.Clone(refused[:len(refused)-len("refused")])
	refusedWithoutReason[len(refusedWithoutReason)-1] = 0
	replayedFromNowhere := append([]byte{flagReplayed}, good[1:]...)
	replayedFromNowhere = append(replayedFromNowhere, 0, 0, 0)
	tooLong := append(make([]byte, 25), binary.AppendUvarint(nil, math.MaxUint64)...)
	for name, data := range map[string][]byte{
		"nothing":                     nil,
		"letters":                     encodeLetters(lettersOfEach()),
		"a version that never was":    sealed(frameMagic, 0, good, 1),
		"no receipts":                 sealed(frameMagic, frameVersion, nil, 0),
		"fewer receipts than it says": sealed(frameMagic, frameVersion, good, 2),
		"more receipts than it says":  sealed(frameMagic, frameVersion, append(slices.Clone(good), good...), 1),
		"too many receipts":           sealed(frameMagic, frameVersion, bytes.Repeat(good, maxFrameReceipts+1), maxFrameReceipts+1),
		"four billion receipts":       sealed(frameMagic, frameVersion, good, math.MaxUint32),
		"an unknown flag":             sealed(frameMagic, frameVersion, append([]byte{1 << 7}, good[1:]...), 1),
		"refused without a reason":    sealed(frameMagic, frameVersion, refusedWithoutReason, 1),
		"replayed from nowhere":       sealed(frameMagic, frameVersion, replayedFromNowhere, 1),
		"a record of 2^64 bytes":      sealed(frameMagic, frameVersion, tooLong, 1),
	} {
		if _, err := decodeFrame(data); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// What a newer birdtap has stored is not damaged, but a damaged version byte is.
func TestFrameOfANewerVersionIsNotCorrupt(t *testing.T) {
	frame := sealed(frameMagic, frameVersion+1, appendReceipt(nil, &oneOfEach()[0]), 1)
	if _, err := decodeFrame(frame); !errors.Is(err, ErrNewer) || errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v", err)
	}
	frame[3]++
	if _, err := decodeFrame(frame); !errors.Is(err, ErrCorrupt) {
		t.Errorf("damaged: got %v", err)
	}
}

func drawReceipt(t *rapid.T, label string) Receipt {
	r := Receipt{
		Record: rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, label+" record"),
		User:   rapid.Uint64().Draw(t, label+" user"),
		Key:    Key(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, label+" key")),
	}
	if rapid.Bool().Draw(t, label+" refused") {
		r.Reason = Reason(rapid.StringN(1, 20, 60).Draw(t, label+" reason"))
		r.Code = rapid.IntRange(0, math.MaxInt32).Draw(t, label+" code")
	}
	if rapid.Bool().Draw(t, label+" replayed") {
		r.Origin = drawPlace(t, label)
		r.Accepted = drawTime(t, label+" accepted")
	}
	return r
}

func drawPlace(t *rapid.T, label string) Place {
	return Place{
		Seq:   rapid.Uint64Min(1).Draw(t, label+" origin"),
		Index: rapid.IntRange(0, math.MaxInt32).Draw(t, label+" index"),
	}
}

func drawTime(t *rapid.T, label string) time.Time {
	return time.UnixMilli(rapid.Int64Range(-1<<50, 1<<50).Draw(t, label)).UTC()
}

func TestFrameRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := make([]Receipt, rapid.IntRange(1, 20).Draw(t, "n"))
		for i := range want {
			want[i] = drawReceipt(t, "receipt")
			if err := checkReceipt(&want[i]); err != nil {
				t.Fatal(err)
			}
			if n := len(appendReceipt(nil, &want[i])); n > receiptSize(&want[i]) {
				t.Fatalf("takes %d bytes, receiptSize says %d", n, receiptSize(&want[i]))
			}
		}
		got, err := decodeFrame(encodeFrame(want))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, sameReceipt); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestLettersRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := make([]Letter, rapid.IntRange(1, 20).Draw(t, "n"))
		for i := range want {
			want[i] = Letter{
				Receipt: drawReceipt(t, "receipt"),
				Reason:  Reason(rapid.StringN(1, 20, 60).Draw(t, "why")),
				Code:    rapid.IntRange(0, math.MaxInt32).Draw(t, "status"),
				Tries:   rapid.IntRange(0, math.MaxInt32).Draw(t, "tries"),
				Died:    drawTime(t, "died"),
				Origin:  drawPlace(t, "died at"),
			}
			want[i].Receipt.Accepted = drawTime(t, "accepted")
			if err := checkLetter(&want[i]); err != nil {
				t.Fatal(err)
			}
			if n := len(appendLetter(nil, &want[i])); n > letterSize(&want[i]) {
				t.Fatalf("takes %d bytes, letterSize says %d", n, letterSize(&want[i]))
			}
		}
		got, err := decodeLetters(encodeLetters(want))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, sameReceipt); diff != "" {
			t.Fatal(diff)
		}
	})
}

// FuzzFrame throws bytes at the decoder, once as they are and once behind a right
// checksum, so that it gets past that.
func FuzzFrame(f *testing.F) {
	whole := encodeFrame(oneOfEach())
	f.Add(whole, uint32(4))
	f.Add(whole[frameHead:len(whole)-frameTrailer], uint32(4))
	f.Add([]byte{}, uint32(0))
	f.Fuzz(func(t *testing.T, data []byte, n uint32) {
		for _, b := range [][]byte{data, sealed(frameMagic, frameVersion, data, n)} {
			got, err := decodeFrame(b)
			if err != nil {
				if !errors.Is(err, ErrCorrupt) {
					t.Fatalf("got %v", err)
				}
				continue
			}
			again, err := decodeFrame(encodeFrame(got))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(got, again, sameReceipt); diff != "" {
				t.Fatal(diff)
			}
		}
	})
}

// FuzzLetters does the same for dead letters.
func FuzzLetters(f *testing.F) {
	whole := encodeLetters(lettersOfEach())
	f.Add(whole, uint32(4))
	f.Add(whole[frameHead:len(whole)-frameTrailer], uint32(4))
	f.Add([]byte{}, uint32(0))
	f.Fuzz(func(t *testing.T, data []byte, n uint32) {
		for _, b := range [][]byte{data, sealed(letterMagic, frameVersion, data, n)} {
			got, err := decodeLetters(b)
			if err != nil {
				if !errors.Is(err, ErrCorrupt) {
					t.Fatalf("got %v", err)
				}
				continue
			}
			again, err := decodeLetters(encodeLetters(got))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(got, again, sameReceipt); diff != "" {
				t.Fatal(diff)
			}
		}
	})
}

func TestFrameLimits(t *testing.T) {
	var p packet
	p.reset(frameMagic)
	small := receipt(1)
	for !p.full(receiptSize(&small)) {
		p.buf = appendReceipt(p.buf, &small)
		p.n++
	}
	if p.n != maxFrameReceipts {
		t.Errorf("a frame takes %d small receipts, want %d", p.n, maxFrameReceipts)
	}

	p.reset(frameMagic)
	large := Receipt{Record: make([]byte, 128<<10)}
	for !p.full(receiptSize(&large)) {
		p.buf = appendReceipt(p.buf, &large)
		p.n++
	}
	if n := len(p.seal()); p.n != 3 || n > maxFrameBytes {
		t.Errorf("a frame takes %d records of 128 KiB in %d bytes", p.n, n)
	}

	p.reset(frameMagic)
	huge := Receipt{Record: make([]byte, maxReceiptBytes-receiptOverhead)}
	if p.full(receiptSize(&huge)) {
		t.Error("the largest receipt does not fit an empty frame")
	}
}

func TestInvalidReceiptsAndLettersAreNotStored(t *testing.T) {
	s := openStore(t)
	for name, r := range map[string]Receipt{
		"too large":         {Record: make([]byte, maxReceiptBytes)},
		"a long reason":     {Reason: Reason(strings.Repeat("x", maxReceiptBytes))},
		"negative code":     {Reason: ReasonRefused, Code: -1},
		"origin of frame 0": {Origin: Place{Index: 1}},
		"negative index":    {Origin: Place{Seq: 1, Index: -1}},
	} {
		if err := s.Commit(t.Context(), []Receipt{receipt(1), r}); !errors.Is(err, ErrInvalid) {
			t.Errorf("commit of %s: got %v", name, err)
		}
		l := letter(1, "512")
		l.Receipt = r
		if _, err := s.Bury(t.Context(), []Letter{letter(2, "512"), l}); !errors.Is(err, ErrInvalid) {
			t.Errorf("bury of %s: got %v", name, err)
		}
	}
	for name, change := range map[string]func(*Letter){
		"no reason":      func(l *Letter) { l.Reason = "" },
		"no origin":      func(l *Letter) { l.Origin = Place{} },
		"negative tries": func(l *Letter) { l.Tries = -1 },
		"negative code":  func(l *Letter) { l.Code = -1 },
	} {
		l := letter(1, "512")
		change(&l)
		if _, err := s.Bury(t.Context(), []Letter{l}); !errors.Is(err, ErrInvalid) {
			t.Errorf("bury with %s: got %v", name, err)
		}
	}
	if keys, ls := stored(t, s), buried(t, s); len(keys)+len(ls) != 0 {
		t.Errorf("stored %d receipts and %d letters", len(keys), len(ls))
	}
}

// The largest receipt, and a frame that does not decode, pass through the queue and
// into the dead letters.
func TestLargestReceiptFitsEverywhere(t *testing.T) {
	s := openStore(t)
	huge := receipt(1)
	huge.Record = bytes.Repeat([]byte{'x'}, maxReceiptBytes-receiptOverhead)
	mustCommit(t, s, huge)
	broken := bytes.Repeat([]byte{'y'}, 1<<20-1000)
	if _, err := s.js.Publish(t.Context(), s.names.receipts, broken); err != nil {
		t.Fatal(err)
	}
	fs := read(t, s, 1, 2)
	if !bytes.Equal(fs[0].Receipts[0].Record, huge.Record) {
		t.Error("the largest receipt comes back changed")
	}
	corrupt := fs[1]
	if !errors.Is(corrupt.Err, ErrCorrupt) || len(corrupt.Receipts) != 1 || corrupt.Receipts[0].Reason != ReasonCorrupt ||
		!bytes.HasPrefix(broken, corrupt.Receipts[0].Record) {
		t.Errorf("frame that does not decode: %v, %d receipts", corrupt.Err, len(corrupt.Receipts))
	}
	for _, f := range fs {
		mustBury(t, s, Letter{Receipt: f.Receipts[0], Reason: "512", Origin: Place{Seq: f.Seq}})
	}
	if n := len(buried(t, s)); n != 2 {
		t.Errorf("%d letters, want 2", n)
	}
}
