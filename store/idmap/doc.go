// Package idmap is the map from Sendbird user ids to CleverTap identities as one
// file: built once, never changed, read from disk.
//
// # The file
//
// Entries stand in the order of a hash of the user id, in blocks of about 4 KiB. An
// index of the blocks, 16 bytes for each, is the only part held in memory: 2 MiB for
// ten million users. A lookup is a search in the index and one read of one block.
//
//	head    "BTIDMAP1"
//	blocks  each: entries, then a CRC-32C of them, 4 bytes
//	        an entry: uvarint length, user id, uvarint length, identity
//	index   for each block: hash of its first entry, offset, 8 bytes each
//	tail    offset of the index, number of blocks, number of users, 8 bytes each,
//	        then a SHA-256 of all bytes before it
//
// Numbers are big endian. The hash is the first 64 bits of the user id's SHA-256, so
// that nobody can choose ids that pile up in one block. Entries of equal hash share a
// block. What is stored outlives a deploy: a file of another layout gets another head.
//
// Open reads the whole file and refuses it unless the SHA-256 is right, so half a file
// or a flipped bit is never used; the sum is also the map's version. Each lookup checks
// its block again.
//
// # Why no library
//
// bbolt, opened read-only, maps its file: after a million lookups in ten million users
// 490 MiB of it were resident, and a lookup took four times as long. Its format is made
// for changes, of which there are none here, and has no checksum over the data.
package idmap
