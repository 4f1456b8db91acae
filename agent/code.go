package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
)

// Security codes: MAC keys inside hsm, one for each epoch of this terminal's
// group that is in force (req: C1). The first comes with the bundle, or with
// enrollment; the server installs and retires others. The key copy uses the
// newest that both ends hold.

// codeBlob names the blob of an epoch's code. Stores of release 0.1 have one
// code under blobSecurityCode, and no list: it is of the record's epoch.
func codeBlob(epoch uint32) string { return fmt.Sprintf("%s/%d", blobSecurityCode, epoch) }

// codes lists the epochs that a device was given codes of, newest first.
func (t *terminalRecord) codes() []uint32 {
	if len(t.Codes) == 0 {
		return []uint32{t.Epoch}
	}
	return t.Codes
}

// sameGroup says whether codes that a device holds stay good under next.
func (t *terminalRecord) sameGroup(next *terminalRecord) bool {
	return t != nil && t.Deployment == next.Deployment && t.Group == next.Group
}

// A heldCode is one security code.
type heldCode struct {
	epoch uint32
	blob  hsm.Blob
}

// heldCodes lists the codes that are here, newest first.
func heldCodes(tx *store.Tx, self *terminalRecord) (list []heldCode) {
	for _, epoch := range self.codes() {
		blob := tx.Blob(codeBlob(epoch))
		if blob == nil && len(self.Codes) == 0 {
			blob = tx.Blob(blobSecurityCode)
		}
		if blob != nil {
			list = append(list, heldCode{epoch, blob})
		}
	}
	return list
}

// keepCodes makes codes, newest first, the ones that are here, and says so in
// next, which the caller stores. before is the record so far, nil if there is none.
func keepCodes(tx *store.Tx, before, next *terminalRecord, codes []heldCode) error {
	epochs := make([]uint32, 0, len(codes))
	for _, c := range codes {
		epochs = append(epochs, c.epoch)
	}
	var gone []string
	if before != nil {
		if len(before.Codes) == 0 && tx.Blob(blobSecurityCode) != nil {
			gone = append(gone, blobSecurityCode)
		}
		for _, epoch := range before.Codes {
			if !slices.Contains(epochs, epoch) {
				gone = append(gone, codeBlob(epoch))
			}
		}
	}
	for _, c := range codes {
		if err := tx.PutBlob(codeBlob(c.epoch), c.blob); err != nil {
			return err
		}
	}
	for _, name := range gone {
		if err := tx.DeleteBlob(name); err != nil {
			return err
		}
	}
	next.Codes = epochs
	if len(epochs) > 0 {
		next.Epoch = epochs[0]
	}
	return nil
}

// withCode is codes with one more, or with another blob for that epoch, newest
// first. It fails when there are too many.
func withCode(codes []heldCode, c heldCode) ([]heldCode, error) {
	codes = slices.DeleteFunc(slices.Clone(codes), func(o heldCode) bool { return o.epoch == c.epoch })
	if len(codes) >= transport.MaxCodes {
		return nil, fmt.Errorf("this terminal holds %d security codes already: retire one of them first", len(codes))
	}
	codes = append(codes, c)
	sort.Slice(codes, func(i, j int) bool { return codes[i].epoch > codes[j].epoch })
	return codes, nil
}

// addCode keeps the code of a bundle beside those of the same group that are
// here; those of another group go. next is the record that the bundle makes.
func addCode(tx *store.Tx, next *terminalRecord, c heldCode) error {
	var before *terminalRecord
	var r terminalRecord
	found, err := tx.Get(bucketTerminal, keySelf, &r)
	if err != nil {
		return err
	}
	var codes []heldCode
	if found {
		defer r.wipe()
		before = &r
		if before.sameGroup(next) {
			codes = heldCodes(tx, before)
		}
	}
	if c.blob != nil {
		if codes, err = withCode(codes, c); err != nil {
			return err
		}
	}
	return keepCodes(tx, before, next, codes)
}

