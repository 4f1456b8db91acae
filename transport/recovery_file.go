package transport

import (
	"errors"
	"fmt"
)

// A recovery file is for those without a server: a terminal's store key, sealed
// under a passphrase that is shown once (sealed.go). Whoever has both, and the
// store, has all that the terminal keeps.

const (
	recoveryFileMagic = "KAGIMORI-RECOVERY-1\n"
	// MaxRecoveryFile bounds one, sealed.
	MaxRecoveryFile = 4 << 10
)

// A RecoveryFile is what is inside. Deployment and Terminal are empty for a
// store without them.
type RecoveryFile struct {
	Store      ID        `cbor:"1,keyasint"`
	Deployment Name      `cbor:"2,keyasint"`
	Terminal   Name      `cbor:"3,keyasint"`
	Device     DeviceID  `cbor:"4,keyasint"`
	Made       int64     `cbor:"5,keyasint"` // Unix seconds; 0: the clock was not trusted
	Key        Sensitive `cbor:"6,keyasint"`
}

// Wipe overwrites the key.
func (f *RecoveryFile) Wipe() { f.Key.Wipe() }

// What can be wrong with a recovery file.
var (
	ErrNotRecoveryFile    = errors.New("this file is not a recovery file, or it is cut short")
	ErrRecoveryPassphrase = errors.New("the passphrase does not open this recovery file")
)

// SealRecoveryFile gives the file's bytes and the passphrase that opens them,
// which is shown once and kept nowhere.
func SealRecoveryFile(f *RecoveryFile) (file []byte, passphrase Sensitive, err error) {
	if len(f.Key) != StoreKeySize {
		return nil, nil, fmt.Errorf("seal recovery file: a key of %d bytes", len(f.Key))
	}
	if file, passphrase, err = sealFile(recoveryFileMagic, f); err != nil {
		return nil, nil, fmt.Errorf("seal recovery file: %w", err)
	}
	return file, passphrase, nil
}

// OpenRecoveryFile reads one. It fails with ErrNotRecoveryFile or
// ErrRecoveryPassphrase.
func OpenRecoveryFile(file []byte, passphrase Sensitive) (*RecoveryFile, error) {
	var f RecoveryFile
	err := openFile(recoveryFileMagic, file, passphrase, &f, MaxRecoveryFile)
	if err == nil {
		if wrong := f.check(); wrong != nil {
			err = fmt.Errorf("%w (%w)", errNotSealed, wrong)
		}
	}
	switch {
	case err == nil:
		return &f, nil
	case errors.Is(err, errOpenSealed):
		err = ErrRecoveryPassphrase
	case err == errNotSealed:
		err = ErrNotRecoveryFile
	case errors.Is(err, errNotSealed):
		err = fmt.Errorf("%w: %w", ErrNotRecoveryFile, err)
	}
	f.Wipe()
	return nil, err
}

func (f *RecoveryFile) check() error {
	for _, n := range []Name{f.Deployment, f.Terminal} {
		if n == "" {
			continue
		}
		if _, err := ParseName(string(n)); err != nil {
			return err
		}
	}
	if len(f.Key) != StoreKeySize {
		return fmt.Errorf("a key of %d bytes", len(f.Key))
	}
	return nil
}
