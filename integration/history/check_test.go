package history

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/birdtap/birdtap/clevertap/clevertaptest"
)

// world is a run in which everything went well, until a test plants a bug.
type world struct {
	log      *Log
	sent     []*sentReceipt // in the order in which they came
	letters  []Letter
	received *Received
}

type sentReceipt struct {
	receipt
	place place
	raw   []byte // as birdtap uploads it
}

var worldBegan = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// newWorld sends n receipts, a millisecond each, over ten connections.
func newWorld(t *testing.T, n int) *world {
	t.Helper()
	const clients = 10
	o := Options{Run: "plant", Seed: 1, Clients: clients}.withDefaults()
	w := &world{log: NewLog(o.Run, clients, nil), received: NewReceived(o.Run)}
	sources := make([]*source, clients)
	for i := range sources {
		sources[i] = newSource(&o, i)
	}
	for i := range n {
		start := worldBegan.Add(time.Duration(i) * time.Millisecond)
		s := sources[i%clients]
		r := &sentReceipt{place: place{i % clients, s.made}}
		r.receipt = s.next(start)
		r.raw = stamp(r.record, start)
		w.log.begin(r.place.client, r.receipt, start)
		w.answer(r, OK)
		w.sent = append(w.sent, r)
	}
	return w
}

// answer enters a further answer for a receipt, half a millisecond after it began.
func (w *world) answer(r *sentReceipt, o Outcome) {
	start := w.log.clients[r.place.client][r.place.number].Start
	w.log.end([]attempt{{place: r.place, end: start.Add(500 * time.Microsecond), outcome: o}})
}

// reanswer makes it so that the only answer to a receipt was this one.
func (w *world) reanswer(r *sentReceipt, o Outcome) {
	e := &w.log.clients[r.place.client][r.place.number]
	w.log.count(e.Outcome, -1)
	e.Outcome = o
	w.log.count(o, 1)
}

// stamp adds ts and type as the door does.
func stamp(record []byte, now time.Time) []byte {
	insert := `"type":"event","evtName"`
	if !bytes.Contains(record, []byte(`"ts":`)) {
		insert = fmt.Sprintf(`"ts":%d,%s`, now.Unix(), insert)
	}
	return bytes.Replace(record, []byte(`"evtName"`), []byte(insert), 1)
}

// deliver takes receipts to CleverTap, in this order.
func (w *world) deliver(list []*sentReceipt) {
	for _, r := range list {
		w.received.Accept(r.raw)
	}
}

func (w *world) check() Report {
	return Check(Evidence{Log: w.log, Received: w.received, Letters: w.letters, MaxInFlight: 7, Seed: 1})
}

// user returns the indexes of all receipts of the user of the first one.
func (w *world) user() []int {
	var list []int
	for i, r := range w.sent {
		if r.user == w.sent[0].user {
			list = append(list, i)
		}
	}
	return list
}

// findings are what a report says against birdtap, by name; without the zeros.
func findings(r Report) map[string]int {
	all := map[string]int{
		"lost": r.Lost, "invented": r.Invented, "forbidden": r.Forbidden, "inversions": r.Inversions,
		"changed": r.Changed, "misjudged": r.Misjudged, "duplicates": r.Duplicates,
	}
	for name, n := range all {
		if n == 0 {
			delete(all, name)
		}
	}
	return all
}

var strict = Limits{InFlight: 7, Records: 1000}

