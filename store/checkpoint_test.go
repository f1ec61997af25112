package store

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/nats-io/nats.go"
)

func fullCheckpoint() Checkpoint {
	p := NewPartial(12, 10)
	p.Set(0)
	p.Set(9)
	return Checkpoint{
		Format: checkpointFormat,
		Term:   3, Holder: "HOLDER", Write: 17, Limit: 7, Out: 2,
		Floor: 5, Settled: Settled{Whole: []Range{{7, 8}, {10, 10}}, Partial: []Partial{p}}, DeadSeq: 4,
		Totals:  Totals{Delivered: 1 << 60, Deduplicated: 2, Died: 3, ReplayedDead: 4, ReplayedDelivered: 5},
		Breaker: "half-open", Rate: 123.5, LastDelivered: time.Unix(1700000000, 0).UTC(),
	}
}

func TestCheckpointKeepsItsFormat(t *testing.T) {
	want := fullCheckpoint()
	data, err := encodeCheckpoint(want)
	if err != nil {
		t.Fatal(err)
	}
	kept := golden(t, "checkpoint-v1.json", data)
	if !bytes.Equal(data, kept) {
		t.Errorf("a checkpoint is written otherwise than before\ngot  %s\nwant %s", data, kept)
	}
	got, err := decodeCheckpoint(kept)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A version to come adds fields; this one reads what it knows.
func TestCheckpointOfALaterVersionIsRead(t *testing.T) {
	cp, err := decodeCheckpoint([]byte(`{"format":1,"term":1,"floor":2,"settled":{"later":1},"totals":{},"later":{"x":[1]}}`))
	if err != nil || cp.Floor != 2 {
		t.Errorf("got %+v, %v", cp, err)
	}
}

func TestNonsensicalCheckpointIsRefused(t *testing.T) {
	for name, data := range map[string]string{
		"nothing":          ``,
		"no object":        `[]`,
		"another format":   `{"format":-1,"floor":1}`,
		"no format":        `{"floor":1}`,
		"no floor":         `{"format":1}`,
		"no such floor":    `{"format":1,"floor":18446744073709551615}`,
		"negative limit":   `{"format":1,"floor":1,"limit":-1}`,
		"negative floor":   `{"format":1,"floor":-1}`,
		"a floor twice":    `{"format":1,"floor":1,"floor":2}`,
		"trailing bytes":   `{"format":1,"floor":1}{}`,
		"settled below":    `{"format":1,"floor":9,"settled":{"whole":[{"first":3,"last":4}]}}`,
		"bits too long":    `{"format":1,"floor":1,"settled":{"partial":[{"seq":1,"size":1,"bits":"AAAA"}]}}`,
		"bits not base64":  `{"format":1,"floor":1,"settled":{"partial":[{"seq":1,"size":1,"bits":"%"}]}}`,
		"size of billions": `{"format":1,"floor":1,"settled":{"partial":[{"seq":1,"size":4000000000,"bits":""}]}}`,
	} {
		if cp, err := decodeCheckpoint([]byte(data)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: got %+v, %v", name, cp, err)
		}
	}
}

// Of a format to come nothing is known but its number. It is not damaged: an older one in
// its place would have everything since then delivered again.
func TestCheckpointOfANewerFormatIsNotDamaged(t *testing.T) {
	for _, data := range []string{`{"format":2,"floor":1}`, `{"format":2}`, `{"format":7,"term":"seven","floor":[1],"settled":1}`} {
		if _, err := decodeCheckpoint([]byte(data)); !errors.Is(err, ErrNewer) || errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: got %v", data, err)
		}
	}
}

// After a step back to an older birdtap its doors open, and its account says what does not
// hang on the checkpoint, which stays as it is.
func TestQueueOpensWithANewerCheckpoint(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, on(dir))
	mustCommit(t, s, receipts(0, 10)...)
	mustBury(t, s, letters(0, 3, "512")...)
	settleAll(t, s, 1, func(*Checkpoint) {})
	newer := []byte(`{"format":2,"of":"a later version"}`)
	if _, err := s.publish(t.Context(), &nats.Msg{Subject: s.names.relay, Data: newer}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		mustClose(t, s)
		s = openStore(t, on(dir))
		mustCommit(t, s, receipts(10, 1)...)
		st, err := s.Status(t.Context())
		if !errors.Is(err, ErrNewer) || st.Dead != 3 || st.DeadByReason["512"] != 3 {
			t.Errorf("got %+v, %v", st, err)
		}
		msg, err := s.state.GetLastMsgForSubject(t.Context(), s.names.relay)
		if err != nil || !bytes.Equal(msg.Data, newer) {
			t.Fatalf("the checkpoint is %s, %v", msg.Data, err)
		}
	}
}

