package agent

import (
	"slices"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
)

// KeysStatus is where keys at rest are, and whether they can be used.
type KeysStatus struct {
	Open  bool      `json:"open"`
	Level hsm.Level `json:"level,omitempty"`
	Text  string    `json:"text"`
	Next  string    `json:"next,omitempty"`
	// Bond is what the store key is bound to: "device secret", "chip", "boot" or
	// "boot, signed". NotMeasured: it should be to the boot, which is not measured.
	Bond          string `json:"bond,omitempty"`
	NotMeasured   bool   `json:"boot_not_measured,omitempty"`
	RollbackProof bool   `json:"rollback_proof"`
	// Incarnation counts how often the store lost something; Fallback is the last
	// time, until the server knows.
	Incarnation uint32          `json:"incarnation"`
	Fallback    *store.Fallback `json:"fallback,omitempty"`
	// Reenroll: the keys inside the earlier key storage are gone.
	Reenroll bool `json:"reenroll,omitempty"`
	// Recoverable: the server, or a recovery file, can give the store key back.
	Recoverable bool `json:"recoverable"`
}

// keysOpen is how keys at rest are while they can be used.
func (a *Agent) keysOpen(v *vault) KeysStatus {
	s, st := keysStatus(v.module), v.store.State()
	s.Bond, s.NotMeasured, s.RollbackProof, s.Incarnation, s.Fallback = st.Bond, st.NotMeasured, st.RollbackProof, st.Incarnation, st.Fallback
	if r, err := v.recoveryStatus(a.cfg.Program); err == nil {
		s.Reenroll, s.Recoverable = r.Reenroll, r.Wrap > 0 || !r.Exported.IsZero()
		if r.Reenroll || slices.ContainsFunc(r.Aside, func(x AsideStatus) bool { return !x.Taken }) {
			s.Next = r.Next
		}
	}
	if st.Fallback != nil && s.Next == "" {
		s.Next = "nothing: the server is told when it is in reach; what was lost: " + a.cfg.Program + " doctor"
	}
	return s
}

// keysStatus says what a level is worth.
func keysStatus(m hsm.Module) KeysStatus {
	level := m.Level()
	s := KeysStatus{Open: true, Level: level}
	guard, _ := m.(hsm.Passphrases)
	switch level {
	case hsm.LevelFile:
		s.Text = "a secret file on this device: a backup without it is safe, a stolen device is not"
		if guard != nil && guard.HasPassphrase() {
			s.Text = "a secret file on this device and a passphrase: what lies on a disk that is switched off is as safe as the passphrase is hard to guess"
		}
	case hsm.LevelTPM:
		s.Text = "the TPM of this device"
	case hsm.LevelTPMSocket:
		s.Text = "a TPM emulator: for tests only, never in the field"
	default:
		s.Text = string(level)
	}
	return s
}
