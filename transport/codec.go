package transport

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"github.com/fxamacker/cbor/v2"
)

// ErrMalformed is any message that is not the one encoding of what it says.
var ErrMalformed = errors.New("malformed message")

// Raw is an encoded CBOR item that is decoded later.
type Raw = cbor.RawMessage

var encMode, decMode = modes()

func modes() (cbor.UserBufferEncMode, cbor.DecMode) {
	enc, err := cbor.EncOptions{
		Sort:          cbor.SortCoreDeterministic,
		ShortestFloat: cbor.ShortestFloat16,
		NaNConvert:    cbor.NaNConvertReject,
		InfConvert:    cbor.InfConvertReject,
		IndefLength:   cbor.IndefLengthForbidden,
		TagsMd:        cbor.TagsForbidden,
		NilContainers: cbor.NilContainerAsEmpty,
	}.UserBufferEncMode()
	if err != nil {
		panic(err) // the options above are constants
	}
	dec, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		MaxNestedLevels:   maxDepth,
		MaxArrayElements:  maxElements,
		MaxMapPairs:       maxElements,
		UTF8:              cbor.UTF8RejectInvalid,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
	}.DecMode()
	if err != nil {
		panic(err)
	}
	return enc, dec
}

// Sizes of the buffers that are encoded into, in bytes: most messages fit the
// first, and what has become larger than the second is not kept.
const (
	scratchSize = 8 << 10
	scratchMax  = 128 << 10
)

// scratches are buffers full of zeros. The library's own pool would keep what
// was encoded, secrets included.
var scratches = sync.Pool{New: func() any { return bytes.NewBuffer(make([]byte, 0, scratchSize)) }}

// encoded lends the encoding of v to use, and wipes it.
func encoded(v any, size int, use func([]byte)) error {
	b := scratches.Get().(*bytes.Buffer)
	b.Grow(size)
	err := encMode.MarshalToBuffer(v, b)
	if err == nil {
		use(b.Bytes())
	}
	clear(b.Bytes())
	b.Reset()
	if b.Cap() <= scratchMax {
		scratches.Put(b)
	}
	return err
}

// Marshal encodes v deterministically (RFC 8949 §4.2.1).
func Marshal(v any) (data []byte, err error) {
	err = encoded(v, 0, func(b []byte) { data = append(make([]byte, 0, len(b)), b...) })
	return data, err
}

// Unmarshal decodes data into v. It refuses more than limit bytes, anything
// after the item, unknown fields, and every encoding but the one that Marshal
// gives for the decoded value; all of these are ErrMalformed.
func Unmarshal(data []byte, v any, limit int) error {
	if len(data) > limit {
		return fmt.Errorf("%w: %d bytes, the limit is %d", ErrMalformed, len(data), limit)
	}
	if err := decMode.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	same := false
	if err := encoded(v, len(data), func(again []byte) { same = bytes.Equal(again, data) }); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if !same {
		return fmt.Errorf("%w: not the deterministic encoding", ErrMalformed)
	}
	return nil
}
