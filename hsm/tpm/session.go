package tpm

// The salted session: an HMAC session whose key is agreed with the storage root
// key, and which encrypts the first parameter of a command, of its response, or
// both (Part 1, 17 and 19). One session serves a whole process: the salt costs
// the chip an ECDH, 30 to 230 ms on hardware.
//
// Commands differ in what may be encrypted: TPM2_Unseal refuses encryption of a
// parameter that it has not. So the direction is set per command.

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// direction says which first parameters are encrypted.
type direction struct{ in, out bool }

var (
	plain  = direction{}                    // nothing secret: authorisation and integrity only
	encIn  = direction{in: true}            // Create
	encOut = direction{out: true}           // Unseal: its command has no parameter
	encTwo = direction{in: true, out: true} // HMAC
)

const (
	nonceSize  = 32 // bytes, the most for SHA-256
	cfbKeySize = 16 // bytes: AES-128
)

// session implements authorizer.
type session struct {
	handle      tpm2.TPMHandle
	key         []byte
	nonceCaller []byte
	nonceTPM    []byte
	dir         direction // of the command that is being made
	// keyed is the session key with the auth value of what this command
	// authorises, nil where that is empty (Part 1, 19.6.5 and 21.3).
	keyed []byte
	// last lets the TPM forget the session with this command.
	last bool
}

var _ authorizer = (*session)(nil)

// auth lends the session for one command. The root key must have been checked
// before (rootFor): this is where it is salted to.
func (c *chip) auth(dir direction) (*session, error) {
	if c.session == nil {
		s, err := c.startSession(tpm2.TPMSEHMAC)
		if err != nil {
			return nil, err
		}
		c.session = s
	}
	c.session.aim(dir, nil)
	return c.session, nil
}

// authWith is auth for what has an auth value.
func (c *chip) authWith(dir direction, value []byte) (*session, error) {
	s, err := c.auth(dir)
	if err != nil {
		return nil, err
	}
	s.aim(dir, value)
	return s, nil
}

// aim prepares the session for one command. The TPM drops zeros at the end of an
// auth value, and so do we.
func (s *session) aim(dir direction, value []byte) {
	clear(s.keyed)
	s.dir, s.keyed = dir, nil
	if value = bytes.TrimRight(value, "\x00"); len(value) > 0 {
		s.keyed = slices.Concat(s.key, value)
	}
}

// endSession frees the session.
func (c *chip) endSession() {
	if c.session != nil {
		c.flush(c.session.handle)
		c.session.wipe()
		c.session = nil
	}
}

// startSession makes a session of one kind, HMAC or policy, salted to the root.
func (c *chip) startSession(kind tpm2.TPMSE) (*session, error) {
	if c.wire == nil { // lost while a place was freed, and the root key with it
		return nil, c.gone
	}
	to, err := rootArea().pointIn(c.root.public)
	if err != nil {
		return nil, fmt.Errorf("start session: storage root key: %w", err)
	}
	salt, encrypted, err := newSalt(to)
	if err != nil {
		return nil, fmt.Errorf("start session: %w", err)
	}
	defer clear(salt)
	s := &session{nonceCaller: make([]byte, nonceSize)}
	rand.Read(s.nonceCaller)
	params := append(sized(sized(nil, s.nonceCaller), encrypted), byte(kind))
	params = words(params, tpm2.TPMAlgAES, 8*cfbKeySize, tpm2.TPMAlgCFB, tpm2.TPMAlgSHA256)
	handle, out, err := c.ask(command{ // TPM2_StartAuthSession, not bound
		code: tpm2.TPMCCStartAuthSession, handles: []entity{c.root.entity(), permanent(tpm2.TPMRHNull)}, params: params, gives: true,
	})
	if unfit(err) {
		return nil, fmt.Errorf("%w (%v)", ErrNoEncryption, err)
	}
	if err != nil {
		return nil, fmt.Errorf("start session: %w", err)
	}
	want := byte(loadedSession)
	if kind == tpm2.TPMSEPolicy {
		want = policySession
	}
	if err := checkHandle(handle, want); err != nil {
		return nil, fmt.Errorf("start session: %w", err)
	}
	if s.nonceTPM, err = only(out); err != nil {
		return nil, fmt.Errorf("start session: %w", err)
	}
	s.handle = handle
	s.key = tpm2.KDFa(crypto.SHA256, salt, "ATH", s.nonceTPM, s.nonceCaller, 8*sha256.Size)
	return s, nil
}