func TestCheckFindsEveryPlantedBug(t *testing.T) {
	t.Parallel()
	// Each plants a bug, delivers, and names what must be found; nothing else may be.
	tests := []struct {
		name  string
		n     int
		plant func(w *world)
		want  string
	}{
		{"none", 2000, func(w *world) { w.deliver(w.sent) }, "map[]"},
		{"one dropped in 100000", 100_000, func(w *world) {
			w.deliver(slices.Delete(slices.Clone(w.sent), 77_777, 77_778))
		}, "map[lost:1]"},
		{"answered before stored, then killed", 2000, func(w *world) {
			w.deliver(w.sent[:1000])
			w.deliver(w.sent[1012:])
		}, "map[lost:12]"},
		{"two of a user swapped", 2000, func(w *world) {
			u := w.user()
			w.sent[u[7]], w.sent[u[8]] = w.sent[u[8]], w.sent[u[7]]
			w.deliver(w.sent)
		}, "map[inversions:1]"},
		{"two users swapped", 2000, func(w *world) {
			w.sent[100], w.sent[101] = w.sent[101], w.sent[100]
			w.deliver(w.sent)
		}, "map[]"},
		{"one duplicated", 2000, func(w *world) {
			w.deliver(w.sent)
			w.deliver(w.sent[30:31])
		}, "map[duplicates:1]"},
		{"a duplicate is no inversion", 2000, func(w *world) {
			w.deliver(w.sent)
			w.deliver(w.sent[:1000])
		}, "map[duplicates:1000]"},
		{"forged: a number never given out", 2000, func(w *world) {
			w.deliver(w.sent)
			w.received.Accept(bytes.ReplaceAll(w.sent[0].raw, []byte("plant-0-0"), []byte("plant-0-2000")))
		}, "map[invented:1]"},
		{"forged: another run", 2000, func(w *world) {
			w.deliver(w.sent)
			w.received.Accept(bytes.ReplaceAll(w.sent[0].raw, []byte("plant-0-0"), []byte("planted-0-0")))
		}, "map[invented:1]"},
		{"forged: no receipt at all", 2000, func(w *world) {
			w.deliver(w.sent)
			w.received.Accept([]byte(`{"d":`))
		}, "map[invented:1]"},
		{"forged: a dead letter", 2000, func(w *world) {
			w.deliver(w.sent)
			w.letters = []Letter{{ID: "plant-0-2000", Reason: "512"}}
		}, "map[invented:1]"},
		{"2^53+1 rounded", 2000, func(w *world) {
			i := slices.IndexFunc(w.sent, func(r *sentReceipt) bool { return bytes.Contains(r.raw, []byte("9007199254740993")) })
			w.sent[i].raw = bytes.ReplaceAll(w.sent[i].raw, []byte("9007199254740993"), []byte("9007199254740992"))
			w.deliver(w.sent)
		}, "map[changed:1]"},
		{"an escape resolved", 2000, func(w *world) {
			i := slices.IndexFunc(w.sent, func(r *sentReceipt) bool { return bytes.Contains(r.raw, []byte(`caf\u00e9`)) })
			w.sent[i].raw = bytes.ReplaceAll(w.sent[i].raw, []byte(`\u00e9`), []byte("\u00e9"))
			w.deliver(w.sent)
		}, "map[changed:1]"},
		{"a given ts replaced", 2000, func(w *world) {
			i := slices.IndexFunc(w.sent, func(r *sentReceipt) bool { return r.ts != "" })
			w.sent[i].raw = bytes.ReplaceAll(w.sent[i].raw, []byte(w.sent[i].ts), []byte("1999999999"))
			w.deliver(w.sent)
		}, "map[changed:1]"},
		{"stamped anew when sent again", 2000, func(w *world) {
			i := slices.IndexFunc(w.sent, func(r *sentReceipt) bool { return r.ts == "" })
			w.deliver(w.sent)
			w.received.Accept(stamp(w.sent[i].record, worldBegan.Add(time.Minute)))
		}, "map[changed:1 duplicates:1]"},
		{"stamped with a ts before it was sent", 2000, func(w *world) {
			i := slices.IndexFunc(w.sent, func(r *sentReceipt) bool { return r.ts == "" })
			w.sent[i].raw = stamp(w.sent[i].record, worldBegan.Add(-time.Hour))
			w.deliver(w.sent)
		}, "map[changed:1]"},
		{"two copies that differ", 2000, func(w *world) {
			w.deliver(w.sent)
			w.received.Accept(bytes.Replace(w.sent[9].raw, []byte("Order Shipped"), []byte("Order shipped"), 1))
		}, "map[changed:1 duplicates:1]"},
		{"one answered 4xx arrives", 2000, func(w *world) {
			w.reanswer(w.sent[5], Fail)
			w.deliver(w.sent)
		}, "map[forbidden:1]"},
		{"one answered 4xx is dead", 2000, func(w *world) {
			w.reanswer(w.sent[5], Fail)
			w.letters = []Letter{{ID: w.sent[5].id}}
			w.deliver(slices.Delete(slices.Clone(w.sent), 5, 6))
		}, "map[forbidden:1]"},
		{"one refused at the door arrives", 2000, func(w *world) {
			w.reanswer(w.sent[5], Refused)
			w.deliver(w.sent)
		}, "map[forbidden:1]"},
		{"one refused at the door is nowhere", 2000, func(w *world) {
			w.reanswer(w.sent[5], Refused)
			w.deliver(slices.Delete(slices.Clone(w.sent), 5, 6))
		}, "map[lost:1]"},
		{"a good one is dead", 2000, func(w *world) {
			w.letters = []Letter{{ID: w.sent[5].id, Reason: "http_400"}}
			w.deliver(slices.Delete(slices.Clone(w.sent), 5, 6))
		}, "map[misjudged:1]"},
		{"one without an answer is lost", 2000, func(w *world) {
			w.reanswer(w.sent[5], Unknown)
			w.deliver(slices.Delete(slices.Clone(w.sent), 5, 6))
		}, "map[]"},
		{"one without an answer comes late", 2000, func(w *world) {
			u := w.user()
			w.reanswer(w.sent[u[7]], Unknown)
			w.sent[u[7]], w.sent[u[8]] = w.sent[u[8]], w.sent[u[7]]
			w.deliver(w.sent)
		}, "map[]"},
		{"one without an answer overtakes", 2000, func(w *world) {
			u := w.user()
			w.reanswer(w.sent[u[8]], Unknown)
			w.sent[u[7]], w.sent[u[8]] = w.sent[u[8]], w.sent[u[7]]
			w.deliver(w.sent)
		}, "map[inversions:1]"},
		{"sent again after no answer, stamped twice", 2000, func(w *world) {
			i := slices.IndexFunc(w.sent, func(r *sentReceipt) bool { return r.ts == "" })
			w.reanswer(w.sent[i], Unknown)
			w.answer(w.sent[i], OK)
			w.deliver(w.sent)
			w.received.Accept(stamp(w.sent[i].record, worldBegan.Add(time.Minute)))
		}, "map[duplicates:1]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, tt.n)
			tt.plant(w)
			r := w.check()
			if got := fmt.Sprint(findings(r)); got != tt.want {
				t.Errorf("found %s, want %s\n%s\n%v", got, tt.want, r, r.Samples)
			}
			if err := r.Err(strict); (err == nil) != (tt.want == "map[]") {
				t.Errorf("found %s, but as an error: %v", tt.want, err)
			}
		})
	}
}

