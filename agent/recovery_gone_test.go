package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm/open"
	"github.com/kagimori/kagimori/transport"
)

// asking has a terminal lose its key storage and ask for its key.
func asking(t *testing.T) *stage {
	t.Helper()
	s, _ := newStage(t, open.KindFile)
	s.start()
	s.enroll()
	s.connect()
	s.issued("cr-1")
	s.lose(nil)
	if err := s.a.try(t.Context(), Remedy{Aside: "it is lost"}); err != nil {
		t.Fatal(err)
	}
	s.enroll()
	s.connect()
	if len(s.srv.asked) != 1 {
		t.Fatalf("asked: %+v", s.srv.asked)
	}
	return s
}

// Somebody has removed what was set aside: the server is told that nobody wants
// the key, once.
func TestRecoveryOfWhatIsGone(t *testing.T) {
	s := asking(t)
	if err := os.RemoveAll(filepath.Join(s.dir, asideDir)); err != nil {
		t.Fatal(err)
	}
	s.again()
	s.connect()
	s.connect()
	if len(s.srv.asked) != 1 || len(s.srv.taken) != 1 || s.srv.taken[0] != (transport.RecoveryTaken{ID: s.srv.asked[0].ID, GivenUp: true}) {
		t.Errorf("asked %d times, taken %+v", len(s.srv.asked), s.srv.taken)
	}
	if r, err := s.a.recovery(); err != nil || len(r.Aside) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// A store that was taken over and cannot be destroyed is not asked for again,
// and is destroyed once that is possible.
func TestTakenStoreThatStays(t *testing.T) {
	s := asking(t)
	stays := filepath.Join(s.dir, asideDir, "1", "dir")
	if err := os.MkdirAll(filepath.Join(stays, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.srv.approve = true
	s.connect()
	s.again()
	s.connect()
	if len(s.holds()) != 1 || len(s.srv.asked) != 2 || s.srv.asked[1].ID != s.srv.asked[0].ID {
		t.Errorf("holds %v, asked %d times", s.holds(), len(s.srv.asked))
	}
	if err := os.RemoveAll(stays); err != nil {
		t.Fatal(err)
	}
	s.again()
	s.connect()
	if r, err := s.a.recovery(); err != nil || len(r.Aside) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if left, err := asides(s.dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// Store and second copy were removed, and a broken file of earlier is there: no
// empty store begins in silence. Recovery moves what is left away.
func TestStoreGoneButForABrokenFile(t *testing.T) {
	s, _ := newStage(t, open.KindFile)
	s.start()
	s.stop()
	path := filepath.Join(s.dir, storeFile)
	if err := errors.Join(os.Rename(path, path+".broken-1"), os.Remove(path+".copy")); err != nil {
		t.Fatal(err)
	}
	s.start()
	cause := s.a.Cause()
	if !errors.Is(cause, store.ErrDamaged) || !lostForGood(cause) || !strings.Contains(cause.Error(), path+".broken-1") {
		t.Fatalf("got %v", cause)
	}
	if err := s.a.try(t.Context(), Remedy{Aside: cause.Error()}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(s.dir, asideDir, "1", storeFile+".broken-1")); err != nil {
		t.Error(err)
	}
	s.again()
	if r, err := s.a.recovery(); err != nil || len(r.Aside) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}
