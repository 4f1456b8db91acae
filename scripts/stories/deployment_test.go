package stories

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/hsm/open"
)

// A deployment is a management server, a gate in front of the service "maps",
// and whatever terminals a story adds.
type deployment struct {
	t      *testing.T
	net    *network // nil: everything on the loopback interface
	server *machine
	gate   *machine

	mqtt, http, door string // host:port
	serverRun        *daemon
	gateRun          *daemon
	serverConfig     string
	gateConfig       string
	bundles          map[string]made // by the name a story gave them
}

// newDeployment sets server and gate up and waits until the gate serves. With a
// network each machine gets a namespace of its own.
func newDeployment(t *testing.T, n *network) *deployment {
	t.Helper()
	return deploy(t, n, func(d *deployment) string { return d.mqtt })
}

// deploy is newDeployment with a say in the address that terminals know the
// server by.
func deploy(t *testing.T, n *network, known func(*deployment) string) *deployment {
	t.Helper()
	d := &deployment{t: t, net: n, server: newMachine(t, "server"), gate: newMachine(t, "gate"), bundles: map[string]made{}}
	if n != nil {
		n.join(d.server)
		n.join(d.gate)
	}
	d.mqtt, d.http, d.door = d.address(d.server, 8883), d.address(d.server, 8880), d.address(d.gate, 8443)
	d.serverConfig = d.server.config("kagimori-server", "", fmt.Sprintf("[mqtt]\nlisten = %q\n[http]\nlisten = %q", d.mqtt, d.http))
	d.initialise(known(d))
	d.serve()

	maps := d.address(d.gate, 8080)
	d.upstream(maps)
	d.gateBundle()
	d.gateConfig = d.gate.config("kagimori-gate", "", fmt.Sprintf("[gate]\nlisten = %q\nupstream = %q", d.door, "http://"+loopback(maps)))
	d.gateRun = d.gate.start("kagimori-gate", d.gateConfig)
	d.provision(d.gate, "kagimori-gate", "gate")
	d.gateServes()
	return d
}

func (d *deployment) gateServes() {
	d.t.Helper()
	d.gate.until("the gate serves", func() bool { return d.gateStatus().Open })
}

// gateStatus is what the gate says of itself.
func (d *deployment) gateStatus() doorStatus {
	d.t.Helper()
	var s struct{ Gate doorStatus }
	d.gate.query(&s, "kagimori-gate", "status")
	return s.Gate
}

// doorStatus is what these stories look at of a gate's status.
type doorStatus struct {
	Open     bool
	Problems []struct{ Text, Next string }
}

// freshGate puts a new box in the place of the gate.
func (d *deployment) freshGate() {
	d.t.Helper()
	d.gateRun.stop()
	if err := os.RemoveAll(d.gate.state()); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Mkdir(d.gate.state(), 0o700); err != nil {
		d.t.Fatal(err)
	}
	d.bundle("fresh-gate", "terminal", "reenroll", "gate-maps")
	d.gateRun = d.gate.start("kagimori-gate", d.gateConfig)
	d.provision(d.gate, "kagimori-gate", "fresh-gate")
	d.gateServes()
}

// address is where a machine listens: a port of its own in its namespace, or a
// free one of the loopback interface.
func (d *deployment) address(m *machine, port int) string {
	if d.net == nil {
		port = freePort(d.t)
	}
	return net.JoinHostPort(m.host, strconv.Itoa(port))
}

func loopback(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return net.JoinHostPort("127.0.0.1", port)
}

func (d *deployment) initialise(mqtt string) {
	d.t.Helper()
	r := d.server.run("", "kagimori-server", "init", "--config", d.serverConfig, "--deployment", "demo", "--address", mqtt, "--http", d.http)
	if r.code != 0 {
		d.t.Fatalf("init: exit %d\n%s%s", r.code, r.out, r.err)
	}
}

func (d *deployment) serve() { d.serverRun = d.server.start("kagimori-server", d.serverConfig) }

func (d *deployment) upstream(address string) {
	d.t.Helper()
	u := d.gate.launch("upstream", loopback(address))
	d.t.Cleanup(u.stop)
}

// made is what a verb that makes a bundle answers.
type made struct {
	Bundle     string `json:"bundle"`
	Passphrase string `json:"passphrase"`
}

// bundle has the server make a bundle called name.
func (d *deployment) bundle(name string, verb ...string) made {
	d.t.Helper()
	var b made
	d.server.query(&b, "kagimori-server", append(verb, "--out", d.server.path(name+".bundle"))...)
	if b.Passphrase == "" {
		d.t.Fatalf("%v: no passphrase", verb)
	}
	d.bundles[name] = b
	return b
}

