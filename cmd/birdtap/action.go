package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/birdtap/birdtap/sendbird"
)

// sendbirdAPI is one of Sendbird's three: the variables it needs, without the prefix,
// and where their values come from.
type sendbirdAPI struct {
	token, where string
	others       string // what that token is taken for
	url          string
}

var (
	notificationsAPI = sendbirdAPI{
		"SENDBIRD_NOTIFICATIONS_TOKEN", "Settings → Business Messaging → Authentication", "Chat's token is another one", "SENDBIRD_NOTIFICATIONS_URL",
	}
	chatAPI = sendbirdAPI{
		"SENDBIRD_API_TOKEN", "Settings → Application → General", "the notifications token is another one", "SENDBIRD_CHAT_URL",
	}
	deskAPI = sendbirdAPI{
		"SENDBIRD_DESK_TOKEN", "Settings → Desk → Credentials", "Chat's token is another one", "SENDBIRD_DESK_URL",
	}
)

// need says which variable a call cannot do without.
func (a sendbirdAPI) need(at Address, token *secretSource) error {
	switch {
	case at == "":
		return missing("SENDBIRD_APP_ID", "set it to the Application ID, Sendbird dashboard → Settings → Application → General")
	case token != nil && token.Get() == "":
		return missing(a.token, "set it (or %s%s_FILE) to the API token of Sendbird dashboard → %s", envPrefix, a.token, a.where)
	}
	return nil
}

// explain adds to Sendbird's refusal which variable may be at fault.
func (a sendbirdAPI) explain(err error) error {
	refused, ok := errors.AsType[*sendbird.APIError](err)
	if !ok {
		return err
	}
	var look []string
	switch refused.Code {
	case sendbird.CodeBadToken:
		look = []string{a.token + " (" + a.others + ")", "SENDBIRD_APP_ID"}
	case sendbird.CodeNoPermission:
		look = []string{a.token}
	case sendbird.CodeServiceOff, sendbird.CodeNoApplication:
		look = []string{"SENDBIRD_APP_ID"}
	case 0:
		switch {
		case refused.Status == http.StatusUnauthorized, refused.Status == http.StatusForbidden:
			look = []string{a.token}
		case refused.Status == http.StatusNotFound && refused.DeskCode == "", refused.Status >= 300 && refused.Status <= 399:
			look = []string{a.url}
		}
	default: // not a matter of configuration
	}
	if len(look) == 0 {
		return err
	}
	return fmt.Errorf("%w; look at %s%s", err, envPrefix, strings.Join(look, " and "+envPrefix))
}

// action is what all commands that call Chat or Desk have in common.
type action struct {
	json   string // a file of input, "-" for standard input
	dryRun bool
}

func (a *action) register(c *cobra.Command, input bool) {
	if input {
		c.Flags().StringVar(&a.json, "json", "", "read the fields from this file, - is standard input; flags count more")
	}
	c.Flags().BoolVar(&a.dryRun, "dry-run", false, "print the request without its token, send nothing")
	c.ValidArgsFunction = cobra.NoFileCompletions
}

// reads tells whether there is a file of input.
func (a *action) reads(c *cobra.Command) bool { return c.Flags().Changed("json") }

// override lets a flag that was given count more than what stands in the file.
func override[T any](c *cobra.Command, flag string, field *T, given T) {
	if c.Flags().Changed(flag) {
		*field = given
	}
}

// call runs one action and prints what Sendbird answers, as it is: one line of JSON.
func (p *program) call(ctx context.Context, api sendbirdAPI, a *action, do func(context.Context, *sendbird.Client) (jsontext.Value, error)) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	at, token := cfg.SendbirdChatURL, cfg.chat
	if api == deskAPI {
		at, token = cfg.SendbirdDeskURL, cfg.desk
	}
	var shown dryRun
	var opts []sendbird.Option
	if a.dryRun {
		opts = []sendbird.Option{sendbird.WithTransport(&shown)}
		err = api.need(at, nil)
	} else {
		err = api.need(at, token)
	}
	if err != nil {
		return err
	}
	if warning := plainWarning(api.url, at); warning != "" && !a.dryRun {
		fmt.Fprintf(p.err, "birdtap: %s\n", warning)
	}
	client, err := sendbird.New(p.actionConfig(api, at, token, a.dryRun), opts...)
	if err != nil {
		return err
	}
	defer client.Close()
	raw, err := do(ctx, client)
	switch {
	case shown.request != nil:
		line, err := json.Marshal(shown.request, json.Deterministic(true))
		if err != nil {
			return err
		}
		return p.writeRaw(line)
	case err != nil:
		return actionError(api, err, token)
	}
	return p.writeRaw(raw)
}

