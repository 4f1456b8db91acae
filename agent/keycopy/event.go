package keycopy

import (
	"fmt"

	"github.com/kagimori/kagimori/transport"
)

// EventKind says what happened, for the displays of offer and fetch.
type EventKind string

// What happens on either end. The comment names the fields of Event in use.
const (
	EventConnected   EventKind = "connected"   // Remote, Name: a TLS connection stands, nothing is proven by codes yet
	EventTurned      EventKind = "turned"      // Source: a connection ended before its code was judged. Remote, Err
	EventRefused     EventKind = "refused"     // Source: a wrong operator code. Remote, Device, Left
	EventKilled      EventKind = "killed"      // Source: the code was wrong too often and is destroyed. Remote, Device
	EventExpired     EventKind = "expired"     // Source: the code's time is over and it is destroyed
	EventGranted     EventKind = "granted"     // both: the codes match. Transaction with Items and Withheld
	EventResumed     EventKind = "resumed"     // both: a new connection goes on with Transaction
	EventItem        EventKind = "item"        // both: a credential was sent or opened. Item (from 1), Items, ID
	EventInstalled   EventKind = "installed"   // both: Target has them durably and its code is destroyed; Source: the receipt is recorded. Transaction with Taken; Target: Refused
	EventActive      EventKind = "active"      // Target: what moved is in use here, and nowhere else. Transaction
	EventClosed      EventKind = "closed"      // both: all done, both codes are destroyed. Transaction
	EventInterrupted EventKind = "interrupted" // Source: the connection ended; the Target will come back for Transaction. Err
	EventAborted     EventKind = "aborted"     // Source: the run ended after the codes matched, and nothing is left to go on with. Transaction, Err
	EventEnded       EventKind = "ended"       // both: the Target came back for a Transaction that the Source had ended; its Phase says what is left
	EventConflict    EventKind = "conflict"    // both: both ends use what moved in Transaction
)

// An Event is one step of a copy. It holds no secret.
type Event struct {
	Kind        EventKind
	Remote      string
	Name        transport.Name
	Device      transport.DeviceID
	Left        int
	Item, Items int
	ID          transport.Name
	Transaction *Transaction // without its resume key
	Refused     map[transport.Name]string
	Err         error
}

// An Error is how a run fails. errors.Is finds the fault.
type Error struct {
	Fault transport.KeycopyFault
	// Remote is true if the other end found it.
	Remote bool
	// Err is the detail, or nil. It does not cross the wire.
	Err error
}

func (e *Error) Error() string {
	if e.Err == nil {
		return e.Fault.Error()
	}
	return fmt.Sprintf("%s (%v)", e.Fault, e.Err)
}

// Unwrap gives the fault and the detail.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Fault}
	}
	return []error{e.Fault, e.Err}
}

func fail(fault transport.KeycopyFault, err error) *Error { return &Error{Fault: fault, Err: err} }
