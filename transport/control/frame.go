// Messages: cut from the stream, and read as calls.

package control

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// request and reply are the two messages of Varlink.
type request struct {
	Method     string          `json:"method"`
	Parameters json.RawMessage `json:"parameters,omitempty"`
	More       bool            `json:"more,omitempty"`
	Oneway     bool            `json:"oneway,omitempty"`
	Upgrade    bool            `json:"upgrade,omitempty"`
}

type reply struct {
	Parameters json.RawMessage `json:"parameters,omitempty"`
	Continues  bool            `json:"continues,omitempty"`
	Error      string          `json:"error,omitempty"`
}

// errFrame is a message that cannot be one: too long, or cut off.
var errFrame = errors.New("not a message")

// readFrame returns the next message without its NUL. [CTL-1] It waits as
// long as it takes for the first byte and then at most limit for the rest. [CTL-6] io.EOF is an end between messages, errFrame one inside.
func readFrame(c net.Conn, r *bufio.Reader, limit time.Duration) ([]byte, error) {
	if _, err := r.Peek(1); err != nil {
		return nil, err
	}
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return nil, err
	}
	frame, err := splitFrame(r, MaxMessage)
	if err != nil {
		return nil, err
	}
	return frame, c.SetReadDeadline(time.Time{})
}

func splitFrame(r *bufio.Reader, most int) ([]byte, error) {
	var frame []byte
	for {
		part, err := r.ReadSlice(0)
		if len(frame)+len(part) > most+1 {
			return nil, fmt.Errorf("%w: longer than %d bytes", errFrame, most)
		}
		frame = append(frame, part...)
		switch {
		case err == nil:
			return frame[:len(frame)-1], nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			return nil, fmt.Errorf("%w: it ends without a NUL byte", errFrame)
		default:
			return nil, err
		}
	}
}

// parseRequest reads one call.
func parseRequest(frame []byte) (request, error) {
	var r request
	if err := strict(frame, &r); err != nil {
		return request{}, fmt.Errorf("call: %w", err)
	}
	if i := strings.LastIndexByte(r.Method, '.'); i <= 0 || i == len(r.Method)-1 {
		return request{}, fmt.Errorf("call: method %q is not interface.Method", r.Method)
	}
	if r.Upgrade {
		return request{}, errors.New("call: upgrade is not offered")
	}
	return r, nil
}

// writeFrame writes one message, within limit.
func writeFrame(c net.Conn, limit time.Duration, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(data) > MaxMessage {
		return Problemf(Internal, "ask for less at once", "the message has %d bytes, the limit is %d", len(data), MaxMessage)
	}
	if err := c.SetWriteDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	_, err = c.Write(append(data, 0))
	return err
}

// marshalObject encodes parameters; nil is the empty object.
func marshalObject(v any) (json.RawMessage, error) {
	if v == nil {
		return json.RawMessage("{}"), nil
	}
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode parameters: %w", err)
	}
	if !bytes.HasPrefix(data, []byte("{")) {
		return nil, fmt.Errorf("encode parameters: %T is not a JSON object", v)
	}
	return data, nil
}
