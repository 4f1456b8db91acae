package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
)

// cutWire breaks before it takes a command of one kind, for as often as cuts says.
type cutWire struct {
	wire
	before tpm2.TPMCC
	cuts   *int
}

func (w cutWire) exchange(command []byte, deadline time.Time) ([]byte, error) {
	if *w.cuts > 0 && tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) == w.before {
		*w.cuts--
		return nil, &unsentError{fmt.Errorf("%w: cut", hsm.ErrAbsent)}
	}
	return w.wire.exchange(command, deadline)
}

// The connection breaks before each command of an increment in turn. Only before
// the first nothing was done yet: there the job starts anew. Whatever happens, the
// counter moves by one at most, and by one if the caller was told so.
func TestIncrementIsNotSentTwice(t *testing.T) {
	cfg, err := configFor(hsmtest.StartTPM(t), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	cuts, dial := 0, cfg.dial
	var before tpm2.TPMCC
	cfg.dial = func(deadline time.Time) (wire, error) {
		w, err := dial(deadline)
		return cutWire{w, before, &cuts}, err
	}
	m, err := open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	key := hsm.RandomSecret(hsm.CounterKeySize)
	b, err := m.NewCounter(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		before tpm2.TPMCC
		moved  uint64
		err    error
	}{{tpm2.TPMCCNVIncrement, 1, nil}, {tpm2.TPMCCNVRead, 1, hsm.ErrAbsent}, {0, 1, nil}} {
		now, err := m.Count(t.Context(), b, key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := do(t.Context(), m, nil, func(c *chip) (struct{}, error) { c.drop(); return struct{}{}, nil }); err != nil {
			t.Fatal(err)
		}
		before = c.before // of the next connection
		if _, err := m.Count(t.Context(), b, key); err != nil {
			t.Fatal(err)
		}
		cuts = 1
		_, err = m.Increment(t.Context(), b, key)
		cuts = 0
		if !errors.Is(err, c.err) {
			t.Errorf("cut before %#x: %v, want %v", c.before, err, c.err)
		}
		if after, err := m.Count(t.Context(), b, key); err != nil || after != now+c.moved {
			t.Errorf("cut before %#x: the counter went from %d to %d, %v; want %d more", c.before, now, after, err, c.moved)
		}
	}
}
