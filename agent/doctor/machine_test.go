package doctor

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/systemd"
)

func TestFastCommit(t *testing.T) {
	for kernel, loses := range map[string]bool{
		"5.9.16": false, "5.10.0-8-amd64": true, "5.10.93": true, "5.10.94": false, "5.10.94-rt5": false, "5.10.209": false,
		"5.14.21": true, "5.15.26-yocto": true, "5.15.27": false, "5.15.150": false, "5.16.11": true, "5.17.0": false,
		"6.1.0-13-amd64": false, "4.19.0": false, "": false, "x.y": false, "5": false,
	} {
		if fastCommitLoses(kernel) != loses {
			t.Errorf("%q: %v", kernel, !loses)
		}
	}
}

const mounts = `22 1 8:2 / / rw,relatime shared:1 - ext4 /dev/root rw,fast_commit
30 22 0:25 / /tmp ro,nosuid - tmpfs tmpfs rw,size=1g
31 22 8:3 / /var/lib rw - xfs /dev/sda3 rw
32 22 8:4 / /var/lib/kagi\040mori rw - f2fs /dev/sda4 rw,background_gc=on
33 22 0:40 / /over rw - overlay overlay rw,lowerdir=/a
34 22 8:3 / /over rw - ext4 /dev/sdb1 rw
broken line
`

func TestMountOf(t *testing.T) {
	for path, want := range map[string]string{
		"/etc": "ext4 /dev/root", "/var/lib": "xfs /dev/sda3", "/var/libx": "ext4 /dev/root", "/var/lib/kagi mori/state": "f2fs /dev/sda4",
		"/over/x": "ext4 /dev/sdb1", "/tmp": "tmpfs tmpfs",
	} {
		kind, source, options := mountOf(mounts, path)
		if kind+" "+source != want || len(options) == 0 {
			t.Errorf("%s: %s %s %v", path, kind, source, options)
		}
	}
	if _, _, o := mountOf(mounts, "/"); !slices.Contains(o, "fast_commit") {
		t.Errorf("options of /: %v", o)
	}
}

func TestDiskOfThisMachine(t *testing.T) {
	d := ReadDisk(t.TempDir())
	if d.Total == 0 || d.Type == "" || d.Kernel == "" || len(d.Options) == 0 {
		t.Errorf("%+v", d)
	}
}

// A process as the shipped unit starts it.
func confined() process {
	return process{
		status: "Umask:\t0077\nUid:\t990\t990\t990\t990\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n",
		limits: "Limit                     Soft Limit           Hard Limit           Units     \nMax core file size        0                    0                    bytes     \n",
		mounts: "1 0 8:1 / / ro,nosuid - ext4 /dev/a rw\n2 1 0:1 / /home ro - tmpfs tmpfs rw\n3 1 0:2 /tmp/systemd-private-5-kagimori.service-x/tmp /tmp rw - ext4 /dev/a rw\n",
		swap:   "0",
	}
}

func TestUnit(t *testing.T) {
	p := confined()
	if weak := p.weak(); len(weak) > 0 {
		t.Errorf("the shipped unit is called weak: %q", weak)
	}
	for directive, loosen := range map[string]func(*process){
		"NoNewPrivileges":  func(p *process) { p.status = strings.Replace(p.status, "NoNewPrivs:\t1", "NoNewPrivs:\t0", 1) },
		"SystemCallFilter": func(p *process) { p.status = strings.Replace(p.status, "Seccomp:\t2", "Seccomp:\t0", 1) },
		"CapabilityBoundingSet": func(p *process) {
			p.status = strings.Replace(p.status, "CapBnd:\t00000000000", "CapBnd:\t00000000001", 1)
		},
		"AmbientCapabilities": func(p *process) {
			p.status = strings.Replace(p.status, "CapEff:\t00000000000", "CapEff:\t00000000001", 1)
		},
		"UMask":         func(p *process) { p.status = strings.Replace(p.status, "0077", "0022", 1) },
		"User":          func(p *process) { p.status = strings.Replace(p.status, "Uid:\t990", "Uid:\t0", 1) },
		"LimitCORE":     func(p *process) { p.limits = strings.Replace(p.limits, "size        0", "size        unlimited", 1) },
		"MemorySwapMax": func(p *process) { p.swap = "max" },
		"ProtectSystem": func(p *process) { p.mounts = strings.Replace(p.mounts, "/ / ro", "/ / rw", 1) },
		"ProtectHome":   func(p *process) { p.mounts = strings.Replace(p.mounts, "/home", "/hom", 1) },
		"PrivateTmp":    func(p *process) { p.mounts = strings.Replace(p.mounts, "systemd-private-", "", 1) },
	} {
		p := confined()
		loosen(&p)
		if weak := p.weak(); len(weak) != 1 || !strings.HasPrefix(weak[0], directive) {
			t.Errorf("%s: %q", directive, weak)
		}
	}
	if weak := (&process{}).weak(); len(weak) < 7 {
		t.Errorf("a process that shows nothing: %q", weak)
	}
}

// What is looked for is what the units ship.
func TestDirectivesAreShipped(t *testing.T) {
	for _, name := range []string{"kagimori.service", "kagimori-gate.service"} {
		unit, err := systemd.Units.ReadFile("units/" + name)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range directives() {
			if !strings.Contains("\n"+string(unit), "\n"+d.line+"\n") {
				t.Errorf("%s does not have %s", name, d.line)
			}
		}
	}
}

func TestOutsideSystemd(t *testing.T) {
	os.Unsetenv("INVOCATION_ID")
	if ReadUnit() != nil {
		t.Error("a unit where none is")
	}
	t.Setenv("INVOCATION_ID", "x")
	t.Setenv("NOTIFY_SOCKET", "/run/x")
	if u := ReadUnit(); u == nil || len(u.Weak) == 0 {
		t.Errorf("a test is not confined: %+v", u)
	}
}
