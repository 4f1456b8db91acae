package stories

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/hsm/hsmtest"
	"github.com/kagimori/kagimori/transport"
)

func itoa(n int) string { return strconv.Itoa(n) }

// The three units as they ship, under a real systemd, installed by the commands
// of docs/install.md. The agent's keys are in a chip, the gate's under a secret
// that systemd decrypts for it, the server's in the embedded default.
//
// req: L15
func TestUnitsUnderSystemd(t *testing.T) {
	chip := hsmtest.StartTPM(t)
	for _, path := range []string{filepath.Dir(chip), chip} { // the daemon has a user of its own
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	units, err := filepath.Abs("../../systemd/units")
	if err != nil {
		t.Fatal(err)
	}
	h := &house{container: newContainer(t, "--bind-ro="+bin+":/opt/bin", "--bind-ro="+units+":/opt/units", "--bind="+filepath.Dir(chip)+":/opt/chip"),
		chip: "/opt/chip/" + filepath.Base(chip)}
	defer func() { h.t = t }()
	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"install", h.install}, {"server", h.server}, {"gate with a credential of systemd", h.gate}, {"agent with a chip", h.agent},
		{"files and sandbox", h.sandbox}, {"doctor", h.doctor}, {"people at the socket", h.people}, {"watchdog", h.watchdog},
		{"a wrong configuration is not tried again", h.wrong}, {"agent with a credential of systemd", h.credential},
		{"no secret in the journal", h.journal},
	} {
		if !t.Run(step.name, step.run) {
			h.t = t
			t.Log(h.run("", "journalctl", "--no-pager", "--unit=kagimori*", "--lines=100").out)
			break
		}
	}
}

// A house is a container with all three programs.
type house struct {
	*container
	chip    string
	id      string // of the terminal's credential
	needles []needle
}

func (h *house) install(t *testing.T) {
	h.t = t
	h.sh(`
for p in kagimori kagimori-gate kagimori-server; do
	install -m 755 /opt/bin/$p /usr/bin/
	install -m 644 /opt/units/$p.service /etc/systemd/system/
	install -m 644 /opt/units/$p.sysusers /usr/lib/sysusers.d/$p.conf
done
systemd-sysusers
systemctl daemon-reload
systemd-run --quiet --unit=maps /opt/bin/upstream 127.0.0.1:8080`)
	if got := h.sh("id -nG kagimori"); !strings.Contains(got, "tss") {
		t.Errorf("groups of kagimori: %s", got)
	}
}

// started starts a unit, which succeeds once its daemon has said that it is ready.
func (h *house) started(unit, status string) {
	h.t.Helper()
	h.must("", "systemctl", "restart", unit)
	u := h.unit(unit)
	if u["ActiveState"] != "active" || u["SubState"] != "running" || u["Type"] != "notify" || !strings.Contains(u["StatusText"], status) {
		h.t.Errorf("%s: %s, %s, type %s, status %q (want %q)", unit, u["ActiveState"], u["SubState"], u["Type"], u["StatusText"], status)
	}
}

func (h *house) server(t *testing.T) {
	h.t = t
	h.sh(`
install -d -m 700 -o kagimori-server -g kagimori-server /var/lib/kagimori-server
kagimori-server init --deployment demo --address 127.0.0.1:8883`)
	h.started("kagimori-server", "demo")
}

// bundle has the server make a bundle, takes it in, and remembers its secrets.
func (h *house) bundle(program string, verb ...string) {
	h.t.Helper()
	var b made
	h.query(&b, append(append([]string{"kagimori-server"}, verb...), "--out", "/root/"+program+".bundle", "--json")...)
	inside, err := transport.OpenBundle([]byte(h.must("", "cat", b.Bundle)), transport.Sensitive(b.Passphrase))
	if err != nil {
		h.t.Fatal(err)
	}
	h.needles = append(h.needles, newNeedle("a passphrase", []byte(b.Passphrase)), newNeedle("a common key", inside.CommonKey), newNeedle("the security code", inside.SecurityCode))
	h.must(b.Passphrase+"\n", program, "provision", b.Bundle)
	h.sh("rm " + b.Bundle)
}

// secret gives a unit a device secret that only systemd can decrypt.
func (h *house) secret(program, config string) {
	h.t.Helper()
	h.sh(`
mkdir -p -m 700 /etc/credstore.encrypted
head -c 32 /dev/urandom | systemd-creds encrypt --with-key=host --name=kagimori-device - /etc/credstore.encrypted/kagimori-device
mkdir -p /etc/systemd/system/` + program + `.service.d /etc/` + program + `
cp /opt/units/hsm-credential.conf /etc/systemd/system/` + program + `.service.d/
printf '[hsm]\npath = "credential:kagimori-device"\n' >>/etc/` + program + "/" + config + `
systemctl daemon-reload`)
}

