package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/birdtap/birdtap/sendbird"
)

// callers post to a door, one call after the other, until they are told to stop.
type callers struct {
	calls, refused atomic.Int64
	last           atomic.Int64 // status of the last one that was refused
	stop           func()
}

// startCallers sends calls that request makes, each with a receipt of its own.
func startCallers(t *testing.T, request func(body string) *http.Request) *callers {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	m := &callers{stop: func() { cancel(); <-done }}
	t.Cleanup(m.stop)
	client := &http.Client{Transport: &http.Transport{}}
	go func() {
		defer close(done)
		defer client.CloseIdleConnections()
		for n := 0; ctx.Err() == nil; n++ {
			body := fmt.Sprintf(`{"identity":"u%d","evtName":"Offer","evtData":{"status":"SENT","target_id":%d}}`, n, n)
			resp, err := client.Do(request(body))
			if err != nil {
				m.refused.Add(1)
				continue
			}
			_ = resp.Body.Close()
			m.calls.Add(1)
			if resp.StatusCode != http.StatusOK {
				m.refused.Add(1)
				m.last.Store(int64(resp.StatusCode))
			}
		}
	}()
	return m
}

// goesOn waits for further calls, and wants none refused.
func (m *callers) goesOn(t *testing.T, when string) {
	t.Helper()
	enough := m.calls.Load() + 20
	eventually(t, "traffic "+when, func() bool { return m.calls.Load() >= enough })
	if n := m.refused.Load(); n > 0 {
		t.Fatalf("%s: %d of %d calls were refused, the last with %d", when, n, m.calls.Load(), m.last.Load())
	}
}

func (s *secretSource) isFailing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failing
}

func uploadRequest(t *testing.T, d daemon, passcode string) func(string) *http.Request {
	return func(body string) *http.Request {
		req, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), http.MethodPost, "http://"+d.door+"/1/upload", strings.NewReader(body))
		if err != nil {
			panic(err) // of a request that is wrong in itself
		}
		req.Header.Set("X-CleverTap-Account-Id", "ACC")
		req.Header.Set("X-CleverTap-Passcode", passcode)
		return req
	}
}

// The passcode's file is empty for a while, as it is when something writes it anew in
// place: nobody is refused, at the door or at CleverTap. A new passcode then counts at
// both without a restart.
func TestPasscodeFileChangesUnderTraffic(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "passcode")
	writeFile(t, file, marker+"\n")
	d := startDaemonWith(t, pair[0], "BIRDTAP_CLEVERTAP_PASSCODE_FILE="+file)
	m := startCallers(t, uploadRequest(t, d, marker))
	m.goesOn(t, "at first")
	writeFile(t, file, "")
	eventually(t, "the daemon saw the empty file", d.app.cfg.passcode.isFailing)
	m.goesOn(t, "while the file is empty")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	m.goesOn(t, "while the file is gone")
	writeFile(t, file, marker)
	eventually(t, "the daemon saw the file again", func() bool { return !d.app.cfg.passcode.isFailing() })
	m.goesOn(t, "afterwards")
	m.stop()
	for _, c := range d.fake.Calls() {
		if c.Status != http.StatusOK {
			t.Fatalf("CleverTap answered %d", c.Status)
		}
	}

	before := len(d.fake.Calls())
	writeFile(t, file, "another")
	eventually(t, "the new passcode is known", func() bool { return d.app.cfg.passcode.Get() == "another" })
	m = startCallers(t, uploadRequest(t, d, "another"))
	m.goesOn(t, "with the new passcode")
	// The fake still has the old one: that it answers 401 shows that it was sent the new one.
	eventually(t, "the new passcode at CleverTap", func() bool {
		for _, c := range d.fake.Calls()[before:] {
			if c.Status == http.StatusUnauthorized {
				return true
			}
		}
		return false
	})
}

// A signing key is replaced without a gap: old, both, new. The retired one counts no more.
func TestSigningKeysRotateUnderTraffic(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "keys")
	writeFile(t, file, "old\n")
	d := startDaemonWith(t, append([]string{"BIRDTAP_SENDBIRD_SIGNING_KEYS_FILE=" + file}, pair...)...)
	var key atomic.Value
	key.Store("old")
	signed := func(body string) *http.Request {
		req, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), http.MethodPost, "http://"+d.door+"/sendbird/callbacks", strings.NewReader(body))
		if err != nil {
			panic(err) // of a request that is wrong in itself
		}
		req.Header.Set(sendbird.SignatureHeader, sendbird.Sign(key.Load().(string), []byte(body)))
		return req
	}
	knows := func(keys string) func() bool {
		return func() bool { return strings.Join(d.app.cfg.SigningKeys(), ",") == keys }
	}
	m := startCallers(t, signed)
	m.goesOn(t, "with the old key")
	writeFile(t, file, "old,new\n")
	eventually(t, "both keys are known", knows("old,new"))
	m.goesOn(t, "with the old key of two")
	key.Store("new")
	m.goesOn(t, "with the new key of two")
	writeFile(t, file, "")
	eventually(t, "the daemon saw the empty file", d.app.cfg.signing.isFailing)
	m.goesOn(t, "while the file is empty")
	writeFile(t, file, "new\n")
	eventually(t, "the old key is retired", knows("new"))
	m.goesOn(t, "with the new key alone")
	m.stop()
	key.Store("old")
	if code, _ := do(t, signed(`{}`)); code != http.StatusUnauthorized {
		t.Errorf("the retired key: %d, want 401", code)
	}
}

func TestOpsTokenFileIsReadAgain(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "token")
	writeFile(t, file, "first")
	d := startDaemonWith(t, append([]string{"BIRDTAP_OPS_TOKEN_FILE=" + file}, pair...)...)
	letIn := func(token string) bool {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+d.app.window.Addr().String()+"/nothing-here", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		code, _ := do(t, req)
		return code != http.StatusUnauthorized
	}
	if !letIn("first") || letIn("second") || letIn("") {
		t.Error("the first token does not decide")
	}
	writeFile(t, file, "second")
	eventually(t, "the second token is let in", func() bool { return letIn("second") })
	if letIn("first") {
		t.Error("the first token is still let in")
	}
	writeFile(t, file, "")
	eventually(t, "the daemon saw the empty file", func() bool { _ = letIn("second"); return d.app.cfg.ops.isFailing() })
	if !letIn("second") || letIn("") {
		t.Error("an empty file changed who is let in")
	}
}
