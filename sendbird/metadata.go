package sendbird

import (
	"context"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Limits of a user's metadata; pageMetadata.
const (
	// MaxMetadataItems are stored of a user, so that a change of few may be refused,
	// too ([CodeTooManyItems]).
	MaxMetadataItems       = 5
	MaxMetadataKeyLength   = 128 // characters
	MaxMetadataValueLength = 190 // characters
)

// CheckMetadata says why Sendbird would refuse the pairs, with a [*LimitError]. It
// connects to nobody, and [Client.UpdateMetadata] begins with it.
func CheckMetadata(pairs map[string]string) error {
	return checkPairs(pairs, pairLimits{
		field: "metadata", items: MaxMetadataItems,
		key: MaxMetadataKeyLength, value: MaxMetadataValueLength, page: pageMetadata,
	})
}

// pairLimits are those of metadata, or of custom fields.
type pairLimits struct {
	field      string
	items      int
	key, value int // characters
	page       string
}

// checkPairs wants at least one pair, and shows no value. It goes by the keys in
// their order, so that the same mistake has the same words.
func checkPairs(pairs map[string]string, most pairLimits) error {
	if n := len(pairs); n < 1 || n > most.items {
		return &LimitError{most.field, counted(n, "item"), "1 to " + counted(most.items, "item"), most.page}
	}
	for _, key := range slices.Sorted(maps.Keys(pairs)) {
		if err := checkKey(key, most); err != nil {
			return err
		}
		value, at := pairs[key], most.field+"["+quoted(key)+"]"
		if n := utf8.RuneCountInString(value); n > most.value {
			return &LimitError{at, counted(n, "character"), "at most " + counted(most.value, "character"), most.page}
		}
		if !utf8.ValidString(value) {
			return &LimitError{at, "invalid UTF-8", "must be text", ""}
		}
	}
	return nil
}

// checkKey judges a key, which may stand in a path.
func checkKey(key string, most pairLimits) error {
	field := most.field + " key"
	if strings.Contains(key, ",") {
		return &LimitError{field, quoted(key), "no comma in it", most.page}
	}
	return checkSegment(field, key, most.key, most.page)
}

// Metadata is what Sendbird says about a user's metadata after a change.
type Metadata struct {
	// Items are the pairs of the answer; whether those that were not changed are
	// among them is not documented.
	Items map[string]string
	// Raw is the whole answer.
	Raw jsontext.Value
}

// UpdateMetadata changes the values of a user's metadata, and with upsert adds the
// pairs whose keys are not there yet; without, those are left out. Other pairs stay
// as they are.
//
// https://sendbird.com/docs/chat/platform-api/v3/user/managing-metadata/user-update-metadata
func (c *Client) UpdateMetadata(ctx context.Context, id string, pairs map[string]string, upsert bool) (Metadata, error) {
	if err := checkSegment("user_id", id, MaxUserIDLength, pageUser); err != nil {
		return Metadata{}, err
	}
	if err := CheckMetadata(pairs); err != nil {
		return Metadata{}, err
	}
	body, err := json.Marshal(struct {
		Metadata map[string]string `json:"metadata"`
		Upsert   bool              `json:"upsert"`
	}{pairs, upsert}, json.Deterministic(true))
	if err != nil { // the check has seen to all that JSON minds
		return Metadata{}, &CallError{Call: endpointUpdateMetadata.String(), Outcome: Refused, Err: errNoBody}
	}
	var r reply
	err = c.repeat(ctx, harmless, func(bool) error {
		return c.call(ctx, endpointUpdateMetadata, userPath(id)+"/metadata", body, &r)
	})
	return parseMetadata(r.raw), err
}

// parseMetadata finds the pairs, alone as documented or under "metadata".
func parseMetadata(raw jsontext.Value) Metadata {
	m := Metadata{Raw: raw}
	var around struct {
		Metadata map[string]string `json:"metadata"`
	}
	if json.Unmarshal(raw, &around) == nil && around.Metadata != nil {
		m.Items = around.Metadata
	} else if json.Unmarshal(raw, &m.Items) != nil {
		m.Items = nil
	}
	return m
}

// DeleteMetadata deletes one pair of a user's metadata. A key that is not there is
// Sendbird's to refuse, unless the answer to an earlier attempt of this very call
// got lost.
//
// https://sendbird.com/docs/chat/platform-api/v3/user/managing-metadata/user-delete-metadata
func (c *Client) DeleteMetadata(ctx context.Context, id, key string) error {
	if err := checkSegment("user_id", id, MaxUserIDLength, pageUser); err != nil {
		return err
	}
	if err := checkKey(key, pairLimits{field: "metadata", key: MaxMetadataKeyLength, page: pageMetadata}); err != nil {
		return err
	}
	return c.remove(ctx, endpointDeleteMetadata, userPath(id)+"/metadata/"+escape(key))
}

// DeleteAllMetadata deletes all pairs of a user's metadata.
//
// https://sendbird.com/docs/chat/platform-api/v3/user/managing-metadata/user-delete-metadata
func (c *Client) DeleteAllMetadata(ctx context.Context, id string) error {
	if err := checkSegment("user_id", id, MaxUserIDLength, pageUser); err != nil {
		return err
	}
	return c.remove(ctx, endpointDeleteMetadata, userPath(id)+"/metadata")
}
