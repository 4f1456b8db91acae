package server

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"fmt"

	"time"

	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// moving is two terminals between which a credential goes, as their agents tell
// of it; the server sees nothing of the copy itself.
type moving struct {
	r        *rig
	h        held
	old, new *box
	txn      transport.ID
	at       time.Time // when the codes matched
	transfer transport.Transfer
	items    []transport.Name
}

// moving issues a credential to nav-001, which nav-002 is to get.
func (r *rig) moving(transfer transport.Transfer) *moving {
	r.t.Helper()
	r.addGate("maps")
	m := &moving{r: r, txn: transport.NewID(rand.Reader), transfer: transfer}
	m.old, _ = r.terminal("nav-001")
	m.new, _ = r.terminal("nav-002")
	var p OrderProgress
	if err := r.admin.Stream(r.t.Context(), Interface+".CredentialIssue", CredentialIssueParams{Terminal: "nav-001", Service: "maps", Transfer: string(transfer)}, into(&p)); err != nil {
		r.t.Fatal(err)
	}
	m.h = r.as("nav-001", m.old).obey()
	m.items = []transport.Name{m.h.id}
	r.advance(time.Hour)
	m.at = r.now()
	r.advance(time.Hour)
	return m
}

// report is what one end says of all items.
func (m *moving) report(side transport.KeycopySide, phase transport.KeycopyPhase) *transport.KeycopyReport {
	p := &transport.KeycopyReport{Txn: m.txn, Side: side, Peer: m.new.id(), Mode: transport.KeycopyPAKE, Phase: phase, At: m.at.Unix(), Changed: m.at.Unix() + int64(phase),
		Total: uint32(len(m.items))}
	if side == transport.KeycopyTarget {
		p.Peer = m.old.id()
	}
	taken := phase != transport.KeycopyOffered && phase != transport.KeycopyAbandoned && phase != transport.KeycopyStarted
	for _, id := range m.items {
		p.Items = append(p.Items, transport.KeycopyReportedItem{ID: id, Transfer: m.transfer, Taken: taken})
	}
	return p
}

func (m *moving) who(side transport.KeycopySide) *talk {
	if side == transport.KeycopySource {
		return m.r.as("nav-001", m.old)
	}
	return m.r.as("nav-002", m.new)
}

// says has an end report a phase, and checks the acknowledgement.
func (m *moving) says(side transport.KeycopySide, phase transport.KeycopyPhase) {
	m.r.t.Helper()
	if a := want[transport.KeycopyReported](m.r.t, m.who(side).say(m.report(side, phase))); a.Txn != m.txn || a.Phase != phase || a.Offset != 0 {
		m.r.t.Errorf("%+v", a)
	}
}

func (m *moving) source(phase transport.KeycopyPhase) {
	m.r.t.Helper()
	m.says(transport.KeycopySource, phase)
}
func (m *moving) target(phase transport.KeycopyPhase) {
	m.r.t.Helper()
	m.says(transport.KeycopyTarget, phase)
}

// claim has the Target prove that it has the credential.
func (m *moving) claim() {
	m.r.t.Helper()
	want[transport.CredentialClaimed](m.r.t, m.claims("nav-002", m.new, m.old.id(), &m.txn, m.transfer))
}

func (m *moving) claims(terminal transport.Name, b *box, from transport.DeviceID, txn *transport.ID, transfer transport.Transfer) *transport.Envelope {
	m.r.t.Helper()
	k := m.r.as(terminal, b)
	nonce := want[transport.CommandNext](m.r.t, k.say(&transport.CommandPoll{})).Nonce
	c := claim(m.r.t, m.h.key, nonce, b.id(), m.h.id)
	c.Source, c.Txn, c.Transfer, c.Time = from, txn, transfer, m.at.Unix()+1
	return k.say(c)
}

// settle has an end ask to act alone.
func (m *moving) settle(side transport.KeycopySide) *transport.KeycopySettled {
	m.r.t.Helper()
	p := &transport.KeycopySettle{Txn: m.txn, Side: side, Peer: m.new.id(), Want: transport.KeycopyReclaimed}
	if side == transport.KeycopyTarget {
		p.Peer, p.Want = m.old.id(), transport.KeycopyActive
	}
	return want[transport.KeycopySettled](m.r.t, m.who(side).say(p))
}

// row is the transaction between the two.
func (m *moving) row() (k store.Keycopy) {
	m.r.t.Helper()
	m.r.view(func(tx *store.Tx) (err error) {
		k, err = tx.Keycopy(m.txn, m.old.id(), m.new.id())
		return err
	})
	return k
}

// holders is who has the credential: name:state for each that has not ended.
func (m *moving) holders() string {
	m.r.t.Helper()
	var text string
	m.r.view(func(tx *store.Tx) error {
		list, err := tx.Holdings(m.h.id)
		for _, h := range list {
			if !h.Ended() {
				text += fmt.Sprintf("%s:%s ", h.Terminal, h.State)
			}
		}
		return err
	})
	return text
}

func (m *moving) expect(when, holders string, status store.KeycopyStatus, problems ...string) {
	m.r.t.Helper()
	if got := m.holders(); got != holders {
		m.r.t.Errorf("%s: held by %q, want %q", when, got, holders)
	}
	if k := m.row(); k.Status != status || fmt.Sprint(k.Problems) != fmt.Sprint(problems) {
		m.r.t.Errorf("%s: %s %v, want %s %v", when, k.Status, k.Problems, status, problems)
	}
	if i := m.r.show(m.h.id); !i.InForce {
		m.r.t.Errorf("%s: not in force: %+v", when, i)
	}
}

// signed is a receipt for all items by a key.
func (m *moving) signed(b *box, status []byte) (signed, signature []byte) {
	m.r.t.Helper()
	body, err := transport.Marshal(transport.KeycopyReceiptBody{Txn: m.txn, Status: status})
	if err != nil {
		m.r.t.Fatal(err)
	}
	signed = transport.KeycopySigned([sha256.Size]byte{1}, body, transport.KeycopyTag{2})
	digest := transport.KeycopySignedDigest(signed)
	if signature, err = b.key.Sign(rand.Reader, digest[:], crypto.SHA256); err != nil {
		m.r.t.Fatal(err)
	}
	return signed, signature
}
