package sendbirdtest

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"

	"github.com/birdtap/birdtap/sendbird"
)

// deskHeader is where Desk wants its token.
const deskHeader = "SENDBIRDDESKAPITOKEN"

func (at Endpoint) isDesk() bool {
	return slices.Contains([]Endpoint{CreateCustomer, FindCustomers, GetCustomer, CustomerFields, CreateTicket}, at)
}

// Customer is a customer of Desk.
type Customer struct {
	ID           int64
	SendbirdID   string
	DisplayName  string
	CreatedAt    time.Time
	CustomFields map[string]string
}

// Ticket is a ticket of Desk.
type Ticket struct {
	ID                      int64
	ChannelName, ChannelURL string
	CustomerID              int64
	GroupKey, Priority      string
	CustomFields            map[string]string
	RelatedChannelURLs      []string
	CreatedAt               time.Time
}

// Customers are those there are, in order.
func (s *Server) Customers() []Customer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.customers)
}

// Tickets are those there are, in order.
func (s *Server) Tickets() []Ticket {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.tickets)
}

// deskRefusal is an error of Desk; all its codes are guesses.
func deskRefusal(status int, code, detail string) response {
	return jsonResponse(status, deskErrorBody("detail", code, detail))
}

func invalid(what string) response {
	return deskRefusal(http.StatusBadRequest, "invalid", what+" is not valid.")
}

var notFound = deskRefusal(http.StatusNotFound, "not_found", "Not found.")

// desk is a call of Desk; s.mu is held.
func (s *Server) desk(at Endpoint, query url.Values, id string, body []byte) response {
	switch at {
	case CreateCustomer:
		return s.createCustomer(body)
	case FindCustomers:
		return s.findCustomers(query)
	case CreateTicket:
		return s.createTicket(body)
	default: // about one customer
	}
	n, err := strconv.ParseInt(id, 10, 64)
	i := slices.IndexFunc(s.customers, func(c Customer) bool { return c.ID == n })
	if err != nil || i < 0 {
		return notFound.clone()
	}
	if at == CustomerFields {
		return s.updateFields(&s.customers[i], body)
	}
	return jsonResponse(http.StatusOK, s.customers[i].resource())
}

func (r response) clone() response { r.header = r.header.Clone(); return r }

// createCustomer wants a user of Chat; a second customer for it is refused, a guess.
func (s *Server) createCustomer(body []byte) response {
	var w struct {
		SendbirdID *string `json:"sendbirdId"`
	}
	if json.Unmarshal(body, &w) != nil || w.SendbirdID == nil {
		return invalid("sendbirdId")
	}
	user := slices.IndexFunc(s.users, func(u User) bool { return u.ID == *w.SendbirdID })
	switch {
	case user < 0:
		return deskRefusal(http.StatusBadRequest, "user_not_found", "No such user in Chat.")
	case slices.ContainsFunc(s.customers, func(c Customer) bool { return c.SendbirdID == *w.SendbirdID }):
		return deskRefusal(http.StatusBadRequest, "unique", "The customer exists already.")
	}
	c := Customer{
		ID: 1001 + int64(len(s.customers)), SendbirdID: *w.SendbirdID, DisplayName: s.users[user].Nickname,
		CreatedAt: s.opts.Now(), CustomFields: map[string]string{},
	}
	s.customers = append(s.customers, c)
	return jsonResponse(http.StatusCreated, c.resource())
}

// resource is a customer as Desk writes it.
func (c *Customer) resource() string {
	var fields []string
	for i, key := range slices.Sorted(maps.Keys(c.CustomFields)) {
		fields = append(fields, fmt.Sprintf(`{"id":%d,"key":%s,"value":%s}`, i+1, quote(key), quote(c.CustomFields[key])))
	}
	return fmt.Sprintf(`{"id":%d,"sendbirdId":%s,"channelType":"SENDBIRD","project":1,"createdAt":%s,"displayName":%s,"photoThumbnailUrl":"","customFields":[%s]}`,
		c.ID, quote(c.SendbirdID), quote(c.CreatedAt.UTC().Format(time.RFC3339Nano)), quote(c.DisplayName), strings.Join(fields, ","))
}

