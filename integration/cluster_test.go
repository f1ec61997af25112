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
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
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
// who calls. The nodes run the shipped configuration, and know everybody by certificate.
type fleet struct {
	t            *testing.T
	docker       *docker
	certificates string   // directory
	at           *birdtap // for an operator's commands: from outside, by the published ports of the nodes

	nodes, ingests, relays []*machine
	destination            *machine // CleverTap, or Sendbird where senders are tried

	js jetstream.JetStream // as the admin

	// Of the run that goes on.
	run    string
	client *history.Client
	stop   func() // of the client
	pulse  *pulse
	faults []string
	// mayRepeat is how many records it may have sent twice, and replayTwice how many
	// letters it may have replayed twice.
	mayRepeat, replayTwice int

	// Of all runs.
	maps    int // identity maps imported
	twice   int // letters replayed twice
	sent    history.Counts
	arrived int      // records that CleverTap took
	probes  int      // receipts of no run
	earlier []string // what the ids of receipts of runs that are over begin with
}

// clevertapTimeout is longer than a busy machine holds up a call.
const clevertapTimeout = 8 * time.Second

// fleetRate is how many receipts come in a second. Each is a call of its own, and every few
// of them three nodes sync several times: more would keep two processors busy with that.
const fleetRate = 150

// nodeImage has everything where the shipped configuration looks for it, and keeps what a
// node has stored over a restart of its container.
const nodeImage = `FROM scratch
COPY nats-server /
COPY nats-server.conf /etc/nats/
COPY ca.crt server.crt server.key /etc/nats/tls/
VOLUME /data
ENTRYPOINT ["/nats-server"]
`

// fleetEnv is what all of birdtap in the fleet has in common. Calls are small, so that
// there are always some in flight.
func fleetEnv(more map[string]string) map[string]string {
	env := clusterEnv(map[string]string{
		"NATS_URL": "tls://nats-1:4222,tls://nats-2:4222,tls://nats-3:4222", "REPLICAS": "3",
		"CLEVERTAP_TIMEOUT": clevertapTimeout.String(),
		"BATCH_MAX_RECORDS": strconv.Itoa(batchRecords),
	})
	if *clusterSoak > time.Hour {
		env["LOG_LEVEL"] = "warn" // a line for every call would fill a disk
	}
	maps.Copy(env, more)
	return env
}

// newFleet starts all of it, and waits until it works.
func newFleet(t *testing.T) *fleet {
	t.Helper()
	began := time.Now()
	f := newNodes(t)
	f.startDaemons(birdtapBinary(t), nil)
	f.whole()
	t.Cleanup(f.end) // before the containers are removed, which is slow while they live
	t.Logf("the cluster works after %.1f s", time.Since(began).Seconds())
	return f
}

// startDaemons starts CleverTap and, of a binary, all that has to do with receipts.
func (f *fleet) startDaemons(binary string, env map[string]string) {
	f.t.Helper()
	outside := []*testcontainers.DockerNetwork{f.docker.network()}
	// The second network is for the test, which goes on looking while nobody else can call.
	f.destination = f.machine(f.docker.image(fakeBinary(f.t), nil), []string{"clevertap-a", "clevertap-b"},
		append(outside, f.docker.network()), []string{fakePort + "/tcp"}, destinationRoom,
		testcontainers.WithCmd("-latency", usualLatency.String(), "-outlive", "-timeout", clevertapTimeout.String(), "-account", accountID, "-passcode", passcode),
		testcontainers.WithWaitStrategyAndDeadline(startWithin, wait.ForHTTP("/-/counts").WithPort(fakePort+"/tcp")))
	image := f.docker.image(binary, nil)
	for n := 1; n <= 2; n++ {
		f.ingests = append(f.ingests, f.daemon(image, "ingest", fmt.Sprintf("ingest-%d", n), nil, env))
	}
	for _, name := range []string{"a", "b"} {
		of := map[string]string{"CLEVERTAP_URL": "http://clevertap-" + name + ":" + fakePort}
		maps.Copy(of, env)
		f.relays = append(f.relays, f.daemon(image, "relay", "relay-"+name, outside, of))
	}
}

