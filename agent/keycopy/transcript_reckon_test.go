package keycopy

// The key schedule a second time, from the formulas of docs/keycopy.md and
// without schedule.go, schedule_resume.go, schedule_sealed.go and cpace.go.

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/gtank/ristretto255"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/kagimori/kagimori/transport"
)

func hash(parts ...[]byte) []byte {
	h := sha256.Sum256(bytes.Join(parts, nil))
	return h[:]
}

func mac(key []byte, parts ...[]byte) []byte {
	m := hmac.New(sha256.New, key)
	m.Write(bytes.Join(parts, nil))
	return m.Sum(nil)
}

// cat is lv_cat: LEB128 is what Go calls a uvarint.
func cat(parts ...[]byte) (out []byte) {
	for _, p := range parts {
		out = append(binary.AppendUvarint(out, uint64(len(p))), p...)
	}
	return out
}

// less is the encoding of v.
func less(t testing.TB, v any) []byte {
	t.Helper()
	b, err := transport.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func expand256(key []byte, info string) []byte {
	out, err := hkdf.Expand(sha256.New, key, info, 32)
	if err != nil {
		panic(err)
	}
	return out
}

func aead(t testing.TB, key []byte, seq uint32, plain, ad []byte) []byte {
	t.Helper()
	c, err := chacha20poly1305.New(key)
	if err != nil {
		t.Fatal(err)
	}
	return c.Seal(nil, binary.BigEndian.AppendUint32(make([]byte, 8), seq), plain, ad)
}

// reckoner goes through one connection. prime marks the values of a resumed one.
type reckoner struct {
	*scene
	t     *testing.T
	tr    transcript
	left  []transport.KeycopyFrame
	prime string
	e     []byte
	scs   []byte
	th    []byte
	prk   []byte
	txn   []byte
	table []byte // manifest
}

func (s *scene) reckon(t *testing.T) transcript {
	t.Helper()
	k := &reckoner{scene: s, t: t}
	k.begin(&s.connections[0])
	k.tr.add("security code", []byte(fleetKey))
	oc := append([]byte("12345678"), '0'+damm([]byte("12345678")))
	k.tr.add("operator code (ASCII)", oc)
	k.tr.add("SPKI_T", s.target)
	k.tr.add("SPKI_S", s.connections[0].SourceKey)
	k.tr.add("E", k.e)
	k.scs = mac([]byte(fleetKey), []byte("keycopy/1 sc\x00"+string(s.mode)), k.e[:32])
	k.tr.add("SCS", k.scs)
	if s.mode == transport.KeycopyPAKE {
		k.pake(oc)
	} else {
		k.sealed(oc)
	}
	if s.resumed {
		rk := k.key("resume")
		k.begin(&s.connections[1])
		k.resume(rk)
	}
	k.items()
	k.steps()
	if len(k.left) != 0 {
		t.Errorf("%s: %d frames are not accounted for", s.name, len(k.left))
	}
	return k.tr
}

func (k *reckoner) begin(c *connection) { k.left, k.e = c.frames, c.Exporter[:] }

// next reads the next frame.
func (k *reckoner) next(m transport.KeycopyMessage) []byte {
	k.t.Helper()
	if len(k.left) == 0 {
		k.t.Fatalf("%s: no %s", k.name, m.Frame())
	}
	f := k.left[0]
	if err := transport.DecodeKeycopy(f, m); err != nil {
		k.t.Fatal(err)
	}
	k.left = k.left[1:]
	return f.Body
}

func (k *reckoner) check(name string, want, got []byte) {
	k.t.Helper()
	if k.tr.add(name, want); !bytes.Equal(want, got) {
		k.t.Errorf("%s, %s: the run has %x, the formula gives %x", k.scene.name, name, got, want)
	}
}

func (k *reckoner) scp(l string) []byte {
	key := expand256(k.scs, "keycopy/1 "+l)
	k.tr.add("scp("+l+")", key)
	return key
}

// extract makes PRK from X.
func (k *reckoner) extract(name string, ikm ...[]byte) {
	k.t.Helper()
	var err error
	if k.prk, err = hkdf.Extract(sha512.New, bytes.Join(ikm, nil), k.th); err != nil {
		k.t.Fatal(err)
	}
	k.tr.add(name, k.prk)
}

func (k *reckoner) key(l string) []byte {
	k.t.Helper()
	key, err := hkdf.Expand(sha512.New, k.prk, "keycopy/1 "+string(k.mode)+" "+l, 32)
	if err != nil {
		k.t.Fatal(err)
	}
	k.tr.add("k"+k.prime+"("+l+")", key)
	return key
}

// known is H of the Target's public key, or nothing.
func (k *reckoner) known() []byte {
	if len(k.target) == 0 {
		return nil
	}
	return hash(k.target)
}

func (k *reckoner) pake(oc []byte) {
	k.t.Helper()
	admit, prsKey, mix := k.scp("admit"), k.scp("prs"), k.scp("mix")
	prs := cat([]byte("keycopy/1 prs"), oc, prsKey)
	k.tr.add("PRS", prs)
	ci := cat([]byte("keycopy/1"), []byte("pake"), []byte("CPACE-RISTR255-SHA512 draft-irtf-cfrg-cpace-21"), k.known(), hash(k.connections[0].SourceKey), k.e[:32])
	k.tr.add("CI", ci)
	sid := k.e[32:]
	k.tr.add("sid", sid)
	dsi := []byte("CPaceRistretto255")
	pad := make([]byte, max(0, 128-1-len(cat(prs))-len(cat(dsi))))
	uniform := sha512.Sum512(cat(dsi, prs, pad, ci, sid))
	g, err := ristretto255.NewIdentityElement().SetUniformBytes(uniform[:])
	if err != nil {
		k.t.Fatal(err)
	}
	scalar := func(name string, seed byte) *ristretto255.Scalar {
		var uniform [64]byte
		seeded(seed).Read(uniform[:])
		y, err := ristretto255.NewScalar().SetUniformBytes(uniform[:])
		if err != nil {
			k.t.Fatal(err)
		}
		k.tr.add(name, y.Bytes())
		return y
	}
	ya, yb := scalar("ya", 'T'), scalar("yb", 'S')
	k.tr.add("g", g.Bytes())
	var hello transport.KeycopyHello
	var ack transport.KeycopyHelloAck
	var proof transport.KeycopyProof
	ada := k.next(&hello)
	adb := k.next(&ack)
	yA := ristretto255.NewIdentityElement().ScalarMult(ya, g)
	k.check("Ya", yA.Bytes(), hello.Share[:])
	k.check("Yb", ristretto255.NewIdentityElement().ScalarMult(yb, g).Bytes(), ack.Share[:])
	k.check("admit_t", mac(admit, []byte("t"), hash(less(k.t, hello.KeycopyHelloBody))), hello.Admit[:])
	k.tr.add("HELLO", ada)
	k.check("admit_s", mac(admit, []byte("s"), hash(ada), hash(less(k.t, ack.KeycopyHelloAckBody))), ack.Admit[:])
	k.tr.add("HELLO_ACK", adb)
	shared := ristretto255.NewIdentityElement().ScalarMult(yb, yA)
	isk := sha512.Sum512(append(cat([]byte("CPaceRistretto255_ISK"), sid, shared.Bytes()), cat(hello.Share[:], hash(ada), ack.Share[:], hash(adb))...))
	k.tr.add("K", shared.Bytes())
	k.tr.add("ISK", isk[:])
	k.th = hash(ada, adb)
	k.tr.add("TH", k.th)
	k.extract("PRK", k.e, isk[:], mix)
	body := k.next(&proof)
	k.check("Ta", mac(k.key("confirm t"), k.th), proof.Tag[:])
	k.tr.add("PROOF", body)
	var grant transport.KeycopyGrant
	body = k.next(&grant)
	k.txn, k.table = ack.Txn[:], grant.Manifest
	k.tr.add("manifest", k.table)
	k.check("Tb", mac(k.key("confirm s"), k.th, proof.Tag[:], hash(k.table)), grant.Tag[:])
	k.tr.add("GRANT", body)
}

// sealed is modes direct and kek.
func (k *reckoner) sealed(oc []byte) {
	k.t.Helper()
	admit, codeKey, wrapKey, mix := k.scp("admit"), k.scp("code"), k.scp("code-wrap"), k.scp("mix")
	var hello transport.KeycopyHello
	body := k.next(&hello)
	fields := hello.KeycopyHelloBody
	fields.Code = nil
	padded := append(bytes.Clone(oc), make([]byte, 32-len(oc))...)
	k.tr.add("HELLO less code_ct, admit_t", less(k.t, fields))
	k.check("code_ct", aead(k.t, wrapKey, 0, padded, hash(less(k.t, fields))), hello.Code)
	k.check("admit_t", mac(admit, []byte("t"), hash(less(k.t, hello.KeycopyHelloBody))), hello.Admit[:])
	k.tr.add("HELLO", body)
	m := hmac.New(sha512.New, codeKey)
	m.Write(oc)
	x := m.Sum(nil)
	k.tr.add("X", x)
	var grant transport.KeycopyGrant
	granted := k.next(&grant)
	ack := less(k.t, grant.Ack)
	k.tr.add("ack", ack)
	k.check("admit_s", mac(admit, []byte("s"), hash(body), hash(ack)), grant.Admit[:])
	head := bytes.Join([][]byte{{0xa2, 0x03}, ack, {0x04, 0x58, 0x20}, grant.Admit[:]}, nil)
	k.tr.add("GRANT less Tb, manifest, kek_ct", head)
	k.th = hash(body, head)
	k.tr.add("TH", k.th)
	k.extract("PRK", k.e, x, mix)
	confirm := k.key("confirm s")
	if k.mode == transport.KeycopyKEK {
		random := make([]byte, 32+16+32)
		seeded('S').Read(random)
		kek := random[48:]
		k.tr.add("KEK", kek)
		k.check("kek_ct", aead(k.t, k.scp("kek-wrap"), 0, kek, k.th), grant.KEK)
		k.extract("PRK of the KEK", k.e, kek, make([]byte, 32), mix)
	}
	k.txn, k.table = grant.Ack.Txn[:], grant.Manifest
	k.tr.add("manifest", k.table)
	k.check("Tb", mac(confirm, k.th, make([]byte, 32), hash(k.table), grant.KEK), grant.Tag[:])
	k.tr.add("GRANT", granted)
}

func (k *reckoner) resume(rk []byte) {
	k.t.Helper()
	k.prime = "'"
	k.tr.add("E'", k.e)
	rt, rs := expand256(rk, "keycopy/1 pake resume t"), expand256(rk, "keycopy/1 pake resume s")
	k.tr.add("rt", rt)
	k.tr.add("rs", rs)
	cb := hash(cat(k.known(), hash(k.connections[1].SourceKey), k.e))
	k.tr.add("CB", cb)
	var resume transport.KeycopyResume
	var resumed transport.KeycopyResumed
	asked, answered := k.next(&resume), k.next(&resumed)
	k.check("resume mac", mac(rt, cb, hash(less(k.t, resume.KeycopyResumeBody))), resume.MAC[:])
	k.tr.add("RESUME", asked)
	k.check("resumed mac", mac(rs, cb, hash(asked), hash(less(k.t, resumed.KeycopyResumeBody))), resumed.MAC[:])
	k.tr.add("RESUMED", answered)
	if !bytes.Equal(resume.Txn[:], k.txn) || !bytes.Equal(resumed.Txn[:], k.txn) {
		k.t.Error("RESUME of another transaction")
	}
	k.th = hash(asked, answered)
	k.tr.add("TH'", k.th)
	k.extract("PRK'", k.e, rk)
}

func (k *reckoner) items() {
	k.t.Helper()
	key := k.key("item")
	for n := range k.records {
		r := k.records[n]
		var item transport.KeycopyItem
		body := k.next(&item)
		record := less(k.t, &r)
		k.tr.add(fmt.Sprintf("record %d", n), record)
		seq := binary.BigEndian.AppendUint32(nil, uint32(n))
		ad := bytes.Join([][]byte{k.txn, hash(k.table), []byte(r.ID), seq}, nil)
		k.tr.add(fmt.Sprintf("AAD %d", n), ad)
		k.check(fmt.Sprintf("ct %d", n), aead(k.t, key, uint32(n), record, ad), item.Sealed)
		k.tr.add(fmt.Sprintf("ITEM %d", n), body)
	}
}

// steps is all from RECEIPT on.
func (k *reckoner) steps() {
	k.t.Helper()
	var receipt transport.KeycopyReceipt
	body := k.next(&receipt)
	k.check("receipt mac", mac(k.key("receipt"), k.th, less(k.t, receipt.KeycopyReceiptBody)), receipt.MAC[:])
	k.signature("receipt", less(k.t, receipt.KeycopyReceiptBody), receipt.MAC[:], receipt.Signature)
	k.tr.add("RECEIPT", body)
	if k.move {
		var commit transport.KeycopyCommit
		body = k.next(&commit)
		k.check("commit mac", mac(k.key("commit"), k.th, less(k.t, commit.KeycopyStepBody)), commit.MAC[:])
		k.tr.add("COMMIT", body)
		var active transport.KeycopyActivated
		body = k.next(&active)
		k.check("activated mac", mac(k.key("activated"), k.th, less(k.t, active.KeycopyStepBody)), active.MAC[:])
		k.signature("activated", less(k.t, active.KeycopyStepBody), active.MAC[:], active.Signature)
		k.tr.add("ACTIVATED", body)
	}
	var end transport.KeycopyClose
	body = k.next(&end)
	k.check("close mac", mac(k.key("close"), k.th, less(k.t, end.KeycopyStepBody)), end.MAC[:])
	k.tr.add("CLOSE", body)
	if !k.resumed {
		k.key("resume")
	}
}

// signature is the identity's; its value may be any that verifies.
func (k *reckoner) signature(label string, body, tag, signature []byte) {
	k.t.Helper()
	if k.identity == nil {
		if len(signature) > 0 {
			k.t.Errorf("%s: a signature without identity", k.name)
		}
		return
	}
	digest := hash([]byte("keycopy/1 "+label+"\x00"), k.th, body, tag)
	k.tr.add(label+" digest", digest)
	if !ecdsa.VerifyASN1(&k.identity.PublicKey, digest, signature) {
		k.t.Errorf("%s: the signature of %s is not over what the formula says", k.name, label)
	}
}
