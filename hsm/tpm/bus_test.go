package tpm_test

// What an interposer on the bus sees, and what it can do.

import (
	"bytes"
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"net"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/tpm"
)

// req: C1 (the security code is stored before the copy: here, and never seen again)
func TestBusShowsNoSecret(t *testing.T) {
	chip := hsmtest.StartTPM(t)
	path, recorded := hsmtest.Record(t, chip)
	m := open(t, path)
	secret, macKey, message := hsm.RandomSecret(32), hsm.RandomSecret(32), hsm.RandomSecret(64)
	digest := sha256.Sum256([]byte("signed"))

	sealed := must(m.Seal(t.Context(), secret))
	mac := must(m.ImportMAC(t.Context(), macKey))
	key := must(m.NewKey(t.Context()))
	s := must(m.Signer(t.Context(), key))
	must(s.Sign(rand.Reader, digest[:], crypto.SHA256))
	unsealed := must(m.Unseal(t.Context(), sealed))
	tag := must(m.MAC(t.Context(), mac, message.Bytes()))
	if !unsealed.Equal(secret) || !tag.Equal(sum(macKey, message)) {
		t.Fatal("the module does not do what it should; the record proves nothing")
	}
	seen := recorded()
	for name, needle := range map[string]*hsm.Secret{
		"sealed secret": secret, "MAC key": macKey, "MAC": tag, "message": message,
	} {
		if shows(seen, needle.Bytes()) {
			t.Errorf("the %s crosses the bus in clear", name)
		}
	}
	if !shows(seen, digest[:]) {
		t.Error("the recorder does not even see the digest, which is sent in clear")
	}
}

// The control: the same commands through password sessions, by the same
// recorder, are seen. If this fails, the test above proves nothing.
func TestBusControl(t *testing.T) {
	path, recorded := hsmtest.Record(t, hsmtest.StartTPM(t))
	conn := must(net.Dial("unix", path))
	chip := transport.FromReadWriteCloser(conn)
	defer chip.Close()
	srk := must(tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(chip))
	parent := tpm2.AuthHandle{Handle: srk.ObjectHandle, Name: srk.Name, Auth: tpm2.PasswordAuth(nil)}
	attributes := tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true, NoDA: true}
	secret, macKey, message := hsm.RandomSecret(32), hsm.RandomSecret(32), hsm.RandomSecret(64)

	put := func(data *hsm.Secret, public tpm2.TPMTPublic) tpm2.AuthHandle {
		made := must(tpm2.Create{
			ParentHandle: parent, InPublic: tpm2.New2B(public),
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: data.Bytes()})}},
		}.Execute(chip))
		h := must(tpm2.Load{ParentHandle: parent, InPrivate: made.OutPrivate, InPublic: made.OutPublic}.Execute(chip))
		return tpm2.AuthHandle{Handle: h.ObjectHandle, Name: h.Name, Auth: tpm2.PasswordAuth(nil)}
	}
	object := put(secret, tpm2.TPMTPublic{Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes})
	if !shows(recorded(), secret.Bytes()) {
		t.Error("a secret sealed in clear is not seen")
	}
	before := len(recorded())
	must(tpm2.Unseal{ItemHandle: object}.Execute(chip))
	if !shows(recorded()[before:], secret.Bytes()) {
		t.Error("a secret unsealed in clear is not seen")
	}
	must(tpm2.FlushContext{FlushHandle: object.Handle}.Execute(chip))
	attributes.SignEncrypt = true
	object = put(macKey, tpm2.TPMTPublic{Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{Scheme: tpm2.TPMTKeyedHashScheme{
			Scheme:  tpm2.TPMAlgHMAC,
			Details: tpm2.NewTPMUSchemeKeyedHash(tpm2.TPMAlgHMAC, &tpm2.TPMSSchemeHMAC{HashAlg: tpm2.TPMAlgSHA256})}})})
	must(tpm2.Hmac{Handle: object, Buffer: tpm2.TPM2BMaxBuffer{Buffer: message.Bytes()}, HashAlg: tpm2.TPMAlgNull}.Execute(chip))
	for name, needle := range map[string]*hsm.Secret{"MAC key": macKey, "MAC": sum(macKey, message), "message": message} {
		if !shows(recorded(), needle.Bytes()) {
			t.Errorf("a %s in clear is not seen", name)
		}
	}
}

