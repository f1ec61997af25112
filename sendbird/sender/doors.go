package sender

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"math/rand/v2"
	"mime"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"

	"github.com/birdtap/birdtap/store"
	"github.com/birdtap/birdtap/store/failpoint"
)

// Committer stores asks; see store.Sends. Commit returns nil once they are on disk, and
// gives up when ctx ends. After an error they may have been stored all the same.
type Committer interface {
	Commit(ctx context.Context, asks []store.Ask) error
}

// DoorOptions says who may call. The zero value of a field is its default.
type DoorOptions struct {
	// Tokens are what callers present as Api-Token, any of them; asked for at every
	// call. An empty one never matches.
	Tokens func() []string
	// Committer may come later, by SetCommitter; until then calls are answered 503.
	Committer Committer
	NotFound  http.Handler // answers all other paths; default: 404

	Log        *zap.Logger
	Registerer prometheus.Registerer // default: one of its own
	Now        func() time.Time      // default time.Now
}

// Door takes webhook calls, and puts what they ask for on the sender's log:
//
//	POST /clevertap/notifications/realtime, …/single   each user at once
//	POST /clevertap/notifications/batch, …/multi       users gathered into large calls
//
// Its answers:
//
//	200 {"accepted":N}   stored; N users will be sent to. Those who cannot be are stored, too, to be
//	                     listed and counted; see Parse. A call with "is_test":true is accepted with 0
//	400                  no JSON object, not read to its end, or a mistake, which "error" names
//	401                  Api-Token; before the body is looked at
//	404, 405             before any credential is looked at
//	413                  a body over 5 MiB, or one that asks for too much
//	415                  a content type other than application/json, or a content encoding
//	503 with Retry-After not ready, log full, disk failing, too much at once; it may have been
//	                     stored after all, and the call made again is known as the same one
//
// Of a call that is answered in any other way than with 200 or 503 nothing is stored.
// CleverTap waits for a second or a few, calls up to four times, and then nobody makes
// the call again.
type Door struct {
	tokens   func() []string
	notFound http.Handler // nil: our own
	log      *zap.Logger
	now      func() time.Time
	metrics  *doorMetrics

	committer atomic.Pointer[Committer]
	failing   atomic.Bool // commits fail; for logging it once

	room    *semaphore.Weighted // for large bodies, in bytes
	parsing *semaphore.Weighted // calls that are being turned into asks
}

// maxParsing is how many calls are turned into asks at a time. It takes a moment and no
// waiting, so more would be no faster; but each may need memory for maxCallBytes.
const maxParsing = 2

// NewDoor returns the doors as one handler.
func NewDoor(o DoorOptions) (*Door, error) {
	d := &Door{
		tokens:   o.Tokens,
		notFound: o.NotFound,
		log:      o.Log,
		now:      o.Now,
		room:     semaphore.NewWeighted(roomBytes),
		parsing:  semaphore.NewWeighted(maxParsing),
	}
	if d.tokens == nil {
		return nil, errors.New("the sender's doors need tokens")
	}
	if d.log == nil {
		d.log = zap.NewNop()
	}
	if d.now == nil {
		d.now = time.Now
	}
	registerer := o.Registerer
	if registerer == nil {
		registerer = prometheus.NewRegistry()
	}
	var err error
	if d.metrics, err = newDoorMetrics(registerer); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	d.SetCommitter(o.Committer)
	return d, nil
}

// SetCommitter says where asks go from now on; with nil the doors answer 503 again.
func (d *Door) SetCommitter(c Committer) {
	if c == nil {
		d.committer.Store(nil)
		return
	}
	d.committer.Store(&c)
}

// doorModes are the doors. Both pairs of names are CleverTap's and Sendbird's.
var doorModes = map[string]Mode{
	"/clevertap/notifications/realtime": ModeRealtime,
	"/clevertap/notifications/single":   ModeRealtime,
	"/clevertap/notifications/batch":    ModeBatch,
	"/clevertap/notifications/multi":    ModeBatch,
}

// ServeHTTP finds the door. Path and method come before any credential.
func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	mode, found := doorModes[r.URL.Path]
	switch {
	case !found && d.notFound != nil:
		d.notFound.ServeHTTP(w, r)
	case !found:
		d.refuse(w, r, notFound)
	case r.Method != http.MethodPost:
		d.refuse(w, r, wrongMethod)
	default:
		d.post(w, r, mode)
	}
}

func (d *Door) post(w http.ResponseWriter, r *http.Request, mode Mode) {
	began := d.now()
	if !d.isCaller(r.Header) {
		d.refuse(w, r, badCredentials)
		return
	}
	committer := d.committer.Load()
	if committer == nil {
		d.refuse(w, r, unavailable)
		return
	}
	if !isJSON(r.Header) {
		d.refuse(w, r, wrongType)
		return
	}
	b, why := d.read(r)
	defer b.release()
	if why != nil {
		d.refuse(w, r, why)
		return
	}
	// A caller who hangs up has still asked for something: it is stored.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), commitWithin-b.waited)
	defer cancel()
	request, asks, why := d.parse(ctx, mode, b.bytes)
	if why != nil {
		d.refuse(w, r, why)
		return
	}
	if err := d.commit(ctx, *committer, asks); err != nil {
		d.refuse(w, r, unavailable)
		return
	}
	d.accept(w, request, d.now().Sub(began))
}