func (s *Server) findCustomers(query url.Values) response {
	limit, offset := 50, 0
	for name, n := range map[string]*int{"limit": &limit, "offset": &offset} {
		if text := query.Get(name); text != "" {
			var err error
			if *n, err = strconv.Atoi(text); err != nil || *n < 0 || limit < 1 || limit > 500 {
				return invalid(name)
			}
		}
	}
	var found []string
	for _, c := range s.customers {
		if !query.Has("sendbird_id") || query.Get("sendbird_id") == c.SendbirdID {
			found = append(found, c.resource())
		}
	}
	page := found[min(offset, len(found)):min(offset+limit, len(found))]
	return jsonResponse(http.StatusOK, fmt.Sprintf(`{"count":%d,"results":[%s]}`, len(found), strings.Join(page, ",")))
}

// fields reads custom fields, which are JSON as a string, and drops those that are not
// registered.
func fields(text string, registered []string) (map[string]string, bool) {
	var pairs map[string]string
	if json.Unmarshal([]byte(text), &pairs) != nil || len(pairs) > sendbird.MaxCustomFields {
		return nil, false
	}
	for key, value := range pairs {
		if key == "" || strings.Contains(key, ",") || utf8.RuneCountInString(key) > sendbird.MaxCustomFieldKeyLength ||
			utf8.RuneCountInString(value) > sendbird.MaxCustomFieldValueLength {
			return nil, false
		}
		if registered != nil && !slices.Contains(registered, key) {
			delete(pairs, key)
		}
	}
	return pairs, true
}

func (s *Server) updateFields(c *Customer, body []byte) response {
	var w struct {
		CustomFields *string `json:"customFields"`
	}
	if json.Unmarshal(body, &w) != nil || w.CustomFields == nil {
		return invalid("customFields")
	}
	pairs, ok := fields(*w.CustomFields, s.opts.CustomerFields)
	if !ok {
		return invalid("customFields")
	}
	stored := maps.Clone(c.CustomFields)
	maps.Copy(stored, pairs)
	c.CustomFields = stored
	return jsonResponse(http.StatusOK, c.resource())
}

var groupKeys = regexp.MustCompile(`^[a-z0-9_-]*$`)

func (s *Server) createTicket(body []byte) response {
	var w struct {
		ChannelName        *string `json:"channelName"`
		CustomerID         *int64  `json:"customerId"`
		GroupKey           string  `json:"groupKey"`
		CustomFields       *string `json:"customFields"`
		Priority           string  `json:"priority"`
		RelatedChannelURLs string  `json:"relatedChannelUrls"`
	}
	if json.Unmarshal(body, &w) != nil || w.ChannelName == nil || w.CustomerID == nil {
		return invalid("ticket")
	}
	t := Ticket{
		ChannelName: *w.ChannelName, CustomerID: *w.CustomerID, GroupKey: w.GroupKey, Priority: "MEDIUM", CreatedAt: s.opts.Now(),
	}
	if w.Priority != "" {
		t.Priority = w.Priority
	}
	if w.RelatedChannelURLs != "" {
		t.RelatedChannelURLs = strings.Split(w.RelatedChannelURLs, ",")
	}
	if w.CustomFields != nil {
		var ok bool
		if t.CustomFields, ok = fields(*w.CustomFields, s.opts.TicketFields); !ok {
			return invalid("customFields")
		}
	}
	customer := slices.IndexFunc(s.customers, func(c Customer) bool { return c.ID == t.CustomerID })
	switch {
	case customer < 0:
		return deskRefusal(http.StatusBadRequest, "customer_not_found", "No such customer.")
	case t.ChannelName == "" || utf8.RuneCountInString(t.ChannelName) > sendbird.MaxChannelNameLength:
		return invalid("channelName")
	case !groupKeys.MatchString(t.GroupKey):
		return invalid("groupKey")
	case !slices.Contains([]string{"LOW", "MEDIUM", "HIGH", "URGENT"}, t.Priority):
		return invalid("priority")
	case len(t.RelatedChannelURLs) > sendbird.MaxRelatedChannelURLs:
		return invalid("relatedChannelUrls")
	}
	t.ID = 2001 + int64(len(s.tickets))
	t.ChannelURL = fmt.Sprintf("sendbird_desk_%d", t.ID)
	s.tickets = append(s.tickets, t)
	return jsonResponse(http.StatusCreated, fmt.Sprintf(
		`{"id":%d,"channelUrl":%s,"channelName":%s,"status":"INITIALIZED","priority":%s,"createdAt":%s,"customer":%s}`,
		t.ID, quote(t.ChannelURL), quote(t.ChannelName), quote(t.Priority),
		quote(t.CreatedAt.UTC().Format(time.RFC3339Nano)), s.customers[customer].resource()))
}
