package store

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// typical is a receipt of 250 bytes.
func typical(i int) Receipt {
	r := receipt(i)
	r.Record = fmt.Appendf(nil, `{"identity":"user-%d","ts":1700000000,"type":"event","evtName":"Campaign","evtData":{"status":"SENT","target_id":%d,"pad":"%s"}}`,
		i, i, strings.Repeat("x", 100))
	return r
}

func typicals(n int) []Receipt {
	rs := make([]Receipt, n)
	for i := range rs {
		rs[i] = typical(i)
	}
	return rs
}

func perSecond(b *testing.B, receipts int) {
	b.ReportMetric(float64(receipts)/b.Elapsed().Seconds(), "receipts/s")
}

func BenchmarkCommit(b *testing.B) {
	for _, callers := range []int{1, 64, 1024} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			s := openStore(b, queueOf(8<<30))
			rs := typicals(1)
			b.ReportAllocs()
			var all sync.WaitGroup
			b.ResetTimer()
			for c := range callers {
				all.Go(func() {
					for i := c; i < b.N; i += callers {
						if err := s.Commit(context.Background(), rs); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			all.Wait()
			perSecond(b, b.N)
		})
	}
	b.Run("receipts=1000", func(b *testing.B) {
		s := openStore(b, queueOf(8<<30))
		rs := typicals(1000)
		b.ReportAllocs()
		for b.Loop() {
			if err := s.Commit(context.Background(), rs); err != nil {
				b.Fatal(err)
			}
		}
		perSecond(b, 1000*b.N)
	})
}

// BenchmarkGather is the group commit without a disk.
func BenchmarkGather(b *testing.B) {
	d := newDisk()
	c := newCommitter(d.ignore, ignored)
	defer c.close()
	rs := typicals(1)
	b.ReportAllocs()
	for b.Loop() {
		if err := c.commit(context.Background(), rs); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFrame(b *testing.B) {
	for _, n := range []int{1, 30, 1000} {
		rs := typicals(n)
		data := encodeFrame(rs)
		b.Run(fmt.Sprintf("encode/receipts=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			var p packet
			for b.Loop() {
				p.reset(frameMagic)
				for i := range rs {
					p.buf = appendReceipt(p.buf, &rs[i])
					p.n++
				}
				p.seal()
			}
			perSecond(b, n*b.N)
		})
		b.Run(fmt.Sprintf("decode/receipts=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := decodeFrame(data); err != nil {
					b.Fatal(err)
				}
			}
			perSecond(b, n*b.N)
		})
	}
}

func BenchmarkRead(b *testing.B) {
	for _, size := range []int{1, 30, 1000} {
		s := openStore(b, queueOf(8<<30), func(o *Options) { o.Sync = SyncInterval })
		n := min(20_000, 1_000_000/size)
		publishMany(b, s, encodeFrame(typicals(size)), size, n)
		b.Run(fmt.Sprintf("reader/receipts=%d", size), func(b *testing.B) {
			b.ReportAllocs()
			read := 0
			for b.Loop() {
				r := s.Read(1)
				for range n {
					f, err := r.Next(context.Background())
					if err != nil {
						b.Fatal(err)
					}
					read += len(f.Receipts)
				}
				r.Close()
			}
			perSecond(b, read)
			b.ReportMetric(float64(read)/float64(size)/b.Elapsed().Seconds(), "frames/s")
		})
		b.Run(fmt.Sprintf("scan/receipts=%d", size), func(b *testing.B) {
			b.ReportAllocs()
			seen := 0
			for b.Loop() {
				if _, err := s.ScanFrames(context.Background(), 1, func(f FrameInfo) { seen += f.Receipts }); err != nil {
					b.Fatal(err)
				}
			}
			perSecond(b, seen)
			b.ReportMetric(float64(seen)/float64(size)/b.Elapsed().Seconds(), "frames/s")
		})
	}
}

// publishMany puts n equal frames on the queue, many on their way at once.
func publishMany(tb testing.TB, s *Store, frame []byte, receipts, n int) {
	tb.Helper()
	for i := range n {
		m := frameMsg(frame, receipts, "")
		m.Subject = s.names.receipts
		if _, err := s.js.PublishMsgAsync(m); err != nil {
			tb.Fatal(err)
		}
		if i%500 == 499 || i == n-1 {
			select {
			case <-s.js.PublishAsyncComplete():
			case <-time.After(20 * time.Second):
				tb.Fatal("published frames are not acknowledged")
			}
		}
	}
}
