package keycopy

// The two ends over real sockets and real TLS, through transport/tcp.

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/tcp"
)

var _ Conn = (*tcp.Conn)(nil)

// fleetCA issues identities that verify accepts.
type fleetCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newFleetCA(t testing.TB) *fleetCA {
	t.Helper()
	key, _ := identity(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	template.Subject.CommonName = "root"
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &fleetCA{cert, key}
}

func (ca *fleetCA) config() tcp.Config {
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	return tcp.Config{Log: slog.New(slog.DiscardHandler), Verify: func(chain []*x509.Certificate) (transport.Name, error) {
		return transport.VerifyTerminal(chain, roots, "demo", time.Now())
	}}
}

// enroll gives a terminal an identity: its TLS configuration, key and device.
func (ca *fleetCA) enroll(t testing.TB, name transport.Name) (tcp.Config, *ecdsa.PrivateKey, transport.DeviceID) {
	t.Helper()
	key, spki := identity(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	template.URIs = append(template.URIs, transport.URI{Deployment: "demo", Terminal: name}.URL())
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	cfg := ca.config()
	cfg.Certificate = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return cfg, key, transport.NewDeviceID(spki)
}

// offer serves the rig's Source on a loopback port until the test ends.
func (r *rig) offer(t testing.TB, cfg tcp.Config) (address string) {
	t.Helper()
	ln, err := tcp.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := tcp.Serve(ctx, ln, cfg, func(ctx context.Context, c *tcp.Conn) error { return Serve(ctx, c, r.source) }); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return ln.Addr().String()
}

func (r *rig) fetch(t testing.TB, address string, cfg tcp.Config) (*Transaction, error) {
	t.Helper()
	conn, err := tcp.Dial(t.Context(), address, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return Fetch(t.Context(), conn, r.target)
}

// req: C1, C2, C5
func TestCopyOverTLS(t *testing.T) {
	ca := newFleetCA(t)
	for name, tt := range map[string]struct{ source, target bool }{"no identities": {}, "old terminal enrolled": {source: true}, "both enrolled": {true, true}} {
		for _, n := range []int{1, 1000} {
			t.Run(fmt.Sprint(name, " ", n), func(t *testing.T) {
				r := newRig(t, n)
				sourceTLS, targetTLS := ca.config(), ca.config()
				var sourceName, targetName transport.Name
				if tt.source {
					sourceName = "nav-001"
					sourceTLS, _, r.sourceConfig.Device = ca.enroll(t, sourceName)
				}
				if tt.target {
					targetName = "nav-002"
					var key *ecdsa.PrivateKey
					targetTLS, key, r.targetConfig.Device = ca.enroll(t, targetName)
					r.targetConfig.Identity = key
				}
				r.arm("12345678", "12345678")
				deal, err := r.fetch(t, r.offer(t, sourceTLS), targetTLS)
				if err != nil {
					t.Fatal(err)
				}
				outcome := r.ended(t)
				if deal.Peer != r.sourceConfig.Device || deal.Name != sourceName || len(deal.Taken()) != n {
					t.Errorf("Target's view: %s %q, %d taken", deal.Peer.Short(), deal.Name, len(deal.Taken()))
				}
				if got := outcome.Transaction; outcome.Reason != EndDelivered || got.ID != deal.ID || got.Peer != r.targetConfig.Device || got.Name != targetName || len(got.Taken()) != n {
					t.Errorf("Source's view: %+v", outcome)
				}
				r.wantInstalled(t, r.records)
				r.wantWiped(t)
			})
		}
	}
}

// Three wrong codes, typed one after the other, and then the right one.
// req: C2, C3
func TestWrongCodesOverTLS(t *testing.T) {
	ca := newFleetCA(t)
	r := newRig(t, 1)
	r.target.Wipe()
	address := r.offer(t, ca.config())
	for i := range CodeAttempts {
		r.target = NewTarget(r.targetConfig, r.typed(fmt.Sprintf("9999999%d", i)))
		deal, err := r.fetch(t, address, ca.config())
		wantFault(t, "target", err, transport.KeycopyAuthFailed, true)
		if deal != nil || r.target.Usable() {
			t.Error("a wrong code is kept, or something was granted")
		}
	}
	if state, _ := r.source.State(); state != Ended {
		t.Fatalf("%s after %d wrong codes", state, CodeAttempts)
	}
	if o := r.ended(t); o.Reason != EndKilled {
		t.Errorf("%+v", o)
	}
	r.wantWiped(t)
	r.targetLedger.log.Reset()
	r.target = NewTarget(r.targetConfig, r.typed("12345678"))
	_, err := r.fetch(t, address, ca.config())
	wantFault(t, "too late", err, transport.KeycopyNotArmed, true)
	r.wantInstalled(t, nil)
}

// A peer without the security code is a stranger: its address may have to wait
// a moment, and then the right one is served from there all the same.
// req: C1
func TestStrangerOverTLS(t *testing.T) {
	ca := newFleetCA(t)
	r := newRig(t, 1)
	address := r.offer(t, ca.config())
	right := r.targetConfig.Code
	r.targetConfig.Code = hmacCode([]byte("no such code"), "default", 2)
	r.retype()
	_, err := r.fetch(t, address, ca.config())
	wantFault(t, "stranger", err, transport.KeycopyAuthFailed, true)
	r.targetConfig.Code = right
	r.retype()
	for deadline := time.Now().Add(10 * time.Second); ; {
		conn, err := tcp.Dial(t.Context(), address, ca.config())
		if err == nil {
			if _, err := Fetch(t.Context(), conn, r.target); err != nil {
				t.Fatal(err)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	r.wantInstalled(t, r.records)
}

// Many Targets with the right code at once: one gets the keys, all others are
// refused, and nobody's attempt counts.
func TestTargetsRace(t *testing.T) {
	ca := newFleetCA(t)
	r := newRig(t, 3)
	address := r.offer(t, ca.config())
	var wg sync.WaitGroup
	var mu sync.Mutex
	var won, refused int
	for i := range 4 {
		other := newRig(t, 0)
		other.targetConfig.Device[1] = byte(i)
		other.retype()
		wg.Go(func() {
			conn, err := tcp.Dial(t.Context(), address, ca.config())
			if err != nil {
				t.Error(err)
				return
			}
			deal, err := Fetch(t.Context(), conn, other.target)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil && len(deal.Taken()) == 3:
				won++
			case errors.Is(err, transport.KeycopyBusy) || errors.Is(err, transport.KeycopyNotArmed):
				refused++
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 || refused != 3 || r.sourceLedger.failures() != 0 {
		t.Errorf("%d won, %d were refused, %d failures", won, refused, r.sourceLedger.failures())
	}
}

// The Target stops in the middle of a stream: the Source learns why.
func TestErrorReachesABusySender(t *testing.T) {
	ca := newFleetCA(t)
	r := newRig(t, 1000)
	for i := range r.records {
		r.records[i].Anchors = [][]byte{make([]byte, 8000)}
	}
	r.targetLedger.failOn = "succeed"
	address := r.offer(t, ca.config())
	_, err := r.fetch(t, address, ca.config())
	wantFault(t, "target", err, transport.KeycopyStoreFailed, false)
	r.at(CodeLifetime)
	r.ended(t)
	if e := r.last(EventInterrupted); !errors.Is(e.Err, transport.KeycopyStoreFailed) {
		t.Errorf("the Source knows only: %v", e.Err)
	}
	r.wantWiped(t)
}

// A Source that was called off, or whose program ends, breaks off.
func TestCancelledServe(t *testing.T) {
	ca := newFleetCA(t)
	r := newRig(t, 1)
	ctx, cancel := context.WithCancel(t.Context())
	r.targetLedger.onWrite = func(what string) {
		if what == "staged" {
			cancel()
			<-r.source.done
		}
	}
	r.arm("12345678", "12345678")
	var wg sync.WaitGroup
	wg.Go(func() { r.source.Watch(ctx) })
	deal, err := r.fetch(t, r.offer(t, ca.config()), ca.config())
	wg.Wait()
	if !errors.Is(err, ErrNotClosed) && err != nil || len(deal.Taken()) != 1 {
		t.Errorf("%v", err)
	}
	if o := r.ended(t); o.Reason != EndDisarmed {
		t.Errorf("%+v", o)
	}
}

// last is the last event of a kind; it waits for nothing.
func (r *rig) last(kind EventKind) Event {
	for _, e := range slices.Backward(r.events) {
		if e.Kind == kind {
			return e
		}
	}
	return Event{}
}

// retype makes the Target anew and keeps the Source.
func (r *rig) retype() {
	r.target = NewTarget(r.targetConfig, r.typed("12345678"))
}

// A silent peer is left when its deadline passes, on either end; both say so.
func TestSilentPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		a, b := net.Pipe()
		defer b.Close()
		start := time.Now()
		err := Serve(t.Context(), &pipeConn{Conn: a}, r.source)
		if !errors.Is(err, transport.KeycopyTimeout) || !errors.Is(err, transport.ErrKeycopyStranger) || time.Since(start) != 2*transport.KeycopyMessageTimeout {
			t.Errorf("%v after %v", err, time.Since(start)) // once for HELLO, once for our ERROR
		}
		a, b = net.Pipe()
		defer b.Close()
		start = time.Now()
		_, err = Fetch(t.Context(), &pipeConn{Conn: a}, r.target)
		if !errors.Is(err, transport.KeycopyTimeout) || time.Since(start) != 2*transport.KeycopyMessageTimeout {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if !r.target.Usable() {
			t.Error("the code is gone though it was not used")
		}
	})
}

// A Source that is busy, or whose code is used up, still tells strangers from
// terminals of its group: only the latter come back at once.
func TestStrangersToABusySource(t *testing.T) {
	r := interrupted(t, transport.KeycopyStaged)
	own := r.targetConfig.Code
	for name, code := range map[string]SecurityCode{
		"its group":       own,
		"a stranger":      hmacCode(bytes.Repeat([]byte{9}, keySize), own.ID.Group, own.ID.Epoch),
		"of another code": hmacCode(bytes.Repeat([]byte{9}, keySize), own.ID.Group, own.ID.Epoch+1),
	} {
		cfg := r.targetConfig
		cfg.Code = code
		sc, tc := newChannels()
		g, err := NewTarget(cfg, r.typed("12345678")).newRun(t.Context(), tc)
		if err != nil {
			t.Fatal(err)
		}
		err = Serve(t.Context(), &oneFrame{frame: g.hello, channel: sc}, r.source)
		wantFault(t, name, err, transport.KeycopyNotArmed, false)
		if errors.Is(err, transport.ErrKeycopyStranger) != (name != "its group") {
			t.Errorf("%s: %v", name, err)
		}
		g.end()
	}
}

// oneFrame is a connection with a peer that sends one frame.
type oneFrame struct {
	frame   transport.KeycopyFrame
	channel transport.KeycopyChannel
}

func (c *oneFrame) Channel() transport.KeycopyChannel                            { return c.channel }
func (c *oneFrame) WriteFrame(transport.KeycopyFrame, bool) error                { return nil }
func (c *oneFrame) Close() error                                                 { return nil }
func (c *oneFrame) ReadFrame(int, time.Duration) (transport.KeycopyFrame, error) { return c.frame, nil }

// pipeConn carries frames over a net.Pipe, without TLS: for virtual time.
type pipeConn struct{ net.Conn }

func (p *pipeConn) Channel() transport.KeycopyChannel {
	return transport.KeycopyChannel{Mode: transport.KeycopyPAKE}
}

func (p *pipeConn) ReadFrame(limit int, wait time.Duration) (f transport.KeycopyFrame, err error) {
	p.SetDeadline(time.Now().Add(wait))
	var head [1]byte
	_, err = p.Read(head[:])
	return f, err
}

func (p *pipeConn) WriteFrame(f transport.KeycopyFrame, _ bool) error {
	p.SetDeadline(time.Now().Add(transport.KeycopyMessageTimeout))
	_, err := p.Write(f.Body)
	return err
}

// What people read when something fails names the next step and no secret.
func TestErrorsSayWhatToDo(t *testing.T) {
	r := newRig(t, 1)
	r.target = NewTarget(r.targetConfig, r.typed("55555555"))
	_, err := r.copyOnce(t)
	if !strings.Contains(err.Error(), "check the operator code") || strings.Contains(err.Error(), "5555") {
		t.Errorf("%v", err)
	}
	if got := fail(transport.KeycopyTimeout, os.ErrDeadlineExceeded); !errors.Is(got, os.ErrDeadlineExceeded) || !errors.Is(got, transport.KeycopyTimeout) || !strings.Contains(got.Error(), "try again") {
		t.Errorf("%v", got)
	}
}
