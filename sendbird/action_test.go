package sendbird_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/birdtap/birdtap/sendbird"
	"github.com/birdtap/birdtap/sendbird/sendbirdtest"
)

const (
	chatToken = "hunter2-chat-token"
	deskToken = "hunter2-desk-token"
)

// wire is a transport straight into a handler, by way of the bytes that would cross
// the network. It needs none, so that time in a test can be made up.
type wire struct{ handler http.Handler }

func (w wire) RoundTrip(req *http.Request) (resp *http.Response, err error) {
	if trace := httptrace.ContextClientTrace(req.Context()); trace != nil && trace.GotConn != nil {
		trace.GotConn(httptrace.GotConnInfo{})
	}
	var sent bytes.Buffer
	if err := req.Write(&sent); err != nil {
		return nil, err
	}
	arrived, err := http.ReadRequest(bufio.NewReader(&sent))
	if err != nil {
		return nil, err
	}
	answer := httptest.NewRecorder()
	defer func() {
		if gone := recover(); gone != nil { // the fake ends a connection like that
			resp, err = nil, io.ErrUnexpectedEOF
			if req.Context().Err() != nil {
				err = req.Context().Err()
			}
		}
	}()
	w.handler.ServeHTTP(answer, arrived.WithContext(req.Context()))
	return answer.Result(), nil
}

// chatAndDesk is a fake, and a client of it over [wire].
func chatAndDesk(t testing.TB, o sendbirdtest.Options, change ...func(*sendbird.Config)) (*sendbirdtest.Server, *sendbird.Client) {
	t.Helper()
	o.ChatToken, o.DeskToken = chatToken, deskToken
	s := sendbirdtest.New(o)
	cfg := sendbird.Config{
		ChatURL: "http://chat.test", ChatToken: func() string { return chatToken },
		DeskURL: "http://desk.test", DeskToken: func() string { return deskToken },
	}
	for _, f := range change {
		f(&cfg)
	}
	c, err := sendbird.New(cfg, sendbird.WithTransport(wire{s.Handler()}))
	if err != nil {
		t.Fatal(err)
	}
	return s, c
}

func once(c *sendbird.Config) { c.Attempts = 1 }

// newJay is a user in order.
func newJay() sendbird.NewUser { return sendbird.NewUser{ID: "jay", Nickname: "Jay"} }

func mustCreate(t testing.TB, c *sendbird.Client) {
	t.Helper()
	if _, err := c.CreateUser(t.Context(), newJay()); err != nil {
		t.Fatal(err)
	}
}

// actions are all calls of Chat and Desk, about jay, whose metadata has a plan, and
// about the customer that jay is.
var actions = map[sendbirdtest.Endpoint]func(context.Context, *sendbird.Client) error{
	sendbirdtest.CreateUser: func(ctx context.Context, c *sendbird.Client) error {
		_, err := c.CreateUser(ctx, newJay())
		return err
	},
	sendbirdtest.GetUser: func(ctx context.Context, c *sendbird.Client) error {
		_, err := c.User(ctx, "jay")
		return err
	},
	sendbirdtest.UpdateUser: func(ctx context.Context, c *sendbird.Client) error {
		_, err := c.DeactivateUser(ctx, "jay", false)
		return err
	},
	sendbirdtest.DeleteUser: func(ctx context.Context, c *sendbird.Client) error { return c.DeleteUser(ctx, "jay") },
	sendbirdtest.UpdateMetadata: func(ctx context.Context, c *sendbird.Client) error {
		_, err := c.UpdateMetadata(ctx, "jay", map[string]string{"plan": "gold"}, true)
		return err
	},
	sendbirdtest.DeleteMetadata: func(ctx context.Context, c *sendbird.Client) error {
		return c.DeleteMetadata(ctx, "jay", "plan")
	},
	sendbirdtest.CreateCustomer: func(ctx context.Context, c *sendbird.Client) error {
		_, err := c.CreateCustomer(ctx, "jay")
		return err
	},
	sendbirdtest.FindCustomers: func(ctx context.Context, c *sendbird.Client) error {
		_, err := c.CustomerBySendbirdID(ctx, "jay")
		return err
	},
	sendbirdtest.GetCustomer: func(ctx context.Context, c *sendbird.Client) error {
		_, err := c.Customer(ctx, 1001)
		return err
	},
	sendbirdtest.CustomerFields: func(ctx context.Context, c *sendbird.Client) error {
		_, err := c.UpdateCustomFields(ctx, 1001, map[string]string{"plan": "gold"})
		return err
	},
	sendbirdtest.CreateTicket: func(ctx context.Context, c *sendbird.Client) error {
		_, err := c.CreateTicket(ctx, sendbird.NewTicket{ChannelName: "Lamp", CustomerID: 1001})
		return err
	},
}

