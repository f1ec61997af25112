package clevertap

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// The words of an answer's status, "partial" when some records were taken and
// some refused.
const (
	StatusSuccess = "success"
	StatusPartial = "partial"
	StatusFail    = "fail"
)

// answer is the body of a 200:
//
//	{ "status" : "success" , "processed" : 1 , "unprocessed" : [ ]}
//
// A member that is missing must not pass for a zero, hence the pointer; a missing
// list stays nil, an empty one does not.
type answer struct {
	Status      string    `json:"status"`
	Processed   *int      `json:"processed"`
	Unprocessed []Refusal `json:"unprocessed"`
}

// judge decides what a 200 with this body says about the records sent: Accepted
// if every one of them is accounted for, else Unclear. It is a pure function.
func judge(body []byte, sent [][]byte) Result {
	r := Result{Kind: Accepted, Status: http.StatusOK}
	if isSuccess(body, len(sent)) {
		return r
	}
	refused, err := parseAnswer(body, sent)
	if err != nil {
		return Result{Kind: Unclear, Status: http.StatusOK, Err: fmt.Errorf("CleverTap's answer is unclear: %w", err)}
	}
	r.Refused = refused
	return r
}

// isSuccess recognises the answer that all n records were taken, whatever blanks
// stand between its tokens. It is the fast path; anything it does not recognise,
// an odd spelling of success included, is parsed in full.
func isSuccess(body []byte, n int) bool {
	for _, token := range [...]string{
		`{`, `"status"`, `:`, `"success"`, `,`,
		`"processed"`, `:`, strconv.Itoa(n), `,`,
		`"unprocessed"`, `:`, `[`, `]`, `}`,
	} {
		body = skipBlanks(body)
		if len(body) < len(token) || string(body[:len(token)]) != token {
			return false
		}
		body = body[len(token):]
	}
	return len(skipBlanks(body)) == 0
}

func skipBlanks(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\n' || b[0] == '\r' || b[0] == '\t') {
		b = b[1:]
	}
	return b
}

// Why an answer is unclear. Fixed texts: a parser's own errors quote what they
// stumbled over, and that may be personal.
var (
	errNoJSON     = errors.New("no JSON of the documented shape")
	errCounts     = errors.New("its counts do not add up to the records sent")
	errStatusWord = errors.New("its status contradicts its counts")
	errNoNumber   = errors.New("a refusal names no record number")
	errOutOfRange = errors.New("a refusal's record number is out of range")
	errTwice      = errors.New("a record is refused twice")
	errEcho       = errors.New("a refusal's echo is not the record of its number")
	errNoCode     = errors.New("a refusal has no code")
)

// parseAnswer reads the answer in full and ties every refusal to its record. An
// error means that it gives no account to rely on.
func parseAnswer(body []byte, sent [][]byte) ([]Refused, error) {
	var a answer
	if err := json.Unmarshal(body, &a); err != nil || a.Processed == nil || a.Unprocessed == nil {
		return nil, errNoJSON
	}
	if *a.Processed < 0 || *a.Processed != len(sent)-len(a.Unprocessed) {
		return nil, errCounts
	}
	if !statusFits(a.Status, len(a.Unprocessed)) {
		return nil, errStatusWord
	}
	named := make([]bool, len(sent))
	refused := make([]Refused, 0, len(a.Unprocessed))
	for _, entry := range a.Unprocessed {
		i, err := tie(entry, sent)
		if err != nil {
			return nil, err
		}
		if named[i] {
			return nil, errTwice
		}
		named[i] = true
		refused = append(refused, Refused{Index: i, Code: entry.Code, Message: entry.Error})
	}
	slices.SortFunc(refused, func(a, b Refused) int { return a.Index - b.Index })
	return refused, nil
}

// statusFits holds the status against the number of refusals. That a call of
// which nothing was taken says "partial", or the reverse, contradicts nothing
// that matters.
func statusFits(status string, refusals int) bool {
	if refusals == 0 {
		return status == StatusSuccess
	}
	return status == StatusPartial || status == StatusFail
}

// tie finds the record that a refusal speaks of. CleverTap has no index field;
// the number stands at the end of the text, and the echo has to confirm it:
// calling the wrong record refused would lose that one and lose sight of the
// other.
func tie(entry Refusal, sent [][]byte) (int, error) {
	if entry.Code <= 0 {
		return 0, errNoCode
	}
	number, ok := skippedNumber(entry.Error)
	switch {
	case !ok:
		return 0, errNoNumber
	case number < 1 || number > len(sent):
		return 0, errOutOfRange
	case !sameRecord(entry.Record, sent[number-1]):
		return 0, errEcho
	}
	return number - 1, nil
}

// skippedNumber reads N, counted from 1, off a text that ends in "Skipped record
// number : N". What stands before is of no interest; recorded answers even lack
// the blank there.
func skippedNumber(text string) (int, bool) {
	const mark = "Skipped record number"
	at := strings.LastIndex(text, mark)
	if at < 0 {
		return 0, false
	}
	digits, ok := strings.CutPrefix(strings.TrimSpace(text[at+len(mark):]), ":")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 31)
	return int(n), err == nil
}

// essence is what makes a record the one it is, as far as an echo must repeat
// it. Time and type are left out: CleverTap may well fill those in.
type essence struct {
	Identity jsontext.Value `json:"identity"`
	ObjectID jsontext.Value `json:"objectId"`
	FBID     jsontext.Value `json:"FBID"`
	GPID     jsontext.Value `json:"GPID"`
	EvtName  jsontext.Value `json:"evtName"`
	EvtData  jsontext.Value `json:"evtData"`
}

// sameRecord tells whether the echo repeats the record: equal user, event name
// and data, whatever the blanks, the escapes and the order of keys, numbers
// digit for digit.
func sameRecord(echo jsontext.Value, record []byte) bool {
	if echo.Kind() != jsontext.KindBeginObject {
		return false
	}
	if bytes.Equal(echo, record) {
		return true
	}
	var e, r essence
	if json.Unmarshal(echo, &e) != nil || json.Unmarshal(record, &r) != nil {
		return false
	}
	return sameValue(e.Identity, r.Identity) && sameValue(e.ObjectID, r.ObjectID) &&
		sameValue(e.FBID, r.FBID) && sameValue(e.GPID, r.GPID) &&
		sameValue(e.EvtName, r.EvtName) && sameValue(e.EvtData, r.EvtData)
}

// sameValue compares two values that it may rewrite. A missing member is equal
// to another missing one only.
func sameValue(a, b jsontext.Value) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	// Sorted keys, no blanks, one spelling for each string. Numbers stay as they
	// are written: as float64 two ids beyond 2^53 would look the same.
	if a.Format(jsontext.ReorderRawObjects(true)) != nil || b.Format(jsontext.ReorderRawObjects(true)) != nil {
		return false
	}
	return bytes.Equal(a, b)
}
