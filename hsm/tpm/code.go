package tpm

import (
	"errors"
	"fmt"
)

// A Code is a response code other than success (TPM_RC, Part 2, 6.6). It is an
// error; errors.Is finds one by what it says, whichever parameter, handle or
// session it is about.
type Code uint32

// Codes of format 1 have bit 7 set: bits 0 to 5 say what, bit 6 that it is about
// a parameter, bit 11 that it is about a session, bits 8 to 11 which.
const (
	format1     = 0x080
	aboutParam  = 0x040
	aboutSess   = 0x800
	format1What = format1 | 0x03f
)

// The codes that are looked at.
const (
	rcSuccess    Code = 0x000
	rcInitialize Code = 0x100
	rcFailure    Code = 0x101
	rcPCRChanged Code = 0x128
	rcNVSpace    Code = 0x14B
	rcNVDefined  Code = 0x14C

	rcValue      Code = 0x084
	rcKeySize    Code = 0x087
	rcMode       Code = 0x089
	rcHandle     Code = 0x08B
	rcAuthFail   Code = 0x08E
	rcSymmetric  Code = 0x096
	rcPolicyFail Code = 0x09D
	rcBadAuth    Code = 0x0A2

	rcContextGap     Code = 0x901
	rcObjectMemory   Code = 0x902
	rcSessionMemory  Code = 0x903
	rcMemory         Code = 0x904
	rcSessionHandles Code = 0x905
	rcObjectHandles  Code = 0x906
	rcYielded        Code = 0x908
	rcTesting        Code = 0x90A
	rcReferenceH0    Code = 0x910
	rcReferenceH1    Code = 0x911
	rcReferenceH2    Code = 0x912
	rcReferenceS0    Code = 0x918
	rcReferenceS1    Code = 0x919
	rcReferenceS2    Code = 0x91A
	rcNVRate         Code = 0x920
	rcLockout        Code = 0x921
	rcRetry          Code = 0x922
)

// what is the code less what it is about.
func (c Code) what() Code {
	if c&format1 != 0 {
		return c & format1What
	}
	return c
}

// Is makes errors.Is look at what the code says.
func (c Code) Is(target error) bool {
	t, ok := target.(Code)
	return ok && c.what() == t.what()
}

// Error names the code as the specification does, where it is one of ours;
// tpm2_rc_decode knows the others.
func (c Code) Error() string {
	name, ok := map[Code]string{
		rcInitialize: "INITIALIZE", rcFailure: "FAILURE", rcPCRChanged: "PCR_CHANGED", rcNVSpace: "NV_SPACE", rcNVDefined: "NV_DEFINED",
		rcValue: "VALUE", rcKeySize: "KEY_SIZE", rcMode: "MODE", rcHandle: "HANDLE", rcAuthFail: "AUTH_FAIL", rcSymmetric: "SYMMETRIC",
		rcPolicyFail: "POLICY_FAIL", rcBadAuth: "BAD_AUTH", rcContextGap: "CONTEXT_GAP", rcObjectMemory: "OBJECT_MEMORY",
		rcSessionMemory: "SESSION_MEMORY", rcMemory: "MEMORY", rcSessionHandles: "SESSION_HANDLES", rcObjectHandles: "OBJECT_HANDLES",
		rcYielded: "YIELDED", rcTesting: "TESTING", rcReferenceH0: "REFERENCE_H0", rcReferenceH1: "REFERENCE_H1",
		rcReferenceH2: "REFERENCE_H2", rcReferenceS0: "REFERENCE_S0", rcReferenceS1: "REFERENCE_S1", rcReferenceS2: "REFERENCE_S2",
		rcNVRate: "NV_RATE", rcLockout: "LOCKOUT", rcRetry: "RETRY",
	}[c.what()]
	if !ok {
		return fmt.Sprintf("TPM_RC %#03x", uint32(c))
	}
	return fmt.Sprintf("TPM_RC_%s (%#03x)", name, uint32(c))
}

// subject tells what a code of format 1 is about.
func (c Code) subject() (parameter, session, handle bool, n int) {
	switch {
	case c&format1 == 0:
	case c&aboutParam != 0:
		return true, false, false, int(c>>8) & 0xf
	case c&aboutSess != 0:
		return false, true, false, int(c>>8) & 0x7
	default: // a handle, 0 if the chip does not say which
		return false, false, true, int(c>>8) & 0x7
	}
	return false, false, false, 0
}

// about is subject for any error.
func about(err error) (parameter, session, handle bool, n int) {
	c, _ := errors.AsType[Code](err)
	return c.subject()
}
