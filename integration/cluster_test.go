//go:build integration

package integration

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/moby/moby/api/types/container"
	dockernet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"

	"github.com/birdtap/birdtap/integration/history"
)

// fleet is the whole of birdtap in containers, as it is meant to be run: three
// nats-servers which sync before they answer, two ingests, two relays, and CleverTap.
//
//	client ──▶ ingest-1, ingest-2 ──▶ nats-1, nats-2, nats-3 ◀── relay-a, relay-b ──▶ clevertap
//	                                         queue                          outside
//
// The queue has a network of its own. So a relay can be cut off from it, and still reach
// CleverTap. Each relay knows CleverTap by a name of its own, so that the receiver tells
// who calls.
type fleet struct {
	t      *testing.T
	docker *docker
	at     *birdtap // for commands: from outside, by the published ports of the nodes
	fake   string   // URL

	nodes, ingests, relays []*machine

	js jetstream.JetStream

	// Of the run that goes on.
	run    string
	client *history.Client
	stop   func() // of the client
	pulse  *pulse
	faults []string
	// mayRepeat is how many records it may have sent twice.
	mayRepeat int

	// Of all runs.
	sent    history.Counts
	arrived int      // records that CleverTap took
	probes  int      // receipts of no run
	earlier []string // what the ids of receipts of runs that are over begin with
}

// machine is a container that can be ended, paused, cut off, and be there again at the
// same place.
type machine struct {
	f         *fleet
	name      string
	container *testcontainers.DockerContainer
	id        string
	ports     map[string]string // host:port outside by the port inside
	paused    bool
}

// The ports inside, as Docker spells them.
const (
	natsPort = "4222/tcp"
	doorPort = "8080/tcp"
	opsPort  = "9090/tcp"
)

// nodeConfig is that of every node; they differ in their name. Routes are names, since a
// container may have another address each time it starts. And what the nodes know of
// each other's addresses is of no use outside.
const nodeConfig = `server_name: $NODE
port: 4222
jetstream { store_dir: /data, sync_interval: always }
cluster {
	name: birdtap
	port: 6222
	no_advertise: true
	routes: [nats://nats-1:6222, nats://nats-2:6222, nats://nats-3:6222]
}
`

// nodeImage keeps what a node has stored over a restart of its container.
const nodeImage = "FROM scratch\nCOPY . /\nVOLUME /data\nENTRYPOINT [\"/nats-server\"]\n"

// fleetEnv is what all of birdtap in the fleet has in common. Calls are small, so that
// there are always some in flight.
func fleetEnv(more map[string]string) map[string]string {
	env := clusterEnv(map[string]string{
		"NATS_URL": "nats://nats-1:4222,nats://nats-2:4222,nats://nats-3:4222", "REPLICAS": "3",
		"CLEVERTAP_TIMEOUT": "8s", // longer than a busy machine holds up a call
		"BATCH_MAX_RECORDS": strconv.Itoa(batchRecords),
	})
	maps.Copy(env, more)
	return env
}

// newFleet starts all of it, and waits until it works.
func newFleet(t *testing.T) *fleet {
	t.Helper()
	began := time.Now()
	d := newDocker(t)
	f := &fleet{t: t, docker: d}
	outside := d.network()
	birdtapImage := d.image(birdtapBinary(t), nil)
	nodeImage := d.image(natsBinary(t), map[string]string{"Dockerfile": nodeImage, "nats.conf": nodeConfig})

	relayNames := []string{"a", "b"}
	fake := d.runIn([]*testcontainers.DockerNetwork{outside}, d.image(fakeBinary(t), nil), []string{"clevertap-a", "clevertap-b"},
		testcontainers.WithCmd("-latency", usualLatency.String(), "-account", accountID, "-passcode", passcode),
		testcontainers.WithExposedPorts(fakePort+"/tcp"),
		testcontainers.WithWaitStrategyAndDeadline(startWithin, wait.ForHTTP("/-/counts").WithPort(fakePort+"/tcp")))
	f.fake = endpoint(t, fake, fakePort+"/tcp", "http")

	// A node is of use when it sees another one: all of them start before one is waited for.
	var urls []string
	for n := 1; n <= 3; n++ {
		name := fmt.Sprintf("nats-%d", n)
		m := f.machine(nodeImage, name, nil, []string{natsPort},
			testcontainers.WithCmd("-c", "/nats.conf"), testcontainers.WithEnv(map[string]string{"NODE": name}))
		f.nodes = append(f.nodes, m)
		urls = append(urls, "nats://"+m.ports[natsPort])
	}
	f.at = newBirdtap(t, fleetEnv(map[string]string{"NATS_URL": strings.Join(urls, ","), "DATA_DIR": t.TempDir()}))
	f.connect(f.at.env["NATS_URL"])
	var err error
	eventually(t, startWithin, "the streams are made", func() bool {
		_, err = f.at.output("init")
		return err == nil
	})

	for n := 1; n <= 2; n++ {
		f.ingests = append(f.ingests, f.daemon(birdtapImage, "ingest", fmt.Sprintf("ingest-%d", n), nil, nil))
	}
	for _, name := range relayNames {
		f.relays = append(f.relays, f.daemon(birdtapImage, "relay", "relay-"+name,
			[]*testcontainers.DockerNetwork{outside},
			map[string]string{"CLEVERTAP_URL": "http://clevertap-" + name + ":" + fakePort}))
	}
	f.whole()
	t.Cleanup(f.end) // before the containers are removed, which is slow while they live
	t.Logf("the cluster works after %.1f s", time.Since(began).Seconds())
	return f
}

