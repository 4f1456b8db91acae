package systemd

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// most is the exposure that a unit may have at most, with whatever drop-in.
const most = 1.6

// services and the exposure that each may have as it ships.
var services = []struct {
	name string
	most float64
}{
	{"kagimori", most}, {"kagimori-gate", 1.3}, {"kagimori-server", 1.3},
}

var execLine = regexp.MustCompile(`(?m)^ExecStart=.*$`)

// copyUnit writes a copy that can be verified on a machine without us, with
// more lines at the end of [Service].
func copyUnit(t *testing.T, dir, name, more string) string {
	t.Helper()
	data, err := fs.ReadFile(Units, "units/"+name+".service")
	if err != nil {
		t.Fatal(err)
	}
	text := execLine.ReplaceAllString(string(data), "ExecStart=/bin/true")
	text = strings.Replace(text, "\n[Install]\n", more+"\n[Install]\n", 1)
	path := filepath.Join(dir, name+".service")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// analyze runs systemd-analyze and returns both its outputs.
func analyze(t *testing.T, args ...string) (stdout, stderr string) {
	t.Helper()
	path, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Fatal("systemd-analyze is missing: run scripts/setup.sh")
	}
	var o, e strings.Builder
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = &o, &e
	if err := cmd.Run(); err != nil {
		t.Errorf("systemd-analyze %s: %v\n%s%s", strings.Join(args, " "), err, &o, &e)
	}
	return o.String(), e.String()
}

// TestUnitsVerify: systemd-analyze exits 0 on keys that it does not know, so
// silence counts; the control shows that it would not be silent.
func TestUnitsVerify(t *testing.T) {
	for _, s := range services {
		if _, stderr := analyze(t, "--man=no", "verify", copyUnit(t, t.TempDir(), s.name, "")); stderr != "" {
			t.Errorf("%s: %s", s.name, stderr)
		}
	}
	wrong := copyUnit(t, t.TempDir(), "kagimori", "ProtectKeys=yes\n")
	if _, stderr := analyze(t, "--man=no", "verify", wrong); !strings.Contains(stderr, "ProtectKeys") {
		t.Errorf("an unknown key is not found: %q", stderr)
	}
}

