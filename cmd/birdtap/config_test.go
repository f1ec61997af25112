package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

var update = flag.Bool("update", false, "write the golden files anew")

// marker is the secret of these tests: where it shows, a secret leaks.
const marker = "hunter2-do-not-show"

// pair is the least that serve starts with.
var pair = []string{"BIRDTAP_CLEVERTAP_ACCOUNT_ID=ACC", "BIRDTAP_CLEVERTAP_PASSCODE=" + marker}

// result is what a command line leaves behind.
type result struct {
	code     int
	out, err string
}

// birdtap runs one command line in this process with the given environment.
func birdtap(t testing.TB, environ []string, args ...string) result {
	t.Helper()
	var out bytes.Buffer
	var words spoken
	p := &program{in: strings.NewReader(""), out: &out, err: &words, environ: environ}
	code := p.run(t.Context(), args)
	return result{code, out.String(), words.String()}
}

// spoken may be written by several at once, as a terminal: a connection to a queue that has
// just been closed may still have something to say.
type spoken struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *spoken) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *spoken) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// A typing slip does not pass because its value is empty.
func TestUnknownVariableIsRefusedEmptyToo(t *testing.T) {
	_, err := LoadConfig([]string{"BIRDTAP_CLEVRTAP_PASSCODE="}, false)
	if err == nil || !strings.Contains(err.Error(), "BIRDTAP_CLEVERTAP_PASSCODE") {
		t.Errorf("got %v", err)
	}
}

func TestWrongValueNamesItsVariable(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	writeFile(t, file, "x")
	empty := filepath.Join(dir, "empty")
	writeFile(t, empty, "")
	for _, set := range []string{
		"HTTP_ADDR=8080",
		"HTTP_ADDR=:99999",
		"HTTP_ADDR=:http",
		"OPS_ADDR=localhost",
		"HTTP_TLS_CERT_FILE=" + file + " HTTP_TLS_KEY_FILE=" + file, // readable, and no certificate
		"HTTP_TLS_CERT_FILE=" + dir + "/missing HTTP_TLS_KEY_FILE=" + file,
		"HTTP_TLS_KEY_FILE=" + dir + "/missing HTTP_TLS_CERT_FILE=" + file,
		"UPLOAD_PATHS=callback",
		"UPLOAD_PATHS=/ok,/1/upload",
		"UPLOAD_PATHS=/ok,/1/upload/",
		"UPLOAD_PATHS=/",
		"UPLOAD_PATHS=/sendbird/callbacks",
		"UPLOAD_PATHS=/clevertap/notifications/realtime",
		"UPLOAD_PATHS=/a/*",
		"UPLOAD_PATHS=/{a}",
		"UPLOAD_PATHS=/a?b",
		"UPLOAD_PATHS=/a//b",
		"UPLOAD_PATHS=/a/../b",
		"UPLOAD_PATHS=/a,/a",
		"OPS_TOKEN_FILE=" + empty,
		"OPS_TOKEN_FILE=" + dir,
		"NATS_URL=localhost:4222",
		"NATS_URL=http://localhost:4222",
		"NATS_CREDS_FILE=" + file,
		"NATS_CREDS_FILE=" + dir + "/missing NATS_URL=nats://n:4222",
		"NATS_CA_FILE=" + dir + "/missing NATS_URL=nats://n:4222",
		"REPLICAS=2",
		"REPLICAS=three",
		"REPLICAS=3",
		"STREAM_PREFIX=a.b",
		"STREAM_PREFIX=" + strings.Repeat("a", 33),
		"QUEUE_MAX_BYTES=8XB",
		"QUEUE_MAX_BYTES=-1",
		"QUEUE_MAX_BYTES=1.5GiB",
		"QUEUE_MAX_BYTES=9000000TiB",
		"QUEUE_MAX_BYTES=1000",
		"DEAD_MAX_BYTES=0",
		"KEEP_DELIVERED=24",
		"KEEP_DELIVERED=-1h",
		"REMEMBER_SENT=-1h",
		"REMEMBER_SENT=10ms",
		"KEEP_MAX_BYTES=much",
		"SYNC=never",
		"IDENTITY_UNMAPPED=drop",
		"CLEVERTAP_PASSCODE_FILE=" + dir + "/missing",
		"CLEVERTAP_URL=api.clevertap.com",
		"CLEVERTAP_URL=ftp://api.clevertap.com",
		"CLEVERTAP_URL=https://",
		"CLEVERTAP_URL=https://api.clevertap.com/1/upload",
		"CLEVERTAP_REGION=mars1",
		"CLEVERTAP_REGION=eu1 CLEVERTAP_URL=https://api.clevertap.com",
		"CLEVERTAP_MAX_INFLIGHT=0",
		"CLEVERTAP_MAX_INFLIGHT=16",
		"CLEVERTAP_TIMEOUT=0",
		"CLEVERTAP_TIMEOUT=30",
		"SENDBIRD_APP_ID=a.b",
		"SENDBIRD_NOTIFICATIONS_TOKEN_FILE=" + empty,
		"SENDBIRD_NOTIFICATIONS_URL=api-x.notifications.sendbird.com",
		"SENDBIRD_NOTIFICATIONS_URL=ftp://h",
		"SENDBIRD_NOTIFICATIONS_URL=https://h/v1",
		"SENDBIRD_NOTIFICATIONS_URL=https://h#x",
		"SENDBIRD_CHAT_URL=https://h/v3",
		"SENDBIRD_CHAT_URL=https://h#x",
		"SENDBIRD_DESK_URL=desk-api-x.sendbird.com",
		"SENDBIRD_DESK_URL=https://h/platform/v1",
		"SENDBIRD_API_TOKEN_FILE=" + empty,
		"SENDBIRD_DESK_TOKEN_FILE=" + empty,
		"SENDBIRD_UPLOAD_HOSTS=.com",
		"SENDBIRD_UPLOAD_HOSTS=.amazonaws.com,https://h",
		"SENDBIRD_UPLOAD_HOSTS=,",
		"BATCH_MAX_RECORDS=0",
		"BATCH_MAX_RECORDS=1001",
		"BATCH_MAX_WAIT=-1s",
		"RETRY_RECORD_FOR=-1s",
		"DEDUP_WINDOW=-1s",
		"LOG_LEVEL=loud",
		"LOG_FORMAT=xml",
		"DATA_DIR=a\x07b",
	} {
		t.Run(set, func(t *testing.T) {
			var environ []string
			for variable := range strings.SplitSeq(set, " ") {
				environ = append(environ, envPrefix+variable)
			}
			name, value, _ := strings.Cut(environ[0], "=")
			got := birdtap(t, environ, "serve", "--print-config")
			wantUsage(t, got, fmt.Sprintf("%s=%q", name, value))
		})
	}
}

