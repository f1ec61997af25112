package sender

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/birdtap/birdtap/sendbird"
	"github.com/birdtap/birdtap/sendbird/sendbirdtest"
	"github.com/birdtap/birdtap/store"
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

// A held call of a format to come is for that version to decide about, not to be dropped.
func TestHeldCallOfANewerBirdtap(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fake.Script(sendbirdtest.Messages, sendbirdtest.ResetAfterBody().Taking())
	r.start()
	r.ask("call", realtime(users(0, 1)))
	r.settled()
	r.halt()
	held, err := ListHeld(t.Context(), r.sends)
	if err != nil || len(held) != 1 {
		t.Fatalf("held: %+v, %v", held, err)
	}
	id := held[0].ID
	if err := r.sends.Forget(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := r.sends.Hold(t.Context(), id, []byte(`{"format":2,"users":"elsewhere"}`)); err != nil {
		t.Fatal(err)
	}
	held, err = ListHeld(t.Context(), r.sends)
	if err != nil || len(held) != 1 || held[0].ID != id || held[0].Users != 1 ||
		!strings.Contains(held[0].Why, "run the newer version") || strings.Contains(held[0].Why, "dropped") {
		t.Errorf("held: %+v, %v", held, err)
	}
	for _, release := range []bool{true, false} {
		if err := Decide(t.Context(), r.sends, id, release); !errors.Is(err, store.ErrNewer) {
			t.Errorf("release %v: %v", release, err)
		}
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

// newerAsk puts an ask of a format to come on the log.
func (r *rig) newerAsk(a Ask) {
	r.t.Helper()
	entries, err := Encode([]byte("newer"), []Ask{a})
	if err != nil || len(entries) != 1 {
		r.t.Fatalf("%d entries, %v", len(entries), err)
	}
	newer := strings.Replace(string(entries[0].Data), fmt.Sprintf(`"format":%d`, askFormat), fmt.Sprintf(`"format":%d`, askFormat+1), 1)
	if newer == string(entries[0].Data) {
		r.t.Fatalf("no format in %s", newer)
	}
	entries[0].Data = []byte(newer)
	if err := r.sends.Commit(r.t.Context(), entries); err != nil {
		r.t.Fatal(err)
	}
}

// An ask of a format to come is neither sent nor given up: it waits, and the others go on.
func TestAskOfANewerBirdtapWaits(t *testing.T) {
	t.Parallel()
	r := newRig(t).open()
	r.newerAsk(realtime(users(0, 1)))
	r.ask("another", realtime(users(1, 2)))
	for range 2 { // whatever the checkpoint says of it stands over a restart
		r.start()
		st := r.until("the others to be settled", func(st Status) bool { return st.Modes[ModeRealtime].Sent == 2 })
		if st.Asked != 3 || st.Waiting != 1 || st.Modes[ModeRealtime].Refused != 0 {
			t.Errorf("asked %d, waiting %d, want 3 and 1; %+v", st.Asked, st.Waiting, st.Modes)
		}
		r.halt()
	}
	r.exactly(users(1, 2)...)
}

// A call that a newer birdtap had on its way stays noted as it is, until that version
// holds it: the call is not held without what cannot be read, which would be sent then.
func TestCallOfANewerBirdtapStaysNoted(t *testing.T) {
	t.Parallel()
	r := newRig(t).open()
	r.newerAsk(realtime(users(0, 1)))
	var its places
	its.add(placeOf(1, 0), placeOf(1, 0)+1)
	cp, rev, err := readCheckpoint(t.Context(), r.sends)
	if err != nil {
		t.Fatal(err)
	}
	cp.NextCall, cp.Calls = 2, []noted{{Number: 1, Places: its, Mode: ModeRealtime, Users: 1}}
	if err := (&lease{sends: r.sends, rev: rev, self: "newer", term: 1}).takeOver(t.Context(), &cp); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.ask("another", realtime(users(1, 2)))
	st := r.until("the others to be settled", func(st Status) bool { return st.Modes[ModeRealtime].Sent == 2 })
	r.halt()
	cp, _, err = readCheckpoint(t.Context(), r.sends)
	if err != nil || st.HeldCalls != 0 || st.Waiting != 1 || len(cp.Calls) != 1 || cp.Calls[0].Number != 1 {
		t.Errorf("%d calls held, %d wait, noted %+v, %v", st.HeldCalls, st.Waiting, cp.Calls, err)
	}
	r.exactly(users(1, 2)...)
}

// After a step back to an older birdtap its sender stands by, says what helps, and leaves
// the checkpoint alone: what was sent to since then would be sent to again. One that is
// active when a newer one takes over ends its term.
func TestSenderLeavesANewerCheckpointAlone(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zapcore.WarnLevel)
	r := newRig(t, func(o *Options) { o.Log = zap.New(core) }).start()
	r.ask("one", realtime(users(0, 2)))
	r.settled()
	old, rev, err := r.sends.ReadCheckpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	newer := []byte(`{"format":2,"of":"a later version"}`)
	if rev, err = r.sends.WriteCheckpoint(t.Context(), newer, rev); err != nil {
		t.Fatal(err)
	}
	said := func(text string) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); logs.FilterMessageSnippet(text).Len() == 0; wait(t.Context(), 5*time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("no line says %q", text)
			}
		}
	}
	r.ask("two", realtime(users(2, 2)))
	said("the term is over")
	said("until that version runs here")
	if _, err := ReadStatus(t.Context(), r.sends); !errors.Is(err, store.ErrNewer) {
		t.Errorf("status: %v", err)
	}
	r.halt()
	if data, now, err := r.sends.ReadCheckpoint(t.Context()); err != nil || now != rev || !bytes.Equal(data, newer) {
		t.Errorf("the checkpoint is %s now, %v", data, err)
	}
	if _, err := r.sends.WriteCheckpoint(t.Context(), old, rev); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.settled()
	r.exactly(users(0, 4)...)
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

