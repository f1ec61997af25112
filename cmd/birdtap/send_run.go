package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/birdtap/birdtap/sendbird"
	"github.com/birdtap/birdtap/sendbird/sender"
	"github.com/birdtap/birdtap/store"
)

const (
	// maxAhead users at most wait for the sender: the rest waits in the file.
	maxAhead = 200_000
	// One commit is one frame of the log, so that it is there as a whole or not at all:
	// a part that was lost in the midst of others could never be put in its place.
	maxCommitBytes = 256 << 10
	maxCommitAsks  = 64

	jobEvery    = 250 * time.Millisecond
	stalledLook = 15 * time.Second // without news it is looked whether anything still waits
)

// queueGoneAfter is how long the queue may not answer. A daemon that comes back is at
// another address. Tests hurry.
var queueGoneAfter = 20 * time.Second

// sending is one file on its way:
//
//	claim     which run of the file this is: a new one, one that goes on, or one that is done
//	publish   the parts of the file go on the sender's log, in order and each for good
//	          before the next; those that come again the sender drops
//	          meanwhile the sender sends: that of a daemon, or else the one in this process
//	wait      until every user is accounted for
//	conclude  the run is noted as finished, and summed up
type sending struct {
	*program
	words   io.Writer // stderr, for several goroutines
	flags   *sendFlags
	file    *targets
	survey  *survey
	message sender.Message
	sends   *store.Sends
	sender  *sender.Sender
	bar     *progress

	run     sendRun
	already bool // it was finished before
	status  sender.JobStatus
	heard   time.Time // when the queue answered last
	looked  time.Time // when status was read
	news    time.Time // when something was settled last
	refuses string    // as it was said
	full    bool      // that was said
}

// sendRun is what is remembered of a file that was sent. It is kept as JSON and outlives a
// deploy: fields are only added.
type sendRun struct {
	Format    int         `json:"format"` // runFormat
	File      string      `json:"file"`   // its name, without directories
	Template  string      `json:"template"`
	Mode      sender.Mode `json:"mode"`
	Users     int64       `json:"users"`
	Started   time.Time   `json:"started"`
	Published bool        `json:"published,omitzero"` // all parts are on the log
	Finished  time.Time   `json:"finished,omitzero"`
	sendFigures
}

// sendFigures are users, by what became of them.
type sendFigures struct {
	Sent      int64                   `json:"sent"`
	Refused   int64                   `json:"refused"`
	RefusedBy map[sender.Reason]int64 `json:"refused_by,omitempty"`
	Held      int64                   `json:"held"`
	Dropped   int64                   `json:"dropped"`
}

func figuresOf(st sender.JobStatus) sendFigures {
	return sendFigures{st.Sent, st.Refused, st.RefusedBy, st.Held, st.Dropped}
}

const runFormat = 1

// carrySend sends a file that was judged.
func (p *program) carrySend(ctx context.Context, cfg *Config, client *sendbird.Client, f *sendFlags, file *targets, s *survey) error {
	words := zapcore.Lock(zapcore.AddSync(p.err))
	run := &sending{program: p, words: words, flags: f, file: file, survey: s, message: f.message(f.mode.of(s.users))}
	log := newLogger(words, zap.ErrorLevel.String(), "console")
	err := withSends(ctx, cfg, log, true, func(sends *store.Sends) error {
		run.sends, run.sender = sends, newSender(cfg, sends, client, log)
		return run.do(ctx)
	})
	if errors.Is(err, errQueueGone) && run.finishedMeanwhile(ctx, cfg, log) {
		err = nil
	}
	if err == nil {
		err = run.summary()
	}
	return err
}

// newSender is the sender as commands run it, beside that of a daemon or alone.
func newSender(cfg *Config, sends *store.Sends, client *sendbird.Client, log *zap.Logger) *sender.Sender {
	return sender.New(cfg.senderOptions(sends, client, log, nil))
}

// withSends lets a command work on the sender's part of the queue. create makes a queue
// where there is none.
func withSends(ctx context.Context, cfg *Config, log *zap.Logger, create bool, do func(*store.Sends) error) error {
	if !create {
		if err := cfg.queueExists(); err != nil {
			return err
		}
	}
	o := cfg.storeOptions()
	o.Attach, o.Create, o.Log = true, create, log
	s, err := openStore(ctx, o)
	if err != nil {
		return err
	}
	sends, err := s.OpenSends(ctx)
	if err == nil {
		err = do(sends)
		sends.Close()
	}
	if closing := s.Close(); err == nil {
		err = closing
	}
	return err
}

