package sender

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"

	"github.com/birdtap/birdtap/sendbird"
	"github.com/birdtap/birdtap/sendbird/sendbirdtest"
	"github.com/birdtap/birdtap/store"
	"github.com/birdtap/birdtap/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testToken = "hunter2-notifications-token-82aa"

// rig is a sender on a real queue of its own, and the fake that it calls.
type rig struct {
	t     *testing.T
	dir   string
	fake  *sendbirdtest.Server
	store *store.Store
	sends *store.Sends
	opts  Options

	stop context.CancelFunc
	done chan error
}

func newRig(t *testing.T, changes ...func(*Options)) *rig {
	t.Helper()
	fake, err := sendbirdtest.Start("127.0.0.1:0", sendbirdtest.Options{Token: testToken})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	u, err := url.Parse(fake.URL())
	if err != nil {
		t.Fatal(err)
	}
	client, err := sendbird.New(sendbird.Config{
		NotificationsURL: fake.URL(), NotificationsToken: func() string { return testToken },
		UploadHosts: []string{u.Host}, Timeout: 10 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	r := &rig{t: t, dir: t.TempDir(), fake: fake}
	r.opts = Options{Client: client, GatherWait: time.Hour, Log: zaptest.NewLogger(t, zaptest.Level(zap.DebugLevel), zaptest.WrapOptions(zap.IncreaseLevel(zapcore.WarnLevel)))}
	for _, change := range changes {
		change(&r.opts)
	}
	return r
}

// open opens the queue, without a sender.
func (r *rig) open(options ...func(*store.Options)) *rig {
	r.t.Helper()
	r.store = storetest.Open(r.t, r.dir, options...)
	var err error
	if r.sends, err = r.store.OpenSends(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(r.sends.Close)
	return r
}

// A queue that is listening can be had by others, as in a cluster: senders that are
// attached to it do not own it, so they stand by.
func listening(o *store.Options) { o.InProcess = false }
func attached(o *store.Options)  { o.InProcess, o.Attach = false, true }

// start opens the queue if need be, and sets a sender to work on it.
func (r *rig) start() *rig {
	r.t.Helper()
	if r.sends == nil {
		r.open()
	}
	o := r.opts
	o.Sends = r.sends
	s := New(o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	r.stop, r.done = cancel, done
	r.t.Cleanup(r.halt)
	return r
}

// halt stops the sender gracefully.
func (r *rig) halt() {
	if r.stop == nil {
		return
	}
	r.stop()
	r.stop = nil
	if err := <-r.done; err != nil {
		r.t.Errorf("Run: %v", err)
	}
}

// ask puts asks on the log.
func (r *rig) ask(key string, asks ...Ask) {
	r.t.Helper()
	entries, err := Encode([]byte(key), asks)
	if err == nil {
		err = r.sends.Commit(r.t.Context(), entries)
	}
	if err != nil {
		r.t.Fatalf("ask: %v", err)
	}
}

func (r *rig) status() Status {
	r.t.Helper()
	st, err := ReadStatus(r.t.Context(), r.sends)
	if err != nil {
		r.t.Fatalf("status: %v", err)
	}
	return st
}

// until waits for a state of affairs.
func (r *rig) until(what string, ok func(Status) bool) Status {
	r.t.Helper()
	deadline := time.Now().Add(4 * time.Minute)
	for {
		began := time.Now()
		st := r.status()
		if ok(st) {
			return st
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("waited for %s in vain; status: %+v", what, st)
		}
		wait(r.t.Context(), max(5*time.Millisecond, 3*time.Since(began))) // a look at a long log costs as much as the work
	}
}

// settled waits until nothing waits any more, and checks that the account adds up.
func (r *rig) settled() Status {
	r.t.Helper()
	st := r.until("all to be settled", func(st Status) bool { return st.Waiting == 0 })
	sum := int64(0)
	for _, m := range st.Modes {
		sum += m.Sent + m.Refused + m.Held + m.Dropped
		by := int64(0)
		for _, n := range m.RefusedBy {
			by += n
		}
		if by != m.Refused {
			r.t.Errorf("refused %d, by reason %d", m.Refused, by)
		}
	}
	if sum != st.Asked {
		r.t.Errorf("asked %d, but sent, refused, held and dropped make %d", st.Asked, sum)
	}
	return st
}

// exactly checks that these users, and nobody else, were reached once.
func (r *rig) exactly(users ...User) {
	r.t.Helper()
	got := r.fake.Deliveries()
	for _, u := range users {
		if got[u.ID] != 1 {
			r.t.Errorf("%s was reached %d times", u.ID, got[u.ID])
		}
		delete(got, u.ID)
	}
	if len(got) > 0 {
		r.t.Errorf("%d others were reached", len(got))
	}
}

// users makes n of them, from number first on.
func users(first, n int) []User {
	all := make([]User, n)
	for i := range all {
		all[i] = User{ID: "user-" + strconv.Itoa(first+i), Variables: sendbird.Variables{"name": sendbird.String("N" + strconv.Itoa(first+i))}}
	}
	return all
}

func batch(campaign string, us []User) Ask {
	return Ask{Message: Message{Mode: ModeBatch, Template: "sale", Event: campaign, Target: "7"}, Users: us}
}

func realtime(us []User) Ask {
	return Ask{Message: Message{Mode: ModeRealtime, Template: "order", Event: "Order", Target: "8"}, Users: us}
}

// shapes are the calls that were carried out: "batch 10000", "file 10001".
func (r *rig) shapes() []string {
	var all []string
	for _, n := range r.fake.Notifications() {
		kind := n.Mode
		if n.File != "" {
			kind = "file"
		}
		all = append(all, fmt.Sprintf("%s %d", kind, len(n.Users)))
	}
	slices.Sort(all) // two may be on their way at once
	return all
}