// phase runs one part of a test on the fleet, which goes on living.
func (f *fleet) phase(name string, part func(t *testing.T)) {
	whole := f.t
	whole.Run(name, func(t *testing.T) {
		f.t, f.at.t = t, t
		defer func() { f.t, f.at.t = whole, whole }()
		part(t)
	})
}

// daemon starts a role in a container. It is not waited for.
func (f *fleet) daemon(image, role, name string, beside []*testcontainers.DockerNetwork, more map[string]string) *machine {
	f.t.Helper()
	return f.machine(image, name, beside, []string{doorPort, opsPort},
		testcontainers.WithCmd(role), testcontainers.WithEnv(daemonEnv(fleetEnv(more))))
}

// machine starts a container in the queue's network, and in others. Its ports are
// published where they stay over a restart.
func (f *fleet) machine(image, name string, beside []*testcontainers.DockerNetwork, ports []string, options ...testcontainers.ContainerCustomizer) *machine {
	f.t.Helper()
	m := &machine{f: f, name: name, ports: map[string]string{}}
	bindings := dockernet.PortMap{}
	for _, port := range ports {
		m.ports[port] = freeAddr(f.t)
		_, number, _ := strings.Cut(m.ports[port], ":")
		bindings[dockernet.MustParsePort(port)] = []dockernet.PortBinding{{HostPort: number}}
	}
	options = append(options,
		testcontainers.WithExposedPorts(ports...),
		testcontainers.WithHostConfigModifier(func(c *container.HostConfig) { c.PortBindings = bindings }))
	m.container = f.docker.runIn(append([]*testcontainers.DockerNetwork{f.docker.net}, beside...), image, []string{name}, options...)
	m.id = m.container.GetContainerID()
	return m
}

// connect is the test's own look at the nodes.
func (f *fleet) connect(urls string) {
	f.t.Helper()
	nc, err := nats.Connect(urls, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1),
		nats.ReconnectWait(100*time.Millisecond), nats.PingInterval(time.Second), nats.MaxPingsOutstanding(2))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(nc.Close)
	if f.js, err = jetstream.New(nc); err != nil {
		f.t.Fatal(err)
	}
}

// end ends everything at once; what is paused cannot be told to stop. The logs stay.
func (f *fleet) end() {
	for _, m := range f.machines() {
		m.keepLog()
		_, _ = f.docker.provider.Client().ContainerKill(context.Background(), m.id, client.ContainerKillOptions{})
		if m.paused {
			_, _ = f.docker.provider.Client().ContainerUnpause(context.Background(), m.id, client.ContainerUnpauseOptions{})
		}
	}
}

func (f *fleet) machines() []*machine { return slices.Concat(f.nodes, f.ingests, f.relays) }

// keepLog writes what it has said beside the test's other logs.
func (m *machine) keepLog() {
	logs, err := m.container.Logs(context.Background())
	if err != nil {
		m.f.t.Logf("log of %s: %v", m.name, err)
		return
	}
	defer logs.Close()
	text, err := io.ReadAll(logs)
	if err == nil {
		err = os.WriteFile(filepath.Join(m.f.t.ArtifactDir(), m.name+".log"), text, 0o600)
	}
	if err != nil {
		m.f.t.Logf("log of %s: %v", m.name, err)
	}
}

