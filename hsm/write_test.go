package hsm_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kagimori/kagimori/hsm"
)

// The test binary plays the writer that is killed or runs out of space.
func TestMain(m *testing.M) {
	if path := os.Getenv("HSM_WRITE_FOREVER"); path != "" {
		for n := 0; ; n++ {
			if err := hsm.WriteFile(path, page(n), 0o600); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			fmt.Println(n)
		}
	}
	if path := os.Getenv("HSM_WRITE_LIMITED"); path != "" {
		signal.Ignore(syscall.SIGXFSZ)
		limit := syscall.Rlimit{Cur: 4096, Max: 4096}
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
			os.Exit(3)
		}
		if err := hsm.WriteFile(path, page(1), 0o600); err != nil {
			os.Exit(7) // what the test wants
		}
		os.Exit(0)
	}
	if dir := os.Getenv(tracedDir); dir != "" {
		traced(dir)
		os.Exit(0)
	}
	if dir := os.Getenv(tracedCreateDir); dir != "" {
		tracedCreate(dir)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const pageSize = 64 << 10

// page is content that names itself in every byte.
func page(n int) []byte { return bytes.Repeat([]byte{byte(n)}, pageSize) }

func TestWriteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	for _, perm := range []fs.FileMode{0o600, 0o644, 0o640} {
		want := []byte(perm.String())
		if err := hsm.WriteFile(path, want, perm); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		fi, _ := os.Stat(path)
		if err != nil || !bytes.Equal(got, want) || fi.Mode().Perm() != perm {
			t.Errorf("%q, mode %v, %v; want %q, mode %v", got, fi.Mode(), err, want, perm)
		}
	}
	onlyFile(t, path)
}

func TestWriteFileRelative(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := hsm.WriteFile("name", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"", ".", "..", "dir/", "/"} {
		if err := hsm.WriteFile(path, nil, 0o600); err == nil {
			t.Errorf("%q was written", path)
		}
	}
}

func TestCreateFileHasOneWinner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for n := range errs {
		wg.Go(func() { errs[n] = hsm.CreateFile(path, page(n), 0o600) })
	}
	wg.Wait()
	won := -1
	for n, err := range errs {
		switch {
		case err == nil && won < 0:
			won = n
		case !errors.Is(err, fs.ErrExist):
			t.Errorf("writer %d: %v", n, err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil || won < 0 || !bytes.Equal(got, page(won)) {
		t.Errorf("writer %d won, but the file is not his: %v", won, err)
	}
	onlyFile(t, path)
}

func TestWriteFileConcurrent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			for range 5 {
				if err := hsm.WriteFile(path, page(n), 0o600); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	whole(t, path)
	onlyFile(t, path)
}

func TestWriteFileKeepsOldOnFailure(t *testing.T) {
	for name, breakIt := range map[string]func(t *testing.T, dir, path string) error{
		"directory not writable": func(t *testing.T, dir, path string) error {
			os.Chmod(dir, 0o500)
			defer os.Chmod(dir, 0o700)
			var err error
			asNobody(dir, path, func() { err = hsm.WriteFile(path, page(1), 0o600) })
			return err
		},
		"disk full": func(t *testing.T, _, path string) error {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "HSM_WRITE_LIMITED="+path)
			if err := cmd.Run(); cmd.ProcessState.ExitCode() != 7 {
				t.Fatalf("the limited writer: %v", err)
			}
			return errors.New("failed in the other process")
		},
		"temporary name is a link": func(t *testing.T, dir, path string) error {
			tmp := filepath.Join(dir, ".state.tmp")
			if err := os.Symlink("/dev/null", tmp); err != nil {
				t.Fatal(err)
			}
			defer os.Remove(tmp)
			return hsm.WriteFile(path, page(1), 0o600)
		},
		"exists already": func(_ *testing.T, _, path string) error {
			return hsm.CreateFile(path, page(1), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "state")
			if err := hsm.WriteFile(path, []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := breakIt(t, dir, path); err == nil {
				t.Error("no error")
			}
			if got, err := os.ReadFile(path); string(got) != "old" {
				t.Errorf("the old content is gone: %d bytes, %v", len(got), err)
			}
			onlyFile(t, path)
		})
	}
	if err := hsm.WriteFile(filepath.Join(t.TempDir(), "none", "f"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
}

// asNobody runs f without root's power over file modes. The thread's file
// system uid does it, so the rest of the test keeps its rights.
func asNobody(dir, path string, f func()) {
	if os.Geteuid() != 0 {
		f()
		return
	}
	const nobody = 65534
	os.Chown(dir, nobody, nobody)
	os.Chown(path, nobody, nobody)
	defer os.Chown(dir, 0, 0)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	syscall.Syscall(syscall.SYS_SETFSUID, nobody, 0, 0)
	defer syscall.Syscall(syscall.SYS_SETFSUID, 0, 0, 0)
	f()
}

func TestWriteFileKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	for range 15 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "HSM_WRITE_FOREVER="+path)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(time.Duration(20+rand.IntN(60))*time.Millisecond, func() { cmd.Process.Kill() })
		cmd.Wait()
		kill.Stop()
		if errs.Len() > 0 {
			t.Fatal(errs.String())
		}
		if out.Len() == 0 { // killed before its first write
			continue
		}
		lines := bytes.Fields(out.Bytes())
		last, err := strconv.Atoi(string(lines[len(lines)-1]))
		if got := whole(t, path); err != nil || got != byte(last) && got != byte(last+1) {
			t.Errorf("acknowledged %d, the file holds %d (%v)", last, got, err)
		}
		entries, err := os.ReadDir(filepath.Dir(path))
		if err != nil || len(entries) > 2 {
			t.Errorf("%d files beside each other: %v, %v", len(entries), entries, err)
		}
	}
	if err := hsm.WriteFile(path, page(0), 0o600); err != nil {
		t.Fatal(err)
	}
	onlyFile(t, path) // the last writer cleared up after the killed ones
}

// whole fails unless path holds exactly one page, and says whose.
func whole(t *testing.T, path string) byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || len(b) != pageSize {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if !bytes.Equal(b, bytes.Repeat(b[:1], pageSize)) {
		t.Fatal("the file is a mixture")
	}
	return b[0]
}

func onlyFile(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestMakeDir(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "a", "b")
	for range 2 {
		if err := hsm.MakeDir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if fi, err := os.Stat(d); err != nil || fi.Mode() != fs.ModeDir|0o700 {
			t.Errorf("%s: %v, %v", d, fi, err)
		}
	}
	file := filepath.Join(top, "file")
	os.WriteFile(file, nil, 0o600)
	for _, d := range []string{file, filepath.Join(file, "sub")} {
		if err := hsm.MakeDir(d, 0o700); err == nil {
			t.Errorf("%s: no error", d)
		}
	}
}
