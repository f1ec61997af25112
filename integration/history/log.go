package history

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
)

// Outcome is what a client knows about a receipt after an answer, or without one.
type Outcome string

// The outcomes.
const (
	OK      Outcome = "ok"      // 2xx: it is stored
	Refused Outcome = "refused" // 2xx, and named in `unprocessed`: it is dead
	Fail    Outcome = "fail"    // 4xx: it is nowhere
	Unknown Outcome = "unknown" // no answer, or 5xx: it may be stored
)

// Entry is one receipt in the log of its client.
type Entry struct {
	ID       string    `json:"id"`
	User     string    `json:"user"`
	Seq      int       `json:"seq"`
	Fate     Fate      `json:"fate"`
	TS       string    `json:"ts,omitempty"`
	Fields   Fields    `json:"fields"`
	Start    time.Time `json:"start"` // before the first byte of the first attempt
	End      time.Time `json:"end"`   // of the last attempt
	Attempts int       `json:"attempts"`
	Outcome  Outcome   `json:"outcome"`
	Why      string    `json:"why,omitempty"` // of the last attempt that was not answered 2xx
}

// Counts are sums over a log.
type Counts struct {
	Sent, OK, Refused, Fail, Unknown int
	// Attempts counts receipts in calls, every retry of a call anew, but for the
	// calls answered 4xx: it is the most that birdtap can have taken in.
	Attempts int
	// Taken counts receipts in calls answered 2xx: the least that it has taken in.
	Taken int
}

// Log is what clients know. It stands in the memory of the test, where no fault
// reaches; every attempt is written to the journal as well, if there is one.
type Log struct {
	run string

	mu      sync.Mutex
	clients [][]Entry
	counts  Counts
	odd     []string // answers that cannot be right
	changed chan struct{}
	journal io.Writer
	broken  error // of the journal
}

// NewLog makes the log of a run with so many clients. journal may be nil.
func NewLog(run string, clients int, journal io.Writer) *Log {
	return &Log{run: run, clients: make([][]Entry, clients), changed: make(chan struct{}), journal: journal}
}

// begin enters a receipt before it is sent.
func (l *Log) begin(client int, r receipt, start time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clients[client] = append(l.clients[client], Entry{
		ID: r.id, User: r.user, Seq: r.seq, Fate: r.fate, TS: r.ts, Fields: r.fields,
		Start: start, Outcome: Unknown,
	})
	l.counts.Sent++
	l.counts.Unknown++
}

// attempt is what came of one call for one of its receipts.
type attempt struct {
	place   place
	end     time.Time
	outcome Outcome
	why     string
}

// end enters what came of a call. A receipt of which an earlier attempt is unknown
// stays so after a 4xx: that first one may be stored.
func (l *Log) end(attempts []attempt) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range attempts {
		e := &l.clients[a.place.client][a.place.number]
		e.Attempts++
		e.End = a.end
		if a.outcome != OK && a.outcome != Refused {
			e.Why = a.why
		}
		if a.outcome == Fail && e.Attempts > 1 && e.Outcome == Unknown {
			a.outcome = Unknown
		}
		l.count(e.Outcome, -1)
		e.Outcome = a.outcome
		l.count(e.Outcome, 1)
		if a.outcome != Fail {
			l.counts.Attempts++
		}
		if a.outcome == OK || a.outcome == Refused {
			l.counts.Taken++
		}
		l.write(e)
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *Log) count(o Outcome, by int) {
	switch o {
	case OK:
		l.counts.OK += by
	case Refused:
		l.counts.Refused += by
	case Fail:
		l.counts.Fail += by
	case Unknown:
		l.counts.Unknown += by
	}
}

func (l *Log) write(e *Entry) {
	if l.journal == nil || l.broken != nil {
		return
	}
	line, err := json.Marshal(e)
	if err == nil {
		_, err = l.journal.Write(append(line, '\n'))
	}
	l.broken = err
}

// say notes an answer that cannot be right.
func (l *Log) say(format string, v ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.odd = append(l.odd, fmt.Sprintf(format, v...))
}

// Counts are the sums up to now.
func (l *Log) Counts() Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts
}

// Wait returns when ok is true of the counts, or with ctx's error.
func (l *Log) Wait(ctx context.Context, ok func(Counts) bool) error {
	for {
		l.mu.Lock()
		counts, changed := l.counts, l.changed
		l.mu.Unlock()
		if ok(counts) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w, with %+v", ctx.Err(), counts)
		}
	}
}

// Err is what kept the journal from being written.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.broken
}
