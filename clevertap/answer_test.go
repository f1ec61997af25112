package clevertap

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// rec is a record of user u; more is further evtData.
func rec(u, more string) []byte {
	return fmt.Appendf(nil, `{"identity":"%s","ts":1468308340,"type":"event","evtName":"Sale","evtData":{"status":"SENT","target_id":9007199254740993%s}}`, u, more)
}

// entry is one refusal; number 0 leaves "Skipped …" out, an empty echo the record.
func entry(code, number int, echo []byte) string {
	s := fmt.Sprintf(`{"status":"fail","code":%d,"error":"No good.`, code)
	if number != 0 {
		s += fmt.Sprintf(" Skipped record number : %d", number)
	}
	s += `"`
	if echo != nil {
		s += `,"record":` + string(echo)
	}
	return s + "}"
}

func says(status string, processed int, entries ...string) string {
	return fmt.Sprintf(`{"status":"%s","processed":%d,"unprocessed":[%s]}`, status, processed, strings.Join(entries, ","))
}

func TestRecordedAnswers(t *testing.T) {
	profile := []byte(`{"type":"profile","identity":"b","profileData":{"Email":"x"}}`)
	early := []byte(`{"type":"event","identity":"a","ts":0,"evtName":"Sale","evtData":{"k":"v"}}`)
	for name, c := range map[string]struct {
		body string
		sent [][]byte
		want Kind
		ref  []Refused
	}{
		"success": {
			body: `{ "status" : "success" , "processed" : 1 , "unprocessed" : [ ]}`,
			sent: [][]byte{rec("a", "")}, want: Accepted,
		},
		"partial, no blank before Skipped": {
			body: `{ "status" : "partial" , "processed" : 1 , "unprocessed" : [ { "status" : "fail" , "code" : 515 , "error" : "Profile data is incorrect. Email is not valid.Skipped record number : 2" , "record" : { "type" : "profile" , "identity" : "b" , "profileData" : { "Email" : "x"}}}]}`,
			sent: [][]byte{rec("a", ""), profile}, want: Accepted,
			ref: []Refused{{Index: 1, Code: 515, Message: "Profile data is incorrect. Email is not valid.Skipped record number : 2"}},
		},
		"fail": {
			body: `{ "status" : "fail" , "processed" : 0 , "unprocessed" : [ { "status":"fail","code":525,"error":"Timestamp should be present in the Unix Epoch format. Skipped record number : 1","record":{"type":"event","identity":"a","ts":0,"evtName":"Sale","evtData":{"k":"v"}}}]}`,
			sent: [][]byte{early}, want: Accepted,
			ref: []Refused{{Index: 0, Code: 525, Message: "Timestamp should be present in the Unix Epoch format. Skipped record number : 1"}},
		},
		"fail naming nothing": {
			body: `{"status":"fail","processed":0,"unprocessed":[]}`,
			sent: [][]byte{rec("a", "")}, want: Unclear,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := judge([]byte(c.body), c.sent)
			if got.Kind != c.want || got.Status != 200 || !slices.Equal(got.Refused, c.ref) {
				t.Errorf("got %v %+v (%v), want %v %+v", got.Kind, got.Refused, got.Err, c.want, c.ref)
			}
			if (got.Err == nil) != (got.Kind == Accepted) {
				t.Errorf("kind %v with error %v", got.Kind, got.Err)
			}
		})
	}
}

