package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// What administrators do about terminals that ask for the key of an earlier
// store: they look whether the box is the one that they sent somebody to.

// RecoveryParams names one request.
type RecoveryParams struct {
	ID string `json:"id"`
}

// RecoveryInfo is a request in a list.
type RecoveryInfo struct {
	ID       transport.ID               `json:"id"`
	Terminal transport.Name             `json:"terminal"`
	Device   transport.DeviceID         `json:"device"` // that asks
	Origin   transport.DeviceID         `json:"origin"` // that made the store
	State    transport.RecoveryProgress `json:"state"`
	Asked    time.Time                  `json:"asked"`
	Address  string                     `json:"address,omitempty"` // that it was asked from
	Decided  time.Time                  `json:"decided,omitzero"`
	Actor    string                     `json:"actor"` // who changed it last
	// Current says whether the device that asks is still this terminal.
	Current   bool   `json:"current"`
	Connected bool   `json:"connected"`
	Level     string `json:"level,omitempty"` // of the key storage that the key would go to
	Next      string `json:"next,omitempty"`
}

// RecoveryPage is one page; Next continues the list, empty at its end.
type RecoveryPage struct {
	Recoveries []RecoveryInfo `json:"recoveries"`
	Next       string         `json:"next,omitempty"`
}

// RecoveryDetail is a request with what is at stake.
type RecoveryDetail struct {
	Recovery RecoveryInfo     `json:"recovery"`
	Store    transport.ID     `json:"store"`
	Version  uint32           `json:"recovery_key_version"`
	Holds    []transport.Name `json:"holds"` // credentials that the earlier device still holds, as far as is known
}

func (s *Server) recoveryInfo(tx *store.Tx, x store.Recovery) (RecoveryInfo, error) {
	i := RecoveryInfo{ID: x.ID, Terminal: x.Terminal, Device: x.Device, Origin: x.Origin, State: x.State, Asked: x.Asked, Address: x.Address, Decided: x.Decided,
		Actor: x.Actor, Connected: s.connected(x.Terminal)}
	t, err := tx.Terminal(x.Terminal)
	if err != nil {
		return i, err
	}
	if t.State == store.TerminalEnrolled && t.Device == x.Device {
		i.Current, i.Level = true, t.Level
	}
	switch {
	case !i.Current && (x.State == transport.RecoveryAsked || x.State == transport.RecoveryApproved):
		i.Next = "nothing: the device that asks is no longer this terminal"
	case x.State == transport.RecoveryAsked:
		i.Next = fmt.Sprintf("if this box is the one that you had set up anew: kagimori-server recovery approve %s; else: kagimori-server recovery deny %s", x.ID, x.ID)
	case x.State == transport.RecoveryApproved && !i.Connected:
		i.Next = "nothing: it gets the key when it connects"
	}
	return i, nil
}

func (s *Server) recoveryList(ctx context.Context, call *control.Call) error {
	var in ListParams
	if err := call.Params(&in); err != nil {
		return err
	}
	out := RecoveryPage{Recoveries: []RecoveryInfo{}}
	err := s.store.View(ctx, func(tx *store.Tx) error {
		list, next, err := tx.Recoveries(in.query(s.cfg.Now()))
		out.Next = next
		for _, x := range list {
			i, e := s.recoveryInfo(tx, x)
			err = errors.Join(err, e)
			out.Recoveries = append(out.Recoveries, i)
		}
		return err
	})
	if err != nil {
		return problem(err)
	}
	return call.Reply(out)
}

// findRecovery finds a request that a person named.
func findRecovery(tx *store.Tx, id string) (store.Recovery, error) {
	const next = "see: kagimori-server recovery list"
	n, err := transport.ParseID(id)
	if err != nil {
		return store.Recovery{}, control.Problemf(control.BadInput, next, "recovery %w", err)
	}
	x, err := tx.Recovery(n)
	if errors.Is(err, store.ErrNotFound) {
		return x, control.Problemf(control.NotFound, next, "there is no recovery %s", n)
	}
	return x, err
}

