//go:build integration

package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/testcontainers/testcontainers-go"
	tclog "github.com/testcontainers/testcontainers-go/log"
	"github.com/testcontainers/testcontainers-go/network"
	"github.com/testcontainers/testcontainers-go/wait"

	"github.com/birdtap/birdtap/integration/history"
)

// Receipts go into one container and come out of another, all of them made from scratch
// around a static binary: nats-server, an ingest, two relays, and the fake CleverTap.
// Half way the relay that uploads is killed.
func TestJourneyInContainers(t *testing.T) {
	t.Parallel()
	const run, total = "containers", 6000
	d := newDocker(t)
	seed := seedOf(t)
	s := startSystem(t, d, run)

	client := history.NewClient(history.Options{
		Run: run, Seed: seed, Doors: []string{s.door}, AccountID: accountID, Passcode: passcode,
		Clients: 16, UsersPerClient: 40, Rate: 500, Total: total,
		Refuse: 0.005, Again: 0.005, AtDoor: 0.005, Several: 0.02, Broken: 0.005,
		Journal: journal(t),
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		client.Run(t.Context())
	}()
	moreOK(t, client.Log(), total/2, time.Minute)
	killed, heir := s.active()
	began := time.Now()
	d.kill(s.relays[killed])
	before := s.counts().Calls[heir]
	eventually(t, handOver, "the other relay uploads", func() bool { return s.counts().Calls[heir] > before })
	t.Logf("the relay of %s killed: the other uploads after %.2f s", killed, time.Since(began).Seconds())
	<-done

	a := s.at.drained(2 * time.Minute)
	letters := s.at.letters()
	received, counts := s.received(run), s.counts()
	a.addsUp(t, client.Log().Counts(), received.Taken(), letters)
	report := history.Check(history.Evidence{
		Log: client.Log(), Received: received, Letters: letters, MaxInFlight: counts.MaxInFlight,
		Seed: seed, Commit: commitUnderway(), Faults: []string{"docker kill of the active relay"},
	})
	report.MaxRecords = counts.MaxRecords
	conclude(t, report, history.Limits{Duplicates: maxInFlight * maxRecords, InFlight: accountCalls, Records: maxRecords})
}

// docker is the engine. Whatever is made with it goes away with the test.
type docker struct {
	t        *testing.T
	provider *testcontainers.DockerProvider
	net      *testcontainers.DockerNetwork
}

// newDocker skips the test where no engine answers, and fails it in CI: there it must
// not pass unseen.
func newDocker(t *testing.T) *docker {
	t.Helper()
	provider, err := dockerProvider(t.Context())
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no Docker engine answers: %v", err)
		}
		fmt.Println("NOT CHECKED: no Docker engine answers, so nothing ran in containers")
		t.Skipf("no Docker engine answers: %v", err)
	}
	t.Cleanup(func() { provider.Close() })
	d := &docker{t: t, provider: provider}
	d.net = d.network()
	return d
}

// of is the same for a test within the test.
func (d docker) of(t *testing.T) *docker {
	d.t = t
	return &d
}

// network makes one more network.
func (d *docker) network() *testcontainers.DockerNetwork {
	d.t.Helper()
	net, err := network.New(d.t.Context())
	testcontainers.CleanupNetwork(d.t, net)
	if err != nil {
		d.t.Fatalf("make a network: %v", err)
	}
	return net
}

