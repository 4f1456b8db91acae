package hsm

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
)

// An approval as a file: JSON, since people look at it and ship it with an
// update. It has one form: keys in this order, registers by number.
//
//	{"kagimori_boot_approval":1,"registers":[{"register":7,"sha256":"…"}],"signature":"…"}

// MaxApprovalFile bounds one, in bytes; maxSignature an ECDSA signature over P-256.
const (
	MaxApprovalFile = 4 << 10
	maxSignature    = 80
)

// ErrApproval is a file that is no approval.
var ErrApproval = errors.New("not a boot approval")

type approvalFile struct {
	Version   int                `json:"kagimori_boot_approval"`
	Registers []approvalRegister `json:"registers"`
	Signature []byte             `json:"signature"` // base64
}

type approvalRegister struct {
	Register int    `json:"register"`
	SHA256   string `json:"sha256"` // lower-case hexadecimal
}

// FormatApproval writes an approval as a file.
func FormatApproval(a Approval) ([]byte, error) {
	f := approvalFile{Version: 1, Signature: a.Signature}
	for _, n := range slices.Sorted(maps.Keys(a.Values)) {
		v := a.Values[n]
		f.Registers = append(f.Registers, approvalRegister{n, hex.EncodeToString(v[:])})
	}
	data, err := json.Marshal(f)
	if err != nil {
		return nil, err
	}
	return append(data, '\n'), nil
}

// ParseApproval reads what FormatApproval wrote, to the byte, but for white space
// around it. It does not check the signature. It fails with ErrApproval.
func ParseApproval(data []byte) (a Approval, err error) {
	if len(data) > MaxApprovalFile {
		return a, fmt.Errorf("%w: more than %d bytes", ErrApproval, MaxApprovalFile)
	}
	var f approvalFile
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return a, fmt.Errorf("%w: %w", ErrApproval, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return a, fmt.Errorf("%w: something follows it", ErrApproval)
	}
	switch {
	case f.Version != 1:
		return a, fmt.Errorf("%w: version %d", ErrApproval, f.Version)
	case len(f.Registers) == 0 || len(f.Registers) > MaxBootPCRs:
		return a, fmt.Errorf("%w: %d registers", ErrApproval, len(f.Registers))
	case len(f.Signature) == 0 || len(f.Signature) > maxSignature:
		return a, fmt.Errorf("%w: a signature of %d bytes", ErrApproval, len(f.Signature))
	}
	a = Approval{Values: PCRs{}, Signature: f.Signature}
	for _, r := range f.Registers {
		v, err := ParsePCR(strconv.Itoa(r.Register) + "=" + r.SHA256)
		if err != nil {
			return Approval{}, fmt.Errorf("%w: %w", ErrApproval, err)
		}
		maps.Copy(a.Values, v)
	}
	again, err := FormatApproval(a)
	if err != nil || !bytes.Equal(bytes.TrimSpace(again), bytes.TrimSpace(data)) {
		return Approval{}, fmt.Errorf("%w: not in its one form", ErrApproval)
	}
	return a, nil
}

// ParsePCR reads "7=<64 hexadecimal digits>".
func ParsePCR(s string) (PCRs, error) {
	number, value, ok := bytes.Cut([]byte(s), []byte("="))
	n, err := strconv.Atoi(string(number))
	if !ok || err != nil || n < 0 || n >= PCRCount {
		return nil, fmt.Errorf("%q is not REGISTER=HEX, with a register from 0 to %d", s, PCRCount-1)
	}
	v, err := hex.DecodeString(string(value))
	if err != nil || len(v) != 32 {
		return nil, fmt.Errorf("%q: a value has 64 hexadecimal digits", s)
	}
	return PCRs{n: [32]byte(v)}, nil
}

// Empty says whether nothing was ever measured into a register: it holds zeros,
// or ones, as those of a dynamic launch do before there was one.
func (p PCRs) Empty(register int) bool {
	v := p[register]
	return v == [32]byte{} || !slices.ContainsFunc(v[:], func(b byte) bool { return b != 0xff })
}
