package agent

import (
	"errors"
	"testing"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/transport"
)

// dyingStore is a store whose disk takes so many commits and no more.
type dyingStore struct {
	*store.Store
	left int
	dead bool
}

func (s *dyingStore) Update(fn func(*store.Tx) error) error {
	return s.Store.Update(func(tx *store.Tx) error {
		if s.dead {
			return store.ErrFailed
		}
		if err := fn(tx); err != nil {
			return err
		}
		if s.dead = s.left == 0; s.dead {
			return store.ErrFailed
		}
		s.left--
		return nil
	})
}

// commandState is what the store has of an order.
func (c *conversation) commandState(id transport.ID, credential transport.Name) (held, done, waits, pending bool) {
	c.t.Helper()
	h := c.holding(credential)
	defer h.wipe()
	err := c.vault.store.View(func(tx *store.Tx) error {
		r, found, err := settled(tx, id)
		if err != nil {
			return err
		}
		if done = found; found && r.State != transport.CommandDone {
			c.t.Errorf("settled as %q: %s", r.State, r.Detail)
		}
		if waits, err = tx.Get(bucketOutbox, id.String(), &outboxRecord{}); err != nil {
			return err
		}
		var p pendingRecord
		defer p.Key.Bytes.Wipe()
		pending, err = tx.Get(bucketPending, id.String(), &p)
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return h != nil, done, waits, pending
}

// The power fails before each commit that a command takes: the effect, the
// ledger's entry and the end of what was pending are there together, or not at
// all, and the command is done once the power is back. req: L8
func TestPowerFailsBeforeEachCommit(t *testing.T) {
	const most = 20
	for k := range most {
		c := newConversation(t)
		disk := &dyingStore{Store: c.vault.store.(*store.Store), left: k}
		c.vault.store = disk
		id := c.server.order(order("maps-1"))
		c.push(&transport.CommandReady{})
		if !disk.dead {
			c.noErrors()
			c.only(id, transport.CommandDone, "")
			if k < 3 { // pending, settled, acknowledged
				t.Errorf("a command took %d commits", k)
			}
			return
		}
		if len(c.errs) == 0 || !errors.Is(c.errs[0], store.ErrFailed) {
			t.Errorf("before commit %d: %v", k+1, c.errs)
		}
		if err := c.vault.close(); err != nil {
			t.Fatal(err)
		}
		c.vault = testVault(t, c.dir)
		held, done, waits, pending := c.commandState(id, "maps-1")
		if held != done || held && pending || !held && waits {
			t.Errorf("power failed before commit %d: holding %v, ledger %v, outbox %v, pending %v", k+1, held, done, waits, pending)
		}
		c.errs = nil
		c.connect()
		for _, r := range c.server.got(id) {
			if r.State != transport.CommandDone {
				t.Errorf("before commit %d: result %+v", k+1, r)
			}
		}
		if held, done, waits, pending := c.commandState(id, "maps-1"); !held || !done || waits || pending || len(c.server.keys) != 1 {
			t.Errorf("afterwards, commit %d: holding %v, ledger %v, outbox %v, pending %v", k+1, held, done, waits, pending)
		}
		c.noErrors()
	}
	t.Errorf("not done after %d commits", most)
}
