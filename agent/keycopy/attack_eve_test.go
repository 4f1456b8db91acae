package keycopy

// Eve has listened, has the security code, and has got past TLS: she knows the
// exporter, or there was no TLS at all, as in the patent's figures. She tries
// codes and everything that follows from one against everything she has seen.

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/gtank/ristretto255"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/kagimori/kagimori/transport"
)

type eve struct {
	t       testing.TB
	sc      []byte
	channel transport.KeycopyChannel
	frames  []transport.KeycopyFrame

	hello    transport.KeycopyHello
	ack      transport.KeycopyHelloAck
	proof    transport.KeycopyProof
	grant    transport.KeycopyGrant
	items    []transport.KeycopyItem
	receipt  transport.KeycopyReceipt
	helloRaw []byte
	ackRaw   []byte // or what stands for it
	txn      transport.ID
}

// listen runs a copy of one key in a mode and gives Eve what crossed the wire.
func listen(t testing.TB, mode transport.KeycopyMode, digits string) (*eve, *rig) {
	t.Helper()
	r, channels := modeRig(t, mode, 1)
	r.arm(digits, digits)
	sc, tc := channels()
	e := &eve{t: t, sc: []byte(fleetKey), channel: sc}
	sourceErr, targetErr := r.pump(t.Context(), sc, tc, func(h hop) transport.KeycopyFrame {
		e.frames = append(e.frames, h.frame)
		return h.frame
	})
	if sourceErr != nil || targetErr != nil {
		t.Fatal(sourceErr, targetErr)
	}
	for _, f := range e.frames {
		var m transport.KeycopyMessage
		switch f.Type {
		case transport.KeycopyTypeHello:
			m, e.helloRaw = &e.hello, f.Body
		case transport.KeycopyTypeHelloAck:
			m, e.ackRaw = &e.ack, f.Body
		case transport.KeycopyTypeProof:
			m = &e.proof
		case transport.KeycopyTypeGrant:
			m = &e.grant
		case transport.KeycopyTypeItem:
			e.items = append(e.items, transport.KeycopyItem{})
			m = &e.items[len(e.items)-1]
		case transport.KeycopyTypeReceipt:
			m = &e.receipt
		default:
			continue
		}
		if err := transport.DecodeKeycopy(f, m); err != nil {
			t.Fatal(err)
		}
	}
	e.txn = e.ack.Txn
	if e.grant.Ack != nil {
		e.txn = e.grant.Ack.Txn
		e.ackRaw = less(t, transport.KeycopyGrantHead{Ack: *e.grant.Ack, Admit: *e.grant.Admit})
	}
	return e, r
}

func (e *eve) scs() []byte {
	return mac(e.sc, []byte("keycopy/1 sc\x00"+string(e.channel.Mode)), e.channel.Exporter[:32])
}

func (e *eve) scp(l string) []byte { return expand256(e.scs(), "keycopy/1 "+l) }

// keys are all that follow from an X.
func (e *eve) keys(x []byte) map[string][]byte {
	prk, err := hkdf.Extract(sha512.New, bytes.Join([][]byte{e.channel.Exporter[:], x, e.scp("mix")}, nil), hash(e.helloRaw, e.ackRaw))
	if err != nil {
		e.t.Fatal(err)
	}
	out := map[string][]byte{}
	for _, l := range []string{"confirm t", "confirm s", "item", "receipt", "commit", "activated", "close", "resume"} {
		if out[l], err = hkdf.Expand(sha512.New, prk, "keycopy/1 "+string(e.channel.Mode)+" "+l, 32); err != nil {
			e.t.Fatal(err)
		}
	}
	return out
}

func opens(key []byte, seq uint32, sealed, ad []byte) ([]byte, bool) {
	c, err := chacha20poly1305.New(key)
	if err != nil {
		return nil, false
	}
	plain, err := c.Open(nil, binary.BigEndian.AppendUint32(make([]byte, 8), seq), sealed, ad)
	return plain, err == nil
}

// open reads the first item with a key.
func (e *eve) open(key []byte) ([]byte, bool) {
	i := e.items[0]
	ad := bytes.Join([][]byte{e.txn[:], hash(e.grant.Manifest), []byte(i.ID), {0, 0, 0, 0}}, nil)
	return opens(key, 0, i.Sealed, ad)
}

// codeX is X of the modes that send the code.
func (e *eve) codeX(code []byte) []byte {
	m := hmac.New(sha512.New, e.scp("code"))
	m.Write(code)
	return m.Sum(nil)
}

