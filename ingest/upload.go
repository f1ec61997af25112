package ingest

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"net/http"

	"github.com/birdtap/birdtap/store"
)

// Committer stores receipts. Commit returns nil once they are on disk; before it
// returns, for whatever reason, it has copied what it keeps of them, since their
// memory is used again. It gives up when ctx ends. After an error they may have
// been stored all the same.
type Committer interface {
	Commit(ctx context.Context, receipts []store.Receipt) error
}

// upload is the door that speaks CleverTap's upload call. Credentials stand in
// headers, so memory is given to the body of nobody else.
func (s *Server) upload(w http.ResponseWriter, r *http.Request) {
	if !s.isCaller(r.Header) {
		s.refuse(w, r, badCredentials)
		return
	}
	committer := s.committer.Load()
	if committer == nil {
		s.refuse(w, r, unavailable)
		return
	}
	c, why := s.calls.read(r, s.verifiedRoom)
	defer s.calls.put(c)
	if why != nil {
		s.refuse(w, r, why)
		return
	}
	if why := s.parse(c, malformed); why != nil {
		s.refuse(w, r, why)
		return
	}
	if err := s.commit(r.Context(), *committer, c); err != nil {
		s.refuse(w, r, unavailable)
		return
	}
	s.accept(w, c)
}

// isCaller tells whether both headers are there, once each, and right. Both are
// always compared, and in constant time, by their hashes, which have one length.
func (s *Server) isCaller(h http.Header) bool {
	account := isSecret(h["X-Clevertap-Account-Id"], s.account())
	passcode := isSecret(h["X-Clevertap-Passcode"], s.passcode())
	return account && passcode
}

// isSecret tells whether the one header value is the secret. An empty secret is
// none: it never matches.
func isSecret(values []string, secret string) bool {
	if len(values) != 1 || secret == "" {
		return false
	}
	got, want := sha256.Sum256([]byte(values[0])), sha256.Sum256([]byte(secret))
	return subtle.ConstantTimeCompare(got[:], want[:]) == 1
}
