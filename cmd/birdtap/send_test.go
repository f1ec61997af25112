package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/birdtap/birdtap/sendbird"
	"github.com/birdtap/birdtap/sendbird/sendbirdtest"
	"github.com/birdtap/birdtap/sendbird/sender"
	"github.com/birdtap/birdtap/store"
)

// sendRig is a Sendbird, and an environment without a queue yet.
type sendRig struct {
	fake    *sendbirdtest.Server
	environ []string
	dir     string
}

func newSendRig(t *testing.T) sendRig {
	t.Helper()
	fake, environ := sendbirdFake(t)
	dir := t.TempDir()
	return sendRig{fake, append(environ, "BIRDTAP_DATA_DIR="+filepath.Join(dir, "data")), dir}
}

// file writes a CSV file and returns its path.
func (r sendRig) file(t testing.TB, text string) string {
	t.Helper()
	name := filepath.Join(r.dir, "users.csv")
	writeFile(t, name, text)
	return name
}

// usersCSV is a file of the users u0, u1 … with one variable.
func usersCSV(n int) string {
	var b strings.Builder
	b.WriteString("user_id,name\n")
	for i := range n {
		fmt.Fprintf(&b, "u%d,Name %d\n", i, i)
	}
	return b.String()
}

func (r sendRig) send(t *testing.T, args ...string) result {
	t.Helper()
	return birdtap(t, r.environ, append([]string{"send"}, args...)...)
}

// summaryOf reads what --json prints.
func summaryOf(t *testing.T, got result) sendSummary {
	t.Helper()
	var s sendSummary
	if err := json.Unmarshal([]byte(got.out), &s); err != nil || strings.Count(got.out, "\n") != 1 {
		t.Fatalf("code %d, stdout %q, stderr %q: %v", got.code, got.out, got.err, err)
	}
	return s
}

// wantTimes fails unless u0 … were reached that often each, and nobody else was.
func (r sendRig) wantTimes(t *testing.T, users, times int) {
	t.Helper()
	got := r.fake.Deliveries()
	if len(got) != users {
		t.Errorf("%d users were reached, want %d", len(got), users)
	}
	for i := range users {
		if n := got[fmt.Sprintf("u%d", i)]; n != times {
			t.Fatalf("u%d was reached %d times, want %d", i, n, times)
		}
	}
}

// A newcomer with nothing but a file.
func TestSendAFile(t *testing.T) {
	r := newSendRig(t)
	file := r.file(t, usersCSV(3))
	args := []string{
		"--template", "sale", "--csv", file, "--event", "Summer", "--target-id", "9007199254740993",
		"--tag", "june", "--title", "Sale", "--priority", "high", "--push", "badge=1", "--push", "a=b=c",
	}
	got := r.send(t, args...)
	if got.code != exitDone || got.out != "sent             3\n" || got.err != "" {
		t.Errorf("%+v", got)
	}
	r.wantTimes(t, 3, 1)
	n := r.fake.Notifications()[0]
	n.ID = ""
	want := sendbirdtest.Notification{
		Template: "sale", Mode: "batch", Priority: "high", Title: "Sale", Tag: "june",
		Users: []string{"u0", "u1", "u2"}, Push: map[string]string{"badge": "1", "a": "b=c"}, Variables: n.Variables,
	}
	if diff := cmp.Diff(want, n); diff != "" {
		t.Errorf("notification (-want +got):\n%s", diff)
	}
	if v := string(n.Variables["u2"]["name"]); v != `"Name 2"` {
		t.Errorf("variable %s", v)
	}

	// It was sent to its end.
	got = r.send(t, args...)
	if got.code != exitDone || !strings.HasPrefix(got.out, "already sent on 20") || !strings.Contains(got.out, "(3 users); --again sends it once more\nsent             3\n") {
		t.Errorf("%+v", got)
	}
	if s := summaryOf(t, r.send(t, append(args, "--json")...)); !s.AlreadySent || s.Sent != 3 || s.Users != 3 || s.File != file {
		t.Errorf("%+v", s)
	}
	r.wantTimes(t, 3, 1)
	for times := 2; times < 4; times++ {
		if s := summaryOf(t, r.send(t, append(args, "--json", "--again")...)); s.AlreadySent || s.Sent != 3 || s.Finished.IsZero() {
			t.Errorf("%+v", s)
		}
		r.wantTimes(t, 3, times)
	}
	if s := summaryOf(t, r.send(t, append(args, "--json")...)); !s.AlreadySent {
		t.Errorf("%+v", s)
	}
	// Another message to the same users, and the same to others, are not what was sent.
	if got := r.send(t, "--template", "other", "--csv", file); got.code != exitDone {
		t.Errorf("%+v", got)
	}
	r.file(t, usersCSV(4))
	if got := r.send(t, args...); got.code != exitDone || got.out != "sent             4\n" {
		t.Errorf("%+v", got)
	}
}