// must fails the test if the engine has not done what it was told.
func (m *machine) must(what string, err error) {
	m.f.t.Helper()
	if err != nil {
		m.f.t.Fatalf("%s %s: %v", what, m.name, err)
	}
}

func (m *machine) engine() (context.Context, client.APIClient) {
	return m.f.t.Context(), m.f.docker.provider.Client()
}

// kill ends it as a crash would.
func (m *machine) kill() {
	m.f.t.Helper()
	ctx, c := m.engine()
	_, err := c.ContainerKill(ctx, m.id, client.ContainerKillOptions{})
	m.must("kill", err)
	m.exit(startWithin)
}

// terminate asks it to stop, and returns its exit code.
func (m *machine) terminate(within time.Duration) int {
	m.f.t.Helper()
	ctx, c := m.engine()
	_, err := c.ContainerKill(ctx, m.id, client.ContainerKillOptions{Signal: "SIGTERM"})
	m.must("stop", err)
	return m.exit(within)
}

// exit waits until it has ended, and returns its exit code.
func (m *machine) exit(within time.Duration) (code int) {
	m.f.t.Helper()
	ctx, c := m.engine()
	eventually(m.f.t, within, m.name+" has ended", func() bool {
		is, err := c.ContainerInspect(ctx, m.id, client.ContainerInspectOptions{})
		m.must("inspect", err)
		code = is.Container.State.ExitCode
		return !is.Container.State.Running
	})
	return code
}

// start starts it again.
func (m *machine) start() {
	m.f.t.Helper()
	ctx, c := m.engine()
	_, err := c.ContainerStart(ctx, m.id, client.ContainerStartOptions{})
	m.must("start", err)
}

func (m *machine) pause() {
	m.f.t.Helper()
	ctx, c := m.engine()
	_, err := c.ContainerPause(ctx, m.id, client.ContainerPauseOptions{})
	m.must("pause", err)
	m.paused = true
}

func (m *machine) wake() {
	m.f.t.Helper()
	ctx, c := m.engine()
	_, err := c.ContainerUnpause(ctx, m.id, client.ContainerUnpauseOptions{})
	m.must("wake", err)
	m.paused = false
}

// cutOff takes it out of the queue's network: nothing arrives any more, in either
// direction, and nobody is told.
func (m *machine) cutOff() {
	m.f.t.Helper()
	ctx, c := m.engine()
	_, err := c.NetworkDisconnect(ctx, m.f.docker.net.ID, client.NetworkDisconnectOptions{Container: m.id})
	m.must("cut off", err)
}

func (m *machine) rejoin() {
	m.f.t.Helper()
	ctx, c := m.engine()
	_, err := c.NetworkConnect(ctx, m.f.docker.net.ID, client.NetworkConnectOptions{
		Container: m.id, EndpointConfig: &dockernet.EndpointSettings{Aliases: []string{m.name}},
	})
	m.must("connect", err)
}

func (m *machine) door() string { return "http://" + m.ports[doorPort] + "/1/upload" }

// ready tells whether a daemon would store a receipt, or a relay reaches the queue.
func (m *machine) ready() bool { return get("http://"+m.ports[opsPort]+"/readyz") != "" }

// host is what CleverTap knows a relay by.
func (m *machine) host() string {
	return "clevertap-" + strings.TrimPrefix(m.name, "relay-") + ":" + fakePort
}

// fleetStreams are those that receipts need.
var fleetStreams = []string{"BIRDTAP_RECEIPTS", "BIRDTAP_DEAD", "BIRDTAP_STATE"}

const wholeWithin = 2 * time.Minute

// whole waits until every node has all of every stream, and every daemon is ready.
func (f *fleet) whole() {
	f.t.Helper()
	last := ""
	defer func() {
		if f.t.Failed() {
			f.t.Logf("at last: %s", last)
		}
	}()
	eventually(f.t, wholeWithin, "the cluster is whole", func() bool {
		for _, name := range fleetStreams {
			info, err := f.stream(name)
			if err != nil {
				last = fmt.Sprintf("%s: %v", name, err)
				return false
			}
			if last = outOfStep(info.Cluster); last != "" {
				last = name + ": " + last
				return false
			}
		}
		for _, m := range slices.Concat(f.ingests, f.relays) {
			if !m.ready() {
				last = m.name + " is not ready"
				return false
			}
		}
		return true
	})
}

