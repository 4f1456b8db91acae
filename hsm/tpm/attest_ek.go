package tpm

// The endorsement key (EK): a key that the chip's maker has certified. The chip
// makes it by a template of TCG whenever it is asked to, or holds it already;
// its certificate is in the chip's NV memory (TCG EK Credential Profile, 2.2).

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
)

// An endorser is one kind of EK.
type endorser struct {
	certificate tpm2.TPMHandle // NV index
	stored      tpm2.TPMHandle // where the key may stand
	template    tpm2.TPMTPublic
	password    bool // its empty auth value lets one use it; else a policy
	seed        int  // bytes of an encrypted seed to it
}

// endorsers are those that we know, the cheapest to make first: an ECC key takes
// a chip well under a second, an RSA key up to a minute.
func endorsers() []endorser {
	return []endorser{
		{certificate: 0x01c0000a, stored: 0x81010002, template: tpm2.ECCEKTemplate, seed: 2 * (2 + 32)},
		{certificate: 0x01c00016, stored: 0x81010016, template: ecc384(), password: true, seed: 2 * (2 + 48)},
		{certificate: 0x01c00002, stored: 0x81010001, template: tpm2.RSAEKTemplate, seed: 256},
	}
}

// endorserFor tells by its size for which kind of EK a challenge was made.
func endorserFor(challenge hsm.Challenge) (endorser, bool) {
	const longest = 2 + 48 + 2 + 48 // an HMAC and the secret, with their sizes
	for _, k := range endorsers() {
		if len(challenge.Secret) == k.seed && len(challenge.Credential) <= longest {
			return k, true
		}
	}
	return endorser{}, false
}

// ecc384 is template H-3 of the profile.
func ecc384() tpm2.TPMTPublic {
	public := tpm2.ECCEKTemplate
	public.NameAlg = tpm2.TPMAlgSHA384
	public.ObjectAttributes.UserWithAuth = true
	public.AuthPolicy = tpm2.TPM2BDigest{Buffer: []byte{ // PolicyB of the profile, for SHA-384
		0xb2, 0x6e, 0x7d, 0x28, 0xd1, 0x1a, 0x50, 0xbc, 0x53, 0xd8, 0x82, 0xbc, 0xf5, 0xfd, 0x3a, 0x1a,
		0x07, 0x41, 0x48, 0xbb, 0x35, 0xd3, 0xb4, 0xe4, 0xcb, 0x1c, 0x0a, 0xd9, 0xbd, 0xe4, 0x19, 0xca,
		0xcb, 0x47, 0xba, 0x09, 0x69, 0x96, 0x46, 0x15, 0x0f, 0x9f, 0xc0, 0x00, 0xf3, 0xf8, 0x0e, 0x12,
	}}
	public.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		Symmetric: tpm2.TPMTSymDefObject{
			Algorithm: tpm2.TPMAlgAES,
			KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(256)),
			Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
		},
		CurveID: tpm2.TPMECCNistP384,
	})
	public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	return public
}

// endorse fills in the EK with its certificate: the first that the chip has and
// that belong together.
func (c *chip) endorse(e *hsm.Evidence) error {
	c.unload() // its place may be needed
	why := errors.New("there is no certificate in it")
	for _, k := range endorsers() {
		certificate, err := c.readNV(k.certificate)
		if errors.Is(err, errNoIndex) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read endorsement certificate: %w", err)
		}
		ek, err := c.takeEK(k)
		if err != nil {
			return err
		}
		c.putEK(ek)
		certificate, _, ok := splitDER(certificate)
		if !ok || !bytes.Contains(certificate, ek.number()) {
			why = fmt.Errorf("the certificate at %#x is for another key", uint32(k.certificate))
			continue
		}
		e.Endorsement, e.EK = certificate, tpm2.Marshal(ek.public)
		e.Chain, err = c.makerChain()
		return err
	}
	return fmt.Errorf("%w: %w", hsm.ErrEndorsement, why)
}

// An ekey is an EK in use.
type ekey struct {
	handle tpm2.TPMHandle
	public tpm2.TPMTPublic
	name   tpm2.TPM2BName
	stored bool // it stays in the chip
}

// number is the part of the key that a certificate must hold: the modulus, or
// the x coordinate.
func (k ekey) number() []byte {
	if n, err := k.public.Unique.RSA(); err == nil {
		return n.Buffer
	}
	if p, err := k.public.Unique.ECC(); err == nil {
		return p.X.Buffer
	}
	return nil
}

// makeTimeout bounds the making of an EK: RSA takes slow chips most of a minute.
const makeTimeout = 90 * time.Second

// takeEK finds an EK by the template, or has the chip make it.
func (c *chip) takeEK(k endorser) (ekey, error) {
	rsp, err := tpm2.ReadPublic{ObjectHandle: k.stored}.Execute(c)
	if err == nil {
		if public, err := rsp.OutPublic.Contents(); err == nil && fitsEK(*public, k.template) {
			return newEK(k.stored, *public, true)
		}
	} else if _, answer := errors.AsType[tpm2.TPMRC](err); !answer {
		return ekey{}, err
	}
	limit := c.limit
	c.limit = max(limit, makeTimeout)
	made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(k.template)}.Execute(c)
	c.limit = limit
	if denied(err) {
		return ekey{}, fmt.Errorf("make endorsement key: %w: %v", hsm.ErrOwnerAuth, errEndorsementAuth)
	}
	if err != nil {
		return ekey{}, fmt.Errorf("make endorsement key: %w", err)
	}
	if err := checkHandle(made.ObjectHandle, transient); err != nil {
		return ekey{}, fmt.Errorf("make endorsement key: %w", err)
	}
	public, err := made.OutPublic.Contents()
	if err != nil || !fitsEK(*public, k.template) {
		c.flush(made.ObjectHandle)
		return ekey{}, errors.New("make endorsement key: the TPM made another kind of key")
	}
	return newEK(made.ObjectHandle, *public, false)
}

