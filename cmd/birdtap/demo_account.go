package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// status is what the daemon says of itself, as an operator asks for it.
func (d *demo) status(ctx context.Context) (statusJSON, error) {
	var st statusJSON
	out, err := d.birdtap.run(ctx, "status", "--json")
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		return st, fmt.Errorf("birdtap status --json: %w", err)
	}
	return st, nil
}

// untilStatus waits for a fact about the daemon's own account, which follows what
// happens at CleverTap by a checkpoint.
func (d *demo) untilStatus(ctx context.Context, what string, fact func(statusJSON) bool) error {
	var failed error
	err := d.until(ctx, sceneWait, what, func() bool {
		var st statusJSON
		st, failed = d.status(ctx)
		return failed != nil || fact(st)
	})
	return errors.Join(failed, err)
}

// settle waits until the daemon is at rest, too, and prints the account. It fails if
// it does not add up.
func (d *demo) settle(ctx context.Context) error {
	if err := d.untilStatus(ctx, "the queue is empty", func(st statusJSON) bool { return st.Queued == 0 }); err != nil {
		return err
	}
	st, err := d.status(ctx)
	if err != nil {
		return err
	}
	f := d.ledger.figures()
	d.voice.say(accountLines(f, st)...)
	if wrong := audit(f, st); len(wrong) > 0 {
		return errors.New("the account does not add up: " + strings.Join(wrong, "; "))
	}
	d.voice.say("", fmt.Sprintf("It adds up: of %s receipts answered 2xx none was lost. %.0f s.",
		count(f.answered), time.Since(d.voice.began).Seconds()))
	return nil
}

// accountLines are the account as a person reads it: what was seen from outside, and
// what birdtap says of itself.
func accountLines(f figures, st statusJSON) []string {
	lines := []string{"", "The account"}
	row := func(n int, what, note string) {
		lines = append(lines, strings.TrimRight(fmt.Sprintf("%9s  %-18s %s", count(n), what, note), " "))
	}
	row(f.sent, "sent", "")
	row(f.answered, "answered 2xx", fmt.Sprintf("some at a later try: %s posts were cut off or answered 503", count(f.cut)))
	row(f.seen, "seen at CleverTap", "distinct")
	row(f.copies, "duplicates", "taken by CleverTap a second time")
	row(f.dead, "dead", "")
	row(f.waiting, "lost", "answered 2xx, and neither seen nor dead")
	return append(lines, "",
		"birdtap status says of itself:",
		fmt.Sprintf("  accepted %d + replayed %d = delivered %d + deduplicated %d + died %d + queued %d",
			st.Accepted, st.Replayed, st.Delivered, st.Deduplicated, st.Died, st.Queued))
}

// audit says what does not add up, once nothing moves any more.
//
// A post that was cut off may have been stored: birdtap may have accepted more than
// it could answer, by so many at most, and drops the second copy. A call that was
// cut off may have been taken: CleverTap may have more copies than birdtap counts as
// delivered.
func audit(f figures, st statusJSON) []string {
	var wrong []string
	want := func(ok bool, format string, args ...any) {
		if !ok {
			wrong = append(wrong, fmt.Sprintf(format, args...))
		}
	}
	n := func(u uint64) int { return int(u) } //nolint:gosec // counts of a demo
	want(f.answered > 0, "nothing was answered 2xx")
	want(f.waiting == 0, "%d receipts answered 2xx are lost", f.waiting)
	want(f.strange == 0, "%d records at CleverTap were never sent like that", f.strange)
	want(f.inverted == 0, "%d READ came to CleverTap before their SENT", f.inverted)

	want(st.Accepted+st.Replayed == st.Delivered+st.Deduplicated+st.Died+st.Queued,
		"accepted %d + replayed %d is not delivered %d + deduplicated %d + died %d + queued %d",
		st.Accepted, st.Replayed, st.Delivered, st.Deduplicated, st.Died, st.Queued)
	want(f.guests > 0 || n(st.Accepted) >= f.answered && n(st.Accepted) <= f.answered+f.cut,
		"birdtap says %d accepted, but %d were answered 2xx and %d posts cut off", st.Accepted, f.answered, f.cut)
	delivered := f.seen + f.guests
	want(n(st.Delivered) >= f.seen && n(st.Delivered) <= delivered+f.copies,
		"birdtap says %d delivered, but CleverTap has %d and %d copies", st.Delivered, delivered, f.copies)
	want(f.guests > 0 || n(st.Dead) == f.dead, "birdtap says %d dead, but CleverTap refused %d", st.Dead, f.dead)
	want(st.Dead+st.Purged+st.Replayed >= st.Died, "of %d that died, %d dead + %d replayed + %d purged are fewer",
		st.Died, st.Dead, st.Replayed, st.Purged)
	return wrong
}
