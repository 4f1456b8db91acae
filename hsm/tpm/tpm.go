// Package tpm keeps keys in a TPM 2.0: a chip behind /dev/tpmrm0, or an
// emulator behind a unix socket. START HERE: Open and the queue; chip.go is what
// one goroutine does with the chip, root.go the storage root key, session.go
// the encrypted session, object.go what is made and loaded under the root,
// command.go how a command is put together.
//
// The rules, each the answer to a failure in the field:
//
//   - One goroutine owns the chip. A command has a deadline; after an I/O error
//     the connection is closed, nothing that may have run is sent again, the next
//     use reconnects.
//   - All keys lie under the ECC storage root key of the TCG template. A key
//     that stands at its handle is compared with the template, never trusted;
//     the digest of its Name is in each blob, checked before it is used.
//   - Every command that carries a secret, in or out, runs in a session that is
//     salted to the checked root key, with AES-128-CFB parameter encryption. A
//     chip that cannot do that is refused; nothing falls back to clear text.
//   - Every object that a machine uses is NoDA: a power cut at the wrong moment must
//     not count as a wrong guess, or terminals lock themselves out. What a person's
//     PIN opens counts, and the chip is told of an orderly stop after each use.
//   - LOCKOUT is reported, never retried; wrong passwords and PINs are sent once.
package tpm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/kagimori/kagimori/hsm"
)

// DefaultPath is the kernel's resource manager: each open file has sessions and
// objects of its own, which the kernel clears up.
const DefaultPath = "/dev/tpmrm0"

// commandTimeout bounds one command, its repetitions after RETRY included. The
// slowest that are sent (Create, CreatePrimary on P-256) take under a second on
// the slowest chips we know figures of; a chip in self test may take ten.
const commandTimeout = 20 * time.Second

// Module is a TPM in use.
type Module struct {
	level hsm.Level
	jobs  chan job
	quit  chan struct{} // closed by Close
	once  sync.Once     // guards the closing of quit
	ended chan struct{} // closed when the owner goroutine has ended
}

var (
	_ hsm.Module        = (*Module)(nil)
	_ hsm.BootSealer    = (*Module)(nil)
	_ hsm.LockoutSetter = (*Module)(nil)
	_ hsm.Migrator      = (*Module)(nil)
)

// A job is what the owner goroutine runs.
type job func(*chip)

// Open connects to the TPM at path, a device node or a unix socket, and finds
// or makes its storage root key. No TPM is hsm.ErrAbsent, one in use
// hsm.ErrBusy, an owner password hsm.ErrOwnerAuth.
func Open(ctx context.Context, path string, log *slog.Logger) (*Module, error) {
	c, err := configFor(path, log)
	if err != nil {
		return nil, fmt.Errorf("open TPM: %w", err)
	}
	m, err := open(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("open TPM %s: %w", path, err)
	}
	return m, nil
}

// config is what sets one module apart from another.
type config struct {
	dial  dialer
	level hsm.Level
	raw   bool          // no resource manager: clear up after killed processes
	limit time.Duration // for one command
	log   *slog.Logger

	skipOrderly bool // tests only: what happens without TPM2_Shutdown
}

func configFor(path string, log *slog.Logger) (config, error) {
	c := config{limit: commandTimeout, log: log.With("tpm", path)}
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return c, fmt.Errorf("%w: %s is not there; load the TPM driver, or name another path", hsm.ErrAbsent, path)
	case err != nil:
		return c, err
	case fi.Mode()&fs.ModeSocket != 0:
		c.dial, c.raw, c.level = socketDialer(path), true, hsm.LevelTPMSocket
	case fi.Mode()&fs.ModeCharDevice != 0 && direct(path):
		return c, fmt.Errorf("%s is the chip itself; use %s, the kernel's resource manager", path, DefaultPath)
	case fi.Mode()&fs.ModeCharDevice != 0:
		c.dial, c.level = deviceDialer(func() (int, error) { return openNode(path) }), hsm.LevelTPM
	default:
		return c, fmt.Errorf("%s is neither a device nor a socket; use %s", path, DefaultPath)
	}
	return c, nil
}

// direct tells a node such as /dev/tpm0, which has one user at a time and
// keeps what a killed user left behind.
func direct(path string) bool {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	name := filepath.Base(path)
	return strings.HasPrefix(name, "tpm") && !strings.HasPrefix(name, "tpmrm")
}

func open(ctx context.Context, cfg config) (*Module, error) {
	m := start(cfg)
	_, err := do(ctx, m, nil, func(c *chip) (struct{}, error) { return struct{}{}, nil })
	if err != nil {
		m.once.Do(func() { close(m.quit) }) // the owner ends by itself, at its command's deadline at the latest
		return nil, err
	}
	return m, nil
}

// start makes a module that has not asked the chip anything yet.
func start(cfg config) *Module {
	m := &Module{level: cfg.level, jobs: make(chan job), quit: make(chan struct{}), ended: make(chan struct{})}
	go m.own(&chip{config: cfg, quit: m.quit, gone: errNotConnected})
	return m
}

// own is the one goroutine that touches the chip.
func (m *Module) own(c *chip) {
	defer close(m.ended)
	defer c.release()
	for {
		select {
		case <-m.quit:
			return
		case j := <-m.jobs:
			j(c)
		}
	}
}

// Level says how well keys are protected here.
func (m *Module) Level() hsm.Level { return m.level }

// Close lets the running command end, then takes all that is ours out of the
// chip. Calls that wait get hsm.ErrClosed.
func (m *Module) Close() error {
	m.once.Do(func() { close(m.quit) })
	<-m.ended
	return nil
}

// outcome is what a job hands back.
type outcome struct {
	value any
	err   error
}

// do has the owner run f and waits for it. A caller whose ctx ends leaves at
// once; f then stops before its next command, and its result is thrown away.
// The input secret is do's to wipe, for it may be in use after the caller left.
func do[T any](ctx context.Context, m *Module, input *hsm.Secret, f func(*chip) (T, error)) (T, error) {
	return typed[T](runWith(ctx, m, input, func(c *chip) (any, error) { return f(c) }, (*chip).run))
}

// doBare is do for what needs no root key.
func doBare[T any](ctx context.Context, m *Module, f func(*chip) (T, error)) (T, error) {
	return typed[T](runWith(ctx, m, nil, func(c *chip) (any, error) { return f(c) }, (*chip).runBare))
}

func typed[T any](value any, err error) (T, error) {
	v, _ := value.(T)
	return v, err
}

// runWith is one function for all types: the agent is to be small.
func runWith(ctx context.Context, m *Module, input *hsm.Secret, f func(*chip) (any, error),
	how func(*chip, context.Context, func() error) error) (any, error) {
	out := make(chan outcome)
	run := func(c *chip) {
		defer input.Wipe()
		var o outcome
		o.err = how(c, ctx, func() (err error) {
			o.value, err = f(c)
			return err
		})
		select {
		case out <- o:
		case <-ctx.Done():
			if s, ok := o.value.(*hsm.Secret); ok {
				s.Wipe()
			}
		}
	}
	if err := m.submit(ctx, run); err != nil {
		input.Wipe()
		return nil, err
	}
	select {
	case o := <-out:
		if o.err != nil {
			return nil, o.err
		}
		return o.value, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// submit returns when the owner has taken the job.
func (m *Module) submit(ctx context.Context, j job) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	select {
	case <-m.quit: // before the next select, where it may lose
		return hsm.ErrClosed
	default:
	}
	select {
	case m.jobs <- j:
		return nil
	case <-m.quit:
		return hsm.ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