func isDesk(at sendbirdtest.Endpoint) bool {
	return strings.Contains(string(at), "customer") || at == sendbirdtest.CreateTicket
}

// prepare makes the fake such that every action but the creations succeeds.
func prepare(t testing.TB, c *sendbird.Client, but sendbirdtest.Endpoint) {
	t.Helper()
	for _, at := range []sendbirdtest.Endpoint{sendbirdtest.CreateUser, sendbirdtest.UpdateMetadata, sendbirdtest.CreateCustomer} {
		if at == but {
			return
		}
		if err := actions[at](t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
}

// Whatever goes wrong once, the action is carried out, once, by itself; but a ticket
// whose answer was lost is not created again.
func TestActionsSurviveOneFault(t *testing.T) {
	for at, do := range actions {
		for name, does := range map[string]sendbirdtest.Behaviour{
			"too many": sendbirdtest.TooMany(3 * time.Second), "server error": sendbirdtest.Error(500, 500901, "hunter2"),
			"unavailable": sendbirdtest.Status(503, nil, "").NotTaking(), "page": sendbirdtest.HTML(),
			"answer lost": sendbirdtest.ResetAfterBody(), "call lost": sendbirdtest.ResetBeforeBody(),
			"answer cut": sendbirdtest.CutOff(), "no answer": sendbirdtest.Hang(),
			"done, and a 502": sendbirdtest.Status(502, nil, "<html>").Taking(),
		} {
			t.Run(string(at)+"/"+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s, c := chatAndDesk(t, sendbirdtest.Options{})
					prepare(t, c, at)
					before := s.Counts().Actions
					s.Script(at, does)
					err := do(t.Context(), c)
					if s.Pending(at) > 0 {
						t.Fatal("the fault was not met")
					}
					clean := name == "too many" || name == "server error"
					if at == sendbirdtest.CreateTicket && !clean {
						if sendbird.OutcomeOf(err) != sendbird.Unknown || len(s.Tickets()) > 1 {
							t.Errorf("got %v (%v), %d tickets", err, sendbird.OutcomeOf(err), len(s.Tickets()))
						}
						return
					}
					if err != nil {
						t.Errorf("got %v", err)
					}
					switch at {
					case sendbirdtest.CreateTicket:
						if n := len(s.Tickets()); n != 1 {
							t.Errorf("%d tickets", n)
						}
					case sendbirdtest.CreateUser, sendbirdtest.DeleteUser:
						if _, there := s.User("jay"); there != (at == sendbirdtest.CreateUser) {
							t.Errorf("the user is there: %v", there)
						}
					case sendbirdtest.CreateCustomer:
						if n := len(s.Customers()); n != 1 {
							t.Errorf("%d customers", n)
						}
					default: // changes and questions may be repeated
					}
					if s.Counts().Actions == before {
						t.Error("nothing was carried out")
					}
				})
			})
		}
	}
}

