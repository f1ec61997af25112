package sendbird

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Limits of a user; pageUser. [MaxUserIDLength] is the id's.
const (
	MaxNicknameLength     = 80   // characters
	MaxProfileURLLength   = 2048 // characters
	MaxPreferredLanguages = 4
)

// NewUser is a user to create. Its JSON is the body of Sendbird's call.
type NewUser struct {
	ID       string `json:"user_id"`
	Nickname string `json:"nickname"`
	// ProfileURL is the address of a picture; it may be empty.
	ProfileURL string `json:"profile_url"`
	// IssueAccessToken asks for a token that the user logs in with; it comes back in
	// [User.AccessToken].
	IssueAccessToken bool     `json:"issue_access_token,omitzero"`
	DiscoveryKeys    []string `json:"discovery_keys,omitempty"`
	// Metadata is as [Client.UpdateMetadata] takes it.
	Metadata map[string]string `json:"metadata,omitempty"`
}

// Check says why Sendbird would refuse the user, with a [*LimitError]. It connects
// to nobody, and [Client.CreateUser] begins with it.
func (u *NewUser) Check() error {
	if err := checkSegment("user_id", u.ID, MaxUserIDLength, pageUser); err != nil {
		return err
	}
	if u.Nickname == "" {
		return &LimitError{"nickname", "empty", "1 to 80 characters", pageUser}
	}
	if err := checkProfile(&u.Nickname, &u.ProfileURL, u.DiscoveryKeys); err != nil {
		return err
	}
	if len(u.Metadata) == 0 {
		return nil
	}
	return CheckMetadata(u.Metadata)
}

// UserUpdate is what to change about a user; what is nil stays as it is. Its JSON
// is the body of Sendbird's call. Metadata is changed with [Client.UpdateMetadata].
type UserUpdate struct {
	Nickname   *string `json:"nickname,omitzero"`
	ProfileURL *string `json:"profile_url,omitzero"`
	// IssueAccessToken asks for a new token; the old one ends.
	IssueAccessToken *bool `json:"issue_access_token,omitzero"`
	// IsActive is what [Client.ActivateUser] and [Client.DeactivateUser] set.
	IsActive *bool `json:"is_active,omitzero"`
	// LastSeenAt is in milliseconds since 1970.
	LastSeenAt *int64 `json:"last_seen_at,omitzero"`
	// DiscoveryKeys and PreferredLanguages replace those there are; an empty list
	// that is not nil clears them.
	DiscoveryKeys      []string `json:"discovery_keys,omitzero"`
	PreferredLanguages []string `json:"preferred_languages,omitzero"`
	// LeaveAll goes with IsActive false: the user leaves all group channels. Sendbird
	// takes nil for true.
	LeaveAll *bool `json:"leave_all_when_deactivated,omitzero"`
}

// Check says why Sendbird would refuse the change, with a [*LimitError]. It connects
// to nobody, and [Client.UpdateUser] begins with it.
func (u *UserUpdate) Check() error {
	if err := checkProfile(u.Nickname, u.ProfileURL, u.DiscoveryKeys); err != nil {
		return err
	}
	if n := len(u.PreferredLanguages); n > MaxPreferredLanguages {
		return &LimitError{"preferred_languages", counted(n, "language"), "at most 4", pageUpdateUser}
	}
	for i, language := range u.PreferredLanguages {
		if language == "" || !isLine(language) {
			return &LimitError{fmt.Sprintf("preferred_languages[%d]", i), quoted(language), "must be text of one line, not empty", ""}
		}
	}
	if u.LastSeenAt != nil && *u.LastSeenAt < 0 {
		return &LimitError{"last_seen_at", strconv.FormatInt(*u.LastSeenAt, 10), "milliseconds since 1970", pageUpdateUser}
	}
	if b, err := json.Marshal(u); err == nil && string(b) == "{}" {
		return &LimitError{"update", "nothing to change", "at least one field", pageUpdateUser}
	}
	return nil
}

