package tpm

// Opening what is sealed to the boot: a policy session that is led through the
// policy, step by step, and ends with the command that it authorises.

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
)

// unsealBoot opens a secret, or says which registers stand against it.
func (c *chip) unsealBoot(b bootBlob, approvals []hsm.Approval) (*hsm.Secret, error) {
	if err := c.rootFor(b.item.Owner); err != nil { // of another chip the registers say nothing
		return nil, err
	}
	if b.bond.authority != nil && len(approvals) == 0 {
		return nil, c.whyNot(b.bond, nil)
	}
	if err := c.load(b.item); err != nil {
		return nil, err
	}
	s, err := c.startSession(tpm2.TPMSEPolicy)
	if err != nil {
		return nil, err
	}
	defer s.wipe()
	s.dir, s.last = encOut, true // the command that succeeds ends the session
	secret, err := c.satisfy(s, b.bond, approvals)
	if err != nil {
		c.flush(s.handle) // nothing else does: there are three places
		if refusedBoot(err) {
			return nil, c.whyNot(b.bond, approvals)
		}
		return nil, err
	}
	c.vouch() // the root key answered in a session that only it can know
	return secret, nil
}

// satisfy leads the session through the policy and opens the loaded object.
func (c *chip) satisfy(s *session, b bond, approvals []hsm.Approval) (*hsm.Secret, error) {
	if b.authority == nil {
		if err := c.policyPCR(s, b.selection, b.values); err != nil {
			return nil, err
		}
		return c.openSealed(s)
	}
	// The newest is tried as it is, which is one command; only if it does not fit
	// the registers are read to find another.
	use := approvals[0]
	err := c.policyPCR(s, b.selection, use.Values)
	if refusedBoot(err) && len(approvals) > 1 {
		now, readErr := c.readPCRs(b.selection)
		if readErr != nil {
			return nil, readErr
		}
		for _, use = range approvals[1:] {
			if len(b.selection.differ(use.Values, now)) == 0 {
				err = c.policyPCR(s, b.selection, use.Values)
				break
			}
		}
	}
	if err != nil {
		return nil, err
	}
	if err := c.policyAuthorize(s, b.authority, b.selection.grant(use.Values), use.Signature); err != nil {
		return nil, err
	}
	return c.openSealed(s)
}

// errPCR is TPM2_PolicyPCR's refusal: the registers hold other values.
type errPCR struct{ err error }

func (e *errPCR) Error() string { return fmt.Sprintf("registers: %v", e.err) }

// policyPCR is TPM2_PolicyPCR with the values that are expected.
func (c *chip) policyPCR(s *session, registers selection, values hsm.PCRs) error {
	digest := registers.digest(values)
	_, _, err := c.ask(command{
		code: tpm2.TPMCCPolicyPCR, handles: []entity{{handle: s.handle}},
		params: append(sized(nil, digest[:]), registers.encode()...),
	})
	if badParameter(err) {
		return &errPCR{err}
	}
	return err
}

// policyAuthorize shows the chip that the authority signed the policy reached so
// far: it checks the signature, and takes its own word for that (a ticket, which
// only keys loaded under the owner's hierarchy get).
func (c *chip) policyAuthorize(s *session, authority []byte, g grant, der []byte) error {
	area := authorityArea(authority)
	sig, err := signature(der)
	if err != nil {
		return err
	}
	key, err := c.loadPublic(area, tpm2.TPMRHOwner)
	if err != nil {
		return fmt.Errorf("load the authority's key: %w", err)
	}
	defer c.flush(key)
	digest := g.digest()
	_, ticket, err := c.ask(command{
		code: tpm2.TPMCCVerifySignature, handles: []entity{{handle: key}},
		params: append(sized(nil, digest[:]), sig...),
	})
	if err != nil {
		return fmt.Errorf("check the approval: %w", err)
	}
	params := sized(sized(sized(nil, g.policy[:]), g.ref[:]), nameOf(area))
	_, _, err = c.ask(command{
		code: tpm2.TPMCCPolicyAuthorize, handles: []entity{{handle: s.handle}},
		params: append(params, ticket...),
	})
	return err
}

// loadPublic loads a public key (TPM2_LoadExternal); its place is the caller's
// to free.
func (c *chip) loadPublic(area []byte, hierarchy tpm2.TPMHandle) (tpm2.TPMHandle, error) {
	key, _, err := c.ask(command{
		code: tpm2.TPMCCLoadExternal, gives: true,
		params: append(sized(sized(nil, nil), area), permanent(hierarchy).name...), // no private part
	})
	if err != nil {
		return 0, err
	}
	return key, checkHandle(key, transient)
}

// refusedBoot tells the answers to registers that hold other values, also when
// they changed while the policy was gone through.
func refusedBoot(err error) bool {
	if _, ok := errors.AsType[*errPCR](err); ok {
		return true
	}
	return is(err, tpm2.TPMRCPolicyFail, tpm2.TPMRCPCRChanged)
}

// whyNot names the registers that differ from what the secret is sealed to, or
// from the closest approval.
func (c *chip) whyNot(b bond, approvals []hsm.Approval) error {
	now, err := c.readPCRs(b.selection)
	if err != nil {
		return err
	}
	changed := b.selection.differ(b.values, now)
	for n, a := range approvals {
		if other := b.selection.differ(a.Values, now); n == 0 || len(other) < len(changed) {
			changed = other
		}
	}
	refused := &hsm.BootError{Changed: changed}
	switch {
	case b.authority != nil && len(approvals) == 0:
		return fmt.Errorf("%w; there is no approval of these registers by the vendor's key: bring the one for the system that runs, or boot the one before", refused)
	case b.authority != nil:
		return fmt.Errorf("%w; no approval of the vendor is for the system that runs: bring that one, or boot the one before", refused)
	case len(changed) == 0:
		return fmt.Errorf("%w; they changed while the secret was opened: try again", refused)
	}
	return fmt.Errorf("%w; boot the system that it was sealed under, or have the store's key restored", refused)
}
