package server

import (
	"crypto/ecdsa"
	"crypto/rand"
	"slices"
	"testing"
	"time"

	"github.com/kagimori/kagimori/server/ca"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
)

// req: L1, L4, L6
func TestCredentialsAreIssuedPerPair(t *testing.T) {
	r := newRig(t)
	services := []string{"maps", "fuel"}
	for _, s := range services {
		r.addGate(s)
	}
	serials := map[string]bool{}
	for _, terminal := range []string{"nav-001", "nav-002"} {
		x, _ := r.terminal(terminal)
		for _, s := range services {
			p := r.order(terminal, s)
			h := r.as(transport.Name(terminal), x).obey()
			if h.id != p.Credential || string(h.order.Subject) != terminal || h.order.Usage != transport.UsageClient || h.order.Transfer != transport.TransferCopy {
				t.Errorf("%+v", h.order)
			}
			id, err := transport.VerifyCredential(h.chain, r.s.ca.Roots(), "demo", transport.Name(s), r.now())
			if err != nil || id != p.Credential || !h.key.PublicKey.Equal(h.chain[0].PublicKey) {
				t.Errorf("%s, %v", id, err)
			}
			if h.got.ServerName != s+".test" || h.got.Endpoints[0] != s+".test:8443" || string(h.got.Anchors[0]) != string(r.s.ca.Certificate("root").Raw) {
				t.Errorf("%+v", h.got)
			}
			if day := int64(24 * 60 * 60); h.got.Remaining < 90*day-60 || h.got.Remaining > 90*day {
				t.Errorf("remaining %d", h.got.Remaining)
			}
			serials[serialText(h.chain[0].SerialNumber)] = true

			var i CredentialInfo
			r.call("CredentialShow", NameParams{Name: string(h.id)}, &i)
			if !i.InForce || i.State != store.CredentialActive || string(i.Service) != s || i.Operation != "issue" || i.Operated.IsZero() || i.Expires.Sub(r.now()) < 89*24*time.Hour ||
				len(i.Holders) != 1 || string(i.Holders[0].Terminal) != terminal || i.Holders[0].Device != x.id() || i.Holders[0].Origin != store.OriginIssue || i.Ordered != "" {
				t.Errorf("%+v", i)
			}
		}
	}
	if len(serials) != 4 {
		t.Errorf("%d certificates for 2 x 2 pairs", len(serials))
	}
	r.advance(91 * 24 * time.Hour)
	var page CredentialPage
	r.call("CredentialList", ListParams{Filter: map[string]string{"state": "active", "terminal": "nav-001"}}, &page)
	if len(page.Credentials) != 2 || page.Credentials[0].InForce {
		t.Errorf("expired, and in force: %+v", page.Credentials)
	}
}

// req: L4
func TestRequestsAreIdempotentForTheirKey(t *testing.T) {
	r := newRig(t)
	r.addGate("maps")
	x, _ := r.terminal("nav-001")
	y, _ := r.terminal("nav-002")
	p := r.order("nav-001", "maps")
	k := r.as("nav-001", x)
	key := newKey(t)
	own := transport.URI{Deployment: "demo", Service: "maps", Credential: p.Credential}
	ask := func(k *talk, csr []byte) *transport.Envelope {
		return k.say(&transport.CredentialRequest{Command: p.Command, CSR: csr})
	}
	fault(t, "not a request", ask(k, []byte("rubbish")), transport.FaultRequest)
	fault(t, "the identity key", ask(k, csr(t, x.key, own)), transport.FaultRequest)
	fault(t, "another service", ask(k, csr(t, key, transport.URI{Deployment: "demo", Service: "fuel", Credential: p.Credential})), transport.FaultRequest)
	fault(t, "an identity", ask(k, csr(t, key, transport.URI{Deployment: "demo", Terminal: "nav-001"})), transport.FaultRequest)
	fault(t, "a server name", ask(k, csr(t, key, transport.URI{}, "maps.test")), transport.FaultRequest)
	fault(t, "another terminal's order", ask(r.as("nav-002", y), csr(t, key, own)), transport.FaultRefused)
	fault(t, "no order", k.say(&transport.CredentialRequest{Command: transport.NewID(rand.Reader), CSR: csr(t, key, own)}), transport.FaultRefused)

	first := want[transport.CredentialCertificate](t, ask(k, csr(t, key, own)))
	again := want[transport.CredentialCertificate](t, ask(r.as("nav-001", x), csr(t, key, transport.URI{}))) // lost reply, new connection
	if string(first.Chain[0]) != string(again.Chain[0]) {
		t.Error("another certificate for the same key")
	}
	fault(t, "another key", ask(k, csr(t, newKey(t), own)), transport.FaultRequest)
	want[transport.CommandAck](t, k.say(&transport.CommandResult{Command: p.Command, State: transport.CommandDone}))
	fault(t, "after the end", ask(k, csr(t, key, own)), transport.FaultClosed)
}

