package ingest

import "golang.org/x/sys/unix"

const (
	defaultMaxConns = 4096

	// spareDescriptors is what the rest of the process may need beside the doors: the
	// queue's files, calls to CleverTap, the operator's window, commands.
	spareDescriptors = 100
)

// affordableConns is how many connections the doors take of a process that may have so
// many descriptors open; 0: nobody knows. Callers who only hold connections must not keep
// the queue from opening a file, CleverTap from being called, or health from being asked.
func affordableConns(descriptors uint64) int {
	if descriptors == 0 {
		return defaultMaxConns
	}
	left := descriptors / 4
	if descriptors > spareDescriptors {
		left = max(left, descriptors-spareDescriptors)
	}
	return int(min(max(left, 1), defaultMaxConns))
}

// descriptors is how many files and connections this process may have open; 0: nobody
// says.
func descriptors() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return limit.Cur
}
