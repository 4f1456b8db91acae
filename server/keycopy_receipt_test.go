package server

import (
	"testing"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// A receipt is good if the Target's identity key signed it for this transaction,
// and for what the Source says was taken.
//
// req: C5
func TestReceiptsAreJudged(t *testing.T) {
	cases := map[string]struct {
		change func(m *moving, signed, signature *[]byte)
		proof  string
	}{
		"good":              {func(*moving, *[]byte, *[]byte) {}, store.ProofGood},
		"by another device": {func(m *moving, s, sig *[]byte) { *s, *sig = m.signed(newBox(m.r.t), []byte{1}) }, store.ProofBad},
		"by the source":     {func(m *moving, s, sig *[]byte) { *s, *sig = m.signed(m.old, []byte{1}) }, store.ProofBad},
		"nothing was taken": {func(m *moving, s, sig *[]byte) { *s, *sig = m.signed(m.new, []byte{0}) }, store.ProofBad},
		"more was taken":    {func(m *moving, s, sig *[]byte) { *s, *sig = m.signed(m.new, []byte{3}) }, store.ProofBad},
		"changed":           {func(_ *moving, s, _ *[]byte) { (*s)[len(*s)-1] ^= 1 }, store.ProofBad},
		"another one's": {func(m *moving, s, sig *[]byte) {
			other := *m
			other.txn[0] ^= 1
			*s, *sig = other.signed(m.new, []byte{1})
		}, store.ProofBad},
		"signature alone": {func(_ *moving, s, _ *[]byte) { *s = nil }, ""},
		"not signed":      {func(_ *moving, s, sig *[]byte) { *s, *sig = nil, nil }, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			m := newRig(t).moving(transport.TransferMove)
			p := m.report(transport.KeycopySource, transport.KeycopyDone)
			p.Signed, p.Signature = m.signed(m.new, []byte{1})
			c.change(m, &p.Signed, &p.Signature)
			want[transport.KeycopyReported](t, m.who(transport.KeycopySource).say(p))
			m.target(transport.KeycopyClosed)
			k := m.row()
			if k.Proof != c.proof || (k.Status == store.KeycopyContradiction) != (c.proof == store.ProofBad) {
				t.Errorf("proof %q, %s %v", k.Proof, k.Status, k.Problems)
			}
			var d KeycopyDetail
			m.r.call("KeycopyShow", KeycopyShowParams{Txn: m.txn.String()}, &d)
			shown := map[string]string{"signature alone": "unchecked", "not signed": "none"}[name]
			if shown == "" {
				shown = c.proof
			}
			if i := d.Keycopies[0]; i.Receipt != shown || (len(i.Signature) > 0) != (name != "not signed") {
				t.Errorf("%+v", i)
			}
		})
	}
}

// A Target that enrolls after it has signed is known then.
func TestReceiptsOfSparesAreJudgedLater(t *testing.T) {
	r := newRig(t)
	m := r.moving(transport.TransferMove)
	m.new = newBox(t)
	p := m.report(transport.KeycopySource, transport.KeycopyDone)
	p.Signed, p.Signature = m.signed(m.new, []byte{1})
	want[transport.KeycopyReported](t, m.who(transport.KeycopySource).say(p))
	if k := m.row(); k.Proof != "" || k.Status != store.KeycopyOpen {
		t.Errorf("%+v", k)
	}
	r.enroll(r.addTerminal("nav-009"), m.new)
	want[transport.KeycopyReported](t, r.as("nav-009", m.new).say(m.report(transport.KeycopyTarget, transport.KeycopyClosed)))
	if k := m.row(); k.Proof != store.ProofGood || k.Status != store.KeycopyConsistent {
		t.Errorf("%+v", k)
	}
}
