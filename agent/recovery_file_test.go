package agent

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/open"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

func (s *stage) export() (file []byte, passphrase transport.Sensitive) {
	s.t.Helper()
	out, passphrase, err := s.a.exportFile("tester")
	if err != nil {
		s.t.Fatal(err)
	}
	return out.File, passphrase
}

// refused checks that a file opens nothing, and that nothing is changed by it.
func (s *stage) refused(what string, file []byte, passphrase transport.Sensitive, kind control.Kind) {
	s.t.Helper()
	_, err := s.a.importFile(s.t.Context(), file, passphrase)
	if p, ok := errors.AsType[*control.Problem](err); !ok || p.Kind != kind || p.Next == "" {
		s.t.Errorf("%s: %v, want %s with a next step", what, err, kind)
	}
}

// Without a server: the file and its passphrase open the store under another
// chip or device secret. Credentials work at once, the identity is a new one.
func TestRecoveryFileOpensTheStore(t *testing.T) {
	eachKind(t, func(t *testing.T, s *stage, chip *hsmtest.TPM) {
		s.enroll()
		s.issued("cr-1")
		file, passphrase := s.export()
		s.refused("while nothing is lost", file, passphrase, control.Conflict)
		other, _ := newStage(t, open.KindFile)
		other.start()
		foreign, foreignPassphrase := other.export()

		was := s.vault().device
		s.lose(chip)
		s.closed(store.ErrForeign)
		s.refused("another passphrase", file, transport.Sensitive("aaaaa-aaaaa-aaaaa-aaaaa-aaaaa"), control.BadInput)
		s.refused("another store's file", foreign, foreignPassphrase, control.Refused)
		s.refused("no recovery file", []byte("x"), passphrase, control.BadInput)
		s.closed(store.ErrForeign)

		r, err := s.a.importFile(t.Context(), file, passphrase)
		if err != nil {
			t.Fatal(err)
		}
		if !r.Reenroll || r.Device == was || r.Credentials != 1 || r.Next == "" {
			t.Errorf("%+v", r)
		}
		s.again() // the new slot opens by itself
		if got := s.holds(); !slices.Equal(got, []transport.Name{"cr-1"}) {
			t.Fatalf("holds %v", got)
		}
		v := s.vault()
		if _, err := (credentials{s.a}).Client(t.Context(), "maps"); err != nil {
			t.Errorf("the credential does not work: %v", err)
		}
		if k := s.a.Status().Keys; !k.Reenroll || !strings.Contains(k.Next, "reenroll") || k.Incarnation == 0 {
			t.Errorf("%+v", k)
		}
		s.a.link.set(LinkStatus{State: LinkRefused, Server: "x", Error: "enrolled with another device", Next: "remove its state directory"})
		if next := s.a.Status().Link.Next; next != "" {
			t.Errorf("told to %q, which loses the keys that came back", next)
		}
		if next := s.a.snapshot(t.Context()).Link.Next; !strings.Contains(next, "reenroll") {
			t.Errorf("doctor says %q", next)
		}
		s.a.cfg.Keycopy = &KeycopyConfig{Listen: "127.0.0.1:0"}
		if _, err := s.a.party(); err == nil || !strings.Contains(control.AsProblem(err).Next, "reenroll") {
			t.Errorf("a key copy without a security code: %v", err)
		}
		s.enroll()
		s.connect()
		if s.srv.claims["cr-1"] != was || v.reenroll() {
			t.Errorf("claims %v, reenroll %v", s.srv.claims, v.reenroll())
		}
		if r, err := s.a.recovery(); err != nil || r.Wrap != 1 { // wrapped anew, for the new device
			t.Errorf("%+v, %v", r, err)
		}
		s.refused("a second time", file, passphrase, control.Conflict)
	})
}

// A file also opens a store that was set aside before the file was found.
func TestRecoveryFileOpensWhatIsSetAside(t *testing.T) {
	eachKind(t, func(t *testing.T, s *stage, chip *hsmtest.TPM) {
		s.enroll()
		s.issued("cr-1")
		file, passphrase := s.export()
		s.lose(chip)
		if err := s.a.try(t.Context(), Remedy{Aside: "lost"}); err != nil {
			t.Fatal(err)
		}
		s.refused("before the device is provisioned", file, passphrase, control.Conflict)
		s.enroll()
		s.connect() // the server is asked, too, and has not decided
		r, err := s.a.importFile(t.Context(), file, passphrase)
		if err != nil || r.Taken == nil || !slices.Equal(r.Taken.Credentials, []transport.Name{"cr-1"}) {
			t.Fatalf("%+v, %v", r, err)
		}
		s.connect()
		if len(s.srv.asked) > 0 && (len(s.srv.taken) != 1 || !s.srv.taken[0].GivenUp) {
			t.Errorf("the server is not told that the key came otherwise: %+v", s.srv.taken)
		}
		if left, _ := asides(s.dir); len(left) != 0 {
			t.Error("the old store is not destroyed")
		}
	})
}

