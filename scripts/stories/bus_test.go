package stories

import (
	"bytes"
	"context"
	"crypto/rand"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	tpmtransport "github.com/google/go-tpm/tpm2/transport"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/tpm"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/tcp"
)

// busChip is one end's TPM behind a recorder, holding the fleet's security code.
type busChip struct {
	module hsm.Module
	socket string
	bus    func() []byte
	code   keycopy.SecurityCode

	mu   sync.Mutex
	macs [][]byte // what TPM2_HMAC gave: the session secrets SCS
}

func newBusChip(t *testing.T, securityCode []byte) *busChip {
	t.Helper()
	c := &busChip{}
	c.socket, c.bus = hsmtest.Record(t, hsmtest.StartTPM(t))
	m, err := tpm.Open(t.Context(), c.socket, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	c.module = m
	blob, err := m.ImportMAC(t.Context(), hsm.NewSecret(bytes.Clone(securityCode)))
	if err != nil {
		t.Fatal(err)
	}
	c.code = keycopy.SecurityCode{ID: transport.KeycopyCodeID{Group: "default", Epoch: 1}, MAC: func(ctx context.Context, message []byte) (*hsm.Secret, error) {
		mac, err := m.MAC(ctx, blob, message)
		if err == nil {
			c.mu.Lock()
			c.macs = append(c.macs, bytes.Clone(mac.Bytes()))
			c.mu.Unlock()
		}
		return mac, err
	}}
	return c
}

type noAttempts struct{}

func (noAttempts) Count(context.Context, *keycopy.OperatorCode) error { return nil }
func (noAttempts) Succeed(context.Context) error                      { return nil }

// briefly is a journal that lasts as long as the program.
type briefly struct {
	deal      *keycopy.Transaction
	installed []byte
}

func (j *briefly) Find(_ context.Context, id transport.ID) (*keycopy.Transaction, error) {
	if j.deal == nil || j.deal.ID != id {
		return nil, keycopy.ErrUnknownTransaction
	}
	return j.deal, nil
}

func (j *briefly) Advance(_ context.Context, t *keycopy.Transaction, _ transport.KeycopyPhase) error {
	j.deal = t
	return nil
}

func (j *briefly) Stage(_ context.Context, t *keycopy.Transaction, rs []transport.CredentialRecord) (*keycopy.Transaction, map[transport.Name]string, error) {
	j.installed = bytes.Clone(rs[0].Secret.Bytes)
	staged := *t
	staged.Phase, staged.Status = transport.KeycopyStaged, []byte{1}
	j.deal = &staged
	return &staged, nil, nil
}

func (c *busChip) end(device byte) keycopy.End {
	return keycopy.End{Device: transport.DeviceID{device}, Attempts: noAttempts{}, Clock: keycopy.NewClock(), Random: rand.Reader}
}

// The secrets that only the two processes know, the session secret SCS among
// them, cross neither the network nor the bus between processor and chip.
func TestKeyCopyShowsNothingOnTheBus(t *testing.T) {
	securityCode := make([]byte, transport.SecurityCodeSize)
	rand.Read(securityCode)
	key := make([]byte, 64)
	rand.Read(key)
	old, fresh := newBusChip(t, securityCode), newBusChip(t, securityCode)

	code, err := keycopy.NewOperatorCode(rand.Reader, keycopy.NewClock()())
	if err != nil {
		t.Fatal(err)
	}
	shown := code.Grouped()
	record := transport.CredentialRecord{
		ID: "cr-1", Kind: transport.KindCertificate, Service: "maps", Subject: "nav-001", Usage: transport.UsageClient, ServerName: "maps.test",
		Endpoints: []string{"maps.test:8443"}, Chain: [][]byte{{1}}, Anchors: [][]byte{{1}}, Expires: time.Now().Add(time.Hour).Unix(),
		State: transport.CredentialActive, Transfer: transport.TransferCopy, Secret: transport.CredentialSecret{Form: transport.SecretPKCS8, Bytes: bytes.Clone(key)},
	}
	source := keycopy.NewSource(keycopy.SourceConfig{End: old.end(1), Codes: []keycopy.SecurityCode{old.code}, Journal: &briefly{},
		Records: func(context.Context, []transport.Name, *transport.KeycopyParent) ([]transport.CredentialRecord, []transport.KeycopyWithheld, error) {
			r := record
			r.Secret.Bytes = bytes.Clone(key)
			return []transport.CredentialRecord{r}, nil, nil
		}}, code)
	listener, err := tcp.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	wire := newTap(t, "key copy", "tcp", "127.0.0.1:0", listener.Addr().String())
	serving, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	channel := tcp.Config{Log: slog.New(slog.DiscardHandler)}
	wg.Go(func() {
		tcp.Serve(serving, listener, channel, func(ctx context.Context, c *tcp.Conn) error { return keycopy.Serve(ctx, c, source) })
	})
	wg.Go(func() { source.Watch(serving) })

	typed, err := keycopy.CodesGenerated.Parse(bytes.Clone(shown), keycopy.NewClock()())
	if err != nil {
		t.Fatal(err)
	}
	journal := &briefly{}
	target := keycopy.NewTarget(keycopy.TargetConfig{End: fresh.end(2), Code: fresh.code, Journal: journal}, typed)
	conn, err := tcp.Dial(t.Context(), wire.addr, channel)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keycopy.Fetch(t.Context(), conn, target); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(journal.installed, key) {
		t.Fatal("another key arrived")
	}

	needles := []needle{newNeedle("security code", securityCode), newNeedle("copied key", key), newNeedle("half of the copied key", key[:32]), newCodeNeedle("operator code", string(shown))}
	for _, c := range []*busChip{old, fresh} {
		if len(c.macs) != 1 {
			t.Fatalf("%d session secrets at one end, want 1", len(c.macs))
		}
		needles = append(needles, newNeedle("session secret SCS", c.macs[0]))
	}
	for _, n := range needles {
		for where, b := range map[string][]byte{"the wire": []byte(wire.seen.String()), "the old terminal's bus": old.bus(), "the new terminal's bus": fresh.bus()} {
			if len(b) == 0 {
				t.Errorf("nothing was recorded on %s", where)
			}
			if n.in(b) {
				t.Errorf("%s is on %s in clear", n.what, where)
			}
		}
	}
}

// The control: the same chip, asked without the session that hides parameters,
// shows the security code to the same recorder.
func TestRecorderFindsAnUnprotectedCommand(t *testing.T) {
	secret := make([]byte, transport.SecurityCodeSize)
	rand.Read(secret)
	socket, seen := hsmtest.Record(t, hsmtest.StartTPM(t))
	chip := &plainSocket{path: socket}
	srk, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(chip)
	if err != nil {
		t.Fatal(err)
	}
	_, err = tpm2.Create{
		ParentHandle: tpm2.AuthHandle{Handle: srk.ObjectHandle, Name: srk.Name, Auth: tpm2.PasswordAuth(nil)},
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret})}},
		InPublic: tpm2.New2B(tpm2.TPMTPublic{Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
			ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true, NoDA: true}}),
	}.Execute(chip)
	if err != nil {
		t.Fatal(err)
	}
	if !newNeedle("security code", secret).in(seen()) {
		t.Error("the recorder does not see what is there")
	}
}

var _ tpmtransport.TPM = (*plainSocket)(nil)

// plainSocket is the simplest way to a TPM: one connection a command.
type plainSocket struct{ path string }

func (p *plainSocket) Send(command []byte) ([]byte, error) {
	c, err := net.Dial("unix", p.path)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if _, err := c.Write(command); err != nil {
		return nil, err
	}
	response := make([]byte, 4096)
	n, err := c.Read(response)
	return response[:n], err
}
