//go:build integration

package integration

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
)

// senders is the part of birdtap that sends, in containers, as it is meant to be run:
//
//	webhooks ──▶ sender-a, sender-b ──▶ sendbird
//	                    │ ▲              outside
//	                    ▼ │
//	         nats-1, nats-2, nats-3 ◀── birdtap send
//	                  queue
//
// As relays are, a sender can be cut off from the queue and still reach Sendbird, which
// each knows by a name of its own.
type senders struct {
	*fleet // its destination is Sendbird, its ingests are the senders

	mu     sync.Mutex
	next   int             // number of the next user
	posted map[string]bool // users in any call or file
	asked  map[string]bool // of them those whose call was answered 200, or whose file was sent
}

// sendLatency is how long Sendbird takes to answer, so that there are always some calls
// under way.
const sendLatency = 400 * time.Millisecond

// sendStreams are those that senders need.
var sendStreams = []string{"BIRDTAP_SENDS", "BIRDTAP_HELD", "BIRDTAP_STATE"}

func newSenders(t *testing.T) *senders {
	t.Helper()
	began := time.Now()
	s := &senders{fleet: newNodes(t), posted: map[string]bool{}, asked: map[string]bool{}}
	outside := []*testcontainers.DockerNetwork{s.docker.network()}
	s.destination = s.machine(s.docker.image(fakeSendbirdBinary(t), nil), []string{"sendbird-a", "sendbird-b"},
		outside, []string{fakePort + "/tcp"}, destinationRoom,
		testcontainers.WithCmd("-latency", sendLatency.String(), "-refuse", "refused-",
			"-template", `{"key":"sale","name":"Sale","variable_schema":[{"key":"name","type":"string","name":"Name"}]}`),
		testcontainers.WithWaitStrategyAndDeadline(startWithin, wait.ForHTTP("/-/counts").WithPort(fakePort+"/tcp")))
	s.at = s.at.with(sendEnv(s.fake(), nil))
	image := s.docker.image(birdtapBinary(t), nil)
	for _, name := range []string{"a", "b"} {
		s.ingests = append(s.ingests, s.daemon(image, "sender", "sender-"+name, outside, sendEnv("http://sendbird-"+name+":"+fakePort, nil)))
	}
	t.Cleanup(s.end)
	s.healed()
	t.Logf("the cluster works after %.1f s", time.Since(began).Seconds())
	return s
}

// sendEnv is what senders and operators need to know of Sendbird.
func sendEnv(url string, more map[string]string) map[string]string {
	env := map[string]string{
		"SENDBIRD_NOTIFICATIONS_URL": url, "SENDBIRD_NOTIFICATIONS_TOKEN": "token", "SENDER_TOKENS": webhookToken, "GATHER_WAIT": "300ms",
	}
	maps.Copy(env, more)
	return env
}

// Senders in a cluster of three, with webhook calls at both doors and files of the
// operator's: whatever happens to the active one, or to the queue, nobody is notified
// twice, and nobody is left out who was to be: each was sent to, was refused, or is in a
// call of which nobody knows, and which is held.
func TestClusterSends(t *testing.T) {
	t.Parallel()
	s := newSenders(t)
	stop := s.webhooks()
	s.suffer("active sender killed", func(active *machine) string {
		began := time.Now()
		active.kill()
		took := s.takenOver(active, began)
		active.start()
		return took
	})
	s.suffer("active sender paused and woken", s.pauseActive)
	s.suffer("active sender cut off from the queue", s.cutOffActive)
	s.suffer("the log's leader killed", func(*machine) string {
		leader, began := s.leaderOf(sendStreams[0]), time.Now()
		leader.kill()
		eventually(t, time.Minute, "calls go on", func() bool { return len(s.calls(began.Add(time.Second))) > 0 })
		leader.start()
		return leader.name
	})
	s.suffer("active sender told to stop", func(active *machine) string {
		began := time.Now()
		if code := active.terminate(stopWithin); code != 0 {
			t.Errorf("SIGTERM ended %s with code %d, want 0", active.name, code)
		}
		stopped := time.Since(began)
		took := s.takenOver(active, began)
		active.start()
		return fmt.Sprintf("it ends within %.2f s, %s", stopped.Seconds(), took)
	})
	stop()
	s.decide(s.check())
}

