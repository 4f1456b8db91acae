package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// asked is a conversation that has sent its request.
func (r *enrollRig) asked(t *testing.T, order enrollOrder) *enrollment {
	t.Helper()
	peer := &enrolling{s: r.server, exporter: bytes.Repeat([]byte{7}, transport.EnrollExporterSize)}
	c, payload, err := order.hello()
	if err != nil {
		t.Fatal(err)
	}
	challenge, err := peer.receive(payload)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.answer(t.Context(), challenge); err != nil {
		t.Fatal(err)
	}
	return c
}

func pack(t *testing.T, m transport.Body) []byte {
	t.Helper()
	payload, err := transport.Pack(rand.Reader, time.Now(), nil, m)
	if err != nil {
		t.Fatal(err)
	}
	return payload
}

// oneChip is key storage that proves what it is told to; what real chips say is
// tested in hsm/attest, server and the stories.
type oneChip struct{ err error }

func (c oneChip) Evidence(context.Context, hsm.Blob, [32]byte) (*hsm.Evidence, hsm.Blob, error) {
	return &hsm.Evidence{Chain: [][]byte{}}, hsm.Blob("ak"), c.err
}

func (c oneChip) Activate(context.Context, hsm.Blob, hsm.Challenge) (*hsm.Secret, error) {
	return hsm.NewSecret([]byte("secret")), c.err
}

func (c oneChip) ImportWrapped(context.Context, hsm.Wrapped) (hsm.Blob, error) {
	return hsm.Blob("code"), c.err
}

// A terminal that cannot prove a TPM says so, to the server and to people.
func TestEnrollWithoutATPMSaysSo(t *testing.T) {
	r := newEnrollRig(t)
	for name, p := range map[string]*prover{"file": nil, "no maker": {chip: oneChip{hsm.ErrEndorsement}}} {
		o := r.order
		o.prover = p
		last, result, err := r.asked(t, o).answer(t.Context(), pack(t, &transport.EnrollAttest{}))
		if problem := control.AsProblem(err); result != nil || problem.Kind != control.Refused || problem.Next == "" {
			t.Errorf("%s: %v", name, err)
		}
		env, err := transport.Unpack(last, transport.MaxEnrollEnvelope)
		if err != nil {
			t.Fatal(err)
		}
		if f, err := transport.Open[transport.Fault](env); err != nil || f.Code != transport.FaultAttest || f.Text == "" {
			t.Errorf("%s: %v, %v", name, f, err)
		}
	}
}

// The terminal goes through a proof once, in its order, and takes no code
// without. req: L3
func TestEnrollKeepsTheOrderOfAProof(t *testing.T) {
	r := newEnrollRig(t)
	o := r.order
	o.prover = &prover{chip: oneChip{}}
	attest, activate := pack(t, &transport.EnrollAttest{}), pack(t, &transport.EnrollActivate{})
	for name, messages := range map[string][][]byte{
		"a challenge at once":     {activate},
		"asked twice":             {attest, attest},
		"challenged twice":        {attest, activate, activate},
		"asked after the opening": {attest, activate, attest},
		"the challenge of (2)":    {attest, pack(t, &transport.EnrollChallenge{})},
	} {
		c := r.asked(t, o)
		for n, m := range messages {
			reply, result, err := c.answer(t.Context(), m)
			if last := n == len(messages)-1; last != (err != nil) || result != nil || last != (reply == nil) {
				t.Errorf("%s, message %d: %x, %v", name, n, reply, err)
			}
		}
	}
	chain := r.server.ca.client(transport.URI{Deployment: testDeployment, Terminal: "nav-001"}, r.vault.identity.Public())
	code := &transport.WrappedCode{Group: "default", Epoch: 1, Public: []byte{1}, Duplicate: []byte{2}, Seed: []byte{3}}
	granted := pack(t, &transport.EnrollCertificate{Chain: chain, Time: time.Now().Unix(), Remaining: 60, Code: code})
	if _, result, err := r.asked(t, o).answer(t.Context(), granted); !errors.Is(err, transport.ErrMalformed) || result != nil {
		t.Errorf("a code without a proof: %v", err)
	}
	c := r.asked(t, o)
	for _, m := range [][]byte{attest, activate} {
		if _, _, err := c.answer(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	if _, result, err := c.answer(t.Context(), granted); err != nil || result.code == nil {
		t.Errorf("%v", err)
	}
}

// A bundle without a security code is for key storage that can prove itself:
// elsewhere it is refused, and changes nothing.
func TestProvisionWithoutACode(t *testing.T) {
	s := newServer(t)
	b := s.expect()
	b.Attest, b.SecurityCode = true, nil
	a := testAgent(t, Config{})
	_, err := provision(t, a, b)
	if p := control.AsProblem(err); p.Kind != control.Conflict || p.Next == "" {
		t.Errorf("%v", err)
	}
	if self, err := a.vault.self(); self != nil || err != nil {
		t.Errorf("%+v, %v", self, err)
	}
}

// Certificate and code are kept together: the code is one more of the group's.
func TestKeepsWhatCameWithTheCertificate(t *testing.T) {
	a := testAgent(t, Config{})
	s := newServer(t)
	mustProvision(t, a, s.expect())
	self, err := a.vault.self()
	if err != nil {
		t.Fatal(err)
	}
	chain := s.ca.client(transport.URI{Deployment: testDeployment, Terminal: self.Terminal}, a.vault.identity.Public())
	if err := a.vault.keepEnrolled(transport.ID{1}, chain, &heldCode{7, hsm.Blob("code")}); err == nil {
		t.Error("kept for another bundle")
	}
	if err := a.vault.keepEnrolled(self.newest(), chain, &heldCode{7, hsm.Blob("code")}); err != nil {
		t.Fatal(err)
	}
	if self, err = a.vault.self(); err != nil || self.Epoch != 7 || len(self.Codes) != 2 {
		t.Errorf("%+v, %v", self, err)
	}
	a.vault.store.View(func(tx *store.Tx) error {
		if held := heldCodes(tx, self); len(held) != 2 || string(held[0].blob) != "code" {
			t.Errorf("%+v", held)
		}
		return nil
	})
	if kept, err := a.vault.identityChain(); err != nil || len(kept) == 0 {
		t.Errorf("%v", err)
	}
	if _, err := a.vault.takeCode(t.Context(), self, &transport.WrappedCode{Group: "default"}); err == nil {
		t.Error("key storage \"file\" took a wrapped code")
	}
}
