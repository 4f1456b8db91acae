package hsm_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/hsm"
)

const tracedDir = "HSM_WRITE_TRACED"

const tracedCreateDir = "HSM_CREATE_TRACED"

// tracedCreate is what it does where the file system cannot do all.
func tracedCreate(dir string) {
	path := filepath.Join(dir, "f")
	err := hsm.CreateFile(path, page(1), 0o600)
	if again := hsm.CreateFile(path, page(2), 0o600); err == nil && !errors.Is(again, fs.ErrExist) {
		err = fmt.Errorf("created twice: %v", again)
	}
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// traced is what the traced child does, in a directory of its own.
func traced(dir string) {
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.Mkdir(in("written"), 0o700), os.Mkdir(in("created"), 0o700), os.Mkdir(in("moved"), 0o700), os.Mkdir(in("moved/new"), 0o700),
		hsm.WriteFile(in("written/f"), page(1), 0o600),
		hsm.CreateFile(in("created/f"), page(2), 0o600),
		hsm.MakeDir(in("made/sub"), 0o700),
		hsm.MoveDir(in("moved/new"), in("moved/d")),
	} {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// needStrace fails without strace, and skips where nobody may trace.
func needStrace(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatalf("%v: run scripts/setup.sh", err)
	}
	out, err := exec.Command("strace", "-f", "-o", os.DevNull, "true").CombinedOutput()
	if err == nil {
		return
	}
	if bytes.Contains(bytes.ToLower(out), []byte("not permitted")) {
		t.Skipf("this kernel lets nobody trace: %s", out)
	}
	t.Fatalf("strace: %v: %s", err, out)
}

var (
	syncLine   = regexp.MustCompile(`f(?:data)?sync\(\d+<([^>]+)>`)
	renameLine = regexp.MustCompile(`rename(?:at2?)?\((?:AT_FDCWD[^,]*, )?"([^"]+)", (?:AT_FDCWD[^,]*, )?"([^"]+)"`)
)

// What the kernel is asked, in which order: a killed process cannot show it,
// since the kernel keeps what was written; a power cut does not.
func TestDurableOrder(t *testing.T) {
	needStrace(t)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	trace := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command("strace", "-f", "-y", "-s", "4096", "-e", "trace=fsync,fdatasync,rename,renameat,renameat2", "-o", trace, os.Args[0])
	cmd.Env = append(os.Environ(), tracedDir+"="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	raw, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	asked := map[string][]string{} // by the directory's first part
	note := func(path, what string) {
		rest, ok := strings.CutPrefix(path, dir)
		if !ok {
			return
		}
		part, _, _ := strings.Cut(strings.TrimPrefix(rest, "/"), "/")
		asked[part] = append(asked[part], what)
	}
	short := func(path string) string { return strings.TrimPrefix(path, dir) }
	for line := range strings.Lines(string(raw)) {
		if m := syncLine.FindStringSubmatch(line); m != nil {
			note(m[1], "sync "+short(m[1]))
		}
		if m := renameLine.FindStringSubmatch(line); m != nil {
			note(m[2], "rename "+short(m[1])+" "+short(m[2]))
		}
	}
	for part, want := range map[string][]string{
		"written": {"sync /written/.f.tmp", "rename /written/.f.tmp /written/f", "sync /written"},
		"created": {"sync /created/.f.tmp", "rename /created/.f.tmp /created/f", "sync /created"},
		"":        {"sync "}, // the name "made"
		"made":    {"sync /made"},
		"moved":   {"sync /moved/new", "rename /moved/new /moved/d", "sync /moved"},
	} {
		if got := asked[part]; !slices.Equal(got, want) {
			t.Errorf("%q: the kernel was asked %q, want %q", part, got, want)
		}
	}
	if t.Failed() {
		t.Logf("%s", raw)
	}
}

// File systems without RENAME_NOREPLACE, and without links as well: still one
// winner, whole, and the content is durable before the name.
func TestCreateFileOnOtherFileSystems(t *testing.T) {
	needStrace(t)
	for name, inject := range map[string][]string{
		"no flag": {"inject=renameat2:error=EINVAL"},
		"no link": {"inject=renameat2:error=EINVAL", "inject=link,linkat:error=EPERM"},
	} {
		dir := t.TempDir()
		trace := filepath.Join(t.TempDir(), "trace")
		args := []string{"-f", "-y", "-e", "trace=fsync,rename,renameat,renameat2,link,linkat,unlink,unlinkat", "-o", trace}
		for _, i := range inject {
			args = append(args, "-e", i)
		}
		cmd := exec.Command("strace", append(args, os.Args[0])...)
		cmd.Env = append(os.Environ(), tracedCreateDir+"="+dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
		path := filepath.Join(dir, "f")
		if whole(t, path) != 1 {
			t.Errorf("%s: the file is not the first one's", name)
		}
		onlyFile(t, path)
		raw, err := os.ReadFile(trace)
		if err != nil {
			t.Fatal(err)
		}
		var asked []string
		for line := range strings.Lines(string(raw)) {
			if !strings.Contains(line, dir) || strings.Contains(line, "INJECTED") {
				continue
			}
			if call := regexp.MustCompile(`(fsync|rename|link|unlink)(?:at2?)?\(`).FindStringSubmatch(line); call != nil {
				asked = append(asked, call[1])
			}
		}
		want := []string{"fsync", "link", "unlink", "fsync"}
		if name == "no link" {
			want = []string{"fsync", "rename", "fsync"}
		}
		if len(asked) < len(want) || !slices.Equal(asked[:len(want)], want) {
			t.Errorf("%s: the kernel was asked %q, first should be %q\n%s", name, asked, want, raw)
		}
	}
}

// The power went between link and unlink: the file has both names, and what
// comes next must not write into it.
func TestCreateFileCutBetweenLinkAndUnlink(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	tmp := filepath.Join(filepath.Dir(path), ".f.tmp")
	for _, write := range []func(string, []byte, fs.FileMode) error{hsm.CreateFile, hsm.WriteFile} {
		if err := errors.Join(os.WriteFile(path, page(1), 0o600), os.Link(path, tmp)); err != nil {
			t.Fatal(err)
		}
		old, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer old.Close()
		_ = write(path, page(2), 0o600)
		if b, err := io.ReadAll(old); err != nil || !bytes.Equal(b, page(1)) {
			t.Errorf("what was there was written into: %v", err)
		}
		onlyFile(t, path)
		whole(t, path)
	}
}
