package sender

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server/ats"
	"go.uber.org/zap"

	"github.com/birdtap/birdtap/sendbird"
	"github.com/birdtap/birdtap/store"
	"github.com/birdtap/birdtap/store/storetest"
)

// plan is a gatherer, fed with asks at times after its start.
type plan struct {
	g     *gatherer
	begin time.Time
	next  place
}

func newPlan(wait time.Duration) *plan {
	return &plan{g: newGatherer(wait), begin: time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC), next: placeOf(1, 0)}
}

func (p *plan) add(after time.Duration, a Ask) {
	e := entry{at: p.next, accepted: p.begin.Add(after), data: []byte("ask")}
	for _, u := range a.Users {
		e.users = append(e.users, u.ID)
	}
	p.g.add(&a, e, p.begin.Add(after))
	p.next++
}

// leave takes out all that is due.
func (p *plan) leave(after time.Duration) []int {
	var sizes []int
	for g := p.g.next(p.begin.Add(after), false); g != nil; g = p.g.next(p.begin.Add(after), false) {
		sizes = append(sizes, g.users)
	}
	return sizes
}

func TestGroupLeavesWhenItsOldestHasWaited(t *testing.T) {
	p := newPlan(30 * time.Second)
	p.add(0, batch("Sale", users(0, 1)))
	p.add(29*time.Second, batch("Sale", users(1, 1)))
	p.add(10*time.Second, batch("Offer", users(0, 1)))
	if got := p.leave(30*time.Second - 1); got != nil {
		t.Errorf("before the time: %v", got)
	}
	if at := p.g.wakeAt(); !at.Equal(p.begin.Add(30 * time.Second)) {
		t.Errorf("wakes at %v", at)
	}
	if got := p.leave(30 * time.Second); !slices.Equal(got, []int{2}) {
		t.Errorf("at the time: %v", got)
	}
	if got := p.leave(40 * time.Second); !slices.Equal(got, []int{1}) {
		t.Errorf("the other campaign: %v", got)
	}
	if p.g.users != 0 || len(p.g.groups) != 0 {
		t.Errorf("%d users in %d groups are left", p.g.users, len(p.g.groups))
	}
}

func TestFullGroupLeavesAfterAQuietMoment(t *testing.T) {
	p := newPlan(time.Hour)
	p.add(0, batch("Sale", users(0, 9_999)))
	if got := p.leave(time.Minute); got != nil {
		t.Errorf("9,999 left: %v", got)
	}
	p.add(time.Minute, batch("Sale", users(9_999, 1)))
	if got := p.leave(time.Minute + quiet - 1); got != nil {
		t.Errorf("in the midst of a burst: %v", got)
	}
	if got := p.leave(time.Minute + quiet); !slices.Equal(got, []int{10_000}) {
		t.Errorf("10,000: %v", got)
	}
}

func TestGroupOfAHundredThousandLeavesAtOnce(t *testing.T) {
	p := newPlan(time.Hour)
	for i := range 101 {
		p.add(0, batch("Sale", users(1000*i, 1000)))
	}
	if got := p.leave(0); !slices.Equal(got, []int{100_000}) {
		t.Errorf("left: %v", got)
	}
	if p.g.users != 1000 {
		t.Errorf("%d wait, want 1,000", p.g.users)
	}
}

// Asks that differ in what the call has once cannot go together.
func TestMessagesAreKeptApart(t *testing.T) {
	base := batch("Sale", users(0, 1))
	for name, change := range map[string]func(*Ask){
		"template":  func(a *Ask) { a.Template = "other" },
		"event":     func(a *Ask) { a.Event = "Other" },
		"target":    func(a *Ask) { a.Target = "8" },
		"tag":       func(a *Ask) { a.Tag = "x" },
		"title":     func(a *Ask) { a.Title = "x" },
		"priority":  func(a *Ask) { a.Priority = sendbird.PriorityHigh },
		"push":      func(a *Ask) { a.Push = map[string]string{"k": "v"} },
		"job":       func(a *Ask) { a.Job = "j" },
		"variables": func(a *Ask) { a.Users = []User{{ID: "x", Variables: sendbird.Variables{"nom": sendbird.String("N")}}} },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlan(time.Second)
			other := base
			change(&other)
			p.add(0, base)
			p.add(0, other)
			if got := p.leave(time.Minute); !slices.Equal(got, []int{1, 1}) {
				t.Errorf("left: %v", got)
			}
		})
	}
}

// The parts of a file leave as they are full, and the rest with the last one; when their
// command has gone, they do not wait for ever.
func TestFileLeavesInFullCalls(t *testing.T) {
	p := newPlan(time.Hour)
	part := func(n, us int, last bool) Ask {
		a := batch("Sale", users(1000*n, us))
		a.Mode, a.Job, a.Part, a.Last = ModeCSV, "job", n, last
		return a
	}
	for i := range 100 {
		p.add(0, part(i, 1000, false))
	}
	if got := p.leave(0); !slices.Equal(got, []int{100_000}) {
		t.Errorf("a full file: %v", got)
	}
	p.add(0, part(100, 500, false))
	if got := p.leave(jobWait - 1); got != nil {
		t.Errorf("the rest, too early: %v", got)
	}
	p.add(time.Second, part(101, 1, true))
	if got := p.leave(time.Second); !slices.Equal(got, []int{501}) {
		t.Errorf("the rest: %v", got)
	}
	p.add(0, part(102, 7, false))
	if got := p.leave(jobWait); !slices.Equal(got, []int{7}) {
		t.Errorf("of a command that has gone: %v", got)
	}
}

// clock is a Sendbird that notes when calls came, by the simulated clock.
type clock struct {
	Client
	began time.Time
	calls chan string
}

func (c *clock) Template(context.Context, string) (sendbird.Template, error) {
	return sendbird.Template{}, fmt.Errorf("cannot be read")
}

func (c *clock) Turn(context.Context) (sendbird.Turn, error) { return c, nil }

func (c *clock) GiveBack() {}

func (c *clock) Send(_ context.Context, n sendbird.Notification) (sendbird.Sent, error) {
	c.calls <- fmt.Sprintf("%d users after %v", len(n.Targets), time.Since(c.began).Round(time.Second))
	return sendbird.Sent{NotificationID: "1"}, nil
}

// The window is kept by the whole sender, over a restart too: it counts from when the
// oldest user was accepted.
func TestGatheringWindowOverARestart(t *testing.T) {
	ats.Register() // outside: its clock would be the simulated one, and never go on
	defer ats.Unregister()
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New(t, func(o *store.Options) { o.Log = zap.NewNop() })
		sends, err := s.OpenSends(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer sends.Close()
		fake := &clock{began: time.Now(), calls: make(chan string, 10)}
		r := &rig{t: t, store: s, sends: sends, opts: Options{Client: fake, GatherWait: 30 * time.Second}}
		r.start()
		r.ask("one", batch("Sale", users(0, 3)))
		time.Sleep(20 * time.Second)
		r.ask("two", batch("Sale", users(3, 4)))
		r.halt()
		r.start()
		if got := <-fake.calls; got != "7 users after 30s" {
			t.Errorf("got %s", got)
		}
		r.ask("three", batch("Sale", users(7, 1)))
		if got := <-fake.calls; got != "1 users after 1m0s" {
			t.Errorf("got %s", got)
		}
		r.halt()
	})
}