var exposureLine = regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`)

func exposure(t *testing.T, unit string) float64 {
	t.Helper()
	out, _ := analyze(t, "security", "--offline=true", "--no-pager", unit)
	m := exposureLine.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no score in %s", out)
	}
	score, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return score
}

func TestUnitsExposure(t *testing.T) {
	for _, s := range services {
		got := exposure(t, copyUnit(t, t.TempDir(), s.name, ""))
		t.Logf("%s: %.1f", s.name, got)
		if got > s.most {
			t.Errorf("%s: exposure %.1f, at most %.1f", s.name, got, s.most)
		}
	}
	loose := copyUnit(t, t.TempDir(), "kagimori", "NoNewPrivileges=no\nCapabilityBoundingSet=CAP_SYS_ADMIN\nProtectSystem=no\n")
	if got := exposure(t, loose); got <= most {
		t.Errorf("a loosened unit scores %.1f", got)
	}
}

// dropIn is what a drop-in that ships adds to [Service].
func dropIn(t *testing.T, name string) (text, lines string) {
	t.Helper()
	data, err := fs.ReadFile(Units, "units/"+name)
	if err != nil {
		t.Fatal(err)
	}
	_, lines, ok := strings.Cut(string(data), "[Service]\n")
	if !ok {
		t.Fatalf("no [Service] in %s", name)
	}
	return string(data), lines
}

// TestDropIns: with each drop-in, and with all of them, every unit is sound and
// no more exposed than the agent's. The agent's own lets the TPM in already.
func TestDropIns(t *testing.T) {
	_, tpm := dropIn(t, "hsm-tpm.conf")
	_, credential := dropIn(t, "hsm-credential.conf")
	for _, s := range services {
		added := map[string]string{"hsm-credential.conf": credential}
		if s.name != "kagimori" {
			added["hsm-tpm.conf"], added["both"] = tpm, tpm+credential
		}
		for name, lines := range added {
			unit := copyUnit(t, t.TempDir(), s.name, lines)
			if _, stderr := analyze(t, "--man=no", "verify", unit); stderr != "" {
				t.Errorf("%s with %s: %s", s.name, name, stderr)
			}
			if got := exposure(t, unit); got > most {
				t.Errorf("%s with %s: exposure %.1f, at most %.1f", s.name, name, got, most)
			}
		}
	}
}

// TestCredentialDropIn: what the drop-in's comment says to type makes a credential
// that the name belongs to.
func TestCredentialDropIn(t *testing.T) {
	data, _ := dropIn(t, "hsm-credential.conf")
	if os.Getuid() != 0 {
		t.Skip("needs root: systemd-creds reads the key of the host")
	}
	const dir = "/etc/credstore.encrypted"
	_, command, _ := strings.Cut(data, "#   head ")
	command, _, _ = strings.Cut(command, "\n")
	command = "head " + strings.Replace(command, dir, t.TempDir(), 1)
	fields := strings.Fields(command)
	made := fields[len(fields)-1]
	cmd := exec.Command("sh", "-c", command+" && systemd-creds decrypt --name=kagimori-device "+made+" - | wc -c")
	cmd.Env = append(os.Environ(), "SYSTEMD_CREDENTIAL_SECRET="+filepath.Join(t.TempDir(), "host.secret")) // not this machine's
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), "32") {
		t.Errorf("%s: %v\n%s", command, err, out)
	}
}

// TestUnitsAgree: names, paths and exit codes in the units are those of the
// house.
func TestUnitsAgree(t *testing.T) {
	for _, s := range services {
		data, err := fs.ReadFile(Units, "units/"+s.name+".service")
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			"ExecStart=/usr/bin/%s run", "User=%s", "Group=%s", "StateDirectory=%s", "StateDirectoryMode=0700",
			"RuntimeDirectory=%s", "ConfigurationDirectory=%s", "Type=notify", "NotifyAccess=main", "WatchdogSec=30",
			"Restart=on-failure", "RestartPreventExitStatus=9",
		} {
			if strings.Contains(want, "%s") {
				want = fmt.Sprintf(want, s.name)
			}
			if !strings.Contains(string(data), "\n"+want+"\n") {
				t.Errorf("%s.service does not say %s", s.name, want)
			}
		}
		// Seen from a user namespace, callers of the control socket are nobody.
		if strings.Contains(string(data), "\nPrivateUsers=") {
			t.Errorf("%s.service sets PrivateUsers", s.name)
		}
		users, err := fs.ReadFile(Units, "units/"+s.name+".sysusers")
		if err != nil || !strings.Contains(string(users), "\nu "+s.name+" - ") {
			t.Errorf("%s.sysusers does not make its user: %v", s.name, err)
		}
	}
}

// TestSysusers: systemd-sysusers takes the files and makes users and group.
func TestSysusers(t *testing.T) {
	path, err := exec.LookPath("systemd-sysusers")
	if err != nil {
		t.Fatal("systemd-sysusers is missing: run scripts/setup.sh")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root: systemd-sysusers takes a lock in the root it writes to")
	}
	root := t.TempDir()
	for _, dir := range []string{"etc", "usr/lib/sysusers.d"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range services {
		data, err := fs.ReadFile(Units, "units/"+s.name+".sysusers")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "usr/lib/sysusers.d", s.name+".conf"), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command(path, "--root="+root).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	group, err := os.ReadFile(filepath.Join(root, "etc/group"))
	if err != nil || !regexp.MustCompile(`(?m)^tss:.*:kagimori$`).Match(group) {
		t.Errorf("kagimori is not in tss: %v\n%s", err, group)
	}
	passwd, err := os.ReadFile(filepath.Join(root, "etc/passwd"))
	if err != nil || strings.Count(string(passwd), "kagimori") < 3 || !strings.Contains(string(passwd), "nologin") {
		t.Errorf("users: %v\n%s", err, passwd)
	}
}