// wantUsage wants code 2, nothing on stdout and one line on stderr that holds word.
func wantUsage(t *testing.T, got result, word string) {
	t.Helper()
	if got.code != exitUsage || got.out != "" {
		t.Errorf("code %d, stdout %q; want code 2 and nothing", got.code, got.out)
	}
	if !strings.HasPrefix(got.err, "birdtap: ") || strings.Count(got.err, "\n") != 1 {
		t.Errorf("stderr %q, want one line of birdtap", got.err)
	}
	if !strings.Contains(got.err, word) {
		t.Errorf("stderr %q, want it to hold %q", got.err, word)
	}
	if strings.Contains(got.err, marker) {
		t.Errorf("stderr shows a secret: %q", got.err)
	}
}

func TestRoleNamesWhatIsMissing(t *testing.T) {
	account, passcode := pair[0], pair[1]
	for _, c := range []struct {
		name    string
		environ []string
		role    string
		want    string
	}{
		{"no pair", nil, "serve", "BIRDTAP_CLEVERTAP_ACCOUNT_ID: is not set"},
		{"empty counts as not set", []string{"BIRDTAP_CLEVERTAP_ACCOUNT_ID=", passcode}, "serve", "BIRDTAP_CLEVERTAP_ACCOUNT_ID: is not set"},
		{"no account", []string{passcode}, "serve", "BIRDTAP_CLEVERTAP_ACCOUNT_ID: is not set"},
		{"no passcode", []string{account}, "serve", "BIRDTAP_CLEVERTAP_PASSCODE: is not set"},
		{"ingest alone", pair, "ingest", "BIRDTAP_NATS_URL: is not set"},
		{"relay alone", pair, "relay", "BIRDTAP_NATS_URL: is not set"},
		{"ops beyond loopback", append([]string{"BIRDTAP_OPS_ADDR=:9090"}, pair...), "serve", "BIRDTAP_OPS_TOKEN: is not set"},
		{"certificate without key", append([]string{"BIRDTAP_HTTP_TLS_CERT_FILE=c.pem"}, pair...), "serve", "BIRDTAP_HTTP_TLS_KEY_FILE: is not set"},
		{"key without certificate", append([]string{"BIRDTAP_HTTP_TLS_KEY_FILE=k.pem"}, pair...), "serve", "BIRDTAP_HTTP_TLS_CERT_FILE: is not set"},
		{"secret twice", append([]string{"BIRDTAP_CLEVERTAP_PASSCODE_FILE=f"}, pair...), "serve", `BIRDTAP_CLEVERTAP_PASSCODE_FILE="f": set it or`},
		{"passcode of two lines", []string{account, "BIRDTAP_CLEVERTAP_PASSCODE=" + marker + "\nx"}, "serve", "BIRDTAP_CLEVERTAP_PASSCODE: must be text of one line"},
		{"no key between commas", append([]string{"BIRDTAP_SENDBIRD_SIGNING_KEYS=,,"}, pair...), "serve", "BIRDTAP_SENDBIRD_SIGNING_KEYS: holds no key"},
		{"password in an address", append([]string{"BIRDTAP_CLEVERTAP_URL=https://u:" + marker + "@h"}, pair...), "serve", "BIRDTAP_CLEVERTAP_URL="},
		{"password in a broken address", append([]string{"BIRDTAP_NATS_URL=n:1,nats://u:" + marker + "@h\x00"}, pair...), "serve", "BIRDTAP_NATS_URL="},
	} {
		t.Run(c.name, func(t *testing.T) {
			wantUsage(t, birdtap(t, c.environ, c.role), c.want)
		})
	}
}

