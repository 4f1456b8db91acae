package file

// Argon2id (RFC 9106) with its parameters beside what it guards:
//
//	passes 1 | memory in KiB 4 | salt 16
//
// One lane. The parameters are read from files that somebody may have altered,
// so they are bounded before any memory is taken.

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"runtime/debug"

	"golang.org/x/crypto/argon2"

	"github.com/kagimori/kagimori/hsm"
)

const (
	saltSize  = 16
	argonSize = 1 + 4 + saltSize

	// 19 MiB and two passes: the least that is advised, and what fits, twice,
	// under MemoryMax of the unit on the smallest board.
	argonPasses, argonMemory       = 2, 19 << 10
	maxArgonPasses, maxArgonMemory = 8, 32 << 10
	minArgonMemory                 = 1 << 10
)

// argon is what a key is stretched with.
type argon struct {
	passes uint8
	memory uint32 // KiB
	salt   [saltSize]byte
}

func newArgon() argon {
	a := argon{passes: argonPasses, memory: argonMemory}
	rand.Read(a.salt[:])
	return a
}

func (a argon) encode() []byte {
	b := binary.BigEndian.AppendUint32([]byte{a.passes}, a.memory)
	return append(b, a.salt[:]...)
}

func decodeArgon(b []byte) (argon, error) {
	if len(b) != argonSize {
		return argon{}, fmt.Errorf("%w: Argon2id parameters of %d bytes", hsm.ErrBlob, len(b))
	}
	a := argon{passes: b[0], memory: binary.BigEndian.Uint32(b[1:]), salt: [saltSize]byte(b[5:])}
	if a.passes < 1 || a.passes > maxArgonPasses || a.memory < minArgonMemory || a.memory > maxArgonMemory {
		return argon{}, fmt.Errorf("%w: Argon2id with %d passes over %d KiB", hsm.ErrBlob, a.passes, a.memory)
	}
	return a, nil
}

// stretch makes 32 bytes of a passphrase or PIN. It gives the memory back to
// the system: it is more than all the rest of a daemon ever needs.
func (a argon) stretch(secret *hsm.Secret) *hsm.Secret {
	key := argon2.IDKey(secret.Bytes(), a.salt[:], uint32(a.passes), a.memory, 1, 32)
	debug.FreeOSMemory()
	return hsm.NewSecret(key)
}
