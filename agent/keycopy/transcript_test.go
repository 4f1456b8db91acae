package keycopy

// Runs with seeded randomness, every value of which is kept in testdata: another
// implementation can be held to them. transcript_reckon_test.go writes the
// schedule out a second time, from the formulas of docs/keycopy.md.

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/transport"
)

var update = flag.Bool("update", false, "write the golden files anew")

// seeded is the randomness of one end: ChaCha8 under 32 equal bytes.
func seeded(b byte) *rand.ChaCha8 { return rand.NewChaCha8([32]byte(bytes.Repeat([]byte{b}, 32))) }

// A scene is one transaction. name is its file; resumed shows its second
// connection, after the first broke when GRANT was there.
type scene struct {
	name, title   string
	mode          transport.KeycopyMode
	move, resumed bool
	records       []transport.CredentialRecord
	identity      *ecdsa.PrivateKey // of the Target; nil without
	target        []byte            // its SPKI
	connections   []connection
}

type connection struct {
	transport.KeycopyChannel
	frames []transport.KeycopyFrame
}

func scenes(t *testing.T) []*scene {
	t.Helper()
	return []*scene{
		{name: "transcript", title: "mode pake, a copy, no identity certificates", mode: transport.KeycopyPAKE},
		{name: "transcript-kek", title: "mode kek, a copy", mode: transport.KeycopyKEK},
		{name: "transcript-direct", title: "mode direct, a copy", mode: transport.KeycopyDirect},
		{name: "transcript-move", title: "mode pake, a move with identity certificates", mode: transport.KeycopyPAKE, move: true},
		{name: "transcript-resume", title: "the second connection of transcript-move, had the first broken after GRANT", mode: transport.KeycopyPAKE, move: true, resumed: true},
	}
}

// repeating signs as RFC 6979 says, so that transcripts repeat.
type repeating struct{ *ecdsa.PrivateKey }

func (s repeating) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.PrivateKey.Sign(nil, digest, opts)
}

// identify makes the Target's identity key.
func (s *scene) identify(t *testing.T) {
	t.Helper()
	var err error
	if s.identity, err = ecdsa.ParseRawPrivateKey(elliptic.P256(), hash([]byte("identity key of the Target"))); err != nil {
		t.Fatal(err)
	}
	if s.target, err = x509.MarshalPKIXPublicKey(s.identity.Public()); err != nil {
		t.Fatal(err)
	}
}

// smallRecords are a password, and a key for authentication.
func smallRecords() []transport.CredentialRecord {
	return []transport.CredentialRecord{
		{ID: "cr-pass", Kind: transport.KindLogin, Service: "depot", Subject: "nav-001", Usage: transport.UsageClient, ServerName: "depot.test", Endpoints: []string{"depot.test:8443"},
			Anchors: [][]byte{{1, 2, 3}}, Secret: transport.CredentialSecret{Form: transport.SecretPassword, Bytes: []byte("nav\nopen sesame")}, State: transport.CredentialActive, Transfer: transport.TransferCopy},
		{ID: "cr-key", Kind: transport.KindSymmetric, Service: "maps", Subject: "nav-001", Usage: transport.UsageClient, ServerName: "maps.test", Endpoints: []string{"maps.test:8443"},
			Anchors: [][]byte{{1, 2, 3}}, Secret: transport.CredentialSecret{Form: transport.SecretHMAC, Bytes: bytes.Repeat([]byte{0x42}, 32)}, State: transport.CredentialActive, Transfer: transport.TransferCopy},
	}
}

