package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/birdtap/birdtap/sendbird"
	"github.com/birdtap/birdtap/sendbird/sender"
)

const (
	// maxRowBytes bounds a row in memory. A quote that is never closed would else take in
	// the rest of the file.
	maxRowBytes = 64 << 10
	// maxUserBytes is what one user may take in an ask.
	maxUserBytes = 160 << 10
	// shownRows is how many bad rows are named.
	shownRows = 20
	// surveyRows is after how many rows progress is told.
	surveyRows = 50_000
)

// targets is a file of users. It is read several times, from the same open file: first
// to judge it, then to send it.
type targets struct {
	file    *os.File
	name    string
	size    int64
	changed time.Time

	columns   []string // as in the first row
	user      int      // which of them is user_id
	variables []string // the others, in their order
}

// openTargets opens a file and reads its first row.
func openTargets(ctx context.Context, name string) (*targets, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, usageError("--csv: " + printable(err.Error()))
	}
	f := &targets{file: file, name: name}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = usageError(fmt.Sprintf("--csv %s: must be a file: it is read more than once", printable(name)))
	}
	if err == nil {
		f.size, f.changed = info.Size(), info.ModTime()
		err = f.readHeader(ctx)
	}
	if err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

func (f *targets) close() { _ = f.file.Close() } // only read from

// unchanged tells whether the file is still what was judged.
func (f *targets) unchanged() error {
	info, err := f.file.Stat()
	if err == nil && (info.Size() != f.size || !info.ModTime().Equal(f.changed)) {
		err = errors.New("the file was changed while it was read")
	}
	return err
}

// rowGuard bounds what is read for one row. The csv package reads ahead a little, so a
// row may be a little longer.
type rowGuard struct {
	src io.Reader
	row int // bytes read for this row
}

var errRowTooLong = fmt.Errorf("it is longer than %d bytes; is a quote not closed? Rows behind it were not read", maxRowBytes)

func (g *rowGuard) Read(p []byte) (int, error) {
	if g.row > maxRowBytes {
		return 0, errRowTooLong
	}
	n, err := g.src.Read(p)
	g.row += n
	return n, err
}

// bom is what some spreadsheets put before the first cell.
const bom = "\ufeff"

// reader begins at the first row. What it reads goes to seen, too.
func (f *targets) reader(ctx context.Context, seen io.Writer) (*csv.Reader, *rowGuard, error) {
	whole := io.TeeReader(ctxReader{ctx, io.NewSectionReader(f.file, 0, f.size)}, seen)
	start := make([]byte, len(bom))
	n, err := io.ReadFull(whole, start)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	guard := &rowGuard{src: io.MultiReader(bytes.NewReader(bytes.TrimPrefix(start[:n], []byte(bom))), whole)}
	r := csv.NewReader(guard)
	r.FieldsPerRecord = -1 // counted here, with better words
	r.ReuseRecord = true
	return r, guard, nil
}

func (f *targets) readHeader(ctx context.Context) error {
	r, _, err := f.reader(ctx, io.Discard)
	if err != nil {
		return f.headerError(err)
	}
	row, err := r.Read()
	if errors.Is(err, io.EOF) {
		return f.headerError(errors.New("the file is empty: its first row names the columns, of which user_id is one"))
	}
	if syntax := (*csv.ParseError)(nil); errors.As(err, &syntax) {
		err = errors.New(syntaxOf(syntax).reason)
	}
	if err != nil {
		return f.headerError(err)
	}
	f.columns = slices.Clone(row)
	return f.headerError(f.judgeHeader())
}

func (f *targets) headerError(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("nothing was sent: %s: first row: %w", printable(f.name), err)
}

// judgeHeader finds the columns.
func (f *targets) judgeHeader() error {
	f.user = slices.Index(f.columns, sendbird.UserColumn)
	for _, name := range f.columns {
		if !utf8.ValidString(name) {
			return errors.New("is not valid UTF-8: save the file as CSV in UTF-8")
		}
	}
	if f.user < 0 {
		hint := ""
		if len(f.columns) == 1 && strings.ContainsAny(f.columns[0], ";\t|") {
			hint = "; a comma separates columns"
		}
		names := strings.Join(f.columns, ", ")
		return fmt.Errorf("has no column %s, only %s%s", sendbird.UserColumn, cell(names), hint)
	}
	for i, name := range f.columns {
		if slices.Contains(f.columns[:i], name) {
			return fmt.Errorf("column %d is %s once more: each name once", i+1, cell(name))
		}
		if i == f.user {
			continue
		}
		if limit := (*sendbird.LimitError)(nil); errors.As(sendbird.CheckColumns([]string{name}), &limit) {
			return fmt.Errorf("column %d is %s: %s (%s)", i+1, limit.Value, limit.Limit, limit.Source)
		}
		f.variables = append(f.variables, name)
	}
	return nil
}

// badRow is one row that cannot be, and why. It quotes nothing of the row.
type badRow struct {
	line   int
	column string // empty: the row as a whole
	reason string
}

