package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// openTerminal is a terminal: what is written to tty shows on screen.
func openTerminal(t *testing.T) (screen, tty *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = screen.Close() })
	if err := unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tty.Close() })
	return screen, tty
}

// screenUpTo reads what shows, up to mark and without it.
func screenUpTo(t *testing.T, screen *os.File, mark string) string {
	t.Helper()
	var text strings.Builder
	buffer := make([]byte, 4<<10)
	for {
		if before, _, found := strings.Cut(text.String(), mark); found {
			return before
		}
		n, err := screen.Read(buffer)
		if err != nil {
			t.Fatalf("the screen shows %q, then %v", text.String(), err)
		}
		text.Write(buffer[:n])
	}
}

// No bar where nobody looks, one on a terminal, and none beside JSON.
func TestProgressIsForATerminal(t *testing.T) {
	q := newQueue(t, letters()...)
	screen, tty := openTerminal(t)
	run := func(args ...string) string {
		t.Helper()
		p := &program{in: strings.NewReader(""), out: io.Discard, err: tty, environ: q.environ}
		if code := p.run(t.Context(), args); code != exitDone {
			t.Fatalf("%q: code %d", args, code)
		}
		if _, err := tty.WriteString("\x00end"); err != nil {
			t.Fatal(err)
		}
		return screenUpTo(t, screen, "\x00end")
	}
	if got := run("relay", "--replay", "--event", "Reminder", "--json"); got != "" {
		t.Errorf("beside JSON: %q", got)
	}
	if got := run("relay", "--replay", "--reason", "512"); !strings.Contains(got, "replaying") || !strings.Contains(got, "(0/2") {
		t.Errorf("on a terminal: %q", got)
	}
	if got := run("dead", "purge", "--yes", "--event", "Notification Sent"); !strings.Contains(got, "purging") {
		t.Errorf("on a terminal: %q", got)
	}
	var words bytes.Buffer
	p := &program{err: &words}
	bar := p.progress("replaying", "receipts", 10, false)
	bar.set(5)
	bar.end()
	if words.Len() > 0 {
		t.Errorf("elsewhere: %q", words.String())
	}
}
