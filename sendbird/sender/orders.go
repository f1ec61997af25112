package sender

import (
	"context"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/birdtap/birdtap/store"
)

// What an operator may decide about a held call.
const (
	orderRelease = "release" // send it again
	orderDrop    = "drop"    // give it up
)

// orderEvery is how soon a decision is seen.
const orderEvery = time.Second

// watchOrders brings the operator's decisions to the loop. They are read apart from the
// log: where so many calls are held that nothing else moves they have to get through.
func (t *term) watchOrders(ctx context.Context) {
	for ; ctx.Err() == nil; wait(ctx, orderEvery) {
		orders, err := t.opts.Sends.Orders(ctx)
		if err != nil || len(orders) == 0 {
			continue // the store says so, and it is looked at again
		}
		t.send(ctx, func() {
			for _, o := range orders {
				t.order(o)
			}
		})
	}
}

// order carries a decision out. A drop may take the place of a release that has not left
// yet; anything else that is under way goes on.
func (t *term) order(o store.Order) {
	before, underWay := t.orders[o.ID]
	if o.Seq <= t.orderedTo[o.ID] || underWay && o.Seq == before.Seq {
		return // looked up before it was carried out
	}
	i := slices.IndexFunc(t.held, func(h heldCall) bool { return h.ID == o.ID })
	if i < 0 {
		t.log.Warn("there is no held call of this id any more: nothing to release or drop", zap.String("id", o.ID[:min(len(o.ID), 64)]))
		t.isCarriedOut(o)
		return
	}
	of := func(c *call) bool { return c.released == o.ID }
	if slices.ContainsFunc(slices.Collect(maps.Values(t.carried)), of) {
		return // when it is through, this one is looked at again
	}
	t.batches = slices.DeleteFunc(t.batches, of)
	t.orders[o.ID] = o
	h := t.held[i]
	c := t.newCall(&gathering{users: h.Users}, h.Mode)
	c.order, c.released, c.dropped, c.again = o, o.ID, string(o.Decision) != orderRelease, true
	t.batches = slices.Insert(t.batches, 0, c)
}

// overtaken tells whether the operator has decided anew, while it waited for its turn, about
// a call that is to be released. It tells so, too, when that cannot be known.
func (t *term) overtaken(ctx context.Context, c *call) bool {
	if c.released == "" {
		return false
	}
	orders, err := t.opts.Sends.Orders(ctx)
	return err != nil || slices.ContainsFunc(orders, func(o store.Order) bool { return o.ID == c.released && o.Seq > c.order.Seq })
}

// isCarriedOut has a decision forgotten once a checkpoint says what came of it.
func (t *term) isCarriedOut(o store.Order) {
	delete(t.orders, o.ID)
	t.orderedTo[o.ID] = o.Seq
	t.carriedOut = append(t.carriedOut, o)
	t.dirty = true
}

// launchDrops gives up what is to be given up. That calls nobody, so it waits for nothing.
func (t *term) launchDrops(ctx, stop context.Context) {
	isDrop := func(c *call) bool { return c.dropped }
	for _, c := range slices.Clone(t.batches) {
		if isDrop(c) {
			t.launch(c, func() { t.carry(ctx, stop, c) })
		}
	}
	t.batches = slices.DeleteFunc(t.batches, isDrop)
}

// cancelOrders ends releases that the last term had noted: nobody knows whether they have
// gone out, so they are not carried out once more by themselves. The order goes first: a
// crash before the note is gone comes here again.
func (t *term) cancelOrders(ctx context.Context) error {
	for number, n := range t.noted {
		if n.Released == "" {
			continue
		}
		orders, err := t.opts.Sends.Orders(ctx)
		if err != nil {
			return err
		}
		for _, o := range orders {
			if o.ID != n.Released {
				continue
			}
			if err := t.opts.Sends.Ordered(ctx, o); err != nil {
				return err
			}
		}
		t.log.Error("a held call was on its way again when the last sender ended: it is still held, and may have arrived", zap.String("id", n.Released))
		delete(t.noted, number)
		t.dirty = true
	}
	return nil
}