func (r badRow) String() string {
	if r.column == "" {
		return fmt.Sprintf("line %d: %s", r.line, r.reason)
	}
	return fmt.Sprintf("line %d, column %s: %s", r.line, r.column, r.reason)
}

// badRows is how many there are, and the first ones by line.
type badRows struct {
	first []badRow
	total int
}

func (b *badRows) add(r badRow) {
	b.total++
	at, _ := slices.BinarySearchFunc(b.first, r.line, func(x badRow, line int) int { return x.line - line })
	if b.first = slices.Insert(b.first, at, r); len(b.first) > shownRows {
		b.first = b.first[:shownRows]
	}
}

// rows calls fn for every row below the first, numbered from 0; bad is set for one that
// has no cells. cells are valid until fn returns, its strings for longer. cut: the rest
// cannot be read.
func (f *targets) rows(ctx context.Context, seen io.Writer, fn func(n, line int, cells []string, bad *badRow) error) (cut bool, err error) {
	r, guard, err := f.reader(ctx, seen)
	if err != nil {
		return false, err
	}
	if _, err := r.Read(); err != nil {
		return false, err // it was read before
	}
	last, _ := r.FieldPos(0)
	for n := 0; ; n++ {
		guard.row = 0
		cells, err := r.Read()
		var syntax *csv.ParseError
		switch {
		case errors.Is(err, io.EOF):
			return false, nil
		case errors.Is(err, errRowTooLong):
			// Where the next row begins is not to be known.
			return true, fn(n, last+1, nil, &badRow{line: last + 1, reason: err.Error()})
		case errors.As(err, &syntax):
			last = syntax.Line
			err = fn(n, syntax.StartLine, nil, syntaxOf(syntax))
		case err == nil:
			line, _ := r.FieldPos(0)
			last, _ = r.FieldPos(len(cells) - 1)
			last += strings.Count(cells[len(cells)-1], "\n")
			err = fn(n, line, cells, nil)
		}
		if err != nil {
			return false, err
		}
	}
}

func syntaxOf(e *csv.ParseError) *badRow {
	reason := "a quote is not closed, or stands within a value"
	if e.Line != e.StartLine {
		reason += fmt.Sprintf(", in line %d", e.Line)
	}
	return &badRow{line: e.StartLine, reason: fmt.Sprintf("%s, at byte %d", reason, e.Column)}
}

// judge says what is wrong with a row, nil if nothing.
func (f *targets) judge(cells []string, line int) *badRow {
	if len(cells) != len(f.columns) {
		return &badRow{line, "", fmt.Sprintf("%s, but the first row names %d", counted(len(cells), "column"), len(f.columns))}
	}
	one := sendbird.Notification{Template: "t", Mode: sendbird.Realtime, Targets: []string{cells[f.user]}}
	if limit := (*sendbird.LimitError)(nil); errors.As(one.Check(), &limit) {
		return &badRow{line, sendbird.UserColumn, limit.Value + ", but " + limit.Limit}
	}
	bytes := 0
	for i, text := range cells {
		switch {
		case !utf8.ValidString(text):
			return &badRow{line, f.columns[i], "invalid UTF-8"}
		case strings.ContainsRune(text, 0):
			return &badRow{line, f.columns[i], "a NUL"}
		}
		bytes += encodedSize(text) + encodedSize(f.columns[i])
	}
	if bytes > maxUserBytes {
		return &badRow{line, "", fmt.Sprintf("it takes more than %d bytes as JSON", maxUserBytes)}
	}
	return nil
}

// encodedSize is no less than what a string takes as JSON, with what stands around it.
func encodedSize(text string) int {
	n := len(text) + 8
	for i := range len(text) {
		switch c := text[i]; {
		case c < ' ':
			n += 5
		case c == '"', c == '\\':
			n++
		}
	}
	return n
}

// survey is what a file holds, row by row.
type survey struct {
	sum   [sha256.Size]byte // of the content
	rows  int
	users int // those of good rows
	bad   badRows
	skip  bitmap // the bad rows
	cut   bool   // it could not be read to its end
}

// bitmap is a set of row numbers, an eighth of a byte each.
type bitmap []byte

func (b *bitmap) set(n int) {
	for len(*b) <= n/8 {
		*b = append(*b, 0)
	}
	(*b)[n/8] |= 1 << (n % 8)
}

func (b bitmap) has(n int) bool { return n/8 < len(b) && b[n/8]&(1<<(n%8)) != 0 }

