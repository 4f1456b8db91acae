// A verb's side of the socket.

package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kagimori/kagimori/transport"
)

// A Client is a verb's connection to its daemon. One goroutine uses it. After
// a call that ended without an answer it is closed.
type Client struct {
	uc  *net.UnixConn
	r   *bufio.Reader
	key string // of the daemon, for Seal; empty until asked for
}

// Dial connects to the daemon's socket. When there is none yet it waits up to
// two seconds for a daemon that is starting.
func Dial(ctx context.Context, path string) (*Client, error) {
	give := time.NewTimer(dialWait)
	defer give.Stop()
	retry := time.NewTicker(dialRetry)
	defer retry.Stop()
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err == nil {
			return &Client{uc: c.(*net.UnixConn), r: bufio.NewReader(c)}, nil
		}
		starting := errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
		if !starting {
			return nil, cannotDial(path, err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-give.C:
			return nil, cannotDial(path, err)
		case <-retry.C:
		}
	}
}

func cannotDial(path string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return Problemf(Refused, "run it with sudo, or as a user in the socket's group",
			"not allowed to talk to the daemon at %s", path)
	}
	return Problemf(Unavailable, "start the daemon, or name its socket with --socket",
		"no daemon answers at %s: %w", path, errors.Unwrap(err))
}

// Close hangs up.
func (c *Client) Close() error { return c.uc.Close() }

// Call calls a method, interface included, and decodes the answer into out
// (nil: the answer does not matter). in nil stands for no parameters.
func (c *Client) Call(ctx context.Context, method string, in, out any) error {
	return c.do(ctx, method, in, false, func(parameters json.RawMessage) error {
		if out == nil {
			return nil
		}
		if err := json.Unmarshal(parameters, out); err != nil { // [CTL-8]
			return fmt.Errorf("answer of %s: %w", method, err)
		}
		return nil
	})
}

// Stream calls a method for more than one answer. each gets the parameters of
// every answer that has any, the last one included; its error ends the call
// and the connection.
func (c *Client) Stream(ctx context.Context, method string, in any, each func(json.RawMessage) error) error {
	return c.do(ctx, method, in, true, func(parameters json.RawMessage) error {
		if len(parameters) == 0 || string(parameters) == "{}" {
			return nil
		}
		return each(parameters)
	})
}

func (c *Client) do(ctx context.Context, method string, in any, more bool, each func(json.RawMessage) error) error {
	parameters, err := marshalObject(in)
	if err != nil {
		return err
	}
	// Closing is the only way to stop a call: the daemon sees it. [CTL-5]
	stop := context.AfterFunc(ctx, func() { c.uc.Close() })
	defer stop()
	lost := func(err error) error {
		c.uc.Close()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if p, ok := errors.AsType[*Problem](err); ok {
			return p
		}
		return Problemf(Unavailable, "look at the daemon's log, then try again", "the daemon hung up: %w", err)
	}
	err = writeFrame(c.uc, frameTimeout, request{Method: method, Parameters: parameters, More: more})
	if _, tooLong := errors.AsType[*Problem](err); tooLong {
		return Problemf(BadInput, "", "%s: %w", method, err)
	}
	// A daemon that refuses the connection says why and hangs up, perhaps
	// before it could read: so the answer counts, not the failed write.
	for {
		var frame []byte
		_, readErr := c.r.Peek(1)
		if readErr == nil {
			frame, readErr = splitFrame(c.r, MaxMessage)
		}
		if readErr != nil {
			if err != nil {
				readErr = err
			}
			return lost(readErr)
		}
		var r reply
		if err := json.Unmarshal(frame, &r); err != nil {
			return lost(fmt.Errorf("answer of %s: %w", method, err))
		}
		if r.Error != "" {
			return fromWire(r.Error, r.Parameters)
		}
		if r.Continues && !more {
			return lost(fmt.Errorf("answer of %s: a stream that was not asked for", method))
		}
		if err := each(r.Parameters); err != nil {
			if r.Continues {
				c.uc.Close()
			}
			return err
		}
		if !r.Continues {
			return nil
		}
	}
}

// Seal seals a secret, at most MaxSecret bytes, for a call on this connection;
// the daemon opens it with Call.Unseal under the same label.
func (c *Client) Seal(ctx context.Context, label string, secret transport.Sensitive) (string, error) {
	if c.key == "" {
		var out keyReply
		if err := c.Call(ctx, "com.kagimori.Key", nil, &out); err != nil {
			return "", fmt.Errorf("get the daemon's key: %w", err)
		}
		c.key = out.Key
	}
	return SealTo(c.key, label, secret)
}
