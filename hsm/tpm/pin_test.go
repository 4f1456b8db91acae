package tpm_test

// What counts wrong guesses: PINs and the lockout password. The foreign eye on
// the counter is tpm2_getcap.

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/tpm"
)

func pin(s string) *hsm.Secret { return hsm.NewSecret([]byte(s)) }

func sealPIN(t *testing.T, p *hsmtest.TPM, secret *hsm.Secret) hsm.Blob {
	t.Helper()
	m := open(t, p.Socket)
	defer m.Close()
	return must(m.SealPIN(t.Context(), secret, pin("1234")))
}

// pinState is what a module says of the guard, which tpm2-tools must confirm.
func pinState(t *testing.T, p *hsmtest.TPM, wantCount int, wantLocked bool) {
	t.Helper()
	if got := lockouts(t, p); got != wantCount {
		t.Errorf("the TPM counts %d wrong guesses, want %d", got, wantCount)
	}
	m := open(t, p.Socket)
	defer m.Close()
	l := must(m.Health(t.Context())).Chip.Lockout
	if int(l.Count) != wantCount || l.Locked != wantLocked {
		t.Errorf("health says %+v; want %d, locked %v", l, wantCount, wantLocked)
	}
	if l.Locked != (l.Wait() > 0) {
		t.Errorf("locked %v, wait %v", l.Locked, l.Wait())
	}
}

func TestPINCounts(t *testing.T) {
	p := hsmtest.NewTPM(t)
	secret := hsm.RandomSecret(hsm.MaxSealed)
	b := sealPIN(t, p, secret)
	try := func(text string) error {
		t.Helper()
		m := open(t, p.Socket)
		defer m.Close()
		got, err := m.UnsealPIN(t.Context(), b, pin(text))
		if err == nil && !got.Equal(secret) {
			t.Error("a wrong secret")
		}
		return err
	}
	for range 6 {
		if err := try("1234"); err != nil {
			t.Fatal(err)
		}
	}
	pinState(t, p, 0, false)
	for n := range 3 { // swtpm's limit
		if err := try("4321"); !errors.Is(err, hsm.ErrPIN) {
			t.Fatalf("%v, want %v", err, hsm.ErrPIN)
		}
		pinState(t, p, n+1, n == 2)
	}
	for _, text := range []string{"1234", "4321"} {
		if err := try(text); !errors.Is(err, hsm.ErrLockout) {
			t.Errorf("%v, want %v", err, hsm.ErrLockout)
		}
	}
	pinState(t, p, 3, true)
	opensAt(t, p.Socket, works(t, p.Socket)) // the machine's own secrets do not care
	m := open(t, p.Socket)
	if err := m.ResetLockout(t.Context(), nil); err != nil {
		t.Error(err)
	}
	m.Close()
	pinState(t, p, 0, false)
	if err := try("1234"); err != nil {
		t.Error(err)
	}
}

// A PIN that cannot be one is not tried.
func TestPINLength(t *testing.T) {
	p := hsmtest.NewTPM(t)
	b := sealPIN(t, p, pin("secret"))
	m := open(t, p.Socket)
	for _, bad := range []*hsm.Secret{nil, pin(""), pin("123"), hsm.RandomSecret(hsm.MaxPIN + 1)} {
		if _, err := m.UnsealPIN(t.Context(), b, bad); err == nil || errors.Is(err, hsm.ErrPIN) {
			t.Errorf("%d bytes: %v", bad.Len(), err)
		}
		if _, err := m.SealPIN(t.Context(), pin("secret"), bad); err == nil {
			t.Errorf("%d bytes: sealed", bad.Len())
		}
	}
	m.Close()
	pinState(t, p, 0, false)
}

// The figure of the research: the power cut after the RIGHT PIN, five boots in a
// row, with a limit of 3. And after it the chip did all else that it does.
func TestPINPowerCuts(t *testing.T) {
	p := hsmtest.NewTPM(t)
	secret := hsm.RandomSecret(32)
	b := sealPIN(t, p, secret)
	for boot := range 5 {
		m := open(t, p.Socket)
		got, err := m.UnsealPIN(t.Context(), b, pin("1234"))
		if err != nil || !got.Equal(secret) {
			t.Fatalf("boot %d: %v", boot, err)
		}
		if boot > 0 { // the first is cut right after
			useAll(t, m)
		}
		p.Kill()
		m.Close()
		p.Start()
		pinState(t, p, 0, false)
	}
}

