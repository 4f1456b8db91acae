package tpm

// How a command is put together, and its response taken apart. The layout is
// that of Part 1, 18: header, handles, authorisations, parameters. The numbers are
// go-tpm's; its types for whole commands would cost the agent half a megabyte, and
// encrypt the same parameters of every command of a session.

import (
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"errors"

	"github.com/google/go-tpm/tpm2"
)

// errResponse is a response that does not follow the layout.
var errResponse = errors.New("malformed data from the TPM")

// A command is one command of Part 3.
type command struct {
	code    tpm2.TPMCC
	handles []entity
	// auth authorises the first handle, or audits and encrypts when it has none;
	// nil: a command without authorisation.
	auth   authorizer
	params []byte
	// gives tells that the response starts with a handle.
	gives bool
}

// An entity is a handle with the Name that enters the HMAC: a session, a PCR and
// a hierarchy are their own Names (Part 1, 16).
type entity struct {
	handle tpm2.TPMHandle
	name   []byte
}

// permanent is an entity that is its own Name.
func permanent(h tpm2.TPMHandle) entity {
	return entity{h, binary.BigEndian.AppendUint32(nil, uint32(h))}
}

// An authorizer makes the authorisation of one command and checks its answer.
type authorizer interface {
	// seal encrypts the first parameter in place if need be, and returns the
	// TPMS_AUTH_COMMAND.
	seal(code tpm2.TPMCC, handles []entity, params []byte) ([]byte, error)
	// open checks the TPMS_AUTH_RESPONSE, and decrypts the first parameter of the
	// response in place if need be.
	open(code tpm2.TPMCC, params, auth []byte) error
}

// ask sends one command and gives back its handle, if any, and its parameters.
func (c *chip) ask(q command) (tpm2.TPMHandle, []byte, error) {
	b, err := q.encode()
	if err != nil {
		return 0, nil, err
	}
	response, err := c.send(b)
	if err != nil {
		return 0, nil, err
	}
	return q.decode(response)
}

func (q command) encode() ([]byte, error) {
	be := binary.BigEndian
	b := words(nil, tpm2.TPMSTNoSessions)
	b = be.AppendUint32(be.AppendUint32(b, 0), uint32(q.code))
	for _, e := range q.handles {
		b = be.AppendUint32(b, uint32(e.handle))
	}
	if q.auth != nil {
		be.PutUint16(b, uint16(tpm2.TPMSTSessions))
		auth, err := q.auth.seal(q.code, q.handles, q.params)
		if err != nil {
			return nil, err
		}
		b = append(be.AppendUint32(b, uint32(len(auth))), auth...)
	}
	b = append(b, q.params...)
	be.PutUint32(b[2:], uint32(len(b)))
	return b, nil
}

func (q command) decode(response []byte) (handle tpm2.TPMHandle, params []byte, err error) {
	be := binary.BigEndian
	if len(response) < headSize || int(be.Uint32(response[2:])) != len(response) {
		return 0, nil, errResponse
	}
	if rc := answer(be.Uint32(response[6:])); rc != answer(tpm2.TPMRCSuccess) {
		return 0, nil, rc
	}
	rest := response[headSize:]
	if q.gives {
		if len(rest) < 4 {
			return 0, nil, errResponse
		}
		handle, rest = tpm2.TPMHandle(be.Uint32(rest)), rest[4:]
	}
	if q.auth == nil {
		return handle, rest, nil
	}
	if len(rest) < 4 || uint64(be.Uint32(rest)) > uint64(len(rest)-4) {
		return 0, nil, errResponse
	}
	n := int(be.Uint32(rest))
	params, auth := rest[4:4+n:4+n], rest[4+n:]
	if err := q.auth.open(q.code, params, auth); err != nil {
		return 0, nil, err
	}
	return handle, params, nil
}

// words appends numbers of two bytes.
func words[T ~uint16](b []byte, numbers ...T) []byte {
	for _, n := range numbers {
		b = binary.BigEndian.AppendUint16(b, uint16(n))
	}
	return b
}

// sized appends a TPM2B: a length of two bytes, then the content.
func sized(b, content []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(content))), content...)
}

// unsized splits a TPM2B off b.
func unsized(b []byte) (content, rest []byte, err error) {
	if len(b) < 2 || int(binary.BigEndian.Uint16(b)) > len(b)-2 {
		return nil, nil, errResponse
	}
	n := 2 + int(binary.BigEndian.Uint16(b))
	return b[2:n:n], b[n:], nil
}

// only is unsized for what must fill b.
func only(b []byte) ([]byte, error) {
	content, rest, err := unsized(b)
	if err != nil || len(rest) != 0 {
		return nil, errResponse
	}
	return content, nil
}

// noPassword authorises what has an empty auth value without a session: nothing
// in the command or its answer is secret, and nothing in the answer is believed
// that is not checked later.
type noPassword struct{}

func (noPassword) seal(tpm2.TPMCC, []entity, []byte) ([]byte, error) {
	const continueSession = 1
	b := binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMRSPW))
	return append(b, 0, 0, continueSession, 0, 0), nil
}

func (noPassword) open(tpm2.TPMCC, []byte, []byte) error { return nil }

// both authorises two handles, one each. Only the first may encrypt: its seal
// comes before the other one's HMAC, and its open after.
type both struct{ first, second authorizer }

func (a both) seal(code tpm2.TPMCC, handles []entity, params []byte) ([]byte, error) {
	first, err := a.first.seal(code, handles, params)
	if err != nil {
		return nil, err
	}
	second, err := a.second.seal(code, handles, params)
	return append(first, second...), err
}

func (a both) open(code tpm2.TPMCC, params, auth []byte) error {
	_, rest, err := unsized(auth) // nonce, attributes, HMAC
	if err != nil || len(rest) < 1 {
		return errResponse
	}
	if _, rest, err = unsized(rest[1:]); err != nil {
		return err
	}
	if err := a.second.open(code, params, rest); err != nil {
		return err
	}
	return a.first.open(code, params, auth[:len(auth)-len(rest)])
}

// seal makes the authorisation of a command in this session.
func (s *session) seal(code tpm2.TPMCC, handles []entity, params []byte) ([]byte, error) {
	s.nonceCaller = make([]byte, nonceSize)
	rand.Read(s.nonceCaller)
	if s.dir.in {
		first, _, err := unsized(params)
		if err != nil {
			return nil, err
		}
		if err := s.encrypt(first); err != nil {
			return nil, err
		}
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(s.handle))
	b = append(sized(b, s.nonceCaller), s.attributes())
	return sized(b, s.commandMAC(code, handles, params)), nil
}

// open checks the answer to a command in this session.
func (s *session) open(code tpm2.TPMCC, params, auth []byte) error {
	nonce, rest, err := unsized(auth)
	if err != nil || len(rest) < 1 {
		return errResponse
	}
	mac, err := only(rest[1:])
	if err != nil {
		return errResponse
	}
	s.nonceTPM = nonce
	if !hmac.Equal(mac, s.responseMAC(code, rest[0], params)) {
		return errors.New("a response that the TPM did not make: look for a device on its bus")
	}
	if rest[0] != s.attributes() {
		return errors.New("the TPM ended the session or changed what it encrypts")
	}
	if !s.dir.out {
		return nil
	}
	first, _, err := unsized(params)
	if err != nil {
		return err
	}
	return s.decrypt(first)
}
