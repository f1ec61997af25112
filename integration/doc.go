// Package integration looks at birdtap from outside: real processes and containers,
// a real nats-server, real faults, and a checker that believes none of birdtap's own
// counters. Its tests have the build tag integration; make integration runs them.
//
// All that is drawn at random comes of a seed that every test prints. SEED=n in the
// environment draws the same again; the machine's own timing remains.
package integration
