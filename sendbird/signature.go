package sendbird

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
)

// SignatureHeader carries the signature of a webhook: 64 hex digits, the
// HMAC-SHA256 of the raw body;
// https://sendbird.com/docs/chat/platform-api/v3/webhook/webhook-overview.
const SignatureHeader = "X-Sendbird-Signature"

// Signatures verifies signed calls with any of several keys, so that a key can
// be replaced without a gap. A signature has no time in it: a captured call
// verifies for ever, and only dedup helps against its repetition.
type Signatures struct {
	keys func() []string
}

// NewSignatures returns a verifier for the keys that keys returns at each call,
// so that a key changed on disk counts at once. An empty key never matches.
func NewSignatures(keys func() []string) *Signatures {
	return &Signatures{keys: keys}
}

// Verify tells whether signature is that of body under one of the keys, and
// under which one, counted from 0: a key whose slot is no longer seen can be
// retired. body must be the exact bytes that came; Sendbird escapes in ways that
// do not survive parsing and writing again. Upper-case digits are taken, too.
//
// Every key is tried even after a match, and digests are compared in constant
// time, so the time taken tells nothing about the keys.
func (s *Signatures) Verify(body []byte, signature string) (slot int, ok bool) {
	presented, ok := digest(signature)
	if !ok {
		return 0, false
	}
	slot = -1
	for i, key := range s.keys() {
		sum := sign(key, body)
		if hmac.Equal(sum[:], presented[:]) && key != "" && slot < 0 {
			slot = i
		}
	}
	return max(slot, 0), slot >= 0
}

// Sign is the signature that Sendbird puts on body under key.
func Sign(key string, body []byte) string {
	sum := sign(key, body)
	return hex.EncodeToString(sum[:])
}

func sign(key string, body []byte) (sum [sha256.Size]byte) {
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write(body)
	mac.Sum(sum[:0])
	return sum
}

// digest decodes exactly 64 hex digits.
func digest(signature string) (sum [sha256.Size]byte, ok bool) {
	var digits [2 * sha256.Size]byte
	if len(signature) != len(digits) {
		return sum, false
	}
	copy(digits[:], signature)
	_, err := hex.Decode(sum[:], digits[:])
	return sum, err == nil
}
