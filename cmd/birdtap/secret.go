package main

import (
	"encoding"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

var (
	_ encoding.TextUnmarshaler = (*Secret)(nil)
	_ encoding.TextMarshaler   = Secret{}
	_ encoding.TextMarshaler   = Address("")
)

// redacted stands where a secret would.
const redacted = "<redacted>"

// Secret is a value that no message, log or page may show. Every way of printing
// it gives <redacted>, or nothing when it is empty; Reveal is the one way to it.
//
// It holds a pointer because fmt prints unexported fields without asking their
// methods: of a pointer it can show no more than an address.
type Secret struct{ value *string }

// NewSecret wraps s.
func NewSecret(s string) Secret { return Secret{&s} }

// Reveal returns the secret itself, for the one call that needs it.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// IsZero tells whether there is no secret.
func (s Secret) IsZero() bool { return s.Reveal() == "" }

// UnmarshalText takes the secret in.
func (s *Secret) UnmarshalText(text []byte) error {
	*s = NewSecret(string(text))
	return nil
}

func (s Secret) String() string {
	if s.IsZero() {
		return ""
	}
	return redacted
}

// GoString is what %#v shows.
func (s Secret) GoString() string { return fmt.Sprintf("Secret(%q)", s.String()) }

// Format covers every verb, those included that would dig into the fields.
func (s Secret) Format(f fmt.State, verb rune) { format(f, verb, s) }

// MarshalText is what text formats and JSON show.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Address is one URL, or several with commas between, that may carry a password in
// its user part or in a query. Every way of printing it leaves that out.
type Address string

func (a Address) String() string {
	if !strings.ContainsAny(string(a), "@?") {
		return string(a)
	}
	servers := a.list()
	for i, server := range servers {
		u, err := url.Parse(server)
		if err != nil || u.Host == "" {
			return redacted
		}
		if u.User != nil || u.RawQuery != "" {
			servers[i] = u.Scheme + "://" + redacted + "@" + u.Host
		}
	}
	return strings.Join(servers, ",")
}

func (a Address) list() []string { return splitList(string(a)) }

// GoString is what %#v shows.
func (a Address) GoString() string { return fmt.Sprintf("Address(%q)", a.String()) }

// Format covers every verb.
func (a Address) Format(f fmt.State, verb rune) { format(f, verb, a) }

// MarshalText is what text formats and JSON show.
func (a Address) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// guarded gives the two texts that every verb comes down to.
type guarded interface {
	fmt.Stringer
	fmt.GoStringer
}

// format prints v through its own methods, whatever the verb.
func format(f fmt.State, verb rune, v guarded) {
	text := v.String()
	if verb == 'v' && f.Flag('#') {
		text = v.GoString()
	}
	_, _ = io.WriteString(f, text)
}

// secretSource is a secret that may change while birdtap runs: one from a file is
// read again when the file changes. Safe for concurrent use.
type secretSource struct {
	name  string // of the variable, with the prefix
	value atomic.Pointer[string]
	file  *watchedFile // nil: from the environment, never changes
	log   *zap.Logger

	mu      sync.Mutex // one reload at a time
	failing bool       // said already that the file cannot be used
}

// newSecretSource takes the secret from the variable or from the file that its
// _FILE twin names. Neither is no error: Get then returns the empty string.
func newSecretSource(name string, value Secret, file string) (*secretSource, error) {
	s := &secretSource{name: name, log: zap.NewNop()}
	text := value.Reveal()
	if file != "" {
		if !value.IsZero() {
			return nil, &configError{variable: name + "_FILE", value: file, problem: "set it or " + name + ", not both"}
		}
		s.file = &watchedFile{path: file}
		s.file.changed()
		var err error
		if text, err = readSecret(file); err != nil {
			return nil, &configError{variable: name + "_FILE", value: file, problem: err.Error()}
		}
	}
	s.value.Store(&text)
	return s, nil
}

// Get returns the secret of this moment. It looks at the file at most once a
// second, and keeps the last good value while the file is empty or unreadable, as
// it briefly is when it is replaced.
func (s *secretSource) Get() string {
	if s.file != nil && s.file.due() {
		s.reload()
	}
	return *s.value.Load()
}

func (s *secretSource) reload() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.file.changed() && !s.failing {
		return
	}
	text, err := readSecret(s.file.path)
	switch {
	case err == nil:
		s.value.Store(&text)
		if s.failing {
			s.log.Info("secret file is readable again", zap.String("variable", s.name+"_FILE"))
		}
		s.failing = false
	case !s.failing:
		s.failing = true
		s.log.Warn("secret file cannot be used, the last good value stays",
			zap.String("variable", s.name+"_FILE"), zap.Error(err))
	}
}

// maxSecretBytes is far above any secret, and guards against the wrong file.
const maxSecretBytes = 64 << 10

// readSecret returns what the file holds without its trailing newline. An empty
// file is an error: an empty secret must never match anything.
func readSecret(file string) (string, error) {
	info, err := os.Stat(file)
	if err != nil {
		return "", fmt.Errorf("cannot read the file: %w", bare(err))
	}
	if !info.Mode().IsRegular() || info.Size() > maxSecretBytes {
		return "", errors.New("must name a regular file of at most 64 KiB")
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("cannot read the file: %w", bare(err))
	}
	text := strings.TrimRight(string(data), "\r\n")
	if text == "" {
		return "", errors.New("the file is empty")
	}
	return text, nil
}

// bare takes the file's name out of an error of the file system: the message around
// it names the file already.
func bare(err error) error {
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		return path.Err
	}
	return err
}

// watchedFile tells when a file has become another one.
type watchedFile struct {
	path string
	next atomic.Int64 // Unix ns from when on the next look is due
	seen os.FileInfo  // as of the last look; nil: it was not there
}

// lookEvery bounds how often a file is looked at.
const lookEvery = time.Second

// due tells whether it is time to look, and tells so to one caller only. A time further
// off than any look can be was set before the clock went back.
func (w *watchedFile) due() bool {
	now, next := time.Now(), w.next.Load()
	left := time.Duration(next - now.UnixNano())
	waits := 0 < left && left <= lookEvery
	return !waits && w.next.CompareAndSwap(next, now.Add(lookEvery).UnixNano())
}

// changed tells whether the file differs from the one it saw last, by identity,
// size or time of change. It looks before the caller reads: a change in between
// shows at the next look.
func (w *watchedFile) changed() bool {
	was := w.seen
	info, err := os.Stat(w.path)
	if err != nil {
		w.seen = nil
		return was != nil
	}
	w.seen = info
	return was == nil || !os.SameFile(was, info) || was.Size() != info.Size() || !was.ModTime().Equal(info.ModTime())
}