// newNodes starts a cluster of three, with the shipped configuration, and makes the streams.
func newNodes(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{t: t, docker: newDocker(t), certificates: t.TempDir()}
	if out, err := exec.Command("../deploy/certificates", f.certificates, "nats-1", "nats-2", "nats-3", "localhost").CombinedOutput(); err != nil {
		t.Fatalf("deploy/certificates: %v\n%s", err, out)
	}
	urls := f.startNodes(f.nodeImage(), "tls")
	f.at = newBirdtap(t, fleetEnv(map[string]string{"NATS_URL": urls, "DATA_DIR": t.TempDir()})).with(f.user("operator", f.certificates))
	admin := f.at.with(f.user("admin", f.certificates))
	f.connect(urls, nats.RootCAs(admin.env["NATS_CA_FILE"]), nats.ClientCert(admin.env["NATS_CERT_FILE"], admin.env["NATS_KEY_FILE"]),
		nats.CustomInboxPrefix("_INBOX.BIRDTAP.birdtap-admin"))
	eventually(t, startWithin, "the streams are made", func() bool {
		_, err := admin.output("init")
		return err == nil
	})
	return f
}

// startNodes starts three nodes of an image, and returns where they are from outside.
func (f *fleet) startNodes(image, scheme string) (urls string) {
	f.t.Helper()
	// A node is of use when it sees another one: all of them start before one is waited for.
	var list []string
	for n := 1; n <= 3; n++ {
		name := fmt.Sprintf("nats-%d", n)
		m := f.machine(image, []string{name}, []*testcontainers.DockerNetwork{f.docker.net}, []string{natsPort, monitorPort}, nodeRoom,
			testcontainers.WithCmd("-c", "/etc/nats/nats-server.conf", "-m", "8222"), // a window for the test
			testcontainers.WithEnv(map[string]string{"NATS_SERVER_NAME": name}))
		f.nodes = append(f.nodes, m)
		list = append(list, strings.Replace(m.ports[natsPort], "127.0.0.1", scheme+"://localhost", 1)) // the name is in the certificate
	}
	return strings.Join(list, ",")
}

// phase runs one part of a test on the fleet, which goes on living.
func (f *fleet) phase(name string, part func(t *testing.T)) {
	whole := f.t
	whole.Run(name, func(t *testing.T) {
		f.t, f.at.t = t, t
		defer func() { f.t, f.at.t = whole, whole }()
		part(t)
		f.sound()
	})
}

// sound checks that nobody has ended by itself.
func (f *fleet) sound() {
	f.t.Helper()
	for _, m := range f.machines() {
		m.enough()
		if is := m.state(); !is.Running && !m.down {
			f.t.Errorf("%s has ended by itself with code %d", m.name, is.ExitCode)
		}
	}
}

// nodeImage builds an image with the shipped configuration, as it is.
func (f *fleet) nodeImage() string {
	f.t.Helper()
	files := map[string]string{"Dockerfile": nodeImage}
	for name, path := range map[string]string{
		"nats-server.conf": "../deploy/nats-server.conf",
		"ca.crt":           filepath.Join(f.certificates, "ca.crt"),
		"server.crt":       filepath.Join(f.certificates, "server.crt"),
		"server.key":       filepath.Join(f.certificates, "server.key"),
	} {
		text, err := os.ReadFile(path)
		if err != nil {
			f.t.Fatal(err)
		}
		files[name] = string(text)
	}
	return f.docker.image(natsBinary(f.t), files)
}

// user is what makes one of the nodes' users of birdtap, with its certificates in a
// directory. Where nobody has any, it is nothing.
func (f *fleet) user(role, dir string) map[string]string {
	if f.certificates == "" {
		return map[string]string{}
	}
	return map[string]string{
		"NATS_CA_FILE":   filepath.Join(dir, "ca.crt"),
		"NATS_CERT_FILE": filepath.Join(dir, "birdtap-"+role+".crt"),
		"NATS_KEY_FILE":  filepath.Join(dir, "birdtap-"+role+".key"),
	}
}

