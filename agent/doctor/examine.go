package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/tpm"
	"github.com/kagimori/kagimori/transport/control"
)

func daemonDown(s *Snapshot) []Finding {
	if s.Running {
		return nil
	}
	return []Finding{found(DaemonDown, Fault, "the daemon does not run; this is what can be seen without it")}
}

// ClassOf gives an error of key storage or store its class; "" for nil.
func ClassOf(err error) Class {
	if err == nil {
		return ""
	}
	// The more telling ones come first: an error may wrap several.
	for _, c := range []struct {
		is    error
		class Class
	}{
		{store.ErrOlder, StoreOlder},
		{hsm.ErrCounter, CounterGone},
		{hsm.ErrBoot, BootChanged},
		{hsm.ErrPassphrase, Passphrase},
		{hsm.ErrLockout, LockedOut},
		{hsm.ErrOwnerAuth, OwnerPassword},
		{hsm.ErrBusy, ChipBusy},
		{hsm.ErrAbsent, ChipAbsent},
		{hsm.ErrReplaced, RootReplaced},
		{store.ErrForeign, RootReplaced},
		{hsm.ErrTimeout, ChipSilent},
		{store.ErrUnfinished, CopyStale},
		{store.ErrFull, DiskFull},
		{syscall.ENOSPC, DiskFull},
		{syscall.EDQUOT, DiskFull},
		{syscall.EROFS, StoreRefused},
		{store.ErrLocked, StoreRefused},
		{store.ErrNewer, StoreRefused},
		{hsm.ErrUnsafe, StoreRefused},
		{fs.ErrPermission, StoreRefused},
		{fs.ErrNotExist, StoreRefused},
		{store.ErrDamaged, StoreDamaged},
		{store.ErrFailed, StoreDamaged},
		{hsm.ErrBlob, RootReplaced},
	} {
		if errors.Is(err, c.is) {
			return c.class
		}
	}
	return ChipSilent
}

// storageFindings: it does not open, or what was open cannot be used.
func storageFindings(s *Snapshot) (list []Finding) {
	for _, err := range []error{s.Storage, s.Use, s.HealthErr} {
		if err == nil {
			continue
		}
		text := err.Error()
		if boot, ok := errors.AsType[*hsm.BootError](err); ok {
			text = fmt.Sprintf("PCRs %v differ from what the store key was sealed to: %s", boot.Changed, text)
		}
		class := ClassOf(err)
		if slices.ContainsFunc(list, func(f Finding) bool { return f.Class == class }) {
			continue // the same trouble, met again
		}
		f := found(class, Fault, text)
		// What was refused differs: who gathered this knows the step.
		if p, ok := errors.AsType[*control.Problem](err); ok && class == StoreRefused && p.Next != "" {
			f.Next = p.Next
		}
		list = append(list, f)
	}
	return list
}

func chipFindings(s *Snapshot) (list []Finding) {
	if s.Health == nil || s.Health.Chip == nil {
		return nil
	}
	l := &s.Health.Chip.Lockout
	if l.Locked {
		list = append(list, found(LockedOut, Warning, fmt.Sprintf("%d wrong tries, the limit is %d; one more try is taken in %s, if nobody guesses on", l.Count, l.Limit, spell(l.Wait()))))
	} else if l.Count > 0 {
		f := found(LockedOut, Note, fmt.Sprintf("%s counted, at %d it locks; one is forgotten every %s", count(int(l.Count), "wrong try is", "wrong tries are"), l.Limit, spell(l.Recovery)))
		f.Consequence, f.Next = "none yet", "nothing, if somebody mistyped a PIN; else find out who guesses"
		list = append(list, f)
	}
	return list
}

// manyCounters is from how many of the chip's places for counters on a new store
// may soon find none.
const manyCounters = tpm.MaxCounters * 3 / 4

func counterFindings(s *Snapshot) []Finding {
	if s.Health == nil || s.Health.Chip == nil || s.Health.Chip.Counters < manyCounters {
		return nil
	}
	return []Finding{found(CountersTaken, Warning, fmt.Sprintf("%d of %d places for counters, from handle %#x on, are taken", s.Health.Chip.Counters, tpm.MaxCounters, uint32(tpm.FirstCounter)))}
}

