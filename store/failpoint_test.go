//go:build failpoint

package store

import (
	"slices"
	"testing"

	"github.com/birdtap/birdtap/store/failpoint"
)

// Killed at any point in between, a letter stands twice or is on the queue and in the
// letters, but is never in neither.
func TestKilledReplayLosesNothing(t *testing.T) {
	s := openStore(t)
	ls := letters(0, 100, "512")
	mustBury(t, s, ls...)
	odd := func(l *Letter) bool { return l.Origin.Index%2 == 1 }
	var left string
	stop := failpoint.Do(failpoint.LettersKept, func() { left = crash(t, s.opts.DataDir) })
	defer stop()
	if _, err := s.Replay(t.Context(), ReplayOptions{Choose: odd}); err != nil {
		t.Fatal(err)
	}
	stop()
	killed := openStore(t, on(left))
	onQueue := stored(t, killed)
	count := map[Place]int{}
	for _, l := range buried(t, killed) {
		count[l.Origin]++
	}
	for i, l := range ls {
		wantCount := 2 // stored anew, the old message still there
		if odd(&l) {
			wantCount = 1
			if !slices.Contains(onQueue, keyOf(l.Receipt)) {
				t.Errorf("letter %d is not on the queue", i)
			}
		}
		wantEqual(t, "times a letter stands", count[l.Origin], wantCount)
	}
	// The command is given again: the rest goes, of equal origins, which the relay drops.
	if n, err := killed.Replay(t.Context(), ReplayOptions{Choose: odd}); n != 50 || err != nil {
		t.Errorf("replayed %d, %v", n, err)
	}
}
