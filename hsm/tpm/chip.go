package tpm

// The chip as its owner goroutine sees it: a connection and what is loaded
// through it. Nothing here is safe for a second goroutine.

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
)

// Repetition after RETRY and its like: the command did not start, the same
// bytes stay valid (Part 3, 5.2). sockets do not repeat by themselves.
const (
	firstPause = time.Millisecond
	lastPause  = 250 * time.Millisecond
	// clearPatience is how long clearing up repeats a command.
	clearPatience = 2 * time.Second
)

// A chip is one TPM.
type chip struct {
	config
	quit <-chan struct{} // the module is being closed
	ctx  context.Context // of the job that runs; nil while clearing up

	wire    wire // nil: not connected, and nothing below holds
	root    root
	session *session // nil until a command needs it
	loaded  loaded   // the one object that stays in the chip between jobs

	pin     *[hsm.OwnerSize]byte // the root that proved itself in this process; outlives connections
	noStore bool                 // what stands at the root handle has a password: do not use it
	gone    error                // why the last wire is no more
	bare    bool                 // the job needs no root key
	sent    int                  // commands of this job that were answered
	full    bool                 // clear up at the next connection, if that is ours to do
}

// runBare does one job that needs no root key, on the chip as it is.
func (c *chip) runBare(ctx context.Context, job func() error) error {
	c.ctx = ctx
	defer func() { c.ctx = nil }()
	c.bare = true
	defer func() { c.bare = false }()
	return explain(c.try(job))
}

// run does one job. Some answers say that what we had loaded is gone (a reset,
// a resume) or out of step; the command did nothing then, so the job runs once
// more from a new start.
func (c *chip) run(ctx context.Context, job func() error) error {
	c.ctx = ctx
	defer func() { c.ctx = nil }()
	err := c.try(job)
	if lost(err) || denied(err) {
		c.log.Warn("the TPM lost our keys or sessions: loading them again", "err", err)
		c.drop()
		c.full = true
		err = c.try(job)
	}
	if denied(err) && c.root.persistent && c.pin == nil {
		c.log.Warn("the key at the storage root handle has a password: using a root of our own", "err", err)
		c.drop()
		c.noStore = true
		err = c.try(job)
	}
	if c.session != nil {
		c.session.aim(plain, nil) // no auth value stays in memory
		if err == nil {
			c.vouch() // it answered in a session that only it can know
		}
	}
	return explain(err)
}

// vouch pins the root key in use, which has proven itself.
func (c *chip) vouch() {
	id := c.root.id()
	c.pin = &id
}

// try connects where needed and runs the job. A connection that was lost since
// the job before (an emulator that started anew, a driver that came back) shows
// with the first command, which it does not take: then the job runs on a new one.
func (c *chip) try(job func() error) error {
	c.sent = 0
	reused := c.wire != nil
	err := c.tryOnce(job)
	if gone, ok := errors.AsType[*wireError](err); ok && gone.unsent && reused {
		c.log.Info("the TPM went away since it was last used: connecting anew", "err", err)
		return c.tryOnce(job)
	}
	return err
}

func (c *chip) tryOnce(job func() error) error {
	if err := c.connect(); err != nil {
		return err
	}
	err := job()
	if err != nil && !answered(err) {
		c.drop() // a session out of step, or a response that makes no sense
	}
	return err
}

// connect makes a wire and finds the root key, where there is none.
func (c *chip) connect() error {
	if err := c.reach(); err != nil || c.root.handle != 0 || c.bare {
		return err
	}
	if err := c.findRoot(); err != nil {
		c.drop()
		return err
	}
	return nil
}

// reach makes a wire, if there is none.
func (c *chip) reach() error {
	if c.wire != nil {
		return nil
	}
	if err := c.ctx.Err(); err != nil {
		return &stopError{context.Cause(c.ctx)}
	}
	w, err := c.dial(time.Now().Add(c.limit))
	if err != nil {
		return err
	}
	c.wire = w
	if c.raw && c.full { // else what others left costs no start two commands
		if err := c.flushStale(); err != nil {
			c.drop()
			return fmt.Errorf("clear up: %w", err)
		}
	}
	c.full = false
	return nil
}

