package server

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// Interface is the name of what the server offers on its control socket.
const Interface = "com.kagimori.server"

// PassphraseLabel names the secret in BundleReply.
const PassphraseLabel = "bundle passphrase"

// controlInterface is the table of it; the methods stand with their nouns.
func (s *Server) controlInterface() control.Interface {
	return control.Interface{Name: Interface, Doc: "The management server of one deployment.", Methods: append([]control.Method{
		{Name: "TerminalAdd", Doc: "Expects a new terminal and makes its bundle.", Class: control.Admin,
			In: TerminalAddParams{}, Out: BundleReply{}, Handle: s.terminalAdd},
		{Name: "TerminalList", Doc: "Lists terminals and gates, page by page.", Class: control.Read,
			In: ListParams{}, Out: TerminalPage{}, Handle: s.terminalList},
		{Name: "TerminalShow", Doc: "Shows a terminal with all that it holds and is told to do.", Class: control.Read,
			In: NameParams{}, Out: TerminalDetail{}, Handle: s.terminalShow},
		{Name: "TerminalRemove", Doc: "Refuses a terminal from now on, and what only it held.", Class: control.Admin,
			In: NameParams{}, Out: TerminalRemoved{}, Handle: s.terminalRemove},
		{Name: "TerminalReenroll", Doc: "Lets a terminal enroll with another device, and makes its new bundle.", Class: control.Admin,
			In: TerminalReenrollParams{}, Out: BundleReply{}, Handle: s.terminalReenroll},
		{Name: "SpareAdd", Doc: "Makes a bundle for a replacement box.", Class: control.Admin,
			In: SpareAddParams{}, Out: BundleReply{}, Handle: s.spareAdd},
		{Name: "GateAdd", Doc: "Adds a service and expects its gate, whose bundle it makes.", Class: control.Admin,
			In: GateAddParams{}, Out: BundleReply{}, Handle: s.gateAdd},
		{Name: "CredentialIssue", Doc: "Orders a terminal to get a credential, new or again; with wait, follows the order to its end.", Class: control.Admin,
			In: CredentialIssueParams{}, Out: OrderProgress{}, Stream: true, Handle: s.credentialIssue},
		{Name: "CredentialRevoke", Doc: "Ends a credential for good, whoever holds it, and tells gates.", Class: control.Admin,
			In: NameParams{}, Out: CredentialRevoked{}, Handle: s.credentialRevoke},
		{Name: "CredentialList", Doc: "Lists management records, page by page.", Class: control.Read,
			In: ListParams{}, Out: CredentialPage{}, Handle: s.credentialList},
		{Name: "CredentialShow", Doc: "Shows a management record with present and former holders.", Class: control.Read,
			In: NameParams{}, Out: CredentialInfo{}, Handle: s.credentialShow},
		{Name: "RecoveryList", Doc: "Lists requests of terminals for the key of their earlier store, page by page.", Class: control.Read,
			In: ListParams{}, Out: RecoveryPage{}, Handle: s.recoveryList},
		{Name: "RecoveryShow", Doc: "Shows a request with what is at stake.", Class: control.Read,
			In: RecoveryParams{}, Out: RecoveryDetail{}, Handle: s.recoveryShow},
		{Name: "RecoveryApprove", Doc: "Has the key released to the terminal that asks.", Class: control.Admin,
			In: RecoveryParams{}, Out: RecoveryInfo{}, Handle: s.recoveryApprove},
		{Name: "RecoveryDeny", Doc: "Refuses a request; it may be approved later.", Class: control.Admin,
			In: RecoveryParams{}, Out: RecoveryInfo{}, Handle: s.recoveryDeny},
	}, slices.Concat(s.groupMethods(), s.chipMethods(), s.keycopyMethods(), s.policyMethods())...)}
}

// NameParams names one object: a terminal, or a credential by its id.
type NameParams struct {
	Name string `json:"name"`
}

// ListParams ask for one page of a list. What it may be sorted and filtered by
// is said by the refusal of what it may not.
type ListParams struct {
	Sort   string            `json:"sort,omitempty"`
	Desc   bool              `json:"desc,omitempty"`
	Limit  int               `json:"limit,omitempty"`
	After  string            `json:"after,omitempty"` // next of the page before
	Filter map[string]string `json:"filter,omitempty"`
}

func (p ListParams) query(now time.Time) store.Query {
	return store.Query{Sort: p.Sort, Desc: p.Desc, Limit: p.Limit, After: p.After, Filter: p.Filter, Now: now}
}

// caller names who calls in rows and in the audit log.
func caller(call *control.Call) string { return call.Peer.Name() }

// problem puts errors of the store in the terms of the control socket.
func problem(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*control.Problem](err); ok {
		return err
	}
	switch {
	case errors.Is(err, store.ErrQuery):
		return control.Problemf(control.BadInput, "ask by one of those named", "%w", err)
	case errors.Is(err, store.ErrWrite):
		return control.Problemf(control.Storage, "check that the disk is not full or read-only, then try again", "%w", err)
	case errors.Is(err, store.ErrClosed):
		return control.Problemf(control.Unavailable, "try again when it is back", "the server is stopping")
	}
	return err
}

// parseName checks a name that a person gave.
func parseName(what, name string) (transport.Name, error) {
	n, err := transport.ParseName(name)
	if err != nil {
		return "", control.Problemf(control.BadInput, "choose another name", "%s %w", what, err)
	}
	return n, nil
}

// findTerminal finds a terminal that a person named.
func findTerminal(tx *store.Tx, name string) (store.Terminal, error) {
	x, err := tx.Terminal(transport.Name(name))
	if errors.Is(err, store.ErrNotFound) {
		return x, control.Problemf(control.NotFound, "see: kagimori-server terminal list", "there is no terminal %q", name)
	}
	return x, err
}

// change runs a transaction of a caller and then does what it leaves to do.
func (s *Server) change(ctx context.Context, call *control.Call, fn func(*store.Tx) (outcome, error)) error {
	var out outcome
	err := s.store.Update(ctx, s.by(caller(call)), func(tx *store.Tx) (err error) {
		out, err = fn(tx)
		return err
	})
	if err != nil {
		return problem(err)
	}
	s.carry(context.WithoutCancel(ctx), out)
	return nil
}
