package clevertaptest

import (
	"fmt"
	"net/http"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/birdtap/birdtap/clevertap"
)

// Bodies as recorded or quoted in public clients. The first 401 is in the style
// of the older recordings, with blanks around every token.
const (
	bodyBadAccount  = `{ "status" : "fail" , "error" : "Account ID is not valid" , "code" : 401}`
	bodyBadPasscode = `{"status":"fail","error":"Invalid Credentials","code":401}`
	bodyMalformed   = `{"status":"fail","error":"Malformed request","code":400}`
	bodyTooMany     = `{"status":"fail","error":"Too many concurrent requests","code":429}` // documented words; the shape is a guess
	bodyTooLarge    = `{"status":"fail","error":"Request Entity Too Large","code":413}`     // a guess
	bodyNothing     = `{"status":"fail","processed":0,"unprocessed":[]}`
)

// Blank tells whether a blank stands before "Skipped record number" in a
// refusal's text. Recordings have both.
type Blank int

// AsRecorded: none where some records were taken, one where all were refused.
const (
	AsRecorded Blank = iota
	WithBlank
	WithoutBlank
)

// Reply is the account that a 200 gives of a call, before it is written out.
// A [Twist] changes it.
type Reply struct {
	Status    string // success, partial or fail
	Processed int
	Refusals  []Refusal
}

// Refusal is one entry of `unprocessed`.
type Refusal struct {
	Code   int
	Text   string // what stands before "Skipped record number"
	Number int    // counted from 1 within d; 0: the text names none
	Echo   []byte // nil: none
}

// newReply gives an honest account of judged records.
func newReply(records []Record) Reply {
	var r Reply
	for _, rec := range records {
		if rec.Code == 0 {
			r.Processed++
			continue
		}
		r.Refusals = append(r.Refusals, Refusal{
			Code: rec.Code, Text: refusalText(rec.Code), Number: rec.Index + 1, Echo: rec.Raw,
		})
	}
	r.Status = statusOf(r.Processed, len(r.Refusals))
	return r
}

func statusOf(processed, refused int) string {
	switch {
	case refused == 0:
		return clevertap.StatusSuccess
	case processed == 0:
		return clevertap.StatusFail
	default:
		return clevertap.StatusPartial
	}
}

// refusalText is recorded for 525 only; the other texts are guesses.
func refusalText(code int) string {
	if code == int(clevertap.CodeTimestamp) {
		return "Timestamp should be present in the Unix Epoch format."
	}
	return "Event refused: " + clevertap.Code(code).String() + "."
}

// append writes the body as recorded:
//
//	{ "status" : "success" , "processed" : 1 , "unprocessed" : [ ]}
//	{ "status" : "partial" , "processed" : 1 , "unprocessed" : [ { "status" : "fail" , … "record" : { …}}]}
//	{ "status" : "fail" , "processed" : 0 , "unprocessed" : [ {"status":"fail", … "record":{…}} , …]}
//
// Blanks stand around every token but the closing ones; only the entries of a
// fail are without.
func (r Reply) append(b []byte, blank Blank) []byte {
	b = fmt.Appendf(b, `{ "status" : "%s" , "processed" : %d , "unprocessed" : [ `, r.Status, r.Processed)
	for i, refusal := range r.Refusals {
		if i > 0 {
			b = append(b, " , "...)
		}
		if r.Status == clevertap.StatusFail {
			b = refusal.append(b, blank != WithoutBlank)
		} else {
			b = appendSpaced(b, refusal.append(nil, blank == WithBlank))
		}
	}
	return append(b, "]}"...)
}

func (f Refusal) append(b []byte, blank bool) []byte {
	words := f.Text
	if f.Number != 0 {
		if blank {
			words += " "
		}
		words += "Skipped record number : " + strconv.Itoa(f.Number)
	}
	b = fmt.Appendf(b, `{"status":"fail","code":%d,"error":`, f.Code)
	b, _ = jsontext.AppendQuote(b, words) // fails on invalid UTF-8 only, and then still writes
	if f.Echo != nil {
		b = append(b, `,"record":`...)
		b = append(b, f.Echo...)
	}
	return append(b, '}')
}

// appendSpaced appends a JSON text with the blanks of the recordings:
// `{ "a" : 1 , "b" : [ ]}`. Strings and numbers stay as they are.
func appendSpaced(b, src []byte) []byte {
	for i := 0; i < len(src); i++ {
		switch c := src[i]; c {
		case ' ', '\t', '\r', '\n':
		case '{', '[':
			b = append(b, c, ' ')
		case ':', ',':
			b = append(b, ' ', c, ' ')
		case '"':
			end := stringEnd(src, i)
			b = append(b, src[i:end]...)
			i = end - 1
		default:
			b = append(b, c)
		}
	}
	return b
}

// stringEnd is the index after the closing quote of the string that begins at i.
func stringEnd(src []byte, i int) int {
	for i++; i < len(src) && src[i] != '"'; i++ {
		if src[i] == '\\' {
			i++
		}
	}
	return min(i+1, len(src))
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
		header: http.Header{"Content-Type": {"application/json"}},
		body:   []byte(body),
	}
}
