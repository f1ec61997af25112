//go:build integration

package integration

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// memoryOf is a figure of /proc/PID/status in bytes, such as VmRSS, what the process
// has in memory now, or VmHWM, the most it ever had. 0 if the process is gone.
func memoryOf(pid int, figure string) int64 {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		rest, ok := strings.CutPrefix(line, figure+":")
		if !ok {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		if err != nil {
			return 0
		}
		return kib << 10
	}
	return 0
}

// descriptorsOf is how many files and sockets a process has open. 0 if it is gone.
func descriptorsOf(pid int) int {
	list, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "fd"))
	if err != nil {
		return 0
	}
	return len(list)
}