// Many connections ask at once with different keys: one certificate.
func TestConcurrentRequestsGetOneCertificate(t *testing.T) {
	r := newRig(t)
	r.addGate("maps")
	x, _ := r.terminal("nav-001")
	p := r.order("nav-001", "maps")
	const n = 8
	results := make(chan string, n)
	for range n {
		k, m := r.as("nav-001", x), &transport.CredentialRequest{Command: p.Command, CSR: csr(t, newKey(t), transport.URI{})}
		go func() { results <- k.say(m).Type }()
	}
	count := map[string]int{}
	for range n {
		count[<-results]++
	}
	if count["credential.certificate"] != 1 || count["fault"] != n-1 {
		t.Errorf("%v", count)
	}
}

// req: L5, L18
func TestGatesGetTheirServersCertificate(t *testing.T) {
	r := newRig(t)
	b := r.addGate("maps")
	if b.Kind != transport.BundleGate || b.Terminal != "gate-maps" || b.Service != "maps" {
		t.Errorf("%+v", b)
	}
	x := newBox(t)
	r.enroll(b, x)
	h := r.as("gate-maps", x).obey()
	if err := transport.VerifyServer(h.chain, r.s.ca.Roots(), "maps.test", r.now()); err != nil {
		t.Error(err)
	}
	if err := transport.VerifyManagement(h.chain, r.s.ca.Roots(), "demo", "maps.test", r.now()); err == nil {
		t.Error("a gate may pose as the management server")
	}
	if h.order.Transfer != transport.TransferNever || len(h.chain[0].URIs) != 0 {
		t.Errorf("%+v, %v", h.order, h.chain[0].URIs)
	}
	// The names are those of the service as it is recorded, not of the order.
	r.view(func(tx *store.Tx) error {
		s, err := tx.Service("maps")
		if s.Gate != "gate-maps" {
			t.Errorf("%+v", s)
		}
		return err
	})
	// A gate that enrolls anew gets another, and the first is revoked.
	fresh, _ := r.reenroll("gate-maps")
	y := newBox(t)
	r.enroll(fresh, y)
	if second := r.as("gate-maps", y).obey(); second.id == h.id {
		t.Error("the same credential for another device")
	}
	if !r.revoked("server", serialText(h.chain[0].SerialNumber)) {
		t.Error("the earlier certificate is in force")
	}
}

// claim signs a claim as the holder of a key does.
func claim(t testing.TB, key *ecdsa.PrivateKey, nonce [32]byte, device transport.DeviceID, id transport.Name) *transport.CredentialClaim {
	t.Helper()
	digest := transport.ClaimDigest(nonce, device, id)
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return &transport.CredentialClaim{Credential: id, Nonce: nonce, Source: transport.DeviceID{7}, Time: time.Now().Unix() - 3600, Signature: signature}
}

// copied issues a credential to nav-001 and enrolls nav-002, as after a copy.
func copied(r *rig, transfer string) (h held, k *talk, nonce [32]byte, y *box) {
	r.t.Helper()
	r.addGate("maps")
	x, _ := r.terminal("nav-001")
	y, _ = r.terminal("nav-002")
	err := r.admin.Stream(r.t.Context(), Interface+".CredentialIssue", CredentialIssueParams{Terminal: "nav-001", Service: "maps", Transfer: transfer}, into(new(OrderProgress)))
	if err != nil {
		r.t.Fatal(err)
	}
	h = r.as("nav-001", x).obey()
	k = r.as("nav-002", y)
	nonce = want[transport.CommandNext](r.t, k.say(&transport.CommandPoll{})).Nonce
	return h, k, nonce, y
}

