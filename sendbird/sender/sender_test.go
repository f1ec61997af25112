package sender

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/birdtap/birdtap/sendbird"
	"github.com/birdtap/birdtap/sendbird/sendbirdtest"
)

func TestRealtimeIsACallForEachUser(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.ask("one", realtime(users(1, 3)))
	st := r.settled()
	r.exactly(users(1, 3)...)
	if got := r.shapes(); !slices.Equal(got, []string{"realtime 1", "realtime 1", "realtime 1"}) {
		t.Errorf("calls: %v", got)
	}
	if st.Modes[ModeRealtime].Sent != 3 || st.Asked != 3 {
		t.Errorf("status: %+v", st)
	}
}

func TestBatchLeavesAsOneCallAfterTheWait(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *Options) { o.GatherWait = 300 * time.Millisecond }).start()
	for i := range 20 {
		r.ask("call "+users(i, 1)[0].ID, batch("Sale", users(i, 1)))
	}
	r.settled()
	r.exactly(users(0, 20)...)
	if n := len(r.fake.Notifications()); n > 3 {
		t.Errorf("%d calls for 20 users of one campaign: %v", n, r.shapes())
	}
}

// 10,000 fit a batch; what comes beyond, in one go, leaves by file.
func TestSizeDecidesHowABatchLeaves(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		users int
		want  []string
	}{
		"9,999":   {9_999, nil}, // waits for more
		"10,000":  {10_000, []string{"batch 10000"}},
		"10,001":  {10_001, []string{"file 10001"}},
		"100,000": {100_000, []string{"file 100000"}},
		"100,001": {100_001, []string{"file 100000"}}, // and one who waits for more
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t).open()
			r.ask("broadcast", batch("Sale", users(0, tc.users)))
			r.start()
			sent := 0
			for _, w := range tc.want {
				for _, n := range []int{10_000, 10_001, 100_000} {
					if strings.HasSuffix(w, " "+strconv.Itoa(n)) {
						sent += n
					}
				}
			}
			st := r.until("the call", func(st Status) bool { return st.Waiting == int64(tc.users-sent) })
			if got := r.shapes(); !slices.Equal(got, tc.want) {
				t.Errorf("calls: %v, want %v", got, tc.want)
			}
			r.exactly(users(0, sent)...)
			if st.Asked != int64(tc.users) {
				t.Errorf("asked %d, want %d", st.Asked, tc.users)
			}
		})
	}
}

// Images and actions cannot stand in a file: they stay with named targets.
func TestImagesGoByBatchHoweverMany(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *Options) { o.GatherWait = time.Second }).open()
	us := users(0, 10_001)
	for i := range us {
		us[i].Variables = sendbird.Variables{"picture": sendbird.Image{URL: "https://example.com/p.png", Width: 1, Height: 1}}
	}
	r.ask("broadcast", batch("Sale", us))
	r.start()
	r.settled()
	if got := r.shapes(); !slices.Equal(got, []string{"batch 1", "batch 10000"}) {
		t.Errorf("calls: %v", got)
	}
	r.exactly(us...)
}

func TestSameWebhookCallFourTimesIsOneJob(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	for range 4 {
		r.ask("the same", realtime(users(1, 1)))
	}
	r.ask("another", realtime(users(2, 1)))
	st := r.until("all five", func(st Status) bool { return st.Waiting == 0 && st.Duplicates == 3 })
	r.exactly(users(1, 2)...)
	if st.Asked != 2 {
		t.Errorf("asked %d, want 2", st.Asked)
	}
}

func TestRefusedUsersAreCountedAndListed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fake.Judge(func(n sendbirdtest.Notification) int {
		if n.Users[0] == "user-2" {
			return 400301
		}
		return 0
	})
	r.start()
	a := realtime(users(1, 3))
	a.Unsendable = []Unsendable{{User: "ct-9", Reason: ReasonNoReceiver, Detail: `no field "SendbirdID"`}}
	r.ask("one", a)
	st := r.settled()
	m := st.Modes[ModeRealtime]
	if m.Sent != 2 || m.Refused != 2 || m.RefusedBy["400301"] != 1 || m.RefusedBy[ReasonNoReceiver] != 1 {
		t.Errorf("status: %+v", m)
	}
	var listed []string
	if err := r.sends.Unsent(t.Context(), func(data []byte) error {
		listed = append(listed, string(data))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	all := strings.Join(listed, "\n")
	if !strings.Contains(all, `"400301"`) || !strings.Contains(all, "user-2") || !strings.Contains(all, "ct-9") {
		t.Errorf("listed: %s", all)
	}
}

// What Sendbird is known not to have carried out is tried again.
func TestCleanRefusalsAreTriedAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fake.Script(sendbirdtest.Messages,
		sendbirdtest.Error(500, 500901, "later"),
		sendbirdtest.TooMany(0),
		sendbirdtest.Error(400, 400401, "bad token"))
	r.start()
	r.ask("one", realtime(users(1, 1)))
	st := r.settled()
	r.exactly(users(1, 1)...)
	if st.Modes[ModeRealtime].Sent != 1 {
		t.Errorf("status: %+v", st)
	}
}

