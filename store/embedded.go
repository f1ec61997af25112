package store

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats-server/v2/server"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/birdtap/birdtap/store/failpoint"
)

// Files of a data directory, beside nats-server's own jetstream/.
const (
	lockFile   = "lock"         // held by the process that has the directory open
	markerFile = "birdtap.json" // says that this is birdtap's, and that there is a queue in it
	urlFile    = "nats.url"     // where commands reach the running daemon's queue, token included
)

// A nats-server takes no lock on its directory, and two on one lose acknowledged
// messages; so the directory is locked here. A second daemon gets this error.
var errLocked = errors.New("another birdtap has this data directory open")

// embedded is the nats-server in this process.
type embedded struct {
	opts  Options
	dir   *os.File // the lock
	token string

	newest atomic.Uint64 // as it stands in newestFile

	mu     sync.Mutex
	server *server.Server
}

// marker is the content of markerFile.
type marker struct {
	Birdtap string `json:"birdtap"` // says to whoever finds it what the directory is
	Format  int    `json:"format"`  // markerFormat
	// Queue is set once all streams exist: from then on they must be there. Before,
	// the first start was interrupted, and nothing was ever acknowledged.
	Queue bool `json:"queue"`
}

const markerFormat = 1

// startEmbedded locks the directory, refuses one that is not birdtap's or has lost
// its queue, and starts the server on it.
func startEmbedded(o Options) (*embedded, error) {
	if err := os.Mkdir(o.DataDir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("data directory %s: %w", o.DataDir, err)
	}
	// Looked at before the lock is made, too: nothing is written into a foreign directory.
	if err := checkDir(o.DataDir); err != nil {
		return nil, err
	}
	lock, err := lockDir(o.DataDir)
	if err != nil {
		return nil, err
	}
	e := &embedded{opts: o, dir: lock, token: rand.Text()}
	if err := e.prepare(); err != nil {
		e.unlock()
		return nil, err
	}
	return e, nil
}

// prepare is what startEmbedded does under the lock.
func (e *embedded) prepare() error {
	if err := checkDir(e.opts.DataDir); err != nil {
		return err
	}
	// One that was killed may have left its address: nobody is to call there.
	if err := os.Remove(filepath.Join(e.opts.DataDir, urlFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("data directory %s: %w", e.opts.DataDir, err)
	}
	if _, found, err := readMarker(e.opts.DataDir); err != nil || !found {
		if err == nil {
			// A volume that is not mounted looks the same.
			e.opts.Log.Named("store").Warn("starting with an empty queue: nothing was in the data directory", zap.String("directory", e.opts.DataDir))
			err = writeMarker(e.opts.DataDir, false)
		}
		if err != nil {
			return err
		}
	}
	return e.start()
}

// lockDir takes the lock of a directory.
func lockDir(dir string) (*os.File, error) {
	if err := os.Chmod(dir, 0o700); err != nil { //nolint:gosec // a directory needs the x bit
		return nil, fmt.Errorf("data directory %s: %w", dir, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("data directory %s: %w", dir, errLocked)
		}
		return nil, fmt.Errorf("lock data directory %s: %w", dir, err)
	}
	return f, nil
}

// checkDir accepts an empty directory and one that birdtap made, with its queue
// still there. Starting empty where receipts had been would lose them silently.
func checkDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("data directory %s: %w", dir, err)
	}
	var foreign []string
	found := map[string]bool{}
	for _, e := range entries {
		switch found[e.Name()] = true; strings.TrimSuffix(e.Name(), newSuffix) {
		case lockFile, markerFile, urlFile, newestFile, identityDir, damagedDir, "jetstream", "lost+found":
		default:
			foreign = append(foreign, e.Name())
		}
	}
	m, _, err := readMarker(dir)
	switch {
	case err != nil:
		return err
	case m.Queue && !found["jetstream"]:
		return fmt.Errorf("data directory %s held a queue, but its jetstream folder is gone: "+
			"restore it from a backup, or move the directory away to start with an empty queue", dir)
	case found[markerFile]:
		return nil
	case found["jetstream"]:
		return fmt.Errorf("data directory %s has a jetstream folder, but no %s: it is not birdtap's, or only half restored", dir, markerFile)
	case len(foreign) > 0:
		return fmt.Errorf("data directory %s is not birdtap's (it holds %s): choose an empty one", dir, strings.Join(foreign, ", "))
	}
	return nil
}

