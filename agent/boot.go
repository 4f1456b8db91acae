package agent

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport/control"
)

// Keys that open under a certain boot only: what there is to see, and two slots
// around an update (DESIGN D5).

// BootConfig is how keys are bound to the boot; nil: they are not.
type BootConfig struct {
	Registers []int
	// Authority names the key that approves boots, for people; empty: none.
	Authority string
	// Approvals looks at the files with approvals.
	Approvals func() []ApprovalFile
	// Read reads registers while key storage is not open.
	Read func(ctx context.Context, registers []int) (hsm.PCRs, error)
}

// ApprovalFile is one file with an approval.
type ApprovalFile struct {
	File    string `json:"file"`
	Problem string `json:"problem,omitempty"` // why it is not used
	// Current: it approves the present boot.
	Current bool `json:"current"`

	Approval hsm.Approval `json:"-"`
}

// Parameters and replies of the methods about the boot.
type (
	// BootRegister is one register.
	BootRegister struct {
		Register int    `json:"register"`
		Value    string `json:"value"` // hexadecimal, SHA-256 bank
		Measured bool   `json:"measured"`
	}
	// BootStatus is how keys are bound to the boot.
	BootStatus struct {
		Bound     bool           `json:"bound"` // as configured
		Bond      string         `json:"bond,omitempty"`
		Measured  bool           `json:"measured"`
		Registers []BootRegister `json:"registers"`
		Authority string         `json:"authority,omitempty"`
		Approvals []ApprovalFile `json:"approvals"`
		Slots     []store.Slot   `json:"slots"`
		Text      string         `json:"text"`
		Next      string         `json:"next,omitempty"`
	}
	// BootPrepareParams are values of the next boot, each REGISTER=HEX; registers
	// that are not named stay as they are.
	BootPrepareParams struct {
		Registers []string `json:"registers"`
	}
)

func (a *Agent) bootMethods() []control.Method {
	return []control.Method{
		{
			Name: "BootShow", Class: control.Read, Out: BootStatus{}, Handle: a.bootShow,
			Doc: "How this machine was booted, and which boots keys open under.",
		},
		{
			Name: "BootPrepare", Class: control.Admin, In: BootPrepareParams{}, Out: BootStatus{}, Handle: a.bootPrepare,
			Doc: "Has keys also open under the boot after an update.",
		},
		{
			Name: "BootConfirm", Class: control.Admin, Out: BootStatus{}, Handle: a.bootConfirm,
			Doc: "Ends the bond to the boot before an update, once the new one has opened.",
		},
	}
}

func (a *Agent) bootShow(ctx context.Context, call *control.Call) error {
	s, err := a.looks.boot.get(ctx, a.bootStatus)
	if err != nil {
		return err
	}
	return call.Reply(s)
}

// bootStatus works whether key storage is open or not.
func (a *Agent) bootStatus(ctx context.Context) (*BootStatus, error) {
	s := &BootStatus{Registers: []BootRegister{}, Approvals: []ApprovalFile{}, Slots: []store.Slot{}}
	b := a.cfg.Boot
	if b == nil {
		s.Text, s.Next = "keys are not bound to how this machine was booted", "to bind them: boot_registers in the [hsm] section of the configuration"
		return s, nil
	}
	s.Bound, s.Authority = true, b.Authority
	values, err := a.registers(ctx, b)
	if err != nil {
		p, _ := a.explain(err)
		return nil, p
	}
	for _, n := range slices.Sorted(slices.Values(b.Registers)) {
		v := values[n]
		s.Registers = append(s.Registers, BootRegister{n, hex.EncodeToString(v[:]), !values.Empty(n)})
		s.Measured = s.Measured || !values.Empty(n)
	}
	if b.Approvals != nil {
		for _, f := range b.Approvals() {
			f.Current = f.Problem == "" && maps.Equal(f.Approval.Values, values)
			s.Approvals = append(s.Approvals, f)
		}
	}
	v, err := a.open()
	if err == nil {
		st := v.store.State()
		s.Bond, s.Slots = st.Bond, append(s.Slots, st.Slots...)
	}
	a.describeBoot(s, v)
	return s, nil
}

// registers reads the PCRs that count.
func (a *Agent) registers(ctx context.Context, b *BootConfig) (hsm.PCRs, error) {
	if v, err := a.open(); err == nil {
		m, ok := v.module.(hsm.BootSealer)
		if !ok {
			return nil, fmt.Errorf("%w: this key storage has no registers", hsm.ErrNotMeasured)
		}
		return m.PCRs(ctx, b.Registers)
	}
	if b.Read == nil {
		return nil, fmt.Errorf("%w: this key storage has no registers", hsm.ErrNotMeasured)
	}
	return b.Read(ctx, b.Registers)
}