// alongside runs a sender while do does its work, and stops it in good order.
func alongside(ctx context.Context, s *sender.Sender, do func(context.Context) error) error {
	work, failed := context.WithCancelCause(ctx)
	defer failed(nil)
	active, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := s.Run(active); err != nil {
			failed(err)
		}
	}()
	err := do(work)
	stop()
	<-ended
	if cause := context.Cause(work); ctx.Err() == nil && cause != nil && err != nil {
		return cause
	}
	return err
}

// id is that of the file's nth run: of what all users get, and of who they are.
func (s *sending) id(n int) string {
	message := s.message
	message.Job = ""
	m, _ := json.Marshal(message, json.Deterministic(true)) // the flags were checked
	sum := sha256.Sum256(fmt.Appendf(nil, "birdtap send %d\n%x\n%s\n%d", partsVersion, s.survey.sum, m, n))
	return hex.EncodeToString(sum[:16])
}

func (s *sending) say(format string, args ...any) {
	fmt.Fprintf(s.words, format+"\n", args...)
}

func (s *sending) do(ctx context.Context) error {
	s.heard, s.news = time.Now(), time.Now()
	if err := s.claim(ctx); err != nil || s.already {
		return err
	}
	s.bar = s.progress("sending", "users", s.survey.users, s.flags.asJSON)
	err := alongside(ctx, s.sender, func(ctx context.Context) error {
		if !s.run.Published {
			if err := s.publish(ctx); err != nil {
				return err
			}
		}
		return s.wait(ctx)
	})
	s.bar.end()
	if ctx.Err() != nil && err != nil {
		// The sender has settled what was on its way.
		s.status, _ = sender.ReadJob(context.WithoutCancel(ctx), s.sends, s.message.Job)
		return fmt.Errorf("stopped with %s of %s accounted for; the same command goes on where it stopped",
			thousands(uint64(s.status.Settled())), counted(s.survey.users, "user")) //nolint:gosec // a count
	}
	if err != nil {
		return err
	}
	return s.finish(context.WithoutCancel(ctx)) // a matter of moments
}

// claim finds the run that the command is about, and notes a new one.
func (s *sending) claim(ctx context.Context) error {
	for n := 0; ; n++ {
		id := s.id(n)
		run, found, err := readRun(ctx, s.sends, id)
		if err != nil {
			return err
		}
		if found && !run.Finished.IsZero() {
			// The newest one counts, and --again is for one behind it.
			_, next, err := readRun(ctx, s.sends, s.id(n+1))
			if err != nil {
				return err
			}
			if next || s.flags.again {
				continue
			}
			s.message.Job, s.run, s.already = id, run, true
			s.status, err = sender.ReadJob(ctx, s.sends, id)
			return err
		}
		s.message.Job, s.run = id, run
		if found {
			return s.goOn(ctx)
		}
		s.run = sendRun{
			Format: runFormat, File: filepath.Base(s.file.name), Template: s.message.Template, Mode: s.message.Mode,
			Users: int64(s.survey.users), Started: time.Now().UTC().Truncate(time.Second),
		}
		return s.note(ctx)
	}
}

// goOn tells where an interrupted run stands.
func (s *sending) goOn(ctx context.Context) error {
	var err error
	if s.status, err = sender.ReadJob(ctx, s.sends, s.message.Job); err != nil {
		return err
	}
	s.say("going on with the run of %s: %s of %s accounted for", s.run.Started.Format(time.RFC3339),
		thousands(uint64(s.status.Settled())), counted(s.survey.users, "user")) //nolint:gosec // a count
	return nil
}

func readRun(ctx context.Context, sends *store.Sends, id string) (run sendRun, found bool, err error) {
	data, err := sends.ReadRun(ctx, id)
	if err != nil || data == nil {
		return sendRun{}, false, err
	}
	if err := json.Unmarshal(data, &run); err != nil || run.Format != runFormat {
		return sendRun{}, false, fmt.Errorf("what is remembered of an earlier run of this file cannot be read (format %d, this birdtap reads %d)", run.Format, runFormat)
	}
	return run, true, nil
}

// note writes down how far the run has got.
func (s *sending) note(ctx context.Context) error {
	data, err := json.Marshal(s.run, json.Deterministic(true))
	if err != nil {
		return err
	}
	return s.insist(ctx, func() error { return s.sends.WriteRun(ctx, s.message.Job, data) })
}

