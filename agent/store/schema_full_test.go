package store

import (
	"crypto/rand"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/hsm/file"
	"github.com/kagimori/kagimori/transport"
)

// fullSchema1 is the stored file of an earlier release, with so many records more
// in its queue that nothing could have been added to it.
func fullSchema1(t *testing.T, text string) terminal {
	t.Helper()
	e := storedSchema1(t)
	m, err := file.Open(filepath.Join(e.dir, "device-secret"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	db, err := bbolt.Open(e.path(), 0o600, &bbolt.Options{MaxSize: maxSize - reserve, InitialMmapSize: maxSize - reserve})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.AllocSize, db.NoSync = growStep, true
	var key *hsm.Secret
	if err := db.View(func(tx *bbolt.Tx) (err error) {
		key, err = m.Unseal(t.Context(), tx.Bucket(bucketBlobs).Get([]byte(storeKeyBlob)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	step, n := 256<<10/(len(text)+200), 0
	for err == nil {
		err = db.Update(func(tx *bbolt.Tx) error {
			for range step {
				n++
				name := fmt.Sprintf("f%031x", n)
				if err := tx.Bucket([]byte("outbox")).Put([]byte(name), sealFirst(t, key, name, record{Name: text, N: n})); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if !strings.Contains(err.Error(), "maximum") || n*len(text) < maxSize/8 {
		t.Fatalf("%v after %d records", err, n)
	}
	return e
}

func sealFirst(t *testing.T, key *hsm.Secret, name string, r record) []byte {
	plain, err := transport.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, nonceSize)
	rand.Read(nonce)
	sealed, err := hsm.SealBox(key, append([]byte{versionFirst}, nonce...), nonce, plain, place{"outbox", name, versionFirst}.prefix())
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

// A store that an earlier release filled opens, also when power failed while it
// was migrated, and can be emptied.
func TestFullSchema1(t *testing.T) {
	for _, size := range []int{40, 7 << 10} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			e := fullSchema1(t, strings.Repeat("x", size))
			o := &opener{cfg: e.configFirst(), module: e.module(t), log: quiet(), steps: migrations}
			half, err := o.load(t.Context(), e.path())
			if err != nil {
				t.Fatal(err)
			}
			_, err = half.change(func(tx *Tx) error {
				last, err := tx.reseal("outbox", versionFirst, nil, resealBatch)
				if last == nil {
					t.Error("all of it is one batch")
				}
				return err
			}, nil)
			if err != nil {
				t.Fatal(err)
			}
			half.Close()
			s, m := e.openFirst(t, nil)
			schema1Contents(t, s, m)
			for n := 1; n > 0; {
				n = 0
				update(t, s, func(tx *Tx) error {
					return tx.Each("outbox", func(key string, _ func(any) error) error {
						if n++; n > 4000 {
							return ErrStop
						}
						return tx.Delete("outbox", key)
					})
				})
			}
			update(t, s, func(tx *Tx) error { return tx.Put("outbox", "new", record{Name: "new"}) })
		})
	}
}