func TestAnswerIsBelievedOnlyIfItAccountsForEveryRecord(t *testing.T) {
	a, b, c := rec("a", ""), rec("b", ""), rec("c", "")
	sent := [][]byte{a, b, c}
	reordered := []byte(`{ "evtData" : { "target_id" : 9007199254740993 , "status" : "\u0053ENT" } , "evtName" : "Sale" , "identity" : "b" }`)
	rounded := []byte(`{"identity":"b","evtName":"Sale","evtData":{"status":"SENT","target_id":9007199254740992}}`)
	added := rec("b", `,"more":1`)
	for name, tc := range map[string]struct {
		body string
		err  error // nil: accepted
		idx  []int
	}{
		"success":                         {body: says("success", 3)},
		"success over several lines":      {body: "\r\n{\t\"status\": \"success\",\n\"processed\":3,\"unprocessed\":[ ]}\n"},
		"success in another order":        {body: `{"unprocessed":[],"processed":3,"status":"success"}`},
		"success with more members":       {body: `{"status":"success","processed":3,"unprocessed":[],"message":"x"}`},
		"success, counts too few":         {body: says("success", 2), err: errCounts},
		"success, counts too many":        {body: says("success", 4), err: errCounts},
		"digits with a blank":             {body: `{"status":"success","processed":3 0,"unprocessed":[]}`, err: errNoJSON},
		"blank within a name":             {body: `{"sta tus":"success","processed":3,"unprocessed":[]}`, err: errStatusWord},
		"fail, all processed":             {body: says("fail", 3), err: errStatusWord},
		"partial, all processed":          {body: says("partial", 3), err: errStatusWord},
		"success with refusals":           {body: says("success", 2, entry(512, 2, b)), err: errStatusWord},
		"unknown word":                    {body: says("done", 3), err: errStatusWord},
		"one refused":                     {body: says("partial", 2, entry(512, 2, b)), idx: []int{1}},
		"called fail, one refused":        {body: says("fail", 2, entry(512, 2, b)), idx: []int{1}},
		"all refused":                     {body: says("fail", 0, entry(512, 1, a), entry(528, 2, b), entry(555, 3, c)), idx: []int{0, 1, 2}},
		"not in order":                    {body: says("partial", 1, entry(512, 3, c), entry(512, 1, a)), idx: []int{0, 2}},
		"unknown code":                    {body: says("partial", 2, entry(999, 2, b)), idx: []int{1}},
		"echo with other keys' order":     {body: says("partial", 2, entry(512, 2, reordered)), idx: []int{1}},
		"echo with a rounded number":      {body: says("partial", 2, entry(512, 2, rounded)), err: errEcho},
		"echo with one property more":     {body: says("partial", 2, entry(512, 2, added)), err: errEcho},
		"echo of another record":          {body: says("partial", 2, entry(512, 2, a)), err: errEcho},
		"no echo":                         {body: says("partial", 2, entry(512, 2, nil)), err: errEcho},
		"null echo":                       {body: says("partial", 2, entry(512, 2, []byte("null"))), err: errEcho},
		"text for an echo":                {body: says("partial", 2, entry(512, 2, []byte(`"b"`))), err: errEcho},
		"no number":                       {body: says("partial", 2, entry(512, 0, b)), err: errNoNumber},
		"number 0":                        {body: says("partial", 2, strings.Replace(entry(512, 1, b), ": 1", ": 0", 1)), err: errOutOfRange},
		"number out of range":             {body: says("partial", 2, entry(512, 4, b)), err: errOutOfRange},
		"number beyond int":               {body: says("partial", 2, strings.Replace(entry(512, 1, a), ": 1", ": 99999999999999999999", 1)), err: errNoNumber},
		"named twice":                     {body: says("partial", 1, entry(512, 2, b), entry(513, 2, b)), err: errTwice},
		"no code":                         {body: says("partial", 2, strings.Replace(entry(512, 2, b), `"code":512,`, "", 1)), err: errNoCode},
		"code in quotes":                  {body: says("partial", 2, strings.Replace(entry(512, 2, b), `512`, `"512"`, 1)), err: errNoJSON},
		"refusals and processed too many": {body: says("partial", 3, entry(512, 2, b)), err: errCounts},
		"negative":                        {body: says("fail", -1), err: errCounts},
		"fraction":                        {body: `{"status":"success","processed":3.0,"unprocessed":[]}`, err: errNoJSON},
		"no processed":                    {body: `{"status":"success","unprocessed":[]}`, err: errNoJSON},
		"no unprocessed":                  {body: `{"status":"success","processed":3}`, err: errNoJSON},
		"null unprocessed":                {body: `{"status":"success","processed":3,"unprocessed":null}`, err: errNoJSON},
		"a name twice":                    {body: `{"status":"success","status":"success","processed":3,"unprocessed":[]}`, err: errNoJSON},
		"data after the end":              {body: says("success", 3) + "{}", err: errNoJSON},
		"cut":                             {body: says("success", 3)[:20], err: errNoJSON},
		"empty":                           {body: "", err: errNoJSON},
		"null":                            {body: "null", err: errNoJSON},
		"page":                            {body: "<!doctype html>", err: errNoJSON},
		"bad UTF-8":                       {body: `{"status":"success","processed":3,"unprocessed":[],"x":"` + "\xff" + `"}`, err: errNoJSON},
	} {
		t.Run(name, func(t *testing.T) {
			got := judge([]byte(tc.body), sent)
			if !errors.Is(got.Err, tc.err) || (tc.err == nil) != (got.Kind == Accepted) {
				t.Fatalf("got %v, %v, want %v", got.Kind, got.Err, tc.err)
			}
			var idx []int
			for _, r := range got.Refused {
				idx = append(idx, r.Index)
			}
			if !slices.Equal(idx, tc.idx) {
				t.Errorf("refused %v, want %v", idx, tc.idx)
			}
		})
	}
}

