package tpm

// Which chips keys may go to, computed here and not by the chip (Part 3, 23.15
// and 23.16): what the fleet's authority signs for a parent.

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
)

// migrateReference is the policyRef of approvals: a signature for anything else
// that the same key may be asked for is none.
func migrateReference() [sha256.Size]byte { return sha256.Sum256([]byte("kagimori migrate/1")) }

// migrateGrant is what an authority signs to approve a parent: PolicyDuplicationSelect
// of it, for any object.
func migrateGrant(parent []byte) grant {
	policy := step([sha256.Size]byte{}, tpm2.TPMCCPolicyDuplicationSelect, nameOf(parent), []byte{0})
	return grant{policy: policy, ref: migrateReference()}
}

// CheckParent tells whether a public area is that of a storage root key by TCG's
// template, as Migrator.Parent gives it. That a chip holds it cannot be seen from it.
func CheckParent(parent []byte) error {
	if len(parent) > hsm.MaxBlob || !rootArea().fits(parent) {
		return fmt.Errorf("%w: its storage key is not a P-256 storage root key that stays in its chip", hsm.ErrNotApproved)
	}
	if _, err := rootArea().pointIn(parent); err != nil {
		return fmt.Errorf("%w: its storage key: %v", hsm.ErrNotApproved, err)
	}
	return nil
}

// ApproveParent signs a parent as the authority: from then on every key that was
// made under this authority may go to it, for good. It is for whoever knows that
// the parent is in a chip.
func ApproveParent(authority crypto.Signer, parent []byte) (approval []byte, err error) {
	if _, err := pointOf(authority.Public()); err != nil {
		return nil, fmt.Errorf("approve chip: %w", err)
	}
	if err := CheckParent(parent); err != nil {
		return nil, fmt.Errorf("approve chip: %w", err)
	}
	digest := migrateGrant(parent).digest()
	if approval, err = authority.Sign(rand.Reader, digest[:], crypto.SHA256); err != nil {
		return nil, fmt.Errorf("approve chip: %w", err)
	}
	return approval, nil
}

// CheckParentApproval tells whether the authority approved a parent, else
// hsm.ErrNotApproved; no TPM is asked.
func CheckParentApproval(authority crypto.PublicKey, parent, approval []byte) error {
	point, err := pointOf(authority)
	if err != nil {
		return fmt.Errorf("check approval: %w", err)
	}
	return checkParent(point, parent, approval)
}

func checkParent(authority, parent, approval []byte) error {
	if err := CheckParent(parent); err != nil {
		return err
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, authority...))
	if err != nil {
		return fmt.Errorf("%w: its authority: %v", hsm.ErrBlob, err)
	}
	digest := migrateGrant(parent).digest()
	if len(approval) > maxSignature || !ecdsa.VerifyASN1(key, digest[:], approval) {
		return fmt.Errorf("%w: no approval of it is signed by the authority of the key", hsm.ErrNotApproved)
	}
	return nil
}
