package tpm

// The guard against guessing is set and reset with the lockout password
// (hsm.LockoutSetter, Part 3, 25.1 and 25.2). A wrong one makes the chip refuse
// all others for the reset time, so each call tries once, whatever happens.

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
)

// maxLockoutPassword is the most bytes that any chip takes (SHA-512).
const maxLockoutPassword = 64

// SetLockout sets after how many wrong guesses the chip locks (at least 1), after
// how long it forgets one (at least a second), and how long a wrong lockout
// password bars the next one (0: until the chip starts anew). Whole seconds.
func (m *Module) SetLockout(ctx context.Context, password *hsm.Secret, limit uint32, recovery, reset time.Duration) error {
	forget, bar := recovery/time.Second, reset/time.Second
	switch {
	case limit == 0:
		return errors.New("set lockout: a limit of 0 locks the chip for good; set 1 or more")
	case forget < 1 || forget > math.MaxUint32:
		return fmt.Errorf("set lockout: a recovery of %v; without one PINs can be guessed without end: set 1 s or more", recovery)
	case bar < 0 || bar > math.MaxUint32:
		return fmt.Errorf("set lockout: a reset time of %v", reset)
	}
	be := binary.BigEndian
	params := be.AppendUint32(be.AppendUint32(be.AppendUint32(nil, limit), uint32(forget)), uint32(bar))
	if err := m.withLockout(ctx, password, tpm2.TPMCCDictionaryAttackParameters, params); err != nil {
		return fmt.Errorf("set lockout: %w", err)
	}
	return nil
}

// ResetLockout has the chip forget all wrong guesses.
func (m *Module) ResetLockout(ctx context.Context, password *hsm.Secret) error {
	if err := m.withLockout(ctx, password, tpm2.TPMCCDictionaryAttackLockReset, nil); err != nil {
		return fmt.Errorf("reset lockout: %w", err)
	}
	return nil
}

func (m *Module) withLockout(ctx context.Context, password *hsm.Secret, code tpm2.TPMCC, params []byte) error {
	if n := password.Len(); n > maxLockoutPassword {
		return fmt.Errorf("%w: a password of %d bytes, the limit is %d", hsm.ErrTooLong, n, maxLockoutPassword)
	}
	input := hsm.NewSecret(nil)
	if password.Len() > 0 {
		input = password.Clone()
	}
	_, err := do(ctx, m, input, func(c *chip) (struct{}, error) {
		return struct{}{}, c.withLockout(input.Bytes(), code, params)
	})
	return err
}

func (c *chip) withLockout(password []byte, code tpm2.TPMCC, params []byte) error {
	s, err := c.guarded(password)
	if err != nil {
		return err
	}
	_, _, err = c.ask(command{code: code, handles: []entity{permanent(tpm2.TPMRHLockout)}, auth: s, params: params})
	c.orderly()
	switch {
	case denied(err):
		return fmt.Errorf("%w: the chip takes no other one until its reset time has passed; find the right one before you try again (%v)",
			hsm.ErrLockoutPassword, err)
	case is(err, tpm2.TPMRCLockout):
		return fmt.Errorf("%w: a wrong lockout password was given before; wait until the reset time has passed, or start the machine anew if that is 0 (%v)",
			hsm.ErrLockout, err)
	}
	return err
}
