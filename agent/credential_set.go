package agent

import (
	"errors"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// setCredential obeys a CredentialSet: from now on another rule says what a key
// copy may do with a credential. What is under way goes on by the one it began
// with.
func (s *session) setCredential(c *transport.Command) (step, error) {
	var m transport.CredentialSet
	if err := transport.Unmarshal(c.Body, &m, len(c.Body)); err != nil {
		return refuse("the order is malformed"), nil
	}
	if err := m.Check(); err != nil {
		return refuse("the order is wrong: %v: update this terminal", err), nil
	}
	var held *holdingRecord
	err := s.store.View(func(tx *store.Tx) (err error) {
		held, err = holding(tx, m.Credential)
		return err
	})
	if err != nil {
		return step{}, err
	}
	defer held.wipe()
	switch {
	case held == nil:
		return refuse("this terminal does not hold it"), nil
	case held.Record.ChipOnly && held.Record.Transfer == transport.TransferNever && m.Transfer != transport.TransferNever:
		return refuse("its key was made in this terminal's chip to stay there"), nil
	}
	return step{state: transport.CommandDone, effect: func(tx *store.Tx) error {
		h, err := holding(tx, m.Credential)
		if err != nil || h == nil || h.Record.Transfer == m.Transfer {
			return err // gone meanwhile, or nothing to do
		}
		defer h.wipe()
		was := h.Record.Transfer
		h.Record.Transfer = m.Transfer
		return errors.Join(tx.Put(bucketCredentials, string(m.Credential), h), s.audit(tx, audit.RuleSet, m.Credential, "transfer %s, was %s", m.Transfer, was))
	}}, nil
}
