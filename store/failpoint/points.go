// Package failpoint names the places where a crash, or a standstill, would hurt most,
// so that tests can aim at them. All of them are listed here:
//
//	door       Stored            the receipts are on disk, their caller has no answer yet
//	relay      Uploaded          CleverTap has answered, nothing of it is noted yet
//	           LettersStored     dead letters are on disk, no checkpoint knows them yet
//	           CheckpointWritten the checkpoint is on disk, the relay has no answer yet
//	           Turn              the relay's loop begins a turn
//	trim       BeforeTrim        settled frames are about to be purged
//	           AfterTrim         they are gone, the trimmer has no answer yet
//	replay     Replayed          letters are on the queue again, and still dead letters
//	           LettersKept       what is left of their message is stored anew, and the
//	                             old message is still there
//	guard      Restarting        the embedded server has stopped and not yet started
//
// Without the build tag failpoint [Here] is empty and nothing of it is in the binary.
// With the tag the environment variable FAILPOINT says what happens at one of them:
//
//	after-trim=kill       the process ends as by kill -9
//	after-trim=kill@3     the third time that it gets there
//	relay-turn=block      whoever gets there stays there for ever
package failpoint

// Point is a place in the code. Its value is its name in FAILPOINT.
type Point string

// The points, in the order of a receipt's journey.
const (
	Stored            Point = "door-stored"
	Uploaded          Point = "relay-uploaded"
	LettersStored     Point = "relay-letters-stored"
	CheckpointWritten Point = "relay-checkpoint-written"
	Turn              Point = "relay-turn"
	BeforeTrim        Point = "before-trim"
	AfterTrim         Point = "after-trim"
	Replayed          Point = "replay-on-queue"
	LettersKept       Point = "replay-letters-kept"
	Restarting        Point = "guard-restarting"
)

// Points returns all of them.
func Points() []Point {
	return []Point{
		Stored, Uploaded, LettersStored, CheckpointWritten, Turn,
		BeforeTrim, AfterTrim, Replayed, LettersKept, Restarting,
	}
}
