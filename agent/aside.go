package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/kagimori/kagimori/hsm"
)

// A store that does not open is set aside: moved, never deleted, into
// aside/1, aside/2, … of the state directory, so that a fresh one can begin and
// the old one be read once its key is back. The move is of several files; an
// intent, written first, has it finished at the next start if the power goes.

const (
	asideDir    = "aside"
	asideIntent = "set-aside"
	asideWhy    = "why.txt"
	// maxAside is how many are kept at most.
	maxAside = 16
	// maxIntent bounds an intent, in bytes.
	maxIntent = 1 << 10
	// deviceSecret is what the file module's names begin with in a state directory.
	deviceSecret = "device.secret"
)

// asideMove is what the intent says.
type asideMove struct {
	To     string `json:"to"`     // name of the directory in asideDir
	Secret bool   `json:"secret"` // the device secret goes too
}

// errAsideFull has its own next step.
var errAsideFull = errors.New("too many stores are set aside already: look into the directory aside, and remove what nobody needs")

// setAside moves the store in dir away, and says where it is then.
func setAside(dir string, secret bool, why string) (name string, err error) {
	if err := finishAside(dir); err != nil {
		return "", err
	}
	before, err := asides(dir)
	if err != nil {
		return "", fmt.Errorf("set the store aside: %w", err)
	}
	if len(before) >= maxAside {
		return "", errAsideFull
	}
	n := 1
	if len(before) > 0 {
		last, _ := strconv.Atoi(before[len(before)-1])
		n = last + 1
	}
	name = strconv.Itoa(n)
	to := filepath.Join(dir, asideDir, name)
	intent, err := json.Marshal(asideMove{To: name, Secret: secret})
	if err == nil {
		err = hsm.MakeDir(filepath.Join(dir, asideDir), 0o700)
	}
	if err == nil {
		err = hsm.MakeDir(to, 0o700)
	}
	if err == nil {
		err = hsm.WriteFile(filepath.Join(to, asideWhy), []byte(why+"\n"), 0o600)
	}
	if err == nil {
		err = hsm.WriteFile(filepath.Join(dir, asideIntent), intent, 0o600)
	}
	if err != nil {
		takeBackAside(dir, to)
		return "", fmt.Errorf("set the store aside: %w", err)
	}
	return name, finishAside(dir)
}

// takeBackAside removes what an attempt that failed, on a full disk, has made: it
// would count as a store, and there are not many places. While there is an intent
// it is no attempt any more.
func takeBackAside(dir, to string) {
	if err := os.Remove(filepath.Join(dir, asideIntent)); err == nil || errors.Is(err, fs.ErrNotExist) {
		_ = os.Remove(filepath.Join(to, asideWhy))
		_ = os.Remove(to) // not if there is anything in it
	}
}

// finishAside does what an intent says, if there is one.
func finishAside(dir string) error {
	intent := filepath.Join(dir, asideIntent)
	data, err := readIntent(intent)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var m asideMove
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	if err == nil && !isAside(m.To) {
		err = fmt.Errorf("%s names %q", intent, m.To)
	}
	if err == nil {
		err = moveAside(dir, m)
	}
	if err == nil {
		err = os.Remove(intent)
	}
	if err == nil {
		err = syncDirectory(dir)
	}
	if err != nil {
		return fmt.Errorf("set the store aside: %w", err)
	}
	return nil
}

// readIntent does not wait for a pipe, nor take in more than an intent can be:
// the daemon does not start before.
func readIntent(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxIntent))
}

func moveAside(dir string, m asideMove) error {
	to := filepath.Join(dir, asideDir, m.To)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		isStore := strings.HasPrefix(name, storeFile) && name != storeFile+".lock"
		if !isStore && !(m.Secret && strings.HasPrefix(name, deviceSecret)) {
			continue
		}
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(to, name)); err != nil {
			return err
		}
	}
	return errors.Join(syncDirectory(to), syncDirectory(dir))
}

// asides names the stores that are set aside in dir, oldest first.
func asides(dir string) (names []string, err error) {
	entries, err := os.ReadDir(filepath.Join(dir, asideDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if e.IsDir() && isAside(e.Name()) {
			names = append(names, e.Name())
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		x, _ := strconv.Atoi(a)
		y, _ := strconv.Atoi(b)
		return x - y
	})
	return names, err
}

// isAside says whether a name is one that setAside gives.
func isAside(name string) bool {
	n, err := strconv.Atoi(name)
	return err == nil && n > 0 && strconv.Itoa(n) == name
}

// scrubAside destroys a store that was taken over: its files are overwritten
// and removed. A flash may keep what was overwritten: what protects it there is
// that its key is nowhere any more but in the server's wrap.
func scrubAside(dir, name string) error {
	at := filepath.Join(dir, asideDir, name)
	entries, err := os.ReadDir(at)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		path := filepath.Join(at, e.Name())
		err = errors.Join(err, overwrite(path), os.Remove(path))
	}
	if err == nil {
		err = errors.Join(syncDirectory(at), os.Remove(at), syncDirectory(filepath.Dir(at)))
	}
	if err != nil {
		return fmt.Errorf("destroy the store that was set aside: %w", err)
	}
	return nil
}

// overwrite leaves alone what is no file of ours: a link, a pipe, a file with
// another name besides.
func overwrite(path string) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.ENXIO) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() || fi.Sys().(*syscall.Stat_t).Nlink > 1 {
		return nil
	}
	zeros := make([]byte, 64<<10)
	for at := int64(0); at < fi.Size(); at += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), fi.Size()-at)], at); err != nil {
			return err
		}
	}
	return f.Sync()
}

func syncDirectory(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
