package idmap

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"unicode/utf8"
)

// Names of the columns, which the first row must hold.
const (
	userColumn     = "user_id"
	identityColumn = "identity"
)

const (
	// maxRowBytes bounds a row in memory. A quote that is never closed would else take
	// in the rest of the file.
	maxRowBytes = 64 << 10
	// progressRows is after how many rows progress is told.
	progressRows = 100_000
	// shownRows is how many bad rows are named.
	shownRows = 10
)

// BadRow is one row that cannot be, and why. It quotes nothing of the row.
type BadRow struct {
	Line   int
	Column string // empty: the row as a whole
	Reason string
}

func (r BadRow) String() string {
	if r.Column == "" {
		return fmt.Sprintf("line %d: %s", r.Line, r.Reason)
	}
	return fmt.Sprintf("line %d, column %s: %s", r.Line, r.Column, r.Reason)
}

// BadRows is why a file is refused.
type BadRows struct {
	First []BadRow // the first ten, by line
	Total int
}

func (e *BadRows) Error() string {
	if e.Total == 1 {
		return "1 bad row"
	}
	return fmt.Sprintf("%d bad rows", e.Total)
}

func (e *BadRows) add(r BadRow) {
	e.Total++
	at, _ := slices.BinarySearchFunc(e.First, r.Line, func(x BadRow, line int) int { return x.Line - line })
	if e.First = slices.Insert(e.First, at, r); len(e.First) > shownRows {
		e.First = e.First[:shownRows]
	}
}

// Errors of a file as a whole.
var (
	ErrHeader = errors.New("line 1: the first row must be user_id,identity")
	ErrNoRows = errors.New("the file has no user below its first row")
)

// FromCSV reads a whole file, RFC 4180, first row user_id,identity, and makes a map of
// it, in bounded memory and with nameless temporary files in dir. One bad row and there
// is no map: *BadRows. duplicates counts rows that say again what another one says.
// progress, if any, is called from time to time with the rows read so far.
func FromCSV(src io.Reader, dir string, progress func(rows int)) (m *Map, duplicates int, err error) {
	b := NewBuilder(dir)
	defer func() { err = errors.Join(err, b.Close()) }()
	bad := new(BadRows)
	b.Conflict = func(line, first int) {
		bad.add(BadRow{line, userColumn, fmt.Sprintf("the same user as in line %d, with another identity", first)})
	}
	rows, err := readRows(src, b, bad, progress)
	if err != nil {
		return nil, 0, err
	}
	m, err = b.Finish()
	switch {
	case err != nil:
		return nil, 0, err
	case bad.Total > 0:
		return nil, 0, errors.Join(bad, m.Close())
	case rows == 0:
		return nil, 0, errors.Join(ErrNoRows, m.Close())
	}
	return m, b.Duplicates, nil
}

// readRows adds every good row to b, and notes the others.
func readRows(src io.Reader, b *Builder, bad *BadRows, progress func(int)) (int, error) {
	guard := &rowGuard{src: src}
	r := csv.NewReader(guard)
	r.FieldsPerRecord = -1 // counted here, with better words
	r.ReuseRecord = true
	header, err := r.Read()
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, errRowTooLong) && !isSyntax(err) {
		return 0, err
	}
	if len(header) != 2 || string(bytes.TrimPrefix([]byte(header[0]), bom)) != userColumn || header[1] != identityColumn {
		return 0, ErrHeader
	}
	var user, identity []byte
	last := 1 // line of the row before
	for rows := 0; ; rows++ {
		if progress != nil && rows%progressRows == 0 && rows > 0 {
			progress(rows)
		}
		guard.row = 0
		row, err := r.Read()
		switch {
		case errors.Is(err, io.EOF):
			return rows, nil
		case isSyntax(err):
			bad.add(syntaxOf(err))
			continue
		case errors.Is(err, errRowTooLong):
			// Where the next row begins is not to be known.
			bad.add(BadRow{Line: last + 1, Reason: err.Error()})
			return rows, nil
		case err != nil:
			return rows, err
		}
		line, _ := r.FieldPos(0)
		last = line
		if wrong, ok := judge(row, line); !ok {
			bad.add(wrong)
			continue
		}
		user, identity = append(user[:0], row[0]...), append(identity[:0], row[1]...)
		if err := b.Add(user, identity, line); err != nil {
			return rows, err
		}
	}
}

// bom is what some spreadsheets put before the first cell.
var bom = []byte("\ufeff")

func judge(row []string, line int) (BadRow, bool) {
	if len(row) != 2 {
		return BadRow{Line: line, Reason: fmt.Sprintf("2 columns are wanted, it has %d", len(row))}, false
	}
	for i, column := range []string{userColumn, identityColumn} {
		if reason := judgeCell(row[i]); reason != "" {
			return BadRow{line, column, reason}, false
		}
	}
	return BadRow{}, true
}

func judgeCell(cell string) string {
	switch {
	case cell == "":
		return "it is empty"
	case len(cell) > MaxBytes:
		return fmt.Sprintf("it is longer than %d bytes", MaxBytes)
	case !utf8.ValidString(cell):
		return "it is not valid UTF-8"
	}
	for i := range len(cell) {
		switch cell[i] {
		case '\n', '\r', 0:
			return "it holds a line break or a NUL"
		}
	}
	return ""
}

func isSyntax(err error) bool {
	var parse *csv.ParseError
	return errors.As(err, &parse)
}

func syntaxOf(err error) BadRow {
	var parse *csv.ParseError
	errors.As(err, &parse)
	row := BadRow{Line: parse.StartLine, Reason: fmt.Sprintf("a quote out of place, in line %d at byte %d", parse.Line, parse.Column)}
	if errors.Is(parse.Err, csv.ErrQuote) {
		row.Reason = fmt.Sprintf("a quote that is not closed or stands alone, in line %d at byte %d", parse.Line, parse.Column)
	}
	return row
}

var errRowTooLong = fmt.Errorf("it is longer than %d bytes; is a quote not closed?", maxRowBytes)

// rowGuard bounds what is read for one row. The csv package reads ahead a little, so a
// row may be a little longer.
type rowGuard struct {
	src io.Reader
	row int // bytes read for this row
}

func (g *rowGuard) Read(p []byte) (int, error) {
	if g.row > maxRowBytes {
		return 0, errRowTooLong
	}
	n, err := g.src.Read(p)
	g.row += n
	return n, err
}
