package sendbirdtest_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/birdtap/birdtap/sendbird/sendbirdtest"
)

func TestChatAndDeskKeepState(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := start(t, sendbirdtest.Options{Now: func() time.Time { return now }, CustomerFields: []string{"plan"}, TicketFields: []string{"product"}})
	const jay = `{"user_id":"j/y","nickname":"Jay","profile_url":"","access_token":"","is_active":true,"is_online":false,` +
		`"last_seen_at":0,"created_at":1767323045,"has_ever_logged_in":false,"discovery_keys":[],"preferred_languages":[],"metadata":{}}`
	changed := strings.NewReplacer(`true,"is_on`, `false,"is_on`, `"metadata":{}`, `"metadata":{"a":"2"}`, `"access_token":""`, `"access_token":"access-token-1"`).Replace(jay)
	const customer = `{"id":1001,"sendbirdId":"j/y","channelType":"SENDBIRD","project":1,"createdAt":"2026-01-02T03:04:05Z",` +
		`"displayName":"Jay","photoThumbnailUrl":"","customFields":[%s]}`
	for i, step := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"POST", "/v3/users", `{"user_id":"j/y","nickname":"Jay","profile_url":""}`, 200, jay},
		{"GET", "/v3/users/j%2Fy", "", 200, jay},
		{"PUT", "/v3/users/j%2Fy/metadata", `{"metadata":{"a":"1"}}`, 200, "{}"},
		{"PUT", "/v3/users/j%2Fy/metadata", `{"metadata":{"a":"1","b,":"1"},"upsert":true}`, 400, `{"message":"\"metadata\" has a key with a comma.","code":400151,"error":true}`},
		{"PUT", "/v3/users/j%2Fy/metadata", `{"metadata":{"a":"1","b":"1"},"upsert":true}`, 200, `{"a":"1","b":"1"}`},
		{"PUT", "/v3/users/j%2Fy/metadata", `{"metadata":{"a":"2"}}`, 200, `{"a":"2"}`},
		{"DELETE", "/v3/users/j%2Fy/metadata/b", "", 200, ""},
		{"PUT", "/v3/users/j%2Fy", `{"is_active":false,"issue_access_token":true}`, 200, changed},
		{"GET", "/v3/users/j%2Fy", "", 200, changed},
		{"DELETE", "/v3/users/j%2Fy/metadata", "", 200, ""},
		{"POST", "/platform/v1/customers", `{"sendbirdId":"j/y"}`, 201, fmt.Sprintf(customer, "")},
		{"GET", "/platform/v1/customers/1001", "", 200, fmt.Sprintf(customer, "")},
		{"PATCH", "/platform/v1/customers/1001/custom_fields", `{"customFields":"{\"plan\":\"gold\",\"x\":\"\"}"}`, 200, fmt.Sprintf(customer, `{"id":1,"key":"plan","value":"gold"}`)},
		{"GET", "/platform/v1/customers?sendbird_id=j%2Fy", "", 200, `{"count":1,"results":[` + fmt.Sprintf(customer, `{"id":1,"key":"plan","value":"gold"}`) + `]}`},
		{"GET", "/platform/v1/customers?sendbird_id=no", "", 200, `{"count":0,"results":[]}`},
		{"GET", "/platform/v1/customers?limit=500&offset=1", "", 200, `{"count":1,"results":[]}`},
		{
			"POST", "/platform/v1/tickets", `{"channelName":"Lamp","customerId":1001,"customFields":"{\"product\":\"l\",\"x\":\"\"}"}`, 201,
			`{"id":2001,"channelUrl":"sendbird_desk_2001","channelName":"Lamp","status":"INITIALIZED","priority":"MEDIUM","createdAt":"2026-01-02T03:04:05Z","customer":` +
				fmt.Sprintf(customer, `{"id":1,"key":"plan","value":"gold"}`) + `}`,
		},
		{"DELETE", "/v3/users/j%2Fy", "", 200, "{}"},
		{"GET", "/v3/users/j%2Fy", "", 400, `{"message":"\"User\" not found.","code":400201,"error":true}`},
	} {
		status, body, _ := call(t, step.method, s.URL()+step.path, step.body)
		if status != step.status || body != step.want {
			t.Errorf("step %d, %s %s: %d %s\nwant %d %s", i, step.method, step.path, status, body, step.status, step.want)
		}
	}
	if fields := s.Tickets()[0].CustomFields; len(fields) != 1 || fields["product"] != "l" {
		t.Errorf("ticket has %v", fields)
	}
	if n := s.Counts().Actions; n != 17 {
		t.Errorf("%d carried out, want 17", n)
	}
}