// read is figure 4 and 5 with the security code: the code, then the key.
func (e *eve) read() (code, record []byte) {
	fields := e.hello.KeycopyHelloBody
	fields.Code = nil
	padded, ok := opens(e.scp("code-wrap"), 0, e.hello.Code, hash(less(e.t, fields)))
	if !ok {
		return nil, nil
	}
	code = bytes.TrimRight(padded, "\x00")
	x := e.codeX(code)
	if len(e.grant.KEK) > 0 {
		kek, ok := opens(e.scp("kek-wrap"), 0, e.grant.KEK, hash(e.helloRaw, e.ackRaw))
		if !ok {
			return code, nil
		}
		x = append(kek, make([]byte, 32)...)
	}
	record, _ = e.open(e.keys(x)["item"])
	return code, record
}

// elements are what she can make of the shares and of a code's generator.
func (e *eve) elements(g *ristretto255.Element) map[string]*ristretto255.Element {
	out := map[string]*ristretto255.Element{"g": g, "base": ristretto255.NewGeneratorElement(), "identity": ristretto255.NewIdentityElement()}
	if e.hello.Share == nil {
		return out
	}
	for name, p := range map[string][]byte{"Ya": e.hello.Share[:], "Yb": e.ack.Share[:]} {
		y, err := ristretto255.NewIdentityElement().SetCanonicalBytes(p)
		if err != nil {
			e.t.Fatal(err)
		}
		out[name] = y
	}
	for a, p := range maps.Clone(out) {
		for b, q := range maps.Clone(out) {
			if !strings.ContainsAny(a+b, "+-") {
				out[a+"+"+b] = ristretto255.NewIdentityElement().Add(p, q)
				out[a+"-"+b] = ristretto255.NewIdentityElement().Subtract(p, q)
			}
		}
	}
	return out
}

// tests are the names of all that comes out as on the wire if the code is this
// one: what tells a right guess from a wrong one would be here for one only.
func (e *eve) tests(code []byte) map[string]bool {
	passed := map[string]bool{}
	see := func(name string, ok bool) {
		if ok {
			passed[name] = true
		}
	}
	see("admit_t", hmac.Equal(mac(e.scp("admit"), []byte("t"), hash(less(e.t, e.hello.KeycopyHelloBody))), e.hello.Admit[:]))
	prs := cat([]byte("keycopy/1 prs"), code, e.scp("prs"))
	g := cpaceGenerator(prs, channelID(e.channel.Mode, 1, &e.channel), e.channel.Exporter[32:])
	pool := map[string][]byte{"PRS": prs, "code": code, "SC": e.sc, "SCS": e.scs(), "zero": make([]byte, 64), "X of direct": e.codeX(code)}
	for _, l := range []string{"admit", "prs", "mix", "code", "code-wrap", "kek-wrap"} {
		pool["scp("+l+")"] = e.scp(l)
	}
	for name, el := range e.elements(g) {
		pool[name] = el.Bytes()
		isk := sha512.Sum512(append(cat([]byte(cpaceDSIISK), e.channel.Exporter[32:], el.Bytes()), cat(share(e.hello.Share), hash(e.helloRaw), e.ack.Share[:], hash(e.ackRaw))...))
		pool["ISK of "+name] = isk[:]
	}
	for name, value := range pool {
		for _, f := range e.frames {
			see(name+" is in "+f.Type.String(), len(value) >= 8 && bytes.Contains(f.Body, value))
		}
		tries := map[string][]byte{"": value}
		if len(value) == 64 || len(value) == 32 {
			tries = e.keys(append(bytes.Clone(value), make([]byte, 64-len(value))...))
			tries[""] = value
		}
		for label, key := range tries {
			e.try(name+" "+label, key, see)
		}
	}
	return passed
}

func share(p *transport.KeycopyPoint) []byte {
	if p == nil {
		return nil
	}
	return p[:]
}

// try uses key as the key of each tag and each ciphertext.
func (e *eve) try(name string, key []byte, see func(string, bool)) {
	th := hash(e.helloRaw, e.ackRaw)
	for what, tt := range map[string]struct{ got, over []byte }{
		"Ta":      {e.proof.Tag[:], th},
		"Tb":      {e.grant.Tag[:], bytes.Join([][]byte{th, e.proof.Tag[:], hash(e.grant.Manifest), e.grant.KEK}, nil)},
		"receipt": {e.receipt.MAC[:], append(bytes.Clone(th), less(e.t, e.receipt.KeycopyReceiptBody)...)},
	} {
		see(name+" makes "+what, hmac.Equal(mac(key, tt.over), tt.got))
	}
	if len(key) == chacha20poly1305.KeySize {
		_, ok := e.open(key)
		see(name+" opens ITEM", ok)
	}
}

