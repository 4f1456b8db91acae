package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// The audit log (agent/audit) in this daemon: entries go along with what they
// tell of, and after each key change key storage signs the head, outside of the
// transaction. The power may fail in between: the next start signs then.

const (
	bucketLogged    = "audit-logged"
	keyIncarnation  = "incarnation" // incarnationRecord: up to which losses are logged
	auditRetryPause = 15 * time.Second
)

type incarnationRecord struct {
	N uint32 `cbor:"1,keyasint"`
}

// anchors is what signing the log needs to remember.
type anchors struct {
	mu    sync.Mutex
	since uint64    // the store's epoch when it was opened
	tried time.Time // guarded by mu: the last attempt that failed
	owed  bool      // guarded by mu: one failed
	late  []entry   // guarded by mu: entries that are not written yet
}

// maxLate is how many entries wait for room at most.
const maxLate = 64

// entry is one of the log before it is written.
type entry struct {
	kind            audit.Kind
	subject, detail string
}

// audit writes an entry into the transaction of the effect that it tells of.
// Nothing secret belongs into it.
func (v *vault) audit(tx *store.Tx, kind audit.Kind, subject any, format string, args ...any) error {
	return audit.Append(tx, v.clock.Stamp(), kind, fmt.Sprint(subject), fmt.Sprintf(format, args...))
}

// logged logs what has no effect of its own in the store; several share a commit.
func (v *vault) logged(kind audit.Kind, subject any, format string, args ...any) error {
	err := v.store.Batch(func(tx *store.Tx) error { return v.audit(tx, kind, subject, format, args...) })
	if err != nil {
		problem, _ := storageProblem(fmt.Errorf("write to the audit log: %w", err))
		return problem
	}
	return nil
}

// done logs what is done already and cannot be undone. A full disk does not make
// it a failure: the entry is written as soon as there is room.
func (v *vault) done(kind audit.Kind, subject any, format string, args ...any) {
	v.anchors.mu.Lock()
	v.anchors.late = append(v.anchors.late, entry{kind, fmt.Sprint(subject), fmt.Sprintf(format, args...)})
	v.anchors.mu.Unlock()
	v.logLate()
}

// logLate writes the entries that wait, in their order.
func (v *vault) logLate() {
	v.anchors.mu.Lock()
	defer v.anchors.mu.Unlock()
	for len(v.anchors.late) > 0 {
		e := v.anchors.late[0]
		if err := v.logged(e.kind, e.subject, "%s", e.detail); err != nil {
			v.log.Error("not in the audit log yet", "kind", e.kind, "subject", e.subject, "detail", e.detail, "err", err)
			if len(v.anchors.late) > maxLate {
				v.anchors.late = v.anchors.late[1:]
			}
			return
		}
		v.anchors.late = v.anchors.late[1:]
	}
}

// logLosses logs what the store lost since it was last opened. A full disk does
// not keep the daemon from starting: it is logged by the next start then.
func (v *vault) logLosses() {
	if err := v.logLoss(); err != nil {
		v.log.Error("a loss is not in the audit log", "err", err)
	}
}

func (v *vault) logLoss() error {
	st := v.store.State()
	if st.Incarnation == 0 {
		return nil
	}
	return v.store.Update(func(tx *store.Tx) error {
		var before incarnationRecord
		if _, err := tx.Get(bucketLogged, keyIncarnation, &before); err != nil || before.N == st.Incarnation {
			return err
		}
		lost := "the store took another beginning"
		if st.Fallback != nil {
			lost = st.Fallback.Lost
		}
		if err := v.audit(tx, audit.FellBack, fmt.Sprintf("incarnation %d", st.Incarnation), "%s", lost); err != nil {
			return err
		}
		return tx.Put(bucketLogged, keyIncarnation, &incarnationRecord{N: st.Incarnation})
	})
}

// anchor has key storage sign the head of the log, if the store's epoch has gone
// up since it last did, and removes the oldest entries when there are too many.
// A failure is logged and made up for by the next key change, or by runStore.
func (v *vault) anchor() {
	v.anchors.mu.Lock()
	defer v.anchors.mu.Unlock()
	if v.store.State().Unfinished != "" {
		v.anchors.owed, v.anchors.tried = true, time.Now() // key storage is away: do not wait for its deadline once more
		return
	}
	err := errors.Join(v.anchorHead(), v.pruneLog())
	if err != nil && !errors.Is(err, store.ErrClosed) {
		v.log.Warn("audit log not anchored", "err", err)
	}
	v.anchors.owed, v.anchors.tried = err != nil, time.Now()
}

// owing says whether a failed anchor is to be tried again, or entries wait.
func (v *vault) owing() bool {
	v.anchors.mu.Lock()
	defer v.anchors.mu.Unlock()
	return len(v.anchors.late) > 0 || v.anchors.owed && time.Since(v.anchors.tried) >= auditRetryPause
}

