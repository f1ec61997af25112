package check

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const (
	chartDir   = "../helm/birdtap"
	kubernetes = "1.30.0" // the oldest that the chart says it is for
)

// render is `helm template`: the chart's manifests.
func render(t *testing.T, values map[string]any) (string, error) {
	t.Helper()
	given, err := yaml.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	var words bytes.Buffer
	cmd := tool(t, "helm", "template", "birdtap", chartDir, "--namespace", "test", "--kube-version", kubernetes, "--values", "-")
	cmd.Stdin, cmd.Stderr = bytes.NewReader(given), &words
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, &words)
	}
	return string(out), nil
}

func valuesFiles(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/values/*.yaml")
	if err != nil || len(files) < 4 {
		t.Fatalf("%d files with values, %v", len(files), err)
	}
	return files
}

func readValues(t *testing.T, file string) map[string]any {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var values map[string]any
	if err := yaml.Unmarshal(text, &values); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return values
}

// validate is kubeconform, with the schemas that are kept beside the chart, as .ci/chart
// calls it.
func validate(t *testing.T, text string) error {
	t.Helper()
	cmd := tool(t, "kubeconform", "-strict", "-kubernetes-version", kubernetes,
		"-schema-location", "../helm/schemas/{{ .ResourceKind }}_{{ .ResourceAPIVersion }}.json")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// What .ci/chart has linted, rendered and validated is also what birdtap wants.
func TestChartRendersWhatBirdtapNeeds(t *testing.T) {
	for _, file := range valuesFiles(t) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			text, err := render(t, readValues(t, file))
			if err != nil {
				t.Fatal(err)
			}
			checkManifests(t, parse(t, text))
		})
	}
}

// The schemas are worth something only if they find what is wrong: a field that
// Kubernetes does not know, and a kind without a schema.
func TestSchemasFindMistakes(t *testing.T) {
	const good = "apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: a}\nspec: {maxUnavailable: 1, selector: {matchLabels: {a: b}}}\n"
	if err := validate(t, good); err != nil {
		t.Error(err)
	}
	for what, text := range map[string]string{
		"unknown field":     strings.Replace(good, "maxUnavailable", "maxUnavailabel", 1),
		"wrong type":        strings.Replace(good, "maxUnavailable: 1", "maxUnavailable: [1]", 1),
		"unknown kind":      strings.Replace(good, "PodDisruptionBudget", "PodDisruptionBudgets", 1),
		"deep down":         "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {selector: {}, template: {spec: {containers: [{name: a, readinesProbe: {}}]}}}\n",
		"required":          "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {template: {spec: {containers: [{name: a}]}}}\n",
		"of ServiceMonitor": "apiVersion: monitoring.coreos.com/v1\nkind: ServiceMonitor\nmetadata: {name: a}\nspec: {selector: {}, endpoints: [{prot: ops}]}\n",
	} {
		if validate(t, text) == nil {
			t.Errorf("%s is not found", what)
		}
	}
}

// What the values cannot mean is refused before anything is installed.
func TestChartRefuses(t *testing.T) {
	set := func(file, path string, value any) map[string]any {
		values := readValues(t, "testdata/values/"+file)
		at := values
		names := strings.Split(path, ".")
		for _, name := range names[:len(names)-1] {
			next, _ := at[name].(map[string]any)
			if next == nil {
				next = map[string]any{}
			}
			next = maps.Clone(next)
			at[name], at = next, next
		}
		at[names[len(names)-1]] = value
		return values
	}
	for what, tt := range map[string]struct {
		values map[string]any
		says   string
	}{
		"no account":             {set("cluster.yaml", "clevertap.accountId", ""), "accountId"},
		"no passcode":            {set("cluster.yaml", "clevertap.existingSecret", ""), "existingSecret"},
		"no token":               {set("embedded.yaml", "ops.existingSecret", ""), "existingSecret"},
		"no NATS":                {set("cluster.yaml", "nats.url", ""), "nats.url"},
		"password in the URL":    {set("cluster.yaml", "nats.url", "tls://user:pw@nats:4222"), "url"},
		"unknown value":          {set("cluster.yaml", "relais", 2), "relais"},
		"unknown mode":           {set("cluster.yaml", "mode", "both"), "mode"},
		"memory without unit":    {set("cluster.yaml", "relay.resources", map[string]any{"limits": map[string]any{"memory": "256"}}), "memory"},
		"no limit of memory":     {set("cluster.yaml", "relay.resources", map[string]any{"limits": map[string]any{"memory": nil}}), "memory"},
		"secret in config":       {set("cluster.yaml", "config.CLEVERTAP_PASSCODE", "x"), "CLEVERTAP_PASSCODE"},
		"prefix in config":       {set("cluster.yaml", "config.BIRDTAP_LOG_LEVEL", "x"), "BIRDTAP_LOG_LEVEL"},
		"too many calls":         {set("embedded.yaml", "embedded.replicas", 3), "15 calls"},
		"sender without an app":  {set("everything.yaml", "sender.appId", ""), "sender.appId"},
		"sender, half":           {set("everything.yaml", "sender.tokensSecret", ""), "sender.tokensSecret"},
		"the other half":         {set("embedded-everything.yaml", "sender.notificationsSecret", ""), "sender.notificationsSecret"},
		"two embedded senders":   {set("embedded-everything.yaml", "embedded.replicas", 2), "made again"},
		"sender's in config":     {set("everything.yaml", "config.GATHER_WAIT", "1s"), "GATHER_WAIT"},
		"region and URL":         {set("embedded-everything.yaml", "clevertap.region", "in1"), "not both"},
		"ingress without a host": {set("cluster.yaml", "ingress.enabled", true), "ingress.host"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			if _, err := render(t, tt.values); err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, want an error with %q", err, tt.says)
			}
		})
	}
}

// Whoever sends notifications has the sender's secrets, and nobody else.
func TestChartGivesTheSenderItsSecrets(t *testing.T) {
	for file, senders := range map[string][]string{
		"cluster.yaml": nil, "embedded.yaml": nil, "everything.yaml": {"sender"}, "embedded-everything.yaml": {"serve"},
	} {
		text, err := render(t, readValues(t, "testdata/values/"+file))
		if err != nil {
			t.Fatal(err)
		}
		var found []string
		for _, m := range parse(t, text) {
			for _, c := range m.Spec.Template.Spec.Containers {
				for _, v := range c.Env {
					if v.Name == "BIRDTAP_SENDER_TOKENS_FILE" {
						found = append(found, c.Args[0])
					}
				}
			}
		}
		if !slices.Equal(found, senders) {
			t.Errorf("%s: %v have the tokens of webhooks, want %v", file, found, senders)
		}
	}
}

// A role's own tag changes that role, and no other: its pods stay as they are.
func TestChartGivesARoleATagOfItsOwn(t *testing.T) {
	pods := func(own map[string]any) map[string]string {
		values := readValues(t, "testdata/values/everything.yaml") // where all are pinned by digest
		values["relay"] = own
		text, err := render(t, values)
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]string{}
		for _, part := range strings.Split(text, "\n---\n") {
			for _, m := range parse(t, part) {
				if len(m.Spec.Template.Spec.Containers) > 0 {
					found[m.Metadata.Name] = part
				}
			}
		}
		return found
	}
	before, after := pods(nil), pods(map[string]any{"image": map[string]any{"tag": "9.9"}})
	if len(before) != 4 {
		t.Fatalf("%d kinds of pods", len(before))
	}
	for name := range before {
		own := strings.Contains(after[name], "image: registry.example.com/birdtap:9.9\n")
		if is := name == "birdtap-relay"; own != is || (before[name] == after[name]) == is {
			t.Errorf("%s: %s", name, after[name])
		}
	}
}

type probe struct {
	HTTPGet struct{ Path, Port string } `yaml:"httpGet"`
}

type container struct {
	Image string
	Args  []string
	Env   []struct {
		Name, Value string
		ValueFrom   any `yaml:"valueFrom"`
	}
	Ports []struct {
		Name          string
		ContainerPort int `yaml:"containerPort"`
	}
	Live      probe `yaml:"livenessProbe"`
	Ready     probe `yaml:"readinessProbe"`
	Lifecycle struct {
		PreStop struct{ Sleep struct{ Seconds int } } `yaml:"preStop"`
	}
	Resources       struct{ Limits map[string]string }
	SecurityContext struct {
		AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
		ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
		Capabilities             struct{ Drop []string }
	} `yaml:"securityContext"`
	Mounts []mount `yaml:"volumeMounts"`
}

type mount struct {
	Name string
	Path string `yaml:"mountPath"`
}

type podSpec struct {
	Automount       *bool `yaml:"automountServiceAccountToken"`
	ServiceLinks    *bool `yaml:"enableServiceLinks"`
	Grace           int   `yaml:"terminationGracePeriodSeconds"`
	SecurityContext struct {
		RunAsNonRoot   bool                  `yaml:"runAsNonRoot"`
		RunAsUser      int                   `yaml:"runAsUser"`
		SeccompProfile struct{ Type string } `yaml:"seccompProfile"`
	} `yaml:"securityContext"`
	Spread     []any `yaml:"topologySpreadConstraints"`
	Containers []container
	Volumes    []struct{ Name string }
}

type manifest struct {
	Kind     string
	Metadata struct{ Name string }
	Spec     struct {
		Template struct {
			Metadata struct{ Labels map[string]string }
			Spec     podSpec
		}
		PodSelector struct {
			MatchLabels map[string]string `yaml:"matchLabels"`
		} `yaml:"podSelector"`
		Selector             any
		VolumeClaimTemplates []struct{ Metadata struct{ Name string } } `yaml:"volumeClaimTemplates"`
	}
}

func parse(t *testing.T, text string) []manifest {
	t.Helper()
	var all []manifest
	d := yaml.NewDecoder(strings.NewReader(text))
	for {
		var m manifest
		err := d.Decode(&m)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if m.Kind != "" {
			all = append(all, m)
		}
	}
}

// checkManifests holds what no schema can say.
func checkManifests(t *testing.T, all []manifest) {
	t.Helper()
	count := map[string]int{}
	for _, m := range all {
		count[m.Kind]++
	}
	for _, m := range all {
		if !slices.Contains([]string{"Deployment", "StatefulSet", "Job"}, m.Kind) {
			continue
		}
		role := m.Spec.Template.Metadata.Labels["app.kubernetes.io/component"]
		checkPod(t, m, role)
		covered := 0
		for _, p := range all {
			if p.Kind == "NetworkPolicy" && p.Spec.PodSelector.MatchLabels["app.kubernetes.io/component"] == role {
				covered++
			}
		}
		if count["NetworkPolicy"] > 0 && covered != 1 {
			t.Errorf("%d network policies for %s, want 1", covered, role)
		}
	}
	if daemons := count["Deployment"] + count["StatefulSet"]; count["PodDisruptionBudget"] != daemons {
		t.Errorf("%d disruption budgets for %d daemons", count["PodDisruptionBudget"], daemons)
	}
	if count["Secret"]+count["Role"]+count["ClusterRole"]+count["RoleBinding"] > 0 {
		t.Errorf("the chart makes secrets or rights: %v", count)
	}
}

func checkPod(t *testing.T, m manifest, role string) {
	t.Helper()
	p := m.Spec.Template.Spec
	is := func(ok bool, what string) {
		t.Helper()
		if !ok {
			t.Errorf("%s: %s", m.Metadata.Name, what)
		}
	}
	isFalse := func(b *bool) bool { return b != nil && !*b }
	is(isFalse(p.Automount), "has a service account's token")
	is(isFalse(p.ServiceLinks), "services would set variables that birdtap refuses")
	is(p.SecurityContext.RunAsNonRoot && p.SecurityContext.RunAsUser == 65532, "runs as root")
	is(p.SecurityContext.SeccompProfile.Type == "RuntimeDefault", "no seccomp profile")
	if len(p.Containers) != 1 {
		t.Fatalf("%s has %d containers", m.Metadata.Name, len(p.Containers))
	}
	c := p.Containers[0]
	is(isFalse(c.SecurityContext.AllowPrivilegeEscalation) && c.SecurityContext.ReadOnlyRootFilesystem, "may gain rights, or write its root")
	is(slices.Equal(c.SecurityContext.Capabilities.Drop, []string{"ALL"}), "keeps capabilities")
	is(slices.Equal(c.Args, []string{role}), "is told to be something else")
	is(!strings.HasSuffix(c.Image, ":latest") && strings.ContainsAny(c.Image, ":@"), "its image is not pinned")

	volumes := map[string]bool{}
	for _, v := range p.Volumes {
		volumes[v.Name] = true
	}
	for _, v := range m.Spec.VolumeClaimTemplates {
		volumes[v.Metadata.Name] = true
	}
	is(role == "init" || slices.Contains(c.Mounts, mount{"tmp", "/tmp"}), "has no room for temporary files")
	for _, mount := range c.Mounts {
		is(volumes[mount.Name], "mounts "+mount.Name+", which is no volume")
	}
	env := map[string]string{}
	for _, v := range c.Env {
		_, twice := env[v.Name]
		is(!twice, v.Name+" is set twice")
		is(v.ValueFrom == nil, v.Name+" brings a secret into the environment")
		env[v.Name] = v.Value
		if strings.HasSuffix(v.Name, "_FILE") || v.Name == "BIRDTAP_DATA_DIR" {
			is(slices.ContainsFunc(c.Mounts, func(m mount) bool { return strings.HasPrefix(v.Value, m.Path+"/") }), v.Name+" lies on no volume")
		}
	}
	checkEnvironment(t, m.Metadata.Name, env)
	if role == "init" {
		return
	}

	ports := map[string]int{}
	for _, port := range c.Ports {
		ports[port.Name] = port.ContainerPort
	}
	doors := role != "relay"
	is(env["BIRDTAP_OPS_ADDR"] == ":"+strconv.Itoa(ports["ops"]), "its ops port is another than the container's")
	is(!doors || env["BIRDTAP_HTTP_ADDR"] == ":"+strconv.Itoa(ports["http"]), "its doors' port is another than the container's")
	is(c.Live.HTTPGet.Path == "/healthz" && c.Live.HTTPGet.Port == "ops", "liveness")
	is(c.Ready.HTTPGet.Path == "/readyz" && c.Ready.HTTPGet.Port == "ops", "readiness")
	is(p.Grace == 45 && (c.Lifecycle.PreStop.Sleep.Seconds == 10) == doors, "stops too early")
	is(len(p.Spread) == 2, "is not spread")

	limit := c.Resources.Limits["memory"]
	n, err := strconv.Atoi(strings.TrimRight(limit, "MGi"))
	if strings.HasSuffix(limit, "Gi") {
		n *= 1024
	}
	is(err == nil && env["GOMEMLIMIT"] == strconv.Itoa(n*85/100)+"MiB", "GOMEMLIMIT "+env["GOMEMLIMIT"]+" beside a limit of "+limit)
}