func (p *program) actionConfig(api sendbirdAPI, at Address, token *secretSource, dry bool) sendbird.Config {
	cfg := sendbird.Config{OnRetry: func(why error, wait time.Duration) {
		fmt.Fprintf(p.err, "birdtap: %v; trying again in %s\n", why, wait.Round(time.Millisecond))
	}}
	if dry {
		cfg.Attempts = 1
	}
	if api == deskAPI {
		cfg.DeskURL, cfg.DeskToken = string(at), token.Get
	} else {
		cfg.ChatURL, cfg.ChatToken = string(at), token.Get
	}
	return cfg
}

// actionError is what to tell the person who gave the command. Unlike a log it may
// show Sendbird's own words, but never the token, should they repeat it.
func actionError(api sendbirdAPI, err error, token *secretSource) error {
	if limit, ok := errors.AsType[*sendbird.LimitError](err); ok {
		return usageError(limit.Error())
	}
	told := api.explain(err)
	if said, ok := errors.AsType[*sendbird.APIError](err); ok {
		if said.Code == sendbird.CodeTooManyItems {
			told = fmt.Errorf("%w; birdtap user get shows what is stored, birdtap metadata delete makes room", told)
		}
		if message := said.Message; message != "" {
			if secret := token.Get(); secret != "" {
				message = strings.ReplaceAll(message, secret, redacted)
			}
			told = fmt.Errorf("%w; Sendbird says: %s", told, shorten(printable(message)))
		}
		if said.RetryAfter > 0 {
			told = fmt.Errorf("%w; it asks to wait %s", told, said.RetryAfter)
		}
	}
	return told
}

// unknownOutcome adds to the error of an action that changes something what nobody
// can know.
func unknownOutcome(err error, advice string) error {
	if err == nil || sendbird.OutcomeOf(err) != sendbird.Unknown {
		return err
	}
	return fmt.Errorf("%w; it may have been carried out: %s", err, advice)
}

// writeRaw prints an answer on one line, and {} for one that is empty.
func (p *program) writeRaw(raw jsontext.Value) error {
	if len(raw) == 0 {
		raw = jsontext.Value("{}")
	}
	line := slices.Clone(raw)
	if err := line.Compact(); err != nil {
		return err
	}
	_, err := io.WriteString(p.out, escapeControls(string(line))+"\n")
	return err
}

// escapeControls escapes what a terminal would obey and JSON lets pass. It can stand
// only within strings.
func escapeControls(line string) string {
	var b strings.Builder
	for _, r := range line {
		if r >= 0x7f && r <= 0x9f {
			fmt.Fprintf(&b, `\u%04x`, r)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// dryRun stands in for the network: it keeps the request and sends nothing.
type dryRun struct{ request *requestJSON }

// requestJSON is a request as programs read it.
type requestJSON struct {
	Method  string            `json:"method"`
	URL     string            `json:"url"`
	Headers map[string]string `json:"headers"`
	Body    jsontext.Value    `json:"body,omitzero"`
}

var errDryRun = errors.New("nothing was sent")

// RoundTrip keeps req without the headers that hold a token.
func (d *dryRun) RoundTrip(req *http.Request) (*http.Response, error) {
	shown := &requestJSON{Method: req.Method, URL: req.URL.String(), Headers: map[string]string{}}
	for name, values := range req.Header {
		if !strings.HasSuffix(strings.ToUpper(name), "TOKEN") {
			shown.Headers[name] = strings.Join(values, ", ")
		}
	}
	if req.Body != nil {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, err
		}
		shown.Body = body
	}
	d.request = shown
	return nil, errDryRun
}

// maxInputBytes bounds a --json file; the longest that can pass has a few KiB.
const maxInputBytes = 1 << 20

// readInput reads the file of --json into out, strictly: a field that is not there
// would be a slip that passes.
func (p *program) readInput(file string, out any) error {
	text, err := p.readInputText(file)
	if err != nil {
		return err
	}
	return inputError(file, json.Unmarshal(text, out, json.RejectUnknownMembers(true)))
}

func (p *program) readInputText(file string) (jsontext.Value, error) {
	in := p.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, usageError(fmt.Sprintf("--json %q: cannot read the file: %v", file, bare(err)))
		}
		defer func() { _ = f.Close() }() // only read from
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxInputBytes+1))
	switch {
	case err != nil:
		return nil, usageError(fmt.Sprintf("--json %q: cannot read the file: %v", file, bare(err)))
	case len(text) > maxInputBytes:
		return nil, usageError(fmt.Sprintf("--json %q: longer than 1 MiB", file))
	}
	return text, nil
}