// suffer lets a fault happen to the active sender while a file of the operator's is being
// sent, and waits until all is well.
func (s *senders) suffer(name string, fault func(active *machine) string) {
	s.t.Helper()
	active, held := s.active(), s.heldCalls()
	file := s.file()
	began := time.Now()
	eventually(s.t, time.Minute, "the active sender calls", func() bool { return len(s.calls(began, active)) > 2 })
	began = time.Now()
	result := fault(active)
	end := time.Now()
	s.healed()
	file()
	s.t.Logf("%s: %s; no call for %.2f s; %d calls held; healed %.1f s after", name, result,
		longest(began, append(s.calls(began), time.Now())).Seconds(), s.heldCalls()-held, time.Since(end).Seconds())
}

func (s *senders) heldCalls() int {
	s.t.Helper()
	var a sendsAccount
	eventually(s.t, time.Minute, "birdtap status answers", func() bool {
		out, err := s.at.output("status", "--json")
		return err == nil && json.Unmarshal(out, &a) == nil
	})
	return a.Sends.HeldCalls
}

// pauseActive puts the active sender to sleep in the middle of its calls, and wakes it in
// the other's term.
func (s *senders) pauseActive(active *machine) string {
	s.t.Helper()
	began := time.Now()
	active.pause()
	took := s.takenOver(active, began)
	woken := time.Now()
	active.wake()
	s.healed()
	return fmt.Sprintf("%s; %d calls of the woken one", took, len(s.calls(woken, active)))
}

// cutOffActive leaves the active sender its way to Sendbird, and takes that to the queue.
func (s *senders) cutOffActive(active *machine) string {
	s.t.Helper()
	began := time.Now()
	active.cutOff()
	took := s.takenOver(active, began)
	others := time.Now()
	eventually(s.t, time.Minute, "the other goes on", func() bool { return len(s.calls(others)) > 20 })
	if calls := len(s.calls(others, active)); calls > 0 {
		s.t.Errorf("%s made %d calls in the term of another one", active.name, calls)
	}
	active.rejoin()
	return took
}

// takenOver waits for the first call of another one than the sender that was active, and
// tells how long after the fault it came. (The command that sends a file may be the other
// one, too.)
func (s *senders) takenOver(active *machine, fault time.Time) string {
	s.t.Helper()
	var took time.Duration
	eventually(s.t, handOver, "another sender calls", func() bool {
		for host, calls := range s.byHost(fault) {
			if host != sendHost(active) {
				took = calls[0].Sub(fault)
				return true
			}
		}
		return false
	})
	return fmt.Sprintf("another one calls after %.2f s", took.Seconds())
}

// active waits until one of the senders calls and nobody else does.
func (s *senders) active() (active *machine) {
	s.t.Helper()
	now := time.Now()
	eventually(s.t, handOver, "one sender calls", func() bool {
		calls := s.byHost(now)
		if len(calls) > 1 { // just now it has changed hands
			now = time.Now()
		}
		for _, m := range s.ingests {
			if len(calls) == 1 && len(calls[sendHost(m)]) > 2 {
				active = m
			}
		}
		return active != nil
	})
	return active
}

// sendHost is what Sendbird knows a sender by.
func sendHost(m *machine) string {
	return "sendbird-" + strings.TrimPrefix(m.name, "sender-") + ":" + fakePort
}

// byHost are the arrivals of calls since an instant.
func (s *senders) byHost(since time.Time) map[string][]time.Time {
	s.t.Helper()
	var raw map[string][]int64
	s.get(fmt.Sprintf("/-/calls?since=%d", since.UnixNano()), &raw)
	all := map[string][]time.Time{}
	for host, calls := range raw {
		for _, ns := range calls {
			all[host] = append(all[host], time.Unix(0, ns))
		}
	}
	return all
}

// calls are those of some senders, of everybody if none is named, in order.
func (s *senders) calls(since time.Time, of ...*machine) (list []time.Time) {
	s.t.Helper()
	for host, calls := range s.byHost(since) {
		if len(of) == 0 || slices.ContainsFunc(of, func(m *machine) bool { return sendHost(m) == host }) {
			list = append(list, calls...)
		}
	}
	slices.SortFunc(list, time.Time.Compare)
	return list
}