// outOfStep says what a stream lacks of three nodes that have all of it.
func outOfStep(c *jetstream.ClusterInfo) string {
	if c == nil || c.Leader == "" {
		return "no leader"
	}
	current := 0
	for _, r := range c.Replicas {
		if r.Current && !r.Offline {
			current++
		}
	}
	if current != 2 {
		return fmt.Sprintf("%d followers are up to date, want 2", current)
	}
	return ""
}

func (f *fleet) stream(name string) (*jetstream.StreamInfo, error) {
	ctx, cancel := context.WithTimeout(f.t.Context(), 2*time.Second)
	defer cancel()
	s, err := f.js.Stream(ctx, name)
	if err != nil {
		return nil, err
	}
	return s.CachedInfo(), nil
}

// leader is the node that leads the receipts' stream, and the others.
func (f *fleet) leader() (leader *machine, others []*machine) {
	f.t.Helper()
	eventually(f.t, wholeWithin, "the stream has a leader", func() bool {
		info, err := f.stream(fleetStreams[0])
		if err != nil || info.Cluster == nil {
			return false
		}
		leader, others = nil, nil
		for _, m := range f.nodes {
			if m.name == info.Cluster.Leader {
				leader = m
			} else {
				others = append(others, m)
			}
		}
		return leader != nil
	})
	return leader, others
}

// reads tells whether the relay's consumer lives on a node.
func (f *fleet) reads(from *machine) bool {
	ctx, cancel := context.WithTimeout(f.t.Context(), 2*time.Second)
	defer cancel()
	s, err := f.js.Stream(ctx, fleetStreams[0])
	if err != nil {
		return false
	}
	for c := range s.ListConsumers(ctx).Info() {
		if c.Cluster != nil && c.Cluster.Leader == from.name {
			return true
		}
	}
	return false
}

// The fake CleverTap's account of itself.

func (f *fleet) get(path string, into any) {
	f.t.Helper()
	resp, err := http.Get(f.fake + path)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.UnmarshalRead(resp.Body, into); err != nil {
		f.t.Fatalf("%s: %v", path, err)
	}
}

func (f *fleet) counts() (c struct {
	fakeCounts
	Duplicates int `json:"duplicates"`
},
) {
	f.t.Helper()
	f.get("/-/counts", &c)
	return c
}

// calls are the arrivals of calls since an instant, in order. Containers have the clock
// of the test.
func (f *fleet) calls(since time.Time, of ...*machine) []time.Time {
	f.t.Helper()
	var byHost map[string][]int64
	f.get(fmt.Sprintf("/-/calls?since=%d", since.UnixNano()), &byHost)
	var list []time.Time
	for _, m := range of {
		for _, ns := range byHost[m.host()] {
			list = append(list, time.Unix(0, ns))
		}
	}
	slices.SortFunc(list, time.Time.Compare)
	return list
}

// firstCall waits for a relay's first call after an instant, and returns how long after.
func (f *fleet) firstCall(of *machine, after time.Time) time.Duration {
	f.t.Helper()
	var took time.Duration
	eventually(f.t, handOver, of.name+" uploads", func() bool {
		calls := f.calls(after, of)
		if len(calls) > 0 {
			took = calls[0].Sub(after)
		}
		return len(calls) > 0
	})
	return took
}

// pair tells the relay that uploads from the one that stands by.
func (f *fleet) pair() (active, standby *machine) {
	f.t.Helper()
	now := time.Now()
	eventually(f.t, handOver, "a relay uploads", func() bool {
		switch a, b := len(f.calls(now, f.relays[0])), len(f.calls(now, f.relays[1])); {
		case a > 0 && b == 0:
			active, standby = f.relays[0], f.relays[1]
		case b > 0 && a == 0:
			active, standby = f.relays[1], f.relays[0]
		case a > 0: // just now it has changed hands
			now = time.Now()
		}
		return active != nil
	})
	return active, standby
}

// A run is a history of its own, from an empty queue to an empty queue.

