package server

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// What a terminal says of its store, and how it gets the key of an earlier one
// back; transport/recovery.go says what the messages are. recovery_key.go keeps
// the keys, recovery_decide.go is what administrators do.

const (
	// maxOpenRecoveries is how many requests of a terminal may wait for a
	// decision or for the terminal, maxRecoveries how many it may make in
	// recoveryDay, and keptRecoveries how many that are finished stay in the list.
	maxOpenRecoveries = 4
	maxRecoveries     = 16
	keptRecoveries    = 16
	recoveryDay       = 24 * time.Hour
	// maxFalseWraps is how many wraps of one connection may fail to open.
	maxFalseWraps = 4
	// maxLosses is how many losses a terminal may tell of on one connection: each
	// is a line in the audit log.
	maxLosses = 4
)

// terminalState notes what a terminal says of its store, and gives it the
// recovery key that it has not wrapped for yet.
func (s *Server) terminalState(ctx context.Context, ses *session, m *transport.TerminalState) (outcome, error) {
	if m.Report != nil && len(m.Report.Holds) > transport.MaxReport {
		return refusal(transport.FaultMalformed, ""), nil
	}
	if ses.losses >= maxLosses {
		s.warn(ses, "a terminal tells of loss after loss: it is not listened to on this connection")
		return refusal(transport.FaultRefused, ""), nil
	}
	err := s.store.Update(ctx, s.by(ses.actor()), func(tx *store.Tx) error {
		if _, err := ses.stillIn(tx); err != nil {
			return err
		}
		if m.Report != nil {
			if err := holdsOnly(tx, ses, m.Report.Holds); err != nil {
				return err
			}
		}
		before, known, err := tx.NoteIncarnation(ses.device, m.Incarnation)
		if err != nil || !known || m.Incarnation == before {
			return err
		}
		ses.losses++
		s.warn(ses, "a terminal's store has lost what it had since its last copy", "incarnation", m.Incarnation)
		return tx.Audit("terminal.fallback", string(ses.terminal),
			fmt.Sprintf("its store fell back to an older state: incarnation %d after %d; it reports its holdings anew", m.Incarnation, before))
	})
	if err != nil {
		return outcome{}, err
	}
	newest := s.recovery.newest()
	noted := &transport.TerminalNoted{Recovery: newest.Version}
	if m.Recovery != newest.Version {
		noted.Key = newest.Public
	}
	return outcome{reply: noted}, nil
}

// holdsOnly ends what a terminal was believed to hold and has lost. Its word is
// enough: nobody gains by holding less.
func holdsOnly(tx *store.Tx, ses *session, names []transport.Name) error {
	held, err := tx.HeldBy(ses.terminal)
	if err != nil {
		return err
	}
	for _, h := range held {
		if h.Device != ses.device || !h.Active() || slices.Contains(names, h.Credential) {
			continue
		}
		err := errors.Join(tx.EndHolding(h, tx.By().At),
			tx.Audit("credential.lost", string(h.Credential), fmt.Sprintf("terminal %s device %s has it no more", ses.terminal, ses.device)))
		if err != nil {
			return err
		}
	}
	return nil
}

// recoveryRequest takes a request, or says how far it is; one that is approved
// is answered with the key. Every refusal for what the terminal is not is the
// same.
func (s *Server) recoveryRequest(ctx context.Context, ses *session, m *transport.RecoveryRequest) (outcome, error) {
	if why := s.recoveryFits(ses, m); why != "" {
		return s.recoveryRefused(ses, why), nil
	}
	wrap, err := transport.Marshal(&m.Wrap)
	if err != nil {
		return outcome{}, err
	}
	x, err := s.recoveryOf(ctx, ses, m, wrap)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return s.recoveryAsk(ctx, ses, m, wrap)
	case errors.Is(err, errNotYours):
		return s.recoveryRefused(ses, err.Error()), nil
	case err != nil:
		return outcome{}, err
	case x.State == transport.RecoveryApproved, x.State == transport.RecoveryReleased:
		return s.recoveryRelease(ctx, ses, m)
	}
	return outcome{reply: &transport.RecoveryState{ID: x.ID, State: told(x.State)}}, nil
}

// told is a state as terminals know it.
func told(state transport.RecoveryProgress) transport.RecoveryProgress {
	if state == store.RecoveryGivenUp {
		return transport.RecoveryDenied
	}
	return state
}

// recoveryFits says what is wrong with a request by itself.
func (s *Server) recoveryFits(ses *session, m *transport.RecoveryRequest) string {
	switch {
	case m.Wrap.Deployment != s.deployment.Name:
		return "the wrap is of another deployment"
	case m.Wrap.Device == ses.device:
		return "the wrap is of this very device, which has its key"
	case len(m.Wrap.Sealed) != transport.RecoverySealed, transport.CheckRecoveryKey(m.Recipient) != nil:
		return "the request is malformed"
	case ses.falseWraps >= maxFalseWraps:
		return "too many wraps on this connection that do not open"
	}
	return ""
}