func TestSendGoesInTheRightCalls(t *testing.T) {
	for _, c := range []struct {
		users int
		mode  string
		want  []string // mode and users of each call
	}{
		{1, "auto", []string{"realtime 1"}},
		{2, "auto", []string{"batch 2"}},
		{10_000, "auto", []string{"batch 10000"}},
		{10_001, "auto", []string{"file 10001"}},
		{10_001, "batch", []string{"batch 1", "batch 10000"}},
		{100_000, "auto", []string{"file 100000"}},
		{100_001, "auto", []string{"file 1", "file 100000"}},
		{3, "realtime", []string{"realtime 1", "realtime 1", "realtime 1"}},
		{1, "csv", []string{"file 1"}},
		{1, "batch", []string{"batch 1"}},
	} {
		t.Run(fmt.Sprintf("%d %s", c.users, c.mode), func(t *testing.T) {
			r := newSendRig(t)
			file := r.file(t, usersCSV(c.users))
			args := []string{"--template", "sale", "--csv", file, "--mode", c.mode, "--json"}
			var plan sendPlan
			if got := r.send(t, append(args, "--dry-run")...); json.Unmarshal([]byte(got.out), &plan) != nil || plan.Calls != len(c.want) || plan.Users != c.users {
				t.Errorf("plan %+v", got)
			}
			if got := r.send(t, args...); summaryOf(t, got).Sent != int64(c.users) || got.code != exitDone {
				t.Errorf("%+v", got)
			}
			var calls []string
			for _, n := range r.fake.Notifications() {
				mode := n.Mode
				if n.File != "" {
					mode = "file"
				}
				calls = append(calls, fmt.Sprintf("%s %d", mode, len(n.Users)))
			}
			slices.Sort(calls)
			if diff := cmp.Diff(c.want, calls); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
			r.wantTimes(t, c.users, 1)
		})
	}
}

func TestSendNamesEveryBadRow(t *testing.T) {
	long := strings.Repeat("ä", 81)
	for name, c := range map[string]struct{ rows, want string }{
		"empty id":        {",x\n", "line 2, column user_id: an empty user id, but 1 to 80 characters"},
		"long id":         {long + ",x\n", "line 2, column user_id: 81 characters, but 1 to 80 characters"},
		"control":         {"a\tb,x\n", "line 2, column user_id: a user id with control characters or invalid UTF-8, but must be text of one line"},
		"line break":      {"\"a\nb\",x\n", "line 2, column user_id: a user id with control"},
		"id not UTF-8":    {"a\xff,x\n", "line 2, column user_id: a user id with control characters or invalid UTF-8"},
		"twice":           {"a,x\nb,x\na,y\n", "line 4, column user_id: the user of line 2 once more"},
		"too few":         {"a\n", "line 2: 1 column, but the first row names 2"},
		"too many":        {"a,b,c\n", "line 2: 3 columns, but the first row names 2"},
		"value not UTF-8": {"a,\xff\n", "line 2, column name: invalid UTF-8"},
		"NUL":             {"a,x\x00\n", "line 2, column name: a NUL"},
		"stray quote":     {"a,x\"y\n", "line 2: a quote is not closed, or stands within a value, at byte 4"},
		"behind lines":    {"a,\"x\ny\"\n\nb\n", "line 5: 1 column"},
		"CRLF":            {"a,x\r\n,y\r\n", "line 3, column user_id: an empty"},
		"open quote":      {"a,x\nb,\"y\n", "line 3: a quote is not closed"},
		"as JSON":         {"a," + strings.Repeat("\x01", 40_000) + "\n", "line 2: it takes more than 163840 bytes as JSON"},
		"huge":            {"a,x\nb," + strings.Repeat("x", 100_000) + "\nc,x\n", "line 3: it is longer than 65536 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newSendRig(t)
			got := r.send(t, "--template", "sale", "--csv", r.file(t, "user_id,name\n"+c.rows))
			if got.code != exitFailed || got.out != "" || !strings.HasPrefix(got.err, c.want) || !strings.Contains(got.err, "nothing was sent: ") {
				t.Errorf("code %d, stderr %q", got.code, got.err)
			}
			if _, err := os.Stat(filepath.Join(r.dir, "data")); !errors.Is(err, fs.ErrNotExist) || r.fake.Counts().Calls > 0 {
				t.Errorf("something was stored or sent: %v", err)
			}
		})
	}
}

func TestSendCountsAllBadRowsAndNamesTwenty(t *testing.T) {
	r := newSendRig(t)
	var b strings.Builder
	b.WriteString("user_id\n")
	for i := range 1000 {
		fmt.Fprintf(&b, "same\nu%d\n%s\n", i, strings.Repeat("x", 81))
	}
	got := r.send(t, "--template", "sale", "--csv", r.file(t, b.String()))
	if got.code != exitFailed || strings.Count(got.err, "\nline ")+1 != 20 || !strings.Contains(got.err, "and 1,979 more\n") ||
		!strings.Contains(got.err, "has 1,999 bad rows; --skip-bad leaves them out") {
		t.Errorf("%+v", got)
	}
	if !strings.HasPrefix(got.err, "line 4, column user_id: 81 characters") || !strings.Contains(got.err, "line 5, column user_id: the user of line 2 once more\nline 7, ") {
		t.Errorf("not the first ones, in order: %s", got.err)
	}
}