// What CleverTap refuses until someone has put it right is dead until a replay; it then
// comes later than the ones behind it. Dead for another reason it is misjudged.
func TestCheckKnowsPoisonAndItsReplay(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, want string
		end        func(w *world, r *sentReceipt)
	}{
		{"dead", "map[]", func(w *world, r *sentReceipt) { w.letters = []Letter{{ID: r.id, Reason: "http_400"}} }},
		{"replayed", "map[]", func(w *world, r *sentReceipt) { w.deliver([]*sentReceipt{r}) }},
		{"forgotten", "map[lost:1]", func(*world, *sentReceipt) {}},
		{"dead as another", "map[misjudged:1]", func(w *world, r *sentReceipt) {
			w.letters = []Letter{{ID: r.id, Reason: "unclear"}}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 1000)
			poison := w.sent[3]
			w.log.clients[poison.place.client][poison.place.number].Fate = Poison
			w.deliver(slices.Delete(slices.Clone(w.sent), 3, 4))
			tt.end(w, poison)
			if got := fmt.Sprint(findings(w.check())); got != tt.want {
				t.Errorf("found %s, want %s", got, tt.want)
			}
		})
	}
}

func TestPoisonSpoilsItsCallUntilMended(t *testing.T) {
	t.Parallel()
	r := NewReceived("run")
	call := func(fates ...Fate) clevertaptest.Call {
		var c clevertaptest.Call
		for _, f := range fates {
			c.Records = append(c.Records, clevertaptest.Record{Raw: []byte(`{"evtData":{"fate":"` + string(f) + `"}}`)})
		}
		return c
	}
	for _, tt := range []struct {
		call clevertaptest.Call
		want int
	}{{call(Take, Refuse), 0}, {call(Take, Poison, Take), 400}, {call(Poison), 400}} {
		if got := r.JudgeCall(tt.call); got != tt.want {
			t.Errorf("a call of %d records: %d, want %d", len(tt.call.Records), got, tt.want)
		}
	}
	if r.Mend(); r.JudgeCall(call(Poison)) != 0 {
		t.Error("poison still spoils its call")
	}
}

