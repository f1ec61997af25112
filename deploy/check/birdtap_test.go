package check

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// root is that of the repository.
const root = "../.."

var binaries string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "birdtap-check-")
	if err != nil {
		panic(err)
	}
	binaries = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// build is the program, built once.
var build = sync.OnceValues(func() (string, error) {
	binary := filepath.Join(binaries, "birdtap")
	cmd := exec.Command("go", "build", "-o", binary, "./cmd/birdtap")
	cmd.Dir, cmd.Stderr = root, os.Stderr
	return binary, cmd.Run()
})

// tools are the programs that .ci/tools.mod pins, by name. go builds one unless it is built
// already, and says where it is.
var tools = map[string]func() (string, error){
	"helm": toolPath("helm"), "kubeconform": toolPath("kubeconform"),
}

func toolPath(name string) func() (string, error) {
	return sync.OnceValues(func() (string, error) {
		cmd := exec.Command("go", "tool", "-n", "-modfile=.ci/tools.mod", name)
		cmd.Dir, cmd.Stderr = root, os.Stderr
		out, err := cmd.Output()
		return strings.TrimSpace(string(out)), err
	})
}

func tool(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	path, err := tools[name]()
	if err != nil {
		t.Fatal(err)
	}
	return exec.CommandContext(t.Context(), path, args...)
}

// birdtap prepares a command with an environment of its own.
func birdtap(t *testing.T, env map[string]string, args ...string) *exec.Cmd {
	t.Helper()
	binary, err := build()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + t.TempDir()}
	for name, value := range env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	return cmd
}

// variables are those that birdtap knows.
func variables(t *testing.T) []string {
	t.Helper()
	out, err := birdtap(t, nil, "serve", "--print-config").Output()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		name, _, _ := strings.Cut(line, "=")
		names = append(names, name)
	}
	return names
}

// Whatever is named BIRDTAP_… in this directory is a variable of birdtap, a stream, or
// the example of one.
func TestEveryVariableThatIsNamedExists(t *testing.T) {
	known := append(variables(t),
		"BIRDTAP_RECEIPTS", "BIRDTAP_DEAD", "BIRDTAP_STATE", "BIRDTAP_IDENTITIES", "BIRDTAP_SENDS", "BIRDTAP_HELD", "BIRDTAP_UNSENT", "BIRDTAP_SENT", "BIRDTAP_")
	name := regexp.MustCompile(`BIRDTAP_[A-Z0-9_]*`)
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Dir(path) == "../check" {
			return err
		}
		text, err := os.ReadFile(path)
		for _, found := range name.FindAllString(string(text), -1) {
			if !slices.Contains(known, found) {
				t.Errorf("%s names %s, which birdtap does not know", path, found)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// checkEnvironment lets birdtap judge the environment of one of its containers: the names
// and the values. Files that it names are stood in for.
func checkEnvironment(t *testing.T, who string, env map[string]string) {
	t.Helper()
	given := map[string]string{}
	for name, value := range env {
		switch {
		case strings.HasPrefix(name, "BIRDTAP_HTTP_TLS_"):
			// A certificate would have to be a real one.
		case strings.HasSuffix(name, "_FILE"):
			file := filepath.Join(t.TempDir(), "secret")
			if err := os.WriteFile(file, []byte("secret\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			given[name] = file
		default:
			given[name] = value
		}
	}
	var words bytes.Buffer
	cmd := birdtap(t, given, "serve", "--print-config")
	cmd.Stderr = &words
	if err := cmd.Run(); err != nil {
		t.Errorf("%s: %s", who, words.Bytes())
	}
}

// metrics are the names that a running daemon shows, those of single series included.
var metrics = sync.OnceValues(func() ([]string, error) {
	binary, err := build()
	if err != nil {
		return nil, err
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := free.Addr().String()
	_ = free.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "serve")
	cmd.Stderr = os.Stderr
	cmd.Env = []string{
		"BIRDTAP_CLEVERTAP_ACCOUNT_ID=TEST", "BIRDTAP_CLEVERTAP_PASSCODE=TEST", "BIRDTAP_CLEVERTAP_URL=http://127.0.0.1:1", "BIRDTAP_LOG_LEVEL=error",
		"BIRDTAP_SENDBIRD_NOTIFICATIONS_URL=http://127.0.0.1:1", "BIRDTAP_SENDBIRD_NOTIFICATIONS_TOKEN=TEST", "BIRDTAP_SENDER_TOKENS=TEST",
		"BIRDTAP_HTTP_ADDR=127.0.0.1:0", "BIRDTAP_OPS_ADDR=" + addr, "BIRDTAP_DATA_DIR=" + filepath.Join(binaries, "data"),
		"BIRDTAP_QUEUE_MAX_BYTES=64MiB", "BIRDTAP_DEAD_MAX_BYTES=16MiB", "BIRDTAP_KEEP_MAX_BYTES=16MiB",
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	name := regexp.MustCompile(`(?m)^([a-z_]+)[{ ]`)
	for tick := time.Tick(50 * time.Millisecond); ; {
		select {
		case <-tick:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		resp, err := http.Get("http://" + addr + "/metrics")
		if err != nil {
			continue
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || !bytes.Contains(body, []byte("birdtap_relay_active 1")) || !bytes.Contains(body, []byte("birdtap_sends_held")) { // all rooms are open
			continue
		}
		var names []string
		for _, match := range name.FindAllSubmatch(body, -1) {
			names = append(names, string(match[1]))
		}
		return names, nil
	}
})