func bootFindings(s *Snapshot) []Finding {
	if s.Store == nil || !s.Store.NotMeasured {
		return nil
	}
	return []Finding{found(NotMeasured, Warning, "the configuration wants keys bound to the boot, and nothing is measured into its registers")}
}

func storeFindings(s *Snapshot) (list []Finding) {
	st := s.Store
	if st == nil {
		return nil
	}
	if fb := st.Fallback; fb != nil {
		list = append(list, lossFinding(fb))
	}
	if st.Unfinished != "" {
		list = append(list, found(CopyStale, Warning, st.Unfinished))
	} else if !st.CopyFresh {
		list = append(list, found(CopyStale, Warning, fmt.Sprintf("the second copy is not of epoch %d", st.Epoch)))
	}
	if st.Counter == nil && s.Health != nil && s.Health.RollbackProof {
		list = append(list, found(CounterGone, Warning, strings.TrimSuffix("the store has no counter: "+st.Unprotected, ": ")))
	}
	return list
}

// lossFinding says in which way the store went on.
func lossFinding(fb *store.Fallback) Finding {
	f := found(StoreFallback, Warning, "lost: "+fb.Lost)
	kept := "the broken file"
	switch fb.Way {
	case store.WayAccepted:
		f.Cause, kept = "an administrator accepted a store file that key storage could not vouch for: an older one, or the counter was gone", "the file that was there"
		f.Consequence, f.Next = "what was written after that file is lost, as the text says", "let it connect to the server, which is told what is held here and puts things right; this goes away then"
	case store.WayRecovered:
		f.Cause, kept = "the store was recovered onto this key storage, whose counter does not know it", "the file that was there"
		f.Consequence, f.Next = "if the file was not the newest, what was written after it is lost", "let it connect to the server, which is told what is held here and puts things right; this goes away then"
	}
	if !fb.At.IsZero() {
		f.Text = fmt.Sprintf("on %s %s", stamp(fb.At), f.Text)
	}
	if fb.Kept != "" {
		f.Text += "; " + kept + " is kept as " + fb.Kept
	}
	return f
}

func auditFindings(s *Snapshot) []Finding {
	a := s.Audit
	switch {
	case a == nil:
		return nil
	case a.Break != nil:
		return []Finding{found(AuditBroken, Fault, fmt.Sprintf("at entry %d: %s", a.Break.Seq, a.Break.Reason))}
	case len(a.Gaps) > 0:
		return []Finding{gapFinding(a.Gaps)}
	}
	return nil
}

// gapFinding is about the first gap that no loss explains, or else about the last.
func gapFinding(gaps []audit.Gap) Finding {
	i := slices.IndexFunc(gaps, func(g audit.Gap) bool { return !g.Loss })
	if i >= 0 {
		f := found(AuditBroken, Warning, fmt.Sprintf("a gap: nothing was signed between epochs %d and %d of the store", gaps[i].After, gaps[i].Before))
		f.Cause = "a gap in what is signed about the audit log: key storage could not sign at that time, or the log was cut back"
		f.Consequence = "what is in the log is sound; whether something is missing from that time, nobody can tell"
		return f
	}
	g := gaps[len(gaps)-1]
	f := found(AuditBroken, Note, fmt.Sprintf("a gap: nothing is signed between epochs %d and %d of the store, which lost them, as the log tells", g.After, g.Before))
	f.Cause = "a gap in what is signed about the audit log: the store went on with its second copy, an older file or another chip"
	f.Consequence, f.Next = "what is in the log is sound; what was logged in that time is lost", "nothing, if you know of that loss; else see: kagimori audit list --kind fell-back"
	return f
}

// spell writes a span as people say it.
func spell(d time.Duration) string {
	switch d = d.Round(time.Second); {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", d/time.Hour)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d minutes", d/time.Minute)
	}
	return fmt.Sprintf("%d seconds", d/time.Second)
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }
