package keycopy

// Transactions that go on, over real sockets and real TLS.

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/tcp"
)

// cutter is a connection that breaks before the Target writes a frame of this
// type.
type cutter struct {
	*tcp.Conn
	at  transport.KeycopyType
	cut context.CancelFunc
}

func (c *cutter) WriteFrame(f transport.KeycopyFrame, flush bool) error {
	if f.Type == c.at {
		c.cut()
		return errors.New("the cable was pulled")
	}
	return c.Conn.WriteFrame(f, flush)
}

// pulled runs a copy that breaks where the Target would send a frame.
func (r *rig) pulled(t testing.TB, address string, cfg tcp.Config, at transport.KeycopyType) (*Transaction, error) {
	t.Helper()
	ctx, cut := context.WithCancel(t.Context())
	conn, err := tcp.Dial(ctx, address, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return Fetch(ctx, &cutter{conn, at, cut}, r.target)
}

func (r *rig) resume(t testing.TB, address string, cfg tcp.Config, deal *Transaction) (*Transaction, error) {
	t.Helper()
	conn, err := tcp.Dial(t.Context(), address, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return Resume(t.Context(), conn, r.targetConfig, deal)
}

// The link is lost before RECEIPT and before ACTIVATED; the Target comes back,
// signs under the new connection's keys, and when it has closed the Source
// forgets how to resume.
// req: C5
func TestResumeOverTLS(t *testing.T) {
	ca := newFleetCA(t)
	for _, at := range []transport.KeycopyType{transport.KeycopyTypeReceipt, transport.KeycopyTypeActivated} {
		for _, enrolled := range []bool{false, true} {
			r := newRig(t, 20)
			r.moving(true)
			sourceTLS, targetTLS := ca.config(), ca.config()
			var public *ecdsa.PublicKey
			if enrolled {
				sourceTLS, _, r.sourceConfig.Device = ca.enroll(t, "nav-001")
				var key *ecdsa.PrivateKey
				targetTLS, key, r.targetConfig.Device = ca.enroll(t, "nav-002")
				r.targetConfig.Identity = key
				public = &key.PublicKey
			}
			r.arm("12345678", "12345678")
			address := r.offer(t, sourceTLS)
			deal, err := r.pulled(t, address, targetTLS, at)
			if want := map[bool]error{true: ErrNotClosed, false: ErrInterrupted}[at == transport.KeycopyTypeActivated]; !errors.Is(err, want) || !deal.Phase.Open() {
				t.Fatalf("%v, %s", err, deal.Phase)
			}
			deal, err = r.resume(t, address, targetTLS, deal)
			if err != nil || deal.Phase != transport.KeycopyClosed || len(deal.Moving()) != 10 || len(deal.Resume) != 0 {
				t.Fatalf("%v, %+v", err, deal)
			}
			if o := r.ended(t); o.Reason != EndDelivered {
				t.Errorf("%+v", o)
			}
			r.forgotten(t, true)
			r.wantFinished(t)
			r.wantWiped(t)
			if s := r.offered(); enrolled {
				r.checkReceipt(t, s, public)
			} else if len(s.Signature)+len(s.Signed) != 0 {
				t.Error("a signature of nobody")
			}
		}
	}
}

// checkReceipt judges the receipt on record as a server does.
func (r *rig) checkReceipt(t testing.TB, s *Transaction, public *ecdsa.PublicKey) {
	t.Helper()
	body, err := transport.OpenKeycopySigned(s.Signed)
	if err != nil {
		t.Fatal(err)
	}
	digest := transport.KeycopySignedDigest(s.Signed)
	hash, err := s.manifestHash()
	if err != nil {
		t.Fatal(err)
	}
	if !ecdsa.VerifyASN1(public, digest[:], s.Signature) || body.Txn != s.ID || body.Manifest != hash || !slices.Equal(body.Status, s.Status) {
		t.Errorf("the receipt on record: %+v", body)
	}
}

// forgotten waits for whether the Source forgets the resume key.
func (r *rig) forgotten(t testing.TB, want bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		left := len(r.offered().Resume)
		if (left == 0) == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the Source has %d bytes to resume with", left)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// A Target whose power is cut before CLOSED is on record cannot close in due
// form: the Source goes on remembering, and answers again.
func TestSourceRemembersUntilTheTargetHasClosed(t *testing.T) {
	ca := newFleetCA(t)
	r := newRig(t, 1)
	address := r.offer(t, ca.config())
	ctx, cut := context.WithCancel(t.Context())
	conn, err := tcp.Dial(ctx, address, ca.config())
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	r.targetLedger.failOn = "closed"
	r.targetLedger.onWrite = func(what string) {
		if what == "closed" {
			cut()
			close(served)
		}
	}
	deal, err := Fetch(ctx, conn, r.target)
	<-served
	if !errors.Is(err, ErrNotClosed) || deal.Phase != transport.KeycopyStaged {
		t.Fatalf("%v, %s", err, deal.Phase)
	}
	r.ended(t)
	r.forgotten(t, false)
	r.targetLedger.failOn, r.targetLedger.onWrite = "", nil
	if deal, err = r.resume(t, address, ca.config(), deal); err != nil || deal.Phase != transport.KeycopyClosed {
		t.Fatalf("%v, %s", err, deal.Phase)
	}
	r.forgotten(t, true)
	_, err = r.resume(t, address, ca.config(), &Transaction{ID: deal.ID})
	wantFault(t, "once more", err, transport.KeycopyTxnConflict, false)
}

// Many connections go on with one transaction at once, and one hangs: there is
// one effect, and all ends well.
func TestManyConnectionsOfOneTransaction(t *testing.T) {
	ca := newFleetCA(t)
	for _, at := range []transport.KeycopyType{transport.KeycopyTypeReceipt, transport.KeycopyTypeActivated} {
		r := newRig(t, 5)
		r.moving(true)
		address := r.offer(t, ca.config())
		deal, _ := r.pulled(t, address, ca.config(), at)
		hung, err := tcp.Dial(t.Context(), address, ca.config())
		if err != nil {
			t.Fatal(err)
		}
		defer hung.Close()
		g, err := (&Target{cfg: r.targetConfig}).resume(t.Context(), hung.Channel(), deal.ID)
		if err != nil {
			t.Fatal(err)
		}
		defer g.end()
		f, _, err := g.create()
		if err != nil {
			t.Fatal(err)
		}
		if err := hung.WriteFrame(f, true); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				conn, err := tcp.Dial(t.Context(), address, ca.config())
				if err != nil {
					return // all places are taken
				}
				_, _ = Resume(t.Context(), conn, r.targetConfig, deal)
			})
		}
		wg.Wait()
		if r.txn(t).Phase.Open() {
			if _, err := r.resume(t, address, ca.config(), deal); err != nil {
				t.Fatal(err)
			}
		}
		r.wantFinished(t)
		if n := len(slices.DeleteFunc(r.kinds(), func(k EventKind) bool { return k != EventActive })); n != 1 {
			t.Errorf("put to use %d times", n)
		}
	}
}
