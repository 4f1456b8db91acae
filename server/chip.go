package server

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/tpm"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// Chips that keys may go to (docs/tpm.md). The fleet key signs storage keys of
// chips: of one that was proven at enrollment by itself, of any other when an
// administrator vouches for it. An approval is for good, since chips know no
// time; it is worth something only to who has a chip key to give away.

const metaFleetKey = "fleet_key"

// fleetKey is the key that approves chips. There is one for good: keys that
// were made under it obey no other.
type fleetKey struct {
	Public []byte   `cbor:"1,keyasint"` // DER SubjectPublicKeyInfo
	Key    hsm.Blob `cbor:"2,keyasint"`
}

// loadFleetKey reads it; a deployment without one gets it.
func (s *Server) loadFleetKey(ctx context.Context) error {
	var raw []byte
	err := s.store.View(ctx, func(tx *store.Tx) (err error) {
		raw, err = tx.Meta(metaFleetKey)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return s.makeFleetKey(ctx)
	}
	if err != nil {
		return fmt.Errorf("read the fleet key: %w", err)
	}
	var k fleetKey
	err = transport.Unmarshal(raw, &k, transport.FleetKeySize+hsm.MaxBlob+32)
	if err == nil {
		_, err = transport.ParseFleetKey(k.Public)
	}
	if err != nil {
		return fmt.Errorf("read the fleet key: it is damaged (%w)", err)
	}
	s.fleet = k
	return nil
}

func (s *Server) makeFleetKey(ctx context.Context) error {
	blob, err := s.module.NewKey(ctx)
	if err != nil {
		return fmt.Errorf("make the fleet key: %w", err)
	}
	signer, err := s.module.Signer(ctx, blob)
	if err != nil {
		return fmt.Errorf("make the fleet key: %w", err)
	}
	defer signer.Close()
	public, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		return fmt.Errorf("make the fleet key: %w", err)
	}
	k := fleetKey{Public: public, Key: blob}
	raw, err := transport.Marshal(&k)
	if err != nil {
		return err
	}
	err = s.store.Update(ctx, s.by(actorServer), func(tx *store.Tx) error {
		return errors.Join(tx.PutMeta(metaFleetKey, raw), tx.Audit("server.fleet-key", string(s.deployment.Name), ""))
	})
	if err != nil {
		return fmt.Errorf("keep the fleet key: %w", err)
	}
	s.fleet = k
	s.log.Info("fleet key made")
	return nil
}

// chipReport tells a terminal whether its chip is approved; one that was proven
// at enrollment is, from now on.
func (s *Server) chipReport(ctx context.Context, ses *session, m *transport.ChipReport) (outcome, error) {
	reply := &transport.ChipApproval{Fleet: s.fleet.Public, Parent: m.Parent}
	if err := tpm.CheckParent(m.Parent); err != nil || len(m.Parent) > transport.MaxChipParent {
		return refusal(transport.FaultMalformed, ""), nil
	}
	var chip store.Chip
	var proven bool
	err := s.store.View(ctx, func(tx *store.Tx) error {
		if _, err := ses.stillIn(tx); err != nil {
			return err
		}
		e, err := tx.EndorsementOf(ses.device)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		proven = err == nil && bytes.Equal(e.Root, m.Parent)
		chip, err = tx.Chip(m.Parent)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		return err
	})
	if err == nil && chip.Signature == nil && proven {
		chip, err = s.approveChip(ctx, s.by(ses.actor()), store.Chip{Parent: m.Parent, Origin: store.ChipProven, Device: &ses.device})
	}
	if err != nil {
		return outcome{}, err
	}
	if reply.Signature = chip.Signature; reply.Signature == nil {
		reply.Why = fmt.Sprintf("%s has not proven its chip to the server: have it do so (kagimori-server terminal reenroll %[1]s --attest), or let an administrator vouch for it (kagimori-server chip approve)", ses.terminal)
	}
	return outcome{reply: reply}, nil
}