// installCode obeys a CodeInstall.
func (s *session) installCode(ctx context.Context, c *transport.Command) (step, error) {
	defer clear(c.Body)
	var m transport.CodeInstall
	if err := transport.Unmarshal(c.Body, &m, transport.MaxEnvelope); err != nil {
		return refuse("the order cannot be read: %v", err), nil
	}
	defer m.Wipe()
	if err := m.Check(); err != nil {
		return refuse("the order is wrong: %v", err), nil
	}
	self, codes, err := s.ownCodes()
	if err != nil {
		return step{}, err
	}
	if m.Group != self.Group {
		return refuse("the code is of group %s, this terminal is of group %s", m.Group, self.Group), nil
	}
	blob, refusal, err := s.importCode(ctx, &m)
	if err != nil || refusal != "" {
		return refuse("%s", refusal), err
	}
	codes, err = withCode(codes, heldCode{m.Epoch, blob})
	if err != nil {
		return refuse("%v", err), nil
	}
	return step{state: transport.CommandDone, effect: s.replaceCodes(codes, fmt.Sprintf("epoch %d installed", m.Epoch))}, nil
}

// importCode has key storage take a code in, or says why it does not.
func (s *session) importCode(ctx context.Context, m *transport.CodeInstall) (blob hsm.Blob, refusal string, err error) {
	if w := m.Wrapped; w != nil {
		chip, ok := s.module.(hsm.Attester)
		if !ok {
			return nil, fmt.Sprintf("the code is wrapped to a TPM, and this terminal's key storage is %q", s.module.Level()), nil
		}
		blob, err = chip.ImportWrapped(ctx, hsm.Wrapped{Public: w.Public, Duplicate: w.Duplicate, Seed: w.Seed})
		if errors.Is(err, hsm.ErrBlob) || errors.Is(err, hsm.ErrReplaced) {
			return nil, fmt.Sprintf("this terminal's TPM does not take the code: %v", err), nil
		}
		return blob, "", err
	}
	code := hsm.NewSecret(slices.Clone(m.Code))
	defer code.Wipe()
	blob, err = s.module.ImportMAC(ctx, code)
	return blob, "", err
}

// retireCodes obeys a CodeRetire. It never leaves a terminal without any code.
func (s *session) retireCodes(c *transport.Command) (step, error) {
	var m transport.CodeRetire
	if err := transport.Unmarshal(c.Body, &m, transport.MaxEnvelope); err != nil {
		return refuse("the order cannot be read: %v", err), nil
	}
	if err := m.Check(); err != nil {
		return refuse("the order is wrong: %v", err), nil
	}
	self, codes, err := s.ownCodes()
	if err != nil {
		return step{}, err
	}
	if m.Group != self.Group {
		return refuse("the order is for group %s, this terminal is of group %s", m.Group, self.Group), nil
	}
	held := len(codes)
	codes = slices.DeleteFunc(codes, func(o heldCode) bool { return slices.Contains(m.Epochs, o.epoch) })
	switch {
	case len(codes) == held:
		return step{state: transport.CommandDone, detail: "it holds none of them"}, nil
	case len(codes) == 0:
		return refuse("it holds no other code: have a new one installed first"), nil
	}
	return step{state: transport.CommandDone, effect: s.replaceCodes(codes, fmt.Sprintf("epochs %v retired", m.Epochs))}, nil
}

// ownCodes reads this terminal's record and codes as they are now.
func (s *session) ownCodes() (self *terminalRecord, codes []heldCode, err error) {
	err = s.store.View(func(tx *store.Tx) error {
		self = &terminalRecord{}
		found, err := tx.Get(bucketTerminal, keySelf, self)
		if err == nil && !found {
			err = errors.New("there is no terminal record")
		}
		codes = heldCodes(tx, self)
		return err
	})
	self.wipe()
	return self, codes, err
}

// replaceCodes is the effect that makes codes the ones that are here.
func (s *session) replaceCodes(codes []heldCode, what string) func(*store.Tx) error {
	return func(tx *store.Tx) error {
		var before terminalRecord
		if _, err := tx.Get(bucketTerminal, keySelf, &before); err != nil {
			return err
		}
		defer before.wipe()
		next := before
		if err := keepCodes(tx, &before, &next, codes); err != nil {
			return err
		}
		return errors.Join(tx.Put(bucketTerminal, keySelf, &next), s.audit(tx, audit.SecurityCode, next.Group, "%s", what))
	}
}
