package tpm

// What a TPM's answers mean for us. The numbers are in Part 2, 6.6.3.

import (
	"errors"
	"fmt"
	"slices"

	"github.com/kagimori/kagimori/hsm"
)

// ErrNoEncryption is a TPM that cannot encrypt parameters: keys would cross its
// bus in clear. It is not used at all.
var ErrNoEncryption = errors.New("the TPM cannot encrypt its parameters with AES-128-CFB; nothing was sent in clear; use another chip, or key storage \"file\"")

// wireError is a failure of the connection: the command may have run, unless it
// was never sent.
type wireError struct {
	err    error
	unsent bool
}

func (e *wireError) Error() string { return e.err.Error() }
func (e *wireError) Unwrap() error { return e.err }

// stopError is a job that ends before its next command: its caller left, or the
// module closes.
type stopError struct{ err error }

func (e *stopError) Error() string { return e.err.Error() }
func (e *stopError) Unwrap() error { return e.err }

// againError is a refusal that a new session may cure: the command did nothing.
type againError struct{ err error }

func (e *againError) Error() string { return e.err.Error() }

// unsentError is a wire that took nothing of a command.
type unsentError struct{ err error }

func (e *unsentError) Error() string { return e.err.Error() }
func (e *unsentError) Unwrap() error { return e.err }

// answered tells an error that the TPM itself gave, or that was found before
// anything was sent: the connection is in step.
func answered(err error) bool {
	if _, ok := errors.AsType[Code](err); ok {
		return true
	}
	if _, ok := errors.AsType[*stopError](err); ok {
		return true
	}
	for _, fine := range []error{
		hsm.ErrBlob, hsm.ErrReplaced, hsm.ErrOwnerAuth, hsm.ErrEndorsement, ErrNoEncryption,
		hsm.ErrCounter, hsm.ErrNoCounter, hsm.ErrPIN, hsm.ErrLockoutPassword, hsm.ErrBoot, hsm.ErrNotMeasured,
	} {
		if errors.Is(err, fine) {
			return true
		}
	}
	return false
}

// later tells answers after which the same command may be sent again: it did
// not start.
func later(rc Code) bool {
	switch rc {
	case rcRetry, rcYielded, rcTesting, rcNVRate:
		return true
	}
	return false
}

var lostCodes = []Code{
	rcReferenceH0, rcReferenceH1, rcReferenceH2, // an object is not loaded
	rcReferenceS0, rcReferenceS1, rcReferenceS2, // a session is not loaded
	rcContextGap, rcObjectMemory, rcSessionMemory, rcMemory, // somebody filled the places
	rcSessionHandles, rcObjectHandles,
}

// lost tells answers that mean: what we had loaded is not there any more, or a
// handle is not what we took it for.
func lost(err error) bool {
	if _, ok := errors.AsType[*againError](err); ok {
		return true
	}
	if _, session, handle, _ := about(err); session || handle {
		return true
	}
	rc, ok := errors.AsType[Code](err)
	return ok && slices.Contains(lostCodes, rc)
}

// denied tells the answers to a wrong auth value.
func denied(err error) bool {
	return errors.Is(err, rcBadAuth) || errors.Is(err, rcAuthFail)
}

// The first byte of a handle is its type (Part 2, 7.2).
const (
	loadedSession = 0x02
	policySession = 0x03
	transient     = 0x80
)

// checkHandle refuses a handle that is not of the type that a command returns.
func checkHandle(h Handle, kind byte) error {
	if byte(h>>24) != kind {
		return fmt.Errorf("malformed data from the TPM: handle %#x", uint32(h))
	}
	return nil
}

// badParameter tells answers about what a command carried, not about the TPM.
func badParameter(err error) bool {
	parameter, _, _, _ := about(err)
	return parameter
}

// explain gives an error its place among the states of package hsm.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, rcLockout):
		return fmt.Errorf("%w: wait until it recovers, or reset it with the lockout password: kagimori tpm reset-lockout, or tpm2_dictionarylockout --clear-lockout (%v)",
			hsm.ErrLockout, err)
	case errors.Is(err, rcRetry), errors.Is(err, rcYielded), errors.Is(err, rcTesting), errors.Is(err, rcNVRate):
		return fmt.Errorf("%w: still busy at the deadline; try again later (%w)", hsm.ErrTimeout, err)
	case errors.Is(err, rcInitialize):
		return fmt.Errorf("the TPM was not started by firmware; restart the machine: %w", err)
	case errors.Is(err, rcFailure):
		return fmt.Errorf("the TPM is in failure mode; restart the machine: %w", err)
	}
	return err
}