func (s *Server) recoveryRefused(ses *session, why string) outcome {
	s.warn(ses, "recovery refused", "err", why)
	return refusal(transport.FaultRefused, "")
}

// errNotYours is an id that another request has.
var errNotYours = errors.New("another request has this id")

// recoveryOf finds the request as it was made before.
func (s *Server) recoveryOf(ctx context.Context, ses *session, m *transport.RecoveryRequest, wrap []byte) (x store.Recovery, err error) {
	err = s.store.View(ctx, func(tx *store.Tx) error {
		if _, err := ses.stillIn(tx); err != nil {
			return err
		}
		if x, err = tx.Recovery(m.ID); err != nil {
			return err
		}
		return sameRecovery(x, ses, m, wrap)
	})
	return x, err
}

func sameRecovery(x store.Recovery, ses *session, m *transport.RecoveryRequest, wrap []byte) error {
	if x.Terminal != ses.terminal || x.Device != ses.device || !bytes.Equal(x.Wrap, wrap) || !bytes.Equal(x.Recipient, m.Recipient) {
		return errNotYours
	}
	return nil
}

// recoveryAsk records a new request, once it is sure that an administrator may
// be asked: the wrap opens, and the device that made it was this terminal.
func (s *Server) recoveryAsk(ctx context.Context, ses *session, m *transport.RecoveryRequest, wrap []byte) (outcome, error) {
	why, err := s.notPredecessor(ctx, ses, m.Wrap.Device)
	if err != nil {
		return outcome{}, err
	}
	if why != "" {
		return s.recoveryRefused(ses, why), nil
	}
	key, err := s.openWrap(ctx, &m.Wrap)
	if errors.Is(err, transport.ErrRecovery) {
		ses.falseWraps++
		return s.recoveryRefused(ses, "the wrap does not open"), nil
	}
	if err != nil {
		return outcome{}, err
	}
	key.Wipe()
	err = s.store.Update(ctx, s.by(ses.actor()), func(tx *store.Tx) error {
		if _, err := ses.stillIn(tx); err != nil {
			return err
		}
		if why, err = recoveryRoom(tx, ses.terminal); why != "" || err != nil {
			return err
		}
		x := store.Recovery{ID: m.ID, Terminal: ses.terminal, Device: ses.device, Origin: m.Wrap.Device, Wrap: wrap, Recipient: m.Recipient, Address: ses.remote}
		return errors.Join(tx.AddRecovery(x),
			tx.Audit("recovery.ask", m.ID.String(), fmt.Sprintf("terminal %s device %s asks from %s for the store of device %s", ses.terminal, ses.device, cmp.Or(ses.remote, "an unknown address"), m.Wrap.Device)))
	})
	if err != nil {
		return outcome{}, err
	}
	if why != "" {
		s.warn(ses, "recovery refused", "err", why)
		return refusal(transport.FaultRefused, why), nil
	}
	s.log.Warn("a terminal asks for the key of its earlier store; decide with: kagimori-server recovery list",
		"terminal", ses.terminal, "recovery", m.ID)
	return outcome{reply: &transport.RecoveryState{ID: m.ID, State: transport.RecoveryAsked}}, nil
}

// notPredecessor says why a device is none whose store a terminal may ask for: it
// never was this terminal, or it is another one by now, and its store that one's.
func (s *Server) notPredecessor(ctx context.Context, ses *session, device transport.DeviceID) (why string, err error) {
	err = s.store.View(ctx, func(tx *store.Tx) error {
		if was, err := tx.HadIdentity(ses.terminal, device); err != nil || !was {
			why = "the wrap is of a device that never was this terminal"
			return err
		}
		x, err := tx.EnrolledAs(device)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		why = fmt.Sprintf("the wrap is of a device that is %s now", x.Name)
		return err
	})
	return why, err
}

// recoveryRoom says why a terminal may make no further request, and forgets
// the oldest that are finished.
func recoveryRoom(tx *store.Tx, name transport.Name) (why string, err error) {
	list, err := tx.RecoveriesOf(name)
	if err != nil {
		return "", err
	}
	var open, today int
	var done []transport.ID
	for _, x := range list {
		recent := tx.By().At.Sub(x.Asked) < recoveryDay
		finished := x.State == transport.RecoveryDenied || x.State == transport.RecoveryDone || x.State == store.RecoveryGivenUp
		switch {
		case !finished:
			open++
		case !recent:
			done = append(done, x.ID)
		}
		if recent {
			today++
		}
	}
	if open >= maxOpenRecoveries || today >= maxRecoveries {
		return "this terminal has asked too often: an administrator has to decide on its earlier requests", nil
	}
	for _, id := range done[:max(0, len(done)-keptRecoveries)] {
		err = errors.Join(err, tx.DropRecovery(id))
	}
	return "", err
}