// req: L1, C8
func TestClaimsAreProven(t *testing.T) {
	r := newRig(t)
	h, k, nonce, y := copied(r, "copy")
	other := r.as("nav-002", y)
	fault(t, "before any poll", other.say(claim(t, h.key, other.ses.nonce, y.id(), h.id)), transport.FaultRefused)
	otherNonce := want[transport.CommandNext](t, other.say(&transport.CommandPoll{})).Nonce

	flipped := claim(t, h.key, nonce, y.id(), h.id)
	flipped.Signature[9] ^= 1
	empty := claim(t, h.key, nonce, y.id(), h.id)
	empty.Signature = nil
	for name, m := range map[string]*transport.CredentialClaim{
		"another connection's nonce": claim(t, h.key, otherNonce, y.id(), h.id),
		"no nonce":                   claim(t, h.key, [32]byte{}, y.id(), h.id),
		"another device":             claim(t, h.key, nonce, newBox(t).id(), h.id),
		"another key":                claim(t, newKey(t), nonce, y.id(), h.id),
		"the identity key":           claim(t, y.key, nonce, y.id(), h.id),
		"another credential":         claim(t, h.key, nonce, y.id(), "cr-aaaaaaaaaa"),
		"flipped signature":          flipped,
		"no signature":               empty,
	} {
		fault(t, name, k.say(m), transport.FaultRefused)
	}
	var i CredentialInfo
	r.call("CredentialShow", NameParams{Name: string(h.id)}, &i)
	if len(i.Holders) != 1 {
		t.Fatalf("a refused claim became a holding: %+v", i)
	}
	if m := want[transport.CredentialClaimed](t, k.say(claim(t, h.key, nonce, y.id(), h.id))); m.Credential != h.id || m.ServerName != "maps.test" ||
		!slices.Equal(m.Endpoints, []string{"maps.test:8443"}) || len(m.Anchors) != 1 || string(m.Anchors[0]) != string(r.s.ca.Certificate(ca.Root).Raw) {
		t.Errorf("%+v", m)
	}
	r.call("CredentialShow", NameParams{Name: string(h.id)}, &i)
	if len(i.Holders) != 2 || i.Operation != "copy" {
		t.Fatalf("%+v", i)
	}
	var second HolderInfo
	for _, x := range i.Holders {
		if x.Terminal == "nav-002" {
			second = x
		}
	}
	if second.Origin != store.OriginCopy || second.Device != y.id() || !second.Active || *second.Source != (transport.DeviceID{7}) {
		t.Errorf("%+v", second)
	}
	operated := i.Operated
	r.advance(time.Hour)
	want[transport.CredentialClaimed](t, k.say(claim(t, h.key, nonce, y.id(), h.id))) // the reply was lost
	r.call("CredentialShow", NameParams{Name: string(h.id)}, &i)
	if len(i.Holders) != 2 || !i.Operated.Equal(operated) {
		t.Errorf("a repeated claim changed something: %+v", i)
	}
}

func TestClaimsOfWhatMustNotTravel(t *testing.T) {
	r := newRig(t)
	h, k, nonce, y := copied(r, "never")
	fault(t, "transfer never", k.say(claim(t, h.key, nonce, y.id(), h.id)), transport.FaultRefused)
}

func TestClaimsOfWhatIsRevoked(t *testing.T) {
	r := newRig(t)
	h, k, nonce, y := copied(r, "copy")
	r.call("TerminalRemove", NameParams{Name: "nav-001"}, nil)
	fault(t, "revoked", k.say(claim(t, h.key, nonce, y.id(), h.id)), transport.FaultRefused)
}

// A clock of 1970, or of the future, does not reach the record.
func TestClaimTimesAreHeldInBounds(t *testing.T) {
	r := newRig(t)
	h, k, nonce, y := copied(r, "copy")
	m := claim(t, h.key, nonce, y.id(), h.id)
	m.Time = 5
	want[transport.CredentialClaimed](t, k.say(m))
	r.view(func(tx *store.Tx) error {
		list, err := tx.Holdings(h.id)
		for _, x := range list {
			if d := r.now().Sub(x.Since); d < 0 || d > time.Minute {
				t.Errorf("since %v", x.Since)
			}
		}
		return err
	})
}
