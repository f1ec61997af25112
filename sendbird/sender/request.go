package sender

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/birdtap/birdtap/sendbird"
)

// Request is what a call to one of the doors asks for.
type Request struct {
	// Asks are in the order of the call. Users of equal messages share one.
	Asks []Ask
	// Accepted is how many users the asks hold, without those who cannot be sent to.
	Accepted int
	// Test says that the call only tries the door: it has no asks.
	Test bool
}

// Limits of one call. Of the users of a call neither CleverTap's number nor a bound is
// documented; these are ours.
const (
	// maxDepth is how many objects and arrays may stand inside each other in a body.
	maxDepth = 32
	// maxCallUsers is how many users a call may name. It is also what Sendbird takes in
	// one batch, by file.
	maxCallUsers = 100_000
	// maxCallBytes bounds what the asks of a call take: what is common to a call is
	// written once for every user, so that a small body may become large. It stays below
	// what the store lets wait for the disk.
	maxCallBytes = 16 << 20
	// maxVariablesBytes is for one user, maxMessageBytes for what users have in common:
	// with both an ask of one user is well below store.MaxAskBytes.
	maxVariablesBytes = 512 << 10
	maxMessageBytes   = 64 << 10
	// maxShownUser is how long a user may be to be listed among the unsendable, in
	// bytes; CleverTap's identities have at most 1024.
	maxShownUser = 1024
)

// errMalformed has no detail on purpose: a parser's own errors quote what they
// stumbled over, and that may be personal.
var errMalformed = errors.New("the body is no JSON object")

// mistake is why a call is refused as a whole, in words for the marketer who set the
// campaign up and sees the answer there. It names fields and never shows a value.
type mistake struct {
	status int
	text   string
}

func (m *mistake) Error() string { return m.text }

