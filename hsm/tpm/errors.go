package tpm

// What a TPM's answers mean for us. The numbers are in Part 2, 6.6.3.

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

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
	if _, ok := errors.AsType[tpm2.TPMRC](err); ok {
		return true
	}
	if _, ok := errors.AsType[*stopError](err); ok {
		return true
	}
	for _, fine := range []error{
		hsm.ErrBlob, hsm.ErrReplaced, hsm.ErrOwnerAuth, hsm.ErrEndorsement, ErrNoEncryption,
		hsm.ErrCounter, hsm.ErrNoCounter, hsm.ErrPIN, hsm.ErrLockoutPassword, hsm.ErrBoot, hsm.ErrNotMeasured,
		hsm.ErrNotApproved,
	} {
		if errors.Is(err, fine) {
			return true
		}
	}
	return false
}

// later tells answers after which the same command may be sent again: it did
// not start.
func later(rc tpm2.TPMRC) bool {
	switch rc {
	case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate:
		return true
	}
	return false
}

var lostCodes = []tpm2.TPMRC{
	tpm2.TPMRCReferenceH0, tpm2.TPMRCReferenceH1, tpm2.TPMRCReferenceH2, // an object is not loaded
	tpm2.TPMRCReferenceS0, tpm2.TPMRCReferenceS1, tpm2.TPMRCReferenceS2, // a session is not loaded
	tpm2.TPMRCContextGap, tpm2.TPMRCObjectMemory, tpm2.TPMRCSessionMemory, tpm2.TPMRCMemory, // somebody filled the places
	tpm2.TPMRCSessionHandles, tpm2.TPMRCObjectHandles,
}

// lost tells answers that mean: what we had loaded is not there any more, or a
// handle is not what we took it for.
func lost(err error) bool {
	if _, ok := errors.AsType[*againError](err); ok {
		return true
	}
	handle, _ := about(err).Handle()
	if session, _ := about(err).Session(); session || handle {
		return true
	}
	rc, ok := errors.AsType[tpm2.TPMRC](err)
	return ok && slices.Contains(lostCodes, rc)
}

// denied tells the answers to a wrong auth value.
func denied(err error) bool {
	return errors.Is(err, tpm2.TPMRCBadAuth) || errors.Is(err, tpm2.TPMRCAuthFail)
}

// about tells which parameter, handle or session an answer is about (Part 2,
// 6.6.2), if any.
func about(err error) tpm2.TPMFmt1Error {
	about, _ := errors.AsType[tpm2.TPMFmt1Error](err)
	return about
}

// The first byte of a handle is its type (Part 2, 7.2).
const (
	loadedSession = 0x02
	policySession = 0x03
	transient     = 0x80
)

// checkHandle refuses a handle that is not of the type that a command returns.
func checkHandle(h tpm2.TPMHandle, kind byte) error {
	if byte(h>>24) != kind {
		return fmt.Errorf("malformed data from the TPM: handle %#x", uint32(h))
	}
	return nil
}

// badParameter tells answers about what a command carried, not about the TPM.
func badParameter(err error) bool {
	parameter, _ := about(err).Parameter()
	return parameter
}

// explain gives an error its place among the states of package hsm.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, tpm2.TPMRCLockout):
		return fmt.Errorf("%w: wait until it recovers, or reset it with the lockout password: kagimori tpm reset-lockout, or tpm2_dictionarylockout --clear-lockout (%v)",
			hsm.ErrLockout, err)
	case errors.Is(err, tpm2.TPMRCRetry), errors.Is(err, tpm2.TPMRCYielded), errors.Is(err, tpm2.TPMRCTesting), errors.Is(err, tpm2.TPMRCNVRate):
		return fmt.Errorf("%w: still busy at the deadline; try again later (%w)", hsm.ErrTimeout, err)
	case errors.Is(err, tpm2.TPMRCInitialize):
		return fmt.Errorf("the TPM was not started by firmware; restart the machine: %w", err)
	case errors.Is(err, tpm2.TPMRCFailure):
		return fmt.Errorf("the TPM is in failure mode; restart the machine: %w", err)
	}
	return err
}
