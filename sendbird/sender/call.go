package sender

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/birdtap/birdtap/sendbird"
	"github.com/birdtap/birdtap/store"
	"github.com/birdtap/birdtap/store/failpoint"
)

// call is one call to Sendbird. It is tried until its outcome is known, or known to be
// unknowable.
type call struct {
	number    uint64
	mode      Mode // how it leaves
	group     *gathering
	released  string      // id of the held call that it sends again, or drops; its users stand there
	order     store.Order // that says so
	dropped   bool
	stored    []byte // the asks of a held call
	again     bool   // its file may be there already, from before a break
	fileKey   string // of its file, once that is uploaded
	tries     int
	notBefore time.Time
}

// places are those of the asks that the call settles.
func (c *call) places() places {
	var s places
	for _, e := range c.group.entries {
		s.add(e.at, e.at+1)
	}
	return s
}

// outcome is what became of a call.
type outcome struct {
	kind       outcomeKind
	mode       Mode
	users      int          // those that the call was for
	unsendable []Unsendable // those whom the door found to be
	misfits    []Unsendable // users of the asks who were kept apart
	reason     Reason       // of refused
	why        string       // for the log, and for the operator
	status     int          // of Sendbird's answer, 0 without one
	account    bool         // Sendbird refuses the account, not this call
	inherited  bool         // of the last term: it tells nothing about Sendbird now
	retryAfter time.Duration
}

type outcomeKind int

const (
	callSent    outcomeKind = iota
	callRefused             // nobody was sent to, and the same call would be refused again
	callLater               // nobody was sent to, and the same call may go through later
	callUnknown             // nobody knows
	callEmpty               // nobody was left to be sent to
	callDropped             // the operator has given it up
)

func (k outcomeKind) String() string {
	return [...]string{"sent", "refused", "later", "held", "empty", "dropped"}[k]
}

// work is a call made ready: whom it is for, and what is sent.
type work struct {
	notification sendbird.Notification
	users        []User // of a call that names them
	count        int
	unsendable   []Unsendable
	misfits      []Unsendable
	file         []byte // of a call by file
	fileKey      string
}

// carry takes one call to its outcome: prepare → upload the file → await its turn → note
// the intent → one attempt → keep what has to be kept → tell the loop, which settles it.
//
// stop ends when nothing new may be begun, ctx when the term does.
func (t *term) carry(ctx, stop context.Context, c *call) {
	out := t.attempt(ctx, stop, c)
	if out.kind != callLater {
		t.keep(ctx, c, &out)
	}
	t.send(ctx, func() { t.finished(c, out) })
}

// attempt is carry up to the attempt's outcome.
func (t *term) attempt(ctx, stop context.Context, c *call) outcome {
	if c.dropped {
		_ = c.load(ctx, t.opts.Sends) // for its campaign; what cannot be read is given up, too
		return outcome{kind: callDropped, mode: c.mode}
	}
	w, err := t.prepare(stop, c)
	if err != nil {
		return t.unprepared(stop, c, err)
	}
	out := outcome{mode: c.mode, users: w.count, unsendable: w.unsendable, misfits: w.misfits}
	if w.count == 0 {
		out.kind = callEmpty
		return out
	}
	if c.mode == ModeCSV && c.fileKey == "" {
		if !t.note(stop, c, w.count, true) {
			out.kind = callLater
			return out
		}
		if err := t.upload(stop, c, w); err != nil {
			return out.judge(err, false)
		}
		c.fileKey = w.fileKey
		failpoint.Here(failpoint.FileUploaded)
	}
	w.notification.TargetsFile = c.fileKey
	if err := w.notification.Check(); err != nil {
		return out.judge(err, true)
	}
	// Noted is what leaves now: after a crash all that is noted is held.
	turn, err := t.opts.Client.Turn(stop)
	if err != nil {
		out.kind = callLater
		return out
	}
	if t.overtaken(stop, c) || !t.note(stop, c, w.count, false) || stop.Err() != nil {
		turn.GiveBack()
		out.kind = callLater
		return out
	}
	failpoint.Here(failpoint.CallNoted)
	began := time.Now()
	sent, err := turn.Send(ctx, w.notification)
	failpoint.Here(failpoint.CallAnswered)
	out = out.judge(err, true)
	t.metrics.callSeconds.Observe(time.Since(began).Seconds())
	t.log.Info("call", zap.Uint64("call", c.number), zap.String("mode", string(c.mode)), zap.Int("users", w.count),
		zap.Stringer("outcome", out.kind), zap.String("reason", out.why), zap.Int("attempt", c.tries+1), zap.Duration("took", time.Since(began)))
	if out.kind == callSent {
		t.remember(ctx, string(sent.NotificationID), c.group.message)
	}
	return out
}

