package store

import "errors"

// What can be wrong with a store. Each says what to do next.
var (
	// ErrLocked: one store has one daemon.
	ErrLocked = errors.New("another daemon has this store open: stop that one first, or give this one a state directory of its own")
	// ErrDamaged: the file, or one value in it, is not what was written. Returned
	// by Get for one record, by Open for the whole file.
	ErrDamaged = errors.New("the store is damaged: keep the file for inspection, put back a backup of it, or move the state directory away and enroll anew")
	// ErrNewer: a store is never opened by a program older than the one that
	// wrote it.
	ErrNewer = errors.New("the store was written by a newer release: install that release again, or one that is newer still")
	// ErrForeign: the store key was sealed by another hsm module.
	ErrForeign = errors.New("the store was sealed by another TPM or device secret: put that one back, or recover the store key")
	// ErrOlder: the module's counter says that there was a newer file.
	ErrOlder = errors.New("this store file is older than the last one: put back the newest, or accept this one as an administrator")
	// ErrKey: the key given to OpenWith is not this store's.
	ErrKey = errors.New("this is not the key of this store: recover with the key that was kept for this terminal")
	// ErrUnfinished: the key change before this one is not finished. Nothing was
	// changed, and other changes go on.
	ErrUnfinished = errors.New("the last key change could not be finished, so no key can be changed: free space on the disk and see that key storage works")
	// ErrNotBound: Prepare without a bond to the boot.
	ErrNotBound = errors.New("the store is not bound to how the machine was booted: there is nothing to prepare for an update")
	// ErrFull: maxSize is reached, or the disk is full. Nothing was changed.
	ErrFull = errors.New("the store has no room for this: free space on its disk, and look why so many records wait")
	// ErrFailed: the disk failed in a write, and what is on it is uncertain.
	ErrFailed = errors.New("the disk under the store failed: look into the kernel log, then restart the daemon, which reads what is left")
	// ErrClosed: a call after Close.
	ErrClosed = errors.New("the store is closed")
	// ErrName: a bucket or key that is not one. It is a mistake of the caller.
	ErrName = errors.New("a bucket is a-z, 0-9, ., - and /, up to 63 characters, a key 1 to 255 bytes without NUL")
	// ErrReadOnly: a change in a View. It is a mistake of the caller.
	ErrReadOnly = errors.New("this transaction only reads")
	// ErrStop, returned by the function given to Each, ends it without error.
	ErrStop = errors.New("stop")
)
