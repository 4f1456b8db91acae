package agent

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/transport"
)

// The file is torn and the second copy goes on: what the ledger had since is
// lost. The command that the server still waits for comes again and has the same
// end, the credential is there once, and the inventory is told.
// req: L8
func TestFallbackIsReconciled(t *testing.T) {
	eachKind(t, func(t *testing.T, s *stage, _ *hsmtest.TPM) {
		s.enroll()
		s.connect()
		s.issued("cr-1")
		id := s.srv.command("unknown.kind", &transport.CommandPoll{})
		s.srv.lose = func(reply string) bool { return reply == "command.ack" }
		s.connect()
		if len(s.srv.got(id)) == 0 {
			t.Fatal("no result")
		}
		s.srv.commands = append(s.srv.commands, &transport.Command{ID: id, Kind: "unknown.kind", Body: transport.Raw{0xa0}}) // it was not committed there
		s.srv.lose, s.srv.states = nil, nil
		clear(s.srv.claims)
		s.stop()
		path := filepath.Join(s.dir, storeFile)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		clear(data[:len(data)/2])
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s.start()
		k := s.a.Status().Keys
		if !k.Open || k.Incarnation != 1 || k.Fallback == nil || k.Fallback.Kept == "" || k.Fallback.Way != store.WayCopy || k.Next == "" {
			t.Fatalf("%+v", k)
		}
		if !k.Recoverable {
			t.Error("the recovery wrap is not in the second copy")
		}
		before := len(s.srv.got(id))
		s.connect()
		got := s.srv.got(id)
		if len(got) <= before || slices.ContainsFunc(got, func(r transport.CommandResult) bool { return r.State != got[0].State }) {
			t.Errorf("results %v, %d before", got, before)
		}
		st := s.srv.states[0]
		if st.Incarnation != 1 || st.Report == nil || !slices.Equal(st.Report.Holds, []transport.Name{"cr-1"}) {
			t.Errorf("told %+v", st)
		}
		if _, ok := s.srv.claims["cr-1"]; !ok {
			t.Errorf("claims %v", s.srv.claims)
		}
		if got := s.holds(); !slices.Equal(got, []transport.Name{"cr-1"}) {
			t.Errorf("holds %v", got)
		}
		s.again()
		s.connect()
		if k := s.a.Status().Keys; k.Fallback != nil || k.Incarnation != 1 {
			t.Errorf("after it was reconciled: %+v", k)
		}
		if n := len(s.srv.states); s.srv.states[n-1].Report != nil {
			t.Error("reported once more")
		}
	})
}
