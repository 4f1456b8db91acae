package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport/control"
)

const initKillDir = "KAGIMORI_INIT_KILL_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(initKillDir); dir != "" {
		fmt.Fprintln(os.Stderr, initHalf(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// initHalf is the child: an Init that stands still with the keys of the CAs
// made and the database begun.
func initHalf(dir string) error {
	cfg := initConfig(dir)
	cfg.Open = func(ctx context.Context, dir string) (hsm.Module, error) {
		m, err := openFile(ctx, dir)
		return stuckSealer{m}, err
	}
	return Init(context.Background(), cfg, quiet())
}

// stuckSealer does not come back from its first Seal.
type stuckSealer struct{ hsm.Module }

func (stuckSealer) Seal(context.Context, *hsm.Secret) (hsm.Blob, error) {
	fmt.Println("half")
	_, err := io.Copy(io.Discard, os.Stdin) // until the test lets go, or dies
	return nil, err
}

// What a killed init leaves is found by the next, and gone after it.
func TestKilledInitLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	tmp := filepath.Join(filepath.Dir(dir), ".state.init")
	for range 2 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), initKillDir+"="+dir)
		cmd.Stderr = os.Stderr
		hold, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		defer hold.Close()
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		said, err := bufio.NewReader(out).ReadString('\n')
		if strings.TrimSpace(said) != "half" {
			t.Errorf("the child says %q, %v", said, err)
		}
		if err := Init(t.Context(), initConfig(dir), quiet()); !errors.Is(err, &control.Problem{Kind: control.Conflict}) {
			t.Errorf("beside another one: %v", err)
		}
		cmd.Process.Kill()
		cmd.Wait()
		if _, err := os.Stat(filepath.Join(tmp, "state", "device.secret")); err != nil {
			t.Errorf("the child was not half-way: %v", err)
		}
	}
	if err := Init(t.Context(), initConfig(dir), quiet()); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if err := os.Mkdir(dir+"2", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir+"2", filepath.Join(filepath.Dir(dir), ".other.init")); err != nil {
		t.Fatal(err)
	}
	if err := Init(t.Context(), initConfig(filepath.Join(filepath.Dir(dir), "other")), quiet()); !errors.Is(err, &control.Problem{Kind: control.Storage}) {
		t.Errorf("a link in the way: %v", err)
	}
}
