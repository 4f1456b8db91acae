package agent

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"slices"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
)

// Keys in the chip, in a key copy: they go from chip to chip, wrapped, and are
// in clear nowhere between (docs/tpm.md).

// maxChipKeys is how many of them one copy carries: a slow chip takes half a
// second for each while the other end waits.
const maxChipKeys = 16

// given are the records that a Source may give (keycopy.SourceConfig.Records).
func (v *vault) given(ctx context.Context, selected, wanted []transport.Name, parent *transport.KeycopyParent) ([]transport.CredentialRecord, []transport.KeycopyWithheld, error) {
	records, away, err := v.records(selected)
	if err != nil {
		return nil, nil, err
	}
	left, stay := v.forCopy(ctx, records, wanted, parent)
	return left, append(away, stay...), nil
}

// forCopy readies records for a copy to the terminal whose chip is parent, nil
// if it named none: keys in the chip are wrapped to that, if they are wanted
// (empty means all), or stay behind and are wiped. It gives the records that are
// left and why the others stay. A record that may not be copied anyway is left
// to keycopy.Choose to refuse.
func (v *vault) forCopy(ctx context.Context, records []transport.CredentialRecord, wanted []transport.Name, parent *transport.KeycopyParent) (left []transport.CredentialRecord, withheld []transport.KeycopyWithheld) {
	wrapped := 0
	left = records[:0]
	for i := range records {
		r := records[i]
		if !travelsWrapped(&r) {
			left = append(left, r)
			continue
		}
		if len(wanted) > 0 && !slices.Contains(wanted, r.ID) {
			left = append(left, announced(r))
			continue
		}
		why := transport.KeycopyTooLarge
		if wrapped < maxChipKeys {
			why = v.wrap(ctx, &r, parent)
		}
		if why != 0 {
			r.Secret.Bytes.Wipe()
			withheld = append(withheld, transport.KeycopyWithheld{ID: r.ID, Reason: why})
			continue
		}
		wrapped++
		left = append(left, r)
	}
	clear(records[len(left):]) // their secrets are in left, or wiped
	return left, withheld
}

// travelsWrapped says whether a record would go from chip to chip.
func travelsWrapped(r *transport.CredentialRecord) bool {
	return r.Secret.Form == transport.SecretTPM && r.Transfer != transport.TransferNever && r.State == transport.CredentialActive
}

// wrap puts the key of r, wrapped to parent, in place of its blob.
func (v *vault) wrap(ctx context.Context, r *transport.CredentialRecord, parent *transport.KeycopyParent) transport.KeycopyReason {
	chip, ok := v.module.(hsm.Migrator)
	if !ok {
		return transport.KeycopyChipFailed
	}
	if parent == nil {
		return transport.KeycopyNoChip
	}
	d, err := chip.Duplicate(ctx, hsm.Blob(r.Secret.Bytes), parent.Public, parent.Approval)
	switch {
	case errors.Is(err, hsm.ErrStays):
		return transport.KeycopyChipStays
	case errors.Is(err, hsm.ErrNotApproved):
		v.log.Warn("the new terminal's chip is not approved", "credential", r.ID, "chip", chipName(parent.Public), "err", err)
		return transport.KeycopyChipNotApproved
	case err != nil:
		v.log.Error("the chip does not give a key", "credential", r.ID, "err", err)
		return transport.KeycopyChipFailed
	}
	r.Secret.Bytes.Wipe()
	r.Secret = transport.CredentialSecret{Form: transport.SecretDuplicate, Bytes: d}
	return 0
}

// forPreview stands in for forCopy while it is not known which terminal will
// come: records are announced as they will be.
func forPreview(records []transport.CredentialRecord) {
	for i := range records {
		if r := &records[i]; travelsWrapped(r) {
			*r = announced(*r)
		}
	}
}

// announced is a record with as much in place of its key as will travel.
func announced(r transport.CredentialRecord) transport.CredentialRecord {
	r.Secret.Bytes.Wipe()
	r.Secret = transport.CredentialSecret{Form: transport.SecretDuplicate, Bytes: make(transport.Sensitive, hsm.DuplicateSize)}
	return r
}

// takeWrapped has the chip take in the key of a record that came wrapped, and
// puts the blob in its place. What it cannot take is unsuited.
func (v *vault) takeWrapped(ctx context.Context, r *transport.CredentialRecord) (*chipKey, error) {
	const instead = "have a new one issued to this terminal: kagimori-server credential issue"
	chip, ok := v.module.(hsm.Migrator)
	if !ok {
		return nil, unsuited("its key goes only from chip to chip, and this terminal has none; " + instead)
	}
	a, err := v.approved(ctx)
	if err != nil {
		return nil, err
	}
	if a == nil {
		return nil, unsuited("its key goes only to chips that the fleet has approved, and this terminal's is not one: see kagimori chip show; or " + instead)
	}
	fleet, err := transport.ParseFleetKey(a.Fleet)
	if err != nil {
		return nil, err
	}
	blob, err := chip.Import(ctx, fleet, r.Secret.Bytes)
	var key *chipKey
	if err == nil {
		key, err = openChipKey(ctx, v.module, blob)
	}
	if err != nil {
		v.log.Error("the chip does not take a key", "credential", r.ID, "err", err)
		return nil, unsuited(fmt.Sprintf("this terminal's chip does not take its key (%v); %s", err, instead))
	}
	r.Secret.Bytes.Wipe()
	r.Secret = transport.CredentialSecret{Form: transport.SecretTPM, Bytes: transport.Sensitive(blob)}
	return key, nil
}

// publicKey is the public half of the key of a record; one that came wrapped is
// in the chip from then on.
func (v *vault) publicKey(ctx context.Context, r *transport.CredentialRecord) (crypto.PublicKey, error) {
	if r.Secret.Form == transport.SecretDuplicate {
		key, err := v.takeWrapped(ctx, r)
		if err != nil {
			return nil, err
		}
		return key.public, nil
	}
	if r.Secret.Form == transport.SecretTPM {
		key, err := openChipKey(ctx, v.module, hsm.Blob(r.Secret.Bytes))
		if err != nil {
			return nil, err
		}
		return key.public, nil
	}
	key, err := privateKey(&r.Secret)
	if err != nil {
		return nil, err
	}
	return key.Public(), nil
}

// sameChipKey says whether two records are of one key in a chip: a key that is
// taken in twice has two blobs.
func sameChipKey(a, b *transport.CredentialRecord) bool {
	return a.Secret.Form == transport.SecretTPM && b.Secret.Form == transport.SecretTPM &&
		len(a.Chain) > 0 && len(b.Chain) > 0 && bytes.Equal(a.Chain[0], b.Chain[0])
}
