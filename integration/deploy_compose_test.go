//go:build integration

package integration

import (
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
)

// The shipped compose file, set up as deploy/README.md says, takes a receipt in and
// delivers it, and sends the notification that a webhook asks for: three nats-servers with
// the shipped configuration, two ingests, two relays, two senders.
// The proxy, Prometheus and Grafana are left out, for their images are in registries only.
func TestShippedCompose(t *testing.T) {
	compose, err := exec.LookPath("docker-compose")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("NOT CHECKED: there is no docker-compose")
	}
	d := newDocker(t)
	const image, project = "birdtap-integration-compose:test", "birdtap-integration-compose"
	build := exec.Command("make", "--no-print-directory", "-C", "..", "image", "IMAGE="+image)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("make image: %v\n%s", err, out)
	}
	t.Cleanup(func() { d.removeImage(image) })

	dir := filepath.Join(t.TempDir(), "deploy")
	if err := os.CopyFS(dir, os.DirFS("../deploy")); err != nil {
		t.Fatal(err)
	}
	makeSecrets(t, dir)
	const test = `
services:
  fake:
    image: %s
    command: ["-run", "compose", "-account", %q, "-passcode", %q]
    networks: [outside]
  sendbird:
    image: %s
    command: ["-token", %q]
    networks: [outside]
  ingest-1:
    ports: ["127.0.0.1::8080"]
  sender-1:
    ports: ["127.0.0.1::8080"]
`
	override := fmt.Sprintf(test, d.image(fakeBinary(t), nil), accountID, passcode, d.image(fakeSendbirdBinary(t), nil), passcode)
	if err := os.WriteFile(filepath.Join(dir, "test.yaml"), []byte(override), 0o600); err != nil {
		t.Fatal(err)
	}
	environment := append(os.Environ(), "IMAGE="+image, "NATS_IMAGE="+d.image(natsBinary(t), nil),
		"CLEVERTAP_ACCOUNT_ID="+accountID, "CLEVERTAP_URL=http://fake:"+fakePort, "QUEUE_MAX_BYTES=64MiB",
		"SENDBIRD_APP_ID=TEST-APP", "SENDBIRD_NOTIFICATIONS_URL=http://sendbird:8000", "GATHER_WAIT=100ms")
	run := func(args ...string) (string, error) {
		cmd := exec.Command(compose, append([]string{"-p", project, "-f", "compose.yaml", "-f", "test.yaml", "--profile", "operator"}, args...)...)
		cmd.Dir, cmd.Env = dir, environment
		var words strings.Builder
		cmd.Stderr = &words
		out, err := cmd.Output()
		if err != nil {
			err = fmt.Errorf("docker-compose %s: %w\n%s", strings.Join(args, " "), err, words.String())
		}
		return strings.TrimSpace(string(out)), err
	}
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := run("logs", "--no-color", "--tail=15")
			t.Log(logs)
		}
		if _, err := run("down", "--volumes", "--remove-orphans", "--timeout", "1"); err != nil {
			t.Error(err)
		}
	})

	if _, err := run("up", "-d", "nats-1", "nats-2", "nats-3", "init", "ingest-1", "ingest-2", "relay-1", "relay-2", "sender-1", "sender-2", "fake", "sendbird"); err != nil {
		t.Fatal(err)
	}
	// A daemon that finds no streams yet ends, and is started again: with another port.
	door := func(service string) string {
		addr, err := run("port", service, "8080")
		if err != nil {
			t.Logf("no port just now: %v", err)
		}
		return "http://" + addr
	}
	eventually(t, 2*time.Minute, "a receipt is taken in", func() bool {
		return tryUpload(door("ingest-1"), `{"identity":"user-1","evtName":"Offer","evtData":{"status":"SENT","target_id":1}}`) == http.StatusOK
	})
	eventually(t, time.Minute, "a webhook call is taken in", func() bool {
		const body = `{"targetId":7,"key_values":{"template_key":"sale","event_name":"Sale"},"profiles":[{"identity":"user-1"}]}`
		return tryWebhook(door("sender-1"), passcode, body) == http.StatusOK
	})
	eventually(t, time.Minute, "the receipt is delivered, the notification sent", func() bool {
		out, err := run("run", "--rm", "operator", "status", "--json")
		var a account
		var s sendsAccount
		return err == nil && json.Unmarshal([]byte(out), &a) == nil && json.Unmarshal([]byte(out), &s) == nil &&
			a.Accepted >= 1 && a.Delivered == 1 && s.Sends.Realtime.Sent == 1
	})
}

// tryWebhook calls the door for journeys and returns the status, 0 without an answer.
func tryWebhook(door, token, body string) int {
	req, err := http.NewRequest(http.MethodPost, door+"/clevertap/notifications/realtime", strings.NewReader(body))
	if err != nil {
		return 0
	}
	req.Header.Set("Api-Token", token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// makeSecrets does what deploy/README.md says of them.
func makeSecrets(t *testing.T, dir string) {
	t.Helper()
	secrets := filepath.Join(dir, "secrets")
	if err := os.MkdirAll(secrets, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(filepath.Join(dir, "certificates"), filepath.Join(secrets, "nats")).CombinedOutput(); err != nil {
		t.Fatalf("deploy/certificates: %v\n%s", err, out)
	}
	for _, name := range []string{"clevertap-passcode", "sendbird-signing-keys", "ops-token", "grafana-password", "sender-tokens", "sendbird-notifications-token"} {
		if err := os.WriteFile(filepath.Join(secrets, name), []byte(passcode), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	err := filepath.WalkDir(secrets, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return os.Chmod(path, 0o444)
	})
	if err != nil {
		t.Fatal(err)
	}
}
