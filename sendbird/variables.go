package sendbird

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Pages that limits are taken from.
const (
	pageSend     = "https://sendbird.com/docs/business-messaging/guide/v2/send-a-notification"
	pageUser     = "https://sendbird.com/docs/chat/platform-api/v3/user/creating-users/create-a-user"
	pageTemplate = "https://sendbird.com/docs/business-messaging/server-side/v2/templates"

	pageUpdateUser = "https://sendbird.com/docs/chat/platform-api/v3/user/managing-users/update-a-user"
	pageMetadata   = "https://sendbird.com/docs/chat/platform-api/v3/user/managing-metadata/user-update-metadata"
	pageCustomer   = "https://sendbird.com/docs/desk/platform-api/v1/features/customer"
	pageTicket     = "https://sendbird.com/docs/desk/platform-api/v1/features/ticket"
)

// Kind is the type of a template variable.
type Kind string

// The three types there are, as a template's variable list names them. The
// values are not documented; letter case is ignored.
const (
	KindString Kind = "string"
	KindImage  Kind = "image"
	KindAction Kind = "action"
)

// known tells whether a template's own word for a type is one of the three; if
// not, nothing can be checked against it.
func (k Kind) known() bool { return k == KindString || k == KindImage || k == KindAction }

// Value is what a template variable stands for, for one user: a [String], an
// [Image] or an [Action].
type Value interface {
	// Kind is the type that the variable must have.
	Kind() Kind
	// problem says what Sendbird would not take, "" if nothing; never the value.
	problem() string
}

// String is text.
type String string

// Image is a picture with its size in pixels.
type Image struct {
	URL    string `json:"url"`
	Width  int    `json:"width"`
	Height int    `json:"height"`
}

// ActionType says where an [Action] leads.
type ActionType string

// A web link, and a link within the app.
const (
	ActionWeb    ActionType = "web"
	ActionCustom ActionType = "custom"
)

// Action is what happens when a part of the notification is tapped.
type Action struct {
	Type ActionType `json:"type"`
	Data string     `json:"data"`
}

// Kind is KindString.
func (String) Kind() Kind { return KindString }

// Kind is KindImage.
func (Image) Kind() Kind { return KindImage }

// Kind is KindAction.
func (Action) Kind() Kind { return KindAction }

func (s String) problem() string {
	if !utf8.ValidString(string(s)) {
		return "is not valid UTF-8"
	}
	return ""
}

func (i Image) problem() string {
	switch {
	case !isWebLink(i.URL):
		return "url is no http or https address"
	case i.Width < 1 || i.Height < 1:
		return "width and height must both be 1 or more"
	}
	return ""
}

func (a Action) problem() string {
	switch {
	case a.Type != ActionWeb && a.Type != ActionCustom:
		return "type must be web or custom"
	case a.Data == "" || !utf8.ValidString(a.Data):
		return "data must be text and not empty"
	case a.Type == ActionWeb && !isWebLink(a.Data):
		return "data of a web action must be an http or https address"
	}
	return ""
}

func isWebLink(s string) bool {
	u, err := url.Parse(s)
	return err == nil && utf8.ValidString(s) && (u.Scheme == "https" || u.Scheme == "http") && u.Hostname() != ""
}

// errValue names all there is, since a variable's value is not to be shown.
var errValue = errors.New("a variable must be a string, an image {url, width, height} or an action {type, data}")

// ParseValue reads a variable's value from JSON: a string, an object with exactly
// url, width and height, or one with exactly type and data. Its errors do not
// show the value.
func ParseValue(v jsontext.Value) (Value, error) {
	switch v.Kind() {
	case jsontext.KindString:
		var s String
		if json.Unmarshal(v, &s) != nil {
			return nil, errValue
		}
		return s, nil
	case jsontext.KindBeginObject:
		return parseObject(v)
	default:
		return nil, errValue
	}
}

func parseObject(v jsontext.Value) (Value, error) {
	strict := json.RejectUnknownMembers(true)
	var image struct {
		URL           *string
		Width, Height *int
	}
	byName := json.MatchCaseInsensitiveNames(true)
	if json.Unmarshal(v, &image, strict, byName) == nil && image.URL != nil && image.Width != nil && image.Height != nil {
		return Image{*image.URL, *image.Width, *image.Height}, nil
	}
	var action struct {
		Type *ActionType
		Data *string
	}
	if json.Unmarshal(v, &action, strict, byName) == nil && action.Type != nil && action.Data != nil {
		return Action{*action.Type, *action.Data}, nil
	}
	return nil, errValue
}

// Variables are a template's variables for one user, by name.
type Variables map[string]Value

// UnmarshalJSONFrom reads an object whose members [ParseValue] reads.
func (v *Variables) UnmarshalJSONFrom(d *jsontext.Decoder) error {
	var raw map[string]jsontext.Value
	if err := json.UnmarshalDecode(d, &raw); err != nil {
		return err
	}
	*v = make(Variables, len(raw))
	for name, text := range raw {
		value, err := ParseValue(text)
		if err != nil {
			return err
		}
		(*v)[name] = value
	}
	return nil
}

// check judges each variable for itself. where leads to them: `template.variables
// of targets[3]`.
func (v Variables) check(where string) error {
	for name, value := range v {
		at := where + ": " + quoted(name)
		switch {
		case name == "" || !isLine(name):
			return &LimitError{where, "a name " + quoted(name), "names are text of one line, not empty", pageSend}
		case value == nil:
			return &LimitError{at, "nothing", "every variable needs a value", pageSend}
		}
		if problem := value.problem(); problem != "" {
			return &LimitError{at, "this " + string(value.Kind()), problem, pageSend}
		}
	}
	return nil
}

// names are the variables' names, sorted.
func (v Variables) names() []string {
	list := make([]string, 0, len(v))
	for name := range v {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// sameNames tells whether v has the names of this sorted list, and else one that
// is missing or one too many.
func (v Variables) sameNames(names []string) (missing, extra string, same bool) {
	for _, name := range names {
		if _, ok := v[name]; !ok {
			return name, "", false
		}
	}
	if len(v) == len(names) {
		return "", "", true
	}
	for _, name := range v.names() {
		if _, found := slices.BinarySearch(names, name); !found {
			return "", name, false
		}
	}
	return "", "", true
}

// isLine tells whether s is valid text without control characters.
func isLine(s string) bool { return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl) }

// quoted is a name of the operator's own choosing as an error may show it.
func quoted(name string) string {
	const most = 64 // characters
	if runes := []rune(name); len(runes) > most {
		name = string(runes[:most]) + "…"
	}
	return strconv.QuoteToGraphic(name)
}

// counted is "1 user" or "10,001 users".
func counted(n int, what string) string {
	digits := strconv.Itoa(n)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	if n == 1 {
		return fmt.Sprintf("1 %s", what)
	}
	return digits + " " + what + "s"
}
