package doctor

import (
	"fmt"
	"os"
	"strings"
)

// Unit is how the process is confined, compared with the shipped unit.
type Unit struct {
	Weak []string // one line for each directive that is not in force
}

// process is what the kernel says of a process, as text.
type process struct {
	status, limits, mounts string
	swap                   string // memory.swap.max of its cgroup; "" if it cannot be read
}

// ReadUnit looks at this process. It returns nil when systemd did not start it.
func ReadUnit() *Unit {
	if os.Getenv("INVOCATION_ID") == "" || os.Getenv("NOTIFY_SOCKET") == "" {
		return nil
	}
	read := func(path string) string {
		b, _ := os.ReadFile(path)
		return string(b)
	}
	p := process{status: read("/proc/self/status"), limits: read("/proc/self/limits"), mounts: read("/proc/self/mountinfo")}
	for line := range strings.Lines(read("/proc/self/cgroup")) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			p.swap = strings.TrimSpace(read("/sys/fs/cgroup" + path + "/memory.swap.max"))
		}
	}
	return &Unit{Weak: p.weak()}
}

// A directive of the shipped units, and how it shows. Those that are seccomp
// filters only show together.
type directive struct {
	line string // as it stands in systemd/units
	fact string // what the kernel says instead
	ok   func(*process) bool
}

func directives() []directive {
	return []directive{
		{"NoNewPrivileges=yes", "a child may gain privileges", func(p *process) bool { return p.field("NoNewPrivs") == "1" }},
		{"SystemCallFilter=@system-service", "every system call is open to it", func(p *process) bool { return p.field("Seccomp") == "2" }},
		{"CapabilityBoundingSet=", "capabilities may be had", func(p *process) bool { return strings.Trim(p.field("CapBnd"), "0") == "" }},
		{"AmbientCapabilities=", "it has capabilities", func(p *process) bool { return strings.Trim(p.field("CapEff"), "0") == "" }},
		{"UMask=0077", "its files may be open to others", func(p *process) bool { return p.field("Umask") == "0077" }},
		{"LimitCORE=0", "memory with secrets may be dumped", func(p *process) bool { return p.limit("Max core file size") == "0" }},
		{"MemorySwapMax=0", "memory with secrets may be swapped out", func(p *process) bool { return p.swap == "" || p.swap == "0" }},
		{"ProtectSystem=strict", "the file system is open to writing", func(p *process) bool { return p.mounted("/", "ro") }},
		{"ProtectHome=yes", "home directories are open to it", func(p *process) bool { return p.mounted("/home", "") || p.mounted("/root", "") }},
		{"PrivateTmp=yes", "it shares /tmp with everybody", func(p *process) bool { return strings.Contains(p.root("/tmp"), "systemd-private-") }},
	}
}

func (p *process) weak() (list []string) {
	for _, d := range directives() {
		if !d.ok(p) {
			list = append(list, fmt.Sprintf("%s is not in force: %s", d.line, d.fact))
		}
	}
	if uid, _, _ := strings.Cut(p.field("Uid"), "\t"); uid == "0" {
		list = append(list, "User= is not in force: it runs as root")
	}
	return list
}

// field is a line of /proc/PID/status; "" if the kernel does not have it.
func (p *process) field(name string) string {
	for line := range strings.Lines(p.status) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// limit is the soft limit of a line of /proc/PID/limits.
func (p *process) limit(name string) string {
	for line := range strings.Lines(p.limits) {
		if v, ok := strings.CutPrefix(line, name); ok {
			if f := strings.Fields(v); len(f) > 0 {
				return f[0]
			}
		}
	}
	return ""
}

// mounted says whether something is mounted at point, with that option.
func (p *process) mounted(point, option string) (found bool) {
	for line := range strings.Lines(p.mounts) {
		f := strings.Fields(line)
		if len(f) < 6 || unescape(f[4]) != point {
			continue
		}
		found = option == "" || strings.Contains(","+f[5]+",", ","+option+",")
	}
	return found
}

// root is which directory of its file system is mounted at point.
func (p *process) root(point string) (root string) {
	for line := range strings.Lines(p.mounts) {
		if f := strings.Fields(line); len(f) >= 6 && unescape(f[4]) == point {
			root = f[3]
		}
	}
	return root
}
