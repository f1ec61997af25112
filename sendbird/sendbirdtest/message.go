package sendbirdtest

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/birdtap/birdtap/sendbird"
)

// firstID is the id of the documented example; each notification gets the next.
const firstID = 7190607145580961921

// Notification is one that was carried out.
type Notification struct {
	ID       string
	Template string
	Mode     string
	Priority string
	Title    string
	Tag      string
	File     string   // file key, if it went by file
	Users    []string // whom it reached
	// Variables as they came in the call, by user and name; of a file each cell is
	// a JSON string.
	Variables map[string]map[string]jsontext.Value
	Push      map[string]string
}

// Notifications are those carried out, in order.
func (s *Server) Notifications() []Notification {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.notifications)
}

// Delivered is how often a user was reached.
func (s *Server) Delivered(user string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.delivered[user]
}

// Deliveries are all users that were reached, and how often.
func (s *Server) Deliveries() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.delivered)
}

// wireMessage is the documented body. A member that is missing is not an empty
// one, hence the pointers.
type wireMessage struct {
	Template *struct {
		Key       string                               `json:"key"`
		Variables map[string]map[string]jsontext.Value `json:"variables"`
		Push      map[string]string                    `json:"notification_push_data"`
	} `json:"template"`
	Mode     *string  `json:"mode"`
	Targets  []string `json:"targets"`
	File     *string  `json:"targets_filename"`
	Priority string   `json:"priority"`
	Title    string   `json:"title"`
	Tag      string   `json:"tag"`
}

// message takes a notification. Which code stands for which mistake is a guess,
// but for 400111.
func (s *Server) message(body []byte) (response, bool) {
	var m wireMessage
	if json.Unmarshal(body, &m) != nil {
		return refusal(400403, "Invalid JSON request body."), false
	}
	n, refused := s.read(&m)
	if refused != nil {
		return *refused, false
	}
	s.mu.Lock()
	judge, onNotice := s.judge, s.onNotice
	n.ID = fmt.Sprint(firstID + int64(s.counts.Notifications))
	s.mu.Unlock()
	if judge != nil {
		if code := judge(n); code != 0 {
			return refusal(code, "Refused."), false
		}
	}
	s.deliver(n)
	if onNotice != nil {
		onNotice(n)
	}
	return jsonResponse(http.StatusOK, s.account(n)), true
}

func (s *Server) deliver(n Notification) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notifications = last(append(s.notifications, n), s.opts.KeepLast)
	s.counts.Notifications++
	s.counts.Deliveries += len(n.Users)
	for _, user := range n.Users {
		s.delivered[user]++
	}
}

// read judges a call and turns it into the notification it asks for.
func (s *Server) read(m *wireMessage) (Notification, *response) {
	refuse := func(code int, message string) (Notification, *response) {
		r := refusal(code, message)
		return Notification{}, &r
	}
	switch {
	case m.Template == nil || m.Template.Key == "":
		return refuse(400105, `"template.key" must be specified.`)
	case m.Mode == nil:
		return refuse(400105, `"mode" must be specified.`)
	case *m.Mode != "realtime" && *m.Mode != "batch":
		return refuse(400111, `Invalid value: "mode".`)
	case !slices.Contains([]string{"", "high", "normal", "low"}, m.Priority):
		return refuse(400111, `Invalid value: "priority".`)
	case len(m.Template.Push) > sendbird.MaxPushPairs:
		return refuse(400203, `"notification_push_data" has too many items.`)
	}
	n := Notification{
		Template: m.Template.Key, Mode: *m.Mode, Title: m.Title, Tag: m.Tag,
		Users: m.Targets, Variables: m.Template.Variables, Push: m.Template.Push,
	}
	if n.Mode == "batch" {
		n.Priority = "normal"
		if m.Priority != "" {
			n.Priority = m.Priority
		}
	}
	if m.File != nil {
		n.File = *m.File
		if code, message := s.readFile(m, &n); code != 0 {
			return refuse(code, message)
		}
	} else if code, message := checkTargets(&n); code != 0 {
		return refuse(code, message)
	}
	if code, message := s.checkVariables(&n); code != 0 {
		return refuse(code, message)
	}
	return n, nil
}

func checkTargets(n *Notification) (int, string) {
	most := sendbird.MaxBatchTargets
	if n.Mode == "realtime" {
		most = sendbird.MaxRealtimeTargets
	}
	switch {
	case len(n.Users) == 0:
		return 400105, `"targets" must be specified.`
	case len(n.Users) > most:
		return 400111, fmt.Sprintf("The request exceeded %d target users.", most)
	case slices.Contains(n.Users, ""):
		return 400111, `Invalid value: "targets".`
	}
	return 0, ""
}

// readFile fills in users and variables from the file that the call names.
func (s *Server) readFile(m *wireMessage, n *Notification) (int, string) {
	file, ok := s.file(n.File)
	switch {
	case n.Mode != "batch":
		return 400111, `"targets_filename" needs "mode" batch.`
	case len(m.Targets) > 0:
		return 400111, `"targets" and "targets_filename" cannot be used together.`
	case !ok:
		return 400201, `"File" not found.`
	}
	rows, err := csv.NewReader(bytes.NewReader(file.Content)).ReadAll()
	if err != nil || len(rows) < 2 || len(rows)-1 > sendbird.MaxFileTargets {
		return 400111, "Invalid CSV file."
	}
	names := rows[0]
	at := slices.Index(names, sendbird.UserColumn)
	if at < 0 || slices.ContainsFunc(names, func(name string) bool { return !isColumn(name) }) {
		return 400111, "Invalid CSV columns."
	}
	n.Variables = make(map[string]map[string]jsontext.Value, len(rows)-1)
	for _, row := range rows[1:] {
		if row[at] == "" {
			return 400111, "Invalid CSV row."
		}
		variables := make(map[string]jsontext.Value, len(row)-1)
		for i, cell := range row {
			if i != at {
				variables[names[i]], _ = jsontext.AppendQuote(nil, cell) // invalid UTF-8 was no CSV of ours
			}
		}
		n.Users = append(n.Users, row[at])
		n.Variables[row[at]] = variables
	}
	return 0, ""
}

func isColumn(name string) bool {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-."
	return name != "" && strings.Trim(name, allowed) == ""
}

// checkVariables wants every variable of a known template for every user. While no
// template was added any key passes.
func (s *Server) checkVariables(n *Notification) (int, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.templates) == 0 {
		return 0, ""
	}
	i := slices.IndexFunc(s.templates, func(t template) bool { return t.key == n.Template })
	if i < 0 {
		return 400201, `"Template" not found.`
	}
	for _, user := range n.Users {
		for _, name := range s.templates[i].variables {
			if _, ok := n.Variables[user][name]; !ok {
				return 400105, `"template.variables" must be specified.`
			}
		}
	}
	return 0, ""
}

// account is the documented answer.
func (s *Server) account(n Notification) string {
	priority := ""
	if n.Mode == "batch" {
		priority = `"priority":` + quote(n.Priority) + `,`
	}
	masked := strings.Repeat("*", 36) + s.opts.Token[max(0, len(s.opts.Token)-4):]
	return fmt.Sprintf(`{"notification_id":"%s","template_key":%s,`+
		`"channels":[{"key":"message-center","type":"feed"},{"key":"push","type":"push"}],`+
		`"mode":"%s",%s"title":%s,"tag":%s,"sent_from":{"type":"api","value":%s},"created_at":%d}`,
		n.ID, quote(n.Template), n.Mode, priority, quote(n.Title), quote(n.Tag), quote(masked), s.opts.Now().UnixMilli())
}
