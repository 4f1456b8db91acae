package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kagimori/kagimori/hsm"
)

// Going on with less than there was: the second copy in the place of the file, or
// an older file. Both count up the incarnation, so that the server can tell this
// life of the terminal from the one that ended, and both are key changes, so that
// no two lives have the same epoch and incarnation.

const (
	brokenSuffix = ".broken-"
	// maxBroken is how many broken files are kept.
	maxBroken = 3
)

// copyIsAhead says whether the second copy is newer than the file: then the file
// lost a key change that was durable, or was replaced. The copy is held against
// the counter later.
func (s *Store) copyIsAhead() bool {
	h, err := s.copyHead()
	return err == nil && (h.Epoch > s.head.Epoch || h.Incarnation > s.head.Incarnation)
}

// fallBack puts what c, the second copy, holds in the place of the file. why is
// what is wrong with that one.
func (o *opener) fallBack(ctx context.Context, c *Store, why error) (*Store, error) {
	if c.todo.count { // the copy may be one ahead, and becomes two
		if err := c.increment(ctx); err != nil {
			return nil, fmt.Errorf("second copy: counter: %w", err)
		}
		c.step("caught up")
	}
	lost := fmt.Sprintf("what was written since key change %d, such as ledger and outbox rows", c.head.Epoch)
	if err := o.replace(ctx, c, WayCopy, lost, func(*Tx) error { return nil }); err != nil {
		return nil, fmt.Errorf("second copy: %w", err)
	}
	o.log.ErrorContext(ctx, "the store went on with its second copy", "path", o.cfg.Path, "lost", lost, "err", why)
	return o.current(ctx, o.cfg.Path)
}

// accept goes on with the newer of two files, either of which may be nil, on the
// administrator's word.
func (o *opener) accept(ctx context.Context, main, other *Store, why error) (*Store, error) {
	s := main
	if main == nil || other != nil && (other.head.Incarnation > main.head.Incarnation ||
		other.head.Incarnation == main.head.Incarnation && other.head.Epoch > main.head.Epoch) {
		s = other
	}
	defer func() { _ = main.Close() }()
	// Whether the counter is there decides what the next epoch is.
	fresh, err := s.renewCounter(ctx)
	if err != nil {
		return nil, err
	}
	if s.todo.count {
		if err := s.increment(ctx); err != nil {
			return nil, fmt.Errorf("counter: %w", err)
		}
	}
	lost := fmt.Sprintf("what was written after key change %d, which an administrator gave up", s.head.Epoch)
	err = o.replace(ctx, s, WayAccepted, lost, func(tx *Tx) error {
		switch {
		case fresh != nil:
			return tx.useNewCounter(fresh)
		case s.counter.blob == nil:
			return nil
		}
		if n := s.head.behind(s.counter.value); n > 0 {
			tx.head.Epoch += uint64(n) // the counter goes on, and so does the epoch
		}
		return nil
	})
	if err != nil {
		if errors.Is(err, ErrFull) && fresh != nil && fresh != &s.counter { // nothing uses it, and places are few
			s.dropCounter(ctx, fresh)
		}
		return nil, fmt.Errorf("accept an older file: %w", err)
	}
	o.log.WarnContext(ctx, "an older store file was accepted", "path", o.cfg.Path, "lost", lost, "err", why)
	return o.current(ctx, o.cfg.Path)
}

// renewCounter gives the counter to go on with when the one that s knows is gone
// or was turned back, nil when s can go on with it. A gone one for which there is
// none is a counter without a blob.
func (s *Store) renewCounter(ctx context.Context) (*counter, error) {
	if s.counter.blob != nil {
		value, err := s.readCounter(ctx)
		switch {
		case err == nil && s.head.behind(value) >= -1:
			return nil, nil
		case err == nil:
			return &s.counter, nil
		case !errors.Is(err, hsm.ErrCounter) && !errors.Is(err, hsm.ErrReplaced) && !errors.Is(err, hsm.ErrBlob):
			return nil, err
		}
	}
	c, _, err := s.makeCounter(ctx) // why there can be none is found out again when it opens
	if c == nil && s.counter.blob != nil {
		c = &counter{}
	}
	return c, err
}

