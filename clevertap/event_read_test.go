package clevertap

import (
	"strings"
	"testing"
)

func TestEventOf(t *testing.T) {
	offer := Event{Name: "Offer", Status: "READ", TargetID: "123"}
	for record, want := range map[string]Event{
		`{"identity":"u","ts":1,"type":"event","evtName":"Offer","evtData":{"status":"READ","target_id":123}}`:      offer,
		`{"evtData":{"target_id":"123","x":{"status":"SENT"},"status":"READ"},"evtName":"Offer"}`:                   offer,
		`{"x":[{"evtName":"no"}],"evtName":"Offer","evtData":{"status":"READ","target_id":123,"y":[1]},"z":{}}`:     offer,
		`{"evt\u004eame":"Of\u0066er","evtData":{"st\u0061tus":"READ","target\u005fid":"\u0031\u0032\u0033"}}`:      offer,
		`{"evtName":"Offer","evtData":{"status":"READ","target_id":18446744073709551617}}`:                          {"Offer", "READ", "18446744073709551617"},
		`{"evtName":"Ö \"x\"","evtData":{"status":"SENT","target_id":"a b"}}`:                                       {`Ö "x"`, "SENT", "a b"},
		` { "evtName" : "Offer" , "evtData" : { "status" : "READ" , "target_id" : 123 } } `:                         offer,
		`{"evtName":"Offer","identity":5,"FBID":null,"evtData":{"a":"b","target_id":123,"status":"READ"},"more":1}`: offer,
	} {
		if got, ok := EventOf([]byte(record)); !ok || got != want {
			t.Errorf("%s: got %q, %v", record, got, ok)
		}
	}
	for _, record := range []string{
		`{"evtName":"Offer","evtData":{"status":"delivered","target_id":1}}`, `{"evtName":"Offer","evtData":{"status":"","target_id":1}}`,
		``, `5`, `"evtName"`, `[]`, `null`, `{}`, `{`, `{"evtName"`, `{"evtName":`, `{"evtName":"Offer"}`,
		`{"evtName":"Offer","evtData":"status"}`, `{"evtName":"Offer","evtData":["status","READ"]}`,
		`{"evtName":"","evtData":{"status":"READ","target_id":1}}`, `{"evtName":5,"evtData":{"status":"READ","target_id":1}}`,
		`{"evtName":"Offer","evtData":{"status":"READ"}}`, `{"evtName":"Offer","evtData":{"target_id":1}}`,
		`{"evtName":"Offer","evtData":{"status":"READ","target_id":null}}`, `{"evtName":"Offer","evtData":{"status":true,"target_id":1}}`,
		`{"notification_id":"7","user_id":"u","evtData":{"status":"READ","target_id":1}}`, "\x00BTF",
		`{"evtName":"Offer","evtData":{"status":"READ","target_id":1`, `{"a":{"evtName":"Offer","evtData":{"status":"READ","target_id":1}}}`,
	} {
		if got, ok := EventOf([]byte(record)); ok {
			t.Errorf("%s: got %q", record, got)
		}
	}
}

func FuzzEventOf(f *testing.F) {
	f.Add([]byte(`{"evtName":"Offer","evtData":{"status":"READ","target_id":123}}`))
	f.Add([]byte(strings.Repeat("[", 20_000)))
	f.Fuzz(func(t *testing.T, record []byte) {
		if e, ok := EventOf(record); ok && e.Name == "" {
			t.Errorf("%q: an event without a name", record)
		}
	})
}

func BenchmarkEventOf(b *testing.B) {
	record := []byte(`{"identity":"user-4711","ts":1700000000,"type":"event","evtName":"My First Campaign","evtData":{"status":"SENT","target_id":123123,"message":"0123456789abcdef"}}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := EventOf(record); !ok {
			b.Fatal("no event")
		}
	}
}
