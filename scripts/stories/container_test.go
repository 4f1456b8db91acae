package stories

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A container is a machine with an init of its own: systemd as process 1, on a
// copy of this machine's file system that is thrown away. It has no network but
// its own loopback interface.
type container struct {
	t      *testing.T
	leader string // process id of its systemd
	log    *lockedBuffer
}

// bootScript is run as process 1 of a process and mount namespace of its own:
// what it mounts and starts ends with it, however it ends.
const bootScript = `set -eu
dir=$1; shift
for c in /sys/fs/cgroup/unified /sys/fs/cgroup/systemd /sys/fs/cgroup; do
	# A place of its own for each container, since systemd-nspawn names what is below.
	[ -e "$c/cgroup.procs" ] && mkdir "$c/kagimori-${dir##*/}" && echo 0 >"$c/kagimori-${dir##*/}/cgroup.procs" || true
done
if ! { mount -t tmpfs -o mode=755 kagimori "$dir" && mkdir "$dir/up" "$dir/work" "$dir/root" &&
	mount -t overlay -o "lowerdir=/,upperdir=$dir/up,workdir=$dir/work" kagimori "$dir/root"; }; then
	echo "cannot mount an overlay of /"; exit 77
fi
: >"$dir/root/etc/machine-id"
exec systemd-nspawn --quiet --boot --directory="$dir/root" --machine="kagimori-${dir##*/}" --register=no --keep-unit \
	--private-network --console=pipe "$@" systemd.unit=basic.target systemd.show_status=0
`

// newContainer boots a container. binds are --bind options of systemd-nspawn.
// Where a container cannot be had the test is skipped, with the reason.
func newContainer(t *testing.T, binds ...string) *container {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: boots systemd in a container of its own")
	}
	for _, tool := range []string{"systemd-nspawn", "nsenter", "unshare"} {
		need(t, tool)
	}
	dir, err := os.MkdirTemp("", "nspawn")
	if err != nil {
		t.Fatal(err)
	}
	c := &container{t: t, log: new(lockedBuffer)}
	cmd := exec.Command("unshare", append([]string{"--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private",
		"sh", "-c", bootScript, "boot", dir}, binds...)...)
	cmd.Stdout, cmd.Stderr = c.log, c.log
	ended := startBound(t, cmd)
	t.Cleanup(func() {
		cmd.Process.Kill() // and with it, all that it started
		<-ended
		os.RemoveAll(dir)
		(&machine{t: t, name: "container"}).until("its control groups are empty", func() bool { return removeGroups(filepath.Base(dir)) })
		if t.Failed() {
			t.Logf("--- systemd-nspawn\n%s", c.log)
		}
	})
	deadline := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for c.leader == "" || !c.booted() {
		select {
		case <-ended:
			t.Skipf("systemd-nspawn cannot run here: %s", strings.TrimSpace(c.log.String()))
		case <-deadline:
			t.Fatalf("the container has not booted within %v", patience)
		case <-tick.C:
			c.leader = leaderBelow(cmd.Process.Pid)
		}
	}
	return c
}

// startBound starts a process that dies with this one, however this one ends.
func startBound(t *testing.T, cmd *exec.Cmd) (ended <-chan struct{}) {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, done := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // the signal comes when the thread ends that started the process
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
		close(done)
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	return done
}

// removeGroups removes the control groups that a container leaves behind, and
// says whether that was all of them: a group is busy while a process in it dies.
func removeGroups(name string) bool {
	gone := true
	for _, top := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup"} {
		var found []string
		filepath.WalkDir(filepath.Join(top, "kagimori-"+name), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				found = append(found, path)
			}
			return nil
		})
		for _, path := range slices.Backward(found) {
			gone = os.Remove(path) == nil && gone
		}
	}
	return gone
}

// leaderBelow looks for the process 1 of a container among a process's
// descendants: the one that is 1 in the third namespace, seen from here.
func leaderBelow(pid int) string {
	queue := []int{pid}
	for len(queue) > 0 {
		status, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(queue[0]), "status"))
		for line := range strings.Lines(string(status)) {
			if ids, ok := strings.CutPrefix(line, "NSpid:"); ok {
				if f := strings.Fields(ids); len(f) >= 3 && f[len(f)-1] == "1" {
					return f[0]
				}
			}
		}
		queue = append(queue[1:], childrenOf(queue[0])...)
	}
	return ""
}

func (c *container) booted() bool {
	return strings.TrimSpace(c.run("", "systemctl", "is-active", "basic.target").out) == "active"
}

// run runs a command in the container as root, and does not judge it.
func (c *container) run(stdin string, argv ...string) result {
	c.t.Helper()
	// Not the test's context: what a failed one left behind is asked for, too.
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--all", "--target", c.leader, "--", "env", "-i",
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root"}, argv...)...)
	cmd.WaitDelay = time.Second // what the command started may keep its output open
	var out, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.t.Fatalf("%v: %v", argv, err)
	}
	return result{out.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// must runs a command that must succeed, and returns what it printed.
func (c *container) must(stdin string, argv ...string) string {
	c.t.Helper()
	r := c.run(stdin, argv...)
	if r.code != 0 {
		c.t.Fatalf("%s: exit %d\n%s%s\n%s", strings.Join(argv, " "), r.code, r.out, r.err, c.run("", "journalctl", "--no-pager", "--lines=60").out)
	}
	return r.out
}

// sh runs a script that must succeed.
func (c *container) sh(script string) string {
	c.t.Helper()
	return c.must("", "sh", "-euc", script)
}

// query decodes the JSON that a command prints.
func (c *container) query(v any, argv ...string) {
	c.t.Helper()
	if out := c.must("", argv...); json.Unmarshal([]byte(out), v) != nil {
		c.t.Fatalf("%v: no JSON: %s", argv, out)
	}
}

// unit is what systemd says of a unit: properties by name.
func (c *container) unit(name string) map[string]string {
	c.t.Helper()
	properties := map[string]string{}
	for line := range strings.Lines(c.must("", "systemctl", "show", name)) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		properties[key] = value
	}
	return properties
}

// until waits for a condition in the container.
func (c *container) until(what string, ok func() bool) {
	c.t.Helper()
	(&machine{t: c.t, name: "container"}).until(what, ok)
}
