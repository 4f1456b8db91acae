package agent

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm/open"
	"github.com/kagimori/kagimori/systemd"
	"github.com/kagimori/kagimori/transport"
)

func testLog(t testing.TB) *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

// opener opens real storage in dir: the module "file" and a store.
func opener(dir string, log *slog.Logger) Opener {
	return Storage(open.Config{Kind: open.KindFile, Dir: dir}, StoreConfig{Dir: dir}, log)
}

// testVault opens storage in dir until the test ends.
func testVault(t testing.TB, dir string) *vault {
	t.Helper()
	log := testLog(t)
	v, err := openVault(t.Context(), opener(dir, log), Remedy{}, NewClock(time.Now, time.Time{}), log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.store.(interface{ Check(context.Context) error }).Check(context.Background()); err != nil && !errors.Is(err, store.ErrClosed) {
			t.Errorf("store: %v", err)
		}
		v.close()
	})
	return v
}

// testAgent is an agent whose storage is open and whose loops do not run.
func testAgent(t testing.TB, cfg Config) *Agent {
	t.Helper()
	return testAgentIn(t, t.TempDir(), cfg)
}

func testAgentIn(t testing.TB, dir string, cfg Config) *Agent {
	t.Helper()
	log := testLog(t)
	if cfg.Program == "" {
		cfg.Program = "kagimori"
	}
	if cfg.Bundles == nil {
		cfg.Bundles = []transport.BundleKind{transport.BundleSpare, transport.BundleTerminal}
	}
	a, err := New(cfg, nil, systemd.NewWatchdog(systemd.NewNotifier(log), time.Minute, log), log)
	if err != nil {
		t.Fatal(err)
	}
	v := testVault(t, dir)
	v.clock, v.changed = a.clock, a.changed
	a.vault, a.problem = v, nil
	close(a.ready)
	return a
}

// provision takes a bundle in.
func provision(t testing.TB, a *Agent, b *transport.Bundle) (*ProvisionResult, error) {
	t.Helper()
	file, passphrase, err := transport.SealBundle(b)
	if err != nil {
		t.Fatal(err)
	}
	return a.Provision(t.Context(), file, passphrase)
}

// mustProvision is provision without the file: opening one takes half a second
// under the race detector.
func mustProvision(t testing.TB, a *Agent, b *transport.Bundle) *ProvisionResult {
	t.Helper()
	v, err := a.open()
	if err != nil {
		t.Fatal(err)
	}
	a.intake.Lock()
	defer a.intake.Unlock()
	r, err := a.take(t.Context(), v, b)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// server is the management server's side, as pure as the terminal's: it keeps
// commands until their results are in, and can be told to fail.
type server struct {
	t   testing.TB
	ca  *authority
	now func() time.Time

	mu        sync.Mutex
	terminal  transport.Name
	commonKey []byte
	device    transport.DeviceID       // pinned; zero: expected
	identity  [][]byte                 // that was issued for it
	commands  []*transport.Command     // not settled
	orders    map[transport.ID]*issued // by command
	results   map[transport.ID][]transport.CommandResult
	claims    map[transport.Name]transport.DeviceID
	keys      map[transport.Name]crypto.PublicKey // of credentials
	reach     *transport.CredentialClaimed        // what a claim is answered with besides the id; nil: nothing
	nonce     [32]byte
	polls     int
	states    []transport.TerminalState
	copies    copyDesk
	// recovery and recoveryKey are of the public recovery key; 0: none.
	recovery     uint32
	recoveryKey  []byte
	recoverySeed transport.Sensitive
	approve      bool // requests for store keys are granted
	asked        []transport.RecoveryRequest
	taken        []transport.RecoveryTaken
	fleet        *ecdsa.PrivateKey                            // vouches for every chip; nil: for none
	fault        func(e *transport.Envelope) *transport.Fault // nil: none
	lose         func(reply string) bool                      // a reply that does not arrive
}

type issued struct {
	csr         []byte
	certificate *transport.CredentialCertificate
}

func newServer(t testing.TB) *server {
	s := &server{t: t, ca: newAuthority(t), now: time.Now, terminal: "nav-001", orders: map[transport.ID]*issued{},
		results: map[transport.ID][]transport.CommandResult{}, claims: map[transport.Name]transport.DeviceID{}, keys: map[transport.Name]crypto.PublicKey{}}
	rand.Read(s.nonce[:])
	return s
}

// expect makes a bundle for the terminal and waits for it to enroll.
func (s *server) expect(servers ...string) *transport.Bundle {
	b := s.ca.bundle(transport.BundleTerminal, s.terminal, servers...)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.commonKey, s.device = slices.Clone(b.CommonKey), transport.DeviceID{}
	return b
}

// order puts a command on the table.
func (s *server) order(o transport.CredentialOrder) transport.ID {
	return s.command(transport.CommandIssue, &o)
}

func (s *server) command(kind string, body any) transport.ID {
	raw, err := transport.Marshal(body)
	if err != nil {
		s.t.Fatal(err)
	}
	c := &transport.Command{ID: transport.NewID(rand.Reader), Kind: kind, Body: raw}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.commands = append(s.commands, c)
	return c.ID
}

func order(id transport.Name) transport.CredentialOrder {
	return transport.CredentialOrder{Credential: id, Service: "maps", Subject: "seat-1", Usage: transport.UsageClient, DNS: []string{}, Transfer: transport.TransferCopy}
}

// got gives the results of a command.
func (s *server) got(id transport.ID) []transport.CommandResult {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.results[id])
}

