//go:build integration

package integration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
)

// lone is one daemon with its embedded queue, for tests that talk to it by hand.
type lone struct {
	*process
	at     *birdtap
	door   string // URL of the upload door
	addr   string // of the doors
	window string
}

// newLone starts a daemon. env goes over the usual one; more are variables that are not
// birdtap's.
func newLone(t *testing.T, env map[string]string, more ...string) *lone {
	t.Helper()
	d := loneAt(t, env)
	cmd := d.at.command("serve")
	cmd.Env = append(cmd.Env, more...)
	log := filepath.Join(t.ArtifactDir(), "serve.log")
	t.Cleanup(func() { showEnd(t, "serve", log) })
	d.process = start(t, "serve", log, cmd)
	d.ready(d.window, 30*time.Second)
	return d
}

// loneAt is the place of such a daemon, where none runs yet.
func loneAt(t *testing.T, env map[string]string) *lone {
	t.Helper()
	d := &lone{addr: freeAddr(t), window: freeAddr(t)}
	d.door = "http://" + d.addr + "/1/upload"
	d.at = newBirdtap(t, map[string]string{
		"HTTP_ADDR": d.addr, "OPS_ADDR": d.window,
		"DATA_DIR":        filepath.Join(t.TempDir(), "data"),
		"QUEUE_MAX_BYTES": "64MiB", "DEAD_MAX_BYTES": "16MiB", "KEEP_MAX_BYTES": "16MiB",
		"CLEVERTAP_ACCOUNT_ID": accountID, "CLEVERTAP_PASSCODE": passcode,
		"CLEVERTAP_TIMEOUT": "5s", "BATCH_MAX_WAIT": "20ms",
	}).with(env)
	return d
}

// startFake starts a CleverTap.
func startFake(t *testing.T) *clevertaptest.Server {
	t.Helper()
	fake, err := clevertaptest.Start("127.0.0.1:0", clevertaptest.Options{AccountID: accountID, Passcode: passcode})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	return fake
}

// bodyOf is a call of one receipt, each number of a user of its own.
func bodyOf(n int) []byte {
	return fmt.Appendf(nil, `{"d":[{"identity":"user-%d","evtName":"Order Shipped","evtData":{"status":"SENT","target_id":%d}}]}`, n, n)
}

// answer is what came of a call. The status is 0 if there was none.
type answer struct {
	status int
	header http.Header
	err    error
}

// postTo makes one call on a connection of its own.
func postTo(ctx context.Context, door, secret string, body []byte) answer {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second) // as long as Sendbird waits
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, door, bytes.NewReader(body))
	if err != nil {
		return answer{err: err}
	}
	req.Close = true
	req.Header.Set("X-CleverTap-Account-Id", accountID)
	req.Header.Set("X-CleverTap-Passcode", secret)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return answer{status: resp.StatusCode, header: resp.Header, err: err}
}

// take has the daemon take receipt n, or fails.
func (d *lone) take(t *testing.T, n int) {
	t.Helper()
	if got := postTo(t.Context(), d.door, passcode, bodyOf(n)); got.status != http.StatusOK {
		t.Fatalf("receipt %d: status %d, %v", n, got.status, got.err)
	}
}

// delivers waits until CleverTap has so many records.
func (d *lone) delivers(t *testing.T, fake *clevertaptest.Server, records int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	if err := fake.Wait(ctx, func(c clevertaptest.Counts) bool { return c.Accepted >= records }); err != nil {
		t.Fatalf("CleverTap has %+v, want %d records", fake.Counts(), records)
	}
}
