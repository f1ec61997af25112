package sendbird

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// Every documented code, whatever status it comes with.
func TestOutcomeOfEveryCode(t *testing.T) {
	want := map[Code]Outcome{
		207100: Partial,
		500601: Later, 500602: Later, 500901: Later, 500910: Later, 429100: Later,
		400108: Refused, 400111: Refused, 403100: Refused, 403101: Refused,
	}
	var refused []Code
	for code := range codeWords {
		if code >= 400000 && code < 500000 {
			refused = append(refused, code)
		}
	}
	if len(refused) != 38 {
		t.Fatalf("38 codes of refusal are documented, the table knows %d", len(refused))
	}
	for _, code := range refused {
		want[code] = Refused
	}
	for code, outcome := range want {
		for _, status := range []int{200, 400, 403, 429, 500, 503} {
			body := fmt.Appendf(nil, `{"error":true,"code":%d,"message":"hunter2"}`, code)
			err := judge(&http.Response{StatusCode: status, Header: http.Header{}}, body, nil, new(Sent))
			if err == nil {
				t.Errorf("%d, code %d: a success", status, code)
				continue
			}
			e, ok := errors.AsType[*APIError](err)
			if !ok || e.Code != code || e.Status != status || e.Message != "hunter2" || OutcomeOf(err) != outcome {
				t.Errorf("%d, code %d: got %#v (%v), want %v", status, code, err, OutcomeOf(err), outcome)
			}
			if strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), fmt.Sprint(int(code))) {
				t.Errorf("says %q", err)
			}
		}
	}
}

// Every status without a body that Sendbird would write. Only what HTTP itself
// calls refused is refused: all else may have been carried out.
func TestOutcomeOfEveryStatus(t *testing.T) {
	for status := 200; status < 600; status++ {
		want := Unknown
		switch {
		case status == 207:
			want = Partial
		case status == 429:
			want = Later
		case status >= 400 && status < 500 && !slices.Contains([]int{408, 499}, status):
			want = Refused
		}
		for _, body := range []string{"", "<html>", "{}", `{"error":false,"code":1}`, `{"error":"true","code":400111}`, `{"error":true}`, `{"code":500901}`, `{"code":500901,"error":false}`, `[]`} {
			err := judge(&http.Response{StatusCode: status, Header: http.Header{}}, []byte(body), nil, new(Sent))
			if err == nil || OutcomeOf(err) != want {
				t.Errorf("%d %s: got %v (%v), want %v", status, body, err, OutcomeOf(err), want)
			}
		}
		err := judge(&http.Response{StatusCode: status, Header: http.Header{}}, nil, io.ErrUnexpectedEOF, new(Sent))
		if err == nil || OutcomeOf(err) != want {
			t.Errorf("%d, broken off: got %v (%v), want %v", status, err, OutcomeOf(err), want)
		}
	}
}

// What nobody documented is not repeated, unless the status says that it may be.
func TestOutcomeOfUnknownCodes(t *testing.T) {
	for _, tc := range []struct {
		status int
		code   Code
		want   Outcome
	}{
		{200, 999999, Unknown},
		{400, 999999, Refused},
		{500, 999999, Later},
		{200, 200, Unknown},
		{400, 400, Refused},
		{500, 500, Later}, // "code: a 200, 400, or 500 HTTP response"
		{200, 0, Unknown},
		{500, -1, Later},
		{200, 400999, Refused},
		{200, 503000, Later},
	} {
		if got := outcome(tc.status, tc.code, true); got != tc.want {
			t.Errorf("%d, code %d: %v, want %v", tc.status, tc.code, got, tc.want)
		}
	}
	if OutcomeOf(errors.New("else")) != Unknown || OutcomeOf(nil) != Unknown {
		t.Error("a foreign error is known")
	}
}

// FuzzAnswer: whatever comes back, the verdict is a notification with an id or an
// error, and the error shows nothing of what came.
func FuzzAnswer(f *testing.F) {
	f.Add(200, []byte(`{"notification_id":"7190607145580961921","template_key":"a","channels":[{"key":"push","type":"push"}],"mode":"batch","created_at":1714374338539}`))
	f.Add(200, []byte(`{"error":true,"code":400111,"message":"hunter2"}`))
	f.Add(207, []byte(`{"error":true,"code":207100,"message":"hunter2"}`))
	f.Add(200, []byte(`{"url":"https://h/","fields":{"a":"b"},"file_key":"k"}`))
	f.Add(200, []byte(`{"files":[{"file_key":"k","file_size":1,"expires_at":1686878790}],"next":"n"}`))
	f.Add(200, []byte(`{"templates":[{"key":"k","variable_schema":[{"key":"a","type":"String"}]}],"next":"n"}`))
	f.Add(200, []byte(strings.Repeat("[", 100)))
	f.Add(200, []byte(`{"user_id":"jay","metadata":{"a":"b"},"last_seen_at":1}`))
	f.Add(201, []byte(`{"id":1,"sendbirdId":"jay","createdAt":"2018-07-06T06:43:27Z","customFields":[{"id":1,"key":"a","value":"b"}]}`))
	f.Add(200, []byte(`{"count":1,"results":[{"id":1,"sendbirdId":"jay"}]}`))
	f.Add(400, []byte(`{"code":"desk400","detail":"hunter2"}`))
	f.Add(500, []byte("{\"error\":true,\"code\":1e3}\xff"))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		const secret = "hunter2"
		desk := map[answer]bool{new(Customer): true, new(customerPage): true, new(Ticket): true}
		all := []answer{new(Sent), new(presignAnswer), new(FilePage), new(TemplatePage), new(templateAnswer), new(User), new(reply)}
		for _, out := range slices.AppendSeq(all, maps.Keys(desk)) {
			resp := &http.Response{StatusCode: status, Header: http.Header{}}
			err := judge(resp, body, nil, out)
			if desk[out] {
				err = judgeDesk(resp, body, nil, out)
			}
			limitsOf(resp, err)
			switch {
			case err == nil && (!out.complete() || status < 200 || status > 299):
				t.Fatalf("%T: a success with status %d that is not whole", out, status)
			case err != nil && strings.Contains(err.Error(), secret) && !deskCodes.MatchString(deskCodeOf(err)):
				t.Fatalf("%T: %v", out, err)
			case err != nil && OutcomeOf(err) < Unknown || OutcomeOf(err) > Partial:
				t.Fatalf("outcome %v", OutcomeOf(err))
			}
			if sent, ok := out.(*Sent); ok && err == nil && (len(sent.NotificationID) > 256 || strings.ContainsAny(string(sent.NotificationID), "\r\n")) {
				t.Fatalf("id %q", sent.NotificationID)
			}
		}
	})
}

// deskCodeOf is a code that Desk chose, which an error shows.
func deskCodeOf(err error) string {
	e, _ := errors.AsType[*APIError](err)
	if e == nil {
		return ""
	}
	return e.DeskCode
}
