package keycopy

// One connection of the Source. It opens a transaction: HELLO in, HELLO_ACK
// out, PROOF in (source_handshake.go), GRANT and ITEMs out, RECEIPT in, and so
// on (source_transaction.go). Or it goes on with one: RESUME in, RESUMED out
// (source_resume.go).

import (
	"context"
	"fmt"

	"github.com/kagimori/kagimori/transport"
)

// sourceState is what a run of the Source does next.
type sourceState uint8

const (
	sourceHello     sourceState = iota + 1 // takes HELLO or RESUME
	sourceAck                              // gives HELLO_ACK
	sourceProof                            // takes PROOF
	sourceGranting                         // gives GRANT
	sourceItems                            // gives ITEMs
	sourceReceipt                          // takes RECEIPT
	sourceCommit                           // gives COMMIT; what moves is disabled here
	sourceActivated                        // takes ACTIVATED
	sourceClose                            // gives CLOSE; what moved is destroyed here
	sourceClosed                           // done
	sourceResumed                          // gives RESUMED
)

func (s sourceState) String() string {
	names := [...]string{"new", "hello", "ack", "proof", "granting", "items", "receipt", "commit", "activated", "close", "closed", "resumed"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

type sourceRun struct {
	source   *Source
	channel  transport.KeycopyChannel
	state    sourceState
	admitted bool // the peer has the security code, or the resume key
	proven   bool // and the operator code, or again the resume key
	judged   bool // its operator code was wrong
	live     bool // counts in Source.live

	hello  transport.KeycopyHello
	fleet  *fleetKeys
	keys   *runKeys
	txn    transport.ID
	ack    transport.KeycopyFrame
	answer transport.KeycopyTag // Ta
	// grantBody is GRANT as far as the handshake has it, grant the frame.
	grantBody transport.KeycopyGrant
	grant     transport.KeycopyFrame
	offer     *Offer
	next      int          // item to send
	deal      *Transaction // as on record, fit to be shown; nil before it is

	resumed transport.KeycopyFrame
	then    sourceState // after RESUMED
}

func (s *Source) newRun(ch transport.KeycopyChannel) *sourceRun {
	return &sourceRun{source: s, channel: ch, state: sourceHello}
}

// expects is the type of frame that consume takes now, RESUME in place of HELLO
// as well; 0 when it is our turn.
func (r *sourceRun) expects() transport.KeycopyType {
	switch r.state {
	case sourceHello:
		return transport.KeycopyTypeHello
	case sourceProof:
		return transport.KeycopyTypeProof
	case sourceReceipt:
		return transport.KeycopyTypeReceipt
	case sourceActivated:
		return transport.KeycopyTypeActivated
	}
	return 0
}

func (r *sourceRun) finished() bool { return r.state == sourceClosed }

// consume takes the peer's frame.
func (r *sourceRun) consume(ctx context.Context, f transport.KeycopyFrame) error {
	if r.state == sourceHello && f.Type == transport.KeycopyTypeResume {
		return r.consumeResume(ctx, f)
	}
	if err := refusal(f, r.expects()); err != nil {
		return r.turnedDown(ctx, err)
	}
	switch r.state {
	case sourceHello:
		return r.consumeHello(ctx, f)
	case sourceProof:
		return r.consumeProof(ctx, f)
	case sourceReceipt:
		return r.consumeReceipt(ctx, f)
	case sourceActivated:
		return r.consumeActivated(ctx, f)
	}
	return fail(transport.KeycopyProtocol, fmt.Errorf("%s in state %s", f.Type, r.state))
}

// create gives our next frame, and whether another follows before the peer's.
func (r *sourceRun) create() (f transport.KeycopyFrame, more bool, err error) {
	switch r.state {
	case sourceAck:
		r.state = sourceProof
		return r.ack, false, nil
	case sourceResumed:
		r.state = r.then
		return r.resumed, r.state == sourceItems, nil
	case sourceGranting:
		r.state = sourceItems
		if len(r.offer.Items) == 0 {
			r.state = sourceReceipt
		}
		return r.grant, r.state == sourceItems, nil
	case sourceItems:
		return r.createItem()
	case sourceCommit:
		f, err = r.createCommit()
		return f, false, err
	case sourceClose:
		f, err = r.createClose()
		return f, false, err
	}
	return f, false, fail(transport.KeycopyProtocol, fmt.Errorf("nothing to send in state %s", r.state))
}

// end wipes what the run holds and gives its place up.
func (r *sourceRun) end(err error) {
	r.fleet.wipe()
	r.keys.wipe()
	r.offer.Wipe()
	r.source.leave(r)
	kind := EventEnded
	switch {
	case r.judged || r.deal != nil && r.deal.Conflict:
		return // it is told
	case !r.proven:
		kind = EventTurned
	case err != nil && (r.deal == nil || r.deal.Phase == 0 || r.deal.Phase == transport.KeycopyAbandoned):
		kind = EventAborted
	case err != nil:
		kind = EventInterrupted
	case r.deal.Phase == transport.KeycopyDone:
		kind = EventClosed
	}
	r.source.cfg.tell(r.event(kind, Event{Err: err}))
}

// event fills in who is at the other end.
func (r *sourceRun) event(kind EventKind, e Event) Event {
	e.Kind, e.Remote, e.Name, e.Transaction = kind, r.channel.Remote, r.channel.Peer, r.deal
	switch {
	case r.deal != nil:
		e.Device = r.deal.Peer
	case r.admitted:
		e.Device = r.hello.Target
	}
	return e
}
