package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/binary"
	"errors"
	"fmt"

	_ "crypto/sha256" // the Name algorithms
	_ "crypto/sha512"

	"github.com/google/go-tpm/tpm2"
)

// A public is a decoded TPMT_PUBLIC of an asymmetric key.
type public struct {
	public tpm2.TPMTPublic
	key    crypto.PublicKey // *ecdsa.PublicKey on its curve, or *rsa.PublicKey
	name   tpm2.TPM2BName
}

// decode reads a public area strictly and has it checked.
func decode(b []byte, check func(*public) error) (*public, error) {
	if len(b) > maxPublic {
		return nil, fmt.Errorf("%d bytes, the limit is %d", len(b), maxPublic)
	}
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](b)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(tpm2.Marshal(area), b) {
		return nil, errors.New("more than one encoding, or bytes left over")
	}
	if area.NameAlg != tpm2.TPMAlgSHA256 && area.NameAlg != tpm2.TPMAlgSHA384 {
		return nil, fmt.Errorf("a Name by algorithm %#x", uint16(area.NameAlg))
	}
	p := &public{public: *area}
	if p.key, err = tpm2.Pub(*area); err != nil {
		return nil, err
	}
	switch key := p.key.(type) {
	case *ecdsa.PublicKey:
		if _, err := key.ECDH(); err != nil {
			return nil, errors.New("no point of its curve")
		}
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n < 2048 || n > 4096 || key.E != 65537 || key.N.Bit(0) == 0 {
			return nil, fmt.Errorf("an RSA key of %d bits with exponent %d", n, key.E)
		}
	}
	name, err := tpm2.ObjectName(area)
	if err != nil {
		return nil, err
	}
	p.name = *name
	return p, check(p)
}

// bound are the attributes of a key that was made in a chip and cannot leave it.
func bound(a tpm2.TPMAObject) error {
	switch {
	case !a.FixedTPM || !a.FixedParent:
		return errors.New("it may leave the TPM")
	case !a.SensitiveDataOrigin:
		return errors.New("it was made outside of the TPM")
	}
	return nil
}

// decrypts are those of a key that protects others and does nothing else.
func decrypts(a tpm2.TPMAObject) error {
	if !a.Restricted || !a.Decrypt || a.SignEncrypt {
		return errors.New("it is not restricted to decryption")
	}
	return bound(a)
}

// checkEK takes the keys that credentials can be made to: RSA, P-256 and P-384
// with AES-CFB. The attributes are what the device says: it is the certificate's
// usage that makes a key an EK.
func checkEK(p *public) error {
	var symmetric tpm2.TPMTSymDefObject
	switch p.key.(type) {
	case *rsa.PublicKey:
		parms, err := p.public.Parameters.RSADetail()
		if err != nil {
			return err
		}
		if parms.Scheme.Scheme != tpm2.TPMAlgNull {
			return errors.New("it has a scheme of its own")
		}
		symmetric = parms.Symmetric
	default:
		parms, err := p.public.Parameters.ECCDetail()
		if err != nil {
			return err
		}
		if parms.CurveID != tpm2.TPMECCNistP256 && parms.CurveID != tpm2.TPMECCNistP384 {
			return errors.New("it is on another curve than P-256 and P-384")
		}
		symmetric = parms.Symmetric
	}
	if err := aesCFB(symmetric); err != nil {
		return err
	}
	return decrypts(p.public.ObjectAttributes)
}

// aesCFB checks the cipher below a key.
func aesCFB(s tpm2.TPMTSymDefObject) error {
	if s.Algorithm == tpm2.TPMAlgAES {
		bits, err1 := s.KeyBits.AES()
		mode, err2 := s.Mode.AES()
		if err1 == nil && err2 == nil && (*bits == 128 || *bits == 256) && *mode == tpm2.TPMAlgCFB {
			return nil
		}
	}
	return errors.New("its cipher is not AES-128 or AES-256 in CFB")
}

// checkAK takes a P-256 key that signs only what the chip itself states.
func checkAK(p *public) error {
	a := p.public.ObjectAttributes
	if !a.Restricted || !a.SignEncrypt || a.Decrypt {
		return errors.New("it is not restricted to signing")
	}
	if err := ecdsaP256(p); err != nil {
		return err
	}
	return bound(a)
}

// checkIdentity takes a P-256 signing key.
func checkIdentity(p *public) error {
	a := p.public.ObjectAttributes
	if !a.SignEncrypt || a.Decrypt {
		return errors.New("it is not for signing")
	}
	if err := ecdsaP256(p); err != nil {
		return err
	}
	return bound(a)
}

func ecdsaP256(p *public) error {
	parms, err := p.public.Parameters.ECCDetail()
	if err != nil || parms.CurveID != tpm2.TPMECCNistP256 || parms.Scheme.Scheme != tpm2.TPMAlgECDSA || p.public.NameAlg != tpm2.TPMAlgSHA256 {
		return errors.New("it is not for ECDSA on P-256 with SHA-256")
	}
	scheme, err := parms.Scheme.Details.ECDSA()
	if err != nil || scheme.HashAlg != tpm2.TPMAlgSHA256 {
		return errors.New("it is not for ECDSA on P-256 with SHA-256")
	}
	return nil
}

// checkRoot takes a storage root key by TCG's template, as hsm/tpm makes it.
func checkRoot(p *public) error {
	if err := decrypts(p.public.ObjectAttributes); err != nil {
		return err
	}
	area := p.public
	if area.Type == tpm2.TPMAlgECC {
		area.Unique = tpm2.ECCSRKTemplate.Unique
	}
	if !bytes.Equal(tpm2.Marshal(area), tpm2.Marshal(tpm2.ECCSRKTemplate)) {
		return errors.New("it is not by the template of TCG for ECC P-256")
	}
	return nil
}

// ownerHierarchy is the qualified Name of what has no parent (Part 1, 16.2): a
// storage root key is a child of the owner hierarchy, TPM_RH_OWNER.
var ownerHierarchy = tpm2.TPM2BName{Buffer: binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMRHOwner))}

// qualified is the qualified Name of an object with a SHA-256 Name under a
// parent: it says where in which chip the object is.
func qualified(parent, name tpm2.TPM2BName) tpm2.TPM2BName {
	h := crypto.SHA256.New()
	h.Write(parent.Buffer)
	h.Write(name.Buffer)
	return tpm2.TPM2BName{Buffer: h.Sum(binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMAlgSHA256)))}
}