// daemon starts a role in a container, as its own user of the nodes. It is not waited for.
func (f *fleet) daemon(image, role, name string, beside []*testcontainers.DockerNetwork, more map[string]string) *machine {
	f.t.Helper()
	const dir = "/nats"
	user := f.user(role, dir)
	var files []testcontainers.ContainerFile
	for _, file := range user {
		files = append(files, testcontainers.ContainerFile{
			HostFilePath: filepath.Join(f.certificates, filepath.Base(file)), ContainerFilePath: file, FileMode: 0o400,
		})
	}
	maps.Copy(user, more)
	env := daemonEnv(fleetEnv(user))
	env["GOMEMLIMIT"] = daemonHeap
	return f.machine(image, []string{name}, append([]*testcontainers.DockerNetwork{f.docker.net}, beside...), []string{doorPort, opsPort}, daemonRoom,
		testcontainers.WithCmd(role), testcontainers.WithEnv(env), testcontainers.WithFiles(files...))
}

// connect is the test's own look at the nodes: as one who may also change the limits of
// streams.
func (f *fleet) connect(urls string, options ...nats.Option) {
	f.t.Helper()
	nc, err := nats.Connect(urls, append(options, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1),
		nats.ReconnectWait(100*time.Millisecond), nats.PingInterval(time.Second), nats.MaxPingsOutstanding(2),
		nats.IgnoreDiscoveredServers())...) // those addresses are inside
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(nc.Close)
	if f.js, err = jetstream.New(nc); err != nil {
		f.t.Fatal(err)
	}
}

// end ends everything at once; what is paused cannot be told to stop. The logs stay, and
// nobody may have been told that a right is missing.
func (f *fleet) end() {
	for _, m := range append(f.machines(), f.destination) {
		lines := m.keepLog()
		// Who was paused gives answers when they are not allowed any more.
		if i := slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, "Violation") && !strings.Contains(l, `"_INBOX.`) }); i >= 0 {
			f.t.Errorf("%s lacked a right, or noted who did: %s", m.name, lines[i])
		}
		_, _ = f.docker.provider.Client().ContainerKill(context.Background(), m.id, client.ContainerKillOptions{})
		if m.paused {
			_, _ = f.docker.provider.Client().ContainerUnpause(context.Background(), m.id, client.ContainerUnpauseOptions{})
		}
	}
}

func (f *fleet) machines() []*machine { return slices.Concat(f.nodes, f.ingests, f.relays) }

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
				m.supervise()
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

// nodeSays is what a node tells of itself and of the cluster; see f.asks.
type nodeSays struct {
	Meta struct {
		Leader string `json:"leader"`
	} `json:"meta_cluster"`
	Accounts []struct {
		Streams []struct {
			Name      string                   `json:"name"`
			Consumers []jetstream.ConsumerInfo `json:"consumer_detail"`
		} `json:"stream_detail"`
	} `json:"account_details"`
}

// asks a node by the window that is opened for the test: none of birdtap's users may list
// consumers. Of one that is gone there is nothing.
func (f *fleet) asks(node *machine) (says nodeSays) {
	if json.Unmarshal([]byte(get("http://"+node.ports[monitorPort]+"/jsz?consumers=true")), &says) != nil {
		return nodeSays{}
	}
	return says
}

// reads tells whether the active relay's consumer lives on a node: the one that delivered
// last. Some may be left over, of relays that were killed.
func (f *fleet) reads(from *machine) bool {
	node, last := "", time.Time{}
	for _, m := range f.nodes {
		for _, a := range f.asks(m).Accounts {
			for _, s := range a.Streams {
				for _, c := range s.Consumers {
					if at := c.Delivered.Last; s.Name == fleetStreams[0] && c.Cluster != nil && c.Cluster.Leader == m.name && at != nil && at.After(last) {
						node, last = m.name, *at
					}
				}
			}
		}
	}
	return node == from.name
}

// The destination's account of itself.

func (f *fleet) fake() string { return "http://" + f.destination.ports[fakePort+"/tcp"] }

func (f *fleet) get(path string, into any) {
	f.t.Helper()
	resp, err := http.Get(f.fake() + path)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.UnmarshalRead(resp.Body, into); err != nil {
		f.t.Fatalf("%s: %v", path, err)
	}
}

