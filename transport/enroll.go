package transport

import (
	"crypto/hmac"
	"crypto/sha256"
)

// Enrollment (DESIGN D8, req: L3, L4): a terminal without certificate and the
// management server prove to each other that they hold the common key CK, over
// TLS and bound to it, then the terminal gets its identity certificate.
//
//	X  = TLS exporter(EnrollExporter, EnrollExporterSize bytes)
//	(1) → EnrollHello                 (2) ← EnrollChallenge, with MAC_s
//	(3) → EnrollRequest, with MAC_t   (4) ← EnrollCertificate
//	MAC_s = HMAC-SHA256(CK, "s" ‖ X ‖ SHA-256(1 ‖ 2 less MAC))
//	MAC_t = HMAC-SHA256(CK, "t" ‖ X ‖ SHA-256(1 ‖ 2 ‖ 3 less MAC))
//
// 1, 2, 3 are the encoded bodies as sent; "less MAC" is the body with a MAC of
// zero bytes. A terminal whose profile asks for it proves its TPM between 3 and
// 4; enroll_attest.go says how.
const (
	EnrollExporter     = "EXPORTER-kagimori-enroll/1"
	EnrollExporterSize = 32
	CommonKeySize      = 32
)

// EnrollHello opens the conversation.
type EnrollHello struct {
	Terminal Name     `cbor:"1,keyasint"`
	Device   DeviceID `cbor:"2,keyasint"`
	Nonce    [32]byte `cbor:"3,keyasint"`
}

// EnrollChallenge proves the server. An unknown terminal gets a random MAC.
type EnrollChallenge struct {
	Nonce [32]byte `cbor:"1,keyasint"`
	MAC   [32]byte `cbor:"2,keyasint"`
}

// EnrollRequest proves the terminal and asks for its certificate. CSR is a
// PKCS#10 request for the device's identity key; Level is hsm's.
type EnrollRequest struct {
	CSR   []byte   `cbor:"1,keyasint"`
	Level string   `cbor:"2,keyasint"`
	MAC   [32]byte `cbor:"3,keyasint"`
}

// EnrollCertificate is the answer: chain leaf first, the server's time in Unix
// seconds, and how many seconds the leaf has left. Code is there for a terminal
// that has proven its TPM, and for no other.
type EnrollCertificate struct {
	Chain     [][]byte     `cbor:"1,keyasint"`
	Time      int64        `cbor:"2,keyasint"`
	Remaining int64        `cbor:"3,keyasint"`
	Code      *WrappedCode `cbor:"4,keyasint,omitempty"`
}

// Type implements Body.
func (*EnrollHello) Type() string       { return "enroll.hello" }
func (*EnrollChallenge) Type() string   { return "enroll.challenge" }
func (*EnrollRequest) Type() string     { return "enroll.request" }
func (*EnrollCertificate) Type() string { return "enroll.certificate" }

// EnrollServerMAC computes MAC_s; hello is body (1) as sent.
func EnrollServerMAC(commonKey, exporter, hello []byte, c EnrollChallenge) ([32]byte, error) {
	c.MAC = [32]byte{}
	return enrollMAC(commonKey, "s", exporter, hello, nil, &c)
}

// EnrollTerminalMAC computes MAC_t; hello and challenge are bodies as sent.
func EnrollTerminalMAC(commonKey, exporter, hello, challenge []byte, r EnrollRequest) ([32]byte, error) {
	r.MAC = [32]byte{}
	return enrollMAC(commonKey, "t", exporter, hello, challenge, &r)
}

func enrollMAC(commonKey []byte, side string, exporter, first, second []byte, last any) (mac [32]byte, err error) {
	body, err := Marshal(last)
	if err != nil {
		return mac, err
	}
	h := sha256.New()
	h.Write(first)
	h.Write(second)
	h.Write(body)
	m := hmac.New(sha256.New, commonKey)
	m.Write([]byte(side))
	m.Write(exporter)
	m.Write(h.Sum(nil))
	return [32]byte(m.Sum(nil)), nil
}
