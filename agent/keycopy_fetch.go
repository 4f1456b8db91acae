package agent

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/tcp"
)

// The new terminal's end (req: C1, C2, C5, C8): the operator code was typed
// here, the credentials are checked and installed in one transaction, and
// reported to the server when there is one.

// fetch copies credentials from another terminal. Hanging up (ctx) stops it as
// long as the codes have not been matched; after that it is seen through.
func (a *Agent) fetch(ctx context.Context, order fetchOrder, report func(KeycopyEvent)) (*KeycopyEvent, error) {
	defer order.typed.Wipe()
	p, address, err := a.fetcher(&order)
	if err != nil {
		return nil, err
	}
	if !a.copies.begin(ctx, beginTime) {
		return nil, control.Problemf(control.Conflict, "wait until it is done", "another copy to this terminal is under way")
	}
	defer a.copies.end()
	parent, err := p.vault.keycopyParent(ctx)
	if err != nil {
		problem, _ := storageProblem(err)
		return nil, problem
	}
	code, tag, err := a.typedCode(ctx, p, order.typed)
	if err != nil {
		return nil, err
	}
	counter := attempts{vault: p.vault, role: roleTarget, now: a.clock.Steady, tag: tag}
	if err := counter.check(code); err != nil {
		code.Wipe()
		return nil, a.fetchFailed(address, nil, true, err)
	}
	defer code.Wipe()
	if err := a.settleFirst(ctx, p, report); err != nil {
		return nil, err
	}
	var granted atomic.Bool
	cfg := p.targetConfig("", func(ev keycopy.Event) {
		if ev.Kind == keycopy.EventGranted {
			granted.Store(true)
		}
		if worthTelling(ev) {
			report(tell(ev, roleTarget))
		}
	})
	cfg.Attempts, cfg.Parent = counter, parent
	cfg.Modes, cfg.RequireIdentity = a.cfg.Keycopy.modes(), a.cfg.Keycopy.RequireIdentity
	order.set(&cfg)
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(ctx, func() {
		if !granted.Load() {
			stop()
		}
	})()
	t, err := p.copyFrom(running, address, cfg, code)
	if t == nil && errors.Is(err, transport.KeycopyAuthFailed) && code.Remaining(p.clock()) == 0 { // else nobody has looked at it
		p.vault.wrongCode(address)
	}
	if open := errors.Is(err, keycopy.ErrNotClosed) || errors.Is(err, keycopy.ErrInterrupted); open {
		t, err = a.persist(ctx, p, t, err, report)
	}
	if err != nil && !errors.Is(err, keycopy.ErrNotClosed) {
		return nil, a.fetchFailed(address, t, code.Remaining(p.clock()) > 0, err)
	}
	a.copies.wrong = wrongCodes{}
	return a.fetched(p, t, err)
}

// set puts into cfg what is to be fetched, and how.
func (o *fetchOrder) set(cfg *keycopy.TargetConfig) {
	cfg.Select, cfg.Mode = o.selected, o.mode
	if o.copyOnly {
		cfg.Want = transport.TransferCopy
	}
}

// fetcher readies this terminal for a fetch, of which it finds out the mode.
func (a *Agent) fetcher(order *fetchOrder) (p *party, address string, err error) {
	if p, err = a.party(); err != nil {
		return nil, "", err
	}
	if address, err = p.find(order.address); err != nil {
		return nil, "", err
	}
	if err = checkFetch(address, order.selected); err != nil {
		return nil, "", err
	}
	if order.mode, err = a.cfg.Keycopy.propose(order.mode, p.identity() != nil); err != nil {
		return nil, "", err
	}
	p.tcp.Modes = []transport.KeycopyMode{order.mode}
	return p, address, nil
}

