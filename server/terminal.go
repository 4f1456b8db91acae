package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/server/ca"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// TerminalAddParams: ReplyKey is a control.Reader's.
type TerminalAddParams struct {
	Name  string `json:"name"`
	Group string `json:"group,omitempty"` // default: DefaultGroup
	// Attest has it prove a TPM at enrollment, and leaves the security code out
	// of the bundle.
	Attest   bool   `json:"attest,omitempty"`
	ReplyKey string `json:"reply_key"`
}

// TerminalReenrollParams: ReplyKey is a control.Reader's.
type TerminalReenrollParams struct {
	Name     string `json:"name"`
	ReplyKey string `json:"reply_key"`
}

// TerminalInfo is a terminal or gate in a list.
type TerminalInfo struct {
	Name      transport.Name      `json:"name"`
	Kind      store.TerminalKind  `json:"kind"`
	Group     transport.Name      `json:"group"`
	Service   transport.Name      `json:"service,omitempty"` // a gate's
	State     store.TerminalState `json:"state"`
	Connected bool                `json:"connected"`
	Device    string              `json:"device,omitempty"`
	Level     string              `json:"level,omitempty"`  // of its key storage; what it says itself, unless proven
	Proven    bool                `json:"proven,omitempty"` // the level was proven at enrollment
	Attest    bool                `json:"attest,omitempty"` // it must prove a TPM at enrollment
	Created   time.Time           `json:"created,omitzero"`
	Enrolled  time.Time           `json:"enrolled,omitzero"`
	Seen      time.Time           `json:"seen,omitzero"` // last connected
}

// TerminalPage is one page; Next continues the list, empty at its end.
type TerminalPage struct {
	Terminals []TerminalInfo `json:"terminals"`
	Next      string         `json:"next,omitempty"`
}

// TerminalDetail is a terminal with what belongs to it.
type TerminalDetail struct {
	Terminal TerminalInfo     `json:"terminal"`
	Serial   string           `json:"serial,omitempty"` // of its identity certificate
	Expires  time.Time        `json:"expires,omitzero"`
	Holds    []CredentialInfo `json:"holds"`
	Pending  []CommandInfo    `json:"pending"` // what it is told to do, oldest first
}

// CommandInfo is an order to a terminal.
type CommandInfo struct {
	ID         transport.ID   `json:"id"`
	Kind       string         `json:"kind"`
	Credential transport.Name `json:"credential,omitempty"`
	State      string         `json:"state"`
	Detail     string         `json:"detail,omitempty"`
	Created    time.Time      `json:"created"`
}

func (s *Server) terminalInfo(x store.Terminal) TerminalInfo {
	i := TerminalInfo{Name: x.Name, Kind: x.Kind, Group: x.Group, Service: x.Service, State: x.State, Connected: s.connected(x.Name),
		Level: x.Level, Proven: hsm.Level(x.Level) == hsm.LevelAttested, Attest: x.Attest == store.AttestRequired, Created: x.Created, Enrolled: x.Enrolled, Seen: x.Seen}
	if x.Device != (transport.DeviceID{}) {
		i.Device = x.Device.String()
	}
	return i
}

// Storage says in words how well a terminal's keys are kept, as far as the
// server knows. Only a TPM can be proven; a terminal that says "file" is
// believed, since nobody gains by it.
func (i TerminalInfo) Storage() (short, long string) {
	switch hsm.Level(i.Level) {
	case "":
		if i.Attest {
			return "-", "not known yet; it must prove a TPM to enroll"
		}
		return "-", "not known yet"
	case hsm.LevelAttested:
		return "tpm, proven", "a TPM, proven at enrollment: its maker vouches for the chip, and the identity key is in it"
	case hsm.LevelTPM:
		return "tpm, not proven", "a TPM, not proven: it is the terminal itself that says so"
	case hsm.LevelTPMSocket:
		return "emulator, not proven", "a TPM emulator, as the terminal says itself: for tests, never the field"
	case hsm.LevelFile:
		return i.Level, "a secret file on the terminal: a backup without that file is safe, a stolen box is not"
	}
	return i.Level, i.Level + ", not proven: it is the terminal itself that says so"
}

