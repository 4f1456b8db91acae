package server

import (
	"crypto/rand"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
)

// FuzzAnswer gives one message to a stranger's connection, one to a stranger
// that has said hello, and one to a terminal's. Whatever it is, there is an
// answer and no panic, and nobody is enrolled by it.
func FuzzAnswer(f *testing.F) {
	r := newRigNow(f)
	r.addGate("maps")
	x, _ := r.terminal("nav-001")
	p := r.order("nav-001", "maps")
	for _, m := range []transport.Body{
		&transport.EnrollHello{Terminal: "nav-001"}, &transport.EnrollRequest{CSR: csr(f, newKey(f), transport.URI{}), Level: "file"},
		&transport.CommandPoll{}, &transport.CommandResult{Command: p.Command, State: transport.CommandDone},
		&transport.CredentialRequest{Command: p.Command, CSR: csr(f, newKey(f), transport.URI{})},
		&transport.CredentialClaim{Credential: p.Credential, Signature: []byte{1}}, &transport.Fault{Code: 1, Text: "x"},
		&transport.KeycopyReport{Txn: transport.ID{1}, Side: transport.KeycopySource, Peer: transport.DeviceID{2}, Mode: transport.KeycopyPAKE, Phase: transport.KeycopyDone, Total: 1,
			Items: []transport.KeycopyReportedItem{{ID: p.Credential, Transfer: transport.TransferMove, Taken: true}}, Signature: []byte{1}, Signed: []byte{2}},
		&transport.KeycopySettle{Txn: transport.ID{1}, Side: transport.KeycopySource, Peer: transport.DeviceID{2}, Want: transport.KeycopyReclaimed},
	} {
		payload, err := transport.Pack(rand.Reader, time.Now(), nil, m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(payload)
	}
	f.Add([]byte{})
	f.Add([]byte("\xa6\x01\x01"))
	f.Fuzz(func(t *testing.T, payload []byte) {
		r.t = t
		defer func() { r.t = f }()
		said := r.stranger("x")
		said.hello("nav-001", x)
		k := r.as("nav-001", x)
		k.ses.given = true
		for _, k := range []*talk{r.stranger("x"), said, k} {
			e, out, err := r.s.answer(t.Context(), k.ses, payload)
			if err != nil {
				t.Fatal(err)
			}
			if out.reply == nil && (e == nil || e.Type != "fault") {
				t.Error("no answer")
			}
			if out.reply != nil && out.reply.Type() == "enroll.certificate" {
				t.Error("enrolled")
			}
		}
	})
}

// FuzzBodies puts the bytes where the body is, behind an envelope that is good.
func FuzzBodies(f *testing.F) {
	r := newRigNow(f)
	r.addGate("maps")
	x, _ := r.terminal("nav-001")
	types := []string{"enroll.hello", "enroll.request", "command.poll", "command.result", "credential.request", "credential.claim",
		"keycopy.report", "keycopy.settle"}
	for i := range types {
		f.Add(uint8(i), []byte{0xa0})
	}
	f.Fuzz(func(t *testing.T, kind uint8, body []byte) {
		r.t = t
		defer func() { r.t = f }()
		payload, err := transport.Marshal(&transport.Envelope{V: transport.Version, ID: transport.NewID(rand.Reader), Type: types[int(kind)%len(types)], Body: body})
		if err != nil {
			return
		}
		for _, k := range []*talk{r.stranger("x"), r.as("nav-001", x)} {
			if _, out, err := r.s.answer(t.Context(), k.ses, payload); err != nil || out.reply == nil {
				t.Fatalf("%+v, %v", out, err)
			}
		}
	})
}
