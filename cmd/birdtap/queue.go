package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/birdtap/birdtap/store"
)

// storeOptions is where the queue is. The store reads 0 as "the default, or less
// where the volume is small", so a size goes to it only if it was set.
func (c *Config) storeOptions() store.Options {
	return store.Options{
		NATSURL:       string(c.NATSURL),
		NATSCredsFile: c.NATSCredsFile,
		NATSCAFile:    c.NATSCAFile,
		NATSCertFile:  c.NATSCertFile,
		NATSKeyFile:   c.NATSKeyFile,

		DataDir:  c.DataDir,
		Sync:     store.Sync(c.Sync),
		Prefix:   c.StreamPrefix,
		Replicas: c.Replicas,

		QueueMaxBytes: c.sizeIfSet("QUEUE_MAX_BYTES", c.QueueMaxBytes),
		DeadMaxBytes:  c.sizeIfSet("DEAD_MAX_BYTES", c.DeadMaxBytes),
		KeepMaxBytes:  c.sizeIfSet("KEEP_MAX_BYTES", c.KeepMaxBytes),

		KeepDelivered: max(c.KeepDelivered, time.Nanosecond), // 0 is "keep nothing" here, but a default there
		DedupWindow:   c.DedupWindow,
		RememberSent:  c.RememberSent,
	}
}

func (c *Config) sizeIfSet(name string, size Size) int64 {
	if !c.given(name) {
		return 0
	}
	return int64(max(size, 1)) // 0 would be the default again
}

// openStore opens the queue, and says a size that does not fit as what it is: a
// wrong configuration.
func openStore(ctx context.Context, o store.Options) (*store.Store, error) {
	s, err := store.Open(ctx, o)
	if size := (*store.SizeError)(nil); errors.As(err, &size) {
		return nil, &configError{
			variable: size.Variable, value: bytesText(size.Need),
			problem: fmt.Sprintf("the volume has only %s free for it: make it smaller, or the volume larger", bytesText(size.Free)),
		}
	}
	return s, err
}

// withStore lets a command work on the queue: that of the running daemon, or the
// directory itself while none runs. f, if any, is checked before.
func (p *program) withStore(ctx context.Context, f *filter, do func(context.Context, *store.Store) error) error {
	if f != nil {
		if err := f.check(); err != nil {
			return err
		}
	}
	cfg, err := p.config()
	if err != nil {
		return err
	}
	if err := cfg.queueExists(); err != nil {
		return err
	}
	o := cfg.storeOptions()
	o.Attach = true
	o.QueueMaxBytes, o.DeadMaxBytes, o.KeepMaxBytes = 0, 0, 0 // a command resizes nothing
	o.Log = newLogger(p.err, zap.ErrorLevel.String(), "console")
	s, err := openStore(ctx, o)
	if err != nil {
		return err
	}
	err = do(ctx, s)
	if closing := s.Close(); err == nil {
		err = closing
	}
	return err
}

// queueExists refuses a directory that is not there. A command would otherwise make
// an empty queue in it, and report with confidence that nothing waits.
func (c *Config) queueExists() error {
	if !c.embedded() {
		return nil
	}
	_, err := os.Stat(c.DataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no queue at %s: run the command where birdtap runs, or set %sDATA_DIR to its directory", c.DataDir, envPrefix)
	}
	return err
}
