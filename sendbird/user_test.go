package sendbird_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/birdtap/birdtap/sendbird"
	"github.com/birdtap/birdtap/sendbird/sendbirdtest"
)

// long is so many characters of several bytes.
func long(n int) string { return strings.Repeat("é", n) }

func many(n int) map[string]string {
	pairs := map[string]string{}
	for i := range n {
		pairs[fmt.Sprint("key", i)] = "v"
	}
	return pairs
}

// Every limit, at it and one beyond. What is beyond is named: field, size, limit and
// the page that has it; what may be personal is not shown.
func TestLimitsOfActions(t *testing.T) {
	user := func(change func(*sendbird.NewUser)) func() error {
		return func() error { u := newJay(); change(&u); return u.Check() }
	}
	update := func(u sendbird.UserUpdate) func() error { return u.Check }
	ticket := func(change func(*sendbird.NewTicket)) func() error {
		return func() error {
			n := sendbird.NewTicket{ChannelName: "Lamp", CustomerID: 1}
			change(&n)
			return n.Check()
		}
	}
	metadata := func(pairs map[string]string) func() error {
		return func() error { return sendbird.CheckMetadata(pairs) }
	}
	fields := func(pairs map[string]string) func() error {
		return func() error { return sendbird.CheckCustomFields(pairs) }
	}
	for name, tc := range map[string]struct {
		check func() error
		want  string // "": it passes
	}{
		"user": {user(func(*sendbird.NewUser) {}), ""},

		"user id of 80":        {user(func(u *sendbird.NewUser) { u.ID = long(80) }), ""},
		"user id of 81":        {user(func(u *sendbird.NewUser) { u.ID = long(81) }), "user_id: 81 characters, but at most 80 characters (https://sendbird.com/docs/chat/"},
		"no user id":           {user(func(u *sendbird.NewUser) { u.ID = "" }), "user_id: empty, but 1 to 80 characters (https://"},
		"user id .":            {user(func(u *sendbird.NewUser) { u.ID = "." }), `user_id: ".", but it stands in the path of a URL`},
		"user id ..":           {user(func(u *sendbird.NewUser) { u.ID = ".." }), `user_id: "..", but`},
		"user id ...":          {user(func(u *sendbird.NewUser) { u.ID = "..." }), ""},
		"user id of two lines": {user(func(u *sendbird.NewUser) { u.ID = "hunter2\n" }), "user_id: text with control characters"},
		"user id, no UTF-8":    {user(func(u *sendbird.NewUser) { u.ID = "hunter2\xff" }), "user_id: text with control characters or invalid UTF-8"},

		"nickname of 80":      {user(func(u *sendbird.NewUser) { u.Nickname = long(80) }), ""},
		"nickname of 81":      {user(func(u *sendbird.NewUser) { u.Nickname = long(81) }), "nickname: 81 characters, but at most 80 characters (https://"},
		"no nickname":         {user(func(u *sendbird.NewUser) { u.Nickname = "" }), "nickname: empty, but 1 to 80 characters (https://"},
		"profile URL of 2048": {user(func(u *sendbird.NewUser) { u.ProfileURL = long(2048) }), ""},
		"profile URL of 2049": {user(func(u *sendbird.NewUser) { u.ProfileURL = long(2049) }), "profile_url: 2,049 characters, but at most 2,048 characters (https://"},
		"empty discovery key": {user(func(u *sendbird.NewUser) { u.DiscoveryKeys = []string{"a", ""} }), "discovery_keys[1]: "},
		"5 items at once":     {user(func(u *sendbird.NewUser) { u.Metadata = many(5) }), ""},
		"6 items at once":     {user(func(u *sendbird.NewUser) { u.Metadata = many(6) }), "metadata: 6 items, but 1 to 5 items (https://"},

		"update of nothing":           {update(sendbird.UserUpdate{}), "update: nothing to change"},
		"update to an empty nickname": {update(sendbird.UserUpdate{Nickname: new("")}), ""},
		"update, nickname of 80":      {update(sendbird.UserUpdate{Nickname: new(long(80))}), ""},
		"update, nickname of 81":      {update(sendbird.UserUpdate{Nickname: new(long(81))}), "nickname: 81 characters"},
		"update, profile URL of 2048": {update(sendbird.UserUpdate{ProfileURL: new(long(2048))}), ""},
		"update, profile URL of 2049": {update(sendbird.UserUpdate{ProfileURL: new(long(2049))}), "profile_url: 2,049 characters"},
		"4 languages":                 {update(sendbird.UserUpdate{PreferredLanguages: letters(4)}), ""},
		"5 languages":                 {update(sendbird.UserUpdate{PreferredLanguages: letters(5)}), "preferred_languages: 5 languages, but at most 4 (https://"},
		"no languages":                {update(sendbird.UserUpdate{PreferredLanguages: []string{}}), ""},
		"seen at 0":                   {update(sendbird.UserUpdate{LastSeenAt: new(int64(0))}), ""},
		"seen before 1970":            {update(sendbird.UserUpdate{LastSeenAt: new(int64(-1))}), "last_seen_at: -1, but milliseconds since 1970 (https://"},

		"5 items":            {metadata(many(5)), ""},
		"6 items":            {metadata(many(6)), "metadata: 6 items, but 1 to 5 items (https://sendbird.com/docs/chat/"},
		"no items":           {metadata(nil), "metadata: 0 items, but 1 to 5 items"},
		"key of 128":         {metadata(map[string]string{long(128): ""}), ""},
		"key of 129":         {metadata(map[string]string{long(129): ""}), "metadata key: 129 characters, but at most 128 characters (https://"},
		"empty key":          {metadata(map[string]string{"": "v"}), "metadata key: empty, but 1 to 128 characters"},
		"key with a comma":   {metadata(map[string]string{"a,b": "v"}), `metadata key: "a,b", but no comma in it (https://`},
		"key ..":             {metadata(map[string]string{"..": "v"}), `metadata key: "..", but`},
		"value of 190":       {metadata(map[string]string{"k": long(190)}), ""},
		"value of 191":       {metadata(map[string]string{"k": long(191)}), `metadata["k"]: 191 characters, but at most 190 characters (https://`},
		"value of two lines": {metadata(map[string]string{"k": "a\nb"}), ""},
		"value, no UTF-8":    {metadata(map[string]string{"k": "hunter2\xff"}), `metadata["k"]: invalid UTF-8`},

		"20 fields":              {fields(many(20)), ""},
		"21 fields":              {fields(many(21)), "customFields: 21 items, but 1 to 20 items (https://sendbird.com/docs/desk/"},
		"no fields":              {fields(nil), "customFields: 0 items"},
		"field's key of 20":      {fields(map[string]string{long(20): ""}), ""},
		"field's key of 21":      {fields(map[string]string{long(21): ""}), "customFields key: 21 characters, but at most 20 characters (https://"},
		"field's key with comma": {fields(map[string]string{",": ""}), `customFields key: ",", but no comma in it`},
		"field's value of 190":   {fields(map[string]string{"k": long(190)}), ""},
		"field's value of 191":   {fields(map[string]string{"k": long(191)}), `customFields["k"]: 191 characters, but at most 190 characters`},

		"channel name of 100": {ticket(func(n *sendbird.NewTicket) { n.ChannelName = long(100) }), ""},
		"channel name of 101": {ticket(func(n *sendbird.NewTicket) { n.ChannelName = long(101) }), "channelName: 101 characters, but at most 100 characters (https://sendbird.com/docs/desk/"},
		"no channel name":     {ticket(func(n *sendbird.NewTicket) { n.ChannelName = "" }), "channelName: empty, but 1 to 100 characters"},
		"no customer":         {ticket(func(n *sendbird.NewTicket) { n.CustomerID = 0 }), "customerId: 0, but a positive number"},
		"group key":           {ticket(func(n *sendbird.NewTicket) { n.GroupKey = "az09_-" }), ""},
		"group key, capital":  {ticket(func(n *sendbird.NewTicket) { n.GroupKey = "aZ" }), `groupKey: "aZ", but small letters, digits, _ and - only (https://`},
		"group key, newline":  {ticket(func(n *sendbird.NewTicket) { n.GroupKey = "a\n" }), `groupKey: "a\n"`},
		"urgent":              {ticket(func(n *sendbird.NewTicket) { n.Priority = sendbird.TicketUrgent }), ""},
		"priority, small":     {ticket(func(n *sendbird.NewTicket) { n.Priority = "high" }), `priority: "high", but must be LOW, MEDIUM, HIGH or URGENT (https://`},
		"3 channels":          {ticket(func(n *sendbird.NewTicket) { n.RelatedChannelURLs = letters(3) }), ""},
		"4 channels":          {ticket(func(n *sendbird.NewTicket) { n.RelatedChannelURLs = letters(4) }), "relatedChannelUrls: 4 channels, but at most 3 (https://"},
		"channel with comma":  {ticket(func(n *sendbird.NewTicket) { n.RelatedChannelURLs = []string{"a,b"} }), `relatedChannelUrls[0]: "a,b"`},
		"ticket, 20 fields":   {ticket(func(n *sendbird.NewTicket) { n.CustomFields = many(20) }), ""},
		"ticket, 21 fields":   {ticket(func(n *sendbird.NewTicket) { n.CustomFields = many(21) }), "customFields: 21 items"},
	} {
		t.Run(name, func(t *testing.T) {
			err := tc.check()
			if tc.want == "" {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if limit, ok := errors.AsType[*sendbird.LimitError](err); !ok || limit.Field == "" || limit.Limit == "" || sendbird.OutcomeOf(err) != sendbird.Refused {
				t.Fatalf("got %#v", err)
			}
			if !strings.HasPrefix(err.Error(), tc.want) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("got %q, want %q", err, tc.want)
			}
		})
	}
}