// survey reads the whole file and judges it, in bounded memory. A user who stands there
// twice counts where it comes first.
func (f *targets) survey(ctx context.Context, progress func(rows int)) (*survey, error) {
	s := &survey{}
	twice := newTwice()
	defer twice.close()
	sum := sha256.New()
	cut, err := f.rows(ctx, sum, func(n, line int, cells []string, bad *badRow) error {
		if s.rows++; s.rows%surveyRows == 0 {
			progress(s.rows)
		}
		if bad == nil {
			bad = f.judge(cells, line)
		}
		if bad != nil {
			s.bad.add(*bad)
			s.skip.set(n)
			return nil
		}
		return twice.add(cells[f.user], n, line)
	})
	if err != nil {
		return nil, err
	}
	s.cut = cut
	err = twice.each(ctx, func(n, line, first int) {
		s.bad.add(badRow{line, sendbird.UserColumn, fmt.Sprintf("the user of line %d once more", first)})
		s.skip.set(n)
	})
	if err != nil {
		return nil, err
	}
	s.users = s.rows - s.bad.total
	sum.Sum(s.sum[:0])
	return s, f.unchanged()
}

const (
	// partsVersion is part of a job's id. Whoever changes how a file is taken apart, or
	// which rows are bad, raises it: the parts of a job are counted over a restart.
	partsVersion = 1
	maxPartUsers = 500
	maxPartBytes = 200 << 10
	userBytes    = 24 // around what a user has
)

// parts takes the good rows apart into asks, the same ones each time, and calls fn for
// each: as many users as a part may have, and never some of two calls.
func (f *targets) parts(ctx context.Context, s *survey, m sender.Message, fn func(sender.Ask) error) error {
	most, users, size := mostUsers(m.Mode), 0, 0
	part := sender.Ask{Message: m}
	leave := func() error {
		part.Last = users == s.users
		err := fn(part)
		part = sender.Ask{Message: m, Part: part.Part + 1}
		size = 0
		return err
	}
	_, err := f.rows(ctx, io.Discard, func(n, _ int, cells []string, _ *badRow) error {
		if s.skip.has(n) {
			return nil
		}
		u := sender.User{ID: cells[f.user]}
		takes := userBytes + encodedSize(u.ID)
		for i, text := range cells {
			if i == f.user {
				continue
			}
			if u.Variables == nil {
				u.Variables = make(sendbird.Variables, len(f.variables))
			}
			u.Variables[f.columns[i]] = sendbird.String(text)
			takes += encodedSize(text) + encodedSize(f.columns[i])
		}
		if len(part.Users) > 0 && size+takes > maxPartBytes {
			if err := leave(); err != nil {
				return err
			}
		}
		part.Users = append(part.Users, u)
		users++
		size += takes
		if users == s.users || users%most == 0 || len(part.Users) == maxPartUsers {
			return leave()
		}
		return nil
	})
	return err
}

func (f *targets) badName() string { return f.name + ".bad.csv" }

// writeBad writes the rows that are left out to a file of their own: line, reason, and the
// row as it is. One that is there already is left alone, and must be the same.
func (f *targets) writeBad(ctx context.Context, s *survey) (err error) {
	out, err := os.CreateTemp(filepath.Dir(f.name), "birdtap-bad-*")
	if err != nil {
		return fmt.Errorf("the bad rows: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(out.Name())
		}
	}()
	err = errors.Join(f.copyBad(ctx, s, out), out.Sync(), out.Close())
	if err != nil {
		return fmt.Errorf("the bad rows: %w", err)
	}
	for {
		same, err := sameContent(out.Name(), f.badName())
		if err != nil {
			return fmt.Errorf("the bad rows: %w", err)
		}
		if same {
			return os.Remove(out.Name())
		}
		// Never in place of one that is there; a file system may know no links.
		err = os.Link(out.Name(), f.badName())
		if errors.Is(err, os.ErrExist) {
			continue // the same command at the same time
		}
		if err != nil {
			return os.Rename(out.Name(), f.badName())
		}
	}
}

func (f *targets) copyBad(ctx context.Context, s *survey, out io.Writer) error {
	w := csv.NewWriter(out)
	if err := w.Write(append([]string{"line", "reason"}, f.columns...)); err != nil {
		return err
	}
	_, err := f.rows(ctx, io.Discard, func(n, line int, cells []string, bad *badRow) error {
		if !s.skip.has(n) {
			return nil
		}
		if bad == nil {
			bad = f.judge(cells, line)
		}
		reason := "the user of another row once more"
		if bad != nil {
			reason = bad.reason
			if bad.column != "" {
				reason = bad.column + ": " + reason
			}
		}
		return w.Write(append([]string{strconv.Itoa(line), reason}, cells...))
	})
	w.Flush()
	return errors.Join(err, w.Error())
}

// sameContent tells whether there is a file, and it is equal to the one just written.
func sameContent(written, there string) (bool, error) {
	have, err := os.Open(there)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = have.Close() }()
	want, err := os.Open(written)
	if err != nil {
		return false, err
	}
	defer func() { _ = want.Close() }()
	a, b := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, errA := io.ReadFull(have, a)
		m, errB := io.ReadFull(want, b)
		if !bytes.Equal(a[:n], b[:m]) {
			return false, fmt.Errorf("%s is there already, and of another run: move it away", printable(there))
		}
		if errA != nil || errB != nil {
			return true, nil // the end of both; else their lengths would differ
		}
	}
}