// catchUp finishes what the last key change left unfinished, and anchors the log.
func (v *vault) catchUp(ctx context.Context) {
	if err := v.store.Settle(ctx); err != nil {
		v.log.Warn("the last key change is still unfinished", "err", err)
	}
	v.logLate()
	v.anchor()
}

func (v *vault) anchorHead() error {
	epoch := v.store.State().Epoch // before the head is read: it says too little rather than too much
	var next audit.Statement
	var due bool
	err := v.store.View(func(tx *store.Tx) (err error) {
		next, due, err = audit.Head(tx, epoch)
		return err
	})
	if err != nil || !due {
		return err
	}
	next.Device, next.Since, next.Time = v.device, v.anchors.since, v.clock.Stamp()
	signed, err := audit.Sign(next, v.identity)
	if err != nil {
		return err
	}
	return v.store.Update(func(tx *store.Tx) error { return audit.Keep(tx, signed) })
}

func (v *vault) pruneLog() error {
	var base audit.Statement
	var due bool
	err := v.store.View(func(tx *store.Tx) (err error) {
		base, due, err = audit.Old(tx)
		return err
	})
	if err != nil || !due {
		return err
	}
	base.Device, base.Time = v.device, v.clock.Stamp()
	signed, err := audit.Sign(base, v.identity)
	if err != nil {
		return err
	}
	return v.store.Update(func(tx *store.Tx) error { return audit.Prune(tx, signed) })
}

// verifyAudit reads the whole log.
func (v *vault) verifyAudit() (r *audit.Report, err error) {
	err = v.store.View(func(tx *store.Tx) (err error) {
		r, err = audit.Verify(tx, v.device, v.identity.Public(), v.store.State().Epoch)
		return err
	})
	return r, err
}

// Parameters and replies of the methods about the log.
type (
	// AuditParams picks entries: Since is in Unix seconds, 0 for all.
	AuditParams struct {
		Since int64  `json:"since,omitempty"`
		Kind  string `json:"kind,omitempty"`
		// Earlier asks for the logs of stores that were taken over instead.
		Earlier bool `json:"earlier,omitempty"`
	}
	// AuditPage is one piece of the log.
	AuditPage struct {
		Entries []audit.Line `json:"entries"`
	}
)

// auditMethods are those about the log.
func (a *Agent) auditMethods() []control.Method {
	return []control.Method{
		{
			Name: "AuditList", Class: control.Read, In: AuditParams{}, Out: AuditPage{}, Stream: true, Handle: a.auditList,
			Doc: "The audit log, oldest entries first. since is in Unix seconds.",
		},
		{
			Name: "AuditVerify", Class: control.Read, Out: audit.Report{}, Handle: a.auditVerify,
			Doc: "Whether the audit log is sound, and what key storage has signed about it. proof.message is what\n" +
				"proof.signature (ECDSA, SHA-256) signs under proof.public_key.",
		},
	}
}

func (a *Agent) auditList(ctx context.Context, call *control.Call) error {
	var in AuditParams
	if err := call.Params(&in); err != nil {
		return err
	}
	if all := audit.Kinds(); in.Kind != "" && !slices.Contains(all, audit.Kind(in.Kind)) {
		return control.Problemf(control.BadInput, fmt.Sprintf("use one of %s", all), "%q is no kind of entry", in.Kind)
	}
	v, err := a.open()
	if err != nil {
		return err
	}
	list := []audit.Line{}
	err = v.store.View(func(tx *store.Tx) error {
		if in.Earlier {
			return tx.Each(bucketPast, func(_ string, decode func(any) error) error {
				var e audit.Entry
				if err := decode(&e); err != nil {
					return err
				}
				list = append(list, e.Line())
				return ctx.Err()
			})
		}
		return audit.List(tx, audit.Filter{Since: in.Since, Kind: audit.Kind(in.Kind)}, func(l audit.Line) error {
			list = append(list, l)
			return ctx.Err()
		})
	})
	if err != nil {
		return err
	}
	for len(list) > pageSize {
		if err := call.Continue(AuditPage{list[:pageSize]}); err != nil {
			return err
		}
		list = list[pageSize:]
	}
	return call.Reply(AuditPage{list})
}

func (a *Agent) auditVerify(ctx context.Context, call *control.Call) error {
	v, err := a.open()
	if err != nil {
		return err
	}
	r, err := a.looks.audit.get(ctx, func(context.Context) (*audit.Report, error) { return v.verifyAudit() })
	if err != nil {
		return err
	}
	return call.Reply(r)
}

// listed names credentials in an entry.
func listed(ids []transport.Name) string {
	var b strings.Builder
	for i, id := range ids {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(id))
	}
	return b.String()
}