// A creation that finds what it wants to create, a deletion of what is not there: an
// error, unless our own answer was lost before.
func TestOnlyOurOwnLostAnswerCountsAsDone(t *testing.T) {
	create, remove := actions[sendbirdtest.CreateUser], actions[sendbirdtest.DeleteUser]
	lost, busy, broken := sendbirdtest.ResetAfterBody(), sendbirdtest.TooMany(time.Second), sendbirdtest.Error(500, 500901, "")
	for name, tc := range map[string]struct {
		there bool // jay is, before
		do    func(context.Context, *sendbird.Client) error
		at    sendbirdtest.Endpoint
		does  []sendbirdtest.Behaviour
		code  sendbird.Code // 0: it succeeds
		want  sendbird.Outcome
	}{
		"exists":                          {true, create, sendbirdtest.CreateUser, nil, sendbird.CodeExists, sendbird.Refused},
		"exists, after a 429":             {true, create, sendbirdtest.CreateUser, []sendbirdtest.Behaviour{busy}, sendbird.CodeExists, sendbird.Refused},
		"exists, after a clean 500":       {true, create, sendbirdtest.CreateUser, []sendbirdtest.Behaviour{broken}, sendbird.CodeExists, sendbird.Refused},
		"exists, after a lost answer":     {false, create, sendbirdtest.CreateUser, []sendbirdtest.Behaviour{lost}, 0, 0},
		"two lost answers":                {false, create, sendbirdtest.CreateUser, []sendbirdtest.Behaviour{lost, lost, busy}, 0, 0},
		"not there":                       {false, remove, sendbirdtest.DeleteUser, nil, sendbird.CodeNotFound, sendbird.Refused},
		"not there, after a 429":          {false, remove, sendbirdtest.DeleteUser, []sendbirdtest.Behaviour{busy}, sendbird.CodeNotFound, sendbird.Refused},
		"not there, after a lost answer":  {true, remove, sendbirdtest.DeleteUser, []sendbirdtest.Behaviour{lost}, 0, 0},
		"refused, after a lost answer":    {true, remove, sendbirdtest.DeleteUser, []sendbirdtest.Behaviour{lost, sendbirdtest.Error(400, 400401, "")}, sendbird.CodeBadToken, sendbird.Unknown},
		"busy for long, after a lost one": {true, remove, sendbirdtest.DeleteUser, []sendbirdtest.Behaviour{lost, sendbirdtest.TooMany(time.Hour)}, sendbird.CodeTooManyRequests, sendbird.Unknown},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, c := chatAndDesk(t, sendbirdtest.Options{})
				if tc.there {
					mustCreate(t, c)
				}
				s.Script(tc.at, tc.does...)
				err := tc.do(t.Context(), c)
				if tc.code == 0 {
					if err != nil {
						t.Errorf("got %v", err)
					}
					return
				}
				refused, ok := errors.AsType[*sendbird.APIError](err)
				if !ok || refused.Code != tc.code || sendbird.OutcomeOf(err) != tc.want {
					t.Errorf("got %v (%v), want code %d, %v", err, sendbird.OutcomeOf(err), tc.code, tc.want)
				}
			})
		})
	}
}

// A user with another nickname is not the one that the lost call may have created.
func TestALostCreationDoesNotTakeAnothersUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := chatAndDesk(t, sendbirdtest.Options{})
		mustCreate(t, c)
		s.Script(sendbirdtest.CreateUser, sendbirdtest.ResetBeforeBody())
		u := newJay()
		u.Nickname = "Jane"
		_, err := c.CreateUser(t.Context(), u)
		if e, ok := errors.AsType[*sendbird.APIError](err); !ok || e.Code != sendbird.CodeExists {
			t.Errorf("got %v", err)
		}
		if retried, ok := errors.AsType[*sendbird.RetriedError](err); !ok || !retried.Lost || retried.Attempts != 2 ||
			!strings.HasSuffix(err.Error(), "exists already (2 attempts, an earlier one of unknown outcome)") {
			t.Errorf("got %v", err)
		}
	})
}

// Desk refuses the second creation, while the lost first one only now comes through.
func TestALostCustomerIsLookedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := chatAndDesk(t, sendbirdtest.Options{})
		mustCreate(t, c)
		s.Script(sendbirdtest.CreateCustomer, sendbirdtest.ResetAfterBody())
		s.Script(sendbirdtest.FindCustomers, sendbirdtest.Status(200, nil, `{"count":0,"results":[]}`))
		got, err := c.CreateCustomer(t.Context(), "jay")
		if err != nil || got.ID != 1001 || len(s.Customers()) != 1 {
			t.Errorf("got %+v, %v, %d customers", got, err, len(s.Customers()))
		}
	})
}