// readMarker returns the marker of a directory, and whether there is one.
func readMarker(dir string) (m marker, found bool, err error) {
	path := filepath.Join(dir, markerFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return marker{}, false, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	if err == nil && m.Format != markerFormat {
		err = fmt.Errorf("format %d, this birdtap knows %d", m.Format, markerFormat)
	}
	if err != nil {
		return marker{}, true, fmt.Errorf("marker of the data directory %s: %w", path, err)
	}
	return m, true, nil
}

// mark notes that the directory has a queue, once its streams exist.
func (e *embedded) mark() error {
	if e.opts.Sync == SyncInterval {
		if err := syncStreams(e.opts.DataDir); err != nil {
			return err
		}
	}
	m, _, err := readMarker(e.opts.DataDir)
	if err != nil || m.Queue {
		return err
	}
	return writeMarker(e.opts.DataDir, true)
}

// syncStreams puts on disk what the streams are, which a server that syncs once a
// second never does: a power cut may take receipts then, but not the queue as a whole.
func syncStreams(dataDir string) error {
	err := filepath.WalkDir(filepath.Join(dataDir, "jetstream"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() && !strings.HasPrefix(d.Name(), "meta.") {
			return ignoreGone(err)
		}
		return ignoreGone(syncDir(path))
	})
	if err != nil {
		return fmt.Errorf("data directory %s: %w", dataDir, err)
	}
	return nil
}

func writeMarker(dir string, queue bool) error {
	data, err := json.Marshal(marker{Birdtap: "data directory", Format: markerFormat, Queue: queue})
	if err != nil {
		return err
	}
	return writeDurably(filepath.Join(dir, markerFile), append(data, '\n'))
}

// newSuffix is of a file that is about to replace the one without it.
const newSuffix = ".new"

// writeDurably replaces a file as a whole: whoever reads it sees the old or the new one.
func writeDurably(path string, data []byte) error {
	f, err := os.OpenFile(path+newSuffix, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(path+newSuffix, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

const (
	serverStartWait = 60 * time.Second // reading back a large queue takes seconds
	serverStartPoll = 50 * time.Millisecond
	serverStopWait  = 10 * time.Second // a server whose disk hangs may never end
	syncInterval    = time.Second      // of SyncInterval
)

func (e *embedded) start() error {
	if err := e.repair(); err != nil {
		return err
	}
	o := &server.Options{
		ServerName:         "birdtap",
		Host:               "127.0.0.1",
		Port:               server.RANDOM_PORT,
		DontListen:         e.opts.InProcess,
		Authorization:      e.token,
		JetStream:          true,
		StoreDir:           e.opts.DataDir,
		JetStreamMaxStore:  1 << 60, // the streams' own MaxBytes bound it
		JetStreamMaxMemory: 16 << 20,
		SyncAlways:         e.opts.Sync != SyncInterval,
		NoSigs:             true,
		NoSystemAccount:    true,
	}
	if !o.SyncAlways {
		o.SyncInterval = syncInterval
	}
	s, err := server.NewServer(o)
	if err != nil {
		return fmt.Errorf("embedded queue: %w", err)
	}
	log := serverLog{log: e.opts.Log.Named("nats").Sugar(), fatal: make(chan string, 1)}
	s.SetLoggerV2(log, false, false, false)
	s.Start()
	if err := log.waitReady(s); err != nil {
		return errors.Join(fmt.Errorf("embedded queue on %s: %w", e.opts.DataDir, err), endServer(s))
	}
	e.mu.Lock()
	e.server = s
	e.mu.Unlock()
	return nil
}

// waitReady returns when the server takes connections, or has said that it never will.
func (l serverLog) waitReady(s *server.Server) error {
	for end := time.Now().Add(serverStartWait); ; {
		ready := s.ReadyForConnections(serverStartPoll)
		select {
		case text := <-l.fatal:
			return errors.New(text)
		default:
		}
		switch {
		case ready && s.JetStreamEnabled():
			return nil
		case ready:
			return errors.New("not started: see the lines of \"nats\" above")
		case time.Now().After(end):
			return fmt.Errorf("not ready within %v", serverStartWait)
		}
	}
}

// InProcessConn connects without a socket, to the server of the moment.
func (e *embedded) InProcessConn() (net.Conn, error) {
	return e.current().InProcessConn()
}

func (e *embedded) current() *server.Server {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.server
}

// healthy asks the server itself: a stream that a disk error has frozen shows
// nowhere else. While the disk hangs it may not return.
func (e *embedded) healthy() error {
	s := e.current()
	if !s.Running() {
		return errors.New("the embedded queue has stopped")
	}
	if status := s.Healthz(&server.HealthzOptions{}); status.Error != "" {
		return fmt.Errorf("the embedded queue is not healthy: %s", status.Error)
	}
	return nil
}

// restart ends the server and starts another one on the directory, which is still
// locked. Connections in process find it by InProcessConn, commands by a new address.
func (e *embedded) restart() error {
	if err := e.stop(); err != nil {
		return err
	}
	failpoint.Here(failpoint.Restarting)
	if err := e.start(); err != nil {
		return err
	}
	return e.publishURL()
}

// publishURL tells commands where the queue listens: loopback, a port the system
// chose, a random token; for the owner's eyes only.
func (e *embedded) publishURL() error {
	if e.opts.InProcess {
		return nil
	}
	addr := e.current().Addr().String()
	u := url.URL{Scheme: "nats", User: url.User(e.token), Host: addr}
	return writeDurably(filepath.Join(e.opts.DataDir, urlFile), []byte(u.String()+"\n"))
}

func (e *embedded) stop() error { return endServer(e.current()) }

// endServer ends a server in good order: a graceful stop makes the next start quick.
func endServer(s *server.Server) error {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Shutdown()
		s.WaitForShutdown()
	}()
	timer := time.NewTimer(serverStopWait)
	defer timer.Stop()
	select {
	case <-ended:
		return nil
	case <-timer.C:
		return fmt.Errorf("the embedded queue did not stop within %v", serverStopWait)
	}
}

// close ends the server and gives the directory free. The lock stays, as long as
// this process lives, with a server that does not end: two on one directory lose
// acknowledged messages.
func (e *embedded) close() error {
	if !e.opts.InProcess {
		_ = os.Remove(filepath.Join(e.opts.DataDir, urlFile))
	}
	if err := e.stop(); err != nil {
		return err
	}
	e.unlock()
	return nil
}

func (e *embedded) unlock() { _ = e.dir.Close() }

// runningURL returns where the daemon that has the directory open listens.
func runningURL(dir string) (string, error) {
	data, err := os.ReadFile(filepath.Join(dir, urlFile))
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(data)), nil
}

// serverLog hands nats-server's warnings and errors to our log. Its notices are a
// banner and progress of its own, of no use to an operator of birdtap. A server that
// cannot start says so here, fatally, and nowhere else.
type serverLog struct {
	log   *zap.SugaredLogger
	fatal chan string // capacity 1: the first fatal line
}

func (l serverLog) Warnf(format string, v ...any)  { l.log.Warnf(format, v...) }
func (l serverLog) Errorf(format string, v ...any) { l.log.Errorf(format, v...) }
func (l serverLog) Fatalf(format string, v ...any) {
	l.log.Errorf(format, v...)
	select {
	case l.fatal <- fmt.Sprintf(format, v...):
	default:
	}
}
func (serverLog) Noticef(string, ...any) {}
func (serverLog) Debugf(string, ...any)  {}
func (serverLog) Tracef(string, ...any)  {}