// send carries one command to the TPM.
func (c *chip) send(command []byte) ([]byte, error) {
	if c.wire == nil {
		return nil, c.gone // lost while clearing up, in the middle of a job
	}
	deadline := time.Now().Add(c.limit)
	patience := deadline
	if c.ctx == nil {
		patience = time.Now().Add(min(c.limit, clearPatience))
	}
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		if err := c.pause(0); err != nil {
			return nil, err
		}
		response, err := c.wire.exchange(command, deadline)
		if err == nil && len(response) < headSize {
			err = fmt.Errorf("a response of %d bytes", len(response))
		}
		if err != nil {
			c.drop()
			_, unsent := errors.AsType[*unsentError](err)
			c.gone = &wireError{err: err, unsent: unsent && c.sent == 0}
			return nil, c.gone
		}
		c.sent++
		rc := answer(binary.BigEndian.Uint32(response[6:]))
		if !rc.among(laterCodes) || time.Now().Add(pause).After(patience) {
			return response, nil
		}
		if err := c.pause(pause); err != nil {
			return nil, err
		}
	}
}

// pause waits before the next command; it fails when none may be sent any more
// for this job. Clearing up is never stopped.
func (c *chip) pause(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	if c.ctx == nil {
		<-timer.C
		return nil
	}
	select { // whoever left comes first
	case <-c.ctx.Done():
		return &stopError{context.Cause(c.ctx)}
	case <-c.quit:
		return &stopError{hsm.ErrClosed}
	default:
	}
	select {
	case <-timer.C:
		return nil
	case <-c.ctx.Done():
		return &stopError{context.Cause(c.ctx)}
	case <-c.quit:
		return &stopError{hsm.ErrClosed}
	}
}

var errNotConnected = errors.New("not connected to the TPM")

// drop closes the connection and forgets what was loaded through it. Behind a
// resource manager that frees it all; on a raw socket connect clears up.
func (c *chip) drop() {
	if c.wire != nil {
		c.wire.close()
		c.wire = nil
	}
	c.session.wipe()
	c.session, c.loaded, c.root = nil, loaded{}, root{}
}

// release takes out of the chip what we put there, then disconnects. Where no
// resource manager does it, what killed programs left goes as well.
func (c *chip) release() {
	c.ctx = nil
	if c.raw && c.wire != nil && c.flushStale() == nil {
		c.drop()
		return
	}
	if c.session != nil {
		c.flush(c.session.handle)
	}
	c.unload()
	if c.root.handle != 0 && !c.root.persistent {
		c.flush(c.root.handle)
	}
	c.drop()
}

// unload makes room: the object that stayed loaded goes.
func (c *chip) unload() {
	if c.loaded.handle != 0 {
		c.flush(c.loaded.handle)
		c.loaded = loaded{}
	}
}

// flush frees a handle, even for a job that is stopped already. It tells whether
// the handle is free.
func (c *chip) flush(h tpm2.TPMHandle) bool {
	if c.wire == nil {
		return false // the connection is gone; behind a resource manager the handle is, too
	}
	ctx := c.ctx
	c.ctx = nil
	_, _, err := c.ask(command{code: tpm2.TPMCCFlushContext, params: permanent(h).name})
	c.ctx = ctx
	if err != nil {
		c.log.Debug("cannot flush a TPM handle", handleAttr(h), "err", err)
	}
	return err == nil
}

// flushStale frees all that is left on a TPM without a resource manager: it has
// three places for objects and three for sessions, and killed processes leave
// some taken. We save no contexts, so saved sessions are not ours.
func (c *chip) flushStale() error {
	const all = 64                                                   // more than any TPM has
	for _, first := range []tpm2.TPMHandle{0x80000000, 0x02000000} { // transient objects, loaded sessions
		left, err := c.handles(first, all)
		if err != nil {
			return err
		}
		for h := range left {
			c.log.Debug("flushing what is left in the TPM", handleAttr(h))
			if !c.flush(h) && c.wire == nil {
				return c.gone
			}
		}
	}
	return nil
}

// handleAttr is how a handle is logged: in hex, as every TPM tool shows it.
func handleAttr(h tpm2.TPMHandle) slog.Attr {
	return slog.String("handle", fmt.Sprintf("%#x", uint32(h)))
}
