package store

import (
	"context"
	"time"

	"github.com/kagimori/kagimori/hsm"
)

// Config is what a daemon decides about its store. Only Path must be set.
type Config struct {
	// Path is the file; its directory must exist. Beside it stand PATH.lock,
	// PATH.copy, and PATH.broken-N when a broken file was kept.
	Path string
	// Keys names the buckets whose change is a key change. PutBlob and
	// DeleteBlob always are one. A key change costs a second copy of the file
	// and a step of the module's counter. A bucket that became one stays one,
	// also for a program that does not name it.
	Keys []string
	// Check looks at a file before it is used, at best in another process, which
	// a damaged file may end. It returns ErrDamaged for one that cannot be used;
	// another error means that it could not look, and then the pages are checked
	// in this process, as they are when Check is nil.
	Check func(ctx context.Context, path string) error
	// Boot binds the store key to how the machine was booted; nil binds it to
	// the module only.
	Boot *Boot
	// Accept has OpenWith take an older file, as AcceptOlder does.
	Accept bool

	step func(string)                  // tells a test of each durable step
	link func(path, name string) error // a test's; nil is os.Link
}

// Boot is a bond to measurements. The module must be an hsm.BootSealer, and
// something must have been measured: else the store is bound to the module only
// and State says so.
type Boot struct {
	Policy hsm.BootPolicy
	// Approvals gives what the authority signed, when Policy has an Authority.
	Approvals func() ([]hsm.Approval, error)
}

// State is what a store says of itself. It holds no secret.
type State struct {
	// Epoch counts the key changes. Counter is the module's counter as an epoch:
	// equal, or one less when the last key change is not finished. It is nil when
	// there is none; then Unprotected says why.
	Epoch   uint64  `json:"epoch"`
	Counter *uint64 `json:"counter,omitempty"`
	// RollbackProof: an older file is refused, also from somebody who may write
	// everything on the disk. If it is false, Unprotected says why.
	RollbackProof bool   `json:"rollback_proof"`
	Unprotected   string `json:"unprotected,omitempty"`
	// Bond is what the store key is bound to, by the weakest of the slots:
	// "device secret", "chip", "boot" or "boot, signed".
	Bond string `json:"bond"`
	// Weaker is why the store key is not bound as Config.Boot wants it, "" when it
	// is. NotMeasured is the usual reason: nothing is measured on this machine.
	Weaker      string `json:"weaker,omitempty"`
	NotMeasured bool   `json:"not_measured,omitempty"`
	// Incarnation counts how often something was lost: a fall back to the second
	// copy, an older file accepted, a key recovered under a new counter.
	Incarnation uint32 `json:"incarnation"`
	// Fallback is the last of these, until ClearFallback.
	Fallback *Fallback `json:"fallback,omitempty"`
	// CopyFresh: the second copy is verified and of this epoch. Unfinished is why
	// the last key change is not finished, "" when it is.
	CopyFresh  bool   `json:"copy_fresh"`
	Unfinished string `json:"unfinished,omitempty"`
	Slots      []Slot `json:"slots"`
}

// Fallback is a loss.
type Fallback struct {
	At   time.Time `json:"at" cbor:"1,keyasint"`
	Kept string    `json:"kept,omitempty" cbor:"2,keyasint,omitempty"` // the file that is not used any more
	Lost string    `json:"lost" cbor:"3,keyasint"`                     // in plain words
	Way  Way       `json:"way,omitempty" cbor:"4,keyasint,omitempty"`
}

// Way is how a store went on after a loss.
type Way string

// The ways: with the second copy, with a file that an administrator accepted, with
// a key that was recovered and a file that no counter vouches for.
const (
	WayCopy      Way = "copy"
	WayAccepted  Way = "accepted"
	WayRecovered Way = "recovered"
)

// Slot is one sealing of the store key.
type Slot struct {
	Name      string `json:"name"`                // "chip", "boot" or "boot-next"
	Registers []int  `json:"registers,omitempty"` // PCRs it is bound to
	Signed    bool   `json:"signed,omitempty"`    // by what an authority approves
	Opened    bool   `json:"opened"`              // it is the one that opened, or was proven to
}
