package sender

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/birdtap/birdtap/store"
)

// Status is the account of the sender, as its streams tell it. It is exact whether or
// not a sender runs. Of the users that were asked for, over all modes:
//
//	asked = sent + refused + held + dropped + waiting
type Status struct {
	Asked      int64 // copies of a webhook call left out
	Waiting    int64 // not settled yet
	Duplicates int64 // users of webhook calls made again, as far as these were read
	Modes      map[Mode]ModeStatus
	HeldCalls  int
	Refuses    string // why Sendbird takes nothing at all; empty while it does
	Holder     string // the sender that holds the term; empty if none does
	Term       uint64
	Jobs       map[string]JobStatus        // files sent from the command line, the newest
	Campaigns  map[store.CampaignKey]int64 // users that wait, by campaign
	Changes    store.CampaignChanges       // what the pages of the campaigns' figures lack
}

// ModeStatus counts users by what became of them.
type ModeStatus struct {
	Sent, Refused, Held, Dropped int64
	RefusedBy                    map[Reason]int64
}

// JobStatus is what has become of a file.
type JobStatus struct {
	Next                         int  // number of the first part that is not settled, or later
	Ended                        bool // all of it is settled
	Sent, Refused, Held, Dropped int64
	RefusedBy                    map[Reason]int64
	Refuses                      string // why Sendbird takes nothing at all, of whatever file; empty while it does
}

// Settled is how many users of the file are accounted for.
func (j JobStatus) Settled() int64 { return j.Sent + j.Refused + j.Held + j.Dropped }

// ReadStatus reads the checkpoint, and the log from its floor on.
func ReadStatus(ctx context.Context, sends *store.Sends) (Status, error) {
	st, cp, err := readAccount(ctx, sends)
	if err != nil {
		return Status{}, err
	}
	err = eachWaiting(ctx, sends, cp, func(a *Ask) {
		n := int64(len(a.Users) + len(a.Unsendable))
		st.Waiting += n
		if a.Event != "" {
			st.Campaigns[a.campaign()] += n
		}
	})
	st.Asked += st.Waiting
	return st, err
}

// ReadJob returns what has become of a file, without a look at what else waits.
func ReadJob(ctx context.Context, sends *store.Sends, id string) (JobStatus, error) {
	st, _, err := readAccount(ctx, sends)
	j := st.Jobs[id]
	j.Refuses = st.Refuses // of one that is not known yet, too
	return j, err
}

func readAccount(ctx context.Context, sends *store.Sends) (Status, *checkpoint, error) {
	cp, _, err := readCheckpoint(ctx, sends)
	if err != nil {
		return Status{}, nil, err
	}
	st := Status{
		Duplicates: cp.Totals.Duplicates, HeldCalls: len(cp.Held), Refuses: cp.Refuses, Holder: cp.Holder, Term: cp.Term,
		Modes: map[Mode]ModeStatus{}, Jobs: map[string]JobStatus{}, Campaigns: map[store.CampaignKey]int64{}, Changes: cp.Campaigns,
	}
	for _, mode := range []Mode{ModeRealtime, ModeBatch, ModeCSV} {
		c := cp.Totals.Modes[mode]
		st.Modes[mode] = ModeStatus{c.Sent, c.Refused, c.Held, c.Dropped, cp.Totals.Refused[mode]}
		st.Asked += c.Sent + c.Refused + c.Held + c.Dropped
	}
	for _, j := range cp.Jobs {
		st.Jobs[j.ID] = JobStatus{j.Next, j.Ended, j.Users.Sent, j.Users.Refused, j.Users.Held, j.Users.Dropped, j.RefusedBy, st.Refuses}
	}
	return st, &cp, nil
}

// eachWaiting calls fn for every ask of the log that is not settled, a copy of a webhook
// call counted once.
func eachWaiting(ctx context.Context, sends *store.Sends, cp *checkpoint, fn func(*Ask)) error {
	seen := map[store.Key]bool{}
	ledger := newLedger(cp.Floor, cp.Settled)
	return sends.Scan(ctx, cp.Floor, func(f store.SendFrame) error {
		for i := range f.Asks {
			a, err := decodeAsk(f.Asks[i].Data)
			key := f.Asks[i].Key
			if err != nil && !errors.Is(err, store.ErrNewer) || ledger.isSettled(placeOf(f.Seq, i)) || key != (store.Key{}) && seen[key] {
				continue
			}
			seen[key] = true
			fn(&a)
		}
		return nil
	})
}

// ErrNotHeld says that a call is not held, or no longer.
var ErrNotHeld = errors.New("there is no held call of this id")

// ListHeld returns the calls that wait for an operator, in the order in which they were
// held. Of one that cannot be read there is what the checkpoint tells, and why.
func ListHeld(ctx context.Context, sends *store.Sends) ([]Held, error) {
	kept := map[string]Held{}
	err := sends.Held(ctx, func(id string, call []byte) error {
		h, _, err := readHeld(call)
		switch {
		case errors.Is(err, store.ErrNewer):
			h = Held{Why: fmt.Sprintf("run the newer version to decide about it: %v", err)}
		case err != nil:
			h = Held{Why: fmt.Sprintf("what is kept of it cannot be read, so it can only be dropped: %v", err)}
		}
		kept[id] = h
		return nil
	})
	if err != nil {
		return nil, err
	}
	cp, _, err := readCheckpoint(ctx, sends) // after it: what was decided meanwhile is not missing
	if err != nil {
		return nil, err
	}
	all := make([]Held, len(cp.Held))
	for i, is := range cp.Held {
		h, found := kept[is.ID]
		if !found {
			h.Why = "nothing is kept of it, so it can only be dropped: was it held just now, or its stream damaged?"
		}
		h.ID, h.Mode, h.Users = is.ID, is.Mode, is.Users
		all[i] = h
	}
	return all, nil
}

// Decide has a held call sent again, or given up. It returns once that is on disk; the
// active sender carries it out, or the next one to become active. A call that cannot be
// read can only be given up, and one that a newer birdtap has written only by that.
func Decide(ctx context.Context, sends *store.Sends, id string, release bool) error {
	cp, _, err := readCheckpoint(ctx, sends)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(cp.Held, func(h heldCall) bool { return h.ID == id }) {
		return ErrNotHeld
	}
	data, err := findHeld(ctx, sends, id)
	if err == nil {
		_, _, err = readHeld(data)
	}
	switch {
	case errors.Is(err, store.ErrNewer):
		return fmt.Errorf("run the newer version to decide about it: %w", err)
	case err != nil && release:
		return fmt.Errorf("what is kept of it cannot be read, so it can only be dropped: %w", err)
	}
	decision := orderDrop
	if release {
		decision = orderRelease
	}
	return sends.Decide(ctx, id, []byte(decision))
}

// Ordered tells whether a decision about a held call still waits to be carried out.
func Ordered(ctx context.Context, sends *store.Sends, id string) (bool, error) {
	orders, err := sends.Orders(ctx)
	return slices.ContainsFunc(orders, func(o store.Order) bool { return o.ID == id }), err
}
