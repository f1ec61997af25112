//go:build integration

package integration

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
)

// secretFile is a file of a secret, written as such files are: beside, then renamed.
type secretFile struct {
	t    *testing.T
	path string
}

func (f secretFile) become(secret string) {
	f.t.Helper()
	beside := f.path + ".new"
	if err := os.WriteFile(beside, []byte(secret+"\n"), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(beside, f.path); err != nil {
		f.t.Fatal(err)
	}
}

func (f secretFile) remove() {
	f.t.Helper()
	if err := os.Remove(f.path); err != nil {
		f.t.Fatal(err)
	}
}

func (f secretFile) empty() {
	f.t.Helper()
	if err := os.Truncate(f.path, 0); err != nil {
		f.t.Fatal(err)
	}
}

// callers send all the time, and have to be answered 200.
type callers struct {
	t     *testing.T
	send  func(ctx context.Context, n int) int // returns the status
	sent  atomic.Int64
	wrong sync.Map // status → times
}

// run sends until the returned function is called, which reports what was refused.
func (c *callers) run() (stop func()) {
	ctx, cancel := context.WithCancel(c.t.Context())
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for ctx.Err() == nil {
				n := c.sent.Add(1)
				if status := c.send(context.WithoutCancel(ctx), int(n)); status != http.StatusOK {
					times, _ := c.wrong.LoadOrStore(status, new(atomic.Int64))
					times.(*atomic.Int64).Add(1)
				}
			}
		})
	}
	stop = sync.OnceFunc(func() {
		cancel()
		all.Wait()
		c.wrong.Range(func(status, times any) bool {
			c.t.Errorf("%d of %d calls with the right secret were answered %v", times.(*atomic.Int64).Load(), c.sent.Load(), status)
			return true
		})
	})
	c.t.Cleanup(stop)
	return stop
}

// more waits for n more calls.
func (c *callers) more(n int64) {
	c.t.Helper()
	want := c.sent.Load() + n
	eventually(c.t, 30*time.Second, "callers go on", func() bool { return c.sent.Load() >= want })
}

// The passcode stands in a file. While the file is empty, or not there, whoever has the
// right passcode is served; when it changes so does what is asked for, at the door and
// of CleverTap, without a restart.
func TestPasscodeFileChangesUnderTraffic(t *testing.T) {
	t.Parallel()
	fake := startFake(t)
	var wanted atomic.Value // CleverTap's own passcode
	wanted.Store("first")
	inner := fake.Handler()
	cleverTap := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-CleverTap-Passcode") != wanted.Load() {
			http.Error(w, `{"status":"fail","error":"Invalid Credentials","code":401}`, http.StatusUnauthorized)
			return
		}
		r.Header.Set("X-CleverTap-Passcode", passcode)
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(cleverTap.Close)

	file := secretFile{t, filepath.Join(t.TempDir(), "passcode")}
	file.become("first")
	d := newLone(t, map[string]string{
		"CLEVERTAP_URL": cleverTap.URL, "CLEVERTAP_PASSCODE": "", "CLEVERTAP_PASSCODE_FILE": file.path,
	})
	log := filepath.Join(t.ArtifactDir(), "serve.log")
	all := &callers{t: t, send: func(ctx context.Context, n int) int {
		return postTo(ctx, d.door, "first", bodyOf(n)).status
	}}
	stop := all.run()
	all.more(50)
	for n, spoil := range []func(){file.empty, file.remove} {
		spoil()
		eventually(t, 30*time.Second, "the daemon sees the broken file", func() bool {
			return logged(t, log, "secret file cannot be used") == n+1
		})
		all.more(100)
		file.become("first")
		eventually(t, 30*time.Second, "the daemon sees the file again", func() bool {
			return logged(t, log, "secret file is readable again") == n+1
		})
		all.more(50)
	}

	// CleverTap gets a new passcode first: its 401 stops uploading, and kills nothing.
	wanted.Store("second")
	eventually(t, 30*time.Second, "status says that CleverTap takes nothing", func() bool { return breakerOf(d.at) != "closed" })
	all.more(50)
	stop()
	file.become("second")
	eventually(t, 30*time.Second, "the door takes the new passcode", func() bool {
		return postTo(t.Context(), d.door, "second", bodyOf(-1)).status == http.StatusOK
	})
	if got := postTo(t.Context(), d.door, "first", bodyOf(-2)); got.status != http.StatusUnauthorized {
		t.Errorf("the old passcode is answered %d", got.status)
	}
	a := d.at.drained(2 * time.Minute)
	if want := int(all.sent.Load()) + 1; a.Delivered != want || a.Died != 0 {
		t.Errorf("account %+v, want %d delivered", a, want)
	}
	if text := logged(t, log, "first") + logged(t, log, "second"); text > 0 {
		t.Errorf("%d log lines show a passcode", text)
	}
}

// breakerOf is the breaker that status shows; empty if it shows none.
func breakerOf(at *birdtap) string {
	out, err := at.output("status", "--json")
	if err != nil {
		return ""
	}
	var s struct {
		Breaker string `json:"breaker"`
	}
	if json.Unmarshal(out, &s) != nil {
		return ""
	}
	return s.Breaker
}

// A signing key is changed as operators do it: both keys listed for a while. Nobody who
// signs with a listed key is refused.
func TestSigningKeyChangesUnderTraffic(t *testing.T) {
	t.Parallel()
	fake := startFake(t)
	file := secretFile{t, filepath.Join(t.TempDir(), "keys")}
	file.become("old-key")
	d := newLone(t, map[string]string{"CLEVERTAP_URL": fake.URL(), "SENDBIRD_SIGNING_KEYS_FILE": file.path})
	door := "http://" + d.addr + "/sendbird/callbacks"
	signer := func(key string, offset int) *callers {
		return &callers{t: t, send: func(ctx context.Context, n int) int { return postSigned(ctx, door, key, bodyOf(offset+n)) }}
	}
	accepted := func(key string) bool { return postSigned(t.Context(), door, key, bodyOf(-1)) == http.StatusOK }

	before := signer("old-key", 0)
	stopBefore := before.run()
	before.more(50)
	file.become("old-key,new-key")
	eventually(t, 30*time.Second, "the new key is taken", func() bool { return accepted("new-key") })
	after := signer("new-key", 1_000_000)
	stopAfter := after.run()
	before.more(50)
	after.more(50)
	stopBefore()
	file.become("new-key")
	eventually(t, 30*time.Second, "the old key is refused", func() bool { return !accepted("old-key") })
	after.more(50)
	stopAfter()
}

// postSigned makes one signed call, and returns its status; 0 if it had no answer.
func postSigned(ctx context.Context, door, key string, body []byte) int {
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write(body)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, door, strings.NewReader(string(body)))
	if err != nil {
		return 0
	}
	req.Header.Set("x-sendbird-signature", hex.EncodeToString(mac.Sum(nil)))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	return resp.StatusCode
}
