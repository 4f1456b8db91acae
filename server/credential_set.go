package server

import (
	"context"
	"errors"
	"fmt"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// What may happen to a credential when its terminal is replaced is enforced by
// the terminals that hold it. Whoever changes it here changes the record, and has
// every holder told; each goes by what it had until it obeys. A holder that gets
// it later by a key copy has the rule of the terminal that it comes from, and is
// told when it reports.

// operationSet is what the management record says after such a change.
const operationSet = "set"

// CredentialSetParams change a credential's rule.
type CredentialSetParams struct {
	Name     string `json:"name"`
	Transfer string `json:"transfer"` // copy, move or never
}

// CredentialSetReply says what was changed. Told are the terminals that have to
// obey, Notes what the caller should know.
type CredentialSetReply struct {
	ID       transport.Name     `json:"id"`
	Was      transport.Transfer `json:"was"`
	Transfer transport.Transfer `json:"transfer"`
	Told     []transport.Name   `json:"told"`
	Notes    []string           `json:"notes,omitempty"`
}

// policyMethods are on the control socket.
func (s *Server) policyMethods() []control.Method {
	return []control.Method{
		{Name: "CredentialSet", Doc: "Changes what may happen to a credential when its terminal is replaced, and tells its holders.", Class: control.Admin,
			In: CredentialSetParams{}, Out: CredentialSetReply{}, Handle: s.credentialSet},
	}
}

func (s *Server) credentialSet(ctx context.Context, call *control.Call) error {
	var in CredentialSetParams
	if err := call.Params(&in); err != nil {
		return err
	}
	wanted := transport.CredentialSet{Credential: transport.Name(in.Name), Transfer: transport.Transfer(in.Transfer)}
	if err := wanted.Check(); err != nil {
		return control.Problemf(control.BadInput, "choose copy, move or never", "%w", err)
	}
	reply := CredentialSetReply{ID: wanted.Credential, Transfer: wanted.Transfer, Told: []transport.Name{}}
	err := s.change(ctx, call, func(tx *store.Tx) (out outcome, err error) {
		c, err := maySet(tx, wanted)
		if err != nil {
			return out, err
		}
		reply.Was, reply.Told, reply.Notes = c.Transfer, []transport.Name{}, nil
		err = errors.Join(tx.SetTransfer(c.ID, wanted.Transfer, operationSet),
			tx.Audit("credential.set", string(c.ID), fmt.Sprintf("transfer %s, was %s", wanted.Transfer, c.Transfer)))
		if err != nil {
			return out, err
		}
		out, err = s.tellHolders(tx, wanted, &reply)
		return out, err
	})
	if err != nil {
		return err
	}
	return call.Reply(reply)
}

// maySet says why a rule cannot be changed.
func maySet(tx *store.Tx, m transport.CredentialSet) (c store.Credential, err error) {
	c, err = tx.Credential(m.Credential)
	see := "see: kagimori-server credential show " + string(m.Credential)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return c, control.Problemf(control.NotFound, "see: kagimori-server credential list", "there is no credential %q", m.Credential)
	case err != nil:
		return c, err
	case c.State != store.CredentialActive && c.State != store.CredentialOrdered:
		return c, control.Problemf(control.Conflict, see, "%s is %s", c.ID, c.State)
	case c.Usage == transport.UsageServer:
		return c, control.Problemf(control.Conflict, see, "%s is what the gate of %s shows: it never travels", c.ID, c.Service)
	case c.ChipOnly && c.Transfer == transport.TransferNever && m.Transfer != transport.TransferNever:
		return c, control.Problemf(control.Conflict, fmt.Sprintf("give the terminal another: kagimori-server credential revoke %s, then credential issue --chip-only --transfer %s", c.ID, m.Transfer),
			"the key of %s was made in a chip to stay there", c.ID)
	}
	return c, nil
}

// tellHolders has everybody who has a credential, or is about to get it, obey.
func (s *Server) tellHolders(tx *store.Tx, m transport.CredentialSet, reply *CredentialSetReply) (out outcome, err error) {
	list, err := tx.Holdings(m.Credential)
	if err != nil {
		return out, err
	}
	for _, h := range list {
		if !h.Active() {
			continue
		}
		x, err := tx.Terminal(h.Terminal)
		if err != nil {
			return out, err
		}
		if x.State != store.TerminalEnrolled || x.Device != h.Device {
			reply.Notes = append(reply.Notes, fmt.Sprintf("the device that was %s has it too, and cannot be told", h.Terminal))
			continue
		}
		reply.Told = with(reply.Told, h.Terminal)
	}
	if ordered, err := tx.OrderedOf(m.Credential); err == nil {
		reply.Told = with(reply.Told, ordered)
	} else if !errors.Is(err, store.ErrNotFound) {
		return out, err
	}
	if m.Transfer == transport.TransferNever && len(reply.Told) > 1 {
		reply.Notes = append(reply.Notes, "each of them keeps what it has; a copy that has not been reported yet will not be accepted")
	}
	for _, name := range reply.Told {
		settled, err := s.tellRule(tx, name, m)
		if err != nil {
			return out, err
		}
		out.settled, out.wake = append(out.settled, settled...), append(out.wake, name)
	}
	return out, nil
}

// tellRule orders one terminal to go by a rule, instead of what it was ordered
// to go by before.
func (s *Server) tellRule(tx *store.Tx, name transport.Name, m transport.CredentialSet) (settled []transport.ID, err error) {
	last, err := tx.LastOf(transport.CommandSet, name, m.Credential)
	switch {
	case err == nil && last.State == store.CommandPending:
		if err := tx.Settle(last.ID, store.CommandWithdrawn, "another rule took its place"); err != nil {
			return nil, err
		}
		settled = append(settled, last.ID)
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return nil, err
	}
	body, err := transport.Marshal(m)
	if err != nil {
		return nil, err
	}
	return settled, tx.AddCommand(store.Command{ID: transport.NewID(s.cfg.Random), Terminal: name, Kind: transport.CommandSet, Credential: m.Credential, Body: body})
}

// ruleForNew tells a terminal that has just reported a credential by which rule
// to go, if that was ever changed: it may have come with the one before.
func (s *Server) ruleForNew(tx *store.Tx, name transport.Name, c store.Credential) (told bool, err error) {
	changed, err := tx.EverOrdered(transport.CommandSet, c.ID)
	if err != nil || !changed {
		return false, err
	}
	_, err = s.tellRule(tx, name, transport.CredentialSet{Credential: c.ID, Transfer: c.Transfer})
	return err == nil, err
}

// ruleOf says how far a holder is with the rule on record; empty: it goes by it,
// as far as is known.
func ruleOf(tx *store.Tx, h store.Holding) (string, error) {
	c, err := tx.LastOf(transport.CommandSet, h.Terminal, h.Credential)
	if errors.Is(err, store.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var m transport.CredentialSet
	if err := transport.Unmarshal(c.Body, &m, transport.MaxEnvelope); err != nil {
		return "", err
	}
	switch c.State {
	case store.CommandPending:
		return fmt.Sprintf("is told to go by transfer %s, and has not confirmed it yet", m.Transfer), nil
	case transport.CommandRefused, transport.CommandUnknown:
		return fmt.Sprintf("does not go by transfer %s: %s", m.Transfer, c.Detail), nil
	}
	return "", nil
}
