package tpm_test

// Power cuts, killed processes, and what they leave behind.

import (
	"context"
	"crypto"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
)

// The test binary plays the agent that is killed while it uses the chip.
func TestMain(m *testing.M) {
	if path := os.Getenv("TPM_USE_FOREVER"); path != "" {
		useForever(path)
	}
	os.Exit(m.Run())
}

// lockouts is the number of wrong guesses that the TPM has counted.
func lockouts(t *testing.T, p *hsmtest.TPM) int {
	t.Helper()
	out := p.Tool("tpm2_getcap", "properties-variable")
	match := regexp.MustCompile(`TPM2_PT_LOCKOUT_COUNTER: (0x[0-9A-Fa-f]+)`).FindStringSubmatch(out)
	if match == nil {
		t.Fatalf("no lockout counter in %s", out)
	}
	return int(must(strconv.ParseInt(match[1], 0, 64)))
}

// The control: the same cuts after a use of an object without noDA are counted.
func TestPowerCutsControl(t *testing.T) {
	p := hsmtest.NewTPM(t)
	p.Tool("tpm2_createprimary", "-Q", "-C", "o", "-G", "ecc", "-c", "primary.ctx")
	p.Tool("tpm2_create", "-Q", "-C", "primary.ctx", "-i", "/proc/self/comm", "-u", "o.pub", "-r", "o.priv", "-p", "right",
		"-a", "fixedtpm|fixedparent|userwithauth")
	p.Tool("tpm2_flushcontext", "-t")
	p.Kill()
	p.Start()
	p.Tool("tpm2_createprimary", "-Q", "-C", "o", "-G", "ecc", "-c", "primary.ctx")
	p.Tool("tpm2_load", "-Q", "-C", "primary.ctx", "-u", "o.pub", "-r", "o.priv", "-c", "o.ctx")
	p.Tool("tpm2_flushcontext", "-t")
	p.Tool("tpm2_unseal", "-Q", "-c", "o.ctx", "-p", "right", "-o", "/dev/null")
	p.Kill()
	p.Start()
	if got := lockouts(t, p); got == 0 {
		t.Error("a power cut after the use of an object without noDA is not counted: the test above proves nothing")
	}
}

// The chip goes away in the middle of use and comes back: the module does too.
func TestKilledTPM(t *testing.T) {
	p := hsmtest.NewTPM(t)
	m := open(t, p.Socket)
	secret := hsm.RandomSecret(32)
	sealed := must(m.Seal(t.Context(), secret))
	s := must(m.Signer(t.Context(), must(m.NewKey(t.Context()))))
	for range 4 {
		var wg sync.WaitGroup
		running := make(chan struct{}, 20)
		for range 3 {
			wg.Go(func() {
				for n := 0; ; n++ {
					if n == 10 {
						running <- struct{}{}
					}
					_, err := m.Unseal(t.Context(), sealed)
					if err == nil {
						continue
					}
					if !errors.Is(err, hsm.ErrAbsent) {
						t.Errorf("while it dies: %v", err)
					}
					running <- struct{}{}
					return
				}
			})
		}
		<-running // one at least is in full use, or has failed
		p.Kill()
		wg.Wait()
		if _, err := m.Unseal(t.Context(), sealed); !errors.Is(err, hsm.ErrAbsent) {
			t.Errorf("while it is gone: %v", err)
		}
		p.Start()
		if got, err := m.Unseal(t.Context(), sealed); err != nil || !got.Equal(secret) {
			t.Errorf("when it is back: %v", err)
		}
		if _, err := s.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err != nil {
			t.Errorf("a signer from before: %v", err)
		}
	}
}

