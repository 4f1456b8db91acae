package transport

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// What a terminal that has never met its server says of its chip, and what the
// server says of it, as files: on a production line they go by hand. JSON, in
// one form each. Nothing in them is secret.
//
//	{"kagimori_chip":1,"storage_key":"…"}
//	{"kagimori_chip_approval":1,"deployment":"…","fleet_key":"…","storage_key":"…","signature":"…"}

// MaxChipFile bounds either, in bytes.
const MaxChipFile = 4 << 10

// ErrChipFile is a file that is none of the two.
var ErrChipFile = errors.New("not a file about a chip")

type chipFile struct {
	Version int    `json:"kagimori_chip"`
	Parent  []byte `json:"storage_key"` // base64
}

type chipApprovalFile struct {
	Version    int    `json:"kagimori_chip_approval"`
	Deployment Name   `json:"deployment"`
	Fleet      []byte `json:"fleet_key"`
	Parent     []byte `json:"storage_key"`
	Signature  []byte `json:"signature"`
}

// FormatChip writes the storage key of a chip as a file.
func FormatChip(parent []byte) ([]byte, error) { return chipLine(chipFile{1, parent}) }

// ParseChip reads what FormatChip wrote, to the byte, but for white space around
// it. It fails with ErrChipFile.
func ParseChip(data []byte) (parent []byte, err error) {
	var f chipFile
	if err := parseChipLine(data, &f); err != nil {
		return nil, err
	}
	if f.Version != 1 || len(f.Parent) == 0 || len(f.Parent) > MaxChipParent {
		return nil, fmt.Errorf("%w: version %d, a storage key of %d bytes", ErrChipFile, f.Version, len(f.Parent))
	}
	return f.Parent, nil
}

// FormatChipApproval writes an approval of a deployment as a file.
func FormatChipApproval(deployment Name, a *ChipApproval) ([]byte, error) {
	return chipLine(chipApprovalFile{1, deployment, a.Fleet, a.Parent, a.Signature})
}

// ParseChipApproval reads what FormatChipApproval wrote, as ParseChip does.
func ParseChipApproval(data []byte) (deployment Name, a *ChipApproval, err error) {
	var f chipApprovalFile
	if err := parseChipLine(data, &f); err != nil {
		return "", nil, err
	}
	a = &ChipApproval{Fleet: f.Fleet, Parent: f.Parent, Signature: f.Signature}
	if err := a.Check(); f.Version != 1 || len(f.Signature) == 0 || err != nil {
		return "", nil, fmt.Errorf("%w: version %d, a signature of %d bytes (%v)", ErrChipFile, f.Version, len(f.Signature), err)
	}
	if deployment, err = ParseName(string(f.Deployment)); err != nil {
		return "", nil, fmt.Errorf("%w: %w", ErrChipFile, err)
	}
	return deployment, a, nil
}

func chipLine(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return append(data, '\n'), nil
}

func parseChipLine[T any](data []byte, f *T) error {
	if len(data) > MaxChipFile {
		return fmt.Errorf("%w: more than %d bytes", ErrChipFile, MaxChipFile)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(f); err != nil {
		return fmt.Errorf("%w: %w", ErrChipFile, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: something follows it", ErrChipFile)
	}
	again, err := chipLine(*f)
	if err != nil || !bytes.Equal(bytes.TrimSpace(again), bytes.TrimSpace(data)) {
		return fmt.Errorf("%w: not in its one form", ErrChipFile)
	}
	return nil
}
