package server

import (
	"context"
	"fmt"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// Two ends that lost each other for good need a person's word to go on alone:
// the Source takes back what moved, or the Target uses what is staged. Both at
// once would be two active keys. While the server is in reach it lets the first
// one who asks, for ever, and nobody whom the reports contradict already.

// keycopySettle answers an end that would act alone.
func (s *Server) keycopySettle(ctx context.Context, ses *session, m *transport.KeycopySettle) (outcome, error) {
	wants := map[transport.KeycopySide]transport.KeycopyPhase{transport.KeycopySource: transport.KeycopyReclaimed, transport.KeycopyTarget: transport.KeycopyActive}
	if wants[m.Side] == 0 || wants[m.Side] != m.Want || m.Peer == ses.device || m.Peer == (transport.DeviceID{}) {
		return outcome{}, fmt.Errorf("%w: %.8q of %.8s wants phase %d", transport.ErrMalformed, m.Side, m.Peer, m.Want)
	}
	var why string
	err := s.store.Update(ctx, s.by(ses.actor()), func(tx *store.Tx) error {
		if _, err := ses.stillIn(tx); err != nil {
			return err
		}
		k, err := keycopyRow(tx, ses, m.Txn, m.Side, m.Peer, 0)
		if err != nil {
			return err
		}
		if why, err = actsAlready(tx, k, m.Side); err != nil {
			return err
		}
		if err := decideKeycopy(tx, ses, &k, m.Side, why); err != nil {
			return err
		}
		_, err = s.judgeAll(tx, k)
		return err
	})
	if err != nil {
		return faultOf(err)
	}
	if why != "" {
		s.warn(ses, "a terminal may not act alone in a key copy", "txn", m.Txn, "side", string(m.Side), "err", why)
	}
	return outcome{reply: &transport.KeycopySettled{Txn: m.Txn, Allowed: why == "", Why: why}}, nil
}

// actsAlready says why an end may not act alone: the other one was let to, or
// says or has proven that it has the keys. Only the row of the two counts: the id
// is no secret (RESUME tells it to whoever answers), and another device that
// speaks of it could keep both ends from their keys. Both name each other.
func actsAlready(tx *store.Tx, k store.Keycopy, side transport.KeycopySide) (why string, err error) {
	if k.Settled != "" && k.Settled != side {
		return fmt.Sprintf("%s was let to have the keys alone on %s", nameOf(*k.End(k.Settled)), minute(k.SettledAt)), nil
	}
	switch a, b := k.Source, k.Target; {
	case side == transport.KeycopySource && (b.Phase == transport.KeycopyActive || b.Phase == transport.KeycopyClosed):
		return fmt.Sprintf("%s uses the keys, as it says itself (%s)", nameOf(b), b.Phase), nil
	case side == transport.KeycopySource && a.Phase == transport.KeycopyDone:
		return "this terminal has reported that it destroyed them: the other one had said that it uses them", nil
	case side == transport.KeycopyTarget && (a.Phase == transport.KeycopyReclaimed || a.Phase == transport.KeycopyAbandoned):
		return fmt.Sprintf("%s has the keys, as it says itself (%s)", nameOf(a), a.Phase), nil
	case side == transport.KeycopyTarget && a.Odd == oddRevived:
		return fmt.Sprintf("%s has the keys, as it has proven", nameOf(a)), nil
	case side == transport.KeycopySource:
		proven, err := tx.ClaimedBy(k.Txn, k.Target.Device)
		if err != nil || !proven {
			return "", err
		}
		return fmt.Sprintf("%s has the keys, as it has proven", nameOf(k.Target)), nil
	}
	return "", nil
}

// decideKeycopy records who may act alone, or, once, that somebody may not.
func decideKeycopy(tx *store.Tx, ses *session, k *store.Keycopy, side transport.KeycopySide, why string) error {
	who := fmt.Sprintf("%s %s device %s", side, ses.terminal, ses.device)
	switch {
	case why == "" && k.Settled == "":
		k.Settled, k.SettledAt = side, tx.By().At
		if err := tx.Audit("keycopy.settle", k.Txn.String(), who+" may act alone: the other end is gone, as a person there says"); err != nil {
			return err
		}
	case why != "" && k.Refused.IsZero():
		k.Refused = tx.By().At
		if err := tx.Audit("keycopy.refuse", k.Txn.String(), who+" may not act alone: "+why); err != nil {
			return err
		}
	default:
		return nil
	}
	return tx.SetKeycopy(*k)
}
