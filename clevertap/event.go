package clevertap

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"
)

// Limits of the upload call.
const (
	// MaxRecords is how many records one call may carry, events of any mix of
	// users; https://developer.clevertap.com/docs/upload-events-api.
	MaxRecords = 1000
	// MaxInflight is how many event uploads of one account may be in flight at
	// once; the next one is answered 429. There is no limit per time. Every
	// uploader of the account shares the 15;
	// https://developer.clevertap.com/docs/api-request-limit.
	MaxInflight = 15
	// MaxProperties is how many properties evtData may have. Pages disagree:
	// 100, adjustable per account, on
	// https://developer.clevertap.com/docs/upload-events-api, 256 in older
	// texts. This is the laxer one; the account's own shows as code 522.
	MaxProperties = 256
	// MaxPropertyName is the length of a property's name in characters;
	// https://developer.clevertap.com/docs/upload-events-api.
	MaxPropertyName = 120
	// MaxPropertyValue is the length of a property's value in bytes;
	// https://developer.clevertap.com/docs/upload-events-api. (An older page on
	// https://docs.clevertap.com counts characters.)
	MaxPropertyValue = 512
)

// Names of the members that say whose event it is. A record has exactly one of
// them, and a value that CleverTap does not know creates a new profile;
// https://developer.clevertap.com/docs/upload-events-api.
const (
	Identity = "identity"
	ObjectID = "objectId"
	FBID     = "FBID"
	GPID     = "GPID"
)

// Code says why CleverTap refused one record of a call. Codes not listed here
// exist (514 to 520 and 530 to 535 concern profiles and tokens, which share the
// path) and more may come: they are refusals like the others;
// https://developer.clevertap.com/docs/api-errors.
type Code int

// The codes an event may meet.
const (
	CodeNoEventName   Code = 509
	CodeStructure     Code = 512
	CodeReservedEvent Code = 513
	CodeProperties    Code = 522
	CodeNoIdentity    Code = 523
	CodeNotEvent      Code = 524
	CodeTimestamp     Code = 525
	CodeObjectID      Code = 526
	CodeDiscarded     Code = 528
	CodeServerError   Code = 555
)

// String is the meaning of c in a few words of ours, without personal data.
func (c Code) String() string {
	switch c {
	case CodeNoEventName:
		return "no event name"
	case CodeStructure:
		return "wrong event structure"
	case CodeReservedEvent:
		return "restricted system event"
	case CodeProperties:
		return "too many or too large properties"
	case CodeNoIdentity:
		return "no identity"
	case CodeNotEvent:
		return "neither event nor profile"
	case CodeTimestamp:
		return "time not in epoch seconds"
	case CodeObjectID:
		return "objectId invalid"
	case CodeDiscarded:
		return "discarded event"
	case CodeServerError:
		return "miscellaneous server error"
	default:
		return "code " + strconv.Itoa(int(c))
	}
}

// Passing tells whether the same record may be accepted at another time without
// anybody doing anything. That is 555 alone; a discarded event (528) needs an
// operator to restore it first.
func (c Code) Passing() bool { return c == CodeServerError }

// Refusal is one entry of `unprocessed` on the wire: a record that CleverTap did
// not take.
//
//	{"status":"fail","code":525,"error":"… Skipped record number : 1","record":{…}}
//
// Error and Record are personal data and belong in no log.
type Refusal struct {
	Status string         `json:"status"` // "fail"
	Code   Code           `json:"code"`
	Error  string         `json:"error"`  // ends in "Skipped record number : N", N from 1 within d
	Record jsontext.Value `json:"record"` // the record, echoed
}

// reserved are the names of CleverTap's own events, as they look without letter
// case and spaces, by their documented spelling; "Reserved event names" on
// https://docs.clevertap.com (platform considerations). Further system events
// exist; whether uploading those is refused is not documented.
var reserved = map[string]string{
	"notificationsent":      "Notification Sent",
	"notificationviewed":    "Notification Viewed",
	"notificationclicked":   "Notification Clicked",
	"notificationdelivered": "Notification Delivered",
	"notificationreplied":   "Notification Replied",
	"utmvisited":            "UTM Visited",
	"applaunched":           "App Launched",
	"appuninstalled":        "App Uninstalled",
	"appversionchanged":     "App Version Changed",
	"stayed":                "Stayed",
	"replysent":             "Reply Sent",
	"experimentrendered":    "Experiment Rendered",
	"reachableby":           "Reachable By",
	"identityreset":         "Identity Reset",
	"identityset":           "Identity Set",
	"identityerror":         "Identity Error",
}

// maxReserved is the length of the longest key of reserved, in bytes.
const maxReserved = len("notificationdelivered")

// ReservedEvent tells whether name is one of CleverTap's own events, which give
// code 513. CleverTap takes event names for equal whatever their letter case and
// spaces, so "notificationsent" is reserved, too. It does not allocate.
func ReservedEvent(name string) bool {
	var folded [maxReserved]byte
	n := 0
	for _, r := range name {
		if unicode.IsSpace(r) {
			continue
		}
		r = unicode.ToLower(r)
		if r < 'a' || r > 'z' || n == len(folded) {
			return false
		}
		folded[n] = byte(r)
		n++
	}
	_, ok := reserved[string(folded[:n])]
	return ok
}

// DefaultURL is the host of region eu1, CleverTap's default;
// https://developer.clevertap.com/docs/common-api-components.
const DefaultURL = "https://api.clevertap.com"

// regions are the documented hosts;
// https://developer.clevertap.com/docs/common-api-components.
var regions = map[string]string{
	"eu1":  DefaultURL, // Europe: the bare host; eu1.api.clevertap.com is documented nowhere
	"in1":  "https://in1.api.clevertap.com",
	"sg1":  "https://sg1.api.clevertap.com",
	"us1":  "https://us1.api.clevertap.com",
	"aps3": "https://aps3.api.clevertap.com", // Indonesia
	"mec1": "https://mec1.api.clevertap.com", // Middle East
}

// URLForRegion is the address of a region as the dashboard names it: eu1, in1,
// sg1, us1, aps3 or mec1, in any letter case.
func URLForRegion(region string) (string, error) {
	if url, ok := regions[strings.ToLower(region)]; ok {
		return url, nil
	}
	return "", fmt.Errorf("unknown CleverTap region %q: want eu1, in1, sg1, us1, aps3 or mec1", region)
}
