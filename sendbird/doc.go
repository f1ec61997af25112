// Package sendbird is everything Sendbird says, and nothing of ours: how its
// calls are signed, and a client for the calls it takes.
//
// The client speaks the notification API (Business Messaging):
//
//	POST https://api-{application id}.notifications.sendbird.com/v1/notifications/messages
//	Api-Token: …
//
//	{"template":{"key":"…","variables":{"user-1":{"name":"Jay"}}},"targets":["user-1"],"mode":"realtime"}
//
// and parts of Chat and Desk, each with a host and a token of its own:
//
//	api-{application id}.sendbird.com       users, metadata       /v3/…
//	desk-api-{application id}.sendbird.com  customers, tickets    /platform/v1/…
//
// A notification sent twice annoys a person, and the interface has no
// idempotency key. So the client makes one attempt per call of that interface and
// never repeats one by itself. What is done in Chat and Desk is done once however
// often it is asked for, but for tickets; there the client repeats what failed, see
// [RetriedError]. Its errors tell a clean refusal (nothing was done, the call may be
// made again) from an unknown outcome (it may have been carried out, nobody can
// ask); see [OutcomeOf].
//
// An HTTP 200 is not yet success: an answer may say "error": true inside of it.
// Sendbird's code counts more than the status that it comes with.
//
// How the three ways to send differ in their limits, all checked before the call:
//
//	realtime       1 user                  at once
//	batch          up to 10,000 users      "without running into rate limit issues"
//	batch by file  up to 100,000 users     a CSV file, uploaded before; string variables only
//
// Pages: https://sendbird.com/docs/chat/platform-api/v3/webhook/webhook-overview
// (signature), https://sendbird.com/docs/business-messaging (notifications,
// webhooks), https://sendbird.com/docs/chat/platform-api/v3 (users, error codes,
// rate limits).
package sendbird
