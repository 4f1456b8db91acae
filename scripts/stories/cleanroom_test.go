package stories

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/kagimori/kagimori/transport"
)

// A cleanRoom is a new terminal of another make: all that it knows of key copies
// stands in docs/keycopy.md. It takes everything, and remembers what that page
// wants remembered.
type cleanRoom struct {
	t       *testing.T
	address string
	sc      []byte
	group   string
	epoch   uint64
	device  []byte

	conn *tls.Conn
	spki []byte // of the old terminal
	e    []byte // exporter
	th   []byte
	k    func(string) []byte

	// On record.
	phase    uint64
	txn, rk  []byte
	manifest []byte
	records  []fields
}

func (s *cleanRoom) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *cleanRoom) equal(what string, got, want []byte) {
	s.t.Helper()
	if !hmac.Equal(got, want) {
		s.t.Fatalf("%s: %x, want %x", what, got, want)
	}
}

func (s *cleanRoom) dial() {
	s.t.Helper()
	conn, err := tls.Dial("tcp", s.address, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13,
		CurvePreferences: []tls.CurveID{tls.X25519MLKEM768}, NextProtos: []string{"keycopy/1-pake"}})
	s.must(err)
	s.t.Cleanup(func() { conn.Close() })
	s.must(conn.SetDeadline(time.Now().Add(patience)))
	state := conn.ConnectionState()
	s.conn, s.spki = conn, state.PeerCertificates[0].RawSubjectPublicKeyInfo
	s.e, err = state.ExportKeyingMaterial("EXPORTER-keycopy/1", nil, 64)
	s.must(err)
}

func (s *cleanRoom) send(kind byte, body []byte) {
	s.t.Helper()
	_, err := s.conn.Write(append(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), kind), body...))
	s.must(err)
}

// recv takes a frame, which must be one of these.
func (s *cleanRoom) recv(kinds string) (kind byte, body []byte, m fields) {
	s.t.Helper()
	head := make([]byte, 5)
	_, err := io.ReadFull(s.conn, head)
	s.must(err)
	body = make([]byte, binary.BigEndian.Uint32(head))
	_, err = io.ReadFull(s.conn, body)
	s.must(err)
	m, err = decodeMap(body)
	s.must(err)
	if !strings.Contains(kinds, string(rune(head[4]))) {
		s.t.Fatalf("frame %02x: %v", head[4], m)
	}
	return head[4], body, m
}

// start proves the codes and gets to GRANT.
func (s *cleanRoom) start(code, want string) {
	s.t.Helper()
	s.dial()
	scs := tag(s.sc, []byte("keycopy/1 sc\x00pake"), s.e[:32])
	scp := func(l string) []byte { return expand(sha256.New, scs, "keycopy/1 "+l) }
	prs := lvCat([]byte("keycopy/1 prs"), []byte(code), scp("prs"))
	ci := lvCat([]byte("keycopy/1"), []byte("pake"), []byte("CPACE-RISTR255-SHA512 draft-irtf-cfrg-cpace-21"), nil, sum(s.spki), s.e[:32])
	sid := s.e[32:]
	y, ya, err := cpaceShare(prs, ci, sid)
	s.must(err)
	m := fields{{1, uint64(1)}, {2, "pake"}, {3, uint64(1)}, {4, fields{{1, s.group}, {2, s.epoch}}}, {5, s.device}, {6, random(32)}, {7, want}, {8, []any{}}, {9, ya}}
	hello := encode(append(m, field{11, tag(scp("admit"), []byte("t"), sum(encode(m)))}))
	s.send(1, hello)
	_, raw, ack := s.recv("\x02")
	s.equal("admit_s", ack.bytes(5), tag(scp("admit"), []byte("s"), sum(hello), sum(ack.less(5))))
	s.equal("device", ack.bytes(1), sum(s.spki))
	isk, err := cpaceKey(y, sid, ya, sum(hello), ack.bytes(4), sum(raw))
	s.must(err)
	s.th = sum(hello, raw)
	s.k, err = labels("pake", s.th, s.e, isk, scp("mix"))
	s.must(err)
	ta := tag(s.k("confirm t"), s.th)
	s.send(3, encode(fields{{1, ta}}))
	_, _, grant := s.recv("\x04")
	s.equal("Tb", grant.bytes(1), tag(s.k("confirm s"), s.th, ta, sum(grant.bytes(2))))
	s.phase, s.txn, s.rk, s.manifest = 16, ack.bytes(3), s.k("resume"), grant.bytes(2)
}

// resume goes on, on a new connection.
func (s *cleanRoom) resume() (phase uint64) {
	s.t.Helper()
	s.conn.Close()
	s.dial()
	cb := sum(lvCat(nil, sum(s.spki), s.e))
	m := fields{{1, s.txn}, {2, s.phase}, {3, random(32)}}
	resume := encode(append(m, field{4, tag(expand(sha256.New, s.rk, "keycopy/1 pake resume t"), cb, sum(encode(m)))}))
	s.send(0x0a, resume)
	_, raw, resumed := s.recv("\x0b")
	s.equal("RESUMED", resumed.bytes(4), tag(expand(sha256.New, s.rk, "keycopy/1 pake resume s"), cb, sum(resume), sum(resumed.less(4))))
	s.th = sum(resume, raw)
	var err error
	s.k, err = labels("pake", s.th, s.e, s.rk)
	s.must(err)
	return resumed.get(2).(uint64)
}

