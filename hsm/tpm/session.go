package tpm

// The salted session: an HMAC session whose key is agreed with the storage root
// key, and which encrypts the first parameter of a command, of its response, or
// both (Part 1, 17 and 19). One session serves a whole process: the salt costs
// the chip an ECDH, 30 to 230 ms on hardware.
//
// go-tpm's own session fixes the direction of encryption when it is started,
// and commands differ: TPM2_Unseal refuses encryption of a parameter that it has
// not. So this one has the direction set per command. The arithmetic (KDFa, the
// salt) is go-tpm's.

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"crypto"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
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

// session implements go-tpm's Session, and authorizer for commands made by hand.
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

var (
	_ tpm2.Session = (*session)(nil)
	_ authorizer   = (*session)(nil)
)

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
	point, err := tpm2.ImportEncapsulationKey(&c.root.public)
	if err != nil {
		return nil, fmt.Errorf("start session: storage root key: %w", err)
	}
	salt, encrypted, err := tpm2.CreateEncryptedSalt(rand.Reader, point)
	if err != nil {
		return nil, fmt.Errorf("start session: %w", err)
	}
	defer clear(salt)
	s := &session{nonceCaller: make([]byte, nonceSize)}
	rand.Read(s.nonceCaller)
	rsp, err := tpm2.StartAuthSession{
		TPMKey:        c.root.handle,
		Bind:          tpm2.TPMRHNull,
		NonceCaller:   tpm2.TPM2BNonce{Buffer: s.nonceCaller},
		EncryptedSalt: tpm2.TPM2BEncryptedSecret{Buffer: encrypted},
		SessionType:   kind,
		Symmetric: tpm2.TPMTSymDef{
			Algorithm: tpm2.TPMAlgAES,
			KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(8*cfbKeySize)),
			Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
		},
		AuthHash: tpm2.TPMAlgSHA256,
	}.Execute(c)
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
	if err := checkHandle(rsp.SessionHandle, want); err != nil {
		return nil, fmt.Errorf("start session: %w", err)
	}
	s.handle, s.nonceTPM = rsp.SessionHandle, rsp.NonceTPM.Buffer
	s.key = tpm2.KDFa(crypto.SHA256, salt, "ATH", s.nonceTPM, s.nonceCaller, 8*sha256.Size)
	return s, nil
}

// unfit tells the answers to a cipher that the TPM does not have. Starting the
// session is the probe: there is no cheaper command and no truer one.
func unfit(err error) bool {
	const symmetric = 4 // the parameter of TPM2_StartAuthSession
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCSymmetric, tpm2.TPMRCMode, tpm2.TPMRCKeySize, tpm2.TPMRCValue} {
		var fmt1 tpm2.TPMFmt1Error
		if code, ok := errors.AsType[tpm2.TPMRC](err); ok && code.Is(rc) && code.As(&fmt1) {
			is, n := fmt1.Parameter()
			return is && n == symmetric
		}
	}
	return false
}

// wipe overwrites the key. A nil session is fine.
func (s *session) wipe() {
	if s != nil {
		clear(s.key)
		clear(s.keyed)
	}
}

// Init has nothing to do: the session was started with its first use.
func (s *session) Init(transport.TPM) error { return nil }

// CleanupFailure keeps the session: a refused command leaves it in step.
func (s *session) CleanupFailure(transport.TPM) error { return nil }

// NonceTPM is the TPM's last nonce.
func (s *session) NonceTPM() tpm2.TPM2BNonce { return tpm2.TPM2BNonce{Buffer: s.nonceTPM} }

// NewNonceCaller makes the nonce of the next command.
func (s *session) NewNonceCaller() error {
	s.nonceCaller = make([]byte, nonceSize)
	rand.Read(s.nonceCaller)
	return nil
}

// attributes are TPMA_SESSION of the next command (Part 2, 8.4).
func (s *session) attributes() tpm2.TPMASession {
	return tpm2.TPMASession{ContinueSession: !s.last, Decrypt: s.dir.in, Encrypt: s.dir.out}
}