func TestSkippedNumber(t *testing.T) {
	for text, want := range map[string]int{
		"No good. Skipped record number : 2":                                 2,
		"No good.Skipped record number : 17":                                 17,
		"Skipped record number:3 ":                                           3,
		"Skipped record number : 7 is a bad name. Skipped record number : 2": 2,
		"":                                 -1,
		"No good.":                         -1,
		"Skipped record number : ":         -1,
		"Skipped record number 2":          -1,
		"Skipped record number : -2":       -1,
		"Skipped record number : 2.0":      -1,
		"Skipped record number : 2 (of 3)": -1,
	} {
		got, ok := skippedNumber(text)
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("%q: got %d, want %d", text, got, want)
		}
	}
}

func TestJudgingLeavesTheRecordsAlone(t *testing.T) {
	sent := [][]byte{[]byte(`{ "evtData" : { "b" : 1 , "a" : 2 } , "identity" : "u" , "evtName" : "Sale" }`)}
	before := bytes.Clone(sent[0])
	got := judge([]byte(says("fail", 0, entry(512, 1, []byte(`{"identity":"u","evtName":"Sale","evtData":{"a":2,"b":1}}`)))), sent)
	if got.Kind != Accepted || !bytes.Equal(sent[0], before) {
		t.Errorf("got %v, record now %s", got, sent[0])
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	theirs := now.Add(5 * time.Minute) // their clock is ahead
	for name, c := range map[string]struct {
		value, date string
		want        time.Duration
	}{
		"none":                {},
		"seconds":             {value: "7", want: 7 * time.Second},
		"zero":                {value: "0"},
		"negative":            {value: "-1"},
		"nonsense":            {value: "soon"},
		"a day":               {value: "86400", want: time.Hour},
		"more than fits":      {value: "18446744073709551615", want: time.Hour},
		"date by their clock": {value: theirs.Add(30 * time.Second).Format(http.TimeFormat), date: theirs.Format(http.TimeFormat), want: 30 * time.Second},
		"date by ours":        {value: now.Add(time.Minute).Format(http.TimeFormat), want: time.Minute},
		"date in the past":    {value: now.Add(-time.Minute).Format(http.TimeFormat)},
		"date in a year":      {value: now.AddDate(1, 0, 0).Format(http.TimeFormat), want: time.Hour},
	} {
		h := http.Header{}
		h.Set("Retry-After", c.value)
		h.Set("Date", c.date)
		if got := retryAfter(h, now); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}

// FuzzAnswer: whatever comes back, judging it does not panic, and it is believed
// only if it accounts for every record sent.
func FuzzAnswer(f *testing.F) {
	a, b := rec("a", ""), rec("b", "")
	for _, s := range []string{
		`{ "status" : "success" , "processed" : 1 , "unprocessed" : [ ]}`,
		says("success", 2), says("fail", 0), says("partial", 1, entry(512, 2, b)),
		says("fail", 0, entry(555, 2, b), entry(528, 1, a)),
		says("partial", 0, entry(512, 2, b), entry(512, 2, b)),
		`{"status":"fail","error":"Malformed request","code":400}`,
		`<html>`, ``, `[]`, `{"unprocessed":[null]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		sent := [][]byte{a, b}
		r := judge(answer, sent)
		if r.Kind != Accepted {
			if r.Kind != Unclear || r.Err == nil || r.Refused != nil {
				t.Fatalf("got %+v", r)
			}
			return
		}
		last := -1
		for _, refused := range r.Refused {
			if refused.Index <= last || refused.Index >= len(sent) || refused.Code <= 0 {
				t.Fatalf("refused %+v after %d", refused, last)
			}
			last = refused.Index
		}
		// What was fast to believe must be believed in full, too.
		if refused, err := parseAnswer(answer, sent); err != nil || len(refused) != len(r.Refused) {
			t.Fatalf("the fast path believes %q, the full parse says %v", answer, err)
		}
		taken := len(sent) - len(r.Refused)
		if !bytes.Contains(answer, fmt.Append(nil, taken)) {
			t.Fatalf("%q never says %d", answer, taken)
		}
	})
}