func newEK(h tpm2.TPMHandle, public tpm2.TPMTPublic, stored bool) (ekey, error) {
	name, err := tpm2.ObjectName(&public)
	if err != nil {
		return ekey{}, fmt.Errorf("name of the endorsement key: %w", err)
	}
	return ekey{handle: h, public: public, name: *name, stored: stored}, nil
}

// putEK gives the place back.
func (c *chip) putEK(k ekey) {
	if !k.stored {
		c.flush(k.handle)
	}
}

// fitsEK is fits for EKs, RSA among them.
func fitsEK(public, template tpm2.TPMTPublic) bool {
	if public.Type != template.Type {
		return false
	}
	public.Unique = template.Unique
	return bytes.Equal(tpm2.Marshal(public), tpm2.Marshal(template))
}

// allowEK makes the authorisation for one use of an EK, to be undone by done.
func (c *chip) allowEK(k endorser) (use tpm2.Session, done func(), err error) {
	if k.password {
		return tpm2.PasswordAuth(nil), func() {}, nil
	}
	s, _, err := tpm2.PolicySession(c, tpm2.TPMAlgSHA256, nonceSize)
	if err != nil {
		return nil, nil, fmt.Errorf("start policy session: %w", err)
	}
	done = func() { c.flush(s.Handle()) }
	_, err = tpm2.PolicySecret{
		AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		PolicySession: s.Handle(),
		NonceTPM:      s.NonceTPM(),
	}.Execute(c)
	if err != nil {
		done()
	}
	if denied(err) {
		return nil, nil, fmt.Errorf("%w: %v", hsm.ErrOwnerAuth, errEndorsementAuth)
	}
	return s, done, err
}

// Certificates of the maker's own CAs may follow each other in NV memory
// (TCG EK Credential Profile, 2.2.1.5.4), cut wherever an index was full.
const (
	firstChain = tpm2.TPMHandle(0x01c00100)
	maxChain   = 3       // certificates
	maxIndex   = 4 << 10 // bytes in one index
	nvPiece    = 512     // bytes that any TPM gives at once
)

// makerChain reads them; a chip without gives none.
func (c *chip) makerChain() (chain [][]byte, err error) {
	var all []byte
	for h := firstChain; len(all) < maxChain*maxIndex; h++ {
		b, err := c.readNV(h)
		if errors.Is(err, errNoIndex) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read certificates of the maker: %w", err)
		}
		all = append(all, b...)
	}
	for len(chain) < maxChain {
		certificate, rest, ok := splitDER(all)
		if !ok {
			break
		}
		chain, all = append(chain, certificate), rest
	}
	return chain, nil
}

// splitDER takes the first DER SEQUENCE off b: an index may be longer than what
// is in it.
func splitDER(b []byte) (sequence, rest []byte, ok bool) {
	const head = 4 // certificates have a length of two bytes
	if len(b) < head || b[0] != 0x30 || b[1] != 0x82 {
		return nil, nil, false
	}
	n := head + int(binary.BigEndian.Uint16(b[2:]))
	if n > len(b) {
		return nil, nil, false
	}
	return b[:n:n], b[n:], true
}

var errNoIndex = errors.New("no such NV index")

// readNV reads a whole index that everybody may read.
func (c *chip) readNV(h tpm2.TPMHandle) ([]byte, error) {
	rsp, err := tpm2.NVReadPublic{NVIndex: h}.Execute(c)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, errNoIndex
	}
	if err != nil {
		return nil, err
	}
	public, err := rsp.NVPublic.Contents()
	if err != nil {
		return nil, err
	}
	if public.DataSize > maxIndex || !public.Attributes.Written {
		return nil, errNoIndex
	}
	index := tpm2.NamedHandle{Handle: h, Name: rsp.NVName}
	by := tpm2.AuthHandle{Handle: h, Name: rsp.NVName, Auth: tpm2.PasswordAuth(nil)}
	if !public.Attributes.AuthRead {
		by = tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	}
	var data []byte
	for len(data) < int(public.DataSize) {
		piece := min(int(public.DataSize)-len(data), nvPiece)
		rsp, err := tpm2.NVRead{AuthHandle: by, NVIndex: index, Size: uint16(piece), Offset: uint16(len(data))}.Execute(c)
		if denied(err) {
			return nil, fmt.Errorf("%w: NV index %#x", hsm.ErrOwnerAuth, uint32(h))
		}
		if err != nil {
			return nil, err
		}
		if len(rsp.Data.Buffer) != piece {
			return nil, errors.New("malformed data from the TPM: NV data cut short")
		}
		data = append(data, rsp.Data.Buffer...)
	}
	return data, nil
}
