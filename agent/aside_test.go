package agent

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

func fill(t *testing.T, names ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func list(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

var stateFiles = []string{"device.secret", "device.secret.counter-00", storeFile, storeFile + ".broken-1", storeFile + ".copy", storeFile + ".lock", "other"}

func TestSetAsideMovesAndDeletesNothing(t *testing.T) {
	dir := fill(t, stateFiles...)
	name, err := setAside(dir, false, "the chip is gone")
	if err != nil || name != "1" {
		t.Fatal(name, err)
	}
	at := filepath.Join(dir, asideDir)
	if got := list(t, dir); !slices.Equal(got, []string{asideDir, "device.secret", "device.secret.counter-00", storeFile + ".lock", "other"}) {
		t.Errorf("left: %v", got)
	}
	if got := list(t, filepath.Join(at, "1")); !slices.Equal(got, []string{storeFile, storeFile + ".broken-1", storeFile + ".copy", asideWhy}) {
		t.Errorf("set aside: %v", got)
	}
	if name, err := setAside(dir, true, "the secret too"); err != nil || name != "2" {
		t.Fatal(name, err)
	}
	if got := list(t, filepath.Join(at, "2")); !slices.Equal(got, []string{"device.secret", "device.secret.counter-00", asideWhy}) {
		t.Errorf("set aside: %v", got)
	}
	if err := scrubAside(dir, "1"); err != nil {
		t.Fatal(err)
	}
	if got, err := asides(dir); err != nil || !slices.Equal(got, []string{"2"}) {
		t.Errorf("%v, %v", got, err)
	}
	if name, err := setAside(dir, false, "x"); err != nil || name != "3" {
		t.Errorf("a name is used twice: %s, %v", name, err)
	}
}

// The power goes after the intent, or between two files: the next start moves
// the rest, and a store never begins beside half of another one.
func TestSetAsideIsFinishedAtTheNextStart(t *testing.T) {
	for moved := range 4 {
		dir := fill(t, stateFiles...)
		to := filepath.Join(dir, asideDir, "1")
		intent, err := json.Marshal(asideMove{To: "1"})
		if err := errors.Join(err, os.MkdirAll(to, 0o700), os.WriteFile(filepath.Join(dir, asideIntent), intent, 0o600)); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{storeFile, storeFile + ".broken-1", storeFile + ".copy"}[:moved] {
			if err := os.Rename(filepath.Join(dir, name), filepath.Join(to, name)); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if err := finishAside(dir); err != nil {
				t.Fatal(err)
			}
		}
		if got := list(t, to); !slices.Equal(got, []string{storeFile, storeFile + ".broken-1", storeFile + ".copy"}) {
			t.Errorf("after %d: %v", moved, got)
		}
		if slices.Contains(list(t, dir), asideIntent) {
			t.Error("the intent stays")
		}
	}
}

func TestSetAsideRefuses(t *testing.T) {
	for _, bad := range []string{"", "x", `{"to":"../.."}`, `{"to":"01"}`, `{"to":"0"}`} {
		dir := fill(t, storeFile)
		if err := os.WriteFile(filepath.Join(dir, asideIntent), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := finishAside(dir); err == nil {
			t.Errorf("intent %q was followed", bad)
		}
		if !slices.Contains(list(t, dir), storeFile) {
			t.Errorf("intent %q moved the store", bad)
		}
	}
	dir := fill(t)
	for range maxAside {
		if _, err := setAside(dir, false, "again"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := setAside(dir, false, "again"); !errors.Is(err, errAsideFull) {
		t.Errorf("%v", err)
	}
}

// What somebody left in the state directory does not keep the daemon from
// starting by waiting, and is not overwritten when it lies elsewhere.
func TestStrangeFilesBesideWhatIsSetAside(t *testing.T) {
	dir := fill(t, storeFile)
	if err := syscall.Mkfifo(filepath.Join(dir, asideIntent), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := finishAside(dir); err == nil {
		t.Error("a pipe was followed")
	}
	victim := filepath.Join(dir, "victim")
	at := filepath.Join(dir, asideDir, "1")
	err := errors.Join(os.MkdirAll(at, 0o700), os.WriteFile(victim, []byte("precious"), 0o600),
		os.Symlink(victim, filepath.Join(at, "a")), os.Link(victim, filepath.Join(at, "b")), syscall.Mkfifo(filepath.Join(at, "c"), 0o600))
	if err := errors.Join(err, scrubAside(dir, "1")); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(victim); err != nil || string(got) != "precious" {
		t.Errorf("%q, %v", got, err)
	}
}
