package attest

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
)

// Challenge makes a secret of SecretSize bytes that only the chip with the
// proven EK opens, and only while it holds the proven AK (Part 1, 24). Wipe the
// secret after use.
func (p *Proven) Challenge() (hsm.Challenge, *hsm.Secret, error) {
	to, err := tpm2.ImportEncapsulationKey(&p.ek)
	if err != nil {
		return hsm.Challenge{}, nil, fmt.Errorf("make challenge: %w", err)
	}
	secret := hsm.RandomSecret(SecretSize)
	id, seed, err := tpm2.CreateCredential(rand.Reader, to, p.akName.Buffer, secret.Bytes())
	if err != nil {
		secret.Wipe()
		return hsm.Challenge{}, nil, fmt.Errorf("make challenge: %w", err)
	}
	return hsm.Challenge{Credential: id, Secret: seed}, secret, nil
}

// WrapMAC wraps an HMAC-SHA256 key of hsm.MACKeySize bytes to the storage root
// key of a chip, a TPMT_PUBLIC that Verify has proven (Part 1, 23.3.2.4). It
// opens in that chip, and never comes out again: the object has no policy, and
// without one nothing can be duplicated.
func WrapMAC(root []byte, key *hsm.Secret) (hsm.Wrapped, error) {
	none := hsm.Wrapped{}
	if err := hsm.CheckMACKey(key); err != nil {
		return none, fmt.Errorf("wrap MAC key: %w", err)
	}
	parent, err := decode(root, checkRoot)
	if err != nil {
		return none, fmt.Errorf("wrap MAC key: storage root key: %w", err)
	}
	to, err := tpm2.ImportEncapsulationKey(&parent.public)
	if err != nil {
		return none, fmt.Errorf("wrap MAC key: %w", err)
	}
	seed := hsm.RandomSecret(sha256.Size) // makes the Name tell nothing of the key
	defer seed.Wipe()
	public := macPublic(seed, key)
	name, err := tpm2.ObjectName(&public)
	if err != nil {
		return none, fmt.Errorf("wrap MAC key: %w", err)
	}
	sensitive := tpm2.Marshal(tpm2.TPMTSensitive{
		SensitiveType: tpm2.TPMAlgKeyedHash,
		SeedValue:     tpm2.TPM2BDigest{Buffer: seed.Bytes()},
		Sensitive:     tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BSensitiveData{Buffer: key.Bytes()}),
	})
	defer clear(sensitive)
	duplicate, encrypted, err := tpm2.CreateDuplicate(rand.Reader, to, name.Buffer, sensitive)
	if err != nil {
		return none, fmt.Errorf("wrap MAC key: %w", err)
	}
	return hsm.Wrapped{Public: tpm2.Marshal(public), Duplicate: duplicate, Seed: encrypted}, nil
}

// macPublic is the public area of an HMAC key that comes from outside: bound by
// having no policy, not by attributes, which TPM2_Import refuses.
func macPublic(seed, key *hsm.Secret) tpm2.TPMTPublic {
	h := sha256.New()
	h.Write(seed.Bytes())
	h.Write(key.Bytes())
	return tpm2.TPMTPublic{
		Type:             tpm2.TPMAlgKeyedHash,
		NameAlg:          tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{UserWithAuth: true, NoDA: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{
			Scheme: tpm2.TPMTKeyedHashScheme{
				Scheme:  tpm2.TPMAlgHMAC,
				Details: tpm2.NewTPMUSchemeKeyedHash(tpm2.TPMAlgHMAC, &tpm2.TPMSSchemeHMAC{HashAlg: tpm2.TPMAlgSHA256}),
			},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{Buffer: h.Sum(nil)}),
	}
}
