package sendbirdtest

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/birdtap/birdtap/sendbird"
)

// actionRoutes are the calls of Chat and Desk. One that is not here is answered 404,
// or 405 where the path is.
var actionRoutes = []struct {
	method, path string
	at           Endpoint
}{
	{http.MethodPost, "/v3/users", CreateUser},
	{http.MethodGet, "/v3/users/*", GetUser},
	{http.MethodPut, "/v3/users/*", UpdateUser},
	{http.MethodDelete, "/v3/users/*", DeleteUser},
	{http.MethodPut, "/v3/users/*/metadata", UpdateMetadata},
	{http.MethodDelete, "/v3/users/*/metadata", DeleteMetadata},
	{http.MethodDelete, "/v3/users/*/metadata/*", DeleteMetadata},
	{http.MethodPost, "/platform/v1/customers", CreateCustomer},
	{http.MethodGet, "/platform/v1/customers", FindCustomers},
	{http.MethodGet, "/platform/v1/customers/*", GetCustomer},
	{http.MethodPatch, "/platform/v1/customers/*/custom_fields", CustomerFields},
	{http.MethodPost, "/platform/v1/tickets", CreateTicket},
}

func (at Endpoint) isChat() bool {
	return slices.Contains([]Endpoint{CreateUser, GetUser, UpdateUser, DeleteUser, UpdateMetadata, DeleteMetadata}, at)
}

// User is a user of Chat.
type User struct {
	ID, Nickname, ProfileURL string
	AccessToken              string // empty: none was issued
	IsActive                 bool
	// LeftChannels tells that the user left all group channels when it was
	// deactivated.
	LeftChannels                      bool
	CreatedAt, LastSeenAt             time.Time
	DiscoveryKeys, PreferredLanguages []string
	Metadata                          map[string]string
}

// User is the user with this id.
func (s *Server) User(id string) (User, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.users {
		if u.ID == id {
			u.Metadata = maps.Clone(u.Metadata)
			return u, true
		}
	}
	return User{}, false
}