func (d *deployment) gateBundle() {
	d.bundle("gate", "gate", "add", "maps", "--dns", "maps.test", "--endpoint", d.door)
}

// provision takes the bundle of that name in on a machine.
func (d *deployment) provision(m *machine, program, name string) {
	d.t.Helper()
	b := d.bundles[name]
	m.verb(b.Passphrase+"\n", program, "provision", b.Bundle)
}

// A terminal is a machine with an agent and a relay to maps.
type terminal struct {
	*machine
	d      *deployment
	relay  string
	copy   string // where it offers key copies
	hsm    open.Config
	daemon *daemon
	config string
}

// terminal starts an agent on the given key storage.
func (d *deployment) terminal(name string, hsm open.Config) *terminal {
	d.t.Helper()
	return d.terminalOn(newMachine(d.t, name), hsm)
}

// terminalOn starts an agent on a machine that a story has prepared.
func (d *deployment) terminalOn(box *machine, hsm open.Config) *terminal {
	d.t.Helper()
	m := &terminal{machine: box, d: d, hsm: hsm}
	if hsm.Kind == open.KindFile {
		m.hsm.Path, m.hsm.Dir = m.path("device.secret"), m.state()
	}
	if d.net != nil {
		d.net.join(m.machine)
	}
	m.relay, m.copy = loopback(d.address(m.machine, 8080)), d.address(m.machine, 8885)
	m.config = m.machine.config("kagimori", "", fmt.Sprintf("[hsm]\nkind = %q\npath = %q\n[keycopy]\nlisten = %q\n[link]\nmax_backoff = \"1s\"\n[[relay]]\nservice = \"maps\"\nlisten = %q", m.hsm.Kind, m.hsm.Path, m.copy, m.relay))
	m.daemon = m.start("kagimori", m.config)
	return m
}

// named makes the terminal a named one and waits until it is connected.
func (m *terminal) named() {
	m.t.Helper()
	m.d.bundle(m.name, "terminal", "add", m.name)
	m.d.provision(m.machine, "kagimori", m.name)
	m.connected()
}

func (m *terminal) connected() {
	m.t.Helper()
	m.until("connected to the server", func() bool {
		return strings.Contains(m.verb("", "kagimori", "status", "--json"), `"state": "connected"`)
	})
}

// spare makes it a spare one.
func (m *terminal) spare() {
	m.t.Helper()
	m.d.bundle("spare-"+m.name, "spare", "add")
	m.d.provision(m.machine, "kagimori", "spare-"+m.name)
}

// issue gives the terminal a credential for maps and returns its id.
func (m *terminal) issue() string {
	m.t.Helper()
	out := m.d.server.verb("", "kagimori-server", "credential", "issue", m.name, "--service", "maps", "--wait", "--json")
	id := regexp.MustCompile(`cr-[a-z0-9]+`).FindString(out)
	if id == "" {
		m.t.Fatalf("no credential id in %s", out)
	}
	return id
}

// curl asks the service through the terminal's relay.
func (m *terminal) curl(path string) string {
	m.t.Helper()
	argv := []string{"curl", "-sS", "--max-time", "15", "http://" + m.relay + path}
	if m.ns != "" {
		argv = append([]string{"ip", "netns", "exec", m.ns}, argv...)
	}
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%s (%v)", out, err)
	}
	return string(out)
}

// An offer is a key copy that waits, shown to nobody but the story.
type offer struct {
	*daemon
	code string
}

var codePattern = regexp.MustCompile(`\d{3} \d{3} \d{3}`)

func (m *terminal) offer(socket string) *offer {
	m.t.Helper()
	o := &offer{daemon: m.launch("kagimori", "--socket", socket, "keycopy", "offer")}
	m.t.Cleanup(func() { o.cmd.Process.Kill() })
	m.until("an operator code is shown", func() bool {
		o.code = codePattern.FindString(o.log.String())
		return o.code != ""
	})
	return o
}

// holders lists who holds a credential, as the server knows it.
func (d *deployment) holders(id string) (names []string) {
	d.t.Helper()
	var c struct {
		Holders []struct {
			Terminal string `json:"terminal"`
			Active   bool   `json:"active"`
		} `json:"holders"`
	}
	out := d.server.verb("", "kagimori-server", "credential", "show", id, "--json")
	if err := json.Unmarshal([]byte(out), &c); err != nil {
		d.t.Fatalf("%v in %s", err, out)
	}
	for _, h := range c.Holders {
		if h.Active {
			names = append(names, h.Terminal)
		}
	}
	return names
}

// state is where a machine's daemon keeps its state.
func (m *machine) state() string { return filepath.Join(m.dir, "state") }
