package sender

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/birdtap/birdtap/sendbird"
	"github.com/birdtap/birdtap/store"
)

// Mode is how users are to be sent to.
type Mode string

// The three ways. A batch with more than 10,000 users at hand leaves as a file.
const (
	ModeRealtime Mode = "realtime" // a call for each user, at once
	ModeBatch    Mode = "batch"    // one call for up to 10,000 users
	ModeCSV      Mode = "csv"      // one call for a file of up to 100,000 users
)

// Message is what all users of a call have in common. Users of equal messages may go in
// one call.
type Message struct {
	Mode     Mode              `json:"mode"`
	Template string            `json:"template"`
	Event    string            `json:"event,omitempty"`  // event name of the campaign
	Target   string            `json:"target,omitempty"` // target id of the campaign, its digits
	Tag      string            `json:"tag,omitempty"`
	Title    string            `json:"title,omitempty"`
	Priority sendbird.Priority `json:"priority,omitempty"`
	Push     map[string]string `json:"push,omitempty"`
	Job      string            `json:"job,omitempty"` // id of a file sent from the command line
}

// User is one target, and its template variables.
type User struct {
	ID        string             `json:"id"` // Sendbird's user id
	Variables sendbird.Variables `json:"vars,omitempty"`
}

// Unsendable is somebody who cannot be sent to, as the door found out.
type Unsendable struct {
	User   string `json:"user,omitempty"` // as far as known: Sendbird's user id, or CleverTap's identity
	Reason Reason `json:"reason"`
	Detail string `json:"detail,omitempty"` // in words, without values: `no field "SendbirdID"`
}

// Reason says why a user was not sent to. Sendbird's codes are reasons, too: "400301".
type Reason string

// The reasons that are not Sendbird's codes.
const (
	ReasonNoReceiver Reason = "no_receiver" // the profile has no usable Sendbird user id
	ReasonVariables  Reason = "variables"   // a template variable is missing, too many, or not of its type
	ReasonInvalid    Reason = "invalid"     // against a limit that Sendbird documents
	ReasonHTTP       Reason = "http"        // Sendbird refused the call without a code
	ReasonCorrupt    Reason = "corrupt"     // the stored ask does not decode
)

// Ask is one entry of the sender's log: users who are to get a message.
//
// It is kept as JSON and outlives a deploy: fields are only added.
type Ask struct {
	Format int `json:"format"` // askFormat

	Message
	Users      []User       `json:"users,omitempty"` // each once
	Unsendable []Unsendable `json:"unsendable,omitempty"`

	// Of a file sent from the command line: its parts are numbered from 0, and the last
	// one says so. A part that comes again is dropped.
	Part int  `json:"part,omitzero"`
	Last bool `json:"last,omitzero"`
}

const askFormat = 1

// maxAskUsers bounds the users of one ask, so that it stays well below store.MaxAskBytes;
// what has more becomes several. It never changes: a webhook call that is made again while
// another version takes over has to become the same asks.
const maxAskUsers = 1000

// Encode returns the asks as the store keeps them, those taken apart that are too large,
// or whose users cannot go in one call.
// A part of a file is not taken apart: its number would come twice, so that is an error.
// Equal key and equal asks give equal keys, which tell that the same call was made again;
// an empty key gives ones that are never equal to others.
func Encode(key []byte, asks []Ask) ([]store.Ask, error) {
	var all []store.Ask
	pieces := apart(asks)
	if len(pieces) > len(asks) && slices.ContainsFunc(asks, func(a Ask) bool { return a.Job != "" }) {
		return nil, errPart
	}
	for _, a := range pieces {
		for {
			part, rest, err := a.cut()
			if err != nil {
				return nil, err
			}
			entry := store.Ask{Data: part}
			if len(key) > 0 {
				sum := sha256.Sum256(fmt.Appendf(nil, "%d %s", len(all), key))
				entry.Key = store.Key(sum[:len(entry.Key)])
			}
			all = append(all, entry)
			if rest == nil {
				break
			}
			if a.Job != "" {
				return nil, errPart
			}
			a = *rest
		}
	}
	return all, nil
}

// apart makes asks of which all users may go in one call: in real time each goes alone,
// and else their variables have the same names.
func apart(asks []Ask) []Ask {
	var all []Ask
	for _, a := range asks {
		byNames, order := map[string][]User{}, []string(nil)
		for i, u := range a.Users {
			key := strings.Join(slices.Sorted(maps.Keys(u.Variables)), "\x00")
			if a.Mode == ModeRealtime {
				key = strconv.Itoa(i)
			}
			if _, known := byNames[key]; !known {
				order = append(order, key)
			}
			byNames[key] = append(byNames[key], u)
		}
		if len(order) == 0 {
			all = append(all, a)
		}
		for i, key := range order {
			if a.Users = byNames[key]; i > 0 {
				a.Unsendable = nil
			}
			all = append(all, a)
		}
	}
	return all
}

var errPart = errors.New("a part of a file is one ask: of at most 1000 users, with variables of equal names, in real time of one")

var errAskTooLarge = errors.New("what one user gets takes more room than an ask has")

// cut encodes as many of an ask's users as fit, and returns what is left.
func (a Ask) cut() ([]byte, *Ask, error) {
	a.Format = askFormat
	var rest *Ask
	if len(a.Users) > maxAskUsers || len(a.Unsendable) > maxAskUsers {
		rest = a.split(maxAskUsers)
	}
	for {
		data, err := json.Marshal(a, json.Deterministic(true))
		if err != nil {
			return nil, nil, fmt.Errorf("encode ask: %w", err)
		}
		if len(data) <= store.MaxAskBytes {
			return data, rest, nil
		}
		if len(a.Users) <= 1 && len(a.Unsendable) <= 1 {
			return nil, nil, errAskTooLarge
		}
		less := a.split(max(1, max(len(a.Users), len(a.Unsendable))/2))
		if rest != nil {
			less.Users = append(slices.Clip(less.Users), rest.Users...)
			less.Unsendable = append(slices.Clip(less.Unsendable), rest.Unsendable...)
		}
		rest = less
	}
}

// split keeps n users and n unsendable ones at most, and returns an ask of the others.
func (a *Ask) split(n int) *Ask {
	rest := *a
	users, unsendable := min(n, len(a.Users)), min(n, len(a.Unsendable))
	rest.Users, rest.Unsendable = a.Users[users:], a.Unsendable[unsendable:]
	a.Users, a.Unsendable = a.Users[:users], a.Unsendable[:unsendable]
	return &rest
}

// decodeAsk reads an ask back. Of one that a newer birdtap wrote it returns what it could
// read, which is good for counting, beside the error.
func decodeAsk(data []byte) (Ask, error) {
	var a Ask
	if err := json.Unmarshal(data, &a); err != nil {
		return Ask{}, fmt.Errorf("%w: ask: %w", store.ErrCorrupt, err)
	}
	if a.Format > askFormat {
		return a, fmt.Errorf("%w: ask of format %d, this one reads up to %d", store.ErrNewer, a.Format, askFormat)
	}
	return a, nil
}
