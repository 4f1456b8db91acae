package transport

import "fmt"

// Epochs of a group's security code (DESIGN D8, D10). A group may have several
// codes in force: a new one is given to its terminals, both are accepted, then
// the old one is retired. SC_ID of the key copy is KeycopyCodeID: group + epoch.

const (
	// CommandCodeInstall is the kind of command whose body is a CodeInstall.
	CommandCodeInstall = "code.install"
	// CommandCodeRetire is the kind of command whose body is a CodeRetire.
	CommandCodeRetire = "code.retire"

	// MaxCodes is how many epochs of its group one terminal holds.
	MaxCodes = 8
	// MaxRetired is how many epochs one CodeRetire names.
	MaxRetired = 64
	// maxWrapped bounds each part of a WrappedCode, in bytes.
	maxWrapped = 1024
)

// CodeInstall gives a terminal the security code of an epoch, beside those that
// it has: Code as it is, or Wrapped to the chip that it has proven, so that it
// never is in its memory.
type CodeInstall struct {
	Group   Name         `cbor:"1,keyasint"`
	Epoch   uint32       `cbor:"2,keyasint"`
	Code    Sensitive    `cbor:"3,keyasint,omitempty"`
	Wrapped *WrappedCode `cbor:"4,keyasint,omitempty"`
}

// Wipe overwrites the code.
func (m *CodeInstall) Wipe() { m.Code.Wipe() }

// Check refuses what no server of ours sends.
func (m *CodeInstall) Check() error {
	if _, err := ParseName(string(m.Group)); err != nil {
		return fmt.Errorf("group: %w", err)
	}
	switch w := m.Wrapped; {
	case m.Epoch == 0:
		return fmt.Errorf("there is no epoch 0")
	case w == nil && len(m.Code) == SecurityCodeSize:
		return nil
	case w == nil || len(m.Code) != 0:
		return fmt.Errorf("a security code of %d bytes, it must be %d, or wrapped", len(m.Code), SecurityCodeSize)
	case w.Group != m.Group || w.Epoch != m.Epoch:
		return fmt.Errorf("the wrapped code is of another epoch, %s/%d", w.Group, w.Epoch)
	case len(w.Public) > maxWrapped || len(w.Duplicate) > maxWrapped || len(w.Seed) > maxWrapped:
		return fmt.Errorf("the wrapped code is too long")
	}
	return nil
}

// CodeRetire has a terminal forget the codes of epochs that are no longer
// accepted, as far as it holds them.
type CodeRetire struct {
	Group  Name     `cbor:"1,keyasint"`
	Epochs []uint32 `cbor:"2,keyasint"` // ascending, 1 to MaxRetired
}

// Check refuses what no server of ours sends.
func (m *CodeRetire) Check() error {
	if _, err := ParseName(string(m.Group)); err != nil {
		return fmt.Errorf("group: %w", err)
	}
	if n := len(m.Epochs); n == 0 || n > MaxRetired {
		return fmt.Errorf("%d epochs, it must be 1 to %d", n, MaxRetired)
	}
	last := uint32(0)
	for _, e := range m.Epochs {
		if e <= last {
			return fmt.Errorf("epochs %v do not ascend from 1", m.Epochs)
		}
		last = e
	}
	return nil
}