// letters are so many texts, up to five.
func letters(n int) []string { return strings.Fields("a b c d e")[:n] }

// What is checked before the call does not reach Sendbird.
func TestNothingBeyondALimitIsSent(t *testing.T) {
	s, c := chatAndDesk(t, sendbirdtest.Options{})
	ctx := t.Context()
	for _, bad := range []string{"", ".", "..", long(81), "a\nb", "\xff"} {
		_, created := c.CreateUser(ctx, sendbird.NewUser{ID: bad, Nickname: "x"})
		_, got := c.User(ctx, bad)
		_, updated := c.UpdateUser(ctx, bad, sendbird.UserUpdate{IsActive: new(true)})
		_, metadata := c.UpdateMetadata(ctx, bad, many(1), true)
		_, customer := c.CreateCustomer(ctx, bad)
		_, found := c.CustomerBySendbirdID(ctx, bad)
		for i, err := range []error{
			created, got, updated, metadata, customer, found,
			c.DeleteUser(ctx, bad), c.DeleteMetadata(ctx, bad, "k"), c.DeleteAllMetadata(ctx, bad),
		} {
			if _, ok := errors.AsType[*sendbird.LimitError](err); !ok {
				t.Errorf("%q, call %d: got %v", bad, i, err)
			}
		}
	}
	for _, key := range []string{"", ".", "..", "a,b", long(129)} { // "" would delete all
		if _, ok := errors.AsType[*sendbird.LimitError](c.DeleteMetadata(ctx, "jay", key)); !ok {
			t.Errorf("key %q is sent", key)
		}
	}
	_, got := c.Customer(ctx, 0)
	_, fields := c.UpdateCustomFields(ctx, 1, nil)
	_, ticket := c.CreateTicket(ctx, sendbird.NewTicket{})
	if got == nil || fields == nil || ticket == nil || len(s.Calls()) > 0 {
		t.Errorf("got %v, %v, %v, and %d calls", got, fields, ticket, len(s.Calls()))
	}
}

