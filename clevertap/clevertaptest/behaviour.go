package clevertaptest

import (
	"compress/gzip"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/birdtap/birdtap/clevertap"
)

// Behaviour is what one call meets. The zero Behaviour is the normal one: the
// records are judged, taken or refused, and answered for. Most others change one
// thing of it; whether the records are taken stands at each, and can be turned
// with [Behaviour.Taking] and [Behaviour.NotTaking].
type Behaviour struct {
	name        string
	delay       time.Duration
	notTaking   bool              // nothing is taken, nothing judged
	beforeBody  bool              // deliver comes before the body is read
	refuseFirst bool              // the first record is refused, so that there is a refusal
	twist       func(*Reply)      // changes the account of a 200
	fixed       *response         // stands in for the answer
	deliver     func(e *exchange) // brings the answer out; nil: at once
	silent      bool              // no status is ever sent
}

// Taking makes b judge and take the records as usual, whatever it answers.
func (b Behaviour) Taking() Behaviour { b.notTaking = false; return b }

// NotTaking makes b take none of the records, whatever it answers.
func (b Behaviour) NotTaking() Behaviour { b.notTaking = true; return b }

// After makes b wait for d between deciding and answering.
func (b Behaviour) After(d time.Duration) Behaviour { b.delay += d; return b }

// Repeat is n times b, for [Server.Script].
func Repeat(n int, b Behaviour) []Behaviour {
	list := make([]Behaviour, n)
	for i := range list {
		list[i] = b
	}
	return list
}

// Delay answers normally, after d.
func Delay(d time.Duration) Behaviour { return Behaviour{name: "delay"}.After(d) }

// Status answers with this status, header and body, and takes nothing. An empty
// body stands for the recorded one where there is one (400, 401, 413, 429).
func Status(status int, header http.Header, body string) Behaviour {
	if body == "" {
		body = statusBodies[status]
	}
	r := jsonResponse(status, body)
	for name, values := range header {
		r.header[http.CanonicalHeaderKey(name)] = values
	}
	return Behaviour{name: "status", notTaking: true, fixed: &r}
}

var statusBodies = map[int]string{
	http.StatusBadRequest:            bodyMalformed,
	http.StatusUnauthorized:          bodyBadPasscode,
	http.StatusRequestEntityTooLarge: bodyTooLarge,
	http.StatusTooManyRequests:       bodyTooMany,
}

// RetryAfter answers 429 (or another status) and asks to wait for d, which is
// sent in whole seconds. Takes nothing.
func RetryAfter(status int, d time.Duration) Behaviour {
	return Status(status, http.Header{"Retry-After": {strconv.Itoa(int(d / time.Second))}}, "")
}

// HTML answers 200 with a page, as a proxy in between might. Takes nothing.
func HTML() Behaviour {
	b := Status(http.StatusOK, http.Header{"Content-Type": {"text/html"}}, "<!doctype html><title>Welcome</title>")
	b.name = "html"
	return b
}

// FailNamingNothing answers 200 with a fail that names no record, as a public
// client has it in its tests. Takes nothing.
func FailNamingNothing() Behaviour {
	b := Status(http.StatusOK, nil, bodyNothing)
	b.name = "fail_naming_nothing"
	return b
}

// Twist takes and judges the records, and lets f change the account of them.
func Twist(f func(*Reply)) Behaviour { return Behaviour{name: "twist", twist: f} }

// WrongCounts adds delta to `processed`. The records are taken.
func WrongCounts(delta int) Behaviour {
	return Behaviour{name: "wrong_counts", twist: func(r *Reply) { r.Processed += delta }}
}

// WrongNumber refuses the first record, if none else is refused, and gives the
// first refusal the number of the next record. The rest is taken.
func WrongNumber() Behaviour {
	return Behaviour{name: "wrong_number", refuseFirst: true, twist: firstRefusal(func(f *Refusal) { f.Number++ })}
}

// MismatchedEcho refuses the first record, if none else is refused, and echoes a
// record that nobody sent with the first refusal. The rest is taken.
func MismatchedEcho() Behaviour {
	return Behaviour{name: "mismatched_echo", refuseFirst: true, twist: firstRefusal(func(f *Refusal) {
		f.Echo = []byte(`{"type":"event","identity":"nobody","evtName":"Nothing","evtData":{}}`)
	})}
}

// firstRefusal twists the first refusal of a reply; an empty call has none.
func firstRefusal(f func(*Refusal)) func(*Reply) {
	return func(r *Reply) {
		if len(r.Refusals) > 0 {
			f(&r.Refusals[0])
		}
	}
}

// CutJSON answers 200 with the first half of the body, as if that were all of
// it. The records are taken.
func CutJSON() Behaviour {
	return Behaviour{name: "cut_json", deliver: func(e *exchange) {
		e.response.body = e.response.body[:len(e.response.body)/2]
		e.write()
	}}
}

// CutOff ends the connection in the middle of the answer's body. The records are
// taken.
func CutOff() Behaviour {
	return Behaviour{name: "cut_off", deliver: func(e *exchange) {
		e.head()
		_, _ = e.w.Write(e.response.body[:len(e.response.body)/2])
		e.flush()
		e.abort()
	}}
}