// replace makes a file out of what s holds and puts it in the place of the store,
// whose file is kept. In the new one the loss is noted already, so there is no
// moment at which it is in use and does not know. amend may change more. When the
// disk is full, the oldest of the broken files gives way.
func (o *opener) replace(ctx context.Context, s *Store, way Way, lost string, amend func(*Tx) error) error {
	kept, err := brokenName(o.cfg.Path)
	if err != nil {
		return err
	}
	err = o.replaceOnce(ctx, s, way, kept, lost, amend)
	if !errors.Is(err, ErrFull) || !o.dropBroken(ctx, kept) {
		return err
	}
	return o.replaceOnce(ctx, s, way, kept, lost, amend)
}

// dropBroken removes the oldest broken file but for the one that is being kept,
// and says whether there was one.
func (o *opener) dropBroken(ctx context.Context, but string) bool {
	files := brokenFiles(o.cfg.Path)
	for _, n := range slices.Sorted(maps.Keys(files)) {
		if files[n] == but {
			continue
		}
		err := discard(files[n])
		o.log.WarnContext(ctx, "the disk is full: a broken store file that was kept gives way", "path", files[n], "err", err)
		return err == nil
	}
	return false
}

func (o *opener) replaceOnce(ctx context.Context, s *Store, way Way, kept, lost string, amend func(*Tx) error) (err error) {
	defer func() {
		if err != nil && noSpaceText(err) && !errors.Is(err, ErrFull) {
			err = fmt.Errorf("%w (%w)", ErrFull, err)
		}
	}()
	path := o.cfg.Path
	temp := path + newSuffix
	if err := s.compact(ctx, temp); err != nil {
		return err
	}
	n := emptyStore(o, temp)
	n.key, n.keyed, n.head = s.key.Clone(), s.keyed, s.head
	defer n.Close()
	if n.db, err = openDB(temp, &n.file, false); err != nil {
		return err
	}
	_, err = n.change(func(tx *Tx) error {
		tx.key = true
		tx.head.Incarnation++
		tx.head.Loss = &loss{At: time.Now().Unix(), Kept: kept, Lost: lost, Way: way}
		return amend(tx)
	}, nil)
	if err = errors.Join(err, n.Close(), syncPath(temp)); err != nil {
		return err
	}
	n.step("restored")
	if kept != "" {
		if err := o.keep(path, kept); err != nil {
			return fmt.Errorf("keep the broken file: %w", err)
		}
		n.step("kept")
	}
	return n.place(temp, path, false)
}

// brokenName is the name under which the file at path will be kept, "" when there
// is no such file. A name that stands for this file already is used again.
func brokenName(path string) (string, error) {
	this, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	last := 0
	for n, name := range brokenFiles(path) {
		if that, err := os.Lstat(name); err == nil && os.SameFile(this, that) {
			return name, nil
		}
		last = max(last, n)
	}
	return path + brokenSuffix + strconv.Itoa(last+1), nil
}

// keep gives a file another name, durably, and removes the oldest of those kept
// when they are too many. The old name stays, to be replaced.
func (o *opener) keep(path, name string) error {
	link := os.Link
	if o.cfg.link != nil {
		link = o.cfg.link
	}
	err := link(path, name)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		// A file system without links. The file may be all that is left of the
		// store, so it must not lose its name before another one has it.
		err = duplicate(path, name)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	files := brokenFiles(path)
	for numbers := slices.Sorted(maps.Keys(files)); len(numbers) > maxBroken; numbers = numbers[1:] {
		if err := discard(files[numbers[0]]); err != nil {
			return err
		}
	}
	return syncPath(filepath.Dir(path))
}

// duplicate copies a file to a name that is free, durably.
func duplicate(path, name string) error {
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	if err = errors.Join(err, to.Sync(), to.Close()); err != nil {
		_ = os.Remove(name)
	}
	return err
}

// lastBroken is the newest of the files that were kept, "" when there is none.
func lastBroken(path string) string {
	files := brokenFiles(path)
	if len(files) == 0 {
		return ""
	}
	return files[slices.Max(slices.Collect(maps.Keys(files)))]
}

// brokenFiles are those that were kept, by number.
func brokenFiles(path string) map[int]string {
	files := map[int]string{}
	entries, _ := os.ReadDir(filepath.Dir(path)) // none is what an unreadable directory has, too
	for _, e := range entries {
		if number, ok := strings.CutPrefix(e.Name(), filepath.Base(path)+brokenSuffix); ok {
			if n, err := strconv.Atoi(number); err == nil && n > 0 {
				files[n] = filepath.Join(filepath.Dir(path), e.Name())
			}
		}
	}
	return files
}
