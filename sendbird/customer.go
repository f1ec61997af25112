package sendbird

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Limits of custom fields; pageCustomer. For those of a ticket none are documented,
// and the same are taken.
const (
	MaxCustomFields           = 20
	MaxCustomFieldKeyLength   = 20  // characters
	MaxCustomFieldValueLength = 190 // characters
)

// Customer is a customer of Desk.
type Customer struct {
	ID         int64  `json:"id"`
	SendbirdID string `json:"sendbirdId"`
	// ChannelType is where the customer comes from: "SENDBIRD".
	ChannelType       string        `json:"channelType"`
	DisplayName       string        `json:"displayName"`
	PhotoThumbnailURL string        `json:"photoThumbnailUrl"`
	CreatedAt         time.Time     `json:"-"` // zero if it could not be read
	CustomFields      []CustomField `json:"customFields"`
	// Raw is the whole resource as it came.
	Raw jsontext.Value `json:"-"`
}

// CustomField is one custom field of a customer.
type CustomField struct {
	ID    int64  `json:"id"`
	Key   string `json:"key"`
	Value string `json:"value"`
}

func (c *Customer) complete() bool { return c.ID > 0 }

// UnmarshalJSON insists on the id alone, as for [User], and keeps the Sendbird id if
// it can: to find a customer takes it.
func (c *Customer) UnmarshalJSON(b []byte) error {
	type plain Customer
	var all plain
	var least struct {
		ID         int64          `json:"id"`
		SendbirdID string         `json:"sendbirdId"`
		CreatedAt  jsontext.Value `json:"createdAt"`
	}
	if err := json.Unmarshal(b, &least); err != nil {
		return err
	}
	if json.Unmarshal(b, &all) != nil {
		all = plain{ID: least.ID, SendbirdID: least.SendbirdID}
	}
	*c = Customer(all)
	c.CreatedAt, _ = time.Parse(time.RFC3339, textOf(least.CreatedAt))
	c.Raw = bytes.Clone(b)
	return nil
}

