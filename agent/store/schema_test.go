package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/file"
)

// Files that earlier releases wrote. testdata/schema1 was made before schema 2:
// records in several buckets, the keys of which are key buckets today, a queue
// whose last entry was deleted, a value over several pages, and two blobs.

func storedSchema1(t *testing.T) terminal {
	t.Helper()
	e := newTerminal(t)
	for from, to := range map[string]string{"store": "store", "device.secret": "device-secret"} {
		body, err := os.ReadFile(filepath.Join("testdata", "schema1", from))
		if err == nil {
			err = os.WriteFile(filepath.Join(e.dir, to), body, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return e
}

func (e terminal) configFirst() Config {
	return Config{Path: e.path(), Keys: []string{"credentials", "identity", "pending", "terminal"}}
}

func (e terminal) openFirst(t *testing.T, step func(string)) (*Store, hsm.Module) {
	t.Helper()
	m := e.module(t)
	cfg := e.configFirst()
	cfg.step = step
	s, err := Open(t.Context(), cfg, m, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, m
}

// schema1Contents fails unless all that the stored file held is there.
func schema1Contents(t *testing.T, s *Store, m hsm.Module) {
	t.Helper()
	want := func(bucket, key string, r record) {
		t.Helper()
		got, found := get(t, s, bucket, key)
		if !found || got.Name != r.Name || got.N != r.N || !got.Key.Equal(r.Key) {
			t.Errorf("%s %s: %v, %v", bucket, key, got, found)
		}
	}
	for i := range 11 {
		want("credentials", fmt.Sprintf("maps-%02d", i), record{fmt.Sprint("credential-", i), i, hsm.NewSecret([]byte(strings.Repeat(string(rune('a'+i)), 32)))})
	}
	if _, found := get(t, s, "credentials", "maps-11"); found {
		t.Error("a record that was deleted is back")
	}
	want("terminal", "self", record{"nav-001", 7, hsm.NewSecret([]byte("common key of nav-001, 32 bytes.."))})
	want("identity", "chain", record{Name: "chain"})
	want("pending", "0011", record{Name: "pending", Key: hsm.NewSecret([]byte("pending"))})
	want("large", "one", record{Name: strings.Repeat("y", 9000)})
	for i := range 6 {
		want("ledger", fmt.Sprintf("%032d", i), record{Name: "done", N: i})
		want("outbox", fmt.Sprintf("%032d", i), record{N: i})
	}
	view(t, s, func(tx *Tx) error {
		signer, err := m.Signer(t.Context(), tx.Blob("identity"))
		if err != nil {
			return err
		}
		_, macErr := m.MAC(t.Context(), tx.Blob("security-code"), []byte("x"))
		return errors.Join(signer.Close(), macErr)
	})
}

func TestMigrateSchema1(t *testing.T) {
	e := storedSchema1(t)
	var cuts []terminal
	var steps []string
	s, m := e.openFirst(t, func(name string) { cuts, steps = append(cuts, e.copyOf(t)), append(steps, name) })
	schema1Contents(t, s, m)
	if err := settled(s); err != nil || s.Epoch() != 1 {
		t.Errorf("%v, epoch %d", err, s.Epoch())
	}
	update(t, s, func(tx *Tx) error { // the queue's numbers go on behind the one that was deleted
		key, err := tx.Append("copies", record{})
		if key != fmt.Sprintf("%016x", 7) {
			t.Errorf("the next one in the queue is %s", key)
		}
		return err
	})
	s.Close()
	s, m = e.openFirst(t, nil)
	schema1Contents(t, s, m)
	if err := settled(s); err != nil || s.Epoch() != 1 {
		t.Errorf("opened again: %v, epoch %d", err, s.Epoch())
	}
	s.Close()
	t.Logf("steps: %v", steps)
	for i, cut := range cuts { // power cut at every step
		s, m := cut.openFirst(t, nil)
		schema1Contents(t, s, m)
		if err := settled(s); err != nil || s.State().Incarnation != 0 {
			t.Errorf("cut after %s: %v, %+v", steps[i], err, s.State())
		}
	}
	// Nothing of schema 1 stays: no value that opens without an epoch, no second slot.
	body, err := os.ReadFile(e.path())
	if err != nil {
		t.Fatal(err)
	}
	s, _ = e.openFirst(t, nil)
	at := place{"terminal", "self", versionFirst}
	old := len(rawGet(t, storedSchema1(t).path(), []byte("terminal"), "self"))
	for i := range len(body) - old {
		if _, err := openFirst(s.key, at, body[i:i+old]); err == nil {
			t.Fatalf("a value of schema 1 is left at %d", i)
		}
	}
}

// A file of schema 1 in the place of a migrated one is older: the copy knows.
func TestSchema1PutBack(t *testing.T) {
	e := storedSchema1(t)
	s, _ := e.openFirst(t, nil)
	update(t, s, func(tx *Tx) error { return tx.Put("credentials", "new", record{Name: "new"}) })
	s.Close()
	e.take(t, storedSchema1(t), "")
	s, _ = e.openFirst(t, nil)
	if got, _ := get(t, s, "credentials", "new"); got.Name != "new" || s.State().Incarnation != 1 {
		t.Errorf("%v, %+v", got, s.State())
	}
}

// A file of schema 1 opens with a key that was kept elsewhere, too.
func TestMigrateWithKeyFromElsewhere(t *testing.T) {
	e := storedSchema1(t)
	s, _ := e.copyOf(t).openFirst(t, nil)
	other, err := file.Open(filepath.Join(t.TempDir(), "device-secret"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	err = s.WithKey(func(key *hsm.Secret) error {
		moved, err := OpenWith(t.Context(), e.configFirst(), other, key, quiet())
		if err != nil {
			return err
		}
		defer moved.Close()
		if got, _ := get(t, moved, "terminal", "self"); got.Name != "nav-001" {
			t.Errorf("got %v", got)
		}
		return settled(moved)
	})
	if err != nil {
		t.Error(err)
	}
}

// A bucket that becomes a key bucket later is sealed anew, and stays one for a
// program that does not name it.
func TestBucketBecomesKeyBucket(t *testing.T) {
	e := newTerminal(t)
	s := e.mustOpen(t)
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.Put("ledger", "1", record{Name: "row"}), tx.Put("credentials", "a", record{Name: "a"}))
	})
	s.Close()
	for _, keys := range [][]string{{"credentials", "ledger"}, nil, {"credentials"}} {
		cfg := e.config()
		cfg.Keys = keys
		s, err := Open(t.Context(), cfg, e.module(t), quiet())
		if err != nil {
			t.Fatal(err)
		}
		before := s.Epoch()
		update(t, s, func(tx *Tx) error { return tx.Put("ledger", "1", record{Name: fmt.Sprint("row ", keys)}) })
		if s.Epoch() != before+1 {
			t.Errorf("%v: a change of the bucket is no key change", keys)
		}
		if got := contents(t, s); got["ledger 1"] != fmt.Sprint("row ", keys) || got["credentials a"] != "a" {
			t.Errorf("%v: %v", keys, got)
		}
		if err := settled(s); err != nil {
			t.Errorf("%v: %v", keys, err)
		}
		s.Close()
	}
}