func (h *house) gate(t *testing.T) {
	h.t = t
	h.secret("kagimori-gate", "gate.toml")
	h.started("kagimori-gate", "")
	h.bundle("kagimori-gate", "gate", "add", "maps", "--dns", "maps.test", "--endpoint", "127.0.0.1:8443")
	h.until("the gate serves", func() bool {
		var s struct{ Gate doorStatus }
		h.query(&s, "kagimori-gate", "status", "--json")
		return s.Gate.Open
	})
}

func (h *house) agent(t *testing.T) {
	h.t = t
	h.sh(`
install -d -m 755 /etc/kagimori
useradd --no-create-home --groups kagimori tech
useradd --no-create-home --groups kagimori clerk
useradd --no-create-home stranger
cat >/etc/kagimori/agent.toml <<END
[hsm]
kind = "tpm"
path = "` + h.chip + `"
[control]
operators = ["tech"]
[[relay]]
service = "maps"
listen = "unix:/run/kagimori/maps.sock"
END`)
	h.started("kagimori", "")
	h.bundle("kagimori", "terminal", "add", "nav-001")
	h.connected()
	h.id = regexp.MustCompile(`cr-[a-z0-9]+`).FindString(h.must("", "kagimori-server", "credential", "issue", "nav-001", "--service", "maps", "--wait", "--json"))
	h.works()
	if got := h.must("", "kagimori", "status", "--json"); !strings.Contains(got, `"level": "tpm-socket"`) {
		t.Errorf("not on the chip: %s", got)
	}
}

func (h *house) connected() {
	h.t.Helper()
	h.until("the terminal is connected", func() bool {
		return strings.Contains(h.run("", "kagimori", "status", "--json").out, `"state": "connected"`)
	})
}

// works asks the service through the relay, as a program in the agent's group does.
func (h *house) works() {
	h.t.Helper()
	var got string
	h.until("the credential works", func() bool {
		got = h.run("", "runuser", "-u", "tech", "--", "curl", "-sS", "--unix-socket", "/run/kagimori/maps.sock", "http://maps/a").out
		return strings.HasPrefix(got, "map tile /a for nav-001 (credential "+h.id+")")
	})
}

// The state is the daemon's alone, and the daemon can do nothing else.
func (h *house) sandbox(t *testing.T) {
	h.t = t
	for _, p := range []string{"kagimori", "kagimori-gate", "kagimori-server"} {
		want := "/var/lib/" + p + " 700 " + p + ":" + p + "\n/run/" + p + " 755 " + p + ":" + p + "\n/run/" + p + "/control.sock 660 " + p + ":" + p + "\n"
		if got := h.sh("stat -c '%n %a %U:%G' /var/lib/" + p + " /run/" + p + " /run/" + p + "/control.sock"); got != want {
			t.Errorf("modes:\n%swant:\n%s", got, want)
		}
		if got := h.sh("find /var/lib/" + p + " -type f ! -perm 600"); got != "" {
			t.Errorf("files that others may read: %s", got)
		}
		pid := h.unit(p)["MainPID"]
		status := h.sh("cat /proc/" + pid + "/status")
		for _, want := range []string{"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "Uid:\t" + strings.TrimSpace(h.sh("id -u "+p)) + "\t"} {
			if !strings.Contains(status, want) {
				t.Errorf("%s: /proc/PID/status does not say %q:\n%s", p, want, status)
			}
		}
		// What the daemon sees of the machine, through its own mounts.
		inside := func(script string) result {
			return h.run("", "nsenter", "--mount", "--target", pid, "--", "sh", "-c", script)
		}
		if r := inside("touch /usr/x /etc/x /var/x"); strings.Count(r.err, "Read-only file system") != 3 {
			t.Errorf("%s may write: %s", p, r.err)
		}
		if r := inside("touch /var/lib/" + p + "/x && rm /var/lib/" + p + "/x"); r.code != 0 {
			t.Errorf("%s may not write its state: %s", p, r.err)
		}
		if r := inside("ls /home /root /tmp"); strings.Contains(r.out, "bundle") || r.code == 0 && strings.Contains(r.out, "systemd-private") {
			t.Errorf("%s sees other people's files: %s", p, r.out)
		}
	}
}

// req: C3
func (h *house) people(t *testing.T) {
	h.t = t
	as := func(user string, argv ...string) result {
		return h.run("", append([]string{"runuser", "-u", user, "--", "kagimori"}, argv...)...)
	}
	for _, user := range []string{"tech", "clerk"} {
		if r := as(user, "status"); r.code != 0 {
			t.Errorf("%s may not read: %s", user, r.err)
		}
		if r := as(user, "provision", "/etc/hostname"); r.code == 0 || !strings.Contains(r.err, "next: ") {
			t.Errorf("%s provisions: %s%s", user, r.out, r.err)
		}
	}
	if r := as("stranger", "status"); r.code == 0 || !strings.Contains(r.err, "next: ") {
		t.Errorf("a stranger reads: %s%s", r.out, r.err)
	}
	if r := as("clerk", "keycopy", "offer"); r.code == 0 || !strings.Contains(r.err, "operators") {
		t.Errorf("a clerk offers keys: %s%s", r.out, r.err)
	}
	// The offer stands until the operator goes.
	r := h.run("", "timeout", "--signal=INT", "1", "runuser", "-u", "tech", "--", "kagimori", "keycopy", "offer")
	code := codePattern.FindString(r.out + r.err)
	if code == "" {
		t.Fatalf("the operator gets no code: %s%s", r.out, r.err)
	}
	h.needles = append(h.needles, newCodeNeedle("an operator code", code))
}

