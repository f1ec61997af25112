// Package ingest is the doors that receipts come in by.
//
// A call is authenticated, read, parsed strictly, turned into receipts and
// committed, and only then answered: 200 means that its receipts are on disk.
// Nobody behind us retries for days, so a call that comes in is answered within
// 4 s of the last byte of its body, whatever happens to the queue.
//
//	POST /1/upload, POST /, further paths   CleverTap's upload call, with its two headers
//	POST /sendbird/callbacks                the same body, signed by Sendbird
//
// All answers, as CleverTap words them:
//
//	200 success, partial, fail   stored; "unprocessed" lists the records refused, each with its code
//	400 Malformed request        not JSON of a known shape, or it could not be read to its end; nothing is stored
//	401 Invalid Credentials      account or passcode; before the body is looked at
//	401 Invalid Signature        after reading the body, before parsing it
//	404, 405                     before any credential is looked at
//	413                          a body over 5 MiB
//	415                          a content encoding
//	500                          a panic; whether something was stored is not known
//	503 with Retry-After         not ready, queue full, disk failing, too much at once; it may have been stored after all
//
// Where an identity map is loaded, the member "identity" of a good record is looked up
// in it as a Sendbird user id and replaced, see Mapper. A record whose user is not in
// the map, or cannot be looked up now, is, to the caller, like any other.
//
// A signed record may name a notification and its user in place of event name, target id
// and identity, where birdtap's sender notes what it sends; see Sends.
//
// A refused record of at most 128 KiB is stored beside the good ones, marked as
// refused: nobody at Sendbird reads "unprocessed".
package ingest