// shows tells whether any 8 bytes in a row of the needle are there: half a
// secret is a leak as well.
func shows(seen, needle []byte) bool {
	for n := range len(needle) - 7 {
		if bytes.Contains(seen, needle[n:n+8]) {
			return true
		}
	}
	return false
}

func sum(key, message *hsm.Secret) *hsm.Secret {
	h := hmac.New(sha256.New, key.Bytes())
	h.Write(message.Bytes())
	return hsm.NewSecret(h.Sum(nil))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// An interposer that shows a root key of its own gets nothing: the Name in the
// blob is compared before a session is salted to that key.
func TestBusOtherRootIsNotSaltedTo(t *testing.T) {
	victim, attacker := hsmtest.StartTPM(t), hsmtest.StartTPM(t)
	m := open(t, victim)
	blob := must(m.Seal(t.Context(), hsm.NewSecret([]byte("secret"))))
	m.Close()
	evil := must(net.Dial("unix", attacker))
	defer evil.Close()
	var theirs transport.TPM = transport.FromReadWriteCloser(evil)
	bus := hsmtest.NewBus(t, victim, func(command []byte, next func([]byte) []byte) []byte {
		switch tpm2.TPMCC(hsmtest.Code(command)) {
		case tpm2.TPMCCReadPublic: // "no key is stored here"
			return hsmtest.Fail(0x18b)
		case tpm2.TPMCCEvictControl:
			return hsmtest.Fail(uint32(tpm2.TPMRCNVSpace))
		case tpm2.TPMCCCreatePrimary:
			return must(theirs.Send(command))
		}
		return next(command)
	})
	m = open(t, bus.Socket)
	if _, err := m.Unseal(t.Context(), blob); !errors.Is(err, hsm.ErrReplaced) {
		t.Errorf("%v, want %v", err, hsm.ErrReplaced)
	}
	if slices.Contains(bus.Commands(), uint32(tpm2.TPMCCStartAuthSession)) {
		t.Error("a session was salted to the attacker's key")
	}
}

// Each command's response is altered in one byte; nothing wrong comes out.
func TestBusAlteredResponses(t *testing.T) {
	chip := hsmtest.StartTPM(t)
	m := open(t, chip)
	secret := hsm.RandomSecret(32)
	blob := must(m.Seal(t.Context(), secret))
	m.Close()
	for _, cc := range []tpm2.TPMCC{tpm2.TPMCCUnseal, tpm2.TPMCCLoad, tpm2.TPMCCStartAuthSession, tpm2.TPMCCReadPublic} {
		var spoil atomic.Int64
		bus := hsmtest.NewBus(t, chip, func(command []byte, next func([]byte) []byte) []byte {
			response := next(command)
			if at := spoil.Load(); at >= 0 && tpm2.TPMCC(hsmtest.Code(command)) == cc && len(response) > 10 {
				response[10+int(at)%(len(response)-10)] ^= 0x10
			}
			return response
		})
		spoil.Store(-1)
		m := must(tpm.OpenWithin(t.Context(), bus.Socket, wait, logger(t)))
		for at := range int64(120) {
			spoil.Store(at)
			bus.Drop() // start anew, so that each command is sent again
			if got, err := m.Unseal(t.Context(), blob); err == nil && !got.Equal(secret) {
				t.Fatalf("%v altered at %d: a wrong secret", cc, at)
			}
		}
		spoil.Store(-1)
		bus.Drop()
		m.Unseal(t.Context(), blob) // finds the connection gone
		if got, err := m.Unseal(t.Context(), blob); err != nil || !got.Equal(secret) {
			t.Errorf("%v, no longer altered: %v", cc, err)
		}
		m.Close()
	}
}