func mistakef(format string, args ...any) *mistake {
	return &mistake{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

func tooMuch(format string, args ...any) *mistake {
	return &mistake{http.StatusRequestEntityTooLarge, fmt.Sprintf(format, args...)}
}

// Parse reads the body of a call to a door of this mode, realtime or batch. It tells
// two kinds apart by the members "template" and "targets", which only birdtap's own
// has: CleverTap's webhook call, see webhookCall, and birdtap's own, see ownCall.
//
// A mistake that concerns the whole call refuses it, and nobody is sent to: else a
// campaign would go out half right. A mistake that concerns one user makes that user
// [Unsendable], and nobody else.
//
// A user whom a call names twice with equal message and variables is asked for once;
// with other variables the second becomes an ask of its own.
func Parse(mode Mode, body []byte) (Request, error) {
	value := jsontext.Value(body)
	if !value.IsValid() || value.Kind() != jsontext.KindBeginObject || depth(body) > maxDepth {
		return Request{}, errMalformed
	}
	var test jsontext.Value
	own := false
	err := members(value, func(name string, v jsontext.Value) error {
		own = own || name == "template" || name == "targets"
		return setOnce(name, v, vendorName{"is_test", &test})
	})
	if err != nil {
		return Request{}, err
	}
	switch test.Kind() {
	case jsontext.KindTrue: // the rest of it are samples
		return Request{Test: true}, nil
	case jsontext.KindFalse, jsontext.KindInvalid: // Invalid: there is none
	default:
		return Request{}, mistakef("is_test must be true or false")
	}
	asks := newGrouping(mode)
	if own {
		err = parseOwn(asks, value)
	} else {
		err = parseWebhook(asks, value)
	}
	if err != nil {
		return Request{}, err
	}
	return asks.request(), nil
}

// callKey is what the dedup keys of a call's asks are made of.
//
// It joins the tries of one webhook call: CleverTap repeats a call that it has no
// answer to up to three times, byte for byte, and gives it no id. "single" is
// "realtime", and "multi" is "batch".
// It keeps apart whatever differs in one byte: two users, two steps of a journey, two
// variables, the same users sent to in real time and as a batch. Two honest calls of one
// journey step for one user cannot be told from a repeated one; within the sender's
// window they are one.
func callKey(mode Mode, body []byte) []byte {
	sum := sha256.Sum256(body)
	return append([]byte(mode+" "), sum[:]...)
}

// vendorName is a name of CleverTap's, and where the value of its member belongs.
type vendorName struct {
	name string
	into *jsontext.Value
}

// setOnce keeps the value of a member that goes by one of the names, in whichever letter
// case. Two that differ in nothing else are ambiguous.
func setOnce(name string, v jsontext.Value, wanted ...vendorName) error {
	for _, w := range wanted {
		if !strings.EqualFold(name, w.name) {
			continue
		}
		if *w.into != nil {
			return mistakef("%s is there twice, in different letter case", w.name)
		}
		*w.into = v
	}
	return nil
}

// depth counts how many objects and arrays of a valid value stand inside each other.
func depth(value []byte) int {
	deepest, open, inString := 0, 0, false
	for i := 0; i < len(value); i++ {
		switch c := value[i]; {
		case c == '"':
			inString = !inString
		case inString && c == '\\':
			i++ // whatever is escaped, it closes no string
		case inString:
		case c == '{' || c == '[':
			open++
			deepest = max(deepest, open)
		case c == '}' || c == ']':
			open--
		}
	}
	return deepest
}

// unquote decodes a string of a valid body.
func unquote(v jsontext.Value) string {
	b, _ := jsontext.AppendUnquote(nil, v) // checked already
	return string(b)
}

// isInteger tells whether a number is written with digits alone.
func isInteger(number jsontext.Value) bool { return !bytes.ContainsAny(number, ".eE") }

// targetID reads the id of a campaign: text, or an integer of any size, of which the
// digits are kept.
func targetID(name string, v jsontext.Value) (string, error) {
	switch {
	case v.Kind() == jsontext.KindNumber && isInteger(v):
		return string(v), nil
	case v.Kind() == jsontext.KindString && isLine(unquote(v)):
		return unquote(v), nil
	default:
		return "", mistakef("%s must be an integer, or text of one line", name)
	}
}

// checkMessage says what Sendbird would not take of a message. name gives a field the
// name that the caller knows it by.
func checkMessage(m *Message, name func(string) string) *mistake {
	n := sendbird.Notification{
		Template: m.Template,
		Mode:     sendbird.Mode(m.Mode), // the doors have these two alone
		Targets:  []string{"anybody"},
		Push:     m.Push,
		Tag:      m.Tag,
		Title:    m.Title,
		Priority: m.Priority,
	}
	if limit, ok := errors.AsType[*sendbird.LimitError](n.Check()); ok {
		return mistakef("%s: %s", name(limit.Field), limit.Limit)
	}
	if !isLine(m.Event) {
		return mistakef("event_name: must be text of one line")
	}
	if messageSize(m) > maxMessageBytes {
		return mistakef("template, event, target, tag, title and push data: together at most %d KiB", maxMessageBytes>>10)
	}
	return nil
}

// checkUser says what Sendbird would not take as a user's id, "" if nothing.
func checkUser(id string) string {
	n := sendbird.Notification{Template: "any", Mode: sendbird.Realtime, Targets: []string{id}}
	if limit, ok := errors.AsType[*sendbird.LimitError](n.Check()); ok {
		return limit.Limit
	}
	return ""
}

// isLine tells whether s has no control characters; what stood in a body is valid text.
func isLine(s string) bool { return !strings.ContainsFunc(s, unicode.IsControl) }

// inQuotes is a name as an answer may show it.
func inQuotes(name string) string {
	const most = 64 // characters
	if utf8.RuneCountInString(name) > most {
		name = string([]rune(name)[:most]) + "…"
	}
	return strconv.QuoteToGraphic(name)
}
