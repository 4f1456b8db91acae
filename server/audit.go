package server

import (
	"context"

	"github.com/kagimori/kagimori/server/store"
)

// Who does what is written in the transaction that does it (store.Tx.Audit):
// actions are called noun.verb, objects by their names or ids. Only what was
// proven gets there: strangers must not be able to fill a disk, so what they
// try is logged instead.

// Audit lists up to limit entries that follow seq, oldest first.
func (s *Server) Audit(ctx context.Context, seq int64, limit int) (list []store.AuditEntry, err error) {
	err = s.store.View(ctx, func(tx *store.Tx) error {
		list, err = tx.AuditAfter(seq, limit)
		return err
	})
	return list, err
}
