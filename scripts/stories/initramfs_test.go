package stories

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// cpio is an archive as the kernel unpacks it before it starts process 1 ("newc",
// Documentation/driver-api/early-userspace/buffer-format.rst).
type cpio struct{ bytes.Buffer }

func (c *cpio) add(name string, mode fs.FileMode, content []byte) {
	kind := uint32(0o100000)
	if mode.IsDir() {
		kind = 0o040000
	}
	c.WriteString("070701")
	for _, v := range []uint32{0, kind | uint32(mode.Perm()), 0, 0, 1, 0, uint32(len(content)), 0, 0, 0, 0, uint32(len(name) + 1), 0} {
		fmt.Fprintf(c, "%08X", v)
	}
	c.WriteString(name + "\x00")
	c.pad()
	c.Write(content)
	c.pad()
}

func (c *cpio) pad() {
	for c.Len()%4 != 0 {
		c.WriteByte(0)
	}
}

// file adds a file of this machine.
func (c *cpio) file(t *testing.T, name, path string) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c.add(name, 0o755, content)
}

func (c *cpio) bytes() []byte {
	c.add("TRAILER!!!", 0, nil)
	return c.Bytes()
}

// withNeeded lists kernel modules with all that they need, those first.
func withNeeded(t *testing.T, dir string, names ...string) (paths []string) {
	t.Helper()
	byName := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok {
			byName[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var add func(name string)
	add = func(name string) {
		path, ok := byName[name]
		if !ok {
			t.Fatalf("no module %s in %s", name, dir)
		}
		if slices.Contains(paths, path) {
			return
		}
		for _, needed := range needs(t, path) {
			add(needed)
		}
		paths = append(paths, path)
	}
	for _, name := range names {
		add(name)
	}
	return paths
}

// needs is what a module says it needs. Algorithms are not among it: the kernel
// asks for those by other names.
func needs(t *testing.T, path string) (names []string) {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Section(".modinfo").Data()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(line, "depends="); ok && list != "" {
			names = append(names, strings.Split(list, ",")...)
		}
	}
	for i := range names {
		names[i] = strings.ReplaceAll(names[i], "-", "_")
	}
	return names
}
