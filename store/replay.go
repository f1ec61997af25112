package store

import (
	"context"
	"time"

	"github.com/birdtap/birdtap/store/failpoint"
)

// ReplayOptions says which dead letters go back on the queue.
type ReplayOptions struct {
	Choose func(*Letter) bool
	Limit  int     // at most so many; 0 = all
	Rate   float64 // receipts/s; 0 = as fast as it goes
	// Renew makes the receipt that goes on the queue; default: as it was. One
	// refused at the door is judged anew here.
	Renew func(Letter) Receipt
	// Unread tells of a letter that nobody could read which campaign it is of, so that
	// it was not counted when it died; its next life may say. Default: none is.
	Unread   func(Letter) bool
	Progress func(replayed int) // called after every commit; may be nil
}

// Replay puts dead letters back on the queue, in the order in which they died, except
// that what an earlier replay or purge left of a message stands behind the others, and
// returns how many. Each is stored there before it leaves the dead letters: killed
// in between, a receipt may go twice, never not at all. When ctx ends, the letters
// that are on the queue by then have left.
func (s *Store) Replay(ctx context.Context, o ReplayOptions) (int, error) {
	out := s.newReplayer(ReplayDead, o.Rate, o.Progress)
	choose := func(l *Letter) bool { return l.Origin.valid() && o.Choose(l) } // else there is no receipt in it
	return s.takeLetters(ctx, choose, o.Limit, func(letters []Letter) (int, error) {
		before := out.done
		for _, l := range letters {
			r := o.renewed(l)
			unread := o.Unread != nil && o.Unread(l)
			if err := out.add(ctx, &r, unread); err != nil {
				return out.done - before, err
			}
		}
		err := out.flush(ctx)
		return out.done - before, err
	})
}

// renewed is the receipt of a letter for its next life. Its origin is the place of
// the life that just died, never an earlier one.
func (o ReplayOptions) renewed(l Letter) Receipt {
	r := l.Receipt
	if o.Renew != nil {
		r = o.Renew(l)
	}
	r.Origin, r.Accepted = l.Origin, l.Receipt.Accepted
	return r
}

// replayer commits receipts as frames that are marked with how they came. It copies
// what it is given, and holds one frame at most.
type replayer struct {
	store    *Store
	how      Replay
	pace     pace
	progress func(done int) // may be nil

	frame  packet
	unread bool // those in the frame; see ReplayOptions.Unread
	done   int  // receipts on the queue
}

func (s *Store) newReplayer(how Replay, rate float64, progress func(int)) *replayer {
	r := &replayer{store: s, how: how, pace: pace{rate: rate}, progress: progress}
	r.frame.reset(frameMagic)
	return r
}

// add puts one receipt into the frame that gathers, which is committed before if it is
// full, or of the other kind.
func (r *replayer) add(ctx context.Context, receipt *Receipt, unread bool) error {
	if err := checkReceipt(receipt); err != nil {
		return err
	}
	if r.frame.n >= r.pace.most() || r.frame.full(receiptSize(receipt)) || r.frame.n > 0 && unread != r.unread {
		if err := r.flush(ctx); err != nil {
			return err
		}
	}
	r.unread = unread
	r.frame.buf = appendReceipt(r.frame.buf, receipt)
	r.frame.n++
	return nil
}

// flush commits what has gathered, when it is its time.
func (r *replayer) flush(ctx context.Context) error {
	n := r.frame.n
	if n == 0 {
		return ctx.Err()
	}
	if err := r.pace.wait(ctx, n); err != nil {
		return err
	}
	msg := frameMsg(r.frame.seal(), n, string(r.how))
	if r.unread {
		msg.Header.Set(headerUnread, "true")
	}
	if err := r.store.storeFrame(msg, commandPatience(ctx)); err != nil {
		return err
	}
	failpoint.Here(failpoint.Replayed)
	r.frame.reset(frameMagic)
	r.done += n
	if r.progress != nil {
		r.progress(r.done)
	}
	return nil
}

// pace holds back what would go faster than rate.
type pace struct {
	rate float64   // receipts/s; 0 = as fast as it goes
	next time.Time // when the next ones may go
}

// most is how many may go at once: those of a second, so that a slow rate is even.
func (p *pace) most() int {
	if p.rate <= 0 {
		return maxFrameReceipts
	}
	return min(maxFrameReceipts, max(1, int(p.rate)))
}

// wait until n receipts may go.
func (p *pace) wait(ctx context.Context, n int) error {
	if p.rate <= 0 {
		return ctx.Err()
	}
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	timer := time.NewTimer(p.next.Sub(now))
	defer timer.Stop()
	select {
	case <-timer.C:
		p.next = p.next.Add(time.Duration(float64(n) / p.rate * float64(time.Second)))
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}
