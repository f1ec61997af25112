package check

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

type composeFile struct {
	Services map[string]struct {
		Image           string
		User            string
		ReadOnly        bool     `yaml:"read_only"`
		CapDrop         []string `yaml:"cap_drop"`
		SecurityOpt     []string `yaml:"security_opt"`
		Command         []string
		Environment     map[string]string
		StopGracePeriod string `yaml:"stop_grace_period"`
		Secrets         []struct{ Source, Target string }
		Ports           []any
		Volumes         []any
	}
	Secrets map[string]struct{ File string }
}

// composed is the compose file as docker-compose understands it, with further lines in .env.
func composed(t *testing.T, env ...string) composeFile {
	t.Helper()
	compose, err := exec.LookPath("docker-compose")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("NOT CHECKED: there is no docker-compose to read compose.yaml")
	}
	cmd := exec.Command(compose, "--file", "../compose.yaml", "--profile", "operator", "--profile", "alerts", "config")
	cmd.Env = append(os.Environ(), append([]string{"CLEVERTAP_ACCOUNT_ID=TEST-ACCOUNT", "SENDBIRD_APP_ID=TEST-APP"}, env...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("docker-compose config: %v", err)
	}
	var c composeFile
	if err := yaml.Unmarshal(out, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCompose(t *testing.T) {
	c := composed(t)
	config, err := os.ReadFile("../nats-server.conf")
	if err != nil {
		t.Fatal(err)
	}
	prometheus, err := os.ReadFile("../compose/prometheus.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := c.Services["alertmanager"]; !ok || !strings.Contains(string(prometheus), `"alertmanager:9093"`) {
		t.Error("Prometheus has no Alertmanager to tell")
	}
	roles := map[string]int{}
	for name, s := range c.Services {
		if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s may do more than it has to", name)
		}
		if _, tag, ok := strings.Cut(s.Image, ":"); !ok || tag == "latest" {
			t.Errorf("%s: the image %s is not pinned", name, s.Image)
		}
		switch {
		case strings.HasPrefix(s.Image, "nats:"):
			roles["nats"]++
			if s.Environment["NATS_SERVER_NAME"] != name || !strings.Contains(string(config), `"tls://`+name+`:6222"`) {
				t.Errorf("%s has another name in nats-server.conf", name)
			}
			continue
		case !strings.HasPrefix(s.Image, "birdtap"):
			continue
		}
		role := s.Command[0]
		roles[role]++
		if s.User != "65532:65532" || s.StopGracePeriod != "45s" {
			t.Errorf("%s runs as %q, and may take %s to stop", name, s.User, s.StopGracePeriod)
		}
		mounted := map[string]bool{}
		for _, secret := range s.Secrets {
			target := secret.Target
			if target == "" {
				target = secret.Source
			}
			mounted["/run/secrets/"+target] = true
			if c.Secrets[secret.Source].File == "" {
				t.Errorf("%s: there is no secret %s", name, secret.Source)
			}
		}
		for variable, value := range s.Environment {
			if strings.HasSuffix(variable, "_FILE") && !mounted[value] {
				t.Errorf("%s: %s names %s, which is not mounted", name, variable, value)
			}
		}
		checkEnvironment(t, name, s.Environment)
		if slices.Contains([]string{"ingest", "relay", "sender"}, role) {
			if s.Environment["BIRDTAP_OPS_ADDR"] != ":9090" || !strings.Contains(string(prometheus), `"`+name+`:9090"`) {
				t.Errorf("Prometheus does not ask %s", name)
			}
		}
	}
	for role, want := range map[string]int{"nats": 3, "ingest": 2, "relay": 2, "sender": 2, "init": 1} {
		if roles[role] != want {
			t.Errorf("%d of %s, want %d", roles[role], role, want)
		}
	}
}

// Every variable of birdtap can be set in .env, but for those that the file decides on
// itself. One that is not passed on would be without effect, and nobody would be told.
func TestComposePassesVariablesOn(t *testing.T) {
	decided := regexp.MustCompile(`^BIRDTAP_(DATA_DIR|HTTP_ADDR|OPS_ADDR|NATS_URL|REPLICAS|STREAM_PREFIX|SYNC|LOG_FORMAT` +
		`|SENDBIRD_(CHAT|DESK)_URL` + // of commands that need no queue
		`|.*_FILE|.*_(TOKEN|TOKENS|PASSCODE|KEYS))$`)
	var env []string
	want := map[string]bool{}
	for _, variable := range variables(t) {
		if !decided.MatchString(variable) {
			want[variable] = true
			env = append(env, strings.TrimPrefix(variable, "BIRDTAP_")+"=of-env")
		}
	}
	for _, s := range composed(t, env...).Services {
		for variable, value := range s.Environment {
			if value == "of-env" {
				delete(want, variable)
			}
		}
	}
	if len(want) > 0 {
		t.Errorf("no service gets %v from .env", slices.Sorted(maps.Keys(want)))
	}
}

// What is mounted from this directory is there, but for the secrets.
func TestComposeMountsWhatIsThere(t *testing.T) {
	text, err := os.ReadFile("../compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, match := range regexp.MustCompile(`- (\./[^:]+):`).FindAllStringSubmatch(string(text), -1) {
		if strings.HasPrefix(match[1], "./secrets/") {
			continue
		}
		if _, err := os.Stat(filepath.Join("..", match[1])); err != nil {
			t.Error(err)
		}
	}
}

// The proxies speak to the ports that birdtap listens on, and let through what it takes.
func TestProxiesAndImageUseThePortsOfBirdtap(t *testing.T) {
	for file, wants := range map[string][]string{
		"../proxy/Caddyfile":     {"ingest-1:8080 ingest-2:8080", "sender-1:8080 sender-2:8080", "health_port 9090", "health_uri /readyz", "max_size 5MiB", "versions 1.1"},
		"../proxy/nginx.conf":    {"server 127.0.0.1:8080", "location /clevertap/notifications/ {", "client_max_body_size    5m", "proxy_http_version 1.1"},
		"../Dockerfile":          {"EXPOSE 8080 9090", "USER 65532:65532", `ENTRYPOINT ["/birdtap"]`},
		"../Dockerfile.prebuilt": {"EXPOSE 8080 9090", "USER 65532:65532", `ENTRYPOINT ["/birdtap"]`},
	} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range wants {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s: no %q", file, want)
			}
		}
	}
}

