package tpm

// Policies over measurements, computed here and not by the chip (Part 3, 23.7
// and 23.16): what a secret is sealed to, and what a vendor signs.

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
)

const (
	pcrSize    = sha256.Size // bytes of one register
	maskSize   = hsm.PCRCount / 8
	pointSize  = 2 * coordinate // bytes of a P-256 point, x then y
	coordinate = 32
	// maxSignature is more than an ECDSA signature over P-256 takes in DER.
	maxSignature = 80
)

// Two registers belong to whoever comes: any program may reset and extend them
// (PC Client Platform TPM Profile, 4.6.2), so nothing that boots is measured there.
const (
	pcrDebug       = 16
	pcrApplication = 23
)

// A selection is a set of registers, as TPMS_PCR_SELECT has it.
type selection [maskSize]byte

// selectPCRs holds a policy to 1 to hsm.MaxBootPCRs different registers.
func selectPCRs(registers []int) (selection, error) {
	var s selection
	if len(registers) < 1 || len(registers) > hsm.MaxBootPCRs {
		return s, fmt.Errorf("%d registers; name 1 to %d", len(registers), hsm.MaxBootPCRs)
	}
	for _, r := range registers {
		switch {
		case r < 0 || r >= hsm.PCRCount:
			return s, fmt.Errorf("no register %d; there are 0 to %d", r, hsm.PCRCount-1)
		case r == pcrDebug || r == pcrApplication:
			return s, fmt.Errorf("any program may reset register %d, so it says nothing about the boot; name others", r)
		case s.has(r):
			return s, fmt.Errorf("register %d is named twice", r)
		}
		s[r/8] |= 1 << (r % 8)
	}
	return s, nil
}

func (s selection) has(register int) bool { return s[register/8]>>(register%8)&1 != 0 }

// registers lists those that are selected, lowest first.
func (s selection) registers() (all []int) {
	for r := range hsm.PCRCount {
		if s.has(r) {
			all = append(all, r)
		}
	}
	return all
}

// encode is TPML_PCR_SELECTION for the SHA-256 bank.
func (s selection) encode() []byte {
	b := binary.BigEndian.AppendUint32(nil, 1)
	b = append(words(b, tpm2.TPMAlgSHA256), maskSize)
	return append(b, s[:]...)
}

