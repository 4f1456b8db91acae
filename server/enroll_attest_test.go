package server

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/attest"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/tpm"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// chipBox is a device whose keys are in a real TPM.
type chipBox struct {
	t        testing.TB
	module   *tpm.Module
	identity hsm.Blob
	signer   hsm.Signer
	ak       hsm.Blob
	spoil    func(transport.Body) // changes what it says about its TPM
}

func newChip(t testing.TB, maker *hsmtest.Maker) *tpm.Module {
	t.Helper()
	p := hsmtest.NewTPM(t)
	maker.Endorse(p)
	m, err := tpm.Open(t.Context(), p.Socket, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// newChipBox is a device with a new identity key in a chip.
func newChipBox(t testing.TB, m *tpm.Module) *chipBox {
	t.Helper()
	x := &chipBox{t: t, module: m, spoil: func(transport.Body) {}}
	var err error
	if x.identity, err = m.NewKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	if x.signer, err = m.Signer(t.Context(), x.identity); err != nil {
		t.Fatal(err)
	}
	return x
}

// attestRig is a server that believes one maker of TPMs.
func attestRig(t *testing.T) (*rig, *hsmtest.Maker) {
	t.Helper()
	r, maker := newRig(t), hsmtest.NewMaker(t)
	roots, err := attest.ParseRoots(maker.Roots())
	if err != nil {
		t.Fatal(err)
	}
	r.s.cfg.EKRoots = roots
	return r, maker
}

func (r *rig) addAttested(name string) *transport.Bundle {
	r.t.Helper()
	b, _ := r.expect("TerminalAdd", func(key string) any { return TerminalAddParams{Name: name, Attest: true, ReplyKey: key} })
	return b
}

func raw(t testing.TB, m transport.Body) []byte {
	t.Helper()
	b, err := transport.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// enrollment3 goes as far as the request, and returns the bodies so far.
func (x *chipBox) enrollment3(b *transport.Bundle, exporter string, say func(transport.Body) *transport.Envelope) (bodies [][]byte, answer *transport.Envelope) {
	x.t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(x.signer.Public())
	if err != nil {
		x.t.Fatal(err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, x.signer)
	if err != nil {
		x.t.Fatal(err)
	}
	h := &transport.EnrollHello{Terminal: b.Terminal, Device: transport.NewDeviceID(spki)}
	rand.Read(h.Nonce[:])
	c := want[transport.EnrollChallenge](x.t, say(h))
	m := proof(x.t, b.CommonKey, exporter, h, c, request)
	return [][]byte{raw(x.t, h), raw(x.t, c), raw(x.t, m)}, say(m)
}

// evidence is what the chip shows for a conversation.
func (x *chipBox) evidence(exporter string, bodies [][]byte) *transport.EnrollEvidence {
	x.t.Helper()
	e, ak, err := x.module.Evidence(x.t.Context(), x.identity, transport.EnrollAttestNonce([]byte(exporter), bodies[0], bodies[1], bodies[2]))
	if err != nil {
		x.t.Fatal(err)
	}
	x.ak = ak
	m := &transport.EnrollEvidence{Endorsement: e.Endorsement, Chain: e.Chain, EK: e.EK, AK: e.AK, Root: e.Root, Identity: e.Identity,
		RootProof: transport.EnrollProof(e.RootProof), IdentityProof: transport.EnrollProof(e.IdentityProof)}
	x.spoil(m)
	return m
}

// enroll goes through the whole of it and returns the last answer.
func (x *chipBox) enroll(b *transport.Bundle, exporter string, say func(transport.Body) *transport.Envelope) *transport.Envelope {
	x.t.Helper()
	bodies, answer := x.enrollment3(b, exporter, say)
	if answer.Type != "enroll.attest" {
		return answer
	}
	shown := x.evidence(exporter, bodies)
	answer = say(shown)
	if answer.Type != "enroll.activate" {
		return answer
	}
	c := want[transport.EnrollActivate](x.t, answer)
	secret, err := x.module.Activate(x.t.Context(), x.ak, hsm.Challenge{Credential: c.Credential, Secret: c.Secret})
	if err != nil {
		x.t.Fatal(err)
	}
	bodies = append(bodies, raw(x.t, shown), answer.Body)
	m := &transport.EnrollActivated{MAC: transport.EnrollActivatedMAC(b.CommonKey, secret.Bytes(), []byte(exporter), bodies...)}
	x.spoil(m)
	return say(m)
}

func (r *rig) enrollChip(b *transport.Bundle, x *chipBox) *transport.Envelope {
	r.t.Helper()
	return x.enroll(b, "x", r.stranger("x").say)
}

// A chip proves itself; its level and name are recorded; the security code
// comes wrapped to it and is the group's. req: L3, L4
func TestEnrollmentWithProofOfATPM(t *testing.T) {
	r, maker := attestRig(t)
	full, reply := r.bundle("TerminalAdd", func(key string) any { return TerminalAddParams{Name: "nav-001", Attest: true, ReplyKey: key} })
	if !full.Attest || len(full.SecurityCode) != 0 || !reply.Attest || len(reply.Notes) != 1 {
		t.Errorf("%+v, %+v", full, reply)
	}
	x := newChipBox(t, newChip(t, maker))
	answer := want[transport.EnrollCertificate](t, r.enrollChip(full, x))
	if answer.Code == nil || answer.Code.Group != "default" || answer.Code.Epoch != 1 {
		t.Fatalf("%+v", answer.Code)
	}
	r.sameCode(x, answer.Code)

	var d TerminalDetail
	r.call("TerminalShow", NameParams{Name: "nav-001"}, &d)
	if short, long := d.Terminal.Storage(); d.Terminal.Level != "tpm+attested" || !d.Terminal.Proven || !d.Terminal.Attest || short != "tpm, proven" || !strings.Contains(long, "vouches") {
		t.Errorf("%+v", d.Terminal)
	}
	r.view(func(tx *store.Tx) error {
		row, err := tx.Terminal("nav-001")
		if err != nil {
			return err
		}
		e, err := tx.EndorsementOf(row.Device)
		if e.Key == ([32]byte{}) || len(e.Root) == 0 {
			t.Error("the chip is not recorded")
		}
		return err
	})
	// The reply was lost: the same certificate, and the code once more.
	again := want[transport.EnrollCertificate](t, r.enrollChip(full, x))
	if string(again.Chain[0]) != string(answer.Chain[0]) || again.Code == nil {
		t.Error("not the same again")
	}
	r.sameCode(x, again.Code)
}

// sameCode checks that a chip takes in the group's security code.
func (r *rig) sameCode(x *chipBox, c *transport.WrappedCode) {
	r.t.Helper()
	blob, err := x.module.ImportWrapped(r.t.Context(), hsm.Wrapped{Public: c.Public, Duplicate: c.Duplicate, Seed: c.Seed})
	if err != nil {
		r.t.Fatal(err)
	}
	got, err := x.module.MAC(r.t.Context(), blob, []byte("message"))
	if err != nil {
		r.t.Fatal(err)
	}
	r.view(func(tx *store.Tx) error {
		g, err := tx.Group(c.Group)
		if err != nil {
			return err
		}
		code, err := tx.SecurityCode(g)
		if err != nil {
			return err
		}
		m := hmac.New(sha256.New, code.Bytes())
		m.Write([]byte("message"))
		if !hmac.Equal(m.Sum(nil), got.Bytes()) {
			r.t.Error("another code")
		}
		return nil
	})
}

// Without a proof that holds there is no certificate, and the answer says why.
// req: L3
func TestEnrollmentWithoutProofIsRefused(t *testing.T) {
	r, maker := attestRig(t)
	chip := newChip(t, maker)
	other := newChipBox(t, chip)
	b := r.addAttested("nav-001")
	bodies, _ := other.enrollment3(b, "y", r.stranger("y").say)
	foreign := other.evidence("y", bodies) // of another connection
	for name, c := range map[string]struct {
		spoil func(transport.Body)
		says  string
	}{
		"nothing wrong but the EK's root": {func(m transport.Body) {
			if e, ok := m.(*transport.EnrollEvidence); ok {
				e.Endorsement = hsmtest.NewMaker(t).Certificate(newKey(t).Public(), nil)
			}
		}, "unknown authority"},
		"evidence of another connection": {func(m transport.Body) {
			if e, ok := m.(*transport.EnrollEvidence); ok {
				*e = *foreign
			}
		}, "not the key"},
		"statements of another connection": {func(m transport.Body) {
			if e, ok := m.(*transport.EnrollEvidence); ok {
				e.AK, e.RootProof, e.IdentityProof = foreign.AK, foreign.RootProof, foreign.IdentityProof
			}
		}, "another occasion"},
		"nothing at all": {func(m transport.Body) {
			if e, ok := m.(*transport.EnrollEvidence); ok {
				*e = transport.EnrollEvidence{Chain: [][]byte{}}
			}
		}, "endorsement certificate"},
		"a challenge that was not opened": {func(m transport.Body) {
			if a, ok := m.(*transport.EnrollActivated); ok {
				a.MAC[0] ^= 1
			}
		}, "not opened"},
	} {
		x := newChipBox(t, chip)
		x.spoil = c.spoil
		k := r.stranger("x")
		answer := x.enroll(b, "x", k.say)
		fault(t, name, answer, transport.FaultAttest)
		if f, _ := transport.Open[transport.Fault](answer); !strings.Contains(f.Text, c.says) {
			t.Errorf("%s: %q does not say %q", name, f.Text, c.says)
		}
		fault(t, name+", and on", k.say(&transport.EnrollActivated{}), transport.FaultRefused)
	}
	r.view(func(tx *store.Tx) error {
		row, err := tx.Terminal("nav-001")
		if row.State != store.TerminalExpected {
			t.Errorf("%+v", row)
		}
		return err
	})
	want[transport.EnrollCertificate](t, r.enrollChip(b, newChipBox(t, chip)))
}

// The steps come in their order, or not at all. req: L3
func TestProofOfATPMKeepsItsOrder(t *testing.T) {
	r, maker := attestRig(t)
	x := newChipBox(t, newChip(t, maker))
	b := r.addAttested("nav-001")
	for name, out := range map[string]transport.Body{
		"answer before evidence": &transport.EnrollActivated{}, "request twice": &transport.EnrollRequest{}, "hello again": &transport.EnrollHello{},
	} {
		k := r.stranger("x")
		if _, answer := x.enrollment3(b, "x", k.say); answer.Type != "enroll.attest" {
			t.Fatalf("%s", answer.Type)
		}
		fault(t, name, k.say(out), transport.FaultMalformed)
		fault(t, name+", and on", k.say(&transport.EnrollActivated{}), transport.FaultRefused)
	}
	// A terminal that cannot says so, and that is the end.
	k := r.stranger("x")
	x.enrollment3(b, "x", k.say)
	if e := k.say(&transport.Fault{Code: transport.FaultAttest, Text: "no TPM here"}); e != nil {
		t.Errorf("an answer to a fault: %v", e)
	}
	fault(t, "after its own fault", k.say(&transport.EnrollActivated{}), transport.FaultRefused)
	// Whoever has not the common key is never asked, nor told why not.
	stranger := *b
	stranger.CommonKey = make(transport.Sensitive, transport.CommonKeySize)
	_, answer := x.enrollment3(&stranger, "x", r.stranger("x").say)
	fault(t, "without the common key", answer, transport.FaultRefused)
	// Evidence where none was asked for is no request.
	_, answer = x.enrollment3(r.addTerminal("nav-002"), "x", r.stranger("x").say)
	if c := want[transport.EnrollCertificate](t, answer); c.Code != nil {
		t.Error("a code without a proof")
	}
}

// One chip is one live terminal. req: L3
func TestOneTPMIsOneTerminal(t *testing.T) {
	r, maker := attestRig(t)
	chip := newChip(t, maker)
	first, second := r.addAttested("nav-001"), r.addAttested("nav-002")
	want[transport.EnrollCertificate](t, r.enrollChip(first, newChipBox(t, chip)))
	x := newChipBox(t, chip)
	answer := r.enrollChip(second, x)
	fault(t, "a second terminal in the chip", answer, transport.FaultAttest)
	if f, _ := transport.Open[transport.Fault](answer); !strings.Contains(f.Text, "nav-001") {
		t.Errorf("%v", f)
	}
	r.reenroll("nav-001")
	want[transport.EnrollCertificate](t, r.enrollChip(second, x))
}

// A server that knows no makers adds no such terminal, and lets none in that it
// has added before.
func TestNoProofWithoutMakers(t *testing.T) {
	r, maker := attestRig(t)
	b := r.addAttested("nav-001")
	x := newChipBox(t, newChip(t, maker))
	r.s.cfg.EKRoots = nil
	reader, err := control.NewReader()
	if err != nil {
		t.Fatal(err)
	}
	r.refused("TerminalAdd", TerminalAddParams{Name: "nav-002", Attest: true, ReplyKey: reader.Key()}, control.Conflict)
	r.refused("TerminalReenroll", TerminalReenrollParams{Name: "nav-001", ReplyKey: reader.Key()}, control.Conflict)
	fault(t, "no makers", r.enrollChip(b, x), transport.FaultAttest)
}