// With the security code and a bare figure 4 or 5 the operator code and the key
// are there for the reading. This is why these modes are off, and why they are
// never without TLS and identities. req: C3, C4, C6
func TestBareFiguresFallWithTheSecurityCode(t *testing.T) {
	for _, mode := range []transport.KeycopyMode{transport.KeycopyDirect, transport.KeycopyKEK} {
		e, r := listen(t, mode, "48151623")
		code, record := e.read()
		if want := append([]byte("48151623"), '0'+damm([]byte("48151623"))); !bytes.Equal(code, want) || !bytes.Equal(record, less(t, &r.records[0])) {
			t.Errorf("%s: code %q, record of %d bytes", mode, code, len(record))
		}
		// Inside TLS she does not have the exporter, and what she read is noise.
		e.channel.Exporter[0] ^= 1
		if code, record := e.read(); code != nil || record != nil {
			t.Errorf("%s: read without the exporter", mode)
		}
	}
	e, _ := listen(t, transport.KeycopyPAKE, "48151623")
	if code, record := e.read(); code != nil || record != nil {
		t.Error("there is nothing to read in mode pake")
	}
}

// Were the code only in the derivation of the item key, each code would be one
// guess: all of a space of 10,000 takes 10,000 at most, and the whole space of
// codes 10,000 times that. In figures 4 and 5 not even that is needed.
func TestGuessesIfTheCodeWereOnlyInTheDerivation(t *testing.T) {
	e, r := listen(t, transport.KeycopyDirect, "00007391")
	guesses := 0
	var found []byte
	for n := range 10_000 {
		digits := fmt.Appendf(nil, "%08d", n)
		digits = append(digits, '0'+damm(digits))
		guesses++
		if record, ok := e.open(e.keys(e.codeX(digits))["item"]); ok {
			found = record
			break
		}
	}
	if guesses != 7392 || !bytes.Equal(found, less(t, &r.records[0])) {
		t.Errorf("%d guesses, %d bytes", guesses, len(found))
	}
}

// The same Eve, with the exporter as well, finds no test of a code in mode pake:
// for the right code and for others the same things come out as on the wire. In
// the other modes the right one stands out at once.
func TestNoTestOfTheCodeInPAKE(t *testing.T) {
	for _, mode := range transport.KeycopyModes() {
		e, _ := listen(t, mode, "48151623")
		guess := func(digits string) map[string]bool { return e.tests(append([]byte(digits), '0'+damm([]byte(digits)))) }
		right := guess("48151623")
		if !right["admit_t"] {
			t.Fatalf("%s: the tool does not work: %v", mode, right)
		}
		for n := range 10 {
			wrong := guess(fmt.Sprintf("%08d", 48151624+n*n*7919))
			if maps.Equal(right, wrong) != (mode == transport.KeycopyPAKE) {
				t.Errorf("%s: the right code gives %v, a wrong one %v", mode, right, wrong)
			}
		}
	}
}

// Why that is so: in a group of prime order each share belongs to each code. For
// two codes with generators a·B and b·B the same bytes are on the wire, with the
// scalars y and y·a/b; the keys differ, and to make them takes a scalar.
func TestSharesBelongToEveryCode(t *testing.T) {
	draw := func(seed byte) *ristretto255.Scalar {
		var u [64]byte
		seeded(seed).Read(u[:])
		s, err := ristretto255.NewScalar().SetUniformBytes(u[:])
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	a, b, ya, yb := draw('a'), draw('b'), draw('y'), draw('z')
	ratio := ristretto255.NewScalar().Multiply(a, ristretto255.NewScalar().Invert(b))
	view := func(g, ya, yb *ristretto255.Scalar) (shareA, shareB, k []byte) {
		gen := ristretto255.NewIdentityElement().ScalarBaseMult(g)
		yA := ristretto255.NewIdentityElement().ScalarMult(ya, gen)
		return yA.Bytes(), ristretto255.NewIdentityElement().ScalarMult(yb, gen).Bytes(), ristretto255.NewIdentityElement().ScalarMult(yb, yA).Bytes()
	}
	a1, b1, k1 := view(a, ya, yb)
	a2, b2, k2 := view(b, ristretto255.NewScalar().Multiply(ya, ratio), ristretto255.NewScalar().Multiply(yb, ratio))
	if !bytes.Equal(a1, a2) || !bytes.Equal(b1, b2) || bytes.Equal(k1, k2) {
		t.Error("two codes look different on the wire")
	}
	// What a code decides is the generator alone, and all that is sent of it is a
	// random multiple.
	g1, g2 := cpaceGenerator([]byte("code 1"), nil, nil), cpaceGenerator([]byte("code 2"), nil, nil)
	if g1.Equal(g2) == 1 {
		t.Error("the generator does not depend on the code")
	}
}

// BenchmarkGuess is what one guess costs her in the modes that send the code,
// were it only in the derivation.
func BenchmarkGuess(b *testing.B) {
	e, _ := listen(b, transport.KeycopyDirect, "00007391")
	code := []byte("123456782")
	for b.Loop() {
		e.open(e.keys(e.codeX(code))["item"])
	}
}