// What nobody knows is held, and never sent again by itself.
func TestUnknownOutcomeIsHeldUntilAnOperatorDecides(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fake.Script(sendbirdtest.Messages, sendbirdtest.ResetAfterBody().Taking(), sendbirdtest.ResetAfterBody().NotTaking(), sendbirdtest.PartialSuccess(200))
	r.start()
	for i := range 3 {
		r.ask("call "+strconv.Itoa(i), realtime(users(i, 1)))
	}
	st := r.settled()
	if m := st.Modes[ModeRealtime]; m.Held != 3 || m.Sent != 0 || st.HeldCalls != 3 {
		t.Fatalf("status: %+v", st)
	}
	r.halt()
	r.start() // held ones survive a restart
	held, err := ListHeld(t.Context(), r.sends)
	if err != nil || len(held) != 3 {
		t.Fatalf("held: %+v, %v", held, err)
	}
	before := r.fake.Counts().Calls
	if err := Decide(t.Context(), r.sends, held[0].ID, false); err != nil {
		t.Fatal(err)
	}
	if err := Decide(t.Context(), r.sends, held[1].ID, true); err != nil {
		t.Fatal(err)
	}
	st = r.until("the decisions", func(st Status) bool { return st.HeldCalls == 1 })
	if m := st.Modes[ModeRealtime]; m.Held != 1 || m.Dropped != 1 || m.Sent != 1 {
		t.Errorf("status: %+v", st)
	}
	if calls := r.fake.Counts().Calls - before; calls > 2 { // the template may be asked for
		t.Errorf("%d calls for one release and one drop", calls)
	}
	if err := Decide(t.Context(), r.sends, held[0].ID, true); err == nil {
		t.Error("a dropped call was released")
	}
	if held, err = ListHeld(t.Context(), r.sends); err != nil || len(held) != 1 {
		t.Errorf("held: %+v, %v", held, err)
	}
}

func TestStopAndStartLosesNobodyAndRepeatsNobody(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for i := range 30 {
		r.start()
		r.ask("call "+strconv.Itoa(i), realtime(users(10*i, 10)))
		r.halt()
	}
	r.start()
	r.settled()
	r.exactly(users(0, 300)...)
}

// A sender that has to end while a call is on its way leaves its intent; the next one
// holds it and sends it no more.
func TestCallOnItsWayAtTheEndIsHeld(t *testing.T) {
	t.Parallel()
	for name, us := range map[string]int{"realtime": 1, "batch": 20, "file": 10_001} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(o *Options) { o.GatherWait, o.StopWait = 300*time.Millisecond, time.Nanosecond }).open()
			r.fake.Script(sendbirdtest.Messages, sendbirdtest.Hang().Taking())
			a := batch("Sale", users(0, us))
			if name == "realtime" {
				a = realtime(users(0, us))
			}
			r.ask("one", a)
			r.start()
			if err := r.fake.Wait(t.Context(), func(c sendbirdtest.Counts) bool { return c.Notifications == 1 }); err != nil {
				t.Fatal(err)
			}
			r.halt()
			r.start()
			st := r.settled()
			if st.HeldCalls != 1 || st.Asked != int64(us) {
				t.Errorf("status: %+v", st)
			}
			r.exactly(users(0, us)...)
			held, err := ListHeld(t.Context(), r.sends)
			if err != nil || len(held) != 1 || held[0].Users != us {
				t.Errorf("held: %+v, %v", held, err)
			}
		})
	}
}

// Two senders on one queue: one is active, and when it stops the other goes on.
func TestStandbyTakesOver(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	first, firstDone := r.stop, r.done
	r.ask("one", realtime(users(0, 5)))
	r.settled()
	r.start() // stands by
	first()
	if err := <-firstDone; err != nil {
		t.Fatal(err)
	}
	r.ask("two", realtime(users(5, 5)))
	st := r.settled()
	r.exactly(users(0, 10)...)
	if st.Term != 2 {
		t.Errorf("term %d, want 2", st.Term)
	}
}

// A user who is asked for twice by different webhook calls gets two notifications, in two
// calls.
func TestUserAskedForTwiceIsInTwoCalls(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *Options) { o.GatherWait = 300 * time.Millisecond }).open()
	r.ask("one", batch("Sale", users(0, 3)))
	r.ask("two", batch("Sale", users(2, 2)))
	r.start()
	r.settled()
	if got := r.shapes(); !slices.Equal(got, []string{"batch 2", "batch 3"}) {
		t.Errorf("calls: %v", got)
	}
	if n := r.fake.Delivered("user-2"); n != 2 {
		t.Errorf("user-2 was reached %d times", n)
	}
}

// A user whose variables do not fit the template is refused alone.
func TestMisfitIsRefusedAlone(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *Options) { o.GatherWait = 300 * time.Millisecond })
	if err := r.fake.AddTemplate(`{"key":"sale","name":"Sale","version":1,"channels":[],"variable_schema":[{"key":"name","type":"string"}]}`); err != nil {
		t.Fatal(err)
	}
	r.open()
	a := batch("Sale", append(users(0, 3), User{ID: "odd", Variables: sendbird.Variables{"nome": sendbird.String("x")}}))
	r.ask("one", a)
	r.start()
	st := r.settled()
	r.exactly(users(0, 3)...)
	if m := st.Modes[ModeBatch]; m.Sent != 3 || m.RefusedBy[ReasonVariables] != 1 {
		t.Errorf("status: %+v", m)
	}
}

// Parts of a file that come again, since their sender did not know that they had arrived,
// reach nobody again; and all leave when the last one is there.
func TestPartsOfAFileCountOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	part := func(n int, last bool) Ask {
		a := batch("Sale", users(10*n, 10))
		a.Job, a.Part, a.Last = "job-1", n, last
		return a
	}
	r.ask("", part(0, false))
	r.ask("", part(1, false))
	r.ask("", part(0, false))
	r.halt()
	r.start()
	r.ask("", part(1, false))
	r.ask("", part(2, true))
	r.ask("", part(2, true))
	st := r.settled()
	r.exactly(users(0, 30)...)
	if j := st.Jobs["job-1"]; j.Sent != 30 || j.Settled() != 30 {
		t.Errorf("job: %+v", j)
	}
	r.until("the end of the job", func(st Status) bool { return st.Jobs["job-1"].Ended })
}