// tell has the fake do something.
func (f *fleet) tell(what, parameter, value string) {
	f.t.Helper()
	resp, err := http.Post(f.fake()+"/-/"+what+"?"+url.Values{parameter: {value}}.Encode(), "", nil)
	if err != nil {
		f.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		f.t.Fatalf("the fake CleverTap answers %s %q with %d", what, value, resp.StatusCode)
	}
}

type fleetCounts struct {
	fakeCounts
	InFlight   int `json:"in_flight"`
	Duplicates int `json:"duplicates"`
	MayRepeat  int `json:"may_repeat"`
}

func (f *fleet) counts() (c fleetCounts) {
	f.t.Helper()
	f.get("/-/counts", &c)
	return c
}

// mostSince is how many calls were in flight at once since an instant.
func (f *fleet) mostSince(t time.Time) int {
	f.t.Helper()
	var c fleetCounts
	f.get(fmt.Sprintf("/-/counts?since=%d", t.UnixNano()), &c)
	return c.MaxInFlight
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
	f.tell("run", "name", o.Run)
	o.AccountID, o.Passcode = accountID, passcode
	if o.Doors == nil {
		o.Doors = []string{f.ingests[0].door(), f.ingests[1].door()}
	}
	// So many users that none has a hundred receipts waiting after an outage.
	o.Clients, o.UsersPerClient = 16, 40
	journal, err := os.Create(filepath.Join(f.keptIn(), o.Run+".jsonl"))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { journal.Close() })
	o.Journal = journal
	f.run, f.faults, f.mayRepeat, f.replayTwice = o.Run, nil, 0, 0
	f.client = history.NewClient(o)
	f.pulse = newPulse(f.t, f.client.Log())
	f.stop = runClient(f.t, f.client)
}

// keptIn is where the history and the journal of each run stay.
func (f *fleet) keptIn() string {
	f.t.Helper()
	if *soakOut == "" {
		return f.t.ArtifactDir()
	}
	dir := *soakOut + ".runs"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		f.t.Fatal(err)
	}
	return dir
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
	if f.replayTwice > 0 {
		f.twice = max(0, min(len(deathsOf(letters))-(a.Died-a.Replayed-a.Purged), f.replayTwice))
		f.t.Logf("%d letters were replayed twice, at most %d may be", f.twice, f.replayTwice)
	}
	a.twice = f.twice
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
	text, err := report.JSON()
	if err == nil {
		err = os.WriteFile(filepath.Join(f.keptIn(), f.run+".json"), text, 0o600)
	}
	if err != nil {
		f.t.Error(err)
	}
	f.earlier = append(f.earlier, f.run+"-")
	return report
}

// received is all that the fake CleverTap took in this run, and how much of it are
// probes, which are of no run.
func (f *fleet) received() (_ *history.Received, probes int) {
	f.t.Helper()
	received := history.NewReceived(f.run)
	for _, raw := range f.accepted("") {
		if strings.Contains(string(raw), probeUser) {
			probes++
			continue
		}
		received.Accept(raw)
	}
	return received, probes
}

// accepted are the records that the fake CleverTap took in this run and that have some
// text in them.
func (f *fleet) accepted(with string) (list [][]byte) {
	f.t.Helper()
	resp, err := http.Get(f.fake() + "/-/accepted?with=" + url.QueryEscape(with))
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return list
		}
		raw, decodes := base64.StdEncoding.DecodeString(strings.TrimSpace(line))
		if err != nil || decodes != nil {
			f.t.Fatal(err, decodes)
		}
		list = append(list, raw)
	}
}

// probeUser is how the users of receipts that are of no run begin, here and at CleverTap.
const probeUser = "probe-user"

// probe posts a receipt of no run to a door.
func (f *fleet) probe(door, user string) answer {
	return postTo(f.t.Context(), door, passcode, f.probeBody(user))
}

func (f *fleet) probeBody(user string) []byte {
	f.probes++
	return fmt.Appendf(nil, `{"d":[{"identity":%q,"evtName":"Probe","evtData":{"status":"SENT","target_id":%d}}]}`, user, f.probes)
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
