package server

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/kagimori/kagimori/server/ca"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// A credential outlives its certificates as it outlives terminals (DESIGN D7):
// a renewal is an order for the same id and subject, with a new key that its
// terminal makes. Until the terminal has the new certificate everything stays as
// it was. What it held before is not revoked: copies of that key on other
// terminals are good until they expire.

// operationRenew is what the management record says after a renewal.
const operationRenew = "renew"

// renewPart is which part of its life a certificate must have left at most when
// it is renewed.
const renewPart = 3

// orderedBefore finds the credential that an order is about, if there is one
// that is ordered or active: what the terminal holds for the service, or is told
// to get; else what expired, or was lost, at the place that it is to have.
func (s *Server) orderedBefore(tx *store.Tx, in CredentialIssueParams, o transport.CredentialOrder) (c store.Credential, found bool, err error) {
	var list []store.Credential
	for _, state := range []store.CredentialState{store.CredentialOrdered, store.CredentialActive} {
		some, _, err := tx.Credentials(store.Query{Filter: map[string]string{"terminal": in.Terminal, "service": string(o.Service),
			"usage": string(o.Usage), "state": string(state)}})
		if err != nil {
			return c, false, err
		}
		list = append(list, some...)
	}
	for _, c := range list {
		if c.Subject == o.Subject {
			return c, true, nil
		}
	}
	switch {
	case len(list) == 1 && in.Subject == "":
		return list[0], true, nil
	case len(list) > 1 && in.Subject == "":
		return c, false, control.Problemf(control.Conflict, fmt.Sprintf("say which with --subject, %s for example", list[0].Subject),
			"terminal %s has %d credentials for %s", in.Terminal, len(list), o.Service)
	case len(list) > 0:
		return c, false, control.Problemf(control.Conflict, "see: kagimori-server credential show "+string(list[0].ID),
			"terminal %s has a credential for %s already: %s, as %s", in.Terminal, o.Service, list[0].ID, list[0].Subject)
	}
	c, err = tx.CredentialAt(o.Service, o.Subject, o.Usage)
	if errors.Is(err, store.ErrNotFound) {
		return c, false, nil
	}
	if err != nil {
		return c, false, err
	}
	holders, err := activeHolders(tx, c.ID)
	lost := c.State == store.CredentialActive && len(holders) == 0 // its last holder has said so
	if err == nil && !lost && (c.State != store.CredentialActive || s.cfg.Now().Before(c.Expires)) {
		err = control.Problemf(control.Conflict, "choose another place with --subject, copy it to this terminal, or see: kagimori-server credential show "+string(c.ID),
			"%s is in use at service %s by %s (%s)", o.Subject, o.Service, c.ID, c.State)
	}
	return c, err == nil, err
}

// mayRenew says why a credential is not to be issued anew to a terminal: it is
// told to get it already, or what its device has is good for long.
func (s *Server) mayRenew(tx *store.Tx, x store.Terminal, c store.Credential, in CredentialIssueParams) error {
	see := "see: kagimori-server credential show " + string(c.ID)
	ordered, err := tx.OrderedOf(c.ID)
	if err == nil {
		return control.Problemf(control.Conflict, see+"; to take the order back: kagimori-server credential revoke "+string(c.ID),
			"terminal %s is told to get %s for %s already", ordered, c.ID, c.Service)
	}
	if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if in.Transfer != "" && in.Transfer != string(c.Transfer) || in.ChipOnly && !c.ChipOnly {
		return control.Problemf(control.Conflict, fmt.Sprintf("leave --transfer and --chip-only away; its transfer is changed with kagimori-server credential set %s --transfer HOW", c.ID),
			"%s is issued anew as it was: transfer %s, chip only %v", c.ID, c.Transfer, c.ChipOnly)
	}
	from, err := s.renewableFrom(tx, x, c)
	if err != nil || !s.cfg.Now().Before(from) {
		return err
	}
	return control.Problemf(control.Conflict, see+"; to replace it now: kagimori-server credential revoke "+string(c.ID)+", then issue",
		"terminal %s has a credential for %s already: %s, which can be issued anew from %s on", x.Name, c.Service, c.ID, minute(from))
}

// renewableFrom is when the last third of what the terminal's device has
// begins. A device that has nothing of it may get it at any time.
func (s *Server) renewableFrom(tx *store.Tx, x store.Terminal, c store.Credential) (from time.Time, err error) {
	h, err := tx.HoldingOf(c.ID, x.Device)
	if errors.Is(err, store.ErrNotFound) {
		return from, nil
	}
	if err != nil {
		return from, err
	}
	row, err := tx.Certificate(h.Serial)
	if err != nil {
		return from, fmt.Errorf("certificate %s of %s: %w", serialText(h.Serial), c.ID, err)
	}
	leaf, err := x509.ParseCertificate(row.DER)
	if err != nil {
		return from, fmt.Errorf("read certificate %s: %w", serialText(h.Serial), err)
	}
	return leaf.NotAfter.Add(-leaf.NotAfter.Sub(leaf.NotBefore) / renewPart), nil
}

// renews says whether a pending order renews c: the first order of a
// credential finds it ordered, and its certificate becomes c's at once.
func renews(c store.Credential, o store.Command) bool {
	return c.State == store.CredentialActive && (o.Serial == nil || c.Serial.Cmp(o.Serial) != 0)
}

// renewed records that a terminal has the certificate of a renewal.
func renewed(tx *store.Tx, c store.Credential, o store.Command) error {
	row, err := tx.Certificate(o.Serial)
	if err != nil {
		return err
	}
	h := store.Holding{Credential: c.ID, Device: row.Device, Terminal: o.Terminal, Since: tx.By().At, Origin: store.OriginIssue, Serial: row.Serial}
	_, err = tx.PutHolding(h)
	return errors.Join(err, tx.CredentialRenewed(c.ID, row.Serial, row.NotAfter, operationRenew),
		tx.Audit("credential.renew", string(c.ID), fmt.Sprintf("terminal %s device %s serial %s", o.Terminal, row.Device, serialText(row.Serial))))
}

// notRenewed takes back what was signed for a renewal that came to nothing. It
// returns the issuer whose list has to change, or nothing.
func notRenewed(tx *store.Tx, c store.Credential, o store.Command) (issuer string, err error) {
	if o.Serial == nil {
		return "", nil
	}
	return issuerOf(c), errors.Join(tx.RevokeCertificate(o.Serial, ca.ReasonCessationOfOperation), tx.EndHoldingsWith(o.Serial))
}

// issuerOf is who signs for a credential.
func issuerOf(c store.Credential) string {
	if c.Usage == transport.UsageServer {
		return ca.Server
	}
	return ca.Service
}
