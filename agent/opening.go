package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/systemd"
	"github.com/kagimori/kagimori/transport/control"
)

// Opening key storage and store. It may fail for a reason that passes by itself,
// and then it is tried again; or for one that somebody has to put right: then
// the daemon stays, says what it waits for, and takes a remedy from the verbs
// (DESIGN D5: there is always a rescue path).

// A Remedy is what an administrator has decided about a store that does not
// open. The zero value just tries once more.
type Remedy struct {
	// Key is a store key that was kept elsewhere: the store is opened with it and
	// sealed anew to the key storage that there is. Lent.
	Key *hsm.Secret
	// Older takes a store although there was a newer one.
	Older bool
	// Aside, when set, says in words why the store is moved away, with nothing
	// deleted, for a fresh one in its place.
	Aside string
	// Secret moves the device secret away as well: it cannot be read either.
	Secret bool
}

// A remedyOrder is a remedy on its way to the loop that opens.
type remedyOrder struct {
	Remedy
	done chan error // gets the outcome, has room for it
}

// answer tells whoever waits; nobody waits for a nil order.
func (o *remedyOrder) answer(err error) {
	if o != nil {
		o.Key.Wipe()
		o.done <- err
	}
}

// openVault tries until it works, ctx ends (nil, nil) or it is hopeless.
func (a *Agent) openVault(ctx context.Context, fatal context.CancelCauseFunc) (*vault, error) {
	loop := a.dog.Loop("open")
	defer loop.End()
	once := sync.OnceFunc(func() { close(a.ready) })
	var with *remedyOrder
	for pause := reopenFirst; ; pause = min(2*pause, reopenMost) {
		var v *vault
		var err error
		var remedy Remedy
		if with != nil {
			remedy = with.Remedy
		}
		a.beating(loop, openingTime, func() { v, err = openVault(ctx, a.opener, remedy, a.clock, a.log) })
		if err == nil {
			a.vaultOpen(ctx, v, fatal)
			once()
			a.changed()
			with.answer(nil)
			return v, nil
		}
		problem, hopeless := a.explain(err)
		if ctx.Err() != nil || hopeless {
			with.answer(problem)
			if ctx.Err() != nil {
				return nil, nil
			}
			return nil, problem
		}
		seen := a.look(ctx, err)
		a.mu.Lock()
		before := a.cause
		a.problem, a.cause, a.seen = problem, err, seen
		a.mu.Unlock()
		with.answer(problem) // whoever waits may ask for the cause next
		a.link.set(LinkStatus{State: LinkStarting, Error: "waits for key storage"})
		if !errors.Is(err, hsm.ErrPassphrase) || !errors.Is(before, hsm.ErrPassphrase) { // it waits for somebody, not for luck
			a.log.Error("key storage does not open; trying again", "err", err, "next", problem.Next, "pause", pause)
		}
		once()
		if with, err = a.awaitRemedy(ctx, loop, pause); err != nil {
			return nil, nil
		}
		if with != nil {
			pause = reopenFirst
		}
	}
}

// vaultOpen puts a vault into use.
func (a *Agent) vaultOpen(ctx context.Context, v *vault, fatal context.CancelCauseFunc) {
	v.dir = a.cfg.StateDir
	a.noteAside(ctx, v)
	v.changed, v.relisted, v.failed = a.changed, a.recheck, func(err error) { fatal(fmt.Errorf("store: %w", err)) }
	a.mu.Lock()
	a.vault, a.problem, a.cause, a.seen = v, nil, nil, nil
	a.mu.Unlock()
	close(a.opened)
	a.log.Info("key storage open", "level", v.module.Level(), "device", v.device.Short())
	if self, err := v.self(); err == nil { // so that the first answer is not "starting"
		a.link.set(a.waitsFor(self))
		self.wipe()
	}
}

// look reads what is in clear in a store that will not open by itself: whether
// it can be recovered. Nothing to see is no error.
func (a *Agent) look(ctx context.Context, cause error) map[string]hsm.Blob {
	if a.cfg.StateDir == "" || !lostForGood(cause) {
		return nil
	}
	seen, err := store.Peek(ctx, filepath.Join(a.cfg.StateDir, storeFile))
	if err != nil {
		a.log.Debug("the store cannot be looked into", "err", err)
	}
	return seen
}

// awaitRemedy waits until pause is over (nil, nil), a remedy comes, or ctx has
// ended.
func (a *Agent) awaitRemedy(ctx context.Context, loop *systemd.Loop, pause time.Duration) (*remedyOrder, error) {
	over := time.NewTimer(pause)
	defer over.Stop()
	tick, stop := a.dog.Tick()
	defer stop()
	for {
		loop.Beat()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-over.C:
			return nil, nil
		case o := <-a.orders:
			return o, nil
		case <-tick:
		}
	}
}