// A key that comes in a file and from the server at once: one of them takes the
// store over, the other learns so.
func TestStoreIsTakenOverOnce(t *testing.T) {
	eachKind(t, func(t *testing.T, s *stage, chip *hsmtest.TPM) {
		s.enroll()
		s.issued("cr-1")
		file, passphrase := s.export()
		s.lose(chip)
		if err := s.a.try(t.Context(), Remedy{Aside: "lost"}); err != nil {
			t.Fatal(err)
		}
		s.enroll()
		f, err := transport.OpenRecoveryFile(file, passphrase)
		if err != nil {
			t.Fatal(err)
		}
		names, err := asides(s.dir)
		if err != nil || len(names) != 1 {
			t.Fatal(names, err)
		}
		const n = 4
		v, ends := s.vault(), make(chan error, n)
		for range n {
			go func() {
				key := hsm.NewSecret(bytes.Clone(f.Key))
				defer key.Wipe()
				_, err := v.takeOver(t.Context(), names[0], key, transport.RecoveryReleased)
				ends <- err
			}()
		}
		took := 0
		for range n {
			switch err := <-ends; {
			case err == nil:
				took++
			case !errors.Is(err, errTaken):
				t.Errorf("one that came second: %v", err)
			}
		}
		if took != 1 {
			t.Errorf("taken over %d times", took)
		}
		if got := s.holds(); !slices.Equal(got, []transport.Name{"cr-1"}) {
			t.Errorf("holds %v", got)
		}
	})
}

// A boot that nobody approved: the store opens with the file, and since the chip
// is the same, nothing in it is lost.
func TestRecoveryAfterAnotherBoot(t *testing.T) {
	s, chip := newStage(t, open.KindTPM)
	chip.Tool("tpm2_pcrextend", "7:sha256="+strings.Repeat("11", 32))
	s.boot = &store.Boot{Policy: hsm.BootPolicy{Registers: []int{7}}}
	s.start()
	s.enroll()
	s.issued("cr-1")
	if k := s.a.Status().Keys; k.Bond != "boot" || k.NotMeasured {
		t.Fatalf("%+v", k)
	}
	file, passphrase := s.export()
	was := s.vault().device
	s.stop()
	chip.Tool("tpm2_pcrextend", "7:sha256="+strings.Repeat("22", 32))
	s.start()
	if p := s.closed(hsm.ErrBoot); !strings.Contains(p.Next, "boot") {
		t.Errorf("%+v", p)
	}
	r, err := s.a.importFile(t.Context(), file, passphrase)
	if err != nil || r.Reenroll || r.Device != was {
		t.Fatalf("%+v, %v", r, err)
	}
	s.again()
	if k := s.a.Status().Keys; !k.Open || k.Bond != "boot" {
		t.Errorf("%+v", k)
	}
}

// Who puts an older file back is found out; an administrator may take it, and
// the server gets a list of what is held.
func TestOlderFileTakesAnAdministrator(t *testing.T) {
	eachKind(t, func(t *testing.T, s *stage, _ *hsmtest.TPM) {
		s.enroll()
		s.issued("cr-1")
		s.stop()
		backup := map[string][]byte{}
		for _, name := range []string{storeFile, storeFile + ".copy"} {
			data, err := os.ReadFile(filepath.Join(s.dir, name))
			if err != nil {
				t.Fatal(err)
			}
			backup[name] = data
		}
		s.start()
		s.issued("cr-2")
		s.connect()
		s.stop()
		for name, data := range backup {
			if err := os.WriteFile(filepath.Join(s.dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s.start()
		if p := s.closed(store.ErrOlder); !strings.Contains(p.Next, "accept-older") {
			t.Errorf("%+v", p)
		}
		if r, _ := s.a.recovery(); !slices.Equal(r.Possible, []string{"accept-older", "import", "start"}) {
			t.Errorf("%+v", r)
		}
		if err := s.a.try(t.Context(), Remedy{Older: true}); err != nil {
			t.Fatal(err)
		}
		if k := s.a.Status().Keys; k.Incarnation == 0 || k.Fallback == nil {
			t.Errorf("%+v", k)
		}
		s.srv.states = nil
		s.again()
		s.connect()
		st := s.srv.states[0]
		if st.Incarnation == 0 || st.Report == nil || !slices.Equal(st.Report.Holds, []transport.Name{"cr-1"}) {
			t.Errorf("the server is told %+v", st)
		}
		if _, ok := s.srv.claims["cr-1"]; !ok {
			t.Error("what is held is not claimed anew")
		}
		s.connect()
		if st := s.srv.states[1]; st.Report != nil {
			t.Errorf("reported twice: %+v", st)
		}
		if k := s.a.Status().Keys; k.Fallback != nil {
			t.Errorf("the loss is not forgotten although the server knows: %+v", k.Fallback)
		}
	})
}
