package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
)

// What a terminal says of its store on every connection, and how it asks for
// the key of one that is set aside (transport/recovery.go).

// sayState tells the server of losses, and whether it could give this store's
// key back.
func (s *session) sayState() error {
	m := &transport.TerminalState{Incarnation: s.store.State().Incarnation}
	err := s.store.View(func(tx *store.Tx) error {
		if w := s.ownWrap(tx, s.self.Deployment); w != nil {
			m.Recovery = w.Version
		}
		var told toldRecord
		found, err := tx.Get(bucketRecovery, keyTold, &told)
		if err != nil || !found || told.Incarnation == m.Incarnation {
			return err
		}
		m.Report = &transport.TerminalReport{Holds: []transport.Name{}}
		return tx.Each(bucketCredentials, func(id string, _ func(any) error) error {
			if len(m.Report.Holds) == transport.MaxReport { // too many to name: claims alone have to do
				m.Report = nil
				return store.ErrStop
			}
			m.Report.Holds = append(m.Report.Holds, transport.Name(id))
			return nil
		})
	})
	if err != nil {
		return err
	}
	s.incarnation = m.Incarnation
	return s.say(m, question{state: true})
}

// noted: the server knows of all losses up to what was said, and may have given
// a key to wrap for.
func (s *session) noted(m *transport.TerminalNoted) error {
	err := s.update(func(tx *store.Tx) error {
		var told toldRecord
		if _, err := tx.Get(bucketRecovery, keyTold, &told); err != nil || told.Incarnation == s.incarnation {
			return err
		}
		return tx.Put(bucketRecovery, keyTold, &toldRecord{Incarnation: s.incarnation})
	})
	if err != nil {
		return err
	}
	if err := s.reconciled(); err != nil || len(m.Key) == 0 || s.kept == nil {
		return err
	}
	return s.wrapFor(s.self.Deployment, m.Recovery, m.Key)
}

// reconciled forgets a loss once the server knows of it and of all that is held.
func (s *session) reconciled() error {
	st := s.store.State()
	if s.kept == nil || st.Fallback == nil {
		return nil
	}
	var open bool
	err := s.store.View(func(tx *store.Tx) error {
		var told toldRecord
		if _, err := tx.Get(bucketRecovery, keyTold, &told); err != nil {
			return err
		}
		claims, err := openClaims(tx, 1, s.refused)
		open = told.Incarnation != st.Incarnation || len(claims) > 0
		return err
	})
	if err != nil || open {
		return err
	}
	s.log.Info("the server knows what this terminal holds after its loss", "incarnation", st.Incarnation, "lost", st.Fallback.Lost)
	return s.kept.ClearFallback()
}

// ask asks for the keys of stores that are set aside. Denied ones are asked for
// once on each connection: an administrator may have thought better of it.
func (s *session) ask(first bool) error {
	list, err := s.asides()
	if err != nil {
		return err
	}
	for _, e := range list {
		switch {
		case e.Taken && e.Requested:
			err = s.say(&transport.RecoveryTaken{ID: e.ID, GivenUp: e.State != transport.RecoveryReleased}, question{recovery: e.name})
		case e.Taken:
			err = s.forgetAside(e.name)
		case e.asks() && (first || e.State != transport.RecoveryDenied):
			if !e.Requested {
				err = s.changeAside(e.name, func(r *asideRecord) { r.Requested = true })
			}
			if err == nil {
				err = s.say(&transport.RecoveryRequest{ID: e.ID, Wrap: *e.Wrap, Recipient: e.Recipient}, question{recovery: e.name})
			}
		}
		e.wipe()
		if err != nil {
			return err
		}
	}
	return nil
}

// changeAside changes one record; that it is gone is no error.
func (v *vault) changeAside(name string, change func(*asideRecord)) error {
	return v.update(func(tx *store.Tx) error {
		var r asideRecord
		defer r.wipe()
		found, err := tx.Get(bucketRecovery, keyAside+name, &r)
		if err != nil || !found {
			return err
		}
		change(&r)
		return tx.Put(bucketRecovery, keyAside+name, &r)
	})
}