// A daemon that hangs is killed and started again, and holds what it held.
func (h *house) watchdog(t *testing.T) {
	h.t = t
	h.sh(`
for p in kagimori kagimori-gate kagimori-server; do
	mkdir -p /run/systemd/system/$p.service.d
	printf '[Service]\nWatchdogSec=1\nRestartSec=100ms\n' >/run/systemd/system/$p.service.d/hurry.conf
done
systemctl daemon-reload
systemctl restart kagimori-server kagimori-gate kagimori`)
	h.connected()
	for _, p := range []string{"kagimori-server", "kagimori-gate", "kagimori"} {
		before := h.unit(p)
		h.sh("kill -STOP " + before["MainPID"])
		h.until(p+" is started again", func() bool {
			u := h.unit(p)
			return u["NRestarts"] == "1" && u["SubState"] == "running" && u["MainPID"] != before["MainPID"]
		})
		if log := h.must("", "journalctl", "--no-pager", "--unit="+p); !strings.Contains(log, "Watchdog timeout") {
			t.Errorf("%s was not restarted by the watchdog", p)
		}
	}
	h.connected()
	h.works()
	h.sh("rm /run/systemd/system/*.d/hurry.conf; systemctl daemon-reload")
}

func (h *house) wrong(t *testing.T) {
	h.t = t
	h.sh("cp /etc/kagimori/agent.toml /root/; echo 'colour = \"red\"' >>/etc/kagimori/agent.toml")
	if r := h.run("", "systemctl", "restart", "kagimori"); r.code == 0 {
		t.Error("an unknown key was taken")
	}
	if u := h.unit("kagimori"); u["ActiveState"] != "failed" || u["ExecMainStatus"] != "9" || u["NRestarts"] != "0" {
		t.Errorf("%s, exit %s, %s restarts", u["ActiveState"], u["ExecMainStatus"], u["NRestarts"])
	}
	if log := h.must("", "journalctl", "--no-pager", "--unit=kagimori", "--lines=20"); !strings.Contains(log, "colour") || !strings.Contains(log, "next: ") {
		t.Errorf("the journal does not name the key: %s", log)
	}
	h.sh("mv /root/agent.toml /etc/kagimori/; systemctl reset-failed kagimori; systemctl start kagimori")
	h.works()
}

// A terminal without a chip, whose device secret is on no disk in clear.
func (h *house) credential(t *testing.T) {
	h.t = t
	h.sh("systemctl stop kagimori; test ! -e /run/kagimori; rm -r /var/lib/kagimori /etc/kagimori/agent.toml")
	h.secret("kagimori", "agent.toml")
	h.started("kagimori", "")
	if got := h.must("", "kagimori", "status", "--json"); !strings.Contains(got, `"level": "file"`) {
		t.Errorf("status: %s", got)
	}
	h.bundle("kagimori", "terminal", "reenroll", "nav-001")
	h.connected()
	if got := h.sh("find /var/lib/kagimori /var/lib/kagimori-gate -name device.secret"); got != "" {
		t.Errorf("a device secret in clear: %s", got)
	}
	h.sh("systemctl restart kagimori")
	h.connected()
	// Without the credential nothing opens, and the daemon says so.
	h.sh("mv /etc/credstore.encrypted/kagimori-device /root/; systemctl stop kagimori")
	if r := h.run("", "systemctl", "start", "kagimori"); r.code == 0 {
		t.Error("started without the credential")
	}
	h.sh("mv /root/kagimori-device /etc/credstore.encrypted/; systemctl reset-failed kagimori; systemctl start kagimori")
	h.connected()
}

func (h *house) journal(t *testing.T) {
	h.t = t
	text := []byte(h.must("", "journalctl", "--no-pager", "--all", "--output=export"))
	if len(text) < 10000 || !strings.Contains(string(text), "msg=connected") {
		t.Fatalf("no journal: %d bytes", len(text))
	}
	for _, n := range h.needles {
		if n.in(text) {
			t.Errorf("%s is in the journal", n.what)
		}
	}
	h.must(string(h.needles[0].forms[0]), "systemd-cat")
	h.until("the search finds what is there", func() bool {
		return h.needles[0].in([]byte(h.must("", "journalctl", "--no-pager", "--all", "--output=export")))
	})
}
