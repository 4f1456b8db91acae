package keycopy

// The key schedule of a connection that goes on with a transaction: both ends
// hold k(resume), which is as good as both codes were. E' is the exporter of
// the new connection.

import (
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"

	"github.com/kagimori/kagimori/transport"
)

// resumeKeys prove the resume key to the other end, bound to one connection.
type resumeKeys struct {
	target, source []byte
	binding        [sha256.Size]byte // CB
}

// newResumeKeys: rt, rs = HKDF-Expand-SHA256(k(resume), "keycopy/1 " ‖ mode ‖
// " resume t" or " resume s", 32); CB = SHA-256(lv_cat(H(SPKI_T) or "",
// H(SPKI_S), E')).
func newResumeKeys(mode transport.KeycopyMode, resume []byte, ch *transport.KeycopyChannel) (k *resumeKeys, err error) {
	var client []byte
	if len(ch.TargetKey) > 0 {
		h := sha256.Sum256(ch.TargetKey)
		client = h[:]
	}
	server := sha256.Sum256(ch.SourceKey)
	bound := lvCat(client, server[:], ch.Exporter[:])
	defer clear(bound)
	k = &resumeKeys{binding: sha256.Sum256(bound)}
	prefix := protocol + " " + string(mode)
	if k.target, err = hkdf.Expand(sha256.New, resume, prefix+" resume t", keySize); err != nil {
		return nil, fmt.Errorf("derive keys: %w", err)
	}
	if k.source, err = hkdf.Expand(sha256.New, resume, prefix+" resume s", keySize); err != nil {
		return nil, fmt.Errorf("derive keys: %w", err)
	}
	return k, nil
}

// targetTag is the MAC of RESUME; body is RESUME less that MAC.
func (k *resumeKeys) targetTag(body []byte) transport.KeycopyTag {
	h := sha256.Sum256(body)
	return tag(k.target, k.binding[:], h[:])
}

// sourceTag is the MAC of RESUMED; body is RESUMED less that MAC.
func (k *resumeKeys) sourceTag(resume, body []byte) transport.KeycopyTag {
	r, h := sha256.Sum256(resume), sha256.Sum256(body)
	return tag(k.source, k.binding[:], r[:], h[:])
}

func (k *resumeKeys) wipe() {
	if k != nil {
		clear(k.target)
		clear(k.source)
	}
}

// newResumedKeys are the keys of a connection that goes on: TH' = H(RESUME ‖
// RESUMED), PRK' = HKDF-Extract-SHA512(TH', E' ‖ k(resume)). There are none to
// confirm or to resume with.
func newResumedKeys(t *Transaction, ch *transport.KeycopyChannel, resume, resumed []byte) (*runKeys, error) {
	manifest, err := t.manifestHash()
	if err != nil {
		return nil, err
	}
	k := &runKeys{mode: t.Mode, txn: t.ID, manifest: manifest}
	h := sha256.New()
	h.Write(resume)
	h.Write(resumed)
	h.Sum(k.transcript[:0])
	ikm := append(append(make([]byte, 0, len(ch.Exporter)+len(t.Resume)), ch.Exporter[:]...), t.Resume...)
	defer clear(ikm)
	prk, err := hkdf.Extract(sha512.New, ikm, k.transcript[:])
	if err != nil {
		return nil, fmt.Errorf("derive keys: %w", err)
	}
	defer clear(prk)
	return k, k.expand(prk, map[string]*[]byte{"item": &k.item, "receipt": &k.receipt, "commit": &k.commit, "activated": &k.activated, "close": &k.close})
}
