package sendbird

import (
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// UserColumn is the column that every file of targets must have.
const UserColumn = "user_id"

// columnName is what a column's name may consist of: "letters, numbers,
// underscores, hyphens, and periods".
var columnName = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

// CSV writes a file of targets: one row per user, a column for each variable of
// the template. It is UTF-8 after RFC 4180, lines end in LF as in the documented
// example. Columns hold strings only: how an image or an action would stand in
// one is not documented, so these need [Notification.Targets].
//
//	user_id,name,city
//	user-1,Jay,"Paris, France"
type CSV struct {
	out     io.Writer
	sum     hash.Hash
	bytes   int64
	rows    *csv.Writer
	columns []string
	row     []string
	seen    map[string]struct{}
	err     error // of the writer below; sticks
}

// NewCSV begins a file on out with the columns user_id and then variables, which
// are checked.
func NewCSV(out io.Writer, variables []string) (*CSV, error) {
	if err := CheckColumns(variables); err != nil {
		return nil, err
	}
	w := &CSV{
		out:     out,
		sum:     sha256.New(),
		columns: append([]string{UserColumn}, variables...),
		seen:    map[string]struct{}{},
	}
	w.rows = csv.NewWriter(writerFunc(w.write))
	w.err = w.rows.Write(w.columns)
	return w, w.err
}

// CheckColumns judges the names of variables as columns of a file.
func CheckColumns(variables []string) error {
	for i, name := range variables {
		field := fmt.Sprintf("column %d", i+2) // user_id is the first
		switch {
		case !columnName.MatchString(name):
			return &LimitError{field, quoted(name), "names are letters, digits, _ - and .", pageSend}
		case name == UserColumn:
			return &LimitError{field, quoted(name), "there is one column of user ids, the first", pageSend}
		case slices.Contains(variables[:i], name):
			return &LimitError{field, quoted(name) + " once more", "each column once", pageSend}
		}
	}
	return nil
}

// CheckCSV tells whether the variables of a template can go by file.
func CheckCSV(t Template) error {
	for _, v := range t.Variables {
		if v.Type.known() && v.Type != KindString {
			return &LimitError{"variable " + quoted(v.Key), "of type " + string(v.Type), "a CSV file carries strings only; name the users in targets, 10,000 a call", pageSend}
		}
	}
	return nil
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func (w *CSV) write(p []byte) (int, error) {
	n, err := w.out.Write(p)
	w.sum.Write(p[:n])
	w.bytes += int64(n)
	return n, err
}

// Add writes a row: the user, and the values in the order of the columns. A row
// that Sendbird would not take is refused with a [*LimitError], and the file goes
// on as if it had not been there.
func (w *CSV) Add(user string, values ...string) error {
	if w.err != nil {
		return w.err
	}
	field := fmt.Sprintf("row %d", len(w.seen)+1)
	if err := w.check(field, user, values); err != nil {
		return err
	}
	w.seen[strings.Clone(user)] = struct{}{}
	w.row = append(append(w.row[:0], user), values...)
	w.err = w.rows.Write(w.row)
	return w.err
}

func (w *CSV) check(field, user string, values []string) error {
	if strings.ContainsAny(user, "\r\n\x00") {
		return &LimitError{field, "a user id with CR, LF or NUL", "an id is text of one line", ""}
	}
	if err := checkUserID(field, user); err != nil {
		return err
	}
	if _, twice := w.seen[user]; twice {
		return &LimitError{field, "a user of an earlier row", "each user once: who stands there twice may get it twice", ""}
	}
	if len(w.seen) >= MaxFileTargets {
		return &LimitError{"file", counted(len(w.seen)+1, "user"), "at most 100,000 in a file", pageSend}
	}
	if len(values) != len(w.columns)-1 {
		return &LimitError{field, counted(len(values), "value"), fmt.Sprintf("the file has %s: every row needs all of them", counted(len(w.columns)-1, "variable")), pageSend}
	}
	for i, value := range values {
		if !utf8.ValidString(value) || strings.ContainsRune(value, 0) {
			return &LimitError{field + ", column " + quoted(w.columns[i+1]), "a value with NUL or invalid UTF-8", "must be text", ""}
		}
	}
	return nil
}

// Summary is a finished file.
type Summary struct {
	Users int
	Bytes int64
	// Key is a file key made of the content: equal files have equal keys.
	Key string
}

// Close ends the file, which needs one user at least. It does not close out.
func (w *CSV) Close() (Summary, error) {
	w.rows.Flush()
	if w.err == nil {
		w.err = w.rows.Error()
	}
	if w.err != nil {
		return Summary{}, w.err
	}
	if len(w.seen) == 0 {
		return Summary{}, &LimitError{"file", "0 users", "1 to 100,000 in a file", pageSend}
	}
	return Summary{Users: len(w.seen), Bytes: w.bytes, Key: fileKey(w.sum.Sum(nil))}, nil
}

// fileKey is 40 characters of letters, digits and hyphens.
func fileKey(sum []byte) string { return "birdtap-" + hex.EncodeToString(sum[:16]) }