func TestSendRefusesAFileWithoutUsers(t *testing.T) {
	for text, want := range map[string]string{
		"":                         "first row: the file is empty",
		"user_id\n":                "has no user below its first row",
		"\ufeffuser_id,a\r\n":      "has no user below its first row",
		"user_id\n\n\n":            "has no user below its first row",
		"id,name\nu,x\n":           "first row: has no column user_id, only id, name",
		"user_id;name\nu;x\n":      "first row: has no column user_id, only user_id;name; a comma separates columns",
		"User_ID\nu\n":             "first row: has no column user_id, only User_ID",
		"user_id,name,name\n":      "first row: column 3 is name once more",
		"user_id,user_id\n":        "first row: column 2 is user_id once more",
		"user_id,first name\n":     `first row: column 2 is "first name": names are letters, digits, _ - and .`,
		"user_id,\n":               `first row: column 2 is ""`,
		"\xff\xfeu\x00s\x00":       "first row: is not valid UTF-8",
		"user_id,a\"b\n":           "first row: a quote is not closed",
		strings.Repeat("x", 1<<20): "first row: it is longer than 65536 bytes",
	} {
		r := newSendRig(t)
		got := r.send(t, "--template", "sale", "--csv", r.file(t, text))
		if got.code != exitFailed || got.out != "" || !strings.Contains(got.err, "nothing was sent: ") || !strings.Contains(got.err, want) || strings.Count(got.err, "\n") != 1 {
			t.Errorf("%.20q: code %d, stderr %q, want %s", text, got.code, got.err, want)
		}
	}
}