// forgetAside drops the record of one that is over. While its directory cannot
// be removed the record stays: without one, it would be asked for anew.
func (v *vault) forgetAside(name string) error {
	if v.dir != "" {
		if err := scrubAside(v.dir, name); err != nil {
			v.log.Warn("a store that was taken over is not destroyed yet", "err", err)
			return nil
		}
	}
	return v.update(func(tx *store.Tx) error { return tx.Delete(bucketRecovery, keyAside+name) })
}

// asideOf finds what a message is about.
func (s *session) asideOf(id transport.ID) (asideEntry, error) {
	list, err := s.asides()
	if err != nil {
		return asideEntry{}, err
	}
	var found *asideEntry
	for i := range list {
		if list[i].Wrap != nil && list[i].ID == id {
			found = &list[i]
		} else {
			list[i].wipe()
		}
	}
	if found == nil {
		return asideEntry{}, fmt.Errorf("recovery %s: this terminal has asked for no such", id)
	}
	return *found, nil
}

// recoveryState takes note of how far a request is.
func (s *session) recoveryState(m *transport.RecoveryState) error {
	e, err := s.asideOf(m.ID)
	if err != nil {
		return err
	}
	defer e.wipe()
	switch {
	case e.Taken && (m.State == transport.RecoveryDone || m.State == transport.RecoveryDenied):
		return s.forgetAside(e.name)
	case e.Taken || m.State == e.State && !e.Refused:
		return nil
	}
	switch m.State {
	case transport.RecoveryAsked, transport.RecoveryApproved, transport.RecoveryDenied, transport.RecoveryReleased, transport.RecoveryDone:
	default:
		return fmt.Errorf("%w: recovery state %.20q", transport.ErrMalformed, m.State)
	}
	if err := s.changeAside(e.name, func(r *asideRecord) { r.State, r.Refused = m.State, false }); err != nil {
		return err
	}
	s.log.Info("the key of a store that is set aside", "request", m.ID, "state", string(m.State))
	if m.State != transport.RecoveryApproved {
		return nil
	}
	return s.say(&transport.RecoveryRequest{ID: e.ID, Wrap: *e.Wrap, Recipient: e.Recipient}, question{recovery: e.name})
}

// released takes a store over with the key that came for it.
func (s *session) released(ctx context.Context, m *transport.RecoveryRelease) error {
	e, err := s.asideOf(m.ID)
	if err != nil {
		return err
	}
	defer e.wipe()
	if e.Taken {
		return s.say(&transport.RecoveryTaken{ID: e.ID}, question{recovery: e.name})
	}
	grant := transport.RecoveryGrant{ID: e.ID, Deployment: s.self.Deployment, Terminal: s.self.Terminal, Device: s.device, Origin: e.Wrap.Device, Store: e.Wrap.Store}
	raw, err := grant.Open(e.Seed, m)
	if err != nil {
		return fmt.Errorf("recovery %s: %w", e.ID, err)
	}
	key := hsm.NewSecret(raw)
	defer key.Wipe()
	if _, err := s.takeOver(ctx, e.name, key, transport.RecoveryReleased); err != nil && !errors.Is(err, errTaken) {
		return fmt.Errorf("recovery %s: %w", e.ID, err)
	}
	return s.say(&transport.RecoveryTaken{ID: e.ID}, question{recovery: e.name})
}

// recoveryRefused keeps a refused request from being repeated on this
// connection; an administrator may have to clear earlier ones first.
func (s *session) recoveryRefused(name string, f *transport.Fault) error {
	if f.Code == transport.FaultLater {
		return f
	}
	s.log.Warn("the server does not give the key of a store that is set aside", "name", name, "err", f)
	return s.changeAside(name, func(r *asideRecord) {
		if !r.Taken {
			r.State, r.Refused = transport.RecoveryDenied, true
		}
	})
}
