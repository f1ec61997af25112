//go:build integration

package integration

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/birdtap/birdtap/sendbird/sendbirdtest"
	"github.com/birdtap/birdtap/store/failpoint"
)

const webhookToken = "webhook-token"

// sending is a lone machine that sends notifications, and the fake Sendbird it calls.
type sending struct {
	t      *testing.T
	fake   *sendbirdtest.Server
	at     *birdtap
	doors  string
	window string
	log    string
	daemon *process

	next   int             // number of the next user
	target int             // added to the campaign's target id
	asked  map[string]bool // users of calls that were answered 200
}

// newSending is one whose birdtap has failpoints.
func newSending(t *testing.T) *sending {
	t.Helper()
	fake, err := sendbirdtest.Start("127.0.0.1:0", sendbirdtest.Options{KeepLast: 100})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	u, err := url.Parse(fake.URL())
	if err != nil {
		t.Fatal(err)
	}
	s := &sending{t: t, fake: fake, doors: freeAddr(t), window: freeAddr(t), asked: map[string]bool{}}
	s.log = filepath.Join(t.ArtifactDir(), "sender.log")
	s.at = newBirdtap(t, map[string]string{
		"HTTP_ADDR": s.doors, "OPS_ADDR": s.window, "DATA_DIR": filepath.Join(t.TempDir(), "data"),
		"SENDBIRD_NOTIFICATIONS_URL": fake.URL(), "SENDBIRD_NOTIFICATIONS_TOKEN": "token", "SENDER_TOKENS": webhookToken,
		"SENDBIRD_UPLOAD_HOSTS": u.Host, "GATHER_WAIT": "100ms", "QUEUE_MAX_BYTES": "64MiB", "DEAD_MAX_BYTES": "16MiB", "KEEP_MAX_BYTES": "16MiB",
	})
	s.at.binary = aimedBinary(t)
	t.Cleanup(func() { showEnd(t, "sender", s.log) })
	return s
}

// start starts the daemon, with an order for a failpoint if there is one, and waits until
// it takes webhook calls.
func (s *sending) start(order string) {
	s.t.Helper()
	cmd := s.at.command("serve")
	if order != "" {
		cmd.Env = append(cmd.Env, "FAILPOINT="+order)
	}
	s.daemon = start(s.t, "serve", s.log, cmd)
	eventually(s.t, readyWithin, "the daemon is ready, or was killed", func() bool {
		select {
		case <-s.daemon.done:
			return true
		default:
			return get("http://"+s.window+"/readyz") != ""
		}
	})
}

// webhook makes a call of n new users as CleverTap does, up to four times, and returns
// them if it was answered 200.
func (s *sending) webhook(door string, n int) []string {
	s.t.Helper()
	var users []string
	var profiles strings.Builder
	for i := range n {
		users = append(users, fmt.Sprintf("user-%d", s.next))
		if i > 0 {
			profiles.WriteByte(',')
		}
		fmt.Fprintf(&profiles, `{"identity":"user-%d"}`, s.next)
		s.next++
	}
	body := fmt.Sprintf(`{"targetId":%d,"key_values":{"template_key":"sale","event_name":"Sale","var.name":"N"},"profiles":[%s]}`, 7+s.target, profiles.String())
	client := http.Client{Timeout: 5 * time.Second}
	for range 4 {
		req, err := http.NewRequest(http.MethodPost, "http://"+s.doors+"/clevertap/notifications/"+door, strings.NewReader(body))
		if err != nil {
			s.t.Fatal(err)
		}
		req.Header.Set("Api-Token", webhookToken)
		req.Header.Set("Content-Type", "application/json")
		resp, err := client.Do(req)
		if err != nil {
			continue
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			for _, u := range users {
				s.asked[u] = true
			}
			return users
		}
	}
	return nil
}

// sendsAccount is what `birdtap status --json` says of notifications.
type sendsAccount struct {
	Sends struct {
		Asked     int     `json:"asked"`
		Waiting   int     `json:"waiting"`
		Realtime  sendsOf `json:"realtime"`
		Batch     sendsOf `json:"batch"`
		CSV       sendsOf `json:"csv"`
		HeldCalls int     `json:"held_calls"`
	} `json:"sends"`
}

type sendsOf struct {
	Sent    int `json:"sent"`
	Refused int `json:"refused"`
	Held    int `json:"held"`
	Dropped int `json:"dropped"`
}

