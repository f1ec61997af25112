//go:build integration

package integration

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
)

// The shipped image, as `make image` builds it without a registry, takes receipts in with
// a root that cannot be written, no capabilities and no root user: its data on a volume,
// or in memory. It ends in good order, and the next one finds the queue.
func TestShippedImage(t *testing.T) {
	d := newDocker(t)
	const image = "birdtap-integration-shipped:test"
	build := exec.Command("make", "--no-print-directory", "-C", "..", "image", "IMAGE="+image)
	build.Env = append(os.Environ(), "DOCKER_CONFIG="+t.TempDir())
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("make image: %v\n%s", err, out)
	}
	t.Cleanup(func() { d.removeImage(image) })

	passcodeFile := filepath.Join(t.TempDir(), "passcode")
	if err := os.WriteFile(passcodeFile, []byte(passcode+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	run := func(name string, data func(*container.HostConfig)) *testcontainers.DockerContainer {
		return d.run(image, []string{name},
			testcontainers.WithEnv(map[string]string{
				"BIRDTAP_CLEVERTAP_ACCOUNT_ID": accountID, "BIRDTAP_CLEVERTAP_PASSCODE_FILE": "/run/secrets/passcode",
				"BIRDTAP_CLEVERTAP_URL": "http://127.0.0.1:1", // nobody: what comes in waits
				"BIRDTAP_OPS_ADDR":      ":9090", "BIRDTAP_OPS_TOKEN": "TEST-TOKEN",
				"BIRDTAP_QUEUE_MAX_BYTES": "64MiB", "BIRDTAP_DEAD_MAX_BYTES": "16MiB", "BIRDTAP_KEEP_MAX_BYTES": "16MiB",
			}),
			testcontainers.WithExposedPorts("8080/tcp", "9090/tcp"),
			testcontainers.WithHostConfigModifier(func(h *container.HostConfig) {
				h.ReadonlyRootfs, h.CapDrop, h.SecurityOpt = true, []string{"ALL"}, []string{"no-new-privileges"}
				h.Binds = []string{passcodeFile + ":/run/secrets/passcode:ro"}
				data(h)
			}),
			testcontainers.WithWaitStrategyAndDeadline(startWithin, wait.ForHTTP("/readyz").WithPort("9090/tcp")))
	}
	sent := 0
	take := func(c *testcontainers.DockerContainer) {
		t.Helper()
		sent++
		body := fmt.Sprintf(`{"identity":"user-1","evtName":"Offer","evtData":{"status":"SENT","target_id":%d}}`, sent)
		if code := postUpload(t, endpoint(t, c, "8080/tcp", "http"), body); code != http.StatusOK {
			t.Errorf("a receipt was answered %d", code)
		}
	}

	memory := run("memory", func(h *container.HostConfig) {
		h.Tmpfs = map[string]string{"/var/lib/birdtap": "uid=65532,gid=65532,mode=0700,size=256m"}
	})
	take(memory)
	about, err := memory.Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if about.Config.User != "65532:65532" {
		t.Errorf("it runs as %q", about.Config.User)
	}

	const volume = "birdtap-integration-shipped"
	t.Cleanup(func() { // after the containers are gone
		if out, err := exec.Command("docker", "volume", "rm", "--force", volume).CombinedOutput(); err != nil {
			t.Errorf("remove the volume: %v: %s", err, out)
		}
	})
	onVolume := func(h *container.HostConfig) { h.Binds = append(h.Binds, volume+":/var/lib/birdtap") }
	first := run("first", onVolume)
	take(first)
	grace := 30 * time.Second
	if err := first.Stop(t.Context(), &grace); err != nil {
		t.Fatal(err)
	}
	state, err := first.State(context.Background())
	if err != nil || state.ExitCode != 0 {
		t.Errorf("told to stop it ended with code %d, %v", state.ExitCode, err)
	}
	second := run("second", onVolume)
	take(second)
	eventually(t, time.Minute, "both receipts wait", func() bool {
		return strings.Contains(get(endpoint(t, second, "9090/tcp", "http")+"/metrics"), "birdtap_queue_depth 2\n")
	})
}
