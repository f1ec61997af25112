package check

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// machine is a systemd of its own, which systemd-nspawn boots in a second or two: it has
// this machine's programs, read-only, an empty root and a network to itself.
type machine struct {
	t      *testing.T
	leader string // id of its first process
	config string // its /etc/birdtap
}

// boot makes a machine as deploy/README.md says: binary, birdtap-do, unit and secret are in
// their places, and the unit starts with the machine.
func boot(t *testing.T) *machine {
	t.Helper()
	nspawn, err := exec.LookPath("systemd-nspawn")
	if err != nil || os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" && os.Geteuid() == 0 {
			t.Fatal(err)
		}
		fmt.Printf("NOT CHECKED: %s needs root and systemd-nspawn\n", t.Name())
		t.SkipNow()
	}
	binary, err := build()
	if err != nil {
		t.Fatal(err)
	}
	programs, units, config := t.TempDir(), t.TempDir(), t.TempDir()
	put := func(dir, name, from string, mode os.FileMode) {
		t.Helper()
		text, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, mode)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	put(programs, "birdtap", binary, 0o755)
	put(programs, "birdtap-do", "../systemd/birdtap-do", 0o755)
	put(units, "birdtap.service", "../systemd/birdtap.service", 0o644)
	m := &machine{t: t, config: config}
	m.write(config, "clevertap-passcode", "TEST")
	m.configure("")
	m.write(units, "test.target", "[Unit]\nWants=birdtap.service dbus.socket\n")

	args := []string{
		"--directory=/", "--volatile=yes", "--private-network", "--register=no", "--machine=birdtap-check-" + strconv.Itoa(os.Getpid()),
		"--bind-ro=" + programs + ":/usr/local/bin", "--bind-ro=" + units + ":/etc/systemd/system", "--bind-ro=" + config + ":/etc/birdtap",
	}
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		args = append(args, "--keep-unit") // here is no systemd to ask for a place
	}
	var console bytes.Buffer
	cmd := exec.Command(nspawn, append(args, "--boot", "systemd.unit=test.target", "systemd.firstboot=no")...)
	cmd.Stdout, cmd.Stderr = &console, &console
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it ends as it was told to
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt) // shuts it down
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("%s", console.Bytes())
		}
	})
	children := filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "task", strconv.Itoa(cmd.Process.Pid), "children")
	m.until("it has booted", func() bool {
		ids, err := os.ReadFile(children)
		m.leader = strings.TrimSpace(string(ids))
		return err == nil && m.leader != "" && m.ready()
	})
	return m
}

func (m *machine) write(dir, name, text string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// configure writes the environment file, with further lines.
func (m *machine) configure(further string) {
	m.t.Helper()
	m.write(m.config, "birdtap.env", `BIRDTAP_CLEVERTAP_ACCOUNT_ID=TEST
BIRDTAP_CLEVERTAP_URL=http://127.0.0.1:1
BIRDTAP_QUEUE_MAX_BYTES=64MiB
BIRDTAP_DEAD_MAX_BYTES=16MiB
BIRDTAP_KEEP_MAX_BYTES=16MiB
`+further)
}

// command prepares one that runs in the machine.
func (m *machine) command(command ...string) *exec.Cmd {
	cmd := exec.CommandContext(m.t.Context(), "nsenter", append([]string{"--target", m.leader, "--mount", "--uts", "--ipc", "--net", "--pid", "--"}, command...)...)
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/usr/sbin"}
	return cmd
}

func (m *machine) run(command ...string) (string, error) {
	out, err := m.command(command...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (m *machine) must(command ...string) string {
	m.t.Helper()
	out, err := m.run(command...)
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
	return out
}

func (m *machine) show(property string) string {
	m.t.Helper()
	return m.must("systemctl", "show", "--value", "--property="+property, "birdtap")
}

// ready asks /readyz.
func (m *machine) ready() bool {
	out, err := m.run("bash", "-c", `exec 3<>/dev/tcp/127.0.0.1/9090 && printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3 && cat <&3`)
	return err == nil && strings.HasPrefix(out, "HTTP/1.0 200 ")
}

func (m *machine) until(what string, ok func() bool) {
	m.t.Helper()
	deadline := time.After(time.Minute)
	for tick := time.Tick(50 * time.Millisecond); !ok(); {
		select {
		case <-tick:
		case <-deadline:
			out, _ := m.run("journalctl", "--no-pager", "--lines=20")
			m.t.Fatalf("waited in vain until %s; the journal:\n%s", what, out)
		}
	}
}

// The unit as it is shipped, under a real systemd: birdtap starts, comes again after a kill,
// stops within its time, and stays down when its configuration is wrong.
func TestUnitUnderSystemd(t *testing.T) {
	t.Parallel()
	m := boot(t)

	if out := m.must("birdtap-do", "status"); !strings.Contains(out, "holds term 1") {
		t.Errorf("birdtap-do status: %s", out)
	}
	if out, err := m.run("birdtap-do", "nonsense"); err == nil {
		t.Errorf("birdtap-do nonsense: %s", out)
	}

	// What a command writes beside its file has a place: asked by test, run as birdtap is.
	m.must("bash", "-c", `sed 's:/usr/local/bin/birdtap :/usr/bin/test :' /usr/local/bin/birdtap-do > /run/test-do
		echo user_id > /var/lib/birdtap-files/users.csv && chmod 644 /var/lib/birdtap-files/users.csv`)
	for _, question := range []string{"-r /var/lib/birdtap-files/users.csv", "-w /var/lib/birdtap-files", "! -w /srv"} {
		m.must(append([]string{"sh", "/run/test-do"}, strings.Fields(question)...)...)
	}

	first := m.show("MainPID")
	m.must("systemctl", "kill", "--signal=KILL", "birdtap")
	m.until("it has come again", func() bool { return m.show("MainPID") != first && m.ready() })
	if n := m.show("NRestarts"); n != "1" {
		t.Errorf("started again %s times", n)
	}

	// A command lets another one run beside it, and broken off it does not go on by itself.
	watch := m.command("birdtap-do", "status", "--watch")
	watch.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // as a terminal's
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	running := func() bool { return m.must("systemctl", "list-units", "--no-legend", "birdtap-do*") != "" }
	m.until("the command runs", running)
	m.must("birdtap-do", "status")
	if err := syscall.Kill(-watch.Process.Pid, syscall.SIGINT); err != nil {
		t.Error(err)
	}
	_ = watch.Wait()
	m.until("the command has ended", func() bool { return !running() })

	m.must("systemctl", "stop", "birdtap")
	if result, code := m.show("Result"), m.show("ExecMainStatus"); result != "success" || code != "0" {
		t.Errorf("stopped with %s, code %s", result, code)
	}
	journal := m.must("journalctl", "--no-pager", "--unit=birdtap")
	for _, want := range []string{`"msg":"queue open"`, `"msg":"stopping"`, "status=9/KILL"} {
		if !strings.Contains(journal, want) {
			t.Errorf("the journal has no %s:\n%s", want, journal)
		}
	}

	m.configure("BIRDTAP_HTP_ADDR=x\n")
	_, _ = m.run("systemctl", "start", "birdtap") // it may still be right when systemd says so
	m.until("it has given up", func() bool { return m.show("ActiveState") == "failed" })
	if code, n := m.show("ExecMainStatus"), m.show("NRestarts"); code != "2" || n != "0" {
		t.Errorf("code %s, started again %s times", code, n)
	}
}
