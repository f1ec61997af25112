package sender

import (
	"cmp"
	"crypto/sha256"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/birdtap/birdtap/sendbird"
)

// entry is an ask that waits: its place, and its bytes as they are in the log, which
// take a third of what they take decoded.
type entry struct {
	at       place
	accepted time.Time
	data     []byte
	users    []string // ids
}

// gathering is the entries that may go in one call: equal messages, and variables of equal
// names.
type gathering struct {
	key     string
	message Message
	byFile  bool // all variables are strings that a file can hold
	entries []entry
	users   int
	newest  time.Time // when the last one came here
	ended   bool      // the last part of its job is among them
}

// gatherer puts users of batches together who can go in one call. It decides and does nothing:
// times are fed in, and what is to leave comes out.
type gatherer struct {
	wait   time.Duration // how long users of one campaign are gathered
	groups map[string]*gathering
	users  int // of all groups
}

// quiet is how long a group must be without a newcomer before it leaves for its size
// alone: what comes in one burst leaves as one file.
const quiet = 200 * time.Millisecond

func newGatherer(wait time.Duration) *gatherer {
	return &gatherer{wait: wait, groups: map[string]*gathering{}}
}

// add takes in an ask with users.
func (g *gatherer) add(a *Ask, e entry, now time.Time) {
	key, byFile := groupKey(a)
	gr := g.groups[key]
	if gr == nil {
		gr = &gathering{key: key, message: a.Message, byFile: byFile}
		g.groups[key] = gr
	}
	gr.entries = append(gr.entries, e)
	gr.users += len(e.users)
	gr.newest = now
	gr.ended = gr.ended || a.Last
	gr.byFile = gr.byFile && byFile
	g.users += len(e.users)
}

// groupKey tells asks apart that cannot go in one call.
func groupKey(a *Ask) (key string, byFile bool) {
	m, _ := json.Marshal(a.Message, json.Deterministic(true)) // was JSON before
	names, byFile := variableNames(a)
	sum := sha256.Sum256(append(m, strings.Join(names, "\x00")...))
	return string(sum[:]), byFile && sendbird.CheckColumns(names) == nil
}

// variableNames are the names of an ask's variables, sorted, and whether all of them are
// text. Users whose names differ make the call one that Sendbird refuses; so Encode keeps
// them apart.
func variableNames(a *Ask) (names []string, text bool) {
	text = true
	for i, u := range a.Users {
		for name, value := range u.Variables {
			if i == 0 {
				names = append(names, name)
			}
			text = text && value.Kind() == sendbird.KindString
		}
	}
	slices.Sort(names)
	return names, text
}

// most is how many users a call of the group may have.
func (gr *gathering) most() int {
	switch {
	case gr.message.Mode == ModeCSV, gr.message.Job == "" && gr.byFile && gr.users > sendbird.MaxBatchTargets:
		return sendbird.MaxFileTargets
	default:
		return sendbird.MaxBatchTargets
	}
}

// dueAt is when the group leaves if nobody else comes.
func (gr *gathering) dueAt(wait time.Duration) time.Time {
	switch {
	case gr.ended, gr.users >= sendbird.MaxFileTargets:
		return time.Time{}
	case gr.message.Job != "":
		if gr.users >= gr.most() {
			return time.Time{}
		}
		return gr.newest.Add(jobWait)
	}
	due := gr.entries[0].accepted.Add(wait)
	if gr.users >= sendbird.MaxBatchTargets {
		if full := gr.newest.Add(quiet); full.Before(due) {
			return full
		}
	}
	return due
}

// jobWait is how long the parts of a file wait for the rest of their call. The command
// may have been stopped; when it goes on, so do the others.
const jobWait = 15 * time.Second

// next takes out the entries of one call that is due, oldest first; nil if none is.
// crowded takes the oldest group, due or not: memory is used up.
func (g *gatherer) next(now time.Time, crowded bool) *gathering {
	var best *gathering
	for _, gr := range g.groups {
		if !crowded && gr.dueAt(g.wait).After(now) {
			continue
		}
		if best == nil || cmp.Compare(gr.entries[0].at, best.entries[0].at) < 0 {
			best = gr
		}
	}
	if best == nil {
		return nil
	}
	return g.cut(best)
}

// maxCallSpans bounds what the places of one call take in the checkpoint: 4 bytes each as
// base64, where they lie apart.
const maxCallSpans = 50_000

// cut takes as many entries of a group as fit one call, in order, nobody twice: who is
// in it already waits for the next call.
func (g *gatherer) cut(gr *gathering) *gathering {
	most := gr.most()
	out := &gathering{key: gr.key, message: gr.message, byFile: gr.byFile}
	seen := make(map[string]struct{}, min(gr.users, most))
	rest := gr.entries[:0:0]
	spans, behind := 0, place(0)
	for i, e := range gr.entries {
		if e.at != behind {
			spans++
		}
		behind = e.at + 1
		if out.users+len(e.users) > most || spans > maxCallSpans {
			rest = append(rest, gr.entries[i:]...)
			break
		}
		if slices.ContainsFunc(e.users, func(id string) bool { _, twice := seen[id]; return twice }) {
			rest = append(rest, e)
			continue
		}
		for _, id := range e.users {
			seen[id] = struct{}{}
		}
		out.entries = append(out.entries, e)
		out.users += len(e.users)
	}
	gr.entries = rest
	gr.users -= out.users
	g.users -= out.users
	if len(rest) == 0 {
		delete(g.groups, gr.key)
	}
	return out
}

// wakeAt is when the next group is due; zero if there is none.
func (g *gatherer) wakeAt() time.Time {
	var at time.Time
	for _, gr := range g.groups {
		if due := gr.dueAt(g.wait); at.IsZero() || due.Before(at) {
			at = due
		}
	}
	return at
}
