// Package sender carries notifications from CleverTap's webhooks, and from files, to
// Sendbird.
//
// # A notification's way
//
//	door     a webhook call becomes asks, each a group of users who get the same
//	         notification; they are on disk before the caller has its 200
//	read     the active sender reads the log of asks in order, drops copies of the same
//	         call, and puts users together who can go in one call to Sendbird
//	note     before a call its intent is written to the checkpoint
//	call     one attempt, at the pace that Sendbird allows
//	settle   the outcome is written to the checkpoint: sent, refused, or held
//
// # What is promised
//
// Nobody whose ask was answered 200 is left out, and nobody is sent a notification
// twice by the sender itself. Sendbird has no idempotency key, so a call whose outcome
// is unknown (no answer, or a crash between note and settle) is held: an operator
// releases it, which sends it again, or drops it. A call that Sendbird is known not to
// have carried out is tried again, for as long as it takes.
//
// # One active sender
//
// The checkpoint is the lease. Every write replaces the revision that its writer knows,
// and only that one, and no call leaves before a write that names it. So two senders can
// never both make the same call, whatever their clocks say: who takes over holds the
// calls that its predecessor had noted.
package sender
