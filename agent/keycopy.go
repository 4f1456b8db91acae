package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"sync"
	"time"

	"github.com/kagimori/kagimori/agent/audit"
	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/tcp"
)

// The shell of the key copy (DESIGN D10, docs/keycopy.md): agent/keycopy decides,
// transport/tcp carries, this file gives both what they need of this terminal.
// keycopy_offer.go is the old terminal's end, behind keycopy_door.go;
// keycopy_fetch.go is the new one's, with keycopy_stage.go for what comes in and
// keycopy_resume.go for going on. keycopy_deal.go is what is on record, and
// keycopy_journal.go and keycopy_keys.go how each step of it is written;
// keycopy_list.go shows it, keycopy_settle.go ends it, keycopy_report.go tells the
// server. chip_copy.go is for keys in a TPM.

const bucketAttempts = "attempts" // role → keycopy.AttemptLog

// KeycopyConfig is how this terminal takes part in key copies.
type KeycopyConfig struct {
	// Listen is where an offer waits, host:port; only while it stands.
	Listen string
	// CodeTTL is how long an operator code lives: at most, and by default,
	// keycopy.CodeLifetime.
	CodeTTL time.Duration
	// Codes says who makes operator codes; "" is keycopy.CodesGenerated.
	Codes keycopy.CodePolicy
	// Announce answers those on the local networks who ask where an offer waits.
	Announce bool
	// Numbers are those that are written on this terminal: a code of an operator's
	// own has nothing of them. The terminal's name need not be among them.
	Numbers []string
	// Modes are those that are enabled, the default first; none is
	// transport.KeycopyPAKE alone.
	Modes []transport.KeycopyMode
	// RequireIdentity wants an identity certificate of both terminals in mode pake
	// too.
	RequireIdentity bool
}

// role is which end of a copy this terminal is.
type role string

const (
	roleSource role = "source"
	roleTarget role = "target"
)

// copies is what is under way.
type copies struct {
	once   sync.Once
	queue  chan arming     // to runKeycopy
	seat   chan struct{}   // full while this terminal is a Target: see begin
	asks   chan *settleAsk // to the link
	arming sync.Mutex      // held while an offer is made

	mu      sync.Mutex
	offer   *offering  // guarded by mu: the one that stands
	listen  string     // guarded by mu: where the door is open; empty: it is shut
	shut    string     // guarded by mu: why it is, although it should not be
	judging bool       // guarded by mu: key storage looks at a PIN
	wrong   wrongCodes // of the one fetch under way, or the last
	// troubles is guarded by mu: why the last attempt to go on with a transaction
	// failed.
	troubles map[transport.ID]string
}

// trouble is why a transaction did not go on when that was tried last.
func (c *copies) trouble(id transport.ID) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.troubles[id]
}

func (c *copies) setTrouble(id transport.ID, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if why == "" {
		delete(c.troubles, id)
		return
	}
	if c.troubles == nil {
		c.troubles = map[transport.ID]string{}
	}
	c.troubles[id] = why
}

func (c *copies) init() {
	c.once.Do(func() { c.queue, c.seat, c.asks = make(chan arming), make(chan struct{}, 1), make(chan *settleAsk) })
}

func (c *copies) armed() chan arming {
	c.init()
	return c.queue
}

func (c *copies) place() chan struct{} {
	c.init()
	return c.seat
}

func (c *copies) settling() chan *settleAsk {
	c.init()
	return c.asks
}

// copying says whether this terminal is a Target just now.
func (c *copies) copying() bool { return len(c.place()) > 0 }

// standing is the offer that stands; nil if there is none.
func (c *copies) standing() *offering {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.offer
}

// a party is what both ends of a copy need of this terminal.
type party struct {
	vault *vault
	self  *terminalRecord
	roots *x509.CertPool
	tcp   tcp.Config
	codes []keycopy.SecurityCode // newest first, at least one
	clock keycopy.Clock
	// invited, if set, is where a Target finds its Source.
	invited *keycopy.Invitation
}

