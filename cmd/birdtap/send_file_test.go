package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/birdtap/birdtap/sendbird/sender"
)

// heap is what is in use, garbage taken away.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A million rows take no more memory than some.
func TestMillionRowsInBoundedMemory(t *testing.T) {
	const rows, bound = 1_000_000, 16 << 20
	name := filepath.Join(t.TempDir(), "users.csv")
	out, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriter(out)
	fmt.Fprintln(w, "user_id,name")
	for i := range rows - 2 {
		fmt.Fprintf(w, "user-%d,Name %d\n", i, i%1000)
	}
	fmt.Fprint(w, "user-7,far away\nuser-999997,near\n")
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	file, err := openTargets(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.close()
	before, most := heap(), uint64(0)
	look := func() { most = max(most, heap()) }
	s, err := file.survey(t.Context(), func(int) { look() })
	if err != nil {
		t.Fatal(err)
	}
	look()
	// Both of them, and nobody who only looks like somebody else.
	var lines []string
	for _, row := range s.bad.first {
		lines = append(lines, row.String())
	}
	want := "line 1000000, column user_id: the user of line 9 once more; line 1000001, column user_id: the user of line 999999 once more"
	if got := strings.Join(lines, "; "); got != want || s.bad.total != 2 || s.users != rows-2 {
		t.Errorf("%d users, %d bad: %s", s.users, s.bad.total, got)
	}
	users, asks := 0, 0
	err = file.parts(t.Context(), s, sender.Message{Mode: sender.ModeCSV}, func(a sender.Ask) error {
		if asks++; asks%100 == 0 {
			look()
		}
		users += len(a.Users)
		if a.Last != (users == s.users) {
			t.Fatalf("part %d, user %d: last %v", a.Part, users, a.Last)
		}
		return nil
	})
	if err != nil || users != s.users || asks != 2000 {
		t.Errorf("%d users in %d parts, %v", users, asks, err)
	}
	if most > before+bound {
		t.Errorf("%d MiB of heap, %d MiB before: want %d MiB more at most", most>>20, before>>20, bound>>20)
	}
}

// No part has users of two calls, however large they are: calls are full.
func TestPartsEndWhereCallsEnd(t *testing.T) {
	name := filepath.Join(t.TempDir(), "users.csv")
	var b strings.Builder
	b.WriteString("user_id,text\n")
	text := strings.Repeat("x", 700) // so that bytes bound a part, and not users
	for i := range 20_001 {
		fmt.Fprintf(&b, "u%d,%s\n", i, text)
	}
	writeFile(t, name, b.String())
	file, err := openTargets(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.close()
	s, err := file.survey(t.Context(), func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	users := 0
	err = file.parts(t.Context(), s, sender.Message{Mode: sender.ModeBatch}, func(a sender.Ask) error {
		encoded, err := sender.Encode(nil, []sender.Ask{a})
		if err != nil || len(encoded) != 1 || len(encoded[0].Data) > maxPartBytes+1000 { // with the message
			t.Fatalf("%d asks, %v", len(encoded), err)
		}
		if users/10_000 != (users+len(a.Users)-1)/10_000 {
			t.Fatalf("part %d has the users %d to %d", a.Part, users, users+len(a.Users))
		}
		users += len(a.Users)
		return nil
	})
	if err != nil || users != 20_001 {
		t.Errorf("%d users, %v", users, err)
	}
}
