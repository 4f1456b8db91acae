package audit

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/agent/store"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/file"
	"github.com/kagimori/kagimori/transport"
)

// A journal is a log in a real store, with a real identity key.
type journal struct {
	*testing.T
	store    *store.Store
	identity hsm.Signer
	device   transport.DeviceID
	epoch    uint64 // of the store, as the caller of the package knows it
	n        int    // entries so far: no two are alike
}

func newJournal(t *testing.T) *journal {
	dir := t.TempDir()
	module, err := file.Open(filepath.Join(dir, "secret"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := openStore(t.Context(), filepath.Join(dir, "db"), module)
	if err != nil {
		t.Fatal(err)
	}
	j := &journal{T: t, store: s, identity: newKey(t, module), epoch: 1}
	spki, err := x509.MarshalPKIXPublicKey(j.identity.Public())
	if err != nil {
		t.Fatal(err)
	}
	j.device = transport.NewDeviceID(spki)
	t.Cleanup(func() {
		if err := errors.Join(s.Check(context.Background()), s.Close(), module.Close()); err != nil {
			t.Error(err)
		}
	})
	return j
}

func openStore(ctx context.Context, path string, module hsm.Module) (*store.Store, error) {
	return store.Open(ctx, store.Config{Path: path}, module, slog.New(slog.DiscardHandler))
}

func newKey(t *testing.T, module hsm.Module) hsm.Signer {
	blob, err := module.NewKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	key, err := module.Signer(t.Context(), blob)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (j *journal) update(fn func(*store.Tx) error) {
	j.Helper()
	if err := j.store.Update(fn); err != nil {
		j.Fatal(err)
	}
}

func (j *journal) append(n int) {
	j.Helper()
	j.update(func(tx *store.Tx) error {
		for range n {
			j.n++
			if err := Append(tx, 1_800_000_000, Installed, fmt.Sprintf("cr-%d", j.n), "for maps"); err != nil {
				return err
			}
		}
		return nil
	})
}

// change is a key change: the store's epoch goes up, and the head is anchored.
func (j *journal) change() { j.epoch++; j.anchor(j.identity, 1) }

func (j *journal) anchor(by crypto.Signer, since uint64) {
	j.Helper()
	var next Statement
	var due bool
	j.update(func(tx *store.Tx) (err error) {
		next, due, err = Head(tx, j.epoch)
		return err
	})
	if !due {
		j.Fatalf("no anchor is due at epoch %d", j.epoch)
	}
	next.Device, next.Since, next.Time = j.device, since, 1_800_000_001
	a, err := Sign(next, by)
	if err != nil {
		j.Fatal(err)
	}
	j.update(func(tx *store.Tx) error { return Keep(tx, a) })
}

func (j *journal) verify() (r *Report) {
	j.Helper()
	err := j.store.View(func(tx *store.Tx) (err error) {
		r, err = Verify(tx, j.device, j.identity.Public(), j.epoch)
		return err
	})
	if err != nil {
		j.Fatal(err)
	}
	if r.Sound != (r.Break == nil) {
		j.Errorf("%+v", r)
	}
	return r
}

// entries gives all of them; rewrite puts others in their place, chained anew,
// as somebody who has the store key could.
func (j *journal) entries() (list []Entry) {
	j.update(func(tx *store.Tx) error {
		list = nil
		return tx.Each(bucketEntries, func(_ string, decode func(any) error) error {
			list = append(list, Entry{})
			return decode(&list[len(list)-1])
		})
	})
	return list
}

func (j *journal) rewrite(list []Entry) {
	j.update(func(tx *store.Tx) error {
		for _, e := range j.keys(tx, bucketEntries) {
			if err := tx.Delete(bucketEntries, e); err != nil {
				return err
			}
		}
		h := head{}
		for _, e := range list {
			e.Seq, e.Prev = h.Seq+1, h.Hash
			hash, err := e.hash()
			if err == nil {
				err = tx.Put(bucketEntries, key(e.Seq), &e)
			}
			if err != nil {
				return err
			}
			h = head{e.Seq, hash}
		}
		return tx.Put(bucketState, keyHead, &h)
	})
}

func (j *journal) keys(tx *store.Tx, bucket string) (list []string) {
	if err := tx.Each(bucket, func(key string, _ func(any) error) error {
		list = append(list, key)
		return nil
	}); err != nil {
		j.Fatal(err)
	}
	return list
}

func TestEmptyLogIsSound(t *testing.T) {
	if r := newJournal(t).verify(); !r.Sound || r.Entries != 0 || r.Anchored != 0 {
		t.Errorf("%+v", r)
	}
}

func TestSoundLog(t *testing.T) {
	j := newJournal(t)
	j.append(3)
	j.change()
	j.append(2)
	j.change()
	j.append(1)
	r := j.verify()
	if !r.Sound || r.Entries != 6 || r.Anchored != 5 || r.Unanchored != 1 || r.Epoch != 3 || r.Anchors != 2 || len(r.Gaps) > 0 || r.Since.IsZero() {
		t.Errorf("%+v", r)
	}
}

// Nothing of an entry can be changed without its place being named.
func TestChangedFields(t *testing.T) {
	for name, change := range map[string]func(*Entry){
		"seq":     func(e *Entry) { e.Seq = 9 },
		"time":    func(e *Entry) { e.Time++ },
		"kind":    func(e *Entry) { e.Kind = Erased },
		"subject": func(e *Entry) { e.Subject = "cr-2" },
		"detail":  func(e *Entry) { e.Detail = "" },
		"prev":    func(e *Entry) { e.Prev[0]++ },
	} {
		for _, at := range []uint64{1, 3, 5} {
			j := newJournal(t)
			j.append(5)
			j.update(func(tx *store.Tx) error {
				var e Entry
				if _, err := tx.Get(bucketEntries, key(at), &e); err != nil {
					return err
				}
				change(&e)
				return tx.Put(bucketEntries, key(at), &e)
			})
			if r := j.verify(); r.Sound || r.Break.Seq != at && r.Break.Seq != at+1 {
				t.Errorf("%s of entry %d: %+v", name, at, r.Break)
			}
		}
	}
}

// What somebody without the store key can do: delete records, and put older ones
// of the same place back.
func TestRemovedAndReplayed(t *testing.T) {
	for name, c := range map[string]struct {
		at     uint64
		words  string
		tamper func(*store.Tx) error
	}{
		"first":      {1, "removed", func(tx *store.Tx) error { return tx.Delete(bucketEntries, key(1)) }},
		"middle":     {3, "removed", func(tx *store.Tx) error { return tx.Delete(bucketEntries, key(3)) }},
		"last":       {6, "removed", func(tx *store.Tx) error { return tx.Delete(bucketEntries, key(6)) }},
		"the head":   {6, "end of the log", func(tx *store.Tx) error { return tx.Delete(bucketState, keyHead) }},
		"older head": {6, "end of the log", func(tx *store.Tx) error { return tx.Put(bucketState, keyHead, &head{Seq: 5}) }},
		"another record": {3, "replaced", func(tx *store.Tx) error {
			return tx.Put(bucketEntries, key(3), &head{})
		}},
	} {
		j := newJournal(t)
		j.append(4)
		j.change()
		j.append(2)
		j.update(c.tamper)
		if r := j.verify(); r.Sound || r.Break.Seq != c.at || !strings.Contains(r.Break.Reason, c.words) {
			t.Errorf("%s: %+v", name, r.Break)
		}
	}
}

// What somebody with the store key can do: another chain. The anchor shows it.
func TestRewrittenChain(t *testing.T) {
	for name, c := range map[string]struct {
		at      uint64
		rewrite func([]Entry) []Entry
	}{
		"changed":   {4, func(l []Entry) []Entry { l[1].Subject = "cr-9"; return l }},
		"reordered": {4, func(l []Entry) []Entry { l[1].Detail, l[2].Detail = "b", "a"; return l }},
		"removed":   {4, func(l []Entry) []Entry { return append(l[:1:1], l[2:]...) }},
		"cut back":  {4, func(l []Entry) []Entry { return l[:3] }},
		"emptied":   {4, func([]Entry) []Entry { return nil }},
	} {
		j := newJournal(t)
		j.append(4)
		j.change()
		j.append(2)
		j.rewrite(c.rewrite(j.entries()))
		if r := j.verify(); r.Sound || r.Break.Seq != c.at {
			t.Errorf("%s: %+v", name, r.Break)
		}
	}
}

func TestForeignAnchor(t *testing.T) {
	j := newJournal(t)
	other := newJournal(t)
	j.append(2)
	j.epoch++
	j.anchor(other.identity, 1)
	if r := j.verify(); r.Sound || !strings.Contains(r.Break.Reason, "not signed by this device") {
		t.Errorf("%+v", r)
	}
}

// Key changes without entries leave one anchor, not one each.
func TestAnchorsAreBounded(t *testing.T) {
	j := newJournal(t)
	j.append(1)
	for range 20 {
		j.change()
	}
	if r := j.verify(); !r.Sound || r.Anchors != 1 || r.Epoch != j.epoch || len(r.Gaps) > 0 {
		t.Errorf("%+v", r)
	}
}

// openssl is the foreign eye on the newest anchor.
func TestAnchorByOpenssl(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatal("openssl is missing: run scripts/setup.sh")
	}
	j := newJournal(t)
	j.append(2)
	j.change()
	p := j.verify().Proof
	dir := t.TempDir()
	for name, b := range map[string][]byte{"message": p.Message, "signature": p.Signature, "public": []byte(p.PublicKey)} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check := func() error {
		c := exec.Command("openssl", "dgst", "-sha256", "-verify", "public", "-signature", "signature", "message")
		c.Dir = dir
		return c.Run()
	}
	if err := check(); err != nil {
		t.Errorf("openssl: %v", err)
	}
	p.Message[len(p.Message)-1] ^= 1
	if err := os.WriteFile(filepath.Join(dir, "message"), p.Message, 0o600); err != nil {
		t.Fatal(err)
	}
	if check() == nil {
		t.Error("openssl takes another message")
	}
}

// The chip was replaced and the store recovered: the anchors of the key before
// still verify, and cannot be added to.
func TestChipReplaced(t *testing.T) {
	j, other := newJournal(t), newJournal(t)
	adopt := func(by *journal) {
		j.update(func(tx *store.Tx) error { return Adopt(tx, by.identity.Public()) })
	}
	adopt(j)
	j.append(3)
	j.change()
	old := *j
	j.identity, j.device = other.identity, other.device
	j.append(1)
	if r := j.verify(); !r.Sound || r.Earlier != 1 || r.Anchored != 0 || len(r.Gaps) != 1 {
		t.Errorf("before the new key has signed: %+v", r)
	}
	adopt(j)
	j.epoch++
	j.anchor(j.identity, j.epoch)
	if r := j.verify(); !r.Sound || r.Earlier != 1 || r.Anchored != 4 || len(r.Gaps) > 0 || r.Proof == nil {
		t.Errorf("after: %+v", r)
	}
	entries := j.entries()
	entries[1].Subject = "cr-9"
	j.rewrite(entries)
	if r := j.verify(); r.Sound || r.Break.Seq != 3 {
		t.Errorf("rewritten: %+v", r.Break)
	}
	entries[1].Subject = "cr-2"
	j.rewrite(entries)
	j.append(1)
	j.epoch++
	j.device = old.device
	j.anchor(old.identity, j.epoch)
	j.device = other.device
	if r := j.verify(); r.Sound || !strings.Contains(r.Break.Reason, "contradict") {
		t.Errorf("the old key signs on: %+v", r)
	}
}
