package sendbird

import (
	"strings"
	"testing"
)

// The published example of RFC 4231, test case 2.
const (
	rfcKey  = "Jefe"
	rfcBody = "what do ya want for nothing?"
	rfcSum  = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
)

func keys(list ...string) func() []string { return func() []string { return list } }

func TestVerify(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name      string
		keys      []string
		body      string
		signature string
		slot      int
		ok        bool
	}{
		{"right key", []string{rfcKey}, rfcBody, rfcSum, 0, true},
		{"second key", []string{"old", rfcKey}, rfcBody, rfcSum, 1, true},
		{"same key twice counts for the first", []string{rfcKey, rfcKey}, rfcBody, rfcSum, 0, true},
		{"upper-case digits", []string{rfcKey}, rfcBody, strings.ToUpper(rfcSum), 0, true},
		{"other key", []string{"other"}, rfcBody, rfcSum, 0, false},
		{"no key", nil, rfcBody, rfcSum, 0, false},
		{"empty key", []string{""}, rfcBody, Sign("", []byte(rfcBody)), 0, false},
		{"empty key before the right one", []string{"", rfcKey}, rfcBody, rfcSum, 1, true},
		{"body changed", []string{rfcKey}, rfcBody + " ", rfcSum, 0, false},
		{"empty signature", []string{rfcKey}, rfcBody, "", 0, false},
		{"short", []string{rfcKey}, rfcBody, rfcSum[:62], 0, false},
		{"long", []string{rfcKey}, rfcBody, rfcSum + "00", 0, false},
		{"blank around", []string{rfcKey}, rfcBody, " " + rfcSum[1:], 0, false},
		{"not hex", []string{rfcKey}, rfcBody, "g" + rfcSum[1:], 0, false},
		{"with scheme", []string{rfcKey}, rfcBody, "sha256=" + rfcSum, 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			slot, ok := NewSignatures(keys(tt.keys...)).Verify([]byte(tt.body), tt.signature)
			if slot != tt.slot || ok != tt.ok {
				t.Fatalf("got slot %d, %v, want %d, %v", slot, ok, tt.slot, tt.ok)
			}
		})
	}
}

func TestRewrittenBodyDoesNotVerify(t *testing.T) {
	t.Parallel()
	signature := Sign(rfcKey, []byte(`{"a":"\/\u00e9"}`))
	if _, ok := NewSignatures(keys(rfcKey)).Verify([]byte(`{"a":"/é"}`), signature); ok {
		t.Fatal("a body written anew has verified")
	}
}

func TestKeysAreReadAtEveryCall(t *testing.T) {
	t.Parallel()
	key := "old"
	s := NewSignatures(func() []string { return []string{key} })
	if _, ok := s.Verify([]byte(rfcBody), rfcSum); ok {
		t.Fatal("verified with the wrong key")
	}
	key = rfcKey
	if _, ok := s.Verify([]byte(rfcBody), rfcSum); !ok {
		t.Fatal("the new key does not count")
	}
}

func FuzzSignature(f *testing.F) {
	f.Add(rfcBody, rfcSum)
	f.Add("", "")
	f.Add(rfcBody, strings.ToUpper(rfcSum))
	s := NewSignatures(keys("old", rfcKey))
	f.Fuzz(func(t *testing.T, body, signature string) {
		_, ok := s.Verify([]byte(body), signature)
		lower := strings.ToLower(signature)
		if want := lower == Sign("old", []byte(body)) || lower == Sign(rfcKey, []byte(body)); ok != want {
			t.Fatalf("got %v, want %v", ok, want)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	body := []byte(strings.Repeat("x", 250))
	s := NewSignatures(keys(rfcKey))
	signature := Sign(rfcKey, body)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := s.Verify(body, signature); !ok {
			b.Fatal("not verified")
		}
	}
}