// ResetMidAnswer resets the connection in the middle of the answer's body. The
// records are taken.
func ResetMidAnswer() Behaviour {
	return Behaviour{name: "reset_mid_answer", deliver: func(e *exchange) {
		e.head()
		_, _ = e.w.Write(e.response.body[:len(e.response.body)/2])
		e.flush()
		e.reset()
	}}
}

// SlowBytes answers a byte at a time, with a pause before each. The records are
// taken.
func SlowBytes(pause time.Duration) Behaviour {
	return Behaviour{name: "slow_bytes", deliver: func(e *exchange) {
		e.head()
		for i := range e.response.body {
			e.flush()
			if !e.sleep(pause) {
				e.abort()
			}
			if i == len(e.response.body)-1 {
				e.leave()
			}
			_, _ = e.w.Write(e.response.body[i : i+1])
		}
	}}
}

// Hang reads the body and never answers: the connection ends when the client
// gives up, or at [Server.Release] or [Server.Close]. Takes nothing.
func Hang() Behaviour {
	return Behaviour{name: "hang", notTaking: true, silent: true, deliver: func(e *exchange) {
		select {
		case <-e.released:
		case <-e.r.Context().Done():
		}
		e.abort()
	}}
}

// ResetBeforeBody resets the connection before the body is read. Takes nothing.
func ResetBeforeBody() Behaviour {
	return Behaviour{name: "reset_before_body", notTaking: true, beforeBody: true, silent: true, deliver: (*exchange).reset}
}

// ResetAfterBody takes the records and resets the connection: the answer is lost.
func ResetAfterBody() Behaviour {
	return Behaviour{name: "reset_after_body", silent: true, deliver: (*exchange).reset}
}

// CloseAfterBody takes the records and closes the connection without a word.
func CloseAfterBody() Behaviour {
	return Behaviour{name: "close_after_body", silent: true, deliver: (*exchange).abort}
}

// HugeGzip answers 200 with blanks, so many bytes of them when unpacked, packed
// as they leave. Takes nothing.
func HugeGzip(size int64) Behaviour {
	b := Status(http.StatusOK, http.Header{"Content-Encoding": {"gzip"}}, "")
	b.name = "huge_gzip"
	b.deliver = func(e *exchange) {
		e.headUnsized()
		z, _ := gzip.NewWriterLevel(e.w, gzip.BestSpeed) // fails on an unknown level only
		blanks(z, size)
		e.leave()
		_ = z.Close()
	}
	return b
}

// Huge answers 200 with so many bytes of blanks. Takes nothing.
func Huge(size int64) Behaviour {
	b := Status(http.StatusOK, nil, "")
	b.name = "huge"
	b.deliver = func(e *exchange) {
		e.headUnsized()
		blanks(e.w, size)
		e.leave()
	}
	return b
}

// blanks writes so many, or as many as the other side takes.
func blanks(w io.Writer, size int64) {
	chunk := make([]byte, 64<<10)
	for i := range chunk {
		chunk[i] = ' '
	}
	for size > 0 {
		n, err := w.Write(chunk[:min(size, int64(len(chunk)))])
		if err != nil {
			return
		}
		size -= int64(n)
	}
}

// exchange is one call on its way out.
type exchange struct {
	w        http.ResponseWriter
	r        *http.Request
	response response
	leave    func()          // ends the call's time in flight; may be called again
	released <-chan struct{} // closed by Release
}

// write answers at once. The call leaves before its bytes do.
func (e *exchange) write() {
	e.leave()
	e.head()
	_, _ = e.w.Write(e.response.body) // a client that is gone is its own trouble
}

func (e *exchange) head() {
	e.response.header.Set("Content-Length", strconv.Itoa(len(e.response.body)))
	e.headUnsized()
}

func (e *exchange) headUnsized() {
	maps.Copy(e.w.Header(), e.response.header)
	e.w.WriteHeader(e.response.status)
}

func (e *exchange) flush() { _ = http.NewResponseController(e.w).Flush() }

// abort ends the connection here and now; it does not return.
func (e *exchange) abort() {
	e.leave()
	panic(http.ErrAbortHandler)
}

// reset ends the connection with an RST where it is TCP, else by closing it.
func (e *exchange) reset() {
	conn, _, err := http.NewResponseController(e.w).Hijack()
	if err != nil {
		e.abort()
	}
	e.leave()
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // what is unsent is thrown away, and the peer gets a reset
	}
	_ = conn.Close()
}

// sleep waits for d; false if the client went away meanwhile.
func (e *exchange) sleep(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-e.r.Context().Done():
		return false
	}
}

// apply gives the account of the judged records after b's twist.
func (b Behaviour) apply(records []Record) Reply {
	r := newReply(records)
	if b.twist != nil {
		b.twist(&r)
	}
	return r
}

// String is the name that the log of calls shows.
func (b Behaviour) String() string {
	if b.name == "" {
		return "normal"
	}
	return b.name
}

// forced is the code that a behaviour in need of a refusal gives.
const forced = int(clevertap.CodeStructure)
