package store

import (
	"math/big"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// A Certificate is one that an issuing CA has signed. Terminal is set for an
// identity, Credential for a service's; neither for this server's own.
type Certificate struct {
	Serial     *big.Int
	Issuer     string
	Terminal   transport.Name
	Credential transport.Name
	Device     transport.DeviceID // whose key it certifies; zero for this server's own
	DER        []byte
	NotAfter   time.Time
	Revoked    time.Time // zero: it is not
	Reason     int       // RFC 5280 §5.3.1
}

// serialSize is that of every serial in bytes: serials are 128 bits.
const serialSize = 16

// serialBytes is the fixed-width form that the tables have; a serial that is
// not one of ours is in no table.
func serialBytes(serial *big.Int) []byte {
	if serial == nil || serial.Sign() <= 0 || serial.BitLen() > 8*serialSize {
		return make([]byte, serialSize)
	}
	return serial.FillBytes(make([]byte, serialSize))
}

const certificateColumns = `serial, issuer, terminal, credential, device, der, not_after, revoked, reason`

func scanCertificate(r scanner) (c Certificate, err error) {
	var serial, device []byte
	var terminal, credential *string
	var notAfter int64
	var revoked, reason *int64
	if err = r.Scan(&serial, &c.Issuer, &terminal, &credential, &device, &c.DER, &notAfter, &revoked, &reason); err != nil {
		return c, err
	}
	c.Serial, c.NotAfter = new(big.Int).SetBytes(serial), fromMillis(notAfter)
	if terminal != nil {
		c.Terminal = transport.Name(*terminal)
	}
	if credential != nil {
		c.Credential = transport.Name(*credential)
	}
	if revoked != nil {
		c.Revoked = fromMillis(*revoked)
	}
	if reason != nil {
		c.Reason = int(*reason)
	}
	c.Device, err = deviceOf(device)
	return c, err
}

// AddCertificate records a certificate. It must be in the database before
// anybody gets it.
func (t *Tx) AddCertificate(c Certificate) error {
	var device any
	if c.Device != (transport.DeviceID{}) {
		device = c.Device[:]
	}
	_, err := t.exec(`INSERT INTO certificates (serial, issuer, terminal, credential, device, der, not_after, actor, time) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		serialBytes(c.Serial), c.Issuer, nullable(c.Terminal), nullable(c.Credential), device, c.DER, toMillis(c.NotAfter), t.by.Actor, t.now())
	return err
}

// Certificate finds one by serial.
func (t *Tx) Certificate(serial *big.Int) (Certificate, error) {
	return get(t, scanCertificate, `SELECT `+certificateColumns+` FROM certificates WHERE serial = ?`, serialBytes(serial))
}

// maxCertificates is how many certificates of one credential are looked at.
const maxCertificates = 32

// CertificatesOf lists a credential's certificates that are not revoked, newest
// first.
func (t *Tx) CertificatesOf(credential transport.Name) ([]Certificate, error) {
	return all(t, scanCertificate, `SELECT `+certificateColumns+` FROM certificates
		WHERE credential = ? AND revoked IS NULL ORDER BY not_after DESC, time DESC LIMIT ?`, credential, maxCertificates)
}

// IdentityOf finds the newest certificate of a terminal for a device that is
// not revoked.
func (t *Tx) IdentityOf(terminal transport.Name, device transport.DeviceID) (Certificate, error) {
	return get(t, scanCertificate, `SELECT `+certificateColumns+` FROM certificates
		WHERE terminal = ? AND device = ? AND revoked IS NULL ORDER BY not_after DESC LIMIT 1`, terminal, device[:])
}

// OwnCertificate finds the newest certificate of an issuer that is for neither
// terminal nor credential: this server's.
func (t *Tx) OwnCertificate(issuer string) (Certificate, error) {
	return get(t, scanCertificate, `SELECT `+certificateColumns+` FROM certificates
		WHERE issuer = ? AND terminal IS NULL AND credential IS NULL AND revoked IS NULL ORDER BY not_after DESC LIMIT 1`, issuer)
}

// RevokeIdentities revokes all of a terminal's identity certificates that are
// in force, and returns how many.
func (t *Tx) RevokeIdentities(terminal transport.Name, reason int) (int64, error) {
	return t.exec(`UPDATE certificates SET revoked = ?, reason = ?, actor = ?, time = ? WHERE terminal = ? AND revoked IS NULL`,
		t.now(), reason, t.by.Actor, t.now(), terminal)
}

// RevokeCredential revokes all of a credential's certificates that are in
// force, and returns how many.
func (t *Tx) RevokeCredential(credential transport.Name, reason int) (int64, error) {
	return t.exec(`UPDATE certificates SET revoked = ?, reason = ?, actor = ?, time = ? WHERE credential = ? AND revoked IS NULL`,
		t.now(), reason, t.by.Actor, t.now(), credential)
}

// RevokeCertificate revokes one that is in force.
func (t *Tx) RevokeCertificate(serial *big.Int, reason int) error {
	return mustChange(t.exec(`UPDATE certificates SET revoked = ?, reason = ?, actor = ?, time = ? WHERE serial = ? AND revoked IS NULL`,
		t.now(), reason, t.by.Actor, t.now(), serialBytes(serial)))
}

// RevokeUnheld revokes those certificates of a credential that no device holds
// or is about to get, and returns how many.
func (t *Tx) RevokeUnheld(credential transport.Name, reason int) (int64, error) {
	return t.exec(`UPDATE certificates SET revoked = ?, reason = ?, actor = ?, time = ?
		WHERE credential = ? AND revoked IS NULL AND not_after > ?
			AND serial NOT IN (SELECT serial FROM holdings WHERE credential = ? AND state <> 'ended' AND serial IS NOT NULL)
			AND serial NOT IN (SELECT serial FROM commands WHERE credential = ? AND state = 'pending' AND serial IS NOT NULL)`,
		t.now(), reason, t.by.Actor, t.now(), credential, t.now(), credential, credential)
}

// RevokedBy lists an issuer's revoked certificates that expire after at.
func (t *Tx) RevokedBy(issuer string, at time.Time) ([]Certificate, error) {
	return all(t, func(r scanner) (c Certificate, err error) {
		var serial []byte
		var notAfter, revoked, reason int64
		err = r.Scan(&serial, &notAfter, &revoked, &reason)
		c.Serial, c.Issuer, c.NotAfter, c.Revoked, c.Reason = new(big.Int).SetBytes(serial), issuer, fromMillis(notAfter), fromMillis(revoked), int(reason)
		return c, err
	}, `SELECT serial, not_after, revoked, reason FROM certificates WHERE issuer = ? AND revoked IS NOT NULL AND not_after > ? ORDER BY revoked, serial`,
		issuer, toMillis(at))
}

// A CRL is an issuer's revocation list in force.
type CRL struct {
	Issuer string
	Number int64
	DER    []byte
	Issued time.Time
	Next   time.Time // the next one is out by then
}

// CRL finds an issuer's list.
func (t *Tx) CRL(issuer string) (CRL, error) {
	return get(t, func(r scanner) (c CRL, err error) {
		var issued, next int64
		err = r.Scan(&c.Issuer, &c.Number, &c.DER, &issued, &next)
		c.Issued, c.Next = fromMillis(issued), fromMillis(next)
		return c, err
	}, `SELECT issuer, number, der, issued, next FROM crls WHERE issuer = ?`, issuer)
}

// PutCRL replaces an issuer's list by one with a higher number.
func (t *Tx) PutCRL(c CRL) error {
	return mustChange(t.exec(`INSERT INTO crls (issuer, number, der, issued, next, actor, time) VALUES (?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (issuer) DO UPDATE SET number = excluded.number, der = excluded.der, issued = excluded.issued, next = excluded.next,
			actor = excluded.actor, time = excluded.time WHERE crls.number < excluded.number`,
		c.Issuer, c.Number, c.DER, toMillis(c.Issued), toMillis(c.Next), t.by.Actor, t.now()))
}
