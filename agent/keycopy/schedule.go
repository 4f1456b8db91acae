package keycopy

// The key schedule: from the security code (SCS), the operator code and the
// TLS exporter to the tags and keys of one run. H is SHA-256 over whole frame
// bodies as sent.

import (
	"context"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"maps"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/kagimori/kagimori/transport"
)

const (
	protocol = "keycopy/1"
	keySize  = 32
	// ciExporter is how much of the exporter goes into CI and the security
	// code's message; the rest is CPace's sid.
	ciExporter = 32
)

// fleetKeys are the keys that follow from the security code and the channel:
// scp(l) = HKDF-Expand-SHA256(SCS, "keycopy/1 " ‖ l, 32). prs is for pake, code
// and codeWrap for direct and kek, kekWrap for kek; a mode has none of another's.
type fleetKeys struct{ admit, mix, prs, code, codeWrap, kekWrap []byte }

// labels are the keys that a mode uses.
func (k *fleetKeys) labels(mode transport.KeycopyMode) map[string]*[]byte {
	labels := map[string]*[]byte{"admit": &k.admit, "mix": &k.mix}
	if mode == transport.KeycopyPAKE {
		labels["prs"] = &k.prs
		return labels
	}
	labels["code"], labels["code-wrap"] = &k.code, &k.codeWrap
	if mode == transport.KeycopyKEK {
		labels["kek-wrap"] = &k.kekWrap
	}
	return labels
}

// newFleetKeys makes the one call per connection under the security code.
func newFleetKeys(ctx context.Context, code SecurityCode, mode transport.KeycopyMode, ch *transport.KeycopyChannel) (*fleetKeys, error) {
	message := append([]byte(protocol+" sc\x00"+string(mode)), ch.Exporter[:ciExporter]...)
	scs, err := code.MAC(ctx, message)
	if err != nil {
		return nil, fmt.Errorf("security code %s: %w", code.ID, err)
	}
	defer scs.Wipe()
	if scs.Len() != keySize {
		return nil, fmt.Errorf("security code %s: MAC of %d bytes", code.ID, scs.Len())
	}
	var k fleetKeys
	for label, key := range k.labels(mode) {
		if *key, err = hkdf.Expand(sha256.New, scs.Bytes(), protocol+" "+label, keySize); err != nil {
			return nil, fmt.Errorf("derive keys: %w", err)
		}
	}
	return &k, nil
}

func (k *fleetKeys) wipe() {
	if k == nil {
		return
	}
	for _, key := range [][]byte{k.admit, k.mix, k.prs, k.code, k.codeWrap, k.kekWrap} {
		clear(key)
	}
}

// admitTarget is the MAC of HELLO; body is HELLO less that MAC.
func (k *fleetKeys) admitTarget(body []byte) transport.KeycopyTag {
	h := sha256.Sum256(body)
	return tag(k.admit, []byte("t"), h[:])
}

// admitSource is the MAC of HELLO_ACK; body is HELLO_ACK less that MAC, or the
// map that stands for it in GRANT.
func (k *fleetKeys) admitSource(hello, body []byte) transport.KeycopyTag {
	h, b := sha256.Sum256(hello), sha256.Sum256(body)
	return tag(k.admit, []byte("s"), h[:], b[:])
}

// password is CPace's PRS: both codes together. The caller wipes it.
func (k *fleetKeys) password(code *OperatorCode) []byte {
	return lvCat([]byte(protocol+" prs"), code.digits.Bytes(), k.prs)
}

// channelID is CPace's CI, initiator first. TLS's exporter does not cover the
// client certificate, so both public keys are here. The mode and the suite's
// name, which pins the draft, are as well.
func channelID(mode transport.KeycopyMode, suite transport.KeycopySuite, ch *transport.KeycopyChannel) []byte {
	var target []byte
	if len(ch.TargetKey) > 0 {
		h := sha256.Sum256(ch.TargetKey)
		target = h[:]
	}
	source := sha256.Sum256(ch.SourceKey)
	return lvCat([]byte(protocol), []byte(mode), []byte(suite.String()), target, source[:], ch.Exporter[:ciExporter])
}

// sessionID is CPace's sid.
func sessionID(ch *transport.KeycopyChannel) []byte { return ch.Exporter[ciExporter:] }

// runKeys are the keys of one run: k(l) = HKDF-Expand-SHA512(PRK, "keycopy/1 "
// ‖ mode ‖ " " ‖ l, 32).
type runKeys struct {
	mode                         transport.KeycopyMode
	transcript                   [sha256.Size]byte // TH: it never grows
	confirmTarget, confirmSource []byte
	item, receipt                []byte
	commit, activated, close     []byte
	resume                       []byte // what RESUME is authenticated by
	kek                          []byte // in mode kek, until discard
	itemCipher                   cipher.AEAD
	manifest                     [sha256.Size]byte // H(manifest), once known
	txn                          transport.ID
}

// newRunKeys mixes the exporter, x and the security code: PRK =
// HKDF-Extract-SHA512(TH, E ‖ x ‖ scp("mix")). x is CPace's ISK, or codeKey in
// the other modes; it is wiped. ack is HELLO_ACK or what stands for it. In mode
// kek these are the confirm keys only, and takeKEK makes the rest.
func newRunKeys(mode transport.KeycopyMode, ch *transport.KeycopyChannel, x []byte, fleet *fleetKeys, hello, ack []byte) (*runKeys, error) {
	defer clear(x)
	k := &runKeys{mode: mode}
	h := sha256.New()
	h.Write(hello)
	h.Write(ack)
	h.Sum(k.transcript[:0])
	labels := map[string]*[]byte{"confirm t": &k.confirmTarget, "confirm s": &k.confirmSource}
	if mode != transport.KeycopyKEK {
		maps.Copy(labels, k.labels())
	}
	return k, k.derive(ch, x, fleet, labels)
}

