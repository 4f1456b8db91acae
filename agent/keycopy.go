package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/tcp"
)

// The shell of the key copy (DESIGN D10, KEYCOPY.md): agent/keycopy decides,
// transport/tcp carries, this file gives both what they need of this terminal.
// keycopy_offer.go is the old terminal's end, keycopy_fetch.go the new one's.

const (
	bucketAttempts = "attempts" // role → keycopy.AttemptLog
	bucketCopies   = "copies"   // queue of copyRecord

	// copiesKept is how many copies are remembered.
	copiesKept = 64
)

// KeycopyConfig is how this terminal takes part in key copies.
type KeycopyConfig struct {
	// Listen is where an offer waits, host:port; only while it stands.
	Listen string
	// CodeTTL is how long an operator code lives: at most, and by default,
	// keycopy.CodeLifetime.
	CodeTTL time.Duration
}

// role is which end of a copy this terminal is.
type role string

const (
	roleSource role = "source"
	roleTarget role = "target"
)

// copyRecord is one copy, for status and audit.
type copyRecord struct {
	Role   role               `cbor:"1,keyasint"`
	Txn    transport.ID       `cbor:"2,keyasint"`
	Peer   transport.DeviceID `cbor:"3,keyasint"`
	Name   transport.Name     `cbor:"4,keyasint"`
	Remote string             `cbor:"5,keyasint"`
	Time   int64              `cbor:"6,keyasint"`
	Items  []transport.Name   `cbor:"7,keyasint"` // offered
	Taken  []transport.Name   `cbor:"8,keyasint"` // installed at the Target, durably
}

// copies is what is under way.
type copies struct {
	once  sync.Once
	queue chan *offering // to runKeycopy

	mu       sync.Mutex
	offer    *offering // guarded by mu: in force
	fetching bool      // guarded by mu
}

func (c *copies) armed() chan *offering {
	c.once.Do(func() { c.queue = make(chan *offering) })
	return c.queue
}

// a party is what both ends of a copy need of this terminal.
type party struct {
	vault *vault
	self  *terminalRecord
	roots *x509.CertPool
	tcp   tcp.Config
	code  keycopy.SecurityCode
	clock keycopy.Clock
}

