package server

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/mqtt"
)

// dialed connects to enroll: what it says, the exporter of its connection, and that.
func (r *rig) dialed() (say func(transport.Body) *transport.Envelope, exporter string, conn *mqtt.Conn) {
	t := r.t
	segment, err := transport.NewEnrollSegment(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	conn, err = r.dial(segment, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	key, err := conn.Exporter(transport.EnrollExporter, transport.EnrollExporterSize)
	if err != nil {
		t.Fatal(err)
	}
	return func(m transport.Body) *transport.Envelope {
		payload, err := transport.Pack(rand.Reader, time.Now(), nil, m)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := conn.Send(ctx, payload); err != nil {
			return nil
		}
		select {
		case p := <-conn.Receive():
			e, err := transport.Unpack(p, transport.MaxEnvelope)
			if err != nil {
				t.Fatal(err)
			}
			return e
		case <-conn.Done():
		case <-ctx.Done():
			t.Fatal("no answer")
		}
		return nil
	}, string(key), conn
}

// Over the wire: until the common key is proven nobody may send more than
// before; then there is room for a chain of certificates. req: L3
func TestRoomForAProofIsGivenToWhomItIsDue(t *testing.T) {
	r, maker := attestRig(t)
	x := newChipBox(t, newChip(t, maker))
	b := r.addAttested("nav-001")
	large := maker.Certificate(newKey(t).Public(), func(c *x509.Certificate) { c.DNSNames = []string{strings.Repeat("a", 3000)}; c.ExtraExtensions = nil })
	full := [][]byte{large, large, large}
	x.spoil = func(m transport.Body) {
		if e, ok := m.(*transport.EnrollEvidence); ok {
			e.Chain = full
		}
	}
	say, exporter, _ := r.dialed()
	if c := want[transport.EnrollCertificate](t, x.enroll(b, exporter, say)); c.Code == nil {
		t.Error("no code")
	}
	say, _, conn := r.dialed()
	if e := say(&transport.EnrollEvidence{Chain: full}); e != nil {
		t.Errorf("a stranger's long message is answered: %s", e.Type)
	}
	<-conn.Done()
	if err := conn.Err(); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}
