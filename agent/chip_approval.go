package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/tpm"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// The fleet's word that this terminal's chip is one that keys may come to. The
// server gives it on a connection, or an administrator brings it as a file.

const (
	bucketChip  = "chip"
	keyApproval = "approval" // transport.ChipApproval
)

// parent is the storage key of this terminal's chip, nil without one.
func (v *vault) parent(ctx context.Context) ([]byte, error) {
	chip, ok := v.module.(hsm.Migrator)
	if !ok {
		return nil, nil
	}
	return chip.Parent(ctx)
}

// approval is what is known of this chip, nil if nothing is. One that was given
// for an earlier chip is none.
func (v *vault) approval(parent []byte) (a *transport.ChipApproval, err error) {
	err = v.store.View(func(tx *store.Tx) error {
		var r transport.ChipApproval
		found, err := tx.Get(bucketChip, keyApproval, &r)
		if found && bytes.Equal(r.Parent, parent) {
			a = &r
		}
		return err
	})
	return a, err
}

// approved is the approval of this terminal's chip; nil without chip or approval.
func (v *vault) approved(ctx context.Context) (*transport.ChipApproval, error) {
	parent, err := v.parent(ctx)
	if err != nil || parent == nil {
		return nil, err
	}
	a, err := v.approval(parent)
	if err != nil || a == nil || checkApproval(a) != nil {
		return nil, err
	}
	return a, nil
}

// checkApproval looks at the signature.
func checkApproval(a *transport.ChipApproval) error {
	if err := a.Check(); err != nil {
		return err
	}
	fleet, err := transport.ParseFleetKey(a.Fleet)
	if err != nil {
		return err
	}
	return tpm.CheckParentApproval(fleet, a.Parent, a.Signature)
}

// keycopyParent is what this terminal says of its chip in HELLO; nil if no key
// can come to a chip here.
func (v *vault) keycopyParent(ctx context.Context) (*transport.KeycopyParent, error) {
	a, err := v.approved(ctx)
	if err != nil || a == nil {
		return nil, err
	}
	return &transport.KeycopyParent{Public: a.Parent, Approval: a.Signature}, nil
}

// sayChip tells the server which chip this is.
func (s *session) sayChip() error {
	ctx, cancel := context.WithTimeout(context.Background(), chipTime)
	defer cancel()
	parent, err := s.parent(ctx)
	if err != nil || parent == nil {
		return err
	}
	return s.say(&transport.ChipReport{Parent: parent}, question{state: true})
}

// chipAnswer takes what the server says of this chip. That it has not approved
// it does not undo what an administrator brought.
func (s *session) chipAnswer(ctx context.Context, m *transport.ChipApproval) error {
	if err := m.Check(); err != nil {
		return err
	}
	parent, err := s.parent(ctx)
	if err != nil {
		return err
	}
	if parent == nil || !bytes.Equal(parent, m.Parent) {
		return errors.New("an approval of another chip")
	}
	before, err := s.approval(parent)
	if err != nil {
		return err
	}
	had := before != nil && checkApproval(before) == nil && bytes.Equal(before.Fleet, m.Fleet)
	if len(m.Signature) == 0 {
		if had || before != nil && before.Why == m.Why && bytes.Equal(before.Fleet, m.Fleet) {
			return nil
		}
		return s.update(func(tx *store.Tx) error { return tx.Put(bucketChip, keyApproval, m) })
	}
	if err := checkApproval(m); err != nil {
		return fmt.Errorf("the server's approval of this chip: %w", err)
	}
	if had {
		return nil
	}
	return s.keepApproval(m, "by the server")
}

func (v *vault) keepApproval(a *transport.ChipApproval, how string) error {
	return v.update(func(tx *store.Tx) error {
		return errors.Join(tx.Put(bucketChip, keyApproval, a), v.audit(tx, audit.ChipApproved, chipName(a.Parent), "%s", how))
	})
}

// chipName is the Name of a storage key, as tpm2-tools show it.
func chipName(parent []byte) string {
	sum := sha256.Sum256(parent)
	return "000b" + hex.EncodeToString(sum[:])
}

// ChipStatus is which chip this terminal has, and whether keys may come to it.
type ChipStatus struct {
	Present  bool      `json:"present"`
	Level    hsm.Level `json:"level"`
	Chip     string    `json:"chip,omitempty"` // Name of its storage key
	Approved bool      `json:"approved"`
	Text     string    `json:"text"`
	Next     string    `json:"next,omitempty"`
	// File is for kagimori-server chip approve.
	File []byte `json:"file,omitempty"`
}