// action carries out a call of Chat or Desk; false if it was refused. key is what the
// path names, as it is escaped.
func (s *Server) action(at Endpoint, r *http.Request, key string, body []byte) (response, bool) {
	var names []string
	for segment := range strings.SplitSeq(key, "/") {
		name, err := url.PathUnescape(segment)
		if err != nil {
			return refusal(400114, "Invalid URL."), false
		}
		names = append(names, name)
	}
	writes := r.Method == http.MethodPost || r.Method == http.MethodPut || r.Method == http.MethodPatch
	if writes && (!strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") || !jsontext.Value(body).IsValid()) {
		return refusal(400403, "Invalid JSON request body."), false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var answer response
	if at.isDesk() {
		answer = s.desk(at, r.URL.Query(), names[0], body)
	} else {
		answer = s.chat(at, names, body)
	}
	done := answer.status < 300
	if done {
		s.counts.Actions++
	}
	return answer, done
}

// chat is a call of Chat; s.mu is held.
func (s *Server) chat(at Endpoint, names []string, body []byte) response {
	if at == CreateUser {
		return s.createUser(body)
	}
	i := slices.IndexFunc(s.users, func(u User) bool { return u.ID == names[0] })
	if i < 0 {
		return refusal(400201, `"User" not found.`)
	}
	switch u := &s.users[i]; at {
	case GetUser:
		return jsonResponse(http.StatusOK, u.resource())
	case UpdateUser:
		return s.updateUser(u, body)
	case DeleteUser:
		s.users = slices.Delete(s.users, i, i+1)
		return jsonResponse(http.StatusOK, "{}")
	case UpdateMetadata:
		return updateMetadata(u, body)
	default:
		return deleteMetadata(u, names[1:])
	}
}

// wireUser is the body of a creation or an update. A member that is missing is not
// an empty one, hence the pointers.
type wireUser struct {
	ID                 *string           `json:"user_id"`
	Nickname           *string           `json:"nickname"`
	ProfileURL         *string           `json:"profile_url"`
	IssueAccessToken   bool              `json:"issue_access_token"`
	IsActive           *bool             `json:"is_active"`
	LastSeenAt         *int64            `json:"last_seen_at"`
	LeaveAll           *bool             `json:"leave_all_when_deactivated"`
	DiscoveryKeys      []string          `json:"discovery_keys"`
	PreferredLanguages []string          `json:"preferred_languages"`
	Metadata           map[string]string `json:"metadata"`
}

// refuse judges what a creation and an update have in common.
func (w *wireUser) refuse() (response, bool) {
	switch {
	case w.Nickname != nil && utf8.RuneCountInString(*w.Nickname) > sendbird.MaxNicknameLength:
		return refusal(400110, `"nickname" is too long.`), true
	case w.ProfileURL != nil && utf8.RuneCountInString(*w.ProfileURL) > sendbird.MaxProfileURLLength:
		return refusal(400110, `"profile_url" is too long.`), true
	case len(w.PreferredLanguages) > sendbird.MaxPreferredLanguages:
		return refusal(400203, `"preferred_languages" has too many items.`), true
	}
	return response{}, false
}

// change writes down what w says about a user.
func (s *Server) change(u *User, w *wireUser) {
	if w.Nickname != nil {
		u.Nickname = *w.Nickname
	}
	if w.ProfileURL != nil {
		u.ProfileURL = *w.ProfileURL
	}
	if w.IsActive != nil {
		u.IsActive = *w.IsActive
		u.LeftChannels = u.LeftChannels || !*w.IsActive && (w.LeaveAll == nil || *w.LeaveAll)
	}
	if w.LastSeenAt != nil {
		u.LastSeenAt = time.UnixMilli(*w.LastSeenAt)
	}
	if w.DiscoveryKeys != nil {
		u.DiscoveryKeys = w.DiscoveryKeys
	}
	if w.PreferredLanguages != nil {
		u.PreferredLanguages = w.PreferredLanguages
	}
	if w.IssueAccessToken {
		s.serial++
		u.AccessToken = fmt.Sprintf("access-token-%d", s.serial)
	}
}

func (s *Server) createUser(body []byte) response {
	var w wireUser
	if json.Unmarshal(body, &w) != nil {
		return refusal(400100, "Wrong type.")
	}
	for name, value := range map[string]*string{"user_id": w.ID, "nickname": w.Nickname, "profile_url": w.ProfileURL} {
		if value == nil {
			return refusal(400105, fmt.Sprintf("%q must be specified.", name))
		}
	}
	if answer, refused := w.refuse(); refused {
		return answer
	}
	switch {
	case *w.ID == "":
		return refusal(400111, `Invalid value: "user_id".`)
	case utf8.RuneCountInString(*w.ID) > sendbird.MaxUserIDLength:
		return refusal(400305, `"user_id" is too long.`)
	case slices.ContainsFunc(s.users, func(u User) bool { return u.ID == *w.ID }):
		return refusal(400202, `"user_id" violates unique constraint.`)
	}
	if answer, refused := refuseMetadata(w.Metadata); refused {
		return answer
	}
	u := User{ID: *w.ID, IsActive: true, CreatedAt: s.opts.Now(), Metadata: w.Metadata}
	if u.Metadata == nil {
		u.Metadata = map[string]string{}
	}
	s.change(&u, &w)
	s.users = append(s.users, u)
	return jsonResponse(http.StatusOK, u.resource())
}

func (s *Server) updateUser(u *User, body []byte) response {
	var w wireUser
	if json.Unmarshal(body, &w) != nil {
		return refusal(400100, "Wrong type.")
	}
	if answer, refused := w.refuse(); refused {
		return answer
	}
	s.change(u, &w)
	return jsonResponse(http.StatusOK, u.resource())
}

// resource is a user as Sendbird writes it.
func (u *User) resource() string {
	seen := int64(0)
	if !u.LastSeenAt.IsZero() {
		seen = u.LastSeenAt.UnixMilli()
	}
	return fmt.Sprintf(`{"user_id":%s,"nickname":%s,"profile_url":%s,"access_token":%s,`+
		`"is_active":%t,"is_online":false,"last_seen_at":%d,"created_at":%d,"has_ever_logged_in":false,`+
		`"discovery_keys":%s,"preferred_languages":%s,"metadata":%s}`,
		quote(u.ID), quote(u.Nickname), quote(u.ProfileURL), quote(u.AccessToken),
		u.IsActive, seen, u.CreatedAt.Unix(), listed(u.DiscoveryKeys), listed(u.PreferredLanguages), object(u.Metadata))
}

func listed(texts []string) string {
	quoted := make([]string, len(texts))
	for i, text := range texts {
		quoted[i] = quote(text)
	}
	return "[" + strings.Join(quoted, ",") + "]"
}

// object writes pairs in the order of their keys.
func object(pairs map[string]string) string {
	var members []string
	for _, key := range slices.Sorted(maps.Keys(pairs)) {
		members = append(members, quote(key)+":"+quote(pairs[key]))
	}
	return "{" + strings.Join(members, ",") + "}"
}

// refuseMetadata judges pairs as documented. Which code stands for which is a guess.
func refuseMetadata(pairs map[string]string) (response, bool) {
	if len(pairs) > sendbird.MaxMetadataItems {
		return refusal(400203, `"metadata" has too many items.`), true
	}
	for key, value := range pairs {
		switch {
		case strings.Contains(key, ","):
			return refusal(400151, `"metadata" has a key with a comma.`), true
		case key == "":
			return refusal(400111, `Invalid value: "metadata".`), true
		case utf8.RuneCountInString(key) > sendbird.MaxMetadataKeyLength, utf8.RuneCountInString(value) > sendbird.MaxMetadataValueLength:
			return refusal(400110, `"metadata" is too long.`), true
		}
	}
	return response{}, false
}

// updateMetadata answers with the pairs that were changed, as the documented sample
// may be read.
func updateMetadata(u *User, body []byte) response {
	var w struct {
		Metadata map[string]string `json:"metadata"`
		Upsert   bool              `json:"upsert"`
	}
	if json.Unmarshal(body, &w) != nil {
		return refusal(400100, "Wrong type.")
	}
	if w.Metadata == nil {
		return refusal(400105, `"metadata" must be specified.`)
	}
	if answer, refused := refuseMetadata(w.Metadata); refused {
		return answer
	}
	stored, changed := maps.Clone(u.Metadata), map[string]string{}
	for key, value := range w.Metadata {
		if _, there := stored[key]; there || w.Upsert {
			stored[key], changed[key] = value, value
		}
	}
	if len(stored) > sendbird.MaxMetadataItems {
		return refusal(400203, `"metadata" has too many items.`)
	}
	u.Metadata = stored
	return jsonResponse(http.StatusOK, object(changed))
}

// deleteMetadata deletes one key, or all. That a key must be there is a guess.
func deleteMetadata(u *User, keys []string) response {
	if len(keys) == 0 {
		u.Metadata = map[string]string{}
		return jsonResponse(http.StatusOK, "")
	}
	if _, there := u.Metadata[keys[0]]; !there {
		return refusal(400201, `"Metadata" not found.`)
	}
	stored := maps.Clone(u.Metadata)
	delete(stored, keys[0])
	u.Metadata = stored
	return jsonResponse(http.StatusOK, "")
}
