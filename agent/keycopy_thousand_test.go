package agent

import (
	"fmt"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// A thousand keys go over under one code, some copied and some moved. The daemons
// do it in scripts/stories (TestSoakThousandKeys: issuing them takes minutes).
//
// req: C8
func TestThousandKeys(t *testing.T) {
	const n = 1000
	r := newCopyRig(t)
	records := make([]transport.CredentialRecord, n)
	for i := range records {
		records[i] = r.ca.record(transport.Name(fmt.Sprintf("maps-%d", i)))
		if i%4 == 0 {
			records[i].Transfer = transport.TransferMove
		}
	}
	err := r.old.vault.update(func(tx *store.Tx) error {
		for i := range records {
			if err := hold(tx, &holdingRecord{Record: records[i], Origin: OriginIssue}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	o, code := r.arm()
	if len(o.chosen.Keys) != n {
		t.Fatalf("%d keys are shown before the code", len(o.chosen.Keys))
	}
	start := time.Now()
	last, steps, err := r.fetch(o, code)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d keys in %v", n, time.Since(start).Round(time.Millisecond))
	items := 0
	for _, ev := range steps {
		if ev.Step == "item" {
			items++
		}
	}
	if len(last.Keys) != n || items < itemEvents/2 || items > itemEvents+1 {
		t.Errorf("%d keys, %d steps of progress", len(last.Keys), items)
	}
	if got := len(ids(t, r.new)); got != n {
		t.Errorf("the new terminal holds %d", got)
	}
	<-o.done
	if got := len(ids(t, r.old)); got != n-n/4 {
		t.Errorf("the old terminal still holds %d", got)
	}
}
