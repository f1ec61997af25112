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
//	sender     AsksStored        a webhook's asks are on disk, CleverTap has no answer yet
//	           FileUploaded      the file is at Sendbird's, nobody was notified yet
//	           CallNoted         a call's intent is on disk, nothing has left yet
//	           CallAnswered      Sendbird has answered, nothing of it is noted yet
//	           CallHeld          a call is held, no checkpoint knows of it yet
//	           UnsentListed      who was not sent to is listed, no checkpoint says so yet
//	           SenderWritten     the sender's checkpoint is on disk, it has no answer yet
//	           HeldForgotten     a held call was decided and is gone
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
	AsksStored        Point = "sender-asks-stored"
	FileUploaded      Point = "sender-file-uploaded"
	CallNoted         Point = "sender-call-noted"
	CallAnswered      Point = "sender-call-answered"
	CallHeld          Point = "sender-call-held"
	UnsentListed      Point = "sender-unsent-listed"
	SenderWritten     Point = "sender-checkpoint-written"
	HeldForgotten     Point = "sender-held-forgotten"
	Restarting        Point = "guard-restarting"
)

// Points returns all of them.
func Points() []Point {
	return []Point{
		Stored, Uploaded, LettersStored, CheckpointWritten, Turn,
		BeforeTrim, AfterTrim, Replayed, LettersKept,
		AsksStored, FileUploaded, CallNoted, CallAnswered, CallHeld, UnsentListed, SenderWritten, HeldForgotten,
		Restarting,
	}
}
