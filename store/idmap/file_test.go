package idmap

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

var size = flag.Int("size", 1_000_000, "users in the map of BenchmarkLookup")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// build makes a map of n users, user-0 → customer-0 and so on.
func build(t testing.TB, n int) *Map {
	t.Helper()
	b := NewBuilder(t.TempDir())
	defer func() { _ = b.Close() }()
	for i := range n {
		if err := b.Add(user(nil, i), fmt.Append(nil, "customer-", i), i+2); err != nil {
			t.Fatal(err)
		}
	}
	m, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

func user(b []byte, i int) []byte { return strconv.AppendInt(append(b, "user-"...), int64(i), 10) }

func wantIdentity(t testing.TB, m *Map, user, want string) {
	t.Helper()
	got, found, err := m.Lookup(nil, []byte(user))
	if err != nil || !found || string(got) != want {
		t.Fatalf("%s is %q, %v, %v; want %q", user, got, found, err, want)
	}
}

func wantNone(t testing.TB, m *Map, user string) {
	t.Helper()
	if got, found, err := m.Lookup(nil, []byte(user)); err != nil || found || got != nil {
		t.Fatalf("%s is %q, %v, %v; want none", user, got, found, err)
	}
}

func TestEveryUserIsFoundAndNobodyElse(t *testing.T) {
	for _, n := range []int{1, 2, 100, 10_000} {
		m := build(t, n)
		if m.Users() != uint64(n) {
			t.Errorf("%d users, want %d", m.Users(), n)
		}
		for i := range n {
			wantIdentity(t, m, fmt.Sprint("user-", i), fmt.Sprint("customer-", i))
			wantNone(t, m, fmt.Sprint("nobody-", i))
		}
	}
}

func TestEmptyMapFindsNobody(t *testing.T) {
	m := build(t, 0)
	wantNone(t, m, "")
	wantNone(t, m, "user-0")
}

func TestWhatWasAddedIsFound(t *testing.T) {
	dir := t.TempDir()
	text := rapid.SliceOfN(rapid.Byte(), 1, MaxBytes)
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.MapOf(rapid.Map(text, func(b []byte) string { return string(b) }), text).Draw(t, "map")
		b := NewBuilder(dir)
		defer func() { _ = b.Close() }()
		for u, id := range want {
			if err := b.Add([]byte(u), id, 1); err != nil {
				t.Fatal(err)
			}
		}
		m, err := b.Finish()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = m.Close() }()
		for u, id := range want {
			if got, found, err := m.Lookup(nil, []byte(u)); err != nil || !found || !bytes.Equal(got, id) {
				t.Fatalf("%q is %q, %v, %v; want %q", u, got, found, err, id)
			}
		}
	})
}

// The same users make the same bytes, in whatever order they come: the version says
// whether a map is another one.
func TestVersionIsThatOfTheContent(t *testing.T) {
	version := func(numbers []int) string {
		b := NewBuilder(t.TempDir())
		defer func() { _ = b.Close() }()
		for _, i := range numbers {
			if err := b.Add(user(nil, i), []byte("x"), i); err != nil {
				t.Fatal(err)
			}
		}
		m, err := b.Finish()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = m.Close() }()
		return m.Version()
	}
	one := version(rand.Perm(1000))
	if version(rand.Perm(1000)) != one {
		t.Error("another version of the same map")
	}
	if version(rand.Perm(1001)) == one {
		t.Error("the same version of another map")
	}
}

// bytesOf is the file of a map, and a way to open other bytes as one.
func bytesOf(t testing.TB, m *Map) []byte {
	t.Helper()
	data, err := io.ReadAll(io.NewSectionReader(m.File(), 0, m.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func openBytes(t testing.TB, data []byte) (*Map, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "map")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := Open(path)
	if err == nil {
		t.Cleanup(func() { _ = m.Close() })
	}
	return m, err
}

func TestTruncatedFileIsRefused(t *testing.T) {
	data := bytesOf(t, build(t, 300))
	for n := 0; n < len(data); n += 1 + len(data)/200 {
		if _, err := openBytes(t, data[:n]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%d of %d bytes: %v", n, len(data), err)
		}
	}
	if _, err := openBytes(t, append(bytes.Clone(data), 0)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("one byte more: %v", err)
	}
}

func TestFlippedBitIsRefused(t *testing.T) {
	data := bytesOf(t, build(t, 300))
	for i := 0; i < len(data); i += 1 + len(data)/200 {
		data[i] ^= 1
		if _, err := openBytes(t, data); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d: %v", i, err)
		}
		data[i] ^= 1
	}
	m, err := openBytes(t, data)
	if err != nil {
		t.Fatal(err)
	}
	wantIdentity(t, m, "user-7", "customer-7")
}

// A disk that goes bad under an open map makes errors, never wrong answers.
func TestDamageUnderAnOpenMapIsNoticed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "map")
	data := bytesOf(t, build(t, 5000))
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	for i := len(magic); i < int(m.end); i += blockBytes / 2 {
		data[i] ^= 0x10
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range 5000 {
		if got, _, err := m.Lookup(nil, user(nil, i)); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("user-%d is %q, %v", i, got, err)
		}
	}
}

func TestForeignFileIsRefused(t *testing.T) {
	for _, text := range []string{"", "user_id,identity\n", strings.Repeat("x", 10_000)} {
		if _, err := openBytes(t, []byte(text)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%.20q: %v", text, err)
		}
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestManyLookupsAtOnce(t *testing.T) {
	m := build(t, 20_000)
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			for i := g; i < 20_000; i += 8 {
				got, found, err := m.Lookup(nil, user(nil, i))
				if err != nil || !found || string(got) != fmt.Sprint("customer-", i) {
					t.Errorf("user-%d is %q, %v, %v", i, got, found, err)
					return
				}
			}
		})
	}
	all.Wait()
}

func TestLookupAllocatesNothing(t *testing.T) {
	m := build(t, 10_000)
	dst, id := make([]byte, 0, 64), []byte("user-77")
	if n := testing.AllocsPerRun(100, func() { _, _, _ = m.Lookup(dst, id) }); n >= 1 {
		t.Errorf("%v allocations", n)
	}
}

// TestFileFormatNeverChanges: files lie in queues and data directories.
func TestFileFormatNeverChanges(t *testing.T) {
	want, err := os.ReadFile(filepath.Join("testdata", "map-v1.bin"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(bytesOf(t, build(t, 20)), want) {
		t.Error("the file of 20 users is another one now; a new layout needs a new head")
	}
	m, err := openBytes(t, want)
	if err != nil {
		t.Fatal(err)
	}
	wantIdentity(t, m, "user-19", "customer-19")
}

func FuzzOpen(f *testing.F) {
	f.Add(bytesOf(f, build(f, 3)))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := openBytes(t, data)
		if err != nil {
			return
		}
		_, _, _ = m.Lookup(nil, []byte("user-1"))
	})
}

// BenchmarkLookup looks up random users. -size 10000000 for the map that is promised.
func BenchmarkLookup(b *testing.B) {
	m := build(b, *size)
	var id, dst []byte
	b.ReportAllocs()
	for b.Loop() {
		id = user(id[:0], rand.IntN(*size))
		var found bool
		var err error
		if dst, found, err = m.Lookup(dst[:0], id); err != nil || !found {
			b.Fatal(found, err)
		}
	}
}
