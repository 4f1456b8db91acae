package transport

import (
	"crypto/sha256"
	"fmt"
)

// What a Target's identity key signs under a RECEIPT. The Source keeps it with
// the signature and shows both to the server, which can judge them by the
// Target's public key alone.

// maxKeycopySigned bounds KeycopySigned: two tags, and a body whose status is of
// MaxKeycopyItems.
const maxKeycopySigned = 2*sha256.Size + MaxKeycopyItems/8 + 128

// KeycopySigned is what a receipt's signature is over, less the label: the
// transcript's hash, the encoded RECEIPT less MAC and signature, the MAC. None
// of it is secret.
func KeycopySigned(transcript [sha256.Size]byte, body []byte, mac KeycopyTag) []byte {
	signed := make([]byte, 0, 2*sha256.Size+len(body))
	signed = append(signed, transcript[:]...)
	signed = append(signed, body...)
	return append(signed, mac[:]...)
}

// KeycopySignedDigest is what the identity key signs (ECDSA, ASN.1). The label
// keeps the signature from meaning anything in another protocol under that key.
func KeycopySignedDigest(signed []byte) [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintf(h, "keycopy/%d receipt\x00", KeycopyVersion)
	h.Write(signed)
	return [sha256.Size]byte(h.Sum(nil))
}

// OpenKeycopySigned gives the receipt that was signed. Every failure is
// ErrMalformed.
func OpenKeycopySigned(signed []byte) (body KeycopyReceiptBody, err error) {
	if len(signed) < 2*sha256.Size || len(signed) > maxKeycopySigned {
		return body, fmt.Errorf("%w: a signed receipt of %d bytes", ErrMalformed, len(signed))
	}
	encoded := signed[sha256.Size : len(signed)-sha256.Size]
	if err := Unmarshal(encoded, &body, len(encoded)); err != nil {
		return body, fmt.Errorf("signed receipt: %w", err)
	}
	if len(body.Status) > MaxKeycopyItems/8 {
		return body, fmt.Errorf("%w: status of %d bytes", ErrMalformed, len(body.Status))
	}
	return body, nil
}