func (s *senders) leaderOf(stream string) (leader *machine) {
	s.t.Helper()
	eventually(s.t, wholeWithin, stream+" has a leader", func() bool {
		info, err := s.stream(stream)
		if err != nil || info.Cluster == nil {
			return false
		}
		i := slices.IndexFunc(s.nodes, func(m *machine) bool { return m.name == info.Cluster.Leader })
		if i >= 0 {
			leader = s.nodes[i]
		}
		return i >= 0
	})
	return leader
}

// healed waits until every node has all of every stream, and both senders are ready.
func (s *senders) healed() {
	s.t.Helper()
	eventually(s.t, wholeWithin, "the cluster is whole", func() bool {
		for _, name := range sendStreams {
			info, err := s.stream(name)
			if err != nil || outOfStep(info.Cluster) != "" {
				return false
			}
		}
		return !slices.ContainsFunc(s.ingests, func(m *machine) bool { return !m.ready() })
	})
}

// Who is asked for.

// users makes n new ones.
func (s *senders) users(n int) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]string, n)
	for i := range list {
		list[i] = "user-" + strconv.Itoa(s.next)
		if n == 1 && s.next%20 == 0 {
			list[i] = "refused-" + strconv.Itoa(s.next)
		}
		s.next++
		s.posted[list[i]] = true
	}
	return list
}

func (s *senders) accepted(users []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range users {
		s.asked[u] = true
	}
}

// webhooks makes calls at both doors until the function that it returns is called.
func (s *senders) webhooks() (stop func()) {
	ctx, cancel := context.WithCancel(s.t.Context())
	var all sync.WaitGroup
	for first := range s.ingests {
		all.Go(func() { s.callEvery(ctx, 150*time.Millisecond, first, "realtime", 1) })
		all.Go(func() { s.callEvery(ctx, time.Second, first, "batch", 20) })
	}
	stop = func() {
		cancel()
		all.Wait()
	}
	s.t.Cleanup(stop)
	return stop
}

// callEvery makes calls as CleverTap does: one that is not answered 200 is made up to four
// times, here at one door and the other in turn.
func (s *senders) callEvery(ctx context.Context, d time.Duration, first int, door string, n int) {
	client := http.Client{Timeout: 5 * time.Second}
	tick := time.NewTicker(d)
	defer tick.Stop()
	for {
		users := s.users(n)
		var profiles []string
		for _, u := range users {
			profiles = append(profiles, fmt.Sprintf(`{"identity":%q}`, u))
		}
		body := fmt.Sprintf(`{"targetId":7,"key_values":{"template_key":"sale","event_name":"Sale","var.name":"N"},"profiles":[%s]}`, strings.Join(profiles, ","))
		for try := range 4 {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			m := s.ingests[(first+try)%len(s.ingests)]
			req, err := http.NewRequest(http.MethodPost, "http://"+m.ports[doorPort]+"/clevertap/notifications/"+door, strings.NewReader(body))
			if err != nil {
				return
			}
			req.Header.Set("Api-Token", webhookToken)
			req.Header.Set("Content-Type", "application/json")
			resp, err := client.Do(req)
			if err != nil {
				continue
			}
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				s.accepted(users)
				break
			}
		}
	}
}

