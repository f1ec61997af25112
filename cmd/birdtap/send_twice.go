package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// twice finds users who stand in a file more than once, in bounded memory: of each it
// keeps a hash, which no two users share, in one of many buckets of a temporary file, and
// looks at one bucket after the other.
type twice struct {
	file    *os.File // nil while everything fits the buffers; has no name
	end     int64
	buckets [twiceBuckets]bucket
}

// bucket is the users whose hash begins with the same bits.
type bucket struct {
	buffer []byte
	pieces []int64 // where its full buffers lie in the file
}

const (
	twiceBuckets = 256
	bucketBytes  = 8 << 10 // 2 MiB for all buffers
	hashBytes    = 16
	// entryBytes is a hash, and the row's number and line, as they are compared.
	entryBytes = hashBytes + 8 + 8
)

func newTwice() *twice { return new(twice) }

func (t *twice) close() {
	if t.file != nil {
		_ = t.file.Close()
	}
}

// add notes a user of a row.
func (t *twice) add(user string, row, line int) error {
	sum := sha256.Sum256([]byte(user))
	b := &t.buckets[sum[0]]
	b.buffer = append(b.buffer, sum[:hashBytes]...)
	b.buffer = binary.BigEndian.AppendUint64(b.buffer, uint64(row))  //nolint:gosec // counted from 0
	b.buffer = binary.BigEndian.AppendUint64(b.buffer, uint64(line)) //nolint:gosec // counted from 1
	if len(b.buffer) < bucketBytes {
		return nil
	}
	if err := t.put(b); err != nil {
		return fmt.Errorf("temporary file of users (TMPDIR says where): %w", err)
	}
	return nil
}

func (t *twice) put(b *bucket) (err error) {
	if t.file == nil {
		if t.file, err = os.CreateTemp("", "birdtap-users-*"); err != nil {
			return err
		}
		if err := os.Remove(t.file.Name()); err != nil {
			return err
		}
	}
	if _, err := t.file.WriteAt(b.buffer, t.end); err != nil {
		return err
	}
	b.pieces = append(b.pieces, t.end)
	t.end += int64(len(b.buffer))
	b.buffer = b.buffer[:0]
	return nil
}

// each calls fn for every row whose user stands in an earlier one; first is the line of
// the first.
func (t *twice) each(ctx context.Context, fn func(row, line, first int)) error {
	var all []byte
	var entries [][]byte
	for i := range t.buckets {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := &t.buckets[i]
		all = all[:0]
		for _, at := range b.pieces {
			all = slices.Grow(all, bucketBytes)[:len(all)+bucketBytes]
			if _, err := t.file.ReadAt(all[len(all)-bucketBytes:], at); err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("temporary file of users: %w", err)
			}
		}
		all = append(all, b.buffer...)
		entries = slices.AppendSeq(entries[:0], slices.Chunk(all, entryBytes))
		slices.SortFunc(entries, bytes.Compare)
		var first []byte
		for _, e := range entries {
			if first == nil || !bytes.Equal(first[:hashBytes], e[:hashBytes]) {
				first = e
				continue
			}
			fn(number(e[hashBytes:]), number(e[hashBytes+8:]), number(first[hashBytes+8:]))
		}
	}
	return nil
}

func number(b []byte) int { return int(binary.BigEndian.Uint64(b)) } //nolint:gosec // an int once