func TestUnknownVariableOffersTheNearest(t *testing.T) {
	for name, want := range map[string]string{
		"BIRDTAP_CLEVERTAP_PASCODE":   "BIRDTAP_CLEVERTAP_PASSCODE?",
		"BIRDTAP_HTTPADDR":            "BIRDTAP_HTTP_ADDR?",
		"BIRDTAP_QUEUE_MAXBYTES":      "BIRDTAP_QUEUE_MAX_BYTES?",
		"BIRDTAP_OPS_TOKENS_FILE":     "BIRDTAP_OPS_TOKEN_FILE?",
		"BIRDTAP_SERVICE_HOST":        "enableServiceLinks: false",
		"BIRDTAP_PORT_8080_TCP_PROTO": "enableServiceLinks: false",
	} {
		got := birdtap(t, append([]string{name + "=" + marker}, pair...), "serve")
		wantUsage(t, got, name+": is not a variable of birdtap")
		wantUsage(t, got, want)
	}
}

func TestWrongUsageIsCodeTwo(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"serv"}, `did you mean "serve"?`},
		{[]string{"xyzzy"}, `unknown command "xyzzy"`},
		{[]string{"serve", "now"}, `"now"`},
		{[]string{"serve", "--colour"}, "--colour"},
		{[]string{"serve", "--print-config=maybe"}, "--print-config"},
		{[]string{"version", "1"}, `"1"`},
	} {
		wantUsage(t, birdtap(t, pair, c.args...), c.want)
	}
}

func TestHelpAndVersionNeedNoConfiguration(t *testing.T) {
	broken := []string{"BIRDTAP_NO_SUCH=1"}
	for _, args := range [][]string{nil, {"--help"}, {"serve", "--help"}, {"ingest", "--help"}, {"relay", "--help"}, {"completion", "bash"}} {
		if got := birdtap(t, broken, args...); got.code != exitDone || got.out == "" || got.err != "" {
			t.Errorf("%q: code %d, stderr %q, %d bytes on stdout", args, got.code, got.err, len(got.out))
		}
	}
	for _, args := range [][]string{{"version"}, {"--version"}} {
		if got := birdtap(t, broken, args...); got.code != exitDone || got.out != "birdtap "+version+"\n" {
			t.Errorf("%q: code %d, stdout %q", args, got.code, got.out)
		}
	}
}

func TestPrintConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	writeFile(t, file, marker+"\n")
	for _, c := range []struct {
		golden  string
		environ []string
	}{
		{"defaults", pair},
		{"cluster", append([]string{
			"BIRDTAP_NATS_URL=nats://user:" + marker + "@n1:4222,tls://n2:4222",
			"BIRDTAP_HTTP_ADDR=127.0.0.1:8443",
			"BIRDTAP_OPS_ADDR=0.0.0.0:9090",
			"BIRDTAP_OPS_TOKEN=" + marker,
			"BIRDTAP_UPLOAD_PATHS=/a, /b/c,",
			"BIRDTAP_CLEVERTAP_REGION=sg1",
			"BIRDTAP_QUEUE_MAX_BYTES=1500MiB",
			"BIRDTAP_KEEP_MAX_BYTES=1GB",
			"BIRDTAP_DEDUP_WINDOW=0",
			"BIRDTAP_LOG_FORMAT=console",
		}, pair...)},
	} {
		t.Run(c.golden, func(t *testing.T) {
			got := birdtap(t, c.environ, "serve", "--print-config")
			if got.code != exitDone || got.err != "" {
				t.Fatalf("code %d, stderr %q", got.code, got.err)
			}
			golden(t, "print-config-"+c.golden+".txt", got.out)
			if strings.Contains(got.out, marker) {
				t.Error("a secret is shown")
			}
		})
	}
	t.Run("a secret from a file is redacted, too", func(t *testing.T) {
		got := birdtap(t, []string{"BIRDTAP_SENDBIRD_SIGNING_KEYS_FILE=" + file}, "serve", "--print-config")
		for _, line := range []string{"BIRDTAP_SENDBIRD_SIGNING_KEYS=<redacted>\n", "BIRDTAP_SENDBIRD_SIGNING_KEYS_FILE=" + file + "\n", "BIRDTAP_OPS_TOKEN=\n"} {
			if !strings.Contains(got.out, line) {
				t.Errorf("no line %q in:\n%s", line, got.out)
			}
		}
		if got.code != exitDone || !strings.Contains(got.err, "BIRDTAP_CLEVERTAP_ACCOUNT_ID") {
			t.Errorf("code %d, stderr %q: want 0 and what is missing to start", got.code, got.err)
		}
	})
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		writeFile(t, file, got)
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; go test -update writes it anew):\n%s", file, diff)
	}
}

func writeFile(t testing.TB, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestSecretsNeverPrint(t *testing.T) {
	cfg := load(t, append([]string{
		"BIRDTAP_OPS_TOKEN=" + marker, "BIRDTAP_SENDBIRD_SIGNING_KEYS=" + marker + ",b",
		"BIRDTAP_NATS_URL=nats://u:" + marker + "@n:4222",
	}, pair...))
	wrapped := struct{ secret Secret }{NewSecret(marker)}
	for _, value := range []any{cfg, *cfg, cfg.OpsToken, &cfg.OpsToken, cfg.ops, cfg.NATSURL, wrapped, []Secret{NewSecret(marker)}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			if text := fmt.Sprintf(verb, value); strings.Contains(text, marker) || strings.Contains(text, fmt.Sprintf("%x", marker)) {
				t.Errorf("%s of a %T shows the secret", verb, value)
			}
		}
		text, err := json.Marshal(value)
		if err == nil && bytes.Contains(text, []byte(marker)) {
			t.Errorf("JSON of a %T shows the secret", value)
		}
	}
	if cfg.passcode.Get() != marker || cfg.CleverTapPasscode.Reveal() != marker {
		t.Error("the passcode itself is lost")
	}
	if diff := cmp.Diff([]string{marker, "b"}, cfg.SigningKeys()); diff != "" {
		t.Errorf("signing keys (-want +got):\n%s", diff)
	}
}