func (s *Server) recoveryShow(ctx context.Context, call *control.Call) error {
	var in RecoveryParams
	if err := call.Params(&in); err != nil {
		return err
	}
	out := RecoveryDetail{Holds: []transport.Name{}}
	err := s.store.View(ctx, func(tx *store.Tx) error {
		x, err := findRecovery(tx, in.ID)
		if err != nil {
			return err
		}
		var w transport.RecoveryWrap
		if err := transport.Unmarshal(x.Wrap, &w, transport.MaxRecoveryRecord); err != nil {
			return err
		}
		out.Store, out.Version = w.Store, w.Version
		if out.Recovery, err = s.recoveryInfo(tx, x); err != nil {
			return err
		}
		held, err := tx.HeldBy(x.Terminal)
		for _, h := range held {
			if h.Device == x.Origin && !slices.Contains(out.Holds, h.Credential) {
				out.Holds = append(out.Holds, h.Credential)
			}
		}
		return err
	})
	if err != nil {
		return problem(err)
	}
	return call.Reply(out)
}

func (s *Server) recoveryApprove(ctx context.Context, call *control.Call) error {
	return s.recoveryDecide(ctx, call, transport.RecoveryApproved)
}

func (s *Server) recoveryDeny(ctx context.Context, call *control.Call) error {
	return s.recoveryDecide(ctx, call, transport.RecoveryDenied)
}

// recoveryDecide approves or denies a request, and lets its terminal know. What
// is so already is no second decision.
func (s *Server) recoveryDecide(ctx context.Context, call *control.Call, to transport.RecoveryProgress) error {
	var in RecoveryParams
	if err := call.Params(&in); err != nil {
		return err
	}
	var info RecoveryInfo
	err := s.change(ctx, call, func(tx *store.Tx) (out outcome, err error) {
		x, err := findRecovery(tx, in.ID)
		if err != nil {
			return out, err
		}
		due, err := s.mayDecide(tx, x, to)
		if err != nil {
			return out, err
		}
		if due {
			action := map[transport.RecoveryProgress]string{transport.RecoveryApproved: "recovery.approve", transport.RecoveryDenied: "recovery.deny"}[to]
			err = errors.Join(tx.DecideRecovery(x.ID, x.State, to),
				tx.Audit(action, x.ID.String(), fmt.Sprintf("terminal %s device %s, store of device %s", x.Terminal, x.Device, x.Origin)))
			if err != nil {
				return out, err
			}
			if x, err = tx.Recovery(x.ID); err != nil {
				return out, err
			}
		}
		info, err = s.recoveryInfo(tx, x)
		return out, err
	})
	if err != nil {
		return err
	}
	if info.Current && info.State == to {
		s.send(string(info.Terminal), nil, &transport.RecoveryState{ID: info.ID, State: info.State})
	}
	return call.Reply(info)
}

// mayDecide says whether a request has to be changed to be decided so, or
// explains why it cannot be. What was approved and has come further since needs
// no change: a script may say it twice.
func (s *Server) mayDecide(tx *store.Tx, x store.Recovery, to transport.RecoveryProgress) (due bool, err error) {
	sent := x.State == transport.RecoveryReleased || x.State == transport.RecoveryDone
	if sent && to == transport.RecoveryApproved {
		return false, nil
	}
	t, err := tx.Terminal(x.Terminal)
	if err != nil {
		return false, err
	}
	switch {
	case sent:
		return false, control.Problemf(control.Conflict, "if that was wrong, revoke what it holds: kagimori-server credential revoke ID",
			"the key has been released to %s already", x.Terminal)
	case x.State == store.RecoveryGivenUp && to == transport.RecoveryDenied:
		return false, nil // nothing is released
	case x.State == store.RecoveryGivenUp:
		return false, control.Problemf(control.Conflict, "nothing: if it still wants a key, it asks anew; see: kagimori-server recovery list",
			"%s has given this request up: it has the key from elsewhere, or the store is gone", x.Terminal)
	case to == transport.RecoveryApproved && (t.State != store.TerminalEnrolled || t.Device != x.Device):
		return false, control.Problemf(control.Conflict, "see: kagimori-server terminal show "+string(x.Terminal),
			"the device that asks is not %s any more: the key is released to an enrolled terminal only", x.Terminal)
	}
	return x.State != to, nil
}