// The sender's campaigns are told of no checkpoint whose format is not known, whatever
// its shape.
func TestCampaignsOfANewerSender(t *testing.T) {
	s := openStore(t)
	for _, newer := range []string{`{"format":2,"campaigns":{}}`, `{"format":3,"campaigns":"elsewhere"}`} {
		if _, err := s.publish(t.Context(), &nats.Msg{Subject: s.names.sender, Data: []byte(newer)}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.SenderCampaigns(t.Context()); !errors.Is(err, ErrNewer) || errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: got %v", newer, err)
		}
	}
}

func FuzzCheckpoint(f *testing.F) {
	data, err := encodeCheckpoint(fullCheckpoint())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"format":1,"floor":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		cp, err := decodeCheckpoint(data)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNewer) {
				t.Fatalf("got %v", err)
			}
			return
		}
		again, err := encodeCheckpoint(cp)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeCheckpoint(again)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(cp, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatal(diff)
		}
	})
}

// What a checkpoint says for status only must not keep it from being written.
func TestRateWithoutANumberIsWritten(t *testing.T) {
	for _, rate := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
		data, err := encodeCheckpoint(Checkpoint{Floor: 1, Rate: rate})
		if err != nil {
			t.Fatal(err)
		}
		if cp, err := decodeCheckpoint(data); err != nil || cp.Rate != 0 {
			t.Errorf("rate %v: got %v, %v", rate, cp.Rate, err)
		}
	}
}

func TestCheckpointTooLargeIsRefused(t *testing.T) {
	cp := Checkpoint{Floor: 1, Holder: strings.Repeat("x", maxCheckpointBytes)}
	if data, err := encodeCheckpoint(cp); err == nil {
		t.Errorf("encoded to %d bytes", len(data))
	}
}

func TestLargestCheckpointIsReadBack(t *testing.T) {
	s := openStore(t)
	want := Checkpoint{Floor: 1, Holder: strings.Repeat("x", maxCheckpointBytes-200)}
	if _, err := s.WriteCheckpoint(t.Context(), want, 0); err != nil {
		t.Fatal(err)
	}
	if cp, _, err := s.ReadCheckpoint(t.Context()); err != nil || cp.Holder != want.Holder {
		t.Errorf("got %d bytes, %v", len(cp.Holder), err)
	}
}

func TestCheckpointIsACompareAndSet(t *testing.T) {
	s := openStore(t)
	cp, rev, err := s.ReadCheckpoint(t.Context())
	if err != nil || rev != 0 || cp.Floor != 1 {
		t.Fatalf("before the first write: %+v, revision %d, %v", cp, rev, err)
	}
	first := Checkpoint{Term: 1, Holder: "a", Floor: 1}
	rev1, err := s.WriteCheckpoint(t.Context(), first, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, stale := range []uint64{0, rev1 + 1, math.MaxUint64} {
		_, err = s.WriteCheckpoint(t.Context(), Checkpoint{Term: 2, Holder: "b", Floor: 1}, stale)
		wantErr(t, err, ErrConflict)
	}
	// Other messages of the stream do not touch the revision.
	if err := s.SetPaused(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	rev2, err := s.WriteCheckpoint(t.Context(), Checkpoint{Term: 2, Holder: "b", Floor: 1}, rev1)
	if err != nil || rev2 <= rev1 {
		t.Fatalf("revision %d after %d, %v", rev2, rev1, err)
	}
	cp, rev, err = s.ReadCheckpoint(t.Context())
	if err != nil || rev != rev2 || cp.Holder != "b" || cp.Format != checkpointFormat {
		t.Errorf("got %+v, revision %d, %v", cp, rev, err)
	}
}

func TestOfTwoWritersOneWins(t *testing.T) {
	s := openStore(t)
	rev := uint64(0)
	for range 20 {
		var won atomic.Int32
		var next atomic.Uint64
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				got, err := s.WriteCheckpoint(t.Context(), Checkpoint{Floor: 1}, rev)
				switch {
				case err == nil:
					won.Add(1)
					next.Store(got)
				case !errors.Is(err, ErrConflict):
					t.Errorf("got %v", err)
				}
			})
		}
		all.Wait()
		wantEqual(t, "winners", won.Load(), 1)
		rev = next.Load()
	}
}

func TestReadsOfTheCheckpointComeFromTheLeader(t *testing.T) {
	s := openStore(t)
	if s.state.CachedInfo().Config.AllowDirect {
		t.Error("the state stream answers from any replica")
	}
}
