package agent

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/kagimori/kagimori/transport"
)

// What each kind of credential must look like (req: L2), in one place, for what
// comes with a key copy and for what an administrator brings. A certificate has
// more to it: party.check.
//
// Only a certificate has a chain, by which it expires, and anchors. The others
// have their secret and where it is good: service and subject, maybe endpoints.
// They expire if they say so. All of them are a terminal's towards a service, so
// their usage is that of a client. The server learns of them by the report of a
// key copy alone, since it has no use for them that could be proven.

// Bounds of secrets, in bytes.
const (
	minRawKey, maxRawKey   = 16, 64
	minHMACKey, maxHMACKey = 32, 64
	maxPKCS8               = 4 << 10
	maxLogin, maxPassword  = 128, 256
	minRSA                 = 2048 // bits
	maxRSA                 = 8192
)

// formsOf are the forms that the secret of a kind may have on a terminal.
func formsOf(kind transport.CredentialKind) []transport.SecretForm {
	switch kind {
	case transport.KindCertificate, transport.KindKeyPair:
		return []transport.SecretForm{transport.SecretPKCS8, transport.SecretTPM}
	case transport.KindSymmetric:
		return []transport.SecretForm{transport.SecretHMAC, transport.SecretRaw}
	case transport.KindLogin:
		return []transport.SecretForm{transport.SecretPassword}
	case transport.KindEncryption:
		return []transport.SecretForm{transport.SecretRaw}
	}
	return nil
}

// checkRecord refuses a record that is not what its kind must be. What is in
// order and of a kind that this terminal has no use for is unsuited.
func checkRecord(r *transport.CredentialRecord) error {
	for _, n := range []transport.Name{r.ID, r.Service, r.Subject} {
		if _, err := transport.ParseName(string(n)); err != nil {
			return err
		}
	}
	forms := formsOf(r.Kind)
	if forms == nil || r.Usage != transport.UsageClient {
		return unsuited(fmt.Sprintf("a credential of kind %.20q for usage %.20q is of no use here: update this terminal", r.Kind, r.Usage))
	}
	form := r.Secret.Form
	if form == transport.SecretDuplicate { // on its way to what it is on a terminal
		form = transport.SecretTPM
	}
	switch r.Transfer {
	case transport.TransferCopy, transport.TransferMove, transport.TransferNever:
	default:
		return fmt.Errorf("unknown transfer rule %.20q", r.Transfer)
	}
	switch {
	case !slices.Contains(forms, form):
		return fmt.Errorf("a %s has no secret of form %.20q", r.Kind, r.Secret.Form)
	case r.ChipOnly != (form == transport.SecretTPM):
		return errors.New("its key is in a chip and may be outside, or the other way round")
	case r.State != transport.CredentialActive && r.State != transport.CredentialInvalid:
		return fmt.Errorf("unknown state %.20q", r.State)
	case r.Expires < 0:
		return errors.New("it expires before 1970")
	case r.Kind != transport.KindCertificate && len(r.Chain)+len(r.Anchors) > 0:
		return fmt.Errorf("a %s has no certificates", r.Kind)
	}
	if err := checkReach(r.ServerName, r.Endpoints, r.Anchors); err != nil {
		return err
	}
	if form == transport.SecretTPM {
		return nil // the chip's to judge
	}
	return checkSecret(&r.Secret)
}

// checkSecret refuses a secret that is not of its form.
func checkSecret(s *transport.CredentialSecret) error {
	n := len(s.Bytes)
	switch s.Form {
	case transport.SecretRaw:
		return checkKeyBytes(s.Bytes, minRawKey, maxRawKey)
	case transport.SecretHMAC:
		return checkKeyBytes(s.Bytes, minHMACKey, maxHMACKey)
	case transport.SecretPassword:
		return checkPassword(s.Bytes)
	case transport.SecretPKCS8:
		if n > maxPKCS8 {
			return fmt.Errorf("a private key of %d bytes, the limit is %d", n, maxPKCS8)
		}
		if der := cryptobyte.String(s.Bytes); !der.SkipASN1(asn1.SEQUENCE) || !der.Empty() {
			return errors.New("the private key is not one PKCS#8 structure")
		}
		key, err := privateKey(s)
		if err != nil {
			return err
		}
		return checkAlgorithm(key.Public())
	}
	return fmt.Errorf("a secret of unknown form %.20q", s.Form)
}

