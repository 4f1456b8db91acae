package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

// What bbolt deletes stays in pages that nothing points to any more, until they
// are used again. After a key change that replaced or deleted something, these
// pages are overwritten with zeros: the old value, its key, the old slot.
//
// bbolt keeps two meta pages, of the last transaction and the one before, and
// may go back to the one before when the last meta page does not survive. So
// only what neither leads to may be overwritten, and a second, empty transaction
// comes first: after it, neither leads to what was deleted. And no reader may
// still be in an older state.
//
// A power cut may leave some of these pages as they were: the counter has not
// counted then, and the next Open does all of this again.
//
// On flash the old blocks live on below the file system until the controller
// erases them; nothing here can help that.

// readersTime is how long older readers are waited for.
const readersTime = 5 * time.Second

var errReaders = errors.New("an older reader does not end")

// scrub needs writer. With again set it takes no zeros for granted that are there.
func (s *Store) scrub(again bool) error {
	id := 0
	_, err := s.change(func(tx *Tx) error {
		id = tx.id
		return tx.sealHead(tx.head)
	}, nil)
	if err != nil {
		return err
	}
	s.step("touched")
	if !s.readersSince(id-1, readersTime) {
		return errReaders
	}
	info, err := s.file.Stat()
	if err != nil {
		return err
	}
	used, pageSize, err := reachable(s.file, info.Size())
	if err != nil {
		return fmt.Errorf("%w (%w)", ErrDamaged, err)
	}
	return zero(s.file, info.Size(), pageSize, used, again)
}

// readersSince waits until no reader is in a state before transaction id. It is
// false when that takes too long.
func (s *Store) readersSince(id int, limit time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	late := false
	timer := time.AfterFunc(limit, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		late = true
		s.idle.Broadcast()
	})
	defer timer.Stop()
	older := func() bool {
		for reader := range s.readers {
			if reader < id {
				return true
			}
		}
		return false
	}
	for older() && !late {
		s.idle.Wait()
	}
	return !older()
}

// reachable says of each page whether one of the meta pages leads to it.
func reachable(r io.ReaderAt, size int64) (used []bool, pageSize int64, err error) {
	metas := make([]meta, 2)
	var ok, ok2 bool
	metas[0], ok = metaAt(r, 0)
	metas[1], ok2 = secondMeta(r, size)
	if !ok || !ok2 || metas[0].pageSize != metas[1].pageSize {
		return nil, 0, errors.New("a meta page is not valid")
	}
	pageSize = int64(metas[0].pageSize)
	for _, m := range metas {
		p, err := newPages(r, size, m)
		if err != nil {
			return nil, 0, err
		}
		used = append(used, make([]bool, max(0, len(p.seen)-len(used)))...)
		if err := p.tree(m.root, true, nil, nil, 0); err != nil {
			return nil, 0, err
		}
		if _, err := p.take(m.freelist); err != nil {
			return nil, 0, err
		}
		for i, seen := range p.seen {
			used[i] = used[i] || seen
		}
	}
	return used, pageSize, nil
}

// zero overwrites the pages that are not used, durably, but for those that are
// zeros already. With again set these are written too, as far as used goes: after
// a sync that failed the kernel may show zeros that it has not brought to the disk,
// and will not. Behind that the file may have holes, and zeros would take room.
func zero(f *os.File, size, pageSize int64, used []bool, again bool) error {
	page, zeros := make([]byte, pageSize), make([]byte, pageSize)
	wrote := false
	for i := int64(0); i*pageSize < size; i++ {
		if i < int64(len(used)) && used[i] {
			continue
		}
		n, err := f.ReadAt(page, i*pageSize)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if bytes.Equal(page[:n], zeros[:n]) && !(again && i < int64(len(used))) {
			continue
		}
		if _, err := f.WriteAt(zeros[:n], i*pageSize); err != nil {
			return err
		}
		wrote = true
	}
	if !wrote {
		return nil
	}
	return f.Sync()
}

// shred overwrites a file that has no name any more or is about to lose it: all
// but the pages of record buckets, in which nothing opens without what is
// overwritten; or the whole of one that is no store. It is best effort: a power
// cut at the wrong moment leaves its blocks as they were. What has another name
// besides, or is larger than a store, was not made here and is left alone.
func shred(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if named, ok := info.Sys().(*syscall.Stat_t); !ok || named.Nlink > 1 || info.Size() > maxSize {
		return errNoFile
	}
	spare, pageSize, err := recordPages(f, info.Size())
	if err != nil {
		spare, pageSize = nil, shredStep
	}
	return zero(f, info.Size(), pageSize, spare, false)
}

// recordPages says of each page whether it holds records only, and nothing that
// the store keeps for itself.
func recordPages(r io.ReaderAt, size int64) (spare []bool, pageSize int64, err error) {
	m, err := readMeta(r, size)
	if err != nil {
		return nil, 0, err
	}
	p, err := newPages(r, size, m)
	if err != nil {
		return nil, 0, err
	}
	root, err := p.take(m.root)
	if err != nil {
		return nil, 0, err
	}
	if order.Uint16(root[8:]) != flagLeaf {
		return nil, 0, errors.New("more buckets than a page holds")
	}
	p.seen = make([]bool, m.high)
	n := int(order.Uint16(root[10:]))
	for i, end := 0, pageHeader+n*element; i < n; i++ {
		at := pageHeader + i*element
		if at+element > len(root) {
			return nil, 0, errors.New("a leaf that is cut")
		}
		pos, keySize := order.Uint32(root[at+4:]), order.Uint32(root[at+8:])
		var name, value []byte
		var ok, ok2 bool
		name, end, ok = cut(root, at, end, pos, keySize)
		value, end, ok2 = cut(root, at, end, pos+keySize, order.Uint32(root[at+12:]))
		if !ok || !ok2 || len(name) == 0 || len(value) < bucketHeader {
			return nil, 0, fmt.Errorf("element %d is not in its place", i)
		}
		if id := order.Uint64(value); name[0] != '_' && id != 0 {
			if err := p.tree(id, false, nil, nil, 0); err != nil {
				return nil, 0, err
			}
		}
	}
	return p.seen, int64(m.pageSize), nil
}

const shredStep = 64 << 10 // bytes at a time
