package relay

import (
	"regexp"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/birdtap/birdtap/clevertap"
	"github.com/birdtap/birdtap/store"
)

// termAt is a term that was begun with a checkpoint and reads nothing by itself.
func termAt(cp store.Checkpoint) *term {
	r := New(Options{Embedded: true})
	t := r.newTerm(cp)
	t.survey = newSurvey(r, cp.Floor)
	t.campaigns = new(store.Campaigns)
	return t
}

// oneCampaign makes the receipts of many targets those of one: a term that does not run
// writes no pages, so it has room for few.
func oneCampaign(list []store.Receipt) []store.Receipt {
	for i := range list {
		list[i].Record = targetID.ReplaceAll(list[i].Record, []byte(`"target_id":1`))
	}
	return list
}

var targetID = regexp.MustCompile(`"target_id":\d+`)

func frameWith(seq uint64, receipts ...store.Receipt) store.Frame {
	return store.Frame{Seq: seq, Time: epoch, Receipts: receipts}
}

func TestFrameSettledPartlyBeforeAndPartlyOnArrivalLetsTheFloorPass(t *testing.T) {
	part := store.NewPartial(1, 2)
	part.Set(1)
	term := termAt(store.Checkpoint{Floor: 1, Settled: store.Settled{Partial: []store.Partial{part}}})
	term.recalled(map[store.Place]bool{{Seq: 1, Index: 0}: true}, 1)
	term.take(frameWith(1, store.Receipt{User: 1, Record: []byte("{}")}, store.Receipt{User: 2, Record: []byte("{}")}))
	if cp := term.snapshot(); cp.Floor != 2 || cp.Totals.Died != 1 {
		t.Fatalf("floor %d, died %d, want 2 and 1", cp.Floor, cp.Totals.Died)
	}
}

func TestLettersThatOutranACheckpointAreLookedForUntilTheirReceiptsAreSettled(t *testing.T) {
	term := termAt(store.Checkpoint{Floor: 1, DeadSeq: 3})
	if got := term.snapshot().DeadSeq; got != 3 {
		t.Fatalf("before the letters are known: dead sequence %d, want 3", got)
	}
	term.recalled(map[store.Place]bool{{Seq: 2, Index: 0}: true}, 5)
	term.take(frameWith(1, store.Receipt{User: 1, Record: []byte("{}")}))
	if got := term.snapshot().DeadSeq; got != 3 {
		t.Fatalf("before their receipts were read: dead sequence %d, want 3", got)
	}
	term.take(frameWith(2, store.Receipt{User: 2, Record: []byte("{}")}))
	if cp := term.snapshot(); cp.DeadSeq != 5 || cp.Totals.Died != 1 {
		t.Fatalf("after: dead sequence %d, died %d, want 5 and 1", cp.DeadSeq, cp.Totals.Died)
	}
}

func TestRecordsAsideDoNotStarveEverybodyElse(t *testing.T) {
	term := termAt(store.Checkpoint{Floor: 1})
	term.take(frameWith(1, store.Receipt{User: 1, Record: []byte("{}")}))
	term.dirty = false
	batch, _ := term.ready.take(time.Now().Add(time.Hour))
	batch[0].aside = epoch
	term.ready.stepAside(batch[0], epoch.Add(time.Hour))
	term.budget.try(2 * heldBytes) // the reader waits
	if term.crowded(); len(term.letters) != 0 {
		t.Fatal("given up while the operator has paused uploading")
	}
	term.survey.paused.Store(false)
	if term.crowded(); len(term.letters) != 1 || term.letters[0].reason != reason555 {
		t.Fatalf("letters %v, want the record aside", term.letters)
	}
	if term.crowded(); len(term.letters) != 1 {
		t.Fatal("given up twice")
	}
}

func TestRefusedAccountIsAnErrorOnceEvenInAnOutage(t *testing.T) {
	core, logs := observer.New(zap.ErrorLevel)
	term := termAt(store.Checkpoint{Floor: 1})
	term.log = zap.New(core)
	denied := clevertap.Result{Kind: clevertap.Denied, Status: 401}
	term.breakerTurned(breakerOpen, clevertap.Result{Kind: clevertap.ServerError, Status: 503})
	term.breakerTurned(breakerOpen, denied)
	term.breakerTurned(breakerOpen, denied)
	if got := logs.Len(); got != 1 {
		t.Fatalf("%d errors logged, want 1", got)
	}
}
