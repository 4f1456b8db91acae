package agent

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/kagimori/kagimori/agent/doctor"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// What the doctor is told about this daemon. Package doctor draws the
// conclusions; here things are only looked at.

// examineTime bounds what key storage is asked: a chip may be dead.
const examineTime = 8 * time.Second

// Doctor examines the daemon and what it stands on.
func (a *Agent) Doctor(ctx context.Context) *doctor.Report {
	r, err := a.looks.doctor.get(ctx, func(ctx context.Context) (*doctor.Report, error) {
		r := doctor.Examine(a.snapshot(ctx))
		return r, ctx.Err() // what was cut short is nobody else's
	})
	if r == nil && err != nil { // it was never its turn
		r = doctor.Examine(&doctor.Snapshot{Program: a.cfg.Program, StateDir: a.cfg.StateDir, Running: true, Storage: err})
	}
	return r
}

func (a *Agent) snapshot(ctx context.Context) *doctor.Snapshot {
	ctx, cancel := context.WithTimeout(ctx, examineTime)
	defer cancel()
	a.mu.Lock()
	v, problem := a.vault, a.problem
	a.mu.Unlock()
	s := &doctor.Snapshot{Program: a.cfg.Program, StateDir: a.cfg.StateDir, Running: true, Open: v != nil, Unit: doctor.ReadUnit(), Clock: a.clock.examined()}
	if a.cfg.StateDir != "" {
		s.Disk = doctor.ReadDisk(a.cfg.StateDir)
	}
	s.Link = a.linkExamined()
	if v == nil {
		if problem != nil && problem != errStarting {
			s.Storage = problem
		}
		switch doctor.ClassOf(s.Storage) {
		case doctor.ChipAbsent, doctor.ChipBusy, doctor.ChipSilent:
			return s // it would only make people wait
		}
		if a.cfg.Examine != nil {
			if h, err := a.cfg.Examine(ctx); err == nil { // else Storage says why
				s.Health = &h
			}
		}
		return s
	}
	if s.Link.Refused && v.reenroll() {
		s.Link.Next = a.keysOpen(v).Next
	}
	v.examined(ctx, s)
	a.held(v, s)
	return s
}

// examined looks at key storage and store while they are open.
func (v *vault) examined(ctx context.Context, s *doctor.Snapshot) {
	if h, err := v.module.Health(ctx); err != nil {
		s.HealthErr = err
	} else {
		s.Health = &h
	}
	s.Use = v.usable(ctx)
	if st := v.store.State(); st.Bond != "" {
		s.Store = &st
	}
	report, err := v.verifyAudit()
	if err == nil {
		s.Audit = report
	} else {
		s.Storage = err
	}
}

