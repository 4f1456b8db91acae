package store

import (
	"time"

	"github.com/kagimori/kagimori/transport"
)

// An AuditEntry says who did what to what.
type AuditEntry struct {
	Seq    int64
	Time   time.Time
	Actor  string
	Action string // noun.verb: terminal.remove
	Object string
	Detail string
}

// Audit appends an entry with the transaction's actor and time. It is written
// in the transaction of what it tells, so neither is there without the other.
func (t *Tx) Audit(action, object, detail string) error {
	_, err := t.exec(`INSERT INTO audit (time, actor, action, object, detail) VALUES (?, ?, ?, ?, ?)`,
		t.now(), t.by.Actor, action, object, detail)
	return err
}

// AuditAfter lists up to limit entries that follow seq, oldest first.
func (t *Tx) AuditAfter(seq int64, limit int) ([]AuditEntry, error) {
	return all(t, func(r scanner) (e AuditEntry, err error) {
		var at int64
		err = r.Scan(&e.Seq, &at, &e.Actor, &e.Action, &e.Object, &e.Detail)
		e.Time = fromMillis(at)
		return e, err
	}, `SELECT seq, time, actor, action, object, detail FROM audit WHERE seq > ? ORDER BY seq LIMIT ?`, seq, limit)
}

// AddBundle records that a bundle was made; its contents are not kept.
func (t *Tx) AddBundle(b *transport.Bundle) error {
	_, err := t.exec(`INSERT INTO bundles (id, kind, group_name, epoch, terminal, issued, actor, time) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
		b.ID[:], b.Kind, b.Group, b.Epoch, nullable(b.Terminal), b.Issued*1000, t.by.Actor, t.now())
	return err
}
