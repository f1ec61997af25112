package sender

import (
	"crypto/sha256"
	"fmt"

	"github.com/go-json-experiment/json"

	"github.com/birdtap/birdtap/sendbird"
)

// grouping gathers the users of one call into asks: one for each message, in the order
// in which they first come, users in the order of the call.
type grouping struct {
	mode   Mode
	asks   []*Ask
	groups map[string]*group // by message
	people int
	bytes  int // that the asks take at most
}

// group is the asks of one message. There are several only where a user is named again
// with other variables, since an ask has each user once.
type group struct {
	message Message
	asks    []*Ask
	users   map[string]*named
}

// named is a user that a group has already.
type named struct {
	vars sendbird.Variables // of the first time
	sums map[[sha256.Size]byte]bool
}

func newGrouping(mode Mode) *grouping {
	return &grouping{mode: mode, groups: map[string]*group{}}
}

var (
	errTooManyUsers = tooMuch("more than %d users: make several calls of it", maxCallUsers)
	errTooManyBytes = tooMuch("the users' messages and variables come to more than %d MiB: send to fewer users per call", maxCallBytes>>20)
)

// group returns the group of a message. To tell messages apart costs something every
// time, so it is charged every time.
func (g *grouping) group(m Message) (*group, error) {
	if err := g.charge(messageSize(&m)); err != nil {
		return nil, err
	}
	key, err := json.Marshal(m, json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("encode message: %w", err)
	}
	if have := g.groups[string(key)]; have != nil {
		return have, nil
	}
	if len(m.Push) == 0 {
		m.Push = nil
	}
	made := &group{message: m, users: map[string]*named{}}
	g.groups[string(key)] = made
	return made, nil
}

// charge takes from what a call may come to.
func (g *grouping) charge(bytes int) error {
	if g.bytes += bytes; g.bytes > maxCallBytes {
		return errTooManyBytes
	}
	return nil
}

func (g *grouping) count(bytes int) error {
	if g.people++; g.people > maxCallUsers {
		return errTooManyUsers
	}
	const beside = 64 // punctuation and names of members
	return g.charge(bytes + beside)
}

// ask is the nth ask of a group, made when it is first needed.
func (g *grouping) ask(of *group, n int) *Ask {
	if n == len(of.asks) {
		a := &Ask{Message: of.message}
		of.asks, g.asks = append(of.asks, a), append(g.asks, a)
	}
	return of.asks[n]
}

func (g *grouping) unsendable(of *group, u Unsendable) error {
	a := g.ask(of, 0)
	a.Unsendable = append(a.Unsendable, u)
	return g.count(textSize(u.User) + textSize(u.Detail))
}

// add puts a user, whose variables take so many bytes, into an ask that does not have
// this user yet. One who was there with the same variables is dropped.
func (g *grouping) add(of *group, u User, bytes int) error {
	if len(u.Variables) == 0 {
		u.Variables = nil
	}
	nth := 0
	if have := of.users[u.ID]; have == nil {
		of.users[u.ID] = &named{vars: u.Variables}
	} else {
		if have.sums == nil {
			have.sums = map[[sha256.Size]byte]bool{sumOf(have.vars): true}
		}
		sum := sumOf(u.Variables)
		if have.sums[sum] {
			return g.count(0)
		}
		nth = len(have.sums)
		have.sums[sum] = true
		bytes += messageSize(&of.message)
	}
	a := g.ask(of, nth)
	a.Users = append(a.Users, u)
	return g.count(bytes + textSize(u.ID))
}

// sumOf tells one user's variables from others.
func sumOf(vars sendbird.Variables) [sha256.Size]byte {
	text, _ := json.Marshal(vars, json.Deterministic(true)) // of valid text
	return sha256.Sum256(text)
}

func (g *grouping) request() Request {
	r := Request{Asks: make([]Ask, 0, len(g.asks))}
	for _, a := range g.asks {
		r.Asks = append(r.Asks, *a)
		r.Accepted += len(a.Users)
	}
	return r
}

// shownUser is a user as the list of the unsendable names one, "" if that is too long.
func shownUser(id string) string {
	if len(id) > maxShownUser {
		return ""
	}
	return id
}
