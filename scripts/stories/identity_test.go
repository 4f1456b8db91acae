package stories

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm/open"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/mqtt"
)

// record reads a credential from a stopped terminal's store, as its daemon would.
func (m *terminal) record(id string) (r transport.CredentialRecord) {
	m.t.Helper()
	module, err := open.Module(m.t.Context(), m.hsm, slog.New(slog.DiscardHandler))
	if err != nil {
		m.t.Fatal(err)
	}
	defer module.Close()
	s, err := store.Open(m.t.Context(), store.Config{Path: m.path("state", "kagimori.db")}, module, slog.New(slog.DiscardHandler))
	if err != nil {
		m.t.Fatal(err)
	}
	defer s.Close()
	err = s.View(func(tx *store.Tx) error {
		return tx.Each("credentials", func(key string, decode func(any) error) error {
			var raw transport.Raw
			if err := decode(&raw); err != nil || key != id {
				return err
			}
			holding := struct {
				Record *transport.CredentialRecord `cbor:"1,keyasint"`
			}{&r}
			return cbor.Unmarshal(raw, &holding)
		})
	})
	if err != nil || len(r.Secret.Bytes) == 0 {
		m.t.Fatalf("%s: credential %s: %v", m.name, id, err)
	}
	return r
}

// A passport is a certificate with a key that foreign tools can read.
type passport struct {
	tls.Certificate
	pkcs8 []byte
}

func newPassport(t *testing.T, chain [][]byte, pkcs8 []byte) passport {
	t.Helper()
	key, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		t.Fatal(err)
	}
	return passport{tls.Certificate{Certificate: chain, PrivateKey: key}, pkcs8}
}

// files writes the passport as PEM, for mosquitto, openssl and curl.
func (p passport) files(t *testing.T) (chain, key string) {
	t.Helper()
	dir := t.TempDir()
	chain, key = filepath.Join(dir, "chain.pem"), filepath.Join(dir, "key.pem")
	var text []byte
	for _, der := range p.Certificate.Certificate {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	for path, b := range map[string][]byte{chain: text, key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: p.pkcs8})} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return chain, key
}

// enlist enrolls a terminal that is none of ours: the conversation of
// docs/wire.md, with a key in software.
func (d *deployment) enlist(name string) passport {
	d.t.Helper()
	b := d.bundle(name, "terminal", "add", name)
	file, err := os.ReadFile(b.Bundle)
	if err != nil {
		d.t.Fatal(err)
	}
	bundle, err := transport.OpenBundle(file, transport.Sensitive(b.Passphrase))
	if err != nil {
		d.t.Fatal(err)
	}
	p, err := enlist(d.t.Context(), bundle)
	if err != nil {
		d.t.Fatalf("%s: %v", name, err)
	}
	return newPassport(d.t, p.Certificate.Certificate, p.pkcs8)
}

func enlist(ctx context.Context, b *transport.Bundle) (p passport, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return p, err
	}
	if p.pkcs8, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
		return p, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return p, err
	}
	segment, err := transport.NewEnrollSegment(rand.Reader)
	if err != nil {
		return p, err
	}
	up, down := transport.Topics(segment)
	conn, err := mqtt.Dial(ctx, mqtt.Config{Address: b.Servers[0], TLS: &tls.Config{InsecureSkipVerify: true}, ClientID: segment, Up: up, Down: down, MaxPayload: transport.MaxEnrollEnvelope})
	if err != nil {
		return p, err
	}
	defer conn.Close()
	exporter, err := conn.Exporter(transport.EnrollExporter, transport.EnrollExporterSize)
	if err != nil {
		return p, err
	}
	ask := func(body transport.Body) (*transport.Envelope, []byte, error) {
		payload, err := transport.Pack(rand.Reader, time.Time{}, nil, body)
		if err != nil {
			return nil, nil, err
		}
		sent, err := transport.Unpack(payload, transport.MaxEnrollEnvelope)
		if err != nil {
			return nil, nil, err
		}
		if err := conn.Send(ctx, payload); err != nil {
			return nil, nil, err
		}
		select {
		case answer := <-conn.Receive():
			env, err := transport.Unpack(answer, transport.MaxEnrollEnvelope)
			return env, sent.Body, err
		case <-conn.Done():
			return nil, nil, conn.Err()
		case <-time.After(patience):
			return nil, nil, errors.New("no answer to " + body.Type())
		}
	}
	env, first, err := ask(&transport.EnrollHello{Terminal: b.Terminal, Device: transport.NewDeviceID(spki)})
	if err != nil {
		return p, err
	}
	challenge, err := transport.Open[transport.EnrollChallenge](env)
	if err != nil {
		return p, err
	}
	if mac, err := transport.EnrollServerMAC(b.CommonKey, exporter, first, *challenge); err != nil || mac != challenge.MAC {
		return p, errors.Join(errors.New("the server does not prove itself"), err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return p, err
	}
	request := transport.EnrollRequest{CSR: csr, Level: "file"}
	if request.MAC, err = transport.EnrollTerminalMAC(b.CommonKey, exporter, first, env.Body, request); err != nil {
		return p, err
	}
	if env, _, err = ask(&request); err != nil {
		return p, err
	}
	certificate, err := transport.Open[transport.EnrollCertificate](env)
	if err != nil {
		return p, err
	}
	p.Certificate.Certificate = certificate.Chain
	return p, nil
}

