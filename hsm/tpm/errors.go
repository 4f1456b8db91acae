package tpm

// What a TPM's answers mean for us. The numbers are in Part 2, 6.6.3.

import (
	"errors"
	"fmt"

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
	if _, ok := errors.AsType[answer](err); ok {
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

// An answer is a TPM's response code other than success (Part 2, 6.6). Those of
// format one also say what they are about. Their names and texts are left to
// tpm2_rc_decode of tpm2-tools: they would be 36 KiB of the agent.
type answer uint32

func (a answer) Error() string { return fmt.Sprintf("TPM response code %#x", uint32(a)) }

// The parts of a code of format one (Part 2, 6.6.2).
const (
	formatOne   = 0x080
	ofParameter = 0x040
	ofSession   = 0x800 // unless it is ofParameter; else of a handle
	whichOne    = 0xf00
)

// base is the code without what it is about.
func (a answer) base() tpm2.TPMRC {
	if a&formatOne == 0 {
		return tpm2.TPMRC(a)
	}
	return tpm2.TPMRC(a &^ (whichOne | ofParameter))
}

// about tells which parameter a code is about, from 1, 0 if none, and whether it
// is about a handle or session.
func (a answer) about() (parameter int, other bool) {
	switch {
	case a&formatOne == 0:
		return 0, false
	case a&ofParameter != 0:
		return int(a&whichOne) >> 8, false
	}
	return 0, true
}

// is tells errors that a TPM answered with one of codes.
func is(err error, codes ...tpm2.TPMRC) bool {
	a, ok := errors.AsType[answer](err)
	return ok && a.among(codes)
}

// among is slices.Contains without the texts of all codes: those come with any
// generic function of a tpm2.TPMRC.
func (a answer) among(codes []tpm2.TPMRC) bool {
	for _, c := range codes {
		if c == a.base() {
			return true
		}
	}
	return false
}

// about is answer.about of an error.
func about(err error) (parameter int, other bool) {
	a, _ := errors.AsType[answer](err)
	return a.about()
}

// laterCodes are answers after which the same command may be sent again: it did
// not start.
var laterCodes = []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate}

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
	_, other := about(err)
	return other || is(err, lostCodes...)
}

// denied tells the answers to a wrong auth value.
func denied(err error) bool {
	return is(err, tpm2.TPMRCBadAuth, tpm2.TPMRCAuthFail)
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
	parameter, _ := about(err)
	return parameter > 0
}

// explain gives an error its place among the states of package hsm.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case is(err, tpm2.TPMRCLockout):
		return fmt.Errorf("%w: wait until it recovers, or reset it with the lockout password: kagimori tpm reset-lockout, or tpm2_dictionarylockout --clear-lockout (%v)",
			hsm.ErrLockout, err)
	case is(err, laterCodes...):
		return fmt.Errorf("%w: still busy at the deadline; try again later (%w)", hsm.ErrTimeout, err)
	case is(err, tpm2.TPMRCInitialize):
		return fmt.Errorf("the TPM was not started by firmware; restart the machine: %w", err)
	case is(err, tpm2.TPMRCFailure):
		return fmt.Errorf("the TPM is in failure mode; restart the machine: %w", err)
	}
	return err
}