// A held call of which nothing is kept any more hides no other one, and can be dropped.
func TestHeldCallThatIsGoneIsListed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fake.Script(sendbirdtest.Messages, sendbirdtest.ResetAfterBody(), sendbirdtest.ResetAfterBody())
	r.start()
	r.ask("first", realtime(users(0, 1)))
	r.settled()
	r.ask("second", realtime(users(1, 1)))
	r.settled()
	held, err := ListHeld(t.Context(), r.sends)
	if err != nil || len(held) != 2 || held[0].Message.Template != "order" {
		t.Fatalf("held: %+v, %v", held, err)
	}
	if err := r.sends.Forget(t.Context(), held[0].ID); err != nil {
		t.Fatal(err)
	}
	left, err := ListHeld(t.Context(), r.sends)
	if err != nil || len(left) != 2 || left[1].ID != held[1].ID || left[1].Why != held[1].Why ||
		left[0].ID != held[0].ID || left[0].Users != 1 || left[0].Mode != ModeRealtime || !strings.Contains(left[0].Why, "only be dropped") {
		t.Errorf("held: %+v, %v", left, err)
	}
	if err := Decide(t.Context(), r.sends, held[0].ID, true); err == nil || !strings.Contains(err.Error(), "only be dropped") {
		t.Errorf("to release what is gone: %v", err)
	}
	if err := Decide(t.Context(), r.sends, held[0].ID, false); err != nil {
		t.Fatal(err)
	}
	r.until("the drop", func(st Status) bool { return st.HeldCalls == 1 && st.Modes[ModeRealtime].Dropped == 1 })
}

