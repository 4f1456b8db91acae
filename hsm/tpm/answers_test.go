package tpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
)

// scripted answers commands with what a fuzzer made up.
type scripted struct{ script *bytes.Reader }

func (s *scripted) exchange([]byte, time.Time) ([]byte, error) {
	n, err := s.script.ReadByte()
	if err != nil {
		return nil, io.EOF
	}
	body := make([]byte, n)
	k, _ := s.script.Read(body)
	body = body[:k]
	head := binary.BigEndian.AppendUint16(nil, 0x8002)
	head = binary.BigEndian.AppendUint32(head, uint32(headSize+len(body)))
	return append(binary.BigEndian.AppendUint32(head, 0), body...), nil
}

func (s *scripted) close() {}

// FuzzAnswers lets a mad chip answer everything; the module must neither panic
// nor hang nor hand out a secret.
func FuzzAnswers(f *testing.F) {
	root := tpm2.ECCSRKTemplate
	public := tpm2.Marshal(tpm2.New2B(root))
	name := append([]byte{0, 34, 0, 11}, make([]byte, 32)...)
	handle := []byte{0x80, 0, 0, 1}
	var good []byte
	for _, body := range [][]byte{
		append(append(bytes.Clone(public), name...), name...),  // ReadPublic
		append([]byte{2, 0, 0, 0, 0, 32}, make([]byte, 32)...), // StartAuthSession
		append(handle, 0, 0, 0, 2, 0, 0),
	} {
		good = append(append(good, byte(len(body))), body...)
	}
	f.Add(good)
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{4, 0, 0, 0, 0}, 20))
	f.Add(bytes.Repeat([]byte{40, 0xff, 0xff, 0xff, 0xff}, 40))
	sealed := slices.Concat(template(hsm.PurposeSeal), area{0, 32}, make(area, 32))
	f.Fuzz(func(t *testing.T, script []byte) {
		log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
		reader := bytes.NewReader(script)
		cfg := config{limit: time.Second, log: log, raw: len(script)%2 == 1,
			dial: func(time.Time) (wire, error) {
				if reader.Len() == 0 {
					return nil, hsm.ErrAbsent
				}
				return &scripted{reader}, nil
			}}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		m, err := open(ctx, cfg)
		if err != nil {
			return
		}
		defer m.Close()
		item := hsm.Item{Kind: hsm.KindTPM, Purpose: hsm.PurposeSeal, Public: sealed, Sealed: make([]byte, 64)}
		if len(script) > 64 {
			copy(item.Owner[:], script)
		}
		blob, err := item.Encode()
		if err != nil {
			t.Fatal(err)
		}
		madChip(t, ctx, m, item.Owner, blob)
	})
}

// madChip tries every verb, and fails if one believes what was made up.
func madChip(t *testing.T, ctx context.Context, m *Module, owner [hsm.OwnerSize]byte, sealed hsm.Blob) {
	item := hsm.Item{Kind: hsm.KindTPM, Owner: owner, Sealed: make([]byte, 64)}
	encode := func(p hsm.Purpose, public, private []byte) hsm.Blob {
		item.Purpose, item.Public, item.Sealed = p, public, private
		b, err := item.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	full := func(a area) []byte { return slices.Concat(a, area{0, 32}, make(area, 32)) }
	b := bond{selection: selection{1 << 7}, values: hsm.PCRs{7: {1}}}
	boot := encode(hsm.PurposeBoot, append(b.encode(), full(sealedArea(bootAttributes, b.policy()))...), make([]byte, 64))
	behind := encode(hsm.PurposePIN, full(sealedArea(pinAttributes, nil)), make([]byte, 64))
	counter := encode(hsm.PurposeCounter, nvPublic{handle: FirstCounter, attributes: nvAttributes}.written().encode(), nil)
	key := hsm.RandomSecret(hsm.CounterKeySize)
	for name, verb := range map[string]func() error{
		"Unseal":     func() error { _, err := m.Unseal(ctx, sealed); return err },
		"UnsealBoot": func() error { _, err := m.UnsealBoot(ctx, boot, nil); return err },
		"SealBoot":   func() error { _, err := m.SealBoot(ctx, key, hsm.BootPolicy{Registers: []int{7}}); return err },
		"UnsealPIN":  func() error { _, err := m.UnsealPIN(ctx, behind, key); return err },
		"Count":      func() error { _, err := m.Count(ctx, counter, key); return err },
		"Increment":  func() error { _, err := m.Increment(ctx, counter, key); return err },
		"NewCounter": func() error { _, err := m.NewCounter(ctx, key); return err },
		"NewKey":     func() error { _, err := m.NewKey(ctx); return err },
		"Reset":      func() error { return m.ResetLockout(ctx, nil) },
	} {
		if err := verb(); err == nil {
			t.Fatalf("%s believes a mad chip", name)
		} else if errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("%s hangs", name)
		}
	}
	m.Health(ctx) // has nothing to check it by, and shows nothing secret
	m.PCRs(ctx, []int{0, 7, 23})
}