// unfit tells the answers to a cipher that the TPM does not have. Starting the
// session is the probe: there is no cheaper command and no truer one.
func unfit(err error) bool {
	const symmetric = 4 // the parameter of TPM2_StartAuthSession
	parameter, _ := about(err)
	return parameter == symmetric && is(err, tpm2.TPMRCSymmetric, tpm2.TPMRCMode, tpm2.TPMRCKeySize, tpm2.TPMRCValue)
}

// wipe overwrites the key. A nil session is fine.
func (s *session) wipe() {
	if s != nil {
		clear(s.key)
		clear(s.keyed)
	}
}

// attributes are TPMA_SESSION of the next command (Part 2, 8.4).
func (s *session) attributes() (b byte) {
	const continueSession, decrypt, encrypt = 1 << 0, 1 << 5, 1 << 6
	if !s.last {
		b |= continueSession
	}
	if s.dir.in {
		b |= decrypt
	}
	if s.dir.out {
		b |= encrypt
	}
	return b
}

// commandMAC is the HMAC over a command (Part 1, 17.6).
func (s *session) commandMAC(code tpm2.TPMCC, handles []entity, params []byte) []byte {
	h := sha256.New() // cpHash
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(code)))
	for _, e := range handles {
		h.Write(e.name)
	}
	h.Write(params)
	return s.mac(h.Sum(nil), s.nonceCaller, s.nonceTPM, s.attributes())
}

// responseMAC is the HMAC over a response, which succeeded: it comes from the
// chip that the session was salted to, about this very command.
func (s *session) responseMAC(code tpm2.TPMCC, attributes byte, params []byte) []byte {
	h := sha256.New() // rpHash
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMRCSuccess)))
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(code)))
	h.Write(params)
	return s.mac(h.Sum(nil), s.nonceTPM, s.nonceCaller, attributes)
}

func (s *session) mac(hash, newer, older []byte, attributes byte) []byte {
	mac := hmac.New(sha256.New, s.secret())
	mac.Write(hash)
	mac.Write(newer)
	mac.Write(older)
	mac.Write([]byte{attributes})
	return mac.Sum(nil)
}

// secret is what HMACs and ciphers of one command are keyed with.
func (s *session) secret() []byte {
	if s.keyed != nil {
		return s.keyed
	}
	return s.key
}

// encrypt encrypts the first parameter of a command in place.
func (s *session) encrypt(parameter []byte) error {
	block, iv, err := s.cfb(s.nonceCaller, s.nonceTPM)
	if err != nil {
		return err
	}
	//lint:ignore SA1019 the TPM speaks CFB and nothing else; the HMAC authenticates it
	cipher.NewCFBEncrypter(block, iv).XORKeyStream(parameter, parameter)
	return nil
}

// decrypt decrypts the first parameter of a response in place.
func (s *session) decrypt(parameter []byte) error {
	block, iv, err := s.cfb(s.nonceTPM, s.nonceCaller)
	if err != nil {
		return err
	}
	//lint:ignore SA1019 as in encrypt
	cipher.NewCFBDecrypter(block, iv).XORKeyStream(parameter, parameter)
	return nil
}

// cfb is the cipher of one parameter (Part 1, 19.3).
func (s *session) cfb(newer, older []byte) (cipher.Block, []byte, error) {
	keyIV := tpm2.KDFa(crypto.SHA256, s.secret(), "CFB", newer, older, 8*(cfbKeySize+aes.BlockSize))
	block, err := aes.NewCipher(keyIV[:cfbKeySize])
	return block, keyIV[cfbKeySize:], err
}
