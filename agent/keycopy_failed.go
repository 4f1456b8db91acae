package agent

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/tcp"
)

// Why a copy to this terminal failed, in words for whoever typed the code, and
// what to do next.

const newCode = "make a new code on the old terminal (kagimori keycopy offer), and type it here"

// fetchFailed explains. t is set if the codes had matched; unjudged is true if
// nobody has looked at the operator code.
func (a *Agent) fetchFailed(address string, t *keycopy.Transaction, unjudged bool, err error) error {
	if p := lockedHere(err); p != nil {
		return p
	}
	if t != nil && len(t.Items) == 0 {
		return nothingOffered(t)
	}
	if p := foreign(address, err); p != nil {
		return p
	}
	t = a.onRecord(t)
	next := "check that both terminals are on the same network and that the old one still waits, then try again"
	kind := control.Unavailable
	wrong := a.copies.wrong
	a.copies.wrong = wrongCodes{} // whatever else it is, what was offered before may have ended
	if fault := transport.KeycopyFault(0); errors.As(err, &fault) {
		// The text of a fault says what to do.
		next = "start with a new code: `kagimori keycopy offer` on the old terminal"
		switch fault {
		case transport.KeycopyAuthFailed:
			switch {
			case unjudged:
				kind, next = control.Refused, "make sure that this is the old terminal's address, and that both were provisioned for one group: `kagimori status` says for which; the operator code is as good as before"
				err = fmt.Errorf("what answers there does not hold this terminal's security code (%w)", err)
			case t == nil:
				a.copies.wrong = wrong
				return a.copies.wrong.problem(address, a.clock.Steady(), err)
			default:
				kind = control.Refused
			}
		case transport.KeycopyModeRefused:
			kind, next = control.Refused, "compare enabled and require_identity in the [keycopy] sections of both terminals, then choose with --mode; identities are shown by kagimori status"
		case transport.KeycopyNotArmed, transport.KeycopyCodeUnknown, transport.KeycopyVersionRefused:
			kind = control.Refused
		case transport.KeycopyStoreFailed:
			next = "free space on the disk of the terminal at " + address + ", then " + next
			if ownStore(err) {
				problem, _ := storageProblem(err)
				if t != nil && t.Phase.Open() {
					return control.Problemf(control.Storage, problem.Next+"; leave both terminals on", "the codes match, and the copy from %s goes on by itself once this terminal can write its store; the operator code is not needed any more (%w)", address, err)
				}
				kind, next = control.Storage, problem.Next+"; then "+newCode
			}
		case transport.KeycopyBusy:
			a.copies.wrong = wrong
			next = "wait a moment, then try again with the same code"
		}
	}
	switch {
	case t != nil && t.Phase.Open():
		text, next := inWords(&dealRecord{Deal: *t}, a.cfg.Program)
		return control.Problemf(control.Unavailable, next, "the connection to %s broke, and the copy goes on by itself when the two see each other; the operator code is not needed any more: %s (%w)", address, text, err)
	case t != nil:
		return control.Problemf(kind, next, "the copy from %s broke off after the codes matched; nothing was installed here: %w", address, err)
	}
	return control.Problemf(kind, next, "copy from %s: %w", address, err)
}

// ownStore says whether err is that this terminal could not write its store.
func ownStore(err error) bool {
	failed, ok := errors.AsType[*keycopy.Error](err)
	return ok && !failed.Remote && errors.Is(failed, transport.KeycopyStoreFailed)
}

// onRecord is t as it is on record if it is open there: a write can be there
// although it did not end well.
func (a *Agent) onRecord(t *keycopy.Transaction) *keycopy.Transaction {
	if t == nil || t.Phase.Open() {
		return t
	}
	if d, err := a.dealOn(t.ID, transport.KeycopyTarget); err == nil && d.Phase.Open() {
		return d
	}
	return t
}

// lockedHere is for a terminal that takes no code now, or not this one; nil
// otherwise.
func lockedHere(err error) error {
	locked, ok := errors.AsType[*keycopy.Locked](err)
	if !ok {
		return nil
	}
	if locked.Typed {
		return control.Problemf(control.Refused, newCode, "%w", locked)
	}
	return control.Problemf(control.Refused, "find out who typed them; at that time "+newCode+"; or end the lock with: sudo kagimori keycopy unlock", "%w", locked)
}

// nothingOffered is for a copy of which nothing was left, most often because an
// id was mistyped.
func nothingOffered(t *keycopy.Transaction) error {
	held := heldOf(t.Withheld)
	offered, missing := heldIDs(held, transport.KeycopyNotSelected.String()), heldIDs(held, transport.KeycopyNotHeld.String())
	switch {
	case missing != "" && offered != "":
		return control.Problemf(control.NotFound, newCode+", with an id that is offered, or without --credential for all", "the old terminal does not offer %s; it offers %s", missing, offered)
	case missing != "":
		return control.Problemf(control.NotFound, "look at what it holds: kagimori credential list, on the old terminal", "the old terminal does not offer %s", missing)
	}
	var why []string
	for _, h := range held {
		why = append(why, fmt.Sprintf("%s: %s", h.ID, h.Reason))
	}
	return control.Problemf(control.Conflict, "look at what it holds: kagimori credential list, on the old terminal", "the old terminal offers nothing that may be copied: %s", strings.Join(why, "; "))
}

// foreign is for a terminal of another deployment; nil otherwise.
func foreign(address string, err error) error {
	const next = "use a spare of the old terminal's deployment; `kagimori status` on each says which it belongs to"
	switch {
	case errors.Is(err, tcp.ErrOtherKey):
		return control.Problemf(control.Refused, "read the QR code that the old terminal shows now; if it is that one, something between the two answers in its place: call off the offer, and use another cable or network", "%s does not show the key that is in the QR code", address)
	case errors.Is(err, tcp.ErrForeign):
		return control.Problemf(control.Refused, next, "the terminal at %s belongs to another deployment: this one cannot take over from it", address)
	case tcp.Unaccepted(err):
		return control.Problemf(control.Refused, next, "the terminal at %s does not accept this one's identity: most likely the two belong to different deployments", address)
	}
	return nil
}

// wrongCodes counts those in a row that one old terminal refused. It cannot be
// asked: whoever does not know the code learns nothing about it.
type wrongCodes struct {
	address string
	first   time.Time
	n       int
}

// problem counts one. Calls come one at a time: another copy is not begun before.
func (w *wrongCodes) problem(address string, now time.Time, err error) error {
	if w.address != address || w.n >= keycopy.CodeAttempts || now.Sub(w.first) >= keycopy.CodeLifetime {
		*w = wrongCodes{address: address, first: now}
	}
	w.n++
	left := keycopy.CodeAttempts - w.n
	if left == 0 {
		return control.Problemf(control.Refused, newCode, "copy from %s: %d wrong codes: the old terminal has destroyed its code (%w)", address, w.n, err)
	}
	return control.Problemf(control.Refused, fmt.Sprintf("compare the code with the old terminal's display and type it again; %s", afterWrong(left)), "copy from %s: %w", address, err)
}
