package idmap

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
)

const header = "user_id,identity\n"

func fromCSV(t testing.TB, text string) (*Map, int, error) {
	t.Helper()
	dir := t.TempDir()
	m, duplicates, err := FromCSV(strings.NewReader(text), dir, nil)
	if err == nil {
		t.Cleanup(func() { _ = m.Close() })
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("%d temporary files are left", len(left))
	}
	return m, duplicates, err
}

func TestGoodFilesAreRead(t *testing.T) {
	for name, text := range map[string]string{
		"plain":             header + "u1,c1\nu2,c2\n",
		"no last line end":  header + "u1,c1\nu2,c2",
		"CRLF":              "user_id,identity\r\nu1,c1\r\nu2,c2\r\n",
		"byte order mark":   "\ufeff" + header + "u1,c1\nu2,c2\n",
		"quoted":            "\"user_id\",\"identity\"\n\"u1\",\"c1\"\nu2,\"c2\"\n",
		"blank lines":       header + "\nu1,c1\n\nu2,c2\n\n",
		"said twice":        header + "u1,c1\nu2,c2\nu1,c1\nu1,c1\n",
		"longest cell":      header + strings.Repeat("u", MaxBytes) + "," + strings.Repeat("c", MaxBytes) + "\nu1,c1\nu2,c2",
		"comma in a cell":   header + "\"a,b\",\"c,\"\"d\"\"\"\nu1,c1\nu2,c2\n",
		"more than ASCII":   header + "田中,😀\nu1,c1\nu2,c2\n",
		"blanks are kept":   header + " u3 , c3 \nu1,c1\nu2,c2\n",
		"tabs are no break": header + "u\t3,c\x7f\nu1,c1\nu2,c2\n",
	} {
		m, duplicates, err := fromCSV(t, text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		wantIdentity(t, m, "u1", "c1")
		wantIdentity(t, m, "u2", "c2")
		switch name {
		case "said twice":
			if duplicates != 2 || m.Users() != 2 {
				t.Errorf("%s: %d duplicates, %d users", name, duplicates, m.Users())
			}
		case "comma in a cell":
			wantIdentity(t, m, "a,b", `c,"d"`)
		case "blanks are kept":
			wantIdentity(t, m, " u3 ", " c3 ")
		}
	}
}

func TestBadRowsAreNamed(t *testing.T) {
	long := strings.Repeat("x", MaxBytes+1)
	for name, c := range map[string]struct{ text, want string }{
		"one column":          {"u1,c1\nu2\n", "line 3: 2 columns are wanted, it has 1"},
		"three columns":       {"u1,c1,\n", "line 2: 2 columns are wanted, it has 3"},
		"no user":             {",c1\n", "line 2, column user_id: it is empty"},
		"no identity":         {"u1,c1\n\nu2,\n", "line 4, column identity: it is empty"},
		"long user":           {long + ",c1\n", "line 2, column user_id: it is longer than 1024 bytes"},
		"long identity":       {"u1," + long + "\n", "line 2, column identity: it is longer than 1024 bytes"},
		"no UTF-8":            {"u1,c\xff\n", "line 2, column identity: it is not valid UTF-8"},
		"line break":          {"\"u\n1\",c1\n", "line 2, column user_id: it holds a line break or a NUL"},
		"NUL":                 {"u1,c\x00\n", "line 2, column identity: it holds a line break or a NUL"},
		"carriage return":     {"u1,\"c\r1\"\n", "line 2, column identity: it holds a line break or a NUL"},
		"two identities":      {"u1,c1\nu2,c2\nu1,c3\n", "line 4, column user_id: the same user as in line 2, with another identity"},
		"quote within a cell": {"u\"1,c1\nu2,c2\n", "line 2: a quote out of place, in line 2 at byte 2"},
		"quote not closed":    {"u1,c1\n\"u2,c2\n", "line 3: a quote that is not closed or stands alone, in line 3 at byte 8"},
		"endless row":         {"u1,c1\n\"" + strings.Repeat("x\n", maxRowBytes), "line 3: it is longer than 65536 bytes; is a quote not closed?"},
		"endless line":        {"u1,c1\n" + strings.Repeat("x", 2*maxRowBytes), "line 3: it is longer than 65536 bytes; is a quote not closed?"},
	} {
		_, _, err := fromCSV(t, header+c.text)
		var bad *BadRows
		if !errors.As(err, &bad) || bad.Total != 1 || bad.First[0].String() != c.want {
			t.Errorf("%s: %v, %v; want %s", name, err, bad.First, c.want)
		}
	}
}

func TestOnlyTheFirstBadRowsAreNamed(t *testing.T) {
	var text strings.Builder
	text.WriteString(header)
	for i := range 50 {
		fmt.Fprintf(&text, "u%d,c\nu%d,d\n", i, i) // every second row says something else
	}
	_, _, err := fromCSV(t, text.String())
	var bad *BadRows
	if !errors.As(err, &bad) || bad.Total != 50 || len(bad.First) != shownRows || err.Error() != "50 bad rows" {
		t.Fatalf("got %v, %+v", err, bad)
	}
	for i, row := range bad.First {
		if row.Line != 3+2*i {
			t.Errorf("bad row %d stands in line %d", i, row.Line)
		}
	}
}

// What is wrong is said without quoting anybody.
func TestErrorsQuoteNothing(t *testing.T) {
	for _, text := range []string{"geheim,c1\n", "geheim;c1", header + "geheim\n", header + "geheim,c\x00\n", header + "gehe\"im,c1\n", header + "geheim,1\ngeheim,2\n"} {
		_, _, err := fromCSV(t, text)
		said := fmt.Sprint(err)
		if bad, ok := errors.AsType[*BadRows](err); ok {
			said += fmt.Sprint(bad.First)
		}
		if err == nil || strings.Contains(said, "gehe") {
			t.Errorf("%q: %s", text, said)
		}
	}
}

func TestHeaderIsRequired(t *testing.T) {
	for _, text := range []string{"", "\n", "u1,c1\n", "identity,user_id\n", "user_id\n", "user_id,identity,x\n", "User_ID,identity\nu1,c1\n", "user_id;identity\nu1;c1", "\"", strings.Repeat("x", 3*maxRowBytes)} {
		if _, _, err := fromCSV(t, text); !errors.Is(err, ErrHeader) {
			t.Errorf("%.30q: %v", text, err)
		}
	}
}

func TestHeaderAloneIsNoMap(t *testing.T) {
	if _, _, err := fromCSV(t, header); !errors.Is(err, ErrNoRows) {
		t.Errorf("got %v", err)
	}
}

func TestReadErrorIsReported(t *testing.T) {
	broken := errors.New("broken pipe")
	src := io.MultiReader(strings.NewReader(header+"u1,c1\nu2"), errReader{broken})
	if _, _, err := FromCSV(src, t.TempDir(), nil); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func FuzzFromCSV(f *testing.F) {
	for _, seed := range []string{header + "u1,c1\n", "\ufeff" + header, header + "\"u\"\"1\",c\nu1", header + "a,b\na,c\na,b\n"} {
		f.Add(seed)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		m, _, err := FromCSV(strings.NewReader(text), dir, nil)
		if err != nil {
			return
		}
		defer func() { _ = m.Close() }()
		if m.Users() == 0 {
			t.Error("a map of nobody")
		}
	})
}
