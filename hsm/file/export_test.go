package file

import (
	"testing"

	"github.com/kagimori/kagimori/hsm"
)

// The limits that tests hold the module to.
const (
	MaxTries  = maxTries
	ForgetTry = forgetTry
)

// SetTries writes the count of wrong PINs, as so many tries would have.
func SetTries(t *testing.T, m *Module, n uint32) {
	t.Helper()
	if err := m.writeTries(t.Context(), n); err != nil {
		t.Fatal(err)
	}
}

// Recode decodes a keyring and encodes it again.
func Recode(b []byte) ([]byte, error) {
	k, err := decodeKeyring(b)
	if err != nil {
		return nil, err
	}
	return k.encode(), nil
}

// NewKeyring is a keyring's file.
func NewKeyring(t testing.TB, root, secret, passphrase *hsm.Secret) []byte {
	t.Helper()
	k, err := newKeyring(root, secret, passphrase)
	if err != nil {
		t.Fatal(err)
	}
	return k.encode()
}
