package server

import (
	"context"
	"errors"
	"fmt"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/server/ca"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// DefaultGroup is the group that Init makes.
const DefaultGroup transport.Name = "default"

// BundleReply is a bundle that was made: the file, sealed under a passphrase
// that is shown once, and the passphrase, sealed to the caller's key under
// PassphraseLabel.
type BundleReply struct {
	ID       transport.ID         `json:"id"`
	Kind     transport.BundleKind `json:"kind"`
	Group    transport.Name       `json:"group"`
	Epoch    uint32               `json:"epoch"`
	Terminal transport.Name       `json:"terminal,omitempty"`
	Service  transport.Name       `json:"service,omitempty"`
	// Attest says that the terminal must prove a TPM, and that the bundle has no
	// security code.
	Attest     bool   `json:"attest,omitempty"`
	Bundle     []byte `json:"bundle"`
	Passphrase string `json:"passphrase"`
	// Notes are what the caller should know besides.
	Notes []string `json:"notes,omitempty"`
}

// SpareAddParams: ReplyKey is a control.Reader's.
type SpareAddParams struct {
	Group    string `json:"group,omitempty"` // default: DefaultGroup
	ReplyKey string `json:"reply_key"`
}

// bundle makes and seals a bundle for x, or a spare one when x is nil. It
// changes nothing; key is the terminal's new common key.
func (s *Server) bundle(ctx context.Context, group string, x *store.Terminal, key *hsm.Secret, replyKey string) (*transport.Bundle, BundleReply, error) {
	name := DefaultGroup
	if group != "" {
		name = transport.Name(group)
	}
	b := &transport.Bundle{
		ID: transport.NewID(s.cfg.Random), Kind: transport.BundleSpare, Deployment: s.deployment.Name, Issued: s.cfg.Now().Unix(),
		Root: s.ca.Certificate(ca.Root).Raw, Group: name,
	}
	if x != nil {
		b.Kind, b.Terminal, b.Servers, b.CommonKey = transport.BundleTerminal, x.Name, s.deployment.Servers, transport.Sensitive(key.Bytes())
		if x.Kind == store.KindGate {
			b.Kind, b.Service = transport.BundleGate, x.Service
		}
		b.Attest = x.Attest == store.AttestRequired
	}
	if b.Attest && s.cfg.EKRoots == nil {
		return nil, BundleReply{}, control.Problemf(control.Conflict,
			"set ek_roots in the [attestation] section of the server's configuration to a PEM file with the CA certificates of the TPMs' maker, and restart the server",
			"a terminal cannot prove its TPM to this server, which knows no maker of TPMs")
	}
	var code *hsm.Secret
	err := s.store.View(ctx, func(tx *store.Tx) error {
		g, err := tx.Group(name)
		if errors.Is(err, store.ErrNotFound) {
			return control.Problemf(control.NotFound, "make it with: kagimori-server group add "+string(name)+"; or see: kagimori-server group list", "there is no group %q", name)
		}
		if err != nil {
			return err
		}
		b.Epoch = g.Epoch
		code, err = tx.SecurityCode(g)
		return err
	})
	if err != nil {
		return nil, BundleReply{}, problem(err)
	}
	defer code.Wipe()
	var notes []string
	if b.Attest {
		notes = append(notes, fmt.Sprintf("the bundle has no security code: %s gets it when it enrolls, into its TPM and nowhere else", x.Name))
	} else {
		b.SecurityCode = transport.Sensitive(code.Bytes())
		defer func() { b.SecurityCode = nil }()
	}
	file, passphrase, err := transport.SealBundle(b)
	if err != nil {
		return nil, BundleReply{}, err
	}
	defer passphrase.Wipe()
	sealed, err := control.SealTo(replyKey, PassphraseLabel, passphrase)
	if err != nil {
		return nil, BundleReply{}, err
	}
	return b, BundleReply{ID: b.ID, Kind: b.Kind, Group: b.Group, Epoch: b.Epoch, Terminal: b.Terminal, Service: b.Service,
		Attest: b.Attest, Bundle: file, Passphrase: sealed, Notes: notes}, nil
}

// putBundle records that a bundle was made. A group whose code has changed
// since then would make it useless at once.
func putBundle(tx *store.Tx, b *transport.Bundle) error {
	g, err := tx.Group(b.Group)
	if err != nil {
		return err
	}
	if g.Epoch != b.Epoch {
		return control.Problemf(control.Conflict, "try again", "the security code of group %s was replaced meanwhile", b.Group)
	}
	return tx.AddBundle(b)
}

func (s *Server) spareAdd(ctx context.Context, call *control.Call) error {
	var in SpareAddParams
	if err := call.Params(&in); err != nil {
		return err
	}
	b, reply, err := s.bundle(ctx, in.Group, nil, nil, in.ReplyKey)
	if err != nil {
		return err
	}
	err = s.change(ctx, call, func(tx *store.Tx) (outcome, error) {
		return outcome{}, errors.Join(putBundle(tx, b), tx.Audit("spare.add", b.ID.String(), "group "+string(b.Group)))
	})
	if err != nil {
		return err
	}
	return call.Reply(reply)
}