// labels are the keys of all that comes after the verdict.
func (k *runKeys) labels() map[string]*[]byte {
	return map[string]*[]byte{"item": &k.item, "receipt": &k.receipt, "commit": &k.commit, "activated": &k.activated,
		"close": &k.close, "resume": &k.resume}
}

func (k *runKeys) derive(ch *transport.KeycopyChannel, x []byte, fleet *fleetKeys, labels map[string]*[]byte) error {
	ikm := make([]byte, 0, len(ch.Exporter)+len(x)+len(fleet.mix))
	ikm = append(append(append(ikm, ch.Exporter[:]...), x...), fleet.mix...)
	defer clear(ikm)
	prk, err := hkdf.Extract(sha512.New, ikm, k.transcript[:])
	if err != nil {
		return fmt.Errorf("derive keys: %w", err)
	}
	defer clear(prk)
	return k.expand(prk, labels)
}

// expand makes the keys of labels, and the cipher if item is among them. It is
// HKDF-Expand, whose first block is longer than a key (RFC 5869 §2.3): PRK is
// taken in once for all of them.
func (k *runKeys) expand(prk []byte, labels map[string]*[]byte) (err error) {
	m := hmac.New(sha512.New, prk)
	for label, key := range labels {
		m.Reset()
		m.Write([]byte(protocol + " " + string(k.mode) + " " + label + "\x01"))
		block := m.Sum(nil)
		clear(block[keySize:])
		*key = block[:keySize:keySize]
	}
	if k.item != nil {
		if k.itemCipher, err = chacha20poly1305.New(k.item); err != nil {
			return fmt.Errorf("item cipher: %w", err)
		}
	}
	return nil
}

// discard destroys what opens the items, as soon as that is not needed any more
// (req: C7): the KEK and the key that follows from it.
func (k *runKeys) discard() {
	clear(k.kek)
	clear(k.item)
	k.itemCipher = nil
}

// wipe destroys the keys. The cipher's own copy is out of reach and is left to
// the collector.
func (k *runKeys) wipe() {
	if k == nil {
		return
	}
	k.discard()
	for _, key := range [][]byte{k.confirmTarget, k.confirmSource, k.receipt, k.commit, k.activated, k.close, k.resume} {
		clear(key)
	}
}

// targetTag is Ta.
func (k *runKeys) targetTag() transport.KeycopyTag { return tag(k.confirmTarget, k.transcript[:]) }

// sourceTag is Tb: it answers Ta, which is zero in the modes without PROOF, and
// covers the manifest and, in mode kek, the sealed KEK.
func (k *runKeys) sourceTag(target transport.KeycopyTag, sealedKEK []byte) transport.KeycopyTag {
	return tag(k.confirmSource, k.transcript[:], target[:], k.manifest[:], sealedKEK)
}

// stepTag is the MAC of RECEIPT, COMMIT, ACTIVATED or CLOSE, under the key of
// that name, over the frame's body less MAC and signature.
func (k *runKeys) stepTag(key, body []byte) transport.KeycopyTag {
	return tag(key, k.transcript[:], body)
}

// receiptDigest and activatedDigest are what the Target's identity key signs. A
// label keeps a signature from meaning anything else under the same key.
func (k *runKeys) receiptDigest(body []byte, mac transport.KeycopyTag) [sha256.Size]byte {
	return transport.KeycopySignedDigest(transport.KeycopySigned(k.transcript, body, mac))
}

func (k *runKeys) activatedDigest(body []byte, mac transport.KeycopyTag) [sha256.Size]byte {
	return sha256.Sum256(append([]byte(protocol+" activated\x00"), transport.KeycopySigned(k.transcript, body, mac)...))
}

// seal encrypts item seq: nonce uint96(seq), AAD txn ‖ H(manifest) ‖ id ‖
// uint32(seq), where only id varies in length.
func (k *runKeys) seal(seq uint32, id transport.Name, record []byte) []byte {
	nonce, ad := k.itemParameters(seq, id)
	return k.itemCipher.Seal(make([]byte, 0, len(record)+k.itemCipher.Overhead()), nonce, record, ad)
}

// open decrypts item seq in place: sealed is used up.
func (k *runKeys) open(seq uint32, id transport.Name, sealed []byte) ([]byte, error) {
	nonce, ad := k.itemParameters(seq, id)
	return k.itemCipher.Open(sealed[:0], nonce, sealed, ad)
}

func (k *runKeys) itemParameters(seq uint32, id transport.Name) (nonce, ad []byte) {
	nonce = make([]byte, chacha20poly1305.NonceSize)
	binary.BigEndian.PutUint32(nonce[chacha20poly1305.NonceSize-4:], seq)
	ad = make([]byte, 0, len(k.txn)+len(k.manifest)+len(id)+4)
	ad = append(append(append(ad, k.txn[:]...), k.manifest[:]...), id...)
	return nonce, binary.BigEndian.AppendUint32(ad, seq)
}

// tag is HMAC-SHA256 over the parts, whose lengths the callers fix.
func tag(key []byte, parts ...[]byte) transport.KeycopyTag {
	m := hmac.New(sha256.New, key)
	for _, p := range parts {
		m.Write(p)
	}
	return transport.KeycopyTag(m.Sum(nil))
}

// same compares tags in constant time.
func same(a, b transport.KeycopyTag) bool { return hmac.Equal(a[:], b[:]) }