// useAll has the chip do what changes its memory: after a TPM2_Shutdown each of
// them takes the word of an orderly stop back.
func useAll(t *testing.T, m *tpm.Module) {
	t.Helper()
	key := hsm.RandomSecret(hsm.CounterKeySize)
	counter := must(m.NewCounter(t.Context(), key))
	must(m.Increment(t.Context(), counter, key))
	must(m.Unseal(t.Context(), must(m.Seal(t.Context(), hsm.RandomSecret(32)))))
	must(must(m.Signer(t.Context(), must(m.NewKey(t.Context())))).Sign(rand.Reader, make([]byte, 32), crypto.SHA256))
}

// The control: without TPM2_Shutdown the same boots lock the chip.
func TestPINPowerCutsControl(t *testing.T) {
	p := hsmtest.NewTPM(t)
	b := sealPIN(t, p, hsm.RandomSecret(32))
	for range 5 {
		m := must(tpm.OpenUnorderly(t.Context(), p.Socket, logger(t)))
		_, err := m.UnsealPIN(t.Context(), b, pin("1234"))
		p.Kill()
		m.Close()
		p.Start()
		if errors.Is(err, hsm.ErrLockout) {
			return
		}
	}
	t.Error("power cuts after right PINs do not lock the chip: the test above proves nothing")
}

// A wrong PIN counts once, also when the connection is lost then.
func TestPINCountsOnce(t *testing.T) {
	p := hsmtest.NewTPM(t)
	b := sealPIN(t, p, hsm.RandomSecret(32))
	for n, want := range []error{hsm.ErrPIN, hsm.ErrAbsent} {
		var guesses atomic.Int64
		bus := hsmtest.NewBus(t, p.Socket, func(command []byte, next func([]byte) []byte) []byte {
			response := next(command)
			if tpm2.TPMCC(hsmtest.Code(command)) != tpm2.TPMCCUnseal || hsmtest.Code(response) == uint32(tpm2.TPMRCRetry) {
				return response // the chip asks for the first one to be sent again
			}
			guesses.Add(1)
			if want == hsm.ErrAbsent {
				return nil
			}
			return response
		})
		m := open(t, bus.Socket)
		if _, err := m.UnsealPIN(t.Context(), b, pin("wrong")); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
		m.Close()
		if guesses.Load() != 1 {
			t.Errorf("%d guesses were sent, want 1", guesses.Load())
		}
		pinState(t, p, n+1, false)
	}
}

// Each PIN and each lockout password has a session of its own, in step for sure:
// a right one is never counted because a session of before was not.
func TestPINHasItsOwnSession(t *testing.T) {
	p := hsmtest.NewTPM(t)
	b := sealPIN(t, p, hsm.RandomSecret(32))
	bus := hsmtest.NewBus(t, p.Socket, nil)
	m := open(t, bus.Socket)
	must(m.NewKey(t.Context())) // in a session that lasts
	for n := range 3 {
		before := count(bus, tpm2.TPMCCStartAuthSession)
		if n == 2 {
			if err := m.ResetLockout(t.Context(), nil); err != nil {
				t.Error(err)
			}
		} else {
			must(m.UnsealPIN(t.Context(), b, pin("1234")))
		}
		if got := count(bus, tpm2.TPMCCStartAuthSession) - before; got != 1 {
			t.Errorf("use %d: %d new sessions, want 1", n, got)
		}
	}
}

func TestPINTampered(t *testing.T) {
	p := hsmtest.NewTPM(t)
	b := sealPIN(t, p, hsm.RandomSecret(32))
	m := open(t, p.Socket)
	for n := range b {
		bad := bytes.Clone(b)
		bad[n] ^= 1 << (n % 8)
		if _, err := m.UnsealPIN(t.Context(), bad, pin("1234")); !errors.Is(err, hsm.ErrBlob) && !errors.Is(err, hsm.ErrReplaced) {
			t.Fatalf("byte %d of %d flipped: %v", n, len(b), err)
		}
	}
	m.Close()
	pinState(t, p, 0, false)
}

