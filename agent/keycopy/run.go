package keycopy

// The drivers: they carry frames between a connection and a run until it is
// finished, and turn every failure into an Error for the caller and an ERROR
// frame for the peer.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// A Conn carries frames over one channel. Cancelling the context it was made
// with breaks it.
type Conn interface {
	// ReadFrame waits for a frame whose body has at most limit bytes. A
	// deadline that passes is os.ErrDeadlineExceeded.
	ReadFrame(limit int, wait time.Duration) (transport.KeycopyFrame, error)
	// WriteFrame may hold f back until a frame with flush follows.
	WriteFrame(f transport.KeycopyFrame, flush bool) error
	Channel() transport.KeycopyChannel
	Close() error
}

// ErrNotClosed is a copy whose credentials are installed here while the Source
// did not confirm that it has noted it.
var ErrNotClosed = errors.New("the keys are installed here, but the old terminal did not confirm that it knows; look at its status")

// Serve runs one connection of a Source; whoever accepted it closes it. The
// error is an *Error, and also transport.ErrKeycopyStranger if the peer was to
// prove the security code and did not.
func Serve(ctx context.Context, conn Conn, s *Source) error {
	r := s.newRun(conn.Channel())
	s.cfg.tell(r.event(EventConnected, Event{}))
	err := drive(ctx, conn, r)
	r.end(err)
	turnedAway := errors.Is(err, transport.KeycopyBusy) || errors.Is(err, transport.KeycopyNotArmed)
	if err != nil && !r.admitted && !turnedAway {
		return fmt.Errorf("%w: %w", transport.ErrKeycopyStranger, err)
	}
	return err
}

// Fetch runs a copy over conn and closes it. The Transaction is there once the
// Source has proven the codes, also with an error; its Taken is set once the
// credentials are installed. The error is an *Error, wrapped in ErrNotClosed if
// the credentials are installed all the same.
func Fetch(ctx context.Context, conn Conn, t *Target) (*Transaction, error) {
	defer conn.Close()
	r, err := t.newRun(ctx, conn.Channel())
	defer r.end()
	if err != nil {
		return nil, err
	}
	t.cfg.tell(r.event(EventConnected, Event{}))
	err = drive(ctx, conn, r)
	switch {
	case err == nil:
		return r.deal, nil
	case r.state >= targetGrant && r.state < targetReceipt:
		if e, ok := errors.AsType[*Error](err); ok && !e.Remote {
			linger(conn)
		}
	case r.state >= targetReceipt:
		err = fmt.Errorf("%w: %w", ErrNotClosed, err)
	}
	return r.deal, err
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
	if want == transport.KeycopyTypeReceipt {
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

func newTransaction(side transport.KeycopySide, id transport.ID, peer transport.DeviceID, ch *transport.KeycopyChannel, at time.Time, m *transport.KeycopyManifest) *Transaction {
	return &Transaction{ID: id, Side: side, Mode: transport.KeycopyPAKE, Peer: peer, Name: ch.Peer, Remote: ch.Remote, At: at.Unix(),
		KeycopyManifest: transport.KeycopyManifest{Items: slices.Clone(m.Items), Withheld: slices.Clone(m.Withheld), More: m.More}}
}

// with is t after the Target has installed the items whose bits are set.
func (t *Transaction) with(status []byte) *Transaction {
	after := *t
	after.Status = status
	return &after
}
