package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/birdtap/birdtap/sendbird"
	"github.com/birdtap/birdtap/sendbird/sender"
	"github.com/birdtap/birdtap/store"
)

// senderOptions is how the daemon's sender works, and that of a command beside it.
func (c *Config) senderOptions(sends *store.Sends, client *sendbird.Client, log *zap.Logger, registry prometheus.Registerer) sender.Options {
	return sender.Options{
		Sends:      sends,
		Client:     client,
		GatherWait: max(c.GatherWait, time.Nanosecond), // 0 is "not at all" here, but a default there
		Remember:   c.RememberSent > 0,
		Log:        log,
		Registerer: registry,
	}
}
