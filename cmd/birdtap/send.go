package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/birdtap/birdtap/sendbird"
	"github.com/birdtap/birdtap/sendbird/sender"
)

// sendFlags are those of send.
type sendFlags struct {
	template, csv, event, targetID, tag, title string
	mode                                       sendMode
	priority                                   sendPriority
	push                                       pushPairs
	dryRun, skipBad, again, asJSON             bool

	held, unsent, yes bool
	release, drop     string
}

func (p *program) sendCommand() *cobra.Command {
	var f sendFlags
	c := &cobra.Command{
		Use:   "send",
		Short: "Send notifications to the users of a file, and decide about calls of unknown outcome",
		Long: `Send a notification of Sendbird to every user of a CSV file. Its first row names the
columns: user_id, and every other one a variable of the template. Line breaks within
quotes count as LF.

The whole file is checked before the first user is sent to. A bad row is named by its
line and column, and nothing is sent; with --skip-bad the others are sent to, and the bad
rows go to FILE.bad.csv, which must not exist already with other content.

--mode auto sends to 1 user in realtime, to as many as 10,000 as a batch, and beyond that
by files of 100,000 users. A file carries text only, so a template with images or actions
cannot be sent from one.

Given again after a break the same command goes on where it stopped: nobody gets the
notification twice, and nobody is left out. What makes it the same is the content of the
file, and the flags that make the message. A file that was sent to its end is not sent
again without --again.

It works beside a daemon, whose sender carries the calls out if there is one, and while
none runs. As long as it has the queue to itself no daemon can start on it.

Sendbird cannot be asked what became of a call that it did not answer. Such a call is
held: --held lists those, --release sends one again (who has got the first gets it twice),
--drop gives one up. --unsent lists who was refused and why.

It needs BIRDTAP_SENDBIRD_APP_ID and BIRDTAP_SENDBIRD_NOTIFICATIONS_TOKEN; --held and
--unsent do without. Large files need temporary space in TMPDIR: 32 bytes a row.

Exit code 0: all were sent to. 1: some were refused or are held, or it stopped before the end.`,
		Example: `  birdtap send --template sale --csv users.csv --dry-run
  birdtap send --template sale --csv users.csv --event "Summer Sale" --target-id 123123
  birdtap send --template sale --csv users.csv --mode batch --priority high --push badge=1
  birdtap send --held
  birdtap send --held --release 17-3
  birdtap send --unsent --json`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := f.check(c.Flags()); err != nil {
				return err
			}
			switch {
			case f.unsent:
				return p.listUnsent(c.Context(), f.asJSON)
			case f.release != "" || f.drop != "":
				return p.decideHeld(c.Context(), &f)
			case f.held:
				return p.listHeld(c.Context(), f.asJSON)
			default:
				return p.send(c.Context(), &f)
			}
		},
	}
	f.register(c)
	return c
}

func (f *sendFlags) register(c *cobra.Command) {
	flags := c.Flags()
	f.mode = modeAuto
	flags.StringVar(&f.template, "template", "", "`key` of the template (birdtap templates lists them)")
	flags.StringVar(&f.csv, "csv", "", "`file` of users: first row the column names, user_id and the template's variables")
	flags.Var(&f.mode, "mode", "auto, realtime, batch or csv")
	flags.StringVar(&f.event, "event", "", "event `name` of the campaign in CleverTap; needs --target-id")
	flags.StringVar(&f.targetID, "target-id", "", "target `id` of the campaign in CleverTap; needs --event")
	flags.StringVar(&f.tag, "tag", "", "`text` that groups notifications in Sendbird's analytics")
	flags.StringVar(&f.title, "title", "", "`text` that labels this one there")
	flags.Var(&f.priority, "priority", "high, normal or low; not in realtime")
	flags.Var(&f.push, "push", "`key=value` that goes along with the push notification; as many as 5")
	flags.BoolVar(&f.dryRun, "dry-run", false, "check everything, say what would go, send and store nothing")
	flags.BoolVar(&f.skipBad, "skip-bad", false, "send to the good rows, put the bad ones into FILE.bad.csv")
	flags.BoolVar(&f.again, "again", false, "send a file once more that was sent to its end")
	flags.BoolVar(&f.held, "held", false, "list calls of unknown outcome")
	flags.StringVar(&f.release, "release", "", "with --held: send the call of this `id` again")
	flags.StringVar(&f.drop, "drop", "", "with --held: give the call of this `id` up")
	flags.BoolVar(&f.yes, "yes", false, "with --release: do not ask")
	flags.BoolVar(&f.unsent, "unsent", false, "list who was not sent to and why, the newest last")
	flags.BoolVar(&f.asJSON, "json", false, "JSON on stdout")

	offer := func(values []string, names ...string) {
		for _, name := range names { // it fails for a flag that does not exist only
			_ = c.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
		}
	}
	offer(sendModes, "mode")
	offer([]string{"high", "normal", "low"}, "priority")
	offer(nil, "template", "event", "target-id", "tag", "title", "push", "release", "drop")
}