func checkProfile(nickname, profileURL *string, discoveryKeys []string) error {
	for _, f := range []struct {
		field string
		value *string
		most  int
	}{{"nickname", nickname, MaxNicknameLength}, {"profile_url", profileURL, MaxProfileURLLength}} {
		if f.value == nil {
			continue
		}
		if err := checkLine(f.field, *f.value, f.most, pageUser); err != nil {
			return err
		}
	}
	for i, key := range discoveryKeys {
		if key == "" || !isLine(key) {
			return &LimitError{fmt.Sprintf("discovery_keys[%d]", i), quoted(key), "must be text of one line, not empty", ""}
		}
	}
	return nil
}

// checkLine wants text of one line and at most so many characters. It does not show
// the text.
func checkLine(field, text string, most int, page string) error {
	if n := utf8.RuneCountInString(text); n > most {
		return &LimitError{field, counted(n, "character"), "at most " + counted(most, "character"), page}
	}
	if !isLine(text) {
		return &LimitError{field, "text with control characters or invalid UTF-8", "must be text of one line", ""}
	}
	return nil
}

// checkSegment wants what can stand in a URL as one segment of its path. "." and
// ".." cannot, however they are escaped: what lies in between resolves them, and the
// call would be about something else.
func checkSegment(field, text string, most int, page string) error {
	switch text {
	case "":
		return &LimitError{field, "empty", "1 to " + counted(most, "character"), page}
	case ".", "..":
		return &LimitError{field, quoted(text), "it stands in the path of a URL, where this means another place", ""}
	}
	return checkLine(field, text, most, page)
}

// escape is text as one segment of a path. It leaves letters, digits and -_.~ as
// they are and nothing else: a "+" in a path is a blank to some.
func escape(text string) string { return strings.ReplaceAll(url.QueryEscape(text), "+", "%20") }

func userPath(id string) string { return "/v3/users/" + escape(id) }

// User is a user of Chat.
type User struct {
	ID         string `json:"user_id"`
	Nickname   string `json:"nickname"`
	ProfileURL string `json:"profile_url"`
	// AccessToken is a secret; empty unless one was issued.
	AccessToken     string            `json:"access_token"`
	IsActive        bool              `json:"is_active"`
	IsOnline        bool              `json:"is_online"`
	LastSeenAt      Time              `json:"last_seen_at"`
	CreatedAt       Time              `json:"created_at"`
	HasEverLoggedIn bool              `json:"has_ever_logged_in"`
	Metadata        map[string]string `json:"metadata"`
	// Raw is the whole resource as it came.
	Raw jsontext.Value `json:"-"`
}

func (u *User) complete() bool { return u.ID != "" }

// UnmarshalJSON insists on the id alone: a change at Sendbird in something beside it
// must not make a failure of what succeeded.
func (u *User) UnmarshalJSON(b []byte) error {
	type plain User
	var all plain
	if json.Unmarshal(b, &all) != nil {
		var least struct {
			ID string `json:"user_id"`
		}
		if err := json.Unmarshal(b, &least); err != nil {
			return err
		}
		all = plain{ID: least.ID}
	}
	*u = User(all)
	u.Raw = bytes.Clone(b)
	return nil
}

// CreateUser creates a user. One that exists is refused with [CodeExists], unless
// the answer to an earlier attempt of this very call got lost, and the user has the
// nickname asked for: then it is the one that this call created.
//
// https://sendbird.com/docs/chat/platform-api/v3/user/creating-users/create-a-user
func (c *Client) CreateUser(ctx context.Context, u NewUser) (User, error) {
	if err := u.Check(); err != nil {
		return User{}, err
	}
	body, err := json.Marshal(u, json.Deterministic(true))
	if err != nil { // Check has seen to all that JSON minds
		return User{}, &CallError{Call: endpointCreateUser.String(), Outcome: Refused, Err: errNoBody}
	}
	var user User
	err = c.repeat(ctx, harmless, func(lost bool) error {
		err := c.call(ctx, endpointCreateUser, "/v3/users", body, &user)
		if !lost || !hasCode(err, CodeExists) {
			return err
		}
		var there User
		if err := c.call(ctx, endpointGetUser, userPath(u.ID), nil, &there); err != nil {
			return err
		}
		if strings.TrimSpace(there.Nickname) != strings.TrimSpace(u.Nickname) {
			return err // it was there before
		}
		user = there
		return nil
	})
	return user, err
}

