// One call being answered.

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"github.com/kagimori/kagimori/transport"
)

// A Call is one call being answered. It belongs to the goroutine that Handle
// runs in.
type Call struct {
	// Method is the full name: com.kagimori.agent.Status.
	Method string
	// Peer is who calls, Class what he may do.
	Peer  Peer
	Class Class

	conn    *conn
	request request
	replied bool
}

// answer runs one call. It returns false when the connection is to be closed.
func (c *conn) answer(ctx context.Context, frame []byte) bool {
	r, err := parseRequest(frame)
	if err != nil {
		c.fail(Problemf(BadInput, "", "%w", err))
		return false
	}
	call := &Call{Method: r.Method, Peer: c.peer, Class: c.class, conn: c, request: r}
	err = c.server.dispatch(ctx, call)
	if err == nil && !call.replied {
		err = call.Reply(nil)
	}
	var broken *brokenError
	if err == nil || errors.As(err, &broken) {
		return err == nil
	}
	p := AsProblem(err)
	c.server.logProblem(call, p)
	if call.replied {
		return false // too late to say it
	}
	if ctx.Err() != nil && p.Kind == Interrupted {
		p = Problemf(Unavailable, "try again when it is back", "the daemon is stopping")
	}
	return call.send(reply{Error: problemError, Parameters: mustMarshal(p)}) == nil && ctx.Err() == nil
}

// dispatch finds the method and checks that the caller may.
func (s *Server) dispatch(ctx context.Context, call *Call) error {
	m, ok := s.methods[call.Method]
	if !ok {
		if name, _ := split(call.Method); !s.offers(name) {
			return call.varlinkError(errInterface, interfaceParam{name})
		}
		return call.varlinkError(errMethod, methodParam{call.Method})
	}
	if call.Class < m.Class {
		return Problemf(Refused, m.Class.next(call.Peer.Name()),
			"only %s may do this; user %q may only %s", m.Class.who(), call.Peer.Name(), call.Class.may())
	}
	if m.Stream && !call.request.More {
		return call.varlinkError(errExpectedMore, nil)
	}
	s.log.Debug("control call", "method", call.Method, "uid", call.Peer.UID, "pid", call.Peer.PID)
	return m.Handle(ctx, call)
}

func (s *Server) logProblem(call *Call, p *Problem) {
	level := slog.LevelInfo
	if p.Kind == Internal {
		level = slog.LevelError
	}
	s.log.Log(context.Background(), level, "control call failed",
		"method", call.Method, "uid", call.Peer.UID, "kind", string(p.Kind), "err", p.Message)
}

// Params decodes the parameters into v, a pointer to the struct that the
// method's In shows. What does not fit is a Problem of kind BadInput. [CTL-3]
func (call *Call) Params(v any) error {
	data := call.request.Parameters
	if len(data) == 0 || string(data) == "null" {
		data = json.RawMessage("{}")
	}
	if data[0] != '{' {
		return Problemf(BadInput, "", "parameters of %s: not an object", call.Method)
	}
	if err := strict(data, v); err != nil {
		return Problemf(BadInput, "see the method's definition: org.varlink.service.GetInterfaceDescription",
			"parameters of %s: %w", call.Method, err)
	}
	return nil
}

// Reply answers for good. Nothing can be said after it.
func (call *Call) Reply(v any) error { return call.say(v, false) }

// Continue answers a stream call with one more piece. It fails when the
// caller is gone or does not read; Handle then returns.
func (call *Call) Continue(v any) error {
	if !call.request.More {
		return fmt.Errorf("%s is not in the table as a stream", call.Method)
	}
	return call.say(v, true)
}

func (call *Call) say(v any, continues bool) error {
	if call.replied {
		return fmt.Errorf("%s: replied twice", call.Method)
	}
	data, err := marshalObject(v)
	if err != nil {
		return err
	}
	return call.send(reply{Parameters: data, Continues: continues})
}

// varlinkError answers with an error of the Varlink service interface.
func (call *Call) varlinkError(name string, v any) error {
	data, err := marshalObject(v)
	if err != nil {
		return err
	}
	return call.send(reply{Error: name, Parameters: data})
}

// brokenError is a caller that cannot be told anything any more.
type brokenError struct{ err error }

func (e *brokenError) Error() string { return "control caller is gone: " + e.err.Error() }
func (e *brokenError) Unwrap() error { return e.err }

// send writes one reply, or none when the caller wants none.
func (call *Call) send(r reply) error {
	call.replied = !r.Continues
	if call.request.Oneway {
		return nil
	}
	err := writeFrame(call.conn.uc, call.conn.server.time.frame, r)
	if _, tooLong := errors.AsType[*Problem](err); tooLong {
		call.replied = false
		return err
	}
	if err != nil {
		return &brokenError{err}
	}
	return nil
}

func mustMarshal(p *Problem) json.RawMessage {
	data, err := json.Marshal(p)
	if err != nil {
		panic(err) // three strings
	}
	return data
}

// ensureReader makes this connection's key.
func (call *Call) ensureReader() error {
	if call.conn.reader != nil {
		return nil
	}
	r, err := NewReader()
	if err != nil {
		return err
	}
	call.conn.reader = r
	return nil
}

// Unseal opens a secret that the caller sealed with Client.Seal, on this
// connection and under this label. The result is the handler's to wipe.
func (call *Call) Unseal(label, sealed string) (transport.Sensitive, error) {
	if call.conn.reader == nil {
		return nil, Problemf(BadInput, "call com.kagimori.Key first, on the same connection",
			"sealed %s: this connection has given out no key", label)
	}
	return call.conn.reader.Open(label, sealed)
}
