package ingest

import (
	"context"
	"net/http"
)

// Verifier tells whether signature is Sendbird's for exactly these bytes, and by
// which of the signing keys, counted from 0.
type Verifier interface {
	Verify(body []byte, signature string) (slot int, ok bool)
}

// callback is the door for signed receipts. What verifies and cannot be parsed
// is counted apart: then Sendbird has changed something.
func (s *Server) callback(w http.ResponseWriter, r *http.Request) {
	signatures := r.Header["X-Sendbird-Signature"]
	if len(signatures) != 1 {
		s.refuse(w, r, badSignature)
		return
	}
	committer := s.committer.Load()
	if committer == nil {
		s.refuse(w, r, unavailable)
		return
	}
	c, why := s.calls.read(r, s.unverifiedRoom)
	defer s.calls.put(c)
	c.signed = true
	if why != nil {
		s.refuse(w, r, why)
		return
	}
	slot, ok := s.verifier.Verify(c.body, signatures[0])
	if !ok {
		s.refuse(w, r, badSignature)
		return
	}
	s.metrics.verified(slot)
	if m := s.remembered.Load(); m != nil {
		c.lookUp(context.WithoutCancel(r.Context()), m) // as commit: a caller may hang up
	}
	if why := s.parse(c, signedButBad); why != nil {
		s.refuse(w, r, why)
		return
	}
	if err := s.commit(r.Context(), *committer, c); err != nil {
		s.refuse(w, r, unavailable)
		return
	}
	s.accept(w, c)
}
