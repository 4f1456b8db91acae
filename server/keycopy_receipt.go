package server

import (
	"crypto/ecdsa"
	"crypto/x509"
	"errors"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// What the server can tell of a receipt: that the Target's identity key, which
// it knows from enrollment, has signed a receipt of this very transaction, and
// that what it lists as taken is what the Source reports. It cannot tell what
// manifest that was, nor that the two ends had the codes: the MAC is under keys
// that only they had. A Target without identity signs nothing.

// proveReceipt judges the receipt that a Source has shown, once all is there
// that it takes.
func proveReceipt(tx *store.Tx, k *store.Keycopy, n store.KeycopyTally) error {
	if k.Proof != "" || len(k.Signature) == 0 || len(k.Signed) == 0 || n.Said[0] < k.Source.Total {
		return nil
	}
	spki, err := tx.DeviceKey(k.Target.Device)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	places, err := tx.KeycopyPlaces(k.Seq)
	if err != nil {
		return err
	}
	k.Proof = store.ProofBad
	if receiptHolds(spki, k, places) {
		k.Proof = store.ProofGood
	}
	return nil
}

func receiptHolds(spki []byte, k *store.Keycopy, places map[int]bool) bool {
	public, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return false
	}
	key, ok := public.(*ecdsa.PublicKey)
	digest := transport.KeycopySignedDigest(k.Signed)
	if !ok || !ecdsa.VerifyASN1(key, digest[:], k.Signature) {
		return false
	}
	body, err := transport.OpenKeycopySigned(k.Signed)
	if err != nil || body.Txn != k.Txn || len(places) != k.Source.Total {
		return false
	}
	for place := range max(k.Source.Total, len(body.Status)*8) {
		taken := place/8 < len(body.Status) && body.Status[place/8]>>(place%8)&1 == 1
		if taken != places[place] {
			return false
		}
	}
	return true
}