// begin begins a run.
func (f *fleet) begin(o history.Options) {
	f.t.Helper()
	resp, err := http.Post(f.fake+"/-/run?name="+url.QueryEscape(o.Run), "", nil)
	if err != nil {
		f.t.Fatal(err)
	}
	resp.Body.Close()
	o.AccountID, o.Passcode = accountID, passcode
	if o.Doors == nil {
		o.Doors = []string{f.ingests[0].door(), f.ingests[1].door()}
	}
	// So many users that none has a hundred receipts waiting after an outage.
	o.Clients, o.UsersPerClient = 16, 40
	if o.Journal, err = os.Create(filepath.Join(f.t.ArtifactDir(), o.Run+".jsonl")); err != nil {
		f.t.Fatal(err)
	}
	f.run, f.faults, f.mayRepeat = o.Run, nil, 0
	f.client = history.NewClient(o)
	f.pulse = newPulse(f.t, f.client.Log())
	f.stop = runClient(f.t, f.client)
}

// finish ends a run: what is queued leaves, and everything has to be where it belongs.
func (f *fleet) finish(seed uint64, duplicates int) history.Report {
	f.t.Helper()
	f.stop()
	a := f.at.drained(2 * time.Minute)
	letters := f.at.letters()
	received, probes := f.received()
	counts := f.counts()
	sent := f.client.Log().Counts()
	f.sent.Attempts += sent.Attempts
	f.sent.Taken += sent.Taken
	f.arrived += received.Taken() + probes
	all := f.sent
	all.Attempts += f.probes
	a.addsUp(f.t, all, f.arrived, letters)
	f.t.Logf("account: %+v", a)
	report := history.Check(history.Evidence{
		Log: f.client.Log(), Received: received, MaxInFlight: counts.MaxInFlight,
		Letters: slices.DeleteFunc(letters, func(l history.Letter) bool {
			return slices.ContainsFunc(f.earlier, func(prefix string) bool { return strings.HasPrefix(l.ID, prefix) })
		}),
		Seed: seed, Commit: commitUnderway(), Faults: f.faults,
	})
	report.MaxRecords = counts.MaxRecords
	conclude(f.t, report, history.Limits{Duplicates: duplicates, InFlight: accountCalls, Records: batchRecords})
	f.earlier = append(f.earlier, f.run+"-")
	return report
}

// received is all that the fake CleverTap took in this run, and how much of it are
// probes, which are of no run.
func (f *fleet) received() (_ *history.Received, probes int) {
	f.t.Helper()
	received := history.NewReceived(f.run)
	resp, err := http.Get(f.fake + "/-/accepted")
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return received, probes
		}
		raw, decodes := base64.StdEncoding.DecodeString(strings.TrimSpace(line))
		if err != nil || decodes != nil {
			f.t.Fatal(err, decodes)
		}
		if strings.Contains(string(raw), probeUser) {
			probes++
			continue
		}
		received.Accept(raw)
	}
}

// probeUser is the user of receipts that are of no run.
const probeUser = "probe-user"

// probe posts a receipt of no run to a door.
func (f *fleet) probe(door string) answer {
	f.probes++
	return postTo(f.t.Context(), door, passcode,
		fmt.Appendf(nil, `{"d":[{"identity":%q,"evtName":"Probe","evtData":{"status":"SENT","target_id":%d}}]}`, probeUser, f.probes))
}

// pulse notes when the doors answered 2xx.
type pulse struct {
	beats chan chan []time.Time
}

// newPulse looks until the test ends.
func newPulse(t *testing.T, log *history.Log) *pulse {
	p := &pulse{beats: make(chan chan []time.Time)}
	ctx := t.Context()
	go func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		var list []time.Time
		taken := 0
		for {
			select {
			case now := <-tick.C:
				if n := log.Counts().Taken; n > taken {
					taken, list = n, append(list, now)
				}
			case ask := <-p.beats:
				ask <- slices.Clone(list)
			case <-ctx.Done():
				return
			}
		}
	}()
	return p
}

// since are the looks at which more had been answered 2xx than at the look before.
func (p *pulse) since(t time.Time) []time.Time {
	ask := make(chan []time.Time)
	p.beats <- ask
	return slices.DeleteFunc(<-ask, func(at time.Time) bool { return at.Before(t) })
}

// longest is the longest time between two of a list, that from a beginning on included.
func longest(from time.Time, list []time.Time) time.Duration {
	var gap time.Duration
	for _, at := range list {
		gap, from = max(gap, at.Sub(from)), at
	}
	return gap
}
