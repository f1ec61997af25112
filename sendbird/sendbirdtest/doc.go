// Package sendbirdtest is a faithful, scriptable fake of Sendbird's notification
// API, of the host that takes its files, and of the parts of Chat and Desk that have
// to do with users, customers and tickets: a real HTTP server that answers as
// documented, and misbehaves as told.
//
//	s, err := sendbirdtest.Start("127.0.0.1:0", sendbirdtest.Options{Token: "t"})
//	s.Script(sendbirdtest.Messages, sendbirdtest.Status(503, nil, "")) // the next send
//	s.Always(sendbirdtest.Upload, sendbirdtest.ResetAfterBody())       // until s.Normal()
//	s.Delivered("user-1")                                              // how often it reached that user
//	s.User("user-1")                                                   // what Chat has of that user
//
// What one call meets, in this order:
//
//	other path or method → 404 or 405, not logged
//	over the rate limit  → 429, takes no scripted step
//	scripted, or Always  → that Behaviour
//	normally             → the token, the body, then what the call is about
//
// A call is decided and logged before it is answered: a notification whose answer
// gets lost stands in the log all the same. The client that uploads to it must
// allow its host by name, as 127.0.0.1:port.
//
// Where no source tells what Sendbird does, a comment says "guess". The package
// does not import testing, for `birdtap demo` shows it to users.
package sendbirdtest