// isCaller tells whether the token is there, once, and one of those listed. Every one
// is compared, and in constant time, by hashes, which have one length.
func (d *Door) isCaller(h http.Header) bool {
	values := h["Api-Token"]
	if len(values) != 1 {
		return false
	}
	got, found := sha256.Sum256([]byte(values[0])), 0
	for _, token := range d.tokens() {
		want := sha256.Sum256([]byte(token))
		if token != "" {
			found |= subtle.ConstantTimeCompare(got[:], want[:])
		}
	}
	return found == 1
}

// isJSON tells whether the body claims to be JSON, or claims nothing.
func isJSON(h http.Header) bool {
	switch values := h["Content-Type"]; {
	case len(values) > 1:
		return false
	case len(values) == 0 || values[0] == "":
		return true
	default:
		media, _, err := mime.ParseMediaType(values[0])
		return media == "application/json" && (err == nil || errors.Is(err, mime.ErrInvalidMediaParameter))
	}
}

// parse turns a body into asks as they are stored, when it is its turn.
func (d *Door) parse(ctx context.Context, mode Mode, body []byte) (Request, []store.Ask, *refusal) {
	if d.parsing.Acquire(ctx, 1) != nil {
		return Request{}, nil, unavailable
	}
	defer d.parsing.Release(1)
	request, err := Parse(mode, body)
	if wrong, ok := errors.AsType[*mistake](err); ok {
		return Request{}, nil, newRefusal(wrong.status, answerMistake, wrong.text)
	}
	if err != nil {
		return Request{}, nil, malformed
	}
	asks, err := Encode(callKey(mode, body), request.Asks)
	if err != nil { // Parse sees to it that every user has room
		return Request{}, nil, tooLarge
	}
	return request, asks, nil
}

func (d *Door) commit(ctx context.Context, committer Committer, asks []store.Ask) error {
	if len(asks) == 0 {
		return nil
	}
	err := committer.Commit(ctx, asks)
	if err == nil {
		failpoint.Here(failpoint.AsksStored)
	}
	d.noteCommit(err)
	return err
}

// noteCommit logs when commits begin to fail, and when they succeed again.
func (d *Door) noteCommit(err error) {
	failing := err != nil
	switch {
	case d.failing.Swap(failing) == failing: // nothing new
	case failing:
		d.log.Error("what is to be sent cannot be stored, callers get 503", zap.Error(err))
	default:
		d.log.Info("what is to be sent is stored again")
	}
}

// refusal is the answer to a call that is refused.
type refusal struct {
	status int
	answer string // in the metrics
	body   []byte
}

func newRefusal(status int, answer, text string) *refusal {
	quoted, _ := jsontext.AppendQuote(nil, text) // has an error for invalid UTF-8 only, and then a text nevertheless
	return &refusal{status, answer, fmt.Appendf(nil, `{"status":"fail","error":%s,"code":%d}`, quoted, status)}
}

// Answers of which nothing depends on the call; as those of the other doors.
var (
	notFound       = newRefusal(http.StatusNotFound, answerNotFound, "Not found")
	wrongMethod    = newRefusal(http.StatusMethodNotAllowed, answerMethod, "Method not allowed")
	badCredentials = newRefusal(http.StatusUnauthorized, answerCredentials, "Invalid Credentials")
	wrongType      = newRefusal(http.StatusUnsupportedMediaType, answerMediaType, "Content type not supported")
	encoded        = newRefusal(http.StatusUnsupportedMediaType, answerEncoding, "Content encoding not supported")
	tooLarge       = newRefusal(http.StatusRequestEntityTooLarge, answerTooLarge, "Request too large")
	unreadable     = newRefusal(http.StatusBadRequest, answerRead, "Malformed request")
	malformed      = newRefusal(http.StatusBadRequest, answerMalformed, "Malformed request")
	unavailable    = newRefusal(http.StatusServiceUnavailable, answerUnavailable, "Service unavailable")
)

// refuse is the one place that answers a call that is refused.
func (d *Door) refuse(w http.ResponseWriter, r *http.Request, why *refusal) {
	drain(r)
	d.metrics.calls.WithLabelValues(why.answer).Inc()
	switch why {
	case wrongMethod:
		w.Header().Set("Allow", http.MethodPost)
	case unavailable:
		// Spread out, so that those refused together do not return together.
		w.Header().Set("Retry-After", strconv.Itoa(1+rand.IntN(3))) //nolint:gosec // no secret
	}
	sendAnswer(w, why.status, why.body)
}

// accept is the one place that answers a call whose asks are stored.
func (d *Door) accept(w http.ResponseWriter, request Request, took time.Duration) {
	answer := answerAccepted
	if request.Test {
		answer = answerTest
	}
	d.metrics.calls.WithLabelValues(answer).Inc()
	sendAnswer(w, http.StatusOK, fmt.Appendf(nil, `{"accepted":%d}`, request.Accepted))
	d.metrics.seconds.Observe(took.Seconds())
}

func sendAnswer(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	// A caller that is gone learns nothing, and there is nobody else to tell.
	_, _ = w.Write(body)
}
