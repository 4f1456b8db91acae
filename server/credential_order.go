package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// CredentialIssueParams order a credential for a terminal.
type CredentialIssueParams struct {
	Terminal string `json:"terminal"`
	Service  string `json:"service"`
	Subject  string `json:"subject,omitempty"`  // default: the terminal's name
	Transfer string `json:"transfer,omitempty"` // copy (default), move or never; a renewal keeps what it was
	ChipOnly bool   `json:"chip_only,omitempty"`
	Wait     bool   `json:"wait,omitempty"` // follow the order to its end
}

// OrderProgress is how an order stands. State is "pending" first; with Wait a
// last one follows: "done", "refused", "unknown" or "withdrawn".
type OrderProgress struct {
	Credential transport.Name `json:"credential"`
	Command    transport.ID   `json:"command"`
	Terminal   transport.Name `json:"terminal"`
	Service    transport.Name `json:"service"`
	State      string         `json:"state"`
	Detail     string         `json:"detail,omitempty"`
	Connected  bool           `json:"connected"` // the terminal is there now
	Renewal    bool           `json:"renewal"`   // of a credential that there was
	// Notes are what the caller should know besides.
	Notes []string `json:"notes,omitempty"`
}

// CredentialInfo is a management record (req: L1).
type CredentialInfo struct {
	ID       transport.Name           `json:"id"`
	Kind     transport.CredentialKind `json:"kind"`
	Service  transport.Name           `json:"service"` // the destination
	Subject  transport.Name           `json:"subject"`
	Usage    transport.Usage          `json:"usage"`
	Transfer transport.Transfer       `json:"transfer"`
	ChipOnly bool                     `json:"chip_only"`
	Serial   string                   `json:"serial,omitempty"`
	Holders  []HolderInfo             `json:"holders"`
	Ordered  transport.Name           `json:"ordered,omitempty"` // the terminal that is told to get it
	Expires  time.Time                `json:"expires,omitzero"`
	State    store.CredentialState    `json:"state"`
	InForce  bool                     `json:"in_force"` // active, not expired, and somebody has it
	// Conflict is set if more devices have it than a move allows; Next says what
	// to do then.
	Conflict  string    `json:"conflict,omitempty"`
	Next      string    `json:"next,omitempty"`
	Operation string    `json:"operation"`
	Operated  time.Time `json:"operated"`
}

// HolderInfo says who has a credential, or had it.
type HolderInfo struct {
	Terminal transport.Name      `json:"terminal"`
	Device   transport.DeviceID  `json:"device"`
	Since    time.Time           `json:"since"`
	Origin   store.Origin        `json:"origin"`
	Source   *transport.DeviceID `json:"source,omitempty"` // the device that it was copied from
	Expires  time.Time           `json:"expires,omitzero"` // of the certificate that it has
	Active   bool                `json:"active"`
	Until    time.Time           `json:"until,omitzero"` // when it ended
	State    store.HoldingState  `json:"state"`
	Txn      *transport.ID       `json:"txn,omitempty"`   // the key copy that brought it
	Taken    *transport.ID       `json:"taken,omitempty"` // the one that takes it away, or took it
	To       string              `json:"to,omitempty"`    // where it goes, while it is in transit
	Note     string              `json:"note,omitempty"`  // what is not as it should be
	// Rule says how far it is with a rule for transfer that was changed; empty: it
	// goes by the one on record.
	Rule string `json:"rule,omitempty"`
}

// CredentialPage is one page; Next continues the list, empty at its end.
type CredentialPage struct {
	Credentials []CredentialInfo `json:"credentials"`
	Next        string           `json:"next,omitempty"`
}

const (
	credentialPrefix = "cr-"
	credentialRandom = 10 // characters of 5 bits each
	base32Lower      = "abcdefghijklmnopqrstuvwxyz234567"
)

// newCredentialID draws an id that nobody guesses: 50 bits, checked for
// uniqueness by the store.
func (s *Server) newCredentialID() transport.Name {
	b := make([]byte, credentialRandom)
	if _, err := io.ReadFull(s.cfg.Random, b); err != nil {
		panic(fmt.Errorf("draw a credential id: %w", err)) // the system's source never fails
	}
	id := []byte(credentialPrefix)
	for _, v := range b {
		id = append(id, base32Lower[v%32])
	}
	return transport.Name(id)
}

// order adds a credential and the command that tells a terminal to get it.
func (s *Server) order(tx *store.Tx, terminal transport.Name, o transport.CredentialOrder) (id transport.ID, err error) {
	err = tx.AddCredential(store.Credential{ID: o.Credential, Kind: transport.KindCertificate, Service: o.Service, Subject: o.Subject,
		Usage: o.Usage, Transfer: o.Transfer, ChipOnly: o.ChipOnly, Operation: operationIssue})
	if err != nil {
		return id, err
	}
	return s.tell(tx, terminal, o)
}

// tell adds the command that tells a terminal to get a credential that there is.
func (s *Server) tell(tx *store.Tx, terminal transport.Name, o transport.CredentialOrder) (id transport.ID, err error) {
	if o.ChipOnly && o.Transfer != transport.TransferNever {
		o.Fleet = s.fleet.Public
	}
	body, err := transport.Marshal(o)
	if err != nil {
		return id, err
	}
	id = transport.NewID(s.cfg.Random)
	return id, errors.Join(
		tx.AddCommand(store.Command{ID: id, Terminal: terminal, Kind: transport.CommandIssue, Credential: o.Credential, Body: body}),
		tx.Audit("credential.order", string(o.Credential), fmt.Sprintf("service %s subject %s terminal %s", o.Service, o.Subject, terminal)))
}

