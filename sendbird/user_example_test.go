package sendbird_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/birdtap/birdtap/sendbird"
	"github.com/birdtap/birdtap/sendbird/sendbirdtest"
)

// exampleActions starts a fake and a client of Chat and Desk. In earnest it is
//
//	c, err := sendbird.New(sendbird.Config{
//		AppID:     "…",
//		ChatToken: func() string { return "…" },
//		DeskToken: func() string { return "…" }, // each only if it is called
//	})
func exampleActions() (*sendbirdtest.Server, *sendbird.Client, func()) {
	s, err := sendbirdtest.Start("127.0.0.1:0", sendbirdtest.Options{ChatToken: "chat", DeskToken: "desk", CustomerFields: []string{"plan"}})
	if err != nil {
		panic(err)
	}
	c, err := sendbird.New(sendbird.Config{
		ChatURL: s.URL(), ChatToken: func() string { return "chat" }, // leave the URLs empty, and set AppID
		DeskURL: s.URL(), DeskToken: func() string { return "desk" },
	})
	if err != nil {
		panic(err)
	}
	return s, c, func() { c.Close(); s.Close() }
}

func ExampleClient_CreateUser() {
	_, c, end := exampleActions()
	defer end()
	ctx := context.Background()
	user, err := c.CreateUser(ctx, sendbird.NewUser{
		ID: "jay", Nickname: "Jay", ProfileURL: "https://example.com/jay.png",
		Metadata: map[string]string{"plan": "gold"},
	})
	fmt.Println(user.Nickname, user.IsActive, user.Metadata, err)

	_, err = c.CreateUser(ctx, sendbird.NewUser{ID: "jay", Nickname: "Jay"})
	refused, _ := errors.AsType[*sendbird.APIError](err)
	fmt.Println(refused.Code == sendbird.CodeExists, err)

	_, err = c.CreateUser(ctx, sendbird.NewUser{ID: "..", Nickname: "Jay"}) // never sent
	fmt.Println(err)
	// Output:
	// Jay true map[plan:gold] <nil>
	// true create user: Sendbird answered 400, code 400202: exists already
	// user_id: "..", but it stands in the path of a URL, where this means another place
}

// The answer to a creation gets lost: it is tried again, and the user that is there
// by then is the one that was created.
func ExampleRetriedError() {
	s, c, end := exampleActions()
	defer end()
	ctx := context.Background()
	s.Script(sendbirdtest.CreateUser, sendbirdtest.ResetAfterBody())
	user, err := c.CreateUser(ctx, sendbird.NewUser{ID: "jay", Nickname: "Jay"})
	fmt.Println(user.ID, err)

	// Two tickets would be one too many: that call is not made again.
	customer, _ := c.CreateCustomer(ctx, "jay")
	s.Script(sendbirdtest.CreateTicket, sendbirdtest.ResetAfterBody())
	_, err = c.CreateTicket(ctx, sendbird.NewTicket{ChannelName: "Broken lamp", CustomerID: customer.ID})
	fmt.Println(sendbird.OutcomeOf(err))
	// Output:
	// jay <nil>
	// unknown
}

// What is nil stays as it is.
func ExampleClient_UpdateUser() {
	_, c, end := exampleActions()
	defer end()
	ctx := context.Background()
	_, _ = c.CreateUser(ctx, sendbird.NewUser{ID: "jay", Nickname: "Jay", ProfileURL: "https://example.com/jay.png"})
	user, err := c.UpdateUser(ctx, "jay", sendbird.UserUpdate{ProfileURL: new("")})
	fmt.Printf("%s %q %v\n", user.Nickname, user.ProfileURL, err)
	// Output: Jay "" <nil>
}

func ExampleClient_DeactivateUser() {
	_, c, end := exampleActions()
	defer end()
	ctx := context.Background()
	_, _ = c.CreateUser(ctx, sendbird.NewUser{ID: "jay", Nickname: "Jay"})
	user, err := c.DeactivateUser(ctx, "jay", false) // it stays in its channels
	fmt.Println(user.IsActive, err)
	user, err = c.ActivateUser(ctx, "jay")
	fmt.Println(user.IsActive, err)
	fmt.Println(c.DeleteUser(ctx, "jay"))
	_, err = c.User(ctx, "jay")
	fmt.Println(err)
	// Output:
	// false <nil>
	// true <nil>
	// <nil>
	// get user: Sendbird answered 400, code 400201: no such resource
}

func ExampleClient_UpdateMetadata() {
	_, c, end := exampleActions()
	defer end()
	ctx := context.Background()
	_, _ = c.CreateUser(ctx, sendbird.NewUser{ID: "jay", Nickname: "Jay", Metadata: map[string]string{"plan": "silver"}})
	_, err := c.UpdateMetadata(ctx, "jay", map[string]string{"plan": "gold", "city": "Oslo"}, true) // adds the city
	fmt.Println(err)
	fmt.Println(c.DeleteMetadata(ctx, "jay", "plan"))
	user, _ := c.User(ctx, "jay")
	fmt.Println(user.Metadata)
	fmt.Println(c.DeleteAllMetadata(ctx, "jay"))
	// Output:
	// <nil>
	// <nil>
	// map[city:Oslo]
	// <nil>
}

// A customer is a user of Chat that Desk knows.
func ExampleClient_CreateCustomer() {
	_, c, end := exampleActions()
	defer end()
	ctx := context.Background()
	_, _ = c.CreateUser(ctx, sendbird.NewUser{ID: "jay", Nickname: "Jay"})
	customer, err := c.CreateCustomer(ctx, "jay")
	fmt.Println(customer.ID, customer.SendbirdID, err)

	fields := map[string]string{"plan": "gold", "shoes": "43"}
	customer, err = c.UpdateCustomFields(ctx, customer.ID, fields)
	fmt.Println(customer.CustomFields[0].Value, "not registered:", customer.Ignored(fields), err)

	same, err := c.CustomerBySendbirdID(ctx, "jay")
	fmt.Println(same.ID, err)
	_, err = c.CustomerBySendbirdID(ctx, "nobody")
	fmt.Println(errors.Is(err, sendbird.ErrNoCustomer))
	// Output:
	// 1001 jay <nil>
	// gold not registered: [shoes] <nil>
	// 1001 <nil>
	// true
}

func ExampleClient_CreateTicket() {
	_, c, end := exampleActions()
	defer end()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // over all attempts
	defer cancel()
	_, _ = c.CreateUser(ctx, sendbird.NewUser{ID: "jay", Nickname: "Jay"})
	customer, _ := c.CreateCustomer(ctx, "jay")
	ticket, err := c.CreateTicket(ctx, sendbird.NewTicket{
		ChannelName: "Broken lamp", CustomerID: customer.ID, Priority: sendbird.TicketHigh,
		GroupKey: "order-17", CustomFields: map[string]string{"product": "lamp"},
		RelatedChannelURLs: []string{"sendbird_group_channel_1"},
	})
	fmt.Println(ticket.ID, ticket.ChannelURL, err)
	// Output: 2001 sendbird_desk_2001 <nil>
}
