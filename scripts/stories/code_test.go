package stories

import (
	"slices"
	"strings"
	"testing"
)

// codes are the epochs of the security codes that a terminal accepts.
func (m *terminal) codes() []uint32 {
	m.t.Helper()
	var s struct {
		Epochs []uint32 `json:"security_code_epochs"`
	}
	m.query(&s, "kagimori", "status")
	return s.Epochs
}

func (m *terminal) untilCodes(want ...uint32) {
	m.t.Helper()
	m.until("it accepts the codes that are in force", func() bool { return slices.Equal(m.codes(), want) })
}

// fetches copies the keys of old to m.
func (m *terminal) fetches(old *terminal, id string) {
	m.t.Helper()
	o := old.offer(old.socket("kagimori"))
	if out := m.verb(o.code+"\n", "kagimori", "keycopy", "fetch", old.copy, "--json"); !strings.Contains(out, id) {
		m.t.Errorf("fetch does not name the credential:\n%s", out)
	}
	<-o.done
}

// The security code of a group is replaced while its terminals work: boxes
// provisioned before and after take over, until the old code is retired.
//
// req: C1, C9, L8
func TestSecurityCodeIsReplaced(t *testing.T) {
	d := newDeployment(t, nil)
	admin := func(args ...string) string { return d.server.verb("", "kagimori-server", args...) }
	old, away := d.terminal("nav-001", chip(t)), d.terminal("nav-002", sealedFile)
	old.named()
	away.named()
	away.daemon.kill()
	id := old.issue()
	early, late := d.terminal("box-1", sealedFile), d.terminal("box-2", chip(t))
	early.spare()

	if out := admin("group", "rotate", "default"); !strings.Contains(out, "epoch 2 of group default is in force; 2 terminals are told") {
		t.Errorf("%s", out)
	}
	late.spare()
	old.untilCodes(2, 1)
	if got := [][]uint32{early.codes(), late.codes()}; !slices.Equal(got[0], []uint32{1}) || !slices.Equal(got[1], []uint32{2}) {
		t.Errorf("the boxes accept %v", got)
	}
	early.fetches(old, id)
	late.fetches(old, id)

	// The one that is away has no other code yet: retiring waits, or is forced.
	if out := admin("group", "show", "default"); !strings.Contains(out, "nav-002") || strings.Contains(out, "nav-001") {
		t.Errorf("who lacks the new code:\n%s", out)
	}
	d.server.refused(6, "1 of 2 terminals of group default have no other security code yet: nav-002", "", "kagimori-server", "group", "retire", "default", "--epoch", "1")
	away.daemon = away.start("kagimori", away.config)
	away.untilCodes(2, 1)
	d.server.until("everybody has the new code", func() bool {
		return strings.Contains(admin("group", "show", "default", "--json"), `"lacking": 0`)
	})
	if out := admin("group", "retire", "default", "--epoch", "1"); !strings.Contains(out, "boxes on the shelf from the 1 spare bundle") {
		t.Errorf("%s", out)
	}
	old.untilCodes(2)
	away.untilCodes(2)
	d.server.refused(6, "the only security code", "", "kagimori-server", "group", "retire", "default", "--epoch", "2")

	// A box with the retired code alone is turned away; a new bundle mends it.
	o := old.offer(old.socket("kagimori"))
	early.refused(4, "no security code in common", o.code+"\n", "kagimori", "keycopy", "fetch", old.copy)
	old.verb("", "kagimori", "keycopy", "disarm")
	<-o.done
	d.bundle("again", "spare", "add")
	d.provision(early.machine, "kagimori", "again")
	if got := early.codes(); !slices.Equal(got, []uint32{2, 1}) {
		t.Errorf("the box accepts %v", got)
	}
	early.fetches(old, id)

	// What was replaced survives a power cut.
	old.daemon.kill()
	old.daemon = old.start("kagimori", old.config)
	old.untilCodes(2)
	early.fetches(old, id)
}
