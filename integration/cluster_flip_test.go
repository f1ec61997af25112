//go:build integration

package integration

import (
	"archive/tar"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"github.com/birdtap/birdtap/integration/history"
)

// blocks is where a node keeps the frames of the receipts' stream.
const blocks = "/data/jetstream/BIRDTAP/streams/BIRDTAP_RECEIPTS/msgs"

// flips is how often TestCluster flips a byte; one takes most of a minute.
var flips = flag.Int("flips", 0, "how often TestCluster/FlippedByte flips a byte on the disk of a node that is down")

// A byte of what waits is flipped on the disk of one node of three while that one is
// down. The other two have it, so nothing is lost, whoever leads and whoever is read from
// afterwards.
func (f *fleet) flippedByte(t *testing.T) {
	seed := seedOf(t)
	f.begin(history.Options{Run: "flipped", Seed: seed, Rate: 300, Refuse: 0.005, AtDoor: 0.005, Several: 0.01})
	moreOK(t, f.client.Log(), 300, readyWithin)
	for range *flips {
		f.suffer("a byte flipped on a follower's disk while it is down, then the leader and both relays killed", f.flipByte)
	}
	f.finish(seed, f.mayRepeat)
}

func (f *fleet) flipByte() string {
	f.t.Helper()
	f.become("500") // so that frames wait
	moreOK(f.t, f.client.Log(), 600, time.Minute)
	_, others := f.leader()
	damaged := others[0]
	damaged.kill()
	where := damaged.flip()
	f.goOn(damaged)
	damaged.start()
	f.whole()
	for _, m := range f.relays { // they read anew, wherever that is
		m.kill()
		m.start()
	}
	leader, _ := f.leader()
	role := f.crash(leader, func() {})
	f.become("")
	eventually(f.t, time.Minute, "a node is read from", func() bool { return f.reads(f.nodes[0]) || f.reads(f.nodes[1]) || f.reads(f.nodes[2]) })
	return fmt.Sprintf("%s, %s; then killed: %s; now it is %s", damaged.name, where, role, f.role(damaged))
}

// flip turns a bit of what waits in the newest block of a node that is down.
func (m *machine) flip() string {
	m.f.t.Helper()
	name, block := m.newestBlock()
	at := max(len(block)-64<<10, len(block)/2) // 600 receipts take more than that
	block[at] ^= 1
	m.must("copy to", m.container.CopyToContainer(m.f.t.Context(), block, blocks+"/"+name, 0o640))
	if _, now := m.newestBlock(); !bytes.Equal(now, block) {
		m.f.t.Errorf("the block of %s is not as it was written", m.name)
	}
	return fmt.Sprintf("byte %d of %d of block %s", at, len(block), name)
}

// newestBlock is the block with the highest number.
func (m *machine) newestBlock() (name string, block []byte) {
	m.f.t.Helper()
	ctx, c := m.engine()
	copied, err := c.CopyFromContainer(ctx, m.id, client.CopyFromContainerOptions{SourcePath: blocks})
	m.must("copy from", err)
	defer copied.Content.Close()
	archive, newest := tar.NewReader(copied.Content), 0
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return name, block
		}
		m.must("copy from", err)
		_, base, _ := strings.Cut(h.Name, "/")
		var n int
		if _, err := fmt.Sscanf(base, "%d.blk", &n); err != nil || n <= newest {
			continue
		}
		var text bytes.Buffer
		_, err = io.Copy(&text, archive)
		m.must("copy from", err)
		newest, name, block = n, base, text.Bytes()
	}
}
