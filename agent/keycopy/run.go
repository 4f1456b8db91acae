package keycopy

// The drivers: they carry frames between a connection and a run until it is
// finished, and turn every failure into an Error for the caller and an ERROR
// frame for the peer.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// A Conn carries frames over one channel. Cancelling the context it was made
// with breaks it.
type Conn interface {
	// ReadFrame waits for a frame whose body has at most limit bytes. A
	// deadline that passes is os.ErrDeadlineExceeded. io.EOF says that the peer
	// has closed the connection in due form (close_notify), and nothing else does.
	ReadFrame(limit int, wait time.Duration) (transport.KeycopyFrame, error)
	// WriteFrame may hold f back until a frame with flush follows.
	WriteFrame(f transport.KeycopyFrame, flush bool) error
	Channel() transport.KeycopyChannel
	Close() error
}

// What a Target has not finished when a connection ends. It goes on by itself
// (Resume).
var (
	// ErrNotClosed is a transaction whose credentials are in use here while the
	// Source did not confirm that it has noted it.
	ErrNotClosed = errors.New("the keys are installed here, but the old terminal did not confirm that it knows; look at its status")
	// ErrInterrupted is one of which nothing, or not all, is in use yet.
	ErrInterrupted = errors.New("the copy was interrupted; it goes on by itself when the two terminals see each other")
)

// Serve runs one connection of a Source; whoever accepted it closes it. The
// error is an *Error, and also transport.ErrKeycopyStranger if the peer was to
// prove the security code, or a transaction's resume key, and did not.
func Serve(ctx context.Context, conn Conn, s *Source) error {
	r := s.newRun(conn.Channel())
	s.cfg.tell(r.event(EventConnected, Event{}))
	err := drive(ctx, conn, r)
	r.end(err)
	if err == nil && r.deal.Phase == transport.KeycopyDone {
		if _, gone := conn.ReadFrame(0, transport.KeycopyMessageTimeout); errors.Is(gone, io.EOF) {
			return r.farewell(ctx)
		}
	}
	if err != nil && !r.admitted {
		return fmt.Errorf("%w: %w", transport.ErrKeycopyStranger, err)
	}
	return err
}

// Fetch runs a copy over conn and closes it. The Transaction is there once the
// Source has proven the codes, also with an error, and says by its Phase how far
// it has come; its Taken is set once the credentials are stored. The error is an
// *Error, wrapped in ErrNotClosed or ErrInterrupted if the transaction is open.
func Fetch(ctx context.Context, conn Conn, t *Target) (*Transaction, error) {
	defer conn.Close()
	r, err := t.newRun(ctx, conn.Channel())
	defer r.end()
	if err != nil {
		return nil, err
	}
	return r.run(ctx, conn)
}

// Resume goes on with t, which is open on record, over conn, and closes it. It
// gives the transaction as it is afterwards. Without an error it is not open
// any more: closed, or ended because the Source had ended it. An error is as
// Fetch's. With transport.KeycopyTxnUnknown the Source, or whoever that is,
// knows no such transaction, and cannot prove it: nothing has changed.
func Resume(ctx context.Context, conn Conn, cfg TargetConfig, t *Transaction) (*Transaction, error) {
	defer conn.Close()
	r, err := (&Target{cfg: cfg}).resume(ctx, conn.Channel(), t.ID)
	defer r.end()
	if err != nil {
		return t.shown(), err
	}
	return r.run(ctx, conn)
}

// run drives a Target's run to its end. The connection may be closed in due form
// only after CLOSED is on record, or else with an ERROR.
func (r *targetRun) run(ctx context.Context, conn Conn) (*Transaction, error) {
	r.target.cfg.tell(r.event(EventConnected, Event{}))
	err := drive(ctx, conn, r)
	if e, ok := errors.AsType[*Error](err); ok && !e.Remote && (r.state == targetGrant || r.state == targetItems) {
		linger(conn)
	}
	if err == nil || r.deal == nil || !r.deal.Phase.Open() {
		return r.deal, err
	}
	if r.deal.Phase == transport.KeycopyStarted || r.deal.Phase == transport.KeycopyStaged && r.deal.moves() {
		return r.deal, fmt.Errorf("%w: %w", ErrInterrupted, err)
	}
	return r.deal, fmt.Errorf("%w: %w", ErrNotClosed, err)
}

