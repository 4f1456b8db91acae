package stories

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"hash"
	"slices"

	"github.com/gtank/ristretto255"
)

// What docs/keycopy.md asks of the other end, and nothing of the packages that
// the programs are made of: CBOR, the derivations, CPace.

// A field is one of a map's, in the order of the keys.
type field struct {
	key   uint64
	value any
}

// fields are a map: of uint64, []byte, string, bool, []any and fields.
type fields []field

func cborHead(major byte, n uint64) []byte {
	major <<= 5
	switch {
	case n < 24:
		return []byte{major | byte(n)}
	case n < 1<<8:
		return []byte{major | 24, byte(n)}
	case n < 1<<16:
		return binary.BigEndian.AppendUint16([]byte{major | 25}, uint16(n))
	}
	return binary.BigEndian.AppendUint32([]byte{major | 26}, uint32(n))
}

func encode(v any) (b []byte) {
	switch v := v.(type) {
	case uint64:
		return cborHead(0, v)
	case []byte:
		return append(cborHead(2, uint64(len(v))), v...)
	case string:
		return append(cborHead(3, uint64(len(v))), v...)
	case bool:
		return []byte{map[bool]byte{false: 0xf4, true: 0xf5}[v]}
	case []any:
		b = cborHead(4, uint64(len(v)))
		for _, e := range v {
			b = append(b, encode(e)...)
		}
		return b
	case fields:
		b = cborHead(5, uint64(len(v)))
		for _, f := range v {
			b = append(append(b, cborHead(0, f.key)...), encode(f.value)...)
		}
		return b
	}
	panic("no CBOR for it")
}

// decode takes one value. What is not in the form of the page does not encode
// to the same bytes again; too little data panics.
func decode(b []byte) (v any, rest []byte) {
	major, n := b[0]>>5, uint64(b[0]&31)
	b = b[1:]
	if size := map[uint64]int{24: 1, 25: 2, 26: 4}[n]; size > 0 && major < 7 {
		n = binary.BigEndian.Uint64(append(make([]byte, 8-size), b[:size]...))
		b = b[size:]
	}
	switch major {
	case 0:
		return n, b
	case 2:
		return slices.Clone(b[:n]), b[n:]
	case 3:
		return string(b[:n]), b[n:]
	case 4:
		list := []any{}
		for ; n > 0; n-- {
			var e any
			e, b = decode(b)
			list = append(list, e)
		}
		return list, b
	case 5:
		m := fields{}
		for ; n > 0; n-- {
			var k, e any
			k, b = decode(b)
			e, b = decode(b)
			m = append(m, field{k.(uint64), e})
		}
		return m, b
	}
	return n == 21, b
}

func decodeMap(b []byte) (fields, error) {
	v, rest := decode(b)
	m, ok := v.(fields)
	if !ok || len(rest) > 0 || !bytes.Equal(encode(m), b) {
		return nil, errors.New("not one map in deterministic form")
	}
	return m, nil
}

func (m fields) get(key uint64) any {
	for _, f := range m {
		if f.key == key {
			return f.value
		}
	}
	return nil
}

func (m fields) bytes(key uint64) []byte { b, _ := m.get(key).([]byte); return b }

// less is the encoding of a map without a field.
func (m fields) less(key uint64) []byte {
	return encode(slices.DeleteFunc(slices.Clone(m), func(f field) bool { return f.key == key }))
}

func sum(parts ...[]byte) []byte { h := sha256.Sum256(bytes.Join(parts, nil)); return h[:] }

func tag(key []byte, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(bytes.Join(parts, nil))
	return h.Sum(nil)
}

func lvCat(parts ...[]byte) (b []byte) {
	for _, p := range parts {
		b = append(binary.AppendUvarint(b, uint64(len(p))), p...)
	}
	return b
}

func expand[H hash.Hash](h func() H, key []byte, label string) []byte {
	b, err := hkdf.Expand(h, key, label, 32)
	if err != nil {
		panic(err)
	}
	return b
}

// labels gives the keys k(l) of a connection.
func labels(mode string, salt []byte, secrets ...[]byte) (func(string) []byte, error) {
	prk, err := hkdf.Extract(sha512.New, bytes.Join(secrets, nil), salt)
	return func(l string) []byte { return expand(sha512.New, prk, "keycopy/1 "+mode+" "+l) }, err
}

func random(n int) []byte { b := make([]byte, n); rand.Read(b); return b }

const dsi = "CPaceRistretto255"

// cpaceShare makes the scalar and the share of the initiator.
func cpaceShare(prs, ci, sid []byte) (y *ristretto255.Scalar, share []byte, err error) {
	pad := make([]byte, max(0, 128-1-len(lvCat(prs))-len(lvCat([]byte(dsi)))))
	h := sha512.Sum512(lvCat([]byte(dsi), prs, pad, ci, sid))
	g, err := ristretto255.NewIdentityElement().SetUniformBytes(h[:])
	if err != nil {
		return nil, nil, err
	}
	if y, err = ristretto255.NewScalar().SetUniformBytes(random(64)); err != nil {
		return nil, nil, err
	}
	return y, ristretto255.NewIdentityElement().ScalarMult(y, g).Bytes(), nil
}

// cpaceKey is ISK with transcript_ir.
func cpaceKey(y *ristretto255.Scalar, sid, ya, ada, yb, adb []byte) ([]byte, error) {
	p, err := ristretto255.NewIdentityElement().SetCanonicalBytes(yb)
	if err != nil {
		return nil, err
	}
	k := ristretto255.NewIdentityElement().ScalarMult(y, p)
	if k.Equal(ristretto255.NewIdentityElement()) == 1 {
		return nil, errors.New("the product is the identity")
	}
	isk := sha512.Sum512(slices.Concat(lvCat([]byte(dsi+"_ISK"), sid, k.Bytes()), lvCat(ya, ada), lvCat(yb, adb)))
	return isk[:], nil
}
