package server

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// Groups of terminals that share a security code (req: C1). A code is replaced
// in three steps: rotate makes a new one and gives it to every terminal, both
// are accepted for as long as that takes, retire ends the old one.

const (
	// maxGroups bounds the groups of a deployment.
	maxGroups = 256
	// maxActive is how many codes of one group may be in force: fewer than a
	// terminal holds, so that one that was away for long can still follow.
	maxActive = transport.MaxCodes / 2
	// laggardsShown is how many terminals that lack a code are named.
	laggardsShown = 20
)

// GroupInfo is a group in a list.
type GroupInfo struct {
	Group     transport.Name `json:"group"`
	Epoch     uint32         `json:"epoch"`     // the newest in force: new bundles carry it
	Active    []uint32       `json:"active"`    // all in force, newest first
	Terminals int            `json:"terminals"` // enrolled
	Lacking   int            `json:"lacking"`   // of them, that do not have the newest yet
}

// GroupPage is the list of groups.
type GroupPage struct {
	Groups []GroupInfo `json:"groups"`
}

// CodeInfo is the security code of an epoch, and how far its rollout is.
type CodeInfo struct {
	Epoch    uint32          `json:"epoch"`
	State    store.CodeState `json:"state"`
	Changed  time.Time       `json:"changed"`  // made, or retired
	Held     int             `json:"held"`     // by so many enrolled terminals
	Ordered  int             `json:"ordered"`  // so many are to take it when they are there
	Refused  int             `json:"refused"`  // so many did not take it, or not give it up
	Retiring int             `json:"retiring"` // so many are to forget it
	Spares   int             `json:"spares"`   // spare bundles that were made with it
}

// LaggardInfo is a terminal that lacks the newest code.
type LaggardInfo struct {
	Terminal  transport.Name `json:"terminal"`
	State     string         `json:"state"` // ordered, refused, or none
	Connected bool           `json:"connected"`
	Seen      time.Time      `json:"seen,omitzero"`
}

// GroupDetail is a group with its codes.
type GroupDetail struct {
	Group GroupInfo  `json:"group"`
	Codes []CodeInfo `json:"codes"` // newest first
	// Laggards are the first that lack the newest code, by name.
	Laggards []LaggardInfo `json:"laggards"`
}

// GroupRetireParams: Force retires a code although terminals have no other yet.
type GroupRetireParams struct {
	Name  string `json:"name"`
	Epoch uint32 `json:"epoch"`
	Force bool   `json:"force,omitempty"`
}

// GroupChange is what a change comes to.
type GroupChange struct {
	Group     transport.Name `json:"group"`
	Epoch     uint32         `json:"epoch"`            // that was made, or retired
	Newest    uint32         `json:"newest"`           // in force now
	Ordered   int            `json:"ordered"`          // terminals that are told
	Connected int            `json:"connected"`        // of them, that are there now
	Lacking   int            `json:"lacking"`          // terminals that have none of the codes in force yet
	Spares    int            `json:"spares,omitempty"` // spare bundles that are of no use any more
}

// groupMethods are on the control socket.
func (s *Server) groupMethods() []control.Method {
	return []control.Method{
		{Name: "GroupAdd", Doc: "Makes a group with a security code of its own.", Class: control.Admin,
			In: NameParams{}, Out: GroupChange{}, Handle: s.groupAdd},
		{Name: "GroupList", Doc: "Lists groups.", Class: control.Read, Out: GroupPage{}, Handle: s.groupList},
		{Name: "GroupShow", Doc: "Shows a group's security codes and how far each is rolled out.", Class: control.Read,
			In: NameParams{}, Out: GroupDetail{}, Handle: s.groupShow},
		{Name: "GroupRotate", Doc: "Makes a new security code and orders every terminal of the group to take it.", Class: control.Admin,
			In: NameParams{}, Out: GroupChange{}, Handle: s.groupRotate},
		{Name: "GroupResume", Doc: "Orders anew what terminals refused or were never told: to take the codes in force, to forget retired ones.", Class: control.Admin,
			In: NameParams{}, Out: GroupChange{}, Handle: s.groupResume},
		{Name: "GroupRetire", Doc: "Ends a security code, and orders every terminal of the group to forget it.", Class: control.Admin,
			In: GroupRetireParams{}, Out: GroupChange{}, Handle: s.groupRetire},
	}
}

// findGroup finds a group that a person named.
func findGroup(tx *store.Tx, name string) (store.Group, error) {
	g, err := tx.Group(transport.Name(name))
	if errors.Is(err, store.ErrNotFound) {
		return g, control.Problemf(control.NotFound, "see: kagimori-server group list", "there is no group %q", name)
	}
	return g, err
}

