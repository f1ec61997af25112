// Package moods names the ways in which CleverTap may be out of sorts for a while, so
// that the fake in a test's own process and the one in a container know the same ones.
package moods

import (
	"net/http"
	"slices"
	"time"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
)

// Mood is what every call meets as long as it lasts.
type Mood struct {
	Name      string
	Behaviour clevertaptest.Behaviour
	// Garbled tells that answers cannot be understood. A good record could be taken for
	// a bad one if the same came twice in a row.
	Garbled bool
	// Late tells that calls are taken and answered as usual, but not in time.
	Late bool
	// Endless tells that a call is not over before its caller has gone.
	Endless bool
}

// gib is a lot for an answer, in bytes.
const gib = 1 << 30

// All is every mood of a CleverTap whose callers wait for so long.
func All(timeout time.Duration) []Mood {
	status := func(code int) clevertaptest.Behaviour { return clevertaptest.Status(code, nil, "") }
	return []Mood{
		{Name: "slow answers", Behaviour: clevertaptest.Delay(timeout / 3)},
		{Name: "answers after the deadline", Behaviour: clevertaptest.Delay(timeout + time.Second), Late: true},
		{Name: "hangs", Behaviour: clevertaptest.Hang(), Endless: true},
		{Name: "hangs after taking", Behaviour: clevertaptest.Hang().Taking(), Endless: true},
		{Name: "a byte a second", Behaviour: clevertaptest.SlowBytes(time.Second), Endless: true},
		{Name: "500", Behaviour: status(http.StatusInternalServerError)},
		{Name: "503 after taking", Behaviour: status(http.StatusServiceUnavailable).Taking()},
		{Name: "429", Behaviour: status(http.StatusTooManyRequests)},
		{Name: "429 with Retry-After", Behaviour: clevertaptest.RetryAfter(http.StatusTooManyRequests, time.Second)},
		{Name: "401", Behaviour: status(http.StatusUnauthorized)},
		{Name: "403", Behaviour: status(http.StatusForbidden)},
		{Name: "404", Behaviour: status(http.StatusNotFound)},
		{Name: "400 to everything", Behaviour: status(http.StatusBadRequest), Garbled: true},
		{Name: "413 to everything", Behaviour: status(http.StatusRequestEntityTooLarge), Garbled: true},
		{Name: "a page in place of JSON", Behaviour: clevertaptest.HTML(), Garbled: true},
		{Name: "half the JSON", Behaviour: clevertaptest.CutJSON(), Garbled: true},
		{Name: "wrong counts", Behaviour: clevertaptest.WrongCounts(1), Garbled: true},
		{Name: "a fail that names nobody", Behaviour: clevertaptest.FailNamingNothing(), Garbled: true},
		{Name: "1 GiB packed", Behaviour: clevertaptest.HugeGzip(gib), Garbled: true},
		{Name: "1 GiB", Behaviour: clevertaptest.Huge(gib), Garbled: true},
		{Name: "reset before the body", Behaviour: clevertaptest.ResetBeforeBody()},
		{Name: "reset after the body", Behaviour: clevertaptest.ResetAfterBody()},
		{Name: "closed after the body", Behaviour: clevertaptest.CloseAfterBody()},
		{Name: "answer cut off", Behaviour: clevertaptest.CutOff()},
		{Name: "reset in the answer", Behaviour: clevertaptest.ResetMidAnswer()},
	}
}

// Named is the mood of that name; the usual one if the name is empty.
func Named(name string, timeout time.Duration) (Mood, bool) {
	list := All(timeout)
	i := slices.IndexFunc(list, func(m Mood) bool { return m.Name == name })
	if i < 0 {
		return Mood{}, name == ""
	}
	return list[i], true
}

// Spoils tells whether what a call took may come once more: nobody is told of it in time.
func (m Mood) Spoils() bool {
	does := m.Behaviour.String()
	return m.Late || does != "normal" && does != "delay"
}
