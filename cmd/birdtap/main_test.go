package main

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
)

// asBirdtap makes this test binary the program itself, for what only a process of
// its own shows: signals and exit codes.
const asBirdtap = "RUN_AS_BIRDTAP"

func TestMain(m *testing.M) {
	if os.Getenv(asBirdtap) != "" {
		main()
	}
	goleak.VerifyTestMain(m)
}

// process is serve as a process of its own.
type process struct {
	*exec.Cmd
	lines *bufio.Scanner // of its log
}

func startProcess(t *testing.T, environ ...string) process {
	t.Helper()
	p := process{Cmd: exec.CommandContext(t.Context(), os.Args[0], "serve")}
	p.Env = append([]string{
		asBirdtap + "=1", "BIRDTAP_HTTP_ADDR=127.0.0.1:0", "BIRDTAP_OPS_ADDR=127.0.0.1:0",
		"BIRDTAP_DATA_DIR=" + filepath.Join(t.TempDir(), "data"),
	}, append(environ, pair...)...)
	words, err := p.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	p.lines = bufio.NewScanner(words)
	return p
}

// waitFor reads the log up to a line that holds word.
func (p process) waitFor(t *testing.T, word string) string {
	t.Helper()
	for p.lines.Scan() {
		if strings.Contains(p.lines.Text(), word) {
			return p.lines.Text()
		}
	}
	t.Fatalf("the log ended without %q", word)
	return ""
}

// end reads the log to its end and returns the exit code.
func (p process) end(t *testing.T) int {
	t.Helper()
	for p.lines.Scan() {
	}
	var exit *exec.ExitError
	if err := p.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return p.ProcessState.ExitCode()
}

func (p process) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := p.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

func TestFirstSignalStopsInGoodOrder(t *testing.T) {
	_, address := startFake(t)
	for _, s := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		p := startProcess(t, "BIRDTAP_CLEVERTAP_URL="+address)
		p.waitFor(t, `"queue open"`)
		p.signal(t, s)
		if code := p.end(t); code != exitDone {
			t.Errorf("%v: code %d, want 0", s, code)
		}
	}
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	fake, address := startFake(t)
	fake.Always(clevertaptest.Hang())
	defer fake.Release()
	p := startProcess(t, "BIRDTAP_CLEVERTAP_URL="+address)
	door := addrIn(t, p.waitFor(t, `"doors"`))
	p.waitFor(t, `"queue open"`)
	d := daemon{door: door}
	eventually(t, "the receipt taken", func() bool {
		code, _ := d.post(t, receipt)
		return code == 200
	})
	if err := fake.Wait(t.Context(), func(c clevertaptest.Counts) bool { return c.InFlight > 0 }); err != nil {
		t.Fatal(err)
	}
	p.signal(t, syscall.SIGTERM)
	p.waitFor(t, `"stopping"`)
	p.signal(t, syscall.SIGTERM)
	if code := p.end(t); code != exitFailed {
		t.Errorf("code %d, want 1", code)
	}
}

// addrIn takes the address out of a line of the log.
func addrIn(t *testing.T, line string) string {
	t.Helper()
	_, rest, found := strings.Cut(line, `"addr":"`)
	addr, _, _ := strings.Cut(rest, `"`)
	if !found {
		t.Fatalf("no address in %s", line)
	}
	return addr
}
