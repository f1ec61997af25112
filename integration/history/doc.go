// Package history tells whether receipts got lost, from outside. A [Client] sends
// receipts and writes down what it was told; a [Received] writes down what came out
// at the fake CleverTap; [Check] compares the two, and the dead letters, in one pass.
//
//	lost        answered 2xx, and neither seen at CleverTap nor among the dead
//	invented    seen, and never sent
//	forbidden   answered 4xx, and seen or dead all the same
//	recovered   no answer or 5xx, and seen: the client could not know
//	duplicate   one more time seen than once
//	inversion   a receipt taken before an earlier one of its user
//	changed     seen with other fields than it was sent with
//	misjudged   dead for another reason than it was made to be
//	odd         an answer that contradicts what was sent, or itself
//
// Every receipt bears its id, its user's sequence number and its fate in properties
// that birdtap has to carry unchanged. Nothing here trusts birdtap's own counters.
package history
