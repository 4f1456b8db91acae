package keycopy

// The rig: a Source and a Target with all that they need but a network. pump
// carries frames between two runs, one at a time, and lets a test see, change
// and replace each.

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
)

// hmacCode is a security code in software: the same PRF that hsm gives.
func hmacCode(key []byte, group transport.Name, epoch uint32) SecurityCode {
	return SecurityCode{transport.KeycopyCodeID{Group: group, Epoch: epoch}, func(_ context.Context, message []byte) (*hsm.Secret, error) {
		m := hmac.New(sha256.New, key)
		m.Write(message)
		return hsm.NewSecret(m.Sum(nil)), nil
	}}
}

type rig struct {
	now                        Instant
	sourceLedger, targetLedger *ledger
	source                     *Source
	target                     *Target
	sourceConfig               SourceConfig
	targetConfig               TargetConfig
	records                    []transport.CredentialRecord
	mu                         sync.Mutex // guards events
	events                     []Event
	secrets                    [][]byte // every buffer that ever held an operator code
}

const (
	fleetKey = "a security code is 32 bytes long"
)

// typed is an operator code of these eight digits.
func (r *rig) typed(digits string) *OperatorCode {
	b := append([]byte(digits), '0'+damm([]byte(digits)))
	r.secrets = append(r.secrets, b)
	return &OperatorCode{hsm.NewSecret(b), r.now}
}

func newRig(t testing.TB, keys int) *rig {
	t.Helper()
	r := &rig{now: moment(0, 0), records: someRecords(keys)}
	clock := func() Instant { return r.now }
	r.sourceLedger, r.targetLedger = newLedger(clock, false), newLedger(clock, true)
	progress := func(e Event) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.events = append(r.events, e)
	}
	end := End{Clock: clock, Random: rand.Reader, Progress: progress}
	s, g := end, end
	s.Device, s.Attempts = transport.DeviceID{'S'}, r.sourceLedger
	g.Device, g.Attempts = transport.DeviceID{'T'}, r.targetLedger
	r.sourceConfig = SourceConfig{End: s, Codes: []SecurityCode{hmacCode([]byte(fleetKey), "default", 2), hmacCode([]byte("the epoch before"), "default", 1)},
		Records: r.held, Journal: r.sourceLedger}
	r.targetConfig = TargetConfig{End: g, Code: hmacCode([]byte(fleetKey), "default", 2), Journal: r.targetLedger}
	r.arm("12345678", "12345678")
	return r
}

// held is what the Source has now.
func (r *rig) held(context.Context, []transport.Name, *transport.KeycopyParent) (list []transport.CredentialRecord, withheld []transport.KeycopyWithheld, err error) {
	for _, c := range cloneRecords(r.records) {
		switch l := r.sourceLedger; {
		case l.uses(c.ID):
			list = append(list, c)
		case l.disabled[c.ID]:
			withheld = append(withheld, transport.KeycopyWithheld{ID: c.ID, Reason: transport.KeycopyMoving})
		}
	}
	return list, withheld, nil
}

// arm makes both ends anew, with these codes.
func (r *rig) arm(source, target string) {
	if r.source != nil {
		r.source.Disarm()
		r.target.Wipe()
	}
	r.source = NewSource(r.sourceConfig, r.typed(source))
	r.target = NewTarget(r.targetConfig, r.typed(target))
}

func someRecords(n int) []transport.CredentialRecord {
	records := make([]transport.CredentialRecord, n)
	for i := range records {
		records[i] = transport.CredentialRecord{ID: transport.Name(fmt.Sprintf("cr-%04d", i)), Kind: transport.KindCertificate, Service: "maps", Subject: "nav-001",
			Usage: transport.UsageClient, ServerName: "maps.test", Endpoints: []string{"maps.test:8443"}, Anchors: [][]byte{bytes.Repeat([]byte{1}, 300)},
			Chain:   [][]byte{bytes.Repeat([]byte{2}, 300)},
			Secret:  transport.CredentialSecret{Form: transport.SecretPKCS8, Bytes: fmt.Appendf(nil, "the private key of credential number %06d, one hundred and more bytes long as PKCS#8 of P-256 is, and so on", i)},
			Expires: 1_900_000_000, State: transport.CredentialActive, Transfer: transport.TransferCopy}
	}
	return records
}

func cloneRecords(in []transport.CredentialRecord) []transport.CredentialRecord {
	out := slices.Clone(in)
	for i := range out {
		out[i].Secret.Bytes = slices.Clone(out[i].Secret.Bytes)
	}
	return out
}

// newChannels are the two ends' views of one TLS connection.
func newChannels() (source, target transport.KeycopyChannel) {
	source.Mode = transport.KeycopyPAKE
	source.SourceKey, source.TargetKey, source.Remote = []byte("source's key"), []byte("target's key"), "192.0.2.2:1"
	rand.Read(source.Exporter[:])
	target = source
	target.Remote = "192.0.2.1:8885"
	return source, target
}