func (a *Agent) describeBoot(s *BootStatus, v *vault) {
	next := slices.ContainsFunc(s.Slots, func(x store.Slot) bool { return x.Name == "boot-next" })
	switch {
	case !s.Measured:
		s.Text = "nothing is measured into these registers: keys are not bound to the boot, whatever is configured"
		s.Next = "have the board's firmware or boot loader measure what it starts, or choose registers that it uses"
	case v == nil && errors.Is(a.Cause(), hsm.ErrBoot):
		s.Text = "keys do not open under this boot"
		s.Next = a.problemNext()
	case v == nil:
		s.Text, s.Next = "keys are not available", a.problemNext()
	case next:
		s.Text = "keys open under this boot and under the next one that was prepared"
		s.Next = "after the update, when all works: " + a.cfg.Program + " boot confirm"
	case s.Authority != "":
		s.Text = "keys open under every boot that the authority has approved"
	default:
		s.Text = "keys open under this boot only"
		s.Next = "before an update: " + a.cfg.Program + " boot prepare --register N=HEX"
	}
}

func (a *Agent) problemNext() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.problem == nil {
		return ""
	}
	return a.problem.Next
}

func (a *Agent) bootPrepare(ctx context.Context, call *control.Call) error {
	var in BootPrepareParams
	if err := call.Params(&in); err != nil {
		return err
	}
	if err := a.prepareBoot(ctx, in.Registers); err != nil {
		return err
	}
	return a.bootShow(ctx, call)
}

// prepareBoot makes a second slot for the boot after an update.
func (a *Agent) prepareBoot(ctx context.Context, registers []string) error {
	v, b, err := a.bound()
	if err != nil {
		return err
	}
	if b.Authority != "" {
		return control.Problemf(control.Conflict, "have the next boot approved: kagimori-server boot approve", "keys open under what the authority approves: there is nothing to prepare here")
	}
	policy := hsm.BootPolicy{Registers: b.Registers}
	if policy.Values, err = a.registers(ctx, b); err != nil {
		p, _ := a.explain(err)
		return p
	}
	if len(registers) == 0 {
		return control.Problemf(control.Usage, "say what changes: --register N=HEX", "no register is named")
	}
	for _, r := range registers {
		value, err := hsm.ParsePCR(r)
		if err != nil {
			return control.Problemf(control.BadInput, "write --register 7=HEX", "%w", err)
		}
		for n := range value {
			if !slices.Contains(b.Registers, n) {
				return control.Problemf(control.BadInput, fmt.Sprintf("name one of %v, or add it to boot_registers", b.Registers), "keys are not bound to register %d", n)
			}
		}
		maps.Copy(policy.Values, value)
	}
	if err := v.kept.Prepare(ctx, policy); err != nil {
		p, _ := a.explain(err)
		return p
	}
	v.done(audit.BootPrepared, b.Registers, "for %v", registers)
	v.anchor()
	a.changed()
	return nil
}

func (a *Agent) bootConfirm(ctx context.Context, call *control.Call) error {
	if err := a.confirmBoot(ctx); err != nil {
		return err
	}
	return a.bootShow(ctx, call)
}

// confirmBoot removes the slot of the boot before an update.
func (a *Agent) confirmBoot(ctx context.Context) error {
	v, b, err := a.bound()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(v.store.State().Slots, func(x store.Slot) bool { return x.Name == "boot-next" }) {
		return control.Problemf(control.Conflict, "see: "+a.cfg.Program+" boot show", "no other boot was prepared: there is nothing to confirm")
	}
	if err := v.kept.Confirm(ctx); err != nil {
		p, _ := a.explain(err)
		return p
	}
	v.done(audit.BootConfirmed, b.Registers, "")
	v.anchor()
	a.changed()
	return nil
}

// bound gives the vault and how it is bound, or why it is not.
func (a *Agent) bound() (*vault, *BootConfig, error) {
	v, err := a.open()
	if err != nil {
		return nil, nil, err
	}
	if a.cfg.Boot == nil {
		return nil, nil, control.Problemf(control.Conflict, "to bind them: boot_registers in the [hsm] section of the configuration", "keys are not bound to how this machine was booted")
	}
	return v, a.cfg.Boot, nil
}