func commandInfo(c store.Command) CommandInfo {
	return CommandInfo{ID: c.ID, Kind: c.Kind, Credential: c.Credential, State: string(c.State), Detail: c.Detail, Created: c.Created}
}

func (s *Server) terminalAdd(ctx context.Context, call *control.Call) error {
	var in TerminalAddParams
	if err := call.Params(&in); err != nil {
		return err
	}
	name, err := parseName("terminal", in.Name)
	if err != nil {
		return err
	}
	key := hsm.RandomSecret(transport.CommonKeySize)
	defer key.Wipe()
	x := store.Terminal{Name: name, Kind: store.KindTerminal, Attest: store.AttestNone}
	detail := ""
	if in.Attest {
		x.Attest, detail = store.AttestRequired, ", must prove a TPM"
	}
	b, reply, err := s.bundle(ctx, in.Group, &x, key, in.ReplyKey)
	if err != nil {
		return err
	}
	x.Group = b.Group
	err = s.change(ctx, call, func(tx *store.Tx) (outcome, error) {
		if err := tx.AddTerminal(x, key); err != nil {
			return outcome{}, taken(err, name)
		}
		return outcome{}, errors.Join(putBundle(tx, b), tx.Audit("terminal.add", string(name), "group "+string(x.Group)+detail))
	})
	if err != nil {
		return err
	}
	return call.Reply(reply)
}

// taken explains why a terminal's name cannot be given.
func taken(err error, name transport.Name) error {
	if !errors.Is(err, store.ErrExists) {
		return err
	}
	return control.Problemf(control.Conflict, fmt.Sprintf("choose another name, or make a new bundle for this one with: kagimori-server terminal reenroll %s", name),
		"terminal %s exists already", name)
}

func (s *Server) terminalList(ctx context.Context, call *control.Call) error {
	var in ListParams
	if err := call.Params(&in); err != nil {
		return err
	}
	out := TerminalPage{Terminals: []TerminalInfo{}}
	err := s.store.View(ctx, func(tx *store.Tx) error {
		list, next, err := tx.Terminals(in.query(s.cfg.Now()))
		for _, x := range list {
			out.Terminals = append(out.Terminals, s.terminalInfo(x))
		}
		out.Next = next
		return err
	})
	if err != nil {
		return problem(err)
	}
	return call.Reply(out)
}

func (s *Server) terminalShow(ctx context.Context, call *control.Call) error {
	var in NameParams
	if err := call.Params(&in); err != nil {
		return err
	}
	out := TerminalDetail{Holds: []CredentialInfo{}, Pending: []CommandInfo{}}
	err := s.store.View(ctx, func(tx *store.Tx) error {
		x, err := findTerminal(tx, in.Name)
		if err != nil {
			return err
		}
		out.Terminal = s.terminalInfo(x)
		if c, err := tx.IdentityOf(x.Name, x.Device); err == nil {
			out.Serial, out.Expires = serialText(c.Serial), c.NotAfter
		} else if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		held, err := tx.HeldBy(x.Name)
		if err != nil {
			return err
		}
		for _, id := range idsOf(held) {
			c, err := s.credentialInfo(tx, id, false)
			if err != nil {
				return err
			}
			out.Holds = append(out.Holds, c)
		}
		pending, err := tx.Pending(x.Name)
		for _, c := range pending {
			out.Pending = append(out.Pending, commandInfo(c))
		}
		return err
	})
	if err != nil {
		return problem(err)
	}
	return call.Reply(out)
}

// idsOf lists the credentials of holdings, each once.
func idsOf(list []store.Holding) (ids []transport.Name) {
	for _, h := range list {
		if !slices.Contains(ids, h.Credential) {
			ids = append(ids, h.Credential)
		}
	}
	return ids
}

