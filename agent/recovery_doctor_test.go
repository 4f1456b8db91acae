package agent

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kagimori/kagimori/agent/doctor"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/open"
)

// What the doctor says of a terminal whose older store file was accepted just
// now, and after the next start: what happened, and nothing that is not so.
func TestDoctorAfterOlderFile(t *testing.T) {
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
		change(t, s.vault())
		s.stop()
		for name, data := range backup {
			if err := os.WriteFile(filepath.Join(s.dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s.start()
		s.closed(store.ErrOlder)
		if err := s.a.try(t.Context(), Remedy{Older: true}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			r := s.a.Doctor(t.Context())
			for _, f := range r.Findings {
				if f.Class == doctor.AuditBroken && f.Severity != doctor.Note {
					t.Errorf("a loss that is logged is a fault of the log: %+v", f)
				}
			}
			if fb := s.vault().store.State().Fallback; fb == nil || fb.Way != store.WayAccepted {
				t.Errorf("%+v", fb)
			}
			if !r.Has(doctor.StoreFallback) || r.Has(doctor.CopyStale) {
				t.Errorf("%+v", r.Findings)
			}
			s.again()
		}
	})
}

// The same for a counter that is gone.
func TestDoctorAfterCounter(t *testing.T) {
	s, chip := newStage(t, open.KindTPM)
	s.start()
	s.enroll()
	s.issued("cr-1")
	s.stop()
	chip.Tool("tpm2_nvundefine", "-C", "o", "0x1804B00")
	s.start()
	s.closed(hsm.ErrCounter)
	if err := s.a.try(t.Context(), Remedy{Older: true}); err != nil {
		t.Fatal(err)
	}
	r := s.a.Doctor(t.Context())
	if r.Has(doctor.CopyStale) || r.Has(doctor.CounterGone) || !r.Has(doctor.StoreFallback) {
		t.Errorf("%+v", r.Findings)
	}
}