// credentialIssue orders a credential from the administrator's side (req: L7).
func (s *Server) credentialIssue(ctx context.Context, call *control.Call) error {
	var in CredentialIssueParams
	if err := call.Params(&in); err != nil {
		return err
	}
	given, err := s.parseOrder(in)
	if err != nil {
		return err
	}
	terminal := transport.Name(in.Terminal)
	p := OrderProgress{Terminal: terminal, Service: given.Service, State: string(store.CommandPending)}
	err = s.change(ctx, call, func(tx *store.Tx) (outcome, error) {
		o, renewal, err := s.mayIssue(tx, in, given)
		if err != nil {
			return outcome{}, err
		}
		add := s.order
		if renewal {
			add = s.tell
		}
		p.Credential, p.Renewal, p.Notes = o.Credential, renewal, orderNotes(o)
		p.Command, err = add(tx, terminal, o)
		return outcome{wake: []transport.Name{terminal}}, err
	})
	if err != nil {
		return err
	}
	p.Connected = s.connected(terminal)
	if !in.Wait {
		return call.Reply(p)
	}
	if err := call.Continue(p); err != nil {
		return err
	}
	return s.follow(ctx, call, p)
}

// follow waits for the end of an order and says how it ended.
func (s *Server) follow(ctx context.Context, call *control.Call, p OrderProgress) error {
	end, stop := s.settled.watch(p.Command)
	defer stop()
	for {
		var c store.Command
		err := s.store.View(ctx, func(tx *store.Tx) (err error) {
			c, err = tx.Command(p.Command)
			return err
		})
		if err != nil {
			return problem(err)
		}
		if c.State != store.CommandPending {
			p.State, p.Detail, p.Connected = string(c.State), c.Detail, s.connected(p.Terminal)
			return call.Reply(p)
		}
		select {
		case <-end:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Server) parseOrder(in CredentialIssueParams) (o transport.CredentialOrder, err error) {
	o = transport.CredentialOrder{Credential: s.newCredentialID(), Usage: transport.UsageClient, Transfer: transport.Transfer(in.Transfer), ChipOnly: in.ChipOnly}
	if o.Service, err = parseName("service", in.Service); err != nil {
		return o, err
	}
	subject := in.Subject
	if subject == "" {
		subject = in.Terminal
	}
	if o.Subject, err = parseName("subject", subject); err != nil {
		return o, err
	}
	switch o.Transfer {
	case "":
		o.Transfer = transport.TransferCopy
	case transport.TransferCopy, transport.TransferMove, transport.TransferNever:
	default:
		return o, control.Problemf(control.BadInput, "choose copy, move or never", "transfer %q is unknown", in.Transfer)
	}
	return o, nil
}

// orderNotes are what is not obvious about an order.
func orderNotes(o transport.CredentialOrder) (notes []string) {
	if o.ChipOnly && o.Transfer != transport.TransferNever {
		notes = append(notes, "the key is made in the terminal's chip and goes only to chips that are approved: kagimori-server chip list")
	}
	return notes
}

// mayIssue refuses what makes no sense: one credential per terminal and
// service (req: L6), one in force per place at a service. It completes the
// order, and says whether it renews a credential that there is.
func (s *Server) mayIssue(tx *store.Tx, in CredentialIssueParams, o transport.CredentialOrder) (transport.CredentialOrder, bool, error) {
	x, err := findTerminal(tx, in.Terminal)
	if err != nil {
		return o, false, err
	}
	if x.State == store.TerminalRemoved {
		return o, false, control.Problemf(control.Conflict, fmt.Sprintf("bring it back first: kagimori-server terminal reenroll %s", x.Name), "terminal %s is removed", x.Name)
	}
	service, err := tx.Service(o.Service)
	if errors.Is(err, store.ErrNotFound) {
		return o, false, control.Problemf(control.NotFound, fmt.Sprintf("add it first: kagimori-server gate add %s --dns NAME", o.Service), "there is no service %q", o.Service)
	}
	if err != nil {
		return o, false, err
	}
	if x.Kind == store.KindGate {
		if in.Service != string(x.Service) || in.Subject != "" || in.Transfer != "" || in.ChipOnly {
			return o, false, control.Problemf(control.BadInput, fmt.Sprintf("name a terminal; what the gate itself shows is renewed with: kagimori-server credential issue %s --service %s", x.Name, x.Service),
				"%s is the gate of %s", x.Name, x.Service)
		}
		o.Usage, o.Subject, o.DNS, o.Transfer = transport.UsageServer, x.Name, service.DNS, transport.TransferNever
	}
	c, found, err := s.orderedBefore(tx, in, o)
	if err != nil || !found {
		return o, false, err
	}
	if err := s.mayRenew(tx, x, c, in); err != nil {
		return o, false, err
	}
	o.Credential, o.Subject, o.Transfer, o.ChipOnly = c.ID, c.Subject, c.Transfer, c.ChipOnly
	return o, true, nil
}