// publish puts the parts of the file on the log that the sender has not settled.
func (s *sending) publish(ctx context.Context) error {
	first := s.status.Next
	users, size := int64(0), 0
	var gathered []store.Ask
	put := func() error {
		if len(gathered) == 0 {
			return nil
		}
		// Looked at behind the reading: what was read before a change is as it was judged.
		if err := s.file.unchanged(); err != nil {
			return fmt.Errorf("%w: not all of it was sent; restore it, and the same command goes on", err)
		}
		asks := gathered
		gathered, size = nil, 0
		return s.insist(ctx, func() error { return s.sends.Commit(ctx, asks) })
	}
	err := s.file.parts(ctx, s.survey, s.message, func(a sender.Ask) error {
		users += int64(len(a.Users))
		if a.Part < first {
			return nil
		}
		asks, err := sender.Encode(nil, []sender.Ask{a})
		if err != nil {
			return err
		}
		if len(asks) != 1 {
			return fmt.Errorf("part %d became %d asks", a.Part, len(asks)) // a mistake in parts
		}
		if size+len(asks[0].Data) > maxCommitBytes || len(gathered) == maxCommitAsks {
			if err := put(); err != nil {
				return err
			}
			if err := s.makeRoom(ctx, users-int64(len(a.Users))); err != nil {
				return err
			}
		}
		gathered = append(gathered, asks[0])
		size += len(asks[0].Data)
		return nil
	})
	if err == nil {
		err = put()
	}
	if errors.Is(err, errSettled) {
		return nil // the same command did it, elsewhere
	}
	if err != nil {
		return err
	}
	s.run.Published = true
	return s.note(ctx)
}

var errSettled = errors.New("all users are accounted for")

// makeRoom waits while too many of those who are on the log are not settled.
func (s *sending) makeRoom(ctx context.Context, published int64) error {
	for {
		if err := s.lookIfDue(ctx); err != nil {
			return err
		}
		switch {
		case s.settled():
			return errSettled
		case published-s.status.Settled() <= maxAhead:
			return nil
		}
		if err := s.rest(ctx); err != nil {
			return err
		}
	}
}

// settled tells whether every user is accounted for.
func (s *sending) settled() bool {
	return s.status.Ended || s.status.Settled() >= int64(s.survey.users)
}

// wait returns when every user is accounted for, or nothing is left to be waited for.
func (s *sending) wait(ctx context.Context) error {
	for {
		if err := s.look(ctx); err != nil || s.settled() {
			return err
		}
		if time.Since(s.news) > stalledLook {
			s.news = time.Now()
			st, err := sender.ReadStatus(ctx, s.sends)
			if err == nil && st.Waiting == 0 {
				return s.look(ctx) // its figures are final
			}
		}
		if err := s.rest(ctx); err != nil {
			return err
		}
	}
}

func (s *sending) lookIfDue(ctx context.Context) error {
	if time.Since(s.looked) < jobEvery {
		return nil
	}
	return s.look(ctx)
}

// look reads what has become of the file so far.
func (s *sending) look(ctx context.Context) error {
	var now sender.JobStatus
	err := s.insist(ctx, func() (err error) {
		now, err = sender.ReadJob(ctx, s.sends, s.message.Job)
		return err
	})
	if err != nil {
		return err
	}
	if now.Settled() != s.status.Settled() || now.Next != s.status.Next {
		s.news = time.Now()
	}
	s.status, s.looked = now, time.Now()
	s.bar.set(int(now.Settled()))
	if now.Refuses != s.refuses {
		s.refuses = now.Refuses
		// The sender of this process says so itself.
		if now.Refuses != "" && !s.sender.Active() {
			s.say("birdtap: Sendbird takes no calls (%s): nothing is lost, they are tried again until it does", now.Refuses)
		}
	}
	return nil
}

var errQueueGone = errors.New("the queue does not answer any more: was its daemon, or the command that had it open, stopped? The same command goes on where it stopped")

// insist does something with the queue until it is done: a full queue is waited for, a
// silent one for a while.
func (s *sending) insist(ctx context.Context, do func() error) error {
	for {
		err := do()
		switch {
		case err == nil:
			s.heard, s.full = time.Now(), false
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, store.ErrInvalid), errors.Is(err, store.ErrCorrupt), errors.Is(err, store.ErrNewer):
			return err
		case errors.Is(err, store.ErrFull):
			s.heard = time.Now()
			if !s.full {
				s.full = true
				s.say("birdtap: the queue is full: waiting for room")
			}
		case time.Since(s.heard) > queueGoneAfter:
			return fmt.Errorf("%w (%w)", errQueueGone, err)
		}
		if err := s.rest(ctx); err != nil {
			return err
		}
	}
}

func (s *sending) rest(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(jobEvery):
		return nil
	}
}

// finish notes what became of the run.
func (s *sending) finish(ctx context.Context) error {
	if err := s.look(ctx); err != nil {
		return err
	}
	s.run.Finished, s.run.sendFigures = time.Now().UTC().Truncate(time.Second), figuresOf(s.status)
	return s.note(ctx)
}

