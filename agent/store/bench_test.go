package store

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func BenchmarkUpdate(b *testing.B) {
	s, _, _ := newStore(b)
	for i := 0; b.Loop(); i++ {
		update(b, s, func(tx *Tx) error { return tx.Put("a", "k", record{N: i}) })
	}
}

// What a change costs: of a record, of a key that is new, and of a key in the
// place of another, in a store of a usual terminal (100 credentials of 1 KiB, 400
// ledger rows). B-written is all that is handed to the file system, in bytes.
func BenchmarkChange(b *testing.B) {
	e := terminal{b.TempDir()} // a real disk, if that is one
	s := e.mustOpen(b)
	update(b, s, func(tx *Tx) error {
		for i := range 400 {
			if err := tx.Put("ledger", fmt.Sprint(i), record{Name: strings.Repeat("l", 150)}); err != nil {
				return err
			}
		}
		return nil
	})
	update(b, s, func(tx *Tx) error {
		for i := range 100 {
			if err := tx.Put("credentials", fmt.Sprint(i), record{Name: strings.Repeat("c", 1000)}); err != nil {
				return err
			}
		}
		return nil
	})
	for _, c := range []struct {
		name   string
		change func(tx *Tx, i int) error
	}{
		{"record", func(tx *Tx, i int) error { return tx.Put("ledger", fmt.Sprint(i%400), record{N: i + 1000}) }},
		{"20records", func(tx *Tx, i int) error {
			for k := range 20 {
				if err := tx.Put("ledger", fmt.Sprint((20*i+k)%400), record{N: i + 2000}); err != nil {
					return err
				}
			}
			return nil
		}},
		{"newkey", func(tx *Tx, i int) error {
			return tx.Put("credentials", fmt.Sprint("new", i), record{Name: strings.Repeat("c", 1000)})
		}},
		{"replacedkey", func(tx *Tx, i int) error {
			return tx.Put("credentials", fmt.Sprint(i%100), record{Name: strings.Repeat("d", 1000), N: i})
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			before, n := written(b), 0
			for ; b.Loop(); n++ {
				update(b, s, func(tx *Tx) error { return c.change(tx, n) })
			}
			b.ReportMetric(float64(written(b)-before)/float64(n), "B-written/op")
		})
		if err := s.Settle(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// written is how many bytes this process has given to write calls.
func written(b *testing.B) (n int64) {
	b.Helper()
	body, err := os.ReadFile("/proc/self/io")
	if err != nil {
		b.Fatal(err)
	}
	_, line, _ := strings.Cut(string(body), "wchar: ")
	if _, err := fmt.Sscan(line, &n); err != nil {
		b.Fatal(err)
	}
	return n
}

func BenchmarkBatch8(b *testing.B) {
	s, _, _ := newStore(b)
	b.SetParallelism(4)
	b.RunParallel(func(p *testing.PB) {
		for i := 0; p.Next(); i++ {
			if err := s.Batch(func(tx *Tx) error { return tx.Put("a", fmt.Sprint(i%50), record{N: i}) }); err != nil {
				b.Error(err)
			}
		}
	})
}

func BenchmarkGet(b *testing.B) {
	s, _, _ := newStore(b)
	update(b, s, func(tx *Tx) error { return tx.Put("a", "k", record{Name: "a name", N: 7}) })
	for b.Loop() {
		get(b, s, "a", "k")
	}
}

// A terminal's store has some hundred records; the largest that fits is checked
// as well, whole, before it opens.
func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{400, 12000} {
		b.Run(fmt.Sprintf("%dKiB", n*2), func(b *testing.B) {
			m, path := newModule(b), filepath.Join(b.TempDir(), "store")
			s := mustOpen(b, path, m)
			for i := range n / 100 {
				update(b, s, func(tx *Tx) error {
					for k := range 100 {
						if err := tx.Put("a", fmt.Sprint(i*100+k), make([]byte, 1800)); err != nil {
							return err
						}
					}
					return nil
				})
			}
			s.Close()
			for b.Loop() {
				mustOpen(b, path, m).Close()
			}
		})
	}
}
