package main

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// everyCommand calls fn for every command there is.
func everyCommand(fn func(*cobra.Command)) {
	p := &program{}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		fn(c)
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(p.rootCommand())
}

func pathOf(c *cobra.Command) []string { return strings.Fields(c.CommandPath())[1:] }

// Whatever is wrong about a command line: code 2 and one line that names the flag and
// its value.
func TestEveryCommandRefusesWrongUsage(t *testing.T) {
	everyCommand(func(c *cobra.Command) {
		if path := pathOf(c); len(path) > 0 {
			wantUsage(t, birdtap(t, nil, append(path, "--no-such-flag")...), "--no-such-flag")
			if c.Name() != "help" {
				wantUsage(t, birdtap(t, nil, append(path, oneTooMany(c)...)...), `"surplus"`)
			}
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Value.Type() == "string" {
				return // takes any
			}
			got := birdtap(t, nil, append(pathOf(c), "--"+f.Name+"=no!such")...)
			wantUsage(t, got, "--"+f.Name)
			wantUsage(t, got, `"no!such": must be `)
		})
	})
}

// oneTooMany are as many arguments as the command takes, and a surplus one.
func oneTooMany(c *cobra.Command) []string {
	args := []string{"surplus"}
	for len(args) < 5 && c.Args != nil && c.Args(c, args) == nil {
		args = append([]string{"x"}, args...)
	}
	return args
}

func TestWrongUsageNamesFlagAndValue(t *testing.T) {
	for args, want := range map[string]string{
		"help nosuch":      "help nosuch: there is no such command",
		"help dead nosuch": "help dead nosuch: there is no such command",
		"completion xsh":   `"xsh"`,
		"completion bah":   `did you mean "bash"?`,

		"dead list --limit 1.5":            `--limit "1.5": must be a whole number`,
		"dead list --status GONE":          `--status "GONE": must be SENT or READ`,
		"dead list --since soon":           `--since "soon": must be a time`,
		"dead list --since":                "--since",
		"status --watch=maybe":             `--watch "maybe": must be true or false`,
		"relay --replay --rate much":       `--rate "much": must be a number`,
		"relay --replay --rate NaN":        "--rate NaN",
		"relay --delivered":                "--delivered goes with --replay",
		"relay --delivered --since 1h":     "goes with --replay",
		"relay --replay --delivered":       "--since",
		"relay --replay --delivered --dry": "--dry",

		"relay --replay --delivered --until 1h":                  "needs --since",
		"relay --replay --delivered --since 1h --code 512":       "--code 512 does not go with --delivered",
		"relay --replay --delivered --since 1h --code 0":         "--code 0 does not go with --delivered",
		"relay --replay --delivered --since 1h --reason refused": "--reason refused does not go with --delivered",
		"relay --replay --delivered --since 1h --until 2h":       "--since",
		"relay --replay --delivered --since 1h --limit -1":       "--limit -1",
		"relay --replay --delivered --since 1h --rate -0.5":      "--rate -0.5",
		"init": "BIRDTAP_NATS_URL: is not set: init prepares a NATS cluster; the embedded queue needs no init",
	} {
		t.Run(args, func(t *testing.T) { wantUsage(t, birdtap(t, nil, strings.Fields(args)...), want) })
	}
}

// Every command says in one line and at length what it does, and every flag as well.
func TestHelpSaysSomethingAboutEverything(t *testing.T) {
	everyCommand(func(c *cobra.Command) {
		if c.Short == "" || c.Name() != "version" && c.Name() != "resume" && c.Long == "" {
			t.Errorf("%s: short help %q, long help %q", c.CommandPath(), c.Short, c.Long)
		}
		for line := range strings.Lines(c.Long) {
			if n := len([]rune(line)); n > 95 {
				t.Errorf("%s: a line of %d characters: %q", c.CommandPath(), n, line)
			}
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s --%s says nothing", c.CommandPath(), f.Name)
			}
		})
		got := birdtap(t, nil, append(pathOf(c), "--help")...)
		if got.code != exitDone || got.err != "" || !strings.Contains(got.out, "Usage:") {
			t.Errorf("%s --help: %+v", c.CommandPath(), got)
		}
	})
}

// offered is what the shell offers for a command line, and whether files come on top.
func offered(t *testing.T, args ...string) (values []string, files bool) {
	t.Helper()
	got := birdtap(t, nil, append([]string{cobra.ShellCompNoDescRequestCmd}, args...)...)
	if got.code != exitDone {
		t.Fatalf("%q: %+v", args, got)
	}
	lines := strings.Fields(got.out)
	directive, values := lines[len(lines)-1], lines[:len(lines)-1]
	_, begun, found := strings.Cut(args[len(args)-1], "=")
	if !found {
		begun = args[len(args)-1]
	}
	values = slices.DeleteFunc(values, func(v string) bool { return !strings.HasPrefix(v, begun) }) // as shells do
	return values, directive != fmt.Sprintf(":%d", cobra.ShellCompDirectiveNoFileComp)
}

func TestCompletion(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"relay --status ", "SENT READ"},
		{"relay --status=R", "READ"},
		{"relay --replay --reason http", "http_400 http_413"},
		{"dead list --reason ref", "refused"},
		{"dead purge --status S", "SENT"},
		{"dead export --reason 51", "512 513"},
		{"relay --since ", ""},
		{"dead list --identity ", ""},
		{"dead ", "export list purge"},
		{"dead list ", ""},
		{"status ", ""},
		{"serve ", ""},
		{"ini", "init"},
		{"init --j", "--json"},
		{"relay --deliv", "--delivered"},
		{"send --mode ", "auto batch csv realtime"},
		{"send --priority h", "high"},
		{"send --held --release ", ""},
	} {
		args := strings.Split(c.line, " ")
		values, files := offered(t, args...)
		slices.Sort(values)
		want := strings.Fields(c.want)
		slices.Sort(want)
		if !slices.Equal(values, want) || files {
			t.Errorf("%q: offers %q, files %v; want %q and no files", c.line, values, files, want)
		}
	}
}

// The scripts are in order as far as a shell that is there can tell.
func TestCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		t.Run(shell, func(t *testing.T) {
			got := birdtap(t, nil, "completion", shell)
			if got.code != exitDone || got.err != "" || !strings.Contains(got.out, "birdtap") {
				t.Fatalf("code %d, stderr %q, %d bytes", got.code, got.err, len(got.out))
			}
			path, err := exec.LookPath(shell)
			if err != nil {
				t.Logf("the syntax is not checked: there is no %s here", shell)
				return
			}
			check := exec.CommandContext(t.Context(), path, "-n")
			check.Stdin = strings.NewReader(got.out)
			if out, err := check.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
