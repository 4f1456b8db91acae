package transport

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

// every is one of each message that travels over MQTT, with every field set.
func every() []Body {
	return []Body{
		&EnrollHello{Terminal: "nav-001", Device: DeviceID{1}, Nonce: [32]byte{2}},
		&EnrollChallenge{Nonce: [32]byte{3}, MAC: [32]byte{4}},
		&EnrollRequest{CSR: []byte{5}, Level: "tpm", MAC: [32]byte{6}},
		&EnrollCertificate{Chain: [][]byte{{7}, {8}}, Time: 1e9, Remaining: 3600},
		&CommandReady{},
		&CommandPoll{},
		&CommandNext{Command: &Command{ID: ID{9}, Kind: CommandIssue, Body: Raw{0xa0}}, Nonce: [32]byte{10}},
		&CommandNext{Nonce: [32]byte{10}},
		&CommandResult{Command: ID{11}, State: CommandRefused, Detail: "why"},
		&CommandAck{Command: ID{12}},
		&CredentialRequest{Command: ID{13}, CSR: []byte{14}},
		&CredentialCertificate{Command: ID{15}, Credential: "cr-1", Chain: [][]byte{{16}}, ServerName: "maps.test", Endpoints: []string{"maps.test:8443"}, Anchors: [][]byte{{17}}, Remaining: 60},
		&CredentialClaim{Credential: "cr-1", Nonce: [32]byte{18}, Source: DeviceID{19}, Time: 1e9, Signature: []byte{20}},
		&CredentialClaimed{Credential: "cr-1"},
		&ServiceRevoked{Number: 21, URL: "http://kagimori.test:8880/crl/service", CRL: []byte{22}, Issuer: []byte{23}},
		&Fault{Code: FaultLater, Text: "why"},
		&CredentialClaimed{Credential: "cr-1", ServerName: "maps.test", Endpoints: []string{"maps.test:8443"}, Anchors: [][]byte{{17}}},
		&TerminalState{Incarnation: 1, Recovery: 2},
		&TerminalNoted{Recovery: 2},
		&TerminalNoted{Recovery: 2, Key: []byte{24}},
		&RecoveryRequest{ID: ID{25}, Wrap: RecoveryWrap{Version: 2, Deployment: "demo", Device: DeviceID{26}, Store: ID{27}, Sealed: []byte{28}}, Recipient: []byte{29}},
		&RecoveryState{ID: ID{25}, State: RecoveryAsked},
		&RecoveryRelease{ID: ID{25}, Sealed: []byte{30}},
		&RecoveryTaken{ID: ID{25}},
		&EnrollAttest{},
		&EnrollEvidence{Endorsement: []byte{31}, Chain: [][]byte{{32}}, EK: []byte{33}, AK: []byte{34}, Root: []byte{35}, Identity: []byte{36},
			RootProof: EnrollProof{Attest: []byte{37}, Signature: []byte{38}}, IdentityProof: EnrollProof{Attest: []byte{39}, Signature: []byte{40}}},
		&EnrollActivate{Credential: []byte{41}, Secret: []byte{42}},
		&EnrollActivated{MAC: [32]byte{43}},
		&EnrollCertificate{Chain: [][]byte{{7}, {8}}, Time: 1e9, Remaining: 3600,
			Code: &WrappedCode{Group: "default", Epoch: 2, Public: []byte{44}, Duplicate: []byte{45}, Seed: []byte{46}}},
		&Fault{Code: FaultAttest, Text: "why"},
		&TerminalState{Incarnation: 1, Recovery: 2, Report: &TerminalReport{Holds: []Name{"cr-1"}}},
		&CredentialClaim{Credential: "cr-1", Nonce: [32]byte{18}, Source: DeviceID{19}, Time: 1e9, Signature: []byte{20}, Txn: &ID{47}, Transfer: TransferMove},
		&KeycopyReport{Txn: ID{47}, Side: KeycopySource, Peer: DeviceID{48}, PeerName: "nav-002", Mode: KeycopyPAKE, Phase: KeycopyDone, At: 1e9, Changed: 1e9 + 1, Forced: true,
			Signature: []byte{49}, Total: 2, Offset: 1, Items: []KeycopyReportedItem{{ID: "cr-1", Transfer: TransferMove, Taken: true}}},
		&KeycopyReported{Txn: ID{47}, Phase: KeycopyDone, Offset: 1},
		&KeycopySettle{Txn: ID{47}, Side: KeycopyTarget, Peer: DeviceID{50}, Want: KeycopyActive},
		&KeycopySettled{Txn: ID{47}, Why: "why"},
		&ChipReport{Parent: []byte{51}},
		&ChipApproval{Fleet: []byte{52}, Parent: []byte{51}, Signature: []byte{53}},
		&ChipApproval{Fleet: []byte{52}, Parent: []byte{51}, Why: "why"},
	}
}