// receive answers one payload of an enrolled terminal.
func (s *server) receive(payload []byte) (replies [][]byte) {
	e, err := transport.Unpack(payload, transport.MaxEnvelope)
	if err != nil {
		s.t.Errorf("the terminal sent: %v", err)
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var body transport.Body
	if s.fault != nil {
		if f := s.fault(e); f != nil {
			body = f
		}
	}
	if body == nil {
		if body, err = s.answer(e); err != nil {
			s.t.Errorf("%s of the terminal: %v", e.Type, err)
			return nil
		}
	}
	if s.lose != nil && s.lose(body.Type()) {
		return nil
	}
	reply, err := transport.Pack(rand.Reader, s.now(), e, body)
	if err != nil {
		s.t.Error(err)
	}
	return [][]byte{reply}
}

func (s *server) answer(e *transport.Envelope) (transport.Body, error) {
	switch e.Type {
	case "terminal.state", "recovery.request", "recovery.taken":
		return s.recover(e)
	case "chip.report":
		return s.chip(e)
	case "command.poll":
		s.polls++
		next := &transport.CommandNext{Nonce: s.nonce}
		if len(s.commands) > 0 {
			next.Command = s.commands[0]
		}
		return next, nil
	case "command.result":
		r, err := transport.Open[transport.CommandResult](e)
		if err != nil {
			return nil, err
		}
		s.results[r.Command] = append(s.results[r.Command], *r)
		s.commands = slices.DeleteFunc(s.commands, func(c *transport.Command) bool { return c.ID == r.Command })
		return &transport.CommandAck{Command: r.Command}, nil
	case "credential.request":
		r, err := transport.Open[transport.CredentialRequest](e)
		if err != nil {
			return nil, err
		}
		return s.certify(r)
	case "keycopy.report", "keycopy.settle":
		return s.copies.answer(e)
	case "credential.claim":
		c, err := transport.Open[transport.CredentialClaim](e)
		if err != nil {
			return nil, err
		}
		return s.claim(c)
	}
	return nil, fmt.Errorf("unknown type %q", e.Type)
}

// certify signs a request once; the same request gets the same certificate.
func (s *server) certify(r *transport.CredentialRequest) (transport.Body, error) {
	if known := s.orders[r.Command]; known != nil {
		if !bytes.Equal(known.csr, r.CSR) {
			return nil, errors.New("another request for the same command")
		}
		return known.certificate, nil
	}
	i := slices.IndexFunc(s.commands, func(c *transport.Command) bool { return c.ID == r.Command })
	if i < 0 {
		return &transport.Fault{Code: transport.FaultClosed}, nil
	}
	var o transport.CredentialOrder
	if err := transport.Unmarshal(s.commands[i].Body, &o, transport.MaxEnvelope); err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(r.CSR)
	if err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, err
	}
	c := &transport.CredentialCertificate{
		Command: r.Command, Credential: o.Credential, ServerName: "maps.example", Endpoints: []string{"127.0.0.1:8443"},
		Anchors: [][]byte{s.ca.root.Raw}, Remaining: int64(time.Until(s.ca.to).Seconds()),
	}
	if o.Usage == transport.UsageServer {
		c.Chain = s.ca.gate(csr.PublicKey, o.DNS...)
	} else {
		c.Chain = s.ca.forService(transport.URI{Deployment: testDeployment, Service: o.Service, Credential: o.Credential}, o.Subject, csr.PublicKey)
	}
	s.orders[r.Command] = &issued{r.CSR, c}
	s.keys[o.Credential] = csr.PublicKey
	return c, nil
}