func TestAttemptsAreBounded(t *testing.T) {
	for name, tc := range map[string]struct {
		does  sendbirdtest.Behaviour
		calls int
		least time.Duration
	}{
		"always busy":          {sendbirdtest.TooMany(7 * time.Second), 5, 4 * 7 * time.Second},
		"always busy, no word": {sendbirdtest.Status(429, nil, "slow down"), 5, 4 * time.Second},
		"busy for too long":    {sendbirdtest.TooMany(61 * time.Second), 1, 0},
		"always broken":        {sendbirdtest.Error(500, 500901, ""), 5, 3 * time.Second},
		"never an answer":      {sendbirdtest.Hang(), 5, 5 * 30 * time.Second},
		"led elsewhere":        {sendbirdtest.Redirect("http://elsewhere.test/"), 1, 0},
		"refused":              {sendbirdtest.Error(400, 400108, ""), 1, 0},
		"partial":              {sendbirdtest.PartialSuccess(207), 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				told := 0
				s, c := chatAndDesk(t, sendbirdtest.Options{}, func(cfg *sendbird.Config) {
					cfg.OnRetry = func(why error, wait time.Duration) {
						told++
						if why == nil || wait <= 0 {
							t.Errorf("told %v, %v", why, wait)
						}
					}
				})
				mustCreate(t, c)
				s.Always(sendbirdtest.GetUser, tc.does)
				before, begun := s.Counts().Calls, time.Now()
				_, err := c.User(t.Context(), "jay")
				calls, took := s.Counts().Calls-before, time.Since(begun)
				if err == nil || calls != tc.calls || told != calls-1 || took < tc.least || took > tc.least+20*time.Second {
					t.Errorf("got %v, %d calls, told %d times, took %v", err, calls, told, took)
				}
				retried, ok := errors.AsType[*sendbird.RetriedError](err)
				if ok != (calls > 1) || ok && retried.Attempts != calls {
					t.Errorf("got %#v", err)
				}
			})
		})
	}
}

// Who gives up while it waits learns what went wrong, not that it gave up.
func TestGivingUpKeepsTheReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := chatAndDesk(t, sendbirdtest.Options{})
		s.Always(sendbirdtest.GetUser, sendbirdtest.TooMany(30*time.Second))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := c.User(ctx, "jay")
		if e, ok := errors.AsType[*sendbird.APIError](err); !ok || e.Code != sendbird.CodeTooManyRequests || s.Counts().Calls != 1 {
			t.Errorf("got %v after %d calls", err, s.Counts().Calls)
		}
	})
}

// Calls keep to what the headers say: none is one too many.
func TestActionsKeepToTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := chatAndDesk(t, sendbirdtest.Options{Limit: 3, Window: 10 * time.Second})
		mustCreate(t, c)
		for range 10 {
			if _, err := c.User(t.Context(), "jay"); err != nil {
				t.Fatal(err)
			}
		}
		if n := s.Counts().TooMany; n > 0 {
			t.Errorf("%d calls were one too many", n)
		}
	})
}

// Every documented code, at every call of Chat; at those of Desk, where none is
// documented, in Chat's shape and in Desk's two.
func TestActionsKnowEveryCode(t *testing.T) {
	later := map[int]bool{500601: true, 500602: true, 500901: true, 500910: true}
	for _, code := range []int{
		400100, 400101, 400102, 400103, 400104, 400105, 400106, 400108, 400110, 400111, 400112, 400113, 400114, 400151,
		400201, 400202, 400203, 400300, 400301, 400302, 400303, 400304, 400305, 400306, 400307, 400401, 400402, 400403,
		400404, 400700, 400701, 400702, 400750, 400751, 400920, 400930, 403100, 403101, 500601, 500602, 500901, 500910,
	} {
		for at, do := range actions {
			synctest.Test(t, func(t *testing.T) {
				s, c := chatAndDesk(t, sendbirdtest.Options{}, once)
				status := map[int]int{403100: 403, 500601: 500, 500602: 500, 500901: 500, 500910: 429}[code]
				if status == 0 {
					status = 400
				}
				s.Always(at, sendbirdtest.Error(status, code, "hunter2 "+person))
				err := do(t.Context(), c)
				want := sendbird.Refused
				if later[code] {
					want = sendbird.Later
				}
				e, ok := errors.AsType[*sendbird.APIError](err)
				if !ok || int(e.Code) != code || sendbird.OutcomeOf(err) != want || e.Code.String() == "" || !strings.Contains(err.Error(), e.Code.String()) {
					t.Errorf("%s, code %d: got %v (%v), want %v", at, code, err, sendbird.OutcomeOf(err), want)
				}
				quiet(t, err)
			})
		}
	}
}