// A receipt that was replayed comes later than the ones behind it, as it must.
func TestCheckLeavesTheOrderOfTheDeadAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1000)
	last := w.sent[3]
	w.letters = []Letter{{ID: last.id, Reason: ""}} // the reason that Take has: none
	w.deliver(slices.Delete(slices.Clone(w.sent), 3, 4))
	w.deliver([]*sentReceipt{last})
	if got := findings(w.check()); len(got) > 0 {
		t.Errorf("found %v, want nothing", got)
	}
}

func TestCheckTellsWhenLossHappened(t *testing.T) {
	t.Parallel()
	for shape, keep := range map[string]func(i int) bool{
		"all":       func(int) bool { return false },
		"head":      func(i int) bool { return i >= 500 },
		"tail":      func(i int) bool { return i < 1500 },
		"hole":      func(i int) bool { return i < 500 || i >= 600 },
		"scattered": func(i int) bool { return i%100 != 0 },
	} {
		t.Run(shape, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 2000)
			for i, r := range w.sent {
				if keep(i) {
					w.received.Accept(r.raw)
				}
			}
			r := w.check()
			if r.Loss == nil || r.Loss.Shape != shape {
				t.Fatalf("the loss is %+v, want %s", r.Loss, shape)
			}
			lost, acknowledged := 0, 0
			for _, s := range r.Loss.Steps {
				lost += s.Lost
				acknowledged += s.Acknowledged
			}
			if lost != r.Lost || acknowledged != 2000 || len(r.Loss.Steps) != lossSteps {
				t.Errorf("%d of %d lost on the time line, want %d of 2000: %v", lost, acknowledged, r.Lost, r.Loss)
			}
		})
	}
}

func TestLimitsAreChecked(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 100)
	w.deliver(w.sent)
	r := w.check()
	r.MaxInFlight, r.MaxRecords, r.Duplicates, r.Odd = 8, 1001, 2, 1
	err := r.Err(Limits{InFlight: 7, Records: 1000, Duplicates: 1})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"calls in flight: 8", "records in a call: 1001", "duplicates: 2", "odd: 1"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %q", want, err)
		}
	}
}

func TestReportIsOneLineAndJSON(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 100)
	w.deliver(w.sent[1:])
	w.deliver(w.sent[1:2])
	r := w.check()
	r.Faults = []string{"kill -9"}
	line := r.String()
	if strings.Contains(line, "\n") {
		t.Errorf("more than one line: %q", line)
	}
	for _, want := range []string{"seed 1", "kill -9", "100 sent", "lost 1,", "duplicates 1 (1 came 2 times)"} {
		if !strings.Contains(line, want) {
			t.Errorf("%q is not in %q", want, line)
		}
	}
	text, err := r.JSON()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"seed": 1`, `"lost": 1`, `"kill -9"`, `"shape": "head"`, w.sent[0].id} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("%s is not in %s", want, text)
		}
	}
}

func TestReadLetters(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	export := fmt.Sprintf(`{"died":"2026-01-02T03:04:05Z","reason":"512","code":512,"tries":1,"frame":18446744073709551615,"index":3,"record":%s}
{"reason":"corrupt","frame":1,"index":0,"record_base64":"AAAA"}
`, w.sent[0].raw)
	got, err := ReadLetters(strings.NewReader(export))
	want := []Letter{{"plant-0-0", "512", 18446744073709551615, 3}, {"", "corrupt", 1, 0}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if _, err := ReadLetters(strings.NewReader(export + `{"reason"`)); err == nil {
		t.Error("an export that is cut short was read without an error")
	}
}

func TestPlaceOf(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]bool{
		"a-b-3-4": true, "a-b-03-4": false, "a-b-3-": false, "a-b-3--4": false, "a-b-3": false,
		"a-3-4": false, "": false, "a-b-3-99999999999": false, "a-b-+3-4": false,
	} {
		p, ok := placeOf("a-b", id)
		if ok != want || ok && p != (place{3, 4}) {
			t.Errorf("%q: %v, %v", id, p, ok)
		}
	}
}
