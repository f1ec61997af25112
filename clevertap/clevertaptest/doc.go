// Package clevertaptest is a faithful, scriptable fake of CleverTap's upload
// call: a real HTTP server that answers byte for byte as CleverTap was recorded
// to, and misbehaves as told.
//
//	s, err := clevertaptest.Start("127.0.0.1:0", clevertaptest.Options{AccountID: "a", Passcode: "p"})
//	s.Script(clevertaptest.Status(503, nil, ""))       // the next call
//	s.Always(clevertaptest.ResetAfterBody())           // all after it, until s.Normal()
//	s.Each(func(c clevertaptest.Call) clevertaptest.Behaviour { … }) // or as each call deserves
//	s.Judge(func(r clevertaptest.Record) int { … })    // 555 for this record, 0 for that one
//
// What one call meets, in this order:
//
//	other path or method   → 404 or 405, and a GET anywhere 200 with nothing; not logged
//	over the limit         → 429, takes no scripted step
//	scripted, Each, Always → that Behaviour
//	normally               → 401, 400, or records judged one by one and 200
//
// A call is in flight from its arrival until just before the last byte of its
// answer leaves, so a client that begins the next call on that byte is never
// counted twice. It is decided and logged before it is answered: a call whose
// answer gets lost stands in the log with what was taken.
//
// Where no source tells what CleverTap does, a comment says "guess". The package
// does not import testing, for `birdtap demo` shows it to users.
package clevertaptest
