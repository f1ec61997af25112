package sendbirdtest

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// Behaviour is what one call meets. The zero Behaviour is the normal one. Whether
// the call is carried out (the notification sent, the file stored) stands at each,
// and can be turned with [Behaviour.Taking] and [Behaviour.NotTaking].
type Behaviour struct {
	name       string
	delay      time.Duration
	notTaking  bool              // nothing is carried out
	beforeBody bool              // deliver comes before the body is read
	fixed      *response         // stands in for the answer
	deliver    func(e *exchange) // brings the answer out; nil: at once
	silent     bool              // no status is ever sent
}

// String is the behaviour's name; the zero one is "normal".
func (b Behaviour) String() string {
	if b.name == "" {
		return "normal"
	}
	return b.name
}

// Taking makes b carry the call out, whatever it answers.
func (b Behaviour) Taking() Behaviour { b.notTaking = false; return b }

// NotTaking makes b carry nothing out, whatever it answers.
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

// Status answers with this status, header and body, and carries nothing out.
func Status(status int, header http.Header, body string) Behaviour {
	r := jsonResponse(status, body)
	for name, values := range header {
		r.header[http.CanonicalHeaderKey(name)] = values
	}
	return Behaviour{name: "status", notTaking: true, fixed: &r}
}

// Error answers with an error as documented, and carries nothing out. The status
// may be 200: Sendbird does that.
func Error(status, code int, message string) Behaviour {
	return Status(status, nil, errorBody(code, message))
}

// errorBody is written as the documented sample is:
//
//	{"message":"\"User\" not found.","code":400201,"error":true}
func errorBody(code int, message string) string {
	return fmt.Sprintf(`{"message":%s,"code":%d,"error":true}`, quote(message), code)
}

// DeskError answers with an error in the first of Desk's two shapes, and carries
// nothing out; for the second see [DeskMessage].
func DeskError(status int, code, detail string) Behaviour {
	return Status(status, nil, deskErrorBody("detail", code, detail))
}

// DeskMessage is DeskError in the second shape.
func DeskMessage(status int, code, message string) Behaviour {
	return Status(status, nil, deskErrorBody("message", code, message))
}

func deskErrorBody(member, code, text string) string {
	return fmt.Sprintf(`{"code":%s,"%s":%s}`, quote(code), member, quote(text))
}

// quote is text as JSON; what is no UTF-8 is written as U+FFFD.
func quote(text string) string {
	b, _ := jsontext.AppendQuote(nil, text)
	return string(b)
}

// PartialSuccess carries the call out and answers 207100, with a status of the
// caller's choice: the page says 207 in one place, and 200, 400 or 500 in another.
func PartialSuccess(status int) Behaviour {
	b := Error(status, 207100, "Part of the request failed.").Taking()
	b.name = "partial_success"
	return b
}

// TooMany answers 429 and asks to wait for d, which is sent in whole seconds.
// Carries nothing out.
func TooMany(d time.Duration) Behaviour {
	b := Status(http.StatusTooManyRequests,
		http.Header{"X-RateLimit-RetryAfter": {strconv.Itoa(int(d / time.Second))}},
		errorBody(500910, "Too many requests."))
	b.name = "too_many"
	return b
}

// Redirect answers 307 to another place. Carries nothing out.
func Redirect(to string) Behaviour {
	b := Status(http.StatusTemporaryRedirect, http.Header{"Location": {to}}, "")
	b.name = "redirect"
	return b
}

// HTML answers 200 with a page, as a proxy in between might. Carries nothing out.
func HTML() Behaviour {
	b := Status(http.StatusOK, http.Header{"Content-Type": {"text/html"}}, "<!doctype html><title>Welcome</title>")
	b.name = "html"
	return b
}

// CutJSON answers with the first half of the body, as if that were all of it. The
// call is carried out.
func CutJSON() Behaviour {
	return Behaviour{name: "cut_json", deliver: func(e *exchange) {
		e.response.body = e.response.body[:len(e.response.body)/2]
		e.write()
	}}
}

// CutOff ends the connection in the middle of the answer's body. The call is
// carried out.
func CutOff() Behaviour {
	return Behaviour{name: "cut_off", deliver: func(e *exchange) {
		e.head()
		_, _ = e.w.Write(e.response.body[:len(e.response.body)/2])
		e.flush()
		e.abort()
	}}
}

// SlowBytes answers a byte at a time, with a pause before each. The call is
// carried out.
func SlowBytes(pause time.Duration) Behaviour {
	return Behaviour{name: "slow_bytes", deliver: func(e *exchange) {
		e.head()
		for i := range e.response.body {
			e.flush()
			if !e.sleep(pause) {
				e.abort()
			}
			_, _ = e.w.Write(e.response.body[i : i+1])
		}
	}}
}

// Hang carries the call out and never answers: the connection ends when the
// client gives up, or at [Server.Release] or [Server.Close].
func Hang() Behaviour {
	return Behaviour{name: "hang", silent: true, deliver: func(e *exchange) {
		select {
		case <-e.released:
		case <-e.r.Context().Done():
		}
		e.abort()
	}}
}

// ResetBeforeBody resets the connection before the body is read. Carries nothing
// out.
func ResetBeforeBody() Behaviour {
	return Behaviour{name: "reset_before_body", notTaking: true, beforeBody: true, silent: true, deliver: (*exchange).reset}
}

// ResetAfterBody carries the call out and resets the connection: the answer is
// lost.
func ResetAfterBody() Behaviour {
	return Behaviour{name: "reset_after_body", silent: true, deliver: (*exchange).reset}
}

// CloseAfterBody carries the call out and closes the connection without a word.
func CloseAfterBody() Behaviour {
	return Behaviour{name: "close_after_body", silent: true, deliver: (*exchange).abort}
}

// Huge answers 200 with so many bytes of blanks. Carries nothing out.
func Huge(size int64) Behaviour {
	b := Status(http.StatusOK, nil, "")
	b.name = "huge"
	b.deliver = func(e *exchange) {
		e.headUnsized()
		blanks(e.w, size)
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

// response is an answer ready to be written.
type response struct {
	status int
	header http.Header
	body   []byte
}

func jsonResponse(status int, body string) response {
	return response{
		status: status,
		header: http.Header{"Content-Type": {"application/json; charset=utf-8"}},
		body:   []byte(body),
	}
}

// refusal is an error as Sendbird answers most of them: with 400.
func refusal(code int, message string) response {
	return jsonResponse(http.StatusBadRequest, errorBody(code, message))
}

// exchange is one call on its way out.
type exchange struct {
	w        http.ResponseWriter
	r        *http.Request
	response response
	released <-chan struct{} // closed by Release
}

func (e *exchange) write() {
	e.head()
	_, _ = e.w.Write(e.response.body) // a client that is gone is its own trouble
}

func (e *exchange) head() {
	if e.response.status != http.StatusNoContent {
		e.response.header.Set("Content-Length", strconv.Itoa(len(e.response.body)))
	}
	e.headUnsized()
}

func (e *exchange) headUnsized() {
	maps.Copy(e.w.Header(), e.response.header)
	e.w.WriteHeader(e.response.status)
}

func (e *exchange) flush() { _ = http.NewResponseController(e.w).Flush() }

// abort ends the connection here and now; it does not return.
func (e *exchange) abort() { panic(http.ErrAbortHandler) }

// reset ends the connection with an RST where it is TCP, else by closing it.
func (e *exchange) reset() {
	conn, _, err := http.NewResponseController(e.w).Hijack()
	if err != nil {
		e.abort()
	}
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
	case <-e.released:
		return true
	case <-e.r.Context().Done():
		return false
	}
}
