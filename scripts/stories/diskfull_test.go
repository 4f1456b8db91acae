package stories

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	_ "modernc.org/sqlite"
)

// Disks that are full at every write of every verb that writes. What fails says
// that it was the disk, and what to do; with room again the same verb works, and
// nothing half-made is taken for made.

// A tightDisk is all of a machine's, on a real disk whose size is set page by
// page.
type tightDisk struct {
	t   *testing.T
	m   *machine
	dir string
}

const (
	page  = 4096
	roomy = 64 << 20 // more than any of these stories needs
)

// tight puts a machine on such a disk, with what it has already.
func tight(t *testing.T, m *machine) *tightDisk {
	t.Helper()
	k := &tightDisk{t: t, m: m, dir: m.dir}
	kept := map[string][]byte{}
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if kept[e.Name()], err = os.ReadFile(m.path(e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mount("tmpfs", k.dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", roomy)); err != nil {
		t.Skipf("cannot mount a small disk here (%v): this story needs root and mount", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(k.dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	kept["filler"] = make([]byte, page) // a disk has one page at least
	for name, body := range kept {
		if err := os.WriteFile(m.path(name), body, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

// size makes the disk that large.
func (k *tightDisk) size(bytes uint64) {
	k.t.Helper()
	if err := syscall.Mount("tmpfs", k.dir, "tmpfs", syscall.MS_REMOUNT, fmt.Sprintf("size=%d", bytes)); err != nil {
		k.t.Fatalf("resize to %d: %v", bytes, err)
	}
}

func (k *tightDisk) used() uint64 {
	k.t.Helper()
	var s syscall.Statfs_t
	if err := syscall.Statfs(k.dir, &s); err != nil {
		k.t.Fatal(err)
	}
	return (s.Blocks - s.Bfree) * page
}

// squeeze does something with no page free, then with one, two ..., until it
// works, and judges each failure. Then there is room again. It returns how
// often the disk was full.
func (k *tightDisk) squeeze(what string, do func() result, judge func(result)) (full int) {
	k.t.Helper()
	defer k.size(roomy)
	for size := k.used(); ; size += page {
		k.size(max(size, k.used(), page))
		r := do()
		if r.code == 0 {
			k.t.Logf("%s: the disk was full %d times", what, full)
			return full
		}
		if full++; full > 300 {
			k.t.Fatalf("%s does not work with any room:\n%s%s", what, r.out, r.err)
		}
		if !namesDisk(r) {
			k.t.Errorf("%s, full for the %d. time: exit %d\n%s%s", what, full, r.code, r.out, r.err)
		}
		judge(r)
	}
}

// namesDisk says whether a failure is told as it must be: another exit code
// than 0 and those for mistakes, the disk as its cause, and a next step.
func namesDisk(r result) bool {
	text := strings.ToLower(r.err + r.out)
	cause := strings.Contains(text, "no space left") || strings.Contains(text, "disk is full") || strings.Contains(text, "no room")
	return r.code == 8 && cause && (strings.Contains(text, "free space") || strings.Contains(text, "disk is not full"))
}

// ask runs a verb that may fail.
func (m *machine) ask(stdin, program string, args ...string) result {
	m.t.Helper()
	return m.run(stdin, program, append([]string{"--socket", m.socket(program)}, args...)...)
}

func nothing(result) {}

// tightDeployment is a deployment whose server and gate are on tight disks.
func tightDeployment(t *testing.T) (d *deployment, server, gate *tightDisk) {
	t.Helper()
	d = deploy(t, nil, func(d *deployment) string {
		server, gate = tight(t, d.server), tight(t, d.gate)
		return d.mqtt
	})
	return d, server, gate
}

// Each verb of the server that writes.
func TestFullDiskOfTheServer(t *testing.T) {
	d, disk, _ := tightDeployment(t)
	outside := t.TempDir() // bundles are put elsewhere: see the next story
	out := 0
	verb := func(args ...string) func() result {
		return func() result {
			if makesBundle(args) {
				out++
				return d.server.ask("", "kagimori-server", append(args, "--out", filepath.Join(outside, fmt.Sprint(out)))...)
			}
			return d.server.ask("", "kagimori-server", args...)
		}
	}
	bundles := func(result) {
		if _, err := os.Stat(filepath.Join(outside, fmt.Sprint(out))); err == nil {
			t.Error("a verb that failed left a bundle")
		}
	}
	// Enrolled first, so that there is somebody to order and to revoke from.
	nav := d.terminal("nav-001", sealedFile)
	nav.named()
	id := nav.issue()
	for _, args := range [][]string{
		{"terminal", "add", "nav-002"}, {"spare", "add"}, {"terminal", "reenroll", "nav-002"},
		{"gate", "add", "tiles", "--dns", "tiles.test"},
		{"group", "add", "ferries"}, {"group", "rotate", "ferries"},
		{"credential", "issue", "nav-002", "--service", "maps"},
		{"credential", "revoke", id},
		{"terminal", "remove", "nav-002"},
	} {
		judge := bundles
		if !makesBundle(args) {
			judge = nothing
		}
		if disk.squeeze(strings.Join(args, " "), verb(args...), judge) == 0 {
			t.Errorf("%v needs no room: the story proves nothing", args)
		}
		disk.sound()
	}
	d.serverRun.stop()
	disk.squeezedStart("kagimori-server", d.serverConfig)
	d.serve()
	var list struct {
		Terminals []struct {
			Name, State string
		}
	}
	d.server.query(&list, "kagimori-server", "terminal", "list")
	got := map[string]string{}
	for _, term := range list.Terminals {
		got[term.Name] = term.State
	}
	want := map[string]string{"gate-maps": "enrolled", "nav-001": "enrolled", "nav-002": "removed", "gate-tiles": "expected"}
	for name, state := range want {
		if got[name] != state {
			t.Errorf("%s is %q, want %q", name, got[name], state)
		}
	}
	nav.connected()
}

func makesBundle(verb []string) bool {
	return verb[0] != "group" && slices.Contains([]string{"add", "reenroll"}, verb[1])
}

// sound checks every page of the server's database, past the server.
func (k *tightDisk) sound() {
	k.t.Helper()
	files, err := filepath.Glob(k.m.path("state", "*.db"))
	if err != nil || len(files) != 1 {
		k.t.Fatalf("databases: %v (%v)", files, err)
	}
	// The daemon holds its database for itself: look at a copy of it.
	dir := k.t.TempDir()
	for _, suffix := range []string{"", "-wal"} {
		body, err := os.ReadFile(files[0] + suffix)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "db"+suffix), body, 0o600)
		}
		if err != nil && suffix == "" {
			k.t.Fatal(err)
		}
	}
	db, err := sql.Open("sqlite", filepath.Join(dir, "db"))
	if err != nil {
		k.t.Fatal(err)
	}
	defer db.Close()
	var answer string
	if err := db.QueryRow("PRAGMA integrity_check").Scan(&answer); err != nil || answer != "ok" {
		k.t.Errorf("integrity check: %s, %v", answer, err)
	}
}

// squeezedStart starts a daemon on a full disk: it runs, or says why not.
func (k *tightDisk) squeezedStart(program, config string) {
	k.t.Helper()
	k.size(max(k.used(), page))
	defer k.size(roomy)
	d := k.m.launch(program, "run", "--config", config)
	defer d.stop()
	k.m.until("it answers or ends", func() bool {
		select {
		case <-d.done:
			r := result{out: d.log.String(), code: d.cmd.ProcessState.ExitCode()}
			if !namesDisk(r) {
				k.t.Errorf("%s on a full disk ended with %d:\n%s", program, r.code, r.out)
			}
			return true
		default:
			var r result
			if _, err := os.Stat(k.m.socket(program)); err == nil {
				r = k.m.ask("", program, "version")
			} else {
				r.code = 1
			}
			return r.code == 0
		}
	})
}

// A bundle that cannot be kept is not there, and is made anew.
func TestFullDiskForTheBundle(t *testing.T) {
	d := newDeployment(t, nil)
	desk := newMachine(t, "desk")
	disk := tight(t, desk)
	out := desk.path("new.bundle")
	lost := 0
	first := true
	disk.squeeze("terminal add", func() result {
		verb := []string{"terminal", "reenroll", "nav-001"}
		if first || !d.known("nav-001") {
			verb[1] = "add"
		}
		first = false
		return d.server.ask("", "kagimori-server", append(verb, "--out", out)...)
	}, func(r result) {
		if entries, err := os.ReadDir(desk.dir); err != nil || len(entries) != 1 {
			t.Errorf("left behind: %v (%v)", entries, err)
		}
		if d.known("nav-001") {
			lost++
			if !strings.Contains(r.err, "reenroll") {
				t.Errorf("it does not say how to get another one: %s", r.err)
			}
		}
	})
	if lost == 0 {
		t.Log("no bundle was made in vain")
	}
	if _, err := os.Stat(out); err != nil {
		t.Errorf("in the end: %v", err)
	}
}

func (d *deployment) known(name string) bool {
	return d.server.ask("", "kagimori-server", "terminal", "show", name).code == 0
}

// init makes all or nothing.
func TestFullDiskOfInit(t *testing.T) {
	m := newMachine(t, "server")
	config := m.config("kagimori-server", "", "")
	disk := tight(t, m)
	if disk.squeeze("init", func() result {
		return m.run("", "kagimori-server", "init", "--config", config, "--deployment", "demo", "--address", "127.0.0.1:8883", "--json")
	}, func(r result) {
		if entries, err := os.ReadDir(m.dir); err != nil || len(entries) != 2 {
			t.Errorf("left behind: %v (%v)", entries, err)
		}
		var answer struct{ Deployment string }
		if json.Unmarshal([]byte(r.out), &answer) == nil && answer.Deployment != "" {
			t.Errorf("it failed and says %s", r.out)
		}
	}) == 0 {
		t.Error("init needs no room: the story proves nothing")
	}
	disk.sound()
}