// ChipInstallParams: File is what kagimori-server chip approve wrote.
type ChipInstallParams struct {
	File []byte `json:"file"`
}

// chipMethods are those of the control socket.
func (a *Agent) chipMethods() []control.Method {
	return []control.Method{
		{
			Name: "ChipShow", Class: control.Read, Out: ChipStatus{}, Handle: a.chipShow,
			Doc: "Which chip this terminal has, and whether the fleet has approved it as a place for keys.",
		},
		{
			Name: "ChipInstall", Class: control.Admin, In: ChipInstallParams{}, Out: ChipStatus{}, Handle: a.chipInstall,
			Doc: "Takes in an approval of this terminal's chip, as kagimori-server chip approve wrote it.",
		},
	}
}

func (a *Agent) chipShow(ctx context.Context, call *control.Call) error {
	v, err := a.open()
	if err != nil {
		return err
	}
	s, err := a.chipStatus(ctx, v)
	if err != nil {
		return err
	}
	return call.Reply(s)
}

func (a *Agent) chipStatus(ctx context.Context, v *vault) (s ChipStatus, err error) {
	s = ChipStatus{Level: v.module.Level(), Text: "this terminal has no chip: keys that live in one cannot come here"}
	parent, err := v.parent(ctx)
	if err != nil {
		problem, _ := storageProblem(err)
		return s, problem
	}
	if parent == nil {
		return s, nil
	}
	s.Present, s.Chip = true, chipName(parent)
	if s.File, err = transport.FormatChip(parent); err != nil {
		return s, err
	}
	known, err := v.approval(parent)
	switch {
	case err != nil:
		return s, err
	case known != nil && checkApproval(known) == nil:
		s.Approved, s.Text = true, "approved: keys that live in a chip may come to this one"
	default:
		s.Text = "not approved yet: keys that live in a chip cannot come to this one"
		if known != nil && known.Why != "" {
			s.Text += ": " + known.Why
		}
		s.Next = "let it connect to the management server; or write " + a.cfg.Program + " chip show --out FILE, have the file approved (kagimori-server chip approve FILE), and bring the answer: " + a.cfg.Program + " chip install"
	}
	return s, nil
}

func (a *Agent) chipInstall(ctx context.Context, call *control.Call) error {
	var in ChipInstallParams
	if err := call.Params(&in); err != nil {
		return err
	}
	v, err := a.open()
	if err != nil {
		return err
	}
	if err := a.installApproval(ctx, v, in.File); err != nil {
		return err
	}
	s, err := a.chipStatus(ctx, v)
	if err != nil {
		return err
	}
	return call.Reply(s)
}

func (a *Agent) installApproval(ctx context.Context, v *vault, file []byte) error {
	deployment, given, err := transport.ParseChipApproval(file)
	if err != nil {
		return control.Problemf(control.BadInput, "name the file that `kagimori-server chip approve` wrote", "%w", err)
	}
	self, err := v.self()
	if err != nil {
		return err
	}
	if self == nil {
		return control.Problemf(control.Conflict, "take in a bundle first: "+a.cfg.Program+" provision BUNDLE", "this device belongs to no deployment yet")
	}
	self.wipe()
	if self.Deployment != deployment {
		return control.Problemf(control.Refused, "have it approved by the server of "+string(self.Deployment), "the approval is of deployment %s, this terminal is of %s", deployment, self.Deployment)
	}
	parent, err := v.parent(ctx)
	if err != nil {
		problem, _ := storageProblem(err)
		return problem
	}
	switch {
	case parent == nil:
		return control.Problemf(control.Conflict, "set key storage to \"tpm\" on a device that has one", "this terminal has no chip")
	case !bytes.Equal(parent, given.Parent):
		return control.Problemf(control.Refused, "write a new file on this terminal and have that approved: "+a.cfg.Program+" chip show --out FILE",
			"the approval is of the chip %.20s..., this one is %.20s...", chipName(given.Parent), chipName(parent))
	}
	if err := checkApproval(given); err != nil {
		return control.Problemf(control.BadInput, "have it approved again: kagimori-server chip approve", "%w", err)
	}
	return v.keepApproval(given, "by hand")
}
