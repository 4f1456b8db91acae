package keycopy

import (
	"bytes"
	"crypto/sha256"
	"slices"
	"testing"

	"github.com/kagimori/kagimori/transport"
)

// A valid run, one frame of which is changed, cut or made longer in flight:
// somebody notices, and nothing is installed by it.
func FuzzRun(f *testing.F) {
	for n := range uint8(8) {
		f.Add(n, uint8(0), uint16(3), []byte{1}, uint16(0xffff))
		f.Add(n, uint8(0), uint16(0), []byte{}, uint16(5))
		f.Add(n, uint8(0), uint16(9999), []byte("more"), uint16(0xffff))
		f.Add(n, uint8(7), uint16(0), []byte{}, uint16(0xffff))
	}
	f.Fuzz(func(t *testing.T, n, typ uint8, at uint16, change []byte, cut uint16) {
		r := newRig(t, 2)
		sc, tc := newChannels()
		var hit *hop
		sourceErr, targetErr := r.pump(t.Context(), sc, tc, func(h hop) transport.KeycopyFrame {
			if h.n != int(n%8) {
				return h.frame
			}
			out := transport.KeycopyFrame{Type: h.frame.Type ^ transport.KeycopyType(typ), Body: slices.Clone(h.frame.Body)}
			out.Body = out.Body[:min(int(cut), len(out.Body))]
			for i, b := range change {
				if p := int(at) + i; p < len(out.Body) {
					out.Body[p] ^= b
				} else {
					out.Body = append(out.Body, b)
				}
			}
			if out.Type != h.frame.Type || !bytes.Equal(out.Body, h.frame.Body) {
				hit = &h
			}
			if out.Type == 0 {
				out.Type = 0x7f // 0 would drop the connection
			}
			return out
		})
		switch {
		case hit != nil:
			r.judgeBroken(t, hit.frame.Type.String(), hit.frame.Type, sourceErr, targetErr)
		case sourceErr != nil || targetErr != nil:
			t.Errorf("an untouched run failed: %v, %v", sourceErr, targetErr)
		}
	})
}

// A Target that has the security code may say HELLO as it likes: nothing is
// counted by that, and the Source is ready for the next.
func FuzzAdmittedHello(f *testing.F) {
	r := newRig(f, 1)
	_, tc := newChannels()
	g, err := r.target.newRun(f.Context(), tc)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(g.hello.Body)
	f.Fuzz(func(t *testing.T, body []byte) {
		r := newRig(t, 1)
		sc, _ := newChannels()
		frame := transport.KeycopyFrame{Type: transport.KeycopyTypeHello, Body: body}
		var h transport.KeycopyHello
		if transport.DecodeKeycopy(frame, &h) == nil {
			fleet, err := newFleetKeys(t.Context(), r.sourceConfig.Codes[0], h.Mode, &sc)
			if err != nil {
				t.Fatal(err)
			}
			less, err := transport.Marshal(h.KeycopyHelloBody)
			if err != nil {
				t.Fatal(err)
			}
			h.Admit = fleet.admitTarget(less)
			if frame, err = transport.EncodeKeycopy(&h); err != nil {
				t.Fatal(err)
			}
		}
		s := r.source.newRun(sc)
		err := s.consume(t.Context(), frame)
		if (err == nil) != (s.state == sourceAck) || r.sourceLedger.counted != 0 {
			t.Errorf("%v in state %s, %d counted", err, s.state, r.sourceLedger.counted)
		}
		s.end(errDisk)
		if state, _ := r.source.State(); state != Armed || r.source.proving != nil {
			t.Errorf("the Source is %s", state)
		}
	})
}

// A Source that has both codes may still be broken: whatever manifest and
// record it sends, the Target installs what was announced or nothing.
func FuzzAuthenticSource(f *testing.F) {
	record, err := transport.Marshal(&someRecords(1)[0])
	if err != nil {
		f.Fatal(err)
	}
	entry := transport.NewKeycopyEntry(&someRecords(1)[0], len(record))
	manifest, err := transport.Marshal(transport.KeycopyManifest{Items: []transport.KeycopyEntry{entry}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(manifest, record)
	f.Add(manifest, record[1:])
	f.Add(record, manifest)
	f.Fuzz(func(t *testing.T, manifest, record []byte) {
		r := newRig(t, 1)
		s, g, err := r.begin(t)
		if err != nil {
			t.Fatal(err)
		}
		proof, _, err := g.create()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.consume(t.Context(), proof); err != nil {
			t.Fatal(err)
		}
		s.keys.manifest = sha256.Sum256(manifest)
		grant, err := transport.EncodeKeycopy(&transport.KeycopyGrant{Tag: s.keys.sourceTag(s.answer, nil), Manifest: manifest})
		if err != nil {
			return
		}
		err = g.consume(t.Context(), grant)
		if err == nil {
			id := g.deal.Items[0].ID
			item, e := transport.EncodeKeycopy(&transport.KeycopyItem{ID: id, Sealed: s.keys.seal(0, id, record)})
			if e != nil {
				return
			}
			err = g.consume(t.Context(), item)
		}
		got := r.targetLedger.received
		g.end()
		if len(got) == 0 {
			return
		}
		again, e := transport.Marshal(&got[0])
		if err != nil || e != nil || len(got) != 1 || !bytes.Equal(again, record) || got[0].Transfer != transport.TransferCopy || got[0].State != transport.CredentialActive {
			t.Errorf("installed %x (%v)", again, err)
		}
	})
}
