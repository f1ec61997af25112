package store

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go/jetstream"
)

// Replicas is on how many servers of a cluster a stream is whole. Without most of them
// nothing is stored, so while Current is less than Want no server should be taken away.
type Replicas struct {
	Stream  string
	Want    int // BIRDTAP_REPLICAS, as the stream has it
	Current int // servers that have all of it and were heard of in the last 5 s; 0 if none leads it
}

// replicas looks at every stream there is that should be on more than one server, the
// sender's and the buckets included. A stream that this user may not look at is left out.
func (s *Store) replicas(ctx context.Context) ([]Replicas, error) {
	if !s.clustered() {
		return nil, nil
	}
	var list []Replicas
	for _, name := range []string{
		s.names.receiptStream, s.names.deadStream, s.names.stateStream,
		s.names.sendsStream, s.names.heldStream, s.names.unsentStream,
		s.names.identityStream(), s.names.rememberedStream(),
	} {
		stream, err := s.lookUpStream(ctx, name)
		switch {
		case errors.Is(err, errDenied), err == nil && stream == nil:
		case ctx.Err() == nil && unanswered(err):
			list = append(list, Replicas{Stream: name, Want: s.opts.Replicas})
		case err != nil:
			return nil, err
		default:
			if of := replicasOf(stream.CachedInfo()); of.Want > 1 {
				list = append(list, of)
			}
		}
	}
	return list, nil
}

// replicasOf is what the leader of a stream says of its followers.
func replicasOf(info *jetstream.StreamInfo) Replicas {
	of := Replicas{Stream: info.Config.Name, Want: max(1, info.Config.Replicas)}
	switch cluster := info.Cluster; {
	case cluster == nil:
		of.Current = 1
	case cluster.Leader != "":
		of.Current = 1
		for _, follower := range cluster.Replicas {
			if follower.Current && !follower.Offline && follower.Active < unseenFor {
				of.Current++
			}
		}
	}
	return of
}
