package store

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
)

func testKey() *hsm.Secret {
	return hsm.NewSecret(bytes.Repeat([]byte{7}, chacha20poly1305.KeySize))
}

// The construction is the library's XChaCha20-Poly1305, both ways.
func TestSealIsXChaCha20Poly1305(t *testing.T) {
	key := testKey()
	plain := []byte("something to keep")
	x, err := chacha20poly1305.NewX(key.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	aad := []byte("bucket\x00key\x00\x02\x00\x00\x00\x00\x00\x00\x00\x05")
	at := place{"bucket", "key", versionShared}
	sealed, err := sealValue(key, at, 5, plain)
	if err != nil {
		t.Fatal(err)
	}
	got, err := x.Open(nil, sealed[9:33], sealed[33:], aad)
	if err != nil || !bytes.Equal(got, plain) {
		t.Errorf("library opens ours: %q, %v", got, err)
	}
	nonce := bytes.Repeat([]byte{9}, 24)
	theirs := x.Seal(append([]byte{2, 0, 0, 0, 0, 0, 0, 0, 5}, nonce...), nonce, plain, aad)
	got, err = openValue(key, at, 5, theirs)
	if err != nil || !bytes.Equal(got, plain) {
		t.Errorf("we open the library's: %q, %v", got, err)
	}
	if _, err := openValue(key, at, 4, theirs); !errors.Is(err, ErrDamaged) {
		t.Errorf("a value of a later epoch: %v", err)
	}
	// A file that is out there opens for ever.
	const golden = "020000000000000005090909090909090909090909090909090909090909090909cd1d8fef08c2100c93327c534818628e5a2acc1b0453ec7e99e4867700915ad695"
	if h := hex.EncodeToString(theirs); h != golden {
		t.Errorf("the format has changed: %s", h)
	}
}

func TestNoncesDiffer(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		sealed, err := sealValue(testKey(), place{"b", "k", versionShared}, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		seen[string(sealed[9:33])] = true
	}
	if len(seen) != 1000 {
		t.Errorf("%d nonces in 1000 values", len(seen))
	}
}

func TestFlippedValueIsDamaged(t *testing.T) {
	s, m, path := newStore(t)
	want := record{Name: "nav-001", N: 5, Key: hsm.NewSecret([]byte("key"))}
	update(t, s, func(tx *Tx) error { return tx.Put("a", "k", want) })
	s.Close()
	good := rawGet(t, path, []byte("a"), "k")
	cases := map[string][]byte{"empty": {}, "short": good[:sealOverhead-1], "cut": good[:len(good)-1], "longer": append(bytes.Clone(good), 0)}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		cases["flip "+hex.EncodeToString([]byte{byte(i)})] = bad
	}
	if len(cases) != len(good)+4 {
		t.Fatal("names collide")
	}
	for name, bad := range cases {
		if _, err := openValue(testKey(), place{"a", "k", versionShared}, anyEpoch, bad); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	// Through a file: one at the front, one at the back.
	for _, i := range []int{0, 1, len(good) - 1} {
		bad := bytes.Clone(good)
		bad[i] ^= 0x80
		rawPut(t, path, []byte("a"), "k", bad)
		s := mustOpen(t, path, m)
		err := s.View(func(tx *Tx) error { _, err := tx.Get("a", "k", &record{}); return err })
		if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), `a "k"`) {
			t.Errorf("flip of byte %d: get: %v", i, err)
		}
		err = s.View(func(tx *Tx) error {
			return tx.Each("a", func(_ string, decode func(any) error) error { return decode(&record{}) })
		})
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("flip of byte %d: each: %v", i, err)
		}
		if err := s.Check(t.Context()); !errors.Is(err, ErrDamaged) {
			t.Errorf("flip of byte %d: check: %v", i, err)
		}
		update(t, s, func(tx *Tx) error { return tx.Put("a", "other", want) }) // one bad record is no bad store
		update(t, s, func(tx *Tx) error { return tx.Put("a", "k", want) })     // and a new value mends it
		if got, _ := get(t, s, "a", "k"); got.N != 5 {
			t.Errorf("got %v", got)
		}
		s.Close()
	}
}

