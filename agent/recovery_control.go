package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime/debug"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// LabelRecovery names the passphrase of a recovery file on the control socket.
const LabelRecovery = "recovery passphrase"

// Parameters and replies of the methods about recovery.
type (
	// RecoveryStarted says where the store is that was set aside.
	RecoveryStarted struct {
		Directory string         `json:"directory"`
		Recovery  RecoveryStatus `json:"recovery"`
		Next      string         `json:"next"`
	}
	// RecoveryExportParams: ReplyKey is a control.Reader's.
	RecoveryExportParams struct {
		ReplyKey string `json:"reply_key"`
	}
	// RecoveryExported is a recovery file; Passphrase is sealed to the caller's
	// key under LabelRecovery.
	RecoveryExported struct {
		File       []byte         `json:"file"`
		Passphrase string         `json:"passphrase"`
		Store      transport.ID   `json:"store"`
		Terminal   transport.Name `json:"terminal,omitempty"`
	}
	// RecoveryImportParams: Passphrase is sealed under LabelRecovery.
	RecoveryImportParams struct {
		File       []byte `json:"file"`
		Passphrase string `json:"passphrase"`
	}
	// RecoveryImported says what the file has opened: the store in place, or one
	// that was set aside.
	RecoveryImported struct {
		Device      transport.DeviceID `json:"device"`
		Reenroll    bool               `json:"reenroll"`
		Credentials int                `json:"credentials"`
		Taken       *Takeover          `json:"taken,omitempty"`
		Next        string             `json:"next,omitempty"`
	}
)

// recoveryMethods are those about recovery.
func (a *Agent) recoveryMethods() []control.Method {
	return []control.Method{
		{
			Name: "RecoveryStatus", Class: control.Read, Out: RecoveryStatus{}, Handle: a.recoveryShow,
			Doc: "What is prepared for the loss of key storage, what is under way, and what can be done now.",
		},
		{
			Name: "RecoveryStart", Class: control.Admin, Out: RecoveryStarted{}, Handle: a.recoveryStart,
			Doc: "Sets a store that does not open aside, deleting nothing, and begins a fresh one.",
		},
		{
			Name: "RecoveryAcceptOlder", Class: control.Admin, Out: RecoveryStatus{}, Handle: a.recoveryAccept,
			Doc: "Takes a store file although key storage says that there was a newer one.",
		},
		{
			Name: "RecoveryExport", Class: control.Admin, In: RecoveryExportParams{}, Out: RecoveryExported{}, Handle: a.recoveryExport,
			Doc: "Makes a recovery file: the store key under a passphrase, which comes sealed to reply_key under\n\"recovery passphrase\".",
		},
		{
			Name: "RecoveryImport", Class: control.Admin, In: RecoveryImportParams{}, Out: RecoveryImported{}, Handle: a.recoveryImport,
			Doc: "Opens the store that does not open, or one that was set aside, with a recovery file.",
		},
	}
}

func (a *Agent) recoveryShow(_ context.Context, call *control.Call) error {
	s, err := a.recovery()
	if err != nil {
		return err
	}
	return call.Reply(s)
}

// recovery is how recovery stands, whether key storage is open or not.
func (a *Agent) recovery() (RecoveryStatus, error) {
	a.mu.Lock()
	v, problem, cause, seen := a.vault, a.problem, a.cause, a.seen
	a.mu.Unlock()
	if v != nil {
		return v.recoveryStatus(a.cfg.Program)
	}
	s := RecoveryStatus{Aside: []AsideStatus{}, Possible: []string{}, Text: problem.Message, Next: problem.Next}
	if w := readWrap(seen[blobWrap]); w != nil {
		s.Wrap = w.Version
	}
	if tooOld(cause) {
		s.Possible = append(s.Possible, "accept-older")
	}
	if lostForGood(cause) {
		s.Possible = append(s.Possible, "import", "start")
	}
	return s, nil
}

// closedCause is why key storage is not open; an error when it is, or when
// nobody knows yet.
func (a *Agent) closedCause() (error, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.vault != nil:
		return nil, control.Problemf(control.Conflict, "see: "+a.cfg.Program+" recovery status", "key storage is open: there is nothing to put right")
	case a.cause == nil:
		return nil, a.problem
	}
	return a.cause, nil
}