// party readies this terminal for a new copy.
func (a *Agent) party() (*party, error) {
	p, err := a.endpoint()
	if err != nil {
		return nil, err
	}
	var held []heldCode
	err = p.vault.store.View(func(tx *store.Tx) error {
		held = heldCodes(tx, p.self)
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, c := range held {
		p.codes = append(p.codes, keycopy.SecurityCode{
			ID:  transport.KeycopyCodeID{Group: p.self.Group, Epoch: c.epoch},
			MAC: func(ctx context.Context, m []byte) (*hsm.Secret, error) { return p.vault.module.MAC(ctx, c.blob, m) },
		})
	}
	if len(p.codes) == 0 {
		if p.vault.reenroll() {
			return nil, control.Problemf(control.Conflict, "have it enrolled anew: kagimori-server terminal reenroll "+string(p.self.Terminal), "the security code was in the key storage that is gone")
		}
		return nil, control.Problemf(control.Conflict, "let it connect to the management server once: the code comes with enrollment", "this device has no security code yet")
	}
	return p, nil
}

// endpoint readies this terminal for going on with a transaction: that takes no
// security code.
func (a *Agent) endpoint() (*party, error) {
	if a.cfg.Keycopy == nil {
		return nil, control.Problemf(control.Conflict, "set enabled = [\"pake\"] in the [keycopy] section of the configuration", "key copies are switched off on this terminal")
	}
	v, err := a.open()
	if err != nil {
		return nil, err
	}
	self, err := v.self()
	if err != nil {
		return nil, err
	}
	if self == nil {
		return nil, control.Problemf(control.Conflict, "take in a bundle first: "+a.cfg.Program+" provision BUNDLE", "this device has no security code yet")
	}
	self.wipe()
	p := &party{vault: v, self: self, clock: a.keycopyClock()}
	if p.roots, err = self.roots(); err != nil {
		return nil, err
	}
	p.tcp = tcp.Config{Log: a.log, Verify: func(chain []*x509.Certificate) (transport.Name, error) {
		return transport.VerifyTerminal(chain, p.roots, self.Deployment, a.clock.Judge(chain))
	}}
	// An expired identity would be refused; without one the codes still hold.
	if cert, err := v.identityCertificate(); err != nil {
		return nil, err
	} else if cert != nil {
		chain, err := transport.ParseChain(cert.Certificate)
		if err == nil && !a.clock.Judge(chain).After(chain[0].NotAfter) {
			p.tcp.Certificate = cert
		}
	}
	return p, nil
}

// sameIdentity says whether two parties show the same certificate.
func (p *party) sameIdentity(q *party) bool {
	a, b := p.tcp.Certificate, q.tcp.Certificate
	if a == nil || b == nil || len(a.Certificate) == 0 || len(b.Certificate) == 0 {
		return a == b
	}
	return bytes.Equal(a.Certificate[0], b.Certificate[0])
}

// keycopyClock measures lifetimes by the system's clocks, which the server's
// time does not move, and judges and dates by what the agent knows.
func (a *Agent) keycopyClock() keycopy.Clock {
	return func() keycopy.Instant {
		now := a.clock.read()
		return keycopy.Instant{Wall: now.wall, Mono: now.boot, Date: a.clock.Earliest()}
	}
}

// attempts counts guesses in the store (keycopy.Attempts).
type attempts struct {
	vault *vault
	role  role
	now   func() time.Time // Clock.Steady, which the log's times are of
	tag   *uint16          // of the code that was typed, if it is an operator's own
}

var _ keycopy.Attempts = attempts{}

// Count records an attempt durably before anybody learns of its outcome.
func (t attempts) Count(_ context.Context, typed *keycopy.OperatorCode) error {
	var verdict error
	err := t.change(func(tx *store.Tx, log *keycopy.AttemptLog) error {
		if t.role == roleTarget {
			verdict = log.CountTyped(t.now(), typed, rand.Reader)
		} else {
			verdict = log.Count(t.now())
		}
		if verdict != nil {
			return nil
		}
		return t.vault.useCode(tx, t.tag, false)
	})
	return errors.Join(err, verdict)
}

// check says what Count would refuse, without counting: before anybody is
// called for nothing.
func (t attempts) check(typed *keycopy.OperatorCode) error {
	var verdict error
	err := t.vault.store.View(func(tx *store.Tx) error {
		var log keycopy.AttemptLog
		_, err := tx.Get(bucketAttempts, string(t.role), &log)
		verdict = log.CheckTyped(t.now(), typed)
		return err
	})
	return errors.Join(err, verdict)
}

// Succeed takes the last attempt back.
func (t attempts) Succeed(context.Context) error {
	return t.change(func(tx *store.Tx, log *keycopy.AttemptLog) error {
		log.Succeed()
		return t.vault.useCode(tx, t.tag, true)
	})
}

func (t attempts) change(do func(*store.Tx, *keycopy.AttemptLog) error) error {
	return t.vault.update(func(tx *store.Tx) error {
		var log keycopy.AttemptLog
		if _, err := tx.Get(bucketAttempts, string(t.role), &log); err != nil {
			return err
		}
		before := log.Level
		if err := do(tx, &log); err != nil {
			return err
		}
		if log.Level > before {
			if err := t.vault.audit(tx, audit.CopyLocked, string(t.role), "too many wrong operator codes"); err != nil {
				return err
			}
		}
		return tx.Put(bucketAttempts, string(t.role), &log)
	})
}

// wrongCode logs a run that ended with one. Whoever does not even hold the
// security code is not logged: else anybody on the network could fill the log.
func (v *vault) wrongCode(remote string) {
	if err := v.logged(audit.CopyFailed, remote, "wrong operator code"); err != nil {
		v.log.Error("wrong operator code not logged", "err", err) // it is counted
	}
}

// locked is for how long a role takes no more guesses.
func locked(tx *store.Tx, r role, now time.Time) (time.Duration, error) {
	var log keycopy.AttemptLog
	if _, err := tx.Get(bucketAttempts, string(r), &log); err != nil {
		return 0, err
	}
	return log.Lock(now), nil
}

// waits says whether a guess still counts, or a key copy is open, so that Clock.Steady is worth keeping.
func (v *vault) waits() (found bool, err error) {
	now := v.clock.Steady()
	err = v.store.View(func(tx *store.Tx) error {
		for _, r := range []role{roleSource, roleTarget} {
			var log keycopy.AttemptLog
			if _, err := tx.Get(bucketAttempts, string(r), &log); err != nil {
				return err
			}
			found = found || log.Lock(now) > 0 || len(log.Failures) > 0
		}
		return eachOpen(tx, func(*dealRecord) error { // its time is measured by it, too
			found = true
			return store.ErrStop
		})
	})
	return found, err
}
