package tpm

// TPM2_GetCapability: what the chip says of itself (Part 3, 30.2). It needs no
// authorisation, so it counts nothing and works while the chip is locked out.

import (
	"encoding/binary"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// handles are at most count of those in use, from first on.
func (c *chip) handles(first tpm2.TPMHandle, count uint32) (map[tpm2.TPMHandle]bool, error) {
	list, err := c.capability(tpm2.TPMCapHandles, uint32(first), count, 4)
	if err != nil {
		return nil, err
	}
	found := map[tpm2.TPMHandle]bool{}
	for ; len(list) > 0; list = list[4:] {
		found[tpm2.TPMHandle(binary.BigEndian.Uint32(list))] = true
	}
	return found, nil
}

// properties are the values among the count properties from first on (TPM_PT,
// Part 2, 6.13).
func (c *chip) properties(first uint32, count uint32) (map[uint32]uint32, error) {
	list, err := c.capability(tpm2.TPMCapTPMProperties, uint32(first), count, 8)
	if err != nil {
		return nil, err
	}
	found := map[uint32]uint32{}
	for ; len(list) > 0; list = list[8:] {
		found[uint32(binary.BigEndian.Uint32(list))] = binary.BigEndian.Uint32(list[4:])
	}
	return found, nil
}

// capability returns a list of one kind, of entries of size bytes.
func (c *chip) capability(kind tpm2.TPMCap, first, count uint32, size int) ([]byte, error) {
	be := binary.BigEndian
	_, b, err := c.ask(command{
		code:   tpm2.TPMCCGetCapability,
		params: be.AppendUint32(be.AppendUint32(be.AppendUint32(nil, uint32(kind)), first), count),
	})
	if err != nil {
		return nil, fmt.Errorf("ask the TPM what it has: %w", err)
	}
	const head = 1 + 4 + 4 // more data, kind, number of entries
	if len(b) < head || be.Uint32(b[1:]) != uint32(kind) || uint64(be.Uint32(b[5:]))*uint64(size) != uint64(len(b)-head) {
		return nil, errResponse
	}
	return b[head:], nil
}