// digest is what PolicyPCR compares: the hash over the values in order.
func (s selection) digest(values hsm.PCRs) [sha256.Size]byte {
	h := sha256.New()
	for _, r := range s.registers() {
		v := values[r]
		h.Write(v[:])
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// fits holds values to exactly the registers of s.
func (s selection) fits(values hsm.PCRs) error {
	for r := range values {
		if r < 0 || r >= hsm.PCRCount || !s.has(r) {
			return fmt.Errorf("a value for register %d, which is not among %v", r, s.registers())
		}
	}
	if len(values) != len(s.registers()) {
		return fmt.Errorf("%d values for the registers %v", len(values), s.registers())
	}
	return nil
}

// differ lists the registers whose values are not the same.
func (s selection) differ(a, b hsm.PCRs) (changed []int) {
	for _, r := range s.registers() {
		if a[r] != b[r] {
			changed = append(changed, r)
		}
	}
	return changed
}

// measured refuses values that a register has when nothing was ever measured
// into it: all zeros, or all ones in those of a dynamic launch.
func measured(values hsm.PCRs) error {
	for n := range values {
		if !values.Empty(n) {
			return nil
		}
	}
	return fmt.Errorf("%w: the registers %v hold nothing; seal without them, or have the firmware measure the boot",
		hsm.ErrNotMeasured, slices.Sorted(maps.Keys(values)))
}

// step is how a policy command moves the policy of a session.
func step(before [sha256.Size]byte, code tpm2.TPMCC, parts ...[]byte) [sha256.Size]byte {
	h := sha256.New()
	h.Write(before[:])
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(code)))
	for _, p := range parts {
		h.Write(p)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// policyPCR is the policy of one PolicyPCR.
func (s selection) policyPCR(values hsm.PCRs) [sha256.Size]byte {
	digest := s.digest(values)
	return step([sha256.Size]byte{}, tpm2.TPMCCPolicyPCR, s.encode(), digest[:])
}

// policyAuthorized is the policy of a PolicyAuthorize by an authority. The
// registers are part of it, in the reference that each signature is over: an
// approval of fewer registers does not open what was sealed to more.
func (s selection) policyAuthorized(authority []byte) [sha256.Size]byte {
	return authorized(authority, s.reference())
}

// authorized is the policy of a PolicyAuthorize: it holds for any policy that the
// authority has signed together with the reference.
func authorized(authority []byte, ref [sha256.Size]byte) [sha256.Size]byte {
	one := step([sha256.Size]byte{}, tpm2.TPMCCPolicyAuthorize, nameOf(authorityArea(authority)))
	return sha256.Sum256(slices.Concat(one[:], ref[:]))
}

// A grant is what an authority signs: a policy, and by the reference what for.
type grant struct{ policy, ref [sha256.Size]byte }

// digest is aHash of PolicyAuthorize.
func (g grant) digest() [sha256.Size]byte {
	return sha256.Sum256(slices.Concat(g.policy[:], g.ref[:]))
}

// reference is the policyRef of approvals for these registers.
func (s selection) reference() [sha256.Size]byte {
	return sha256.Sum256(append([]byte("kagimori boot/1"), s[:]...))
}

// grant is what a vendor signs to approve values.
func (s selection) grant(values hsm.PCRs) grant {
	return grant{policy: s.policyPCR(values), ref: s.reference()}
}

// authorityArea is the TPMT_PUBLIC of a vendor's key, and so makes its Name.
func authorityArea(point []byte) []byte {
	return sized(sized(signArea(attrUserWithAuth), point[:coordinate]), point[coordinate:])
}

// pointOf is a P-256 key as x then y.
func pointOf(key crypto.PublicKey) ([]byte, error) {
	ec, ok := key.(*ecdsa.PublicKey)
	if !ok || ec == nil || ec.Curve != elliptic.P256() {
		return nil, errors.New("the authority's key must be an ECDSA key over P-256")
	}
	b, err := ec.Bytes()
	if err != nil {
		return nil, fmt.Errorf("the authority's key: %w", err)
	}
	return b[1:], nil
}

// Approve signs values as a vendor: from then on a secret that was sealed under
// this key, to exactly these registers, opens on every machine that holds them.
// Values that show no measurement are hsm.ErrNotMeasured.
func Approve(signer crypto.Signer, values hsm.PCRs) (hsm.Approval, error) {
	if _, err := pointOf(signer.Public()); err != nil {
		return hsm.Approval{}, fmt.Errorf("approve boot: %w", err)
	}
	s, err := approvable(values)
	if err != nil {
		return hsm.Approval{}, fmt.Errorf("approve boot: %w", err)
	}
	digest := s.grant(values).digest()
	sig, err := signer.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return hsm.Approval{}, fmt.Errorf("approve boot: %w", err)
	}
	return hsm.Approval{Values: maps.Clone(values), Signature: sig}, nil
}

// CheckApproval tells whether the authority signed an approval; no TPM is asked.
func CheckApproval(authority *ecdsa.PublicKey, a hsm.Approval) error {
	if _, err := pointOf(authority); err != nil {
		return fmt.Errorf("check approval: %w", err)
	}
	s, err := approvable(a.Values)
	if err != nil {
		return fmt.Errorf("check approval: %w", err)
	}
	digest := s.grant(a.Values).digest()
	if len(a.Signature) > maxSignature || !ecdsa.VerifyASN1(authority, digest[:], a.Signature) {
		return errors.New("check approval: the authority has not signed these values")
	}
	return nil
}

// approvable holds values to what a policy can have.
func approvable(values hsm.PCRs) (selection, error) {
	s, err := selectPCRs(slices.Collect(maps.Keys(values)))
	if err != nil {
		return s, err
	}
	return s, measured(values)
}

// signature is TPMT_SIGNATURE of an ASN.1 signature.
func signature(der []byte) ([]byte, error) {
	var r, s big.Int
	in := cryptobyte.String(der)
	var seq cryptobyte.String
	if !in.ReadASN1(&seq, asn1.SEQUENCE) || !in.Empty() || !seq.ReadASN1Integer(&r) || !seq.ReadASN1Integer(&s) || !seq.Empty() ||
		r.Sign() <= 0 || s.Sign() <= 0 || r.BitLen() > 8*coordinate || s.BitLen() > 8*coordinate {
		return nil, errors.New("not an ECDSA signature")
	}
	b := sized(words(nil, tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256), r.FillBytes(make([]byte, coordinate)))
	return sized(b, s.FillBytes(make([]byte, coordinate))), nil
}