// claim checks a proof of holding.
func (s *server) claim(c *transport.CredentialClaim) (transport.Body, error) {
	digest := transport.ClaimDigest(c.Nonce, s.device, c.Credential)
	if c.Nonce != s.nonce || !verify(s.keys[c.Credential], digest[:], c.Signature) {
		return &transport.Fault{Code: transport.FaultRefused}, nil
	}
	s.claims[c.Credential] = c.Source
	s.copies.claims = append(s.copies.claims, *c)
	claimed := &transport.CredentialClaimed{}
	if s.reach != nil {
		*claimed = *s.reach
	}
	claimed.Credential = c.Credential
	return claimed, nil
}

// enrolling is the server's side of one enrollment.
type enrolling struct {
	s                *server
	exporter         []byte
	hello, challenge []byte
	device           transport.DeviceID
}

func (e *enrolling) receive(payload []byte) (reply []byte, err error) {
	env, err := transport.Unpack(payload, transport.MaxEnrollEnvelope)
	if err != nil {
		return nil, err
	}
	e.s.mu.Lock()
	defer e.s.mu.Unlock()
	var body transport.Body
	if e.hello == nil {
		body, err = e.first(env)
	} else {
		body, err = e.second(env)
	}
	if err != nil {
		return nil, err
	}
	if e.s.lose != nil && e.s.lose(body.Type()) {
		return nil, io.EOF
	}
	return transport.Pack(rand.Reader, e.s.now(), env, body)
}

func (e *enrolling) first(env *transport.Envelope) (transport.Body, error) {
	hello, err := transport.Open[transport.EnrollHello](env)
	if err != nil {
		return nil, err
	}
	e.hello, e.device = env.Body, hello.Device
	c := &transport.EnrollChallenge{}
	rand.Read(c.Nonce[:])
	if c.MAC, err = transport.EnrollServerMAC(e.s.commonKey, e.exporter, e.hello, *c); err != nil {
		return nil, err
	}
	if e.challenge, err = transport.Marshal(c); err != nil {
		return nil, err
	}
	return c, nil
}

func (e *enrolling) second(env *transport.Envelope) (transport.Body, error) {
	r, err := transport.Open[transport.EnrollRequest](env)
	if err != nil {
		return nil, err
	}
	want, err := transport.EnrollTerminalMAC(e.s.commonKey, e.exporter, e.hello, e.challenge, *r)
	if err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(r.CSR)
	if err != nil {
		return nil, err
	}
	switch {
	case !hmac.Equal(want[:], r.MAC[:]), csr.CheckSignature() != nil, transport.NewDeviceID(csr.RawSubjectPublicKeyInfo) != e.device:
		return &transport.Fault{Code: transport.FaultRefused}, nil
	case e.s.device != transport.DeviceID{} && e.s.device != e.device:
		return &transport.Fault{Code: transport.FaultDevice}, nil
	case e.s.device == transport.DeviceID{} || nearlyExpired(e.s.identity):
		e.s.device = e.device
		e.s.identity = e.s.ca.client(transport.URI{Deployment: testDeployment, Terminal: e.s.terminal}, csr.PublicKey)
	}
	return &transport.EnrollCertificate{Chain: e.s.identity, Time: e.s.now().Unix(), Remaining: int64(time.Until(e.s.ca.to).Seconds())}, nil
}

// nearlyExpired: then the server gives a new certificate and not the same again.
func nearlyExpired(der [][]byte) bool {
	chain, err := transport.ParseChain(der)
	return der == nil || err == nil && time.Until(chain[0].NotAfter) < chain[0].NotAfter.Sub(chain[0].NotBefore)/3
}

// verify checks an ECDSA signature; a key that is not there signs nothing.
func verify(key crypto.PublicKey, digest, signature []byte) bool {
	public, ok := key.(*ecdsa.PublicKey)
	return ok && ecdsa.VerifyASN1(public, digest, signature)
}

func nothing(*store.Tx) error { return nil }
