// Package store keeps receipts at rest: the queue, the dead letters, and what the
// relay knows to be settled.
//
// # Streams
//
// Everything is a message in one of three JetStream streams, on a nats-server in this
// process (the embedded queue) or on a cluster. With the prefix BIRDTAP:
//
//	stream             subject                 a message is
//	BIRDTAP_RECEIPTS   BIRDTAP.receipts        a frame: up to 1000 receipts, 512 KiB
//	BIRDTAP_DEAD       BIRDTAP.dead            up to 1000 dead letters that died together
//	BIRDTAP_STATE      BIRDTAP.state.relay     the checkpoint, which is also the relay's lease
//	                   BIRDTAP.state.pause     whether uploading is paused
//	                   BIRDTAP.state.purged    how many dead letters were given up
//	                   BIRDTAP.state.campaigns.<owner>.<page>   counts per campaign, see Campaigns
//
// The relay hears of a pause or resume on the subject BIRDTAP.news.pause, which no stream
// stores.
//
// The identity map is one object in a bucket of its own, OBJ_BIRDTAP_IDENTITIES, made by
// the first import; see identities.go. It is no part of the queue: its loss loses no
// receipt, and its room comes on top.
//
// Receipts and letters stay until they are removed by name: a stream that is full
// refuses (ErrFull) and drops nothing. The state stream keeps the last message of each
// subject.
//
// # Durable
//
// Commit, Bury, WriteCheckpoint and SetPaused return nil when what they were given is
// on disk: written and fsynced by the embedded server (SyncAlways), or held by two of
// three servers in a cluster that syncs, too (sync_interval: always in its
// configuration). JetStream's default is another: it acknowledges first and syncs every
// two minutes. After a power cut such a server had lost 200 of 200 acknowledged
// messages, and the stream itself; one that syncs always, none. Killing the process
// never shows the difference, since the kernel keeps what was written.
//
// An fsync for every receipt would be slow. So commits that arrive while one is on its
// way to the disk share the next frame, and one fsync pays for all of them; there is
// no timer, and a lone receipt does not wait.
//
// With SyncInterval the embedded server syncs once a second and acknowledges before:
// a power cut loses up to about that second. The next start says so, and goes on
// behind what the checkpoint knows.
//
// An error means: not known to be stored. A commit waits at most 3 s for its answer,
// since a server whose disk is full or broken gives none; what timed out may be there
// nevertheless. Whoever is told an error sends again, and the relay's dedup finds the
// copy.
//
// # The queue is a log
//
// Receipts are read by position (Reader) and named by it (Place: sequence of the frame,
// index in it). What is settled stands in the checkpoint: everything below its floor,
// and ranges and bitmaps above. Frames below the floor stay for a while, for the dedup
// window and for a replay of what was delivered, until a Trimmer purges them from the
// front. Their room is KeepMaxBytes, beside QueueMaxBytes for what waits: delivered
// receipts never take the room of waiting ones.
//
// # Never done
//
//   - No MaxAge, and no limit by number: both delete what waits, silently. A stream
//     that has one is refused at the start.
//   - No acknowledgements. An ack of a log is written ten times a second, so a crash
//     takes the last ones back; what was pending comes again behind later messages,
//     out of order; and every ack would be one more synced write.
//   - No message ids for deduplication. A server drops a different message of an equal
//     id and acknowledges it, and the ids of two minutes make a start slow.
//   - No key-value bucket: its index lives in memory.
//
// # The data directory
//
//	lock           held by the process that has the directory open; nats-server takes none
//	birdtap.json   the directory is birdtap's; "queue": true once all streams exist
//	jetstream/     nats-server's own
//	identities/    the daemon's copy of the identity map; may be deleted while none runs
//	newest         where the queue ended at the guard's last look
//	damaged/       copies of damaged bytes, at most 64 MiB; may be deleted
//	nats.url       while a daemon runs: where commands reach its queue, with a random
//	               token, on loopback; mode 0600
//
// A directory that holds something else is refused and left as it is. Where a queue had
// been, birdtap does not start with an empty or a shorter one: a missing folder, a
// missing stream, a log that ends before what the checkpoint says is settled are errors
// that name the way out. What is damaged and leaves the rest usable is told as an error in
// the log at the start, or when it is read, and the rest flows: frames or dead letters
// that are missing, a checkpoint that does not read. What a newer birdtap has written is
// not damaged: frames, letters and checkpoints of a later format stay as they are until
// that version runs again, and nothing is delivered from an older checkpoint meanwhile.
//
// After a crash nats-server cuts a file at the first message that is not whole, silently.
// So the files are read before it does, see repair.go: a damaged message is lost and told
// as an error, the ones behind it stay.
//
// # Health
//
// Ready tells whether a receipt sent now would be stored, as of the last six seconds at
// most. A stream that a disk error froze stays so until its server starts anew: the
// store does that once, when the disk has room again, and a second time reports through
// Failed, so that the process may end. Below 8 % of free space commits are refused
// while the relay drains, because a disk that is really full freezes the stream.
package store
