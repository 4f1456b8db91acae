package server

import (
	"errors"
	"fmt"
	"slices"

	"github.com/kagimori/kagimori/hsm/attest"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// Security codes on their way to terminals and back out of them (group.go has
// what administrators do). An order never has the code in it: the table of
// commands would keep it in clear. It goes in when the terminal fetches the
// order.

// orderInstall tells a terminal to take the code of an epoch.
func (s *Server) orderInstall(tx *store.Tx, terminal, group transport.Name, epoch uint32) error {
	body, err := transport.Marshal(&transport.CodeInstall{Group: group, Epoch: epoch})
	if err != nil {
		return err
	}
	if err := tx.AddCommand(store.Command{ID: transport.NewID(s.cfg.Random), Terminal: terminal, Kind: transport.CommandCodeInstall, Body: body}); err != nil {
		return err
	}
	return tx.SetHolder(terminal, epoch, store.HolderOrdered)
}

// orderRetire tells a terminal to forget the codes of epochs, ascending.
func (s *Server) orderRetire(tx *store.Tx, terminal, group transport.Name, epochs []uint32) error {
	body, err := transport.Marshal(&transport.CodeRetire{Group: group, Epochs: epochs})
	if err != nil {
		return err
	}
	return tx.AddCommand(store.Command{ID: transport.NewID(s.cfg.Random), Terminal: terminal, Kind: transport.CommandCodeRetire, Body: body})
}

// installBody is the body of an order with the code in it: wrapped to the chip
// that the terminal's device has proven, else as it is, over mutual TLS. A code
// that was retired meanwhile is store.ErrNotFound. Wipe it once it is sent.
func installBody(tx *store.Tx, x store.Terminal, c store.Command) ([]byte, error) {
	var m transport.CodeInstall
	if err := transport.Unmarshal(c.Body, &m, transport.MaxEnvelope); err != nil {
		return nil, err
	}
	code, err := tx.SecurityCode(store.Group{Name: m.Group, Epoch: m.Epoch})
	if err != nil {
		return nil, err
	}
	defer code.Wipe()
	chip, err := tx.EndorsementOf(x.Device)
	switch {
	case errors.Is(err, store.ErrNotFound):
		m.Code = transport.Sensitive(code.Bytes())
	case err != nil:
		return nil, err
	default:
		w, err := attest.WrapMAC(chip.Root, code)
		if err != nil {
			return nil, err
		}
		m.Wrapped = &transport.WrappedCode{Group: m.Group, Epoch: m.Epoch, Public: w.Public, Duplicate: w.Duplicate, Seed: w.Seed}
	}
	return transport.Marshal(&m)
}

// orderForgotten tells a terminal again to forget the retired codes that it did
// not give up: it keeps its last one, so whoever was away while that was retired
// could obey only once it had another. It says whether there are any.
func (s *Server) orderForgotten(tx *store.Tx, terminal, group transport.Name, codes []store.Code) (bool, error) {
	has, err := tx.Holders(terminal)
	if err != nil {
		return false, err
	}
	var epochs []uint32
	for _, c := range slices.Backward(codes) { // ascending
		if c.State == store.CodeRetired && has[c.Epoch] == store.HolderRefused && len(epochs) < transport.MaxRetired {
			epochs = append(epochs, c.Epoch)
			err = errors.Join(err, tx.SetHolder(terminal, c.Epoch, store.HolderRetiring))
		}
	}
	if err != nil || len(epochs) == 0 {
		return false, err
	}
	return true, s.orderRetire(tx, terminal, group, epochs)
}

// settleCode notes what an order about a code came to.
func (s *Server) settleCode(tx *store.Tx, c store.Command, state transport.CommandState) error {
	switch c.Kind {
	case transport.CommandCodeInstall:
		var m transport.CodeInstall
		if err := transport.Unmarshal(c.Body, &m, transport.MaxEnvelope); err != nil {
			return err
		}
		if state != transport.CommandDone {
			return tx.SetHolder(c.Terminal, m.Epoch, store.HolderRefused)
		}
		if err := tx.SetHolder(c.Terminal, m.Epoch, store.HolderHeld); err != nil {
			return err
		}
		codes, err := tx.Codes(m.Group)
		if err != nil {
			return err
		}
		_, err = s.orderForgotten(tx, c.Terminal, m.Group, codes)
		return err
	case transport.CommandCodeRetire:
		var m transport.CodeRetire
		if err := transport.Unmarshal(c.Body, &m, transport.MaxEnvelope); err != nil {
			return err
		}
		held, err := tx.Holders(c.Terminal)
		for _, epoch := range m.Epochs {
			switch {
			case state == transport.CommandDone:
				err = errors.Join(err, tx.DropHolder(c.Terminal, epoch))
			case held[epoch] != "":
				err = errors.Join(err, tx.SetHolder(c.Terminal, epoch, store.HolderRefused))
			}
		}
		return err
	}
	return nil
}

// codesAtEnrollment brings a terminal that has just enrolled to the codes of
// its group. given is the epoch whose code it gets with this very enrollment, 0
// if it has one from its bundle. An enrollment that is repeated orders nothing
// twice.
func (s *Server) codesAtEnrollment(tx *store.Tx, name transport.Name, given uint32) error {
	x, err := tx.Terminal(name)
	if err != nil || x.Kind != store.KindTerminal {
		return err
	}
	held, fresh := given, given != 0
	if !fresh {
		if held, err = tx.BundleEpoch(name); err != nil {
			return fmt.Errorf("find the terminal's bundle: %w", err)
		}
	}
	has, err := tx.Holders(name)
	if err != nil {
		return err
	}
	if fresh && has[held] != store.HolderHeld {
		// Of a reply that was lost nothing is there.
		if err := tx.DropHolders(name); err != nil {
			return err
		}
		has = map[uint32]store.HolderState{}
	}
	first := len(has) == 0
	if has[held] == "" {
		has[held] = store.HolderHeld
		if err := tx.SetHolder(name, held, store.HolderHeld); err != nil {
			return err
		}
	}
	codes, err := tx.Codes(x.Group)
	if err != nil {
		return err
	}
	var retired []uint32
	for _, c := range codes {
		switch {
		case c.State == store.CodeRetired:
			if len(retired) < transport.MaxRetired {
				retired = append(retired, c.Epoch)
			}
		case has[c.Epoch] == "":
			if err := s.orderInstall(tx, name, x.Group, c.Epoch); err != nil {
				return err
			}
		}
	}
	if !first || len(retired) == 0 {
		return nil
	}
	// What the bundle brought, or a spare one before it, may be retired by now.
	slices.Reverse(retired)
	if slices.Contains(retired, held) {
		if err := tx.SetHolder(name, held, store.HolderRetiring); err != nil {
			return err
		}
	}
	return s.orderRetire(tx, name, x.Group, retired)
}
