package keycopy

// One connection of the Target. It opens a transaction: HELLO out, HELLO_ACK in,
// PROOF out (target_handshake.go), GRANT and ITEMs in, RECEIPT out, and so on
// (target_transaction.go). Or it goes on with one: RESUME out, RESUMED in
// (target_resume.go).

import (
	"context"
	"fmt"

	"github.com/kagimori/kagimori/transport"
)

// targetState is what a run of the Target does next.
type targetState uint8

const (
	targetHello     targetState = iota + 1 // gives HELLO
	targetAck                              // takes HELLO_ACK
	targetProof                            // gives PROOF; the attempt is counted
	targetGrant                            // takes GRANT; from here on the code is used up
	targetItems                            // takes ITEMs
	targetReceipt                          // gives RECEIPT; the credentials are stored
	targetCommit                           // takes COMMIT
	targetActivated                        // gives ACTIVATED; what moved is in use
	targetClose                            // takes CLOSE
	targetClosed                           // done
	targetResume                           // gives RESUME
	targetResumed                          // takes RESUMED
)

func (s targetState) String() string {
	names := [...]string{"new", "hello", "ack", "proof", "grant", "items", "receipt", "commit", "activated", "close", "closed", "resume", "resumed"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

type targetRun struct {
	target  *Target
	channel transport.KeycopyChannel
	mode    transport.KeycopyMode
	state   targetState

	fleet   *fleetKeys
	keys    *runKeys
	pace    *cpace // in mode pake
	codeKey []byte // in the others, until keys are there
	unread  bool   // the Source has not looked at the sealed code
	hello   transport.KeycopyFrame
	ack     transport.KeycopyHelloAck
	records []transport.CredentialRecord
	deal    *Transaction // set once the Source has proven the codes; as on record, fit to be shown

	resume transport.KeycopyFrame
	proof  *resumeKeys
}

// expects is the type of frame that consume takes now; 0 when it is our turn.
func (r *targetRun) expects() transport.KeycopyType {
	switch r.state {
	case targetAck:
		return transport.KeycopyTypeHelloAck
	case targetGrant:
		return transport.KeycopyTypeGrant
	case targetItems:
		return transport.KeycopyTypeItem
	case targetCommit:
		return transport.KeycopyTypeCommit
	case targetClose:
		return transport.KeycopyTypeClose
	case targetResumed:
		return transport.KeycopyTypeResumed
	}
	return 0
}

func (r *targetRun) finished() bool { return r.state == targetClosed }

// consume takes the peer's frame.
func (r *targetRun) consume(ctx context.Context, f transport.KeycopyFrame) error {
	if err := refusal(f, r.expects()); err != nil {
		return r.refused(ctx, err)
	}
	switch r.state {
	case targetAck:
		return r.consumeAck(ctx, f)
	case targetGrant:
		return r.consumeGrant(ctx, f)
	case targetItems:
		return r.consumeItem(ctx, f)
	case targetCommit:
		return r.consumeCommit(ctx, f)
	case targetClose:
		return r.consumeClose(ctx, f)
	case targetResumed:
		return r.consumeResumed(ctx, f)
	}
	return fail(transport.KeycopyProtocol, fmt.Errorf("%s in state %s", f.Type, r.state))
}

// create gives our next frame; another never follows before the peer's.
func (r *targetRun) create() (f transport.KeycopyFrame, more bool, err error) {
	switch r.state {
	case targetHello:
		r.state = r.sent()
		return r.hello, false, nil
	case targetResume:
		r.state = targetResumed
		return r.resume, false, nil
	case targetProof:
		r.state = targetGrant
		f, err = transport.EncodeKeycopy(&transport.KeycopyProof{Tag: r.keys.targetTag()})
		return f, false, err
	case targetReceipt:
		f, err = r.createReceipt()
		return f, false, err
	case targetActivated:
		f, err = r.createActivated()
		return f, false, err
	}
	return f, false, fail(transport.KeycopyProtocol, fmt.Errorf("nothing to send in state %s", r.state))
}

// end wipes what the run holds. The code survives only a failure before the
// Source has judged it.
func (r *targetRun) end() {
	r.fleet.wipe()
	r.keys.wipe()
	r.pace.wipe()
	r.proof.wipe()
	clear(r.codeKey)
	WipeRecords(r.records)
	if r.state >= targetGrant && !r.unread {
		r.target.code.Wipe()
	}
}

// event fills in who is at the other end.
func (r *targetRun) event(kind EventKind, e Event) Event {
	e.Kind, e.Remote, e.Name, e.Transaction = kind, r.channel.Remote, r.channel.Peer, r.deal
	if r.deal != nil {
		e.Device = r.deal.Peer
	}
	return e
}