// copyFrom runs a copy under the newest security code that both ends hold. Only
// a peer that does not know a code is asked again, with the one before: nothing
// has been proven to it by then, and the operator code is as good as new.
func (p *party) copyFrom(ctx context.Context, address string, cfg keycopy.TargetConfig, code *keycopy.OperatorCode) (t *keycopy.Transaction, err error) {
	for n, c := range p.codes {
		if n > 0 {
			select {
			case <-time.After(tcp.StrangerPause + strangerMargin): // else the other end does not listen
			case <-ctx.Done():
				return t, err
			}
		}
		var conn *tcp.Conn
		if conn, err = p.dial(ctx, address); err != nil {
			return nil, err
		}
		cfg.Code = c
		if t, err = keycopy.Fetch(ctx, conn, keycopy.NewTarget(cfg, code)); !errors.Is(err, transport.KeycopyCodeUnknown) {
			break
		}
	}
	return t, err
}

// strangerMargin is for the way between the terminals.
const strangerMargin = 100 * time.Millisecond

// checkFetch refuses what cannot work, before a code is used up for it.
func checkFetch(address string, selected []transport.Name) error {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return control.Problemf(control.Usage, "give it as the old terminal shows it, for example 192.0.2.7:8885", "%q is not HOST:PORT", address)
	}
	for _, id := range selected {
		if _, err := transport.ParseName(string(id)); err != nil {
			return control.Problemf(control.BadInput, "type it as the old terminal shows it; this cost no attempt", "credential %.80q: %w", id, err)
		}
	}
	if len(selected) > transport.MaxKeycopySelect {
		return control.Problemf(control.BadInput, "leave them out to copy all, or copy in several runs", "%d credentials selected, the limit is %d", len(selected), transport.MaxKeycopySelect)
	}
	return nil
}

// targetConfig is what this terminal takes part with as the new one. remote, if
// set, is where the other end is now.
func (p *party) targetConfig(remote string, progress func(keycopy.Event)) keycopy.TargetConfig {
	return keycopy.TargetConfig{
		End:      keycopy.End{Device: p.vault.device, Clock: p.clock, Random: rand.Reader, Progress: progress},
		Identity: p.identity(), Journal: stager{journal{vault: p.vault, remote: remote}, p},
	}
}

// beginTime is how long a fetch waits for an automatic attempt that is under way.
const beginTime = 15 * time.Second

// begin takes the one place of this terminal as a Target, if it is free in time.
func (c *copies) begin(ctx context.Context, wait time.Duration) bool {
	limit := time.NewTimer(wait)
	defer limit.Stop()
	select {
	case c.place() <- struct{}{}:
		return true
	default:
	}
	select {
	case c.place() <- struct{}{}:
		return true
	case <-limit.C:
	case <-ctx.Done():
	}
	return false
}

func (c *copies) end() { <-c.place() }

// identity signs the receipt, if the certificate is shown at all.
func (p *party) identity() crypto.Signer {
	if p.tcp.Certificate == nil {
		return nil
	}
	return p.vault.identity
}

// unconfirmed is for keys that are in use here while the old terminal has not
// said that it knows. What moved is disabled there by then.
func unconfirmed(t *keycopy.Transaction) string {
	who := peerText(t.Name, &t.Peer, t.Remote)
	if n := len(t.Moving()); n > 0 {
		return fmt.Sprintf("done: %s moved here and in use; %s has disabled %s and, left on, destroys %s as soon as it hears of it; you may unplug the old terminal now",
			count(n, "key"), who, them(n), them(n))
	}
	return fmt.Sprintf("%s here; %s did not confirm that it knows: leave it on, this terminal comes back to it by itself", count(len(t.Taken()), "key"), who)
}