// unprepared is the outcome of a call that cannot be put together.
func (t *term) unprepared(stop context.Context, c *call, err error) outcome {
	out := outcome{kind: callLater, mode: c.mode, users: c.group.users}
	if stop.Err() != nil {
		return out
	}
	t.log.Error("a call cannot be put together", zap.Uint64("call", c.number), zap.Error(err))
	if limit, ok := errors.AsType[*sendbird.LimitError](err); ok {
		return out.judge(limit, true)
	}
	if c.released != "" {
		out.kind, out.inherited = callUnknown, true // it stays held
	}
	return out
}

// accountCodes are refusals that say nothing about the call: whatever is sent is refused,
// until an operator has changed the configuration here or at Sendbird's.
var accountCodes = []sendbird.Code{
	sendbird.CodeBadToken, sendbird.CodeNoPermission, sendbird.CodeServiceOff, sendbird.CodeNoApplication,
	400108, // not authorised
	400306, // the plan's quota is used up
	400307, // domain not allowed
}

// accountStatus are answers without a code that do not come from the API: of a proxy, or at
// a wrong address.
var accountStatus = []int{
	http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed,
	http.StatusProxyAuthRequired, http.StatusMisdirectedRequest,
}

// judge gives an outcome its verdict. Of a call that reaches nobody, such as the upload of
// a file, everything but a clear refusal may be tried again.
func (o outcome) judge(err error, reaches bool) outcome {
	if err == nil {
		o.kind = callSent
		return o
	}
	o.why = err.Error()
	api, isAPI := errors.AsType[*sendbird.APIError](err)
	if isAPI {
		o.retryAfter, o.status = api.RetryAfter, api.Status
		if slices.Contains(accountCodes, api.Code) || api.Code == 0 && slices.Contains(accountStatus, api.Status) {
			o.kind, o.account = callLater, true
			return o
		}
	}
	switch sendbird.OutcomeOf(err) {
	case sendbird.Later:
		o.kind = callLater
	case sendbird.Refused:
		o.kind, o.reason = callRefused, reasonOf(err)
		if !reaches && !isAPI {
			o.kind = callLater // an upload host that is not allowed, or had enough of the URL
		}
	case sendbird.Unknown, sendbird.Partial:
		o.kind = callUnknown
		if !reaches {
			o.kind = callLater
		}
	}
	return o
}

// reasonOf is Sendbird's code, or what else is known about a refusal.
func reasonOf(err error) Reason {
	if api, ok := errors.AsType[*sendbird.APIError](err); ok {
		if api.Code == 0 {
			return ReasonHTTP
		}
		return Reason(strconv.Itoa(int(api.Code)))
	}
	return ReasonInvalid
}

// prepare reads the call's users, and keeps apart those who cannot be sent to: a user
// whose variables do not fit the template must not spoil the call of all others.
func (t *term) prepare(ctx context.Context, c *call) (*work, error) {
	if err := c.load(ctx, t.opts.Sends); err != nil {
		return nil, err
	}
	m := c.group.message
	w := &work{notification: sendbird.Notification{
		Template: m.Template, Mode: sendbird.Batch, Push: m.Push, Tag: m.Tag, Title: m.Title, Priority: m.Priority,
	}}
	if c.mode == ModeRealtime {
		w.notification.Mode = sendbird.Realtime
	}
	var file *fileWriter
	for a, err := range c.asks() {
		if err != nil {
			return nil, err
		}
		w.unsendable = append(w.unsendable, a.Unsendable...)
		for _, u := range a.Users {
			if reason, detail := t.misfit(ctx, m.Template, u); reason != "" {
				w.misfits = append(w.misfits, Unsendable{User: u.ID, Reason: reason, Detail: detail})
				continue
			}
			if c.mode != ModeCSV {
				w.users = append(w.users, u)
				w.count++
				continue
			}
			if file == nil {
				var err error
				if file, err = newFileWriter(u); err != nil {
					return nil, err
				}
			}
			if err := file.add(u); err != nil {
				w.misfits = append(w.misfits, Unsendable{User: u.ID, Reason: ReasonInvalid, Detail: err.Error()})
				continue
			}
			w.count++
		}
	}
	if file != nil {
		var err error
		if w.file, w.fileKey, err = file.end(); err != nil && w.count > 0 {
			return nil, err
		}
	}
	w.name()
	return w, nil
}

// name puts the users into the notification.
func (w *work) name() {
	for _, u := range w.users {
		w.notification.Targets = append(w.notification.Targets, u.ID)
		if len(u.Variables) > 0 {
			if w.notification.Variables == nil {
				w.notification.Variables = make(map[string]sendbird.Variables, len(w.users))
			}
			w.notification.Variables[u.ID] = u.Variables
		}
	}
}