// usable proves that the device's key can be used.
func (v *vault) usable(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { // a Signer knows no context; the module's own deadline ends it
		digest := sha256.Sum256([]byte("kagimori doctor"))
		_, err := v.identity.Sign(rand.Reader, digest[:], crypto.SHA256)
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("use the device's key: %w", err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("use the device's key: %w", hsm.ErrTimeout)
	}
}

func (c *Clock) examined() doctor.Time {
	s := c.Status()
	c.mu.Lock()
	defer c.mu.Unlock()
	t := doctor.Time{System: c.wall(), Floor: s.Floor, Trusted: s.Trusted, Off: time.Duration(s.Off) * time.Second}
	t.Plausible = !t.System.Before(c.floor) && t.System.Sub(c.floor) <= plausibleSpan
	return t
}

// linkExamined tells what went wrong last, also while the next attempt is made.
func (a *Agent) linkExamined() doctor.Link {
	now, trouble := a.link.get(a.clock), a.link.lastTrouble()
	l := doctor.Link{Up: now.Up(), Server: now.Server, Error: trouble.Error, Next: trouble.Next, Refused: trouble.State == LinkRefused}
	switch now.State {
	case LinkConnecting, LinkEnrolling, LinkConnected, LinkWaiting, LinkRefused:
		l.Wanted = true
	}
	return l
}

// held tells what is under way or waits, and which certificates there are.
func (a *Agent) held(v *vault, s *doctor.Snapshot) {
	s.Held.Copying = a.copies.copying()
	a.copies.mu.Lock()
	s.Held.Offer, s.Held.PIN = a.copies.offer != nil, a.copies.judging
	a.copies.mu.Unlock()
	err := v.store.View(func(tx *store.Tx) error {
		for bucket, n := range map[string]*int{bucketOutbox: &s.Held.Results, bucketPending: &s.Held.Requested, bucketClaims: &s.Held.Unreported, bucketReports: &s.Held.Untold} {
			err := tx.Each(bucket, func(string, func(any) error) error {
				*n++
				return nil
			})
			if err != nil {
				return err
			}
		}
		return errors.Join(v.copiesExamined(tx, s, a.cfg.Program), v.certificates(tx, s))
	})
	if err != nil {
		s.Storage = err
	}
}

// copiesExamined lists key copies that are not over, and those by which two
// terminals use one key.
func (v *vault) copiesExamined(tx *store.Tx, s *doctor.Snapshot, program string) error {
	now := v.clock.Steady()
	return eachDeal(tx, func(d *dealRecord) error {
		t := &d.Deal
		if !t.Phase.Open() && !t.Conflict {
			return nil
		}
		c := doctor.Copy{Txn: short(t.ID), Twice: t.Conflict, Open: now.Sub(time.Unix(d.Opened, 0))}
		c.Text, c.Next = inWords(d, program)
		switch n := int(d.counts().Moved); {
		case t.Conflict:
			c.Next = bothUseNext
		case t.Phase == transport.KeycopyStaged:
			c.Staged = n
		case t.Phase == transport.KeycopyCommitted:
			c.Away = n
		}
		s.Held.Copies = append(s.Held.Copies, c)
		return nil
	})
}

// certificates lists the identity's, and of each service the credential that
// lasts longest.
func (v *vault) certificates(tx *store.Tx, s *doctor.Snapshot) error {
	var identity identityRecord
	if _, err := tx.Get(bucketIdentity, keyChain, &identity); err != nil {
		return err
	}
	if c, ok := v.certificate(identity.Chain, "this terminal's identity"); ok {
		s.Certificates = append(s.Certificates, c)
	}
	var self terminalRecord
	if _, err := tx.Get(bucketTerminal, keySelf, &self); err != nil {
		return err
	}
	self.wipe()
	best := map[transport.Name]int{}
	return eachHolding(tx, func(h *holdingRecord) error {
		r := &h.Record
		c, ok := v.certificate(r.Chain, fmt.Sprintf("credential %s for %s", r.ID, r.Service))
		if !ok || r.State != transport.CredentialActive || h.Away != nil {
			return nil
		}
		c.Next = issueAnew(self.Terminal, r.Service)
		if i, found := best[r.Service]; !found {
			best[r.Service] = len(s.Certificates)
			s.Certificates = append(s.Certificates, c)
		} else if c.Left > s.Certificates[i].Left {
			s.Certificates[i] = c
		}
		return nil
	})
}

func (v *vault) certificate(der [][]byte, what string) (c doctor.Cert, ok bool) {
	chain, err := transport.ParseChain(der)
	if err != nil {
		return c, false
	}
	leaf := chain[0]
	return doctor.Cert{
		What: what, Expires: leaf.NotAfter.UTC(), Left: leaf.NotAfter.Sub(v.clock.Judge(chain)), Life: leaf.NotAfter.Sub(leaf.NotBefore),
	}, true
}

// doctorMethods are the doctor's and those about the chip and PINs.
func (a *Agent) doctorMethods() []control.Method {
	return []control.Method{
		{
			Name: "Doctor", Class: control.Read, Out: doctor.Report{},
			Doc: "What is wrong, what that leads to and what to do; what would break if the power failed now.",
			Handle: func(ctx context.Context, call *control.Call) error {
				return call.Reply(a.Doctor(ctx))
			},
		},
		{
			Name: "KeyStorage", Class: control.Read, Out: hsm.Health{}, Handle: a.keyStorage,
			Doc: "What key storage says of itself: of a TPM its state and its guard against guessing. Times in\nnanoseconds.",
		},
		{
			Name: "LockoutSet", Class: control.Admin, In: LockoutParams{}, Handle: a.lockoutSet,
			Doc: "Sets the TPM's guard against guessing. password is sealed under the label \"lockout password\";\n" +
				"a wrong one is never tried again. Times are in seconds.",
		},
		{
			Name: "LockoutReset", Class: control.Admin, In: LockoutParams{}, Handle: a.lockoutReset,
			Doc: "Makes the TPM forget the wrong tries that it has counted. Only password is read.",
		},
	}
}