// mosquitto runs one of mosquitto's clients against the broker. Only an exit
// code of 0 means that it got what it wanted.
func (d *deployment) mosquitto(tool string, p passport, args ...string) (output string, ok bool) {
	d.t.Helper()
	chain, key := p.files(d.t)
	host, port, _ := strings.Cut(d.mqtt, ":")
	argv := append([]string{"-V", "mqttv311", "-h", host, "-p", port, "--cafile", d.root(), "--cert", chain, "--key", key}, args...)
	out, err := exec.Command(tool, argv...).CombinedOutput()
	return string(out), err == nil
}

// root writes the deployment's root certificate to a file.
func (d *deployment) root() string {
	d.t.Helper()
	b := d.bundles["gate"]
	file, err := os.ReadFile(b.Bundle)
	if err != nil {
		d.t.Fatal(err)
	}
	opened, err := transport.OpenBundle(file, transport.Sensitive(b.Passphrase))
	if err != nil {
		d.t.Fatal(err)
	}
	path := filepath.Join(d.t.TempDir(), "root.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: opened.Root}), 0o600); err != nil {
		d.t.Fatal(err)
	}
	return path
}

// knock asks the gate for a page with a certificate, and without judging the gate.
func (d *deployment) knock(certificates ...tls.Certificate) (string, error) {
	client := &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, ServerName: "maps.test", Certificates: certificates,
	}}}
	defer client.CloseIdleConnections()
	r, err := client.Get("https://" + d.door + "/x")
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return string(b), err
}

// Every certificate opens its own door and no other. The foreign ends are
// mosquitto's clients and Go's.
//
// req: L3, L5, L18
func TestCertificatesOpenTheirOwnDoorOnly(t *testing.T) {
	d := newDeployment(t, nil)
	m := d.terminal("nav-001", sealedFile)
	m.named()
	id := m.issue()
	m.daemon.stop()
	r := m.record(id)
	credential := newPassport(t, r.Chain, r.Secret.Bytes)
	identity := d.enlist("nav-002")

	if body, err := d.knock(credential.Certificate); err != nil || !strings.Contains(body, "for nav-001 (credential "+id) {
		t.Errorf("the credential at its gate: %q, %v", body, err)
	}
	if body, err := d.knock(identity.Certificate); err == nil {
		t.Errorf("an identity certificate passed the gate: %q", body)
	}
	if body, err := d.knock(); err == nil {
		t.Errorf("no certificate passed the gate: %q", body)
	}

	publish := func(p passport, as, topic string) (string, bool) {
		return d.mosquitto("mosquitto_pub", p, "-i", as, "-t", topic, "-q", "1", "-m", "x")
	}
	for _, as := range []string{"nav-001", "nav-002", id, "enroll-" + strings.Repeat("0", 32)} {
		if out, ok := publish(credential, as, "kagimori/1/"+as+"/up"); ok {
			t.Errorf("the broker took a service certificate as %s: %s", as, out)
		}
	}
	for _, topic := range []string{"kagimori/1/nav-001/up", "kagimori/1/nav-001/down", "kagimori/1/nav-002/down", "$SYS/x", "x"} {
		if out, ok := publish(identity, "nav-002", topic); ok {
			t.Errorf("nav-002 published to %s: %s", topic, out)
		}
	}
	for _, topic := range []string{"kagimori/1/nav-001/down", "kagimori/1/nav-001/up", "kagimori/1/+/down", "#", "$SYS/#"} {
		if out, ok := d.mosquitto("mosquitto_sub", identity, "-i", "nav-002", "-t", topic, "-q", "0", "-E"); ok {
			t.Errorf("nav-002 subscribed to %s: %s", topic, out)
		}
	}
	if out, ok := publish(identity, "nav-001", "kagimori/1/nav-001/up"); ok {
		t.Errorf("nav-002 came in as nav-001: %s", out)
	}
	if out, ok := d.mosquitto("mosquitto_sub", identity, "-i", "nav-002", "-t", "kagimori/1/nav-002/down", "-q", "0", "-E"); !ok {
		t.Errorf("nav-002 may not have its own topic: %s", out)
	}
}

// A terminal that is removed is gone at once: its connection ends, and
// neither its identity nor the credential that only it held opens anything.
//
// req: L10
func TestRemovedTerminalIsShutOut(t *testing.T) {
	d := newDeployment(t, nil)
	m := d.terminal("nav-001", sealedFile)
	m.named()
	id := m.issue()
	if got := m.curl("/x"); !strings.Contains(got, id) {
		t.Fatal(got)
	}
	began := time.Now()
	d.server.verb("", "kagimori-server", "terminal", "remove", "nav-001")
	m.until("the connection is cut", func() bool {
		return strings.Contains(m.verb("", "kagimori", "status", "--json"), `"state": "refused"`)
	})
	m.until("the gate refuses the credential", func() bool { return !strings.Contains(m.curl("/x"), "map tile") })
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("shutting a terminal out took %v", took)
	}
	if got := m.curl("/x"); !strings.Contains(got, "refused") {
		t.Errorf("the relay does not say why: %s", got)
	}
}