// hop is one frame on its way.
type hop struct {
	toSource bool
	n        int // from 0, over both directions
	frame    transport.KeycopyFrame
}

// alter may change a frame in flight; a zero Type drops the connection there.
type alter func(h hop) transport.KeycopyFrame

func asSent(h hop) transport.KeycopyFrame { return h.frame }

// pump runs one connection to its end and gives both ends' errors.
func (r *rig) pump(ctx context.Context, sc, tc transport.KeycopyChannel, change alter) (sourceErr, targetErr error) {
	s := r.source.newRun(sc)
	g, targetErr := r.target.newRun(ctx, tc)
	defer g.end()
	if targetErr == nil {
		sourceErr, targetErr = pumpRuns(ctx, s, g, change)
	} else {
		sourceErr = io.ErrUnexpectedEOF
	}
	s.end(sourceErr)
	return sourceErr, targetErr
}

func pumpRuns(ctx context.Context, s, g party, change alter) (sourceErr, targetErr error) {
	errs := map[party]error{}
	n := 0
	send := func(from, to party, f transport.KeycopyFrame) {
		f = change(hop{to == s, n, f})
		n++
		if f.Type == 0 {
			for _, p := range []party{from, to} {
				if errs[p] == nil && !p.finished() {
					errs[p] = io.ErrUnexpectedEOF
				}
			}
			return
		}
		if errs[to] == nil && !to.finished() {
			errs[to] = to.consume(ctx, f)
		}
	}
	for _, p := range []party{s, g} {
		errs[p] = nil
	}
	other := map[party]party{s: g, g: s}
	for errs[s] == nil && errs[g] == nil && (!s.finished() || !g.finished()) {
		moved := false
		for _, p := range []party{g, s} {
			for errs[p] == nil && !p.finished() && p.expects() == 0 {
				f, _, err := p.create()
				if err != nil {
					errs[p] = err
					break
				}
				send(p, other[p], f)
				moved = true
			}
		}
		if !moved && errs[s] == nil && errs[g] == nil {
			errs[s], errs[g] = io.ErrUnexpectedEOF, io.ErrUnexpectedEOF // one end is done, the other waits
		}
	}
	for _, p := range []party{s, g} { // the failed end's ERROR
		if e, ok := errors.AsType[*Error](errs[p]); ok && !e.Remote && errs[other[p]] == nil && !other[p].finished() {
			f, err := transport.EncodeKeycopy(&transport.KeycopyError{Code: e.Fault})
			if err != nil {
				panic(err)
			}
			send(p, other[p], f)
		}
	}
	return errs[s], errs[g]
}

// copyOnce runs one connection as sent.
func (r *rig) copyOnce(t testing.TB) (sourceErr, targetErr error) {
	t.Helper()
	sc, tc := newChannels()
	return r.pump(context.Background(), sc, tc, asSent)
}

// ended waits for the Source's end, which is due.
func (r *rig) ended(t testing.TB) Outcome {
	t.Helper()
	r.source.State() // sees that the code's time is over
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	o := r.source.Watch(ctx)
	if ctx.Err() != nil {
		t.Fatal("the Source has not ended")
	}
	return o
}

// kinds are the events so far.
func (r *rig) kinds() (k []EventKind) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		k = append(k, e.Kind)
	}
	return k
}

// wantInstalled compares what the Target holds.
func (r *rig) wantInstalled(t testing.TB, want []transport.CredentialRecord) {
	t.Helper()
	got := r.targetLedger.received
	if len(got) != len(want) {
		t.Fatalf("%d credentials installed, want %d", len(got), len(want))
	}
	for i := range want {
		a, err := transport.Marshal(&got[i])
		if err != nil {
			t.Fatal(err)
		}
		b, err := transport.Marshal(&want[i])
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Fatalf("credential %d differs", i)
		}
	}
}

// wantWiped finds every buffer that held an operator code empty.
func (r *rig) wantWiped(t testing.TB) {
	t.Helper()
	for i, b := range r.secrets {
		if !bytes.Equal(b, make([]byte, len(b))) {
			t.Errorf("the buffer of operator code %d is not wiped", i)
		}
	}
}

// wantFault checks an error's number and which end found it.
func wantFault(t testing.TB, what string, err error, fault transport.KeycopyFault, remote bool) {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Fault != fault || e.Remote != remote || !errors.Is(err, fault) {
		t.Errorf("%s: %v, want %q (remote %v)", what, err, fault.Error(), remote)
	}
}

// identity is an ECDSA key and its DER public key.
func identity(t testing.TB) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return key, spki
}

// at moves both clocks.
func (r *rig) at(d time.Duration) { r.now = moment(d, d) }