// file begins to send one of a thousand users, and returns what waits until it is sent.
// The command may have to be given again: then it goes on where it stopped.
func (s *senders) file() (end func()) {
	s.t.Helper()
	users := s.users(1000)
	path := filepath.Join(s.t.TempDir(), "users.csv")
	if err := os.WriteFile(path, []byte("user_id,name\n"+strings.Join(users, ",N\n")+",N\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	at := s.at.with(s.user("sender", s.certificates)) // an operator would find out by a try that it may not be one
	args := []string{"send", "--template", "sale", "--csv", path, "--event", "Sale", "--target-id", "8", "--json"}
	first := start(s.t, "birdtap send", filepath.Join(s.t.ArtifactDir(), "send.log"), at.command(args...))
	return func() {
		s.t.Helper()
		<-first.done
		eventually(s.t, time.Minute, "the file is sent", func() bool {
			var sum struct {
				Users       int `json:"users"`
				Unaccounted int `json:"unaccounted"`
			}
			out, _ := at.command(args...).Output() // it fails where users are held, too
			return json.Unmarshal(out, &sum) == nil && sum.Users == len(users) && sum.Unaccounted == 0
		})
		s.accepted(users)
	}
}

// check waits until nobody waits any more, and checks that everybody is accounted for.
func (s *senders) check() sendsAccount {
	s.t.Helper()
	a := (&sending{t: s.t, at: s.at}).settled()
	sum, reached, refused := a.sum(), s.delivered(), s.unsent()
	if a.Sends.Asked != sum.Sent+sum.Refused+sum.Held+sum.Dropped {
		s.t.Errorf("the account does not add up: %+v", a.Sends)
	}
	missed := 0
	for user := range s.asked {
		if reached[user] == 0 && !refused[user] {
			missed++
		}
	}
	for user, times := range reached {
		if times != 1 || refused[user] || !s.posted[user] {
			s.t.Errorf("%s was reached %d times, refused %v, asked for %v", user, times, refused[user], s.posted[user])
		}
	}
	if missed > sum.Held {
		s.t.Errorf("%d users were left out, and %d are held", missed, sum.Held)
	}
	// Who is listed when the sender dies before it has settled the call is held with it.
	listed := len(refused) - sum.Refused
	if listed < 0 || listed > sum.Held || sum.Sent > len(reached) || len(reached) > sum.Sent+sum.Held {
		s.t.Errorf("%d were refused and %d reached: %+v", len(refused), len(reached), sum)
	}
	if a.Sends.Asked < len(s.asked) || a.Sends.Asked > len(s.posted) {
		s.t.Errorf("%d are asked for, of %d in all, %d of them surely", a.Sends.Asked, len(s.posted), len(s.asked))
	}
	s.t.Logf("%d asked for (%d in calls that were answered 200, and files), %d sent to, %d refused, %d held in %d calls, %d of them reached; nobody twice",
		a.Sends.Asked, len(s.asked), sum.Sent, sum.Refused, sum.Held, a.Sends.HeldCalls, len(reached)-sum.Sent)
	return a
}

// decide has the operator release one held call and give up the others.
func (s *senders) decide(before sendsAccount) {
	s.t.Helper()
	out := s.command("send", "--held", "--json")
	reached := total(s.delivered())
	released, dropped := 0, 0
	for line := range bytes.Lines(out) {
		var held struct {
			ID    string `json:"id"`
			Users int    `json:"users"`
		}
		if err := json.Unmarshal(line, &held); err != nil {
			s.t.Fatalf("%v: %s", err, line)
		}
		if released == 0 {
			released = held.Users
			s.command("send", "--held", "--release", held.ID, "--yes")
			continue
		}
		dropped += held.Users
		s.command("send", "--held", "--drop", held.ID)
	}
	if released == 0 {
		s.t.Fatal("no call is held, though several were on their way")
	}
	var a sendsAccount
	eventually(s.t, time.Minute, "the decisions are carried out", func() bool {
		a = (&sending{t: s.t, at: s.at}).settled()
		return a.Sends.HeldCalls == 0
	})
	was, is := before.sum(), a.sum()
	want := sendsOf{Sent: was.Sent + released, Refused: was.Refused, Dropped: dropped}
	if is.Refused > was.Refused { // the released one was for somebody whom Sendbird refuses
		want.Sent, want.Refused = was.Sent, was.Refused+released
	}
	if is != want || a.Sends.Asked != before.Sends.Asked {
		s.t.Errorf("after the decisions the account is %+v, want %+v of %d", a.Sends, want, before.Sends.Asked)
	}
	if more := total(s.delivered()) - reached; more != is.Sent-was.Sent {
		s.t.Errorf("%d were reached by the release, want %d", more, is.Sent-was.Sent)
	}
}

func (s *senders) command(args ...string) []byte {
	s.t.Helper()
	out, err := s.at.output(args...)
	if err != nil {
		s.t.Fatalf("birdtap %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// delivered is how often Sendbird has reached each user.
func (s *senders) delivered() (users map[string]int) {
	s.t.Helper()
	s.get("/-/delivered", &users)
	return users
}

func total(times map[string]int) (sum int) {
	for _, n := range times {
		sum += n
	}
	return sum
}

// unsent are the users who were not sent to.
func (s *senders) unsent() map[string]bool {
	s.t.Helper()
	users := map[string]bool{}
	for line := range bytes.Lines(s.command("send", "--unsent", "--json")) {
		var l struct {
			User string `json:"user"`
		}
		if err := json.Unmarshal(line, &l); err != nil {
			s.t.Fatalf("%v: %s", err, line)
		}
		users[l.User] = true
	}
	return users
}
