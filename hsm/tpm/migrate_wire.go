package tpm

// A key on its way between chips: hsm.DuplicateSize bytes,
//
//	version 1 | inner key 16 | len 2, TPMT_PUBLIC | len 2, duplicate | len 2, seed | zeros
//
// Lengths are big endian. The duplicate is wrapped to the other chip by the seed,
// and inside that by the inner key, which is worth nothing alone.

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/kagimori/kagimori/hsm"
)

const duplicateVersion = 1

type duplicate struct {
	inner   []byte // the inner wrapper's AES key
	public  []byte // TPMT_PUBLIC of the key
	private []byte // TPM2B_PRIVATE's content
	seed    []byte // TPM2B_ENCRYPTED_SECRET's content
}

// wipe overwrites the inner key.
func (d duplicate) wipe() { clear(d.inner) }

func (d duplicate) encode() ([]byte, error) {
	const heads = 1 + 3*2
	if n := heads + len(d.inner) + len(d.public) + len(d.private) + len(d.seed); len(d.inner) != cfbKeySize || n > hsm.DuplicateSize {
		return nil, fmt.Errorf("encode duplicate: %d bytes, the limit is %d", n, hsm.DuplicateSize)
	}
	b := slices.Grow([]byte{duplicateVersion}, hsm.DuplicateSize)
	b = append(b, d.inner...)
	for _, part := range [][]byte{d.public, d.private, d.seed} {
		b = sized(b, part)
	}
	return append(b, make([]byte, hsm.DuplicateSize-len(b))...), nil
}

// decodeDuplicate takes one apart; the parts are b's own memory. There is one
// encoding of each.
func decodeDuplicate(b []byte) (d duplicate, err error) {
	bad := func(why error) (duplicate, error) {
		return duplicate{}, fmt.Errorf("%w: no key on its way between chips: %v", hsm.ErrBlob, why)
	}
	if len(b) != hsm.DuplicateSize {
		return bad(fmt.Errorf("%d bytes, it must be %d", len(b), hsm.DuplicateSize))
	}
	if b[0] != duplicateVersion {
		return bad(fmt.Errorf("version %d, this program knows %d", b[0], duplicateVersion))
	}
	d.inner = b[1 : 1+cfbKeySize : 1+cfbKeySize]
	rest := b[1+cfbKeySize:]
	for _, part := range []*[]byte{&d.public, &d.private, &d.seed} {
		if *part, rest, err = unsized(rest); err != nil {
			return bad(err)
		}
	}
	if len(bytes.Trim(rest, "\x00")) != 0 {
		return bad(errors.New("something follows it"))
	}
	return d, nil
}
