// Package relay is the journey out: read → dedup → batch → upload → verdict →
// settle → checkpoint. Read it in that order: read.go, dedup.go, batch.go,
// relay.go, verdict.go (with flight.go, a batch on its way, and pace.go, when a
// call may start), settle.go. Who may do all this is term.go.
//
// What it promises:
//
//   - At least once. A receipt leaves the queue only when CleverTap accepted it,
//     when it is a copy of one within the dedup window, or when it is stored as a
//     dead letter. What a crash repeats is at most the calls in flight times 1000
//     records.
//   - Order. Of one user's receipts none is sent before CleverTap has accepted, or
//     refused for good, the one that came before it. There are two exceptions: a
//     user with more than 100 waiting may fill a batch, in order, where a record
//     that CleverTap wants again (555) may be overtaken; and a dead letter that is
//     replayed comes when it comes.
//   - Patience. Trouble of the destination (timeouts, 5xx, 429, 401, 403, 404) is
//     waited out, for days if need be. Nothing goes dead of it.
//   - Never more calls in flight than the limit, over all relays of an account.
//   - Bounded memory, whatever waits on the queue.
//
// Dead means: CleverTap said no to this very record, with a code, or to every call
// that carried it while it said yes to others. The record is kept, with its reason,
// and can be replayed.
package relay
