package agent

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/kagimori/kagimori/hsm/open"
	"github.com/kagimori/kagimori/transport"
)

// While the second copy cannot be written, or the counter not be counted, the files
// of before a command would still be accepted: who fills the disk and has it later
// could take back what the server believes done. So the server is not told.
func TestResultWaitsForTheCounter(t *testing.T) {
	s, _ := newStage(t, open.KindTPM)
	s.start()
	s.enroll()
	s.connect()
	s.srv.command(transport.CommandCodeInstall, transport.CodeInstall{Group: "default", Epoch: 2, Code: make(transport.Sensitive, 32)})
	s.connect()
	second := filepath.Join(s.dir, storeFile+".copy")
	if err := errors.Join(os.Remove(second), os.MkdirAll(filepath.Join(second, "in the way"), 0o700)); err != nil {
		t.Fatal(err)
	}
	id := s.srv.command(transport.CommandCodeRetire, transport.CodeRetire{Group: "default", Epochs: []uint32{1}})
	s.connect()
	st := s.vault().store.State()
	if st.Unfinished == "" || *st.Counter == st.Epoch {
		t.Fatalf("%+v", st)
	}
	if got := s.srv.got(id); len(got) != 0 {
		t.Errorf("the server was told of what can be taken back: %+v", got)
	}
	if err := errors.Join(os.RemoveAll(second), s.vault().store.Settle(t.Context())); err != nil {
		t.Fatal(err)
	}
	s.connect()
	if got := s.srv.got(id); len(got) != 1 {
		t.Errorf("the result was not sent: %+v", got)
	}
}
