package keycopy

// The codes that operators have used here, so that nobody makes a habit of one.

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/kagimori/kagimori/hsm"
)

// usedKept is how many typed codes are remembered.
const usedKept = 20

// tagLabel keeps the tags apart from whatever else is computed under the key.
const tagLabel = "keycopy/1 code tag\x00"

// ErrUsedCode is a typed code that was used before, or, once in 3,000 times, one
// that only looks so.
var ErrUsedCode = errors.New("this operator code was used on this terminal before; choose another one at random")

// UsedCodes is kept durably, one for both roles. Its times are AttemptLog's.
type UsedCodes struct {
	Codes []UsedCode `cbor:"1,keyasint"` // the oldest first
}

// A UsedCode is one of them. Tag is too short to find the code by, also for
// whoever can ask key storage for the tag of a guess.
type UsedCode struct {
	Tag   uint16 `cbor:"1,keyasint"`
	At    int64  `cbor:"2,keyasint"` // of its first use
	Spent bool   `cbor:"3,keyasint"` // it may not be typed here again
}

// Tag is what UsedCodes knows a code by. mac is hsm.MACs with a key of its own.
func (c *OperatorCode) Tag(ctx context.Context, mac func(context.Context, []byte) (*hsm.Secret, error)) (uint16, error) {
	message := make([]byte, 0, len(tagLabel)+MaxTypedDigits)
	message = append(append(message, tagLabel...), c.digits.Bytes()...)
	defer clear(message)
	m, err := mac(ctx, message)
	if err != nil {
		return 0, fmt.Errorf("tag of the operator code: %w", err)
	}
	defer m.Wipe()
	return binary.BigEndian.Uint16(m.Bytes()), nil
}

// Check refuses a code that was used before. A Target may be given the same one
// again while it may still be in force at the Source: that is what its attempts
// are counted for.
func (u *UsedCodes) Check(tag uint16, now time.Time) error {
	for _, c := range u.Codes {
		if c.Tag == tag && (c.Spent || now.Sub(time.Unix(min(c.At, now.Unix()), 0)) >= CodeLifetime) {
			return ErrUsedCode
		}
	}
	return nil
}

// Use remembers a code, and with spent that this was its last use.
func (u *UsedCodes) Use(tag uint16, now time.Time, spent bool) {
	for i := range u.Codes {
		if c := &u.Codes[i]; c.Tag == tag && !c.Spent {
			c.Spent = spent
			return
		}
	}
	u.Codes = append(u.Codes, UsedCode{tag, now.Unix(), spent})
	u.Codes = u.Codes[max(0, len(u.Codes)-usedKept):]
}
