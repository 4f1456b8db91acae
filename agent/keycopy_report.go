package agent

import (
	"errors"
	"fmt"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// What the server is told of key copies: each phase that a transaction has come
// to, until it is acknowledged; one page at a time, whose acknowledgement brings
// the next.

// reportRecord is a transaction whose phase the server does not know yet.
type reportRecord struct {
	Phase transport.KeycopyPhase `cbor:"1,keyasint"`
	// Fault is why the server refused it last. A refused report rests until the
	// next connection.
	Fault string `cbor:"2,keyasint"`
}

// reportLater queues the report of a phase.
func reportLater(tx *store.Tx, t *keycopy.Transaction) error {
	return tx.Put(bucketReports, dealKey(t.ID), &reportRecord{Phase: t.Phase})
}

// isReported says whether the server knows all of a transaction.
func isReported(tx *store.Tx, id transport.ID) (bool, error) {
	found, err := tx.Get(bucketReports, dealKey(id), &reportRecord{})
	return !found, err
}

// reporting is the one page under way.
type reporting struct {
	txn    transport.ID
	phase  transport.KeycopyPhase
	offset int
	last   bool
}

// nextReport finds a transaction to report, less those to skip; nil if there is
// none.
func nextReport(tx *store.Tx, skip map[transport.ID]bool) (d *dealRecord, err error) {
	err = tx.Each(bucketReports, func(key string, _ func(any) error) error {
		id, err := transport.ParseID(key)
		if err != nil {
			return fmt.Errorf("reports: %w", err)
		}
		if skip[id] {
			return nil
		}
		if d, err = findDeal(tx, id); err != nil || d == nil {
			return err
		}
		return store.ErrStop
	})
	return d, err
}

// report sends the next page, unless one is under way. It is held back while a
// key change is unfinished, as results are: see sayResult.
func (s *session) report() error {
	if s.reporting != nil || len(s.out) >= sendAtOnce || s.store.State().Unfinished != "" {
		return nil
	}
	var d *dealRecord
	err := s.store.View(func(tx *store.Tx) (err error) {
		d, err = nextReport(tx, s.unreported)
		return err
	})
	if err != nil || d == nil {
		return err
	}
	defer d.wipe()
	return s.sayReport(d, 0)
}

func (s *session) sayReport(d *dealRecord, offset int) error {
	m, last := reportOf(d, offset)
	s.reporting = &reporting{txn: m.Txn, phase: m.Phase, offset: offset, last: last}
	return s.say(m, question{report: &m.Txn})
}

// reportOf is one page of a report, and whether it is the last.
func reportOf(d *dealRecord, offset int) (m *transport.KeycopyReport, last bool) {
	t := &d.Deal
	m = &transport.KeycopyReport{
		Txn: t.ID, Side: t.Side, Peer: t.Peer, PeerName: t.Name, Mode: t.Mode, Phase: t.Phase, At: t.At, Changed: d.Changed,
		Forced: t.Forced, Total: d.counts().Items, Offset: uint32(offset), Items: []transport.KeycopyReportedItem{},
	}
	if t.Side == transport.KeycopySource && offset == 0 {
		m.Signature, m.Signed = t.Signature, t.Signed
	}
	end := min(offset+transport.MaxKeycopyReported, len(t.Items))
	for n := offset; n < end; n++ {
		taken := n/8 < len(t.Status) && t.Status[n/8]>>(n%8)&1 == 1
		m.Items = append(m.Items, transport.KeycopyReportedItem{ID: t.Items[n].ID, Transfer: t.Items[n].Transfer, Taken: taken})
	}
	return m, end == len(t.Items)
}

// reported: the server has that page.
func (s *session) reported(m *transport.KeycopyReported) error {
	r := s.reporting
	if r == nil || r.txn != m.Txn || r.phase != m.Phase || r.offset != int(m.Offset) {
		return nil // of a page that was sent again, or of an earlier phase
	}
	s.reporting = nil
	if !r.last {
		return s.nextPage(r)
	}
	err := s.update(func(tx *store.Tx) error {
		var waits reportRecord
		if _, err := tx.Get(bucketReports, dealKey(m.Txn), &waits); err != nil || waits.Phase != m.Phase {
			return err // it has gone on since
		}
		return errors.Join(tx.Delete(bucketReports, dealKey(m.Txn)), prune(tx))
	})
	if err != nil {
		return err
	}
	s.log.Info("key copy reported", "txn", short(m.Txn), "phase", m.Phase)
	return s.report()
}

// nextPage goes on with a report, from the start if it is in another phase now.
func (s *session) nextPage(r *reporting) error {
	var d *dealRecord
	err := s.store.View(func(tx *store.Tx) (err error) {
		d, err = findDeal(tx, r.txn)
		return err
	})
	if err != nil {
		return err
	}
	defer d.wipe()
	offset := r.offset + transport.MaxKeycopyReported
	if d == nil || d.Deal.Phase != r.phase || offset >= len(d.Deal.Items) {
		return s.report()
	}
	return s.sayReport(d, offset)
}

// reportRefused keeps the reason for people. An older server does not know what a
// key copy is.
func (s *session) reportRefused(id transport.ID, f *transport.Fault) error {
	s.reporting, s.unreported[id] = nil, true
	if f.Code == transport.FaultLater {
		return s.report()
	}
	s.log.Warn("key copy not accepted by the server", "txn", short(id), "err", f)
	err := s.update(func(tx *store.Tx) error {
		var waits reportRecord
		found, err := tx.Get(bucketReports, dealKey(id), &waits)
		if err != nil || !found {
			return err
		}
		waits.Fault = shorten(f.Error(), transport.MaxDetail)
		return tx.Put(bucketReports, dealKey(id), &waits)
	})
	return errors.Join(err, s.report())
}
