package file

// What this key storage is worth, for the person who must sign for it.

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kagimori/kagimori/hsm"
)

// NotRollbackProof is the note of every module of this package.
const NotRollbackProof = "not rollback-proof: whoever can write the disk can put an older file back"

// Health says what the level protects and what not.
func (m *Module) Health(ctx context.Context) (hsm.Health, error) {
	h := hsm.Health{Level: hsm.LevelFile}
	err := m.use(ctx, func() error {
		h.Notes = append(h.Notes, m.reach(), m.origin())
		return nil
	})
	if err != nil {
		return hsm.Health{}, fmt.Errorf("examine key storage: %w", err)
	}
	h.Notes = append(h.Notes, NotRollbackProof,
		"keys are in this machine's memory while they are used: who is root on the running machine can copy them")
	if n, err := m.readTries(ctx); err != nil {
		h.Notes = append(h.Notes, err.Error())
	} else if n > 0 {
		h.Notes = append(h.Notes, fmt.Sprintf("%d of %d wrong PINs are counted", n, maxTries))
	}
	return h, nil
}

// reach says whom it holds back. m.mu is held.
func (m *Module) reach() string {
	if m.guarded {
		return "protects a copied file, a backup and a machine that is switched off, as well as the passphrase is hard to guess; copies made before the passphrase was set need none"
	}
	return "protects a copied file, a backup, or a card whose device secret is elsewhere; no passphrase is set, so who has the whole machine or its disk has the keys"
}

// origin says where the device secret comes from. m.mu is held.
func (m *Module) origin() string {
	switch {
	case m.source.credential != "":
		return fmt.Sprintf("the device secret is the systemd credential %q; encrypted for the host alone, its key lies on the same disk as the state", m.source.credential)
	case sameDir(filepath.Dir(m.source.path), m.place.dir) && m.guarded:
		return "the device secret lies in the same directory as the state: a copy of the directory is a copy of the keys to whoever knows the passphrase"
	case sameDir(filepath.Dir(m.source.path), m.place.dir):
		return "the device secret lies in the same directory as the state: a copy of the directory is a copy of the keys"
	}
	return fmt.Sprintf("the device secret lies apart from the state, in %s: keep it out of the same backup", m.source.path)
}

func sameDir(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}
