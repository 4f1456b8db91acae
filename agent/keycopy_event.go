package agent

import (
	"errors"
	"fmt"
	"strings"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/tcp"
)

// What people at either end of a copy are told while it goes on.

// A KeycopyEvent is one step of a copy, for people and scripts.
type KeycopyEvent struct {
	// Step is listed, armed, connected, turned, refused, killed, expired, granted, item,
	// installed, closed, aborted, disarmed.
	Step string `json:"step"`
	Text string `json:"text"`
	// Code is the operator code, sealed to the caller's reply key, with armed; not
	// there if the operator typed one of his own, as CodeKind says.
	Code     string           `json:"code,omitempty"`
	CodeKind keycopy.CodeKind `json:"code_kind,omitempty"` // with armed
	Listen   string           `json:"listen,omitempty"`    // with armed
	// Addresses are where the new terminal finds this one, KeyHash (hex) is of the
	// key that this one shows it, Invitation has both in one text, QR is that text as
	// a QR code: a row of modules each, "1" is dark; all with armed. None has the code.
	Addresses  []string            `json:"addresses,omitempty"`
	KeyHash    string              `json:"key_hash,omitempty"`
	Invitation string              `json:"invitation,omitempty"`
	QR         []string            `json:"qr,omitempty"`
	Seconds    int                 `json:"seconds,omitempty"` // that the code lives, with armed
	Remote     string              `json:"remote,omitempty"`
	Peer       transport.Name      `json:"peer,omitempty"`        // the other terminal, if it proved a name
	Device     *transport.DeviceID `json:"peer_device,omitempty"` // as the other end says
	Txn        *transport.ID       `json:"txn,omitempty"`         // once the codes have matched
	Left       *int                `json:"attempts_left,omitempty"`
	Item       int                 `json:"item,omitempty"`
	Items      int                 `json:"items,omitempty"`
	ID         transport.Name      `json:"credential,omitempty"`
	Keys       []KeycopyKey        `json:"keys,omitempty"`
	Held       []KeycopyHeld       `json:"withheld,omitempty"`
	More       int                 `json:"withheld_more,omitempty"`
	Next       string              `json:"next,omitempty"`
	Warning    string              `json:"warning,omitempty"` // with armed: what may keep the keys from being of use
}

// KeycopyKey is one credential of a copy.
type KeycopyKey struct {
	ID      transport.Name `json:"credential"`
	Service transport.Name `json:"service"`
	Subject transport.Name `json:"subject"`
	// Transfer is what happens to it: copy (both have it then) or move.
	Transfer transport.Transfer `json:"transfer"`
}

// KeycopyHeld is one that is held back, and why.
type KeycopyHeld struct {
	ID     transport.Name `json:"credential"`
	Reason string         `json:"reason"`
}

func heldOf(withheld []transport.KeycopyWithheld) (list []KeycopyHeld) {
	for _, w := range withheld {
		list = append(list, KeycopyHeld{ID: w.ID, Reason: w.Reason.String()})
	}
	return list
}

