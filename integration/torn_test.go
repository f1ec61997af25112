//go:build integration

package integration

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
)

// What a crash leaves behind the last frame that was synced may be anything: a part of
// a frame, blocks of zeros, what the disk held there before. None of it was
// acknowledged. It is dropped, everything before it is there, and nothing is invented.
func TestTornWriteAfterACrashLosesNothing(t *testing.T) {
	b := newBackup(t, "torn", crashed)
	random := rand.New(rand.NewPCG(b.seed, 0))
	last := func(data []byte) []byte {
		begin, _ := record(data, 0.999999)
		return slices.Clone(data[begin:])
	}
	for name, tail := range map[string]func(data []byte) []byte{
		"length of a frame":       func(data []byte) []byte { return last(data)[:4] },
		"first part of a frame":   func(data []byte) []byte { f := last(data); return f[:1+random.IntN(len(f)-1)] },
		"frame without its end":   func(data []byte) []byte { f := last(data); return f[:len(f)-1] },
		"frame with a wrong byte": func(data []byte) []byte { f := last(data); f[len(f)/2] ^= 1; return f },
		"sectors of zeros":        func([]byte) []byte { return make([]byte, 4096) },
		"rubbish": func([]byte) []byte {
			return bytes.Repeat([]byte{byte(random.IntN(256)), byte(random.IntN(256)), byte(random.IntN(256))}, 500)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := b.restored(t)
			l.edit("RECEIPTS", func(data []byte) []byte { return append(data, tail(data)...) })
			l.start()
			l.finish(crashDuplicates(1), "torn write: "+name)
		})
	}
}

func crashed(p *process) { p.kill() }