// The chip was away between two uses: whoever uses it next does not notice, and
// what changes it is done once.
func TestRestartBetweenUses(t *testing.T) {
	p := hsmtest.NewTPM(t)
	m := open(t, p.Socket)
	key := hsm.RandomSecret(hsm.CounterKeySize)
	counter := must(m.NewCounter(t.Context(), key))
	sealed := must(m.Seal(t.Context(), key))
	want := must(m.Count(t.Context(), counter, key))
	for name, use := range map[string]func() error{
		"unseal": func() error { _, err := m.Unseal(t.Context(), sealed); return err },
		"sign": func() error {
			s, err := m.Signer(t.Context(), must(m.NewKey(t.Context())))
			if err != nil {
				return err
			}
			p.Kill()
			p.Start()
			_, err = s.Sign(rand.Reader, make([]byte, 32), crypto.SHA256)
			return err
		},
		"health": func() error { _, err := m.Health(t.Context()); return err },
		"increment": func() error {
			want++
			got, err := m.Increment(t.Context(), counter, key)
			if got != want {
				t.Errorf("the counter is at %d, want %d", got, want)
			}
			return err
		},
	} {
		p.Kill()
		p.Start()
		if err := use(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// useForever is a program that never closes its module.
func useForever(path string) {
	ctx := context.Background()
	m := must(openQuiet(path))
	sealed := must(m.Seal(ctx, hsm.RandomSecret(32)))
	s := must(m.Signer(ctx, must(m.NewKey(ctx))))
	for {
		must(m.Unseal(ctx, sealed))
		must(s.Sign(rand.Reader, make([]byte, 32), crypto.SHA256))
		os.Stdout.WriteString(".")
	}
}

// An agent that is killed leaves objects and sessions in a TPM without a
// resource manager; the next one is not stopped by them.
func TestKilledAgent(t *testing.T) {
	p := hsmtest.NewTPM(t)
	for range 6 { // twice the places of a TPM
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "TPM_USE_FOREVER="+p.Socket)
		out := must(cmd.StdoutPipe())
		cmd.Stderr = t.Output()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		_, err := out.Read(make([]byte, 1))
		cmd.Process.Kill()
		cmd.Wait()
		if err != nil {
			t.Fatalf("the agent did not start: %v", err)
		}
	}
	if left := handles(t, p, "handles-loaded-session"); left == "" {
		t.Error("the killed agents left nothing: the test proves nothing")
	}
	m := open(t, p.Socket)
	must(m.Unseal(t.Context(), must(m.Seal(t.Context(), hsm.NewSecret([]byte("x"))))))
	m.Close()
	nothingLeft(t, p)
}

func handles(t *testing.T, p *hsmtest.TPM, what string) string {
	t.Helper()
	return strings.TrimSpace(p.Tool("tpm2_getcap", what))
}

func nothingLeft(t *testing.T, p *hsmtest.TPM) {
	t.Helper()
	for _, what := range []string{"handles-transient", "handles-loaded-session", "handles-saved-session"} {
		if left := handles(t, p, what); left != "" {
			t.Errorf("%s: %s", what, left)
		}
	}
	if got := handles(t, p, "handles-persistent"); got != "- 0x81000001" {
		t.Errorf("persistent handles: %q", got)
	}
}

func TestNothingLeftAfterClose(t *testing.T) {
	p := hsmtest.NewTPM(t)
	for range 5 {
		m := open(t, p.Socket)
		sealed := must(m.Seal(t.Context(), hsm.RandomSecret(32)))
		mac := must(m.ImportMAC(t.Context(), hsm.RandomSecret(32)))
		for range 3 {
			must(m.Signer(t.Context(), must(m.NewKey(t.Context())))) // not closed
		}
		must(m.Unseal(t.Context(), sealed))
		must(m.MAC(t.Context(), mac, nil))
		if _, err := m.Unseal(t.Context(), mac); !errors.Is(err, hsm.ErrBlob) {
			t.Error(err)
		}
		m.Close()
		nothingLeft(t, p)
	}
}

// Five signers and two MAC keys at the same time, on a chip with three places.
func TestMoreKeysThanPlaces(t *testing.T) {
	for name, prepare := range map[string]func(*hsmtest.TPM){
		"stored root":    func(*hsmtest.TPM) {},
		"transient root": storeForeignKey,
	} {
		t.Run(name, func(t *testing.T) {
			p := hsmtest.NewTPM(t)
			prepare(p)
			bus := hsmtest.NewBus(t, p.Socket, nil)
			m := open(t, bus.Socket)
			var wg sync.WaitGroup
			for range 5 {
				s := must(m.Signer(t.Context(), must(m.NewKey(t.Context()))))
				wg.Go(func() {
					for range 5 {
						if _, err := s.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err != nil {
							t.Error(err)
						}
					}
				})
			}
			for range 2 {
				mac := must(m.ImportMAC(t.Context(), hsm.RandomSecret(32)))
				wg.Go(func() {
					for range 5 {
						if _, err := m.MAC(t.Context(), mac, []byte("m")); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			m.Close()
			if n := count(bus, tpm2.TPMCCStartAuthSession); n != 1 {
				t.Errorf("%d sessions were started, want one for the whole process", n)
			}
		})
	}
}
