package server

import (
	"context"
	"errors"
	"fmt"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// The recovery key pair, for which terminals wrap their store keys (DESIGN D5).
// Its private half is a blob of hsm and in memory only while a wrap is opened.
// Versions are numbered from 1 and never forgotten: a terminal that was off for
// years still has a wrap for an old one.

const (
	metaRecoveryKeys = "recovery_keys"
	maxRecoveryKeys  = 64
)

// recoveryKey is one version.
type recoveryKey struct {
	Version uint32   `cbor:"1,keyasint"`
	Public  []byte   `cbor:"2,keyasint"`
	Seed    hsm.Blob `cbor:"3,keyasint"`
}

// recoveryKeys are all of them, newest last.
type recoveryKeys struct {
	List []recoveryKey `cbor:"1,keyasint"`
}

func (k recoveryKeys) newest() recoveryKey { return k.List[len(k.List)-1] }

func (k recoveryKeys) version(n uint32) (recoveryKey, bool) {
	for _, x := range k.List {
		if x.Version == n {
			return x, true
		}
	}
	return recoveryKey{}, false
}

// loadRecoveryKeys reads them; a deployment without any gets its first.
func (s *Server) loadRecoveryKeys(ctx context.Context) error {
	var raw []byte
	err := s.store.View(ctx, func(tx *store.Tx) (err error) {
		raw, err = tx.Meta(metaRecoveryKeys)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return s.makeRecoveryKey(ctx)
	}
	if err != nil {
		return fmt.Errorf("read the recovery keys: %w", err)
	}
	var k recoveryKeys
	if err := transport.Unmarshal(raw, &k, maxRecoveryKeys*(transport.RecoveryKeySize+hsm.MaxBlob+32)); err != nil || len(k.List) == 0 {
		return fmt.Errorf("read the recovery keys: they are damaged (%w)", err)
	}
	s.recovery = k
	return nil
}

func (s *Server) makeRecoveryKey(ctx context.Context) error {
	seed, public, err := transport.NewRecoveryKey()
	if err != nil {
		return err
	}
	secret := hsm.NewSecret(seed)
	defer secret.Wipe()
	blob, err := s.module.Seal(ctx, secret)
	if err != nil {
		return fmt.Errorf("seal the recovery key: %w", err)
	}
	k := recoveryKeys{List: []recoveryKey{{Version: 1, Public: public, Seed: blob}}}
	raw, err := transport.Marshal(&k)
	if err != nil {
		return err
	}
	err = s.store.Update(ctx, s.by(actorServer), func(tx *store.Tx) error {
		return errors.Join(tx.PutMeta(metaRecoveryKeys, raw), tx.Audit("server.recovery-key", string(s.deployment.Name), "version 1"))
	})
	if err != nil {
		return fmt.Errorf("keep the recovery key: %w", err)
	}
	s.recovery = k
	s.log.Info("recovery key made", "version", 1)
	return nil
}

// openWrap gives the store key in a wrap, which the caller wipes; ErrRecovery
// when it does not open, errLater when key storage cannot be used now.
func (s *Server) openWrap(ctx context.Context, w *transport.RecoveryWrap) (transport.Sensitive, error) {
	k, ok := s.recovery.version(w.Version)
	if !ok {
		return nil, transport.ErrRecovery
	}
	seed, err := s.module.Unseal(ctx, k.Seed)
	if err != nil {
		return nil, later(fmt.Errorf("open the recovery key: %w", err))
	}
	defer seed.Wipe()
	return w.Open(seed.Bytes())
}
