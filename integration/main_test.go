//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/birdtap/birdtap/integration/history"
)

// Credentials of the account that all tests use.
const (
	accountID = "TEST-ACCOUNT"
	passcode  = "TEST-PASSCODE"
)

// maxInFlight is birdtap's default for calls in flight, accountCalls what CleverTap
// allows an account, and maxRecords a call.
const (
	maxInFlight  = 7
	accountCalls = 15
	maxRecords   = 1000
)

// binaries is where programs are built, each when it is first asked for.
var binaries string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "birdtap-integration-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binaries = dir
	if err := prepareContainers(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// The programs under test, and those around them. Static, so that they run in images
// made from scratch.
var (
	birdtapBinary      = builder("birdtap", "github.com/birdtap/birdtap/cmd/birdtap")
	natsBinary         = builder("nats-server", "github.com/nats-io/nats-server/v2")
	fakeBinary         = builder("fakeclevertap", "github.com/birdtap/birdtap/integration/fakeclevertap")
	fakeSendbirdBinary = builder("fakesendbird", "github.com/birdtap/birdtap/integration/fakesendbird")
	buildOneByOne      sync.Mutex
	commitUnderway     = sync.OnceValue(func() string {
		out, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output()
		if err != nil {
			return "" // a source tree without git
		}
		return strings.TrimSpace(string(out))
	})
)

func builder(name, pkg string, flags ...string) func(*testing.T) string {
	return builderIn(".", name, pkg, flags...)
}

// builderIn builds a program as the module in a directory has it.
func builderIn(dir, name, pkg string, flags ...string) func(*testing.T) string {
	built := sync.OnceValues(func() (string, error) { return build(dir, name, pkg, flags...) })
	return func(t *testing.T) string {
		t.Helper()
		path, err := built()
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
}

func build(dir, name, pkg string, flags ...string) (path string, _ error) {
	buildOneByOne.Lock()
	defer buildOneByOne.Unlock()
	path = filepath.Join(binaries, name)
	args := append([]string{"build", "-trimpath", "-o", path}, flags...)
	cmd := exec.Command("go", append(args, pkg)...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return path, nil
}

// seedOf is SEED of the environment, or a new one. It is printed, so that a failure
// can be run again.
func seedOf(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano() % 1_000_000_000)
	if text := os.Getenv("SEED"); text != "" {
		given, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("SEED=%q is not a whole number", text)
		}
		seed = given
	}
	t.Logf("SEED=%d", seed)
	return seed
}

// journal is a file for the log of a client; go test -artifacts keeps it.
func journal(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.ArtifactDir(), "client.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// conclude checks a run, and ends the test's output with the account of it.
func conclude(t *testing.T, r history.Report, l history.Limits) {
	t.Helper()
	text, err := r.JSON()
	if err == nil {
		err = os.WriteFile(filepath.Join(t.ArtifactDir(), "history.json"), text, 0o600)
	}
	if err != nil {
		t.Error(err)
	}
	if err := r.Err(l); err != nil {
		t.Errorf("%v", err)
	}
	t.Log(r.String())
}

// eventually waits until a fact is true.
func eventually(t *testing.T, within time.Duration, what string, fact func() bool) {
	t.Helper()
	deadline := time.After(within)
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for !fact() {
		select {
		case <-look.C:
		case <-deadline:
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}
