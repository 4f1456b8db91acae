package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// bbolt trusts its file: on a damaged one it panics, in places where nobody can
// catch it, or follows a bad page number out of the mapping. So before bbolt may
// touch a file, and in Check, all pages are read here with plain, bounded reads
// and everything that bbolt will follow is checked: both meta pages, the list of
// free pages, and the tree, page by page. What a value holds is not looked at:
// it is sealed, and Get finds out.
//
// The format is bbolt's file version 2, in the byte order of the machine.

const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	pageHeader   = 16 // id 8, flags 2, count 2, overflow 4
	element      = 16 // leaf: flags, pos, key size, value size; branch: pos, key size, page id
	bucketHeader = 16 // root page id (0: the page follows in line), sequence
	metaSize     = 64
	metaSum      = metaSize - 8 // the checksum is over all before it

	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagFreelist = 0x10
	flagBucket   = 0x01 // of a leaf element

	noFreelist = ^uint64(0)
	maxDepth   = 32 // of the tree; one of maxSize has less than 16
)

var order = binary.NativeEndian

type meta struct {
	pageSize             uint32
	root, freelist, high uint64 // page ids; high is the first one never used
	tx                   uint64
}

type pages struct {
	r        io.ReaderAt
	pageSize uint64
	high     uint64
	seen     []bool   // by page id: used, or free
	spare    [][]byte // buffers of one page
}