func TestSendTakesWhatSpreadsheetsWrite(t *testing.T) {
	r := newSendRig(t)
	file := r.file(t, "\ufeff\"city\",\"user_id\"\r\n\"Paris, \"\"F\"\"\",u0\r\n\"a\r\nb\",u1\r\n\r\n ü ,u2")
	if got := r.send(t, "--template", "sale", "--csv", file); got.code != exitDone {
		t.Fatalf("%+v", got)
	}
	r.wantTimes(t, 3, 1)
	var values []string
	for _, u := range []string{"u0", "u1", "u2"} {
		values = append(values, string(r.fake.Notifications()[0].Variables[u]["city"]))
	}
	if diff := cmp.Diff([]string{`"Paris, \"F\""`, `"a\nb"`, `" ü "`}, values); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSendSkipsBadRows(t *testing.T) {
	r := newSendRig(t)
	file := r.file(t, "user_id,name\nu0,a\n,b\nu0,c\nu1,\"d\ne\"\nu2\nu1,\"x\"y\n")
	args := []string{"--template", "sale", "--csv", file, "--skip-bad"}
	side := file + ".bad.csv"

	// A plan writes nothing; another run's rows are never written over.
	if got := r.send(t, append(args, "--dry-run")...); got.code != exitDone || !strings.Contains(got.out, "left out    4 bad rows\n") {
		t.Errorf("%+v", got)
	}
	writeFile(t, side, "line\n")
	if got := r.send(t, args...); got.code != exitFailed || !strings.Contains(got.err, "users.csv.bad.csv is there already, and of another run: move it away") {
		t.Errorf("%+v", got)
	}
	if len(r.fake.Notifications()) > 0 {
		t.Error("sent all the same")
	}
	if err := os.Remove(side); err != nil {
		t.Fatal(err)
	}

	got := r.send(t, args...)
	if got.code != exitDone || got.out != "sent             2\nskipped          4   bad rows\n" || !strings.HasSuffix(got.err, "4 bad rows left out: see "+side+"\n") {
		t.Errorf("%+v", got)
	}
	r.wantTimes(t, 2, 1)
	bad, err := os.ReadFile(side)
	if err != nil {
		t.Fatal(err)
	}
	want := `line,reason,user_id,name
3,"user_id: an empty user id, but 1 to 80 characters",,b
4,the user of another row once more,u0,c
7,"1 column, but the first row names 2",u2
8,"a quote is not closed, or stands within a value, at byte 6"
`
	if diff := cmp.Diff(want, string(bad)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// The same run again finds its own.
	if got := r.send(t, args...); got.code != exitDone || !strings.HasPrefix(got.out, "already sent") {
		t.Errorf("%+v", got)
	}
	left, err := os.ReadDir(r.dir)
	if err != nil || len(left) != 3 { // data, users.csv, users.csv.bad.csv
		t.Errorf("left behind: %v, %v", left, err)
	}
	r.file(t, "user_id\n\x00\n")
	if got := r.send(t, args...); got.code != exitFailed || !strings.Contains(got.err, "has no good row") {
		t.Errorf("%+v", got)
	}
	r.file(t, "user_id\nu0\n"+strings.Repeat("x", 1<<20)+"\nu1\n")
	if got := r.send(t, args...); got.code != exitFailed || !strings.Contains(got.err, "could not be read to its end") {
		t.Errorf("%+v", got)
	}
}

func TestSendRefusesWrongUsage(t *testing.T) {
	r := newSendRig(t)
	file := r.file(t, usersCSV(1))
	ok := []string{"--template", "sale", "--csv", file}
	for args, want := range map[string]string{
		"":                                  "--template: is not set",
		"--template=sale":                   "--csv: is not set",
		"--csv=x":                           "--template: is not set",
		"--template=sale --csv=/no/such":    "--csv: open /no/such: no such file or directory",
		"--template=sale --csv=/":           "--csv /: must be a file",
		"+ --event=e":                       "--event and --target-id",
		"+ --target-id=1":                   "--event and --target-id",
		"+ --mode=fast":                     `--mode "fast": must be auto, realtime, batch or csv`,
		"+ --priority=urgent":               `--priority "urgent": must be high, normal or low`,
		"+ --mode=realtime --priority=high": "--priority high does not go with --mode realtime",
		"+ --push=x":                        `--push "x": must be key=value`,
		"+ --push==x":                       `--push "=x": must be key=value`,
		"+ --push=a=1 --push=a=2":           `--push "a=2": must have another key`,
		"+ --push=a=1 --push=b=1 --push=c=1 --push=d=1 --push=e=1 --push=f=1": "--push: template.notification_push_data: 6 pairs",
		"+ --tag=a\tb":                      "--tag: tag:",
		"+ --title=a\x00b":                  "--title: title:",
		"+ --event=a\tb --target-id=1":      "--event",
		"+ --held":                          "does not go with --held",
		"+ --unsent":                        "does not go with --unsent",
		"+ --yes":                           "--yes does not go with --csv",
		"+ x":                               `"x"`,
		"--held --yes":                      "--yes does not go with --held",
		"--release=1 --yes":                 "--release goes with --held",
		"--drop=1":                          "--drop goes with --held",
		"--held --drop=1 --yes":             "--yes does not go with --held --drop",
		"--held --release=1 --drop=2 --yes": "--release does not go with",
		"--held --drop=":                    "an id is wanted",
		"--held --release= --yes":           "an id is wanted",
		"--held --dry-run":                  "--dry-run does not go with --held",
		"--unsent --held":                   "--held does not go with --unsent",
	} {
		var line []string
		for word := range strings.SplitSeq(args, " ") {
			switch word {
			case "":
			case "+":
				line = append(line, ok...)
			default:
				line = append(line, word)
			}
		}
		wantUsage(t, r.send(t, line...), want)
	}
	for _, environ := range [][]string{nil, {"BIRDTAP_SENDBIRD_APP_ID=AAAA-1"}} {
		wantUsage(t, birdtap(t, environ, append([]string{"send"}, ok...)...), "is not set")
	}
	if r.fake.Counts().Calls > 0 {
		t.Error("Sendbird was called")
	}
}

func TestSendChecksTheTemplate(t *testing.T) {
	r := newSendRig(t)
	if err := r.fake.AddTemplate(`{"key":"sale","name":"S","variable_schema":[{"key":"name","type":"string"},{"key":"pic","type":"image"},{"key":"city","type":"string"}]}`); err != nil {
		t.Fatal(err)
	}
	file := r.file(t, "user_id,name,pic,zip\nu0,a,b,c\n")
	want := "template sale and the columns do not fit: it needs city; it does not know zip; it has as image or action, which a file cannot hold, pic\n"
	args := []string{"--template", "sale", "--csv", file}
	if got := r.send(t, args...); got.code != exitFailed || got.out != "" || got.err != "birdtap: nothing was sent: "+want {
		t.Errorf("%+v", got)
	}
	got := r.send(t, append(args, "--dry-run")...)
	if got.code != exitFailed || got.err != "birdtap: "+want || got.out != "would send template sale to 1 user: 1 call of mode realtime\ncolumns     name, pic, zip\ntemplate's  name, pic (image), city\n" {
		t.Errorf("%+v", got)
	}
	var plan sendPlan
	got = r.send(t, append(args, "--dry-run", "--json")...)
	if err := json.Unmarshal([]byte(got.out), &plan); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sendPlan{
		File: file, Template: "sale", Mode: sender.ModeRealtime, Users: 1, Calls: 1, Variables: []string{"name", "pic", "zip"},
		TemplateVariables: []sendbird.Variable{{Key: "name", Type: "string"}, {Key: "pic", Type: "image"}, {Key: "city", Type: "string"}},
		Missing:           []string{"city"}, Unknown: []string{"zip"}, NotText: []string{"pic"},
	}, plan); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// One that cannot be read blocks nobody.
	r.fake.Always(sendbirdtest.Templates, sendbirdtest.HTML())
	if got := r.send(t, append(args, "--dry-run")...); got.code != exitDone || !strings.Contains(got.err, "the columns are not checked against the template") {
		t.Errorf("%+v", got)
	}
	if len(r.fake.Notifications()) > 0 {
		t.Error("something was sent")
	}
}

func TestDryRunNeedsNoQueueAndNoCredentials(t *testing.T) {
	r := newSendRig(t)
	args := []string{"send", "--template", "sale", "--csv", r.file(t, usersCSV(10_001)), "--dry-run"}
	got := birdtap(t, r.environ[3:], args...)
	if got.code != exitDone || got.out != "would send template sale to 10,001 users: 1 call of mode csv\ncolumns     name\n" || !strings.Contains(got.err, "BIRDTAP_SENDBIRD_APP_ID: is not set") {
		t.Errorf("%+v", got)
	}
	if _, err := os.Stat(filepath.Join(r.dir, "data")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a queue was made: %v", err)
	}
}

// Only a send makes a queue.
func TestHeldAndUnsentNeedAQueue(t *testing.T) {
	r := newSendRig(t)
	for _, args := range []string{"--held", "--unsent", "--held --drop 1", "--held --release 1"} {
		if got := r.send(t, strings.Fields(args)...); got.code != exitFailed || !strings.Contains(got.err, "there is no queue at") {
			t.Errorf("%s: %+v", args, got)
		}
	}
	if err := os.Mkdir(filepath.Join(r.dir, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got := r.send(t, "--held"); got.code != exitFailed || !strings.Contains(got.err, "there is no queue in") {
		t.Errorf("%+v", got)
	}
	// What a send has made is a daemon's queue like any other.
	if got := r.send(t, "--template", "sale", "--csv", r.file(t, usersCSV(1))); got.code != exitDone {
		t.Fatalf("%+v", got)
	}
	q := queue{filepath.Join(r.dir, "data"), r.environ[3:]}
	if st := q.status(t); st.Accepted != 0 {
		t.Errorf("%+v", st)
	}
	q.with(t, func(context.Context, *store.Store) {})
}

func TestSendTellsWhoWasRefused(t *testing.T) {
	r := newSendRig(t)
	r.fake.Judge(func(n sendbirdtest.Notification) int {
		switch n.Users[0] {
		case "u1":
			return 400301
		case "u2":
			return 400201
		}
		return 0
	})
	args := []string{"--template", "sale", "--csv", r.file(t, usersCSV(4)), "--mode", "realtime", "--event", "E", "--target-id", "1"}
	got := r.send(t, args...)
	want := "sent             2\nrefused          2   400201 (no such resource) 1, 400301 (no such user) 1\n"
	if got.code != exitFailed || got.out != want || got.err != "birdtap: not all were sent to: 2 users refused (birdtap send --unsent)\n" {
		t.Errorf("%+v", got)
	}
	var lines []string
	for line := range strings.Lines(r.send(t, "--unsent", "--json").out) {
		var l unsentLine
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		if l.Time.IsZero() {
			t.Error("no time")
		}
		lines = append(lines, fmt.Sprint(l.User, l.Reason, l.Mode, l.Template, l.Event, l.TargetID))
	}
	slices.Sort(lines)
	if diff := cmp.Diff([]string{"u1400301realtimesaleE1", "u2400201realtimesaleE1"}, lines); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := r.send(t, "--unsent"); got.code != exitDone || got.err != "2 users\n" || !strings.HasPrefix(got.out, "TIME ") || !strings.Contains(got.out, "400301  u1    realtime  sale      E      1") {
		t.Errorf("%+v", got)
	}
	if s := summaryOf(t, r.send(t, append(args, "--json")...)); !s.AlreadySent || s.Refused != 2 || s.RefusedBy["400301"] != 1 {
		t.Errorf("%+v", s)
	}
}

func TestHeldCallsAreDecided(t *testing.T) {
	r := newSendRig(t)
	r.fake.Script(sendbirdtest.Messages, sendbirdtest.Repeat(3, sendbirdtest.ResetAfterBody().NotTaking())...)
	args := []string{"--template", "sale", "--csv", r.file(t, usersCSV(4)), "--mode", "realtime", "--event", "E", "--target-id", "1"}
	got := r.send(t, args...)
	want := "sent             1\nheld             3   nobody knows whether they got it: birdtap send --held\n"
	if got.code != exitFailed || got.out != want || got.err != "birdtap: not all were sent to: 3 users held (birdtap send --held)\n" {
		t.Errorf("%+v", got)
	}
	got = r.send(t, "--held", "--json")
	var ids []string
	for line := range strings.Lines(got.out) {
		var l heldLine
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		if l.Users != 1 || l.Mode != sender.ModeRealtime || l.Template != "sale" || l.Event != "E" || l.TargetID != "1" || l.Since.IsZero() || l.Why == "" {
			t.Errorf("%s", line)
		}
		ids = append(ids, l.ID)
	}
	if len(ids) != 3 {
		t.Fatalf("%d held calls: %+v", len(ids), got)
	}
	if got := r.send(t, "--held"); got.code != exitDone || got.err != "3 held calls\n" || !strings.HasPrefix(got.out, "ID   SINCE") || strings.Count(got.out, "\n") != 4 {
		t.Errorf("%+v", got)
	}
	for _, flag := range []string{"--drop=999", "--release=999"} {
		line := []string{"--held", flag}
		if strings.Contains(flag, "release") {
			line = append(line, "--yes")
		}
		if got := r.send(t, line...); got.code != exitFailed || !strings.Contains(got.err, `there is no held call "999"`) {
			t.Errorf("%+v", got)
		}
	}
	if got := r.send(t, "--held", "--release", ids[0], "--yes"); got.code != exitDone || !strings.Contains(got.out, "went out again to 1 user") {
		t.Errorf("%+v", got)
	}
	if got := r.send(t, "--held", "--drop", ids[1]); got.code != exitDone || !strings.Contains(got.out, "is given up") {
		t.Errorf("%+v", got)
	}
	if got := r.send(t, "--held", "--drop", ids[1]); got.code != exitFailed {
		t.Errorf("dropped twice: %+v", got)
	}
	r.fake.Script(sendbirdtest.Messages, sendbirdtest.ResetAfterBody().NotTaking())
	if got := r.send(t, "--held", "--release", ids[2], "--yes"); got.code != exitFailed || !strings.Contains(got.err, "unknown once more: it is still held") {
		t.Errorf("%+v", got)
	}
	// Without credentials the decision waits for who has some.
	got = birdtap(t, r.environ[3:], "send", "--held", "--release", ids[2], "--yes")
	if got.code != exitDone || !strings.Contains(got.out, "the next sender carries it out") {
		t.Errorf("%+v", got)
	}
	s := summaryOf(t, r.send(t, append(args, "--json")...))
	if !s.AlreadySent || s.Sent != 2 || s.Held != 1 || s.Dropped != 1 {
		t.Errorf("%+v", s)
	}
	if n := r.fake.Counts().Deliveries; n != 2 {
		t.Errorf("%d deliveries, want 2", n)
	}
}

func TestReleaseAsksAPerson(t *testing.T) {
	r := newSendRig(t)
	r.fake.Script(sendbirdtest.Messages, sendbirdtest.ResetAfterBody().NotTaking())
	if got := r.send(t, "--template", "sale", "--csv", r.file(t, usersCSV(1))); got.code != exitFailed {
		t.Fatalf("%+v", got)
	}
	screen, tty := openTerminal(t)
	for _, answer := range []string{"n", "y"} {
		var out, words bytes.Buffer
		p := &program{in: tty, out: &out, err: &words, environ: r.environ}
		if _, err := screen.WriteString(answer + "\n"); err != nil {
			t.Fatal(err)
		}
		code := p.run(t.Context(), []string{"send", "--held", "--release", "1-1"})
		if (code == exitDone) != (answer == "y") || !strings.HasPrefix(words.String(), "send call 1-1 to 1 user again? Whoever got the first gets it twice [y/N] ") {
			t.Errorf("%s: code %d, stdout %q, stderr %q", answer, code, out.String(), words.String())
		}
	}
	r.wantTimes(t, 1, 1)
}

// stopAt is a context that ends when its error was asked for so many times.
type stopAt struct {
	context.Context //nolint:containedctx // it is one
	left            *atomic.Int64
	stop            func()
}

func (c stopAt) Err() error {
	if c.left.Add(-1) == 0 {
		c.stop()
	}
	return c.Context.Err()
}

// runUntil is the command, told to stop where the test says.
func (r sendRig) runUntil(t *testing.T, ctx context.Context, args ...string) result { //nolint:revive // t comes first in tests
	t.Helper()
	var out, words bytes.Buffer
	p := &program{in: strings.NewReader(""), out: &out, err: &words, environ: r.environ}
	code := p.run(ctx, append([]string{"send"}, args...))
	return result{code, out.String(), words.String()}
}

// Wherever it is stopped, the same command goes on: everybody gets it once.
func TestSendGoesOnWhereItWasStopped(t *testing.T) {
	for _, c := range []struct {
		mode  string
		users int
		calls []int // it is stopped at these notifications
	}{
		{"realtime", 20, []int{1, 7, 20}},
		{"batch", 25_000, []int{1, 2, 3}},
		{"csv", 100_001, []int{1}},
	} {
		t.Run(c.mode, func(t *testing.T) {
			for _, at := range c.calls {
				r := newSendRig(t)
				args := []string{"--template", "sale", "--csv", r.file(t, usersCSV(c.users)), "--mode", c.mode}
				ctx, cancel := context.WithCancel(t.Context())
				n := 0
				r.fake.OnNotification(func(sendbirdtest.Notification) {
					if n++; n == at {
						cancel()
					}
				})
				got := r.runUntil(t, ctx, args...)
				cancel()
				if got.code != exitDone && (got.code != exitFailed || !strings.Contains(got.err, "the same command goes on where it stopped")) {
					t.Errorf("stopped at %d: %+v", at, got)
				}
				again := r.send(t, append(args, "--json")...)
				if s := summaryOf(t, again); again.code != exitDone || s.Sent != int64(c.users) {
					t.Errorf("stopped at %d: %+v", at, again)
				}
				if got.code == exitFailed && !strings.Contains(again.err, "going on with the run of ") {
					t.Errorf("stopped at %d: stderr %q", at, again.err)
				}
				r.wantTimes(t, c.users, 1)
			}
		})
	}
}

// The same, stopped while it reads the file and puts it on the log.
func TestSendIsStoppedAnywhere(t *testing.T) {
	r := newSendRig(t)
	users := 12_000
	args := []string{"--template", "sale", "--csv", r.file(t, usersCSV(users)), "--mode", "batch"}
	stopped := 0
	for at := int64(1); ; at = at*5/4 + 1 {
		ctx, cancel := context.WithCancel(t.Context())
		left := new(atomic.Int64)
		left.Store(at)
		got := r.runUntil(t, stopAt{ctx, left, cancel}, args...)
		cancel()
		if got.code == exitDone {
			break
		}
		stopped++
	}
	if stopped < 5 {
		t.Errorf("stopped %d times only", stopped)
	}
	r.wantTimes(t, users, 1)
}

// hurry makes commands give a queue up sooner that is gone.
func hurry(t *testing.T) {
	was := queueGoneAfter
	queueGoneAfter = 4 * time.Second
	t.Cleanup(func() { queueGoneAfter = was })
}

// child runs the command as a process of its own.
func (r sendRig) child(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	c := exec.CommandContext(t.Context(), os.Args[0], append([]string{"send"}, args...)...)
	c.Env = append([]string{asBirdtap + "=1"}, r.environ...)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	return c
}

// wantOnceOrHeld fails unless everybody was reached once, but those whose call is held.
func (r sendRig) wantOnceOrHeld(t *testing.T, s sendSummary, users int) {
	t.Helper()
	reached := r.fake.Deliveries()
	for user, times := range reached {
		if times != 1 {
			t.Errorf("%s was reached %d times", user, times)
		}
	}
	if missing := users - len(reached); missing < 0 || int64(missing) > s.Held || s.Sent+s.Held != int64(users) {
		t.Errorf("%d of %d were not reached; %+v", missing, users, s)
	}
}

func TestKilledSendGoesOn(t *testing.T) {
	for _, c := range []struct {
		mode  string
		users int
		at    int
	}{{"realtime", 40, 20}, {"batch", 35_000, 2}, {"csv", 100_100, 1}} {
		t.Run(c.mode, func(t *testing.T) {
			r := newSendRig(t)
			args := []string{"--template", "sale", "--csv", r.file(t, usersCSV(c.users)), "--mode", c.mode}
			reached := make(chan struct{})
			n := 0
			r.fake.OnNotification(func(sendbirdtest.Notification) {
				if n++; n == c.at {
					close(reached)
				}
			})
			child := r.child(t, args...)
			<-reached
			_ = child.Process.Kill()
			_ = child.Wait()
			got := r.send(t, append(args, "--json")...)
			s := summaryOf(t, got)
			r.wantOnceOrHeld(t, s, c.users)
			if (got.code == exitDone) != (s.Held == 0) {
				t.Errorf("%+v", got)
			}
		})
	}
}

// Daemon and command killed at once, in the middle of a send.
func TestKilledDaemonAndSend(t *testing.T) {
	t.Parallel()
	r := newSendRig(t)
	_, address := startFake(t)
	d := startProcess(t, append(r.environ, "BIRDTAP_CLEVERTAP_URL="+address)...)
	d.waitFor(t, `"queue open"`)
	users := 40
	args := []string{"--template", "sale", "--csv", r.file(t, usersCSV(users)), "--mode", "realtime"}
	reached := make(chan struct{})
	n := 0
	r.fake.OnNotification(func(sendbirdtest.Notification) {
		if n++; n == 20 {
			close(reached)
		}
	})
	child := r.child(t, args...)
	<-reached
	_ = d.Process.Kill()
	_ = child.Process.Kill()
	_ = child.Wait()
	_ = d.Wait()
	r.wantOnceOrHeld(t, summaryOf(t, r.send(t, append(args, "--json")...)), users)
}

func TestTwoSendsOfOneFileAtOnce(t *testing.T) {
	hurry(t)
	r := newSendRig(t)
	users := 25_000
	args := []string{"--template", "sale", "--csv", r.file(t, usersCSV(users)), "--mode", "batch", "--json"}
	var all sync.WaitGroup
	got := make([]result, 3)
	for i := range got {
		all.Go(func() { got[i] = r.runUntil(t, t.Context(), args...) })
	}
	all.Wait()
	for _, one := range got {
		if s := summaryOf(t, one); one.code != exitDone || s.Sent != int64(users) {
			t.Errorf("%+v", one)
		}
	}
	r.wantTimes(t, users, 1)
}

// Beside a daemon the command uses its queue.
func TestSendBesideADaemon(t *testing.T) {
	fake, environ := sendbirdFake(t)
	d := startDaemonWith(t, append(environ, pair...)...)
	r := sendRig{fake, d.environ, t.TempDir()}
	if got := r.send(t, "--template", "sale", "--csv", r.file(t, usersCSV(10_001))); got.code != exitDone {
		t.Errorf("%+v", got)
	}
	r.wantTimes(t, 10_001, 1)
}

// While another sender is active the one of the command stands by, and decisions are the
// other's, too.
func TestSendStandsByWhileAnotherSenderIsActive(t *testing.T) {
	r := newSendRig(t)
	q := queue{filepath.Join(r.dir, "data"), r.environ}
	q.with(t, func(ctx context.Context, s *store.Store) {
		sends, err := s.OpenSends(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer sends.Close()
		client, err := sendbird.New(load(t, r.environ).sendbirdConfig())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		active := sender.New(sender.Options{Sends: sends, Client: client})
		ctx, cancel := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- active.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}()
		eventually(t, "active", active.Active)
		before, err := sender.ReadStatus(ctx, sends)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.send(t, "--template", "sale", "--csv", r.file(t, usersCSV(5))); got.code != exitDone {
			t.Errorf("%+v", got)
		}
		r.fake.Script(sendbirdtest.Messages, sendbirdtest.ResetAfterBody())
		if got := r.send(t, "--template", "held", "--csv", r.file(t, usersCSV(5))); got.code != exitFailed {
			t.Errorf("%+v", got)
		}
		held, err := sender.ListHeld(ctx, sends)
		if err != nil || len(held) != 1 {
			t.Fatalf("%v, %v", held, err)
		}
		if got := r.send(t, "--held", "--drop", held[0].ID); got.code != exitDone || !strings.Contains(got.out, "the active sender carries it out") {
			t.Errorf("%+v", got)
		}
		eventually(t, "dropped", func() bool {
			held, err := sender.ListHeld(ctx, sends)
			return err == nil && len(held) == 0
		})
		after, err := sender.ReadStatus(ctx, sends)
		if err != nil || after.Term != before.Term || after.Holder != before.Holder {
			t.Errorf("term %d → %d, %v", before.Term, after.Term, err)
		}
	})
	r.wantTimes(t, 5, 2)
}

// Nothing is lost while Sendbird takes no calls, and the reason is said.
func TestSendSaysThatSendbirdTakesNothing(t *testing.T) {
	r := newSendRig(t)
	r.fake.Always(sendbirdtest.Messages, sendbirdtest.Error(400, 400401, marker))
	var words bytes.Buffer
	p := &program{in: strings.NewReader(""), out: io.Discard, environ: r.environ}
	p.err = until(&words, "Sendbird takes no calls", r.fake.Normal)
	code := p.run(t.Context(), []string{"send", "--template", "sale", "--csv", r.file(t, usersCSV(3))})
	if code != exitDone || strings.Contains(words.String(), marker) {
		t.Errorf("code %d, stderr %q", code, words.String())
	}
	r.wantTimes(t, 3, 1)
}

func TestSendNoticesAChangedFile(t *testing.T) {
	r := newSendRig(t)
	name := r.file(t, usersCSV(10))
	file, err := openTargets(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.close()
	r.file(t, usersCSV(11))
	if _, err := file.survey(t.Context(), func(int) {}); err == nil || !strings.Contains(err.Error(), "the file was changed") {
		t.Errorf("%v", err)
	}
}

func TestSendProgressIsForATerminal(t *testing.T) {
	r := newSendRig(t)
	screen, tty := openTerminal(t)
	run := func(args ...string) string {
		t.Helper()
		p := &program{in: strings.NewReader(""), out: io.Discard, err: tty, environ: r.environ}
		if code := p.run(t.Context(), append([]string{"send", "--csv", r.file(t, usersCSV(5))}, args...)); code != exitDone {
			t.Fatalf("%q: code %d", args, code)
		}
		if _, err := tty.WriteString("\x00end"); err != nil {
			t.Fatal(err)
		}
		return screenUpTo(t, screen, "\x00end")
	}
	if got := run("--template", "a", "--json"); got != "" {
		t.Errorf("beside JSON: %q", got)
	}
	if got := run("--template", "b"); !strings.Contains(got, "sending") || !strings.Contains(got, "(0/5") {
		t.Errorf("on a terminal: %q", got)
	}
}

// Whatever a file holds: each row is named, or its user gets it, with its variables as
// they stand there. Line breaks within quotes count as LF.
func FuzzSendCSV(f *testing.F) {
	for _, seed := range []string{
		"user_id,name\nu,x\n", "user_id\nu\nu\n", "\ufeffname,user_id\r\n\"a\r\nb\",u\r\n", "user_id,a\nu,\"\"\"\"\n\"\n",
		"user_id,a\n\xff,x\nb,\x00\nc,\x01\n", "a,b\n", "user_id,a\nu,\"x\"y\nv,z\n",
	} {
		f.Add([]byte(seed))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		name := filepath.Join(dir, fmt.Sprintf("%d.csv", os.Getpid()))
		writeFile(t, name, string(data))
		file, err := openTargets(t.Context(), name)
		if err != nil {
			return
		}
		defer file.close()
		s, err := file.survey(t.Context(), func(int) {})
		if err != nil || s.cut {
			return
		}
		got := map[string]sendbird.Variables{}
		users, last := 0, false
		err = file.parts(t.Context(), s, sender.Message{Mode: sender.ModeCSV, Template: "t"}, func(a sender.Ask) error {
			for _, u := range a.Users {
				got[u.ID] = u.Variables
			}
			users += len(a.Users)
			last = a.Last
			encoded, err := sender.Encode(nil, []sender.Ask{a})
			if err != nil || len(encoded) != 1 {
				t.Errorf("%d asks, %v", len(encoded), err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if users != s.users || len(got) != users || last != (users > 0) {
			t.Fatalf("%d users in parts, %d different, last %v; %d surveyed", users, len(got), last, s.users)
		}
		wantRows(t, data, s, got)
	})
}

// wantRows compares with the rows as the csv package reads all of them at once.
func wantRows(t *testing.T, data []byte, s *survey, got map[string]sendbird.Variables) {
	t.Helper()
	r := csv.NewReader(bytes.NewReader(bytes.TrimPrefix(data, []byte(bom))))
	r.FieldsPerRecord = -1
	header, _ := r.Read()
	seen := map[string]bool{}
	rows, bad := 0, 0
	for ; ; rows++ {
		row, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		at := slices.Index(header, "user_id")
		if err != nil || len(row) != len(header) || s.skip.has(rows) && !seen[row[at]] {
			bad++
			continue
		}
		if seen[row[at]] {
			bad++
			if !s.skip.has(rows) {
				t.Fatalf("row %d: %q once more", rows, row[at])
			}
			continue
		}
		seen[row[at]] = true
		for i, name := range header {
			if i != at && got[row[at]][name] != sendbird.String(row[i]) {
				t.Fatalf("row %d, %s: %q, want %q", rows, name, got[row[at]][name], row[i])
			}
		}
	}
	if rows != s.rows || bad != s.bad.total {
		t.Fatalf("%d rows, %d bad; want %d and %d", s.rows, s.bad.total, rows, bad)
	}
}

// A full queue is waited for, for as long as it takes, and said once; one that is gone for
// a while; what can never be stored not at all.
func TestSendInsistsOnTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var words bytes.Buffer
		s := &sending{words: &words, heard: time.Now()}
		began, tries := time.Now(), 0
		err := s.insist(t.Context(), func() error {
			if tries++; time.Since(began) < time.Hour {
				return fmt.Errorf("commit asks: %w", store.ErrFull)
			}
			return nil
		})
		if err != nil || tries < 2 || words.String() != "birdtap: the queue is full: waiting for room\n" {
			t.Errorf("full: %v after %d tries, said %q", err, tries, words.String())
		}
		began = time.Now()
		err = s.insist(t.Context(), func() error { return store.ErrTimeout })
		if took := time.Since(began); !errors.Is(err, errQueueGone) || took < queueGoneAfter || took > queueGoneAfter+time.Second {
			t.Errorf("gone: %v after %v", err, took)
		}
		began = time.Now()
		if err := s.insist(t.Context(), func() error { return store.ErrInvalid }); !errors.Is(err, store.ErrInvalid) || time.Since(began) > 0 {
			t.Errorf("invalid: %v after %v", err, time.Since(began))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.insist(ctx, func() error { return store.ErrTimeout }); !errors.Is(err, context.Canceled) {
			t.Errorf("stopped: %v", err)
		}
	})
}