// Only what leaves now is noted, not what waits for its turn: after a crash all that is
// noted is held for an operator.
func TestCallsThatWaitForTheirTurnAreNotNoted(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.ask("key", realtime(users(0, 2*maxCalls)))
	most := 0
	r.until("all to be settled", func(st Status) bool {
		cp, _, err := readCheckpoint(t.Context(), r.sends)
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, len(cp.Calls))
		return st.Waiting == 0
	})
	if most >= maxCalls { // all that there are goroutines for
		t.Errorf("%d calls were noted at once, at a pace of 5 a second", most)
	}
}

// Two senders on one queue: one is active, and when it stops the other goes on.
func TestStandbyTakesOver(t *testing.T) {
	t.Parallel()
	r := newRig(t).open(listening)
	r.open(attached).start()
	first, firstDone := r.stop, r.done
	r.ask("one", realtime(users(0, 5)))
	r.settled()
	r.open(attached).start() // stands by
	r.ask("still the first", realtime(users(10, 5)))
	if st := r.settled(); st.Term != 1 {
		t.Errorf("term %d, want 1", st.Term)
	}
	first()
	if err := <-firstDone; err != nil {
		t.Fatal(err)
	}
	r.ask("two", realtime(users(5, 5)))
	st := r.settled()
	r.exactly(users(0, 15)...)
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

// The log is trimmed no further than a checkpoint on disk knows to be settled.
func TestLogIsTrimmedBehindTheCheckpointOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t).open()
	for i := range 5 {
		r.ask(strconv.Itoa(i), realtime(users(i, 1)))
	}
	tm := New(Options{Sends: r.sends}).newTerm(&lease{}, checkpoint{Floor: 1, NextCall: 1})
	old := time.Now().Add(-time.Hour)
	for seq := range uint64(5) {
		tm.frames = append(tm.frames, frameMark{seq + 1, old})
		tm.ledger.settleFrames(seq+1, seq+1)
	}
	tm.caughtUp = true
	tm.ledger.rise()
	for _, stands := range []uint64{1, 4} {
		tm.stands, tm.trimAt = stands, time.Time{}
		tm.trim(t.Context(), time.Now())
		tm.tasks.Wait()
		if _, frames, err := r.sends.Last(t.Context()); err != nil || frames != 6-stands {
			t.Errorf("a checkpoint with floor %d: %d frames, %v", stands, frames, err)
		}
	}
}

// Where so many calls are held that nothing else is sent, what the operator decides gets
// through.
func TestOperatorGetsThroughWhenTooMuchIsHeld(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fake.Script(sendbirdtest.Messages, sendbirdtest.Repeat(3, sendbirdtest.ResetAfterBody().NotTaking())...)
	r.opts.maxHeld = 3
	r.start()
	for i := range 3 {
		r.ask(strconv.Itoa(i), realtime(users(i, 1)))
		r.until("the call to be held", func(st Status) bool { return st.HeldCalls == i+1 })
	}
	r.ask("more", realtime(users(3, 10)))
	held, err := ListHeld(t.Context(), r.sends)
	if err != nil || len(held) != 3 {
		t.Fatalf("held: %v, %v", held, err)
	}
	if err := Decide(t.Context(), r.sends, held[0].ID, true); err != nil {
		t.Fatal(err)
	}
	st := r.until("the others to be sent", func(st Status) bool { return st.Waiting == 0 })
	r.exactly(append(users(3, 10), users(0, 1)...)...)
	if st.HeldCalls != 2 {
		t.Errorf("status: %+v", st)
	}
}

