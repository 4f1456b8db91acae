package agent

import (
	"slices"
	"strings"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// Which modes of the key copy this terminal takes part in. Both ends have a list
// of their own; the new terminal proposes one of its, and if the old one does not
// take it that is the end: nothing is ever fallen back to.

// modes are those that are enabled, the default first.
func (c *KeycopyConfig) modes() []transport.KeycopyMode {
	if len(c.Modes) == 0 {
		return []transport.KeycopyMode{transport.KeycopyPAKE}
	}
	return c.Modes
}

// identified says whether a mode needs an identity certificate at both ends.
func (c *KeycopyConfig) identified(mode transport.KeycopyMode) bool {
	return c.RequireIdentity || mode.SealsCode()
}

// propose chooses the mode of a fetch, before a code is used up for it. asked is
// what somebody asked for; "" is the first that is enabled.
func (c *KeycopyConfig) propose(asked transport.KeycopyMode, identity bool) (transport.KeycopyMode, error) {
	mode := asked
	if mode == "" {
		mode = c.modes()[0]
	}
	if !slices.Contains(transport.KeycopyModes(), mode) {
		return "", control.Problemf(control.BadInput, "choose one of: "+spellModes(c.modes()), "%.20q is no mode of the key copy", mode)
	}
	if !slices.Contains(c.modes(), mode) {
		return "", control.Problemf(control.Conflict, "leave --mode out, or add it to enabled in the [keycopy] section of both terminals' configuration", "mode %s is not enabled on this terminal; enabled: %s", mode, spellModes(c.modes()))
	}
	if c.identified(mode) && !identity {
		return "", noIdentity(mode)
	}
	return mode, nil
}

// offerable refuses to make a code that could not be used in any mode.
func (c *KeycopyConfig) offerable(identity bool) error {
	for _, m := range c.modes() {
		if identity || !c.identified(m) {
			return nil
		}
	}
	return noIdentity(c.modes()[0])
}

// answered are the modes that a Source's door speaks: those that are enabled, and
// those of copies that can still be gone on with. They go on in a mode that was
// switched off since: the codes were proven while it was on, the resume key is as
// good in any mode, and keys that are disabled here wait for it.
func (v *vault) answered(enabled []transport.KeycopyMode) ([]transport.KeycopyMode, error) {
	modes := slices.Clone(enabled)
	err := v.store.View(func(tx *store.Tx) error {
		return eachOpen(tx, func(d *dealRecord) error {
			if d.Deal.Side == transport.KeycopySource && !slices.Contains(modes, d.Deal.Mode) {
				modes = append(modes, d.Deal.Mode)
			}
			return nil
		})
	})
	return modes, err
}

func noIdentity(mode transport.KeycopyMode) error {
	return control.Problemf(control.Conflict, "let it connect to the management server (kagimori status says what is missing), or use mode pake without require_identity",
		"a copy in mode %s needs an identity certificate, and this terminal has none that is valid", mode)
}

func spellModes(modes []transport.KeycopyMode) string {
	list := make([]string, len(modes))
	for i, m := range modes {
		list[i] = string(m)
	}
	return strings.Join(list, ", ")
}