// prepareContainers is for TestMain: it is about the library, not about a test.
func prepareContainers() error {
	// The cleanup of the tests is enough; a container that does it would have to be
	// downloaded. And ports are looked for where the engine publishes them.
	for name, value := range map[string]string{"TESTCONTAINERS_RYUK_DISABLED": "true", "TESTCONTAINERS_HOST_OVERRIDE": "127.0.0.1"} {
		if _, given := os.LookupEnv(name); given {
			continue
		}
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	tclog.SetDefault(tclog.NewNoopLogger()) // it would go on talking after a test's result
	return nil
}

// dockerProvider connects to the engine. Where there is none the library may panic.
func dockerProvider(ctx context.Context) (p *testcontainers.DockerProvider, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	if p, err = testcontainers.NewDockerProvider(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return p, p.Health(ctx)
}

// imagesOneByOne, since tests build the same images: none may take away a step that
// another one's build is just about to go on from.
var imagesOneByOne sync.Mutex

// image builds an image with one static binary, and further files beside it.
func (d *docker) image(binary string, files map[string]string) string {
	d.t.Helper()
	dir, name := d.t.TempDir(), filepath.Base(binary)
	program, err := os.ReadFile(binary)
	if err != nil {
		d.t.Fatal(err)
	}
	all := map[string]string{
		"Dockerfile": fmt.Sprintf("FROM scratch\nCOPY . /\nENTRYPOINT [\"/%s\"]\n", name),
		// COPY takes the whole context, and this is no part of the image.
		".dockerignore": "Dockerfile\n.dockerignore\n",
		name:            string(program),
	}
	maps.Copy(all, files)
	for file, text := range all {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o755); err != nil {
			d.t.Fatal(err)
		}
	}
	imagesOneByOne.Lock()
	defer imagesOneByOne.Unlock()
	var steps bytes.Buffer
	tag, err := d.provider.BuildImage(d.t.Context(), &testcontainers.ContainerRequest{
		FromDockerfile: testcontainers.FromDockerfile{Context: dir, Repo: "birdtap-integration-" + name, BuildLogWriter: &steps},
	})
	if err != nil {
		d.t.Fatalf("build an image for %s: %v\n%s", name, err, steps.Bytes())
	}
	d.t.Cleanup(func() { d.removeImage(tag) })
	return tag
}

// removeImage removes an image and the steps that it was built in, which would
// otherwise stay behind without a name.
func (d *docker) removeImage(tag string) {
	imagesOneByOne.Lock()
	defer imagesOneByOne.Unlock()
	client := d.provider.Client()
	built, err := client.ImageHistory(context.Background(), tag)
	if err != nil {
		d.t.Errorf("look up image %s: %v", tag, err)
	}
	if err := plain(context.Background(), client.ImageRemove, tag); err != nil {
		d.t.Errorf("remove image %s: %v", tag, err)
	}
	for _, step := range built.Items[min(1, len(built.Items)):] { // the first is the image itself, which may have another name, too
		// The engine may have removed it with the last, or need it for another image.
		_ = plain(context.Background(), client.ImageRemove, step.ID)
	}
}

// kill ends a container as a crash would.
func (d *docker) kill(c *testcontainers.DockerContainer) {
	d.t.Helper()
	if err := plain(d.t.Context(), d.provider.Client().ContainerKill, c.GetContainerID()); err != nil {
		d.t.Fatalf("kill a container: %v", err)
	}
}

// plain calls a method of Docker's client without any options. Their types are of a
// module that only the library knows, and need not be named this way.
func plain[Options, Result any](ctx context.Context, method func(context.Context, string, Options) (Result, error), of string) error {
	var none Options
	_, err := method(ctx, of, none)
	return err
}

// run starts a container that has a name in the network, or several.
func (d *docker) run(image string, names []string, options ...testcontainers.ContainerCustomizer) *testcontainers.DockerContainer {
	d.t.Helper()
	return d.runIn([]*testcontainers.DockerNetwork{d.net}, image, names, options...)
}

// runIn starts a container that has its names in several networks.
func (d *docker) runIn(nets []*testcontainers.DockerNetwork, image string, names []string, options ...testcontainers.ContainerCustomizer) *testcontainers.DockerContainer {
	d.t.Helper()
	for _, net := range nets {
		options = append(options, network.WithNetwork(names, net))
	}
	c, err := testcontainers.Run(d.t.Context(), image, options...)
	if c != nil {
		testcontainers.CleanupContainer(d.t, c)
		d.t.Cleanup(func() { d.showEnd(names[0], c) }) // before it is removed
	}
	if err != nil {
		d.t.Fatalf("start container %s: %v", names[0], err)
	}
	return c
}

func (d *docker) showEnd(name string, c *testcontainers.DockerContainer) {
	if !d.t.Failed() {
		return
	}
	logs, err := c.Logs(context.Background())
	if err != nil {
		d.t.Logf("log of container %s: %v", name, err)
		return
	}
	defer logs.Close()
	text, _ := io.ReadAll(logs)
	d.t.Logf("the end of the log of container %s:\n%s", name, text[max(0, len(text)-shownBytes):])
}

// system is birdtap in containers.
type system struct {
	t      *testing.T
	at     *birdtap // for commands: from outside, by the published port of nats-server
	door   string
	fake   string                                     // URL of the fake CleverTap
	relays map[string]*testcontainers.DockerContainer // by the host that they know CleverTap by
}

const (
	natsConfig  = "port: 4222\njetstream { store_dir: /data, sync_interval: always }\n"
	fakePort    = "8000"
	startWithin = 2 * time.Minute
)

func startSystem(t *testing.T, d *docker, run string) *system {
	t.Helper()
	image := d.image(birdtapBinary(t), nil)
	nats := d.run(d.image(natsBinary(t), map[string]string{"nats.conf": natsConfig}), []string{"nats"},
		testcontainers.WithCmd("-c", "/nats.conf"),
		testcontainers.WithExposedPorts("4222/tcp"),
		testcontainers.WithWaitStrategyAndDeadline(startWithin, wait.ForLog("Server is ready")))
	relayNames := []string{"clevertap-a", "clevertap-b"}
	fake := d.run(d.image(fakeBinary(t), nil), relayNames,
		testcontainers.WithCmd("-run", run, "-latency", "200ms", "-account", accountID, "-passcode", passcode),
		testcontainers.WithExposedPorts(fakePort+"/tcp"),
		testcontainers.WithWaitStrategyAndDeadline(startWithin, wait.ForHTTP("/-/counts").WithPort(fakePort+"/tcp")))

	ingest := d.daemon(image, "ingest", "ingest", nil)
	s := &system{
		t: t, door: endpoint(t, ingest, "8080/tcp", "http") + "/1/upload", fake: endpoint(t, fake, fakePort+"/tcp", "http"),
		at:     newBirdtap(t, clusterEnv(map[string]string{"NATS_URL": endpoint(t, nats, "4222/tcp", "nats"), "DATA_DIR": t.TempDir()})),
		relays: map[string]*testcontainers.DockerContainer{},
	}
	for _, name := range relayNames {
		host := name + ":" + fakePort
		s.relays[host] = d.daemon(image, "relay", "relay-"+name, map[string]string{"CLEVERTAP_URL": "http://" + host})
	}
	return s
}

// clusterEnv is what all of birdtap's containers, and commands, have in common.
func clusterEnv(more map[string]string) map[string]string {
	env := map[string]string{
		"NATS_URL": "nats://nats:4222", "REPLICAS": "1",
		"QUEUE_MAX_BYTES": "256MiB", "DEAD_MAX_BYTES": "64MiB", "KEEP_MAX_BYTES": "64MiB",
		"CLEVERTAP_ACCOUNT_ID": accountID, "CLEVERTAP_PASSCODE": passcode,
		"BATCH_MAX_WAIT": "20ms",
	}
	maps.Copy(env, more)
	return env
}

// daemonEnv is the environment of a daemon in a container.
func daemonEnv(of map[string]string) map[string]string {
	env := map[string]string{
		// Beyond loopback the window asks for a token, but not where it is asked for health.
		"BIRDTAP_OPS_ADDR": ":9090", "BIRDTAP_OPS_TOKEN": "TEST-TOKEN",
	}
	for variable, value := range of {
		env["BIRDTAP_"+variable] = value
	}
	return env
}

// daemon starts a role in a container and waits until it is ready.
func (d *docker) daemon(image, role, name string, more map[string]string) *testcontainers.DockerContainer {
	d.t.Helper()
	return d.run(image, []string{name},
		testcontainers.WithCmd(role),
		testcontainers.WithEnv(daemonEnv(clusterEnv(more))),
		testcontainers.WithExposedPorts("8080/tcp", "9090/tcp"),
		testcontainers.WithWaitStrategyAndDeadline(startWithin, wait.ForHTTP("/readyz").WithPort("9090/tcp")))
}

func endpoint(t *testing.T, c *testcontainers.DockerContainer, port, scheme string) string {
	t.Helper()
	url, err := c.PortEndpoint(t.Context(), port, scheme)
	if err != nil {
		t.Fatal(err)
	}
	return url
}

// fakeCounts is what the fake CleverTap says about calls.
type fakeCounts struct {
	MaxInFlight int            `json:"max_in_flight"`
	MaxRecords  int            `json:"max_records"`
	Calls       map[string]int `json:"calls"` // by the host that the caller named
}

func (s *system) counts() fakeCounts {
	s.t.Helper()
	var c fakeCounts
	body := s.get("/-/counts")
	defer body.Close()
	if err := json.UnmarshalRead(body, &c); err != nil {
		s.t.Fatal(err)
	}
	return c
}

// active tells the relay that uploads from the other one.
func (s *system) active() (active, other string) {
	s.t.Helper()
	before := s.counts().Calls
	eventually(s.t, 30*time.Second, "a relay uploads", func() bool {
		for name, n := range s.counts().Calls {
			if n > before[name] {
				active = name
				return true
			}
		}
		return false
	})
	for name := range s.relays {
		if name != active {
			other = name
		}
	}
	return active, other
}

// received is all that the fake CleverTap took.
func (s *system) received(run string) *history.Received {
	s.t.Helper()
	received := history.NewReceived(run)
	body := s.get("/-/accepted")
	defer body.Close()
	lines := bufio.NewScanner(body)
	for lines.Scan() {
		raw, err := base64.StdEncoding.DecodeString(lines.Text())
		if err != nil {
			s.t.Fatal(err)
		}
		received.Accept(raw)
	}
	if err := lines.Err(); err != nil {
		s.t.Fatal(err)
	}
	return received
}

func (s *system) get(path string) io.ReadCloser {
	s.t.Helper()
	resp, err := http.Get(s.fake + path)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.Body
}