// check refuses what does not go together: a flag without effect is a mistake.
func (f *sendFlags) check(flags *pflag.FlagSet) error {
	goes, with := "--csv", []string{
		"template", "csv", "mode", "event", "target-id", "tag", "title", "priority", "push", "dry-run", "skip-bad", "again", "json",
	}
	switch {
	case flags.Changed("unsent"):
		goes, with = "--unsent", []string{"unsent", "json"}
	case flags.Changed("release"), flags.Changed("drop"):
		goes, with = "--held --release", []string{"held", "release", "yes"}
		if flags.Changed("drop") {
			goes, with = "--held --drop", []string{"held", "drop"}
		}
		if !f.held {
			return usageError(strings.TrimPrefix(goes, "--held ") + " goes with --held")
		}
	case flags.Changed("held"):
		goes, with = "--held", []string{"held", "json"}
	}
	var err error
	flags.Visit(func(flag *pflag.Flag) {
		if !slices.Contains(with, flag.Name) {
			err = cmp.Or(err, error(usageError("--"+flag.Name+" does not go with "+goes)))
		}
	})
	switch {
	case err != nil:
		return err
	case goes == "--csv":
		return f.checkMessage()
	case flags.Changed("release") && f.release == "", flags.Changed("drop") && f.drop == "":
		return usageError(goes + `: an id is wanted, got ""; birdtap send --held lists them`)
	}
	return nil
}

// checkMessage judges what all users get, by the limits that Sendbird documents.
func (f *sendFlags) checkMessage() error {
	switch {
	case f.template == "":
		return usageError("--template: is not set; birdtap templates lists the keys")
	case f.csv == "":
		return usageError("--csv: is not set")
	case (f.event == "") != (f.targetID == ""):
		return usageError("--event and --target-id name a campaign together: one of them is not set")
	case f.mode == sendMode(sender.ModeRealtime) && f.priority != "":
		return usageError(fmt.Sprintf("--priority %s does not go with --mode realtime: Sendbird has priorities for batches only", f.priority))
	}
	for _, text := range []struct{ flag, value string }{{"event", f.event}, {"target-id", f.targetID}} {
		if !utf8.ValidString(text.value) || strings.ContainsFunc(text.value, unicode.IsControl) || len(text.value) > maxCampaignBytes {
			return usageError(fmt.Sprintf("--%s %q: must be text of one line, of %d bytes at most", text.flag, printable(text.value), maxCampaignBytes))
		}
	}
	n := sendbird.Notification{
		Template: f.template, Mode: sendbird.Batch, Targets: []string{"u"},
		Tag: f.tag, Title: f.title, Push: f.push, Priority: sendbird.Priority(f.priority),
	}
	if err := n.Check(); err != nil {
		return usageError(flagOf(err) + ": " + err.Error())
	}
	data, err := json.Marshal(f.message(sender.ModeBatch))
	if err != nil || len(data) > maxMessageBytes {
		return usageError(fmt.Sprintf("the flags make a message of %s: it may have %s", bytesText(int64(len(data))), bytesText(maxMessageBytes)))
	}
	return nil
}

const (
	// maxCampaignBytes is as long as a property's value may be at CleverTap.
	maxCampaignBytes = 512
	// maxMessageBytes bounds what every ask has in common.
	maxMessageBytes = 64 << 10
)

// flagOf names the flag of a field.
func flagOf(err error) string {
	limit, _ := errors.AsType[*sendbird.LimitError](err)
	for field, flag := range map[string]string{"template.key": "--template", "template.notification_push_data": "--push"} {
		if limit != nil && limit.Field == field {
			return flag
		}
	}
	if limit == nil {
		return "--template"
	}
	return "--" + limit.Field // priority, tag, title
}

// message is what every user gets. It has no job yet.
func (f *sendFlags) message(mode sender.Mode) sender.Message {
	return sender.Message{
		Mode: mode, Template: f.template, Event: f.event, Target: f.targetID,
		Tag: f.tag, Title: f.title, Priority: sendbird.Priority(f.priority), Push: f.push,
	}
}

// sendMode is a flag: how users are sent to.
type sendMode string

const modeAuto sendMode = "auto"

var sendModes = []string{string(modeAuto), string(sender.ModeRealtime), string(sender.ModeBatch), string(sender.ModeCSV)}

// Set takes the four modes.
func (m *sendMode) Set(text string) error {
	if !slices.Contains(sendModes, text) {
		return errors.New("must be auto, realtime, batch or csv")
	}
	*m = sendMode(text)
	return nil
}