// A release whose outcome is unknown once more is not carried out again by itself, and a
// drop may follow a release.
func TestReleaseOfUnknownOutcomeStaysHeld(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fake.Script(sendbirdtest.Messages, sendbirdtest.Repeat(2, sendbirdtest.ResetAfterBody().NotTaking())...)
	r.start()
	r.ask("one", realtime(users(0, 1)))
	r.until("the call to be held", func(st Status) bool { return st.HeldCalls == 1 })
	held, err := ListHeld(t.Context(), r.sends)
	if err != nil {
		t.Fatal(err)
	}
	if err := Decide(t.Context(), r.sends, held[0].ID, true); err != nil {
		t.Fatal(err)
	}
	ordered := func() bool {
		waits, err := Ordered(t.Context(), r.sends, held[0].ID)
		return err != nil || waits
	}
	r.until("the order to be carried out", func(Status) bool { return !ordered() })
	r.halt()
	r.start()
	r.ask("two", realtime(users(1, 1)))
	st := r.settled()
	r.exactly(users(1, 1)...)
	if st.HeldCalls != 1 || st.Modes[ModeRealtime].Held != 1 {
		t.Errorf("status: %+v", st)
	}
	if err := Decide(t.Context(), r.sends, held[0].ID, false); err != nil {
		t.Fatal(err)
	}
	st = r.until("the drop", func(st Status) bool { return st.HeldCalls == 0 })
	if m := st.Modes[ModeRealtime]; m.Dropped != 1 || m.Held != 0 {
		t.Errorf("status: %+v", m)
	}
}

// Somebody whom the door found unsendable may look like a user of the call: that takes
// nobody out of what is held.
func TestHeldCallKeepsAllItsUsers(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *Options) { o.GatherWait = 100 * time.Millisecond })
	r.fake.Script(sendbirdtest.Messages, sendbirdtest.ResetAfterBody().NotTaking())
	r.start()
	a := batch("Sale", users(0, 3))
	a.Unsendable = []Unsendable{{User: "user-1", Reason: ReasonNoReceiver}}
	r.ask("one", a)
	r.until("the call to be held", func(st Status) bool { return st.HeldCalls == 1 })
	held, err := ListHeld(t.Context(), r.sends)
	if err != nil || held[0].Users != 3 {
		t.Fatalf("held: %+v, %v", held, err)
	}
	if err := Decide(t.Context(), r.sends, held[0].ID, true); err != nil {
		t.Fatal(err)
	}
	st := r.until("the release", func(st Status) bool { return st.HeldCalls == 0 })
	r.exactly(users(0, 3)...)
	if st.Asked != 4 || st.Modes[ModeBatch].Sent != 3 {
		t.Errorf("status: %+v", st)
	}
}

// A variable that somebody has just added to the template refuses nobody.
func TestTemplateIsReadAnewBeforeUsersAreRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	with := func(variables string) {
		t.Helper()
		if err := r.fake.AddTemplate(`{"key":"order","name":"Order","version":1,"channels":[],"variable_schema":[` + variables + `]}`); err != nil {
			t.Fatal(err)
		}
	}
	with(`{"key":"nome","type":"string"}`)
	r.open()
	known := &templates{client: r.opts.Client}
	if known.get(t.Context(), "order", templateKnown) == nil {
		t.Fatal("the template cannot be read")
	}
	known.known["order"] = knownTemplate{known.known["order"].template, time.Now().Add(-time.Minute)}
	with(`{"key":"name","type":"string"}`)
	tm := &term{templates: known}
	if reason, detail := tm.misfit(t.Context(), "order", users(0, 1)[0]); reason != "" {
		t.Errorf("%s: %s", reason, detail)
	}
}

// What no part of a file may be: taken apart, its number would come twice.
func TestPartOfAFileIsNotTakenApart(t *testing.T) {
	many, mixed, alone := batch("Sale", users(0, 1001)), batch("Sale", users(0, 2)), realtime(users(0, 2))
	mixed.Users[1].Variables = sendbird.Variables{"other": sendbird.String("x")}
	for name, a := range map[string]Ask{"too many": many, "names": mixed, "realtime": alone} {
		a.Job = "job"
		if entries, err := Encode(nil, []Ask{a}); err == nil {
			t.Errorf("%s: %d asks", name, len(entries))
		}
	}
}

