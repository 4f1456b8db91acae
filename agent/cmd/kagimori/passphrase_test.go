package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/transport/control"
)

// opened asks until key storage is open or not, as wanted.
func (b *box) opened(want bool) (s agent.Status) {
	b.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		s = agent.Status{}
		if err := json.Unmarshal([]byte(b.must("", "status", "--json")), &s); err != nil {
			b.t.Fatal(err)
		}
		if s.Keys.Open == want && s.Keys.Next != "try again in a moment" {
			return s
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("key storage %+v, want open %v", s.Keys, want)
		}
	}
}

// A passphrase is set; the next start waits for it, and takes the right one
// only. The keys stay what they were.
func TestPassphrase(t *testing.T) {
	b := newBox(t)
	stop := b.start()
	before := b.opened(true)
	if !strings.Contains(before.Keys.Text, "a stolen device is not") {
		t.Errorf("%+v", before.Keys)
	}
	b.fails(control.BadInput, "8", "short\n", "passphrase", "set")
	if out := b.must("the first passphrase\n", "passphrase", "set"); !strings.Contains(out, "is set") || !strings.Contains(out, "not rollback-proof") {
		t.Errorf("%s", out)
	}
	if s := b.opened(true); !strings.Contains(s.Keys.Text, "as safe as the passphrase") {
		t.Errorf("%+v", s.Keys)
	}
	if out := b.must("anything at all\n", "unlock"); !strings.Contains(out, "open already") {
		t.Errorf("%s", out)
	}
	stop()

	stop = b.start()
	if s := b.opened(false); !strings.Contains(s.Keys.Text, "waits for its passphrase") || !strings.Contains(s.Keys.Next, "kagimori unlock") {
		t.Errorf("%+v", s.Keys)
	}
	b.fails(control.Storage, "waits for its passphrase", "", "credential", "list")
	b.fails(control.Storage, "waits for its passphrase", "another passphrase\n", "passphrase", "set")
	b.fails(control.Refused, "this passphrase is wrong", "the First passphrase\n", "unlock")
	b.opened(false)
	var out agent.UnlockReply
	if err := json.Unmarshal([]byte(b.must("the first passphrase\n", "unlock", "--json")), &out); err != nil || !out.Unlocked {
		t.Errorf("%+v, %v", out, err)
	}
	if s := b.opened(true); *s.Device != *before.Device {
		t.Error("another device")
	}
	stop()

	// Unattended: from a file.
	b.cfg.HSM.Passphrase = filepath.Join(b.dir, "passphrase")
	if err := os.WriteFile(b.cfg.HSM.Passphrase, []byte("the first passphrase\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	stop = b.start()
	b.opened(true)
	if out := b.must("", "passphrase", "remove"); !strings.Contains(out, "no passphrase is set") {
		t.Errorf("%s", out)
	}
	stop()
	os.Remove(b.cfg.HSM.Passphrase)
	b.start()
	if s := b.opened(true); *s.Device != *before.Device {
		t.Error("another device")
	}
}

// A file that is not there does not hide that somebody may type the passphrase.
func TestPassphraseFileThatIsGone(t *testing.T) {
	b := newBox(t)
	stop := b.start()
	b.opened(true)
	b.must("the first passphrase\n", "passphrase", "set")
	stop()
	b.cfg.HSM.Passphrase = filepath.Join(b.dir, "none")
	b.start()
	if s := b.opened(false); !strings.Contains(s.Keys.Text, "none") || !strings.Contains(s.Keys.Next, "kagimori unlock") {
		t.Errorf("%+v", s.Keys)
	}
	b.must("the first passphrase\n", "unlock")
	b.opened(true)
}