// fetched says what has come, and what to do next.
func (a *Agent) fetched(p *party, t *keycopy.Transaction, notClosed error) (*KeycopyEvent, error) {
	ev := tell(keycopy.Event{Kind: keycopy.EventClosed, Transaction: t}, roleTarget)
	switch {
	case notClosed != nil:
		ev.Step, ev.Text = string(keycopy.EventInstalled), unconfirmed(t)
	case t.Phase == transport.KeycopyDropped:
		return nil, control.Problemf(control.Unavailable, newCode, "the old terminal has ended this copy: %s", outcome(t))
	case t.Phase == transport.KeycopyUnreceipted:
		ev.Step, ev.Text = string(keycopy.EventEnded), outcome(t)
		if t.Conflict {
			ev.Step, ev.Text, ev.Next = string(keycopy.EventConflict), ev.Text+"; "+bothUse, bothUseNext
			return &ev, nil
		}
	default:
		ev.Text = "done: " + outcome(t) + "; you may unplug the old terminal now"
	}
	ev.Next = a.relayed(t)
	if p.self.spare() {
		ev.Next += "; the server learns of it once this device is a named terminal (provision its terminal bundle)"
	}
	return &ev, nil
}

// relayed says how programs get to use what has come: relays use certificates.
func (a *Agent) relayed(t *keycopy.Transaction) string {
	var services []transport.Name
	taken := t.Taken() // in the order of the items
	for _, e := range t.Items {
		if len(taken) == 0 || e.ID != taken[0] {
			continue
		}
		if taken = taken[1:]; e.Kind == transport.KindCertificate {
			services = append(services, e.Service)
		}
	}
	if len(services) == 0 {
		return "see what is here: " + a.cfg.Program + " credential list"
	}
	for _, r := range a.relays {
		s := r.relay.Status()
		if slices.Contains(services, s.Service) {
			return fmt.Sprintf("programs on this terminal reach %s through %s", s.Service, r.listen)
		}
	}
	return fmt.Sprintf("add a [[relay]] for %s to the configuration, so that local programs can use the key", services[0])
}

// check refuses a record that this terminal could not use, or that is not what
// it says: the Source has proven the codes, not that it is free of faults or in
// good hands. Above all it brings in no trust that the deployment did not give:
// the one anchor that the server issues is the root. Server name and endpoints
// are believed until the server confirms the claim; they lead no farther than to
// whoever has a server certificate for that name under the root. The validity
// period is left to the moment of use.
func (p *party) check(ctx context.Context, r *transport.CredentialRecord) error {
	switch {
	case r.Secret.Form == transport.SecretTPM:
		return errors.New("its key is in another terminal's chip")
	case r.State != transport.CredentialActive:
		return errors.New("it is invalidated")
	}
	return p.checkHeld(ctx, r)
}

// checkHeld is check for what may have been this terminal's own before.
func (p *party) checkHeld(ctx context.Context, r *transport.CredentialRecord) error {
	if err := checkRecord(r); err != nil {
		return err
	}
	if r.Kind == transport.KindCertificate {
		return p.checkCertificate(ctx, r)
	}
	if r.Secret.Form == transport.SecretTPM || r.Secret.Form == transport.SecretDuplicate {
		_, err := p.vault.publicKey(ctx, r)
		return err
	}
	return nil
}

func (p *party) checkCertificate(ctx context.Context, r *transport.CredentialRecord) error {
	chain, err := transport.ParseChain(r.Chain)
	if err != nil {
		return err
	}
	id, err := transport.VerifyCredential(chain, p.roots, p.self.Deployment, r.Service, transport.LatestStart(chain))
	if err != nil {
		return err
	}
	if id != r.ID || r.Expires != chain[0].NotAfter.Unix() {
		return errors.New("the certificate is another credential's")
	}
	if chain[0].Subject.CommonName != string(r.Subject) {
		return fmt.Errorf("the certificate is for another subject than %s", r.Subject)
	}
	if len(r.Anchors) == 0 || slices.ContainsFunc(r.Anchors, func(der []byte) bool { return !bytes.Equal(der, p.self.Root) }) {
		return errors.New("it would have this terminal trust servers under another root than the deployment's: look at the terminal that it comes from, it may have been tampered with")
	}
	public, err := p.vault.publicKey(ctx, r)
	if err != nil {
		return err
	}
	return certifies(chain[0], public)
}