// A value opens in its own place only.
func TestMovedValueIsDamaged(t *testing.T) {
	s, m, path := newStore(t)
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.Put("a", "x", record{N: 1}), tx.Put("a", "y", record{N: 2}), tx.Put("b", "x", record{N: 3}))
	})
	s.Close()
	raw(t, path, func(tx *bbolt.Tx) error {
		a, b := tx.Bucket([]byte("a")), tx.Bucket([]byte("b"))
		ax, ay, bx := bytes.Clone(a.Get([]byte("x"))), bytes.Clone(a.Get([]byte("y"))), bytes.Clone(b.Get([]byte("x")))
		return errors.Join(a.Put([]byte("x"), ay), a.Put([]byte("y"), bx), b.Put([]byte("x"), ax))
	})
	s = mustOpen(t, path, m)
	defer s.Close()
	for _, at := range [][2]string{{"a", "x"}, {"a", "y"}, {"b", "x"}} {
		err := s.View(func(tx *Tx) error { _, err := tx.Get(at[0], at[1], &record{}); return err })
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%v: got %v", at, err)
		}
	}
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.Delete("a", "x"), tx.Delete("a", "y"), tx.Delete("b", "x"))
	})
}

// Nothing that was put in can be read in the file: not now, and not what was
// there before.
func TestNothingInClear(t *testing.T) {
	s, _, path := newStore(t)
	needles := []string{"needle-in-a-value", "needle-that-was-replaced", "needle-that-was-deleted", "needle-never-committed", "needle-in-a-secret"}
	for range 3 {
		update(t, s, func(tx *Tx) error {
			return errors.Join(tx.Put("a", "1", record{Name: needles[1]}), tx.Put("a", "2", record{Name: needles[2]}))
		})
		update(t, s, func(tx *Tx) error {
			return errors.Join(tx.Put("a", "1", record{Name: needles[0], Key: hsm.NewSecret([]byte(needles[4]))}), tx.Delete("a", "2"))
		})
		_ = s.Update(func(tx *Tx) error {
			return errors.Join(tx.Put("a", "3", record{Name: needles[3]}), errors.New("no"))
		})
	}
	needles = append(needles, string(s.key.Bytes()))
	update(t, s, func(tx *Tx) error { return tx.Put("visible", "this-key-is-in-clear", 1) })
	for _, name := range []string{path, path + lockSuffix} {
		body, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range needles {
			if bytes.Contains(body, []byte(n)) {
				t.Errorf("%s holds %q in clear", name, n)
			}
		}
		if name == path && !bytes.Contains(body, []byte("this-key-is-in-clear")) {
			t.Error("the scan finds not even what is in clear")
		}
	}
}

func TestStrictDecode(t *testing.T) {
	s, _, _ := newStore(t)
	update(t, s, func(tx *Tx) error { return tx.Put("a", "k", record{Name: "n", N: 1}) })
	var narrow struct {
		Name string `cbor:"1,keyasint"`
	}
	err := s.View(func(tx *Tx) error { _, err := tx.Get("a", "k", &narrow); return err })
	if !errors.Is(err, transport.ErrMalformed) || errors.Is(err, ErrDamaged) {
		t.Errorf("a field that the type does not know: got %v", err)
	}
}

func FuzzOpenValue(f *testing.F) {
	key := testKey()
	good, err := sealValue(key, place{"a", "k", versionShared}, 1, []byte{0x01})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:sealOverhead-1])
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{1}, 100))
	f.Fuzz(func(t *testing.T, b []byte) {
		plain, err := openValue(key, place{"a", "k", versionShared}, 1, b)
		if err == nil && !bytes.Equal(plain, []byte{0x01}) {
			t.Errorf("%x opens as %x", b, plain)
		}
		if err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("got %v", err)
		}
	})
}

// FuzzRecordDecode feeds the layer behind the seal: what a buggy or newer
// program, with the right key, may have written.
func FuzzRecordDecode(f *testing.F) {
	for _, v := range []any{record{Name: "n", N: 1}, record{}, 1, "x", []int{1, 2}, map[int]string{1: "a"}} {
		b, err := transport.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{0xbf, 0xff})
	tx := &Tx{s: &Store{key: testKey()}}
	f.Fuzz(func(t *testing.T, b []byte) {
		sealed, err := sealValue(tx.s.key, place{"a", "k", versionShared}, 0, b)
		if err != nil {
			t.Fatal(err)
		}
		var r record
		if err := tx.decode([]byte("a"), "k", sealed, &r); err != nil {
			return
		}
		again, err := transport.Marshal(r)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x decodes to what encodes as %x (%v)", b, again, err)
		}
	})
}
