package tpm

// The storage root key (SRK), parent of all we make: ECC P-256 by the TCG
// template, so the same chip makes the same key again at any time. It stands
// at the handle that TCG set aside for it, if that was free when we came; if
// another key stands there, ours is made at each start (one command) and the
// handle is left alone.

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
)

// rootHandle is where TCG's provisioning guidance puts the SRK.
const rootHandle = tpm2.TPMHandle(0x81000001)

// root is the storage root key in use.
type root struct {
	handle     tpm2.TPMHandle
	public     []byte // TPMT_PUBLIC
	name       []byte // computed from public here, never taken on trust
	persistent bool   // stands at rootHandle; else it must be flushed
}

// id is the digest in the Name of the root key: what blobs are pinned to.
func (r root) id() [hsm.OwnerSize]byte {
	if len(r.name) != 2+hsm.OwnerSize {
		return [hsm.OwnerSize]byte{}
	}
	return [hsm.OwnerSize]byte(r.name[2:])
}

// printID is the beginning of the Name of a root key, as tpm2-tools show it.
func printID(id [hsm.OwnerSize]byte) string { return fmt.Sprintf("000b%x...", id[:8]) }

// findRoot looks for the root key and makes one if need be. Once a key has
// proven itself in this process, it stays the same over all connections.
func (c *chip) findRoot() error {
	free, err := c.readRoot()
	if err != nil {
		return err
	}
	if c.root.handle == 0 {
		if c.root, err = c.makeRoot(); err != nil {
			return err
		}
		if free && !c.noStore {
			c.storeRoot()
		}
	}
	if c.pin == nil {
		return nil
	}
	return c.rootFor(*c.pin)
}

// readRoot takes the key at rootHandle, if there is one by the template; free
// tells that the handle is empty.
func (c *chip) readRoot() (free bool, err error) {
	if c.noStore {
		return false, nil
	}
	_, out, err := c.ask(command{code: tpm2.TPMCCReadPublic, handles: []entity{{handle: rootHandle}}})
	if is(err, tpm2.TPMRCHandle) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("read storage root key: %w", err)
	}
	public, _, err := unsized(out)
	if err != nil || !rootArea().fits(public) {
		c.log.Info("another kind of key stands at the storage root handle: leaving it alone", handleAttr(rootHandle))
		return false, nil
	}
	c.root = newRoot(rootHandle, public, true)
	return false, nil
}

func newRoot(h tpm2.TPMHandle, public []byte, persistent bool) root {
	return root{handle: h, public: public, name: nameOf(public), persistent: persistent}
}

// makeRoot makes the key by the template (TPM2_CreatePrimary) and leaves it loaded.
func (c *chip) makeRoot() (root, error) {
	zero := sized(nil, make([]byte, coordinate)) // the template's x, and its y
	params := sized(nil, []byte{0, 0, 0, 0})     // no auth value, no data
	params = sized(params, slices.Concat(rootArea(), zero, zero))
	params = append(sized(params, nil), 0, 0, 0, 0) // no outside info, no creation PCRs
	handle, out, err := c.ask(command{
		code: tpm2.TPMCCCreatePrimary, handles: []entity{permanent(tpm2.TPMRHOwner)}, auth: noPassword{}, params: params, gives: true,
	})
	if denied(err) {
		return root{}, fmt.Errorf("%w: %s (%v)", hsm.ErrOwnerAuth, ownerAdvice, err)
	}
	if err != nil {
		return root{}, fmt.Errorf("make storage root key: %w", err)
	}
	if err := checkHandle(handle, transient); err != nil {
		return root{}, fmt.Errorf("make storage root key: %w", err)
	}
	public, _, err := unsized(out)
	if err != nil || !rootArea().fits(public) {
		c.flush(handle)
		return root{}, errors.New("make storage root key: the TPM made another kind of key")
	}
	return newRoot(handle, public, false), nil
}

// ownerAdvice is the way on for who knows the password.
const ownerAdvice = "put a storage root key in place with it: " +
	"tpm2_createprimary -C o -P PASSWORD -G ecc256:aes128cfb -c srk.ctx " +
	"-a 'fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt' && " +
	"tpm2_evictcontrol -C o -P PASSWORD -c srk.ctx 0x81000001"

// storeRoot gives the root key its handle, which is free: later starts find it
// there, the kernel need not swap it in and out, and it works on when the owner
// gets a password. It is a gain, not a need: what stands against it is logged.
func (c *chip) storeRoot() {
	_, _, err := c.ask(command{
		code: tpm2.TPMCCEvictControl, handles: []entity{permanent(tpm2.TPMRHOwner), c.root.entity()}, auth: noPassword{},
		params: permanent(rootHandle).name,
	})
	if err != nil {
		c.log.Info("the storage root key stays unstored and is made at each start", "err", err)
		return
	}
	c.log.Info("stored the storage root key", handleAttr(rootHandle))
	c.flush(c.root.handle)
	c.root.handle, c.root.persistent = rootHandle, true
}

// rootFor makes sure that the root key in use is the one that a blob is pinned
// to, before anything is salted to it or loaded under it. There may be two by
// the template: the stored one, which another program may have made with other
// entropy, and our own.
func (c *chip) rootFor(owner [hsm.OwnerSize]byte) error {
	if c.root.id() == owner {
		return nil
	}
	now := c.root
	err := c.otherRoot()
	if c.wire == nil {
		return err
	}
	if err != nil || c.root.id() != owner {
		if c.root.handle != 0 && c.root.handle != now.handle && !c.root.persistent {
			c.flush(c.root.handle)
		}
		c.root = now
		if _, stop := errors.AsType[*stopError](err); stop {
			return err
		}
		return fmt.Errorf("%w: its storage root key should be %s and is %s (see tpm2_readpublic -c %#x); the TPM was cleared or replaced: put the old one back, or have the store's key restored",
			hsm.ErrReplaced, printID(owner), printID(now.id()), uint32(rootHandle))
	}
	c.endSession() // salted to the other root
	c.unload()
	if !now.persistent {
		c.flush(now.handle)
	}
	return nil
}

// otherRoot puts the second candidate in place of the first.
func (c *chip) otherRoot() (err error) {
	if c.root.persistent {
		c.root, err = c.makeRoot()
		return err
	}
	_, err = c.readRoot()
	return err
}

// entity is the root key as a command names it.
func (r root) entity() entity { return entity{r.handle, r.name} }
