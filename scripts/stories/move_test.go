package stories

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// issueMove gives the terminal a credential for maps that may move only.
func (m *terminal) issueMove() string {
	m.t.Helper()
	out := m.d.server.verb("", "kagimori-server", "credential", "issue", m.name, "--service", "maps", "--transfer", "move", "--wait", "--json")
	id := regexp.MustCompile(`cr-[a-z0-9]+`).FindString(out)
	if id == "" {
		m.t.Fatalf("no credential id in %s", out)
	}
	return id
}

// moves has a credential go over to another terminal: that one reaches the service
// with it, and this one does not any more.
func (m *terminal) moves(id string, to *terminal) {
	m.t.Helper()
	o := m.offer(m.socket("kagimori"))
	to.verb(o.code+"\n", "kagimori", "keycopy", "fetch", m.copy)
	<-o.done
	if got := to.curl("/b"); !strings.HasPrefix(got, "map tile /b for "+m.name+" (credential "+id+")") {
		m.t.Errorf("the new terminal after the move: %s", got)
	}
	if got := m.curl("/c"); strings.Contains(got, "map tile") {
		m.t.Errorf("the old terminal after the move: %s", got)
	}
}

// record is a credential as the server shows it.
type record struct {
	InForce  bool   `json:"in_force"`
	Conflict string `json:"conflict"`
	Holders  []struct {
		Terminal string    `json:"terminal"`
		State    string    `json:"state"`
		Origin   string    `json:"origin"`
		Since    time.Time `json:"since"`
		Until    time.Time `json:"until"`
		Txn      string    `json:"txn"`
		Taken    string    `json:"taken"`
	} `json:"holders"`
}

func (d *deployment) record(id string) (c record) {
	d.t.Helper()
	d.server.query(&c, "kagimori-server", "credential", "show", id)
	return c
}

// keycopies are the key copies as the server lists them.
type keycopies struct {
	Keycopies []struct {
		Txn     string `json:"txn"`
		Status  string `json:"status"`
		Receipt string `json:"receipt"`
		Settled string `json:"settled"`
		Refused string `json:"refused"`
		Source  struct{ Terminal, Phase string }
		Target  struct {
			Terminal, Phase string
			Forced          bool
		}
	} `json:"keycopies"`
}

func (d *deployment) keycopies(args ...string) (k keycopies) {
	d.t.Helper()
	d.server.query(&k, "kagimori-server", append([]string{"keycopy", "list"}, args...)...)
	return k
}

// A terminal is replaced by another one while the server is out of reach: its
// key moves. Both tell of it when the server is back; then the inventory has the
// change with its dates, and the box that gave the key up reaches nothing.
//
// req: C8, L1
func TestMoveWithoutTheServerIsInTheInventory(t *testing.T) {
	d := newDeployment(t, nil)
	old, fresh := d.terminal("nav-001", chip(t)), d.terminal("nav-002", sealedFile)
	old.named()
	fresh.named()
	id := old.issueMove()
	old.until("the key works", func() bool { return strings.Contains(old.curl("/a"), id) })
	before := time.Now().Truncate(time.Second) // terminals tell times in seconds
	d.serverRun.kill()

	old.moves(id, fresh)

	d.serve()
	d.server.until("both ends have reported the move", func() bool {
		k := d.keycopies("--terminal", "nav-002").Keycopies
		return len(k) == 1 && k[0].Status == "consistent" && slices.Equal(d.holders(id), []string{"nav-002"})
	})
	k := d.keycopies().Keycopies[0]
	if k.Source.Terminal != "nav-001" || k.Source.Phase != "done" || k.Target.Terminal != "nav-002" || k.Target.Phase != "closed" || k.Receipt != "good" {
		t.Errorf("%+v", k)
	}
	c := d.record(id)
	if len(c.Holders) != 2 || !c.InForce || c.Conflict != "" {
		t.Fatalf("%+v", c)
	}
	a, b, after := c.Holders[0], c.Holders[1], time.Now()
	if a.Terminal != "nav-001" || a.Origin != "issue" || a.State != "ended" || a.Taken != k.Txn || a.Until.Before(before) || a.Until.After(after) {
		t.Errorf("%+v", a)
	}
	if b.Terminal != "nav-002" || b.Origin != "move" || b.State != "active" || b.Txn != k.Txn || b.Since.Before(before) || b.Since.After(after) {
		t.Errorf("%+v", b)
	}
	if out := d.server.verb("", "kagimori-server", "credential", "show", id); !strings.Contains(out, k.Txn) || !strings.Contains(out, "UNTIL") {
		t.Errorf("credential show:\n%s", out)
	}
	if out := d.server.verb("", "kagimori-server", "keycopy", "show", k.Txn[:8]); !strings.Contains(out, id) || !strings.Contains(out, "signed by nav-002") {
		t.Errorf("keycopy show:\n%s", out)
	}
	if out := d.server.verb("", "kagimori-server", "keycopy", "list", "--contradictions"); !strings.Contains(out, "none match") {
		t.Errorf("keycopy list --contradictions:\n%s", out)
	}
	for range 2 { // and it stays so
		if got := old.curl("/d"); strings.Contains(got, "map tile") {
			t.Errorf("the old terminal, the server being back: %s", got)
		}
	}
	if got := fresh.curl("/e"); !strings.Contains(got, id) {
		t.Errorf("the new terminal, the server being back: %s", got)
	}

	// The rule is changed: its holder goes by it.
	d.server.verb("", "kagimori-server", "credential", "set", id, "--transfer", "never")
	fresh.until("the new rule is there", func() bool {
		return strings.Contains(fresh.verb("", "kagimori", "credential", "show", id, "--json"), `"transfer": "never"`)
	})
}