// presentCause is closedCause once more when the cause, as it was last, is none
// that a verb can help: it may have been the full disk that a remedy failed on,
// and is made room on since.
func (a *Agent) presentCause(ctx context.Context, helps func(error) bool) (error, error) {
	cause, err := a.closedCause()
	if err != nil || helps(cause) {
		return cause, err
	}
	if err := a.try(ctx, Remedy{}); ctx.Err() != nil {
		return nil, err
	}
	return a.closedCause()
}

// tooOld says whether a store is refused for its age only.
func tooOld(cause error) bool {
	return errors.Is(cause, store.ErrOlder) || errors.Is(cause, hsm.ErrCounter)
}

func (a *Agent) recoveryStart(ctx context.Context, call *control.Call) error {
	cause, err := a.presentCause(ctx, lostForGood)
	if err != nil {
		return err
	}
	if !lostForGood(cause) {
		return a.errNotLost(cause)
	}
	_, module := errors.AsType[moduleError](cause)
	if err := a.try(ctx, Remedy{Aside: cause.Error(), Secret: module}); err != nil {
		return err
	}
	v, err := a.open()
	if err != nil {
		return err
	}
	if err := a.asideUnnoted(); diskFull(err) {
		p, _ := a.explain(err)
		return control.Problemf(p.Kind, p.Next+"; the daemon goes on by itself then, see: "+a.cfg.Program+" recovery status", "the store is set aside and a fresh one has begun, but nobody is asked for its key yet: %w", err)
	}
	out := RecoveryStarted{Next: fmt.Sprintf("have an administrator make a bundle with `kagimori-server terminal reenroll`, and take it in: %s provision BUNDLE", a.cfg.Program)}
	if out.Recovery, err = v.recoveryStatus(a.cfg.Program); err != nil {
		return err
	}
	if n := len(out.Recovery.Aside); n > 0 {
		out.Directory = filepath.Join(a.cfg.StateDir, asideDir, out.Recovery.Aside[n-1].Name)
	}
	return call.Reply(out)
}

func (a *Agent) recoveryAccept(ctx context.Context, call *control.Call) error {
	cause, err := a.presentCause(ctx, tooOld)
	if err != nil {
		return err
	}
	if !tooOld(cause) {
		p, _ := a.explain(cause)
		if diskFull(cause) {
			return p
		}
		return control.Problemf(control.Conflict, p.Next, "the store is not refused for its age: %w", cause)
	}
	if err := a.try(ctx, Remedy{Older: true}); err != nil {
		return err
	}
	v, err := a.open()
	if err != nil {
		return err
	}
	v.done(audit.OlderAccepted, call.Peer.Name(), "%v", cause)
	s, err := v.recoveryStatus(a.cfg.Program)
	if err != nil {
		return err
	}
	return call.Reply(s)
}

func (a *Agent) recoveryExport(_ context.Context, call *control.Call) error {
	var in RecoveryExportParams
	if err := call.Params(&in); err != nil {
		return err
	}
	out, passphrase, err := a.exportFile(call.Peer.Name())
	if err != nil {
		return err
	}
	defer passphrase.Wipe()
	if out.Passphrase, err = control.SealTo(in.ReplyKey, LabelRecovery, passphrase); err != nil {
		return err
	}
	return call.Reply(out)
}