// tell turns an event of the protocol into one for people.
func tell(ev keycopy.Event, r role) KeycopyEvent {
	out := KeycopyEvent{Step: string(ev.Kind), Remote: ev.Remote, Peer: ev.Name, Item: ev.Item, Items: ev.Items, ID: ev.ID}
	if ev.Device != (transport.DeviceID{}) {
		out.Device = &ev.Device
	}
	if t := ev.Transaction; t != nil {
		out.Remote, out.Peer, out.Device, out.Items = t.Remote, t.Name, &t.Peer, len(t.Items)
		out.Keys, out.Held, out.More, out.Txn = keysOf(t.Items, t.Taken()), heldOf(t.Withheld), int(t.More), &t.ID
	}
	out.Held = append(out.Held, refusedOf(ev)...)
	who := peerText(out.Peer, out.Device, out.Remote)
	switch ev.Kind {
	case keycopy.EventConnected:
		out.Text = "connected with " + who
	case keycopy.EventTurned:
		out.Text = fmt.Sprintf("%s was turned away before its code was looked at: %v", who, ev.Err)
	case keycopy.EventRefused:
		left := ev.Left
		out.Left = &left
		out.Text = fmt.Sprintf("wrong operator code from %s; %s", who, afterWrong(ev.Left))
	case keycopy.EventKilled:
		out.Text = "too many wrong operator codes; the code is destroyed"
	case keycopy.EventExpired:
		out.Text = "the operator code's time is over; it is destroyed"
	case keycopy.EventGranted:
		out.Text = fmt.Sprintf("the codes match with %s; %s to copy", who, count(out.Items, "key"))
		if out.Items == 0 {
			out.Text = fmt.Sprintf("the codes match with %s, but none of the keys that it asks for is offered: %s", who, heldIDs(out.Held, transport.KeycopyNotHeld.String()))
		}
	case keycopy.EventItem:
		out.Text = fmt.Sprintf("%d of %d: %s", ev.Item, ev.Items, ev.ID)
	case keycopy.EventResumed:
		out.Text = "connected again with " + who + "; the copy goes on"
	case keycopy.EventInstalled:
		out.Text = installed(ev.Transaction, r, who)
	case keycopy.EventActive:
		out.Text = fmt.Sprintf("%s moved here and in use; you may unplug the old terminal now", count(len(ev.Transaction.Moving()), "key"))
	case keycopy.EventClosed:
		out.Text = "done: both terminals have destroyed the operator code"
	case keycopy.EventInterrupted:
		out.Text = fmt.Sprintf("the connection to %s broke (%v); leave both terminals on: the new one comes back by itself", who, ev.Err)
	case keycopy.EventAborted:
		out.Text = fmt.Sprintf("the copy to %s broke off: %v", who, ev.Err)
	case keycopy.EventEnded:
		out.Text = "the copy was ended at the old terminal; " + outcome(ev.Transaction)
	case keycopy.EventConflict:
		out.Text = fmt.Sprintf("both terminals use %s that moved: somebody took the other one for gone; take one out of service, or have them issued anew", count(len(ev.Transaction.Moving()), "key"))
	}
	return out
}

// installed says what the receipt means.
func installed(t *keycopy.Transaction, r role, who string) string {
	const code = "the operator code is destroyed"
	keys, moving := count(len(t.Taken()), "key"), len(t.Moving())
	switch {
	case r == roleSource && moving > 0:
		return fmt.Sprintf("%s has %s; %s", who, keys, code)
	case r == roleSource:
		return fmt.Sprintf("%s has installed %s; %s", who, keys, code)
	case moving > 0:
		return fmt.Sprintf("%s here, %d not in use until the old terminal has given %s up; %s", keys, moving, them(moving), code)
	}
	return fmt.Sprintf("%s installed here; %s", keys, code)
}

// refusedOf lists what the new terminal did not take, in the order of the items.
func refusedOf(ev keycopy.Event) (list []KeycopyHeld) {
	if ev.Transaction == nil {
		return nil
	}
	for _, e := range ev.Transaction.Items {
		if why := ev.Refused[e.ID]; why != "" {
			list = append(list, KeycopyHeld{ID: e.ID, Reason: why})
		}
	}
	return list
}

// turnedForeign is for a terminal that TLS turned away for its identity, or that
// turned away for ours.
func turnedForeign(remote string, err error) KeycopyEvent {
	ev := KeycopyEvent{Step: string(keycopy.EventTurned), Remote: remote}
	ev.Text = fmt.Sprintf("%s was turned away: it belongs to another deployment; use a spare of this one's", remote)
	if errors.Is(err, transport.KeycopyModeRefused) {
		ev.Text = fmt.Sprintf("%s was turned away: %v", remote, err)
	}
	if tcp.Unaccepted(err) {
		ev.Text = fmt.Sprintf("%s does not accept this terminal's identity: most likely it belongs to another deployment; use a spare of this one's", remote)
	}
	return ev
}

// afterWrong says what becomes of the code after a wrong one.
func afterWrong(left int) string {
	switch left {
	case 0:
		return "the code is destroyed"
	case 1:
		return "1 more wrong one destroys the code"
	}
	return fmt.Sprintf("%d more wrong ones destroy the code", left)
}

// heldIDs lists the ids that are held back for a reason.
func heldIDs(held []KeycopyHeld, reason string) string {
	var list []string
	for _, h := range held {
		if h.Reason == reason {
			list = append(list, string(h.ID))
		}
	}
	return strings.Join(list, ", ")
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func peerText(name transport.Name, device *transport.DeviceID, remote string) string {
	switch {
	case name != "":
		return fmt.Sprintf("terminal %s at %s", name, remote)
	case device != nil:
		return fmt.Sprintf("device %s at %s", device.Short(), remote)
	}
	return remote
}