// approveChip signs a storage key and keeps that. Of one that is approved
// already it gives what there is.
func (s *Server) approveChip(ctx context.Context, by store.By, c store.Chip) (store.Chip, error) {
	signer, err := s.module.Signer(ctx, s.fleet.Key)
	if err != nil {
		return c, later(fmt.Errorf("open the fleet key: %w", err))
	}
	defer signer.Close()
	if c.Signature, err = tpm.ApproveParent(signer, c.Parent); err != nil {
		return c, later(err)
	}
	err = s.store.Update(ctx, by, func(tx *store.Tx) error {
		before, err := tx.Chip(c.Parent)
		if err == nil {
			c = before
			return nil
		}
		if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		c.Approved, c.Actor = by.At, by.Actor
		return errors.Join(tx.AddChip(c), tx.Audit("chip.approve", chipName(c), string(c.Origin)))
	})
	return c, err
}

// chipName is how people know a chip: by its storage key, as the Name of that
// begins in tpm2-tools.
func chipName(c store.Chip) string {
	id := c.ID()
	return "000b" + hex.EncodeToString(id[:])
}

// ChipApproveParams: File is what `kagimori chip show -o` wrote.
type ChipApproveParams struct {
	File []byte `json:"file"`
}

// ChipApproved is an approval; File is for `kagimori chip install`.
type ChipApproved struct {
	Chip ChipInfo `json:"chip"`
	File []byte   `json:"file"`
	// Before says that it was approved before.
	Before bool `json:"before"`
}

// ChipInfo is an approved chip.
type ChipInfo struct {
	Chip     string              `json:"chip"` // Name of its storage key
	Origin   store.ChipOrigin    `json:"origin"`
	Device   *transport.DeviceID `json:"device,omitempty"` // that proved it
	Approved time.Time           `json:"approved"`
	Actor    string              `json:"actor"`
}

// ChipPage is one page; Next continues the list, empty at its end.
type ChipPage struct {
	Chips []ChipInfo `json:"chips"`
	Next  string     `json:"next,omitempty"`
}

func chipInfo(c store.Chip) ChipInfo {
	return ChipInfo{Chip: chipName(c), Origin: c.Origin, Device: c.Device, Approved: c.Approved, Actor: c.Actor}
}

// chipMethods are the control socket's.
func (s *Server) chipMethods() []control.Method {
	return []control.Method{
		{Name: "ChipApprove", Doc: "Approves a chip that an administrator vouches for as a place for keys, for good.", Class: control.Admin,
			In: ChipApproveParams{}, Out: ChipApproved{}, Handle: s.chipApprove},
		{Name: "ChipList", Doc: "Lists approved chips, page by page.", Class: control.Read,
			In: ListParams{}, Out: ChipPage{}, Handle: s.chipList},
	}
}

func (s *Server) chipApprove(ctx context.Context, call *control.Call) error {
	var in ChipApproveParams
	if err := call.Params(&in); err != nil {
		return err
	}
	parent, err := transport.ParseChip(in.File)
	if err == nil {
		err = tpm.CheckParent(parent)
	}
	if err != nil {
		return control.Problemf(control.BadInput, "name the file that `kagimori chip show --out FILE` wrote on the terminal", "%w", err)
	}
	by := s.by(caller(call))
	c, err := s.approveChip(ctx, by, store.Chip{Parent: parent, Origin: store.ChipVouched})
	if err != nil {
		return problem(err)
	}
	file, err := transport.FormatChipApproval(s.deployment.Name, &transport.ChipApproval{Fleet: s.fleet.Public, Parent: c.Parent, Signature: c.Signature})
	if err != nil {
		return err
	}
	return call.Reply(ChipApproved{Chip: chipInfo(c), File: file, Before: !c.Approved.Equal(by.At)})
}

func (s *Server) chipList(ctx context.Context, call *control.Call) error {
	var in ListParams
	if err := call.Params(&in); err != nil {
		return err
	}
	out := ChipPage{Chips: []ChipInfo{}}
	err := s.store.View(ctx, func(tx *store.Tx) error {
		list, next, err := tx.Chips(in.query(s.cfg.Now()))
		for _, c := range list {
			out.Chips = append(out.Chips, chipInfo(c))
		}
		out.Next = next
		return err
	})
	if err != nil {
		return problem(err)
	}
	return call.Reply(out)
}