// items opens what comes.
func (s *cleanRoom) items() {
	s.t.Helper()
	manifest, err := decodeMap(s.manifest)
	s.must(err)
	aead, err := chacha20poly1305.New(s.k("item"))
	s.must(err)
	s.records = nil
	for n, e := range manifest.get(1).([]any) {
		entry := e.(fields)
		_, _, item := s.recv("\x05")
		id := entry.get(1).(string)
		seq := binary.BigEndian.AppendUint32(nil, uint32(n))
		record, err := aead.Open(nil, append(make([]byte, 8), seq...), item.bytes(3), append(append(append([]byte(nil), s.txn...), sum(s.manifest)...), id+string(seq)...))
		s.must(err)
		r, err := decodeMap(record)
		s.must(err)
		if item.get(1) != uint64(n) || item.get(2) != id || entry.get(5) != uint64(len(record)) || r.get(1) != id || r.get(12) != "active" {
			s.t.Fatalf("item %d: %v, announced as %v", n, r, entry)
		}
		s.records = append(s.records, r)
	}
	s.phase = 17
}

// signed is a body of a transaction with its tag, which is the field n.
func (s *cleanRoom) signed(label string, n uint64, m fields) []byte {
	return encode(append(m, field{n, tag(s.k(label), s.th, encode(m))}))
}

func (s *cleanRoom) receipt() {
	bits := make([]byte, (len(s.records)+7)/8)
	for n := range s.records {
		bits[n/8] |= 1 << (n % 8)
	}
	s.send(6, s.signed("receipt", 4, fields{{1, s.txn}, {2, sum(s.manifest)}, {3, bits}}))
}

func (s *cleanRoom) activated() { s.send(8, s.signed("activated", 2, fields{{1, s.txn}})) }

// expect takes COMMIT or CLOSE.
func (s *cleanRoom) expect(kind byte, label string, phase uint64) {
	s.t.Helper()
	_, _, m := s.recv(string(rune(kind)))
	s.equal("transaction", m.bytes(1), s.txn)
	s.equal(label, m.bytes(2), tag(s.k(label), s.th, m.less(2)))
	if s.phase = phase; phase == 19 {
		s.must(s.conn.CloseWrite())
	}
}

// The page is enough to write the other end: a terminal that shares no code of a
// key copy with the programs gets the keys from the shipped agent, by a copy and
// by a move that is cut at every step.
//
// req: C5, C9
func TestCleanRoomTarget(t *testing.T) {
	d := newDeployment(t, nil)
	old := d.terminal("nav-001", sealedFile)
	old.named()
	id := old.issue()
	old.verb("hunter2\n", "kagimori", "credential", "import", "--kind", "login", "--login", "truck-7", "--service", "portal", "--subject", "truck-7", "--transfer", "move")
	s := d.cleanRoom(old.copy)

	o := old.offer(old.socket("kagimori"))
	s.start(strings.ReplaceAll(o.code, " ", ""), "copy")
	s.items()
	s.receipt()
	s.expect(9, "close", 19)
	<-o.done
	if len(s.records) != 1 || s.records[0].get(1) != id || o.cmd.ProcessState.ExitCode() != 0 {
		t.Fatalf("a copy gave %v; the old terminal says\n%s", s.records, o.log)
	}

	o = old.offer(old.socket("kagimori"))
	s.start(strings.ReplaceAll(o.code, " ", ""), "move")
	s.resumes(1)
	s.items()
	s.resumes(1)
	s.receipt()
	s.expect(7, "commit", 18)
	s.resumes(2)
	s.activated()
	s.expect(9, "close", 19)
	<-o.done
	if len(s.records) != 2 || string(s.records[1].get(10).(fields).bytes(2)) != "truck-7\nhunter2" {
		t.Errorf("a move gave %v; the old terminal says\n%s", s.records, o.log)
	}
	if list := old.verb("", "kagimori", "credential", "list"); !strings.Contains(list, id) || strings.Contains(list, "portal") {
		t.Errorf("the old terminal holds\n%s", list)
	}
}

// resumes cuts the connection and goes on; the old terminal must be in phase.
func (s *cleanRoom) resumes(phase uint64) {
	s.t.Helper()
	if got := s.resume(); got != phase {
		s.t.Fatalf("in phase %d the old terminal is in %d, want %d", s.phase, got, phase)
	}
}

// cleanRoom makes one that got a spare bundle.
func (d *deployment) cleanRoom(address string) *cleanRoom {
	d.t.Helper()
	made := d.bundle("clean-room", "spare", "add")
	file, err := os.ReadFile(made.Bundle)
	if err != nil {
		d.t.Fatal(fmt.Errorf("the bundle: %w", err))
	}
	b, err := transport.OpenBundle(file, transport.Sensitive(made.Passphrase))
	if err != nil {
		d.t.Fatal(err)
	}
	return &cleanRoom{t: d.t, address: address, sc: b.SecurityCode, group: string(b.Group), epoch: uint64(b.Epoch), device: random(32)}
}
