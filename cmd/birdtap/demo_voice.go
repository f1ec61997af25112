package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// voice tells the story. Its last line is a live one with the figures of the moment:
// on a terminal it is written over, elsewhere it comes as a line of its own now and
// then, without control characters.
type voice struct {
	out      io.Writer
	terminal bool
	figures  func() figures

	mu      sync.Mutex
	began   time.Time
	every   time.Duration // between two lines of figures where there is no terminal
	last    time.Time
	live    bool // the figures stand on the terminal's last line
	stopped chan struct{}
	ended   sync.WaitGroup
}

const (
	redrawEvery = 150 * time.Millisecond
	lineEvery   = 2 * time.Second
	keepEvery   = 10 * time.Second // the same with --keep, which may last
	eraseLine   = "\r\x1b[K"
)

func newVoice(out io.Writer, figures func() figures) *voice {
	return &voice{
		out: out, terminal: isTerminal(out), figures: figures,
		began: time.Now(), every: lineEvery, stopped: make(chan struct{}),
	}
}

// start shows the figures from now on.
func (v *voice) start() {
	v.last = time.Now()
	v.ended.Go(func() {
		tick := time.NewTicker(redrawEvery)
		defer tick.Stop()
		for {
			select {
			case <-v.stopped:
				return
			case <-tick.C:
				v.redraw()
			}
		}
	})
}

// stop shows no more figures, and leaves those on the screen as the last line.
func (v *voice) stop() {
	close(v.stopped)
	v.ended.Wait()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.clear()
}

// step begins a part of the story.
func (v *voice) step(title string, lines ...string) {
	v.say(append([]string{"", title}, indent(lines)...)...)
}

// tell goes on with it.
func (v *voice) tell(lines ...string) { v.say(indent(lines)...) }

// tally is the figures of this moment as a line that stays. A scene ends with it.
func (v *voice) tally() { v.say(v.line()) }

func (v *voice) say(lines ...string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.clear()
	fmt.Fprintln(v.out, strings.Join(lines, "\n"))
	v.last = time.Now()
}

func (v *voice) clear() {
	if v.live {
		fmt.Fprint(v.out, eraseLine)
		v.live = false
	}
}

func (v *voice) redraw() {
	line := v.line()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.terminal {
		fmt.Fprint(v.out, eraseLine+line)
		v.live = true
		return
	}
	if time.Since(v.last) >= v.every {
		fmt.Fprintln(v.out, line)
		v.last = time.Now()
	}
}

// line is at most 80 characters, so that a terminal does not wrap it.
func (v *voice) line() string {
	f := v.figures()
	return fmt.Sprintf("%5.1f s  sent %s  2xx %s  at CleverTap %s  waiting %s  dead %s",
		time.Since(v.began).Seconds(), figure(f.sent), figure(f.answered), figure(f.seen), figure(f.waiting), count(f.dead))
}

// figure is a count of a fixed width, so that the line does not dance.
func figure(n int) string { return fmt.Sprintf("%-6s", count(n)) }

func count(n int) string { return thousands(uint64(max(0, n))) }

func indent(lines []string) []string {
	indented := make([]string, len(lines))
	for i, line := range lines {
		indented[i] = strings.TrimRight("   "+line, " ")
	}
	return indented
}