func TestDeskSaysNoInTwoShapes(t *testing.T) {
	for _, tc := range []struct {
		does       sendbirdtest.Behaviour
		code, says string
		text       string
		want       sendbird.Outcome
	}{
		{sendbirdtest.DeskError(400, "desk_400111", "hunter2"), "desk_400111", "hunter2", "Sendbird answered 400, code desk_400111", sendbird.Refused},
		{sendbirdtest.DeskMessage(404, "not_found", "hunter2"), "not_found", "hunter2", "Sendbird answered 404, code not_found", sendbird.Refused},
		{sendbirdtest.DeskMessage(400, "400401", "hunter2"), "400401", "hunter2", "code 400401: the API token is not valid", sendbird.Refused},
		{sendbirdtest.DeskError(429, "throttled", "hunter2"), "throttled", "hunter2", "Sendbird answered 429, code throttled", sendbird.Later},
		{sendbirdtest.DeskError(500, "oops", "hunter2"), "oops", "hunter2", "Sendbird answered 500, code oops", sendbird.Unknown},
		{sendbirdtest.DeskError(200, "no", "hunter2"), "no", "hunter2", "Sendbird answered 200, code no", sendbird.Unknown},
		{sendbirdtest.DeskError(400, person+" hunter2", "hunter2"), person + " hunter2", "hunter2", "Sendbird answered 400 Bad Request", sendbird.Refused},
		{sendbirdtest.Status(400, nil, `{"code":7,"detail":{"sendbirdId":["hunter2"]}}`), "7", `{"sendbirdId":["hunter2"]}`, "Sendbird answered 400, code 7", sendbird.Refused},
		{sendbirdtest.Status(403, nil, `{"detail":"hunter2"}`), "", "hunter2", "Sendbird answered 403 Forbidden", sendbird.Refused},
		{sendbirdtest.Status(502, nil, `<html>hunter2`), "", "", "Sendbird answered 502 Bad Gateway", sendbird.Unknown},
	} {
		for at, do := range actions {
			if !isDesk(at) {
				continue
			}
			s, c := chatAndDesk(t, sendbirdtest.Options{}, once)
			s.Always(at, tc.does)
			err := do(t.Context(), c)
			quiet(t, err)
			e, ok := errors.AsType[*sendbird.APIError](err)
			if !ok || e.DeskCode != tc.code || e.Message != tc.says || sendbird.OutcomeOf(err) != tc.want || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%s: got %v (%v) %q, want %q (%v)", at, err, sendbird.OutcomeOf(err), e.DeskCode, tc.text, tc.want)
			}
		}
	}
}

// Each API has its own token, in its own header, and gets no other.
func TestTokensGoWhereTheyBelong(t *testing.T) {
	for at, do := range actions {
		s, c := chatAndDesk(t, sendbirdtest.Options{}, once)
		_ = do(t.Context(), c) // whatever it comes to
		for _, call := range s.Calls() {
			chat, desk := call.Header.Get("Api-Token"), call.Header.Get("SENDBIRDDESKAPITOKEN")
			if isDesk(at) && (chat != "" || desk != deskToken) || !isDesk(at) && (chat != chatToken || desk != "") {
				t.Errorf("%s: Api-Token %q, SENDBIRDDESKAPITOKEN %q", at, chat, desk)
			}
			if all := fmt.Sprint(call.Path, string(call.Body)); strings.Contains(all, "hunter2") {
				t.Errorf("%s: the token stands in %s", at, all)
			}
		}
	}
}

func TestCallsWithoutATokenAreRefused(t *testing.T) {
	s, c := chatAndDesk(t, sendbirdtest.Options{}, func(cfg *sendbird.Config) { cfg.ChatToken = nil })
	for at, do := range actions {
		err := do(t.Context(), c)
		if refused := sendbird.OutcomeOf(err) == sendbird.Refused && strings.Contains(err.Error(), "no token"); refused == isDesk(at) {
			t.Errorf("%s: got %v", at, err)
		}
	}
	for _, call := range s.Calls() {
		if !isDesk(call.Endpoint) {
			t.Errorf("%s was called", call.Endpoint)
		}
	}
}

func TestAddressesOfAnApplication(t *testing.T) {
	for want, of := range map[string]func(string) (string, error){
		"https://api-AAAA-1.sendbird.com": sendbird.ChatURL, "https://desk-api-AAAA-1.sendbird.com": sendbird.DeskURL,
	} {
		if got, err := of("AAAA-1"); err != nil || got != want {
			t.Errorf("got %s, %v; want %s", got, err, want)
		}
		if _, err := of("x.evil.com/hunter2"); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("got %v", err)
		}
	}
}