// play runs the scene.
func (s *scene) play(t *testing.T) {
	t.Helper()
	r := newRig(t, 0)
	s.records = smallRecords()[:1]
	if s.move {
		s.records = smallRecords()
		s.records[1].Transfer = transport.TransferMove
	}
	r.records = s.records
	sc, tc := &r.sourceConfig, &r.targetConfig
	sc.Random, tc.Random = seeded('S'), seeded('T')
	sc.Modes, tc.Modes = []transport.KeycopyMode{s.mode}, []transport.KeycopyMode{s.mode}
	source := []byte("public key of the Source's certificate")
	sc.Device, tc.Device = transport.NewDeviceID(source), transport.DeviceID{'T'}
	s.target = []byte("")
	if s.mode.SealsCode() || s.move {
		s.identify(t)
		tc.Identity, tc.Device = repeating{s.identity}, transport.NewDeviceID(s.target)
	}
	r.arm("12345678", "12345678")
	exporters := seeded('E')
	for n := range 2 {
		ch := transport.KeycopyChannel{Mode: s.mode, SourceKey: source, TargetKey: s.target}
		if s.identity != nil {
			ch.Identified, ch.Peer = true, "nav-001"
		}
		if _, err := exporters.Read(ch.Exporter[:]); err != nil {
			t.Fatal(err)
		}
		c := connection{KeycopyChannel: ch}
		broken := s.resumed && n == 0
		keep := func(h hop) transport.KeycopyFrame {
			if broken && h.frame.Type == transport.KeycopyTypeItem {
				return transport.KeycopyFrame{}
			}
			c.frames = append(c.frames, h.frame)
			return h.frame
		}
		var sourceErr, targetErr error
		if n == 0 {
			sourceErr, targetErr = r.pump(context.Background(), ch, ch, keep)
		} else {
			sourceErr, targetErr = r.again(t, ch, ch, keep)
		}
		if !broken && (sourceErr != nil || targetErr != nil) {
			t.Fatal(s.name, sourceErr, targetErr)
		}
		if s.connections = append(s.connections, c); !broken {
			return
		}
	}
}

// again resumes the transaction that the Target wrote last.
func (r *rig) again(t testing.TB, sc, tc transport.KeycopyChannel, change alter) (sourceErr, targetErr error) {
	t.Helper()
	g, targetErr := r.target.resume(t.Context(), tc, r.targetLedger.last().ID)
	defer g.end()
	if targetErr != nil {
		return io.ErrUnexpectedEOF, targetErr
	}
	s := r.source.newRun(sc)
	sourceErr, targetErr = pumpRuns(t.Context(), s, g, change)
	s.end(sourceErr)
	return sourceErr, targetErr
}

type transcript []value

type value struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// The runs are what the formulas say, and have not changed since they were
// written down.
func TestTranscriptVectors(t *testing.T) {
	resume := map[string]string{}
	for _, s := range scenes(t) {
		s.play(t)
		tr := s.reckon(t)
		s.compare(t, tr)
		for _, v := range tr {
			if v.Name == "k(resume)" {
				resume[s.name] = v.Value
			}
		}
	}
	if a := resume["transcript-move"]; a == "" || a != resume["transcript-resume"] {
		t.Errorf("the resumed transaction is another one: %v", resume)
	}
}

func (s *scene) compare(t *testing.T, tr transcript) {
	t.Helper()
	got, err := json.MarshalIndent(map[string]any{"protocol": "keycopy/1, suite 1: " + s.title, "values": tr}, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	path := "testdata/" + s.name + ".json"
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs: the protocol on the wire has changed", path)
	}
	s.comparePage(t, tr)
}

// page is where people find the transcripts.
const page = "../../docs/keycopy-vectors.md"

// comparePage holds the page to the file, value by value.
func (s *scene) comparePage(t *testing.T, tr transcript) {
	t.Helper()
	var b strings.Builder
	b.WriteString("## " + s.name + "\n" + strings.ToUpper(s.title[:1]) + s.title[1:] + ".\n```\n")
	for _, v := range tr {
		b.WriteString(v.Name + "\n")
		for rest := v.Value; ; rest = rest[96:] {
			b.WriteString("  " + rest[:min(96, len(rest))] + "\n")
			if len(rest) <= 96 {
				break
			}
		}
	}
	b.WriteString("```\n")
	data, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		text := string(data)
		if from := strings.Index(text, "## "+s.name+"\n"); from >= 0 {
			end := len(text)
			if next := strings.Index(text[from+3:], "\n## "); next >= 0 {
				end = from + 3 + next + 1
			}
			text = text[:from] + b.String() + text[end:]
		} else {
			text += "\n" + b.String()
		}
		data = []byte(text)
		if err := os.WriteFile(page, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Contains(data, []byte(b.String())) {
		t.Errorf("%s does not show %s as it is", page, s.name)
	}
}

func (tr *transcript) add(name string, b []byte) {
	*tr = append(*tr, value{name, hex.EncodeToString(b)})
}