// party readies this terminal for a copy.
func (a *Agent) party() (*party, error) {
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
	var blob hsm.Blob
	err = v.store.View(func(tx *store.Tx) error {
		blob = tx.Blob(blobSecurityCode)
		return nil
	})
	if err != nil {
		return nil, err
	}
	p.code = keycopy.SecurityCode{
		ID:  transport.KeycopyCodeID{Group: self.Group, Epoch: self.Epoch},
		MAC: func(ctx context.Context, m []byte) (*hsm.Secret, error) { return v.module.MAC(ctx, blob, m) },
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

// keycopyClock is a clock that nobody moves by setting the system's.
func (a *Agent) keycopyClock() keycopy.Clock {
	system := keycopy.NewClock()
	return func() keycopy.Instant {
		now := system()
		now.Wall = a.clock.Steady()
		return now
	}
}

// attempts counts guesses in the store (keycopy.Attempts).
type attempts struct {
	vault *vault
	role  role
	now   func() time.Time
}

var _ keycopy.Attempts = attempts{}

// Count records an attempt durably before anybody learns of its outcome.
func (t attempts) Count(context.Context) error {
	var verdict error
	err := t.change(func(log *keycopy.AttemptLog) {
		if t.role == roleTarget {
			verdict = log.CountTyped(t.now())
		} else {
			verdict = log.Count(t.now())
		}
	})
	return errors.Join(err, verdict)
}

// Succeed takes the last attempt back.
func (t attempts) Succeed(context.Context) error {
	return t.change(func(log *keycopy.AttemptLog) { log.Succeed() })
}

func (t attempts) change(do func(*keycopy.AttemptLog)) error {
	return t.vault.update(func(tx *store.Tx) error {
		var log keycopy.AttemptLog
		if _, err := tx.Get(bucketAttempts, string(t.role), &log); err != nil {
			return err
		}
		do(&log)
		return tx.Put(bucketAttempts, string(t.role), &log)
	})
}

// locked is for how long a role takes no more guesses.
func locked(tx *store.Tx, r role, now time.Time) (time.Duration, error) {
	var log keycopy.AttemptLog
	if _, err := tx.Get(bucketAttempts, string(r), &log); err != nil {
		return 0, err
	}
	return log.Lock(now), nil
}

// note keeps a copy for status and audit, and forgets the oldest.
func note(tx *store.Tx, r *copyRecord) error {
	var keys []string
	err := tx.Each(bucketCopies, func(key string, decode func(any) error) error {
		var old copyRecord
		if err := decode(&old); err != nil {
			return err
		}
		if old.Txn == r.Txn {
			return tx.Delete(bucketCopies, key)
		}
		keys = append(keys, key)
		return nil
	})
	if err != nil {
		return err
	}
	for len(keys) >= copiesKept {
		if err := tx.Delete(bucketCopies, keys[0]); err != nil {
			return err
		}
		keys = keys[1:]
	}
	_, err = tx.Append(bucketCopies, r)
	return err
}

func newCopyRecord(r role, t *keycopy.Transaction) *copyRecord {
	c := &copyRecord{Role: r, Txn: t.ID, Peer: t.Peer, Name: t.Name, Remote: t.Remote, Time: t.At.Unix(), Taken: t.Taken}
	for _, e := range t.Items {
		c.Items = append(c.Items, e.ID)
	}
	return c
}

// A KeycopyEvent is one step of a copy, for people and scripts.
type KeycopyEvent struct {
	// Step is armed, connected, turned, refused, killed, expired, granted, item,
	// installed, closed, aborted, disarmed.
	Step string `json:"step"`
	Text string `json:"text"`
	// Code is the operator code, sealed to the caller's reply key, with armed.
	Code    string              `json:"code,omitempty"`
	Listen  string              `json:"listen,omitempty"`  // with armed
	Seconds int                 `json:"seconds,omitempty"` // that the code lives, with armed
	Remote  string              `json:"remote,omitempty"`
	Peer    transport.Name      `json:"peer,omitempty"`        // the other terminal, if it proved a name
	Device  *transport.DeviceID `json:"peer_device,omitempty"` // as the other end says
	Left    *int                `json:"attempts_left,omitempty"`
	Item    int                 `json:"item,omitempty"`
	Items   int                 `json:"items,omitempty"`
	ID      transport.Name      `json:"credential,omitempty"`
	Keys    []KeycopyKey        `json:"keys,omitempty"`
	Held    []KeycopyHeld       `json:"withheld,omitempty"`
	More    int                 `json:"withheld_more,omitempty"`
	Next    string              `json:"next,omitempty"`
}

// KeycopyKey is one credential of a copy.
type KeycopyKey struct {
	ID      transport.Name `json:"credential"`
	Service transport.Name `json:"service"`
	Subject transport.Name `json:"subject"`
}

// KeycopyHeld is one that is held back, and why.
type KeycopyHeld struct {
	ID     transport.Name `json:"credential"`
	Reason string         `json:"reason"`
}

// eventKeys is how many keys one event lists; the rest are counted by Items.
const eventKeys = 256

func keysOf(entries []transport.KeycopyEntry, only []transport.Name) (list []KeycopyKey) {
	for _, e := range entries {
		if (only == nil || slices.Contains(only, e.ID)) && len(list) < eventKeys {
			list = append(list, KeycopyKey{ID: e.ID, Service: e.Service, Subject: e.Subject})
		}
	}
	return list
}

func heldOf(withheld []transport.KeycopyWithheld) (list []KeycopyHeld) {
	for _, w := range withheld {
		list = append(list, KeycopyHeld{ID: w.ID, Reason: w.Reason.String()})
	}
	return list
}

// tell turns an event of the protocol into one for people.
func tell(ev keycopy.Event, r role) KeycopyEvent {
	out := KeycopyEvent{Step: string(ev.Kind), Remote: ev.Remote, Peer: ev.Name, Item: ev.Item, Items: ev.Items, ID: ev.ID}
	if ev.Device != (transport.DeviceID{}) {
		out.Device = &ev.Device
	}
	if t := ev.Transaction; t != nil {
		out.Remote, out.Peer, out.Device, out.Items = t.Remote, t.Name, &t.Peer, len(t.Items)
		out.Keys, out.Held, out.More = keysOf(t.Items, t.Taken), heldOf(t.Withheld), t.More
	}
	who := peerText(out.Peer, out.Device, out.Remote)
	switch ev.Kind {
	case keycopy.EventConnected:
		out.Text = "connected with " + who
	case keycopy.EventTurned:
		out.Text = fmt.Sprintf("%s was turned away before its code was looked at: %v", who, ev.Err)
	case keycopy.EventRefused:
		left := ev.Left
		out.Left = &left
		out.Text = fmt.Sprintf("wrong operator code from %s; %s left", who, count(ev.Left, "attempt"))
	case keycopy.EventKilled:
		out.Text = "too many wrong operator codes; the code is destroyed"
	case keycopy.EventExpired:
		out.Text = "the operator code's time is over; it is destroyed"
	case keycopy.EventGranted:
		out.Text = fmt.Sprintf("the codes match with %s; %s to copy", who, count(out.Items, "key"))
	case keycopy.EventItem:
		out.Text = fmt.Sprintf("%d of %d: %s", ev.Item, ev.Items, ev.ID)
	case keycopy.EventInstalled:
		out.Text = count(len(out.Keys), "key") + " installed here; the operator code is destroyed"
		if r == roleSource {
			out.Text = fmt.Sprintf("%s has installed %s; the operator code is destroyed", who, count(len(out.Keys), "key"))
		}
	case keycopy.EventClosed:
		out.Text = "done: both terminals have destroyed the operator code"
	case keycopy.EventAborted:
		out.Text = fmt.Sprintf("the copy to %s broke off: %v", who, ev.Err)
	}
	return out
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func peerText(name transport.Name, device *transport.DeviceID, remote string) string {
	switch {
	case name != "":
		return fmt.Sprintf("terminal %s at %s", name, remote)
	case device != nil:
		return fmt.Sprintf("device %s at %s", device.Short(), remote)
	}
	return remote
}