// finishedMeanwhile looks once more, now that the queue is somewhere else: another command
// may have had it open, and have ended with this run. It does not go on by itself, for
// then no daemon could start again.
func (s *sending) finishedMeanwhile(ctx context.Context, cfg *Config, log *zap.Logger) bool {
	for range finishedTries {
		finished := false
		err := withSends(ctx, cfg, log, false, func(sends *store.Sends) error {
			run, found, err := readRun(ctx, sends, s.message.Job)
			if err != nil {
				return err
			}
			finished = found && !run.Finished.IsZero()
			s.run = run
			return nil
		})
		if err == nil {
			return finished
		}
		if s.rest(ctx) != nil {
			return false
		}
	}
	return false
}

// finishedTries are for others who look just then.
const finishedTries = 4

// sendSummary is what became of a file, as programs read it.
type sendSummary struct {
	File     string      `json:"file"`
	Template string      `json:"template"`
	Mode     sender.Mode `json:"mode"`
	Users    int64       `json:"users"`
	sendFigures
	Unaccounted int64     `json:"unaccounted"` // users of whom nothing is known: the log was damaged
	Skipped     int       `json:"skipped"`     // bad rows
	Started     time.Time `json:"started"`
	Finished    time.Time `json:"finished"`
	AlreadySent bool      `json:"already_sent"`
}

// summary prints what became of the file. Its error is that not all were sent to.
func (s *sending) summary() error {
	r := s.run
	sum := sendSummary{
		File: s.flags.csv, Template: r.Template, Mode: r.Mode, Users: r.Users, sendFigures: r.sendFigures,
		Skipped: s.survey.bad.total, Started: r.Started, Finished: r.Finished, AlreadySent: s.already,
	}
	if s.already && s.status.Settled() > 0 { // held calls may have been decided since
		sum.sendFigures = figuresOf(s.status)
	}
	sum.Unaccounted = max(0, sum.Users-sum.Sent-sum.Refused-sum.Held-sum.Dropped)
	write := sum.write
	if s.flags.asJSON {
		write = func(w io.Writer) error { return writeJSONLine(w, sum) }
	}
	if err := write(s.out); err != nil {
		return err
	}
	var hints []string
	for _, left := range []struct {
		users int64
		words string
	}{
		{sum.Refused, "refused (birdtap send --unsent)"},
		{sum.Held, "held (birdtap send --held)"},
		{sum.Dropped, "dropped"},
		{sum.Unaccounted, "unaccounted for: their part of the sender's log is gone"},
	} {
		if left.users > 0 {
			hints = append(hints, counted(int(left.users), "user")+" "+left.words)
		}
	}
	if len(hints) == 0 {
		return nil
	}
	return errors.New("not all were sent to: " + strings.Join(hints, ", "))
}

func (s sendSummary) write(w io.Writer) error {
	var b strings.Builder
	if s.AlreadySent {
		fmt.Fprintf(&b, "already sent on %s (%s); --again sends it once more\n", s.Finished.Format(time.RFC3339), counted(int(s.Users), "user"))
	}
	for _, line := range []struct {
		words string
		users int64
		more  string
		show  bool
	}{
		{"sent", s.Sent, "", true},
		{"refused", s.Refused, reasonsOfUsers(s.RefusedBy), s.Refused > 0},
		{"held", s.Held, "nobody knows whether they got it: birdtap send --held", s.Held > 0},
		{"dropped", s.Dropped, "given up by an operator", s.Dropped > 0},
		{"lost", s.Unaccounted, "their part of the sender's log is gone", s.Unaccounted > 0},
		{"skipped", int64(s.Skipped), "bad rows", s.Skipped > 0},
	} {
		if !line.show {
			continue
		}
		b.WriteString(strings.TrimRight(fmt.Sprintf("%-8s %9s   %s", line.words, thousands(uint64(line.users)), line.more), " ") + "\n") //nolint:gosec // a count
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// reasonsOfUsers says why users were refused, the most frequent reason first.
func reasonsOfUsers(by map[sender.Reason]int64) string {
	reasons := slices.SortedFunc(maps.Keys(by), func(a, b sender.Reason) int {
		return cmp.Or(cmp.Compare(by[b], by[a]), cmp.Compare(a, b))
	})
	var parts []string
	for _, r := range reasons {
		words := string(r)
		if code, err := strconv.Atoi(words); err == nil && sendbird.Code(code).String() != "" {
			words += " (" + sendbird.Code(code).String() + ")"
		}
		parts = append(parts, fmt.Sprintf("%s %s", words, thousands(uint64(by[r])))) //nolint:gosec // a count
	}
	return strings.Join(parts, ", ")
}
