package ingest

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"github.com/birdtap/birdtap/clevertap"
)

// refusal is the answer to a call that is refused as a whole: one fixed body per
// kind, in CleverTap's words, so that nothing of the call comes back.
type refusal struct {
	status int
	reason string // in the metrics
	body   []byte
	length []string // of body, as header value
}

func newRefusal(status int, reason, text string) *refusal {
	body := fmt.Appendf(nil, `{"status":"fail","error":"%s","code":%d}`, text, status)
	return &refusal{status: status, reason: reason, body: body, length: []string{strconv.Itoa(len(body))}}
}

var (
	notFound       = newRefusal(http.StatusNotFound, reasonNotFound, "Not found")
	wrongMethod    = newRefusal(http.StatusMethodNotAllowed, reasonMethod, "Method not allowed")
	badCredentials = newRefusal(http.StatusUnauthorized, reasonCredentials, "Invalid Credentials")
	badSignature   = newRefusal(http.StatusUnauthorized, reasonSignature, "Invalid Signature")
	encoded        = newRefusal(http.StatusUnsupportedMediaType, reasonEncoding, "Content encoding not supported")
	tooLarge       = newRefusal(http.StatusRequestEntityTooLarge, reasonTooLarge, "Request too large")
	unreadable     = newRefusal(http.StatusBadRequest, reasonRead, "Malformed request")
	malformed      = newRefusal(http.StatusBadRequest, reasonMalformed, "Malformed request")
	signedButBad   = newRefusal(http.StatusBadRequest, reasonSigned, "Malformed request")
	unavailable    = newRefusal(http.StatusServiceUnavailable, reasonUnavailable, "Service unavailable")
	broken         = newRefusal(http.StatusInternalServerError, reasonPanic, "Internal error")
)

// Header values are shared by all answers; net/http only reads them.
var (
	typeJSON  = []string{"application/json"}
	allowPost = []string{http.MethodPost}
)

// maxDrainBytes is how much of a refused body is read and thrown away.
const maxDrainBytes = 2 * maxBodyBytes

// refuse is the one place that answers a call refused as a whole.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, why *refusal) {
	if r.Header["Expect"] == nil {
		// A caller who is still writing when the connection closes sees a reset in
		// place of the answer. It costs no memory, and no more time than readTimeout.
		_, _ = io.CopyN(io.Discard, r.Body, maxDrainBytes)
	}
	s.metrics.rejected.WithLabelValues(why.reason).Inc()
	h := w.Header()
	switch why {
	case wrongMethod:
		h["Allow"] = allowPost
	case unavailable:
		// Spread out, so that those refused together do not return together.
		h.Set("Retry-After", strconv.Itoa(1+rand.IntN(3))) //nolint:gosec // no secret
	}
	send(w, why.status, why.body, why.length)
}

// accept is the one place that answers a call whose receipts are stored.
func (s *Server) accept(w http.ResponseWriter, c *call) {
	s.metrics.accepted.Add(float64(len(c.receipts)))
	s.metrics.unmapped.Add(float64(c.converter.unmapped))
	s.metrics.ignored.Add(float64(c.ignored))
	for _, r := range c.refused {
		s.metrics.rejected.WithLabelValues(strconv.Itoa(int(r.code))).Inc()
	}
	if c.taken == 1 && len(c.refused) == 0 {
		send(w, http.StatusOK, oneTaken, oneTakenLength)
	} else {
		c.answer = appendAnswer(c.answer[:0], c.taken, c.refused)
		send(w, http.StatusOK, c.answer, []string{strconv.Itoa(len(c.answer))})
	}
	s.metrics.seconds.Observe(time.Since(c.began).Seconds())
}

// The answer to nearly every call is made once.
var (
	oneTaken       = appendAnswer(nil, 1, nil)
	oneTakenLength = []string{strconv.Itoa(len(oneTaken))}
)

// refusedRecord is one entry of "unprocessed".
type refusedRecord struct {
	number int // in the body, from 1
	code   clevertap.Code
	raw    []byte // echoed as it came
}

// appendAnswer words the outcome as CleverTap does:
//
//	{"status":"partial","processed":1,"unprocessed":[{"status":"fail","code":509,"error":"… Skipped record number : 2","record":…}]}
func appendAnswer(b []byte, taken int, refused []refusedRecord) []byte {
	status := clevertap.StatusSuccess
	switch {
	case len(refused) > 0 && taken > 0:
		status = clevertap.StatusPartial
	case len(refused) > 0:
		status = clevertap.StatusFail
	}
	b = append(b, `{"status":"`...)
	b = append(b, status...)
	b = append(b, `","processed":`...)
	b = strconv.AppendInt(b, int64(taken), 10)
	b = append(b, `,"unprocessed":[`...)
	for i, r := range refused {
		if i > 0 {
			b = append(b, ',')
		}
		b = r.append(b)
	}
	return append(b, `]}`...)
}

func (r refusedRecord) append(b []byte) []byte {
	b = append(b, `{"status":"fail","code":`...)
	b = strconv.AppendInt(b, int64(r.code), 10)
	b = append(b, `,"error":"`...)
	b = append(b, r.code.String()...) // fixed words, nothing in them to escape
	b = append(b, `. Skipped record number : `...)
	b = strconv.AppendInt(b, int64(r.number), 10)
	b = append(b, `","record":`...)
	b = append(b, r.raw...)
	return append(b, '}')
}

func send(w http.ResponseWriter, status int, body []byte, length []string) {
	h := w.Header()
	h["Content-Type"] = typeJSON
	h["Content-Length"] = length
	w.WriteHeader(status)
	// A caller that is gone learns nothing, and there is nobody else to tell.
	_, _ = w.Write(body)
}
