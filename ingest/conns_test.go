package ingest

import "testing"

func TestConnectionsLeaveDescriptorsToTheRest(t *testing.T) {
	t.Parallel()
	for descriptors, want := range map[uint64]int{
		0: 4096, 1: 1, 64: 16, 128: 32, 200: 100, 1024: 924, 4196: 4096, 1 << 20: 4096, 1<<64 - 1: 4096,
	} {
		if got := affordableConns(descriptors); got != want {
			t.Errorf("of %d descriptors %d are for connections, want %d", descriptors, got, want)
		}
	}
}