// inputError says where a file of input is wrong, and how; never a value of it.
func inputError(file string, err error) error {
	if err == nil {
		return nil
	}
	problem := "is no JSON object"
	if syntax, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		problem = fmt.Sprintf("is not valid JSON, at byte %d", syntax.ByteOffset+1)
		if errors.Is(err, jsontext.ErrDuplicateName) {
			problem = fmt.Sprintf("names %s twice", shorten(printable(string(syntax.JSONPointer))))
		}
	}
	if wrong, ok := errors.AsType[*json.SemanticError](err); ok && wrong.JSONPointer != "" {
		at := shorten(printable(string(wrong.JSONPointer)))
		problem = fmt.Sprintf("%s must be %s", at, wanted(wrong.GoType))
		if errors.Is(err, json.ErrUnknownName) {
			problem = at + " is no field of this command"
			if at == "/metadata" {
				problem += "; birdtap metadata update changes it"
			}
		}
	}
	return usageError(fmt.Sprintf("--json %q: %s", file, problem))
}

// wanted names a type in JSON's words.
func wanted(t reflect.Type) string {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil {
		return "something else"
	}
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Int64:
		return "a whole number"
	case reflect.Slice:
		return "a list of strings"
	default:
		return "an object of strings"
	}
}

// readPairs reads pairs from the file of --json: an object of strings, or Sendbird's
// own body with that object, or its text, under member. rest are the members beside.
func (p *program) readPairs(file, member string, rest any) (pairs, error) {
	text, err := p.readInputText(file)
	if err != nil {
		return nil, err
	}
	var members map[string]jsontext.Value
	if err := json.Unmarshal(text, &members); err != nil {
		return nil, inputError(file, err)
	}
	var given pairs
	inner, there := members[member]
	switch err := json.Unmarshal(inner, &given); {
	case !there || err != nil && inner.Kind() != jsontext.KindBeginObject: // a pair like others
		given = nil
		err = json.Unmarshal(text, &given)
		return given, inputError(file, err)
	case err != nil:
		return nil, inputError(file, err)
	}
	delete(members, member)
	others, err := json.Marshal(members)
	if err != nil {
		return nil, err
	}
	return given, inputError(file, json.Unmarshal(others, rest, json.RejectUnknownMembers(true)))
}

// pairs is an object of strings, or, as Desk has it, the JSON of one in a string. As a
// flag it is KEY=VALUE, given as often as there are pairs.
type pairs map[string]string

// UnmarshalJSONFrom reads either.
func (m *pairs) UnmarshalJSONFrom(d *jsontext.Decoder) error {
	if d.PeekKind() != jsontext.KindString {
		return json.UnmarshalDecode(d, (*map[string]string)(m))
	}
	var text string
	if err := json.UnmarshalDecode(d, &text); err != nil {
		return err
	}
	if json.Unmarshal([]byte(text), (*map[string]string)(m)) != nil {
		return errNoPairs // the position of its own error is one within the string
	}
	return nil
}

var errNoPairs = errors.New("no object of strings")

// Set takes one pair; the last of a key counts.
func (m *pairs) Set(pair string) error {
	key, value, found := strings.Cut(pair, "=")
	if !found || key == "" {
		return errors.New("must be KEY=VALUE")
	}
	if *m == nil {
		*m = pairs{}
	}
	(*m)[key] = value
	return nil
}

func (m *pairs) String() string { return "" }

// Type is what help shows.
func (m *pairs) Type() string { return "KEY=VALUE" }

// over is what flags give over what a file gives.
func (m pairs) over(file map[string]string) map[string]string {
	if len(m) == 0 {
		return file
	}
	both := maps.Clone(file)
	if both == nil {
		both = map[string]string{}
	}
	maps.Copy(both, m)
	return both
}

// texts is a list of strings, or one with commas between. As a flag it is one entry,
// given as often as there are entries.
type texts []string

// UnmarshalJSONFrom reads either.
func (l *texts) UnmarshalJSONFrom(d *jsontext.Decoder) error {
	if d.PeekKind() != jsontext.KindString {
		return json.UnmarshalDecode(d, (*[]string)(l))
	}
	var text string
	if err := json.UnmarshalDecode(d, &text); err != nil {
		return err
	}
	*l = splitList(text)
	return nil
}

// Set takes one entry.
func (l *texts) Set(entry string) error {
	*l = append(*l, entry)
	return nil
}

func (l *texts) String() string { return "" }

// Type is string: any will do.
func (l *texts) Type() string { return "string" }
