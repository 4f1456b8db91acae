package tpm

// The state of the chip, by commands that need no authorisation: asking counts
// nothing, and is answered while the chip is locked out or owned by others.

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
)

// Properties (TPM_PT, Part 2, 6.13).
const (
	ptFixed        uint32 = 0x105 // from the maker to the firmware version
	ptMaker        uint32 = 0x105
	ptFirmware1    uint32 = 0x10B
	ptFirmware2    uint32 = 0x10C
	ptVariable     uint32 = 0x200 // from the permanent attributes to the lockout's
	ptPermanent    uint32 = 0x200
	ptStartup      uint32 = 0x201
	ptLockoutCount uint32 = 0x20E
	ptLockoutLimit uint32 = 0x20F
	ptRecovery     uint32 = 0x210
	ptReset        uint32 = 0x211

	fixedCount    = uint32(ptFirmware2-ptFixed) + 1
	variableCount = uint32(ptReset-ptVariable) + 1
)

// TPMA_PERMANENT and TPMA_STARTUP_CLEAR (Part 2, 8.6 and 8.7).
const (
	permanentOwner   = 1 << 0 // ownerAuthSet
	permanentLockout = 1 << 2 // lockoutAuthSet
	permanentLocked  = 1 << 9 // inLockout
	startupOrderly   = 1 << 31
)

// What Health says about an emulator, and about a chip in the state that it is in.
const (
	noteEmulator = "a TPM emulator is a program: who can read or replace its files has every key and can turn its counters back; it is for tests"
	noteStolen   = "whoever takes the running terminal, or is root on it, can use the keys as long as he has it; they do not come out of the chip"
	noteNoLimit  = "the lockout is off (recovery 0 or limit 0): PINs can be guessed without end; set it: kagimori tpm set-lockout"
	noteUnstored = "the storage root key is not stored and is made at each start, since another key or an owner password is in the way"
)

// Health reads the chip's state. It works without a storage root key.
func (m *Module) Health(ctx context.Context) (hsm.Health, error) {
	h, err := doBare(ctx, m, (*chip).health)
	if err != nil {
		return hsm.Health{}, fmt.Errorf("examine TPM: %w", err)
	}
	return h, nil
}

// Examine is Health for a TPM that Open refuses, for one that is owned with
// somebody else's password. It stores nothing in the chip.
func Examine(ctx context.Context, path string, log *slog.Logger) (hsm.Health, error) {
	cfg, err := configFor(path, log)
	if err != nil {
		return hsm.Health{}, fmt.Errorf("examine TPM: %w", err)
	}
	m := start(cfg)
	defer m.Close()
	return m.Health(ctx)
}

func (c *chip) health() (hsm.Health, error) {
	h := hsm.Health{Level: c.level, RollbackProof: true, Notes: []string{noteStolen}}
	if c.raw {
		h.Notes = []string{noteEmulator}
	}
	fixed, err := c.properties(ptFixed, fixedCount)
	if err != nil {
		return h, err
	}
	variable, err := c.properties(ptVariable, variableCount)
	if err != nil {
		return h, err
	}
	second := func(p uint32) time.Duration { return time.Duration(variable[p]) * time.Second }
	h.Chip = &hsm.Chip{
		Maker:           maker(fixed[ptMaker]),
		Firmware:        firmware(fixed[ptFirmware1], fixed[ptFirmware2]),
		OwnerPassword:   variable[ptPermanent]&permanentOwner != 0,
		LockoutPassword: variable[ptPermanent]&permanentLockout != 0,
		Unorderly:       variable[ptStartup]&startupOrderly == 0,
		Lockout: hsm.Lockout{
			Locked: variable[ptPermanent]&permanentLocked != 0,
			Count:  variable[ptLockoutCount], Limit: variable[ptLockoutLimit],
			Recovery: second(ptRecovery), Reset: second(ptReset),
		},
	}
	if h.Chip.Lockout.Limit == 0 || h.Chip.Lockout.Recovery == 0 {
		h.Notes = append(h.Notes, noteNoLimit)
	}
	if h.Chip.Counters, err = c.countCounters(); err != nil {
		return h, err
	}
	return h, c.healthOfRoot(&h)
}

// healthOfRoot names the storage root key: the one in use, or the one that
// stands at its handle.
func (c *chip) healthOfRoot(h *hsm.Health) error {
	now := c.root
	if now.handle == 0 {
		if _, err := c.readRoot(); err != nil {
			return err
		}
		now, c.root = c.root, now
	}
	if now.handle == 0 {
		h.Notes = append(h.Notes, noteUnstored)
		return nil
	}
	h.Chip.Root, h.Chip.Stored = hex.EncodeToString(now.name), now.persistent
	if !now.persistent {
		h.Notes = append(h.Notes, noteUnstored)
	}
	return nil
}

// countCounters counts what is ours in our range.
func (c *chip) countCounters() (int, error) {
	taken, err := c.handles(FirstCounter, MaxCounters)
	if err != nil {
		return 0, err
	}
	ours := 0
	for h := range taken {
		if h < FirstCounter || h >= FirstCounter+MaxCounters {
			continue
		}
		public, err := c.readNVPublic(h)
		if is(err, tpm2.TPMRCHandle) {
			continue // just removed by another program
		}
		if err != nil {
			return 0, err
		}
		if _, ok := decodeNV(public); ok {
			ours++
		}
	}
	return ours, nil
}

// maker is TPM_PT_MANUFACTURER as letters.
func maker(v uint32) string {
	letters := binary.BigEndian.AppendUint32(nil, v)
	for n, b := range letters {
		if b < ' ' || b > '~' {
			letters[n] = ' '
		}
	}
	return strings.TrimRight(string(letters), " ")
}

// firmware is TPM_PT_FIRMWARE_VERSION_1 and _2 as makers print it.
func firmware(high, low uint32) string {
	return fmt.Sprintf("%d.%d.%d.%d", high>>16, high&0xffff, low>>16, low&0xffff)
}
