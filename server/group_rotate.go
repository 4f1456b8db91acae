package server

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// Replacing a group's security code: rotate, resume, retire (group.go says what
// for). Each is one transaction with the orders to the terminals in it.

func (s *Server) groupRotate(ctx context.Context, call *control.Call) error {
	var in NameParams
	if err := call.Params(&in); err != nil {
		return err
	}
	code := hsm.RandomSecret(transport.SecurityCodeSize)
	defer code.Wipe()
	return s.changeGroup(ctx, call, in.Name, func(tx *store.Tx, g store.Group, reply *GroupChange) (told []transport.Name, err error) {
		codes, err := tx.Codes(g.Name)
		if err != nil {
			return nil, err
		}
		active := slices.DeleteFunc(codes, func(c store.Code) bool { return c.State != store.CodeActive })
		if len(active) >= maxActive {
			return nil, control.Problemf(control.Conflict, fmt.Sprintf("end the oldest first: kagimori-server group retire %s --epoch %d", g.Name, active[len(active)-1].Epoch),
				"group %s has %d security codes in force, the limit", g.Name, len(active))
		}
		if reply.Epoch, err = tx.RotateCode(g.Name, code); err != nil {
			return nil, err
		}
		told, err = tx.MembersWithout(g.Name, reply.Epoch)
		for _, name := range told {
			err = errors.Join(err, s.orderInstall(tx, name, g.Name, reply.Epoch))
		}
		return told, errors.Join(err, tx.Audit("group.rotate", string(g.Name), fmt.Sprintf("epoch %d, %d terminals told", reply.Epoch, len(told))))
	})
}

func (s *Server) groupResume(ctx context.Context, call *control.Call) error {
	var in NameParams
	if err := call.Params(&in); err != nil {
		return err
	}
	return s.changeGroup(ctx, call, in.Name, func(tx *store.Tx, g store.Group, reply *GroupChange) (told []transport.Name, err error) {
		codes, err := tx.Codes(g.Name)
		if err != nil {
			return nil, err
		}
		reply.Epoch = g.Epoch
		for _, c := range codes {
			if c.State != store.CodeActive {
				continue
			}
			lack, err := tx.MembersWithout(g.Name, c.Epoch, store.HolderHeld, store.HolderOrdered)
			if err != nil {
				return nil, err
			}
			for _, name := range lack {
				if err := s.orderInstall(tx, name, g.Name, c.Epoch); err != nil {
					return nil, err
				}
			}
			told = append(told, lack...)
		}
		stubborn, err := tx.KeepingRetired(g.Name)
		for _, name := range stubborn {
			_, e := s.orderForgotten(tx, name, g.Name, codes)
			err = errors.Join(err, e)
		}
		if err != nil {
			return nil, err
		}
		told = append(told, stubborn...)
		slices.Sort(told)
		told = slices.Compact(told)
		return told, tx.Audit("group.resume", string(g.Name), fmt.Sprintf("%d terminals told", len(told)))
	})
}

func (s *Server) groupRetire(ctx context.Context, call *control.Call) error {
	var in GroupRetireParams
	if err := call.Params(&in); err != nil {
		return err
	}
	return s.changeGroup(ctx, call, in.Name, func(tx *store.Tx, g store.Group, reply *GroupChange) (told []transport.Name, err error) {
		reply.Epoch = in.Epoch
		stranded, err := mayRetire(tx, g, in)
		if err != nil {
			return nil, err
		}
		reply.Lacking = len(stranded)
		if err := tx.RetireCode(g.Name, in.Epoch); err != nil {
			return nil, err
		}
		install, err := transport.Marshal(&transport.CodeInstall{Group: g.Name, Epoch: in.Epoch})
		if err != nil {
			return nil, err
		}
		if err := tx.WithdrawInstalls(install); err != nil {
			return nil, err
		}
		spares, err := tx.SpareBundles(g.Name)
		if err != nil {
			return nil, err
		}
		reply.Spares = spares[in.Epoch]
		// All of them: a spare bundle may have brought the code where nobody knows.
		if told, err = tx.MembersWithout(g.Name, in.Epoch, store.HolderRetiring); err != nil {
			return nil, err
		}
		for _, name := range told {
			err = errors.Join(err, s.orderRetire(tx, name, g.Name, []uint32{in.Epoch}), tx.SetHolder(name, in.Epoch, store.HolderRetiring))
		}
		return told, errors.Join(err, tx.Audit("group.retire", string(g.Name), fmt.Sprintf("epoch %d, %d terminals told, %d without another code", in.Epoch, len(told), len(stranded))))
	})
}

// mayRetire refuses to end the only code, or one that terminals cannot do
// without yet, and names those.
func mayRetire(tx *store.Tx, g store.Group, in GroupRetireParams) (stranded []transport.Name, err error) {
	codes, err := tx.Codes(g.Name)
	if err != nil {
		return nil, err
	}
	active := 0
	known := store.CodeState("")
	for _, c := range codes {
		if c.State == store.CodeActive {
			active++
		}
		if c.Epoch == in.Epoch {
			known = c.State
		}
	}
	show := "see: kagimori-server group show " + string(g.Name)
	switch {
	case known == "":
		return nil, control.Problemf(control.NotFound, show, "group %s has no security code of epoch %d", g.Name, in.Epoch)
	case known == store.CodeRetired:
		return nil, control.Problemf(control.Conflict, show, "epoch %d of group %s is retired already", in.Epoch, g.Name)
	case active == 1:
		return nil, control.Problemf(control.Conflict, "make a new one first: kagimori-server group rotate "+string(g.Name),
			"epoch %d is the only security code of group %s that is in force", in.Epoch, g.Name)
	}
	if stranded, err = tx.Stranded(g.Name, in.Epoch); err != nil {
		return nil, err
	}
	if len(stranded) > 0 && !in.Force {
		members, err := tx.Members(g.Name)
		if err != nil {
			return nil, err
		}
		return nil, control.Problemf(control.Conflict,
			fmt.Sprintf("let them connect first (kagimori-server group show %s), or add --force: until they have connected, no keys can be copied to or from them", g.Name),
			"%d of %d terminals of group %s have no other security code yet: %s", len(stranded), members, g.Name, firstOf(stranded, 5))
	}
	return stranded, nil
}

// firstOf names the first n, and counts the rest.
func firstOf(names []transport.Name, n int) string {
	if len(names) <= n {
		return join(names)
	}
	return fmt.Sprintf("%s and %d more", join(names[:n]), len(names)-n)
}

// changeGroup runs a change of a group that terminals are told of.
func (s *Server) changeGroup(ctx context.Context, call *control.Call, name string, do func(*store.Tx, store.Group, *GroupChange) ([]transport.Name, error)) error {
	var reply GroupChange
	err := s.change(ctx, call, func(tx *store.Tx) (outcome, error) {
		g, err := findGroup(tx, name)
		if err != nil {
			return outcome{}, err
		}
		reply = GroupChange{Group: g.Name}
		told, err := do(tx, g, &reply)
		if err != nil {
			return outcome{}, err
		}
		if g, err = tx.Group(g.Name); err != nil {
			return outcome{}, err
		}
		reply.Newest, reply.Ordered = g.Epoch, len(told)
		for _, t := range told {
			if s.connected(t) {
				reply.Connected++
			}
		}
		return outcome{wake: told}, nil
	})
	if err != nil {
		return err
	}
	return call.Reply(reply)
}