func (m *sendMode) String() string { return string(*m) }

// Type is the flag's kind in help texts.
func (*sendMode) Type() string { return "mode" }

// of is the way in which so many users are sent to.
func (m *sendMode) of(users int) sender.Mode {
	switch {
	case *m != modeAuto:
		return sender.Mode(*m)
	case users <= sendbird.MaxRealtimeTargets:
		return sender.ModeRealtime
	case users <= sendbird.MaxBatchTargets:
		return sender.ModeBatch
	default:
		return sender.ModeCSV
	}
}

// mostUsers is how many users one call of a mode takes.
func mostUsers(mode sender.Mode) int {
	switch mode {
	case sender.ModeRealtime:
		return sendbird.MaxRealtimeTargets
	case sender.ModeBatch:
		return sendbird.MaxBatchTargets
	default:
		return sendbird.MaxFileTargets
	}
}

// sendPriority is a flag: a priority of Sendbird.
type sendPriority sendbird.Priority

// Set takes the three priorities.
func (s *sendPriority) Set(text string) error {
	switch sendbird.Priority(text) {
	case sendbird.PriorityHigh, sendbird.PriorityNormal, sendbird.PriorityLow:
		*s = sendPriority(text)
		return nil
	}
	return errors.New("must be high, normal or low")
}

func (s *sendPriority) String() string { return string(*s) }

// Type is the flag's kind in help texts.
func (*sendPriority) Type() string { return "priority" }

// pushPairs is a flag that may be given several times.
type pushPairs map[string]string

// Set takes one key=value.
func (p *pushPairs) Set(text string) error {
	key, value, found := strings.Cut(text, "=")
	if !found || key == "" {
		return errors.New("must be key=value")
	}
	if _, twice := (*p)[key]; twice {
		return fmt.Errorf("must have another key: %q was given before", printable(key))
	}
	if *p == nil {
		*p = pushPairs{}
	}
	(*p)[key] = value
	return nil
}

func (p *pushPairs) String() string {
	var pairs []string
	for _, key := range slices.Sorted(maps.Keys(*p)) {
		pairs = append(pairs, key+"="+(*p)[key])
	}
	return strings.Join(pairs, ",")
}

// Type is the flag's kind in help texts.
func (*pushPairs) Type() string { return "key=value" }

// send sends a file, or says what would be sent.
func (p *program) send(ctx context.Context, f *sendFlags) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	if err := cfg.needSendbird(); err != nil && !f.dryRun {
		return err
	}
	file, err := openTargets(ctx, f.csv)
	if err != nil {
		return err
	}
	defer file.close()
	bar := p.progress("reading", "rows", -1, f.asJSON)
	s, err := file.survey(ctx, bar.set)
	bar.end()
	if ctx.Err() != nil {
		return errors.New("stopped while it read the file: nothing was sent")
	}
	if err != nil {
		return fmt.Errorf("nothing was sent: %s: %w", printable(f.csv), err)
	}
	if err := p.judgeSurvey(s, f); err != nil {
		return err
	}
	if f.dryRun {
		return p.planSend(ctx, cfg, f, file, s)
	}
	return p.withSendbird(func(client *sendbird.Client) error {
		if t, err := readTemplate(ctx, client, f.template); err == nil {
			if fit := file.fit(t); !fit.ok() {
				return fmt.Errorf("nothing was sent: %w", fit)
			}
		}
		if s.bad.total > 0 {
			if err := file.writeBad(ctx, s); err != nil {
				return fmt.Errorf("nothing was sent: %w", err)
			}
			fmt.Fprintf(p.err, "%s left out: see %s\n", counted(s.bad.total, "bad row"), printable(file.badName()))
		}
		return p.carrySend(ctx, cfg, client, f, file, s)
	})
}

// judgeSurvey names the bad rows, and refuses a file that has some, or nobody to send to.
func (p *program) judgeSurvey(s *survey, f *sendFlags) error {
	for _, row := range s.bad.first {
		fmt.Fprintln(p.err, row)
	}
	if more := s.bad.total - len(s.bad.first); more > 0 {
		fmt.Fprintf(p.err, "and %s more\n", thousands(uint64(more)))
	}
	refuse := func(why string) error { return fmt.Errorf("nothing was sent: %s %s", printable(f.csv), why) }
	switch {
	case s.cut:
		return refuse("could not be read to its end: see the last of these rows")
	case s.bad.total > 0 && !f.skipBad:
		return refuse("has " + counted(s.bad.total, "bad row") + "; --skip-bad leaves them out")
	case s.users == 0 && s.bad.total > 0:
		return refuse("has no good row")
	case s.users == 0:
		return refuse("has no user below its first row")
	}
	return nil
}

