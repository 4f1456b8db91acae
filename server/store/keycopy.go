package store

import (
	"fmt"
	"strings"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// A KeycopyEnd is what one end of a key copy says of it. Zero Told: nothing yet.
type KeycopyEnd struct {
	Device   transport.DeviceID
	Terminal transport.Name        // that spoke; empty before
	Mode     transport.KeycopyMode // as it says, like all that follows
	Phase    transport.KeycopyPhase
	At       time.Time // when the codes matched; zero: it does not know
	Changed  time.Time // when it came to Phase; zero: it does not know
	Told     time.Time // when it spoke first, by the server's clock
	Forced   bool      // a person reclaimed or activated
	Total    int       // items
	Odd      string    // what it said later and does not go with that; empty: nothing
}

// KeycopyStatus says how the versions of the two ends go together.
type KeycopyStatus string

// How they may.
const (
	KeycopyOpen          KeycopyStatus = "open"          // one end has not said enough, or has to go on
	KeycopyConsistent    KeycopyStatus = "consistent"    // nothing is left to do
	KeycopyContradiction KeycopyStatus = "contradiction" // Problems says what
)

// A Keycopy is one transaction between two devices, as both report it.
type Keycopy struct {
	Txn            transport.ID
	Source, Target KeycopyEnd
	Signature      []byte // of the receipt; Signed is what it is over
	Signed         []byte
	Proof          string                // ProofGood, ProofBad, or empty: it cannot be judged
	Settled        transport.KeycopySide // which end may act alone; empty: nobody asked
	SettledAt      time.Time
	Refused        time.Time // when the other end was first told that it may not
	Status         KeycopyStatus
	Problems       []string // codes
	Changed        time.Time

	Seq int64 // 0: not in the database
}

// What Keycopy.Proof may be.
const (
	ProofGood = "good"
	ProofBad  = "bad"
)

// End is one of the two ends.
func (k *Keycopy) End(side transport.KeycopySide) *KeycopyEnd {
	if side == transport.KeycopySource {
		return &k.Source
	}
	return &k.Target
}

// A KeycopyWord is what an end says of one item. Phase is when it said so, 0:
// it has not.
type KeycopyWord struct {
	Phase    transport.KeycopyPhase
	Transfer transport.Transfer
	Taken    bool
}

// A KeycopyItem is one item of a key copy.
type KeycopyItem struct {
	Credential     transport.Name
	Place          int // in the Source's manifest; -1: not known
	Source, Target KeycopyWord
}

// Word is what one of the two ends says.
func (i *KeycopyItem) Word(side transport.KeycopySide) *KeycopyWord {
	if side == transport.KeycopySource {
		return &i.Source
	}
	return &i.Target
}

const (
	keycopyColumns = `seq, txn, source, target, source_terminal, target_terminal, source_mode, target_mode, source_phase, target_phase,
		source_at, target_at, source_changed, target_changed, source_told, target_told, source_forced, target_forced, source_total, target_total,
		source_odd, target_odd, signature, signed, proof, settled, settled_at, refused, status, problems, time`
	selectKeycopies = `SELECT ` + keycopyColumns + ` FROM keycopies `
)

func scanKeycopy(r scanner) (k Keycopy, err error) {
	var txn, source, target []byte
	var at, changed, told, forced [2]int64
	var settledAt, refused, written int64
	var problems string
	a, b := &k.Source, &k.Target
	err = r.Scan(&k.Seq, &txn, &source, &target, &a.Terminal, &b.Terminal, &a.Mode, &b.Mode, &a.Phase, &b.Phase,
		&at[0], &at[1], &changed[0], &changed[1], &told[0], &told[1], &forced[0], &forced[1], &a.Total, &b.Total,
		&a.Odd, &b.Odd, &k.Signature, &k.Signed, &k.Proof, &k.Settled, &settledAt, &refused, &k.Status, &problems, &written)
	if err != nil {
		return k, err
	}
	for i, e := range []*KeycopyEnd{a, b} {
		e.At, e.Changed, e.Told, e.Forced = fromMillis(at[i]), fromMillis(changed[i]), fromMillis(told[i]), forced[i] != 0
	}
	k.SettledAt, k.Refused, k.Changed, k.Problems = fromMillis(settledAt), fromMillis(refused), fromMillis(written), strings.Fields(problems)
	id := idOf(txn)
	if id == nil {
		return k, fmt.Errorf("key copy id of %d bytes in the database", len(txn))
	}
	k.Txn = *id
	if a.Device, err = deviceOf(source); err != nil {
		return k, err
	}
	b.Device, err = deviceOf(target)
	return k, err
}

// Keycopy finds the one between two devices.
func (t *Tx) Keycopy(txn transport.ID, source, target transport.DeviceID) (Keycopy, error) {
	return get(t, scanKeycopy, selectKeycopies+`WHERE txn = ? AND source = ? AND target = ?`, txn[:], source[:], target[:])
}

// KeycopiesWith lists all that go by one id, at most limit: mostly one.
func (t *Tx) KeycopiesWith(txn transport.ID, limit int) ([]Keycopy, error) {
	return all(t, scanKeycopy, selectKeycopies+`WHERE txn = ? ORDER BY seq LIMIT ?`, txn[:], limit)
}

// OpenKeycopies lists those that are open and have a device as an end.
func (t *Tx) OpenKeycopies(device transport.DeviceID) ([]Keycopy, error) {
	return all(t, scanKeycopy, selectKeycopies+`WHERE status = 'open' AND (source = ? OR target = ?) ORDER BY seq`, device[:], device[:])
}

// DeviceGone says whether a device that was a terminal is none any more.
func (t *Tx) DeviceGone(device transport.DeviceID) (bool, error) {
	var known, enrolled int
	err := t.row(`SELECT (SELECT COUNT(*) FROM devices WHERE id = ?), (SELECT COUNT(*) FROM terminals WHERE device = ? AND state = 'enrolled')`,
		[]any{device[:], device[:]}, &known, &enrolled)
	return known > 0 && enrolled == 0, err
}

// KeycopyIDs lists, at most limit, the ids between two, both included.
func (t *Tx) KeycopyIDs(from, to transport.ID, limit int) ([]transport.ID, error) {
	return all(t, func(r scanner) (id transport.ID, err error) {
		var b []byte
		if err = r.Scan(&b); err == nil && copy(id[:], b) != len(id) {
			err = fmt.Errorf("key copy id of %d bytes in the database", len(b))
		}
		return id, err
	}, `SELECT DISTINCT txn FROM keycopies WHERE txn BETWEEN ? AND ? ORDER BY txn LIMIT ?`, from[:], to[:], limit)
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

// AddKeycopy adds one and returns it with its Seq.
func (t *Tx) AddKeycopy(k Keycopy) (Keycopy, error) {
	if k.Status == "" {
		k.Status = KeycopyOpen
	}
	_, err := t.exec(`INSERT INTO keycopies (txn, source, target, source_terminal, target_terminal, source_mode, target_mode, source_phase, target_phase,
			source_at, target_at, source_changed, target_changed, source_told, target_told, source_forced, target_forced, source_total, target_total,
			source_odd, target_odd, proof, settled, settled_at, refused, status, problems, actor, time)
		VALUES (?, ?, ?, '', '', '', '', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '', '', '', '', 0, 0, ?, '', ?, ?)`,
		k.Txn[:], k.Source.Device[:], k.Target.Device[:], k.Status, t.by.Actor, t.now())
	if err != nil {
		return k, err
	}
	added, err := t.Keycopy(k.Txn, k.Source.Device, k.Target.Device)
	if err != nil {
		return k, err
	}
	k.Seq = added.Seq
	return k, t.SetKeycopy(k)
}

// SetKeycopy writes all of a row but its key.
func (t *Tx) SetKeycopy(k Keycopy) error {
	a, b := k.Source, k.Target
	return mustChange(t.exec(`UPDATE keycopies SET source_terminal = ?, target_terminal = ?, source_mode = ?, target_mode = ?, source_phase = ?, target_phase = ?,
			source_at = ?, target_at = ?, source_changed = ?, target_changed = ?, source_told = ?, target_told = ?, source_forced = ?, target_forced = ?,
			source_total = ?, target_total = ?, source_odd = ?, target_odd = ?, signature = ?, signed = ?, proof = ?,
			settled = ?, settled_at = ?, refused = ?, status = ?, problems = ?, actor = ?, time = ? WHERE seq = ?`,
		a.Terminal, b.Terminal, a.Mode, b.Mode, a.Phase, b.Phase, toMillis(a.At), toMillis(b.At), toMillis(a.Changed), toMillis(b.Changed),
		toMillis(a.Told), toMillis(b.Told), flag(a.Forced), flag(b.Forced), a.Total, b.Total, a.Odd, b.Odd, nullableBytes(k.Signature), nullableBytes(k.Signed), k.Proof,
		k.Settled, toMillis(k.SettledAt), toMillis(k.Refused), k.Status, strings.Join(k.Problems, " "), t.by.Actor, t.now(), k.Seq))
}

func nullableBytes(b []byte) any {
	if len(b) == 0 {
		return nil
	}
	return b
}

// A KeycopyLoad is how much a device has said of key copies.
type KeycopyLoad struct {
	Transactions int // that it spoke of first since a time
	Items        int // of them
	Unfinished   int // of all, those that are not consistent
}

// KeycopyLoadOf measures what a device has said.
func (t *Tx) KeycopyLoadOf(device transport.DeviceID, since time.Time) (l KeycopyLoad, err error) {
	for _, side := range []string{"source", "target"} {
		var part KeycopyLoad
		// side is one of two words here, and no value from outside.
		err = t.row(`SELECT COUNT(*), COALESCE(SUM(`+side+`_total), 0) FROM keycopies WHERE `+side+` = ? AND `+side+`_told > ?`,
			[]any{device[:], toMillis(since)}, &part.Transactions, &part.Items)
		if err != nil {
			return l, err
		}
		err = t.row(`SELECT COUNT(*) FROM keycopies WHERE `+side+` = ? AND `+side+`_told > 0 AND status <> 'consistent'`, []any{device[:]}, &part.Unfinished)
		if err != nil {
			return l, err
		}
		l.Transactions, l.Items, l.Unfinished = l.Transactions+part.Transactions, l.Items+part.Items, l.Unfinished+part.Unfinished
	}
	return l, nil
}

// DropKeycopies forgets the oldest that a device spoke of and that are
// consistent, but for the newest keep of each side; nobody else's that are open
// go with them. The audit log and the holdings remember what they came to.
func (t *Tx) DropKeycopies(device transport.DeviceID, keep int) error {
	for _, side := range []string{"source", "target"} {
		old, err := all(t, func(r scanner) (seq int64, err error) {
			err = r.Scan(&seq)
			return seq, err
		}, `SELECT seq FROM keycopies WHERE `+side+` = ? AND `+side+`_told > 0 AND status = 'consistent' ORDER BY seq DESC LIMIT 16 OFFSET ?`, device[:], keep)
		if err != nil {
			return err
		}
		for _, seq := range old {
			if _, err := t.exec(`DELETE FROM keycopy_items WHERE keycopy = ?`, seq); err != nil {
				return err
			}
			if _, err := t.exec(`DELETE FROM keycopies WHERE seq = ?`, seq); err != nil {
				return err
			}
		}
	}
	return nil
}

// Keycopies lists key copies; the key is the order in which the server heard of
// them. now is for the words of terminals.
func (t *Tx) Keycopies(q Query) (list []Keycopy, next string, err error) {
	const of = `(source_terminal = ? OR target_terminal = ? OR source IN (SELECT device FROM terminals WHERE name = ?)
		OR target IN (SELECT device FROM terminals WHERE name = ?))`
	return page(t, listing{
		table: "keycopies", columns: keycopyColumns, key: "seq",
		sort: map[string]string{"status": "status", "changed": "time", "source": "source_terminal", "target": "target_terminal"},
		filter: map[string]string{"terminal": of,
			"credential": `seq IN (SELECT keycopy FROM keycopy_items WHERE credential = ?)`},
		words: map[string]map[string]string{"status": column("status", KeycopyOpen, KeycopyConsistent, KeycopyContradiction),
			"mode": modes(transport.KeycopyPAKE, transport.KeycopyDirect, transport.KeycopyKEK)},
	}, q, scanKeycopy)
}

func modes(values ...transport.KeycopyMode) map[string]string {
	words := map[string]string{}
	for _, v := range values {
		words[string(v)] = fmt.Sprintf("(source_mode = '%s' OR target_mode = '%s')", v, v)
	}
	return words
}
