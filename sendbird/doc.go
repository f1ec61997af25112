// Package sendbird is everything Sendbird says, and nothing of ours: how its
// calls are signed, and a client for the calls it takes.
//
// Pages: https://sendbird.com/docs/chat/platform-api/v3/webhook/webhook-overview
// (signature), https://sendbird.com/docs/business-messaging (notifications,
// webhooks), https://sendbird.com/docs/chat/platform-api/v3 (users).
package sendbird
