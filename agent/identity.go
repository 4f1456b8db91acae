package agent

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// The identity of the hardware: a key that hsm made at first start and that
// never leaves it. Its name is the device id; its certificate says which
// terminal it is in its deployment (DESIGN D7).

// deviceOf names a device by its identity key.
func deviceOf(key crypto.Signer) (transport.DeviceID, error) {
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return transport.DeviceID{}, fmt.Errorf("device id: %w", err)
	}
	return transport.NewDeviceID(spki), nil
}

// keepIdentity stores an identity certificate. The terminal must still be the
// one that asked for it: a new bundle may have come in meanwhile.
func (v *vault) keepIdentity(bundle transport.ID, chain [][]byte) error {
	return v.keepEnrolled(bundle, chain, nil)
}

// keepEnrolled is keepIdentity with the security code that came along, if one
// did: both, or neither.
func (v *vault) keepEnrolled(bundle transport.ID, chain [][]byte, code *heldCode) error {
	return v.update(func(tx *store.Tx) error {
		var self terminalRecord
		defer self.wipe()
		found, err := tx.Get(bucketTerminal, keySelf, &self)
		if err != nil {
			return err
		}
		if !found || self.newest() != bundle {
			return errors.New("another bundle was taken in meanwhile")
		}
		if err := v.audit(tx, audit.Enrolled, self.Terminal, "deployment %s", self.Deployment); err != nil {
			return err
		}
		if code != nil {
			if err := errors.Join(addCode(tx, &self, *code), tx.Put(bucketTerminal, keySelf, &self)); err != nil {
				return err
			}
		}
		return errors.Join(tx.Put(bucketIdentity, keyChain, &identityRecord{Chain: chain}), tx.Delete(bucketRecovery, keyLost))
	})
}

// newest is the id of the bundle that counts.
func (t *terminalRecord) newest() (id transport.ID) {
	if t != nil && len(t.Bundles) > 0 {
		id = t.Bundles[len(t.Bundles)-1]
	}
	return id
}

// A renewal says when to enroll again: that renews an identity certificate. The
// old one stays in use until the new one is here.
type renewal struct {
	spread  float64   // in [0,1): a fleet that enrolled in one hour does not renew in one
	tried   time.Time // by the system clock's monotonic reading
	refused bool      // the server refused the identity, last
}

const (
	// renewHold is how long after an attempt the next one follows.
	renewHold = time.Hour
	// renewLeft less some spread is the part of its life that a certificate has
	// left when it is renewed. Above a third the server gives the same one again.
	renewLeft, renewSpread = 0.33, 0.06
)

func (r *renewal) attempt(now time.Time) { r.tried, r.refused = now, false }

// due says whether it is time. A refusal by the server counts as well while the
// clock is not trusted: this terminal may have been off for years.
func (r *renewal) due(der [][]byte, clock *Clock, now time.Time) bool {
	if !r.tried.IsZero() && now.Sub(r.tried) < renewHold {
		return false
	}
	if r.refused && !clock.Trusted() {
		return true
	}
	chain, err := transport.ParseChain(der)
	if err != nil {
		return true // an identity that nobody can read is none
	}
	leaf := chain[0]
	life, left := leaf.NotAfter.Sub(leaf.NotBefore), leaf.NotAfter.Sub(clock.Judge(chain))
	return left.Seconds() < life.Seconds()*(renewLeft-renewSpread*r.spread)
}

// IdentityStatus is what status says about the identity certificate.
type IdentityStatus struct {
	NotBefore time.Time `json:"not_before"`
	Expires   time.Time `json:"expires"`
	Serial    string    `json:"serial"`
	Text      string    `json:"text"`
}

// identityStatus describes a chain; nil when there is none.
func identityStatus(der [][]byte, clock *Clock) *IdentityStatus {
	chain, err := transport.ParseChain(der)
	if err != nil {
		return nil
	}
	leaf := chain[0]
	s := &IdentityStatus{NotBefore: leaf.NotBefore.UTC(), Expires: leaf.NotAfter.UTC(), Serial: fmt.Sprintf("%x", leaf.SerialNumber)}
	left := leaf.NotAfter.Sub(clock.Judge(chain))
	switch life := leaf.NotAfter.Sub(leaf.NotBefore); {
	case left <= 0:
		s.Text = "expired; it is renewed as soon as the server is in reach"
	case left < life/4:
		s.Text = "to be renewed by now; the server was not in reach"
	default:
		s.Text = "valid"
	}
	return s
}