// User gets a user. One that does not exist is refused with [CodeNotFound] or
// [CodeUserNotFound].
//
// https://sendbird.com/docs/chat/platform-api/v3/user/listing-users/get-a-user
func (c *Client) User(ctx context.Context, id string) (User, error) {
	if err := checkSegment("user_id", id, MaxUserIDLength, pageUser); err != nil {
		return User{}, err
	}
	var user User
	err := c.repeat(ctx, harmless, func(bool) error {
		return c.call(ctx, endpointGetUser, userPath(id), nil, &user)
	})
	return user, err
}

// UpdateUser changes a user, and returns it as Sendbird has it then.
//
// https://sendbird.com/docs/chat/platform-api/v3/user/managing-users/update-a-user
func (c *Client) UpdateUser(ctx context.Context, id string, u UserUpdate) (User, error) {
	if err := checkSegment("user_id", id, MaxUserIDLength, pageUser); err != nil {
		return User{}, err
	}
	if err := u.Check(); err != nil {
		return User{}, err
	}
	body, err := json.Marshal(u, json.Deterministic(true))
	if err != nil { // Check has seen to all that JSON minds
		return User{}, &CallError{Call: endpointUpdateUser.String(), Outcome: Refused, Err: errNoBody}
	}
	var r reply
	err = c.repeat(ctx, harmless, func(bool) error {
		return c.call(ctx, endpointUpdateUser, userPath(id), body, &r)
	})
	return read[User](r), err
}

// read is a resource that came with a success; where it has no shape that is known
// it holds nothing but Raw.
func read[T any, P interface {
	*T
	UnmarshalJSON([]byte) error
}](r reply,
) T {
	var resource T
	if r.raw != nil {
		_ = P(&resource).UnmarshalJSON(r.raw)
	}
	return resource
}

// ActivateUser lets a user log in again.
func (c *Client) ActivateUser(ctx context.Context, id string) (User, error) {
	return c.UpdateUser(ctx, id, UserUpdate{IsActive: new(true)})
}

// DeactivateUser keeps a user from logging in. With leaveAll it also leaves all its
// group channels, which activating does not undo.
func (c *Client) DeactivateUser(ctx context.Context, id string, leaveAll bool) (User, error) {
	return c.UpdateUser(ctx, id, UserUpdate{IsActive: new(false), LeaveAll: &leaveAll})
}

// DeleteUser deletes a user with its metadata; its messages stay. One that does not
// exist is refused, unless the answer to an earlier attempt of this very call got
// lost.
//
// https://sendbird.com/docs/chat/platform-api/v3/user/managing-users/delete-a-user
func (c *Client) DeleteUser(ctx context.Context, id string) error {
	if err := checkSegment("user_id", id, MaxUserIDLength, pageUser); err != nil {
		return err
	}
	return c.remove(ctx, endpointDeleteUser, userPath(id))
}

// remove deletes something; what is gone after an attempt of unknown outcome was
// deleted by it.
func (c *Client) remove(ctx context.Context, e endpoint, path string) error {
	return c.repeat(ctx, harmless, func(lost bool) error {
		err := c.call(ctx, e, path, nil, new(reply))
		if lost && hasCode(err, CodeNotFound, CodeUserNotFound) {
			return nil
		}
		return err
	})
}
