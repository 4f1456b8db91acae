package tpm

// The endorsement key (EK): a key that the chip's maker has certified. The chip
// makes it by a template of TCG whenever it is asked to, or holds it already;
// its certificate is in the chip's NV memory (TCG EK Credential Profile, 2.2).

import (
	"bytes"
	"crypto/sha512"
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
	template    []byte         // TPMT_PUBLIC up to the key itself
	blank       int            // bytes of zeros in place of each number of the key
	password    bool           // its empty auth value lets one use it; else a policy
	seed        int            // bytes of an encrypted seed to it
}

// Templates L-1, L-2 and H-3 of the profile, less what they share: attributes
// 0x300b2 are fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy,
// restricted, decrypt; 0x40 more is userWithAuth. AES in CFB, no scheme.
const (
	rsaHead = "\x00\x01\x00\x0b\x00\x03\x00\xb2\x00\x20"
	eccHead = "\x00\x23\x00\x0b\x00\x03\x00\xb2\x00\x20"
	highECC = "\x00\x23\x00\x0c\x00\x03\x00\xf2\x00\x30"
	rsaTail = "\x00\x06\x00\x80\x00\x43\x00\x10\x08\x00\x00\x00\x00\x00" // 2048 bits
	eccTail = "\x00\x06\x00\x80\x00\x43\x00\x10\x00\x03\x00\x10"         // P-256, no KDF
	highEnd = "\x00\x06\x01\x00\x00\x43\x00\x10\x00\x04\x00\x10"         // P-384

	// PolicyA: TPM2_PolicySecret of the endorsement hierarchy.
	policyA = "\x83\x71\x97\x67\x44\x84\xb3\xf8\x1a\x90\xcc\x8d\x46\xa5\xd7\x24" +
		"\xfd\x52\xd7\x6e\x06\x52\x0b\x64\xf2\xa1\xda\x1b\x33\x14\x69\xaa"
	// PolicyB for SHA-384; it is in the Name, and never run.
	policyB = "\xb2\x6e\x7d\x28\xd1\x1a\x50\xbc\x53\xd8\x82\xbc\xf5\xfd\x3a\x1a" +
		"\x07\x41\x48\xbb\x35\xd3\xb4\xe4\xcb\x1c\x0a\xd9\xbd\xe4\x19\xca" +
		"\xcb\x47\xba\x09\x69\x96\x46\x15\x0f\x9f\xc0\x00\xf3\xf8\x0e\x12"
)

// endorsers are those that we know, the cheapest to make first: an ECC key takes
// a chip well under a second, an RSA key up to a minute.
func endorsers() []endorser {
	return []endorser{
		{certificate: 0x01c0000a, stored: 0x81010002, template: []byte(eccHead + policyA + eccTail), blank: 32, seed: 2 * (2 + 32)},
		{certificate: 0x01c00016, stored: 0x81010016, template: []byte(highECC + policyB + highEnd), password: true, seed: 2 * (2 + 48)},
		{certificate: 0x01c00002, stored: 0x81010001, template: []byte(rsaHead + policyA + rsaTail), blank: 256, seed: 256},
	}
}

// rsa tells which.
func (k endorser) rsa() bool { return k.template[1] == 0x01 }

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

// endorse fills in the EK with its certificate: the first that the chip has and
// that belong together.
func (c *chip) endorse(e *hsm.Evidence) error {
	c.unload() // its place may be needed
	why := errors.New("none is stored in it")
	for _, k := range endorsers() {
		stored, err := c.readNV(k.certificate)
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
		certificate, _, ok := splitDER(stored)
		if !ok || !bytes.Contains(certificate, ek.number) { // the server looks closer
			why = fmt.Errorf("the certificate at %#x is for another key", uint32(k.certificate))
			continue
		}
		e.Endorsement, e.EK = certificate, ek.public
		e.Chain, err = c.makerChain()
		return err
	}
	return fmt.Errorf("%w: %w", hsm.ErrEndorsement, why)
}

// An ekey is an EK in use.
type ekey struct {
	handle tpm2.TPMHandle
	public []byte // TPMT_PUBLIC
	number []byte // what a certificate of it must hold: the modulus, or x
	name   []byte
	stored bool // it stays in the chip
}

// makeTimeout bounds the making of an EK: RSA takes slow chips most of a minute.
const makeTimeout = 90 * time.Second