// attributeByte is how TPMA_SESSION enters an HMAC.
func attributeByte(a tpm2.TPMASession) byte {
	var b byte
	for bit, set := range [...]bool{0: a.ContinueSession, 1: a.AuditExclusive, 2: a.AuditReset, 5: a.Decrypt, 6: a.Encrypt, 7: a.Audit} {
		if set {
			b |= 1 << bit
		}
	}
	return b
}

// Authorize computes the HMAC over a command (Part 1, 17.6).
func (s *session) Authorize(cc tpm2.TPMCC, parms, addNonces []byte, names []tpm2.TPM2BName, _ int) (*tpm2.TPMSAuthCommand, error) {
	h := sha256.New()
	binary.Write(h, binary.BigEndian, cc)
	for _, name := range names {
		h.Write(name.Buffer)
	}
	h.Write(parms)
	mac := hmac.New(sha256.New, s.secret())
	mac.Write(h.Sum(nil))
	mac.Write(s.nonceCaller)
	mac.Write(s.nonceTPM)
	mac.Write(addNonces)
	mac.Write([]byte{attributeByte(s.attributes())})
	return &tpm2.TPMSAuthCommand{
		Handle:        s.handle,
		Nonce:         tpm2.TPM2BNonce{Buffer: s.nonceCaller},
		Attributes:    s.attributes(),
		Authorization: tpm2.TPM2BData{Buffer: mac.Sum(nil)},
	}, nil
}

// Validate checks the HMAC over a response: it comes from the chip that the
// session was salted to, about this very command.
func (s *session) Validate(rc tpm2.TPMRC, cc tpm2.TPMCC, parms []byte, _ []tpm2.TPM2BName, _ int, auth *tpm2.TPMSAuthResponse) error {
	s.nonceTPM = auth.Nonce.Buffer
	h := sha256.New()
	binary.Write(h, binary.BigEndian, rc)
	binary.Write(h, binary.BigEndian, cc)
	h.Write(parms)
	mac := hmac.New(sha256.New, s.secret())
	mac.Write(h.Sum(nil))
	mac.Write(s.nonceTPM)
	mac.Write(s.nonceCaller)
	mac.Write([]byte{attributeByte(auth.Attributes)})
	if !hmac.Equal(mac.Sum(nil), auth.Authorization.Buffer) {
		return errors.New("a response that the TPM did not make: look for a device on its bus")
	}
	if auth.Attributes != s.attributes() {
		return errAttributes
	}
	return nil
}

var errAttributes = errors.New("the TPM ended the session or changed what it encrypts")

// secret is what HMACs and ciphers of one command are keyed with.
func (s *session) secret() []byte {
	if s.keyed != nil {
		return s.keyed
	}
	return s.key
}

// IsEncryption tells that responses are encrypted.
func (s *session) IsEncryption() bool { return s.dir.out }

// IsDecryption tells that commands are encrypted.
func (s *session) IsDecryption() bool { return s.dir.in }

// Encrypt encrypts the first parameter of a command in place.
func (s *session) Encrypt(parameter []byte) error {
	if !s.dir.in {
		return nil
	}
	block, iv, err := s.cfb(s.nonceCaller, s.nonceTPM)
	if err != nil {
		return err
	}
	//lint:ignore SA1019 the TPM speaks CFB and nothing else; the HMAC authenticates it
	cipher.NewCFBEncrypter(block, iv).XORKeyStream(parameter, parameter)
	return nil
}

// Decrypt decrypts the first parameter of a response in place.
func (s *session) Decrypt(parameter []byte) error {
	if !s.dir.out {
		return nil
	}
	block, iv, err := s.cfb(s.nonceTPM, s.nonceCaller)
	if err != nil {
		return err
	}
	//lint:ignore SA1019 as in Encrypt
	cipher.NewCFBDecrypter(block, iv).XORKeyStream(parameter, parameter)
	return nil
}

// cfb is the cipher of one parameter (Part 1, 19.3).
func (s *session) cfb(newer, older []byte) (cipher.Block, []byte, error) {
	keyIV := tpm2.KDFa(crypto.SHA256, s.secret(), "CFB", newer, older, 8*(cfbKeySize+aes.BlockSize))
	block, err := aes.NewCipher(keyIV[:cfbKeySize])
	return block, keyIV[cfbKeySize:], err
}

// Handle is the session's handle.
func (s *session) Handle() tpm2.TPMHandle { return s.handle }