// misfit says why a user's variables do not fit the template, as far as it is known. It
// looks at the template once more before it says so.
func (t *term) misfit(ctx context.Context, key string, u User) (Reason, string) {
	one := sendbird.Notification{Targets: []string{u.ID}, Variables: map[string]sendbird.Variables{u.ID: u.Variables}}
	var err error
	for _, maxAge := range []time.Duration{templateKnown, templateFresh} {
		template := t.templates.get(ctx, key, maxAge)
		if template == nil {
			return "", ""
		}
		if err = one.CheckAgainst(*template); err == nil {
			return "", ""
		}
	}
	return ReasonVariables, err.Error()
}

// fileWriter writes the file of a call: a column for each variable.
type fileWriter struct {
	buf   bytes.Buffer
	csv   *sendbird.CSV
	names []string
	row   []string
}

func newFileWriter(first User) (*fileWriter, error) {
	f := &fileWriter{names: slices.Sorted(maps.Keys(first.Variables))}
	var err error
	f.csv, err = sendbird.NewCSV(&f.buf, f.names)
	return f, err
}

func (f *fileWriter) add(u User) error {
	f.row = f.row[:0]
	for _, name := range f.names {
		text, ok := u.Variables[name].(sendbird.String)
		if !ok {
			return fmt.Errorf("variable %q is no text: a file carries nothing else", name)
		}
		f.row = append(f.row, string(text))
	}
	return f.csv.Add(u.ID, f.row...)
}

func (f *fileWriter) end() ([]byte, string, error) {
	summary, err := f.csv.Close()
	return f.buf.Bytes(), summary.Key, err
}

// upload brings the call's file to Sendbird. Its key is made of its content; so a file
// that is there under this key is the same one, and may be replaced.
func (t *term) upload(ctx context.Context, c *call, w *work) error {
	p, err := t.opts.Client.Presign(ctx, w.fileKey, c.again)
	if err != nil && !c.again && sendbird.OutcomeOf(err) == sendbird.Refused {
		p, err = t.opts.Client.Presign(ctx, w.fileKey, true)
	}
	c.again = true
	if err != nil {
		return err
	}
	w.fileKey = p.FileKey
	return t.opts.Client.Upload(ctx, p, bytes.NewReader(w.file), int64(len(w.file)))
}

// remember keeps what the notification is about. It gives up after a while: a receipt
// without its campaign is less of a loss than a user who waits.
func (t *term) remember(ctx context.Context, id string, m Message) {
	if !t.opts.Remember || m.Event == "" {
		return
	}
	var err error
	for range rememberTries {
		if err = t.opts.Sends.Remember(ctx, id, store.RememberedSend{Event: m.Event, Target: m.Target}); err == nil {
			return
		}
		wait(ctx, storeRetry)
	}
	t.log.Error("cannot remember what a notification was about: receipts that name it alone will be refused", zap.Error(err))
}

const (
	rememberTries = 5
	storeRetry    = time.Second
)

func (m Message) campaign() store.CampaignKey {
	return store.CampaignKey{Event: m.Event, Target: m.Target}
}

// handOver holds a call that the last term had noted, and of which nobody knows what became.
func (t *term) handOver(ctx context.Context, c *call) {
	w, err := t.prepare(ctx, c)
	if err != nil {
		w = &work{count: c.group.users}
	}
	out := outcome{kind: callUnknown, mode: c.mode, users: w.count, unsendable: w.unsendable, misfits: w.misfits, inherited: true, why: "birdtap ended before it knew the answer"}
	t.log.Error("a call was on its way when the last sender ended: it is held for an operator (birdtap send --held)",
		zap.Uint64("call", c.number), zap.String("mode", string(c.mode)), zap.Int("users", w.count))
	t.keep(ctx, c, &out)
	t.send(ctx, func() { t.finished(c, out) })
}

// keep puts on disk what has to be there before the call is settled: the call itself if
// it is held, and the names of those who were not sent to. It tries for as long as the
// term lasts: nobody is left out silently.
func (t *term) keep(ctx context.Context, c *call, out *outcome) {
	t.insist(ctx, "a call is held", func() error {
		switch {
		case out.kind != callUnknown:
			return nil
		case c.released != "":
			// It is still there. But no crash may bring back the order to send it.
			return t.opts.Sends.Ordered(ctx, c.order)
		}
		err := t.hold(ctx, c, out)
		failpoint.Here(failpoint.CallHeld)
		return err
	})
	t.insist(ctx, "users were not sent to", func() error {
		listed, err := t.listUnsent(ctx, c, out)
		if listed {
			failpoint.Here(failpoint.UnsentListed)
		}
		return err
	})
}

// insist does something that must not be left undone.
func (t *term) insist(ctx context.Context, what string, do func() error) {
	for said := false; ctx.Err() == nil; wait(ctx, storeRetry) {
		err := do()
		if err == nil {
			return
		}
		if !said {
			t.log.Error("cannot store that "+what+": trying on", zap.Error(err))
			said = true
		}
	}
}
