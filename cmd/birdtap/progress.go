package main

import (
	"io"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/birdtap/birdtap/store"
)

// progress shows a person at a terminal how far a command has got: a bar where the
// end is known, else a count. nil shows nothing, and every method takes that.
type progress struct{ bar *progressbar.ProgressBar }

// progress is a new one on stderr. There is none where stderr is no terminal, and
// none beside JSON. total is how many of unit there are to do; negative: that is not known.
func (p *program) progress(what, unit string, total int, asJSON bool) *progress {
	if asJSON || !isTerminal(p.err) {
		return nil
	}
	return newProgress(p.err, what, unit, total)
}

// drawEvery bounds how often the bar is drawn.
const drawEvery = 100 * time.Millisecond

func newProgress(to io.Writer, what, unit string, total int) *progress {
	if total == 0 {
		return nil // there is nothing to wait for
	}
	return &progress{progressbar.NewOptions(total,
		progressbar.OptionSetWriter(to),
		progressbar.OptionSetDescription(what),
		progressbar.OptionShowCount(),
		progressbar.OptionShowIts(),
		progressbar.OptionSetItsString(unit),
		progressbar.OptionThrottle(drawEvery),
		progressbar.OptionSetRenderBlankState(true),   // at once: the first receipts may take a while
		progressbar.OptionSetSpinnerChangeInterval(0), // it moves with the count, and needs no goroutine
		progressbar.OptionClearOnFinish(),
	)}
}

// set says how much is done by now.
func (b *progress) set(done int) {
	if b != nil {
		_ = b.bar.Set(done) // a terminal that cannot be written to is no trouble of the command's
	}
}

// end takes the bar away, so that the next words have the line to themselves.
func (b *progress) end() {
	if b != nil {
		_ = b.bar.Clear()
		_ = b.bar.Exit()
	}
}

// counting is choose, and counts what it picks. For a command that does at once what
// was picked.
func (b *progress) counting(choose func(*store.Letter) bool) func(*store.Letter) bool {
	if b == nil {
		return choose
	}
	n := 0
	return func(l *store.Letter) bool {
		picked := choose(l)
		if picked {
			n++
			b.set(n)
		}
		return picked
	}
}