// The chip guards our PIN objects, and none of the others.
func TestAttributesByForeignEye(t *testing.T) {
	p := bootedTPM(t)
	m := open(t, p.Socket)
	blobs := map[string]hsm.Blob{
		"seal": must(m.Seal(t.Context(), hsm.RandomSecret(32))),
		"key":  must(m.NewKey(t.Context())),
		"mac":  must(m.ImportMAC(t.Context(), hsm.RandomSecret(32))),
		"boot": must(m.SealBoot(t.Context(), hsm.RandomSecret(32), hsm.BootPolicy{Registers: []int{7}})),
		"pin":  must(m.SealPIN(t.Context(), hsm.RandomSecret(32), pin("1234"))),
	}
	m.Close()
	want := map[string]string{
		"seal": "fixedtpm|fixedparent|userwithauth|noda",
		"key":  "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign",
		"mac":  "fixedtpm|fixedparent|userwithauth|noda|sign",
		"boot": "fixedtpm|fixedparent|adminwithpolicy|noda",
		"pin":  "fixedtpm|fixedparent|userwithauth",
	}
	for name, b := range blobs {
		if got := p.Attributes(b); got != want[name] {
			t.Errorf("%s: %s, want %s", name, got, want[name])
		}
	}
	if got := lockouts(t, p); got != 0 {
		t.Errorf("the TPM counts %d wrong guesses", got)
	}
}

func TestSetLockout(t *testing.T) {
	p := hsmtest.NewTPM(t)
	b := sealPIN(t, p, hsm.RandomSecret(32))
	m := open(t, p.Socket)
	if err := m.SetLockout(t.Context(), nil, 5, 2*time.Hour, 24*time.Hour); err != nil {
		t.Fatal(err)
	}
	l := must(m.Health(t.Context())).Chip.Lockout
	if l.Limit != 5 || l.Recovery != 2*time.Hour || l.Reset != 24*time.Hour {
		t.Errorf("%+v", l)
	}
	for name, err := range map[string]error{
		"limit 0":       m.SetLockout(t.Context(), nil, 0, time.Hour, time.Hour),
		"no recovery":   m.SetLockout(t.Context(), nil, 5, 0, time.Hour),
		"half a second": m.SetLockout(t.Context(), nil, 5, time.Second/2, time.Hour),
		"negative":      m.SetLockout(t.Context(), nil, 5, time.Hour, -time.Hour),
		"for ever":      m.SetLockout(t.Context(), nil, 5, 1<<62, time.Hour),
		"oversize":      m.ResetLockout(t.Context(), hsm.RandomSecret(65)),
	} {
		if err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	m.Close()
	p.Tool("tpm2_changeauth", "-Q", "-c", "l", "lockout")
	m = open(t, p.Socket)
	if _, err := m.UnsealPIN(t.Context(), b, pin("wrong")); !errors.Is(err, hsm.ErrPIN) {
		t.Error(err)
	}
	if err := m.ResetLockout(t.Context(), pin("lockout")); err != nil {
		t.Error(err)
	}
	if l := must(m.Health(t.Context())).Chip.Lockout; l.Count != 0 {
		t.Errorf("after the reset %+v", l)
	}
	m.Close()
}

// A wrong lockout password is tried once, and bars the right one.
func TestLockoutPasswordWrong(t *testing.T) {
	p := hsmtest.NewTPM(t)
	p.Tool("tpm2_changeauth", "-Q", "-c", "l", "lockout")
	bus := hsmtest.NewBus(t, p.Socket, nil)
	m := open(t, bus.Socket)
	if err := m.ResetLockout(t.Context(), pin("not that password")); !errors.Is(err, hsm.ErrLockoutPassword) {
		t.Errorf("%v, want %v", err, hsm.ErrLockoutPassword)
	}
	if n := count(bus, tpm2.TPMCCDictionaryAttackLockReset); n != 1 {
		t.Errorf("it was sent %d times", n)
	}
	if err := m.SetLockout(t.Context(), pin("lockout"), 9, time.Hour, time.Hour); !errors.Is(err, hsm.ErrLockout) {
		t.Errorf("%v, want %v", err, hsm.ErrLockout)
	}
	if _, err := m.Seal(t.Context(), hsm.RandomSecret(32)); err != nil {
		t.Errorf("all else: %v", err)
	}
	if shows(bus.Bytes(), []byte("not that password")) {
		t.Error("the password crosses the bus in clear")
	}
}

// req: C1 (nothing that a person types crosses the bus)
func TestBusShowsNoPIN(t *testing.T) {
	path, recorded := hsmtest.Record(t, hsmtest.StartTPM(t))
	m := open(t, path)
	secret, long := hsm.RandomSecret(32), pin("correct horse battery")
	b := must(m.SealPIN(t.Context(), secret, long))
	if got := must(m.UnsealPIN(t.Context(), b, long)); !got.Equal(secret) {
		t.Fatal("the module does not do what it should; the record proves nothing")
	}
	for name, needle := range map[string][]byte{"PIN": long.Bytes(), "hash of the PIN": tpm.PINAuth(long), "secret": secret.Bytes()} {
		if shows(recorded(), needle) {
			t.Errorf("the %s crosses the bus in clear", name)
		}
	}
}