// templateWait is how long a template may take to be read: it is a help, and no must.
const templateWait = 10 * time.Second

var errNotUnderstood = errors.New("the answer has a shape that Sendbird does not document")

func readTemplate(ctx context.Context, client *sendbird.Client, key string) (sendbird.Template, error) {
	ctx, cancel := context.WithTimeout(ctx, templateWait)
	defer cancel()
	t, err := client.Template(ctx, key)
	if err == nil && !t.Understood() {
		err = errNotUnderstood
	}
	return t, err
}

// misfit is in what the columns of a file and the variables of a template differ.
type misfit struct {
	Template string
	Missing  []string // the template has them, the file does not
	Unknown  []string // the other way round
	NotText  []string // the template has them as something that a file cannot hold
}

func (f *targets) fit(t sendbird.Template) *misfit {
	m := &misfit{Template: t.Key}
	if len(t.Variables) == 0 {
		return m // a template without a list says nothing
	}
	known := map[string]bool{}
	for _, v := range t.Variables {
		known[v.Key] = true
		switch {
		case !slices.Contains(f.variables, v.Key):
			m.Missing = append(m.Missing, v.Key)
		case v.Type == sendbird.KindImage || v.Type == sendbird.KindAction:
			m.NotText = append(m.NotText, v.Key)
		}
	}
	for _, name := range f.variables {
		if !known[name] {
			m.Unknown = append(m.Unknown, name)
		}
	}
	return m
}

func (m *misfit) ok() bool { return len(m.Missing)+len(m.Unknown)+len(m.NotText) == 0 }

// Error says all of it at once.
func (m *misfit) Error() string {
	var parts []string
	for _, part := range []struct {
		words string
		names []string
	}{{"needs", m.Missing}, {"does not know", m.Unknown}, {"has as image or action, which a file cannot hold,", m.NotText}} {
		if len(part.names) > 0 {
			parts = append(parts, part.words+" "+printable(strings.Join(part.names, ", ")))
		}
	}
	return fmt.Sprintf("template %s and the columns do not fit: it %s", printable(m.Template), strings.Join(parts, "; it "))
}

// sendPlan is what --dry-run finds, as programs read it.
type sendPlan struct {
	File      string      `json:"file"`
	Template  string      `json:"template"`
	Mode      sender.Mode `json:"mode"`
	Users     int         `json:"users"`
	Calls     int         `json:"calls"`
	Skipped   int         `json:"skipped"` // bad rows
	Variables []string    `json:"variables"`
	// TemplateVariables is null where the template cannot be read.
	TemplateVariables []sendbird.Variable `json:"template_variables"`
	Missing           []string            `json:"missing,omitempty"`
	Unknown           []string            `json:"unknown,omitempty"`
	NotText           []string            `json:"not_text,omitempty"`
}

// planSend says what would be sent.
func (p *program) planSend(ctx context.Context, cfg *Config, f *sendFlags, file *targets, s *survey) error {
	mode := f.mode.of(s.users)
	plan := sendPlan{
		File: f.csv, Template: f.template, Mode: mode, Users: s.users, Skipped: s.bad.total, Variables: file.variables,
		Calls: (s.users + mostUsers(mode) - 1) / mostUsers(mode),
	}
	unread := cfg.needSendbird()
	fit := &misfit{}
	if unread == nil {
		unread = p.withSendbird(func(client *sendbird.Client) error {
			t, err := readTemplate(ctx, client, f.template)
			if err != nil {
				return sendbirdError(err)
			}
			fit, plan.TemplateVariables = file.fit(t), append([]sendbird.Variable{}, t.Variables...)
			return nil
		})
	}
	plan.Missing, plan.Unknown, plan.NotText = fit.Missing, fit.Unknown, fit.NotText
	if unread != nil {
		fmt.Fprintf(p.err, "birdtap: the columns are not checked against the template: %v\n", unread)
	}
	write := plan.write
	if f.asJSON {
		write = func(w io.Writer) error { return writeJSONLine(w, plan) }
	}
	if err := write(p.out); err != nil {
		return err
	}
	if !fit.ok() {
		return fit
	}
	return nil
}

func (s sendPlan) write(w io.Writer) error {
	_, err := fmt.Fprintf(w, "would send template %s to %s: %s of mode %s\ncolumns     %s\n",
		printable(s.Template), counted(s.Users, "user"), counted(s.Calls, "call"), s.Mode, listText(s.Variables))
	if err == nil && s.TemplateVariables != nil {
		_, err = fmt.Fprintf(w, "template's  %s\n", printable(variablesText(s.TemplateVariables)))
	}
	if err == nil && s.Skipped > 0 {
		_, err = fmt.Fprintf(w, "left out    %s\n", counted(s.Skipped, "bad row"))
	}
	return err
}