// The Dockerfile is built from the repository: each of its stages copies what is there. The
// older builder makes them all, also those that nobody asked for.
func TestDockerfileCopiesWhatIsThere(t *testing.T) {
	text, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	copies := regexp.MustCompile(`(?m)^COPY (?:--chown=\S+ )?([^-].*) \S+$`).FindAllStringSubmatch(string(text), -1)
	if len(copies) < 2 {
		t.Fatalf("only %q", copies)
	}
	for _, match := range copies {
		for _, source := range strings.Fields(match[1]) {
			if _, err := os.Stat(filepath.Join(root, source)); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestSystemdUnit(t *testing.T) {
	text, err := os.ReadFile("../systemd/birdtap.service")
	if err != nil {
		t.Fatal(err)
	}
	// What systemd puts in the place of its specifiers.
	unit := strings.NewReplacer("%S", "/var/lib", "%d", "/run/credentials/birdtap.service").Replace(string(text))
	env := map[string]string{"BIRDTAP_CLEVERTAP_ACCOUNT_ID": "TEST-ACCOUNT"} // of the environment file
	for line := range strings.Lines(unit) {
		if setting, ok := strings.CutPrefix(strings.TrimSpace(line), "Environment="); ok {
			name, value, _ := strings.Cut(setting, "=")
			env[name] = value
		}
	}
	if len(env) < 6 {
		t.Errorf("only %v", env)
	}
	checkEnvironment(t, "birdtap.service", env)

	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("NOT CHECKED: there is no systemd-analyze")
	}
	copied := filepath.Join(t.TempDir(), "birdtap.service")
	here := strings.ReplaceAll(string(text), "/usr/local/bin/birdtap serve", "/bin/true") // birdtap is not installed here
	if err := os.WriteFile(copied, []byte(here), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyze, "verify", "--man=no", copied).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	// 0 is nothing at all, 10 all that root may.
	if out, err := exec.Command(analyze, "security", "--offline=yes", "--threshold=15", "--no-pager", copied).CombinedOutput(); err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
}
