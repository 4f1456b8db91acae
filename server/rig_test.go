package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"errors"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/file"
	"github.com/kagimori/kagimori/server/broker"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/mqtt"
)

// rig is a real server on a real directory: only its clock can be moved.
type rig struct {
	t       testing.TB
	dir     string
	tweak   func(*Config)
	socket  string
	s       *Server
	admin   *control.Client
	mqtt    string // address
	http    string
	cancel  context.CancelFunc
	done    chan error
	mu      sync.Mutex
	forward time.Duration // guarded by mu: how far the clock is ahead
}

func openFile(_ context.Context, dir string) (hsm.Module, error) {
	return file.Open(filepath.Join(dir, "device.secret"))
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// newRig makes a deployment and runs its server until the test ends.
func newRig(t testing.TB) *rig {
	t.Helper()
	if t, ok := t.(*testing.T); ok {
		t.Parallel() // rigs share nothing, and mostly wait for the disk
	}
	return newRigNow(t)
}

// newRigNow is for fuzz targets, which cannot run in parallel.
func newRigNow(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, dir: filepath.Join(t.TempDir(), "state"), tweak: func(*Config) {}}
	l, err := broker.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.mqtt = l.Addr().String()
	// One deployment is made, every rig gets a copy of it.
	if err := os.Mkdir(r.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, data := range deployment(t) {
		if err := os.WriteFile(filepath.Join(r.dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.start(l)
	t.Cleanup(func() {
		r.checkWhole()
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
	return r
}

var (
	deploymentOnce  sync.Once
	deploymentFiles map[string][]byte // guarded by deploymentOnce
)

// deployment is what init makes, by file name.
func deployment(t testing.TB) map[string][]byte {
	t.Helper()
	deploymentOnce.Do(func() {
		dir := filepath.Join(t.TempDir(), "state")
		err := Init(t.Context(), InitConfig{Dir: dir, Deployment: "demo", Servers: []string{"127.0.0.1:8883", "server.test:8883"},
			HTTP: []string{"server.test:8880"}, Open: openFile, Actor: "tester"}, quiet())
		if err != nil {
			t.Fatal(err)
		}
		files := map[string][]byte{}
		for _, name := range []string{"server.db", "device.secret"} {
			if files[name], err = os.ReadFile(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		deploymentFiles = files
	})
	return deploymentFiles
}

func (r *rig) start(l net.Listener) {
	r.t.Helper()
	module, err := openFile(r.t.Context(), r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	st, err := store.Open(r.t.Context(), r.dir, module, quiet())
	if err != nil {
		r.t.Fatal(err)
	}
	access, err := control.NewAccess(nil)
	if err != nil {
		r.t.Fatal(err)
	}
	cfg := Config{Version: "test", Now: r.now, Access: access, Lifetimes: Lifetimes{Backdate: time.Minute}}
	r.tweak(&cfg)
	if r.s, err = New(r.t.Context(), cfg, st, module, quiet()); err != nil {
		r.t.Fatal(err)
	}
	r.socket = filepath.Join(filepath.Dir(r.dir), "control.sock")
	c, err := control.Listen(r.socket, 0o600)
	if err != nil {
		r.t.Fatal(err)
	}
	h, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	r.http = h.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel, r.done = cancel, make(chan error, 1)
	go func() {
		err := r.s.Run(ctx, Listeners{MQTT: l, HTTP: h, Control: c})
		r.done <- errors.Join(err, r.s.Close(), st.Close(), module.Close())
	}()
	if r.admin, err = control.Dial(r.t.Context(), r.socket); err != nil {
		r.t.Fatal(err)
	}
}

// second is another connection of the administrator.
func (r *rig) second() *control.Client {
	r.t.Helper()
	c, err := control.Dial(r.t.Context(), r.socket)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// blockDisk keeps the database from being written, as a backup program that
// hangs does, until release is called.
func (r *rig) blockDisk() (release func()) {
	r.t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(r.dir, "server.db")+"?_pragma=busy_timeout(5000)")
	if err != nil {
		r.t.Fatal(err)
	}
	c, err := db.Conn(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := c.ExecContext(r.t.Context(), "BEGIN IMMEDIATE"); err != nil {
		r.t.Fatal(err)
	}
	return func() {
		if err := errors.Join(c.Close(), db.Close()); err != nil {
			r.t.Error(err)
		}
	}
}

// stop ends the server; it may be called again.
func (r *rig) stop() error {
	if r.cancel == nil {
		return nil
	}
	r.admin.Close()
	r.cancel()
	r.cancel = nil
	return <-r.done
}

// checkWhole looks at the state that the test has left: what it says of itself
// is true.
func (r *rig) checkWhole() {
	err := r.s.store.View(context.Background(), func(tx *store.Tx) error {
		list, _, err := tx.Credentials(store.Query{})
		for _, c := range list {
			holdings, e := tx.Holdings(c.ID)
			err = errors.Join(err, e)
			active := 0
			for _, h := range holdings {
				if !h.Ended() {
					active++
				}
			}
			if active > 0 && c.State != store.CredentialActive {
				r.t.Errorf("%s is %s and held by %d", c.ID, c.State, active)
			}
			if c.State == store.CredentialActive {
				if x, e := tx.Certificate(c.Serial); e != nil || !x.Revoked.IsZero() || x.Credential != c.ID {
					r.t.Errorf("%s is active under certificate %+v, %v", c.ID, x, e)
				}
			}
		}
		return err
	})
	if err != nil {
		r.t.Error(err)
	}
}

// revoked says whether a serial is on an issuer's list, which must be good.
func (r *rig) revoked(issuer, serial string) (found bool) {
	r.t.Helper()
	r.view(func(tx *store.Tx) error {
		row, err := tx.CRL(issuer)
		if err != nil {
			return err
		}
		list, err := x509.ParseRevocationList(row.DER)
		if err != nil {
			return err
		}
		if list.Number.Int64() != row.Number {
			r.t.Errorf("list %v in row %d", list.Number, row.Number)
		}
		for _, e := range list.RevokedCertificateEntries {
			found = found || serialText(e.SerialNumber) == serial
		}
		return list.CheckSignatureFrom(r.s.ca.Certificate(issuer))
	})
	return found
}

func (r *rig) now() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Now().Add(r.forward)
}

func (r *rig) advance(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forward += d
}

func (r *rig) view(fn func(*store.Tx) error) {
	r.t.Helper()
	if err := r.s.store.View(context.Background(), fn); err != nil {
		r.t.Fatal(err)
	}
}

// call calls a method as the administrator.
func (r *rig) call(method string, in, out any) {
	r.t.Helper()
	if err := r.admin.Call(context.Background(), Interface+"."+method, in, out); err != nil {
		r.t.Fatalf("%s: %v", method, err)
	}
}

// refused calls a method that must fail with a kind and a next step.
func (r *rig) refused(method string, in any, kind control.Kind) {
	r.t.Helper()
	err := r.admin.Call(context.Background(), Interface+"."+method, in, nil)
	p, ok := errors.AsType[*control.Problem](err)
	if !ok || p.Kind != kind || p.Next == "" {
		r.t.Errorf("%s %+v: %#v, want %s with a next step", method, in, err, kind)
	}
}

// bundle calls a method that makes one, and opens it.
func (r *rig) bundle(method string, in func(key string) any) (*transport.Bundle, BundleReply) {
	r.t.Helper()
	reader, err := control.NewReader()
	if err != nil {
		r.t.Fatal(err)
	}
	var reply BundleReply
	r.call(method, in(reader.Key()), &reply)
	passphrase, err := reader.Open(PassphraseLabel, reply.Passphrase)
	if err != nil {
		r.t.Fatal(err)
	}
	b, err := transport.OpenBundle(reply.Bundle, passphrase)
	if err != nil {
		r.t.Fatal(err)
	}
	return b, reply
}

// expect calls a method that makes a terminal's bundle, and takes what the test
// needs of that from the store: opening bundles costs Argon2id, as it should.
func (r *rig) expect(method string, in func(key string) any) (*transport.Bundle, BundleReply) {
	r.t.Helper()
	reader, err := control.NewReader()
	if err != nil {
		r.t.Fatal(err)
	}
	var reply BundleReply
	r.call(method, in(reader.Key()), &reply)
	b := &transport.Bundle{Kind: reply.Kind, Deployment: "demo", Terminal: reply.Terminal, Service: reply.Service}
	r.view(func(tx *store.Tx) error {
		key, err := tx.CommonKey(reply.Terminal)
		b.CommonKey = transport.Sensitive(key.Bytes())
		return err
	})
	return b, reply
}

func (r *rig) addTerminal(name string) *transport.Bundle {
	r.t.Helper()
	b, _ := r.expect("TerminalAdd", func(key string) any { return TerminalAddParams{Name: name, ReplyKey: key} })
	return b
}

func (r *rig) addGate(service string) *transport.Bundle {
	r.t.Helper()
	b, _ := r.expect("GateAdd", func(key string) any {
		return GateAddParams{Service: service, DNS: []string{service + ".test"}, ReplyKey: key}
	})
	return b
}

func (r *rig) reenroll(name string) (*transport.Bundle, BundleReply) {
	r.t.Helper()
	return r.expect("TerminalReenroll", func(key string) any { return TerminalReenrollParams{Name: name, ReplyKey: key} })
}

// box is a device: it has an identity key.
type box struct {
	t   testing.TB
	key *ecdsa.PrivateKey
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newBox(t testing.TB) *box { return &box{t, newKey(t)} }

func (b *box) id() transport.DeviceID {
	spki, err := x509.MarshalPKIXPublicKey(b.key.Public())
	if err != nil {
		b.t.Fatal(err)
	}
	return transport.NewDeviceID(spki)
}

func csr(t testing.TB, key *ecdsa.PrivateKey, uri transport.URI, dns ...string) []byte {
	t.Helper()
	template := &x509.CertificateRequest{DNSNames: dns}
	if uri.Deployment != "" {
		template.URIs = []*url.URL{uri.URL()}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// tlsConfig is a client's, with its identity if it has one.
func (r *rig) tlsConfig(key *ecdsa.PrivateKey, chain [][]byte) *tls.Config {
	cfg := &tls.Config{RootCAs: r.s.ca.Roots(), ServerName: "127.0.0.1", MinVersion: tls.VersionTLS13}
	if chain != nil {
		cfg.Certificates = []tls.Certificate{{Certificate: chain, PrivateKey: key}}
	}
	return cfg
}

// dial connects over the real wire.
func (r *rig) dial(clientID string, key *ecdsa.PrivateKey, chain [][]byte) (*mqtt.Conn, error) {
	up, down := transport.Topics(clientID)
	return mqtt.Dial(r.t.Context(), mqtt.Config{Address: r.mqtt, TLS: r.tlsConfig(key, chain), ClientID: clientID, Up: up, Down: down})
}
