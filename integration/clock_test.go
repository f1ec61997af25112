//go:build integration

package integration

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/birdtap/birdtap/ingest"
)

// Whatever the clock says, a receipt without a ts gets a whole, positive number of
// seconds, and one with a ts keeps it. (A process's wall clock cannot be changed apart
// from the machine's; what else reads it is tested in simulated time where it is read.)
func TestReceiptsAreStampedWhateverTheClock(t *testing.T) {
	t.Parallel()
	record := []byte(`{"identity":"u","evtName":"Order Shipped","evtData":{"status":"READ","target_id":9007199254740993}}`)
	stamped := []byte(`{"identity":"u","ts":2147483700,"evtName":"Order Shipped","evtData":{"status":"READ","target_id":9007199254740993}}`)
	now := time.Now()
	for _, clock := range []time.Time{
		now, now.Add(time.Hour), now.Add(-time.Hour), now.Add(24 * time.Hour), now.Add(-24 * time.Hour),
		time.Unix(1<<31-1, 999_999_999), time.Unix(1<<31, 0), time.Unix(1<<32, 0),
	} {
		got := ingest.Convert(record, clock)
		if want := fmt.Appendf(nil, `"ts":%d`, clock.Unix()); got.Reason != "" || !bytes.Contains(got.Record, want) {
			t.Errorf("at %v: %s, reason %q", clock, got.Record, got.Reason)
		}
		if got := ingest.Convert(stamped, clock); got.Reason != "" || !bytes.Contains(got.Record, []byte(`"ts":2147483700`)) {
			t.Errorf("with a ts, at %v: %s, reason %q", clock, got.Record, got.Reason)
		}
	}
}

// What is stamped after 2038 CleverTap takes.
func TestReceiptOf2038IsTaken(t *testing.T) {
	t.Parallel()
	fake := startFake(t)
	d := newLone(t, map[string]string{"CLEVERTAP_URL": fake.URL()})
	body := []byte(`{"d":[{"identity":"u","ts":2147483653,"evtName":"Order Shipped","evtData":{"status":"READ","target_id":1}}]}`)
	if got := postTo(t.Context(), d.door, passcode, body); got.status != 200 {
		t.Fatalf("status %d, %v", got.status, got.err)
	}
	d.delivers(t, fake, 1)
	for r := range fake.Accepted() {
		if r.TS != "2147483653" {
			t.Errorf("it arrived with ts %s", r.TS)
		}
	}
}