// checkPages is nil if bbolt can use the file at path, else ErrDamaged or what
// the disk said.
func checkPages(path string) error {
	f, err := openFile(path, os.O_RDONLY)
	if errors.Is(err, errNoFile) {
		return fmt.Errorf("%w (%s is %w)", ErrDamaged, path, err)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := checkFile(f, info.Size()); err != nil {
		return fmt.Errorf("%w (%w)", ErrDamaged, err)
	}
	return nil
}

func checkFile(r io.ReaderAt, size int64) error {
	if size > maxFile {
		return fmt.Errorf("%d bytes, the limit is %d", size, maxFile)
	}
	m, err := readMeta(r, size)
	if err != nil {
		return err
	}
	p, err := newPages(r, size, m)
	if err != nil {
		return err
	}
	if err := p.tree(m.root, true, nil, nil, 0); err != nil {
		return err
	}
	return p.freelist(m.freelist)
}

// newPages prepares to follow what one meta page leads to.
func newPages(r io.ReaderAt, size int64, m meta) (*pages, error) {
	if m.high > uint64(size)/uint64(m.pageSize) {
		return nil, fmt.Errorf("%d pages in a file of %d bytes: it is cut short", m.high, size)
	}
	if m.high < 4 {
		return nil, fmt.Errorf("only %d pages", m.high)
	}
	p := &pages{r: r, pageSize: uint64(m.pageSize), high: m.high, seen: make([]bool, m.high)}
	p.seen[0], p.seen[1] = true, true
	return p, nil
}

// readMeta picks the meta page that bbolt will: the valid one of the later
// transaction. One that is invalid is what a crash in the middle of a commit leaves.
func readMeta(r io.ReaderAt, size int64) (best meta, err error) {
	found := false
	for _, m := range []func() (meta, bool){
		func() (meta, bool) { return metaAt(r, 0) },
		func() (meta, bool) { return secondMeta(r, size) },
	} {
		if m, ok := m(); ok && (!found || m.tx > best.tx) {
			best, found = m, true
		}
	}
	if !found {
		return best, fmt.Errorf("neither meta page is valid in a file of %d bytes", size)
	}
	return best, nil
}

// secondMeta looks where page 1 may be: the page size is only known from the
// first meta page, which may be the bad one.
func secondMeta(r io.ReaderAt, size int64) (meta, bool) {
	for n := int64(1 << 10); n < size && n <= 64<<10; n <<= 1 {
		if m, ok := metaAt(r, n); ok && int64(m.pageSize) == n {
			return m, true
		}
	}
	return meta{}, false
}

func metaAt(r io.ReaderAt, off int64) (m meta, ok bool) {
	b := make([]byte, pageHeader+metaSize)
	if _, err := r.ReadAt(b, off); err != nil {
		return m, false
	}
	b = b[pageHeader:]
	sum := fnv.New64a()
	sum.Write(b[:metaSum])
	if order.Uint32(b) != boltMagic || order.Uint32(b[4:]) != boltVersion || order.Uint64(b[metaSum:]) != sum.Sum64() {
		return m, false
	}
	m = meta{
		pageSize: order.Uint32(b[8:]),
		root:     order.Uint64(b[16:]), // the root bucket's sequence follows
		freelist: order.Uint64(b[32:]),
		high:     order.Uint64(b[40:]),
		tx:       order.Uint64(b[48:]),
	}
	return m, m.pageSize >= 1<<10 && m.pageSize <= 64<<10 && m.pageSize&(m.pageSize-1) == 0
}

// take reads a page with those that it overflows into, and marks them as seen.
func (p *pages) take(id uint64) ([]byte, error) {
	if id < 2 || id >= p.high {
		return nil, fmt.Errorf("page %d of %d", id, p.high)
	}
	head := make([]byte, pageHeader)
	if _, err := p.r.ReadAt(head, int64(id*p.pageSize)); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	n := uint64(order.Uint32(head[12:])) + 1
	if own := order.Uint64(head); own != id || n > p.high-id {
		return nil, fmt.Errorf("page %d says that it is page %d and %d long", id, own, n)
	}
	for i := id; i < id+n; i++ {
		if p.seen[i] {
			return nil, fmt.Errorf("page %d is used twice", i)
		}
		p.seen[i] = true
	}
	var b []byte
	if last := len(p.spare) - 1; n == 1 && last >= 0 {
		b, p.spare = p.spare[last], p.spare[:last]
	} else {
		b = make([]byte, n*p.pageSize)
	}
	if _, err := p.r.ReadAt(b, int64(id*p.pageSize)); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	return b, nil
}

// give lets take use a buffer again.
func (p *pages) give(b []byte) {
	if uint64(len(b)) == p.pageSize {
		p.spare = append(p.spare, b)
	}
}

// tree checks a bucket from its root page down. All keys must lie in [low, high);
// nil is no bound. The root bucket holds buckets only, a bucket records only.
func (p *pages) tree(id uint64, root bool, low, high []byte, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("page %d: the tree is too deep", id)
	}
	b, err := p.take(id)
	if err != nil {
		return err
	}
	defer p.give(b)
	switch flags := order.Uint16(b[8:]); flags {
	case flagLeaf:
		if err = p.leaf(b, root, low, high); err == nil && depth > 0 && order.Uint16(b[10:]) == 0 {
			err = errors.New("a leaf with no elements below a branch")
		}
	case flagBranch:
		err = p.branch(b, root, low, high, depth)
	default:
		err = fmt.Errorf("flags %#x", flags)
	}
	if err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

func (p *pages) branch(b []byte, root bool, low, high []byte, depth int) error {
	n := int(order.Uint16(b[10:]))
	if n == 0 || pageHeader+n*element > len(b) {
		return fmt.Errorf("a branch with %d elements", n)
	}
	keys, end := make([][]byte, n), pageHeader+n*element
	for i := range keys {
		at := pageHeader + i*element
		var ok bool
		if keys[i], end, ok = cut(b, at, end, order.Uint32(b[at:]), order.Uint32(b[at+4:])); !ok {
			return fmt.Errorf("element %d is not in its place", i)
		}
	}
	if err := ascending(keys, low, high); err != nil {
		return err
	}
	for i, key := range keys {
		next := high
		if i+1 < n {
			next = keys[i+1]
		}
		if err := p.tree(order.Uint64(b[pageHeader+i*element+8:]), root, key, next, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (p *pages) leaf(b []byte, root bool, low, high []byte) error {
	n := int(order.Uint16(b[10:]))
	if pageHeader+n*element > len(b) {
		return fmt.Errorf("a leaf with %d elements", n)
	}
	keys, end := make([][]byte, n), pageHeader+n*element
	for i := range keys {
		at := pageHeader + i*element
		pos, keySize, valueSize := order.Uint32(b[at+4:]), order.Uint32(b[at+8:]), order.Uint32(b[at+12:])
		var key, value []byte
		var ok, ok2 bool
		key, end, ok = cut(b, at, end, pos, keySize)
		value, end, ok2 = cut(b, at, end, pos+keySize, valueSize) // no overflow once the key is inside
		if !ok || !ok2 || keySize == 0 {
			return fmt.Errorf("element %d is not in its place", i)
		}
		keys[i] = key
		isBucket := order.Uint32(b[at:]) == flagBucket
		if isBucket != root || !isBucket && order.Uint32(b[at:]) != 0 {
			return fmt.Errorf("element %d has flags %#x", i, order.Uint32(b[at:]))
		}
		if isBucket {
			if err := p.bucket(value); err != nil {
				return fmt.Errorf("bucket %q: %w", key, err)
			}
		}
	}
	return ascending(keys, low, high)
}

// bucket checks what stands in the root bucket for one bucket.
func (p *pages) bucket(value []byte) error {
	if len(value) < bucketHeader {
		return fmt.Errorf("a header of %d bytes", len(value))
	}
	if id := order.Uint64(value); id != 0 {
		return p.tree(id, false, nil, nil, 0)
	}
	inline := value[bucketHeader:]
	if len(inline) < pageHeader || order.Uint16(inline[8:]) != flagLeaf {
		return errors.New("its page is not a leaf")
	}
	return p.leaf(inline, false, nil, nil)
}

func (p *pages) freelist(id uint64) error {
	if id == noFreelist {
		return errors.New("the list of free pages is missing")
	}
	b, err := p.take(id)
	if err != nil {
		return fmt.Errorf("list of free pages: %w", err)
	}
	if flags := order.Uint16(b[8:]); flags != flagFreelist {
		return fmt.Errorf("list of free pages: flags %#x", flags)
	}
	n, at := uint64(order.Uint16(b[10:])), uint64(pageHeader)
	if n == 0xFFFF { // the number did not fit and stands in front of the list
		n, at = order.Uint64(b[at:]), at+8
	}
	if n > (uint64(len(b))-at)/8 {
		return fmt.Errorf("list of free pages: %d entries in %d bytes", n, len(b))
	}
	for i := range n {
		free := order.Uint64(b[at+8*i:])
		if free >= p.high || p.seen[free] {
			return fmt.Errorf("page %d is listed as free", free)
		}
		p.seen[free] = true
	}
	return nil // a page that is neither used nor free is only lost room
}

// cut gives the n bytes at an offset from an element, and where they end. bbolt
// packs a page without gaps, so they must begin where the ones before ended:
// that shows a wrong number of elements as well, which would hide records.
func cut(b []byte, at, begin int, pos, n uint32) (data []byte, end int, ok bool) {
	from, to := uint64(at)+uint64(pos), uint64(at)+uint64(pos)+uint64(n)
	if from != uint64(begin) || to > uint64(len(b)) {
		return nil, begin, false
	}
	return b[from:to], int(to), true
}

func ascending(keys [][]byte, low, high []byte) error {
	for i, k := range keys {
		switch {
		case i == 0 && low != nil && bytes.Compare(k, low) < 0, i > 0 && bytes.Compare(k, keys[i-1]) <= 0,
			high != nil && bytes.Compare(k, high) >= 0:
			return fmt.Errorf("key %q is out of order", k)
		}
	}
	return nil
}