// Old terminals meet new servers: these bytes never change, new ones are added.
func TestGoldenBytes(t *testing.T) {
	var got bytes.Buffer
	for i, body := range every() {
		payload, err := Pack(bytes.NewReader(bytes.Repeat([]byte{byte(i)}, 16)), time.Unix(1e9, 0), &Envelope{ID: ID{0xff}}, body)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&got, "%s %s\n", body.Type(), hex.EncodeToString(payload))
	}
	compareGolden(t, "testdata/wire.golden", got.Bytes())
	if n := bytes.Count(got.Bytes(), []byte("\n")); n != 39 {
		t.Errorf("%d messages in the table", n)
	}
}

func compareGolden(t *testing.T, path string, got []byte) {
	t.Helper()
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
		t.Errorf("%s differs. Got:\n%s", path, got)
	}
}

// Whatever a decoder takes, it gives back byte for byte, and never panics.
func FuzzEnvelope(f *testing.F) {
	for _, body := range every() {
		payload, err := Pack(bytes.NewReader(make([]byte, 16)), time.Time{}, nil, body)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(payload)
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		e, err := Unpack(payload, MaxEnvelope)
		if err != nil {
			return
		}
		if again, err := Marshal(e); err != nil || !bytes.Equal(again, payload) {
			t.Fatalf("%x decodes and encodes to %x (%v)", payload, again, err)
		}
		for _, open := range []func(*Envelope) (Body, error){
			opener[EnrollHello], opener[EnrollChallenge], opener[EnrollRequest], opener[EnrollCertificate], opener[CommandReady], opener[CommandPoll],
			opener[CommandNext], opener[CommandResult], opener[CommandAck], opener[CredentialRequest], opener[CredentialCertificate],
			opener[CredentialClaim], opener[CredentialClaimed], opener[ServiceRevoked], opener[Fault],
			opener[TerminalState], opener[TerminalNoted], opener[RecoveryRequest], opener[RecoveryState], opener[RecoveryRelease], opener[RecoveryTaken],
			opener[KeycopyReport], opener[KeycopyReported], opener[KeycopySettle], opener[KeycopySettled], opener[ChipReport], opener[ChipApproval],
		} {
			body, err := open(e)
			if err != nil {
				continue
			}
			if again, err := Marshal(body); err != nil || !bytes.Equal(again, e.Body) {
				t.Fatalf("%s: %x decodes and encodes to %x (%v)", e.Type, e.Body, again, err)
			}
		}
	})
}

func opener[T any, P interface {
	*T
	Body
}](e *Envelope) (Body, error) {
	p, err := Open[T, P](e)
	return p, err
}

func TestEnrollMACs(t *testing.T) {
	ck, x := make([]byte, CommonKeySize), make([]byte, EnrollExporterSize)
	c := EnrollChallenge{Nonce: [32]byte{1}}
	s, err := EnrollServerMAC(ck, x, []byte("hello"), c)
	if err != nil {
		t.Fatal(err)
	}
	c.MAC = s
	if again, _ := EnrollServerMAC(ck, x, []byte("hello"), c); again != s {
		t.Error("the MAC covers itself")
	}
	other := bytes.Repeat([]byte{1}, 32)
	for name, got := range map[string]func() ([32]byte, error){
		"another key":     func() ([32]byte, error) { return EnrollServerMAC(other, x, []byte("hello"), c) },
		"another channel": func() ([32]byte, error) { return EnrollServerMAC(ck, other, []byte("hello"), c) },
		"another hello":   func() ([32]byte, error) { return EnrollServerMAC(ck, x, []byte("hellp"), c) },
		"another nonce":   func() ([32]byte, error) { return EnrollServerMAC(ck, x, []byte("hello"), EnrollChallenge{}) },
		"the terminal's":  func() ([32]byte, error) { return EnrollTerminalMAC(ck, x, []byte("hello"), nil, EnrollRequest{}) },
		"reflected challenge": func() ([32]byte, error) {
			body, _ := Marshal(c)
			return EnrollTerminalMAC(ck, x, []byte("hello"), body, EnrollRequest{})
		},
	} {
		if mac, err := got(); err != nil || mac == s {
			t.Errorf("%s: the same MAC (%v)", name, err)
		}
	}
}
