// Package clevertap is everything CleverTap says about uploading events, and
// nothing of ours: hosts, limits, record codes, and a client that makes one
// call and types what came back.
//
// It speaks the upload call as documented in 2026:
//
//	POST https://api.clevertap.com/1/upload
//	X-CleverTap-Account-Id: …
//	X-CleverTap-Passcode: …
//
//	{"d":[{"type":"event","identity":"u1","ts":1468308340,"evtName":"…","evtData":{"k":"v"}}, …]}
//
// The interface has no request id and no idempotency key. So a call whose answer
// is lost may have been taken or not, and nobody can ask; the client never
// repeats a call by itself (see [Client.Upload]), the caller decides.
//
// An HTTP 200 is not yet success: single records are refused inside of it, each
// named by its place in the call and by an echo. The client believes an answer
// only if it accounts for every record (see [Result]).
//
// Pages: https://developer.clevertap.com/docs/upload-events-api,
// https://developer.clevertap.com/docs/common-api-components (hosts, headers),
// https://developer.clevertap.com/docs/api-request-limit,
// https://developer.clevertap.com/docs/api-errors.
package clevertap
