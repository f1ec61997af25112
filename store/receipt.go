package store

import "time"

// Receipt is one SENT or READ fact about one notification for one user, ready
// to leave. It is the one type of the whole journey: the door makes it, a frame
// carries it, the relay uploads its Record, a dead letter keeps it.
//
// What is stored outlives a deploy: fields are only ever added (see frame.go).
type Receipt struct {
	// Record is the CleverTap-ready record, ts stamped, as it goes between
	// `{"d":[` and `]}`. Nothing parses it again on the fast path. Of a receipt
	// refused at the door (Reason is set) it is the record as it came.
	Record []byte
	// User is the order key: receipts of equal User leave in the order in which
	// they came. It is a hash of the identity's kind and value; two users that
	// collide only wait for each other.
	User uint64
	// Key tells whether two receipts are the same; see Key.
	Key Key
	// Reason is empty for a receipt that is to be delivered. One that may not
	// leave (refused at the door) travels marked with its reason, and the relay
	// moves it to the dead letters when it gets there: one commit path for both.
	Reason Reason
	// Code is the CleverTap record code beside Reason, 0 if there is none.
	Code int
	// Origin is set on a replayed receipt: the place of the life that just died.
	Origin Place
	// Accepted is when the receipt was first taken in. A frame carries it only
	// for replayed receipts; for all others it is the frame's own time.
	Accepted time.Time
}

// Key is the dedup key: the first 128 bits of a SHA-256 over what makes two
// receipts the same. It joins the same call made again: equal user, event name,
// evtData (all properties, in any order of keys) and, where the caller gave one,
// equal ts. It keeps apart SENT and READ, users, targets and any differing
// property; a ts that birdtap stamped is no part of it. A collision would lose a
// receipt, hence a strong hash.
type Key [16]byte

// Place names one receipt on the queue: the sequence of its frame and its index
// in it. Sequences begin at 1, so the zero Place is no place.
type Place struct {
	Seq   uint64
	Index int
}

// IsZero tells whether p is no place at all.
func (p Place) IsZero() bool { return p == Place{} }

// valid tells whether p can be the place of a receipt.
func (p Place) valid() bool { return p.Seq > 0 && isCount(p.Index) }

// Reason says why a receipt is dead. It is also the label of the metric
// birdtap_receipts_dead_total and the value of --reason. A record code of
// CleverTap ("512", "528", "555" …) is a reason, too.
type Reason string

// The reasons that are no CleverTap record code.
const (
	ReasonRefused  Reason = "refused"  // at the door, with its code beside
	ReasonHTTP400  Reason = "http_400" // CleverTap answers 400 to this record alone
	ReasonHTTP413  Reason = "http_413" // CleverTap answers 413 to this record alone
	ReasonUnclear  Reason = "unclear"  // no answer about this record could ever be understood
	ReasonUnmapped Reason = "unmapped" // an identity map is loaded, and this user is not in it
	ReasonCorrupt  Reason = "corrupt"  // a frame that does not decode, kept whole
)

// Letter is one dead receipt, and why it is dead.
type Letter struct {
	Receipt Receipt // Receipt.Origin is unused here; Origin below is the place it died at
	Reason  Reason
	Code    int // CleverTap's record code or the HTTP status; 0 if there is none
	Tries   int // calls that carried it
	Died    time.Time
	Origin  Place // the queue place of the life that just died
}
