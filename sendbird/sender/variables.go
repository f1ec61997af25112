package sender

import (
	"errors"
	"fmt"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/birdtap/birdtap/sendbird"
)

// noValue is what is wrong with a variable whose value is of no type there is.
const noValue = "must be text, an image {url, width, height} or an action {type, data}"

// webhookValue reads a variable of key_values, or says why it cannot:
//
//	text             as it is, dates ($D_<epoch>) included
//	number           its digits, as they are written
//	true, false      these words
//	object           an image, or an action
//	text of JSON     that is an object with exactly the members of an image or an
//	                 action: that one, since CleverTap's form has text fields only
//	null, an array   no value
//
// Text that has those members, but of wrong types, is no value either: it was meant as
// one, and its JSON is nothing to show to a user.
func webhookValue(v jsontext.Value) (sendbird.Value, string) {
	if v.Kind() == jsontext.KindString {
		text := unquote(v)
		if !isObjectText(text) {
			return sendbird.String(text), ""
		}
		v = jsontext.Value(text)
	} else if text, ok := scalar(v); ok {
		return sendbird.String(text), ""
	}
	value, err := sendbird.ParseValue(v)
	if err != nil {
		return nil, noValue
	}
	return value, ""
}

// scalar is text as it is, and a number or a truth value as it is written.
func scalar(v jsontext.Value) (string, bool) {
	switch v.Kind() {
	case jsontext.KindString:
		return unquote(v), true
	case jsontext.KindNumber, jsontext.KindTrue, jsontext.KindFalse:
		return string(v), true
	default:
		return "", false
	}
}

// isObjectText tells whether text is a JSON object with the members of an image or an
// action and no others.
func isObjectText(text string) bool {
	if !strings.HasPrefix(strings.TrimLeft(text, " \t\r\n"), "{") {
		return false
	}
	var object map[string]jsontext.Value
	if json.Unmarshal([]byte(text), &object) != nil {
		return false
	}
	return hasMembers(object, "url", "width", "height") || hasMembers(object, "type", "data")
}

// hasMembers tells whether the object has these members alone, letter case ignored.
func hasMembers(object map[string]jsontext.Value, names ...string) bool {
	if len(object) != len(names) {
		return false
	}
	left := map[string]bool{}
	for name := range object {
		left[strings.ToLower(name)] = true
	}
	for _, name := range names {
		if !left[name] {
			return false
		}
	}
	return true
}

// checkVariable says what Sendbird would not take of a variable, "" if nothing; never
// the value.
func checkVariable(name string, value sendbird.Value) string {
	n := sendbird.Notification{
		Template: "any", Mode: sendbird.Realtime, Targets: []string{"anybody"},
		Variables: map[string]sendbird.Variables{"anybody": {name: value}},
	}
	if limit, ok := errors.AsType[*sendbird.LimitError](n.Check()); ok {
		return limit.Limit
	}
	return ""
}

func variableProblem(name, problem string) string {
	return "variable " + inQuotes(name) + ": " + problem
}

func tooLargeProblem(size int) string {
	if size <= maxVariablesBytes {
		return ""
	}
	return fmt.Sprintf("the variables may have %d KiB together", maxVariablesBytes>>10)
}

// variablesSize is what a user's variables take in an ask, and no less.
func variablesSize(vars sendbird.Variables) int {
	const beside = 16 // punctuation, and a word that names a member
	size := 0
	for name, value := range vars {
		size += textSize(name) + beside
		switch value := value.(type) {
		case sendbird.String:
			size += textSize(string(value))
		case sendbird.Image:
			size += textSize(value.URL) + 4*beside // two numbers
		case sendbird.Action:
			size += textSize(string(value.Type)) + textSize(value.Data) + beside
		}
	}
	return size
}

// textSize is how long a text is as a JSON string, at most.
func textSize(s string) int {
	size := len(s) + len(`""`)
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' {
			size += len(`\u0000`) - 1
		}
	}
	return size
}

// messageSize is what a message takes in an ask, and no less.
func messageSize(m *Message) int {
	const beside = 256 // names of members, mode, format and so on
	size := beside + textSize(m.Template) + textSize(m.Event) + textSize(m.Target) +
		textSize(m.Tag) + textSize(m.Title) + textSize(string(m.Priority))
	for key, value := range m.Push {
		size += textSize(key) + textSize(value) + 2
	}
	return size
}
