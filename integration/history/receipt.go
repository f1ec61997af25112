package history

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Fate is what a receipt is made for. It travels in the property "fate", so that the
// fake CleverTap knows it too.
type Fate string

// The fates of receipts.
const (
	Take   Fate = "take"   // CleverTap takes it
	Refuse Fate = "refuse" // CleverTap refuses it with 512, whenever it comes
	Again  Fate = "again"  // CleverTap answers 555 twice, and then takes it
	AtDoor Fate = "door"   // birdtap refuses it with 512: its status is none
	Poison Fate = "poison" // CleverTap answers 400 to every call that carries it
)

// reason is why a receipt of this fate is dead once it has come in; empty if it
// may not be.
func (f Fate) reason() string {
	switch f {
	case Refuse:
		return "512"
	case Poison:
		return "http_400"
	case AtDoor:
		return "refused"
	default:
		return ""
	}
}

// dies tells whether CleverTap never takes a receipt of this fate at first.
func (f Fate) dies() bool { return f == Refuse || f == Poison }

// Fields is a hash of all that CleverTap must get as it was sent: user, event name,
// and every property of evtData, byte for byte.
type Fields [16]byte

// MarshalText writes it in hexadecimal.
func (f Fields) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, f[:]), nil }

// receipt is one receipt of a client.
type receipt struct {
	id     string
	user   string
	seq    int // of its user, from 1
	fate   Fate
	ts     string // as sent; empty if birdtap is to stamp it
	record []byte
	fields Fields
}

// targetIDs are where ids get hurt: they pass through a float64, or an int32.
var targetIDs = []string{
	"7",
	"2147483647", "2147483648", "2147483649", // 2^31 - 1 … + 1
	"9007199254740991", "9007199254740992", "9007199254740993", // 2^53 - 1 … + 1
	"9223372036854775807", // 2^63 - 1
	`"0001"`,
}

// notes are values of a further property. Each would look different after being
// parsed and written again.
var notes = []string{
	`"plain"`, `"caf\u00e9"`, `"caf` + "\u00e9" + `"`, `"a\/b\t\u0000"`, `"\ud83d\ude80"`,
	`1.0`, `1e3`, `-0`, `18446744073709551617`, `true`, `null`,
	`{"b":1.50,"a":["x",{}]}`,
}

// source makes the receipts of one client. Equal seeds make equal receipts, but for
// the ts that some bear.
type source struct {
	run    string
	client int
	opts   *Options
	random *rand.Rand
	users  []sourceUser
	made   int
}

type sourceUser struct {
	name   string
	seq    int
	target string
}

func newSource(o *Options, client int) *source {
	s := &source{run: o.Run, client: client, opts: o, random: newRandom(o.Seed, client)}
	for n := range o.UsersPerClient {
		s.users = append(s.users, sourceUser{name: fmt.Sprintf("%s-user-%d-%d", o.Run, client, n)})
	}
	return s
}

func newRandom(seed uint64, client int) *rand.Rand {
	return rand.New(rand.NewPCG(seed, uint64(client)))
}

// next makes one receipt: of each user a SENT, then its READ, then the next SENT.
func (s *source) next(now time.Time) receipt {
	u := &s.users[s.random.IntN(len(s.users))]
	u.seq++
	status := "READ"
	if u.seq%2 == 1 {
		status = "SENT"
		u.target = pick(s.random, targetIDs)
	}
	r := receipt{
		id:   fmt.Sprintf("%s-%d-%d", s.run, s.client, s.made),
		user: u.name, seq: u.seq, fate: s.fate(),
	}
	s.made++
	if r.fate == AtDoor {
		status = "DELIVERED"
	}
	if s.random.IntN(4) == 0 {
		r.ts = strconv.FormatInt(now.Unix(), 10)
	}
	r.record = s.write(r, status, u.target)
	what, err := read(r.record)
	if err != nil {
		panic("history made a receipt that it cannot read: " + err.Error())
	}
	r.fields = what.fields
	return r
}

func (s *source) fate() Fate {
	x := s.random.Float64()
	for _, f := range []struct {
		fate  Fate
		share float64
	}{{Refuse, s.opts.Refuse}, {Again, s.opts.Again}, {AtDoor, s.opts.AtDoor}, {Poison, s.opts.Poison}} {
		if x < f.share {
			return f.fate
		}
		x -= f.share
	}
	return Take
}

// write writes the properties in an order of its own each time.
func (s *source) write(r receipt, status, target string) []byte {
	properties := []string{
		`"id":"` + r.id + `"`,
		`"seq":` + strconv.Itoa(r.seq),
		`"fate":"` + string(r.fate) + `"`,
		`"status":"` + status + `"`,
		`"target_id":` + target,
		`"note":` + pick(s.random, notes),
	}
	s.random.Shuffle(len(properties), func(i, j int) {
		properties[i], properties[j] = properties[j], properties[i]
	})
	ts := ""
	if r.ts != "" {
		ts = `"ts":` + r.ts + `,`
	}
	return fmt.Appendf(nil, `{"identity":"%s",%s"evtName":"Order Shipped","evtData":{%s}}`,
		r.user, ts, strings.Join(properties, ","))
}

func pick(random *rand.Rand, from []string) string { return from[random.IntN(len(from))] }

// reading is what can be read off a record, as sent or as seen.
type reading struct {
	id     string
	fate   Fate
	ts     string
	fields Fields
}

type wireRecord struct {
	Identity jsontext.Value            `json:"identity"`
	TS       jsontext.Value            `json:"ts"`
	Event    jsontext.Value            `json:"evtName"`
	Data     map[string]jsontext.Value `json:"evtData"`
}

func read(record []byte) (reading, error) {
	var w wireRecord
	if err := json.Unmarshal(record, &w); err != nil {
		return reading{}, fmt.Errorf("read record: %w", err)
	}
	r := reading{id: unquote(w.Data["id"]), fate: Fate(unquote(w.Data["fate"])), ts: string(w.TS)}
	if r.id == "" {
		return reading{}, errors.New("read record: it has no id")
	}
	text := make([]byte, 0, len(record))
	part := func(b []byte) { // its length keeps it apart from its neighbours
		text = append(strconv.AppendInt(text, int64(len(b)), 10), ':')
		text = append(text, b...)
	}
	part(w.Identity)
	part(w.Event)
	for _, name := range slices.Sorted(maps.Keys(w.Data)) {
		part([]byte(name))
		part(w.Data[name])
	}
	sum := sha256.Sum256(text)
	copy(r.fields[:], sum[:])
	return r, nil
}

// unquote is the text of a plain string: ids and fates need no escapes.
func unquote(v jsontext.Value) string {
	if len(v) < 2 || v[0] != '"' {
		return ""
	}
	return string(v[1 : len(v)-1])
}

// place is where an id stands: the client that made it, and its number there.
type place struct{ client, number int }

// maxPlace bounds what an id may claim, so that a forged one costs no memory.
const maxPlace = 1 << 24

// placeOf takes `run-client-number` apart.
func placeOf(run, id string) (place, bool) {
	rest, ok := strings.CutPrefix(id, run+"-")
	client, number, found := strings.Cut(rest, "-")
	if !ok || !found {
		return place{}, false
	}
	c, err1 := strconv.Atoi(client)
	n, err2 := strconv.Atoi(number)
	p := place{c, n}
	good := err1 == nil && err2 == nil && 0 <= c && c < maxPlace && 0 <= n && n < maxPlace
	return p, good && id == p.id(run) // "07" is not the id that was given out
}

func (p place) id(run string) string { return fmt.Sprintf("%s-%d-%d", run, p.client, p.number) }