func load(t testing.TB, environ []string) *Config {
	t.Helper()
	cfg, err := LoadConfig(environ, false)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// A clock that was wrong, and is set right, must not keep an old secret in use.
func TestSecretFileIsReadAgainAfterTheClockWasSetBack(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	writeFile(t, file, "first")
	s, err := newSecretSource("BIRDTAP_OPS_TOKEN", Secret{}, file)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Get(); got != "first" {
		t.Fatalf("Get gives %q", got)
	}
	writeFile(t, file, "the second")
	synctest.Test(t, func(t *testing.T) { // where it is the year 2000
		time.Sleep(lookEvery)
		if got := s.Get(); got != "the second" {
			t.Errorf("Get gives %q, want the second", got)
		}
	})
}

func TestSecretFileIsReadAgain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	writeFile(t, file, "first\r\n")
	s, err := newSecretSource("BIRDTAP_OPS_TOKEN", Secret{}, file)
	if err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.InfoLevel)
	s.log = zap.New(core)

	// The bubble's clock stands still but for the sleeps, so each look is exact.
	synctest.Test(t, func(t *testing.T) {
		step := func(what string, change func() error, want string) {
			t.Helper()
			if err := change(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(lookEvery)
			if got := s.Get(); got != want {
				t.Errorf("%s: Get gives %q, want %q", what, got, want)
			}
		}
		nothing := func() error { return nil }
		write := func(text string) func() error {
			return func() error { return os.WriteFile(file, []byte(text), 0o600) }
		}
		step("at first", nothing, "first")
		step("rewritten", write("second!\n"), "second!")
		step("empty", write(""), "second!")
		step("still empty", nothing, "second!")
		step("gone", func() error { return os.Remove(file) }, "second!")
		step("back", write("third"), "third")
		if err := os.WriteFile(file, []byte("fourth, at once"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := s.Get(); got != "third" {
			t.Errorf("looked at the file twice within a second: %q", got)
		}
		step("a second later", nothing, "fourth, at once")
	})
	if n := logs.FilterMessageSnippet("cannot be used").Len(); n != 1 {
		t.Errorf("the trouble was logged %d times, want once", n)
	}
	for _, line := range logs.All() {
		if text := fmt.Sprint(line.Message, line.ContextMap()); strings.Contains(text, "third") || strings.Contains(text, "second") {
			t.Errorf("the log shows the secret: %s", text)
		}
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "1": 1, "1000b": 1000, "1KB": 1000, "1kib": 1024, "8GiB": 8 << 30, "8Gi": 8 << 30,
		"512 MiB": 512 << 20, "1GB": 1e9, "2TiB": 2 << 40, "9223372036854775807": 1<<63 - 1,
	} {
		var got Size
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
		var again Size
		if err := again.UnmarshalText([]byte(got.String())); err != nil || again != got {
			t.Errorf("%q is written as %q, which reads %d, %v", text, got, again, err)
		}
	}
	for _, text := range []string{"", "GiB", "8 Gi B", "1e3", "0x10", "+1", "1_000", "9223372036854775808", "8EiB", "８"} {
		if err := new(Size).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

func TestDefaultsThatDependOnOthers(t *testing.T) {
	embedded := load(t, nil)
	cluster := load(t, []string{"BIRDTAP_NATS_URL=nats://n:4222", "BIRDTAP_CLEVERTAP_REGION=us1"})
	if embedded.Replicas != 1 || cluster.Replicas != 3 {
		t.Errorf("replicas %d embedded, %d on a cluster", embedded.Replicas, cluster.Replicas)
	}
	if embedded.CleverTapURL != "https://api.clevertap.com" || cluster.CleverTapURL != "https://us1.api.clevertap.com" {
		t.Errorf("addresses %s and %s", embedded.CleverTapURL, cluster.CleverTapURL)
	}
}

func TestWarnings(t *testing.T) {
	open := load(t, pair)
	closed := load(t, append([]string{"BIRDTAP_HTTP_ADDR=127.0.0.1:8080"}, pair...))
	if got := open.Warnings(roleServe); len(got) != 1 || !strings.Contains(got[0], "the passcode crosses the network in a header") {
		t.Errorf("beyond loopback without TLS: %q", got)
	}
	if got := append(closed.Warnings(roleServe), open.Warnings(roleRelay)...); len(got) != 0 {
		t.Errorf("on loopback, or without doors: %q", got)
	}
}

// FuzzConfig: whatever the environment holds, the answer is a configuration that
// prints, or an error that names a variable and shows no secret.
func FuzzConfig(f *testing.F) {
	for name := range variables {
		f.Add(strings.TrimPrefix(name, envPrefix), "1", "x")
	}
	f.Add("UPLOAD_PATHS", "/a,/b", "")
	f.Add("NATS_URL", "nats://u:"+marker+"@h:4222,n2", "secret")
	f.Add("QUEUE_MAX_BYTES", "8GiB", "a,b")
	f.Add("NO_SUCH", "value", "\n")
	f.Fuzz(func(t *testing.T, name, value, secret string) {
		environ := []string{
			envPrefix + name + "=" + value,
			"BIRDTAP_OPS_TOKEN=" + marker + secret,
			"BIRDTAP_CLEVERTAP_PASSCODE=" + marker + secret,
		}
		cfg, err := LoadConfig(environ, false)
		if err == nil {
			err = cfg.Validate()
		}
		if err != nil {
			if !strings.Contains(err.Error(), envPrefix) || strings.ContainsAny(err.Error(), "\r\n") {
				t.Fatalf("error %q: want one line that names a variable", err)
			}
			if strings.Contains(err.Error(), marker) && !strings.Contains(value+name, marker) {
				t.Fatalf("error shows a secret: %q", err)
			}
			return
		}
		var out bytes.Buffer
		if err := cfg.Print(&out); err != nil {
			t.Fatal(err)
		}
		if strings.Count(out.String(), "\n") != len(variables) {
			t.Fatalf("want one line per variable:\n%s", out.String())
		}
		if strings.Contains(out.String(), marker) && !strings.Contains(value, marker) {
			t.Fatal("the print shows a secret")
		}
	})
}
