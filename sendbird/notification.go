package sendbird

import (
	"context"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
)

// Limits of one notification; page "Send a notification through Platform API",
// https://sendbird.com/docs/business-messaging/guide/v2/send-a-notification. No
// length of title, tag, variables or body is documented.
const (
	MaxRealtimeTargets = 1      // users
	MaxBatchTargets    = 10_000 // users named in the call
	MaxFileTargets     = 100_000
	MaxPushPairs       = 5
	// MaxUserIDLength of a Chat user, in characters;
	// https://sendbird.com/docs/chat/platform-api/v3/user/creating-users/create-a-user.
	MaxUserIDLength = 80
)

// Mode says how a notification leaves.
type Mode string

// Realtime is for one user and at once, Batch for many.
const (
	Realtime Mode = "realtime"
	Batch    Mode = "batch"
)

// Priority of a batch.
type Priority string

// PriorityNormal is what no priority stands for.
const (
	PriorityHigh   Priority = "high"
	PriorityNormal Priority = "normal"
	PriorityLow    Priority = "low"
)

// Notification is one call: a template, and the users who get it. The users are
// named in Targets, or stand in an uploaded file that TargetsFile names.
type Notification struct {
	Template string
	Mode     Mode
	// Targets are Sendbird user ids, each once.
	Targets []string
	// TargetsFile is the key of a file uploaded with [Client.Upload]; batch only.
	// Variables stand in the file then.
	TargetsFile string
	// Variables of each of the Targets, by user id: all those of the template for
	// every user, or none at all.
	Variables map[string]Variables
	// Push are pairs that go along with the push notification.
	Push map[string]string
	// Tag groups notifications in Sendbird's analytics, Title labels this one.
	Tag, Title string
	// Priority has an effect in batch mode only, and is left out of a realtime
	// call.
	Priority Priority
}