func checkKeyBytes(key []byte, least, most int) error {
	if len(key) < least || len(key) > most {
		return fmt.Errorf("a key of %d bytes, it must have %d to %d", len(key), least, most)
	}
	if bytes.Count(key, key[:1]) == len(key) {
		return errors.New("the key is one byte over and over: no key at all")
	}
	return nil
}

// checkPassword looks at login, LF, password.
func checkPassword(b []byte) error {
	login, password, ok := bytes.Cut(b, []byte("\n"))
	switch {
	case !ok || len(login) == 0 || len(password) == 0:
		return errors.New("a login and a password, separated by a line feed, are needed")
	case len(login) > maxLogin || len(password) > maxPassword:
		return fmt.Errorf("a login of %d and a password of %d bytes, the limits are %d and %d", len(login), len(password), maxLogin, maxPassword)
	case !utf8.Valid(b):
		return errors.New("login and password must be UTF-8")
	case bytes.ContainsFunc(login, unicode.IsControl) || bytes.ContainsFunc(password, unicode.IsControl):
		return errors.New("a login or password with control characters")
	}
	return nil
}

// checkAlgorithm refuses keys that nobody should use any more, or that are
// larger than any service needs.
func checkAlgorithm(public any) error {
	switch k := public.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < minRSA || bits > maxRSA {
			return fmt.Errorf("an RSA key of %d bits, it must have %d to %d", bits, minRSA, maxRSA)
		}
		return nil
	}
	return errors.New("a private key of an algorithm that is not known here; use ECDSA, Ed25519 or RSA")
}

// secretText says what a secret is, without saying anything of what is in it.
func secretText(s *transport.CredentialSecret) string {
	switch s.Form {
	case transport.SecretTPM:
		return "key in the chip"
	case transport.SecretRaw:
		return fmt.Sprintf("key of %d bytes", len(s.Bytes))
	case transport.SecretHMAC:
		return fmt.Sprintf("HMAC key of %d bytes", len(s.Bytes))
	case transport.SecretPassword:
		return "login and password"
	case transport.SecretPKCS8:
		if key, err := privateKey(s); err == nil {
			return "private key, " + algorithm(key.Public())
		}
		return "private key, unreadable"
	}
	return fmt.Sprintf("secret of unknown form %.20q", s.Form)
}

func algorithm(public any) string {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		return "ECDSA " + k.Curve.Params().Name
	case ed25519.PublicKey:
		return "Ed25519"
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", k.N.BitLen())
	}
	return "of an unknown algorithm"
}

// publicKeyID names the public half of a bare key pair, for people to compare:
// SHA-256 of its SubjectPublicKeyInfo.
func publicKeyID(s *transport.CredentialSecret) string {
	if s.Form != transport.SecretPKCS8 {
		return ""
	}
	key, err := privateKey(s)
	if err != nil {
		return ""
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return ""
	}
	sum := transport.NewDeviceID(spki)
	return strings.ToLower(hex.EncodeToString(sum[:]))
}

// expiredSince says whether a credential is expired, and since when.
func expiredSince(r *transport.CredentialRecord, clock *Clock) (since time.Time, expired bool) {
	at, known := judgedAt(r, clock)
	since = expiry(r)
	return since, known && !since.IsZero() && at.After(since)
}

// judgedAt is the time by which a credential is good or not; known is false for
// one that nobody can read.
func judgedAt(r *transport.CredentialRecord, clock *Clock) (at time.Time, known bool) {
	if r.Kind != transport.KindCertificate {
		return clock.Earliest(), true
	}
	chain, err := transport.ParseChain(r.Chain)
	return clock.Judge(chain), err == nil
}

// expiry is zero for what does not expire.
func expiry(r *transport.CredentialRecord) time.Time {
	if r.Expires == 0 {
		return time.Time{}
	}
	return time.Unix(r.Expires, 0).UTC()
}

// lasts tells whether r is good for at least as long as other.
func lasts(r, other *transport.CredentialRecord) bool {
	return r.Expires == 0 || other.Expires != 0 && r.Expires >= other.Expires
}