// takeEK finds an EK by the template, or has the chip make it.
func (c *chip) takeEK(k endorser) (ekey, error) {
	_, params, err := c.ask(command{code: tpm2.TPMCCReadPublic, handles: []entity{{handle: k.stored}}})
	if err == nil {
		if ek, ok := k.key(k.stored, params); ok {
			ek.stored = true
			return ek, nil
		}
	} else if _, answer := errors.AsType[answer](err); !answer {
		return ekey{}, err
	}
	blank := sized(nil, make([]byte, k.blank))
	if !k.rsa() {
		blank = append(blank, blank...)
	}
	limit := c.limit
	c.limit = max(limit, makeTimeout)
	handle, params, err := c.ask(command{ // TPM2_CreatePrimary (Part 3, 24.1)
		code: tpm2.TPMCCCreatePrimary, handles: []entity{permanent(tpm2.TPMRHEndorsement)}, auth: noPassword{}, gives: true,
		// No auth value and data of ours, the template, no outside info, no PCRs.
		params: append(sized([]byte{0, 4, 0, 0, 0, 0}, append(k.template, blank...)), 0, 0, 0, 0, 0, 0),
	})
	c.limit = limit
	if denied(err) {
		return ekey{}, fmt.Errorf("make endorsement key: %w: %v", hsm.ErrOwnerAuth, errEndorsementAuth)
	}
	if err == nil {
		err = checkHandle(handle, transient)
	}
	if err != nil {
		return ekey{}, fmt.Errorf("make endorsement key: %w", err)
	}
	ek, ok := k.key(handle, params)
	if !ok {
		c.flush(handle)
		return ekey{}, errors.New("make endorsement key: the TPM made another kind of key")
	}
	return ek, nil
}

// key reads a response that begins with a TPM2B_PUBLIC; ok is false if that is
// not by the template.
func (k endorser) key(h tpm2.TPMHandle, params []byte) (ek ekey, ok bool) {
	public, _, err := unsized(params)
	if err != nil {
		return ek, false
	}
	unique, ok := bytes.CutPrefix(public, k.template)
	if !ok {
		return ek, false
	}
	number, rest, err := unsized(unique)
	if err == nil && !k.rsa() {
		_, rest, err = unsized(rest) // y
	}
	ek = ekey{handle: h, public: public, number: number, name: nameOf(public)}
	if k.password { // its Name is by SHA-384
		sum := sha512.Sum384(public)
		ek.name = append([]byte{0x00, 0x0c}, sum[:]...)
	}
	return ek, err == nil && len(rest) == 0 && len(number) > 0
}

// putEK gives the place back.
func (c *chip) putEK(k ekey) {
	if !k.stored {
		c.flush(k.handle)
	}
}

// allowEK makes the authorisation for one use of an EK, to be undone by done.
func (c *chip) allowEK(k endorser) (use authorizer, done func(), err error) {
	if k.password {
		return noPassword{}, func() {}, nil
	}
	s, err := c.startSession(tpm2.TPMSEPolicy)
	if err != nil {
		return nil, nil, err
	}
	done = func() {
		s.wipe()
		c.flush(s.handle)
	}
	_, _, err = c.ask(command{ // TPM2_PolicySecret (Part 3, 23.4)
		code: tpm2.TPMCCPolicySecret, handles: []entity{permanent(tpm2.TPMRHEndorsement), permanent(s.handle)}, auth: noPassword{},
		params: make([]byte, 2+2+2+4), // bound to no nonce, command or reference; no expiry
	})
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

// readNV reads a whole index that everybody may read: a certificate.
func (c *chip) readNV(h tpm2.TPMHandle) ([]byte, error) {
	public, err := c.readNVPublic(h)
	if is(err, tpm2.TPMRCHandle) {
		return nil, errNoIndex
	}
	if err != nil {
		return nil, err
	}
	// TPMS_NV_PUBLIC (Part 2, 13.5): index 4, nameAlg 2, attributes 4, policy, size 2.
	const (
		attributesAt = 6
		shortest     = 4 + 2 + 4 + 2 + 2
		authRead     = 1 << 18
		written      = 1 << 29
	)
	if len(public) < shortest {
		return nil, errResponse
	}
	attributes := binary.BigEndian.Uint32(public[attributesAt:])
	size := int(binary.BigEndian.Uint16(public[len(public)-2:]))
	if size == 0 || size > maxIndex || attributes&written == 0 {
		return nil, errNoIndex
	}
	index := entity{handle: h}
	by := index
	if attributes&authRead == 0 {
		by = permanent(tpm2.TPMRHOwner)
	}
	data := make([]byte, 0, size)
	for len(data) < size {
		piece := min(size-len(data), nvPiece)
		_, params, err := c.ask(command{
			code: tpm2.TPMCCNVRead, handles: []entity{by, index}, auth: noPassword{},
			params: words(nil, uint16(piece), uint16(len(data))),
		})
		if denied(err) {
			return nil, fmt.Errorf("%w: NV index %#x", hsm.ErrOwnerAuth, uint32(h))
		}
		if err != nil {
			return nil, err
		}
		b, err := only(params)
		if err != nil || len(b) != piece {
			return nil, errResponse
		}
		data = append(data, b...)
	}
	return data, nil
}