// lastBody is what the last call carried.
func lastBody(s *sendbirdtest.Server) string {
	calls := s.Calls()
	return string(calls[len(calls)-1].Body)
}

func TestBodiesAreAsDocumented(t *testing.T) { synctest.Test(t, bodiesAreAsDocumented) }

func bodiesAreAsDocumented(t *testing.T) {
	s, c := chatAndDesk(t, sendbirdtest.Options{}, once)
	ctx := t.Context()
	for _, tc := range []struct {
		name string
		do   func() error
		want string
	}{
		{"create", func() error { return second(c.CreateUser(ctx, newJay())) }, `{"user_id":"jay","nickname":"Jay","profile_url":""}`},
		{"create with all", func() error {
			return second(c.CreateUser(ctx, sendbird.NewUser{
				ID: "kay", Nickname: "Kay", ProfileURL: "https://h/", IssueAccessToken: true,
				DiscoveryKeys: []string{"k"}, Metadata: map[string]string{"b": "2", "a": "1"},
			}))
		}, `{"user_id":"kay","nickname":"Kay","profile_url":"https://h/","issue_access_token":true,"discovery_keys":["k"],"metadata":{"a":"1","b":"2"}}`},
		{"deactivate", func() error { return second(c.DeactivateUser(ctx, "jay", false)) }, `{"is_active":false,"leave_all_when_deactivated":false}`},
		{"deactivate and leave", func() error { return second(c.DeactivateUser(ctx, "jay", true)) }, `{"is_active":false,"leave_all_when_deactivated":true}`},
		{"activate", func() error { return second(c.ActivateUser(ctx, "jay")) }, `{"is_active":true}`},
		{"update", func() error {
			return second(c.UpdateUser(ctx, "jay", sendbird.UserUpdate{
				Nickname: new(""), ProfileURL: new(""), IssueAccessToken: new(false), LastSeenAt: new(int64(1714374338539)), DiscoveryKeys: []string{},
			}))
		}, `{"nickname":"","profile_url":"","issue_access_token":false,"last_seen_at":1714374338539,"discovery_keys":[]}`},
		{"metadata", func() error { return second(c.UpdateMetadata(ctx, "jay", map[string]string{"b": "2", "a": "1"}, true)) }, `{"metadata":{"a":"1","b":"2"},"upsert":true}`},
		{"metadata that is there", func() error { return second(c.UpdateMetadata(ctx, "jay", many(1), false)) }, `{"metadata":{"key0":"v"},"upsert":false}`},
		{"delete a key", func() error { return c.DeleteMetadata(ctx, "jay", "a") }, ""},
		{"delete all", func() error { return c.DeleteAllMetadata(ctx, "jay") }, ""},
		{"customer", func() error { return second(c.CreateCustomer(ctx, "jay")) }, `{"sendbirdId":"jay"}`},
		{"fields", func() error {
			return second(c.UpdateCustomFields(ctx, 1001, map[string]string{"b": `"`, "a": "1"}))
		}, `{"customFields":"{\"a\":\"1\",\"b\":\"\\\"\"}"}`},
		{"ticket", func() error {
			return second(c.CreateTicket(ctx, sendbird.NewTicket{ChannelName: "Lamp", CustomerID: 1001}))
		}, `{"channelName":"Lamp","customerId":1001}`},
		{"ticket with all", func() error {
			return second(c.CreateTicket(ctx, sendbird.NewTicket{
				ChannelName: "Lamp", CustomerID: 1001, GroupKey: "g-1", Priority: sendbird.TicketLow,
				CustomFields: map[string]string{"product": "lamp"}, RelatedChannelURLs: []string{"c1", "c2"},
			}))
		}, `{"channelName":"Lamp","customerId":1001,"groupKey":"g-1","customFields":"{\"product\":\"lamp\"}","priority":"LOW","relatedChannelUrls":"c1,c2"}`},
	} {
		if err := tc.do(); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		if got := lastBody(s); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
	jay, _ := s.User("jay")
	if !jay.IsActive || !jay.LeftChannels || len(jay.Metadata) != 0 {
		t.Errorf("in the end: %+v", jay)
	}
	ticket := s.Tickets()[1]
	ticket.CreatedAt = time.Time{}
	if diff := cmp.Diff(sendbirdtest.Ticket{
		ID: 2002, ChannelName: "Lamp", ChannelURL: "sendbird_desk_2002", CustomerID: 1001, GroupKey: "g-1", Priority: "LOW",
		CustomFields: map[string]string{"product": "lamp"}, RelatedChannelURLs: []string{"c1", "c2"},
	}, ticket); diff != "" {
		t.Error(diff)
	}
}

func second[T any](_ T, err error) error { return err }

func TestAUserIsReadAsItIs(t *testing.T) { synctest.Test(t, aUserIsReadAsItIs) }

func aUserIsReadAsItIs(t *testing.T) {
	s, c := chatAndDesk(t, sendbirdtest.Options{}, once)
	for body, want := range map[string]sendbird.User{
		`{"user_id":"jay","nickname":"Jay","profile_url":"https://h/","access_token":"t","is_active":true,"is_online":true,` +
			`"last_seen_at":1714374338539,"created_at":1542945056,"has_ever_logged_in":true,"metadata":{"plan":"gold"},"more":[1]}`: {
			ID: "jay", Nickname: "Jay", ProfileURL: "https://h/", AccessToken: "t", IsActive: true, IsOnline: true, HasEverLoggedIn: true,
			LastSeenAt: sendbird.Time{Time: time.UnixMilli(1714374338539).UTC()}, CreatedAt: sendbird.Time{Time: time.Unix(1542945056, 0).UTC()},
			Metadata: map[string]string{"plan": "gold"},
		},
		`{"user_id":"jay","is_active":"yes","metadata":null}`: {ID: "jay"},
	} {
		s.Script(sendbirdtest.GetUser, sendbirdtest.Status(200, nil, body))
		got, err := c.User(t.Context(), "jay")
		raw := string(got.Raw)
		got.Raw = nil
		if diff := cmp.Diff(want, got); diff != "" || err != nil || raw != body {
			t.Errorf("%v, raw %s\n%s", err, raw, diff)
		}
	}
	for _, body := range []string{"", "{}", "[]", `{"user_id":7}`, "<html>"} {
		s.Script(sendbirdtest.GetUser, sendbirdtest.Status(200, nil, body))
		if _, err := c.User(t.Context(), "jay"); sendbird.OutcomeOf(err) != sendbird.Unknown || err == nil {
			t.Errorf("%q: got %v", body, err)
		}
	}
	// A change that succeeded has, whatever the answer says beside that.
	for _, body := range []string{"", "{}", `{"is_active":7}`} {
		s.Script(sendbirdtest.UpdateUser, sendbirdtest.Status(200, nil, body))
		if got, err := c.ActivateUser(t.Context(), "jay"); err != nil || string(got.Raw) != body {
			t.Errorf("%q: got %+v, %v", body, got, err)
		}
	}
}

func TestMetadataIsReadInBothShapes(t *testing.T) { synctest.Test(t, metadataIsReadInBothShapes) }

func metadataIsReadInBothShapes(t *testing.T) {
	s, c := chatAndDesk(t, sendbirdtest.Options{}, once)
	for body, want := range map[string]map[string]string{
		`{"plan":"gold"}`:              {"plan": "gold"},
		`{"metadata":{"plan":"gold"}}`: {"plan": "gold"},
		`{"metadata":"gold"}`:          {"metadata": "gold"},
		`{"plan":{"a":1}}`:             nil,
		"":                             nil,
	} {
		s.Script(sendbirdtest.UpdateMetadata, sendbirdtest.Status(200, nil, body))
		got, err := c.UpdateMetadata(t.Context(), "jay", many(1), true)
		if err != nil || !cmp.Equal(got.Items, want) || string(got.Raw) != body {
			t.Errorf("%s: got %+v, %v", body, got, err)
		}
	}
}

func TestACustomerIsReadAsItIs(t *testing.T) {
	s, c := chatAndDesk(t, sendbirdtest.Options{}, once)
	body := `{"id":9007199254740993,"sendbirdId":"jay","channelType":"SENDBIRD","project":1,"createdAt":"2018-07-06T06:43:27.470345Z",` +
		`"displayName":"Jay","photoThumbnailUrl":"https://h/","customFields":[{"id":1,"key":"plan","value":"gold"}]}`
	s.Script(sendbirdtest.GetCustomer, sendbirdtest.Status(200, nil, body))
	got, err := c.Customer(t.Context(), 1)
	want := sendbird.Customer{
		ID: 9007199254740993, SendbirdID: "jay", ChannelType: "SENDBIRD", DisplayName: "Jay", PhotoThumbnailURL: "https://h/",
		CreatedAt: time.Date(2018, 7, 6, 6, 43, 27, 470345000, time.UTC), CustomFields: []sendbird.CustomField{{ID: 1, Key: "plan", Value: "gold"}},
		Raw: []byte(body),
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	if ignored := got.Ignored(map[string]string{"plan": "", "z": "", "a": ""}); !cmp.Equal(ignored, []string{"a", "z"}) {
		t.Errorf("ignored %q", ignored)
	}
	s.Script(sendbirdtest.GetCustomer, sendbirdtest.Status(200, nil, `{"id":7,"sendbirdId":"jay","customFields":{},"createdAt":7}`))
	if got, err = c.Customer(t.Context(), 1); err != nil || got.ID != 7 || got.SendbirdID != "jay" || got.Ignored(many(1)) != nil {
		t.Errorf("got %+v, %v", got, err)
	}
}

// The filter is not documented: what comes must be what was asked for.
func TestACustomerIsFoundByItsOwnID(t *testing.T) { synctest.Test(t, aCustomerIsFoundByItsOwnID) }

func aCustomerIsFoundByItsOwnID(t *testing.T) {
	s, c := chatAndDesk(t, sendbirdtest.Options{}, once)
	for body, want := range map[string]string{
		`{"count":2,"results":[{"id":1,"sendbirdId":"jayne"},{"id":2,"sendbirdId":"jay"}]}`: "",
		`{"count":0,"results":[]}`:                              "there is no such customer",
		`{"count":1,"results":[{"id":1,"sendbirdId":"jayne"}]}`: "there is no such customer",
		`{"count":9,"results":[{"id":1,"sendbirdId":"jayne"}]}`: "other customers are listed",
		`{}`: "no JSON of the documented shape",
	} {
		s.Script(sendbirdtest.FindCustomers, sendbirdtest.Status(200, nil, body))
		got, err := c.CustomerBySendbirdID(t.Context(), "jay")
		if want == "" && (err != nil || got.ID != 2) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %+v, %v", body, got, err)
		}
		if errors.Is(err, sendbird.ErrNoCustomer) != strings.HasPrefix(want, "there is no") {
			t.Errorf("%s: %v", body, err)
		}
	}
}

// roundTrip makes, finds and deletes a user and a key of its metadata.
func roundTrip(t *testing.T, id, key string) {
	s, c := chatAndDesk(t, sendbirdtest.Options{}, once)
	ctx := t.Context()
	steps := []func() error{
		func() error {
			got, err := c.CreateUser(ctx, sendbird.NewUser{ID: id, Nickname: "x"})
			if err == nil && got.ID != id {
				err = fmt.Errorf("created %q", got.ID)
			}
			return err
		},
		func() error {
			got, err := c.User(ctx, id)
			if err == nil && got.ID != id {
				err = fmt.Errorf("got %q", got.ID)
			}
			return err
		},
		func() error { return second(c.DeactivateUser(ctx, id, true)) },
		func() error {
			return second(c.UpdateMetadata(ctx, id, map[string]string{key: "v", "other": "v"}, true))
		},
		func() error { return c.DeleteMetadata(ctx, id, key) },
		func() error { return second(c.CreateCustomer(ctx, id)) },
		func() error {
			got, err := c.CustomerBySendbirdID(ctx, id)
			if err == nil && got.SendbirdID != id {
				err = fmt.Errorf("found %q", got.SendbirdID)
			}
			return err
		},
		func() error {
			if u, ok := s.User(id); !ok || u.IsActive || key != "other" && !cmp.Equal(u.Metadata, map[string]string{"other": "v"}) {
				return fmt.Errorf("the fake has %+v", u)
			}
			return nil
		},
		func() error { return c.DeleteUser(ctx, id) },
	}
	for i, step := range steps {
		if err := step(); err != nil {
			t.Fatalf("id %q, key %q, step %d: %v", id, key, i, err)
		}
	}
	if _, there := s.User(id); there {
		t.Errorf("id %q is still there", id)
	}
}

var oddNames = []string{
	"jay", "a/b", "a%2Fb", "%", "100%", "a?b=c", "a#b", "a b", " ", "+4790", "jay@example.com", "a&b;c=d:e", "é", "日本", "🙂",
	"a/../b", "../..", "...", "%2e%2e", ".a", "metadata", "a\\b", `"`, "'", "~", "a/metadata/b", "\u00a0", "\u202e",
}

func TestNamesAreEscaped(t *testing.T) {
	for _, name := range oddNames {
		t.Run(name, func(t *testing.T) { roundTrip(t, name, name) })
	}
	s, c := chatAndDesk(t, sendbirdtest.Options{}, once)
	_ = c.DeleteMetadata(t.Context(), "a/b +é", "100%?")
	if got, want := s.Calls()[0].Path, "/v3/users/a%2Fb%20%2B%C3%A9/metadata/100%25%3F"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// FuzzEscaping: an id and a key that pass come out at the other end as they went in,
// and those that do not are never sent.
func FuzzEscaping(f *testing.F) {
	for i, name := range oddNames {
		f.Add(name, oddNames[len(oddNames)-1-i])
	}
	f.Add("..", "")
	f.Fuzz(func(t *testing.T, id, key string) {
		u := sendbird.NewUser{ID: id, Nickname: "x"}
		if err := errors.Join(u.Check(), sendbird.CheckMetadata(map[string]string{key: "v"})); err != nil {
			s, c := chatAndDesk(t, sendbirdtest.Options{}, once)
			if c.DeleteMetadata(t.Context(), id, key) == nil || len(s.Calls()) > 0 {
				t.Errorf("id %q, key %q: sent", id, key)
			}
			return
		}
		roundTrip(t, id, key)
	})
}