func TestChatAndDeskRefuse(t *testing.T) {
	s := start(t, sendbirdtest.Options{ChatToken: "chat", DeskToken: "desk"})
	with := []string{"Api-Token", "chat", "SENDBIRDDESKAPITOKEN", "desk"}
	long := func(n int) string { return strings.Repeat("é", n) }
	for _, step := range [][2]string{
		{"/v3/users", `{"user_id":"jay","nickname":"","profile_url":"","metadata":{"1":"","2":"","3":"","4":"","5":""}}`},
		{"/platform/v1/customers", `{"sendbirdId":"jay"}`},
	} {
		if status, body, _ := call(t, "POST", s.URL()+step[0], step[1], with...); status > 299 {
			t.Fatal(body)
		}
	}
	user := func(id, rest string) string {
		return `{"user_id":"` + id + `","nickname":"n","profile_url":""` + rest + `}`
	}
	for _, tc := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"POST", "/v3/users", `{`, 400, "400403"},
		{"POST", "/v3/users", `{"user_id":7}`, 400, "400100"},
		{"POST", "/v3/users", `{"user_id":"a","nickname":"n"}`, 400, "400105"},
		{"POST", "/v3/users", user("", ""), 400, "400111"},
		{"POST", "/v3/users", user("jay", ""), 400, "400202"},
		{"POST", "/v3/users", user(long(81), ""), 400, "400305"},
		{"POST", "/v3/users", `{"user_id":"a","nickname":"` + long(81) + `","profile_url":""}`, 400, "400110"},
		{"POST", "/v3/users", `{"user_id":"a","nickname":"","profile_url":"` + long(2049) + `"}`, 400, "400110"},
		{"POST", "/v3/users", user("a", `,"metadata":{"`+long(129)+`":""}`), 400, "400110"},
		{"PUT", "/v3/users/no", `{}`, 400, "400201"},
		{"PUT", "/v3/users/jay", `{"is_active":"no"}`, 400, "400100"},
		{"PUT", "/v3/users/jay", `{"preferred_languages":["a","b","c","d","e"]}`, 400, "400203"},
		{"PUT", "/v3/users/jay/metadata", `{}`, 400, "400105"},
		{"PUT", "/v3/users/jay/metadata", `{"metadata":{"1":2}}`, 400, "400100"},
		{"PUT", "/v3/users/jay/metadata", `{"metadata":{"1":"` + long(191) + `"}}`, 400, "400110"},
		{"PUT", "/v3/users/jay/metadata", `{"metadata":{"6":""},"upsert":true}`, 400, "400203"}, // a sixth stored
		{"DELETE", "/v3/users/jay/metadata/9", "", 400, "400201"},
		{"DELETE", "/v3/users/no", "", 400, "400201"},
		{"POST", "/platform/v1/customers", `{}`, 400, `"invalid"`},
		{"POST", "/platform/v1/customers", `{"sendbirdId":"no"}`, 400, `"user_not_found"`},
		{"POST", "/platform/v1/customers", `{"sendbirdId":"jay"}`, 400, `"unique"`},
		{"GET", "/platform/v1/customers/7", "", 404, `"not_found"`},
		{"GET", "/platform/v1/customers?limit=501", "", 400, `"invalid"`},
		{"PATCH", "/platform/v1/customers/1001/custom_fields", `{"customFields":{"a":"b"}}`, 400, `"invalid"`},
		{"PATCH", "/platform/v1/customers/1001/custom_fields", `{"customFields":"{\"` + long(21) + `\":\"\"}"}`, 400, `"invalid"`},
		{"POST", "/platform/v1/tickets", `{"channelName":"x"}`, 400, `"invalid"`},
		{"POST", "/platform/v1/tickets", `{"channelName":"x","customerId":7}`, 400, `"customer_not_found"`},
		{"POST", "/platform/v1/tickets", `{"channelName":"` + long(101) + `","customerId":1001}`, 400, `"invalid"`},
		{"POST", "/platform/v1/tickets", `{"channelName":"x","customerId":1001,"groupKey":"A"}`, 400, `"invalid"`},
		{"POST", "/platform/v1/tickets", `{"channelName":"x","customerId":1001,"priority":"high"}`, 400, `"invalid"`},
		{"POST", "/platform/v1/tickets", `{"channelName":"x","customerId":1001,"relatedChannelUrls":"a,b,c,d"}`, 400, `"invalid"`},
		{"POST", "/platform/v1/tickets", `{"channelName":"x","customerId":1001,"customFields":"x"}`, 400, `"invalid"`},
		{"GET", "/v3/users", "", 405, ""},
		{"POST", "/v3/users/jay", `{}`, 405, ""},
		{"GET", "/v3/users/jay/metadata", "", 405, ""},
		{"GET", "/v3/users/", "", 404, ""},
		{"GET", "/v3/channels", "", 404, ""},
	} {
		status, body, _ := call(t, tc.method, s.URL()+tc.path, tc.body, with...)
		if status != tc.status || !strings.Contains(body, tc.says) {
			t.Errorf("%s %s %s: %d %s, want %d and %s", tc.method, tc.path, tc.body, status, body, tc.status, tc.says)
		}
	}
	if status, body, _ := call(t, "GET", s.URL()+"/v3/users/jay", ""); status != 400 || !strings.Contains(body, "400401") {
		t.Errorf("the notifications token in Chat: %d %s", status, body)
	}
	if status, body, _ := call(t, "GET", s.URL()+"/platform/v1/customers/1001", ""); status != 403 || !strings.Contains(body, `"not_authorized"`) {
		t.Errorf("no token in Desk: %d %s", status, body)
	}
	if status, _, _ := call(t, "POST", s.URL()+"/v3/users", `{}`, "Api-Token", "chat", "Content-Type", "text/plain"); status != 400 {
		t.Errorf("no JSON: %d", status)
	}
}

func TestChatAndDeskAreLimitedAndScripted(t *testing.T) {
	s := start(t, sendbirdtest.Options{Limit: 1})
	s.Script(sendbirdtest.GetUser, sendbirdtest.Error(500, 500901, "try later"))
	s.Always(sendbirdtest.GetCustomer, sendbirdtest.DeskError(503, "down", "later"))
	status, body, header := call(t, "GET", s.URL()+"/v3/users/jay", "")
	if status != 500 || !strings.Contains(body, "500901") || header.Get("X-RateLimit-Remaining") != "0" {
		t.Errorf("%d %s %v", status, body, header)
	}
	status, body, header = call(t, "GET", s.URL()+"/v3/users/jay", "")
	if status != 429 || !strings.Contains(body, "500910") || header.Get("X-RateLimit-RetryAfter") == "" {
		t.Errorf("%d %s %v", status, body, header)
	}
	if status, body, _ = call(t, "GET", s.URL()+"/platform/v1/customers/1", ""); status != 503 || body != `{"code":"down","detail":"later"}` {
		t.Errorf("%d %s", status, body)
	}
}