// party is one end's run: frames in by consume, frames out by create.
type party interface {
	expects() transport.KeycopyType
	consume(ctx context.Context, f transport.KeycopyFrame) error
	create() (f transport.KeycopyFrame, more bool, err error)
	finished() bool
}

var (
	_ party = (*sourceRun)(nil)
	_ party = (*targetRun)(nil)
)

func drive(ctx context.Context, conn Conn, p party) error {
	for !p.finished() {
		err := step(ctx, conn, p)
		if err == nil {
			continue
		}
		e, ok := errors.AsType[*Error](err)
		if !ok {
			e = fail(transport.KeycopyAborted, err)
		}
		if !e.Remote {
			if f, err := transport.EncodeKeycopy(&transport.KeycopyError{Code: e.Fault}); err == nil {
				_ = conn.WriteFrame(f, true) // a courtesy: the connection ends either way
			}
		}
		return e
	}
	return nil
}

func step(ctx context.Context, conn Conn, p party) error {
	want := p.expects()
	if want == 0 {
		f, more, err := p.create()
		if err != nil {
			return err
		}
		if err := conn.WriteFrame(f, !more); err != nil {
			return broken(ctx, err)
		}
		return nil
	}
	wait := transport.KeycopyMessageTimeout
	if want == transport.KeycopyTypeReceipt || want == transport.KeycopyTypeActivated {
		wait = transport.KeycopyInstallTimeout
	}
	f, err := conn.ReadFrame(transport.KeycopyLimit(want), wait)
	if err != nil {
		return broken(ctx, err)
	}
	return p.consume(ctx, f)
}

// broken is the fault of a connection that failed.
func broken(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return fail(transport.KeycopyAborted, ctx.Err())
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fail(transport.KeycopyTimeout, err)
	case errors.Is(err, transport.ErrMalformed):
		return fail(transport.KeycopyProtocol, err)
	}
	return fail(transport.KeycopyAborted, fmt.Errorf("connection lost: %w", err))
}

// linger reads on for a moment after our ERROR: closing a connection on a peer
// that is still sending would take the ERROR from it.
func linger(conn Conn) {
	for range transport.MaxKeycopyItems {
		if _, err := conn.ReadFrame(transport.MaxKeycopyGrant, time.Second); err != nil {
			return
		}
	}
}

// refusal turns the peer's ERROR into ours, and refuses every frame but the
// one whose turn it is.
func refusal(f transport.KeycopyFrame, want transport.KeycopyType) error {
	if f.Type == transport.KeycopyTypeError {
		var m transport.KeycopyError
		if err := transport.DecodeKeycopy(f, &m); err != nil {
			return fail(transport.KeycopyProtocol, err)
		}
		return &Error{Fault: m.Code, Remote: true}
	}
	if f.Type != want {
		return fail(transport.KeycopyProtocol, fmt.Errorf("%s where %s was expected", f.Type, want))
	}
	return nil
}

// sameDevice holds a peer that showed an identity certificate to the device
// whose key that is.
func sameDevice(peer transport.Name, key []byte, claimed transport.DeviceID) error {
	if peer != "" && transport.NewDeviceID(key) != claimed {
		return fail(transport.KeycopyAuthFailed, fmt.Errorf("%s says it is another device than its certificate's", peer))
	}
	return nil
}

// newTransaction is not on record yet: it has no phase.
func newTransaction(side transport.KeycopySide, id transport.ID, mode transport.KeycopyMode, peer transport.DeviceID, ch *transport.KeycopyChannel, at time.Time, m *transport.KeycopyManifest) *Transaction {
	return &Transaction{ID: id, Side: side, Mode: mode, Peer: peer, Name: ch.Peer, Remote: ch.Remote, At: at.Unix(),
		KeycopyManifest: transport.KeycopyManifest{Items: slices.Clone(m.Items), Withheld: slices.Clone(m.Withheld), More: m.More}}
}
