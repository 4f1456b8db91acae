package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// What terminals tell of key copies (docs/keycopy.md). Nobody needs the server for
// one, so it hears of them later, from one end before the other, twice, or never.
// A terminal speaks of itself as one end, and of nothing else: a row is of a pair
// of devices, one of which is the sender. keycopy_judge.go puts the two versions
// together, keycopy_move.go has what follows for holdings, keycopy_settle.go
// decides between ends that lost each other.

const (
	// A terminal may speak of this much in keycopyDay, and of that many
	// transactions that stay unfinished; of finished ones each side keeps that many.
	maxKeycopies        = 64
	maxKeycopyItems     = 4 * transport.MaxKeycopyItems
	maxOpenKeycopies    = 256
	keptKeycopies       = 512
	keycopyDay          = 24 * time.Hour
	maxKeycopySignature = 72 // bytes of an ECDSA P-256 signature in ASN.1
	maxKeycopySigned    = 1024
	// maxSameKeycopy is how many rows of one id are looked at.
	maxSameKeycopy = 16
)

// ranks orders the phases of each end; those of one rank exclude each other.
var ranks = map[transport.KeycopySide]map[transport.KeycopyPhase]int{
	transport.KeycopySource: {transport.KeycopyOffered: 1, transport.KeycopyCommitted: 2, transport.KeycopyDone: 3, transport.KeycopyReclaimed: 3, transport.KeycopyAbandoned: 3},
	transport.KeycopyTarget: {transport.KeycopyStarted: 1, transport.KeycopyStaged: 2, transport.KeycopyActive: 3, transport.KeycopyClosed: 4,
		transport.KeycopyUnreceipted: 4, transport.KeycopyDropped: 4},
}

// keycopyReport takes one page of what a terminal says, and acknowledges it.
// What is on record already, or is older than that, changes nothing.
func (s *Server) keycopyReport(ctx context.Context, ses *session, m *transport.KeycopyReport) (outcome, error) {
	if err := checkKeycopy(ses, m); err != nil {
		return outcome{}, err
	}
	var told []string
	err := s.store.Update(ctx, s.by(ses.actor()), func(tx *store.Tx) error {
		told = nil
		if _, err := ses.stillIn(tx); err != nil {
			return err
		}
		k, err := keycopyRow(tx, ses, m.Txn, m.Side, m.Peer, int(m.Total))
		if err != nil {
			return err
		}
		if err := hear(tx, ses, &k, m); err != nil {
			return err
		}
		told, err = s.judgeAll(tx, k)
		return err
	})
	if err != nil {
		return faultOf(err)
	}
	for _, what := range told {
		s.warn(ses, "the ends of a key copy contradict each other; see: kagimori-server keycopy list --contradictions", "txn", m.Txn, "err", what)
	}
	return outcome{reply: &transport.KeycopyReported{Txn: m.Txn, Phase: m.Phase, Offset: m.Offset}}, nil
}

// checkKeycopy refuses what no agent of ours sends.
func checkKeycopy(ses *session, m *transport.KeycopyReport) error {
	malformed := func(format string, args ...any) error {
		return fmt.Errorf("%w: key copy: %s", transport.ErrMalformed, fmt.Sprintf(format, args...))
	}
	switch {
	case ranks[m.Side][m.Phase] == 0:
		return malformed("phase %d of side %.8q", m.Phase, m.Side)
	case m.Peer == ses.device || m.Peer == transport.DeviceID{}:
		return malformed("a copy to oneself")
	case !slices.Contains([]transport.KeycopyMode{transport.KeycopyPAKE, transport.KeycopyDirect, transport.KeycopyKEK}, m.Mode):
		return malformed("mode %.16q", m.Mode)
	case m.At < 0 || m.Changed < 0 || m.At > maxUnix || m.Changed > maxUnix:
		return malformed("times %d and %d", m.At, m.Changed)
	case m.Total > transport.MaxKeycopyItems || len(m.Items) > transport.MaxKeycopyReported ||
		m.Offset > m.Total || uint32(len(m.Items)) > m.Total-m.Offset:
		return malformed("%d items from %d on, of %d", len(m.Items), m.Offset, m.Total)
	case len(m.Signature) > maxKeycopySignature || len(m.Signed) > maxKeycopySigned:
		return malformed("signature of %d bytes, over %d", len(m.Signature), len(m.Signed))
	}
	if m.PeerName != "" {
		if _, err := transport.ParseName(string(m.PeerName)); err != nil {
			return malformed("peer: %v", err)
		}
	}
	seen := map[transport.Name]bool{}
	for _, i := range m.Items {
		if _, err := transport.ParseName(string(i.ID)); err != nil || seen[i.ID] {
			return malformed("item %.63q is no name, or there twice", i.ID)
		}
		if i.Transfer != transport.TransferCopy && i.Transfer != transport.TransferMove {
			return malformed("item %s with transfer %.8q", i.ID, i.Transfer)
		}
		seen[i.ID] = true
	}
	return nil
}

// maxUnix is the last second of the year 9999.
const maxUnix = 253402300799

// ends puts a side and its peer in order.
func ends(ses *session, side transport.KeycopySide, peer transport.DeviceID) (source, target transport.DeviceID) {
	if side == transport.KeycopySource {
		return ses.device, peer
	}
	return peer, ses.device
}

