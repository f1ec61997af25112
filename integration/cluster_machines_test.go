//go:build integration

package integration

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	dockernet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
)

// machine is a container that can be ended, paused, cut off, and be there again at the
// same place.
type machine struct {
	f         *fleet
	name      string
	names     []string                      // in its networks
	home      *testcontainers.DockerNetwork // the network that it may be cut off from
	container *testcontainers.DockerContainer
	id        string
	ports     map[string]string // host:port outside by the port inside
	room      container.Resources
	paused    bool
	down      bool // as the test wants it
}

// The ports inside, as Docker spells them.
const (
	natsPort    = "4222/tcp"
	monitorPort = "8222/tcp"
	doorPort    = "8080/tcp"
	opsPort     = "9090/tcp"
)

// What the machines have. Nobody has swap: both figures are the same.
var (
	nodeRoom        = container.Resources{Memory: 512 << 20, MemorySwap: 512 << 20}
	daemonRoom      = container.Resources{Memory: 128 << 20, MemorySwap: 128 << 20, NanoCPUs: 1e9}
	destinationRoom container.Resources // it is no part of birdtap
)

// daemonHeap is 85 % of a daemon's memory, as the chart sets it.
const daemonHeap = "108MiB"

// machine starts a container in some networks, the first of which it may be cut off from.
// Its ports are published where they stay over a restart.
func (f *fleet) machine(image string, names []string, nets []*testcontainers.DockerNetwork, ports []string, room container.Resources, options ...testcontainers.ContainerCustomizer) *machine {
	f.t.Helper()
	m := &machine{f: f, name: names[0], names: names, home: nets[0], ports: map[string]string{}, room: room}
	bindings := dockernet.PortMap{}
	for _, port := range ports {
		m.ports[port] = freeAddr(f.t)
		_, number, _ := strings.Cut(m.ports[port], ":")
		bindings[dockernet.MustParsePort(port)] = []dockernet.PortBinding{{HostPort: number}}
	}
	options = append(options,
		testcontainers.WithExposedPorts(ports...),
		testcontainers.WithHostConfigModifier(func(c *container.HostConfig) { c.PortBindings, c.Resources = bindings, room }))
	m.container = f.docker.runIn(nets, image, names, options...)
	m.id = m.container.GetContainerID()
	return m
}

// keepLog writes what it has said beside the test's other logs, and returns it.
func (m *machine) keepLog() []string {
	text, err := m.log()
	if err == nil {
		err = os.WriteFile(filepath.Join(m.f.t.ArtifactDir(), m.name+".log"), text, 0o600)
	}
	if err != nil {
		m.f.t.Errorf("log of %s: %v", m.name, err)
	}
	return strings.Split(string(text), "\n")
}

// said tells whether it has ever said something.
func (m *machine) said(what string) bool {
	m.f.t.Helper()
	text, err := m.log()
	m.must("read the log of", err)
	return bytes.Contains(text, []byte(what))
}

func (m *machine) log() ([]byte, error) {
	logs, err := m.container.Logs(context.Background())
	if err != nil {
		return nil, err
	}
	defer logs.Close()
	return io.ReadAll(logs)
}

// enough wants that it had memory enough: up to now, or to its end.
func (m *machine) enough() {
	m.f.t.Helper()
	if m.state().OOMKilled {
		m.f.t.Errorf("%s was killed for its memory", m.name)
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
	m.down = true
	if _, err := c.ContainerKill(ctx, m.id, client.ContainerKillOptions{}); m.state().Running {
		m.must("kill", err)
	}
	m.exit(startWithin)
}

// terminate asks it to stop, and returns its exit code.
func (m *machine) terminate(within time.Duration) int {
	m.f.t.Helper()
	ctx, c := m.engine()
	m.down = true
	if _, err := c.ContainerKill(ctx, m.id, client.ContainerKillOptions{Signal: "SIGTERM"}); m.state().Running {
		m.must("stop", err)
	}
	return m.exit(within)
}

// exit waits until it has ended, and returns its exit code.
func (m *machine) exit(within time.Duration) (code int) {
	m.f.t.Helper()
	eventually(m.f.t, within, m.name+" has ended", func() bool {
		is := m.state()
		code = is.ExitCode
		return !is.Running
	})
	return code
}

// start starts it again.
func (m *machine) start() {
	m.f.t.Helper()
	m.enough() // a new start forgets
	ctx, c := m.engine()
	_, err := c.ContainerStart(ctx, m.id, client.ContainerStartOptions{})
	m.must("start", err)
	m.down = false
}

// supervise starts a daemon again that has ended by itself, as whoever looks after it
// does: one that finds a queue without a leader when it starts gives up.
func (m *machine) supervise() {
	m.f.t.Helper()
	if state := m.state(); !state.Running && !m.down {
		m.f.t.Logf("%s has ended by itself with code %d, and is started again", m.name, state.ExitCode)
		m.start()
	}
}

func (m *machine) state() *container.State {
	m.f.t.Helper()
	ctx, c := m.engine()
	is, err := c.ContainerInspect(ctx, m.id, client.ContainerInspectOptions{})
	m.must("inspect", err)
	return is.Container.State
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

// cutOff takes it out of a network, as a rule the queue's: nothing arrives any more, in either
// direction, and nobody is told.
func (m *machine) cutOff() {
	m.f.t.Helper()
	ctx, c := m.engine()
	_, err := c.NetworkDisconnect(ctx, m.home.ID, client.NetworkDisconnectOptions{Container: m.id})
	m.must("cut off", err)
}

func (m *machine) rejoin() {
	m.f.t.Helper()
	ctx, c := m.engine()
	_, err := c.NetworkConnect(ctx, m.home.ID, client.NetworkConnectOptions{
		Container: m.id, EndpointConfig: &dockernet.EndpointSettings{Aliases: m.names},
	})
	m.must("connect", err)
}

// starve leaves it a tenth of a processor, feed gives it what it had.
func (m *machine) starve() { m.processors(1e8) }
func (m *machine) feed()   { m.processors(cmp.Or(m.room.NanoCPUs, int64(runtime.NumCPU())*1e9)) }

func (m *machine) processors(nano int64) {
	m.f.t.Helper()
	ctx, c := m.engine()
	_, err := c.ContainerUpdate(ctx, m.id, client.ContainerUpdateOptions{Resources: &container.Resources{NanoCPUs: nano}})
	m.must("limit the processors of", err)
}

func (m *machine) door() string { return "http://" + m.ports[doorPort] + "/1/upload" }

// ready tells whether a daemon would store a receipt, or a relay reaches the queue.
func (m *machine) ready() bool { return get("http://"+m.ports[opsPort]+"/readyz") != "" }

// host is what CleverTap knows a relay by.
func (m *machine) host() string {
	return "clevertap-" + strings.TrimPrefix(m.name, "relay-") + ":" + fakePort
}
