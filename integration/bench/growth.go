package main

import (
	"context"
	"fmt"
)

// How cost grows: from one caller who waits for each answer to many at once, from one
// receipt a body to a thousand, from a queue that is nearly empty to one of a long outage.
var (
	growingConnections = []int{1, 16, 64, 256}
	growingRecords     = []int{1, 10, 1000}
	growingBacklogs    = []int{10_000, 1_000_000, 10_000_000}
)

// growth measures the door and the backlog in steps. The rows have no bars.
func (b *run) growth(ctx context.Context) error {
	if err := b.open(); err != nil {
		return err
	}
	for _, records := range growingRecords {
		if err := b.growDoor(ctx, records); err != nil {
			return err
		}
	}
	for _, queued := range growingBacklogs {
		b.queued = queued
		if err := b.backlog(ctx); err != nil {
			return err
		}
	}
	return nil
}

// growDoor measures bodies of so many receipts, with a birdtap of its own that does
// not upload.
func (b *run) growDoor(ctx context.Context, records int) error {
	return b.with(ctx, func(i *installation) error {
		if err := b.hold(ctx, i); err != nil {
			return err
		}
		for _, connections := range growingConnections {
			o, err := b.generate(load{Address: i.doors, Connections: connections, Records: records, Seconds: b.seconds})
			if err != nil {
				return err
			}
			b.add(row{
				Name: fmt.Sprintf("%s per POST, %d connections", thousands(float64(records)), connections), Value: o.rate(), Unit: "/s",
				Note: fmt.Sprintf("p50 %.2f ms, p99 %.2f ms", o.P50, o.P99) + refusedNote(o.Refused),
			})
		}
		return nil
	})
}
