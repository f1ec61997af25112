package main

import (
	"context"
	"debug/buildinfo"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// machine is what the figures were measured on.
type machine struct {
	When       time.Time `json:"when"`
	Processor  string    `json:"processor"`
	Cores      int       `json:"cores"`
	Kernel     string    `json:"kernel"`
	Load       string    `json:"load"` // average of the last minute, before the bench
	Go         string    `json:"go"`
	Commit     string    `json:"commit"`
	FileSystem string    `json:"file_system"`
	FsyncP50   float64   `json:"fsync_p50_ms"` // of 4 KiB appended
	FsyncP99   float64   `json:"fsync_p99_ms"`
}

func lookAround(ctx context.Context, dir, binary string) (machine, error) {
	m := machine{
		When:       time.Now().UTC().Truncate(time.Second),
		Processor:  field("/proc/cpuinfo", "model name"),
		Cores:      runtime.NumCPU(),
		Kernel:     runtime.GOOS + " " + firstWord("/proc/sys/kernel/osrelease"),
		Load:       firstWord("/proc/loadavg"),
		Go:         goOf(binary),
		Commit:     commit(ctx),
		FileSystem: fileSystem(dir),
	}
	times, err := measureFsync(dir)
	if err != nil {
		return m, err
	}
	m.FsyncP50, m.FsyncP99 = milliseconds(quantile(times, 0.5)), milliseconds(quantile(times, 0.99))
	return m, nil
}

// goOf is the Go that built a binary.
func goOf(binary string) string {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return unknown
	}
	return info.GoVersion
}

func (m machine) print(out io.Writer) {
	fmt.Fprintf(out, "%s, commit %s, %s\n", m.When.Format(time.RFC3339), m.Commit, m.Go)
	fmt.Fprintf(out, "%s, %d cores shared with the load generator and the sink, %s, load before %s\n", m.Processor, m.Cores, m.Kernel, m.Load)
	fmt.Fprintf(out, "queue on %s, fsync of 4 KiB: p50 %.2f ms, p99 %.2f ms\n", m.FileSystem, m.FsyncP50, m.FsyncP99)
	fmt.Fprintf(out, "receipts of %d bytes as posted\n\n", recordBytes)
}

// measureFsync appends and syncs as a log would, and returns the sorted times.
func measureFsync(dir string) ([]time.Duration, error) {
	f, err := os.CreateTemp(dir, "fsync-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	page := make([]byte, 4<<10)
	var times []time.Duration
	for range 200 {
		if _, err := f.Write(page); err != nil {
			return nil, err
		}
		began := time.Now()
		if err := f.Sync(); err != nil {
			return nil, err
		}
		times = append(times, time.Since(began))
	}
	slices.Sort(times)
	return times, nil
}

const unknown = "unknown"

// field reads `name : value` of a file of the kernel's.
func field(file, name string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return unknown
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return unknown
}

func firstWord(file string) string {
	text, err := os.ReadFile(file)
	if err != nil || len(strings.Fields(string(text))) == 0 {
		return unknown
	}
	return strings.Fields(string(text))[0]
}

// fileSystem names the type and device of the one that holds dir.
func fileSystem(dir string) string {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if dir, err2 := filepath.EvalSymlinks(dir); err == nil && err2 == nil {
		return fileSystemOf(string(mounts), dir)
	}
	return unknown
}

// fileSystemOf takes the last of the longest mount points that dir is below.
func fileSystemOf(mounts, dir string) string {
	found, longest := unknown, 0
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		point := strings.TrimSuffix(f[1], "/") + "/"
		if strings.HasPrefix(dir+"/", point) && len(point) >= longest {
			found, longest = f[2]+" ("+f[0]+")", len(point)
		}
	}
	return found
}

// commit is that of the working directory, and whether it has been changed since.
func commit(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty=, changed since").Output()
	if err != nil {
		return unknown
	}
	return strings.TrimSpace(string(out))
}
