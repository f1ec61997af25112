package sendbird_test

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/birdtap/birdtap/sendbird"
)

func TestFileIsWrittenAsDocumented(t *testing.T) {
	var out bytes.Buffer
	w, err := sendbird.NewCSV(&out, []string{"variable_key_1", "attr.email-2"})
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range [][]string{{"user-1", "value-1", "value-2"}, {"user-2", "", "a,\"b\"\nc ☃"}} {
		if err := w.Add(row[0], row[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	sum, err := w.Close()
	want := "user_id,variable_key_1,attr.email-2\nuser-1,value-1,value-2\nuser-2,,\"a,\"\"b\"\"\nc ☃\"\n"
	if err != nil || out.String() != want || sum.Users != 2 || sum.Bytes != int64(len(want)) {
		t.Errorf("%v, %+v\n%s", err, sum, out.String())
	}
	if !regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`).MatchString(sum.Key) {
		t.Errorf("key %q", sum.Key)
	}
}

func TestFileKeyIsOfTheContent(t *testing.T) {
	_, a := file(t, 2)
	_, b := file(t, 2)
	_, c := file(t, 3)
	if a != b || a.Key == c.Key {
		t.Errorf("%+v, %+v, %+v", a, b, c)
	}
}

func TestColumnNames(t *testing.T) {
	for _, names := range [][]string{nil, {"a"}, {"a_B-9.z", "b"}} {
		if err := sendbird.CheckColumns(names); err != nil {
			t.Errorf("%q: %v", names, err)
		}
	}
	for _, names := range [][]string{{""}, {"a b"}, {"a,b"}, {"ä"}, {"a\n"}, {"user_id"}, {"a", "b", "a"}} {
		_, err := sendbird.NewCSV(io.Discard, names)
		if _, ok := errors.AsType[*sendbird.LimitError](err); !ok {
			t.Errorf("%q: %v", names, err)
		}
	}
}

func TestBadRowsAreRefusedAndTheFileGoesOn(t *testing.T) {
	var out bytes.Buffer
	w, err := sendbird.NewCSV(&out, []string{"name"})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Add("first", "x"); err != nil {
		t.Fatal(err)
	}
	for _, row := range [][]string{
		{"", "x"},
		{"a\rb", "x"},
		{"a\nb", "x"},
		{"a\x00b", "x"},
		{"a\tb", "x"},
		{"a\xffb", "x"},
		{strings.Repeat("x", 81), "x"},
		{"first", "x"},
		{"few"},
		{"many", "x", "y"},
		{"value", "\x00hunter2"},
		{"value", "\xff"},
	} {
		err := w.Add(row[0], row[1:]...)
		if limit, ok := errors.AsType[*sendbird.LimitError](err); !ok || !strings.HasPrefix(limit.Field, "row 2") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", row, err)
		}
	}
	if err := w.Add(strings.Repeat("x", 80), "=1+1"); err != nil {
		t.Error(err)
	}
	if sum, err := w.Close(); err != nil || sum.Users != 2 || strings.Count(out.String(), "\n") != 3 {
		t.Errorf("%+v, %v\n%s", sum, err, out.String())
	}
}

func TestFileTakesAHundredThousandUsers(t *testing.T) {
	w, err := sendbird.NewCSV(io.Discard, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Close(); err == nil || !strings.Contains(err.Error(), "file: 0 users") {
		t.Errorf("an empty file: %v", err)
	}
	for i := range sendbird.MaxFileTargets {
		if err := w.Add(fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Add("one more"); err == nil || !strings.Contains(err.Error(), "file: 100,001 users, but at most 100,000") {
		t.Errorf("got %v", err)
	}
	if sum, err := w.Close(); err != nil || sum.Users != 100_000 {
		t.Errorf("%+v, %v", sum, err)
	}
}

func TestFullDiskSticks(t *testing.T) {
	w, err := sendbird.NewCSV(full{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; err == nil && i < 10_000; i++ {
		err = w.Add(fmt.Sprint(i))
	}
	_, closing := w.Close()
	if !errors.Is(err, errFull) || !errors.Is(closing, errFull) {
		t.Errorf("%v, %v", err, closing)
	}
}

var errFull = errors.New("no space left")

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errFull }

// FuzzCSV: what the writer takes, a reader gets back as it was; what it refuses
// leaves no trace.
func FuzzCSV(f *testing.F) {
	f.Add("user-1", "Jay", "user-2", "")
	f.Add("a,b", "\"", "=cmd", "\r\n")
	f.Add(" lead", "trail ", `\.`, "\ufeff")
	f.Add("", "\x00", "a\nb", "\xff")
	f.Fuzz(func(t *testing.T, id1, value1, id2, value2 string) {
		var out bytes.Buffer
		w, err := sendbird.NewCSV(&out, []string{"v"})
		if err != nil {
			t.Fatal(err)
		}
		want := [][]string{{"user_id", "v"}}
		for _, row := range [][]string{{id1, value1}, {id2, value2}} {
			if w.Add(row[0], row[1]) == nil {
				// encoding/csv reads CRLF within quotes as LF.
				want = append(want, []string{row[0], strings.ReplaceAll(row[1], "\r\n", "\n")})
			}
		}
		sum, err := w.Close()
		if len(want) == 1 {
			return
		}
		got, reading := csv.NewReader(bytes.NewReader(out.Bytes())).ReadAll()
		if err != nil || reading != nil || sum.Users != len(want)-1 {
			t.Fatalf("%v, %v, %+v", err, reading, sum)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	})
}
