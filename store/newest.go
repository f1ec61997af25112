package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"go.uber.org/zap"
)

// newestFile holds the sequence of the newest frame, as of the guard's last look. A file of
// the queue that was cut between two frames looks as if it had never been longer; this
// tells.
const newestFile = "newest"

// noteNewest writes it down, when it has changed. It is not synced: a power cut takes what
// was not on disk anyway.
func (e *embedded) noteNewest(seq uint64) {
	if seq == e.newest.Load() {
		return
	}
	path := filepath.Join(e.opts.DataDir, newestFile)
	err := os.WriteFile(path+newSuffix, []byte(strconv.FormatUint(seq, 10)+"\n"), 0o600)
	if err == nil {
		err = os.Rename(path+newSuffix, path)
	}
	if err == nil {
		e.newest.Store(seq)
	}
}

// tellCut says that the queue ends before where it ended when it was last looked at.
func (e *embedded) tellCut(last uint64) {
	path := filepath.Join(e.opts.DataDir, newestFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	noted, parsed := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	if err != nil || parsed != nil {
		e.opts.Log.Named("store").Warn("cannot read where the queue ended", zap.String("file", path), zap.NamedError("read", err), zap.NamedError("parse", parsed))
		return
	}
	if last < noted {
		e.opts.Log.Named("store").Error("the queue ends before where it ended when it was last looked at: its files were cut, or a power cut took what was not on disk; "+
			"receipts that waited there are lost, and a backup may have them", zap.Uint64("last_sequence", last), zap.Uint64("had_sequence", noted))
	}
}
