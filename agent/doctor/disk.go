package doctor

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Disk is what the state directory lies on.
type Disk struct {
	Path        string
	Free, Total uint64 // bytes, for a user who is not root
	Type        string // "ext4"
	Options     []string
	Kernel      string // "6.1.0-13-amd64"
}

// ReadDisk looks at the file system under path. What it cannot find out stays empty.
func ReadDisk(path string) *Disk {
	d := &Disk{Path: path}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err == nil {
		d.Free, d.Total = fs.Bavail*uint64(fs.Bsize), fs.Blocks*uint64(fs.Bsize)
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err == nil {
		d.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return d
	}
	var source string
	d.Type, source, d.Options = mountOf(string(mounts), path)
	// The options that are the default of the file system itself stand only here.
	if more, err := os.ReadFile("/proc/fs/ext4/" + filepath.Base(source) + "/options"); err == nil && d.Type == "ext4" {
		for line := range bytes.Lines(more) {
			d.Options = append(d.Options, strings.TrimSpace(string(line)))
		}
	}
	return d
}

// mountOf finds the mount that path is on in the text of mountinfo (proc(5)).
func mountOf(mounts, path string) (kind, source string, options []string) {
	best := -1
	for line := range strings.Lines(mounts) {
		front, back, ok := strings.Cut(line, " - ")
		f, b := strings.Fields(front), strings.Fields(back)
		if !ok || len(f) < 6 || len(b) < 3 {
			continue
		}
		point := unescape(f[4])
		if within(path, point) && len(point) >= best { // a later mount covers an earlier one
			best, kind, source = len(point), b[0], b[1]
			options = append(strings.Split(f[5], ","), strings.Split(b[2], ",")...)
		}
	}
	return kind, source, options
}

func within(path, dir string) bool {
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(dir, "/"))
	return ok && (rest == "" || rest[0] == '/')
}

// unescape undoes mountinfo's \040 for a space.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// risks says why this file system may lose what it has acknowledged.
func (d *Disk) risks() (list []string) {
	switch d.Type {
	case "nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "virtiofs":
		list = append(list, fmt.Sprintf("%s is on a network file system (%s): locks and syncs are not what they are on a disk", d.Path, d.Type))
	case "overlay", "aufs":
		list = append(list, fmt.Sprintf("%s is on an overlay: if its upper layer is in memory, everything is lost with the power", d.Path))
	case "tmpfs", "ramfs":
		list = append(list, fmt.Sprintf("%s is in memory (%s): everything is lost with the power", d.Path, d.Type))
	case "vfat", "exfat", "msdos":
		list = append(list, fmt.Sprintf("%s is on %s, which has no journal and no owners of files", d.Path, d.Type))
	}
	fast := slices.ContainsFunc(d.Options, func(o string) bool { return strings.HasPrefix(o, "fast_commit") })
	if d.Type == "ext4" && fast && fastCommitLoses(d.Kernel) {
		list = append(list, fmt.Sprintf("%s is on ext4 with fast_commit, and Linux %s loses synced data with it", d.Path, d.Kernel))
	}
	if slices.Contains(d.Options, "nobarrier") || slices.Contains(d.Options, "barrier=0") {
		list = append(list, fmt.Sprintf("%s is mounted with barriers off: a sync does not reach the disk", d.Path))
	}
	return list
}

// fastCommitLoses: the faults are in Linux 5.10 to 5.16, mended in 5.10.94 and
// 5.15.27 (etcd-io/bbolt, Known Issues).
func fastCommitLoses(kernel string) bool {
	var n [3]int
	parts := strings.SplitN(kernel, ".", 3)
	for i, p := range parts {
		digits := p[:len(p)-len(strings.TrimLeft(p, "0123456789"))]
		v, err := strconv.Atoi(digits)
		if err != nil {
			return false
		}
		n[i] = v
	}
	switch major, minor, patch := n[0], n[1], n[2]; {
	case major != 5 || minor < 10 || minor > 16:
		return false
	case minor == 10:
		return patch < 94
	case minor == 15:
		return patch < 27
	}
	return true
}
