package store

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// What callers branch on.
var (
	ErrNotFound = errors.New("not found")
	ErrExists   = errors.New("exists already")
	ErrClosed   = errors.New("the store is closed")
	ErrInUse    = errors.New("another process has this state directory open")
	// ErrWrite is a transaction that the disk or the database refused; nothing
	// of it is kept, and it may be tried again.
	ErrWrite = errors.New("the database cannot be written")
)

// A Problem is an error that people see: Kind is one of the control socket's,
// Next says what to do.
type Problem struct {
	Kind, Next string
	Err        error
}

func (p *Problem) Error() string { return p.Err.Error() }
func (p *Problem) Unwrap() error { return p.Err }

// ProblemKind and NextStep are what the control socket asks for.
func (p *Problem) ProblemKind() string { return p.Kind }
func (p *Problem) NextStep() string    { return p.Next }

// unusable puts what failed while the database in dir was opened or made in the
// terms of Problem.
func unusable(dir string, err error) error {
	if _, ok := errors.AsType[*Problem](err); ok {
		return err
	}
	if isFull(err) {
		return &Problem{Kind: "storage", Next: "free space on its disk, then try again", Err: fmt.Errorf("open database in %s: the disk is full: %w", dir, err)}
	}
	return &Problem{Kind: "storage", Next: "check that the directory and its files belong to the server's user and that the disk works; otherwise restore a backup",
		Err: fmt.Errorf("open database in %s: %w", dir, err)}
}

// isFull says whether the disk had no room, be it for the database or for the
// file that its connections share.
func isFull(err error) bool {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code()&0xff == sqlite3.SQLITE_FULL || e.Code() == sqlite3.SQLITE_IOERR_SHMSIZE
	}
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// isUnique says whether err is a violated UNIQUE or PRIMARY KEY constraint.
// Both drivers say so only in text that is the same in all their versions.
func isUnique(err error) bool {
	return err != nil && (strings.Contains(err.Error(), "UNIQUE constraint failed") || strings.Contains(err.Error(), "SQLSTATE 23505"))
}
