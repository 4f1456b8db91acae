package keycopy

// CPACE-RISTR255-SHA512 of draft-irtf-cfrg-cpace-21, initiator/responder
// setting (transcript_ir). A run of cpace yields ISK once; the shared element K
// and the scalar never leave this file. Names are the draft's.

import (
	"crypto/sha512"
	"errors"
	"fmt"
	"io"

	"github.com/gtank/ristretto255"

	"github.com/kagimori/kagimori/transport"
)

const (
	cpaceDSI    = "CPaceRistretto255"
	cpaceDSIISK = cpaceDSI + "_ISK"
	iskSize     = sha512.Size // bytes of ISK
)

var (
	errPoint = errors.New("not a valid share")
	errSpent = errors.New("this CPace state is spent")
)

// cpace is one side's ephemeral state. It serves one finish.
type cpace struct {
	sid   []byte
	y     *ristretto255.Scalar // nil when spent
	share transport.KeycopyPoint
}

// startCPace draws a scalar from random and computes the share to send.
func startCPace(random io.Reader, prs, ci, sid []byte) (*cpace, error) {
	var uniform [64]byte
	defer clear(uniform[:])
	if _, err := io.ReadFull(random, uniform[:]); err != nil {
		return nil, fmt.Errorf("draw scalar: %w", err)
	}
	y, err := ristretto255.NewScalar().SetUniformBytes(uniform[:])
	if err != nil {
		return nil, fmt.Errorf("draw scalar: %w", err)
	}
	return newCPace(y, prs, ci, sid), nil
}

func newCPace(y *ristretto255.Scalar, prs, ci, sid []byte) *cpace {
	g := cpaceGenerator(prs, ci, sid)
	share := ristretto255.NewIdentityElement().ScalarMult(y, g)
	*g = *ristretto255.NewIdentityElement() // g is a test of the operator code
	return &cpace{sid: sid, y: y, share: transport.KeycopyPoint(share.Bytes())}
}

// initiate finishes the initiator's side: ada went out with its share.
func (c *cpace) initiate(ada []byte, yb transport.KeycopyPoint, adb []byte) ([]byte, error) {
	return c.finish(yb, c.share, ada, yb, adb)
}

// respond finishes the responder's side: adb goes out with its share.
func (c *cpace) respond(ya transport.KeycopyPoint, ada, adb []byte) ([]byte, error) {
	return c.finish(ya, ya, ada, c.share, adb)
}

// finish consumes the state. Aborting on the identity is the draft's rule
// [CPACE-6.2]: the identity would make ISK independent of the codes.
func (c *cpace) finish(peer, ya transport.KeycopyPoint, ada []byte, yb transport.KeycopyPoint, adb []byte) ([]byte, error) {
	if c.y == nil {
		return nil, errSpent
	}
	defer c.wipe()
	k, err := scalarMultVfy(c.y, peer[:])
	if err != nil {
		return nil, err
	}
	defer clear(k)
	// lv_cat(DSI, sid, K) ‖ transcript_ir is one lv_cat, and so one buffer to wipe.
	input := lvCat([]byte(cpaceDSIISK), c.sid, k, ya[:], ada, yb[:], adb)
	defer clear(input)
	isk := sha512.Sum512(input)
	return isk[:], nil
}

func (c *cpace) wipe() {
	if c != nil && c.y != nil {
		*c.y = *ristretto255.NewScalar()
		c.y = nil
	}
}

// scalarMultVfy is the draft's G.scalar_mult_vfy, with an error for the
// identity result.
func scalarMultVfy(y *ristretto255.Scalar, peer []byte) ([]byte, error) {
	p, err := ristretto255.NewIdentityElement().SetCanonicalBytes(peer)
	if err != nil {
		return nil, errPoint
	}
	p.ScalarMult(y, p)
	if p.Equal(ristretto255.NewIdentityElement()) == 1 {
		return nil, errPoint
	}
	return p.Bytes(), nil
}

// cpaceGenerator is the draft's calculate_generator: generator_string padded so
// that PRS fills the first SHA-512 block, hashed, mapped to the group.
func cpaceGenerator(prs, ci, sid []byte) *ristretto255.Element {
	pad := max(0, sha512.BlockSize-1-len(lvCat(prs))-len(lvCat([]byte(cpaceDSI))))
	input := lvCat([]byte(cpaceDSI), prs, make([]byte, pad), ci, sid)
	defer clear(input)
	h := sha512.Sum512(input)
	defer clear(h[:])
	g, err := ristretto255.NewIdentityElement().SetUniformBytes(h[:])
	if err != nil {
		panic(err) // h has the one length there is
	}
	return g
}

// lvCat is the draft's lv_cat: each part with its length before it in LEB128.
func lvCat(parts ...[]byte) []byte {
	size := 0
	for _, p := range parts {
		size += len(p) + 2 // no part here is longer than 2^14-1
	}
	out := make([]byte, 0, size)
	for _, p := range parts {
		n := len(p)
		for ; n >= 0x80; n >>= 7 {
			out = append(out, byte(n)|0x80)
		}
		out = append(out, byte(n))
		out = append(out, p...)
	}
	return out
}