func (a *sendsAccount) sum() sendsOf {
	r, b, c := a.Sends.Realtime, a.Sends.Batch, a.Sends.CSV
	return sendsOf{r.Sent + b.Sent + c.Sent, r.Refused + b.Refused + c.Refused, r.Held + b.Held + c.Held, r.Dropped + b.Dropped + c.Dropped}
}

// settled waits until nobody waits any more.
func (s *sending) settled() sendsAccount {
	s.t.Helper()
	var a sendsAccount
	eventually(s.t, time.Minute, "everybody is sent to, refused or held", func() bool {
		out, err := s.at.output("status", "--json")
		return err == nil && json.Unmarshal(out, &a) == nil && a.Sends.Waiting == 0
	})
	return a
}

// check compares the account with what Sendbird has carried out: nobody was reached
// twice, and whoever was not reached was refused or is held.
func (s *sending) check(a sendsAccount) {
	s.t.Helper()
	sum := a.sum()
	if a.Sends.Asked != sum.Sent+sum.Refused+sum.Held+sum.Dropped {
		s.t.Errorf("the account does not add up: %+v", a.Sends)
	}
	reached := s.fake.Deliveries()
	for user, times := range reached {
		if times != 1 {
			s.t.Errorf("%s was reached %d times", user, times)
		}
	}
	missed := 0
	for user := range s.asked {
		if reached[user] == 0 {
			missed++
		}
	}
	if a.Sends.Asked < len(s.asked) || missed > sum.Held+sum.Refused+sum.Dropped || sum.Sent > len(reached) {
		s.t.Errorf("%d users of calls answered 200, of whom %d were not reached; the account: %+v", len(s.asked), missed, a.Sends)
	}
}

// The daemon is killed in every state that a job has. Nobody is reached twice, and nobody
// is left out: who was not reached is held, and counted.
func TestSenderKilledAtEveryFailpoint(t *testing.T) {
	t.Parallel()
	s := newSending(t)
	s.fake.Judge(func(n sendbirdtest.Notification) int {
		if len(n.Users) == 13 {
			return 400201
		}
		return 0
	})
	for _, point := range []struct {
		at   failpoint.Point
		door string
		n    int
		held bool // the call has to end without an answer
	}{
		{failpoint.AsksStored, "realtime", 1, false},
		{failpoint.AsksStored, "batch", 20, false},
		{failpoint.CallNoted, "realtime", 1, false},
		{failpoint.CallNoted, "batch", 20, false},
		{failpoint.CallNoted, "batch", 10_001, false},
		{failpoint.CallAnswered, "realtime", 1, false},
		{failpoint.CallAnswered, "batch", 20, false},
		{failpoint.CallAnswered, "batch", 10_001, false},
		{failpoint.FileUploaded, "batch", 10_001, false},
		{failpoint.SenderWritten, "realtime", 1, false},
		{failpoint.CallHeld, "batch", 20, true},
		{failpoint.UnsentListed, "batch", 13, false},
	} {
		if point.held {
			s.fake.Script(sendbirdtest.Messages, sendbirdtest.ResetAfterBody().Taking())
		}
		s.start(string(point.at) + "=kill")
		s.webhook(point.door, point.n)
		reached(t, s.daemon, point.at)
		s.start("")
		s.webhook("realtime", 1)
		s.settled()
		s.daemon.kill()
	}
	// And while a decision of the operator's is carried out.
	s.start(string(failpoint.HeldForgotten) + "=kill")
	out, err := s.at.output("send", "--held", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var held struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(bytes.SplitN(out, []byte("\n"), 2)[0], &held); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	_, _ = s.at.output("send", "--held", "--drop", held.ID) // the daemon may be gone before it has said so
	reached(t, s.daemon, failpoint.HeldForgotten)
	s.start("")
	a := s.settled()
	s.check(a)
	if a.sum().Dropped == 0 {
		t.Error("nobody was given up, though the operator dropped a call")
	}
	if a.Sends.HeldCalls == 0 {
		t.Error("no call is held, though several were on their way when the daemon died")
	}
	if code := s.daemon.terminate(30 * time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
	files := 0
	for _, c := range s.fake.Calls() {
		if c.Endpoint == sendbirdtest.Presign && bytes.Contains(c.Body, []byte("true")) {
			files++
		}
	}
	if files == 0 {
		t.Error("no file was uploaded anew after a break")
	}
}