// try hands a remedy to the loop that opens and waits what comes of it. It
// fails with a Conflict when key storage is open.
func (a *Agent) try(ctx context.Context, r Remedy) error {
	o := &remedyOrder{Remedy: r, done: make(chan error, 1)}
	if r.Key != nil {
		o.Key = r.Key.Clone()
	}
	select {
	case a.orders <- o:
	case <-a.opened:
		o.Key.Wipe()
		return control.Problemf(control.Conflict, "see: "+a.cfg.Program+" status", "key storage is open: there is nothing to put right")
	case <-ctx.Done():
		o.Key.Wipe()
		return ctx.Err()
	}
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Cause is why key storage is not open, typed (hsm.Err…, store.Err…); nil when
// it is open or nobody has tried yet.
func (a *Agent) Cause() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cause
}

// explain is storageProblem in this program's own verbs.
func (a *Agent) explain(err error) (*control.Problem, bool) {
	p, fatal := storageProblem(err)
	if a.cfg.Program != "" && a.cfg.Program != "kagimori" {
		own := *p
		own.Next = strings.ReplaceAll(p.Next, "kagimori ", a.cfg.Program+" ")
		p = &own
	}
	return p, fatal
}

const (
	nextRecover = "if they are gone for good: `kagimori recovery import FILE` with a recovery file, or else `kagimori recovery start`, which sets the store aside and asks the server"
	nextOlder   = "put the newest file back; if there is none: kagimori recovery accept-older"
)

// diskFull says whether something failed for want of room.
func diskFull(err error) bool {
	return errors.Is(err, store.ErrFull) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// storageProblem says what is wrong with key storage or store, and what to do.
// fatal is what only another start of the daemon can help; everything else is
// retried, and the daemon serves what it still can.
func storageProblem(err error) (p *control.Problem, fatal bool) {
	for _, c := range []struct {
		is    error
		kind  control.Kind
		next  string
		fatal bool
	}{
		{store.ErrLocked, control.Conflict, "stop the other daemon first, or give this one a state directory of its own (state_dir)", true},
		{hsm.ErrPassphrase, control.Storage, "give it with: kagimori unlock; if nobody knows it any more, see: kagimori recovery --help", false},
		{hsm.ErrAbsent, control.Storage, "check that the TPM is there and enabled and that the daemon's user may open it (group tss), or that the unit passes the credential that is named; or correct [hsm] in the configuration", false},
		{hsm.ErrBusy, control.Storage, "stop the other program that uses the TPM, or use /dev/tpmrm0, which can be shared", false},
		{hsm.ErrOwnerAuth, control.Storage, "clear the TPM's owner password, or set [hsm] kind = \"file\" and provision anew", false},
		{hsm.ErrLockout, control.Storage, "wait until the TPM's lockout has passed; do not restart it again and again, that prolongs it", false},
		{hsm.ErrBoot, control.Storage, "boot the system that the keys are bound to, or have this one approved (boot_approvals, see kagimori boot show); if neither can be: `kagimori recovery import FILE` with a recovery file, or else `kagimori recovery start`", false},
		{store.ErrOlder, control.Storage, nextOlder, false},
		{hsm.ErrCounter, control.Storage, "put the TPM or device secret back; if it was cleared: kagimori recovery accept-older", false},
		{hsm.ErrNoCounter, control.Storage, "remove counters in the TPM that nobody needs (tpm2_getcap handles-nv-index); until then the store is not protected against older files", false},
		{hsm.ErrReplaced, control.Storage, "put the TPM or device secret back that this state directory was made with; " + nextRecover, false},
		{store.ErrForeign, control.Storage, "put that TPM or device secret back; " + nextRecover, false},
		{hsm.ErrBlob, control.Storage, "if the message names a damaged file, put the right one back; if [hsm] kind was changed, change it back; " + nextRecover, false},
		{hsm.ErrUnsafe, control.Storage, "give the file named above to the daemon's user, mode 0600, in a directory that nobody else can write", false},
		{hsm.ErrTimeout, control.Storage, "nothing to do at first, it is tried again; if it stays, restart the TPM by a power cycle", false},
		{store.ErrDamaged, control.Storage, "put back a backup of the file; if there is none: `kagimori recovery start`, which sets the store aside and asks the server", false},
		{store.ErrNewer, control.Storage, "install the newer release again", false},
		{store.ErrUnfinished, control.Storage, "nothing to do once that works again: the daemon finishes it by itself; what is missing says: kagimori doctor", false},
		{store.ErrFull, control.Storage, "free space on the disk of the state directory", false},
		{store.ErrFailed, control.Storage, "look into the kernel log for disk errors, then restart the daemon", true},
		{syscall.ENOSPC, control.Storage, "free space on the disk of the state directory", false},
		{syscall.EDQUOT, control.Storage, "free space on the disk of the state directory", false},
		{syscall.EROFS, control.Storage, "see in the kernel log (dmesg) why the disk of the state directory is read-only, check its file system, and mount it for writing again", false},
		{fs.ErrNotExist, control.Storage, "make the state directory, or correct state_dir", false},
		{fs.ErrPermission, control.Storage, "give the state directory to the daemon's user, mode 0700", false},
	} {
		if errors.Is(err, c.is) {
			return control.Problemf(c.kind, c.next, "%w", err), c.fatal
		}
	}
	return control.Problemf(control.Storage, "look into the daemon's log", "%w", err), false
}