// exportFile makes a recovery file for somebody.
func (a *Agent) exportFile(by string) (*RecoveryExported, transport.Sensitive, error) {
	a.intake.Lock() // Argon2id takes memory
	defer a.intake.Unlock()
	v, err := a.open()
	if err != nil {
		return nil, nil, err
	}
	f := transport.RecoveryFile{Device: v.device, Made: v.clock.Stamp()}
	err = v.store.View(func(tx *store.Tx) error {
		var self terminalRecord
		_, err := tx.Get(bucketTerminal, keySelf, &self)
		self.wipe()
		f.Store, f.Deployment, f.Terminal = storeID(tx), self.Deployment, self.Terminal
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	out := &RecoveryExported{Store: f.Store, Terminal: f.Terminal}
	var passphrase transport.Sensitive
	err = v.kept.WithKey(func(key *hsm.Secret) (err error) {
		f.Key = key.Bytes()
		out.File, passphrase, err = transport.SealRecoveryFile(&f)
		f.Key = nil
		return err
	})
	debug.FreeOSMemory()
	if err != nil {
		return nil, nil, err
	}
	err = v.update(func(tx *store.Tx) error {
		return errors.Join(tx.Put(bucketRecovery, keyExport, &exportRecord{Time: f.Made}), v.audit(tx, audit.RecoverySet, by, "a recovery file was made"))
	})
	if err != nil {
		passphrase.Wipe()
		return nil, nil, err
	}
	return out, passphrase, nil
}

func (a *Agent) recoveryImport(ctx context.Context, call *control.Call) error {
	var in RecoveryImportParams
	if err := call.Params(&in); err != nil {
		return err
	}
	passphrase, err := call.Unseal(LabelRecovery, in.Passphrase)
	if err != nil {
		return err
	}
	defer passphrase.Wipe()
	out, err := a.importFile(ctx, in.File, passphrase)
	if err != nil {
		return err
	}
	return call.Reply(out)
}

// importFile opens with a recovery file what it belongs to.
func (a *Agent) importFile(ctx context.Context, file []byte, passphrase transport.Sensitive) (*RecoveryImported, error) {
	a.intake.Lock()
	defer a.intake.Unlock()
	f, err := transport.OpenRecoveryFile(file, passphrase)
	debug.FreeOSMemory()
	if err != nil {
		next := "copy the file again from where it is kept"
		if errors.Is(err, transport.ErrRecoveryPassphrase) {
			next = "type the passphrase as it was shown when the file was made"
		}
		return nil, control.Problemf(control.BadInput, next, "%w", err)
	}
	key := hsm.NewSecret(f.Key)
	defer key.Wipe()
	if v, err := a.open(); err == nil {
		return a.importAside(ctx, v, f, key)
	}
	cause, err := a.presentCause(ctx, lostForGood)
	if err != nil {
		return nil, err
	}
	if !lostForGood(cause) {
		return nil, a.errNotLost(cause)
	}
	a.mu.Lock()
	id := a.seen[blobStoreID]
	a.mu.Unlock()
	if id != nil && string(id) != string(f.Store[:]) {
		return nil, foreignFile(f)
	}
	switch err := a.try(ctx, Remedy{Key: key}); {
	case errors.Is(err, store.ErrKey):
		return nil, foreignFile(f)
	case err != nil:
		return nil, err
	}
	v, err := a.open()
	if err != nil {
		return nil, err
	}
	return a.imported(v, nil)
}

func foreignFile(f *transport.RecoveryFile) error {
	of := "a device without a name"
	if f.Terminal != "" {
		of = fmt.Sprintf("%s of deployment %s", f.Terminal, f.Deployment)
	}
	return control.Problemf(control.Refused, "use the recovery file that was made on this very device, for this store", "this recovery file is of another store: it was made on %s", of)
}

// importAside takes over the store that a file belongs to and that was set aside.
func (a *Agent) importAside(ctx context.Context, v *vault, f *transport.RecoveryFile, key *hsm.Secret) (*RecoveryImported, error) {
	list, err := v.asides()
	if err != nil {
		return nil, err
	}
	name, others := "", 0
	for _, e := range list {
		if !e.Taken {
			others++
		}
		if !e.Taken && (e.Store == f.Store || e.Store == transport.ID{}) {
			name = e.name
		}
		e.wipe()
	}
	switch {
	case name == "" && others == 0:
		return nil, control.Problemf(control.Conflict, "see: "+a.cfg.Program+" recovery status", "key storage is open and no store is set aside: there is nothing to recover")
	case name == "":
		return nil, foreignFile(f)
	}
	t, err := v.takeOver(ctx, name, key, transport.RecoveryDenied)
	if errors.Is(err, store.ErrKey) {
		return nil, foreignFile(f)
	}
	if errors.Is(err, errTaken) {
		return nil, control.Problemf(control.Conflict, "see: "+a.cfg.Program+" recovery status", "%w: its key came from the server meanwhile", err)
	}
	if err != nil {
		return nil, err
	}
	return a.imported(v, t)
}

func (a *Agent) imported(v *vault, t *Takeover) (*RecoveryImported, error) {
	s, err := v.recoveryStatus(a.cfg.Program)
	if err != nil {
		return nil, err
	}
	sum, err := v.summary()
	if err != nil {
		return nil, err
	}
	return &RecoveryImported{Device: v.device, Reenroll: s.Reenroll, Credentials: sum.Total, Taken: t, Next: s.Next}, nil
}