// identityEnds revokes a terminal's identity certificates and has it
// disconnected.
func (s *Server) identityEnds(tx *store.Tx, name transport.Name, reason int, why string) (outcome, error) {
	n, err := tx.RevokeIdentities(name, reason)
	if err == nil && n > 0 {
		err = s.relist(tx, ca.Identity)
	}
	return outcome{kick: map[transport.Name]string{name: why}}, err
}

// terminalReenroll lets a terminal enroll with another device: a new common
// key, a new bundle, and its identity so far revoked. What its earlier device
// held it is still thought to hold: the key copy may be just what comes next.
func (s *Server) terminalReenroll(ctx context.Context, call *control.Call) error {
	var in TerminalReenrollParams
	if err := call.Params(&in); err != nil {
		return err
	}
	var x store.Terminal
	err := s.store.View(ctx, func(tx *store.Tx) (err error) {
		x, err = findTerminal(tx, in.Name)
		return err
	})
	if err != nil {
		return problem(err)
	}
	key := hsm.RandomSecret(transport.CommonKeySize)
	defer key.Wipe()
	b, reply, err := s.bundle(ctx, string(x.Group), &x, key, in.ReplyKey)
	if err != nil {
		return err
	}
	made := reply.Notes
	err = s.change(ctx, call, func(tx *store.Tx) (outcome, error) {
		out, notes, err := s.expectAgain(tx, x.Name, key)
		reply.Notes = append(slices.Clone(made), notes...)
		return out, errors.Join(err, putBundle(tx, b), tx.Audit("terminal.reenroll", string(x.Name), ""))
	})
	if err != nil {
		return err
	}
	return call.Reply(reply)
}

func (s *Server) expectAgain(tx *store.Tx, name transport.Name, key *hsm.Secret) (out outcome, notes []string, err error) {
	x, err := tx.Terminal(name)
	if err != nil {
		return out, nil, err
	}
	if out, err = s.identityEnds(tx, name, ca.ReasonSuperseded, "it is to enroll anew"); err != nil {
		return out, nil, err
	}
	if err := errors.Join(endRecoveries(tx, name, "the terminal is to enroll anew"), tx.ExpectAgain(name, key)); err != nil {
		return out, nil, err
	}
	if x.State == store.TerminalRemoved {
		notes = append(notes, fmt.Sprintf("%s had been removed; it is expected again, without the credentials that it had", name))
	}
	if x.Kind == store.KindGate {
		gateOut, err := s.gateAgain(tx, x)
		out.settled, out.revoked = gateOut.settled, gateOut.revoked
		return out, notes, err
	}
	if out.settled, err = withdrawIssued(tx, name); err != nil {
		return out, notes, err
	}
	held, err := tx.HeldBy(name)
	held = slices.DeleteFunc(held, func(h store.Holding) bool { return !h.Active() })
	if ids := idsOf(held); len(ids) > 0 && x.State == store.TerminalEnrolled {
		notes = append(notes, fmt.Sprintf("the device that was %s until now still holds %s; copy what the new one needs, or issue it anew", name, join(ids)))
	}
	return out, notes, err
}

// withdrawIssued takes back the orders for which the earlier device has got its
// certificate: the new one could not obey them, with another key.
func withdrawIssued(tx *store.Tx, name transport.Name) (settled []transport.ID, err error) {
	pending, err := tx.Pending(name)
	for _, c := range pending {
		if c.Serial == nil {
			continue
		}
		err = errors.Join(err, tx.Settle(c.ID, store.CommandWithdrawn, "the terminal is to enroll anew"))
		settled = append(settled, c.ID)
		record, e := tx.Credential(c.Credential)
		if err = errors.Join(err, e); err == nil && renews(record, c) {
			err = renewed(tx, record, c) // its word for it is missing, but it may well have it
		}
	}
	return settled, err
}

func join(names []transport.Name) (s string) {
	for i, n := range names {
		if i > 0 {
			s += ", "
		}
		s += string(n)
	}
	return s
}