// Check says why Sendbird would refuse the notification, with a [*LimitError]; the
// first reason it finds. It connects to nobody, and [Client.Send] begins with it.
func (n *Notification) Check() error {
	for _, check := range []func() error{n.checkFields, n.checkTargets, n.checkVariables} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// CheckAgainst checks the variables against the list that the template itself
// gives: their names, and their types where the list has one of the three. A
// template without a list, as one that could not be read, is no reason to refuse.
func (n *Notification) CheckAgainst(t Template) error {
	if n.TargetsFile != "" || len(t.Variables) == 0 {
		return nil
	}
	for i, user := range n.Targets {
		if err := t.check(n.Variables[user], fmt.Sprintf("template.variables of targets[%d]", i)); err != nil {
			return err
		}
	}
	return nil
}

func (n *Notification) checkFields() error {
	switch {
	case n.Template == "" || !isLine(n.Template):
		return &LimitError{"template.key", quoted(n.Template), "a template's key is wanted", pageSend}
	case n.Mode != Realtime && n.Mode != Batch:
		return &LimitError{"mode", quoted(string(n.Mode)), "must be realtime or batch", pageSend}
	case n.Priority != "" && n.Priority != PriorityHigh && n.Priority != PriorityNormal && n.Priority != PriorityLow:
		return &LimitError{"priority", quoted(string(n.Priority)), "must be high, normal or low", pageSend}
	case !isLine(n.Tag):
		return &LimitError{"tag", quoted(n.Tag), "must be text of one line", ""}
	case !isLine(n.Title):
		return &LimitError{"title", quoted(n.Title), "must be text of one line", ""}
	case len(n.Push) > MaxPushPairs:
		return &LimitError{"template.notification_push_data", counted(len(n.Push), "pair"), "at most 5 pairs", pageSend}
	}
	for key, value := range n.Push {
		if key == "" || !utf8.ValidString(key) || !utf8.ValidString(value) {
			return &LimitError{"template.notification_push_data", "a pair " + quoted(key), "keys and values are text, keys not empty", pageSend}
		}
	}
	return nil
}

func (n *Notification) checkTargets() error {
	if n.TargetsFile != "" {
		return n.checkFile()
	}
	most, limit := MaxBatchTargets, "1 to 10,000 in batch mode"
	if n.Mode == Realtime {
		most, limit = MaxRealtimeTargets, "exactly 1 in realtime mode"
	}
	if len(n.Targets) < 1 || len(n.Targets) > most {
		return &LimitError{"targets", counted(len(n.Targets), "user"), limit, pageSend}
	}
	seen := make(map[string]int, len(n.Targets))
	for i, user := range n.Targets {
		field := fmt.Sprintf("targets[%d]", i)
		if err := checkUserID(field, user); err != nil {
			return err
		}
		if first, twice := seen[user]; twice {
			return &LimitError{field, fmt.Sprintf("the user of targets[%d]", first), "each user once: who is named twice may get it twice", ""}
		}
		seen[user] = i
	}
	return nil
}

func (n *Notification) checkFile() error {
	switch {
	case n.Mode != Batch:
		return &LimitError{"targets_filename", "set in mode " + string(n.Mode), "a file needs batch mode", pageSend}
	case len(n.Targets) > 0:
		return &LimitError{"targets", counted(len(n.Targets), "user"), "targets or targets_filename, not both", pageSend}
	case len(n.Variables) > 0:
		return &LimitError{"template.variables", counted(len(n.Variables), "user"), "with targets_filename they stand in the file", pageSend}
	case !isLine(n.TargetsFile):
		return &LimitError{"targets_filename", quoted(n.TargetsFile), "must be text of one line", ""}
	}
	return nil
}

// checkUserID judges a user id, which it does not show.
func checkUserID(field, id string) error {
	switch length := utf8.RuneCountInString(id); {
	case id == "":
		return &LimitError{field, "an empty user id", "1 to 80 characters", pageUser}
	case length > MaxUserIDLength:
		return &LimitError{field, counted(length, "character"), "1 to 80 characters", pageUser}
	case !isLine(id):
		return &LimitError{field, "a user id with control characters or invalid UTF-8", "must be text of one line", ""}
	}
	return nil
}

// checkVariables wants the same names for every user, whatever the template: it
// is "every variable for every user", so a difference is a mistake.
func (n *Notification) checkVariables() error {
	if len(n.Variables) == 0 {
		return nil
	}
	names, entries := n.Variables[n.Targets[0]].names(), 0
	for i, user := range n.Targets {
		where := fmt.Sprintf("template.variables of targets[%d]", i)
		v, ok := n.Variables[user]
		if !ok && len(names) > 0 {
			return &LimitError{where, "no variables", "every user needs all of the template's", pageSend}
		}
		if ok {
			entries++ // targets are unique
		}
		if missing, extra, same := v.sameNames(names); !same && missing != "" {
			return &LimitError{where, "no " + quoted(missing), "every user needs all of the template's", pageSend}
		} else if !same {
			return &LimitError{"template.variables of targets[0]", "no " + quoted(extra), "every user needs all of the template's", pageSend}
		}
		if err := v.check(where); err != nil {
			return err
		}
	}
	if extra := len(n.Variables) - entries; extra > 0 {
		return &LimitError{"template.variables", "entries for " + counted(extra, "other user"), "only those in targets", pageSend}
	}
	return nil
}

// wireNotification is the body of the call, its members in the order of the
// documented example.
type wireNotification struct {
	Template    wireTemplate `json:"template"`
	Targets     []string     `json:"targets,omitempty"`
	TargetsFile string       `json:"targets_filename,omitempty"`
	Mode        Mode         `json:"mode"`
	Priority    Priority     `json:"priority,omitempty"`
	Tag         string       `json:"tag,omitempty"`
	Title       string       `json:"title,omitempty"`
}

type wireTemplate struct {
	Key       string               `json:"key"`
	Variables map[string]Variables `json:"variables,omitempty"`
	Push      map[string]string    `json:"notification_push_data,omitempty"`
}

// body is the call's JSON. Equal notifications have equal bytes.
func (n *Notification) body() ([]byte, error) {
	w := wireNotification{
		Template:    wireTemplate{Key: n.Template, Variables: n.Variables, Push: n.Push},
		Targets:     n.Targets,
		TargetsFile: n.TargetsFile,
		Mode:        n.Mode,
		Priority:    n.Priority,
		Tag:         n.Tag,
		Title:       n.Title,
	}
	if n.Mode == Realtime {
		w.Priority = ""
	}
	return json.Marshal(w, json.Deterministic(true))
}

// Sent is Sendbird's account of a notification that it took. It says nothing
// about single users: that comes with the receipts.
type Sent struct {
	NotificationID ID        `json:"notification_id"`
	TemplateKey    string    `json:"template_key"`
	Channels       []Channel `json:"channels"`
	Mode           Mode      `json:"mode"`
	Priority       Priority  `json:"priority,omitempty"` // of a batch
	Title          string    `json:"title"`
	Tag            string    `json:"tag"`
	SentFrom       Source    `json:"sent_from"`
	CreatedAt      Time      `json:"created_at"`
}

// Source says who sent a notification.
type Source struct {
	Type  string `json:"type"`  // api, dashboard, clevertap or braze
	Value string `json:"value"` // of an API token its last characters
}

// UnmarshalJSON insists on the id alone: that the notification was taken is
// worth knowing even where something beside it has changed its shape.
func (s *Sent) UnmarshalJSON(b []byte) error {
	type plain Sent
	var all plain
	if json.Unmarshal(b, &all) == nil {
		*s = Sent(all)
		return nil
	}
	var least struct {
		NotificationID ID `json:"notification_id"`
	}
	*s = Sent{}
	err := json.Unmarshal(b, &least)
	s.NotificationID = least.NotificationID
	return err
}

// complete: without an id nobody can say what was sent.
func (s *Sent) complete() bool { return s.NotificationID != "" }

// Created is when Sendbird took it.
func (s *Sent) Created() time.Time { return s.CreatedAt.Time }

// Send sends a notification to one user in real time, or to many as a batch. It
// makes one attempt; [OutcomeOf] its error tells whether another may be made.
//
// https://sendbird.com/docs/business-messaging/guide/v2/send-a-notification
func (c *Client) Send(ctx context.Context, n Notification) (Sent, error) {
	return c.send(ctx, nil, n)
}

// A Turn lets one notification leave now. It is used up by Send, which is [Client.Send]
// without a wait, or given back.
type Turn interface {
	Send(ctx context.Context, n Notification) (Sent, error)
	GiveBack()
}

// sendTurn is the Turn of a Client.
type sendTurn struct {
	*turn
	client *Client
}

// Turn waits until one more notification may leave, at the pace that Sendbird allows: for
// who has something to do right before a call that must not be done long before it.
func (c *Client) Turn(ctx context.Context) (Turn, error) {
	t, err := c.wait(ctx, endpointSend)
	if err != nil {
		return nil, err
	}
	return sendTurn{t, c}, nil
}

func (t sendTurn) Send(ctx context.Context, n Notification) (Sent, error) {
	return t.client.send(ctx, t.turn, n)
}

func (t sendTurn) GiveBack() { t.failed() }

func (c *Client) send(ctx context.Context, turn *turn, n Notification) (Sent, error) {
	if err := n.Check(); err != nil {
		turn.failed()
		return Sent{}, err
	}
	body, err := n.body()
	if err != nil { // Check has seen to all that JSON minds
		turn.failed()
		return Sent{}, &CallError{Call: endpointSend.String(), Outcome: Refused, Err: errNoBody}
	}
	var sent Sent
	if err := c.callIn(ctx, turn, endpointSend, "/v1/notifications/messages", body, &sent); err != nil {
		return Sent{}, err
	}
	return sent, nil
}
