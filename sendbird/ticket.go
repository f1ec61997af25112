package sendbird

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Limits of a ticket; pageTicket.
const (
	MaxChannelNameLength  = 100 // characters
	MaxRelatedChannelURLs = 3
)

// TicketPriority is how urgent a ticket is.
type TicketPriority string

// TicketMedium is what no priority stands for.
const (
	TicketLow    TicketPriority = "LOW"
	TicketMedium TicketPriority = "MEDIUM"
	TicketHigh   TicketPriority = "HIGH"
	TicketUrgent TicketPriority = "URGENT"
)

// NewTicket is a ticket to create.
type NewTicket struct {
	// ChannelName is the ticket's title.
	ChannelName string
	// CustomerID is Desk's id of the customer, not Chat's.
	CustomerID int64
	// GroupKey groups tickets: small letters, digits, - and _.
	GroupKey string
	Priority TicketPriority
	// CustomFields are registered in Desk's dashboard; Desk ignores others silently.
	CustomFields map[string]string
	// RelatedChannelURLs are channels of Chat that belong to the matter.
	RelatedChannelURLs []string
}

var groupKeys = regexp.MustCompile(`^[a-z0-9_-]*$`)

// Check says why Desk would refuse the ticket, with a [*LimitError]. It connects to
// nobody, and [Client.CreateTicket] begins with it.
func (t *NewTicket) Check() error {
	if t.ChannelName == "" {
		return &LimitError{"channelName", "empty", "1 to 100 characters", pageTicket}
	}
	if err := checkLine("channelName", t.ChannelName, MaxChannelNameLength, pageTicket); err != nil {
		return err
	}
	if err := checkDeskID("customerId", t.CustomerID); err != nil {
		return err
	}
	switch t.Priority {
	case "", TicketLow, TicketMedium, TicketHigh, TicketUrgent:
	default:
		return &LimitError{"priority", quoted(string(t.Priority)), "must be LOW, MEDIUM, HIGH or URGENT", pageTicket}
	}
	if !groupKeys.MatchString(t.GroupKey) {
		return &LimitError{"groupKey", quoted(t.GroupKey), "small letters, digits, _ and - only", pageTicket}
	}
	if len(t.CustomFields) > 0 {
		if err := CheckCustomFields(t.CustomFields); err != nil {
			return err
		}
	}
	if n := len(t.RelatedChannelURLs); n > MaxRelatedChannelURLs {
		return &LimitError{"relatedChannelUrls", counted(n, "channel"), "at most 3", pageTicket}
	}
	for i, channel := range t.RelatedChannelURLs {
		if channel == "" || strings.Contains(channel, ",") || !isLine(channel) {
			return &LimitError{fmt.Sprintf("relatedChannelUrls[%d]", i), quoted(channel), "a channel's URL, without a comma: commas part them", pageTicket}
		}
	}
	return nil
}

// wireTicket is the body of the call.
type wireTicket struct {
	ChannelName        string         `json:"channelName"`
	CustomerID         int64          `json:"customerId"`
	GroupKey           string         `json:"groupKey,omitempty"`
	CustomFields       string         `json:"customFields,omitempty"` // JSON as a string
	Priority           TicketPriority `json:"priority,omitempty"`
	RelatedChannelURLs string         `json:"relatedChannelUrls,omitempty"` // a comma list
}

func (t *NewTicket) body() ([]byte, error) {
	w := wireTicket{
		ChannelName: t.ChannelName, CustomerID: t.CustomerID, GroupKey: t.GroupKey,
		Priority: t.Priority, RelatedChannelURLs: strings.Join(t.RelatedChannelURLs, ","),
	}
	if len(t.CustomFields) > 0 {
		var err error
		if w.CustomFields, err = fieldsText(t.CustomFields); err != nil {
			return nil, err
		}
	}
	return json.Marshal(w)
}

// Ticket is a ticket of Desk.
type Ticket struct {
	ID int64 `json:"id"`
	// ChannelURL is the channel of Chat in which the customer writes.
	ChannelURL  string         `json:"channelUrl"`
	ChannelName string         `json:"channelName"`
	Priority    TicketPriority `json:"priority"`
	// Raw is the whole resource as it came.
	Raw jsontext.Value `json:"-"`
}

func (t *Ticket) complete() bool { return t.ID > 0 }

// UnmarshalJSON insists on the id alone, as for [User].
func (t *Ticket) UnmarshalJSON(b []byte) error {
	type plain Ticket
	var all plain
	if json.Unmarshal(b, &all) != nil {
		var least struct {
			ID int64 `json:"id"`
		}
		if err := json.Unmarshal(b, &least); err != nil {
			return err
		}
		all = plain{ID: least.ID}
	}
	*t = Ticket(all)
	t.Raw = bytes.Clone(b)
	return nil
}

// CreateTicket creates a ticket. Desk's agents do not see it before the customer
// writes in its channel. Nothing tells two equal tickets apart, so an attempt whose
// outcome is unknown is not followed by another: look in Desk before the call is
// made again.
//
// https://sendbird.com/docs/desk/platform-api/v1/features/ticket
func (c *Client) CreateTicket(ctx context.Context, t NewTicket) (Ticket, error) {
	if err := t.Check(); err != nil {
		return Ticket{}, err
	}
	body, err := t.body()
	if err != nil { // Check has seen to all that JSON minds
		return Ticket{}, &CallError{Call: endpointCreateTicket.String(), Outcome: Refused, Err: errNoBody}
	}
	var ticket Ticket
	err = c.repeat(ctx, onlyOnce, func(bool) error {
		return c.call(ctx, endpointCreateTicket, "/platform/v1/tickets", body, &ticket)
	})
	return ticket, err
}
