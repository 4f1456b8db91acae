package store

import (
	"math/big"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// CredentialState is where a credential is in its life.
type CredentialState string

const (
	CredentialOrdered   CredentialState = "ordered"   // its terminal is told to make a key
	CredentialActive    CredentialState = "active"    // in force until it expires
	CredentialRefused   CredentialState = "refused"   // the terminal would not or could not
	CredentialWithdrawn CredentialState = "withdrawn" // the order was taken back before it was obeyed
	CredentialRevoked   CredentialState = "revoked"   // refused by gates, for good
)

// A Credential is a management record (req: L1), less its holders.
type Credential struct {
	ID        transport.Name
	Kind      transport.CredentialKind
	Service   transport.Name // the destination
	Subject   transport.Name
	Usage     transport.Usage
	Transfer  transport.Transfer
	ChipOnly  bool
	Serial    *big.Int // of the newest certificate; nil before there is one
	Expires   time.Time
	State     CredentialState
	Operation string // what was done last
	Operated  time.Time
}

const credentialColumns = `id, kind, service, subject, usage, transfer, chip_only, serial, expires, state, operation, operated`

func scanCredential(r scanner) (c Credential, err error) {
	var chipOnly, expires, operated int64
	var serial []byte
	err = r.Scan(&c.ID, &c.Kind, &c.Service, &c.Subject, &c.Usage, &c.Transfer, &chipOnly, &serial, &expires, &c.State, &c.Operation, &operated)
	c.ChipOnly = chipOnly != 0
	c.Expires, c.Operated = fromMillis(expires), fromMillis(operated)
	if serial != nil {
		c.Serial = new(big.Int).SetBytes(serial)
	}
	return c, err
}

// AddCredential adds an ordered credential. ErrExists: the service has one with
// this subject and usage that is ordered or in force (req: L6).
func (t *Tx) AddCredential(c Credential) error {
	chipOnly := 0
	if c.ChipOnly {
		chipOnly = 1
	}
	_, err := t.exec(`INSERT INTO credentials (`+credentialColumns+`, actor, time) VALUES (?, ?, ?, ?, ?, ?, ?, NULL, 0, ?, ?, ?, ?, ?)`,
		c.ID, c.Kind, c.Service, c.Subject, c.Usage, c.Transfer, chipOnly, CredentialOrdered, c.Operation, t.now(), t.by.Actor, t.now())
	return err
}

// Credential finds one by id.
func (t *Tx) Credential(id transport.Name) (Credential, error) {
	return get(t, scanCredential, `SELECT `+credentialColumns+` FROM credentials WHERE id = ?`, id)
}

// CredentialAt finds the one that is ordered or in force for a place at a service.
func (t *Tx) CredentialAt(service, subject transport.Name, usage transport.Usage) (Credential, error) {
	return get(t, scanCredential, `SELECT `+credentialColumns+` FROM credentials
		WHERE service = ? AND subject = ? AND usage = ? AND state IN ('ordered', 'active')`, service, subject, usage)
}

// CredentialIssued puts a certificate in force for a credential that is
// ordered.
func (t *Tx) CredentialIssued(id transport.Name, serial *big.Int, expires time.Time) error {
	return mustChange(t.exec(`UPDATE credentials SET serial = ?, expires = ?, state = 'active', operated = ?, actor = ?, time = ?
		WHERE id = ? AND state = 'ordered'`, serialBytes(serial), toMillis(expires), t.now(), t.by.Actor, t.now(), id))
}

// CredentialRenewed puts another certificate in force for a credential that is
// active.
func (t *Tx) CredentialRenewed(id transport.Name, serial *big.Int, expires time.Time, operation string) error {
	return mustChange(t.exec(`UPDATE credentials SET serial = ?, expires = ?, operation = ?, operated = ?, actor = ?, time = ?
		WHERE id = ? AND state = 'active'`, serialBytes(serial), toMillis(expires), operation, t.now(), t.by.Actor, t.now(), id))
}

// SetTransfer records another rule for a credential's transfer.
func (t *Tx) SetTransfer(id transport.Name, transfer transport.Transfer, operation string) error {
	return mustChange(t.exec(`UPDATE credentials SET transfer = ?, operation = ?, operated = ?, actor = ?, time = ? WHERE id = ?`,
		transfer, operation, t.now(), t.by.Actor, t.now(), id))
}

// SetCredential records a state and the operation that led to it.
func (t *Tx) SetCredential(id transport.Name, state CredentialState, operation string) error {
	return mustChange(t.exec(`UPDATE credentials SET state = ?, operation = ?, operated = ?, actor = ?, time = ? WHERE id = ?`,
		state, operation, t.now(), t.by.Actor, t.now(), id))
}