// Whatever befalls the upload of a file reaches nobody, and loses nobody: it is tried
// again until it is there, and everybody is sent to once.
func TestTroubleWithTheUploadLosesNobody(t *testing.T) {
	t.Parallel()
	for name, trouble := range map[string]struct {
		at  sendbirdtest.Endpoint
		are []sendbirdtest.Behaviour
	}{
		"expired":                {sendbirdtest.Upload, []sendbirdtest.Behaviour{sendbirdtest.Status(403, nil, "<Error><Code>AccessDenied</Code></Error>")}},
		"500":                    {sendbirdtest.Upload, []sendbirdtest.Behaviour{sendbirdtest.Status(500, nil, "")}},
		"answer lost":            {sendbirdtest.Upload, []sendbirdtest.Behaviour{sendbirdtest.ResetAfterBody().Taking()}},
		"redirect":               {sendbirdtest.Upload, []sendbirdtest.Behaviour{sendbirdtest.Redirect("http://169.254.169.254/")}},
		"no permission to write": {sendbirdtest.Presign, []sendbirdtest.Behaviour{sendbirdtest.Error(500, 500901, "later")}},
		"500 behind the upload":  {sendbirdtest.Messages, []sendbirdtest.Behaviour{sendbirdtest.Error(500, 500901, "later")}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t).open()
			r.fake.Script(trouble.at, trouble.are...)
			r.ask("broadcast", batch("Sale", users(0, 10_001)))
			r.start()
			st := r.settled()
			r.exactly(users(0, 10_001)...)
			if st.Modes[ModeCSV].Sent != 10_001 {
				t.Errorf("status: %+v", st)
			}
		})
	}
}

// An upload URL that leads where nobody may go is never called, and everybody waits.
func TestForbiddenUploadHostIsNeverCalled(t *testing.T) {
	t.Parallel()
	r := newRig(t).open()
	r.fake.Script(sendbirdtest.Presign, sendbirdtest.Repeat(50, sendbirdtest.Status(200, nil,
		`{"url":"http://169.254.169.254/latest","fields":{"key":"k","policy":"p"},"file_key":"f"}`))...)
	r.ask("broadcast", batch("Sale", users(0, 10_001)))
	r.start()
	if err := r.fake.Wait(t.Context(), func(c sendbirdtest.Counts) bool { return c.Calls >= 3 }); err != nil {
		t.Fatal(err)
	}
	if st := r.status(); st.Waiting != 10_001 || len(r.fake.Deliveries()) > 0 {
		t.Errorf("status: %+v", st)
	}
}

// A user who no longer fits the template when a held call is released, whose outcome is
// unknown once more, is held with the others and counts once.
func TestMisfitOfAReleaseCountsOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *Options) { o.GatherWait = 100 * time.Millisecond })
	r.fake.Script(sendbirdtest.Messages, sendbirdtest.Repeat(2, sendbirdtest.ResetAfterBody().NotTaking())...)
	r.start()
	us := users(0, 3)
	us[1].Variables = sendbird.Variables{"name": sendbird.Image{URL: "https://example.com/p.png", Width: 1, Height: 1}}
	r.ask("one", batch("Sale", us))
	r.until("the call to be held", func(st Status) bool { return st.HeldCalls == 1 })
	r.halt()
	if err := r.fake.AddTemplate(`{"key":"sale","name":"Sale","version":1,"channels":[],"variable_schema":[{"key":"name","type":"string"}]}`); err != nil {
		t.Fatal(err)
	}
	r.start()
	held, err := ListHeld(t.Context(), r.sends)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []ModeStatus{{Held: 3}, {Sent: 2, Refused: 1}} {
		if err := Decide(t.Context(), r.sends, held[0].ID, true); err != nil {
			t.Fatal(err)
		}
		r.until("the order to be carried out", func(Status) bool {
			waits, err := Ordered(t.Context(), r.sends, held[0].ID)
			return err == nil && !waits
		})
		st := r.settled()
		if m := st.Modes[ModeBatch]; m.Sent != want.Sent || m.Refused != want.Refused || m.Held != want.Held || st.Asked != 3 {
			t.Errorf("status: %+v, want %+v", st, want)
		}
	}
}
