package stories

import (
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/hsm/open"
)

// issueInChip gives the terminal a credential for maps whose key is made in its
// chip, and may move.
func (m *terminal) issueInChip() (id string) {
	m.t.Helper()
	out := m.d.server.verb("", "kagimori-server", "credential", "issue", m.name, "--service", "maps", "--chip-only", "--transfer", "move", "--wait", "--json")
	for line := range strings.Lines(out) {
		var p struct{ Credential string }
		if json.Unmarshal([]byte(line), &p) == nil && p.Credential != "" {
			id = p.Credential
		}
	}
	if id == "" {
		m.t.Fatalf("no credential id in %s", out)
	}
	return id
}

// A key that lives in a chip goes to the chip of the terminal that replaces its
// own, once the fleet has approved that chip, and reaches the service from
// there. A terminal whose chip is not approved gets the rest, and is told what to
// do. Logins go along.
//
// req: C8, L2, L9
func TestChipKeyGoesFromChipToChip(t *testing.T) {
	chip, roots := hsmtest.NewMadeTPM(t)
	d := newDeployment(t, nil)
	d.believes(roots)
	old := d.terminal("nav-001", open.Config{Kind: open.KindTPM, Path: chip.Socket})
	d.bundle("nav-001", "terminal", "add", "nav-001", "--attest")
	d.provision(old.machine, "kagimori", "nav-001")
	old.connected()
	fresh := d.terminal("nav-002", open.Config{Kind: open.KindTPM, Path: hsmtest.StartTPM(t)})
	d.bundle("spare", "spare", "add")
	d.provision(fresh.machine, "kagimori", "spare")

	old.until("its chip, proven at enrollment, is approved", func() bool {
		return strings.Contains(old.verb("", "kagimori", "chip", "show"), "approved: keys")
	})
	if out := d.server.verb("", "kagimori-server", "chip", "list"); !strings.Contains(out, "proven") {
		t.Errorf("%s", out)
	}
	id := old.issueInChip()
	old.until("the key works in the chip", func() bool { return strings.Contains(old.curl("/a"), id) })
	if out := old.verb("", "kagimori", "credential", "list"); !strings.Contains(out, "certificate, in chip") {
		t.Errorf("%s", out)
	}
	out := old.verb("open sesame\n", "kagimori", "credential", "import", "--kind", "login", "--login", "truck-7", "--service", "portal", "--subject", "truck-7", "--json")
	var login struct{ ID string }
	if err := json.Unmarshal([]byte(out), &login); err != nil || login.ID == "" || strings.Contains(out, "sesame") {
		t.Fatalf("%s: %v", out, err)
	}

	// A chip that nobody vouches for: the login goes, the chip's key does not.
	o := old.offer(old.socket("kagimori"))
	got := fresh.ask(o.code+"\n", "kagimori", "keycopy", "fetch", old.copy)
	<-o.done
	if out = got.out + got.err; got.code != 0 || !strings.Contains(out, "only from chip to chip") || !strings.Contains(out, "kagimori-server credential issue") || strings.Contains(out, "sesame") {
		t.Errorf("%s", out)
	}
	if list := fresh.verb("", "kagimori", "credential", "list"); !strings.Contains(list, login.ID) || strings.Contains(list, id) {
		t.Errorf("%s", list)
	}

	// The production line: out of the box, to the server, back again.
	request, approval := fresh.path("nav-002.chip"), fresh.path("nav-002.approval")
	fresh.verb("", "kagimori", "chip", "show", "--out", request)
	d.server.verb("", "kagimori-server", "chip", "approve", request, "--out", approval)
	old.refused(4, "this one is", "", "kagimori", "chip", "install", approval)
	if out := fresh.verb("", "kagimori", "chip", "install", approval); !strings.Contains(out, "approved: keys") {
		t.Errorf("%s", out)
	}
	d.serverRun.kill() // the copy needs no server

	old.moves(id, fresh)
	var c struct {
		InChip bool `json:"in_chip"`
		Origin string
	}
	fresh.query(&c, "kagimori", "credential", "show", id)
	if !c.InChip || c.Origin != "move" {
		t.Errorf("%+v", c)
	}
	if list := old.verb("", "kagimori", "credential", "list"); strings.Contains(list, id) {
		t.Errorf("the old terminal still has it:\n%s", list)
	}

	// The spare gets its name; the server learns who has what.
	d.serve()
	d.bundle("nav-002", "terminal", "add", "nav-002")
	d.provision(fresh.machine, "kagimori", "nav-002")
	fresh.connected()
	d.server.until("the server knows the new holder", func() bool { return slices.Equal(d.holders(id), []string{"nav-002"}) })
}

// Keys and passwords come in through standard input and are nowhere to be seen.
func TestImportedCredentials(t *testing.T) {
	d := newDeployment(t, nil)
	m := d.terminal("nav-001", sealedFile)
	d.bundle("spare", "spare", "add")
	d.provision(m.machine, "kagimori", "spare")
	pem, err := exec.Command("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256").Output()
	if err != nil {
		t.Fatalf("openssl: %v: run scripts/setup.sh", err)
	}
	common := []string{"credential", "import", "--service", "maps", "--subject", "truck-7"}
	with := func(more ...string) []string { return append(slices.Clone(common), more...) }
	const key = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	m.verb(key+"\n", "kagimori", with("--kind", "symmetric", "--encoding", "hex")...)
	m.verb("ABEiM0RVZneImaq7zN3u/w==\n", "kagimori", with("--kind", "encryption", "--expires", time.Now().AddDate(1, 0, 0).Format(time.DateOnly))...)
	m.verb(string(pem), "kagimori", with("--kind", "key-pair", "--transfer", "never")...)
	out := m.verb("", "kagimori", "credential", "list")
	for _, has := range []string{"symmetric", "encryption", "key-pair", "in force"} {
		if !strings.Contains(out, has) {
			t.Errorf("no %s in\n%s", has, out)
		}
	}
	m.refused(2, "--login", "x\n", "kagimori", with("--kind", "login")...)
	m.refused(2, "--kind", "x\n", "kagimori", common...)
	for _, bad := range []struct {
		words, stdin string
		args         []string
	}{
		{"not in base64", key[:20] + "!\n", with("--kind", "symmetric")}, {"16 bytes", key[:32] + "\n", with("--kind", "symmetric", "--encoding", "hex")},
		{"certificates are issued", key + "\n", with("--kind", "certificate", "--encoding", "hex")}, {"PKCS#8", "x\n", with("--kind", "key-pair")},
		{"expired", key + "\n", with("--kind", "symmetric", "--encoding", "hex", "--expires", "2001-01-01")},
	} {
		r := m.ask(bad.stdin, "kagimori", bad.args...)
		if text := r.out + r.err; r.code == 0 || !strings.Contains(text, bad.words) || strings.Contains(text, key[:16]) {
			t.Errorf("%q: %d\n%s", bad.args, r.code, text)
		}
	}
	if r := m.ask("", "kagimori", "credential", "export"); r.code == 0 {
		t.Error("there is an export")
	}
}