func (s *Server) groupAdd(ctx context.Context, call *control.Call) error {
	var in NameParams
	if err := call.Params(&in); err != nil {
		return err
	}
	name, err := parseName("group", in.Name)
	if err != nil {
		return err
	}
	code := hsm.RandomSecret(transport.SecurityCodeSize)
	defer code.Wipe()
	err = s.change(ctx, call, func(tx *store.Tx) (outcome, error) {
		groups, err := tx.Groups()
		if err != nil {
			return outcome{}, err
		}
		if len(groups) >= maxGroups {
			return outcome{}, control.Problemf(control.Conflict, "put the terminals into a group that is there", "there are %d groups, the limit", len(groups))
		}
		if slices.ContainsFunc(groups, func(g store.Group) bool { return g.Name == name }) {
			return outcome{}, control.Problemf(control.Conflict, "choose another name", "group %s exists already", name)
		}
		return outcome{}, errors.Join(tx.AddGroup(name, code), tx.Audit("group.add", string(name), ""))
	})
	if err != nil {
		return err
	}
	return call.Reply(GroupChange{Group: name, Epoch: 1, Newest: 1})
}

func groupInfo(tx *store.Tx, g store.Group) (GroupInfo, []store.Code, error) {
	i := GroupInfo{Group: g.Name, Epoch: g.Epoch, Active: []uint32{}}
	codes, err := tx.Codes(g.Name)
	for _, c := range codes {
		if c.State == store.CodeActive {
			i.Active = append(i.Active, c.Epoch)
		}
	}
	if err == nil {
		i.Terminals, err = tx.Members(g.Name)
	}
	if err == nil {
		var lacking []transport.Name
		lacking, err = tx.MembersWithout(g.Name, g.Epoch, store.HolderHeld)
		i.Lacking = len(lacking)
	}
	return i, codes, err
}

func (s *Server) groupList(ctx context.Context, call *control.Call) error {
	page := GroupPage{Groups: []GroupInfo{}}
	err := s.store.View(ctx, func(tx *store.Tx) error {
		groups, err := tx.Groups()
		if err != nil {
			return err
		}
		for _, g := range groups {
			i, _, err := groupInfo(tx, g)
			if err != nil {
				return err
			}
			page.Groups = append(page.Groups, i)
		}
		return nil
	})
	if err != nil {
		return problem(err)
	}
	return call.Reply(page)
}

func (s *Server) groupShow(ctx context.Context, call *control.Call) error {
	var in NameParams
	if err := call.Params(&in); err != nil {
		return err
	}
	out := GroupDetail{Codes: []CodeInfo{}, Laggards: []LaggardInfo{}}
	err := s.store.View(ctx, func(tx *store.Tx) error {
		g, err := findGroup(tx, in.Name)
		if err != nil {
			return err
		}
		var codes []store.Code
		if out.Group, codes, err = groupInfo(tx, g); err != nil {
			return err
		}
		if out.Codes, err = codeInfos(tx, g.Name, codes); err != nil {
			return err
		}
		laggards, err := tx.Laggards(g.Name, g.Epoch, laggardsShown)
		for _, l := range laggards {
			i := LaggardInfo{Terminal: l.Terminal, State: string(l.State), Connected: s.connected(l.Terminal), Seen: l.Seen}
			if i.State == "" {
				i.State = "none"
			}
			out.Laggards = append(out.Laggards, i)
		}
		return err
	})
	if err != nil {
		return problem(err)
	}
	return call.Reply(out)
}

func codeInfos(tx *store.Tx, group transport.Name, codes []store.Code) ([]CodeInfo, error) {
	counts, err := tx.CountHolders(group)
	if err != nil {
		return nil, err
	}
	spares, err := tx.SpareBundles(group)
	if err != nil {
		return nil, err
	}
	list := []CodeInfo{}
	for _, c := range codes {
		i := CodeInfo{Epoch: c.Epoch, State: c.State, Changed: c.Changed, Spares: spares[c.Epoch]}
		for _, n := range counts {
			if n.Epoch != c.Epoch {
				continue
			}
			switch n.State {
			case store.HolderHeld:
				i.Held = n.Count
			case store.HolderOrdered:
				i.Ordered = n.Count
			case store.HolderRefused:
				i.Refused = n.Count
			case store.HolderRetiring:
				i.Retiring = n.Count
			}
		}
		list = append(list, i)
	}
	return list, nil
}
