package relay

import (
	"context"
	"fmt"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/birdtap/birdtap/clevertap"
	"github.com/birdtap/birdtap/store"
	"github.com/birdtap/birdtap/store/storetest"
)

// nowhere accepts everything at once.
type nowhere struct{}

func (nowhere) Upload(context.Context, [][]byte) clevertap.Result {
	return clevertap.Result{Kind: clevertap.Accepted, Status: 200}
}

// BenchmarkDrain empties a queue of b.N receipts into nowhere: what the relay itself
// costs, without HTTP. Where each receipt is of a campaign of its own, pages of counts
// are what takes the time.
func BenchmarkDrain(b *testing.B) {
	for name, bench := range map[string]struct {
		perFrame int
		of       func(i int) store.Receipt
	}{
		"30":                   {30, ofFewCampaigns},
		"1000":                 {1000, ofFewCampaigns},
		"1000 campaigns apart": {1000, func(i int) store.Receipt { return storetest.Receipt(i) }},
	} {
		b.Run(name, func(b *testing.B) {
			s := storetest.New(b, func(o *store.Options) { o.QueueMaxBytes = 4 << 30 })
			fill(b, s, b.N, bench.perFrame, bench.of)
			r := New(Options{Queue: s, Uploader: nowhere{}, Embedded: true, MaxInflight: 15, DedupWindow: 2 * time.Minute, Log: zap.NewNop()})
			ctx, stop := context.WithCancel(b.Context())
			ended := make(chan error, 1)
			b.ReportAllocs()
			b.ResetTimer()
			go func() { ended <- r.Run(ctx) }()
			for {
				cp, _, err := s.ReadCheckpoint(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				if cp.Totals.Delivered >= uint64(b.N) {
					break
				}
				<-time.After(time.Millisecond)
			}
			b.StopTimer()
			stop()
			if err := <-ended; err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "receipts/s")
		})
	}
}

// ofFewCampaigns are receipts as a busy day has them.
func ofFewCampaigns(i int) store.Receipt {
	return storetest.Receipt(i, func(r *store.Receipt) {
		r.Record = fmt.Appendf(nil, `{"identity":"user-%d","ts":1700000000,"type":"event","evtName":"Campaign","evtData":{"status":"SENT","target_id":%d}}`, i, 123123+i/500%20)
	})
}

func fill(b *testing.B, s *store.Store, n, perFrame int, of func(i int) store.Receipt) {
	b.Helper()
	for i := 0; i < n; i += perFrame {
		receipts := make([]store.Receipt, 0, perFrame)
		for j := i; j < min(n, i+perFrame); j++ {
			receipts = append(receipts, of(j))
		}
		if err := s.Commit(b.Context(), receipts); err != nil {
			b.Fatal(err)
		}
	}
}
