package ingest

import (
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/birdtap/birdtap/clevertap"
	"github.com/birdtap/birdtap/store"
)

// Identities is the map from Sendbird user ids to CleverTap identities. Lookup appends
// the identity of a user to dst; an error says that it cannot be read now.
type Identities interface {
	Lookup(dst, user []byte) ([]byte, store.Mapping, error)
}

// Mapper gives records the identity that CleverTap knows. It changes the member
// "identity" alone: objectId, FBID and GPID are CleverTap's own names already.
//
//	the map says      the record
//	there is no map   is left as it is
//	an identity       gets it, before the order key and the dedup key are made
//	not in it         is left as it is; with UnmappedDead it becomes a dead letter of
//	                  reason unmapped, which a replay looks up again
//	cannot be had     becomes a dead letter, too: sent on, it might make a profile of
//	                  nobody at CleverTap, and that cannot be taken back
type Mapper struct {
	Identities   Identities // nil: no map
	UnmappedDead bool
	// Sent tells, for Convert, what was noted of a notification; nil: nothing was. An
	// error says that it cannot be looked up now.
	Sent func(notificationID string) (store.RememberedSend, bool, error)
}

// Convert is the function Convert with a look into the map, for a letter that is
// replayed: one that was refused, or one whose user was not in the map. What it lacks is
// filled in, through whichever door it came. Its error is that of a lookup; the receipt
// is unmapped, or refused, then.
func (m Mapper) Convert(raw []byte, now time.Time) (store.Receipt, error) {
	var p parser
	rec, err := p.parseRecord(raw)
	if err != nil {
		rec = &record{raw: raw}
	}
	c := converter{mapper: m, sent: m.Sent}
	c.reset(now)
	return c.convert(rec)
}

// mapUser looks the user of a judged record up and returns why the record may not
// leave, if so.
func (c *converter) mapUser(rec *record) (store.Reason, error) {
	if c.mapper.Identities == nil || rec.userKind != clevertap.Identity {
		return "", nil
	}
	var found store.Mapping
	var err error
	c.identity, found, err = c.mapper.Identities.Lookup(c.identity[:0], c.scalar(rec.user))
	switch {
	case err != nil:
		c.unmapped++
		return store.ReasonUnmapped, fmt.Errorf("the identity map cannot be read: %w", err)
	case found == store.MappingNone:
		return "", nil
	case found == store.MappingFound:
		c.user, err = jsontext.AppendQuote(c.user[:0], c.identity)
		if err != nil {
			c.unmapped++
			return store.ReasonUnmapped, errors.New("the identity map cannot be read: an identity that is no text")
		}
		rec.user = c.user
		return "", nil
	}
	c.unmapped++
	if found == store.MappingUnknown || c.mapper.UnmappedDead {
		return store.ReasonUnmapped, nil
	}
	return "", nil
}
