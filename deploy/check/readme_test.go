package check

import (
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

func readReadme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// printed is what a command of README.md writes into a file by <<END.
func printed(t *testing.T, readme, file string) string {
	t.Helper()
	_, rest, _ := strings.Cut(readme, "cat > "+file+" <<END\n")
	text, _, found := strings.Cut(rest, "\nEND\n")
	if !found {
		t.Fatalf("README.md writes no %s", file)
	}
	return text
}

// The values that README.md prints are a chart that installs: each Secret in it is made by
// a command above, with the keys that its pods look for, out of files that a command has made.
func TestValuesOfTheReadme(t *testing.T) {
	readme := readReadme(t)
	var values map[string]any
	if err := yaml.Unmarshal([]byte(printed(t, readme, "my-values.yaml")), &values); err != nil {
		t.Fatal(err)
	}
	text, err := render(t, values)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate(t, text); err != nil {
		t.Error(err)
	}
	checkManifests(t, parse(t, text))
	for _, want := range []string{"nginx.ingress.kubernetes.io/proxy-body-size: 5m", "release: kube-prometheus-stack",
		"podTargetLabels: [app.kubernetes.io/component]"} { // by which alerts.yaml knows pods with a queue each
		if !strings.Contains(text, want) {
			t.Errorf("no %q", want)
		}
	}

	steps, _, _ := strings.Cut(readme, "helm -n birdtap install")
	steps = strings.ReplaceAll(steps, "\\\n", " ")
	made := map[string][]string{} // the keys of each Secret
	for _, match := range regexp.MustCompile(`create secret (generic|tls) (\S+)(.*)`).FindAllStringSubmatch(steps, -1) {
		var keys []string
		for _, from := range regexp.MustCompile(`--from-(file|literal)=([^=]+)=(\S+)`).FindAllStringSubmatch(match[3], -1) {
			keys = append(keys, from[2])
			if from[1] == "file" && path.Base(path.Dir(from[3])) != "nats" && !strings.Contains(steps, "> "+from[3]+" ") && !strings.Contains(steps, "> "+from[3]+"\n") {
				t.Errorf("no step makes %s", from[3])
			}
		}
		if match[1] == "tls" {
			keys = []string{"tls.crt", "tls.key"}
		}
		for _, role := range []string{"ingest", "relay", "sender", "operator", "admin"} {
			made[strings.ReplaceAll(match[2], "$role", role)] = keys
		}
	}
	used := map[string]bool{}
	for _, match := range regexp.MustCompile(`secretName: ([\w-]+)`).FindAllStringSubmatch(text, -1) {
		used[match[1]] = true
		if made[match[1]] == nil {
			t.Errorf("no step makes the Secret %s", match[1])
		}
	}
	for _, match := range regexp.MustCompile(`name: ([\w-]+)\s+items: \[\{key: ([\w.-]+),`).FindAllStringSubmatch(text, -1) {
		used[match[1]] = true
		if !slices.Contains(made[match[1]], match[2]) {
			t.Errorf("no step makes the Secret %s with the key %s", match[1], match[2])
		}
	}
	if len(used) < 10 {
		t.Errorf("only the Secrets %v", used)
	}
}

// What is written into the checkout on the way there lies where git and docker do not look.
func TestSecretsOfTheReadmeAreIgnored(t *testing.T) {
	for _, file := range []string{"../../.gitignore", "../../.dockerignore"} {
		text, err := os.ReadFile(file)
		if err != nil || !regexp.MustCompile(`(?m)^/?deploy/secrets/?$`).Match(text) {
			t.Errorf("%s: deploy/secrets is not in it, %v", file, err)
		}
	}
	for _, match := range regexp.MustCompile(`(?:/certificates|printf \S+ \S+ >) ([a-z][\w./-]*)`).FindAllStringSubmatch(readReadme(t), -1) {
		if !strings.HasPrefix(match[1], "deploy/secrets/") && !strings.HasPrefix(match[1], "secrets/") {
			t.Errorf("a step writes %s", match[1])
		}
	}
}

// Every NATS address that is printed is one that birdtap takes.
func TestAddressesOfTheReadmes(t *testing.T) {
	found := 0
	for _, file := range []string{"../README.md", "../../README.md"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, address := range regexp.MustCompile("(?:nats|tls)://[^\\s\"'`]+").FindAllString(string(text), -1) {
			found++
			checkEnvironment(t, file, map[string]string{"BIRDTAP_NATS_URL": address})
		}
	}
	if found < 3 {
		t.Errorf("only %d addresses", found)
	}
}
