package stories

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// A network is one switch; every machine on it is a network namespace of its
// own with one address. It is made of namespaces only, nothing leaves the host.
type network struct {
	t      *testing.T
	prefix string // of the names of the namespaces
	hosts  int
	cables int
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	n := &network{t: t, prefix: fmt.Sprintf("kg%d", os.Getpid())}
	if out, err := exec.Command("ip", "netns", "add", n.prefix+"sw").CombinedOutput(); err != nil {
		t.Skipf("network namespaces cannot be made here: %v: %s", err, out)
	}
	t.Cleanup(func() { exec.Command("ip", "netns", "del", n.prefix+"sw").Run() })
	n.ip("-n", n.prefix+"sw", "link", "add", "br0", "type", "bridge")
	n.ip("-n", n.prefix+"sw", "link", "set", "br0", "up")
	return n
}

func (n *network) ip(args ...string) {
	n.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		n.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// join puts the machine into a namespace of its own on the network.
func (n *network) join(m *machine) {
	n.t.Helper()
	n.hosts++
	m.ns = fmt.Sprintf("%sh%d", n.prefix, n.hosts)
	m.host = fmt.Sprintf("10.77.0.%d", n.hosts)
	n.ip("netns", "add", m.ns)
	n.t.Cleanup(func() { exec.Command("ip", "netns", "del", m.ns).Run() })
	n.ip("-n", n.prefix+"sw", "link", "add", n.plug(m), "type", "veth", "peer", "name", "eth0", "netns", m.ns)
	n.ip("-n", n.prefix+"sw", "link", "set", n.plug(m), "master", "br0", "up")
	n.ip("-n", m.ns, "addr", "add", m.host+"/24", "dev", "eth0")
	n.ip("-n", m.ns, "link", "set", "eth0", "up")
	n.ip("-n", m.ns, "link", "set", "lo", "up")
}

func (n *network) plug(m *machine) string { return "p" + strings.TrimPrefix(m.ns, n.prefix) }

// cut pulls the machine's cable.
func (n *network) cut(m *machine) { n.ip("-n", n.prefix+"sw", "link", "set", n.plug(m), "down") }

// mend plugs it in again.
func (n *network) mend(m *machine) { n.ip("-n", n.prefix+"sw", "link", "set", n.plug(m), "up") }