// Ignored are the keys that an update of custom fields has sent and the customer has
// not: Desk drops those that are not registered in its dashboard, and says nothing.
// None, if the customer came without custom fields.
func (c *Customer) Ignored(sent map[string]string) []string {
	if c.CustomFields == nil {
		return nil
	}
	var keys []string
	for key := range sent {
		if !slices.ContainsFunc(c.CustomFields, func(f CustomField) bool { return f.Key == key }) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// ErrNoCustomer is what [Client.CustomerBySendbirdID] ends in where there is none.
var ErrNoCustomer = errors.New("there is no such customer")

var errUnfiltered = errors.New("other customers are listed than the one asked for")

// CreateCustomer makes a customer of Desk out of a user that exists in Chat. What
// Desk says of one that is a customer already is not documented; where the answer to
// an attempt got lost, the customer is looked for before it is created again.
//
// https://sendbird.com/docs/desk/platform-api/v1/features/customer
func (c *Client) CreateCustomer(ctx context.Context, sendbirdID string) (Customer, error) {
	if err := checkSendbirdID(sendbirdID); err != nil {
		return Customer{}, err
	}
	body, err := json.Marshal(struct {
		SendbirdID string `json:"sendbirdId"`
	}{sendbirdID})
	if err != nil { // the check has seen to all that JSON minds
		return Customer{}, &CallError{Call: endpointCreateCustomer.String(), Outcome: Refused, Err: errNoBody}
	}
	var customer Customer
	err = c.repeat(ctx, harmless, func(lost bool) error {
		if lost {
			if err := c.findCustomer(ctx, sendbirdID, &customer); !errors.Is(err, ErrNoCustomer) {
				return err
			}
		}
		err := c.call(ctx, endpointCreateCustomer, "/platform/v1/customers", body, &customer)
		if lost && err != nil && OutcomeOf(err) == Refused && c.findCustomer(ctx, sendbirdID, &customer) == nil {
			return nil // the lost one came through meanwhile
		}
		return err
	})
	return customer, err
}

// Customer gets a customer by Desk's id.
//
// https://sendbird.com/docs/desk/platform-api/v1/features/customer
func (c *Client) Customer(ctx context.Context, id int64) (Customer, error) {
	if err := checkDeskID("customer id", id); err != nil {
		return Customer{}, err
	}
	var customer Customer
	err := c.repeat(ctx, harmless, func(bool) error {
		return c.call(ctx, endpointGetCustomer, customerPath(id), nil, &customer)
	})
	return customer, err
}

// CustomerBySendbirdID gets the customer that is this user of Chat, or
// [ErrNoCustomer].
//
// https://sendbird.com/docs/desk/platform-api/v1/features/customer
func (c *Client) CustomerBySendbirdID(ctx context.Context, sendbirdID string) (Customer, error) {
	if err := checkSendbirdID(sendbirdID); err != nil {
		return Customer{}, err
	}
	var customer Customer
	err := c.repeat(ctx, harmless, func(bool) error {
		return c.findCustomer(ctx, sendbirdID, &customer)
	})
	return customer, err
}

// customerPage is a page of a list of customers.
type customerPage struct {
	Count   int        `json:"count"`
	Results []Customer `json:"results"`
}

func (p *customerPage) complete() bool { return p.Results != nil }

// findCustomer looks once. The filter is known from public code alone, so what comes
// is held against what was asked for.
func (c *Client) findCustomer(ctx context.Context, sendbirdID string, out *Customer) error {
	var page customerPage
	if err := c.call(ctx, endpointFindCustomer, "/platform/v1/customers?sendbird_id="+escape(sendbirdID), nil, &page); err != nil {
		return err
	}
	i := slices.IndexFunc(page.Results, func(found Customer) bool { return found.complete() && found.SendbirdID == sendbirdID })
	switch {
	case i >= 0:
		*out = page.Results[i]
		return nil
	case page.Count > len(page.Results):
		return &CallError{Call: endpointFindCustomer.String(), Outcome: Refused, Err: errUnfiltered}
	default:
		return &CallError{Call: endpointFindCustomer.String(), Outcome: Refused, Err: ErrNoCustomer}
	}
}

// UpdateCustomFields sets custom fields of a customer; others stay as they are. See
// [Customer.Ignored] for those that Desk drops.
//
// https://sendbird.com/docs/desk/platform-api/v1/features/customer
func (c *Client) UpdateCustomFields(ctx context.Context, id int64, fields map[string]string) (Customer, error) {
	if err := checkDeskID("customer id", id); err != nil {
		return Customer{}, err
	}
	if err := CheckCustomFields(fields); err != nil {
		return Customer{}, err
	}
	text, err := fieldsText(fields)
	var body []byte
	if err == nil {
		body, err = json.Marshal(struct {
			CustomFields string `json:"customFields"`
		}{text})
	}
	if err != nil { // the check has seen to all that JSON minds
		return Customer{}, &CallError{Call: endpointCustomerFields.String(), Outcome: Refused, Err: errNoBody}
	}
	var r reply
	err = c.repeat(ctx, harmless, func(bool) error {
		return c.call(ctx, endpointCustomerFields, customerPath(id)+"/custom_fields", body, &r)
	})
	return read[Customer](r), err
}

// CheckCustomFields says why Desk would refuse the fields, with a [*LimitError]. It
// connects to nobody, and [Client.UpdateCustomFields] begins with it.
func CheckCustomFields(fields map[string]string) error {
	return checkPairs(fields, pairLimits{
		field: "customFields", items: MaxCustomFields,
		key: MaxCustomFieldKeyLength, value: MaxCustomFieldValueLength, page: pageCustomer,
	})
}

// fieldsText is custom fields as Desk takes them: JSON as a string.
func fieldsText(fields map[string]string) (string, error) {
	b, err := json.Marshal(fields, json.Deterministic(true))
	return string(b), err
}

func checkSendbirdID(id string) error {
	return checkSegment("sendbirdId", id, MaxUserIDLength, pageUser)
}

// checkDeskID wants an id as Desk gives them.
func checkDeskID(field string, id int64) error {
	if id < 1 {
		return &LimitError{field, strconv.FormatInt(id, 10), "a positive number, as Desk gives them", pageCustomer}
	}
	return nil
}

func customerPath(id int64) string { return "/platform/v1/customers/" + strconv.FormatInt(id, 10) }
