package store

import (
	"fmt"
	"path/filepath"
	"testing"
)

func BenchmarkUpdate(b *testing.B) {
	s, _, _ := newStore(b)
	for i := 0; b.Loop(); i++ {
		update(b, s, func(tx *Tx) error { return tx.Put("a", "k", record{N: i}) })
	}
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