// recoveryRelease gives out the key of an approved request. That it was given
// out is durable before it is; the same recipient may get it again until it
// says that it has it, since the answer may be lost.
func (s *Server) recoveryRelease(ctx context.Context, ses *session, m *transport.RecoveryRequest) (outcome, error) {
	key, err := s.openWrap(ctx, &m.Wrap)
	if err != nil {
		return outcome{}, err
	}
	defer key.Wipe()
	grant := transport.RecoveryGrant{ID: m.ID, Deployment: s.deployment.Name, Terminal: ses.terminal, Device: ses.device,
		Origin: m.Wrap.Device, Store: m.Wrap.Store}
	release, err := grant.Seal(m.Recipient, key)
	if err != nil {
		return outcome{}, later(err)
	}
	state := transport.RecoveryReleased
	err = s.store.Update(ctx, s.by(ses.actor()), func(tx *store.Tx) error {
		if _, err := ses.stillIn(tx); err != nil {
			return err
		}
		x, err := tx.Recovery(m.ID)
		if err != nil {
			return err
		}
		if state = x.State; state != transport.RecoveryApproved {
			return nil // released before, or decided otherwise meanwhile
		}
		state = transport.RecoveryReleased
		return errors.Join(tx.MoveRecovery(m.ID, transport.RecoveryApproved, transport.RecoveryReleased),
			tx.Audit("recovery.release", m.ID.String(), fmt.Sprintf("to terminal %s device %s", ses.terminal, ses.device)))
	})
	if err != nil {
		return outcome{}, err
	}
	if state != transport.RecoveryReleased {
		return outcome{reply: &transport.RecoveryState{ID: m.ID, State: told(state)}}, nil
	}
	return outcome{reply: release}, nil
}

// recoveryTaken ends a request: nothing is released for it any more.
func (s *Server) recoveryTaken(ctx context.Context, ses *session, m *transport.RecoveryTaken) (outcome, error) {
	state := transport.RecoveryDone
	err := s.store.Update(ctx, s.by(ses.actor()), func(tx *store.Tx) error {
		if _, err := ses.stillIn(tx); err != nil {
			return err
		}
		x, err := tx.Recovery(m.ID)
		if errors.Is(err, store.ErrNotFound) || err == nil && (x.Terminal != ses.terminal || x.Device != ses.device) {
			return nil // there is none any more: it is told that it may forget it
		}
		if err != nil {
			return err
		}
		if x.State == transport.RecoveryDone {
			return nil
		}
		if m.GivenUp {
			if state = givenUp(x.State); x.State == state {
				return nil
			}
			return errors.Join(tx.MoveRecovery(m.ID, x.State, state), tx.Audit("recovery.give-up", m.ID.String(), "terminal "+string(ses.terminal)))
		}
		if x.State != transport.RecoveryReleased {
			return &transport.Fault{Code: transport.FaultRefused}
		}
		return errors.Join(tx.MoveRecovery(m.ID, x.State, state), tx.Audit("recovery.taken", m.ID.String(), "terminal "+string(ses.terminal)))
	})
	if err != nil {
		return faultOf(err)
	}
	return outcome{reply: &transport.RecoveryState{ID: m.ID, State: told(state)}}, nil
}

// endOf is how a request ends that nobody follows up. One whose key was sent
// counts as taken: nobody can say that it did not arrive.
func endOf(state transport.RecoveryProgress) transport.RecoveryProgress {
	switch state {
	case transport.RecoveryReleased, transport.RecoveryDone:
		return transport.RecoveryDone
	case store.RecoveryGivenUp:
		return state
	}
	return transport.RecoveryDenied
}

// givenUp is how a request ends that its terminal gives up: never to be approved.
func givenUp(state transport.RecoveryProgress) transport.RecoveryProgress {
	if end := endOf(state); end == transport.RecoveryDone {
		return end
	}
	return store.RecoveryGivenUp
}

// endRecoveries ends all requests of a terminal: the device that made them is
// no longer it.
func endRecoveries(tx *store.Tx, name transport.Name, why string) error {
	list, err := tx.RecoveriesOf(name)
	for _, x := range list {
		if end := endOf(x.State); end != x.State {
			move := tx.DecideRecovery
			if x.State == transport.RecoveryReleased { // that was decided before
				move = tx.MoveRecovery
			}
			err = errors.Join(err, move(x.ID, x.State, end), tx.Audit("recovery.end", x.ID.String(), fmt.Sprintf("%s, %s: %s", x.State, end, why)))
		}
	}
	return err
}