// A severed line passes a key copy on until the Source has committed, and then
// nothing any more: what the Source sends is held back until it is known that it
// has not.
type severed struct {
	l  net.Listener
	wg sync.WaitGroup
}

func sever(t *testing.T, to string, committed func() bool) *severed {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &severed{l: l}
	t.Cleanup(func() { l.Close(); s.wg.Wait() })
	s.wg.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() { s.pass(from, to, committed) })
		}
	})
	return s
}

func (s *severed) pass(target net.Conn, to string, committed func() bool) {
	defer target.Close()
	source, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer source.Close()
	s.wg.Go(func() { io.Copy(source, target) })
	buffer := make([]byte, 64<<10)
	for {
		n, err := source.Read(buffer)
		if err != nil {
			return
		}
		if committed() {
			s.l.Close()
			return
		}
		if _, err := target.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// phase is that of the only key copy a terminal has on record, "" if there is none.
func (m *terminal) phase() (txn, phase string) {
	out, _ := m.command("kagimori", "--socket", m.socket("kagimori"), "keycopy", "list", "--json").Output()
	var list struct {
		Copies []struct{ Txn, Phase string } `json:"copies"`
	}
	if json.Unmarshal(out, &list) != nil || len(list.Copies) == 0 {
		return "", ""
	}
	return list.Copies[0].Txn, list.Copies[0].Phase
}

// lose fetches over a line that is severed once the Source has committed, and
// lets go. It gives the id of the copy.
func (m *terminal) lose(old *terminal, code, address string) (txn string) {
	m.t.Helper()
	fetch := m.command("kagimori", "--socket", m.socket("kagimori"), "keycopy", "fetch", address)
	fetch.Stdin = strings.NewReader(code + "\n")
	if err := fetch.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.until("the new terminal has staged what the old one has committed", func() bool {
		_, committed := old.phase()
		var staged string
		txn, staged = m.phase()
		return committed == "committed" && staged == "staged"
	})
	fetch.Process.Kill()
	fetch.Wait() // it was killed
	return txn
}

// Two ends lose each other between COMMITTED and ACTIVE. The one that asks the
// server first may go on alone, and the other one may not.
//
// req: C8
func TestTheServerLetsOneEndGoOnAlone(t *testing.T) {
	for _, winner := range []string{"old", "new"} {
		t.Run(winner, func(t *testing.T) {
			d := newDeployment(t, nil)
			old, fresh := d.terminal("nav-001", sealedFile), d.terminal("nav-002", sealedFile)
			old.named()
			fresh.named()
			id := old.issueMove()
			o := old.offer(old.socket("kagimori"))
			line := sever(t, old.copy, func() bool { _, p := old.phase(); return p == "committed" })
			txn := fresh.lose(old, o.code, line.l.Addr().String())
			for _, m := range []*terminal{old, fresh} {
				if got := m.curl("/a"); strings.Contains(got, "map tile") {
					t.Errorf("%s uses what is moving: %s", m.name, got)
				}
			}
			d.server.until("the credential is in transit", func() bool {
				c := d.record(id)
				return len(c.Holders) == 1 && c.Holders[0].State == "transit" && c.InForce
			})

			first, second, verbs := old, fresh, []string{"reclaim", "activate"}
			if winner == "new" {
				first, second, verbs = fresh, old, []string{"activate", "reclaim"}
			}
			first.verb("", "kagimori", "keycopy", verbs[0], txn, "--yes")
			for range 2 {
				second.refused(4, first.name, "", "kagimori", "keycopy", verbs[1], txn, "--yes")
			}
			first.until("the key works", func() bool { return strings.Contains(first.curl("/b"), id) })
			if got := second.curl("/c"); strings.Contains(got, "map tile") {
				t.Errorf("%s may not go on, and does: %s", second.name, got)
			}
			side := map[string]string{"old": "source", "new": "target"}[winner]
			d.server.until("the server knows who has it", func() bool {
				k := d.keycopies().Keycopies
				return len(k) == 1 && k[0].Settled == side && k[0].Refused != "" && slices.Equal(d.holders(id), []string{first.name})
			})
			if c := d.record(id); c.Conflict != "" {
				t.Errorf("%+v", c)
			}
			if out := d.server.verb("", "kagimori-server", "keycopy", "show", txn); !strings.Contains(out, fmt.Sprintf("%s was let to", first.name)) {
				t.Errorf("keycopy show:\n%s", out)
			}
		})
	}
}