// keycopyRow finds the row of a pair of devices, or adds it if there is room for
// what the terminal says today. The first word of an end says how many items
// there are.
func keycopyRow(tx *store.Tx, ses *session, txn transport.ID, side transport.KeycopySide, peer transport.DeviceID, total int) (k store.Keycopy, err error) {
	source, target := ends(ses, side, peer)
	k, err = tx.Keycopy(txn, source, target)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return k, err
	}
	if err == nil && !k.End(side).Told.IsZero() && (total == 0 || k.End(side).Total > 0 || k.End(side).Phase != 0) {
		return k, nil // else it had asked to settle before it reported
	}
	if err != nil {
		if err := onePeer(tx, ses, txn, side); err != nil {
			return k, err
		}
	}
	if why, err := keycopyRoom(tx, ses, total); err != nil {
		return k, err
	} else if why != "" {
		return k, &transport.Fault{Code: transport.FaultLater, Text: why}
	}
	if err != nil {
		k = store.Keycopy{Txn: txn}
		k.Source.Device, k.Target.Device = source, target
	}
	end := k.End(side)
	end.Terminal, end.Told, end.Total = ses.terminal, tx.By().At, total
	if k.Seq == 0 {
		return tx.AddKeycopy(k)
	}
	return k, tx.SetKeycopy(k)
}

// onePeer refuses a terminal that has named another peer in this key copy before:
// it would hide the rows of others behind its own.
func onePeer(tx *store.Tx, ses *session, txn transport.ID, side transport.KeycopySide) error {
	rows, err := tx.KeycopiesWith(txn, maxSameKeycopy)
	if err != nil {
		return err
	}
	for _, k := range rows {
		if end := k.End(side); end.Device == ses.device && !end.Told.IsZero() {
			return &transport.Fault{Code: transport.FaultRefused, Text: "this terminal has named another one as the other end of this key copy"}
		}
	}
	return nil
}

// keycopyRoom says why a terminal may speak of no further key copy now.
func keycopyRoom(tx *store.Tx, ses *session, total int) (why string, err error) {
	if err := tx.DropKeycopies(ses.device, keptKeycopies); err != nil {
		return "", err
	}
	load, err := tx.KeycopyLoadOf(ses.device, tx.By().At.Add(-keycopyDay))
	switch {
	case err != nil:
		return "", err
	case load.Transactions >= maxKeycopies || load.Items+total > maxKeycopyItems:
		return "this terminal has reported too many key copies today", nil
	case load.Unfinished >= maxOpenKeycopies:
		return "this terminal has too many key copies that are not finished: an administrator has to look at them", nil
	}
	return "", nil
}

// hear takes a page into a row, and does what follows for holdings.
func hear(tx *store.Tx, ses *session, k *store.Keycopy, m *transport.KeycopyReport) error {
	end, rank := k.End(m.Side), ranks[m.Side]
	switch before := end.Phase; {
	case rank[m.Phase] > rank[before]:
		end.Phase, end.Changed = m.Phase, clock(m.Changed)
		if end.Mode == "" {
			end.Mode, end.At = m.Mode, clock(m.At)
		}
		detail := fmt.Sprintf("%s %s device %s says %s; the other end is %s", m.Side, ses.terminal, ses.device, m.Phase, m.Peer)
		if m.Forced {
			detail += "; by a person"
		}
		if err := tx.Audit("keycopy."+m.Phase.String(), m.Txn.String(), detail); err != nil {
			return err
		}
	case m.Phase != before && rank[m.Phase] == rank[before] && end.Odd == "":
		end.Odd = m.Phase.String()
	}
	if int(m.Total) != end.Total && end.Odd == "" {
		end.Odd = fmt.Sprintf("%d-items", m.Total)
	}
	end.Terminal, end.Forced = ses.terminal, end.Forced || m.Forced && m.Phase == end.Phase
	if m.Side == transport.KeycopySource && len(k.Signature) == 0 {
		k.Signature, k.Signed = m.Signature, m.Signed
	}
	if err := tx.SetKeycopy(*k); err != nil {
		return err
	}
	return hearItems(tx, k, m)
}

// hearItems takes the items of a page, never more in all than the end first said
// that there are.
func hearItems(tx *store.Tx, k *store.Keycopy, m *transport.KeycopyReport) error {
	end := k.End(m.Side)
	if m.Phase != end.Phase {
		return nil // older than what it has said since
	}
	n, err := tx.KeycopyTally(*k)
	if err != nil {
		return err
	}
	spoken := n.Spoken(m.Side)
	for at, i := range m.Items {
		item, err := tx.KeycopyItem(k.Seq, i.ID)
		if err != nil {
			return err
		}
		if item.Word(m.Side).Phase == 0 {
			if spoken++; spoken > end.Total {
				end.Odd = "more-items"
				return tx.SetKeycopy(*k)
			}
		}
		if err := hearItem(tx, k, m, item, int(m.Offset)+at, i); err != nil {
			return fmt.Errorf("item %s: %w", i.ID, err)
		}
	}
	return nil
}

func clock(at int64) time.Time {
	if at == 0 {
		return time.Time{}
	}
	return time.Unix(at, 0)
}

func hearItem(tx *store.Tx, k *store.Keycopy, m *transport.KeycopyReport, item store.KeycopyItem, place int, i transport.KeycopyReportedItem) error {
	word := item.Word(m.Side)
	said := store.KeycopyWord{Phase: m.Phase, Transfer: i.Transfer, Taken: i.Taken}
	if *word == said {
		return nil
	}
	*word = said
	if m.Side == transport.KeycopySource {
		item.Place = place
	}
	if err := tx.PutKeycopyItem(k.Seq, item); err != nil {
		return err
	}
	if m.Side == transport.KeycopySource {
		if err := sourceSays(tx, *k, item); err != nil {
			return err
		}
	}
	if said.Transfer == transport.TransferMove && said.Taken {
		return resolve(tx, i.ID)
	}
	return nil
}
