package store

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A disk that loses what was not synced. It promises what POSIX does and no
// more: a file's content is there after fsync of the file, its name after fsync
// of the directory; everything else may be there or not, sector by sector and
// in any order.

const sector = 512

// A node is the content of a file, under whatever names.
type node struct {
	live    []byte // as the daemon sees it
	durable []byte // certainly on the disk
	pending []event
}

type disk struct {
	names   map[string]*node // as the daemon sees it; nil: a directory
	gone    map[string]*node // what has lost its name, by the last one and gone
	durable map[string]*node
	pending []nameChange
}

// A nameChange takes place as a whole or not at all, as a rename does.
type nameChange struct {
	dir  string
	gone string
	name string
	node *node
}

func newDisk() *disk {
	return &disk{names: map[string]*node{}, gone: map[string]*node{}, durable: map[string]*node{}}
}

// readTree gives all files below a directory; a directory is nil.
func readTree(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	tree := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		if e.IsDir() {
			tree[name] = nil
			return nil
		}
		body, err := os.ReadFile(path)
		tree[name] = append([]byte{}, body...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// play does what the daemon did.
func (d *disk) play(e event) error {
	n, known := d.names[e.path]
	if strings.HasSuffix(e.path, gone) {
		n = d.gone[e.path]
	}
	switch e.op {
	case "ack":
		return nil
	case "create":
		if !known {
			d.change(nameChange{name: e.path, node: &node{}})
		}
		return nil
	case "mkdir":
		d.change(nameChange{name: e.path})
		return nil
	case "unlink":
		d.gone[e.path+gone] = n
		d.change(nameChange{gone: e.path})
		return nil
	case "rename":
		d.gone[e.to+gone] = d.names[e.to]
		d.change(nameChange{gone: e.path, name: e.to, node: n})
		return nil
	case "copy":
		w := event{op: "write", path: e.to, at: e.at, data: bytes.Clone(n.live[e.from : e.from+e.n])}
		return d.play(w)
	case "sync":
		if n == nil { // a directory
			d.syncDir(e.path)
			return nil
		}
		n.durable, n.pending = bytes.Clone(n.live), nil
		return nil
	}
	if n == nil {
		return fmt.Errorf("%s: there is no such file", e)
	}
	n.live = apply(n.live, e)
	n.pending = append(n.pending, e)
	return nil
}

func (d *disk) change(c nameChange) {
	c.dir = filepath.Dir(c.name + c.gone)
	if c.name != "" {
		c.dir = filepath.Dir(c.name)
	}
	c.on(d.names)
	d.pending = append(d.pending, c)
}

func (c nameChange) on(names map[string]*node) {
	delete(names, c.gone)
	if c.name != "" {
		names[c.name] = c.node
	}
}

func (d *disk) syncDir(path string) {
	path = filepath.Clean(path)
	d.pending = slices.DeleteFunc(d.pending, func(c nameChange) bool {
		if c.dir == path {
			c.on(d.durable)
		}
		return c.dir == path
	})
}

func apply(b []byte, e event) []byte {
	if e.op == "truncate" {
		return resize(b, e.n)
	}
	if end := e.at + int64(len(e.data)); end > int64(len(b)) {
		b = resize(b, end)
	}
	copy(b[e.at:], e.data)
	return b
}

func resize(b []byte, size int64) []byte {
	if size <= int64(len(b)) {
		return b[:size:size]
	}
	return append(b, make([]byte, size-int64(len(b)))...)
}

// unsynced is how much a power cut could lose now.
func (d *disk) unsynced() (changes int) {
	changes = len(d.pending)
	for n := range d.nodes() {
		changes += len(n.pending)
	}
	return changes
}

func (d *disk) nodes() map[*node]bool {
	nodes := map[*node]bool{}
	for _, names := range []map[string]*node{d.names, d.durable} {
		for _, n := range names {
			if n != nil {
				nodes[n] = true
			}
		}
	}
	return nodes
}

// crash writes what a power cut may leave into a new directory.
func (d *disk) crash(dir string, random *rand.Rand) error {
	names := maps.Clone(d.durable)
	keep := random.IntN(4)
	upTo := random.IntN(len(d.pending) + 1)
	for i, c := range d.pending {
		switch {
		case keep == 0: // none
		case keep == 1, keep == 2 && i < upTo, keep == 3 && random.IntN(2) == 0: // all, the first ones, any
			c.on(names)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		path := filepath.Join(dir, name)
		if names[name] == nil {
			if err := os.MkdirAll(path, 0o700); err != nil {
				return err
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(path, names[name].torn(random), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// torn gives what may be left of a file: of what was not synced, any sectors.
func (n *node) torn(random *rand.Rand) []byte {
	if len(n.pending) == 0 {
		return n.durable
	}
	p := []float64{0, 0.1, 0.5, 0.9, 1}[random.IntN(5)]
	whole := random.IntN(4) == 0 // whole writes are lost, none is torn
	grows := random.IntN(2) == 0 // the size is on the disk before the content
	b := bytes.Clone(n.durable)
	for _, e := range n.pending {
		if grows && e.op == "write" && e.at+int64(len(e.data)) > int64(len(b)) {
			b = resize(b, e.at+int64(len(e.data)))
		}
		if e.op == "truncate" || whole {
			if random.Float64() < p {
				b = apply(b, e)
			}
			continue
		}
		for at := 0; at < len(e.data); {
			end := min(at+sector-int((e.at+int64(at))%sector), len(e.data))
			if random.Float64() < p {
				b = apply(b, event{op: "write", at: e.at + int64(at), data: e.data[at:end]})
			}
			at = end
		}
	}
	return b
}
