package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/file"
)

// A disk that is full, and one that fails, at every single write.

// A tightDisk is a real one whose size is set page by page.
type tightDisk struct {
	dir   string
	pages int
}

func newTightDisk(t *testing.T) *tightDisk {
	t.Helper()
	k := &tightDisk{dir: t.TempDir(), pages: 1}
	if err := syscall.Mount("tmpfs", k.dir, "tmpfs", 0, k.options()); err != nil {
		t.Skipf("cannot mount a small disk here (%v): this test needs root and mount", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(k.dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return k
}

func (k *tightDisk) options() string { return fmt.Sprintf("size=%d,mode=0700", k.pages*4096) }

func (k *tightDisk) grow(t *testing.T) {
	t.Helper()
	k.pages++
	k.resize(t)
}

func (k *tightDisk) resize(t *testing.T) {
	t.Helper()
	if err := syscall.Mount("tmpfs", k.dir, "tmpfs", syscall.MS_REMOUNT, k.options()); err != nil {
		t.Fatal(err)
	}
}

// A terminal on a disk that is always full: whatever it does is tried with no
// room, and again with one page more, until it works. So each page that a
// change needs is once the one that is missing.
func TestFullAtEveryPage(t *testing.T) {
	disk := newTightDisk(t)
	secret := filepath.Join(t.TempDir(), "device-secret") // key storage fails for itself: hsm
	m, err := file.Open(secret)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var s *Store
	full := 0
	// until does something as often as it takes.
	until := func(what string, do func() error) {
		t.Helper()
		for err := do(); err != nil; err = do() {
			if !errors.Is(err, ErrFull) {
				t.Fatalf("%s with %d pages: %v", what, disk.pages, err)
			}
			full++
			disk.grow(t)
		}
	}
	open := func() error { s, err = openTight(disk.dir, m); return err }
	until("create", open)
	for n := 1; n <= 60; n++ {
		before := full
		until(fmt.Sprint("command ", n), func() error {
			done, err := judge(s)
			if err != nil || done[0] != n-1 {
				t.Fatalf("before command %d, full %d times: %v, %v", n, full-before, done, err)
			}
			return s.Update(func(tx *Tx) error { return command(tx, 0, n) })
		})
		if n%7 == 0 { // it also starts on a full disk
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			until("open", open)
		}
	}
	if done, err := judge(s); err != nil || done[0] != 60 {
		t.Errorf("in the end: %v, %v", done, err)
	}
	if err := errors.Join(s.Check(t.Context()), s.Close()); err != nil {
		t.Error(err)
	}
	checkInvariants(t, filepath.Join(disk.dir, "store"), m)
	t.Logf("full %d times, %d pages in the end", full, disk.pages)
	if full < disk.pages/2 {
		t.Error("it was rarely full: the test proves little")
	}
}

func openTight(dir string, m hsm.Module) (*Store, error) {
	return Open(context.Background(), crashConfig(dir), m, quiet())
}

// An outcome is what a daemon made of a fault.
type outcome struct {
	acked [maxWriters]int
	code  int
	words string
	hit   bool // there was such a call at all
	ours  bool // it was on a file of the store, not on a pipe or of the Go runtime
}

// faulty runs the daemon until the end, or until it gives up, with the nth call
// of one kind failing, or all from the nth on.
func (d crashDaemon) faulty(t *testing.T, f fault) (o outcome) {
	t.Helper()
	log := filepath.Join(d.dir, "..", "strace-"+filepath.Base(d.dir))
	defer os.Remove(log)
	cmd := exec.Command("strace", "-f", "--seccomp-bpf", "-qq", "-y", "-e", "signal=none", "-e", "trace="+f.call, "-s", "0",
		"-e", fmt.Sprintf("inject=%s:error=%s:when=%s", f.call, f.errno, f.when()), "-o", log, os.Args[0], "-test.run=^$")
	cmd.Env = d.env()
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("strace: %v", err)
	}
	for {
		line, err := out.ReadString('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		w, n, err := acknowledgement(line)
		if err != nil {
			t.Fatal(err)
		}
		o.acked[w] = n
	}
	trace, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(trace)) {
		if strings.Contains(line, "(INJECTED)") {
			o.hit, o.ours = true, strings.Contains(line, d.dir)
			break
		}
	}
	o.code, o.words = cmd.ProcessState.ExitCode(), strings.TrimSpace(stderr.String())
	return o
}

// A fault is one that the kernel reports.
type fault struct {
	call, errno string
	nth         int
	onwards     bool
}

func (f fault) when() string {
	if f.onwards {
		return fmt.Sprint(f.nth, "+")
	}
	return fmt.Sprint(f.nth)
}

// faults are what a disk can say, and what a daemon may then end with.
var faults = []struct {
	call, errno string
	codes       []int
}{
	{"pwrite64", "ENOSPC", []int{0, exitFull}},
	{"write", "ENOSPC", []int{0, exitFull}},
	{"ftruncate", "ENOSPC", []int{0, exitFull}},
	{"copy_file_range", "ENOSPC", []int{0, exitFull}},
	{"renameat,renameat2", "ENOSPC", []int{0, exitFull}},
	{"ftruncate", "EDQUOT", []int{0, exitFull}},
	{"pwrite64", "EIO", []int{0, exitFailed}},
	{"write", "EIO", []int{0, exitFailed}},
	{"fdatasync", "EIO", []int{0, exitFailed}},
	{"fsync", "EIO", []int{0, exitFailed}},
	{"fdatasync", "ENOSPC", []int{0, exitFull, exitFailed}}, // file systems that find room late
	{"fsync", "ENOSPC", []int{0, exitFull, exitFailed}},
}

// everyFault makes every call fail that a daemon makes, one daemon each, and
// returns what was wrong. step > 1 leaves some out.
func everyFault(t *testing.T, mode string, commands, step int) (ran int, bad []string) {
	t.Helper()
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatal("strace is missing: run scripts/setup.sh")
	}
	for _, kind := range faults {
		for _, onwards := range []bool{false, true} {
			for nth := 1; ; nth += step {
				f := fault{kind.call, kind.errno, nth, onwards}
				d := crashDaemon{dir: filepath.Join(quickDir(t), "d"), mode: mode, last: commands}
				if err := os.Mkdir(d.dir, 0o700); err != nil {
					t.Fatal(err)
				}
				o := d.faulty(t, f)
				if !o.hit {
					break
				}
				if !o.ours {
					continue
				}
				ran++
				if !slices.Contains(kind.codes, o.code) {
					bad = append(bad, fmt.Sprintf("%v: the daemon ended with %d: %s", f, o.code, o.words))
				}
				if _, err := d.survived([maxWriters]int{}, o.acked); err != nil {
					bad = append(bad, fmt.Sprintf("%v: acknowledged %v: %v", f, o.acked, err))
				}
			}
		}
	}
	return ran, bad
}

func TestEveryFault(t *testing.T) { reportFaults(t, 6, 7) }

func TestSoakEveryFault(t *testing.T) {
	if os.Getenv("KAGIMORI_SOAK") == "" {
		t.Skip("takes minutes: make soak")
	}
	reportFaults(t, 40, 1)
}

func reportFaults(t *testing.T, commands, step int) {
	ran, bad := everyFault(t, "single", commands, step)
	for _, b := range bad {
		t.Error(b)
	}
	t.Logf("%d faults", ran)
	if ran < 20 {
		t.Error("too few: the test proves little")
	}
}

// The test above must be able to fail: a daemon that does not look whether
// there was room loses commands.
func TestEveryFaultControl(t *testing.T) {
	ran, bad := everyFault(t, "deaf", 6, 7)
	if len(bad) == 0 {
		t.Errorf("nothing is noticed in %d faults", ran)
	}
}
